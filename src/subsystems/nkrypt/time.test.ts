import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { fromBase64 } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import type { TimeProof } from '../../wire/proof.ts';
import { checkTime, proveTime } from './time.ts';

const context = digestOf(Uint8Array.of(1));
const prove = (squarings: number, of: Digest = context) =>
  proveTime(
    of,
    squarings,
    () => false,
    () => undefined,
  )!;

test('proveTime() is accepted for every number of halvings, kept or computed again', () => {
  for (const power of [10, 11, 12, 15, 17, 18]) {
    const proof = prove(2 ** power);
    assert.equal(proof.halvings.length, power - 10);
    assert.equal(checkTime(context, 2 ** power, proof), undefined, `2^${power}`);
  }
});

test('checkTime() refuses every altered field', () => {
  const squarings = 2 ** 13;
  const proof = prove(squarings);
  const flip = (text: string, at: number) => {
    const bytes = fromBase64(text);
    bytes[at % 256]! ^= 1 << (at % 7);
    return bytes.toBase64();
  };
  const refused = (changed: TimeProof, count = squarings, of = context) =>
    assert.notEqual(checkTime(of, count, changed), undefined);
  refused({ ...proof, output: flip(proof.output, 255) });
  refused({ ...proof, output: prove(2 ** 14).output });
  refused({ ...proof, squarings: squarings * 2 });
  refused(proof, squarings * 2);
  refused({ ...proof, squarings: squarings / 2, halvings: proof.halvings.slice(1) }, squarings / 2);
  refused({ ...proof, halvings: proof.halvings.slice(0, -1) });
  refused({ ...proof, halvings: [...proof.halvings, proof.halvings[0]!] });
  refused({ ...proof, halvings: [...proof.halvings].reverse() });
  refused(proof, squarings, digestOf(Uint8Array.of(2)));
  for (const value of [0n, 1n, (1n << 2048n) - 1n]) {
    const bytes = Uint8Array.fromHex(value.toString(16).padStart(512, '0')).toBase64();
    refused({ ...proof, output: bytes });
    refused({ ...proof, halvings: [bytes, ...proof.halvings.slice(1)] });
  }
  fc.assert(
    fc.property(fc.nat(2), fc.nat(2047), (which, bit) => {
      const halvings = proof.halvings.map((text, i) => (i === which ? flip(text, bit) : text));
      refused({ ...proof, halvings });
    }),
    { numRuns: 50 },
  );
});

test('proveTime() stops when nobody waits', () => {
  let asked = 0;
  assert.equal(
    proveTime(
      context,
      2 ** 20,
      () => ++asked > 3,
      () => undefined,
    ),
    undefined,
  );
});
