import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Digest } from '../base/digest.ts';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { wordHolds } from '../subsystems/trustchain/index.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import { decodeTermsAnswer, TERMS_TYPE } from './terms.ts';

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
