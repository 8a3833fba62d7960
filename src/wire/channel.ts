import { z } from 'zod';
import { concat, fromHex, fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestHex } from '../base/digest.ts';
import { ERRORS, type ErrorCode, fromProblem, HyperMeshError, type ProblemDocument } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';

/** Protocols of the direct channel, as names in ALPN (docs/protocol/channel.md). */
export const MUX_PROTOCOL = 'stoq/1';
export const BULK_PROTOCOL = 'stoq-bulk/1';

export const CHANNEL_LIMITS = {
  /** Of every frame but a hello. */
  payloadBytesMax: 65_536,
  methodLengthMax: 64,
  problemBytesMax: 16_384,
  textLengthMax: 2_048,
  /** Of a whole request or answer, or the head of a stream. */
  bodyBytesMax: 64 * 2 ** 20,
  /** Of a body, that may be sent before the other side has said anything. */
  windowBytes: 65_536,
} as const;

export type Frame =
  | { readonly kind: 'hello'; readonly document: Uint8Array }
  | { readonly kind: 'close'; readonly problem: HyperMeshError | null }
  | { readonly kind: 'ping' | 'pong'; readonly token: bigint }
  | {
      readonly kind: 'open';
      readonly stream: number;
      readonly method: string;
      /** Of the whole body. */
      readonly length: number;
      /** Bytes of the answer that may come before more credit is given. */
      readonly window: number;
      readonly bytes: Uint8Array;
    }
  | {
      readonly kind: 'answer';
      readonly stream: number;
      /** Whether the answer is `length` bytes and then over, or a head of `length` bytes and then a stream. */
      readonly whole: boolean;
      readonly length: number;
      readonly bytes: Uint8Array;
    }
  | { readonly kind: 'data'; readonly stream: number; readonly bytes: Uint8Array }
  /** The stream is complete; `length` counts its bytes without the head. */
  | { readonly kind: 'end'; readonly stream: number; readonly length: number }
  | { readonly kind: 'fail'; readonly stream: number; readonly problem: HyperMeshError }
  | { readonly kind: 'cancel'; readonly stream: number }
  | { readonly kind: 'credit'; readonly stream: number; readonly bytes: number };

export type FrameKind = Frame['kind'];

/** Kind -> its number, the least and the largest payload, and whether it belongs to a stream. */
const KINDS: Readonly<
  Record<FrameKind, { readonly number: number; readonly size: readonly [number, number]; readonly streamed: boolean }>
> = {
  hello: { number: 1, size: [0, CHANNEL_LIMITS.payloadBytesMax], streamed: false },
  close: { number: 2, size: [0, CHANNEL_LIMITS.problemBytesMax], streamed: false },
  ping: { number: 3, size: [8, 8], streamed: false },
  pong: { number: 4, size: [8, 8], streamed: false },
  open: { number: 5, size: [10, CHANNEL_LIMITS.payloadBytesMax], streamed: true },
  answer: { number: 6, size: [5, CHANNEL_LIMITS.payloadBytesMax], streamed: true },
  data: { number: 7, size: [1, CHANNEL_LIMITS.payloadBytesMax], streamed: true },
  end: { number: 8, size: [8, 8], streamed: true },
  fail: { number: 9, size: [2, CHANNEL_LIMITS.problemBytesMax], streamed: true },
  cancel: { number: 10, size: [0, 0], streamed: true },
  credit: { number: 11, size: [4, 4], streamed: true },
};
const BY_NUMBER = new Map(Object.entries(KINDS).map(([kind, row]) => [row.number, kind as FrameKind]));

export const FRAME_HEADER_BYTES = 8;
const METHOD = /^[a-z][a-z0-9-]*\/[a-z][a-z0-9-]*$/;
const EMPTY = new Uint8Array(0);

/** How many bytes of a body fit into the frame that opens a stream, or answers it. */
export function roomInOpen(method: string): number {
  return CHANNEL_LIMITS.payloadBytesMax - 9 - method.length;
}
export const ROOM_IN_ANSWER: number = CHANNEL_LIMITS.payloadBytesMax - 5;

