import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { digestOf } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { parseManifest } from './manifest-text.ts';
import { decodePackage, encodePackage, MEDIA, type PackageConfig } from './package.ts';

const layer = {
  digest: digestOf(utf8('layer')),
  size: 5,
  shards: { algorithm: 'fastcdc-v1', averageBytes: 65_536, count: 1, root: '0'.repeat(64) },
} as const;
const manifest = parseManifest('name: ada/greeter\nversion: 1.0.0\nkeywords: [b, a]\nresources: { memory: 1MiB }\n');
const refused = (error: unknown) => isCoded(error, 'package-file-invalid');

test('decodePackage(encodePackage()) is the package, and only known fields of a layer go in', () => {
  const extra = { ...layer, shardsReused: 7 };
  const encoded = encodePackage(manifest, [extra, layer]);
  assert.deepEqual(decodePackage(encoded.manifest, encoded.config), {
    digest: digestOf(encoded.manifest),
    configDigest: digestOf(encoded.config),
    config: { formatVersion: 1, manifest, layers: [layer, layer] },
  });
  const oci = JSON.parse(fromUtf8(encoded.manifest)) as { artifactType: string; layers: { mediaType: string }[] };
  assert.equal(oci.artifactType, MEDIA.artifact);
  assert.deepEqual(
    oci.layers.map(({ mediaType }) => mediaType),
    [MEDIA.tree, MEDIA.blob],
  );
});

test('any changed byte of either part is refused, or it is another package', () => {
  const encoded = encodePackage(manifest, [layer]);
  fc.assert(
    fc.property(fc.boolean(), fc.nat(), fc.integer({ min: 1, max: 255 }), (inConfig, at, flip) => {
      const changed = (inConfig ? encoded.config : encoded.manifest).slice();
      changed[at % changed.length]! ^= flip;
      assert.throws(
        () => decodePackage(inConfig ? encoded.manifest : changed, inConfig ? changed : encoded.config),
        refused,
      );
    }),
    { numRuns: 500 },
  );
});

test('too many layers are refused', () => {
  assert.throws(
    () => encodePackage(manifest, Array(129).fill(layer)),
    (error) => isCoded(error, 'limit-exceeded'),
  );
});

function vectors<T>(name: string): readonly T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/package/${name}.json`, import.meta.url), 'utf8')) as T[];
}

test('valid vectors', () => {
  interface Valid {
    readonly why: string;
    readonly config: PackageConfig;
    readonly digest: string;
    readonly configDigest: string;
  }
  for (const { why, config, digest, configDigest } of vectors<Valid>('valid')) {
    const encoded = encodePackage(config.manifest, config.layers);
    assert.deepEqual([encoded.digest, encoded.configDigest], [digest, configDigest], why);
    assert.deepEqual(decodePackage(encoded.manifest, encoded.config).config, config, why);
  }
});

test('invalid vectors', () => {
  for (const { why, manifest, config } of vectors<{ why: string; manifest: string; config: string }>('invalid')) {
    assert.throws(() => decodePackage(fromBase64(manifest), fromBase64(config)), refused, why);
  }
});
