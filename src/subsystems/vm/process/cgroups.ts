import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

export type Controller = 'memory' | 'pids' | 'cpu' | 'cpuacct';

/** What a box may have; the kernel holds it for all processes of the box together. */
export interface CgroupLimits {
  readonly memoryBytes: number;
  readonly pids: number;
  readonly cpuCores: number;
  /** Whether others come first where processors are short. */
  readonly yields?: boolean;
}

export interface CgroupUsage {
  readonly peakMemoryBytes: number;
  readonly cpuMs: number;
  /** Processes that the kernel killed because the memory was used up. */
  readonly oomKills: number;
}

const SELF = '/proc/self';
const PERIOD_US = 100_000;
const REMOVE_MS_MAX = 3_000;
/**
 * Of all boxes of a node together, where processors are short: half of what the node has, which answers everybody. With a quarter, a box started several
 * times later than the bare command while others used the machine. Where nobody else wants them, boxes get all.
 */
const WEIGHT_V1 = 512;
const WEIGHT_V2 = 50;
const CONTROLLERS_V2: readonly Controller[] = ['memory', 'pids', 'cpu'];

/** One folder of the kernel's tree in which boxes get folders of their own. */
interface Branch {
  readonly version: 1 | 2;
  readonly controllers: readonly Controller[];
  readonly folder: string;
}

/** Shell script: when its input ends, which it does with the node, ends what is in the groups in the given folders, and removes them all. */
const TIDY_UP = `read never
round=0
while [ $round -lt 50 ]; do
  left=
  for folder; do
    [ -d "$folder" ] || continue
    for group in "$folder"/*/; do
      [ -d "$group" ] || continue
      while read -r pid; do kill -9 "$pid"; done < "$group/cgroup.procs"
      rmdir "$group"
    done
    rmdir "$folder" || left=1
  done
  [ -n "$left" ] || exit 0
  round=$((round + 1))
  sleep 0.1
done`;

/**
 * The control groups that this process may make, under a name that each home and each start of its node has for itself. While there
 * are any, a process waits that removes them when the node is killed.
 */
export class Cgroups {
  /** Controllers by which limits are really held, and the words for it. */
  readonly enforces: ReadonlyMap<Controller, string>;
  readonly #branches: readonly Branch[];
  #keeper: ChildProcess | undefined;
  #groups = 0;
  /** Whether the folders are there; changes follow each other. */
  #settled: Promise<boolean>;

  private constructor(branches: readonly Branch[]) {
    this.#branches = branches;
    this.#settled = Promise.resolve(false);
    this.enforces = new Map(
      branches.flatMap(({ version, controllers }) => controllers.map((one) => [one, `cgroup v${version}`] as const)),
    );
  }

  /** Ends and removes whatever bears the name: a node that was killed together with its keeper left it. */
  static async sweep(name: string): Promise<void> {
    for (const { parents } of await hierarchies(SELF))
      for (const parent of parents)
        for (const found of await readdir(parent).catch(() => []))
          if (found === name || found.startsWith(`${name}-`)) await remove(path.join(parent, found));
  }

  /**
   * Never fails: what the machine does not let us make is not in {@link enforces}. `self`: the folder of this process in `/proc`, which tells
   * where its groups are.
   */
  static async open(name: string, { self = SELF }: { readonly self?: string } = {}): Promise<Cgroups> {
    const branches: Branch[] = [];
    const own = `${name}-${randomBytes(4).toString('hex')}`;
    for (const { version, controllers, parents } of await hierarchies(self)) {
      for (const parent of parents) {
        const folder = path.join(parent, own);
        const found = await settle(folder, version, controllers).catch(() => []);
        const isOurs = found.length > 0 && (await canJoin(folder));
        await remove(folder);
        if (!isOurs) continue;
        branches.push({ version, controllers: found, folder });
        break;
      }
    }
    return new Cgroups(branches);
  }

