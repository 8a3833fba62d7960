import { isCoded } from '../../../base/errors.ts';

/** Patience with who hangs, where others can do without him. */
export const PATIENCE_MS = 3_000;
/** How long those are waited for who are slower than the first. */
const MOMENT_MS = 500;

/**
 * What came by the time that all have settled, or a moment after so many succeeded, or when patience is over: who hangs, or is gone, holds nobody up.
 * What fails is left out; an error that is none of ours is thrown.
 */
export function heard<T>(
  work: readonly Promise<T>[],
  { enough, patienceMs }: { readonly enough: number; readonly patienceMs: number },
): Promise<readonly T[]> {
  const { promise, resolve, reject } = Promise.withResolvers<readonly T[]>();
  const came: T[] = [];
  const over = () => resolve([...came]);
  const patience = setTimeout(over, patienceMs);
  let moment: NodeJS.Timeout | undefined;
  const settled = work.map(async (one) => {
    try {
      came.push(await one);
    } catch (error) {
      if (!isCoded(error)) reject(error as Error);
    }
    if (came.length >= enough) moment ??= setTimeout(over, MOMENT_MS);
  });
  void Promise.all(settled).then(over);
  return promise.finally(() => {
    clearTimeout(patience);
    clearTimeout(moment);
  });
}
