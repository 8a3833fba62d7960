import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, realpath, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { utf8 } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import { decodeLock, encodeLock, type Lock } from '../../wire/lock.ts';
import { assetId, type PackageName } from '../../wire/names.ts';
import { encodeTree, type TreeSource } from '../../wire/tree.ts';
import { openAssets } from './index.ts';

type Store = Awaited<ReturnType<typeof openAssets>>;

async function folder(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'hm-install-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function opened(t: TestContext) {
  const directory = await folder(t);
  const clock = { ms: 1_000, nowMs: () => clock.ms };
  const store = await openAssets({ directory: join(directory, 'home'), clock });
  t.after(() => store[Symbol.asyncDispose]());
  return { store, clock, root: join(directory, 'root'), directory };
}

function sources(note: string): TreeSource[] {
  const file = (path: string, content: Uint8Array, executable = false): TreeSource => ({
    entry: { path, kind: 'file', size: content.length, executable },
    content,
  });
  return [
    { entry: { path: 'bin', kind: 'directory', size: 0, executable: false } },
    file('bin/run', utf8(`#!/bin/sh\necho ${note}\n`), true),
    file('empty', new Uint8Array()),
    { entry: { path: 'hollow', kind: 'directory', size: 0, executable: false } },
    { entry: { path: 'link', kind: 'symlink', size: 0, executable: false, target: 'bin/run' } },
    file(
      'long',
      new Uint8Array(2_500_000).map((_, i) => (i * 7 + note.length) & 255),
    ),
    file('note.txt', utf8(note)),
  ];
}

async function layerOf(store: Store, note: string): Promise<Digest> {
  return (await store.putTree(encodeTree(sources(note)))).digest;
}

/** A lock of packages, each given as `name@version` with the layer that holds it. */
function lockOf(layers: Readonly<Record<string, Digest>>): Lock {
  const packages = Object.entries(layers).map(([ref, layer]) => {
    const [name, version] = ref.split('@') as [PackageName, string];
    const digest = digestOf(utf8(`${ref} ${layer}`));
    return { name, version, digest, id: assetId('package', digest), layers: [layer], dependencies: [] };
  });
  return { formatVersion: 1, requested: Object.fromEntries(packages.map(({ name }) => [name, '*'])), packages };
}

const refuses = (work: Promise<unknown>, code: ErrorCode, says = /./) =>
  assert.rejects(work, (error) => isCoded(error, code) && says.test(error.message));

test('install() puts exactly the files of each package in place, with their modes and links', async (t) => {
  const { store, root } = await opened(t);
  const umask = process.umask(0o077);
  t.after(() => process.umask(umask));
  const lock = lockOf({ 'ada/x@1.0.0': await layerOf(store, 'x'), 'bob/y@2.0.0': await layerOf(store, 'y') });
  const installation = await store.install(root, lock);
  assert.equal(installation.generation, 1);
  const [x] = installation.packages;
  assert.equal(await realpath(join(root, 'packages/ada/x')), await realpath(x!.path));
  for (const { entry, content } of sources('x')) {
    const path = join(x!.path, entry.path);
    const found = await lstat(path);
    if (entry.kind === 'file') {
      assert.deepEqual(new Uint8Array(await readFile(path)), content);
      assert.equal(found.mode & 0o7777, entry.executable ? 0o755 : 0o644, entry.path);
    } else if (entry.kind === 'symlink') assert.equal(await readlink(path), entry.target);
    else assert.equal(found.mode & 0o7777, 0o755);
  }
  assert.deepEqual(decodeLock(await readFile(join(root, 'hypermesh.lock'), 'utf8')), lock);
  assert.deepEqual(await store.installation(root), installation);
  assert.deepEqual(await store.checkInstallation(root), []);
  assert.deepEqual(await store.install(root, lock), installation);
  await rm(join(root, '.hypermesh/trees', lock.packages[0]!.layers[0]!.slice(7)), { recursive: true });
  assert.equal((await store.checkInstallation(root))[0]?.problem, 'is missing');
  assert.deepEqual(await store.install(root, lock), installation);
  assert.deepEqual(await store.checkInstallation(root), []);
});