  /** Without limits as yet. Null where the machine lends none. */
  async create(id: string): Promise<Cgroup | null> {
    if (this.#branches.length === 0) return null;
    this.#groups += 1;
    await this.#change(true);
    const folders = this.#branches.map((branch) => ({ folder: path.join(branch.folder, id), branch }));
    const made = await Promise.allSettled(folders.map(({ folder }) => mkdir(folder)));
    const failed = made.find((one) => one.status === 'rejected');
    const group = new Cgroup(folders, () => {
      this.#groups -= 1;
    });
    if (failed === undefined) return group;
    await group.remove();
    throw failed.reason;
  }

  /** Leaves nothing on the machine until the next group is made, if there is none now. */
  async rest(): Promise<void> {
    await this.#change(false);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#groups = 0;
    await this.#change(false);
  }

  #change(wanted: boolean): Promise<boolean> {
    this.#settled = this.#settled
      .catch(() => false)
      .then(async (isSettled) => {
        if (isSettled === wanted) return wanted;
        if (!wanted && this.#groups > 0) return true;
        if (!wanted) {
          this.#keeper?.kill('SIGKILL');
          for (const { folder } of this.#branches) await remove(folder);
          return false;
        }
        const folders = this.#branches.map(({ folder }) => folder);
        this.#keeper = spawn('/bin/sh', ['-c', TIDY_UP, 'sh', ...folders], {
          ...{ env: {}, cwd: '/', detached: true },
          stdio: ['pipe', 'ignore', 'ignore'],
        });
        this.#keeper.on('error', () => {});
        this.#keeper.unref();
        (this.#keeper.stdin as Socket | null)?.unref();
        for (const { folder, version, controllers } of this.#branches) {
          await settle(folder, version, controllers);
          if (!controllers.includes('cpu')) continue;
          const [file, weight] = version === 1 ? ['cpu.shares', WEIGHT_V1] : ['cpu.weight', WEIGHT_V2];
          // Without it they compete with the node as equals.
          await writeFile(path.join(folder, file), String(weight)).catch(() => {});
        }
        return true;
      });
    return this.#settled;
  }
}

/** The groups of one box. */
export class Cgroup {
  /** Files to which a process writes `0` to join. */
  readonly entrances: readonly string[];
  readonly #folders: readonly { readonly folder: string; readonly branch: Branch }[];

  readonly #removed: () => void;

  constructor(folders: readonly { readonly folder: string; readonly branch: Branch }[], removed: () => void) {
    this.#folders = folders;
    this.#removed = removed;
    this.entrances = folders.map(({ folder }) => path.join(folder, 'cgroup.procs'));
  }

  /** From now on. What the processes have used until now counts, and lies below. */
  async limit(limits: CgroupLimits): Promise<void> {
    await Promise.all(
      this.#folders.map(async ({ folder, branch }) => {
        for (const [file, value, needed] of settings(branch, limits)) {
          await writeFile(path.join(folder, file), value).catch((error: unknown) => {
            if (needed) throw error;
          });
        }
      }),
    );
  }

  /** The peak is that from now on, where the kernel can forget the one before. */
  async forgetPeak(): Promise<void> {
    for (const { folder, branch } of this.#folders)
      if (branch.version === 1 && branch.controllers.includes('memory'))
        await writeFile(path.join(folder, 'memory.max_usage_in_bytes'), '0').catch(() => {});
  }

  async usage(): Promise<CgroupUsage> {
    const parts = await Promise.all(this.#folders.map(({ folder, branch }) => usageOf(folder, branch)));
    return Object.assign({ peakMemoryBytes: 0, cpuMs: 0, oomKills: 0 }, ...parts) as CgroupUsage;
  }

  /** Ends every process of the box, and removes the folders when all are gone. */
  async remove(): Promise<void> {
    for (const { folder } of this.#folders) await remove(folder);
    this.#removed();
  }
}

function settings(
  { version, controllers }: Branch,
  { yields = false, ...limits }: CgroupLimits,
): [file: string, value: string, needed: boolean][] {
  const memory = String(limits.memoryBytes);
  const quota = String(Math.max(1_000, Math.round(limits.cpuCores * PERIOD_US)));
  const all: Record<Controller, [string, string, boolean][]> =
    version === 1
      ? {
          memory: [
            ['memory.limit_in_bytes', memory, true],
            // Missing where the kernel does not count swap.
            ['memory.memsw.limit_in_bytes', memory, false],
          ],
          pids: [['pids.max', String(limits.pids), true]],
          cpu: [
            ['cpu.cfs_period_us', String(PERIOD_US), true],
            ['cpu.cfs_quota_us', quota, true],
            ['cpu.shares', yields ? '64' : '1024', false],
          ],
          cpuacct: [],
        }
      : {
          memory: [
            ['memory.max', memory, true],
            ['memory.swap.max', '0', false],
            ['memory.oom.group', '1', false],
          ],
          pids: [['pids.max', String(limits.pids), true]],
          cpu: [
            ['cpu.max', `${quota} ${PERIOD_US}`, true],
            ['cpu.weight', yields ? '6' : '100', false],
          ],
          cpuacct: [],
        };
  return controllers.flatMap((controller) => all[controller]);
}

async function usageOf(folder: string, { version, controllers }: Branch): Promise<Partial<CgroupUsage>> {
  const read = (file: string) => readFile(path.join(folder, file), 'latin1').catch(() => '');
  const field = (text: string, name: string) => Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1] ?? 0);
  const has = (controller: Controller) => controllers.includes(controller);
  if (version === 1) {
    return {
      ...(has('memory')
        ? {
            peakMemoryBytes: Number(await read('memory.max_usage_in_bytes')),
            oomKills: field(await read('memory.oom_control'), 'oom_kill'),
          }
        : {}),
      ...(has('cpuacct') ? { cpuMs: Math.round(Number(await read('cpuacct.usage')) / 1e6) } : {}),
    };
  }
  return {
    ...(has('memory')
      ? {
          peakMemoryBytes: Number(await read('memory.peak')),
          oomKills: field(await read('memory.events'), 'oom_kill'),
        }
      : {}),
    ...(has('cpuacct') ? { cpuMs: Math.round(field(await read('cpu.stat'), 'usage_usec') / 1e3) } : {}),
  };
}

