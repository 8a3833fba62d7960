import type { Clock } from '../../base/clock.ts';
import type { Requirements } from '../../wire/proof.ts';

/** Admissions per minute up to which the table's digits are asked for. */
const TARGET_PER_MINUTE = 600;
/** Time constant of the average: of a load, a hundredth is left after two and a half quiet minutes. */
const RECENT_MS = 30_000;
/** Hashes per second of one ordinary core. */
const REFERENCE_RATE = 10_000_000;
/** More work is never asked for than that core does within this part of the window, on average. */
const WINDOW_SHARE = 1 / 5;

/**
 * How much work this validator asks for at its present load: the digits of the table, and one more, sixteen times the work, for each factor of sixteen that
 * the recent admissions are above the target. It forgets, and it is bounded. The median of the validators counts, so that a third of them can neither raise nor lower it
 * beyond what honest ones say.
 */
export class WorkLoad {
  readonly #clock: Clock;
  readonly #targetPerMinute: number;
  /** Admissions, each weighing less with its age: exp(-age / {@link RECENT_MS}). */
  #weight = 0;
  #atMs: number;

  constructor(clock: Clock, { targetPerMinute = TARGET_PER_MINUTE }: { readonly targetPerMinute?: number } = {}) {
    this.#clock = clock;
    this.#targetPerMinute = targetPerMinute;
    this.#atMs = clock.nowMs();
  }

  /** Something was admitted. */
  admitted(): void {
    this.#weight = this.#faded() + 1;
    this.#atMs = Math.max(this.#atMs, this.#clock.nowMs());
  }

  /** The average of the last minute or so. */
  perMinute(): number {
    return (this.#faded() * 60_000) / RECENT_MS;
  }

  /** Digits to ask for; 0 where the table asks for no work. */
  hexDigits({ work, time }: Pick<Requirements, 'work' | 'time'>): number {
    if (work === null) return 0;
    const factor = this.perMinute() / this.#targetPerMinute;
    const more = factor < 16 ? 0 : Math.floor(Math.log2(factor) / 4);
    return Math.max(work.hexDigits, Math.min(work.hexDigits + more, digitsMax(time?.windowMs)));
  }

  #faded(): number {
    // A clock that went back forgets nothing.
    return this.#weight * Math.exp(Math.min(0, this.#atMs - this.#clock.nowMs()) / RECENT_MS);
  }
}

/** What the reference core finds in its share of the window: 7 digits in 300 s. */
function digitsMax(windowMs = 300_000): number {
  return Math.floor(Math.log2((windowMs / 1_000) * WINDOW_SHARE * REFERENCE_RATE) / 4);
}
