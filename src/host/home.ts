import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { z } from 'zod';
import { HyperMeshError, storageError } from '../base/errors.ts';
import { makeFolders, makeOwnFile } from '../base/folders.ts';

/** The folder that one node owns while it runs. `home.json` holds the format version. */
export interface Home extends AsyncDisposable {
  /** Absolute. */
  readonly directory: string;
  readonly formatVersion: number;
  /** Makes (0700) and names a folder of its own for one part of the node. */
  folder(name: string): Promise<string>;
  /**
   * Once the home was complete, refuses to go on when one of these files is gone or empty: made anew in silence, it would take keys, a
   * network or all packages with it. Errors: `storage-failed`.
   */
  require(files: readonly string[]): Promise<void>;
  /** Everything of a new home is there. */
  complete(): Promise<void>;
}

/**
 * Raised by a change after which what homes hold cannot be read any more, such as the bundles of their packages; what can be brought along is not
 * such a change but a step of a schema. 2: proofs and votes name their committee by its digest.
 */
const FORMAT = 3;
const homeFile = z.object({ formatVersion: z.int().positive(), complete: z.boolean().default(false) });

/**
 * Opens the home at `directory`, making it when it is not there, and keeps everybody else out until it is disposed or the process ends.
 * Errors: `storage-read-only`, `storage-full`, `storage-failed`, `home-in-use` (with the pid), `home-too-new`, `home-too-old`.
 */
export async function openHome(directory: string): Promise<Home> {
  const path = resolve(directory);
  await makeFolder(path);
  const release = await lock(path);
  try {
    await removeLeftovers(path);
    // The pid also proves that the home can be written before anything else is opened.
    await writeWhole(join(path, 'pid'), `${process.pid}\n`);
    const { formatVersion, complete } = await readFormat(path);
    return {
      directory: path,
      formatVersion,
      async folder(name) {
        const inner = join(path, name);
        await mkdir(inner, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
          throw storageError(error, `making the folder ${inner}`);
        });
        return inner;
      },
      async require(files) {
        if (!complete) return;
        for (const file of files.map((name) => join(path, name))) {
          const found = await stat(file).catch(() => null);
          if (found?.isFile() === true && found.size > 0) continue;
          throw new HyperMeshError(
            'storage-failed',
            `${file} is ${found === null ? 'missing' : 'empty'}; the home had it before.`,
            {
              hint: 'Restore the home from a backup, or begin a new one and import a state export there.',
            },
          );
        }
      },
      async complete() {
        // The commit point of a new home's contents: before it what is missing is made, after it what is missing is damage.
        if (!complete) await writeWhole(join(path, 'home.json'), homeText(true));
      },
      async [Symbol.asyncDispose]() {
        await rm(join(path, 'pid'), { force: true });
        release();
      },
    };
  } catch (error) {
    release();
    throw storageError(error, `opening the home ${path}`);
  }
}

/** What may lie in the folder of a home before its first start: the configuration, and the log of a start in the background. */
const BEFOREHAND: ReadonlySet<string> = new Set(['config.yaml', 'logs']);

async function makeFolder(path: string): Promise<void> {
  try {
    makeFolders(path, 0o700);
    const found = await stat(path);
    if (!found.isDirectory()) throw notAFolder(path);
    if (process.platform === 'win32' || (found.mode & 0o077) === 0) return;
    // A folder that others can enter becomes private, but only when it is ours: --home /tmp must not lock out the machine.
    const names = await readdir(path);
    const isOurs = (found.mode & 0o022) === 0 && names.every((name) => BEFOREHAND.has(name));
    if (names.length > 0 && !names.includes('home.json') && !isOurs) {
      const some = names.length > 3 ? `${names.slice(0, 3).join(', ')}, …` : names.join(', ');
      throw new HyperMeshError(
        'storage-read-only',
        `${path} is not a HyperMesh home, holds files already (${some}), and is open to other users (mode ${(found.mode & 0o777).toString(8)}).`,
        { hint: 'Name an empty or a new folder with --home, or make this one private with chmod 700.' },
      );
    }
    await using folder = await open(path);
    await folder.chmod(0o700);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'EEXIST' || code === 'ENOTDIR') throw notAFolder(path);
    throw storageError(error, `making the home ${path}`);
  }
}