interface Hierarchy {
  readonly version: 1 | 2;
  readonly controllers: readonly Controller[];
  /** Folders to try, the nearest first. */
  readonly parents: readonly string[];
}

/**
 * Boxes lie beneath our own group, so that a limit on the node holds for its programs too. In version 2 a group that holds processes cannot pass
 * controllers on: there the nearest group above that passes them on is taken.
 */
async function hierarchies(self: string): Promise<Hierarchy[]> {
  const own = await readFile(path.join(self, 'cgroup'), 'latin1').catch(() => '');
  const mounts = await readFile(path.join(self, 'mountinfo'), 'latin1').catch(() => '');
  const found: Hierarchy[] = [];
  for (const line of mounts.split('\n')) {
    const [before, after] = line.split(' - ');
    const [type, , options] = after?.split(' ') ?? [];
    const at = before?.split(' ')[4];
    if (at === undefined || options === undefined) continue;
    if (type === 'cgroup') {
      const names = options.split(',');
      const controllers = (['memory', 'pids', 'cpu', 'cpuacct'] as const).filter((one) => names.includes(one));
      if (controllers.length === 0) continue;
      const below = own.split('\n').find((one) => one.split(':')[1]?.split(',').includes(controllers[0]!));
      found.push({ version: 1, controllers, parents: [path.join(at, below?.split(':')[2] ?? '/'), at] });
    } else if (type === 'cgroup2') {
      const below =
        own
          .split('\n')
          .find((one) => one.startsWith('0::'))
          ?.slice(3) ?? '/';
      const parents: string[] = [];
      for (let one = path.join(at, below); one.startsWith(at) && parents.length < 32; one = path.dirname(one))
        parents.push(one);
      found.push({ version: 2, controllers: CONTROLLERS_V2, parents });
    }
  }
  // A controller is in one hierarchy only.
  return found;
}

/** Makes the folder, and returns the controllers that work in it. */
async function settle(folder: string, version: 1 | 2, wanted: readonly Controller[]): Promise<Controller[]> {
  if (version === 1) {
    await mkdir(folder, { recursive: true });
    return [...wanted];
  }
  const passed = (await readFile(path.join(path.dirname(folder), 'cgroup.subtree_control'), 'latin1'))
    .trim()
    .split(' ');
  const available = wanted.filter((one) => passed.includes(one));
  if (available.length === 0) return [];
  await mkdir(folder, { recursive: true });
  await writeFile(path.join(folder, 'cgroup.subtree_control'), available.map((one) => `+${one}`).join(' '));
  return available.includes('cpu') ? [...available, 'cpuacct'] : available;
}

/** Whether a process of ours may really move into a group below: making one is not enough where another user owns what is above. */
async function canJoin(folder: string): Promise<boolean> {
  const group = path.join(folder, 'trial');
  try {
    await mkdir(group, { recursive: true });
    const joining = spawn('/bin/sh', ['-c', 'echo 0 > "$1"', 'sh', path.join(group, 'cgroup.procs')], {
      env: {},
      stdio: 'ignore',
    });
    const [status] = (await once(joining, 'exit')) as [number | null];
    return status === 0;
  } catch {
    return false;
  } finally {
    await remove(group);
  }
}

/** Ends what is in it, and what is in the groups below. Gives up after some seconds: an empty group costs little, and the next start tries again. */
async function remove(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true }).catch(() => []))
    if (entry.isDirectory()) await remove(path.join(folder, entry.name));
  const deadline = performance.now() + REMOVE_MS_MAX;
  for (let waitMs = 1; ; waitMs = Math.min(waitMs * 2, 50)) {
    try {
      await rmdir(folder);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EBUSY' || performance.now() > deadline) return;
    }
    const members = await readFile(path.join(folder, 'cgroup.procs'), 'latin1').catch(() => '');
    for (const pid of members.split('\n').map(Number)) if (pid > 1) killQuietly(pid);
    await pause(waitMs);
  }
}

export function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // gone meanwhile
  }
}
