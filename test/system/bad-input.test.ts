import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmod, copyFile, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { freshHome, type Home, writePackage } from './support.ts';

/**
 * What goes wrong in people's hands, through the command they use: each refusal has a code, says what came and what to do, ends with
 * the status of its class, and leaves the catalog as it was.
 */

interface Refusal {
  readonly error: { readonly code: string; readonly message: string; readonly hint?: string };
}

let home: Home;
let n = 0;

before(async () => {
  home = await freshHome();
  await home.json(['up', '--detach']);
});

after(() => home[Symbol.asyncDispose]());

const MANIFEST = { name: 'bad/input', version: '1.0.0', type: 'library' };

async function refuses(args: readonly string[], status: number, code: string, says: RegExp): Promise<void> {
  const before = await home.json(['search']);
  const { error } = await home.json<Refusal>(args, status);
  assert.equal(error.code, code, error.message);
  assert.match(`${error.message} ${error.hint ?? ''}`, says);
  assert.deepEqual(await home.json(['search']), before, 'the refusal changed the catalog');
}

function place(): string {
  return join(home.folder, `input-${n++}`);
}

async function folderOf(
  manifest: Readonly<Record<string, unknown>>,
  files: Readonly<Record<string, string>> = {},
): Promise<string> {
  return writePackage(place(), manifest, files);
}

async function folderWithYaml(yaml: string): Promise<string> {
  const folder = place();
  await mkdir(folder);
  await writeFile(join(folder, 'catalog.yaml'), yaml);
  return folder;
}

describe('a manifest', () => {
  const yaml: readonly (readonly [string, string, string, RegExp])[] = [
    ['with an unknown key', 'name: bad/input\nversion: 1.0.0\nverison: 2\n', 'manifest-invalid', /line 3|:3:|3:/],
    ['with a wrong type', 'name: bad/input\nversion: [1]\n', 'manifest-invalid', /version/],
    ['with an invalid version', 'name: bad/input\nversion: one\n', 'manifest-invalid', /semantic version/],
    [
      'that is a YAML bomb',
      `a: &a [x,x]\n${['b', 'c', 'd'].map((k, i) => `${k}: &${k} [*${'abc'[i]},*${'abc'[i]}]`).join('\n')}\n`,
      'manifest-invalid',
      /alias|anchor|unknown|line/i,
    ],
    [
      'of 10 MB',
      `name: bad/input\nversion: 1.0.0\ndescription: ${'x'.repeat(10_000_000)}\n`,
      'manifest-invalid',
      /256 KiB|larger|at most/,
    ],
    ['that is not YAML', '{{{{', 'manifest-invalid', /YAML|line|1:/],
    [
      'with a missing entry',
      'name: bad/input\nversion: 1.0.0\nlanguage: wasm\nentry: gone.wasm\n',
      'entry-missing',
      /gone\.wasm/,
    ],
    [
      'that depends on itself',
      'name: bad/input\nversion: 1.0.0\ndependencies: {bad/input: "*"}\n',
      'manifest-invalid',
      /itself/,
    ],
  ];
  for (const [what, text, code, says] of yaml) {
    test(what, async () => refuses(['publish', await folderWithYaml(text)], 3, code, says));
  }

  test('that is not there', async () => {
    const folder = place();
    await mkdir(folder);
    await refuses(['publish', folder], 3, 'manifest-missing', /catalog\.yaml/);
  });

  test('with a dependency that does not exist', async () =>
    refuses(
      ['publish', await folderOf({ ...MANIFEST, dependencies: { 'no/such': '^1.0.0' } })],
      6,
      'dependency-conflict',
      /no\/such/,
    ));

  test('of a version that was published with other content', async () => {
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'bad/twice' }, { 'a.txt': 'one' })]);
    await refuses(
      ['publish', await folderOf({ ...MANIFEST, name: 'bad/twice' }, { 'a.txt': 'two' })],
      6,
      'version-exists',
      /raise `version`/,
    );
  });

  test('that closes a cycle of dependencies', async () => {
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'cycle/a' })]);
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'cycle/b', dependencies: { 'cycle/a': '*' } })]);
    const closing = await folderOf({
      ...MANIFEST,
      name: 'cycle/a',
      version: '2.0.0',
      dependencies: { 'cycle/b': '*' },
    });
    await refuses(['publish', closing], 3, 'dependency-cycle', /cycle\/a.*cycle\/b/);
  });
});

describe('a tree', () => {
  test('with a link out of the folder', async () => {
    const folder = await folderOf(MANIFEST);
    await symlink('../../etc', join(folder, 'out'));
    await refuses(['publish', folder], 3, 'tree-invalid', /out/);
  });

  test('with an absolute link', async () => {
    const folder = await folderOf(MANIFEST);
    await symlink('/etc/passwd', join(folder, 'abs'));
    await refuses(['publish', folder], 3, 'tree-invalid', /abs/);
  });

  test('with a fifo', async () => {
    const folder = await folderOf(MANIFEST);
    spawnSync('mkfifo', [join(folder, 'pipe')]);
    await refuses(['publish', folder], 3, 'tree-invalid', /pipe/);
  });

  test('with names that differ only by case', async () =>
    refuses(
      ['publish', await folderOf(MANIFEST, { 'Read.txt': 'a', 'read.txt': 'b' })],
      3,
      'tree-invalid',
      /[Rr]ead\.txt/,
    ));

  test('with names that differ only by Unicode form', async () =>
    refuses(
      ['publish', await folderOf(MANIFEST, { '\u00e9.txt': 'a', 'e\u0301.txt': 'b' })],
      3,
      'tree-invalid',
      /differ|clash|same/i,
    ));
});

