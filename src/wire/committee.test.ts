import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import {
  COMMITTEE_REQUESTS,
  type CommitteeMethod,
  decodeBody,
  decodeRequest,
  encodeBody,
  requestBytesMax,
} from './committee.ts';

const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/committee/${kind}.json`, import.meta.url), 'utf8'));
const valid = vectors('valid') as { method: CommitteeMethod; body: unknown }[];
const methods = Object.keys(COMMITTEE_REQUESTS) as CommitteeMethod[];

test('decodeRequest() accepts every method, in fewer bytes than it may have', () => {
  for (const { method, body } of valid) {
    const bytes = encodeBody(body);
    assert.ok(bytes.length < requestBytesMax(method), method);
    decodeRequest(method, decodeBody(bytes));
  }
  assert.deepEqual([...new Set(valid.map(({ method }) => method))].sort(), [...methods].sort());
});

for (const { why, method, body, says } of vectors('invalid') as {
  why: string;
  method: CommitteeMethod;
  body: unknown;
  says: string;
}[]) {
  test(`decodeRequest() refuses ${why} for ${method}`, () => {
    assert.throws(
      () => decodeRequest(method, body),
      (error) => isCoded(error, 'usage') && new RegExp(says).test(error.message),
    );
  });
}

test('decoding answers whatever bytes with a request or with a refusal', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...methods),
      fc.oneof(fc.uint8Array(), fc.json().map(utf8), fc.constantFrom(...valid.map(({ body }) => encodeBody(body)))),
      (method, bytes) => {
        try {
          decodeRequest(method, decodeBody(bytes));
        } catch (error) {
          assert.ok(isCoded(error, 'usage'), String(error));
        }
      },
    ),
    { numRuns: 2_000 },
  );
});
