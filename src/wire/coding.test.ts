import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { concat, fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf, sha256 } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { cut } from '../testing/made-content.ts';
import { assertRefuses, type Invalid, readVectors } from '../testing/vectors.ts';
import {
  CODING_LIMITS,
  type Coding,
  checkShape,
  decodeSignedCoding,
  encodeCoding,
  fragmentId,
  fragmentOf,
  fragmentSize,
} from './coding.ts';
import { coefficientsOf, combined } from './erasure.ts';
import type { TrustAnchor } from './signature.ts';
import { encodeSigned } from './signed.ts';

const { atMs, anchor, code, codings } = readVectors<{
  atMs: number;
  anchor: TrustAnchor;
  code: { counter: number; k: number; m: number; fragments: Digest[] }[];
  codings: { why: string; counter: number; coding: Coding; coder: string; ids: Digest[]; document: string }[];
}>('coding', 'valid');
/** SHA-256 of the 4-byte big-endian numbers 0, 1, … one after the other. */
function counted(counter: number): Uint8Array {
  return concat(
    ...Array.from({ length: counter }, (_, i) => {
      const number = new Uint8Array(4);
      new DataView(number.buffer).setUint32(0, i);
      return sha256(number);
    }),
  );
}

async function fragment(bytes: Uint8Array, k: number, index: number): Promise<Uint8Array> {
  const size = Math.ceil(bytes.length / k);
  const padded = new Uint8Array(size * k);
  padded.set(bytes);
  const pieces: Uint8Array[] = [];
  const have = Array.from({ length: k }, (_, part) => part);
  const read = async (part: number, offset: number, into: Uint8Array) =>
    into.set(padded.subarray(part * size + offset, part * size + offset + into.length));
  for await (const piece of combined(coefficientsOf(index, have), 0, size, read)) pieces.push(piece.slice());
  return concat(...pieces);
}

suite('codings', () => {
  test('are read and written as in the vectors, and were signed by their nodes', async () => {
    for (const { why, coding, coder, ids, document } of codings) {
      const read = decodeSignedCoding(utf8(document));
      assert.deepEqual(read.coding, coding, why);
      assert.equal(read.coder, coder, why);
      assert.equal(fromUtf8(encodeSigned(read)), document, why);
      assert.equal(fromUtf8(encodeCoding(coding)), fromUtf8(fromBase64(read.envelope.payload)), why);
      assert.deepEqual(
        coding.fragments.map((_, index) => fragmentId(fragmentOf(coding, index))),
        ids,
        why,
      );
      const { signer } = await verifyEnvelope(read.envelope, read.chain, anchor, { role: 'node', atMs });
      assert.equal(signer, coder, why);
    }
  });

  test('describe the fragments of the content in the vectors', async () => {
    for (const { counter, k, m, fragments } of code) {
      const bytes = counted(counter);
      assert.equal(fragments.length, k + m);
      for (const [index, digest] of fragments.entries()) {
        assert.equal(digestOf(await fragment(bytes, k, index)), digest);
      }
    }
    for (const { counter, coding } of codings) {
      const bytes = counted(counter);
      assert.deepEqual(coding.blob, { digest: digestOf(bytes), size: bytes.length });
      for (const index of coding.fragments.keys()) {
        const { blob } = cut(await fragment(bytes, coding.k, index));
        assert.deepEqual(fragmentOf(coding, index), blob);
        assert.equal(blob.size, fragmentSize(coding.blob, coding));
      }
    }
  });

  test('are refused as in the vectors', () => {
    const { coding: says, document } = codings[0]!;
    const invalid = readVectors<Invalid & { codings: Invalid['changes'] }>('coding', 'invalid');
    assertRefuses(
      decodeSignedCoding,
      { document, says, bytesMax: CODING_LIMITS.recordBytesMax },
      { ...invalid, changes: invalid.codings },
    );
  });

  test('checkShape() refuses codes that nobody can make', () => {
    for (const [k, m] of [
      [2, 1],
      [4, 2],
      [20, 12],
    ] as const)
      checkShape({ k, m });
    for (const [k, m] of [
      [1, 1],
      [2, 0],
      [21, 12],
      [2.5, 1],
      [Number.NaN, 1],
    ] as const) {
      assert.throws(
        () => checkShape({ k, m }),
        (error) => isCoded(error, 'usage'),
        `${k}+${m}`,
      );
    }
  });
});