describe('a packed file', () => {
  async function packed(): Promise<string> {
    const file = `${place()}.hmp`;
    await home.json([
      'pack',
      await folderOf({ ...MANIFEST, name: 'bad/packed' }, { 'a.txt': 'content '.repeat(1_000) }),
      '--out',
      file,
    ]);
    return file;
  }

  test('that is truncated', async () => {
    const file = await packed();
    const bytes = await readFile(file);
    await writeFile(file, bytes.subarray(0, bytes.length / 2));
    await refuses(['publish', file], 3, 'package-file-invalid', /./);
  });

  test('with a bit flipped anywhere', async () => {
    const file = await packed();
    const bytes = await readFile(file);
    for (const at of [0, 0.2, 0.5, 0.8].map((part) => Math.floor(part * bytes.length))) {
      const bad = Buffer.from(bytes);
      bad[at]! ^= 1;
      await writeFile(file, bad);
      await refuses(['publish', file], 3, 'package-file-invalid', /./);
    }
  });
});

describe('a bundle file', () => {
  test('that is truncated or altered is refused offline, without a home', async () => {
    const file = `${place()}.bundle`;
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'bad/bundle' }), '--bundle', file]);
    const fine = await home.json<{ ref: string }>(['verify', file, '--offline']);
    assert.equal(fine.ref, 'bad/bundle@1.0.0');

    const bytes = await readFile(file);
    await writeFile(file, bytes.subarray(0, bytes.length - 10));
    assert.equal((await home.json<Refusal>(['verify', file, '--offline'], 7)).error.code, 'bundle-invalid');
    for (const part of [0.1, 0.4, 0.7, 0.95]) {
      const bad = Buffer.from(bytes);
      bad[Math.floor(part * bad.length)]! ^= 1;
      await writeFile(file, bad);
      const { error } = await home.json<Refusal>(['verify', file, '--offline'], 7);
      assert.notEqual(error.code, 'internal');
    }
  });
});

describe('what is asked for', () => {
  test('does not exist', async () => refuses(['install', 'no/such'], 5, 'package-not-found', /search/));
  test('has no such version', async () => refuses(['info', 'cycle/a@^9.0.0'], 5, 'version-not-found', /1\.0\.0/));
  test('is no reference', async () => refuses(['install', 'Not A Ref'], 2, 'usage', /scope\/name/));
  test('is not a program', async () => refuses(['run', 'cycle/a'], 3, 'not-runnable', /language/));
  test('is depended upon and cannot be deleted', async () =>
    refuses(['delete', 'cycle/a@1.0.0'], 6, 'has-dependents', /cycle\/b/));
  test('cannot be satisfied together', async () => {
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'fit/c', version: '1.0.0' })]);
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'fit/c', version: '2.0.0' })]);
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'fit/a', dependencies: { 'fit/c': '^1.0.0' } })]);
    await home.json(['publish', await folderOf({ ...MANIFEST, name: 'fit/b', dependencies: { 'fit/c': '^2.0.0' } })]);
    await refuses(
      ['install', 'fit/a', 'fit/b'],
      6,
      'dependency-conflict',
      /fit\/a.*fit\/c.*fit\/b|fit\/b.*fit\/c.*fit\/a/s,
    );
  });
});

describe('a home', () => {
  test('that is open already', async () => {
    const { error } = await home.json<Refusal>(['up', '--detach'], 6);
    assert.equal(error.code, 'home-in-use');
  });

  test('that is a file', async () => {
    const file = place();
    await copyFile(import.meta.filename, file);
    const { error } = await home.json<Refusal>(['search', '--home', file], 10);
    assert.match(error.code, /^storage-/);
  });

  test('whose keys others can read', async () => {
    await using loose = await freshHome();
    await loose.json(['search']);
    const keys = spawnSync('find', [loose.home, '-name', '*.key', '-o', '-name', 'key*'], { encoding: 'utf8' })
      .stdout.trim()
      .split('\n');
    assert.ok(keys[0], 'no key file found');
    for (const file of keys) await chmod(file, 0o644);
    const { error } = await loose.json<Refusal>(['keys'], 7);
    assert.equal(error.code, 'key-invalid');
  });

  test('with a wrong passphrase', async () => {
    await using locked = await freshHome({ HYPERMESH_PASSPHRASE: 'right' });
    await locked.json(['search']);
    const file = join(locked.folder, 'passphrase');
    await writeFile(file, 'wrong\n', { mode: 0o600 });
    const { error } = await locked.json<Refusal>(['search', '--passphrase-file', file], 4);
    assert.equal(error.code, 'key-locked');
  });
});
