import { HyperMeshError } from '../../base/errors.ts';

/** The promise, or `cancelled` as soon as the signal says so. The work behind the promise goes on. */
export async function orCancelled<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(new HyperMeshError('cancelled', 'The operation was cancelled.'));
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
