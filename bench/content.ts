import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CertifiedNetwork } from '../src/testing/certified-network.ts';
import type { Place } from '../src/testing/content-node.ts';
import { type ChildOptions, ContentProcess } from '../src/testing/content-process.ts';
import { type Certified, connect as connectTo, hasLibp2p } from './transports.ts';

/** Nodes that move content, each a process of its own with a folder of its own, all gone at the end. */
export class Nodes implements AsyncDisposable {
  readonly folder: string;
  readonly #network: CertifiedNetwork;
  readonly #nodes: ContentProcess[] = [];
  #made = 0;

  static async open(): Promise<Nodes> {
    return new Nodes(await mkdtemp(join(tmpdir(), 'hypermesh-bench-')), await CertifiedNetwork.found());
  }

  private constructor(folder: string, network: CertifiedNetwork) {
    this.folder = folder;
    this.#network = network;
  }

  /** `name`: the folder, to come back to what an earlier process left there. */
  async start(options: Partial<ChildOptions> & { readonly name?: string } = {}): Promise<ContentProcess> {
    const { name = `node-${this.#made++}`, ...more } = options;
    const directory = join(this.folder, name);
    await mkdir(directory, { recursive: true });
    const { secrets } = await this.#network.node();
    const node = await ContentProcess.start({ networkId: this.#network.networkId, directory, secrets, ...more });
    this.#nodes.push(node);
    return node;
  }

  async certified(): Promise<Certified> {
    const { secrets, node } = await this.#network.node();
    return { networkId: this.#network.networkId, secrets, expect: node };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#nodes.map((node) => node.kill()));
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A link that delays: whatever goes in comes out that much later, in both directions. Capacity is not limited. */
export async function delayed(to: Place, oneWayMs: number): Promise<Place & Disposable> {
  const [host, port] = to.address.split(':') as [string, string];
  const sockets = new Set<Socket>();
  const pass = (from: Socket, into: Socket) => {
    from.setNoDelay(true);
    sockets.add(from);
    from.on('data', (bytes) => setTimeout(() => into.write(bytes), oneWayMs));
    from.on('close', () => {
      sockets.delete(from);
      setTimeout(() => into.destroy(), oneWayMs);
    });
    from.on('error', () => from.destroy());
  };
  const server = createServer((near) => {
    const far = connect(Number(port), host);
    pass(near, far);
    pass(far, near);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    address: `127.0.0.1:${(server.address() as { port: number }).port}`,
    node: to.node,
    [Symbol.dispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** Milliseconds that js-libp2p takes for so many objects, a stream for each; null where it cannot be installed. */
export async function libp2pObjects(count: number, inFlight: number, me: Certified): Promise<number | null> {
  if (!(await hasLibp2p())) return null;
  const child = fork(join(import.meta.dirname, 'transport-child.ts'));
  try {
    child.send({ transport: 'libp2p', me });
    const [{ at }] = (await once(child, 'message')) as [{ at: string }];
    await using asking = await connectTo('libp2p', at, me);
    const startedAtMs = performance.now();
    let next = 0;
    const lane = async () => {
      while (next++ < count) await asking.object();
    };
    await Promise.all(Array.from({ length: inFlight }, lane));
    return performance.now() - startedAtMs;
  } finally {
    child.disconnect();
  }
}
