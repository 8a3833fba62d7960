/**
 * What nodes say to each other about content (docs/protocol/content.md): how a blob is cut, which shards somebody has, which bytes are wanted.
 * Fixed binary layouts, big-endian, one version byte first; every length is checked before anything is allocated for it.
 */
import { fromHex, hex } from '../base/bytes.ts';
import { type Digest, digestHex } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { ShardSummary } from './package.ts';
import { averageFor, type Blake3, merkleRoot, type Shard } from './shards.ts';

const VERSION = 1;

/** Shards of the largest blob, 16 GiB, when every shard is as short as can be. */
export const SHARDS_MAX = 2 ** 16;
const LIST_HEAD = 1 + 8 + 4 + 4;
const LIST_ENTRY = 32 + 4;
export const SHARD_LIST_BYTES_MAX = LIST_HEAD + SHARDS_MAX * LIST_ENTRY;

/** How one blob is cut, complete: offsets follow from lengths. */
export interface ShardList {
  readonly size: number;
  readonly averageBytes: number;
  readonly shards: readonly Shard[];
}

/** `version, size u64, average u32, count u32`, then for each shard `BLAKE3 (32), length u32`. */
export function encodeShardList(list: ShardList): Uint8Array {
  const out = new Uint8Array(LIST_HEAD + list.shards.length * LIST_ENTRY);
  const view = new DataView(out.buffer);
  out[0] = VERSION;
  view.setBigUint64(1, BigInt(list.size));
  view.setUint32(9, list.averageBytes);
  view.setUint32(13, list.shards.length);
  let at = LIST_HEAD;
  for (const shard of list.shards) {
    out.set(shard.hash, at);
    view.setUint32(at + 32, shard.length);
    at += LIST_ENTRY;
  }
  return out;
}

/**
 * A list that holds together: the average that its size asks for, no shard shorter than a quarter of it (but the last) or longer than
 * four times, lengths that add up to the size. Whether it is the list of a certain blob is for {@link isListOf}. Errors: `content-invalid`.
 */
export function decodeShardList(bytes: Uint8Array): ShardList {
  const { count, size, averageBytes } = shardListHead(bytes);
  if (bytes.length !== LIST_HEAD + count * LIST_ENTRY)
    throw invalid(`a list of ${count} shards has ${bytes.length} bytes`);
  const view = viewOf(bytes);
  const shards: Shard[] = [];
  let offset = 0;
  for (let i = 0, at = LIST_HEAD; i < count; i++, at += LIST_ENTRY) {
    const length = view.getUint32(at + 32);
    const isLast = i === count - 1;
    if (length > averageBytes * 4 || length < (isLast ? 1 : averageBytes / 4))
      throw invalid(`shard ${i} has ${length} bytes where the average is ${averageBytes}`);
    shards.push({ hash: copyOf(bytes, at, at + 32), offset, length });
    offset += length;
  }
  if (offset !== size) throw invalid(`the shards add up to ${offset} bytes, the blob has ${size}`);
  return { size, averageBytes, shards };
}

function shardListHead(bytes: Uint8Array): { count: number; size: number; averageBytes: number } {
  if (bytes.length < LIST_HEAD) throw invalid(`a list of shards has only ${bytes.length} bytes`);
  checkVersion(bytes);
  const view = viewOf(bytes);
  const size = safeNumber(view.getBigUint64(1));
  const averageBytes = view.getUint32(9);
  const count = view.getUint32(13);
  if (count > SHARDS_MAX) throw invalid(`a list has ${count} shards, at most ${SHARDS_MAX} are allowed`);
  if (averageBytes !== averageFor(size))
    throw invalid(`a blob of ${size} bytes is cut with an average of ${averageBytes}`);
  return { count, size, averageBytes };
}

