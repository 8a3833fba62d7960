import { concat } from './bytes.ts';
import { HyperMeshError } from './errors.ts';

/** A stream of one piece. */
export async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}

/** Collects a stream that must be small. Errors: `limit-exceeded` past `sizeMax` bytes. */
export async function collect(stream: AsyncIterable<Uint8Array>, sizeMax: number): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of stream) {
    size += piece.length;
    if (size > sizeMax) throw new HyperMeshError('limit-exceeded', `Expected at most ${sizeMax} bytes, but more came.`);
    pieces.push(piece);
  }
  return concat(...pieces);
}

/** Runs `work` over `items`, at most `concurrency` at a time, results in order. The first failure stops what has not begun. */
export async function mapBounded<T, R>(
  items: readonly T[],
  concurrency: number,
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = new Array(items.length);
  let next = 0;
  let failed = false;
  async function lane(): Promise<void> {
    while (next < items.length && !failed) {
      const index = next++;
      try {
        results[index] = await work(items[index]!);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(concurrency, items.length) }, lane));
  return results;
}

/**
 * Waits for all of `works`, which go on at the same time. The first failure is the one that counts: it aborts the others through the
 * signal that each is given, and nothing is under way any more when it is thrown.
 */
export async function together(
  signal: AbortSignal | undefined,
  works: readonly ((signal: AbortSignal) => Promise<unknown>)[],
): Promise<void> {
  const failed = new AbortController();
  const either = AbortSignal.any(signal === undefined ? [failed.signal] : [failed.signal, signal]);
  const all = works.map(async (work) => work(either));
  try {
    await Promise.all(all);
  } catch (error) {
    failed.abort(error);
    await Promise.allSettled(all);
    throw error;
  }
}
