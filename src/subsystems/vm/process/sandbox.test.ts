import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { chown, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { after, describe, it } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { until } from '../../../testing/until.ts';
import type { BoxExit, BoxSpec } from './box.ts';
import { openProcessSandbox } from './sandbox.ts';

const MiB = 2 ** 20;
const LIMITS = {
  memoryBytes: 64 * MiB,
  cpuCores: 1,
  wallMs: 120_000,
  pids: 16,
  tmpBytes: MiB,
  fileBytes: MiB,
  outputBytes: 64 * 1024,
};

const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-sandbox-'));

// With the kernel's control groups where there are some, and as on a machine that lends none.
for (const cgroups of [true, false]) {
  const sandbox = await openProcessSandbox({ directory: path.join(directory, String(cgroups)), cgroups });
  const status = await sandbox.probe();

  describe(`process sandbox, control groups ${cgroups ? 'used' : 'not used'}`, { skip: status.reason ?? false }, () => {
    after(() => sandbox[Symbol.asyncDispose]());

    async function run(
      script: string,
      more: Partial<Omit<BoxSpec, 'limits'>> & { limits?: Partial<BoxSpec['limits']>; signal?: AbortSignal } = {},
    ): Promise<{ printed: string; complaint: string; exit: BoxExit }> {
      const { limits, signal, ...spec } = more;
      const box = await sandbox.start(
        {
          command: ['/bin/sh', '-c', script],
          root: 'host',
          mounts: [],
          environment: {},
          ...spec,
          limits: { ...LIMITS, ...limits },
        },
        { signal },
      );
      box.stdin.end('in');
      const [printed, complaint, exit] = await Promise.all([text(box.stdout), text(box.stderr), box.exit]);
      return { printed, complaint, exit };
    }

    it('names a mechanism for every limit', () => {
      for (const limit of ['isolation', 'memory', 'cpu', 'pids', 'wall', 'output', 'tmp', 'files', 'network'])
        assert.ok(status.enforces[limit], limit);
    });

    it('passes the streams, the environment and the status', async () => {
      const { printed, complaint, exit } = await run('cat; echo $A; echo no >&2; exit 7', {
        environment: { A: 'b c' },
      });
      assert.deepEqual([printed, complaint], ['inb c\n', 'no\n']);
      assert.deepEqual([exit.termination, exit.exitCode, exit.reason], ['exit', 7, null]);
      assert.deepEqual(exit.enforcedBy, status.enforces);
    });

    it('gives the program a socket to the node as descriptor 3', async () => {
      const box = await sandbox.start({
        command: ['/bin/sh', '-c', 'read line <&3; echo "got $line" >&3'],
        root: 'host',
        mounts: [],
        environment: {},
        limits: LIMITS,
      });
      box.control.write('hello\n');
      box.stdout.resume();
      box.stderr.resume();
      assert.equal(await text(box.control), 'got hello\n');
      assert.equal((await box.exit).exitCode, 0);
    });

    it('stops at each limit, and says at which', async () => {
      const ends = await Promise.all([
        run('while :; do :; done', { limits: { wallMs: 300 } }),
        run('cat /dev/zero'),
        run('cat /dev/zero >&2'),
        run('exec tail -n 1 /dev/zero'),
        run('exec head -c 3000000 /dev/zero > /tmp/large', { limits: { tmpBytes: 8 * MiB } }),
        run('kill -SEGV $$'),
      ]);
      assert.deepEqual(
        ends.map(({ exit }) => [exit.termination, exit.exitCode]),
        [
          ['timeout', null],
          ['output', null],
          ['output', null],
          ['memory', null],
          ['disk', null],
          ['error', null],
        ],
      );
      assert.equal(ends[1]!.printed.length, LIMITS.outputBytes);
      assert.match(ends[4]!.exit.reason ?? '', /a file larger than/);
    });

    it('says that a program failed after it filled /tmp, and only then', async () => {
      const fill = 'for i in 1 2 3; do head -c 900000 /dev/zero > /tmp/$i; done';
      const ends = await Promise.all([
        // What is full for a moment only may go unseen, and this program does not look more often while the machine has other work.
        run(`${fill} || { sleep 1; exit 9; }`),
        run(`${fill}; sleep 1; kill -ABRT $$`),
        run(`${fill}; sleep 1; rm /tmp/*; exit 8`),
        run(`${fill}; exit 0`),
        run('head -c 900000 /dev/zero > /tmp/some; exit 7'),
      ]);
      assert.deepEqual(
        ends.map(({ exit }) => [exit.termination, exit.exitCode, exit.signal]),
        [
          ['disk', 9, null],
          ['disk', null, 'SIGABRT'],
          ['disk', 8, null],
          ['exit', 0, null],
          ['exit', 7, null],
        ],
      );
      assert.match(ends[0]!.exit.reason ?? '', /filled the 1048576 bytes of \/tmp/);
    });

    it('ends a program that leaves no room on the disk of a granted folder', async (t) => {
      if (process.getuid?.() !== 0) return t.skip('a small disk can be made by root only');
      const disk = await mkdtemp(path.join(tmpdir(), 'hypermesh-disk-'));
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64m,mode=777', 'none', disk]);
      t.after(async () => {
        execFileSync('umount', ['--lazy', disk]);
        await rm(disk, { recursive: true });
      });
      // What was mounted after a sandbox was opened is not lent.
      await using own = await openProcessSandbox({ directory: path.join(directory, `disk-${cgroups}`), cgroups });
      const box = await own.start({
        command: [
          '/bin/sh',
          '-c',
          'i=0; while head -c 900000 /dev/zero > /folders/out/$i; do i=$((i+1)); done; sleep 9',
        ],
        // This disk is memory, and counts as such.
        ...{ root: 'host', mounts: [], environment: {}, limits: { ...LIMITS, memoryBytes: 128 * MiB } },
        folders: [{ source: disk, at: '/folders/out', isWritable: true }],
      });
      box.stdin.end();
      for (const stream of [box.stdout, box.stderr]) stream.resume();
      const { termination, reason } = await box.exit;
      assert.deepEqual([termination, /The disk of \/folders\/out is nearly full/.test(reason ?? '')], ['disk', true]);
    });

    it('bounds what is in /tmp, the processes and where can be written', async () => {
      const { printed, complaint } = await run(
        'for i in 1 2 3; do head -c 900000 /dev/zero > /tmp/$i || echo full; done; echo x > /usr/x; echo x > /x; echo x > /etc/x',
      );
      assert.match(printed, /full/);
      assert.equal(complaint.match(/Read-only file system/g)?.length, 3);
      assert.doesNotMatch((await run('for i in $(seq 40); do sleep 9 & done; echo all')).printed, /all/);
    });

    it('leaves no process behind: neither daemons of the program, nor those of a caller who gives up', async () => {
      const before = performance.now();
      assert.equal((await run('setsid sleep 600 & exit 0')).exit.exitCode, 0);
      const controller = new AbortController();
      const running = run('echo; setsid sleep 600 & sleep 600', { signal: controller.signal });
      setTimeout(() => controller.abort(), 100);
      assert.equal((await running).exit.termination, 'cancelled');
      await assert.rejects(run('echo', { signal: controller.signal }), { code: 'cancelled' });
      assert.ok(performance.now() - before < 300_000);
    });

    it('leaves nothing when the node is killed, at any moment, once the next one has started', async () => {
      const own = path.join(directory, `killed-${cgroups}`);
      const source = (seconds: string) => `
        import { openProcessSandbox } from ${JSON.stringify(new URL('./sandbox.ts', import.meta.url).href)};
        const sandbox = await openProcessSandbox({ directory: ${JSON.stringify(own)}, cgroups: ${cgroups} });
        await sandbox.probe();
        process.stdout.write('starting');
        const box = await sandbox.start({ command: ['/bin/sh', '-c', 'setsid sleep ${seconds} & echo; sleep ${seconds}'], root: 'host', mounts: [],
          environment: {}, limits: ${JSON.stringify(LIMITS)} });
        await new Promise((resolve) => box.stdout.once('data', resolve));
        const ahead = await sandbox.startAhead({ command: ['/bin/sh', '-c', 'setsid sleep ${seconds} & read x'], root: 'host', mounts: [],
          environment: {}, limits: ${JSON.stringify(LIMITS)} });
        while (!(await ahead.activity()).isAsleep) await new Promise((resolve) => setTimeout(resolve, 20));
        process.stdout.write('started');`;
      const gone = (left: () => Promise<readonly string[]>) =>
        until('nothing is left', async () => {
          assert.deepEqual(await left(), []);
          return true;
        });
      for (const [at, delayMs] of [0, 8, 20, null].entries()) {
        const seconds = `${4_000 + process.pid}${at}`;
        const node = spawn(process.execPath, ['--input-type=module', '--no-warnings', '-e', source(seconds)]);
        let said = '';
        node.stdout.setEncoding('utf8').on('data', (text: string) => {
          said += text;
        });
        await until('it is at work', () => said.includes(delayMs === null ? 'started' : 'starting'), { everyMs: 5 });
        if (delayMs !== null) await pause(delayMs);
        node.kill('SIGKILL');
        await once(node, 'exit');
        // But for a node that is killed while it sets a box up, what is left goes by itself.
        if (delayMs === null) await gone(async () => [...(await leftOf(own)), ...(await running(seconds))]);
        const next = await openProcessSandbox({ directory: own, cgroups });
        await gone(() => running(seconds));
        await next[Symbol.asyncDispose]();
        assert.deepEqual(await groupsOf(own), []);
      }
    });

    it('starts a program ahead of its run, whose time begins with the run', async () => {
      const ahead = await sandbox.startAhead({
        command: ['/bin/sh', '-c', 'i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; read x; echo $x; cat; exit 3'],
        ...{ root: 'host', mounts: [], environment: {}, limits: { ...LIMITS, wallMs: 3_000 } },
      });
      while (!(await ahead.activity()).isAsleep) await pause(20);
      await ahead.rest();
      // Longer than it may take; and on a machine with other work it takes long.
      await pause(3_050);
      const { cpuMs } = await ahead.activity();
      assert.ok(cpuMs > 0);
      const box = await ahead.begin();
      box.stdin.end('a\nb');
      const [printed, exit] = await Promise.all([text(box.stdout), box.exit]);
      assert.deepEqual([printed, exit.termination, exit.exitCode], ['a\nb', 'exit', 3]);
      assert.ok(exit.usage.cpuMs < cpuMs && exit.usage.wallMs < 3_000, JSON.stringify([exit.usage, cpuMs]));
    });

    it('ends a program that was started ahead: at its time, by its caller, with the sandbox', async () => {
      const spin = async () =>
        sandbox.startAhead({
          command: ['/bin/sh', '-c', 'read x; while :; do :; done'],
          ...{ root: 'host', mounts: [], environment: {}, limits: { ...LIMITS, wallMs: 300 } },
        });
      const [late, left, refused] = await Promise.all([spin(), spin(), spin()]);
      const box = await late.begin();
      box.stdin.end('\n');
      assert.equal((await box.exit).termination, 'timeout');
      left.kill();
      assert.equal((await left.exit).termination, 'cancelled');
      await assert.rejects(refused.begin({ signal: AbortSignal.abort() }), { code: 'cancelled' });
      assert.equal((await refused.exit).termination, 'cancelled');
    });

    it('shows folders of ours read-only, images as roots, and refuses all others', async () => {
      const own = path.join(directory, String(cgroups));
      await mkdir(path.join(own, 'trees/one'), { recursive: true });
      await writeFile(path.join(own, 'trees/one/hello'), 'hello');
      await symlink('/etc', path.join(own, 'trees/link')).catch(() => {});
      const mount = (source: string) =>
        run('cat /package/hello; echo x > /package/x', { mounts: [{ source, at: '/package' }] });
      const { printed, complaint } = await mount(path.join(own, 'trees/one'));
      assert.deepEqual([printed, /Read-only/.test(complaint)], ['hello', true]);
      for (const source of ['/etc', own, path.join(own, 'trees/link'), path.join(own, '..')])
        await assert.rejects(mount(source), { code: 'usage' }, source);
      // An image without a shell: its entries are all there is.
      const { exit } = await run('', { root: path.join(own, 'trees/one') });
      assert.notEqual(exit.exitCode, 0);
    });
  });
}

const noUser =
  process.getuid?.() !== 0
    ? 'this is no root, so all of the above was done as an ordinary user'
    : existsSync('/usr/bin/setpriv')
      ? false
      : 'setpriv is not installed';

describe('process sandbox of an ordinary user', { skip: noUser }, () => {
  it('holds its programs, and leaves nothing of them', async (t) => {
    const own = await mkdtemp(path.join(tmpdir(), 'hypermesh-user-'));
    try {
      const uid = 54_321;
      await chown(own, uid, uid);
      const source = `
        import { text } from 'node:stream/consumers';
        import { openProcessSandbox } from ${JSON.stringify(new URL('./sandbox.ts', import.meta.url).href)};
        await using sandbox = await openProcessSandbox({ directory: ${JSON.stringify(path.join(own, 'vm'))} });
        const { reason, enforces } = await sandbox.probe();
        if (reason !== null) { process.stdout.write(JSON.stringify({ reason })); process.exit(); }
        const spec = { root: 'host', mounts: [], environment: {}, limits: ${JSON.stringify(LIMITS)} };
        const box = await sandbox.start({ ...spec, command: ['/bin/sh', '-c', 'id -u; echo x > /usr/x; ls ${own}'] });
        box.stdin.end();
        const [printed, , exit] = await Promise.all([text(box.stdout), text(box.stderr), box.exit]);
        const hoard = await sandbox.start({ ...spec, command: ['/usr/bin/tail', '-n', '1', '/dev/zero'] });
        process.stdout.write(JSON.stringify({ printed, code: exit.exitCode, hoard: (await hoard.exit).termination, isolation: enforces.isolation }));`;
      const node = spawn('/usr/bin/setpriv', [
        ...['--reuid', String(uid), '--regid', String(uid), '--clear-groups', '--', process.execPath],
        ...['--input-type=module', '--no-warnings', '-e', source],
      ]);
      const [said, complaint] = await Promise.all([text(node.stdout), text(node.stderr)]);
      // For example where the project lies in a folder that only root enters.
      if (said === '') return t.skip(`it cannot be tried here: ${complaint.slice(0, 200)}`);
      const { reason, ...rest } = JSON.parse(said) as { reason?: string };
      if (reason !== undefined) return t.skip(reason);
      const isolation = 'bubblewrap: namespaces of its own, the user of the node without capabilities';
      assert.deepEqual(rest, { printed: '65534\n', code: 2, hoard: 'memory', isolation }, complaint);
    } finally {
      await rm(own, { recursive: true, force: true });
    }
  });
});

/** Processes that have this word among their arguments, as a whole or in a script; not those of the test. */
async function running(word: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (line.includes(`sleep ${word}`) || line.includes(`sleep\0${word}`)) found.push(line);
  }
  return found;
}

/** Control groups that carry the name of this folder. */
async function groupsOf(folder: string): Promise<string[]> {
  const name = `hypermesh-${createHash('sha256').update(folder).digest('hex').slice(0, 16)}`;
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8'))
    .split('\n')
    .filter((line) => / - cgroup2? /.test(line));
  const own = await readFile('/proc/self/cgroup', 'utf8');
  const parents = mounts.flatMap((line) =>
    own.split('\n').map((group) => path.join(line.split(' ')[4]!, group.split(':')[2] ?? '')),
  );
  return [...new Set(parents)].flatMap((parent) =>
    (existsSync(parent) ? readdirSync(parent) : [])
      .filter((one) => one.startsWith(name))
      .map((one) => path.join(parent, one)),
  );
}

/** Its groups, and the processes that bear its mark. */
async function leftOf(folder: string): Promise<string[]> {
  const left = await groupsOf(folder);
  const mark = `/proc/0/hypermesh-${createHash('sha256').update(folder).digest('hex').slice(0, 16)}`;
  for (const pid of await readdir('/proc'))
    if ((await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).includes(mark)) left.push(`process ${pid}`);
  return left;
}

after(() => rm(directory, { recursive: true, force: true }));
