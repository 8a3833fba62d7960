import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { decodeGrants, encodeGrants } from './grants.ts';

interface Vector {
  readonly name: string;
  readonly why?: string;
  readonly text: string;
}

function vectors(list: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(
    readFileSync(new URL(`../../test/vectors/grants/${list}.json`, import.meta.url), 'utf8'),
  ) as Vector[];
}

for (const { name, text } of vectors('valid')) {
  test(`grants are read and written: ${name}`, () => {
    const grants = decodeGrants(text);
    assert.deepEqual({ formatVersion: 1, grants }, JSON.parse(text));
    assert.deepEqual(decodeGrants(encodeGrants(grants)), grants);
  });
}

for (const { name, why, text } of vectors('invalid')) {
  test(`damaged grants are refused: ${name}`, () => {
    assert.throws(() => decodeGrants(text), { code: 'config-invalid', message: new RegExp(`damaged: ${why}`) });
  });
}
