import assert from 'node:assert/strict';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { type Folder, SMALL_NETWORK, temporaryFolder, writePackage } from '../../test/system/support.ts';
import { isCoded } from '../base/errors.ts';
import { HyperMesh } from '../hypermesh.ts';
import type { SignedPackage } from './api.ts';
import type { CatalogExtension } from './extension.ts';

let folder: Folder;
let hypermesh: HyperMesh;
let catalog: CatalogExtension;
let nowMs = Date.parse('2026-06-01T00:00:00Z');
let n = 0;

before(async () => {
  folder = await temporaryFolder();
  hypermesh = await HyperMesh.create({
    home: join(folder.path, 'home'),
    network: SMALL_NETWORK,
    clock: { nowMs: () => nowMs },
  });
  catalog = await hypermesh.loadExtension('catalog');
});

after(async () => {
  await hypermesh.close();
  await folder[Symbol.asyncDispose]();
});

async function signed(name: string, version: string, content: string): Promise<SignedPackage> {
  const manifest = { name, version, type: 'library' };
  const source = await writePackage(join(folder.path, `source-${n++}`), manifest, { 'content.txt': content });
  return catalog.signPackage(await hypermesh.stageFolder(source));
}

const refuses = (work: Promise<unknown>, ...codes: Parameters<typeof isCoded>[1][]) =>
  assert.rejects(work, (error: unknown) => isCoded(error, ...codes));

test('publishPackage() takes nothing from the caller that the signature does not say', async () => {
  const mine = await signed('forge/mine', '1.0.0', 'mine');
  const other = await signed('forge/other', '1.0.0', 'other');
  await refuses(catalog.publishPackage({ ...mine, envelope: other.envelope }), 'bundle-invalid');
  await refuses(catalog.publishPackage({ ...mine, digest: other.digest, config: other.config }), 'bundle-invalid');
  await refuses(catalog.publishPackage({ ...mine, config: other.config }), 'package-file-invalid', 'blob-mismatch');
  const [falcon, ed25519] = mine.envelope.signatures;
  await refuses(
    catalog.publishPackage({ ...mine, envelope: { ...mine.envelope, signatures: [falcon!] } }),
    'signature-invalid',
  );
  await refuses(
    catalog.publishPackage({ ...mine, envelope: { ...mine.envelope, signatures: [ed25519!, falcon!] } }),
    'signature-invalid',
  );
  // A name and a layer that only the caller claims change nothing.
  const published = await catalog.publishPackage({
    ...mine,
    manifest: other.manifest,
    layer: other.layer,
    ref: 'forge/else@9.9.9',
  });
  assert.deepEqual([published.name, published.digest], ['forge/mine', mine.digest]);
  await refuses(catalog.resolve('forge/other'), 'package-not-found');
});

test('publishPackage() at the same moment: the same content is one package, other content is refused', async () => {
  const one = await signed('race/same', '1.0.0', 'a');
  const results = await Promise.all([catalog.publishPackage(one), catalog.publishPackage(one)]);
  assert.equal(results[0].bundle, results[1].bundle);
  await catalog.verify({ ref: 'race/same' });

  const rivals = [await signed('race/rival', '1.0.0', 'a'), await signed('race/rival', '1.0.0', 'b')];
  const settled = await Promise.allSettled(rivals.map((rival) => catalog.publishPackage(rival)));
  assert.deepEqual(settled.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
  const lost = settled.find((outcome) => outcome.status === 'rejected')!;
  assert.ok(isCoded(lost.reason, 'version-exists'));
  await catalog.verify({ ref: 'race/rival' });
});

test('publishPackage() again makes a package whole whose bundle was lost, once', async () => {
  const lost = await signed('lost/bundle', '1.0.0', 'content');
  const first = await catalog.publishPackage(lost);
  const digits = first.bundle.slice('sha256:'.length);
  const files = await readdir(join(folder.path, 'home', 'assets'), { recursive: true });
  const file = files.find((name) => name.endsWith(digits) || name.endsWith(digits.slice(2)))!;
  await rm(join(folder.path, 'home', 'assets', file));
  await refuses(catalog.verify({ ref: 'lost/bundle' }), 'blob-not-found');

  const second = await catalog.publishPackage(lost);
  assert.deepEqual([second.id, second.created], [first.id, false]);
  assert.notEqual(second.bundle, first.bundle);
  assert.equal((await catalog.resolve('lost/bundle')).bundle, second.bundle);
  await catalog.verify({ ref: 'lost/bundle' });
  assert.equal((await catalog.publishPackage(lost)).bundle, second.bundle);
});

test('publishPackage() that was cut short continues with the proofs it had made, or makes fresh ones when they are too old', async () => {
  for (const waitMs of [0, 3_600_000]) {
    const half = await signed(`cut/after-${waitMs}`, '1.0.0', String(waitMs));
    const cut = new AbortController();
    const onProgress = ({ step }: { readonly step: string }) => {
      if (step === 'admit') cut.abort();
    };
    await refuses(catalog.publishPackage(half, { signal: cut.signal, onProgress }), 'cancelled');
    nowMs += waitMs;

    const steps = new Set<string>();
    const result = await catalog.publishPackage(half, { onProgress: ({ step }) => void steps.add(step) });
    assert.equal(result.created, true);
    assert.equal(steps.has('stake'), waitMs > 0, [...steps].join());
    await catalog.verify({ ref: `cut/after-${waitMs}` });
  }
});

test("setState() and delete() are the publisher's; what is depended upon stays", async () => {
  await catalog.publishPackage(await signed('keep/base', '1.0.0', 'base'));
  const manifest = { name: 'keep/user', version: '1.0.0', type: 'library', dependencies: { 'keep/base': '^1.0.0' } };
  const source = await writePackage(join(folder.path, `source-${n++}`), manifest);
  await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source)));
  await refuses(catalog.delete('keep/base'), 'has-dependents');
  await catalog.setState('keep/base@1.0.0', 'yanked', 'testing');
  await refuses(catalog.resolve('keep/base'), 'version-not-found');
  await refuses(catalog.install(['keep/user'], { root: join(folder.path, 'here') }), 'dependency-conflict');
  await catalog.setState('keep/base@1.0.0', 'published', null);
  await catalog.install(['keep/user'], { root: join(folder.path, 'here') });
  await refuses(catalog.delete('keep/user'), 'has-dependents');
  await catalog.uninstall(['keep/user'], { root: join(folder.path, 'here') });
  await catalog.delete('keep/user');
  await catalog.delete('keep/base');
  await refuses(catalog.resolve('keep/base'), 'package-not-found');
});
