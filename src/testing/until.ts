import { setTimeout as sleep } from 'node:timers/promises';

/** Polls until it holds; what it throws counts as not yet. The limit is for what never comes: a machine with other work may take long. */
export async function until(
  what: string,
  holds: () => boolean | Promise<boolean>,
  { withinMs = 60_000, everyMs = 25 }: { readonly withinMs?: number; readonly everyMs?: number } = {},
): Promise<void> {
  const giveUpAtMs = performance.now() + withinMs;
  for (let failure: unknown; ; ) {
    try {
      if (await holds()) return;
      failure = undefined;
    } catch (error) {
      failure = error;
    }
    if (performance.now() > giveUpAtMs) throw new Error(`${what}: not within ${withinMs} ms`, { cause: failure });
    await sleep(everyMs);
  }
}
