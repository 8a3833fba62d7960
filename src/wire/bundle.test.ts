import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { bytesOf, type InvalidBundle, pinOf, readVectors, type ValidBundle } from '../../test/bundle-vectors.ts';
import { digestOf } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { offlineJudges, verifyBundleOffline } from '../index.ts';
import { BUNDLE_BYTES_MAX, decodeBundle, encodeBundle, inclusionLeaf } from './bundle.ts';

const valid = readVectors<ValidBundle>('valid');
const invalid = readVectors<InvalidBundle>('invalid');
const judges = offlineJudges();

test('valid vectors: one encoding, and all that they say holds', async () => {
  for (const { name, bundle, ref, digest, publisher, checks } of valid) {
    const bytes = encodeBundle(bundle);
    assert.deepEqual(decodeBundle(bytes), bundle, name);
    assert.deepEqual(encodeBundle(decodeBundle(bytes)), bytes, name);
    const result = await verifyBundleOffline(bundle, { network: bundle.network.id, judges });
    assert.deepEqual(
      [result.ref, result.digest, result.publisher.keyId, result.networkId, result.checks.map(({ check }) => check)],
      [ref, digest, publisher, bundle.network.id, checks],
      name,
    );
  }
});

for (const vector of invalid) {
  test(`invalid vector "${vector.name}" is refused: ${vector.why}`, async () => {
    await assert.rejects(
      async () => verifyBundleOffline(decodeBundle(bytesOf(vector, valid)), { ...pinOf(vector, valid), judges }),
      (error: unknown) => isCoded(error) && error.code === vector.code,
    );
  });
}

test('a bundle in which any byte is another one is refused', async () => {
  const [{ bundle } = assert.fail()] = valid;
  const bytes = encodeBundle(bundle);
  const network = bundle.network.id;
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
      const changed = bytes.slice();
      changed[at]! ^= flip;
      await assert.rejects(
        async () => verifyBundleOffline(decodeBundle(changed), { network, judges }),
        (error: unknown) => isCoded(error) && error.code !== 'internal',
      );
    }),
    { numRuns: 150 },
  );
});

test('decodeBundle() refuses arbitrary bytes and values as a bundle that is none', () => {
  const refused = (bytes: Uint8Array) =>
    assert.throws(
      () => decodeBundle(bytes),
      (error) => isCoded(error, 'bundle-invalid'),
    );
  fc.assert(fc.property(fc.uint8Array(), refused));
  fc.assert(fc.property(fc.json(), (text) => refused(new TextEncoder().encode(text))));
  refused(new Uint8Array(BUNDLE_BYTES_MAX + 1));
});

test('inclusionLeaf() names the manifest and the endorsement, whatever the order of its members', () => {
  const [{ bundle, digest } = assert.fail()] = valid;
  const { endorsement } = bundle;
  const reordered = Object.fromEntries(Object.entries(endorsement).toReversed()) as unknown as typeof endorsement;
  const manifest = digestOf(Uint8Array.fromBase64(bundle.manifest));
  assert.equal(manifest, digest);
  assert.deepEqual(inclusionLeaf(manifest, reordered), inclusionLeaf(manifest, endorsement));
  assert.notDeepEqual(
    inclusionLeaf(manifest, { ...endorsement, committee: manifest }),
    inclusionLeaf(manifest, endorsement),
  );
});
