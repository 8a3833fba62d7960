import { setTimeout as after } from 'node:timers';
import { Worker } from 'node:worker_threads';
import { HyperMeshError } from '../../base/errors.ts';
import { compiledBefore } from '../../base/module.ts';
import { laterTurn } from '../../base/turn.ts';

/** What a lane sends to its worker. `stop` turns non-zero when nobody waits any more. */
export interface LaneJob<J> {
  readonly job: J;
  readonly stop: Int32Array<SharedArrayBuffer>;
}

export type LaneNews<R> =
  | { readonly kind: 'progress'; readonly done: number }
  | { readonly kind: 'result'; readonly result: R | undefined }
  | { readonly kind: 'failed'; readonly message: string };

/** A flag that crosses threads. */
export function stopFlag(): Int32Array<SharedArrayBuffer> {
  return new Int32Array(new SharedArrayBuffer(4));
}

/**
 * One worker thread that does one job after the other. It starts with the first job and ends when it was idle for `idleMs`,
 * so that a node that proves nothing holds no threads. At most `waitingMax` jobs wait.
 */
export class Lane<J, R> implements AsyncDisposable {
  readonly #module: URL;
  readonly #idleMs: number;
  readonly #waitingMax: number;
  #worker: Worker | undefined;
  #idle: NodeJS.Timeout | undefined;
  #tail: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #closed = false;

  constructor(module: URL, options: { readonly idleMs?: number; readonly waitingMax?: number } = {}) {
    this.#module = module;
    this.#idleMs = options.idleMs ?? 10_000;
    this.#waitingMax = options.waitingMax ?? 256;
  }

  /** Undefined when `stop` ended the job early. Errors: `quota-exceeded` when too many wait, `cancelled` when the lane closes. */
  run(job: J, stop: Int32Array<SharedArrayBuffer>, onProgress?: (done: number) => void): Promise<R | undefined> {
    if (this.#waiting >= this.#waitingMax) {
      return Promise.reject(
        new HyperMeshError('quota-exceeded', `More than ${this.#waitingMax} proofs wait to be made.`, {
          hint: 'Try again when some of them are done.',
        }),
      );
    }
    this.#waiting += 1;
    const turn = this.#tail.then(() => this.#do(job, stop, onProgress)).finally(() => (this.#waiting -= 1));
    this.#tail = turn.catch(() => undefined);
    return turn;
  }

  async #do(job: J, stop: Int32Array<SharedArrayBuffer>, onProgress?: (done: number) => void): Promise<R | undefined> {
    // To start a thread takes a millisecond or two, and there are as many as processors.
    if (this.#worker === undefined) await laterTurn();
    if (this.#closed) throw closed();
    if (Atomics.load(stop, 0) !== 0) return undefined;
    clearTimeout(this.#idle);
    this.#worker ??= this.#start();
    const worker = this.#worker;
    worker.ref();
    const { promise, resolve, reject } = Promise.withResolvers<R | undefined>();
    const listen = (news: LaneNews<R>) => {
      if (news.kind === 'progress') onProgress?.(news.done);
      else if (news.kind === 'result') resolve(news.result);
      else reject(new Error(news.message));
    };
    const ended = () => reject(closed());
    worker.on('message', listen).on('error', reject).on('exit', ended);
    worker.postMessage({ job, stop } satisfies LaneJob<J>);
    try {
      return await promise;
    } finally {
      worker.off('message', listen).off('error', reject).off('exit', ended);
      // One that is being ended holds the process until it has: nothing else may be there to wait for that.
      if (this.#worker === worker && !this.#closed) {
        worker.unref();
        this.#idle = after(() => void this.#end(), this.#idleMs).unref();
      }
    }
  }

  #start(): Worker {
    const worker = new Worker(this.#module, { env: compiledBefore() });
    // A worker that died is not given the next job; who waits for it hears of it through `#do`.
    worker.once('exit', () => {
      if (this.#worker === worker) this.#worker = undefined;
    });
    return worker;
  }

  async #end(): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    await worker?.terminate();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idle);
    await this.#end();
    await this.#tail;
  }
}

function closed(): HyperMeshError {
  return new HyperMeshError('cancelled', 'The node stopped while a proof was being made.');
}
