import { randomBytes } from 'node:crypto';
import { chmod, chown, mkdir, readdir, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { Probed } from '../probed.ts';
import type { AheadBox, Box, BoxLimits, BoxSpec, SandboxStatus } from './box.ts';
import { type Cgroup, Cgroups, type Controller } from './cgroups.ts';
import { Launcher, userTasks } from './launcher.ts';
import { lendFolder } from './lend.ts';
import { examine, HOST_FOLDERS, isRoot, type Machine, missingTools, seen, UIDS, WINDOW } from './machine.ts';
import { checkBox } from './probe.ts';
import { RunningBox, SHM_BYTES, WATCHDOG } from './running-box.ts';
import { tmpSize } from './scratch.ts';
import { boxesName, markOf, sweepBoxes } from './sweep.ts';

export interface ProcessSandbox extends AsyncDisposable {
  /** A real hardened run that tries to break out, once as long as it succeeds. */
  probe(): Promise<SandboxStatus>;
  /**
   * Errors: `runtime-unavailable` when this machine cannot hold a box, `cancelled` before the start, `usage` on a source outside
   * the folder of the sandbox. What happens later is in `exit`.
   */
  start(spec: BoxSpec, options?: Pick<CallOptions, 'signal'>): Promise<Box>;
  /** As {@link start}, ahead of a run that may never come. Others come first where processors are short; the caller bounds how long it waits. */
  startAhead(spec: BoxSpec): Promise<AheadBox>;
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
  await sweepBoxes(directory);
  return new Sandbox(directory, boxesName(directory), options.cgroups ?? true);
}

const NOBODY = 65_534;
/** What the chain of programs around the box needs for itself. */
const OWN_PIDS = 4;
/** Processes that wait for a program to run, and for how long. */
const LAUNCHERS = 2;
const IDLE_MS = 30_000;
/** What they are ready for; a box that asks for more takes a moment longer. */
const CORES_USUAL = 1;
/** Seconds of a processor that a box which was started ahead may have used before its run. */
const AHEAD_CPU_S = 60;
const OPEN_FILES = 256;
const SYSTEM_FOLDERS = new Set(['', 'dev', 'etc', 'proc', 'sys', 'tmp', ...HOST_FOLDERS]);
/** Entries of an image that the box makes itself. */
const BOX_FOLDERS = new Set(['proc', 'sys', 'dev', 'tmp', 'package', 'packages', 'folders', 'connect']);

interface StartOptions extends Pick<CallOptions, 'signal'> {
  readonly isAhead?: boolean;
}

class Sandbox implements ProcessSandbox {
  readonly #directory: string;
  readonly #name: string;
  readonly #usesCgroups: boolean;
  readonly #uids = new Set<number>();
  readonly #running = new Set<RunningBox>();
  readonly #launchers = new Set<Launcher>();
  /** What goes on in the background. */
  readonly #pending = new Set<Promise<unknown>>();
  #idle: NodeJS.Timeout | undefined;
  /** Made with the first box. */
  #cgroups: Cgroups | undefined;
  #machine: Promise<Machine> | undefined;
  readonly #probed = new Probed(() => this.#probe());
  /** Where users are taken from, and processors. Each node begins elsewhere. */
  #turn = process.pid;
  #closed = false;

  constructor(directory: string, name: string, usesCgroups: boolean) {
    this.#directory = directory;
    this.#name = name;
    this.#usesCgroups = usesCgroups;
  }

  probe(): Promise<SandboxStatus> {
    return this.#probed.status();
  }

  async start(spec: BoxSpec, { signal }: Pick<CallOptions, 'signal'> = {}): Promise<Box> {
    await this.#require();
    return this.#start(spec, { signal });
  }

  async startAhead(spec: BoxSpec): Promise<AheadBox> {
    await this.#require();
    return this.#start(spec, { isAhead: true });
  }

  async #require(): Promise<void> {
    const { available, reason, remedy } = await this.probe();
    if (available) return;
    throw new HyperMeshError('runtime-unavailable', `This machine cannot hold a program in a box: ${reason}`, {
      ...(remedy === null ? {} : { hint: remedy }),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all(
      [...this.#running].map((box) => {
        box.stop('cancelled', 'The node stopped.');
        return box.exit;
      }),
    );
    this.#discardLaunchers();
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending);
    await this.#cgroups?.[Symbol.asyncDispose]();
    const machine = await this.#machine?.catch(() => undefined);
    await machine?.window?.close();
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
    const missing = missingTools();
    if (missing.length > 0)
      return unavailable(
        `${missing.join(', ')} ${missing.length === 1 ? 'is' : 'are'} not installed.`,
        'Install bubblewrap and util-linux, for example with `apt-get install bubblewrap util-linux`.',
      );
    const failure = await checkBox((spec) => this.#start(spec), this.#directory).catch((error: unknown) =>
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
  #mechanisms({ folders = [], sockets = [] }: Partial<BoxSpec> = {}): Readonly<Record<string, string>> {
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
      files: `a root of its own, read-only but /tmp; only package folders${folders.length === 0 ? '' : ' and the granted ones'} are mounted`,
      network: `an empty network namespace, sockets only AF_UNIX by seccomp${sockets.length === 0 ? '' : '; the node connects to granted places'}`,
    };
  }

  /** Who ends the sandbox waits for what is being started: it has folders mounted before there is a box to stop. */
  #start(spec: BoxSpec, options: StartOptions = {}): Promise<RunningBox> {
    const starting = this.#prepare(spec, options);
    this.#behind(starting.catch(() => {}));
    return starting;
  }

  async #prepare(spec: BoxSpec, { signal, isAhead = false }: StartOptions): Promise<RunningBox> {
    const machine = await this.#examined();
    const files = await this.#binds(spec, machine);
    const devices = spec.devices ?? [];
    // As root, whoever writes a folder of the owner is always the same user: the next run shall change what this one wrote.
    const isWriter = isRoot() && spec.folders?.some(({ isWritable }) => isWritable) === true;
    const launcher = isWriter
      ? await this.#launch(machine, { uid: machine.uidFirst - 1 })
      : ((devices.length === 0 ? this.#waiting() : undefined) ??
        (await this.#launch(machine, { groups: await groupsOf(devices) })));
    const lent = new AsyncDisposableStack();
    try {
      files.push(...(await this.#opened(spec, machine, launcher.uid, lent)));
      const limit = async ({ pids, ...rest }: BoxLimits, yields: boolean) =>
        launcher.cgroup?.limit({ ...rest, pids: pids + OWN_PIDS, yields });
      await limit(spec.limits, isAhead);
      if (this.#closed || signal?.aborted)
        throw new HyperMeshError('cancelled', 'The run was cancelled before the program started.', {
          cause: signal?.reason,
        });
      const box = new RunningBox(launcher, spec.limits, {
        ...{ enforcedBy: this.#mechanisms(spec), isWatched: !this.#holds('memory') },
        ...{ isAhead, limit, writable: spec.folders?.filter(({ isWritable }) => isWritable) ?? [] },
      });
      const command = [
        ...this.#limited(spec.limits, machine, isAhead ? AHEAD_CPU_S : 0),
        machine.tools.bwrap,
        ...['--unshare-all', '--unshare-user', '--disable-userns', '--die-with-parent', '--new-session', '--clearenv'],
        ...Object.entries(spec.environment).flatMap(([name, value]) => ['--setenv', name, value]),
        ...['--hostname', 'box', '--proc', '/proc', '--dev', '/dev', '--perms', '0755', '--dir', '/etc'],
        ...devices.flatMap((device) => ['--dev-bind', device, device]),
        ...files,
        ...['--size', String(tmpSize(spec.limits.tmpBytes)), '--perms', '1777', '--tmpfs', '/tmp'],
        ...['--size', String(SHM_BYTES), '--perms', '1777', '--tmpfs', '/dev/shm', '--remount-ro', '/dev'],
        ...machine.masks.flatMap((file) => ['--ro-bind', '/dev/null', file]),
        // Nothing is there, and nothing is shown: the words are a mark by which the next node finds what this one left.
        ...['--ro-bind-try', markOf(this.#name), '/none'],
        ...['--remount-ro', '/', '--chdir', spec.workingFolder ?? '/', '--cap-drop', 'ALL'],
        ...['--uid', String(spec.user?.uid ?? NOBODY), '--gid', String(spec.user?.gid ?? NOBODY)],
        ...['--seccomp', '4', '--json-status-fd', '5', '--', ...spec.command],
      ];
      launcher.exec(machine, command, { hasControl: spec.hasControl ?? true });
      box.stopOn(signal);
      this.#follow(box, launcher, machine);
      void box.exit.then(() => this.#behind(lent.disposeAsync()));
      return box;
    } catch (error) {
      this.#behind(lent.disposeAsync());
      this.#behind(this.#discard(launcher));
      throw error;
    }
  }

  #follow(box: RunningBox, launcher: Launcher, machine: Machine): void {
    this.#running.add(box);
    // The next one is started when this program runs: before, both would take longer.
    void box.isSetUp.then(() => this.#refill(machine));
    void box.exit.then(() => {
      this.#running.delete(box);
      this.#behind(this.#discard(launcher));
    });
  }

  #examined(): Promise<Machine> {
    this.#machine ??= this.#examine().catch((error: unknown) => {
      this.#machine = undefined;
      throw error;
    });
    return this.#machine;
  }

  async #examine(): Promise<Machine> {
    if (this.#usesCgroups) this.#cgroups = await Cgroups.open(this.#name);
    return examine(this.#directory);
  }

  async #launch(
    machine: Machine,
    {
      groups = [],
      uid = this.#takeUid(machine.uidFirst),
    }: { readonly groups?: readonly number[]; readonly uid?: number } = {},
  ): Promise<Launcher> {
    let cgroup: Cgroup | null = null;
    try {
      cgroup = (await this.#cgroups?.create(randomBytes(8).toString('hex'))) ?? null;
      const through = this.#affinity(CORES_USUAL, machine);
      return await Launcher.start(machine, { mark: markOf(this.#name), through, cgroup, uid, groups });
    } catch (error) {
      this.#uids.delete(uid);
      await cgroup?.remove();
      throw error;
    }
  }

  async #discard(launcher: Launcher): Promise<void> {
    await launcher.discard();
    this.#uids.delete(launcher.uid);
  }

  /** One that was started ahead, if there is one. */
  #waiting(): Launcher | undefined {
    for (const launcher of this.#launchers) {
      this.#launchers.delete(launcher);
      if (launcher.isAlive) return launcher;
      this.#behind(this.#discard(launcher));
    }
    return undefined;
  }

  #refill(machine: Machine): void {
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.#rest(), IDLE_MS).unref();
    if (this.#closed || this.#launchers.size >= LAUNCHERS) return;
    this.#behind(
      this.#launch(machine).then(
        (launcher) => {
          this.#launchers.add(launcher);
          if (this.#closed) this.#discardLaunchers();
        },
        // The next box starts its own, and says what is wrong.
        () => {},
      ),
    );
  }

  /** Nothing of ours is left on the machine while nothing runs. */
  #rest(): void {
    this.#discardLaunchers();
    const ending = Promise.allSettled(this.#pending);
    this.#behind(ending.then(() => this.#cgroups?.rest()));
  }

  #discardLaunchers(): void {
    clearTimeout(this.#idle);
    for (const launcher of this.#launchers) this.#behind(this.#discard(launcher));
    this.#launchers.clear();
  }

  #behind(work: Promise<unknown>): void {
    const pending = work.finally(() => this.#pending.delete(pending));
    this.#pending.add(pending);
  }

  /** The root and the mounts, as options of bubblewrap. */
  async #binds(spec: BoxSpec, machine: Machine): Promise<string[]> {
    const binds: string[] = [];
    if (spec.root === 'host') {
      binds.push(...machine.root);
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

  /** What this box alone was granted, as options of bubblewrap. */
  async #opened(
    { folders = [], sockets = [] }: BoxSpec,
    machine: Machine,
    uid: number,
    lent: AsyncDisposableStack,
  ): Promise<string[]> {
    const options: string[] = [];
    for (const { source, at } of sockets) {
      const file = await this.#ours(source);
      if (isRoot()) await chown(file, uid, uid);
      options.push('--ro-bind', this.#shown(file), at);
    }
    for (const folder of folders)
      options.push(...lent.use(await lendFolder(folder, { machine, directory: this.#directory })).options);
    return options;
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

  #limited(limits: BoxLimits, machine: Machine, cpuSecondsAhead: number): string[] {
    const { tools, hardLimits } = machine;
    const cpuSeconds = Math.ceil((limits.wallMs / 1_000) * limits.cpuCores) + 1 + cpuSecondsAhead;
    // Nobody may raise a limit above the one that the node was started with.
    const within = (name: string, value: number) => Math.min(value, hardLimits.get(name) ?? value);
    const limited = [
      ...[tools.prlimit, '--core=0', '--memlock=0', `--nofile=${within('Max open files', OPEN_FILES)}`],
      `--cpu=${within('Max cpu time', cpuSeconds)}`,
      `--fsize=${within('Max file size', limits.fileBytes)}`,
      `--nproc=${within('Max processes', limits.pids + OWN_PIDS + userTasks())}`,
    ];
    const cores = Math.ceil(limits.cpuCores);
    return cores === CORES_USUAL ? limited : [...limited, ...this.#affinity(cores, machine)];
  }

  /** A command that runs another one on so many processors; nothing where the kernel holds a share. */
  #affinity(cores: number, { tools, processors }: Machine): string[] {
    if (this.#holds('cpu')) return [];
    // In turn, or all boxes would share the first one.
    const chosen = Array.from(
      { length: Math.min(cores, processors.length) },
      () => processors[this.#turn++ % processors.length],
    );
    return [tools.taskset, '--cpu-list', chosen.join(',')];
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
}

/** Groups other than root's that own one of these devices. */
async function groupsOf(devices: readonly string[]): Promise<number[]> {
  const owners = await Promise.all(devices.map(async (device) => (await stat(device)).gid));
  return [...new Set(owners)].filter((gid) => gid !== 0);
}
