import type { Clock } from '../../base/clock.ts';
import { isCoded } from '../../base/errors.ts';
import type { NodeId } from './channel/index.ts';

export interface AskOptions {
  readonly replyBytesMax: number;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Calls a method of another node. Errors: `peer-unreachable`, `peer-lied`, `timeout`, and what the other side refuses with. */
export type Ask = (to: NodeId, method: string, body: Uint8Array, options: AskOptions) => Promise<Uint8Array>;

/** Answers one method: who asks is proved by the channel. */
export type Answer = (body: Uint8Array, from: NodeId) => Promise<Uint8Array>;

/** Timers as an argument, so that a simulation decides when it is. */
export interface Timers {
  /** Returns what cancels it. Never keeps the process alive. */
  after(ms: number, work: () => void): () => void;
}

export const systemTimers: Timers = {
  after(ms, work) {
    const timer = setTimeout(work, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};

/** What a part of the network layer needs of the world around it; a simulation brings its own. */
export interface Surroundings {
  readonly ask: Ask;
  readonly clock: Clock;
  readonly timers: Timers;
  /** From 0 up to 1. */
  readonly random: () => number;
}

/** Repeats `work` every `ms`, give or take a fifth, never two at once; ends when the returned function is called. */
export function every(
  around: Pick<Surroundings, 'timers' | 'random'>,
  ms: number,
  work: () => Promise<void>,
): () => void {
  let ended = false;
  let cancel = (): void => {};
  const plan = (): void => {
    if (ended) return;
    cancel = around.timers.after(ms * (0.8 + 0.4 * around.random()), () => void work().then(plan, plan));
  };
  plan();
  return () => {
    ended = true;
    cancel();
  };
}

/**
 * What came by the time that all have settled, or a moment after the first that counts: whoever is slow or silent holds nobody up. What fails is
 * left out.
 */
export function promptly<T>(
  { timers }: Pick<Surroundings, 'timers'>,
  momentMs: number,
  work: readonly Promise<T>[],
  counts: (value: T) => boolean = () => true,
): Promise<readonly T[]> {
  const { promise, resolve, reject } = Promise.withResolvers<readonly T[]>();
  const came: T[] = [];
  let cancel: (() => void) | undefined;
  const over = () => {
    cancel?.();
    resolve([...came]);
  };
  const settled = work.map(async (one) => {
    try {
      came.push(await one);
    } catch (error) {
      if (!isCoded(error)) reject(error as Error);
      return;
    }
    if (counts(came.at(-1)!)) cancel ??= timers.after(momentMs, over);
  });
  void Promise.all(settled).then(over);
  return promise;
}

/** `count` different ones of `from`, each as likely as any other. */
export function sample<T>(from: readonly T[], count: number, random: () => number): T[] {
  const pool = [...from];
  for (let at = 0; at < Math.min(count, pool.length); at++) {
    const other = at + Math.floor(random() * (pool.length - at));
    [pool[at], pool[other]] = [pool[other]!, pool[at]!];
  }
  return pool.slice(0, count);
}