/** Header and numbers, and then the bytes that the frame carries, which are not copied. */
export function encodeFrame(frame: Frame): readonly [Uint8Array, Uint8Array] {
  const [start, bytes] = payloadOf(frame);
  const head = Buffer.allocUnsafe(FRAME_HEADER_BYTES + start.length);
  writeHeader(head, frame.kind, 'stream' in frame ? frame.stream : 0, start.length + bytes.length);
  head.set(start, FRAME_HEADER_BYTES);
  return [head, bytes];
}

/** The header of a frame whose payload follows. */
export function writeHeader(into: Buffer, kind: FrameKind, stream: number, length: number, at = 0): void {
  into[at] = KINDS[kind].number;
  into.writeUIntBE(length, at + 1, 3);
  into.writeUInt32BE(stream, at + 4);
}

function payloadOf(frame: Frame): readonly [Uint8Array, Uint8Array] {
  switch (frame.kind) {
    case 'hello':
      return [frame.document, EMPTY];
    case 'close':
      return [frame.problem === null ? EMPTY : encodeProblem(frame.problem), EMPTY];
    case 'ping':
    case 'pong':
      return [number(8, (view) => view.setBigUint64(0, frame.token)), EMPTY];
    case 'open': {
      const name = utf8(frame.method);
      const numbers = number(8, (view) => {
        view.setUint32(0, frame.length);
        view.setUint32(4, frame.window);
      });
      return [concat(Uint8Array.of(name.length), name, numbers), frame.bytes];
    }
    case 'answer':
      return [
        number(5, (view) => {
          view.setUint8(0, frame.whole ? 0 : 1);
          view.setUint32(1, frame.length);
        }),
        frame.bytes,
      ];
    case 'data':
      return [EMPTY, frame.bytes];
    case 'end':
      return [number(8, (view) => view.setBigUint64(0, BigInt(frame.length))), EMPTY];
    case 'fail':
      return [encodeProblem(frame.problem), EMPTY];
    case 'cancel':
      return [EMPTY, EMPTY];
    case 'credit':
      return [number(4, (view) => view.setUint32(0, frame.bytes)), EMPTY];
  }
}

/**
 * Cuts what arrives into frames. A length is checked against its kind before anything is allocated. The bytes of a frame may be a view of
 * what was pushed; those of `data` come in as many parts as they arrive in, each a frame of its own. Errors of `push`: `peer-lied`; nothing may be pushed after one.
 */