function notAFolder(path: string): HyperMeshError {
  return new HyperMeshError('storage-read-only', `The home ${path} must be a folder, but a file is in the way.`, {
    hint: 'Name another folder with --home.',
  });
}

/**
 * An exclusive transaction on a file of its own: the operating system gives the lock back when the process ends in any way, kill -9 included.
 * Nothing is ever written in it, so no crash leaves anything to recover.
 */
async function lock(path: string): Promise<() => void> {
  let database: DatabaseSync | undefined;
  try {
    makeOwnFile(join(path, 'lock'));
    database = new DatabaseSync(join(path, 'lock'), { timeout: 0 });
    database.exec('BEGIN EXCLUSIVE');
    const held = database;
    return () => held.close();
  } catch (error) {
    database?.close();
    const primary = ((error as { errcode?: number }).errcode ?? 0) & 0xff;
    if (primary === 5 || primary === 6) {
      const pid = Number.parseInt(await readFile(join(path, 'pid'), 'utf8').catch(() => ''), 10);
      const who = Number.isInteger(pid) ? `process ${pid}` : 'another process';
      throw new HyperMeshError('home-in-use', `The home ${path} is open in ${who}.`, {
        hint: 'Use the node that runs, stop it with `hypermesh down`, or name another --home.',
        ...(Number.isInteger(pid) ? { details: { pid } } : {}),
      });
    }
    throw storageError(error, `locking the home ${path}`);
  }
}

/** What a crash between write and rename left of this file's own writes. Only the holder of the lock may. */
async function removeLeftovers(path: string): Promise<void> {
  for (const name of ['pid.new', 'home.json.new']) await rm(join(path, name), { force: true });
}

function homeText(complete: boolean): string {
  return `${JSON.stringify({ formatVersion: FORMAT, ...(complete ? { complete } : {}) })}\n`;
}

async function readFormat(path: string): Promise<z.infer<typeof homeFile>> {
  const file = join(path, 'home.json');
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (text === null) {
    // Commit point of a new home: before the rename it is an empty folder that is opened as new again, after it a home.
    await writeWhole(file, homeText(false));
    return { formatVersion: FORMAT, complete: false };
  }
  let found: z.infer<typeof homeFile>;
  try {
    found = homeFile.parse(JSON.parse(text));
  } catch (error) {
    throw new HyperMeshError('storage-failed', `${file} is damaged: expected {"formatVersion":${FORMAT}}.`, {
      hint: 'Restore it from a backup, or write that line if you know that this folder is a home.',
      cause: error,
    });
  }
  if (found.formatVersion > FORMAT) {
    throw new HyperMeshError(
      'home-too-new',
      `The home has format ${found.formatVersion}; this version knows ${FORMAT}.`,
      {
        hint: 'Update HyperMesh, or use another --home.',
      },
    );
  }
  if (found.formatVersion < FORMAT) {
    throw new HyperMeshError(
      'home-too-old',
      `The home has format ${found.formatVersion}; this version reads ${FORMAT}, and nothing brings the packages of the older one along.`,
      {
        hint: 'Use the version that made it, or begin a new home and publish the packages there.',
      },
    );
  }
  return found;
}

/** Durable and all or nothing: temporary name, fsync, rename, fsync of the folder. */
async function writeWhole(file: string, text: string): Promise<void> {
  const temporary = `${file}.new`;
  {
    await using handle = await open(temporary, 'w', 0o600);
    await handle.writeFile(text);
    await handle.sync();
  }
  await rename(temporary, file);
  await using folder = await open(join(file, '..'));
  await folder.sync();
}
