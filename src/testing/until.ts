import { setTimeout as sleep } from 'node:timers/promises';

const PAUSE_MS = 5;

/**
 * Looks until it holds, soon at first and then ever less often; what it throws counts as not yet. The limit is for what never comes: a machine with
 * other work may take long.
 */
export async function until(
  what: string,
  holds: () => boolean | Promise<boolean>,
  { withinMs = 300_000, everyMs = 200 }: { readonly withinMs?: number; readonly everyMs?: number } = {},
): Promise<void> {
  const giveUpAtMs = performance.now() + withinMs;
  let failure: unknown;
  for (let pauseMs = PAUSE_MS; ; pauseMs *= 1.5) {
    try {
      if (await holds()) return;
      failure = undefined;
    } catch (error) {
      failure = error;
    }
    if (performance.now() > giveUpAtMs) throw new Error(`${what}: not within ${withinMs} ms`, { cause: failure });
    await sleep(Math.min(pauseMs, everyMs));
  }
}
