import { HyperMeshError } from '../../../base/errors.ts';

interface AllowanceLimits {
  /** What one may have in the order, and of that on its way at once. */
  readonly entriesMax: number;
  readonly bytesMax: number;
  readonly runningMax: number;
  /** How long each entry counts at least. */
  readonly heldMs: number;
}

interface Held {
  readonly bytes: number;
  readonly sinceMs: number;
  isRunning: boolean;
  isOpen: () => boolean;
}

/** Before it is worth trying again where nobody knows when something ends. */
const AGAIN_MS = 500;

/**
 * How much of the order each may take up. What somebody brings counts as long as it waits, and for a while at least: so there is a bound on what others have to wait for, and on
 * what they have to do in the long run.
 */
export class Allowance {
  readonly #limits: AllowanceLimits;
  readonly #nowMs: () => number;
  readonly #held = new Map<string, Held[]>();

  constructor(limits: AllowanceLimits, nowMs: () => number = () => performance.now()) {
    this.#limits = limits;
    this.#nowMs = nowMs;
  }

  /**
   * `isOpen`: whether what came of the work waits still; asked until it does not. Errors: `quota-exceeded`, whose `details.retryInMs` say when there may be room, and those of the
   * work.
   */
  async take<T>(
    who: string,
    bytes: number,
    work: () => Promise<T>,
    isOpen: (came: T) => boolean = () => false,
  ): Promise<T> {
    const nowMs = this.#nowMs();
    const held = this.#heldBy(who, nowMs);
    const retryInMs = this.#retryInMs(held, bytes, nowMs);
    if (retryInMs !== undefined) {
      throw new HyperMeshError(
        'quota-exceeded',
        `${held.length} entries from there are in the order, or on their way.`,
        {
          hint: `Try again in ${Math.ceil(retryInMs / 1_000)} s.`,
          details: { retryInMs },
        },
      );
    }
    const one: Held = { bytes, sinceMs: nowMs, isRunning: true, isOpen: () => false };
    this.#held.set(who, held);
    held.push(one);
    try {
      const came = await work();
      one.isOpen = () => isOpen(came);
      return came;
    } finally {
      one.isRunning = false;
    }
  }

  /** What counts now. Of others nothing is remembered when nothing counts. */
  #heldBy(who: string, nowMs: number): Held[] {
    const counts = (one: Held) => one.isRunning || nowMs - one.sinceMs < this.#limits.heldMs || one.isOpen();
    const own = (this.#held.get(who) ?? []).filter(counts);
    // Who brought something last comes last.
    this.#held.delete(who);
    for (const [other, held] of this.#held) {
      if (held.some(counts)) break;
      this.#held.delete(other);
    }
    if (own.length > 0) this.#held.set(who, own);
    return own;
  }

  /** Undefined: there is room. */
  #retryInMs(held: readonly Held[], bytes: number, nowMs: number): number | undefined {
    const { entriesMax, bytesMax, runningMax, heldMs } = this.#limits;
    const running = held.filter(({ isRunning }) => isRunning).length;
    let entries = held.length;
    let total = bytes + held.reduce((sum, one) => sum + one.bytes, 0);
    if (running >= runningMax) return AGAIN_MS;
    if (entries < entriesMax && total <= bytesMax) return undefined;
    // What came first is settled first, as a rule.
    for (const one of held) {
      entries -= 1;
      total -= one.bytes;
      if (entries < entriesMax && total <= bytesMax) return Math.max(AGAIN_MS, one.sinceMs + heldMs - nowMs);
    }
    return AGAIN_MS;
  }
}
