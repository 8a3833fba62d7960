/** The rate is that of this time; at the beginning of at least so much of it, for the first bytes come in one piece. */
const WINDOW_MS = 5_000;
const WINDOW_MS_MIN = 500;
const MARK_EVERY_MS = 500;

/** Counts bytes, and says how many pass in a second. */
export class Rate {
  /** Totals before something was added, from the beginning of the window on. */
  readonly #marks: { readonly atMs: number; readonly total: number }[] = [];
  #total = 0;

  get total(): number {
    return this.#total;
  }

  add(bytes: number, nowMs = performance.now()): void {
    const last = this.#marks.at(-1);
    if (last === undefined || nowMs - last.atMs >= MARK_EVERY_MS) this.#marks.push({ atMs: nowMs, total: this.#total });
    this.#total += bytes;
    this.#forget(nowMs);
  }

  perSecond(nowMs = performance.now()): number {
    this.#forget(nowMs);
    const [first] = this.#marks;
    if (first === undefined) return 0;
    return Math.round(((this.#total - first.total) * 1_000) / Math.max(WINDOW_MS_MIN, nowMs - first.atMs));
  }

  #forget(nowMs: number): void {
    while (this.#marks.length > 1 && this.#marks[1]!.atMs <= nowMs - WINDOW_MS) this.#marks.shift();
  }
}
