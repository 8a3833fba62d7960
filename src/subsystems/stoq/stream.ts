import { randomBytes } from 'node:crypto';
import { concat } from '../../base/bytes.ts';
import { type CallOptions, checkCancelled } from '../../base/call.ts';
import { HyperMeshError } from '../../base/errors.ts';
import {
  decodeFrameHead,
  openFrame,
  openIndex,
  STREAM_FRAME_BYTES,
  STREAM_FRAME_HEAD_BYTES,
  STREAM_FRAMES_MAX,
  STREAM_HEADER_BYTES,
  STREAM_SECRET_BYTES,
  STREAM_TRAILER_BYTES,
  type StreamIndex,
  type StreamKey,
  sealFrame,
  sealIndex,
  streamHeader,
  streamInvalid,
  streamKey,
} from '../../wire/stream.ts';

/** A secret for one audience; each stream made with it has a key of its own. */
export function streamSecret(): Uint8Array {
  return new Uint8Array(randomBytes(STREAM_SECRET_BYTES));
}

/**
 * Seals `content` as it comes: compressed and encrypted frames of 1 MiB, then the index. Who has the secret reads it with {@link openStream}, or
 * from anywhere with {@link SealedStream}; whoever carries or keeps it learns its length. Memory: two frames.
 * Errors: `limit-exceeded` past 64 GiB, `cancelled`, and what `content` throws.
 */
export async function* createStream(
  content: AsyncIterable<Uint8Array>,
  secret: Uint8Array,
  options: CallOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const header = streamHeader(new Uint8Array(randomBytes(32)));
  const key = streamKey(secret, header);
  yield header;
  const lengths: number[] = [];
  let size = 0;
  for await (const plain of frames(content)) {
    checkCancelled(options.signal);
    if (lengths.length === STREAM_FRAMES_MAX)
      throw new HyperMeshError(
        'limit-exceeded',
        `Expected at most ${STREAM_FRAMES_MAX} MiB in one stream, but more came.`,
      );
    const frame = await sealFrame(key, lengths.length, plain);
    lengths.push(frame.length - STREAM_FRAME_HEAD_BYTES);
    size += plain.length;
    options.onProgress?.({ step: 'seal', done: size, unit: 'bytes' });
    yield frame;
  }
  yield sealIndex(key, size, lengths);
}

/** Reads a sealed stream from its beginning. What it yields is as it was sealed; whether it is all of it is known when it ends. Errors: `stream-invalid`, `cancelled`. */
export async function* openStream(
  sealed: AsyncIterable<Uint8Array>,
  secret: Uint8Array,
  options: CallOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const input = new Input(sealed);
  const key = streamKey(secret, await input.take(STREAM_HEADER_BYTES));
  const lengths: number[] = [];
  let size = 0;
  for (;;) {
    checkCancelled(options.signal);
    const { kind, length } = decodeFrameHead(await input.take(STREAM_FRAME_HEAD_BYTES));
    const bytes = await input.take(length);
    if (kind === 'index') {
      const index = openIndex(key, lengths.length, bytes);
      const isTrue = index.size === size && index.lengths.every((each, i) => each === lengths[i]);
      if (!isTrue) throw streamInvalid('its index is not that of the frames before it');
      const trailer = await input.take(STREAM_TRAILER_BYTES);
      if (numberIn(trailer) !== STREAM_FRAME_HEAD_BYTES + length || !(await input.isOver()))
        throw streamInvalid('it does not end as one');
      return;
    }
    if (size % STREAM_FRAME_BYTES !== 0) throw streamInvalid('a frame before the last is shorter than 1 MiB');
    if (lengths.length === STREAM_FRAMES_MAX) throw streamInvalid('it has too many frames');
    const plain = await openFrame(key, lengths.length, kind, bytes);
    lengths.push(length);
    size += plain.length;
    options.onProgress?.({ step: 'open', done: size, unit: 'bytes' });
    yield plain;
  }
}

/** Something that can be read from anywhere. */
export interface SealedSource {
  readonly size: number;
  /** Exactly `length` bytes from `offset`. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** A sealed stream that is read from anywhere: only the frames that are needed are fetched and opened. */
export class SealedStream {
  readonly #source: SealedSource;
  readonly #key: StreamKey;
  readonly #index: StreamIndex;
  /** Where the head of each frame lies. */
  readonly #offsets: readonly number[];

