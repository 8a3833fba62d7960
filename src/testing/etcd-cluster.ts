import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from './free-port.ts';

/** Why this machine cannot run etcd, or false. */
export function etcdMissing(): string | false {
  return spawnSync('etcd', ['--version']).status === 0 ? false : 'needs etcd (Debian: etcd-server)';
}

/** Real etcd processes on loopback, in a temporary folder, to be broken. */
export class EtcdCluster implements AsyncDisposable {
  readonly endpoints: readonly string[];
  readonly folder: string;
  readonly #args: readonly (readonly string[])[];
  readonly #running: (ChildProcess | undefined)[] = [];

  private constructor(folder: string, endpoints: readonly string[], args: readonly (readonly string[])[]) {
    this.folder = folder;
    this.endpoints = endpoints;
    this.#args = args;
  }

  /** Resolves when it takes writes. `tls`: clients speak TLS, with a certificate that each machine makes itself. */
  static async start(machines: number, { tls = false }: { readonly tls?: boolean } = {}): Promise<EtcdCluster> {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-etcd-'));
    const ports = await Promise.all(Array.from({ length: 2 * machines }, freePort));
    const scheme = tls ? 'https' : 'http';
    const clients = ports.slice(0, machines).map((port) => `${scheme}://127.0.0.1:${port}`);
    const peers = ports.slice(machines).map((port) => `http://127.0.0.1:${port}`);
    const args = clients.map((client, at) => [
      ...['--name', `m${at}`, '--data-dir', join(folder, `m${at}`)],
      ...['--listen-client-urls', client, '--advertise-client-urls', client],
      ...['--listen-peer-urls', peers[at]!, '--initial-advertise-peer-urls', peers[at]!],
      ...['--initial-cluster', peers.map((peer, of) => `m${of}=${peer}`).join(), '--initial-cluster-token', folder],
      ...['--heartbeat-interval', '100', '--election-timeout', '1000', '--log-level', 'error'],
      ...(tls ? ['--auto-tls'] : []),
    ]);
    const cluster = new EtcdCluster(folder, clients, args);
    for (const at of clients.keys()) cluster.start(at);
    if (!tls) await cluster.ready();
    return cluster;
  }

  start(at: number): void {
    this.#running[at] = spawn('etcd', this.#args[at]!, { stdio: 'ignore' });
  }

  /** As a power failure would. */
  async kill(at: number): Promise<void> {
    const child = this.#running[at];
    this.#running[at] = undefined;
    if (child === undefined || child.exitCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  /** Its sockets stay open and nobody answers, as behind a cut cable. */
  pause(at: number): void {
    this.#running[at]?.kill('SIGSTOP');
  }

  resume(at: number): void {
    this.#running[at]?.kill('SIGCONT');
  }

  /** Resolves when one of its machines knows a leader. */
  async ready(): Promise<void> {
    for (let tries = 0; tries < 300; tries += 1) {
      for (const endpoint of this.endpoints) {
        const answer = await fetch(`${endpoint}/health`, { signal: AbortSignal.timeout(1_000) }).catch(() => undefined);
        const text = await answer?.text().catch(() => '');
        if (answer?.ok === true && text?.includes('true') === true) return;
      }
      await sleep(50);
    }
    throw new Error('etcd found no leader');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#args.map((_, at) => this.kill(at)));
    await rm(this.folder, { recursive: true, force: true });
  }
}
