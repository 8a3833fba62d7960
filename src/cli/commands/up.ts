import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { fromProblem, HyperMeshError, type ProblemDocument, storageError } from '../../base/errors.ts';
import { makeFolders } from '../../base/folders.ts';
import { compiledBefore, siblingModule } from '../../base/module.ts';
import { Client } from '../../client/index.ts';
import type { Loaded } from '../../config.ts';
import { askPassphrase } from '../ask.ts';
import type { Context, Outcome } from '../command.ts';
import { findNode, isAlive, nodeFileProblem, openWithPassphrase } from '../connect.ts';

interface Up {
  readonly http: string;
  readonly pid: number;
  readonly home: string;
  /** Why it does not listen to other nodes although it should. */
  readonly problem: string | null;
}

export async function up(context: Context, options: { readonly detach?: boolean }): Promise<Outcome | undefined> {
  const loaded = await context.load();
  const { home } = loaded.config;
  const running = await findNode(home);
  if (running !== null) {
    throw new HyperMeshError(
      'home-in-use',
      `A node runs on ${home} already: ${running.http}, process ${running.pid}.`,
      {
        hint: 'Use it, stop it with `hypermesh down`, or name another --home.',
        details: { pid: running.pid },
      },
    );
  }
  if (options.detach !== true) return stayUp(context, loaded);
  const started = await openWithPassphrase(loaded, askPassphrase, (with_) => detach(context, with_));
  return { data: started, text: describe(started) };
}

async function stayUp(context: Context, loaded: Loaded): Promise<undefined> {
  const [{ startNode }, { createLog }] = await Promise.all([import('../../main.ts'), import('../../base/log.ts')]);
  const log = createLog({ level: loaded.config.logLevel });
  await using node = await openWithPassphrase(loaded, askPassphrase, (with_) =>
    startNode(with_, { log, announce: true }),
  );
  const started = { http: node.http, pid: process.pid, home: node.home, problem: node.problem };
  process.stdout.write(context.json ? `${JSON.stringify(started, null, 2)}\n` : `${describe(started)}\n`);
  const { promise: interrupted, resolve } = Promise.withResolvers<void>();
  context.signal.addEventListener('abort', () => resolve(), { once: true });
  await Promise.race([node.stopAsked, interrupted]);
  context.note('Stopping …');
}

/**
 * A thread of the node collects what is short-lived every 1 MiB instead of every 16: pieces of content that streams through, which lie beside the
 * heap and are freed with it, take a fraction of the memory. And each thread uses the engine's own functions where the program file has them,
 * instead of 2 MiB of them mapped again beside its code.
 */
const FLAGS = ['--max-semi-space-size=1', '--no-short-builtin-calls'];

/**
 * For the allocator of glibc; elsewhere nobody reads them. It would keep freed memory in a pool for each thread, eight for each processor. These
 * thresholds stay as they are; otherwise they rise with what was freed, and what was once used stays with the process.
 */
const ALLOCATOR = { MALLOC_ARENA_MAX: '2', MALLOC_TRIM_THRESHOLD_: '262144', MALLOC_MMAP_THRESHOLD_: '262144' };

/** The new process has its own session, writes its log to the home, and tells through a channel that closes afterwards how its start went. */
async function detach(context: Context, loaded: Loaded): Promise<Up> {
  const { home } = loaded.config;
  const logFile = path.join(home, 'logs', 'node.log');
  const isFirst = !existsSync(path.dirname(logFile));
  // Only what a crash prints goes here directly; the node itself keeps its log bounded.
  try {
    makeFolders(path.dirname(logFile), 0o700);
  } catch (error) {
    throw storageError(error, `making the folder of ${logFile}`);
  }
  const crashFile = path.join(home, 'logs', 'crash.log');
  await using crash = await open(crashFile, 'w', 0o600).catch((error: unknown) => {
    throw storageError(error, `opening ${crashFile}`);
  });
  context.signal.throwIfAborted();
  const child = spawn(process.execPath, [...FLAGS, fileURLToPath(siblingModule(import.meta.url, '../../daemon'))], {
    cwd: home,
    detached: true,
    // Other programs of this user can read the environment for as long as the node lives: no passphrase in it.
    env: { ...ALLOCATOR, ...process.env, ...compiledBefore(), HYPERMESH_PASSPHRASE: undefined },
    stdio: ['ignore', 'ignore', crash.fd, 'ipc'],
  });
  const { promise, resolve, reject } = Promise.withResolvers<Up>();
  child.once('error', (error) => reject(storageError(error, 'starting the node')));
  child.once('exit', (code, signal) =>
    reject(
      context.signal.aborted
        ? context.signal.reason
        : new HyperMeshError(
            'node-not-running',
            `The node ended while it started (${signal ?? `exit status ${code}`}).`,
            {
              hint: `Its log is ${logFile}.`,
            },
          ),
    ),
  );
  let refused = false;
  child.on('message', (message: { readonly started: Up } | { readonly error: ProblemDocument }) => {
    if (context.signal.aborted) return;
    if ('started' in message) return resolve(message.started);
    refused = message.error.code !== 'internal';
    reject(fromProblem(message.error));
  });
  // Ends when the node has: whoever tidies up after an interrupted start finds nobody at work there.
  const interrupt = () => {
    context.note('Stopping …');
    child.kill('SIGTERM');
  };
  context.signal.addEventListener('abort', interrupt, { once: true });
  child.send({ ...loaded, logFile });
  try {
    return await promise;
  } finally {
    context.signal.removeEventListener('abort', interrupt);
    child.removeAllListeners();
    if (child.connected) child.disconnect();
    child.unref();
    // A folder that is no home and was refused stays as it was.
    if (refused && isFirst) await rm(path.dirname(logFile), { recursive: true, force: true }).catch(() => undefined);
  }
}

function describe({ http, pid, home, problem }: Up): string {
  const warning = problem === null ? '' : `\nIt does not listen to other nodes: ${problem} It tries again by itself.`;
  return `The node runs.\n  API and status page  ${http}\n  Process              ${pid}\n  Home                 ${home}\nStop it with \`hypermesh down\`.${warning}`;
}

const STOP_POLL_MS = 50;
const STOP_WAIT_MS = 30_000;

export async function down(context: Context): Promise<Outcome> {
  const { home } = (await context.load()).config;
  const found = await findNode(home);
  if (found === null) {
    const damaged = await nodeFileProblem(home);
    if (damaged !== null) throw damaged;
    return { data: { stopped: false, home }, text: `No node runs on ${home}.` };
  }
  await new Client(found).shutdown({ signal: context.signal });
  const giveUpAt = performance.now() + STOP_WAIT_MS;
  while (isAlive(found.pid)) {
    context.signal.throwIfAborted();
    if (performance.now() > giveUpAt) {
      throw new HyperMeshError('timeout', `Process ${found.pid} has not ended after ${STOP_WAIT_MS / 1_000} s.`, {
        hint: `Look at ${path.join(home, 'logs', 'node.log')}; \`kill ${found.pid}\` is safe at any moment.`,
      });
    }
    await new Promise((resolve) => setTimeout(resolve, STOP_POLL_MS));
  }
  return { data: { stopped: true, pid: found.pid, home }, text: `Stopped the node of ${home} (process ${found.pid}).` };
}