  /** Errors: `stream-invalid`, and those of the source. */
  static async open(source: SealedSource, secret: Uint8Array): Promise<SealedStream> {
    const least = STREAM_HEADER_BYTES + STREAM_FRAME_HEAD_BYTES + STREAM_TRAILER_BYTES;
    if (source.size < least) throw streamInvalid(`it has only ${source.size} bytes`);
    const key = streamKey(secret, await source.read(0, STREAM_HEADER_BYTES));
    const length = numberIn(await source.read(source.size - STREAM_TRAILER_BYTES, STREAM_TRAILER_BYTES));
    const at = source.size - STREAM_TRAILER_BYTES - length;
    if (length < STREAM_FRAME_HEAD_BYTES || at < STREAM_HEADER_BYTES) throw streamInvalid('it does not end as one');
    const head = decodeFrameHead(await source.read(at, STREAM_FRAME_HEAD_BYTES));
    if (head.kind !== 'index' || head.length !== length - STREAM_FRAME_HEAD_BYTES)
      throw streamInvalid('it has no index');
    const index = openIndex(key, null, await source.read(at + STREAM_FRAME_HEAD_BYTES, head.length));
    const offsets: number[] = [];
    let offset = STREAM_HEADER_BYTES;
    for (const each of index.lengths) {
      offsets.push(offset);
      offset += STREAM_FRAME_HEAD_BYTES + each;
    }
    if (offset !== at) throw streamInvalid('its index is not that of its frames');
    return new SealedStream(source, key, index, offsets);
  }

  private constructor(source: SealedSource, key: StreamKey, index: StreamIndex, offsets: readonly number[]) {
    this.#source = source;
    this.#key = key;
    this.#index = index;
    this.#offsets = offsets;
  }

  /** Bytes of the content. */
  get size(): number {
    return this.#index.size;
  }

  /** The content from `offset`, cut at its end; pieces of at most 1 MiB. Errors: `stream-invalid`, `cancelled`, and those of the source. */
  async *read(offset: number, length: number, options: CallOptions = {}): AsyncGenerator<Uint8Array, void, undefined> {
    const end = Math.min(this.size, offset + length);
    for (let at = offset; at < end; ) {
      checkCancelled(options.signal);
      const number = Math.floor(at / STREAM_FRAME_BYTES);
      const plain = await this.#frame(number);
      const start = number * STREAM_FRAME_BYTES;
      yield plain.subarray(at - start, Math.min(plain.length, end - start));
      at = start + plain.length;
    }
  }

  async #frame(number: number): Promise<Uint8Array> {
    const expected = this.#index.lengths[number]!;
    const bytes = await this.#source.read(this.#offsets[number]!, STREAM_FRAME_HEAD_BYTES + expected);
    const { kind, length } = decodeFrameHead(bytes);
    if (kind === 'index' || length !== expected) throw streamInvalid(`frame ${number} is not the one in the index`);
    const plain = await openFrame(this.#key, number, kind, bytes.subarray(STREAM_FRAME_HEAD_BYTES));
    const isLast = number === this.#index.lengths.length - 1;
    const bytesOfIt = isLast ? this.size - number * STREAM_FRAME_BYTES : STREAM_FRAME_BYTES;
    if (plain.length !== bytesOfIt) throw streamInvalid(`frame ${number} has ${plain.length} bytes`);
    return plain;
  }
}

/** Cuts what comes into pieces of exactly 1 MiB; the last may be shorter. */
async function* frames(content: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let frame = new Uint8Array(STREAM_FRAME_BYTES);
  let filled = 0;
  for await (const bytes of content) {
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + STREAM_FRAME_BYTES - filled);
      frame.set(part, filled);
      filled += part.length;
      at += part.length;
      if (filled < STREAM_FRAME_BYTES) continue;
      yield frame;
      frame = new Uint8Array(STREAM_FRAME_BYTES);
      filled = 0;
    }
  }
  if (filled > 0) yield frame.subarray(0, filled);
}

/** Takes exact numbers of bytes from pieces of any length. */
class Input {
  readonly #pieces: AsyncIterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array();

  constructor(pieces: AsyncIterable<Uint8Array>) {
    this.#pieces = pieces[Symbol.asyncIterator]();
  }

  async take(length: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (let missing = length; ; ) {
      const part = this.#rest.subarray(0, missing);
      this.#rest = this.#rest.subarray(part.length);
      parts.push(part);
      missing -= part.length;
      if (missing === 0) return concat(...parts);
      const next = await this.#pieces.next();
      if (next.done) throw streamInvalid('it was cut off');
      this.#rest = next.value;
    }
  }

  async isOver(): Promise<boolean> {
    while (this.#rest.length === 0) {
      const next = await this.#pieces.next();
      if (next.done) return true;
      this.#rest = next.value;
    }
    return false;
  }
}

function numberIn(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
}
