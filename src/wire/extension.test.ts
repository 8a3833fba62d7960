import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { decodeExtensionManifest, decodeExtensionSignature } from './extension.ts';

const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/extension/${kind}.json`, import.meta.url), 'utf8')) as {
    name: string;
    why: string;
    document?: object;
    text?: string;
    says: string;
  }[];

describe('decodeExtensionManifest()', () => {
  for (const { name, document } of vectors('valid')) {
    it(`accepts ${name}`, () => {
      const decoded = decodeExtensionManifest(utf8(JSON.stringify(document)));
      assert.deepEqual(decodeExtensionManifest(utf8(JSON.stringify(decoded))), decoded);
      assert.partialDeepStrictEqual(decoded, document!);
    });
  }

  for (const { why, document, text, says } of vectors('invalid')) {
    it(`refuses ${why}`, () => {
      assert.throws(
        () => decodeExtensionManifest(utf8(text ?? JSON.stringify(document))),
        (error) => isCoded(error, 'extension-invalid') && error.message.includes(says),
      );
    });
  }

  it('answers any bytes with a manifest or a coded error', () => {
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.json().map(utf8)), (bytes) => {
        for (const decode of [decodeExtensionManifest, decodeExtensionSignature]) {
          try {
            decode(bytes);
          } catch (error) {
            assert.ok(isCoded(error, 'extension-invalid'), String(error));
          }
        }
      }),
    );
    assert.throws(
      () => decodeExtensionManifest(new Uint8Array(2 ** 20 + 1)),
      (error) => isCoded(error, 'extension-invalid'),
    );
  });
});
