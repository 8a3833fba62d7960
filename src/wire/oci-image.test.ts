import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { decodeImageArchive, decodeImageConfig, decodeImageIndex, decodeImageManifest } from './oci-image.ts';

const DECODERS = {
  index: decodeImageIndex,
  manifest: decodeImageManifest,
  config: decodeImageConfig,
  archive: decodeImageArchive,
};

interface Vector {
  readonly name: string;
  readonly document: keyof typeof DECODERS;
  readonly text: string;
  readonly value?: unknown;
  readonly why?: string;
}

function vectors(list: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(
    readFileSync(new URL(`../../test/vectors/image/${list}.json`, import.meta.url), 'utf8'),
  ) as Vector[];
}

for (const { name, document, text, value } of vectors('valid')) {
  test(`an image is read: ${name}`, () => {
    assert.deepEqual(DECODERS[document](Buffer.from(text)), value);
  });
}

for (const { name, document, text, why } of vectors('invalid')) {
  test(`a malformed image is refused: ${name}`, () => {
    assert.throws(() => DECODERS[document](Buffer.from(text)), {
      code: 'program-invalid',
      message: new RegExp(`malformed: ${why}: `),
    });
  });
}
