/**
 * How a blob is cut for transfer (docs/protocol/shards.md): FastCDC boundaries, a BLAKE3 hash for each shard, a Merkle root over the list.
 * Cuts depend on the bytes around them only, so a changed file moves few shards of a new version.
 */
import { hex, utf8 } from '../base/bytes.ts';
import { sha256 } from '../base/digest.ts';
import type { ShardSummary } from './package.ts';

export interface Shard {
  readonly offset: number;
  readonly length: number;
  /** BLAKE3 of the bytes, 32 bytes. */
  readonly hash: Uint8Array;
}

/** An incremental BLAKE3 with 32 bytes of output. */
interface Hasher {
  update(bytes: Uint8Array): void;
  digest(): Uint8Array;
}

/** BLAKE3, loaded by {@link loadBlake3}. */
export interface Blake3 {
  hasher(): Hasher;
  hash(bytes: Uint8Array): Uint8Array;
}

let loading: Promise<Blake3> | undefined;

/** The native implementation, or WebAssembly where there is none for this machine. Loaded at the first call. */
export function loadBlake3(): Promise<Blake3> {
  loading ??= loadNative().catch(loadWasm);
  return loading;
}

async function loadNative(): Promise<Blake3> {
  const { Blake3Hasher, blake3 } = await import('@napi-rs/blake-hash');
  return {
    hasher() {
      const hasher = new Blake3Hasher();
      return {
        update: (bytes) => void hasher.update(bytes),
        digest: () => new Uint8Array(hasher.digestBuffer()),
      };
    },
    hash: (bytes) => new Uint8Array(blake3(bytes)),
  };
}

/** Exported for the test that both implementations agree. */
export async function loadWasm(): Promise<Blake3> {
  const { createBLAKE3 } = await import('hash-wasm');
  const idle = await createBLAKE3();
  const hasher = (): Hasher => {
    // One instance, used for one shard after the other: its state is saved into the closure between calls.
    let state = idle.init().save();
    return {
      update(bytes) {
        idle.load(state);
        state = idle.update(bytes).save();
      },
      digest() {
        idle.load(state);
        return idle.digest('binary');
      },
    };
  };
  return { hasher, hash: (bytes) => idle.init().update(bytes).digest('binary') };
}

const MIB = 2 ** 20;

/** The average shard length for a blob of this size: a function of the size alone, so that everybody cuts alike. */
export function averageFor(size: number): number {
  if (size <= 64 * MIB) return 64 * 1024;
  if (size <= 1024 * MIB) return 256 * 1024;
  return MIB;
}

/** Gear table: entry i is the first four bytes of SHA-256("hm-cdc-gear-v1:i"), big-endian. */
export const GEAR: Uint32Array = Uint32Array.from({ length: 256 }, (_, i) => {
  const digest = sha256(utf8(`hm-cdc-gear-v1:${i}`));
  return new DataView(digest.buffer).getUint32(0);
});

/** shards.wat, compiled: the loop over bytes is three times faster there than in JavaScript. */
const SCANNER_WASM =
  'AGFzbQEAAAABCAFgA39/fwF/AwIBAAUDAQARBgYBfwFBAAsHGAMGbWVtb3J5AgAEZ2VhcgMABHNjYW4AAApBAT8BAX8jACEDAkAD' +
  'QCAAIAFPDQEgA0EBdCAALQAAQQJ0KAIAaiEDIABBAWohACADIAJxDQAgAA8LCyADJABBAAs=';

interface Scanner {
  readonly memory: WebAssembly.Memory;
  /** The rolling hash between calls, a signed 32-bit number. */
  readonly gear: { value: number };
  scan(at: number, until: number, mask: number): number;
}

/** One instance for all cutters: each call is synchronous and leaves nothing in it. */
const scanner = new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.fromBase64(SCANNER_WASM)), {})
  .exports as unknown as Scanner;
/** Where the bytes to look at begin in its memory, after the gear table. */
const DATA = 1024;
const WINDOW = MIB;
const window = new Uint8Array(scanner.memory.buffer, DATA, WINDOW);
const table = new DataView(scanner.memory.buffer);
for (const [i, value] of GEAR.entries()) table.setUint32(i * 4, value, true);

/**
 * Cuts a stream of bytes. FastCDC with 32-bit gear hash: the first `average / 4` bytes of a shard are not looked at;
 * from there h = (h << 1) + GEAR[byte], and the shard ends after a byte that makes the top bits of h zero: log2(average) + 2 bits
 * before `average`, two fewer than log2(average) from there; it ends at 4 * average in any case.
 */
export class ShardCutter {
  readonly average: number;
  readonly shards: Shard[] = [];
  readonly #blake3: Blake3;
  readonly #minimum: number;
  readonly #maximum: number;
  readonly #strictMask: number;
  readonly #looseMask: number;
  #hasher: Hasher;
  #start = 0;
  #length = 0;
  #gear = 0;

