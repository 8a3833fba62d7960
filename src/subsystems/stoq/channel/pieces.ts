/** Pieces smaller than this are copied together, so that a stream of single bytes costs no more memory than its bytes. */
const SMALL_BYTES = 4_096;
const GATHERED_BYTES = 16_384;

/** What came on a stream and was not consumed yet. One reader. `consumed` is told how many bytes it has taken. */
export class Pieces implements AsyncIterableIterator<Uint8Array> {
  readonly #consumed: (bytes: number) => void;
  readonly #left: () => void;
  /** Each with how much of its buffer is filled. */
  readonly #pieces: { readonly buffer: Uint8Array; length: number }[] = [];
  #end: { readonly error: Error | null } | undefined;
  #waiting: PromiseWithResolvers<IteratorResult<Uint8Array>> | undefined;

  /** `left` is called when the reader stops before the end. */
  constructor(consumed: (bytes: number) => void, left: () => void) {
    this.#consumed = consumed;
    this.#left = left;
  }

  /** Whether somebody waits for the next piece. */
  get isWanted(): boolean {
    return this.#waiting !== undefined;
  }

  push(bytes: Uint8Array): void {
    if (this.#end !== undefined) return;
    if (this.#waiting !== undefined) {
      this.#settle({ done: false, value: bytes });
      this.#consumed(bytes.length);
      return;
    }
    if (bytes.length >= SMALL_BYTES) {
      this.#pieces.push({ buffer: bytes, length: bytes.length });
      return;
    }
    let last = this.#pieces.at(-1);
    if (last === undefined || last.length + bytes.length > last.buffer.length) {
      last = { buffer: new Uint8Array(GATHERED_BYTES), length: 0 };
      this.#pieces.push(last);
    }
    last.buffer.set(bytes, last.length);
    last.length += bytes.length;
  }

  /** With an error, what was not consumed yet is dropped: it may be part of something that is not whole. */
  end(error: Error | null): void {
    if (this.#end !== undefined) return;
    this.#end = { error };
    if (error !== null) this.#pieces.length = 0;
    if (this.#waiting === undefined) return;
    if (error === null) this.#settle({ done: true, value: undefined });
    else {
      const { reject } = this.#waiting;
      this.#waiting = undefined;
      reject(error);
    }
  }

  next(): Promise<IteratorResult<Uint8Array>> {
    const piece = this.#pieces.shift();
    if (piece !== undefined) {
      this.#consumed(piece.length);
      return Promise.resolve({ done: false, value: piece.buffer.subarray(0, piece.length) });
    }
    if (this.#end !== undefined) {
      return this.#end.error === null
        ? Promise.resolve({ done: true, value: undefined })
        : Promise.reject(this.#end.error);
    }
    this.#waiting = Promise.withResolvers();
    return this.#waiting.promise;
  }

  return(): Promise<IteratorResult<Uint8Array>> {
    if (this.#end === undefined) this.#left();
    this.#end ??= { error: null };
    this.#pieces.length = 0;
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  #settle(result: IteratorResult<Uint8Array>): void {
    const { resolve } = this.#waiting!;
    this.#waiting = undefined;
    resolve(result);
  }
}
