import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import type { Digest } from '../base/digest.ts';
import { type ErrorCode, HyperMeshError } from '../base/errors.ts';
import type { BlobInfo } from '../capabilities/assets.ts';
import type { BlobDescription } from '../capabilities/content.ts';
import type { NodeSecrets } from './certified-network.ts';
import type { ContentNodeOptions, Place } from './content-node.ts';

export interface ChildOptions extends Pick<ContentNodeOptions, 'directory' | 'limits' | 'uploadBytesPerSecond'> {
  readonly networkId: Digest;
  readonly secrets: NodeSecrets;
}

export interface ChildCall {
  readonly id: number;
  readonly call: 'place' | 'seed' | 'fetch' | 'has' | 'objects' | 'requests' | 'usage' | 'close';
  readonly args: readonly unknown[];
}

export type ChildMessage =
  | { readonly ready: true }
  | { readonly progress: number }
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: string };

export interface Fetched {
  readonly resumed: number;
  readonly reused: number;
  readonly from: Readonly<Record<string, number>>;
  readonly ms: number;
}

/** A node in a process of its own, which can be killed. */
export class ContentProcess implements AsyncDisposable, Place {
  /** Called with the verified bytes of the download that is under way. */
  onProgress: (bytes: number) => void = () => {};
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #ready = Promise.withResolvers<void>();
  #calls = 1;
  #place: Place = { address: '', node: '' };

  static async start(options: ChildOptions): Promise<ContentProcess> {
    const started = new ContentProcess(options);
    await started.#ready.promise;
    started.#place = await started.#call('place');
    return started;
  }

  private constructor(options: ChildOptions) {
    this.#child = fork(join(import.meta.dirname, 'content-child.ts'), [JSON.stringify(options)], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child.on('message', (message: ChildMessage) => this.#receive(message));
    this.#child.on('exit', (code, signal) => {
      const gone = new Error(`the process ended: ${code ?? signal}`);
      this.#ready.reject(gone);
      for (const call of this.#waiting.values()) call.reject(gone);
      this.#waiting.clear();
    });
  }

  get address(): string {
    return this.#place.address;
  }

  get node(): string {
    return this.#place.node;
  }

  /** Puts that many bytes, the same for the same seed, into its store. */
  seed(bytes: number, seed: string): Promise<BlobInfo> {
    return this.#call('seed', bytes, seed);
  }

  fetch(blob: BlobDescription, others: readonly Place[]): Promise<Fetched> {
    return this.#call('fetch', blob, placesOf(others));
  }

  /** Whether all of it is there with its digest. */
  has(blob: BlobDescription): Promise<boolean> {
    return this.#call('has', blob);
  }

  objects(
    blob: BlobDescription,
    from: Place,
    length: number,
    requests: { readonly objects: number; readonly inFlight: number },
  ): Promise<{ ms: number; count: number }> {
    const { objects, inFlight } = requests;
    return this.#call('objects', blob, placesOf([from])[0], length, objects, inFlight);
  }

  requests(blob: BlobDescription, to: Place, forMs: number): Promise<readonly number[]> {
    return this.#call('requests', blob, placesOf([to])[0], forMs);
  }

  usage(): Promise<{ readonly cpuMs: number; readonly rssBytes: number; readonly maxRssBytes: number }> {
    return this.#call('usage');
  }

  async kill(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.once('exit', () => resolve());
    this.#child.kill('SIGKILL');
    await promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#call('close').catch(() => {});
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    if (!this.#child.connected) return;
    this.#child.disconnect();
    await ended;
  }

  #receive(message: ChildMessage): void {
    if ('ready' in message) this.#ready.resolve();
    else if ('progress' in message) this.onProgress(message.progress);
    else {
      const call = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if ('error' in message) call?.reject(new HyperMeshError(message.error as ErrorCode, message.error));
      else call?.resolve(message.result);
    }
  }

  #call<T>(call: ChildCall['call'], ...args: readonly unknown[]): Promise<T> {
    const id = this.#calls++;
    const waiting = Promise.withResolvers<unknown>();
    this.#waiting.set(id, waiting);
    this.#child.send({ id, call, args } satisfies ChildCall, (error) => {
      if (error !== null) waiting.reject(error);
    });
    return waiting.promise as Promise<T>;
  }
}

function placesOf(nodes: readonly Place[]): Place[] {
  return nodes.map(({ address, node }) => ({ address, node }));
}