test('install() replaces the whole set, reuses trees, and history goes back three generations', async (t) => {
  const { store, root } = await opened(t);
  const shared = await layerOf(store, 'shared');
  const locks: Lock[] = [];
  for (let i = 1; i <= 6; i++) {
    locks.push(lockOf({ 'ada/same@1.0.0': shared, [`ada/other@${i}.0.0`]: await layerOf(store, `other ${i}`) }));
    assert.equal((await store.install(root, locks.at(-1)!)).generation, i);
  }
  assert.equal(await readFile(join(root, 'packages/ada/other/note.txt'), 'utf8'), 'other 6');
  const history = await store.installationHistory(root);
  assert.deepEqual(
    history.map(({ generation }) => generation),
    [6, 5, 4, 3],
  );
  assert.equal((await readdir(join(root, '.hypermesh/trees'))).length, 5);
  const back = await store.install(root, history[1]!.lock);
  assert.equal(back.generation, 7);
  assert.equal(await readFile(join(root, 'packages/ada/other/note.txt'), 'utf8'), 'other 5');
  assert.deepEqual((await store.install(root, lockOf({}))).packages, []);
  assert.deepEqual(await readdir(join(root, 'packages')), ['lock.json']);
});

test('install() refuses bad roots, bad locks and missing content, and leaves nothing half-done', async (t) => {
  const { store, root, directory } = await opened(t);
  const good = lockOf({ 'ada/x@1.0.0': await layerOf(store, 'x') });
  await writeFile(join(directory, 'file'), '');
  await refuses(store.install('relative', good), 'usage', /absolute/);
  await refuses(store.install('/tmp/a\0b', good), 'usage');
  await refuses(store.install(join(directory, 'file'), good), 'usage', /a file/);
  await refuses(store.install(join(directory, 'file/below'), good), 'usage', /a file/);
  await refuses(store.install(root, { ...good, formatVersion: 2 } as never), 'lock-invalid');
  await mkdir(join(root, 'packages'), { recursive: true });
  await refuses(store.install(root, good), 'usage', /not made by an installation/);
  await rm(join(root, 'packages'), { recursive: true });
  await symlink('/etc', join(root, 'packages'));
  await refuses(store.install(root, good), 'usage', /not made by an installation/);
  await rm(join(root, 'packages'));
  assert.equal(await store.installation(root), null);
  await store.install(root, good);
  const before = await store.installation(root);
  const absent = `sha256:${'0'.repeat(64)}` as Digest;
  await refuses(store.install(root, lockOf({ 'ada/x@1.0.0': absent })), 'blob-not-found', /ada\/x@1\.0\.0/);
  const plain = await store.put(
    encodeTree([{ entry: { path: 'a', kind: 'file', size: 1, executable: false }, content: utf8('a') }]),
  );
  const damaged = (
    await store.put(
      (async function* () {
        yield utf8('not a tree at all');
      })(),
    )
  ).digest;
  await refuses(store.install(root, lockOf({ 'ada/a@1.0.0': plain.digest, 'ada/b@1.0.0': damaged })), 'tree-invalid');
  await refuses(
    store.install(root, lockOf({ 'ada/b@2.0.0': plain.digest }), { signal: AbortSignal.abort() }),
    'cancelled',
  );
  await refuses(store.install(root, good, { expectGeneration: 7 }), 'installation-changed');
  assert.deepEqual(await store.installation(root), before);
  assert.deepEqual(await readdir(join(root, '.hypermesh/temporary')), []);
  assert.deepEqual(await readdir(join(root, '.hypermesh/generations')), ['1']);
});

