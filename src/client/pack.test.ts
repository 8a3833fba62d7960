import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { concat } from '../base/bytes.ts';
import { digestOf } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { parseManifest } from '../wire/manifest-text.ts';
import { decodeTree, type TreeEntry } from '../wire/tree.ts';
import { packFolder } from './folder.ts';
import { readPackageFile, writePackageFile } from './pack.ts';

function folder(t: TestContext, files: Record<string, string | Uint8Array> = {}): string {
  const path = mkdtempSync(join(tmpdir(), 'hm-pack-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  for (const [name, content] of Object.entries({ 'catalog.yaml': 'name: ada/greeter\nversion: 1.2.3\n', ...files })) {
    mkdirSync(join(path, name, '..'), { recursive: true });
    writeFileSync(join(path, name), content);
  }
  return path;
}

async function treeOf(path: string): Promise<Uint8Array> {
  return concat(...(await Array.fromAsync((await packFolder(path)).tree)));
}

async function entriesOf(path: string): Promise<TreeEntry[]> {
  const parts = await Array.fromAsync(decodeTree([await treeOf(path)]));
  return parts.filter((part) => part.kind === 'entry').map((part) => part.entry);
}

const noise = (length: number) =>
  new Uint8Array(createHash('shake256', { outputLength: length }).update('pack').digest());

test('packFolder() gives the same bytes for the same content, on any day and for any order of creation', async (t) => {
  const files: [string, string | Uint8Array][] = [
    ['bin/run', '#!/bin/sh\n'],
    ['data', noise(700_000)],
    ['empty/.keep', ''],
    ['ü.txt', 'ü'],
  ];
  const [a, b] = [folder(t, Object.fromEntries(files)), folder(t, Object.fromEntries(files.toReversed()))];
  for (const path of [a, b]) {
    chmodSync(join(path, 'bin/run'), path === a ? 0o755 : 0o700);
    chmodSync(join(path, 'data'), path === a ? 0o644 : 0o600);
    symlinkSync('bin/run', join(path, 'start'));
    mkdirSync(join(path, 'hollow'));
  }
  utimesSync(join(b, 'data'), 1, 1);
  const packed = await packFolder(a);
  const bytes = concat(...(await Array.fromAsync(packed.tree)));
  assert.equal(packed.bytes, bytes.length);
  assert.equal(packed.files, 6);
  assert.deepEqual(packed.manifest, parseManifest(packed.manifestYaml));
  assert.deepEqual(await treeOf(b), bytes);
  const out = join(b, 'out');
  mkdirSync(out);
  execFileSync('tar', ['xf', '-', '-C', out], { input: bytes });
  execFileSync('/usr/bin/diff', ['-r', a, out]);
});

test('`exclude` and .git stay out', async (t) => {
  const path = folder(t, {
    'catalog.yaml': 'name: ada/x\nversion: 1.0.0\nexclude: ["*.log", build/, "docs/*.tmp", "./node_modules/**"]\n',
    'a.log': '',
    'deep/b.log': '',
    'deep/kept': '',
    'build/x/y': '',
    'docs/a.tmp': '',
    'docs/sub/a.tmp': '',
    'node_modules/.bin/x': '',
    '.git/config': '',
    'sub/.git': 'gitdir: elsewhere',
    '.gitignore': '',
  });
  assert.deepEqual(
    (await entriesOf(path)).map((entry) => entry.path),
    ['.gitignore', 'catalog.yaml', 'deep', 'deep/kept', 'docs', 'docs/sub', 'docs/sub/a.tmp', 'sub'],
  );
});

test('packFolder() refuses what has no place in a package', async (t) => {
  const refusals: [string, string, (path: string) => unknown][] = [
    ['tree-invalid', 'links to the absolute path', (path) => symlinkSync('/etc/passwd', join(path, 'l'))],
    ['tree-invalid', 'outside of the package', (path) => symlinkSync('../x', join(path, 'l'))],
    ['tree-invalid', 'is a pipe', (path) => execFileSync('/usr/bin/mkfifo', [join(path, 'p')])],
    [
      'tree-invalid',
      'differ only by upper and lower case',
      (path) => ['A', 'a'].map((name) => writeFileSync(join(path, name), '')),
    ],
    [
      'tree-invalid',
      'Unicode form',
      (path) => ['\u00e9', 'e\u0301'].map((name) => writeFileSync(join(path, name), '')),
    ],
    ['tree-invalid', 'backslash', (path) => writeFileSync(join(path, 'a\\b'), '')],
    [
      'tree-invalid',
      'not valid UTF-8',
      (path) => writeFileSync(Buffer.concat([Buffer.from(`${path}/`), Buffer.of(0xff)]), ''),
    ],
    ['manifest-missing', 'there is none', (path) => rmSync(join(path, 'catalog.yaml'))],
    [
      'manifest-invalid',
      'at most 262144 bytes',
      (path) => writeFileSync(join(path, 'catalog.yaml'), 'x'.repeat(10_000_000)),
    ],
    ['manifest-invalid', 'UTF-8', (path) => writeFileSync(join(path, 'catalog.yaml'), Buffer.of(0xff))],
    [
      'entry-missing',
      'main.wasm',
      (path) => appendFileSync(join(path, 'catalog.yaml'), 'language: wasm\nentry: main.wasm\n'),
    ],
    ['entry-missing', 'README.md', (path) => appendFileSync(join(path, 'catalog.yaml'), 'readme: README.md\n')],
  ];
  for (const [code, says, spoil] of refusals) {
    const path = folder(t);
    spoil(path);
    await assert.rejects(
      packFolder(path),
      (error) => isCoded(error) && error.code === code && error.message.includes(says),
      says,
    );
  }
  const path = folder(t);
  const server = createServer().listen(join(path, 'socket'));
  await new Promise((resolve) => server.once('listening', resolve));
  await assert.rejects(
    packFolder(path),
    (error) => isCoded(error, 'tree-invalid') && error.message.includes('is a socket'),
  );
  server.close();
  await assert.rejects(packFolder(folder(t, { a: '', b: '' }), { entriesMax: 2 }), (error) =>
    isCoded(error, 'limit-exceeded'),
  );
  await assert.rejects(
    packFolder(folder(t), { signal: AbortSignal.abort() }).then((packed) => Array.fromAsync(packed.tree)),
    (error) => isCoded(error, 'cancelled'),
  );
});

test('packFolder() refuses too many entries in memory that does not grow with how many there may be', (t) => {
  const path = folder(t);
  const entries = 30_000;
  const [name, inFolder] = ['n'.repeat(200), 100];
  for (let i = 1; i < entries; i++) {
    const at = join(path, `${name}${i - (i % inFolder)}`);
    if (i === 1 || i % inFolder === 0) mkdirSync(at);
    else symlinkSync('x', join(at, `${name}${i}`));
  }
  const program = `
    const { packFolder } = await import(${JSON.stringify(new URL('./folder.ts', import.meta.url))});
    const [folder, entriesMax] = process.argv.slice(1);
    const { code } = await packFolder(folder, { entriesMax: Number(entriesMax) }).catch((error) => error);
    process.stdout.write(JSON.stringify({ code, mib: process.resourceUsage().maxRSS / 1024 }));`;
  const refusedAt = (entriesMax: number) => {
    const args = ['--max-semi-space-size=1', '--input-type=module', '--eval', program, path, String(entriesMax)];
    const { code, mib } = JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8' }));
    assert.equal(code, 'limit-exceeded');
    return mib;
  };
  const [few, many] = [refusedAt(100), refusedAt(entries - 1)];
  // To remember all of them took 23 MiB.
  assert.ok(many - few < 10, `${few} MiB to refuse 101 entries, ${many} MiB to refuse ${entries}`);
});

test('a file that changes, grows, goes away or becomes a link after it was listed is noticed', async (t) => {
  for (const size of [1_000, 600_000]) {
    for (const spoil of [
      (file: string) => writeFileSync(file, noise(size).fill(1)),
      (file: string) => appendFileSync(file, 'more'),
      (file: string) => rmSync(file),
      (file: string) => {
        rmSync(file);
        symlinkSync('/etc/passwd', file);
      },
    ]) {
      const path = folder(t, { file: noise(size) });
      utimesSync(join(path, 'file'), 1, 1);
      const { tree } = await packFolder(path);
      spoil(join(path, 'file'));
      await assert.rejects(
        Array.fromAsync(tree),
        (error) => isCoded(error, 'tree-invalid') && error.message.includes('"file"'),
      );
    }
  }
});

test('writePackageFile() and readPackageFile() agree; the file is an OCI layout and leaves itself out', async (t) => {
  const path = folder(t, { 'main.wasm': noise(300_000), 'docs/x': 'x' });
  const file = join(path, 'greeter.pkg');
  const written = await writePackageFile(path, file);
  assert.deepEqual(await writePackageFile(path, file), written, 'the second time the file itself lies in the folder');
  const read = await readPackageFile(file);
  assert.deepEqual([read.digest, read.files, read.manifest.name], [written.digest, 3, 'ada/greeter']);
  assert.equal(readFileSync(file).length, written.bytes);
  assert.deepEqual(parseManifest(read.manifestYaml), read.manifest);
  const tree = concat(...(await Array.fromAsync(read.tree)));
  assert.equal(digestOf(tree), read.config.layers[0]!.digest);
  rmSync(file);
  assert.deepEqual(tree, await treeOf(path));

  await writePackageFile(path, file);
  const out = folder(t);
  execFileSync('tar', ['xf', file, '-C', out]);
  const index = JSON.parse(readFileSync(join(out, 'index.json'), 'utf8')) as { manifests: { digest: string }[] };
  assert.equal(index.manifests[0]!.digest, written.digest);
  for (const name of readdirSync(join(out, 'blobs/sha256'))) {
    assert.equal(digestOf(readFileSync(join(out, 'blobs/sha256', name))), `sha256:${name}`);
  }
});

test('a package file that was altered or cut anywhere is refused', async (t) => {
  const path = folder(t, { a: 'some text' });
  const file = join(path, '..', `${path.split('/').at(-1)}.pkg`);
  t.after(() => rmSync(file, { force: true }));
  await writePackageFile(path, file);
  const bytes = readFileSync(file);
  const refused = (error: unknown) => isCoded(error, 'package-file-invalid', 'tree-invalid');
  for (let at = 0; at < bytes.length; at += 37) {
    const changed = Buffer.from(bytes);
    changed[at]! ^= 1 << (at % 8);
    writeFileSync(file, changed);
    await assert.rejects(readPackageFile(file), refused, `byte ${at}`);
  }
  for (let length = 0; length < bytes.length; length += 509) {
    writeFileSync(file, bytes.subarray(0, length));
    await assert.rejects(readPackageFile(file), refused, `${length} bytes`);
  }
  writeFileSync(file, Buffer.concat([bytes, Buffer.alloc(512)]));
  await assert.rejects(readPackageFile(file), refused);
  await assert.rejects(readPackageFile(`${file}.absent`), (error) => isCoded(error, 'file-not-found'));
});

test('writePackageFile() that fails leaves the old file and no temporary one', async (t) => {
  const path = folder(t, { data: noise(10) });
  const out = folder(t);
  const file = join(out, 'x.pkg');
  await writePackageFile(path, file);
  const before = readFileSync(file);
  const controller = new AbortController();
  await assert.rejects(
    writePackageFile(path, file, { signal: controller.signal, onProgress: () => controller.abort() }).then(() =>
      writePackageFile(path, file, { signal: controller.signal }),
    ),
    (error) => isCoded(error, 'cancelled'),
  );
  assert.deepEqual(readFileSync(file), before);
  assert.deepEqual(readdirSync(out).sort(), ['catalog.yaml', 'x.pkg']);
  await assert.rejects(writePackageFile(path, join(out, 'no', 'x.pkg')), (error) => isCoded(error, 'storage-failed'));
});