/** Whether `list` is how the blob that was signed for is cut. */
export function isListOf(
  blake3: Blake3,
  list: ShardList,
  blob: { readonly size: number; readonly shards: ShardSummary },
): boolean {
  return (
    list.size === blob.size &&
    list.shards.length === blob.shards.count &&
    list.averageBytes === blob.shards.averageBytes &&
    hex(merkleRoot(blake3, list.shards)) === blob.shards.root
  );
}

/** Which shards of a blob a node can give. `shards`: one bit for each, the first is the top bit of the first byte; spare bits are 0. */
export type Holding =
  | { readonly kind: 'none' }
  | { readonly kind: 'complete' }
  | { readonly kind: 'partial'; readonly count: number; readonly shards: Uint8Array };

/** Blobs that one `content/have` asks about. */
export const HAVE_BLOBS_MAX = 64;
export const HAVE_ASK_BYTES_MAX = 3 + HAVE_BLOBS_MAX * 32;
/** Largest answer to a question about `blobs` blobs. */
export function haveAnswerBytesMax(blobs: number): number {
  return 3 + blobs * (5 + SHARDS_MAX / 8);
}

/** `version, count u16, digests`. */
export function encodeHaveAsk(blobs: readonly Digest[]): Uint8Array {
  const out = new Uint8Array(3 + blobs.length * 32);
  out[0] = VERSION;
  viewOf(out).setUint16(1, blobs.length);
  for (const [i, blob] of blobs.entries()) out.set(fromHex(digestHex(blob)), 3 + i * 32);
  return out;
}

/** Errors: `content-invalid`. */
export function decodeHaveAsk(bytes: Uint8Array): Digest[] {
  const count = countOf(bytes, HAVE_BLOBS_MAX);
  if (bytes.length !== 3 + count * 32) throw invalid(`a question about ${count} blobs has ${bytes.length} bytes`);
  return Array.from({ length: count }, (_, i) => digestAt(bytes, 3 + i * 32));
}

/** `version, count u16`, then for each blob `0` none, `1` complete, or `2, shards u32, bits`. */
export function encodeHaveAnswer(holdings: readonly Holding[]): Uint8Array {
  const length = holdings.reduce((sum, of) => sum + (of.kind === 'partial' ? 5 + bitBytes(of.count) : 1), 3);
  const out = new Uint8Array(length);
  const view = viewOf(out);
  out[0] = VERSION;
  view.setUint16(1, holdings.length);
  let at = 3;
  for (const holding of holdings) {
    if (holding.kind === 'partial') {
      out[at] = 2;
      view.setUint32(at + 1, holding.count);
      out.set(holding.shards, at + 5);
      at += 5 + bitBytes(holding.count);
    } else {
      out[at] = holding.kind === 'none' ? 0 : 1;
      at += 1;
    }
  }
  return out;
}

/** Errors: `content-invalid`. */
export function decodeHaveAnswer(bytes: Uint8Array): Holding[] {
  const expected = countOf(bytes, HAVE_BLOBS_MAX);
  const view = viewOf(bytes);
  const holdings: Holding[] = [];
  let at = 3;
  for (let i = 0; i < expected; i++) {
    const kind = bytes[at];
    at += 1;
    if (kind === 0) holdings.push({ kind: 'none' });
    else if (kind === 1) holdings.push({ kind: 'complete' });
    else if (kind === 2) {
      if (at + 4 > bytes.length) throw invalid('an answer about shards is cut off');
      const count = view.getUint32(at);
      at += 4;
      if (count === 0 || count > SHARDS_MAX) throw invalid(`an answer about ${count} shards`);
      const end = at + bitBytes(count);
      if (end > bytes.length) throw invalid('an answer about shards is cut off');
      const shards = copyOf(bytes, at, end);
      if (count % 8 !== 0 && (shards.at(-1)! & (0xff >> (count % 8))) !== 0)
        throw invalid('an answer about shards has spare bits that are not zero');
      holdings.push({ kind: 'partial', count, shards });
      at = end;
    } else throw invalid(kind === undefined ? 'an answer about blobs is cut off' : `an answer of kind ${kind}`);
  }
  if (at !== bytes.length) throw invalid(`an answer about ${expected} blobs has ${bytes.length - at} bytes too many`);
  return holdings;
}

