import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ERRORS } from '../base/errors.ts';
import { bytes, oneLine, plain, shellWord, table } from './terminal.ts';

const bin = fileURLToPath(new URL('../../bin/hypermesh.js', import.meta.url));
let folder: string;
before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'hm-cli-'));
});
after(() => rm(folder, { recursive: true, force: true }));

function hypermesh(...args: string[]): Promise<{ exit: number; stdout: string; stderr: string }> {
  const { promise, resolve } = Promise.withResolvers<{ exit: number; stdout: string; stderr: string }>();
  const env = { PATH: process.env['PATH'], HYPERMESH_HOME: path.join(folder, 'home') };
  const child = execFile(process.execPath, [bin, ...args], { cwd: folder, env }, (_error, stdout, stderr) =>
    resolve({ exit: child.exitCode ?? -1, stdout, stderr }),
  );
  return promise;
}

test('--help lists the commands, and every command explains itself with an example', async () => {
  const { exit, stdout } = await hypermesh('--help');
  assert.equal(exit, 0);
  for (const name of ['up', 'publish', 'install', 'verify', 'proof', 'state'])
    assert.match(stdout, new RegExp(`^ {2}${name} `, 'm'));
  assert.match((await hypermesh('install', '--help')).stdout, /Example:\n {2}hypermesh install/);
});

test('a wrong command line exits with 2 and says why, as JSON when asked', async () => {
  const unknown = await hypermesh('publsh');
  assert.deepEqual([unknown.exit, unknown.stdout], [2, '']);
  assert.match(unknown.stderr, /^Error: Unknown command 'publsh'\. Did you mean publish\? \(usage\)\nHint: /);
  const missing = await hypermesh('info', '--json');
  assert.equal(missing.exit, 2);
  assert.equal(JSON.parse(missing.stdout).error.code, 'usage');
  assert.equal((await hypermesh('run', 'a/b', '--input', '{')).exit, 2);
});

test('--json makes one JSON document of version and help, too', async () => {
  const documents = await Promise.all(
    [['--version'], ['--help'], ['install', '--help'], ['help', 'state']].map((args) => hypermesh(...args, '--json')),
  );
  const [version, ...helps] = documents.map(({ stdout }) => JSON.parse(stdout) as Record<string, string>);
  assert.match(version!['version']!, /^\d+\.\d+\.\d+$/);
  for (const { help } of helps) assert.match(help!, /^Usage: hypermesh/);
});

/** Runs one command with its output led elsewhere by a shell. */
function inShell(script: string): Promise<{ exit: number; stdout: string; stderr: string }> {
  const { promise, resolve } = Promise.withResolvers<{ exit: number; stdout: string; stderr: string }>();
  const env = { PATH: process.env['PATH'], HYPERMESH_HOME: path.join(folder, 'home') };
  const hm = `'${process.execPath}' '${bin}'`;
  const child = execFile(
    'bash',
    ['--norc', '-c', script.replaceAll('hypermesh', hm)],
    { cwd: folder, env },
    (_error, stdout, stderr) => resolve({ exit: child.exitCode ?? -1, stdout, stderr }),
  );
  return promise;
}

test('an answer that cannot be written is a failure; one that nobody reads to its end is none', async (t) => {
  if (!existsSync('/dev/full')) return t.skip('there is no /dev/full');
  const full = await inShell('hypermesh --help > /dev/full');
  assert.equal(full.exit, ERRORS['storage-full'].exit, full.stderr);
  assert.match(full.stderr, /^Error: No space is left while writing the answer\. \(storage-full\)\n/);
  const closed = await inShell('set -o pipefail; hypermesh --help | true');
  assert.deepEqual([closed.exit, closed.stderr], [0, '']);
});

test('progress that nobody looks at any more stops nothing', async () => {
  // The reader is gone before the first line.
  const { exit, stdout } = await inShell(
    `hypermesh new library unseen > seen; hypermesh pack unseen --out unseen.hmp --verbose --json 2> >(exec true) > packed; echo $?`,
  );
  assert.deepEqual([exit, stdout], [0, '0\n']);
  assert.match(await readFile(path.join(folder, 'packed'), 'utf8'), /"digest"/);
});

test('status works without a node, and a stale node file counts as none', async () => {
  const home = path.join(folder, 'home');
  const { exit, stdout } = await hypermesh('status', '--json');
  assert.equal(exit, 0);
  assert.deepEqual(JSON.parse(stdout), { running: false, home });
});

