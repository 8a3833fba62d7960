import { closeSync, constants, openSync, statfsSync } from 'node:fs';

const LOOKING_MS = 50;
/** Until the box has entered its root. */
const OPENING_MS = 2;
const OPENING_MS_MAX = 5_000;
const PAGE_BYTES = 4_096;

/** The least that `/tmp` of a box can be. */
export function tmpSize(tmpBytes: number): number {
  return Math.max(PAGE_BYTES, tmpBytes);
}

/** What is seen of the `/tmp` of a box from outside. A folder that is open stays when all processes of the box have ended. */
export class Scratch implements Disposable {
  readonly #size: number;
  #fd: number | undefined;
  #timer: NodeJS.Timeout | undefined;
  #wasFull = false;

  constructor(tmpBytes: number) {
    this.#size = tmpSize(tmpBytes);
  }

  /** Looks from now on whether it is full. `init`: the first process of the box, when it is there. */
  follow(init: () => number | null): void {
    const startMs = performance.now();
    const turn = () => {
      const pid = init();
      if (this.#fd === undefined && pid !== null) this.#open(pid);
      this.#look();
      if (this.#fd === undefined && performance.now() - startMs > OPENING_MS_MAX) return;
      this.#timer = setTimeout(turn, this.#fd === undefined ? OPENING_MS : LOOKING_MS).unref();
    };
    turn();
  }

  /** Whether there was a moment with no place for another byte; what is there for less than a twentieth of a second may go unseen. */
  wasFull(): boolean {
    this.#look();
    return this.#wasFull;
  }

  #open(init: number): void {
    try {
      // What is at `/tmp` of a box cannot be replaced: its root is read-only.
      const fd = openSync(`/proc/${init}/root/tmp`, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
      this.#fd = fd;
      const { blocks, bsize } = statfsSync(`/proc/self/fd/${fd}`);
      // Before it has entered its root, the box sees that of the host.
      if (blocks * bsize < this.#size || blocks * bsize >= this.#size + bsize) this[Symbol.dispose]();
    } catch {
      // Not there yet, or not any more.
    }
  }

  #look(): void {
    if (this.#fd === undefined || this.#wasFull) return;
    try {
      const { bfree, ffree } = statfsSync(`/proc/self/fd/${this.#fd}`);
      this.#wasFull = bfree === 0 || ffree === 0;
    } catch {
      // Whatever it is, it is no full disk.
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}
