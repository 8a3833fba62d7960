import { packFolder } from '../../src/client/folder.ts';
import type { Client } from '../../src/client/index.ts';
import { until } from '../../src/testing/until.ts';
import { freshHome, type Home, nodeOf } from '../system/support.ts';

export { until };

/** Short periods, so that a test sees in seconds what takes minutes elsewhere. */
export const QUICK_PACE = { probeMs: 200, patienceMs: 2_000, syncMs: 1_000, replicationMs: 2_000 };

/** A node in a process of its own, started by the command. */
export interface MeshNode extends Home {
  readonly id: string;
  readonly client: Client;
  readonly pid: number;
  /** Starts it, or starts it again; what the command says. */
  up(): Promise<{ readonly problem: string | null }>;
  /** Ends it as a person does (SIGTERM) or as a power cut does (SIGKILL), and waits until it is gone. */
  end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void>;
  /** Packs a folder and publishes it through the API. */
  publish(folder: string): ReturnType<Client['publish']>;
}

/** A home with a node that is not yet started. `settings` go into its configuration. */
export async function meshNode(settings: Readonly<Record<string, unknown>> = {}): Promise<MeshNode> {
  const home = await freshHome({}, { threads: 1, peers: { pace: QUICK_PACE }, ...settings });
  let running: { readonly id: string; readonly client: Client; readonly pid: number } | null = null;
  const now = () => {
    if (running === null) throw new Error('the node was not started');
    return running;
  };
  const node: MeshNode = {
    ...home,
    get id() {
      return now().id;
    },
    get client() {
      return now().client;
    },
    get pid() {
      return now().pid;
    },
    async up() {
      const started = await home.json<{ readonly problem: string | null }>(['up', '--detach']);
      const { client, pid } = await nodeOf(home);
      running = { client, pid, id: (await client.networkPlace()).node };
      return started;
    },
    async end(signal) {
      const { pid } = now();
      process.kill(pid, signal);
      await until(`process ${pid} ends`, () => !isAlive(pid));
    },
    async publish(folder) {
      const packed = await packFolder(folder);
      const layer = await now().client.stageLayer(packed.tree);
      return now().client.publish(packed.manifestYaml, layer.digest);
    },
    async [Symbol.asyncDispose]() {
      if (running !== null && isAlive(running.pid)) {
        // It may be stopped.
        process.kill(running.pid, 'SIGCONT');
        await node.end('SIGTERM');
      }
      await home[Symbol.asyncDispose]();
    },
  };
  return node;
}

/** A network of so many nodes on loopback, everybody known to everybody. The first one founded it. */
export async function mesh(
  stack: AsyncDisposableStack,
  count: number,
  settings: (at: number) => Readonly<Record<string, unknown>> = () => ({}),
): Promise<MeshNode[]> {
  const nodes: MeshNode[] = [];
  for (let at = 0; at < count; at++) nodes.push(stack.use(await meshNode(settings(at))));
  await Promise.all(nodes.map((node) => node.up()));
  const [founder, ...others] = nodes as [MeshNode, ...MeshNode[]];
  await founder.client.createNetwork({ listen: '127.0.0.1:0' });
  for (const node of others) await join(node, founder);
  await until('everybody knows everybody', async () => {
    const seen = await Promise.all(nodes.map(async ({ client }) => (await client.status()).transport.peers.alive));
    return seen.every((alive) => alive === count - 1);
  });
  return nodes;
}

export async function join(node: MeshNode, founder: MeshNode, listen = '127.0.0.1:0'): Promise<void> {
  const { invite } = await founder.client.invite({});
  await node.client.joinNetwork({ invite, listen });
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
