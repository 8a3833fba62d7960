import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cp, mkdir, open, readdir, readFile, rm, statfs, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ERRORS, type ErrorCode, isCoded } from '../../src/base/errors.ts';
import { mapBounded } from '../../src/base/streams.ts';
import type { Client } from '../../src/client/index.ts';
import { openHome } from '../../src/host/home.ts';
import { until } from '../../src/testing/until.ts';
import { assemble } from '../../src/testing/wat.ts';
import { command, freshHome, type Home, nodeOf, PROJECT, type Ran, writePackage } from './support.ts';

/**
 * The disk and the power fail at the worst moment: each command ends with a code and a status, nothing is lost or half-done, and when the
 * cause is gone the same command succeeds. Crashes at random moments are in crash.test.ts.
 */

interface Refused {
  readonly error: { readonly code: ErrorCode; readonly message: string; readonly hint?: string };
}

/** What a command with `--json` said, which must be a success or a coded refusal with the status of its code, and never a stack trace. */
function told(ran: Ran, what: string): ErrorCode | 'ok' {
  const said = `${what}: status ${ran.status}\n${ran.stdout}\n${ran.stderr}`;
  assert.doesNotMatch(ran.stderr, /^\s+at .+:\d+:\d+/m, said);
  if (ran.status === 0) return 'ok';
  const { error } = JSON.parse(ran.stdout) as Refused;
  assert.notEqual(error.code, 'internal', said);
  assert.equal(ran.status, ERRORS[error.code].exit, said);
  return error.code;
}

/** A small file system of its own, in a mount namespace of its own: only what is started through `run` sees it. */
class SmallDisk implements AsyncDisposable {
  /** Where it is for those inside. */
  readonly path: string;
  /** The same place for this process. */
  readonly outside: string;
  readonly #holder: ChildProcess;

  private constructor(path: string, holder: ChildProcess) {
    this.path = path;
    this.outside = `/proc/${holder.pid}/root${path}`;
    this.#holder = holder;
  }

