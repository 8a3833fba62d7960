import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { concat, hex } from '../base/bytes.ts';
import { assemble } from '../testing/wat.ts';
import { coefficientsOf, combined } from './erasure.ts';

async function fragment(wanted: number, have: ReadonlyMap<number, Uint8Array>): Promise<Uint8Array> {
  const kept = [...have.values()];
  const pieces: Uint8Array[] = [];
  for await (const piece of combined(
    coefficientsOf(wanted, [...have.keys()]),
    0,
    kept[0]!.length,
    async (place, offset, into) => into.set(kept[place]!.subarray(offset, offset + into.length)),
  ))
    pieces.push(piece.slice());
  return concat(...pieces);
}

/** As the page says it, a bit and a byte at a time. */
function slowly(parts: readonly Uint8Array[], wanted: number): Uint8Array {
  const times = (a: number, b: number) => {
    let sum = 0;
    for (let bit = 0, shifted = a; bit < 8; bit++) {
      if ((b >> bit) & 1) sum ^= shifted;
      shifted = (shifted << 1) ^ (shifted & 0x80 ? 0x11d : 0);
    }
    return sum;
  };
  const invert = (a: number) => Array.from({ length: 256 }, (_, b) => b).find((b) => times(a, b) === 1)!;
  return parts[0]!.map((_, at) => parts.reduce((sum, part, j) => sum ^ times(part[at]!, invert(wanted ^ j)), 0));
}

test('coefficientsOf() and combined() restore every fragment from any k of k + m', async () => {
  const shape = fc.integer({ min: 2, max: 20 }).chain((k) =>
    fc.integer({ min: 1, max: 12 }).chain((m) =>
      fc.record({
        k: fc.constant(k),
        parts: fc.array(fc.uint8Array({ minLength: 33, maxLength: 33 }), { minLength: k, maxLength: k }),
        order: fc.shuffledSubarray(
          Array.from({ length: k + m }, (_, i) => i),
          { minLength: k + m, maxLength: k + m },
        ),
      }),
    ),
  );
  await fc.assert(
    fc.asyncProperty(shape, async ({ k, parts, order }) => {
      const whole = new Map(parts.map((part, i) => [i, part] as const));
      const all = new Map<number, Uint8Array>();
      for (const i of order) all.set(i, await fragment(i, whole));
      for (const [i, part] of whole) assert.deepEqual(all.get(i), part, 'the first k are the content');
      const kept = new Map([...all].slice(0, k));
      for (const [i, bytes] of all) assert.deepEqual(await fragment(i, kept), bytes);
    }),
    { numRuns: 30 },
  );
});

test('combined() gives the sums that the page describes', async () => {
  const parts = [3, 7, 250].map((seed) => Uint8Array.from({ length: 512 }, (_, at) => (at * seed + (at >> 4)) & 0xff));
  const whole = new Map(parts.map((part, i) => [i, part] as const));
  for (const wanted of [3, 4, 5, 31]) {
    assert.equal(hex(await fragment(wanted, whole)), hex(slowly(parts, wanted)), `fragment ${wanted}`);
  }
});

test('combined() gives any range, also one that ends in the middle of a piece', async () => {
  const length = 2 ** 18 * 2 + 77;
  const parts = [5, 11].map((seed) => Uint8Array.from({ length }, (_, at) => (at * seed + (at >> 8)) & 0xff));
  const whole = await fragment(2, new Map(parts.map((part, i) => [i, part] as const)));
  for (const [offset, bytes] of [
    [0, length],
    [1, 2 ** 18],
    [2 ** 18 - 1, 100],
    [length - 1, 1],
  ] as const) {
    const pieces: Uint8Array[] = [];
    const read = async (place: number, at: number, into: Uint8Array) =>
      into.set(parts[place]!.subarray(at, at + into.length));
    for await (const piece of combined(coefficientsOf(2, [0, 1]), offset, bytes, read)) pieces.push(piece.slice());
    assert.deepEqual(concat(...pieces), whole.subarray(offset, offset + bytes));
  }
});

test('coefficientsOf() refuses the same fragment twice', () => {
  assert.throws(() => coefficientsOf(2, [1, 1]), RangeError);
});

test('the compiled loop is the one in erasure.wat', async () => {
  const here = (name: string) => readFileSync(new URL(name, import.meta.url), 'utf8');
  const source = here('erasure.ts').split('ERASURE_WASM =')[1]!.split(';')[0]!;
  const quoted = [...source.matchAll(/'([^']*)'/g)].map((match) => match[1]).join('');
  assert.equal(quoted, Buffer.from(await assemble(here('erasure.wat'), { simd: true })).toString('base64'));
});