export function bitBytes(count: number): number {
  return Math.ceil(count / 8);
}

export function hasBit(bits: Uint8Array, index: number): boolean {
  return (bits[index >> 3]! & (0x80 >> (index & 7))) !== 0;
}

export function setBit(bits: Uint8Array, index: number): void {
  bits[index >> 3]! |= 0x80 >> (index & 7);
}

/** Some bytes of some blob. */
export interface BlobRange {
  readonly blob: Digest;
  readonly offset: number;
  readonly length: number;
}

/** Ranges, and bytes in all of them together, that one `content/read` asks for: the longest shard fits. */
export const READ_RANGES_MAX = 256;
export const READ_BYTES_MAX = 4 * 2 ** 20;
const RANGE_BYTES = 32 + 8 + 4;
export const READ_ASK_BYTES_MAX = 3 + READ_RANGES_MAX * RANGE_BYTES;

/** `version, count u16`, then for each range `digest, offset u64, length u32`. The answer is their bytes, one after the other. */
export function encodeReadAsk(ranges: readonly BlobRange[]): Uint8Array {
  const out = new Uint8Array(3 + ranges.length * RANGE_BYTES);
  const view = viewOf(out);
  out[0] = VERSION;
  view.setUint16(1, ranges.length);
  let at = 3;
  for (const { blob, offset, length } of ranges) {
    out.set(fromHex(digestHex(blob)), at);
    view.setBigUint64(at + 32, BigInt(offset));
    view.setUint32(at + 40, length);
    at += RANGE_BYTES;
  }
  return out;
}

/** Errors: `content-invalid`. */
export function decodeReadAsk(bytes: Uint8Array): BlobRange[] {
  const count = countOf(bytes, READ_RANGES_MAX);
  if (bytes.length !== 3 + count * RANGE_BYTES)
    throw invalid(`a request for ${count} ranges has ${bytes.length} bytes`);
  const view = viewOf(bytes);
  let total = 0;
  return Array.from({ length: count }, (_, i) => {
    const at = 3 + i * RANGE_BYTES;
    const length = view.getUint32(at + 40);
    total += length;
    if (length === 0 || total > READ_BYTES_MAX)
      throw invalid(`a request for ${total} bytes; 1 to ${READ_BYTES_MAX} are allowed, and no empty range`);
    return { blob: digestAt(bytes, at), offset: safeNumber(view.getBigUint64(at + 32)), length };
  });
}

function countOf(bytes: Uint8Array, max: number): number {
  if (bytes.length < 3) throw invalid(`a message has only ${bytes.length} bytes`);
  checkVersion(bytes);
  const count = viewOf(bytes).getUint16(1);
  if (count === 0 || count > max) throw invalid(`a message has ${count} parts; 1 to ${max} are allowed`);
  return count;
}

function checkVersion(bytes: Uint8Array): void {
  if (bytes[0] !== VERSION) throw invalid(`a message has version ${bytes[0]}; this node knows ${VERSION}`);
}

function digestAt(bytes: Uint8Array, at: number): Digest {
  return `sha256:${hex(bytes.subarray(at, at + 32))}`;
}

function safeNumber(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw invalid(`a number is ${value}`);
  return Number(value);
}

/** A copy, also of a `Buffer`, whose `slice` is none. */
function copyOf(bytes: Uint8Array, from: number, to: number): Uint8Array {
  return new Uint8Array(bytes.subarray(from, to));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function invalid(problem: string): HyperMeshError {
  return new HyperMeshError('content-invalid', `A message about content is malformed: ${problem}.`, {
    hint: 'The node at the other end is broken, hostile, or of another version.',
  });
}
