import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { HyperMeshError, isCoded, storageError } from '../base/errors.ts';
import { Client } from '../client/index.ts';
import type { Loaded } from '../config.ts';
import type { RunningNode } from '../main.ts';
import { decodeNodeFile, type NodeFile } from '../wire/node-file.ts';

/** The node that runs on a home, or null. A file that a crash left behind counts as none. */
export async function findNode(home: string): Promise<NodeFile | null> {
  let file: NodeFile;
  try {
    file = decodeNodeFile(await readFile(path.join(home, 'node.json'), 'utf8'));
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR' || isCoded(error)) return null;
    throw storageError(error, `reading node.json in ${home}`);
  }
  if (!isAlive(file.pid)) return null;
  // Another process may have the pid, and another program the port, of a node that was killed.
  const health = await new Client(file).health({ signal: AbortSignal.timeout(10_000) }).catch(() => null);
  return health?.pid === file.pid ? file : null;
}

/** Why node.json cannot be read although it is there; null when it can, or is not there. */
export async function nodeFileProblem(home: string): Promise<HyperMeshError | null> {
  try {
    decodeNodeFile(await readFile(path.join(home, 'node.json'), 'utf8'));
    return null;
  } catch (error) {
    return isCoded(error) ? error : null;
  }
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

const TURN_WAIT_MS = 60_000;
const TURN_POLL_MS = 100;

/**
 * The node that runs, else one in this process behind the same API on a port of its own, not announced to others.
 * Two commands at the same time take turns.
 */
export async function connect(
  loaded: Loaded,
  options: {
    readonly signal: AbortSignal;
    readonly note: (text: string) => void;
    readonly passphrase: PassphraseSource;
  },
): Promise<{ readonly client: Client } & AsyncDisposable> {
  const giveUpAt = performance.now() + TURN_WAIT_MS;
  for (let turn = 0; ; turn += 1) {
    options.signal.throwIfAborted();
    const found = await findNode(loaded.config.home);
    if (found !== null) return { client: new Client(found), async [Symbol.asyncDispose]() {} };
    try {
      const node = await openWithPassphrase(loaded, options.passphrase, startHere);
      return { client: new Client(node), [Symbol.asyncDispose]: () => node[Symbol.asyncDispose]() };
    } catch (error) {
      if (!isCoded(error, 'home-in-use') || performance.now() > giveUpAt) throw error;
      const damaged = await nodeFileProblem(loaded.config.home);
      if (damaged !== null) {
        throw new HyperMeshError(damaged.code, `${damaged.message} ${error.message}`, {
          hint: 'End that process, which is safe at any moment, and start the node again.',
          cause: damaged,
        });
      }
      if (turn === 0) options.note('Waiting for another command on this home …');
      await new Promise((resolve) => setTimeout(resolve, TURN_POLL_MS));
    }
  }
}

async function startHere(loaded: Loaded): Promise<RunningNode> {
  const { startNode } = await import('../main.ts');
  const config = { ...loaded.config, http: { host: '127.0.0.1', port: 0 } };
  return startNode({ ...loaded, config }, { log: QUIET, announce: false });
}

/** Asks a person for the passphrase; null where nobody can be asked. */
export type PassphraseSource = () => Promise<string | null>;

/** Tries without asking; asks once when the key store is locked and no passphrase was given. */
export async function openWithPassphrase<T>(
  loaded: Loaded,
  ask: PassphraseSource,
  open: (loaded: Loaded) => Promise<T>,
): Promise<T> {
  try {
    return await open(loaded);
  } catch (error) {
    if (!isCoded(error, 'key-locked') || loaded.secrets.passphrase !== undefined) throw error;
    const passphrase = await ask();
    if (passphrase === null) {
      throw new HyperMeshError('key-locked', error.message, {
        hint: 'Set HYPERMESH_PASSPHRASE, or use --passphrase-file FILE.',
      });
    }
    return open({ ...loaded, secrets: { passphrase } });
  }
}

/** Errors of this process's own node reach the person as the error of the command; defects go to standard error. */
const QUIET = {
  info() {},
  error({ err }: { readonly err?: unknown }, message: string) {
    console.error(message, err);
  },
};
