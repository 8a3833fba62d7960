/**
 * A sealed stream (docs/protocol/stream.md): content in frames of 1 MiB, each compressed and encrypted alone, with an index at the end, so that it
 * can be written in one pass, read in one pass, and read from anywhere.
 */
import { createCipheriv, createDecipheriv, hkdfSync } from 'node:crypto';
import { promisify } from 'node:util';
import { constants, zstdCompress, zstdDecompress } from 'node:zlib';
import { concat, equal, utf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';

/** Plain bytes of every frame but the last. */
export const STREAM_FRAME_BYTES = 2 ** 20;
/** 64 GiB of content. */
export const STREAM_FRAMES_MAX = 2 ** 16;
export const STREAM_SECRET_BYTES = 32;
const SALT_BYTES = 32;
const MAGIC = utf8('HMSTREAM');
/** `HMSTREAM, version u8, salt`. */
export const STREAM_HEADER_BYTES = MAGIC.length + 1 + SALT_BYTES;
const VERSION = 1;
const TAG_BYTES = 16;
/** Before each frame: `kind u8, length u32` of what follows. */
export const STREAM_FRAME_HEAD_BYTES = 5;
/** Sealed bytes of one frame, its tag included: a frame that zstd would make longer is stored as it is. */
export const STREAM_SEALED_BYTES_MAX = STREAM_FRAME_BYTES + TAG_BYTES;
const INDEX_BYTES_MAX = 8 + STREAM_FRAMES_MAX * 4 + TAG_BYTES;
/** At the very end: `length u32` of the index frame with its head. */
export const STREAM_TRAILER_BYTES = 4;

const KINDS = ['plain', 'zstd', 'index'] as const;
type FrameKind = (typeof KINDS)[number];

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

/** What frames of one stream are sealed and opened with. */
export interface StreamKey {
  readonly header: Uint8Array;
  readonly key: Uint8Array;
}

/** The key of a stream that begins with `header`. Errors: `stream-invalid`. */
export function streamKey(secret: Uint8Array, header: Uint8Array): StreamKey {
  if (secret.length !== STREAM_SECRET_BYTES) throw new RangeError(`a secret has ${STREAM_SECRET_BYTES} bytes`);
  if (header.length !== STREAM_HEADER_BYTES || !equal(header.subarray(0, MAGIC.length), MAGIC))
    throw streamInvalid('it does not begin as one');
  if (header[MAGIC.length] !== VERSION)
    throw streamInvalid(`it has version ${header[MAGIC.length]}; this node reads ${VERSION}`);
  const salt = header.subarray(MAGIC.length + 1);
  return { header, key: new Uint8Array(hkdfSync('sha256', secret, salt, utf8('hypermesh-stream-v1'), 32)) };
}

export function streamHeader(salt: Uint8Array): Uint8Array {
  return concat(MAGIC, Uint8Array.of(VERSION), salt);
}

/** One frame with its head. `number` counts from 0; the index has the number after the last frame. */
export async function sealFrame(at: StreamKey, number: number, plain: Uint8Array): Promise<Uint8Array> {
  const packed = await compress(plain, { params: { [constants.ZSTD_c_compressionLevel]: 3 } });
  const isSmaller = packed.length < plain.length;
  return seal(at, number, isSmaller ? 'zstd' : 'plain', isSmaller ? packed : plain);
}

/** `size u64`, then the sealed length of each frame, u32; sealed like a frame. The trailer comes after it. */
export function sealIndex(at: StreamKey, size: number, lengths: readonly number[]): Uint8Array {
  const plain = new Uint8Array(8 + lengths.length * 4);
  const view = new DataView(plain.buffer);
  view.setBigUint64(0, BigInt(size));
  for (const [i, length] of lengths.entries()) view.setUint32(8 + i * 4, length);
  const frame = seal(at, lengths.length, 'index', plain);
  const trailer = new Uint8Array(STREAM_TRAILER_BYTES);
  new DataView(trailer.buffer).setUint32(0, frame.length);
  return concat(frame, trailer);
}

/** What a frame's head says is to come. Errors: `stream-invalid`. */
export function decodeFrameHead(bytes: Uint8Array): { readonly kind: FrameKind; readonly length: number } {
  const kind = KINDS[bytes[0]!];
  const length = new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(1);
  if (kind === undefined) throw streamInvalid(`a frame has kind ${bytes[0]}`);
  const most = kind === 'index' ? INDEX_BYTES_MAX : STREAM_SEALED_BYTES_MAX;
  if (length < TAG_BYTES || length > most) throw streamInvalid(`a frame of kind ${kind} has ${length} bytes`);
  return { kind, length };
}

/** The content of a frame. Errors: `stream-invalid` when it was altered, moved, or is of another stream or secret. */
export async function openFrame(
  at: StreamKey,
  number: number,
  kind: 'plain' | 'zstd',
  sealed: Uint8Array,
): Promise<Uint8Array> {
  const opened = open(at, number, kind, sealed);
  const plain =
    kind === 'plain'
      ? opened
      : await decompress(opened, { maxOutputLength: STREAM_FRAME_BYTES }).catch((cause: unknown) => {
          throw streamInvalid(`frame ${number} cannot be unpacked`, cause);
        });
  if (plain.length === 0 || plain.length > STREAM_FRAME_BYTES)
    throw streamInvalid(`frame ${number} has ${plain.length} bytes`);
  return new Uint8Array(plain.buffer, plain.byteOffset, plain.length);
}

export interface StreamIndex {
  readonly size: number;
  /** Sealed length of each frame, without its head. */
  readonly lengths: readonly number[];
}

/** `frames`: how many came before it, or null for one that is read first. Errors: `stream-invalid`. */
export function openIndex(at: StreamKey, frames: number | null, sealed: Uint8Array): StreamIndex {
  const count = (sealed.length - TAG_BYTES - 8) / 4;
  if (!Number.isInteger(count) || count < 0) throw streamInvalid(`its index has ${sealed.length} bytes`);
  if (frames !== null && frames !== count) throw streamInvalid(`its index is for ${count} frames, and ${frames} came`);
  const plain = open(at, count, 'index', sealed);
  const view = new DataView(plain.buffer, plain.byteOffset, plain.length);
  const size = view.getBigUint64(0);
  if (size > BigInt(count * STREAM_FRAME_BYTES) || size <= BigInt((count - 1) * STREAM_FRAME_BYTES))
    throw streamInvalid(`${count} frames cannot hold ${size} bytes`);
  const lengths = Array.from({ length: count }, (_, i) => view.getUint32(8 + i * 4));
  const wrong = lengths.find((length) => length < TAG_BYTES || length > STREAM_SEALED_BYTES_MAX);
  if (wrong !== undefined) throw streamInvalid(`its index has a frame of ${wrong} bytes`);
  return { size: Number(size), lengths };
}

function seal(at: StreamKey, number: number, kind: FrameKind, bytes: Uint8Array): Uint8Array {
  const cipher = createCipheriv('aes-256-gcm', at.key, nonce(number)).setAAD(bound(at, kind));
  const sealed = concat(cipher.update(bytes), cipher.final(), cipher.getAuthTag());
  const out = new Uint8Array(STREAM_FRAME_HEAD_BYTES + sealed.length);
  out[0] = KINDS.indexOf(kind);
  new DataView(out.buffer).setUint32(1, sealed.length);
  out.set(sealed, STREAM_FRAME_HEAD_BYTES);
  return out;
}

function open(at: StreamKey, number: number, kind: FrameKind, sealed: Uint8Array): Uint8Array {
  const tagAt = sealed.length - TAG_BYTES;
  try {
    const decipher = createDecipheriv('aes-256-gcm', at.key, nonce(number), { authTagLength: TAG_BYTES });
    decipher.setAAD(bound(at, kind)).setAuthTag(sealed.subarray(tagAt));
    return concat(decipher.update(sealed.subarray(0, tagAt)), decipher.final());
  } catch (cause) {
    throw streamInvalid(`frame ${number} was altered, moved, or sealed with another secret`, cause);
  }
}

/** The number of the frame: a frame opens at its own place only. A key is used for one stream, so that no nonce occurs twice. */
function nonce(number: number): Uint8Array {
  const out = new Uint8Array(12);
  new DataView(out.buffer).setBigUint64(4, BigInt(number));
  return out;
}

function bound({ header }: StreamKey, kind: FrameKind): Uint8Array {
  return concat(header, Uint8Array.of(KINDS.indexOf(kind)));
}

export function streamInvalid(problem: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('stream-invalid', `Expected a sealed stream, but ${problem}.`, {
    hint: 'It was cut off or altered, or this is not the secret that it was made with.',
    cause,
  });
}