  constructor(blake3: Blake3, average: number) {
    const bits = Math.log2(average);
    if (!Number.isInteger(bits) || bits < 8 || bits > 24)
      throw new RangeError(`average must be a power of two: ${average}`);
    this.#blake3 = blake3;
    this.average = average;
    this.#minimum = average / 4;
    this.#maximum = average * 4;
    this.#strictMask = topBits(bits + 2);
    this.#looseMask = topBits(bits - 2);
    this.#hasher = blake3.hasher();
  }

  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += WINDOW) this.#pushWindow(bytes.subarray(at, at + WINDOW));
  }

  #pushWindow(bytes: Uint8Array): void {
    window.set(bytes);
    for (let at = 0; at < bytes.length; ) {
      const end = this.#scan(bytes, at);
      this.#hasher.update(bytes.subarray(at, Math.abs(end)));
      this.#length += Math.abs(end) - at;
      at = Math.abs(end);
      if (end > 0) this.#cut();
    }
  }

  /** The list is complete. An empty blob has no shards. */
  finish(): ShardSummary {
    if (this.#length > 0) this.#cut();
    return {
      algorithm: 'fastcdc-v1',
      averageBytes: this.average,
      count: this.shards.length,
      root: hex(merkleRoot(this.#blake3, this.shards)),
    };
  }

  /** Where the shard ends in `bytes`, looking from `at`; negative: not yet, looked up to there. */
  #scan(bytes: Uint8Array, at: number): number {
    const base = at - this.#length;
    const stop = Math.min(bytes.length, base + this.#maximum);
    const middle = Math.min(stop, base + this.average);
    const first = Math.max(at, base + this.#minimum);
    scanner.gear.value = this.#gear;
    const cut =
      this.#look(first, middle, this.#strictMask) || this.#look(Math.max(first, middle), stop, this.#looseMask);
    if (cut > 0) return cut - DATA;
    this.#gear = scanner.gear.value;
    return stop === base + this.#maximum ? stop : -stop;
  }

  #look(from: number, until: number, mask: number): number {
    return from < until ? scanner.scan(DATA + from, DATA + until, mask) : 0;
  }

  #cut(): void {
    this.shards.push({ offset: this.#start, length: this.#length, hash: this.#hasher.digest() });
    this.#start += this.#length;
    this.#length = 0;
    this.#gear = 0;
    this.#hasher = this.#blake3.hasher();
  }
}

function topBits(count: number): number {
  return (-1 << (32 - count)) | 0;
}

/** The leaf of a shard: BLAKE3(0x00 | hash | length as 4 bytes big-endian). */
export function shardLeaf(blake3: Blake3, shard: Pick<Shard, 'hash' | 'length'>): Uint8Array {
  const bytes = new Uint8Array(37);
  bytes.set(shard.hash, 1);
  new DataView(bytes.buffer).setUint32(33, shard.length);
  return blake3.hash(bytes);
}

/** An inner node: BLAKE3(0x01 | left | right). */
function node(blake3: Blake3, left: Uint8Array, right: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(65);
  bytes[0] = 1;
  bytes.set(left, 1);
  bytes.set(right, 33);
  return blake3.hash(bytes);
}

/**
 * The Merkle root of a list, shaped as in RFC 6962: the left part of n leaves is the largest power of two below n, so no leaf
 * is ever doubled. The root of an empty list is BLAKE3 of nothing.
 */
export function merkleRoot(blake3: Blake3, shards: readonly Pick<Shard, 'hash' | 'length'>[]): Uint8Array {
  if (shards.length === 0) return blake3.hash(new Uint8Array());
  const leaves = shards.map((shard) => shardLeaf(blake3, shard));
  return subtree(blake3, leaves, 0, leaves.length);
}

function subtree(blake3: Blake3, leaves: readonly Uint8Array[], from: number, to: number): Uint8Array {
  if (to - from === 1) return leaves[from]!;
  const middle = from + split(to - from);
  return node(blake3, subtree(blake3, leaves, from, middle), subtree(blake3, leaves, middle, to));
}

/** The largest power of two below n, for n > 1. */
function split(n: number): number {
  return 2 ** Math.floor(Math.log2(n - 1));
}

/** The siblings from the leaf of a shard up to the root. */
export function proveShard(
  blake3: Blake3,
  shards: readonly Pick<Shard, 'hash' | 'length'>[],
  index: number,
): Uint8Array[] {
  const leaves = shards.map((shard) => shardLeaf(blake3, shard));
  const path: Uint8Array[] = [];
  for (let from = 0, to = leaves.length; to - from > 1; ) {
    const middle = from + split(to - from);
    if (index < middle) {
      path.unshift(subtree(blake3, leaves, middle, to));
      to = middle;
    } else {
      path.unshift(subtree(blake3, leaves, from, middle));
      from = middle;
    }
  }
  return path;
}

/** Whether `shard` is number `index` of the `count` shards under `root`. Hostile input gives false, never an exception. */
export function verifyShard(
  blake3: Blake3,
  root: Uint8Array,
  claim: {
    readonly count: number;
    readonly index: number;
    readonly shard: Pick<Shard, 'hash' | 'length'>;
    readonly path: readonly Uint8Array[];
  },
): boolean {
  const { count, index, shard, path } = claim;
  if (!Number.isSafeInteger(count) || !Number.isSafeInteger(index) || index < 0 || index >= count) return false;
  if (shard.hash.length !== 32 || path.length > 53 || path.some((sibling) => sibling.length !== 32)) return false;
  const turns: ('left' | 'right')[] = [];
  for (let from = 0, to = count; to - from > 1; ) {
    const middle = from + split(to - from);
    turns.unshift(index < middle ? 'left' : 'right');
    if (index < middle) to = middle;
    else from = middle;
  }
  if (turns.length !== path.length) return false;
  let at = shardLeaf(blake3, shard);
  for (const [i, sibling] of path.entries())
    at = turns[i] === 'left' ? node(blake3, at, sibling) : node(blake3, sibling, at);
  return hex(at) === hex(root);
}
