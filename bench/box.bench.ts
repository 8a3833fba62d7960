import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { openProcessSandbox } from '../src/subsystems/vm/process/sandbox.ts';
import { type Bench, type Comparison, inTurn, timed } from './harness.ts';

const ROUNDS = 30;
const WORK_ROUNDS = 3;
const MiB = 2 ** 20;
const LIMITS = {
  ...{ memoryBytes: 256 * MiB, cpuCores: 1, wallMs: 60_000, pids: 64 },
  ...{ tmpBytes: 64 * MiB, fileBytes: 64 * MiB, outputBytes: MiB },
};
const ROOT = ['/usr', '/bin', '/sbin', '/lib', '/lib64', '/etc/ld.so.cache'].filter((entry) => existsSync(entry));
const MASKS = [
  ...[
    'keys',
    'kallsyms',
    'config.gz',
    'cmdline',
    'timer_list',
    'interrupts',
    'modules',
    'kcore',
    'kmsg',
    'sched_debug',
  ],
  ...['slabinfo', 'iomem', 'ioports', 'zoneinfo', 'pagetypeinfo', 'buddyinfo', 'kpagecount', 'kpageflags', 'swaps'],
].flatMap((name) => (existsSync(`/proc/${name}`) ? ['--ro-bind', '/dev/null', `/proc/${name}`] : []));
const HELLO = ['/bin/echo', 'hello'];
/** About a second of arithmetic and memory, which prints what it took on the processor's clock. */
const WORK = `
import time
start = time.process_time()
total, table = 0, list(range(50000))
for turn in range(120):
    for value in table: total = (total * 31 + value) % 1000003
    table.reverse()
print((time.process_time() - start) * 1000)`;

export const bench: Bench = {
  name: 'box',
  about: 'a program in a box of this project, against the same program behind the bare hardened bubblewrap command',
  async run() {
    const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-bench-'));
    await chmod(folder, 0o755);
    try {
      const comparisons: Comparison[] = [];
      for (const cgroups of [true, false]) {
        const directory = path.join(folder, String(cgroups));
        await using sandbox = await openProcessSandbox({ directory, cgroups });
        const { reason } = await sandbox.probe();
        if (reason !== null) throw new Error(reason);
        const source = path.join(directory, 'package');
        await mkdir(source);
        const filter = path.join(directory, 'seccomp.bpf');
        const ours = async (command: readonly string[], work: (output: Readable) => Promise<unknown>) => {
          const box = await sandbox.start({
            ...{ command, root: 'host', mounts: [{ source, at: '/package' }], limits: LIMITS },
            environment: { PATH: '/bin', HOME: '/tmp' },
          });
          box.stdin.end();
          box.stderr.resume();
          const done = await work(box.stdout);
          box.stdout.resume();
          const { exitCode } = await box.exit;
          if (exitCode !== 0) throw new Error(`The box ended with ${exitCode}.`);
          return done;
        };
        const groups = cgroups ? '' : ' without control groups';
        const until = (seen: (output: Readable) => Promise<unknown>) =>
          inTurn(
            ROUNDS,
            async () => {
              const startedAt = performance.now();
              let ms = Number.NaN;
              await ours(HELLO, async (output) => {
                await seen(output);
                ms = performance.now() - startedAt;
              });
              return ms;
            },
            async () => {
              const startedAt = performance.now();
              let ms = Number.NaN;
              await bare(filter, HELLO, async (output) => {
                await seen(output);
                ms = performance.now() - startedAt;
              });
              return ms;
            },
          );
        comparisons.push({
          ...{
            name: `start${groups}, until the program speaks`,
            unit: 'ms',
            reference: 'bare bubblewrap',
            ratioMax: 1.2,
          },
          ...(await until((output) => once(output, 'data'))),
        });
        const whole = await inTurn(
          ROUNDS,
          () => timed(() => ours(HELLO, text)),
          () => timed(() => bare(filter, HELLO, text)),
        );
        comparisons.push({ name: `start and end${groups}`, unit: 'ms', reference: 'bare bubblewrap', ...whole });
        if (!existsSync('/usr/bin/python3')) continue;
        const python = ['/usr/bin/python3', '-I', '-c', WORK];
        const worked = await inTurn(
          WORK_ROUNDS,
          async () => Number(await ours(python, text)),
          async () => Number(await plain(python)),
        );
        comparisons.push({
          ...{ name: `work on a processor${groups}`, unit: 'ms', reference: 'outside', ratioMax: 1 / 0.97 },
          ...worked,
        });
      }
      return comparisons;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

/** The command that a careful person would type: everything that a box of ours has, but for control groups and a watchdog. */
async function bare(
  filter: string,
  command: readonly string[],
  work: (output: Readable) => Promise<unknown>,
): Promise<void> {
  const user =
    process.getuid?.() === 0
      ? ['/usr/bin/setpriv', '--reuid', '200001', '--regid', '200001', '--clear-groups', '--no-new-privs']
      : [];
  const [program, ...args] = [
    ...user,
    ...[
      '/usr/bin/prlimit',
      '--core=0',
      '--fsize=67108864',
      '--nofile=256:256',
      '--memlock=0',
      '--cpu=61',
      '--nproc=4096',
    ],
    ...['/usr/bin/env', '-i', 'PATH=/bin', 'HOME=/tmp', '/usr/bin/bwrap'],
    ...['--unshare-all', '--unshare-user', '--disable-userns', '--die-with-parent', '--new-session', '--clearenv'],
    ...['--setenv', 'PATH', '/bin', '--setenv', 'HOME', '/tmp', '--hostname', 'sandbox'],
    ...ROOT.flatMap((entry) => ['--ro-bind', entry, entry]),
    ...['--proc', '/proc', '--dev', '/dev', '--size', '67108864', '--perms', '1777', '--tmpfs', '/tmp'],
    ...['--size', '16777216', '--perms', '1777', '--tmpfs', '/dev/shm', '--remount-ro', '/dev', ...MASKS],
    ...['--cap-drop', 'ALL', '--uid', '65534', '--gid', '65534', '--seccomp', '4', '--', ...command],
  ];
  await using file = await open(filter, 'r');
  const child = spawn(program!, args, { env: {}, detached: true, stdio: ['pipe', 'pipe', 'inherit', 'pipe', file.fd] });
  const closed = once(child, 'close');
  await work(child.stdout!);
  child.stdout!.resume();
  const [status] = (await closed) as [number];
  if (status !== 0) throw new Error(`The bare command ended with ${status}.`);
}

async function plain([program, ...args]: readonly string[]): Promise<string> {
  const child = spawn(program!, args, { env: {}, stdio: ['ignore', 'pipe', 'inherit'] });
  return text(child.stdout);
}
