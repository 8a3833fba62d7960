import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, realpathSync } from 'node:fs';
import { join, sep } from 'node:path';
import type { Duplex } from 'node:stream';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';
import { siblingModule } from '../base/module.ts';
import {
  type AssetExtensionHandler,
  CAPABILITY_NAMES,
  type Capabilities,
  type ExtensionMetadata,
  type HyperMeshExtension,
} from '../capabilities/extension.ts';
import type { AssetType } from '../wire/names.ts';
import { Border } from './border.ts';
import { crossingsOf } from './crossings.ts';
import type { ExtensionFolder } from './extension-folder.ts';
import { notGranted } from './lend.ts';
import { isAsyncIterable } from './plain.ts';

const START_TIMEOUT_MS = 30_000;
/**
 * The border closes when the host is gone, and the cell ends by itself; one that loops and never looks is killed by the kernel, where
 * that can be asked for.
 */
const SETPRIV = '/usr/bin/setpriv';
const DIES_WITH_HOST =
  process.platform === 'linux' && existsSync(SETPRIV) ? [SETPRIV, '--pdeathsig', 'KILL', '--'] : [];
/** Of standard error, kept to explain an end. */
const STDERR_CHARS_MAX = 8_192;

/** An extension in a process of its own, under Node's permission model: it reaches its own files and the border, nothing else. */
export interface Cell extends AsyncDisposable {
  readonly pid: number;
  /** Loads the code and tells what it states about itself; not to be trusted before it was checked. */
  describe(): Promise<unknown>;
  /** Makes the extension; calls to what comes back cross the border. */
  create(lent: Partial<Capabilities>, metadata: ExtensionMetadata): Promise<HyperMeshExtension>;
  /** Kills the process when it does not even answer a ping: a loop that never yields cannot be stopped otherwise. */
  checkAlive(): void;
}

export interface CellOptions {
  /** Heap of the process. */
  readonly memoryMiB: number;
  /** For a ping, once an operation took too long. */
  readonly answerTimeoutMs: number;
  /** Called once, when the process ends without having been told to. */
  onEnd(why: string): void;
}

const methodNames = z.array(z.string().max(128)).max(1_000);
const handlerList = z.array(z.object({ type: z.string().max(64), methods: methodNames })).max(64);

/** Starts the process. Errors: `extension-failed`. */
export async function openCell(folder: ExtensionFolder, options: CellOptions): Promise<Cell> {
  const entry = pathToFileURL(join(folder.path, folder.manifest.entry)).href;
  const script = fileURLToPath(siblingModule(import.meta.url, './cell-child'));
  const command = [...DIES_WITH_HOST, process.execPath, ...permissions(folder.path, options), script, entry];
  const child = spawn(command[0]!, command.slice(1), {
    cwd: folder.path,
    env: {},
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
  });
  let stderr = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_CHARS_MAX);
  });
  const exited = once(child, 'exit').then(
    ([code, signal]) => `its process ended with ${signal === null ? `status ${code}` : String(signal)}`,
    (error: Error) => `its process could not be started: ${error.message}`,
  );
  let lent: Partial<Capabilities> = {};
  let closing = false;
  const border = new Border(
    child.stdio[3] as Duplex,
    (target, method, args) => serve(folder.manifest.id, lent, target, method, args),
    // A border that broke leaves nothing that could be talked to.
    () => child.kill('SIGKILL'),
  );
  void exited.then((why) => {
    border.end(why);
    if (closing) return;
    const last = stderr.trim().split('\n').at(-1);
    options.onEnd(last === undefined || last === '' ? why : `${why} (${last.slice(0, 300)})`);
  });
  const starting = setTimeout(() => border.end(`it did not start within ${START_TIMEOUT_MS} ms`), START_TIMEOUT_MS);

  return {
    pid: child.pid ?? -1,
    describe: () => border.call('cell', 'describe', []).finally(() => clearTimeout(starting)),
    async create(capabilities, metadata) {
      lent = capabilities;
      const granted = Object.fromEntries(metadata.needs.map((name) => [name, Object.fromEntries(kindsOf(name))]));
      const methods = methodNames.parse(await border.call('cell', 'create', [granted, CAPABILITY_NAMES]));
      return remote(border, 'extension', methods, {
        metadata: () => metadata,
        extendManager: () => border.call('cell', 'extendManager', []),
        registerAssets: async () => {
          const list = handlerList.parse(await border.call('cell', 'registerAssets', []));
          return new Map<AssetType, AssetExtensionHandler>(
            list.map(({ type, methods }) => [type, remote(border, type, methods, { assetType: () => type })]),
          );
        },
      });
    },
    checkAlive() {
      const timer = setTimeout(() => border.end('it does not answer'), options.answerTimeoutMs);
      border.call('cell', 'ping', []).then(
        () => clearTimeout(timer),
        () => clearTimeout(timer),
      );
    },
    async [Symbol.asyncDispose]() {
      closing = true;
      clearTimeout(starting);
      border.end('it was ended');
      await exited;
    },
  };
}

/** Files: its own and the few of this package that it runs on. Everything else (network, processes, threads, addons, writing) stays closed. */
function permissions(folder: string, { memoryMiB }: CellOptions): string[] {
  const source = realpathSync(fileURLToPath(new URL('..', import.meta.url)));
  const readable = [
    join(folder, '*'),
    ...['base', 'wire', 'capabilities'].map((part) => join(source, part, '*')),
    ...['cell-child', 'border', 'plain'].map((name) => fileURLToPath(siblingModule(import.meta.url, `./${name}`))),
    join(source, '..', 'package.json'),
  ];
  return [
    '--permission',
    ...readable.map((path) => `--allow-fs-read=${path.replaceAll('/', sep)}`),
    `--max-old-space-size=${memoryMiB}`,
    '--no-warnings',
  ];
}

function kindsOf(name: keyof Capabilities): [string, 'call' | 'stream'][] {
  return [...crossingsOf(name)].map(([method, { kind }]) => [
    method,
    kind === 'stream' || kind === 'live' ? 'stream' : 'call',
  ]);
}

/** What the cell asks for goes through what was lent to it, as in process: there is one place that enforces. */
async function serve(
  extension: string,
  lent: Partial<Capabilities>,
  target: string,
  method: string,
  args: unknown[],
): Promise<unknown> {
  const name = CAPABILITY_NAMES.find((known) => known === target);
  if (name === undefined || !Object.keys(lent).includes(name)) throw notGranted(extension, target.slice(0, 64));
  if (!crossingsOf(name).has(method)) {
    throw new HyperMeshError('extension-invalid', `${name} has no method ${method.slice(0, 64)}.`);
  }
  return (lent[name] as unknown as Record<string, (...args: unknown[]) => unknown>)[method]!(...args);
}

/** An object whose methods are calls across the border. */
function remote<T extends object>(
  border: Border,
  target: string,
  methods: readonly string[],
  local: Readonly<Record<string, () => unknown>>,
): T {
  const calls = methods.map((method) => [
    method,
    async (...args: unknown[]) => {
      const result = await border.call(target, method, args);
      if (isAsyncIterable(result))
        throw new HyperMeshError('extension-invalid', `${method} of an extension gave a stream.`);
      return result;
    },
  ]);
  return { ...Object.fromEntries(calls), ...local } as T;
}
