/** Of a buffer that bytes are received into or sent from. */
export const SLAB_BYTES = 262_144;
/** Of a buffer that a served blob is read into: each read is handed to another thread, which costs as much as reading a few hundred KiB. */
export const READ_BYTES = 524_288;
/** Served at the same time from buffers that large; more than these get smaller ones. */
const LARGE_MAX = 16;
/** Kept for the next transfer, in bytes. */
const FREE_BYTES_MAX = 4_194_304;

/** Buffers of one size that go around. */
export class Slabs {
  readonly #bytes: number;
  #free: Buffer[] = [];
  #taken = 0;

  constructor(bytes: number) {
    this.#bytes = bytes;
  }

  get isScarce(): boolean {
    return this.#taken >= LARGE_MAX;
  }

  take(): Buffer {
    this.#taken += 1;
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.#bytes);
  }

  give(slab: Buffer): void {
    this.#taken -= 1;
    if (this.#free.length * this.#bytes < FREE_BYTES_MAX) this.#free.push(slab);
  }

  /** It may still be in use, and is left to itself. */
  lose(): void {
    this.#taken -= 1;
  }

  /** Nothing moves: an idle node keeps no buffers. */
  drop(): void {
    this.#free = [];
  }
}
