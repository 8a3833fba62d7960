/** Of one buffer that bytes are received into. */
export const SLAB_BYTES = 262_144;
/** Kept for the next transfer. */
const FREE_MAX = 16;

/** Buffers of one size that go around. */
export class Slabs {
  #free: Buffer[] = [];

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(SLAB_BYTES);
  }

  give(slab: Buffer): void {
    if (this.#free.length < FREE_MAX) this.#free.push(slab);
  }

  /** Nothing moves: an idle node keeps no buffers. */
  drop(): void {
    this.#free = [];
  }
}
