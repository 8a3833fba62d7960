import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client } from '../../src/client/index.ts';
import type { NodeConfig } from '../../src/host/node.ts';
import { decodeNodeFile, type NodeFile } from '../../src/wire/node-file.ts';

export const PROJECT = join(import.meta.dirname, '..', '..');

/** A network whose proofs are real and cheap: 1 MiB of space, one hex digit of work, 4,096 squarings. */
export const SMALL_NETWORK = {
  requirements: {
    publish: {
      kind: 'publish',
      space: { bytesMin: 2 ** 20, deadlineMs: 60_000, openings: 16 },
      stake: { amountMin: 1000 },
      work: { hexDigits: 1 },
      time: { squarings: 4096, windowMs: 300_000 },
    },
    install: {
      kind: 'install',
      space: { bytesMin: 2 ** 20, deadlineMs: 60_000, openings: 16 },
      stake: null,
      work: null,
      time: { squarings: 4096, windowMs: 300_000 },
    },
    execute: {
      kind: 'execute',
      space: { bytesMin: 2 ** 20, deadlineMs: 60_000, openings: 16 },
      stake: null,
      work: null,
      time: { squarings: 4096, windowMs: 300_000 },
    },
  },
  space: { bytes: 2 ** 20, iterations: 2 },
} as const satisfies NonNullable<NodeConfig['network']>;

const nothing = { space: null, stake: null, work: null, time: null };
/** For tests in which proofs are not what is looked at, or that nobody is there to check. */
export const PROOFLESS_NETWORK = {
  space: SMALL_NETWORK.space,
  requirements: { publish: nothing, install: nothing, execute: nothing },
};

export interface Folder extends AsyncDisposable {
  readonly path: string;
}

export async function temporaryFolder(): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), 'hypermesh-test-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true, maxRetries: 3 }) };
}

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Home extends AsyncDisposable {
  /** Folder that holds the home and whatever the test puts beside it. */
  readonly folder: string;
  readonly home: string;
  /** Runs the command, as a person does. */
  run(...args: string[]): Promise<Ran>;
  /** The same with `--json`; the one document on standard output. Fails unless the status is `status`. */
  json<T = Record<string, unknown>>(args: readonly string[], status?: number): Promise<T>;
}

/**
 * A fresh home of a small network, not yet opened; `settings` go into its configuration, `through` is a command that runs the real one.
 * Disposing it stops a node that is still up.
 */
export async function freshHome(
  env: NodeJS.ProcessEnv = {},
  settings: Readonly<Record<string, unknown>> = {},
  through: readonly string[] = [],
): Promise<Home> {
  const folder = await temporaryFolder();
  const home = join(folder.path, 'home');
  await mkdir(home, { mode: 0o700 });
  await writeFile(
    join(home, 'config.yaml'),
    JSON.stringify({ network: withoutKinds(SMALL_NETWORK), logLevel: 'warn', ...settings }),
  );
  const run = (...args: string[]) => command(args, { HYPERMESH_HOME: home, ...env }, through);
  return {
    folder: folder.path,
    home,
    run,
    async json(args, status = 0) {
      const ran = await run(...args, '--json');
      if (ran.status !== status) {
        throw new Error(
          `hypermesh ${args.join(' ')}: expected status ${status}, got ${ran.status}\n${ran.stdout}\n${ran.stderr}`,
        );
      }
      return JSON.parse(ran.stdout);
    },
    async [Symbol.asyncDispose]() {
      await run('down');
      await folder[Symbol.asyncDispose]();
    },
  };
}

/** The node that is up on a home, with a client of its own: far cheaper than a process for each question. */
export async function nodeOf({ home }: Home): Promise<NodeFile & { readonly client: Client }> {
  const file = decodeNodeFile(await readFile(join(home, 'node.json'), 'utf8'));
  return { ...file, client: new Client(file) };
}

/** What {@link command} asks a process to run. */
export interface Asked {
  readonly args: readonly string[];
  readonly env: NodeJS.ProcessEnv;
}

/** Processes that wait for a command, by what they were started through. */
const waiting = new Map<string, ChildProcess[]>();

/** Runs the command, not in this process. Those that are under way at the same time have a process each. */
export async function command(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  through: readonly string[] = [],
): Promise<Ran> {
  const key = through.join(' ');
  const idle = waiting.get(key) ?? [];
  waiting.set(key, idle);
  const child = idle.pop() ?? startRunner(through);
  child.ref();
  child.channel!.ref();
  const ended = Promise.withResolvers<never>();
  const onEnd = (status: number | null, signal: string | null) =>
    ended.reject(new Error(`the process of hypermesh ${args.join(' ')} ended: ${signal ?? status}`));
  child.once('exit', onEnd).once('error', ended.reject);
  child.send({ args, env: { PATH: process.env['PATH'], HOME: '/nonexistent', ...env } } satisfies Asked);
  const [ran] = (await Promise.race([once(child, 'message'), ended.promise])) as [Ran];
  child.off('exit', onEnd).off('error', ended.reject);
  // Whoever waits keeps no test from ending.
  child.unref();
  child.channel!.unref();
  idle.push(child);
  return ran;
}

function startRunner(through: readonly string[]): ChildProcess {
  const [program, ...rest] = [...through, process.execPath, join(import.meta.dirname, 'command-child.ts')];
  return spawn(program!, rest, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
}

function withoutKinds(network: typeof SMALL_NETWORK): unknown {
  const requirements = Object.entries(network.requirements).map(([kind, { kind: _kind, ...row }]) => [kind, row]);
  return { ...network, requirements: Object.fromEntries(requirements) };
}

/** Writes a package folder: `catalog.yaml` from the given fields, and files. */
export async function writePackage(
  folder: string,
  manifest: Readonly<Record<string, unknown>>,
  files: Readonly<Record<string, string | Uint8Array>> = {},
): Promise<string> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, 'catalog.yaml'), JSON.stringify(manifest, null, 2));
  for (const [path, content] of Object.entries(files)) {
    await mkdir(join(folder, path, '..'), { recursive: true });
    await writeFile(join(folder, path), content);
  }
  return folder;
}
