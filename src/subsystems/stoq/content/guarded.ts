import { isCoded } from '../../../base/errors.ts';
import type { Source } from './source.ts';

/**
 * A source that gives to whom it knows to have access. With `first`, access is gained before anything is taken; otherwise when it is refused.
 * It ends after a while, also in the middle of a download: then it is gained again. `gain` is shared by who asks at the same time.
 */
export function guarded(
  source: Source,
  { first, gain }: { readonly first: boolean; readonly gain: () => Promise<void> },
): Source {
  let gained: Promise<void> | null = null;
  const gainOnce = () => {
    const now = gain();
    gained = now;
    // The next one who asks tries again.
    now.catch(() => {
      if (gained === now) gained = null;
    });
    return now;
  };
  const take = async <T>(work: () => Promise<T>): Promise<T> => {
    const before = gained;
    if (first) await (before ?? gainOnce());
    try {
      return await work();
    } catch (error) {
      if (!isCoded(error, 'access-needed')) throw error;
      await (gained === null || gained === before ? gainOnce() : gained);
      return work();
    }
  };
  return {
    node: source.node,
    get rttMs() {
      return source.rttMs;
    },
    have: (...asked) => source.have(...asked),
    shardList: (...asked) => take(() => source.shardList(...asked)),
    read: (...asked) => take(() => source.read(...asked)),
    fetchRange: (...asked) => take(() => source.fetchRange(...asked)),
  };
}