test('prepareInstallation() writes the trees and changes nothing that is installed', async (t) => {
  const { store, root } = await opened(t);
  const lock = lockOf({ 'ada/x@1.0.0': await layerOf(store, 'x') });
  await store.prepareInstallation(root, lock);
  assert.equal(await store.installation(root), null);
  const [name] = await readdir(join(root, '.hypermesh', 'trees'));
  const tree = join(root, '.hypermesh', 'trees', name!);
  const { ino } = await lstat(tree);
  await store.install(root, lock);
  assert.equal((await lstat(tree)).ino, ino, 'the prepared tree is used');
  assert.deepEqual(await store.checkInstallation(root), []);

  const next = lockOf({ 'ada/x@2.0.0': await layerOf(store, 'x2') });
  await store.prepareInstallation(root, next);
  assert.equal((await store.installation(root))!.packages[0]!.version, '1.0.0');
  const other = lockOf({ 'ada/x@3.0.0': await layerOf(store, 'x3') });
  await store.install(root, other);
  const trees = await readdir(join(root, '.hypermesh', 'trees'));
  assert.equal(trees.length, 2, 'what was prepared and not installed goes with the next change');
});

test('prepareInstallation() is not believed when another folder has taken the place of the prepared one', async (t) => {
  const { store, root } = await opened(t);
  const lock = lockOf({ 'ada/x@1.0.0': await layerOf(store, 'x') });
  await store.prepareInstallation(root, lock);
  const trees = join(root, '.hypermesh', 'trees');
  const [name] = await readdir(trees);
  await mkdir(join(trees, 'forged'));
  await writeFile(join(trees, 'forged', 'note.txt'), 'forged');
  await rm(join(trees, name!), { recursive: true });
  fs.renameSync(join(trees, 'forged'), join(trees, name!));
  await store.install(root, lock);
  assert.deepEqual(await store.checkInstallation(root), []);
});

test('installation() is null where nothing is installed', async (t) => {
  const { store, root, directory } = await opened(t);
  assert.equal(await store.installation(root), null);
  assert.equal(await store.installation(directory), null);
  assert.deepEqual(await store.installationHistory(root), []);
  await refuses(store.checkInstallation(root), 'not-installed');
  await refuses(store.installation('x'), 'usage');
});