test('verify --offline needs no home, and tells a missing file from a damaged one', async () => {
  const missing = await hypermesh('verify', './none.json', '--offline', '--json');
  assert.deepEqual([missing.exit, JSON.parse(missing.stdout).error.code], [5, 'file-not-found']);
  await writeFile(path.join(folder, 'cut.json'), '{"formatVersion":1');
  const cut = await hypermesh('verify', 'cut.json', '--offline', '--json');
  assert.deepEqual([cut.exit, JSON.parse(cut.stdout).error.code], [7, 'bundle-invalid']);
  await writeFile(path.join(folder, 'other.json'), '{}');
  const other = await hypermesh('verify', 'other.json', '--offline');
  assert.match(other.stderr, /^Error: The bundle is malformed .*\(bundle-invalid\)\nHint: .*fresh copy/);
});

test('what is wrong in an argument is said before a node is needed', async () => {
  const wrong: [string[], number, RegExp][] = [
    [['state', 'import', 'none.hmstate'], 5, /There is no file none\.hmstate/],
    [['state', 'import', '.'], 2, /is a folder/],
    [['cert', 'revoke', 'abc'], 2, /a fingerprint of 64 hex digits, but got "abc"/],
    [['peers', 'forgive', 'abc'], 2, /a node of 64 hex digits/],
    [['peers', 'bans', 'abc'], 2, /a node of 64 hex digits/],
    [['network', 'remove', 'abc'], 2, /a node of 64 hex digits/],
    [['network', 'validators', 'add', 'abc'], 2, /a node of 64 hex digits/],
    [['runtime', 'remove', 'cobol'], 2, /"cobol" .* julia, python/],
  ];
  await Promise.all(
    wrong.map(async ([args, exit, says]) => {
      const ran = await hypermesh(...args);
      assert.deepEqual([ran.exit, ran.stdout], [exit, ''], args.join(' '));
      assert.match(ran.stderr, says);
    }),
  );
});

test('new makes a package that has the name it was given, and never overwrites', async () => {
  const { exit, stdout } = await hypermesh('new', 'library', 'words', '--name', 'ada/words', '--json');
  assert.equal(exit, 0);
  assert.equal(JSON.parse(stdout).name, 'ada/words');
  assert.match(await readFile(path.join(folder, 'words', 'catalog.yaml'), 'utf8'), /^name: ada\/words$/m);
  const packed = await hypermesh('pack', 'words', '--out', 'words.hmp', '--json');
  assert.equal(JSON.parse(packed.stdout).name, 'ada/words', packed.stderr);
  assert.equal((await hypermesh('new', 'library', 'words')).exit, 2);
  assert.equal((await hypermesh('new', 'nothing', 'other')).exit, 5);
  const under = await hypermesh('new', 'library', 'words.hmp/inside');
  assert.match(under.stderr, /ENOTDIR.*\nHint: Something on the way there is a file/);
  const blanks = await hypermesh('new', 'library', "Ada's words", '--name', 'ada/others');
  assert.match(blanks.stdout, /`hypermesh publish 'Ada'\\''s words'`/);
  const missing = await hypermesh('pack', 'nowhere');
  assert.deepEqual(
    [missing.exit, missing.stderr.split('\n')[0]],
    [5, 'Error: There is no folder or file nowhere. (file-not-found)'],
  );
  assert.match((await hypermesh('pack', 'words.hmp')).stderr, /Expected a folder, but words\.hmp is a file/);
});

test('text from outside cannot steer a terminal', () => {
  assert.equal(plain('a\u001b[2Jb\u202ec\r\nd\te'), 'a\\u{1b}[2Jb\\u{202e}c\\u{d}\nd\te');
  assert.equal(oneLine('a\nb  c', 4), 'a b…');
  assert.equal(
    table([
      ['a', '\u0007b'],
      ['ccc', 'd'],
    ]),
    'a    \\u{7}b\nccc  d',
  );
  assert.deepEqual(['./a-b', 'a b', '', '目', '$(x)'].map(shellWord), ['./a-b', "'a b'", "''", "'目'", "'$(x)'"]);
  assert.deepEqual([0, 1023, 1024, 2 ** 30].map(bytes), ['0 B', '1023 B', '1.0 KiB', '1.0 GiB']);
});
