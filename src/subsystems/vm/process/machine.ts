import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { type FileHandle, lstat, open, readdir, readFile, readlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import { assembleFilter } from './seccomp.ts';

export const HOST_FOLDERS = ['usr', 'bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32'];
const HOST_FILES = ['/etc/ld.so.cache', '/etc/alternatives'];
/** What `/proc` says about the machine and not about the box. */
const MASKED = [
  ...['buddyinfo', 'cmdline', 'config.gz', 'interrupts', 'iomem', 'ioports', 'kallsyms', 'kcore', 'key-users', 'keys'],
  ...['kmsg', 'kpagecgroup', 'kpagecount', 'kpageflags', 'modules', 'pagetypeinfo', 'sched_debug', 'slabinfo', 'swaps'],
  ...['sysrq-trigger', 'timer_list', 'vmallocinfo', 'zoneinfo'],
].map((name) => `/proc/${name}`);
const TOOLS = ['bwrap', 'prlimit', 'setpriv', 'taskset', 'cat', 'env', 'stat'] as const;
const ROOT_TOOLS = ['unshare', 'nsenter', 'mount', 'umount'] as const;
/**
 * Users for boxes when the node runs as root: one for each box, so that limits by user are limits by box. Above what distributions
 * and containers give away; the highest ones where only some users are mapped.
 */
const UID_FIRST = 2_000_000_000;
export const UIDS = 4_000;
/** Standard streams, control socket, filter, status and orders: what a box is started with. */
const OWN_FD_LAST = 6;
const STATUS_BYTES_MAX = 4_096;
/** Where the node's folder is seen by the users of boxes, in a mount namespace of the box alone. */
export const WINDOW = '/mnt';
/** Shell script: $1 mounts $2 where the user of a box finds it, and stays until it is told that it was seen. */
const SHOW = `"$1" --bind "$2" ${WINDOW} && echo && read seen`;

/** Name -> absolute path. */
export type Tools = Readonly<Record<(typeof TOOLS)[number], string>> & {
  /** Only root needs them. */
  readonly asRoot: Readonly<Record<(typeof ROOT_TOOLS)[number], string>> | null;
};

/** What is found out about the machine once. */
export interface Machine {
  readonly tools: Tools;
  /** Options of bubblewrap that show the `host` root. */
  readonly root: readonly string[];
  readonly masks: readonly string[];
  /** The file with the seccomp program. */
  readonly filter: string;
  /** Open descriptors that the node was started with and that a program would be started with, too. */
  readonly inherited: readonly number[];
  /** A shell that can close them. */
  readonly shell: readonly string[];
  /** Whether `/bin/sh` adds variables of its own to an empty environment. */
  readonly isShellTalkative: boolean;
  /** As root: a mount namespace in which the users of boxes reach our folder. It is there as long as it is open here. */
  readonly window: FileHandle | null;
  readonly uidFirst: number;
  readonly processors: readonly number[];
  readonly hardLimits: ReadonlyMap<string, number>;
}

/** Names of programs that are not installed. */
export function missingTools(): string[] {
  return [...TOOLS, ...(isRoot() ? ROOT_TOOLS : [])].filter((name) => find(name) === null);
}

/** `directory`: what boxes are shown lies in it. All tools must be there. */
export async function examine(directory: string): Promise<Machine> {
  const paths = <Name extends string>(names: readonly Name[]) =>
    Object.fromEntries(names.map((name) => [name, find(name)!])) as Record<Name, string>;
  const tools: Tools = { ...paths(TOOLS), asRoot: isRoot() ? paths(ROOT_TOOLS) : null };
  const root: string[] = [];
  for (const name of HOST_FOLDERS) root.push(...(await seen(`/${name}`, `/${name}`)));
  for (const file of HOST_FILES) if (existsSync(file)) root.push('--ro-bind', file, file);
  const filter = path.join(directory, 'seccomp.bpf');
  await writeFile(filter, assembleFilter(process.arch as 'x64' | 'arm64'));
  const inherited = await inheritedDescriptors();
  // Other shells cannot name descriptors above 9.
  const shell = inherited.length === 0 ? ['/bin/sh'] : ['/bin/bash', '--norc', '--noprofile'];
  if (!existsSync(shell[0]!))
    throw new Error(`${shell[0]} is needed to close descriptor ${inherited[0]}, with which the node was started`);
  const { stdout } = await promisify(execFile)('/bin/sh', ['-c', 'exec "$1"', 'sh', tools.env], { env: {} });
  return {
    ...{ tools, root, filter, inherited, shell },
    masks: MASKED.filter((file) => existsSync(file)),
    isShellTalkative: stdout !== '',
    uidFirst: await firstUid(),
    processors: await ownProcessors(),
    hardLimits: await ownHardLimits(),
    window: tools.asRoot === null ? null : await openWindow(tools.asRoot, directory),
  };
}

export function isRoot(): boolean {
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

/** Processors that this process may use, such as 0-3,8. */
async function ownProcessors(): Promise<number[]> {
  const list = /^Cpus_allowed_list:\t(.*)$/m.exec(await readFile('/proc/self/status', 'latin1'))?.[1] ?? '0';
  return list.split(',').flatMap((span) => {
    const [first = 0, last = first] = span.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
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

/** One entry of a root: a link stays a link. */
export async function seen(file: string, at: string, shown = file): Promise<string[]> {
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
