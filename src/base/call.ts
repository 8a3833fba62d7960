import { HyperMeshError } from './errors.ts';

/** What a long operation reports while it runs. */
export interface Progress {
  /** The step by its name in the ladder, for example `prove` or `pack`. */
  readonly step: string;
  /** Units done so far and in total, when known. */
  readonly done?: number;
  readonly total?: number;
  readonly unit?: 'bytes' | 'files' | 'steps' | 'packages';
  /** One short human sentence. */
  readonly note?: string;
  /** What a program that runs wrote on standard error since the last report, as lines to print: control characters are visible. */
  readonly log?: string;
}

/** Accepted by everything that waits. Both members cross the border to a cell as messages. */
export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: Progress) => void) | undefined;
}

/** Errors: `cancelled` once the caller gave up. */
export function checkCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: signal.reason });
}

/** The promise, or `cancelled` as soon as the caller gives up. The work behind the promise goes on. */
export async function orCancelled<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => {
    try {
      checkCancelled(signal);
    } catch (error) {
      reject(error as Error);
    }
  };
  signal.addEventListener('abort', onAbort, { once: true });
  onAbort();
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
