import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import wabt from 'wabt';
import { concat, fromHex, hex, utf8 } from '../base/bytes.ts';
import { noise } from '../testing/made-content.ts';
import {
  averageFor,
  GEAR,
  loadBlake3,
  loadWasm,
  merkleRoot,
  proveShard,
  type Shard,
  ShardCutter,
  shardLeaf,
  verifyShard,
} from './shards.ts';

const blake3 = await loadBlake3();

function cut(bytes: Uint8Array, average: number, piece = bytes.length || 1, hashes = blake3): ShardCutter {
  const cutter = new ShardCutter(hashes, average);
  for (let at = 0; at < bytes.length; at += piece) cutter.push(bytes.subarray(at, at + piece));
  return cutter;
}

/** The rule of docs/protocol/shards.md, word for word. */
function lengths(bytes: Uint8Array, average: number): number[] {
  const bits = Math.log2(average);
  const found: number[] = [];
  for (let start = 0; start < bytes.length; ) {
    const end = Math.min(bytes.length, start + 4 * average);
    let h = 0;
    let i = start + average / 4;
    for (; i < end; i++) {
      h = ((h << 1) + GEAR[bytes[i]!]!) >>> 0;
      const top = i - start < average ? bits + 2 : bits - 2;
      if (h >>> (32 - top) === 0) break;
    }
    const length = Math.min(end, i + 1) - start;
    found.push(length);
    start += length;
  }
  return found;
}

test('cuts follow the written rule, whatever pieces the bytes come in', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 200_000 }),
      fc.string(),
      fc.integer({ min: 1, max: 70_000 }),
      (length, seed, piece) => {
        const bytes = noise(length, seed);
        for (const average of [256, 1024, 16_384]) {
          const cutter = cut(bytes, average, piece);
          const summary = cutter.finish();
          assert.deepEqual(
            cutter.shards.map((shard) => shard.length),
            lengths(bytes, average),
          );
          assert.equal(summary.count, cutter.shards.length);
          let at = 0;
          for (const { offset, length, hash } of cutter.shards) {
            assert.equal(offset, at);
            assert.deepEqual(hash, blake3.hash(bytes.subarray(at, at + length)));
            at += length;
          }
          assert.equal(at, bytes.length);
        }
      },
    ),
    { numRuns: 30 },
  );
});

test('runs of one byte are cut at the largest length, and a piece larger than the window is no special case', () => {
  const bytes = new Uint8Array(3 * 2 ** 20);
  const cutter = cut(bytes, 65_536);
  cutter.finish();
  assert.deepEqual(
    cutter.shards.map((shard) => shard.length),
    lengths(bytes, 65_536),
  );
});

test('a change in the middle moves few shards', () => {
  const bytes = noise(4_000_000, 'change');
  const before = cut(bytes, 65_536);
  const after = cut(concat(bytes.subarray(0, 2_000_000), utf8('inserted'), bytes.subarray(2_000_000)), 65_536);
  before.finish();
  after.finish();
  const known = new Set(before.shards.map((shard) => hex(shard.hash)));
  const fresh = after.shards.filter((shard) => !known.has(hex(shard.hash)));
  assert.ok(fresh.length <= 3, `${fresh.length} of ${after.shards.length} are new`);
  const mean = 4_000_000 / before.shards.length;
  assert.ok(mean > 40_000 && mean < 110_000, `mean length ${mean}`);
});

test('the average grows with the blob', () => {
  assert.deepEqual(
    [0, 2 ** 26, 2 ** 26 + 1, 2 ** 30, 2 ** 30 + 1].map(averageFor),
    [65_536, 65_536, 262_144, 262_144, 1_048_576],
  );
});

test('every shard of 1 to 65 is proved under the root, and nothing else is', () => {
  for (let count = 1; count <= 65; count++) {
    const shards = Array.from({ length: count }, (_, i) => ({ hash: blake3.hash(utf8(`shard ${i}`)), length: i + 1 }));
    const root = merkleRoot(blake3, shards);
    for (const [index, shard] of shards.entries()) {
      const path = proveShard(blake3, shards, index);
      const claim = { count, index, shard, path };
      assert.ok(verifyShard(blake3, root, claim), `${index} of ${count}`);
      const other = shards[(index + 1) % count]!;
      assert.ok(count === 1 || !verifyShard(blake3, root, { ...claim, shard: other }));
      assert.ok(!verifyShard(blake3, root, { ...claim, shard: { ...shard, length: shard.length + 1 } }));
      assert.ok(!verifyShard(blake3, root, { ...claim, index: index + count }));
      assert.ok(!verifyShard(blake3, root, { ...claim, path: [...path, root] }));
      if (path.length > 0) {
        assert.ok(!verifyShard(blake3, root, { ...claim, path: path.slice(1) }));
        assert.ok(!verifyShard(blake3, root, { ...claim, path: [new Uint8Array(32), ...path.slice(1)] }));
      }
    }
    // Appending a copy of the last shard changes the root: no level is filled up by doubling.
    assert.notDeepEqual(merkleRoot(blake3, [...shards, shards.at(-1)!]), root);
  }
});

