import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { type Folder, SMALL_NETWORK, temporaryFolder, writePackage } from '../../test/system/support.ts';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { HyperMesh, verifyBundleOffline } from '../hypermesh.ts';
import { type Bundle, decodeBundle, encodeBundle } from '../wire/bundle.ts';

let folder: Folder;
let bundle: Bundle;
let other: Bundle;

before(async () => {
  folder = await temporaryFolder();
  bundle = await published(join(folder.path, 'a'));
  other = await published(join(folder.path, 'b'));
});

after(() => folder[Symbol.asyncDispose]());

async function published(place: string): Promise<Bundle> {
  await using hypermesh = await HyperMesh.create({ home: join(place, 'home'), network: SMALL_NETWORK });
  const catalog = await hypermesh.loadExtension('catalog');
  const source = await writePackage(
    join(place, 'source'),
    { name: 'verify/me', version: '1.0.0', type: 'library' },
    { 'a.txt': place },
  );
  await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source)));
  return await catalog.bundle('verify/me');
}

type Tree = { [key: string]: unknown };

/** Every value inside, as a path of keys. */
function* leaves(value: unknown, path: readonly string[] = []): Iterable<readonly string[]> {
  if (value !== null && typeof value === 'object') {
    for (const [key, member] of Object.entries(value)) yield* leaves(member, [...path, key]);
  } else {
    yield path;
  }
}

function altered(value: unknown): unknown {
  switch (typeof value) {
    case 'number':
      return value + 1;
    case 'boolean':
      return !value;
    case 'string': {
      // One character in the middle: what it says changes, its length and alphabet do not.
      const at = Math.floor(value.length / 2);
      return value.slice(0, at) + (value[at] === 'a' ? 'b' : 'a') + value.slice(at + 1);
    }
    default:
      return 0;
  }
}

function withAltered(original: Bundle, path: readonly string[]): Bundle {
  const copy = JSON.parse(canonicalJson(original)) as Tree;
  const parent = path.slice(0, -1).reduce<Tree>((node, key) => node[key] as Tree, copy);
  parent[path.at(-1)!] = altered(parent[path.at(-1)!]);
  return copy as unknown as Bundle;
}

test('verifyBundleOffline() names everything that it established', async () => {
  const result = await verifyBundleOffline(decodeBundle(encodeBundle(bundle)), { network: bundle.network.id });
  assert.deepEqual(
    result.checks.map((row) => row.check),
    ['manifest', 'network', 'signature', 'space', 'stake', 'work', 'time', 'endorsement', 'log'],
  );
  assert.equal(result.ref, 'verify/me@1.0.0');
});

test('verifyBundleOffline() refuses a bundle in which any one value is altered', { timeout: 900_000 }, async (t) => {
  const paths = [...leaves(bundle)];
  t.diagnostic(`${paths.length} values`);
  for (const path of paths) {
    await assert.rejects(
      async () =>
        verifyBundleOffline(decodeBundle(utf8(canonicalJson(withAltered(bundle, path)))), {
          network: bundle.network.id,
        }),
      (error: unknown) => isCoded(error) && error.code !== 'internal',
      `${path.join('.')} can be altered`,
    );
  }
});

test('verifyBundleOffline() refuses parts of another bundle, however genuine', async () => {
  for (const key of ['manifest', 'config', 'signature', 'proofs', 'endorsement', 'inclusion', 'network'] as const) {
    const mixed = { ...bundle, [key]: other[key] };
    await assert.rejects(
      verifyBundleOffline(mixed, { network: bundle.network.id }),
      (error: unknown) => isCoded(error),
      key,
    );
  }
  await assert.rejects(verifyBundleOffline(other, { network: bundle.network.id }), (error: unknown) =>
    isCoded(error, 'network-mismatch'),
  );
});

test('decodeBundle() refuses truncated, re-encoded and oversized bytes', () => {
  const bytes = encodeBundle(bundle);
  for (const bad of [
    bytes.subarray(0, bytes.length - 1),
    bytes.subarray(0, 100),
    new Uint8Array(),
    utf8(` ${fromUtf8(bytes)}`),
    utf8(JSON.stringify(JSON.parse(fromUtf8(bytes)), null, 1)),
    utf8(canonicalJson({ ...bundle, formatVersion: bundle.formatVersion - 1 })),
    utf8(canonicalJson({ ...bundle, formatVersion: bundle.formatVersion + 1 })),
    utf8(fromUtf8(bytes).replace('{', '{"extra":1,')),
    new Uint8Array(9 * 2 ** 20),
  ]) {
    assert.throws(
      () => decodeBundle(bad),
      (error: unknown) => isCoded(error, 'bundle-invalid'),
    );
  }
});
