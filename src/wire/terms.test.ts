import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { wordHolds } from '../subsystems/trustchain/index.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import {
  checkBelongs,
  decodeTerms,
  decodeTermsAnswer,
  encodeTerms,
  type SignedTerms,
  supersedes,
  TERMS_LIMITS,
  TERMS_TYPE,
} from './terms.ts';

interface Valid {
  readonly name: string;
  readonly networkId: Digest;
  readonly value: Json;
}
const valid = readVectors<readonly Valid[]>('terms', 'valid');
const open = valid.find(({ name }) => name.startsWith('an open'))!;

for (const { name, networkId, value } of valid) {
  test(`decodeTermsAnswer() accepts ${name}, and its founder signed it`, () => {
    const { founding, signed } = decodeTermsAnswer(value, networkId);
    if (signed === null) return;
    const [keys] = founding.committee.validators;
    assert.ok(wordHolds(signed.attestation, TERMS_TYPE, signed.terms, keys!));
    assert.ok(!wordHolds(signed.attestation, TERMS_TYPE, { ...signed.terms, version: 9 }, keys!));
  });
}

const invalid = readVectors<readonly { why: string; code: ErrorCode; patch: Json }[]>('terms', 'invalid');
for (const { why, code, patch } of invalid) {
  test(`decodeTermsAnswer() refuses ${why}`, () => {
    assert.throws(
      () => decodeTermsAnswer(patched(open.value, patch), open.networkId),
      (error) => isCoded(error, code),
    );
  });
}

test('decodeTermsAnswer() answers whatever JSON with terms or with a refusal', () => {
  const parts = Object.keys(open.value as object);
  fc.assert(
    fc.property(fc.constantFrom(...parts), fc.jsonValue(), (part, to) => {
      for (const one of [to, { ...(open.value as object), [part]: to }]) {
        try {
          decodeTermsAnswer(one, open.networkId);
        } catch (error) {
          assert.ok(isCoded(error, 'certification-invalid', 'network-mismatch', 'limit-exceeded'), String(error));
        }
      }
    }),
    { numRuns: 1_000 },
  );
});

test('decodeTerms() reads the document of a record in its one encoding; checkBelongs() of this network, by a key of its genesis', () => {
  const { founding, signed } = decodeTermsAnswer(open.value, open.networkId);
  assert.deepEqual(decodeTerms(encodeTerms(signed!)), signed);
  for (const [why, bytes] of [
    ['white space', utf8(JSON.stringify(signed, null, 1))],
    ['no terms', utf8('{}')],
    ['no JSON', utf8('{')],
    ['too much', new Uint8Array(TERMS_LIMITS.recordBytesMax + 1)],
  ] as const) {
    assert.throws(
      () => decodeTerms(bytes),
      (error) => isCoded(error, 'certification-invalid'),
      why,
    );
  }
  checkBelongs(signed!, open.networkId, founding);
  const byAnother = { ...signed!, attestation: { ...signed!.attestation, validator: 'ab'.repeat(32) } };
  assert.throws(
    () => checkBelongs(byAnother, open.networkId, founding),
    (error) => isCoded(error, 'certification-invalid'),
  );
  assert.throws(
    () => checkBelongs(signed!, `sha256:${'ab'.repeat(32)}`, founding),
    (error) => isCoded(error, 'network-mismatch'),
  );
});

test('supersedes() goes by the version, and by what the founder said later where it forgot that it had said something', () => {
  const { signed } = decodeTermsAnswer(open.value, open.networkId);
  const made = (version: number, madeAtMs: number): SignedTerms => ({
    ...signed!,
    terms: { ...signed!.terms, version, madeAtMs },
  });
  assert.ok(supersedes(made(1, 5), null));
  assert.ok(supersedes(made(2, 5), made(1, 9)));
  assert.ok(!supersedes(made(1, 9), made(2, 5)));
  assert.ok(supersedes(made(2, 6), made(2, 5)));
  assert.ok(!supersedes(made(2, 5), made(2, 5)));
});