test('hostile claims give false, not an exception', () => {
  const shard = { hash: new Uint8Array(32), length: 1 };
  const root = merkleRoot(blake3, [shard]);
  for (const claim of [
    { count: 0, index: 0, shard, path: [] },
    { count: Number.NaN, index: 0, shard, path: [] },
    { count: 1, index: -1, shard, path: [] },
    { count: 2 ** 53, index: 0, shard, path: [] },
    { count: 1, index: 0, shard: { hash: new Uint8Array(5), length: 1 }, path: [] },
    { count: 2, index: 0, shard, path: [new Uint8Array(31)] },
  ]) {
    assert.equal(verifyShard(blake3, root, claim), false);
  }
});

test('the native and the WebAssembly BLAKE3 agree', async () => {
  const wasm = await loadWasm();
  const bytes = noise(300_000, 'both');
  const [a, b] = [cut(bytes, 16_384, 7_777), cut(bytes, 16_384, 7_777, wasm)];
  assert.deepEqual(b.finish(), a.finish());
  assert.deepEqual(b.shards, a.shards);
  assert.deepEqual(wasm.hash(bytes), blake3.hash(bytes));
});

test('the compiled scanner is the one in shards.wat', async () => {
  const { parseWat } = await wabt();
  const { buffer } = parseWat('shards.wat', readFileSync(new URL('shards.wat', import.meta.url), 'utf8')).toBinary({});
  const source = readFileSync(new URL('shards.ts', import.meta.url), 'utf8');
  const quoted = source.slice(source.indexOf('SCANNER_WASM ='), source.indexOf(';', source.indexOf('SCANNER_WASM =')));
  const compiled = [...quoted.matchAll(/'([^']*)'/g)].map((match) => match[1]).join('');
  assert.equal(compiled, Buffer.from(buffer).toString('base64'));
});

interface ShardVector {
  readonly why: string;
  readonly bytes: { readonly repeat: string; readonly times: number } | { readonly counter: number };
  readonly average: number;
  readonly shards: readonly { readonly length: number; readonly hash: string }[];
  readonly root: string;
}

/** Content of a vector: a text repeated, or SHA-256 of the 4-byte big-endian numbers 0, 1, … one after the other. */
function vectorBytes(bytes: ShardVector['bytes']): Uint8Array {
  if ('repeat' in bytes) return utf8(bytes.repeat.repeat(bytes.times));
  return concat(
    ...Array.from({ length: bytes.counter }, (_, i) => {
      const number = new Uint8Array(4);
      new DataView(number.buffer).setUint32(0, i);
      return new Uint8Array(createHash('sha256').update(number).digest());
    }),
  );
}

function vectors<T>(name: string): readonly T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/shards/${name}.json`, import.meta.url), 'utf8')) as T[];
}

test('valid vectors', () => {
  for (const { why, bytes, average, shards, root } of vectors<ShardVector>('valid')) {
    const cutter = cut(vectorBytes(bytes), average);
    assert.equal(cutter.finish().root, root, why);
    assert.deepEqual(
      cutter.shards.map(({ length, hash }) => ({ length, hash: hex(hash) })),
      shards,
      why,
    );
    for (const [index, shard] of cutter.shards.entries()) {
      const path = proveShard(blake3, cutter.shards, index);
      assert.ok(verifyShard(blake3, fromHex(root), { count: shards.length, index, shard, path }), why);
    }
  }
});

test('invalid vectors', () => {
  interface Claim {
    readonly why: string;
    readonly root: string;
    readonly count: number;
    readonly index: number;
    readonly shard: { readonly hash: string; readonly length: number };
    readonly path: readonly string[];
  }
  for (const { why, root, count, index, shard, path } of vectors<Claim>('invalid')) {
    const claim = { count, index, shard: { hash: fromHex(shard.hash), length: shard.length }, path: path.map(fromHex) };
    assert.equal(verifyShard(blake3, fromHex(root), claim), false, why);
  }
});

test('a leaf binds the length', () => {
  const shard: Pick<Shard, 'hash' | 'length'> = { hash: new Uint8Array(32), length: 1 };
  assert.notDeepEqual(shardLeaf(blake3, shard), shardLeaf(blake3, { ...shard, length: 2 }));
});
