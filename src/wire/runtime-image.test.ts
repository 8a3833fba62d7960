import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { decodeRuntimeImage, encodeRuntimeImage } from './runtime-image.ts';

interface Vector {
  readonly name: string;
  readonly why?: string;
  readonly text: string;
}

function vectors(list: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(
    readFileSync(new URL(`../../test/vectors/runtime-image/${list}.json`, import.meta.url), 'utf8'),
  ) as Vector[];
}

for (const { name, text } of vectors('valid')) {
  test(`a runtime image is read and written: ${name}`, () => {
    const image = decodeRuntimeImage(text);
    assert.deepEqual(image, JSON.parse(text));
    assert.deepEqual(decodeRuntimeImage(encodeRuntimeImage(image)), image);
  });
}

for (const { name, why, text } of vectors('invalid')) {
  test(`a damaged runtime image is refused: ${name}`, () => {
    assert.throws(() => decodeRuntimeImage(text), { code: 'config-invalid', message: new RegExp(`damaged: ${why}`) });
  });
}

test('a runtime image without end is refused', () => {
  assert.throws(() => decodeRuntimeImage(' '.repeat(600 * 1024)), { code: 'config-invalid', message: /too long/ });
});
