import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { decodeStatement, encodeStatement, type PackageStatement } from './statement.ts';

const refused = (bytes: Uint8Array, why?: string) =>
  assert.throws(
    () => decodeStatement(bytes),
    (error) => isCoded(error, 'signature-invalid'),
    why,
  );

function vectors<T>(name: string): readonly T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/statement/${name}.json`, import.meta.url), 'utf8')) as T[];
}

test('valid vectors', () => {
  for (const { why, payload, ...value } of vectors<PackageStatement & { why: string; payload: string }>('valid')) {
    assert.equal(fromUtf8(encodeStatement(value)), payload, why);
    assert.deepEqual(decodeStatement(utf8(payload)), value, why);
  }
});

test('invalid vectors', () => {
  for (const { why, payload } of vectors<{ why: string; payload: string }>('invalid')) refused(utf8(payload), why);
});

const digest = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => `sha256:${bytes.toHex()}` as const);
const word = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,63}$/);
const statement: fc.Arbitrary<PackageStatement> = fc.record(
  {
    name: fc.tuple(word, word).map(([scope, name]) => `${scope}/${name}`),
    version: fc.tuple(fc.nat(), fc.nat(), fc.nat()).map((numbers) => numbers.join('.')),
    manifest: digest,
    config: digest,
    network: digest,
    signedAtMs: fc.maxSafeNat(),
  },
  { noNullPrototype: true },
);

test('decodeStatement(encodeStatement()) is the statement; with any byte changed it is another one or refused', () => {
  fc.assert(
    fc.property(statement, fc.nat(), fc.integer({ min: 1, max: 255 }), (value, at, flip) => {
      const bytes = encodeStatement(value);
      assert.deepEqual(decodeStatement(bytes), value);
      const changed = bytes.slice();
      changed[at % bytes.length]! ^= flip;
      try {
        assert.notDeepEqual(decodeStatement(changed), value);
      } catch (error) {
        assert.ok(isCoded(error, 'signature-invalid'));
      }
    }),
  );
});

test('decodeStatement() refuses arbitrary bytes', () => {
  fc.assert(fc.property(fc.uint8Array(), (bytes) => refused(bytes)));
  fc.assert(fc.property(fc.json(), (text) => refused(utf8(text))));
});
