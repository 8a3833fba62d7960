import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../base/errors.ts';
import { decodeGenesis, genesisDocument, quorumOf } from './genesis.ts';

function vectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/genesis/${name}.json`, import.meta.url), 'utf8')) as T[];
}

for (const { name, document, networkId } of vectors<{ name: string; document: object; networkId: string }>('valid')) {
  test(`decodeGenesis() accepts ${name} and gives its network id, however its keys are ordered`, () => {
    const reversed = Object.fromEntries(Object.entries(document).reverse());
    const decoded = decodeGenesis(reversed);
    assert.equal(decoded.networkId, networkId);
    assert.deepEqual(genesisDocument(decoded.genesis), document);
  });
}

for (const { why, member, value } of vectors<{ why: string; member: string; value: unknown }>('invalid')) {
  test(`decodeGenesis() refuses ${why}`, () => {
    const [{ document }] = vectors<{ document: object }>('valid') as [{ document: object }];
    assert.throws(
      () => decodeGenesis({ ...document, [member]: value }),
      (error) => isCoded(error, 'network-mismatch'),
    );
  });
}

test('decodeGenesis() answers any value with a genesis or a coded error', () => {
  const [{ document }] = vectors<{ document: Record<string, unknown> }>('valid') as [
    { document: Record<string, unknown> },
  ];
  fc.assert(
    fc.property(fc.jsonValue(), fc.constantFrom(...Object.keys(document)), (value, key) => {
      for (const input of [value, { ...document, [key]: value }]) {
        try {
          decodeGenesis(input);
        } catch (error) {
          assert.ok(isCoded(error));
        }
      }
    }),
  );
});

test('quorumOf() is 2f+1 of 3f+1: two quorums share an honest member, and f silent ones do not stop it', () => {
  for (let f = 0; f < 34; f++) assert.equal(quorumOf(3 * f + 1), 2 * f + 1);
  for (let n = 1; n <= 100; n++) {
    const f = Math.floor((n - 1) / 3);
    assert.ok(2 * quorumOf(n) - n > f && quorumOf(n) <= n - f, String(n));
  }
});
