import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, statfsSync } from 'node:fs';
import {
  chmod,
  type FileHandle,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  realpath,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';
import { type Duplex, type Readable, Transform, type Writable } from 'node:stream';
import { setTimeout as pause } from 'node:timers/promises';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { Box, BoxExit, BoxLimits, BoxSpec, SandboxStatus } from './box.ts';
import { type Cgroup, Cgroups, type Controller } from './cgroups.ts';
import { checkBox } from './probe.ts';
import { measureTree } from './process-tree.ts';
import { assembleFilter } from './seccomp.ts';

export interface ProcessSandbox extends AsyncDisposable {
  /** A real hardened run that tries to break out, once as long as it succeeds. */
  probe(): Promise<SandboxStatus>;
  /**
   * Errors: `runtime-unavailable` when this machine cannot hold a box, `cancelled` before the start, `usage` on a source outside
   * the folder of the sandbox. What happens later is in `exit`.
   */
  start(spec: BoxSpec, options?: Pick<CallOptions, 'signal'>): Promise<Box>;
}

export interface ProcessSandboxOptions {
  /** Ours alone; package trees and images that boxes are shown lie in it. Made when missing. */
  readonly directory: string;
  /** `false`: do without control groups, as on a machine that lends none. */
  readonly cgroups?: boolean;
}

/** Starts nothing; removes the groups that a killed node left behind. */
export async function openProcessSandbox(options: ProcessSandboxOptions): Promise<ProcessSandbox> {
  await mkdir(options.directory, { recursive: true });
  const directory = await realpath(options.directory);
  // Entered by the users of boxes, who cannot list it; what lies in it is not secret to programs that are shown it anyway.
  await chmod(directory, 0o711);
  const name = `hypermesh-${createHash('sha256').update(directory).digest('hex').slice(0, 16)}`;
  const isUsable = process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64');
  if (isUsable) {
    await endMarked(markOf(name));
    await Cgroups.sweep(name);
  }
  return new Sandbox(directory, name, options.cgroups ?? true);
}

const WATCH_MS = 50;
const STARTING_MS_MAX = 2_000;
const ENDING_MS_MAX = 5_000;
const ROUNDS_MAX = 50;
/**
 * Users for boxes when the node runs as root: one for each box, so that limits by user are limits by box. Above what distributions
 * and containers give away; the highest ones where only some users are mapped.
 */
const UID_FIRST = 2_000_000_000;
const UIDS = 4_000;
const NOBODY = 65_534;
/** What the chain of programs around the box needs for itself. */
const OWN_PIDS = 4;
const OPEN_FILES = 256;
const SHM_BYTES = 16 * 2 ** 20;
/** Standard streams, control socket, filter and status: what a box is started with. */
const OWN_FD_LAST = 5;
const STATUS_BYTES_MAX = 4_096;
/** Where the node's folder is seen by the users of boxes, in a mount namespace of the box alone. */
const WINDOW = '/mnt';
const HOST_FOLDERS = ['usr', 'bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32'];
const SYSTEM_FOLDERS = new Set(['', 'dev', 'etc', 'proc', 'sys', 'tmp', ...HOST_FOLDERS]);
const HOST_FILES = ['/etc/ld.so.cache', '/etc/alternatives'];
/** Entries of an image that the box makes itself. */
const BOX_FOLDERS = new Set(['proc', 'sys', 'dev', 'tmp', 'run', 'package', 'packages', 'home', 'root', 'mnt', 'boot']);
/** What `/proc` says about the machine and not about the box. */
const MASKED = [
  ...['buddyinfo', 'cmdline', 'config.gz', 'interrupts', 'iomem', 'ioports', 'kallsyms', 'kcore', 'key-users', 'keys'],
  ...['kmsg', 'kpagecgroup', 'kpagecount', 'kpageflags', 'modules', 'pagetypeinfo', 'sched_debug', 'slabinfo', 'swaps'],
  ...['sysrq-trigger', 'timer_list', 'vmallocinfo', 'zoneinfo'],
].map((name) => `/proc/${name}`);
/** Shell script: $1 is the node. When it dies from now on, this dies; when it died before, this is another's child by now. */
const LIVE = '[ "$PPID" = "$1" ] || exit 125; shift; ';
/** Shell script: $1 mounts $2 where the user of a box finds it, and stays until it is told that it was seen. */
const SHOW = `"$1" --bind "$2" ${WINDOW} && echo && read seen`;
/** Shell script: joins the control groups up to `--`, and becomes the rest. */
const ENTER = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"';

/** Signals that a shell's status 128+n stands for, as far as programs die of them. */
const DEADLY: Readonly<Record<number, string>> = {
  3: 'SIGQUIT',
  4: 'SIGILL',
  5: 'SIGTRAP',
  6: 'SIGABRT',
  7: 'SIGBUS',
  8: 'SIGFPE',
  9: 'SIGKILL',
  11: 'SIGSEGV',
  24: 'SIGXCPU',
  25: 'SIGXFSZ',
  31: 'SIGSYS',
};

const ROOT_TOOLS = ['unshare', 'nsenter', 'mount', 'env'] as const;

interface Tools {
  readonly bwrap: string;
  readonly prlimit: string;
  readonly setpriv: string;
  readonly taskset: string;
  /** Only root needs them. */
  readonly asRoot: Readonly<Record<(typeof ROOT_TOOLS)[number], string>> | null;
}

/** What is found out about the machine once. */
interface Setup {
  readonly tools: Tools;
  /** Options of bubblewrap that show the `host` root. */
  readonly root: readonly string[];
  readonly masks: readonly string[];
  /** The file with the seccomp program. */
  readonly filter: string;
  /** Open descriptors that the node was started with and that a program would be started with, too. */
  readonly inherited: readonly number[];
  readonly shell: readonly string[];
  /** As root: a mount namespace in which the users of boxes reach our folder. It is there as long as it is open here. */
  readonly window: FileHandle | null;
  readonly uidFirst: number;
  readonly processors: readonly number[];
  readonly hardLimits: ReadonlyMap<string, number>;
}

class Sandbox implements ProcessSandbox {
  readonly #directory: string;
  readonly #name: string;
  readonly #usesCgroups: boolean;
  readonly #uids = new Set<number>();
  readonly #running = new Set<RunningBox>();
  /** Made with the first box. */
  #cgroups: Cgroups | undefined;
  #setup: Promise<Setup> | undefined;
  #probed: Promise<SandboxStatus> | undefined;
  /** Where users are taken from, and processors. Each node begins elsewhere. */
  #turn = process.pid;
  #closed = false;

  constructor(directory: string, name: string, usesCgroups: boolean) {
    this.#directory = directory;
    this.#name = name;
    this.#usesCgroups = usesCgroups;
  }

  async probe(): Promise<SandboxStatus> {
    this.#probed ??= this.#probe();
    const status = await this.#probed;
    // A machine that was out of processes may have some now.
    if (!status.available) this.#probed = undefined;
    return status;
  }

  async start(spec: BoxSpec, options: Pick<CallOptions, 'signal'> = {}): Promise<Box> {
    const { available, reason, remedy } = await this.probe();
    if (!available) {
      throw new HyperMeshError('runtime-unavailable', `This machine cannot hold a program in a box: ${reason}`, {
        ...(remedy === null ? {} : { hint: remedy }),
      });
    }
    return this.#start(spec, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all(
      [...this.#running].map((box) => {
        box.stop('cancelled', 'The node stopped.');
        return box.exit;
      }),
    );
    await this.#cgroups?.[Symbol.asyncDispose]();
    const setup = await this.#setup?.catch(() => undefined);
    await setup?.window?.close();
  }

  async #probe(): Promise<SandboxStatus> {
    const unavailable = (reason: string, remedy: string): SandboxStatus => ({
      available: false,
      reason,
      remedy,
      enforces: {},
    });
    if (process.platform !== 'linux' || (process.arch !== 'x64' && process.arch !== 'arm64'))
      return unavailable(
        `boxes for processes need Linux on x64 or arm64, this is ${process.platform} on ${process.arch}.`,
        'Run packages of other languages than wasm on such a machine.',
      );
    const missing = ['bwrap', 'prlimit', 'setpriv', 'taskset', ...(isRoot() ? ROOT_TOOLS : [])].filter(
      (name) => find(name) === null,
    );
    if (missing.length > 0)
      return unavailable(
        `${missing.join(', ')} ${missing.length === 1 ? 'is' : 'are'} not installed.`,
        'Install bubblewrap and util-linux, for example with `apt-get install bubblewrap util-linux`.',
      );
    const failure = await checkBox((spec) => this.#start(spec, {}), this.#directory).catch((error: unknown) =>
      error instanceof Error ? error.message : String(error),
    );
    if (failure !== null)
      return unavailable(
        failure,
        'User namespaces must be allowed (kernel.unprivileged_userns_clone, user.max_user_namespaces, AppArmor); a container needs the right to make them.',
      );
    return { available: true, reason: null, remedy: null, enforces: this.#mechanisms() };
  }

  /** Whether the kernel holds this limit for all processes of a box together. */
  #holds(controller: Controller): boolean {
    return this.#cgroups?.enforces.has(controller) ?? false;
  }

  /** What holds which limit here. */
  #mechanisms(): Readonly<Record<string, string>> {
    const by = (controller: Controller) => this.#cgroups?.enforces.get(controller);
    return {
      isolation: `bubblewrap: namespaces of its own, ${isRoot() ? 'a user of its own' : 'the user of the node'} without capabilities`,
      syscalls: 'seccomp filter, an allow list',
      memory: this.#holds('memory') ? `${by('memory')} memory` : WATCHDOG,
      cpu: this.#holds('cpu') ? `${by('cpu')} quota` : 'affinity to that many processors, rounded up',
      pids: this.#holds('pids')
        ? `${by('pids')} pids`
        : `RLIMIT_NPROC of ${isRoot() ? 'a user of its own' : 'this user, above what else he runs'}`,
      wall: 'SIGKILL to the process namespace',
      output: 'counted by the node',
      tmp: 'tmpfs of that size',
      fileSize: 'RLIMIT_FSIZE',
      files: 'a root of its own, read-only but /tmp; only package folders are mounted',
      network: 'an empty network namespace, sockets only AF_UNIX by seccomp',
    };
  }

  async #start(spec: BoxSpec, { signal }: Pick<CallOptions, 'signal'>): Promise<Box> {
    this.#setup ??= this.#prepare().catch((error: unknown) => {
      this.#setup = undefined;
      throw error;
    });
    const setup = await this.#setup;
    const uid = this.#takeUid(setup.uidFirst);
    let cgroup: Cgroup | null = null;
    let filter: FileHandle | undefined;
    try {
      const limits = { ...spec.limits, pids: spec.limits.pids + OWN_PIDS };
      cgroup = (await this.#cgroups?.create(randomBytes(8).toString('hex'), limits)) ?? null;
      const files = await this.#binds(spec);
      filter = await open(setup.filter, 'r');
      if (this.#closed || signal?.aborted)
        throw new HyperMeshError('cancelled', 'The run was cancelled before the program started.', {
          cause: signal?.reason,
        });
      const inner = [
        ...this.#limited(spec.limits, uid, setup, await this.#userTasks()),
        setup.tools.bwrap,
        ...['--unshare-all', '--unshare-user', '--disable-userns', '--die-with-parent', '--new-session', '--clearenv'],
        ...Object.entries(spec.environment).flatMap(([name, value]) => ['--setenv', name, value]),
        ...['--hostname', 'box', '--proc', '/proc', '--dev', '/dev', '--perms', '0755', '--dir', '/etc'],
        ...files,
        ...['--size', String(Math.max(4096, spec.limits.tmpBytes)), '--perms', '1777', '--tmpfs', '/tmp'],
        ...['--size', String(SHM_BYTES), '--perms', '1777', '--tmpfs', '/dev/shm', '--remount-ro', '/dev'],
        ...setup.masks.flatMap((file) => ['--ro-bind', '/dev/null', file]),
        // Nothing is there, and nothing is shown: the words are a mark by which the next node finds what this one left.
        ...['--ro-bind-try', markOf(this.#name), '/none'],
        ...['--remount-ro', '/', '--chdir', '/', '--cap-drop', 'ALL', '--uid', String(NOBODY), '--gid', String(NOBODY)],
        ...['--seccomp', '4', '--json-status-fd', '5', '--', ...spec.command],
      ];
      const [program, ...args] = this.#entered(inner, cgroup, setup);
      const child = spawn(program!, args, {
        env: {},
        cwd: '/',
        detached: true,
        stdio: ['pipe', 'pipe', 'pipe', 'pipe', filter.fd, 'pipe'],
      });
      const box = new RunningBox(child, spec.limits, cgroup, this.#mechanisms(), !this.#holds('memory'));
      this.#running.add(box);
      const cancel = () => box.stop('cancelled', 'The caller gave up.');
      signal?.addEventListener('abort', cancel, { once: true });
      void box.exit.finally(() => {
        signal?.removeEventListener('abort', cancel);
        this.#running.delete(box);
        this.#uids.delete(uid);
      });
      return box;
    } catch (error) {
      this.#uids.delete(uid);
      await cgroup?.remove();
      throw error;
    } finally {
      await filter?.close();
    }
  }

  async #prepare(): Promise<Setup> {
    if (this.#usesCgroups) this.#cgroups = await Cgroups.open(this.#name);
    const need = (name: string) => find(name)!;
    const tools: Tools = {
      ...{ bwrap: need('bwrap'), prlimit: need('prlimit'), setpriv: need('setpriv'), taskset: need('taskset') },
      asRoot: isRoot()
        ? { unshare: need('unshare'), nsenter: need('nsenter'), mount: need('mount'), env: need('env') }
        : null,
    };
    const root: string[] = [];
    for (const name of HOST_FOLDERS) root.push(...(await seen(`/${name}`, `/${name}`)));
    for (const file of HOST_FILES) if (existsSync(file)) root.push('--ro-bind', file, file);
    const filter = path.join(this.#directory, 'seccomp.bpf');
    await writeFile(filter, assembleFilter(process.arch as 'x64' | 'arm64'));
    const masks = MASKED.filter((file) => existsSync(file));
    const inherited = await inheritedDescriptors();
    // Other shells cannot name descriptors above 9.
    const shell = inherited.length === 0 ? ['/bin/sh'] : ['/bin/bash', '--norc', '--noprofile'];
    if (!existsSync(shell[0]!))
      throw new Error(`${shell[0]} is needed to close descriptor ${inherited[0]}, with which the node was started`);
    return {
      tools,
      root,
      masks,
      filter,
      inherited,
      shell,
      uidFirst: await firstUid(),
      processors: await ownProcessors(),
      hardLimits: await ownHardLimits(),
      window: tools.asRoot === null ? null : await openWindow(tools.asRoot, this.#directory),
    };
  }

  /** The root and the mounts, as options of bubblewrap. */
  async #binds(spec: BoxSpec): Promise<string[]> {
    const binds: string[] = [];
    if (spec.root === 'host') {
      binds.push(...(await this.#setup)!.root);
    } else {
      const image = await this.#ours(spec.root);
      for (const name of await readdir(image)) {
        if (BOX_FOLDERS.has(name)) continue;
        binds.push(...(await seen(path.join(image, name), `/${name}`, this.#shown(path.join(image, name)))));
      }
    }
    for (const { source, at } of spec.mounts) {
      if (SYSTEM_FOLDERS.has(at.split('/')[1] ?? ''))
        throw new HyperMeshError('usage', `A package cannot be shown at ${at}: the system of the box lies there.`);
      binds.push('--ro-bind', this.#shown(await this.#ours(source)), at);
    }
    return binds;
  }

  /** Bubblewrap follows a link in a source: only folders of ours that are no links are shown. */
  async #ours(folder: string): Promise<string> {
    const real = await realpath(folder);
    const relative = path.relative(this.#directory, real);
    if (relative === '' || relative.startsWith('..') || path.isAbsolute(relative))
      throw new HyperMeshError('usage', `A box can be shown folders beneath ${this.#directory} only, not ${folder}.`);
    return real;
  }

  /** The path by which the user of a box reaches a folder of ours. */
  #shown(folder: string): string {
    return isRoot() ? path.join(WINDOW, path.relative(this.#directory, folder)) : folder;
  }

  #limited(limits: BoxLimits, uid: number, { tools, processors, hardLimits }: Setup, userTasks: number): string[] {
    const cpuSeconds = Math.ceil((limits.wallMs / 1_000) * limits.cpuCores) + 1;
    // Nobody may raise a limit above the one that the node was started with.
    const within = (name: string, value: number) => Math.min(value, hardLimits.get(name) ?? value);
    const prlimit = [
      ...[tools.prlimit, '--core=0', '--memlock=0', `--nofile=${within('Max open files', OPEN_FILES)}`],
      `--cpu=${within('Max cpu time', cpuSeconds)}`,
      `--fsize=${within('Max file size', limits.fileBytes)}`,
      `--nproc=${within('Max processes', limits.pids + OWN_PIDS + userTasks)}`,
    ];
    if (!this.#holds('cpu')) {
      const count = Math.min(Math.ceil(limits.cpuCores), processors.length);
      // In turn, or all boxes would share the first one.
      const chosen = Array.from({ length: count }, () => processors[this.#turn++ % processors.length]);
      prlimit.push(tools.taskset, '--cpu-list', chosen.join(','));
    }
    if (tools.asRoot === null) return prlimit;
    const { env } = tools.asRoot;
    // A change of users takes back that it dies with the node.
    const user = ['--pdeathsig=KILL', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--no-new-privs'];
    return [tools.setpriv, ...user, ...prlimit, env, '-i'];
  }

  /** What happens before: as root, our folder is shown; leaked descriptors are closed, and the control groups entered. */
  #entered(inner: string[], cgroup: Cgroup | null, { tools, shell, inherited, window }: Setup): string[] {
    const close = inherited.length === 0 ? '' : `exec ${inherited.map((fd) => `${fd}>&-`).join(' ')}; `;
    return [
      ...[tools.setpriv, '--pdeathsig', 'KILL', '--'],
      ...(window === null ? [] : [tools.asRoot!.nsenter, `--mount=/proc/${process.pid}/fd/${window.fd}`, '--']),
      ...[...shell, '-c', `${LIVE}${close}${ENTER}`, 'sh', String(process.pid)],
      ...[...(cgroup?.entrances ?? []), '--', ...inner],
    ];
  }

  #takeUid(first: number): number {
    for (let index = 0; index < UIDS; index++) {
      // The one after the last: the kernel may still count what ran as that user a moment ago.
      const uid = first + ((this.#turn + index) % UIDS);
      if (this.#uids.has(uid)) continue;
      this.#turn += index + 1;
      this.#uids.add(uid);
      return uid;
    }
    throw new HyperMeshError('quota-exceeded', `${UIDS} boxes run already.`);
  }

  /** Where the limit on processes counts all that this user runs. */
  async #userTasks(): Promise<number> {
    if (isRoot()) return 0;
    const uid = process.getuid!();
    let tasks = 0;
    for (const name of await readdir('/proc')) {
      if (!/^\d+$/.test(name)) continue;
      const status = await readFile(`/proc/${name}/status`, 'latin1').catch(() => '');
      if (Number(/^Uid:\t(\d+)/m.exec(status)?.[1]) === uid) tasks += Number(/^Threads:\t(\d+)/m.exec(status)?.[1]);
    }
    return tasks;
  }
}

const WATCHDOG = `watchdog on resident size and scratch files every ${WATCH_MS} ms`;

class RunningBox implements Box {
  readonly stdin: Writable;
  readonly stdout: Readable;
  readonly stderr: Readable;
  readonly control: Duplex;
  readonly exit: Promise<BoxExit>;
  readonly #child: ChildProcess;
  readonly #limits: BoxLimits;
  readonly #cgroup: Cgroup | null;
  readonly #enforcedBy: Readonly<Record<string, string>>;
  readonly #startMs = performance.now();
  #stopped: { readonly termination: BoxExit['termination']; readonly reason: string } | undefined;
  #outputBytes = 0;
  #complaint = '';
  /** What bubblewrap says about the box: one JSON object on each line. */
  #report = '';
  #cpuMs = 0;
  #peakBytes = 0;

  constructor(
    child: ChildProcess,
    limits: BoxLimits,
    cgroup: Cgroup | null,
    enforcedBy: Readonly<Record<string, string>>,
    isWatched: boolean,
  ) {
    this.#child = child;
    this.#limits = limits;
    this.#cgroup = cgroup;
    this.#enforcedBy = enforcedBy;
    const [stdin, stdout, stderr, control, , status] = child.stdio as unknown as Duplex[];
    this.stdin = stdin!;
    this.control = control!;
    this.stdout = this.#counted(stdout!);
    stderr!.on('data', (piece: Buffer) => {
      if (this.#complaint.length < STATUS_BYTES_MAX) this.#complaint += piece.toString('utf8');
    });
    this.stderr = this.#counted(stderr!);
    // A program may end before it has read everything.
    this.stdin.on('error', () => {});
    this.control.on('error', () => {});
    this.exit = this.#follow(status!, isWatched);
  }

  kill(): void {
    this.stop('cancelled', 'The caller gave up.');
  }

  stop(termination: BoxExit['termination'], reason: string): void {
    if (this.#stopped !== undefined) return;
    this.#stopped = { termination, reason };
    // Killed while it sets the box up, it would leave half of it behind; that takes milliseconds.
    if (this.#init() === null) setTimeout(() => this.#child.kill('SIGKILL'), STARTING_MS_MAX).unref();
    else this.#child.kill('SIGKILL');
  }

  /** The first process of the box, as soon as it is there. The kernel ends everything in the box with it, and it ends with its parent. */
  #init(): number | null {
    const pid = /"child-pid": (\d+)/.exec(this.#report)?.[1];
    return pid === undefined ? null : Number(pid);
  }

  #counted(source: Readable): Readable {
    const counter = new Transform({
      transform: (piece: Buffer, _encoding, done) => {
        const free = this.#limits.outputBytes - this.#outputBytes;
        this.#outputBytes += piece.length;
        if (piece.length > free) this.stop('output', `The program wrote more than ${this.#limits.outputBytes} bytes.`);
        done(null, free <= 0 ? undefined : piece.subarray(0, free));
      },
    });
    source.on('error', () => counter.end());
    return source.pipe(counter);
  }

  async #follow(status: Readable, isWatched: boolean): Promise<BoxExit> {
    const wall = setTimeout(
      () => this.stop('timeout', `The program ran longer than its ${this.#limits.wallMs} ms.`),
      this.#limits.wallMs,
    );
    const watch = isWatched ? setInterval(() => this.#watch(), WATCH_MS) : undefined;
    status.on('data', (piece: Buffer) => {
      if (this.#report.length < STATUS_BYTES_MAX) this.#report += piece.toString('latin1');
      // A short program ends before the first turn of the watch.
      if (isWatched) this.#watch();
      if (this.#stopped !== undefined && this.#init() !== null) this.#child.kill('SIGKILL');
    });
    status.on('error', () => {});
    const failure = await new Promise<Error | null>((resolve) => {
      this.#child.once('exit', () => resolve(null));
      this.#child.once('error', resolve);
    });
    clearTimeout(wall);
    clearInterval(watch);
    const wallMs = Math.round(performance.now() - this.#startMs);
    if (!status.readableEnded && failure === null) await once(status, 'close').catch(() => {});
    await emptied(this.#init());
    const kernel = await this.#cgroup?.usage();
    await this.#cgroup?.remove();
    // What the program said last may still be unread; where nobody listens, nobody will.
    if (this.control.readableFlowing === null && this.control.listenerCount('readable') === 0) this.control.resume();
    this.control.end();
    return {
      ...this.#judge(failure, kernel?.oomKills ?? 0),
      usage: {
        wallMs,
        cpuMs: kernel?.cpuMs ?? this.#cpuMs,
        peakMemoryBytes: kernel?.peakMemoryBytes ?? this.#peakBytes,
      },
      enforcedBy: this.#enforcedBy,
    };
  }

  #judge(failure: Error | null, oomKills: number): Omit<BoxExit, 'usage' | 'enforcedBy'> {
    const none = { exitCode: null, signal: null };
    if (this.#stopped !== undefined) return { ...this.#stopped, ...none };
    const code = /"exit-code": (\d+)/.exec(this.#report)?.[1];
    const exitCode = code === undefined ? null : Number(code);
    const signal = exitCode === null || exitCode <= 128 ? null : (DEADLY[exitCode - 128] ?? null);
    if (oomKills > 0 && (exitCode === null || signal === 'SIGKILL'))
      return {
        termination: 'memory',
        reason: `The program took more than its ${this.#limits.memoryBytes} bytes of memory.`,
        ...none,
        signal: 'SIGKILL',
      };
    if (exitCode === null) {
      const why = failure?.message ?? (this.#complaint.trim().slice(0, 500) || 'it ended at once');
      return { termination: 'sandbox', reason: `The box could not be set up: ${why}`, ...none };
    }
    if (signal === null) return { termination: 'exit', reason: null, exitCode, signal: null };
    return { termination: 'error', reason: reasonFor(signal, this.#limits), exitCode: null, signal };
  }

  #watch(): void {
    if (this.#child.pid === undefined) return;
    const { residentBytes: processBytes, cpuMs } = measureTree(this.#child.pid);
    const residentBytes = processBytes + scratchBytes(this.#init(), this.#limits.tmpBytes);
    this.#cpuMs = Math.max(this.#cpuMs, cpuMs);
    this.#peakBytes = Math.max(this.#peakBytes, residentBytes);
    if (residentBytes > this.#limits.memoryBytes)
      this.stop('memory', `The program took more than its ${this.#limits.memoryBytes} bytes of memory.`);
  }
}

/**
 * Waits for the first process of the box. The kernel counts it as ended only when everything else in its namespace has: who
 * sees it gone, or waiting to be reaped, sees an empty box.
 */
async function emptied(init: number | null): Promise<void> {
  if (init === null) return;
  const deadline = performance.now() + ENDING_MS_MAX;
  for (let waitMs = 1; performance.now() < deadline; waitMs = Math.min(2 * waitMs, WATCH_MS)) {
    const status = await readFile(`/proc/${init}/status`, 'latin1').catch(() => '');
    if (!/^State:\t[^ZX]/m.test(status)) return;
    // It dies with its parent, but for a moment at its start. First in a namespace below ours: it is no other's process.
    if (/^NSpid:.*\t1$/m.test(status)) killQuietly(init);
    await pause(waitMs);
  }
}

/** A file without content takes about this much of the kernel's memory. */
const INODE_BYTES = 1_024;

/** Memory behind the files of a box. */
function scratchBytes(init: number | null, tmpBytes: number): number {
  let sum = 0;
  for (const [folder, size] of [
    ['tmp', tmpBytes],
    ['dev/shm', SHM_BYTES],
  ] as const) {
    try {
      const { blocks, bfree, bsize, files, ffree } = statfsSync(`/proc/${init}/root/${folder}`);
      // Before it has entered its root, the box sees that of the host.
      if (blocks * bsize <= size + bsize) sum += (blocks - bfree) * bsize + (files - ffree) * INODE_BYTES;
    } catch {
      // not there yet, or not any more
    }
  }
  return sum;
}

/** Ends what a killed node left: whatever has its mark among its arguments. */
async function endMarked(mark: string): Promise<void> {
  // Again until there is none: one that was seen may have started another before it was ended.
  for (let found = 1, round = 0; found > 0 && round < ROUNDS_MAX; round++) {
    found = 0;
    for (const name of await readdir('/proc').catch(() => [])) {
      if (!/^\d+$/.test(name)) continue;
      const line = await readFile(`/proc/${name}/cmdline`, 'latin1').catch(() => '');
      if (!line.split('\0').includes(mark)) continue;
      killQuietly(Number(name));
      found += 1;
    }
    if (found > 0) await pause(round);
  }
}

function reasonFor(signal: string, limits: BoxLimits): string {
  if (signal === 'SIGXFSZ') return `The program made a file larger than ${limits.fileBytes} bytes.`;
  if (signal === 'SIGXCPU') return 'The program used up its processor time.';
  return `The program was ended by ${signal}.`;
}

function markOf(name: string): string {
  return `/proc/0/${name}`;
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // gone meanwhile
  }
}

function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/** Not from PATH, which belongs to whoever started the node. */
function find(name: string): string | null {
  return (
    ['/usr/bin', '/bin', '/usr/sbin', '/sbin', '/usr/local/bin']
      .map((folder) => path.join(folder, name))
      .find(existsSync) ?? null
  );
}

async function firstUid(): Promise<number> {
  const map = await readFile('/proc/self/uid_map', 'latin1');
  const ends = map.split('\n').flatMap((line) => {
    const [inside, , count] = line.trim().split(/\s+/).map(Number);
    return count === undefined ? [] : [inside! + count];
  });
  // 65,534 is nobody, to whom files of strangers seem to belong.
  return Math.min(UID_FIRST, Math.max(...ends) - UIDS - 1_000);
}

/** Processors that this process may use, such as 0-3,8. */
async function ownProcessors(): Promise<number[]> {
  const list = /^Cpus_allowed_list:\t(.*)$/m.exec(await readFile('/proc/self/status', 'latin1'))?.[1] ?? '0';
  return list.split(',').flatMap((span) => {
    const [first = 0, last = first] = span.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}

/** A home is closed to all other users; this shows the one folder of it that they may see, and to nobody but who enters. */
async function openWindow({ unshare, mount }: NonNullable<Tools['asRoot']>, directory: string): Promise<FileHandle> {
  const args = ['--mount', '--propagation', 'private', '--', '/bin/sh', '-c', SHOW, 'sh', mount, directory];
  // Ends with its input, so also with the node.
  const keeper = spawn(unshare, args, { env: {}, cwd: '/', stdio: ['pipe', 'pipe', 'pipe'] });
  keeper.stdin.on('error', () => {});
  let complaint = '';
  keeper.stderr.on('data', (piece: Buffer) => {
    complaint += piece.toString('utf8').slice(0, STATUS_BYTES_MAX);
  });
  const ended = new Promise<never>((_resolve, reject) => {
    keeper.once('error', reject);
    keeper.once('close', () => reject(new Error(`a mount namespace could not be made: ${complaint.trim()}`)));
  });
  ended.catch(() => {});
  await Promise.race([once(keeper.stdout, 'data'), ended]);
  const window = await open(`/proc/${keeper.pid}/ns/mnt`, 'r');
  keeper.stdin.end();
  return window;
}

/** Name of a limit as `/proc/self/limits` has it -> its hard value; what is unlimited is left out. */
async function ownHardLimits(): Promise<ReadonlyMap<string, number>> {
  const lines = (await readFile('/proc/self/limits', 'latin1')).split('\n');
  return new Map(
    lines.flatMap((line) => {
      const [, name, hard] = /^(Max [a-z ]+?) {2,}\S+ +(\d+)/.exec(line) ?? [];
      return name === undefined ? [] : [[name, Number(hard)] as const];
    }),
  );
}

/** One entry of a root: a link stays a link. */
async function seen(file: string, at: string, shown = file): Promise<string[]> {
  const entry = await lstat(file).catch(() => null);
  if (entry === null) return [];
  if (entry.isSymbolicLink()) return ['--symlink', await readlink(file), at];
  return entry.isDirectory() || entry.isFile() ? ['--ro-bind', shown, at] : [];
}

const CLOSE_ON_EXEC = 0o2000000;

/** Descriptors that this process was given and that a child would be given, too. What Node opens itself closes on exec. */
async function inheritedDescriptors(): Promise<number[]> {
  const found: number[] = [];
  for (const name of await readdir('/proc/self/fdinfo')) {
    const info = await readFile(`/proc/self/fdinfo/${name}`, 'latin1').catch(() => '');
    const flags = Number.parseInt(/^flags:\t([0-7]+)/m.exec(info)?.[1] ?? '', 8);
    if (Number(name) > OWN_FD_LAST && (flags & CLOSE_ON_EXEC) === 0) found.push(Number(name));
  }
  return found;
}