test('install() at the same time: one after the other, and who expected another generation is told', async (t) => {
  const { store, root } = await opened(t);
  const locks = await Promise.all(
    ['a', 'b', 'c'].map(async (note) => lockOf({ 'ada/x@1.0.0': await layerOf(store, note) })),
  );
  const done = await Promise.all(locks.map((lock) => store.install(root, lock)));
  assert.deepEqual(done.map(({ generation }) => generation).sort(), [1, 2, 3]);
  const both = await Promise.allSettled(
    locks.slice(0, 2).map((lock) => store.install(root, lock, { expectGeneration: 3 })),
  );
  assert.deepEqual(both.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
});

test('checkInstallation() finds every kind of difference', async (t) => {
  const { store, root } = await opened(t);
  const { packages } = await store.install(root, lockOf({ 'ada/x@1.0.0': await layerOf(store, 'x') }));
  const at = (path: string) => join(packages[0]!.path, path);
  const changes: [string, string, () => void][] = [
    ['note.txt', 'has other bytes', () => fs.writeFileSync(at('note.txt'), 'y')],
    ['long', 'has other bytes', () => fs.writeFileSync(at('long'), fs.readFileSync(at('long')).fill(1, 2_499_999))],
    ['bin/run', 'has mode 0644 instead of 0755', () => fs.chmodSync(at('bin/run'), 0o644)],
    ['empty', 'has 3 bytes instead of 0', () => fs.writeFileSync(at('empty'), 'abc')],
    ['hollow/more', 'is not part of the package', () => fs.writeFileSync(at('hollow/more'), '')],
  ];
  for (const [path, problem, change] of changes) {
    change();
    assert.ok(
      (await store.checkInstallation(root)).some((one) => one.path === at(path) && one.problem === problem),
      path,
    );
  }
  fs.rmSync(at('link'));
  fs.symlinkSync('/etc/passwd', at('link'));
  fs.rmSync(at('long'));
  const problems = (await store.checkInstallation(root)).map(({ problem }) => problem);
  assert.deepEqual(problems.filter((problem) => /lead|missing/.test(problem)).sort(), [
    'does not lead to bin/run',
    'is missing',
  ]);
});

test('what is installed counts as a dependent, and its blobs are kept while the root exists', async (t) => {
  const { store, clock, root } = await opened(t);
  const layer = await layerOf(store, 'x');
  const old = await layerOf(store, 'old');
  await store.install(root, lockOf({ 'ada/x@0.1.0': old }));
  await store.install(root, lockOf({ 'ada/x@1.0.0': layer }));
  clock.ms += 3_600_001;
  assert.equal((await store.collect()).blobsRemoved, 0);
  await rm(root, { recursive: true });
  assert.equal((await store.collect()).blobsRemoved, 2);
});

test('a crash anywhere leaves the set before or after; the next look heals it', async (t) => {
  const { store, root } = await opened(t);
  const [first, second] = [
    lockOf({ 'ada/x@1.0.0': await layerOf(store, 'one') }),
    lockOf({ 'ada/x@2.0.0': await layerOf(store, 'two') }),
  ];
  await store.install(root, first);
  const inside = (path: string) => join(root, '.hypermesh', path);
  // Before the switch: half a tree, a complete tree, a complete generation, links to be.
  fs.mkdirSync(inside('temporary/half/deep'), { recursive: true });
  fs.cpSync(inside('generations/1'), inside('generations/2'), { recursive: true, verbatimSymlinks: true });
  fs.symlinkSync('.hypermesh/generations/2', inside('temporary/link'));
  assert.equal((await store.installation(root))?.generation, 1);
  assert.deepEqual([fs.readdirSync(inside('temporary')), fs.readdirSync(inside('generations'))], [[], ['1']]);
  // After it: the lock file is still the one before, or gone; one that a person wrote stays.
  assert.equal((await store.install(root, second)).generation, 2);
  for (const text of [encodeLock(first), null, 'mine']) {
    if (text === null) fs.rmSync(join(root, 'hypermesh.lock'));
    else fs.writeFileSync(join(root, 'hypermesh.lock'), text);
    assert.equal((await store.installation(root))?.generation, 2);
    assert.equal(fs.readFileSync(join(root, 'hypermesh.lock'), 'utf8'), text === 'mine' ? 'mine' : encodeLock(second));
  }
});

test('killed at random moments, an installation is always one whole set', {
  timeout: 900_000,
}, async (t) => {
  const directory = await folder(t);
  const [home, root] = [join(directory, 'home'), join(directory, 'root')];
  const clock = { nowMs: () => 1_000 };
  const locks: Lock[] = [];
  {
    await using store = await openAssets({ directory: home, clock });
    for (const note of ['one', 'two', 'three', 'four', 'five', 'six'])
      locks.push(
        lockOf({ 'ada/x@1.0.0': await layerOf(store, note), [`ada/${note}@1.0.0`]: await layerOf(store, `${note}!`) }),
      );
    await store.install(root, locks[0]!);
  }
  const program = `
    const { openAssets } = await import(${JSON.stringify(new URL('./index.ts', import.meta.url).href)});
    const store = await openAssets({ directory: ${JSON.stringify(home)}, clock: { nowMs: () => 1000 } });
    const locks = ${JSON.stringify(locks)};
    process.stdout.write('ready');
    for (let i = 1; ; i++) {
      await store.install(${JSON.stringify(root)}, locks[i % locks.length]);
      process.stdout.write('.');
    }`;
  const seed = Date.now() % 100_000;
  t.diagnostic(`seed ${seed}`);
  let [state, switched] = [seed, 0];
  for (let kill = 0; kill < 6; kill++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    // However slow the machine is, some get as far as a switch.
    if (kill % 2 === 1) await once(child.stdout, 'data');
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    await new Promise((resolve) => setTimeout(resolve, state % 400));
    child.kill('SIGKILL');
    await once(child, 'exit');
    await using store = await openAssets({ directory: home, clock });
    const installation = (await store.installation(root))!;
    switched = Math.max(switched, installation.generation);
    assert.ok(locks.some((lock) => encodeLock(lock) === encodeLock(installation.lock)));
    assert.equal(fs.readFileSync(join(root, 'hypermesh.lock'), 'utf8'), encodeLock(installation.lock));
    assert.deepEqual(await store.checkInstallation(root), []);
    assert.deepEqual(await readdir(join(root, '.hypermesh/temporary')), []);
  }
  assert.ok(switched > 1, 'no child got as far as a switch');
});