export class FrameDecoder {
  readonly #helloBytesMax: number;
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES);
  #headerAt = 0;
  /** Payload that came in parts. */
  #partial: Uint8Array | undefined;
  #partialAt = 0;
  /** Of a frame of data, that has not come yet. */
  #dataLeft = 0;

  constructor(helloBytesMax: number = CHANNEL_LIMITS.payloadBytesMax) {
    this.#helloBytesMax = helloBytesMax;
  }

  *push(bytes: Uint8Array): Generator<Frame, void, undefined> {
    // Never a Buffer, whose `slice` copies nothing.
    const chunk = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
    let at = 0;
    while (at < chunk.length) {
      if (this.#dataLeft > 0) {
        const part = chunk.subarray(at, at + this.#dataLeft);
        at += part.length;
        this.#dataLeft -= part.length;
        yield { kind: 'data', stream: this.#header.readUInt32BE(4), bytes: part };
        continue;
      }
      if (this.#partial !== undefined) {
        const part = chunk.subarray(at, at + this.#partial.length - this.#partialAt);
        this.#partial.set(part, this.#partialAt);
        this.#partialAt += part.length;
        at += part.length;
        if (this.#partialAt < this.#partial.length) return;
        const payload = this.#partial;
        this.#partial = undefined;
        yield this.#finish(payload);
        continue;
      }
      const part = chunk.subarray(at, at + FRAME_HEADER_BYTES - this.#headerAt);
      this.#header.set(part, this.#headerAt);
      this.#headerAt += part.length;
      at += part.length;
      if (this.#headerAt < FRAME_HEADER_BYTES) return;
      const length = this.#checkedLength();
      if (this.#header[0] === KINDS.data.number) {
        this.#headerAt = 0;
        this.#dataLeft = length;
      } else if (chunk.length - at >= length) {
        at += length;
        yield this.#finish(chunk.subarray(at - length, at));
      } else {
        this.#partial = new Uint8Array(length);
        this.#partialAt = 0;
      }
    }
  }

  #checkedLength(): number {
    const kind = BY_NUMBER.get(this.#header[0]!);
    if (kind === undefined) throw lied(`a frame of the unknown kind ${this.#header[0]}`);
    const length = this.#header.readUIntBE(1, 3);
    const { size, streamed } = KINDS[kind];
    const most = kind === 'hello' ? this.#helloBytesMax : size[1];
    if (length < size[0] || length > most) throw lied(`a frame of kind ${kind} with ${length} bytes`);
    if ((this.#header.readUInt32BE(4) === 0) === streamed) throw lied(`a frame of kind ${kind} on the wrong stream`);
    return length;
  }

  #finish(payload: Uint8Array): Frame {
    this.#headerAt = 0;
    return decodePayload(BY_NUMBER.get(this.#header[0]!)!, this.#header.readUInt32BE(4), payload);
  }
}

function decodePayload(kind: FrameKind, stream: number, payload: Uint8Array): Frame {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  switch (kind) {
    case 'hello':
      return { kind, document: payload };
    case 'close':
      return { kind, problem: payload.length === 0 ? null : decodeProblem(payload) };
    case 'ping':
    case 'pong':
      return { kind, token: view.getBigUint64(0) };
    case 'open': {
      const nameLength = payload[0]!;
      const bytesAt = 9 + nameLength;
      if (nameLength > CHANNEL_LIMITS.methodLengthMax || bytesAt > payload.length)
        throw lied('a method name that is too long');
      const method = Buffer.from(payload.buffer, payload.byteOffset + 1, nameLength).toString('latin1');
      if (!METHOD.test(method)) throw lied('a method name that is none');
      const length = view.getUint32(1 + nameLength);
      const bytes = payload.subarray(bytesAt);
      checkLength(length, bytes);
      return { kind, stream, method, length, window: view.getUint32(5 + nameLength), bytes };
    }
    case 'answer': {
      const form = payload[0]!;
      if (form > 1) throw lied('an answer of an unknown form');
      const length = view.getUint32(1);
      const bytes = payload.subarray(5);
      checkLength(length, bytes);
      return { kind, stream, whole: form === 0, length, bytes };
    }
    case 'data':
      return { kind, stream, bytes: payload };
    case 'end':
      return { kind, stream, length: safeNumber(view, 0) };
    case 'fail':
      return { kind, stream, problem: decodeProblem(payload) };
    case 'cancel':
      return { kind, stream };
    case 'credit': {
      const bytes = view.getUint32(0);
      if (bytes === 0) throw lied('a credit of nothing');
      return { kind, stream, bytes };
    }
  }
}

function checkLength(length: number, bytes: Uint8Array): void {
  if (length > CHANNEL_LIMITS.bodyBytesMax) throw lied(`a body of ${length} bytes`);
  if (bytes.length > length) throw lied('more bytes than the body has');
}

// --- problems

const text = z.string().max(CHANNEL_LIMITS.textLengthMax);
const problemShape = z.strictObject({
  code: z.string().max(64),
  message: text,
  hint: text.exactOptional(),
  details: z.record(z.string().max(64), z.json()).exactOptional(),
});

/** Cut so that it fits into a frame: first the details go, then the end of the texts. */
export function encodeProblem(problem: ProblemDocument | HyperMeshError): Uint8Array {
  const short = (value: string) => value.slice(0, CHANNEL_LIMITS.textLengthMax);
  const { code, message, hint, details } = problem;
  const brief = { code, message: short(message), ...(hint === undefined ? {} : { hint: short(hint) }) };
  const whole = utf8(canonicalJson(details === undefined ? brief : { ...brief, details }));
  return whole.length <= CHANNEL_LIMITS.problemBytesMax
    ? whole
    : utf8(canonicalJson({ code, message: brief.message.slice(0, 512) }));
}

/** An error that another node reports, fit to be shown: no control characters, a code that is known here. Errors: `peer-lied`. */
export function decodeProblem(bytes: Uint8Array): HyperMeshError {
  if (bytes.length > CHANNEL_LIMITS.problemBytesMax) throw lied('a problem that is too long');
  let value: unknown;
  try {
    value = JSON.parse(fromUtf8(bytes));
  } catch {
    throw lied('a problem that is not JSON');
  }
  const parsed = problemShape.safeParse(value);
  if (!parsed.success) throw lied('a problem that is malformed');
  const { code, message, hint, details } = parsed.data;
  return fromProblem({
    code: Object.hasOwn(ERRORS, code) ? (code as ErrorCode) : 'internal',
    message: printable(message),
    ...(hint === undefined ? {} : { hint: printable(hint) }),
    ...(details === undefined ? {} : { details }),
  });
}

function printable(value: string): string {
  return value.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, ' ');
}

// --- bulk

/** Asks for a range of a blob on a bulk socket, or in the body of `stoq/range`. */
export interface RangeRequest {
  readonly blob: Digest;
  readonly offset: number;
  /** At least 1. */
  readonly length: number;
}

export const RANGE_REQUEST_BYTES = 49;
/** One byte, 0 for bytes of the blob or 1 for a problem, and how many bytes follow. */
export const RANGE_ANSWER_BYTES = 9;

export function encodeRangeRequest({ blob, offset, length }: RangeRequest): Uint8Array {
  const out = number(RANGE_REQUEST_BYTES, (view) => {
    view.setUint8(0, 1);
    view.setBigUint64(33, BigInt(offset));
    view.setBigUint64(41, BigInt(length));
  });
  out.set(fromHex(digestHex(blob)), 1);
  return out;
}

/** Errors: `peer-lied`. */
export function decodeRangeRequest(bytes: Uint8Array): RangeRequest {
  if (bytes.length !== RANGE_REQUEST_BYTES || bytes[0] !== 1) throw lied('a request for a range that is malformed');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const offset = safeNumber(view, 33);
  const length = safeNumber(view, 41);
  if (length === 0 || !Number.isSafeInteger(offset + length)) throw lied('a request for no range');
  return { blob: `sha256:${hex(bytes.subarray(1, 33))}`, offset, length };
}

export type RangeAnswer = { readonly kind: 'bytes' | 'problem'; readonly length: number };

export function encodeRangeAnswer({ kind, length }: RangeAnswer): Uint8Array {
  return number(RANGE_ANSWER_BYTES, (view) => {
    view.setUint8(0, kind === 'bytes' ? 0 : 1);
    view.setBigUint64(1, BigInt(length));
  });
}

/** Errors: `peer-lied`. */
export function decodeRangeAnswer(bytes: Uint8Array): RangeAnswer {
  if (bytes.length !== RANGE_ANSWER_BYTES || bytes[0]! > 1) throw lied('an answer about a range that is malformed');
  const length = safeNumber(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 1);
  const kind = bytes[0] === 0 ? 'bytes' : 'problem';
  if (kind === 'problem' && (length < 2 || length > CHANNEL_LIMITS.problemBytesMax))
    throw lied('a problem that is none');
  return { kind, length };
}

function number(bytes: number, write: (view: DataView) => void): Uint8Array {
  const out = new Uint8Array(bytes);
  write(new DataView(out.buffer));
  return out;
}

function safeNumber(view: DataView, at: number): number {
  const value = view.getBigUint64(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw lied('a number that is too large');
  return Number(value);
}

/** The other end broke the protocol: it is not spoken to any more. */
export function lied(what: string): HyperMeshError {
  return new HyperMeshError('peer-lied', `The other node sent ${what}.`, {
    hint: 'It runs another version, or means harm: what it sent was not used.',
  });
}
