import { constants } from 'node:fs';
import { mkdir, open, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { hex } from '../../base/bytes.ts';
import { type CallOptions, orCancelled } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import { compiledBefore, siblingModule } from '../../base/module.ts';
import type { SpaceStatus } from '../../capabilities/consensus.ts';
import { type Opening, openLabels, treeBytes } from './merkle.ts';
import { type Registration, registrationPositions } from './registration.ts';
import { LABEL_BYTES, LAYERS } from './space-graph.ts';
import type { SpaceJob, SpaceNews } from './space-worker.ts';

/** Where it is kept which commitments the committee has accepted. */
export interface SpaceRegistry {
  /** Root of the commitment that this identity registered, 64 hex digits. */
  registered(): string | undefined;
  /**
   * Has the roots of the three layers registered wherever that is needed: each registrar asks its own question, which `answer` answers.
   * Durable when it returns. Errors: `proof-rejected`, `committee-unreachable`.
   */
  register(roots: readonly string[], answer: (nonce: string) => Promise<Registration>): Promise<void>;
}

/**
 * The standing commitment of this home: made once in a worker, in the background, then kept.
 *
 * Files in the folder: `layer-3` and `tree-3`; until the commitment is registered also those of layers 1 and 2.
 * Everything in them follows from the seed, so a damaged file is made again and the registered root stays the same.
 */
export class SpaceCommitment implements AsyncDisposable {
  readonly #registry: SpaceRegistry;
  readonly #job: SpaceJob;
  readonly #openings: number;
  readonly #clock: Clock;
  readonly #watchers = new Set<(fraction: number) => void>();
  #state: SpaceStatus['state'] = 'absent';
  #fraction = 0;
  #root: string | undefined;
  #auditedAtMs: number | null = null;
  #building: Promise<string> | undefined;
  #worker: Worker | undefined;
  #closed = false;

  constructor(
    lent: { readonly registry: SpaceRegistry },
    options: SpaceJob & {
      readonly clock: Clock;
      /** Labels that the registration opens in all layers together. */
      readonly registrationOpenings: number;
    },
  ) {
    this.#registry = lent.registry;
    const { registrationOpenings, clock, ...job } = options;
    this.#clock = clock;
    this.#job = job;
    this.#openings = registrationOpenings;
  }

  /** Of what is ready to be opened now. */
  get root(): string | undefined {
    return this.#root;
  }

  status(): SpaceStatus {
    const fraction = this.#state === 'ready' ? 1 : this.#fraction;
    return { state: this.#state, bytes: this.#job.bytes, fraction, auditedAtMs: this.#auditedAtMs };
  }

  /** The root, when the commitment is on the disk and registered. Starts or resumes the making of it. Errors: `space-unavailable`, `storage-*`, `cancelled`. */
  async ready({ signal, onProgress }: CallOptions = {}): Promise<string> {
    const watch = (fraction: number) =>
      onProgress?.({
        step: 'space',
        done: Math.floor(fraction * this.#job.bytes),
        total: this.#job.bytes,
        unit: 'bytes',
        note: 'making the space commitment, once for this home',
      });
    this.#building ??= this.#make().catch((error: unknown) => {
      this.#building = undefined;
      throw error;
    });
    this.#watchers.add(watch);
    try {
      return await orCancelled(this.#building, signal);
    } finally {
      this.#watchers.delete(watch);
    }
  }

  /** The registration that this home remembers is not known any more: who waits for the commitment next has it done again. */
  registerAgain(): void {
    this.#building = undefined;
  }

  /** Opens labels of the last layer. A damaged file is noticed here: the commitment is dropped and made again. Errors: `space-unavailable`. */
  async open(positions: readonly number[]): Promise<Opening> {
    try {
      const opening = await this.#open(LAYERS, positions);
      this.#auditedAtMs = this.#clock.nowMs();
      return opening;
    } catch (error) {
      if (!isCoded(error, 'space-unavailable') && (error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      this.#state = 'damaged';
      this.#root = undefined;
      this.#building = undefined;
      await rm(this.#path('tree', LAYERS), { force: true });
      throw new HyperMeshError('space-unavailable', 'The space commitment on this disk is damaged.', {
        hint: 'It is made again from here on; the next attempt waits for it.',
        cause: error,
      });
    }
  }

  /** Crash before the registry's commit: the layers are there and registering is done again. After it: the lower layers are removed at the next start. */
  async #make(): Promise<string> {
    try {
      await mkdir(this.#job.directory, { recursive: true, mode: 0o700 });
      const registered = this.#registry.registered();
      if (registered !== undefined && (await this.#isWhole(registered))) return await this.#settle(registered);
      this.#state = this.#state === 'damaged' ? 'damaged' : 'building';
      const roots = await this.#build();
      if (this.#registry.registered() !== roots.at(-1)) await this.#register(roots);
      return await this.#settle(roots.at(-1)!);
    } catch (error) {
      if (this.#state === 'building') this.#state = 'absent';
      if (isCoded(error)) throw error;
      if ((error as NodeJS.ErrnoException).code !== undefined) throw storageError(error, 'making the space commitment');
      throw new HyperMeshError('space-unavailable', 'The space commitment could not be made.', {
        hint: `Making it takes a tenth of its ${this.#job.bytes} bytes of free memory; close something and try again.`,
        cause: error,
      });
    }
  }

  async #settle(root: string): Promise<string> {
    for (let layer = 1; layer < LAYERS; layer++) {
      await rm(this.#path('tree', layer), { force: true });
      await rm(this.#path('layer', layer), { force: true });
    }
    this.#state = 'ready';
    this.#root = root;
    this.#fraction = 1;
    return root;
  }

  /** Sizes and root only: whether each block still belongs to the tree is checked whenever it is opened. */
  async #isWhole(root: string): Promise<boolean> {
    try {
      const n = this.#job.bytes / LABEL_BYTES;
      const { size } = await stat(this.#path('layer', LAYERS));
      const tree = await readFile(this.#path('tree', LAYERS));
      return size === this.#job.bytes && tree.length === treeBytes(n) && hex(tree.subarray(-LABEL_BYTES)) === root;
    } catch {
      return false;
    }
  }

  async #build(): Promise<readonly string[]> {
    if (this.#closed) throw stopped();
    const { promise, resolve, reject } = Promise.withResolvers<readonly string[]>();
    const worker = new Worker(siblingModule(import.meta.url, './space-worker'), {
      workerData: this.#job,
      env: compiledBefore(),
    });
    this.#worker = worker;
    worker.unref();
    worker.on('message', (news: SpaceNews) => {
      switch (news.kind) {
        case 'progress':
          this.#fraction = news.fraction;
          for (const watch of this.#watchers) watch(news.fraction);
          break;
        case 'done':
          resolve(news.roots);
          break;
        case 'failed':
          reject(Object.assign(new Error(news.message), { code: news.code }));
          break;
      }
    });
    worker.on('error', reject);
    worker.on('exit', () => reject(stopped()));
    try {
      return await promise;
    } finally {
      await worker.terminate();
    }
  }

  async #register(roots: readonly string[]): Promise<void> {
    const n = this.#job.bytes / LABEL_BYTES;
    await this.#registry.register(roots, async (nonce) => {
      const layers: Opening[] = [];
      for (const [index, positions] of registrationPositions(nonce, roots, n, this.#openings).needed.entries()) {
        layers.push(await this.#open(index + 1, positions));
      }
      return { nonce, roots, layers };
    });
  }

  async #open(layer: number, positions: readonly number[]): Promise<Opening> {
    const labels = await open(this.#path('layer', layer), constants.O_RDONLY);
    try {
      const tree = await readFile(this.#path('tree', layer));
      if (tree.length !== treeBytes(this.#job.bytes / LABEL_BYTES)) {
        throw new HyperMeshError('space-unavailable', 'The tree of the space commitment is truncated.');
      }
      return await openLabels({ labels, tree }, this.#job.bytes / LABEL_BYTES, positions);
    } finally {
      await labels.close();
    }
  }

  #path(kind: 'layer' | 'tree', layer: number): string {
    return join(this.#job.directory, `${kind}-${layer}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await this.#worker?.terminate();
    await this.#building?.catch(() => undefined);
  }
}

function stopped(): HyperMeshError {
  return new HyperMeshError('cancelled', 'The node stopped while the space commitment was being made.', {
    hint: 'It goes on from the last finished layer at the next start.',
  });
}
