import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import fc from 'fast-check';
import { fromHex, fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { readVectors } from '../testing/vectors.ts';
import {
  type CompareRequest,
  compareAnswerBytesMax,
  decodeCompareAnswer,
  decodeCompareRequest,
  encodeCompareAnswer,
  encodeCompareRequest,
  fingerprintOf,
  type RangeAnswer,
  RECONCILE_LIMITS,
} from './reconcile.ts';

type Shown = { kind: 'listed'; ids: string[] } | { kind: 'split'; fingerprints: string[] };

const valid = readVectors<{
  fingerprints: { why: string; salt: string; ids: string[]; fingerprint: string }[];
  questions: { why: string; text: string; value: CompareRequest }[];
  answers: { why: string; ranges: string[]; bytes: string; value: Shown[] }[];
}>('reconcile', 'valid');
const invalid = readVectors<{
  questions: { why: string; text: string }[];
  answers: { why: string; ranges: string[]; bytes: string }[];
}>('reconcile', 'invalid');

const refused = (work: () => unknown, why?: string) => assert.throws(work, (error) => isCoded(error, 'peer-lied'), why);
const shown = (answer: RangeAnswer): Shown =>
  answer.kind === 'listed'
    ? { kind: 'listed', ids: answer.ids.map(hex) }
    : { kind: 'split', fingerprints: answer.fingerprints.map(hex) };

/** Ids add up as numbers of 256 bits. */
function sumOf(ids: readonly string[]): Uint8Array {
  const sum = ids.reduce((total, id) => total + BigInt(`0x${id}`), 0n) % 2n ** 256n;
  return fromHex(sum.toString(16).padStart(64, '0'));
}

suite('messages of set reconciliation', () => {
  test('are read and written as in the vectors', () => {
    for (const { why, salt, ids, fingerprint } of valid.fingerprints) {
      assert.equal(hex(fingerprintOf(fromHex(salt), ids.length, sumOf(ids))), fingerprint, why);
    }
    for (const { why, text, value } of valid.questions) {
      assert.deepEqual(decodeCompareRequest(utf8(text)), value, why);
      assert.equal(fromUtf8(encodeCompareRequest(value)), text, why);
    }
    for (const { why, ranges, bytes, value } of valid.answers) {
      const read = decodeCompareAnswer(fromHex(bytes), ranges);
      assert.deepEqual(read.map(shown), value, why);
      assert.equal(hex(encodeCompareAnswer(read)), bytes, why);
    }
  });

  test('are refused as in the vectors', () => {
    for (const { why, text } of invalid.questions) refused(() => decodeCompareRequest(utf8(text)), why);
    for (const { why, ranges, bytes } of invalid.answers) {
      refused(() => decodeCompareAnswer(fromHex(bytes), ranges), why);
    }
    refused(() => decodeCompareRequest(new Uint8Array(RECONCILE_LIMITS.requestBytesMax + 1)));
  });

  test('come back as they were written, in as many bytes as they may have', () => {
    const range = fc.stringMatching(/^[0-9a-f]{1,8}$/);
    const ranges = fc
      .uniqueArray(range, { minLength: 1, maxLength: 30 })
      .map((all) => all.filter((one) => !all.some((other) => other !== one && one.startsWith(other))));
    fc.assert(
      fc.property(ranges, fc.infiniteStream(fc.uint8Array({ minLength: 8, maxLength: 8 })), (asked, bytes) => {
        const request = { collection: 'records', salt: '0'.repeat(32), ranges: asked };
        assert.deepEqual(decodeCompareRequest(encodeCompareRequest(request)), request);
        const answers = asked.map((prefix, at): RangeAnswer => {
          const some = Array.from({ length: 16 }, () => bytes.next().value!);
          if (at % 2 === 0 && prefix.length < RECONCILE_LIMITS.prefixDigitsMax)
            return { kind: 'split', fingerprints: some };
          const ids = some.map((id) => fromHex(prefix + hex(id).slice(prefix.length)));
          return { kind: 'listed', ids: ids.sort(Buffer.compare) };
        });
        const written = encodeCompareAnswer(answers);
        assert.deepEqual(decodeCompareAnswer(written, asked).map(shown), answers.map(shown));
        assert.ok(written.length <= compareAnswerBytesMax(asked.length));
      }),
    );
  });

  test('a question about as many ranges as it may have fits its limit', () => {
    const ranges = Array.from({ length: RECONCILE_LIMITS.rangesMax }, (_, at) => at.toString(16).padStart(8, '0'));
    const written = encodeCompareRequest({ collection: 'c'.repeat(32), salt: 'f'.repeat(32), ranges });
    assert.ok(written.length <= RECONCILE_LIMITS.requestBytesMax, `${written.length}`);
    assert.equal(decodeCompareRequest(written).ranges.length, RECONCILE_LIMITS.rangesMax);
  });
});