  static async make(path: string, bytes: number): Promise<SmallDisk> {
    await mkdir(path, { recursive: true });
    const mount = `mount -t tmpfs -o size=${bytes},mode=0755 tmpfs "$0" && echo ready && exec sleep 100000`;
    const holder = spawn('unshare', ['-m', 'sh', '-c', mount, path], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(holder.stdout!, 'data');
    return new SmallDisk(path, holder);
  }

  run(...args: string[]): Promise<Ran> {
    const inside = ['nsenter', '-t', String(this.#holder.pid), '-m'];
    return command([...args, '--json'], { HYPERMESH_HOME: join(this.path, 'home') }, inside);
  }

  async ask(...args: string[]): Promise<ErrorCode | 'ok'> {
    return told(await this.run(...args), args.join(' '));
  }

  /** Leaves this many bytes free. */
  async fill(leave = 0): Promise<void> {
    await using file = await open(join(this.outside, 'filler'), 'w');
    const { bavail, bsize } = await statfs(this.outside);
    const zeros = Buffer.alloc(bsize);
    try {
      for (let left = bavail * bsize - leave; left > 0; left -= bsize) await file.write(zeros);
    } catch (error) {
      // The node wrote something meanwhile: as full as it gets.
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC' || leave > 0) throw error;
    }
  }

  free(): Promise<void> {
    return rm(join(this.outside, 'filler'), { force: true });
  }

  /** Waits until no process has a file open for writing. */
  async remount(how: 'ro' | 'rw'): Promise<void> {
    const args = ['-t', String(this.#holder.pid), '-m', 'mount', '-o', `remount,${how}`, this.path];
    await until('no process writes', () => spawnSync('nsenter', args).status === 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#holder.kill('SIGKILL');
    await once(this.#holder, 'exit');
  }
}

/** Why a small disk cannot be made here; false when it can. */
function cannotMount(): string | false {
  if (process.platform !== 'linux') return 'a private mount namespace needs Linux';
  const tried = spawnSync('unshare', ['-m', 'sh', '-c', 'mount -t tmpfs tmpfs /mnt && nsenter --version'], {
    encoding: 'utf8',
  });
  return tried.status === 0
    ? false
    : `a private mount namespace is not allowed here: ${(tried.stderr ?? String(tried.error)).trim()}`;
}

const LIBRARY = { type: 'library', version: '1.0.0' };
const skip = cannotMount();

describe('a disk', { skip }, () => {
  let base: Home;
  let disk: SmallDisk;
  let client: Client;
  let large: string;
  let small: string;

  before(async () => {
    base = await freshHome();
    disk = await SmallDisk.make(join(base.folder, 'disk'), 16 * 2 ** 20);
    await mkdir(join(disk.outside, 'home'), { mode: 0o700 });
    await cp(join(base.home, 'config.yaml'), join(disk.outside, 'home', 'config.yaml'));
    large = await writePackage(
      join(base.folder, 'large'),
      { ...LIBRARY, name: 'full/large' },
      {
        'a.bin': Buffer.alloc(3 * 2 ** 20, (await readFile(process.execPath)).subarray(0, 2 ** 20 + 13)),
      },
    );
    small = await writePackage(join(base.folder, 'small'), { ...LIBRARY, name: 'full/small' }, { 'a.txt': 'a' });
    const wasm = await assemble('(module (memory (export "memory") 1) (func (export "_start")))');
    const program = {
      name: 'full/program',
      version: '1.0.0',
      type: 'package',
      language: 'wasm',
      entry: 'main.wasm',
      resources: { disk: 65_536 },
    };
    assert.equal(await disk.ask('up', '--detach'), 'ok');
    ({ client } = await nodeOf({ ...base, home: join(disk.outside, 'home') }));
    assert.equal(
      await disk.ask('publish', await writePackage(join(base.folder, 'program'), program, { 'main.wasm': wasm })),
      'ok',
    );
  });

  after(async () => {
    await disk?.free();
    await disk?.run('down');
    await disk?.[Symbol.asyncDispose]();
    await base?.[Symbol.asyncDispose]();
  });

  test('that is full refuses every change with storage-full, still answers, and heals without a restart', async () => {
    const before = await client.search({});
    const { locked } = await client.stake();
    await disk.fill();
    for (const args of [
      ['publish', large],
      ['publish', small],
      ['install', 'full/program'],
      ['install', 'full/program', '--to', join(disk.path, 'here')],
      ['run', 'full/program'],
      ['stake', 'lock', '1'],
      ['yank', 'full/program'],
      ['cert', 'renew', 'publisher'],
      ['proof', 'make', 'publish', before.hits[0]!.record.digest, join(disk.path, 'proofs.json')],
      ['bundle', 'full/program', join(disk.path, 'bundle.json')],
      ['pack', large, '--out', join(disk.path, 'packed.hmp')],
    ])
      assert.equal(await disk.ask(...args), 'storage-full', args.join(' '));
    for (const args of [
      ['search'],
      ['info', 'full/program'],
      ['verify', 'full/program'],
      ['status'],
      ['list'],
      ['keys'],
      ['metrics'],
    ])
      assert.equal(await disk.ask(...args), 'ok', args.join(' '));

    assert.deepEqual(await client.search({}), before);
    assert.deepEqual(await client.installed(), []);
    assert.equal((await client.stake()).locked, locked);
    assert.deepEqual(await readdir(join(disk.outside, 'home/assets/content/tmp')), []);
    assert.deepEqual(
      (await readdir(disk.outside)).filter((name) => /packed|proofs|bundle/.test(name)),
      [],
    );

    await disk.free();
    for (const args of [
      ['publish', large],
      ['publish', small],
      ['install', 'full/program'],
      ['run', 'full/program'],
      ['stake', 'lock', '1'],
      ['cert', 'renew', 'publisher'],
    ])
      assert.equal(await disk.ask(...args), 'ok', args.join(' '));
    await client.delete('full/large@1.0.0');
    await client.delete('full/small@1.0.0');
  });

  test('that fills up in the middle of what is written leaves nothing of it', async () => {
    const digest = async () => (await client.search({})).hits.map(({ record }) => record.digest);
    const before = await digest();
    for (const leave of [64, 512, 2_048].map((kibibytes) => kibibytes * 1_024)) {
      await disk.fill(leave);
      assert.equal(await disk.ask('publish', large), 'storage-full');
      assert.deepEqual(await readdir(join(disk.outside, 'home/assets/content/tmp')), []);
      const code = await disk.ask('publish', small);
      assert.ok(code === 'ok' || code === 'storage-full', code);
      await disk.free();
      if (code === 'ok') await client.delete('full/small@1.0.0');
      assert.deepEqual(await digest(), before);
    }
  });

  test('to install on that is full or read-only is refused, and what was installed there stays', async () => {
    await disk.free();
    assert.equal(await disk.ask('publish', large), 'ok');
    const target = await SmallDisk.make(join(base.folder, 'target'), 2 ** 20);
    try {
      // The node of `disk` does not see `target`: a node of its own, whose home is on the real disk.
      const home = join(base.folder, 'second');
      await mkdir(home, { mode: 0o700 });
      await cp(join(base.home, 'config.yaml'), join(home, 'config.yaml'));
      const root = join(target.path, 'here');
      const ask = (...args: string[]) => target.ask(...args, '--home', home);
      assert.equal(await ask('up', '--detach'), 'ok');
      assert.equal(await ask('publish', large), 'ok');
      assert.equal(await ask('publish', small), 'ok');
      assert.equal(await ask('install', 'full/large', '--to', root), 'storage-full');
      assert.equal(await ask('install', 'full/small', '--to', root), 'ok');
      assert.equal(await ask('install', 'full/large', '--to', root), 'storage-full');
      const inside = join(target.outside, 'here');
      assert.equal(await readFile(join(inside, 'packages/full/small/a.txt'), 'utf8'), 'a');
      assert.deepEqual(await readdir(join(inside, '.hypermesh/temporary')), []);
      assert.equal((await readdir(join(inside, '.hypermesh/trees'))).length, 1);
      await target.remount('ro');
      assert.equal(await ask('uninstall', 'full/small', '--to', root), 'storage-read-only');
      assert.equal(await ask('install', 'full/small', '--to', join(target.path, 'other')), 'storage-read-only');
      assert.equal(await ask('list', '--to', root), 'ok');
      await target.remount('rw');
      assert.equal(await ask('uninstall', 'full/small', '--to', root), 'ok');
      assert.equal(await ask('down'), 'ok');
    } finally {
      await target[Symbol.asyncDispose]();
    }
  });

  test('that is full or read-only when the node starts is named as that, and the node starts when it is mended', async () => {
    const before = await client.search({});
    // What is in the journals and finds no room in the databases stays there.
    await disk.fill();
    assert.equal(await disk.ask('down'), 'ok');
    assert.equal(await readFile(join(disk.outside, 'home/logs/crash.log'), 'utf8'), '');
    await disk.free();
    for (const leave of [0, 8, 60, 150]) {
      await disk.fill(leave * 1_024);
      const ran = await disk.run('up', '--detach');
      const code = told(ran, 'up');
      assert.ok(code === 'storage-full' || code === 'ok', `${leave}: ${ran.stdout}`);
      if (leave === 0) assert.equal(code, 'storage-full');
      if (code === 'ok') assert.equal(await disk.ask('down'), 'ok');
      await disk.free();
    }
    await disk.remount('ro');
    for (const args of [['up', '--detach'], ['up'], ['search'], ['publish', small], ['list']])
      assert.equal(await disk.ask(...args), 'storage-read-only', args.join(' '));
    await disk.remount('rw');
    assert.equal(await disk.ask('up', '--detach'), 'ok');
    ({ client } = await nodeOf({ ...base, home: join(disk.outside, 'home') }));
    assert.deepEqual(await client.search({}), before);
  });
});

describe('two `up` at the same moment', () => {
  test('end with one node, and the other told that the home is in use', async () => {
    await using home = await freshHome();
    const both = await Promise.all([1, 2].map(() => home.run('up', '--detach', '--json')));
    assert.deepEqual(both.map((ran) => told(ran, 'up')).sort(), ['home-in-use', 'ok']);
    const winner = JSON.parse(both.find(({ status }) => status === 0)!.stdout) as { pid: number };
    assert.equal((await nodeOf(home)).pid, winner.pid);
  });
});

test('`up --detach` that is interrupted while the node starts ends when the node has', async () => {
  await using home = await freshHome();
  const command = spawn(process.execPath, [join(PROJECT, 'bin', 'hypermesh.js'), 'up', '--detach'], {
    env: { PATH: process.env['PATH'], HYPERMESH_HOME: home.home },
    stdio: 'ignore',
  });
  const ended = once(command, 'exit');
  await until('the home is being made', () => existsSync(join(home.home, 'home.json')));
  command.kill('SIGINT');
  assert.deepEqual(await ended, [130, null]);
  // Nobody has it open any more.
  await (await openHome(home.home))[Symbol.asyncDispose]();
});

describe('kill -9', () => {
  /** What `--verbose` says while it makes the proof of time. */
  const PROVING = /^ {2}time/m;

  /** Proofs of so many seconds or so, so that there is a moment to kill in. */
  async function slowHome(seconds: number): Promise<Home> {
    const home = await freshHome();
    const file = join(home.home, 'config.yaml');
    const config = JSON.parse(await readFile(file, 'utf8')) as {
      network: { requirements: { publish: { time: { squarings: number } } } };
    };
    config.network.requirements.publish.time.squarings = seconds * 2 ** 19;
    await writeFile(file, JSON.stringify(config));
    return home;
  }

  test('of the node during a publish: the command says so, the next start heals, the same publish succeeds', async () => {
    await using home = await slowHome(8);
    await home.json(['up', '--detach']);
    const { pid } = await nodeOf(home);
    const source = await writePackage(
      join(home.folder, 'source'),
      { ...LIBRARY, name: 'killed/one' },
      { 'a.txt': 'a' },
    );
    const child = spawn(
      process.execPath,
      [join(PROJECT, 'bin', 'hypermesh.js'), 'publish', source, '--json', '--verbose'],
      {
        env: { PATH: process.env['PATH'], HOME: '/nonexistent', HYPERMESH_HOME: home.home },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      const wasProving = PROVING.test(stderr);
      stderr += text;
      if (!wasProving && PROVING.test(stderr)) process.kill(pid, 'SIGKILL');
    });
    const [status] = (await once(child, 'close')) as [number | null];
    assert.equal(told({ status, stdout, stderr }, 'publish'), 'node-not-running');
    assert.equal((await home.json<{ total: number }>(['search'])).total, 0);

    await home.json(['up', '--detach']);
    assert.equal((await home.json<{ created: boolean }>(['publish', source])).created, true);
    assert.equal((await home.json(['verify', 'killed/one']))['verified'], true);
  });

  test('of the node after the proofs were made: repeating the publish uses them', async () => {
    await using home = await slowHome(1);
    await home.json(['up', '--detach']);
    const { packFolder } = await import('../../src/client/folder.ts');
    const source = await writePackage(
      join(home.folder, 'source'),
      { ...LIBRARY, name: 'killed/two' },
      { 'a.txt': 'a' },
    );
    const publish = async (onStep: (step: string, node: { pid: number }) => void) => {
      const node = await nodeOf(home);
      const packed = await packFolder(source);
      const layer = await node.client.stageLayer(packed.tree);
      const onProgress = ({ step }: { step: string }) => onStep(step, node);
      return node.client.publish(packed.manifestYaml, layer.digest, { onProgress });
    };
    const first = await publish((step, { pid }) => {
      if (step === 'admit') process.kill(pid, 'SIGKILL');
    }).catch((error: unknown) => error);
    assert.ok(isCoded(first, 'node-not-running'), String(first));
    await home.json(['up', '--detach']);
    const steps = new Set<string>();
    await publish((step) => void steps.add(step));
    assert.ok(!steps.has('time') && !steps.has('work'), [...steps].join());
    assert.equal((await home.json(['verify', 'killed/two']))['verified'], true);
  });

  test('of `pack` leaves the file that was there, and a `publish` that is killed leaves nothing in the node', async () => {
    await using home = await freshHome();
    await home.json(['up', '--detach']);
    const { client } = await nodeOf(home);
    const source = await writePackage(join(home.folder, 'source'), { ...LIBRARY, name: 'killed/three' });
    await using file = await open(join(source, 'large.bin'), 'w');
    await file.truncate(512 * 2 ** 20);
    const out = join(home.folder, 'out.hmp');
    await writeFile(out, 'what was there');
    const before = (await client.status()).totals;
    const temporary = join(home.home, 'assets/content/tmp');
    const begun = {
      pack: async () => (await readdir(home.folder)).some((name) => name.startsWith('.out.hmp')),
      publish: async () => (await readdir(temporary)).length > 0,
    };
    for (const name of ['pack', 'publish'] as const) {
      const args = [name, source, ...(name === 'pack' ? ['--out', out] : [])];
      const child = spawn(process.execPath, [join(PROJECT, 'bin', 'hypermesh.js'), ...args], {
        env: { PATH: process.env['PATH'], HOME: '/nonexistent', HYPERMESH_HOME: home.home },
        stdio: 'ignore',
      });
      const ended = once(child, 'exit');
      await until(`${name} has begun`, begun[name], { everyMs: 2 });
      child.kill('SIGKILL');
      assert.deepEqual(await ended, [null, 'SIGKILL']);
    }
    await until('nothing is left of it', async () => !(await begun.publish()));
    assert.equal(await readFile(out, 'utf8'), 'what was there');
    assert.deepEqual((await client.status()).totals, before);
    await truncate(join(source, 'large.bin'), 100);
    await home.json(['pack', source, '--out', out]);
    assert.equal((await home.json<{ created: boolean }>(['publish', out])).created, true);
  });
});

describe('a damaged file of a home', () => {
  type Harm = 'empty' | 'garbled' | 'gone';
  let whole: Home;

  before(async () => {
    whole = await freshHome();
    const source = await writePackage(
      join(whole.folder, 'source'),
      { ...LIBRARY, name: 'a/b' },
      { 'a.txt': 'a'.repeat(5_000) },
    );
    await whole.json(['publish', source]);
    await whole.json(['install', 'a/b']);
  });

  after(() => whole[Symbol.asyncDispose]());

  async function harm(file: string, how: Harm): Promise<void> {
    if (how === 'gone') return rm(file);
    if (how === 'empty') return truncate(file);
    const bytes = await readFile(file);
    for (let at = 0; at < bytes.length; at += Math.max(1, Math.floor(bytes.length / 97))) bytes[at]! ^= 0x55;
    await writeFile(file, bytes);
  }

  /** The first file in the home whose path matches. */
  async function fileLike(home: string, like: RegExp): Promise<string> {
    const found = (await readdir(home, { recursive: true })).sort().find((path) => like.test(path));
    assert.ok(found, String(like));
    return join(home, found);
  }

  const DATABASE = { empty: 'storage-failed', garbled: 'storage-failed', gone: 'storage-failed' } as const;
  /** What a command then says; `ok` means that the home mended itself. */
  const cases: readonly (readonly [
    like: RegExp,
    command: readonly string[],
    says: Readonly<Partial<Record<Harm, ErrorCode | 'ok'>>>,
  ])[] = [
    [/^config\.yaml$/, ['search'], { empty: 'ok', garbled: 'config-invalid', gone: 'ok' }],
    [/^home\.json$/, ['search'], { empty: 'storage-failed', garbled: 'storage-failed', gone: 'ok' }],
    [/^trust\/trust\.db$/, ['search'], DATABASE],
    [/^consensus\/nkrypt\.db$/, ['search'], DATABASE],
    [/^assets\/index\.db$/, ['search'], DATABASE],
    [/^state\/state\.db$/, ['search'], DATABASE],
    [/^assets\/content\/content\.db$/, ['verify', 'a/b'], { empty: 'ok', garbled: 'storage-failed', gone: 'ok' }],
    [/^monitoring\/events\.db$/, ['search'], { empty: 'ok', garbled: 'storage-failed', gone: 'ok' }],
    [/^trust\/unlock\.key$/, ['search'], { empty: 'key-invalid', garbled: 'key-invalid', gone: 'key-invalid' }],
    [/^installed\/hypermesh\.lock$/, ['list'], { empty: 'ok', garbled: 'ok', gone: 'ok' }],
    [
      /^installed\/\.hypermesh\/generations\/1\/lock\.json$/,
      ['list'],
      { empty: 'lock-invalid', garbled: 'lock-invalid', gone: 'lock-invalid' },
    ],
  ];
  const harms = cases.flatMap(([like, args, says]) =>
    (Object.entries(says) as [Harm, ErrorCode | 'ok'][]).map(([how, code]) => ({ like, args, how, code })),
  );

  test('gives a code that names the file and says what to do, or is mended', async () => {
    let copies = 0;
    await mapBounded(harms, 2, async ({ like, args, how, code }) => {
      const home = join(whole.folder, `copy-${copies++}`);
      await cp(whole.home, home, { recursive: true, verbatimSymlinks: true });
      const file = await fileLike(home, like);
      await harm(file, how);
      const ran = await command([...args, '--json'], { HYPERMESH_HOME: home });
      assert.equal(told(ran, `${file} ${how}`), code, `${file} ${how}: ${ran.stdout}`);
      if (code !== 'ok') {
        const { message, hint } = (JSON.parse(ran.stdout) as Refused).error;
        assert.ok(message.includes(file.slice(home.length + 1).replace(/^.*\/(?=unlock)/, '')), `${file}: ${message}`);
        assert.ok(hint !== undefined && hint.length > 10, message);
      }
      await rm(home, { recursive: true });
    });
  });

  test('among the stored content is found before it is used, and put back by publishing again', async () => {
    await using home = await freshHome();
    const source = await writePackage(
      join(home.folder, 'source'),
      { ...LIBRARY, name: 'a/b' },
      { 'a.txt': 'a'.repeat(5_000) },
    );
    const { digest } = await home.json<{ digest: string }>(['publish', source]);
    const [layer] = (await home.json<{ record: { layers: string[] } }>(['info', 'a/b'])).record.layers;
    const blob = (name: string) => join(home.home, 'assets/content/sha256', name.slice(7, 9), name.slice(9));
    for (const how of ['garbled', 'gone'] as const) {
      await harm(blob(layer!), how);
      for (const args of [
        ['verify', 'a/b'],
        ['install', 'a/b', '--to', join(home.folder, how)],
      ]) {
        const code = told(await home.run(...args, '--json'), `${args[0]} ${how}`);
        // What is set aside is looked for on other nodes; this one is alone.
        assert.ok(
          ['blob-damaged', 'blob-not-found', 'content-unavailable'].includes(code),
          `${args[0]} ${how}: ${code}`,
        );
      }
      assert.equal((await home.json<{ digest: string }>(['publish', source])).digest, digest);
      await home.json(['verify', 'a/b']);
      await home.json(['install', 'a/b', '--to', join(home.folder, how)]);
    }
  });

  test('of the space commitment is noticed by the first proof, and made again', async () => {
    const home = join(whole.folder, 'space');
    await cp(whole.home, home, { recursive: true, verbatimSymlinks: true });
    for (const [n, part] of [/^consensus\/space\/.*\/layer-/, /^consensus\/space\/.*\/tree-/].entries()) {
      const file = await fileLike(home, part);
      await writeFile(file, Buffer.alloc((await readFile(file)).length, 0x55));
      const install = async (to: string) =>
        told(await command(['install', 'a/b', '--to', join(whole.folder, to), '--json'], { HYPERMESH_HOME: home }), to);
      const first = await install(`first-${n}`);
      assert.ok(['ok', 'proof-rejected', 'space-unavailable'].includes(first), first);
      assert.equal(await install(`second-${n}`), 'ok');
    }
  });

  test('that tells where the node is makes commands say so at once, not wait', async () => {
    await using home = await freshHome();
    await home.json(['up', '--detach']);
    const file = join(home.home, 'node.json');
    const was = await readFile(file);
    for (const how of ['empty', 'garbled'] as const) {
      await harm(file, how);
      for (const args of [['search'], ['down']]) {
        const ran = await home.run(...args, '--json');
        assert.equal(told(ran, `${args} ${how}`), 'config-invalid');
        assert.match(ran.stdout, /node\.json/);
      }
      await writeFile(file, was);
    }
  });
});
