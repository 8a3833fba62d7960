import {
  type BigIntStats,
  closeSync,
  constants,
  type Dir,
  type Dirent,
  fstatSync,
  lstatSync,
  opendirSync,
  openSync,
  readlinkSync,
  readSync,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join, matchesGlob, resolve } from 'node:path';
import { setImmediate as breathe } from 'node:timers/promises';
import { fromUtf8 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import { HyperMeshError, storageError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { MANIFEST_BYTES_MAX, type PackageManifest } from '../wire/manifest.ts';
import {
  checkEntry,
  comparePaths,
  encodedSize,
  encodeTree,
  TREE_LIMITS,
  type TreeEntry,
  TreeRules,
  type TreeSource,
  tooManyEntries,
} from '../wire/tree.ts';

/** A folder on its way into the catalog. */
export interface PackedFolder {
  /** The manifest in canonical JSON: YAML that a node reads without a parser of YAML. */
  readonly manifestYaml: string;
  readonly manifest: PackageManifest;
  /** The canonical tree (docs/protocol/tree.md) in pieces of at most 1 MiB. Can be read once; reads the folder as it goes. */
  readonly tree: AsyncIterable<Uint8Array>;
  /** Files and links. */
  readonly files: number;
  /** Bytes of the tree. */
  readonly bytes: number;
}

export interface FolderOptions extends CallOptions {
  /** Instead of `catalog.yaml` in the folder. */
  readonly manifestFile?: string;
  /** A file that is not part of the package wherever it lies: the one that is being written. */
  readonly leaveOut?: string;
  readonly entriesMax?: number;
  /** Pieces of the tree share memory: one is only valid until the second after it is asked for. */
  readonly reuse?: boolean;
}

/** Files up to this size are read in one go. */
const SMALL = 256 * 1024;
const PIECE = 2 ** 20;
/** How long the event loop may wait for synchronous file calls, which are many times faster than asynchronous ones. */
const STRETCH_MS = 5;
/** When so many of the entries that a folder may have are remembered, all are counted before there are more: too many are refused in little memory. */
const REMEMBERED_SHARE = 1 / 10;
/** Names that are asked of the system at once. */
const LISTED_AT_ONCE = 256;

interface Found {
  readonly entry: TreeEntry;
  /** As found by the walk, so that a change before or while it is read is noticed. One text: a folder may have a million entries. */
  readonly state: string;
}

/**
 * Reads `catalog.yaml` and lists the folder; its files are read later, as `tree` is consumed. The same folder gives the same bytes
 * on any day and machine. Links are packed as links and never followed.
 * Errors: `manifest-missing`, `manifest-invalid`, `entry-missing`, `tree-invalid`, `limit-exceeded`, `storage-*`, `cancelled`;
 * while the tree is read also `tree-invalid` when a file changed or cannot be read.
 */
export async function packFolder(folder: string, options: FolderOptions = {}): Promise<PackedFolder> {
  const root = resolve(folder);
  const { parseManifest } = await import('../wire/manifest-text.ts');
  const manifest = parseManifest(readManifest(options.manifestFile ?? join(root, 'catalog.yaml')));
  const found = await walk(root, manifest.exclude, options);
  const rules = new TreeRules(options.entriesMax);
  for (const { entry } of found) {
    rules.admit(entry);
    if (rules.count % 512 === 0) await breathe();
  }
  checkNamed(manifest, found);
  const bytes = encodedSize(found.map(({ entry }) => entry));
  const files = found.filter(({ entry }) => entry.kind !== 'directory').length;
  return { manifestYaml: canonicalJson(manifest), manifest, files, bytes, tree: readTree(root, found, bytes, options) };
}

function readManifest(path: string): string {
  try {
    // A pipe in the place of the manifest must not keep us waiting.
    const file = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    try {
      if (!fstatSync(file).isFile()) {
        throw new HyperMeshError('manifest-invalid', `Expected a file at ${path}, but it is something else.`, {
          hint: 'Name the folder that has a catalog.yaml, or a file with --manifest.',
        });
      }
      // One byte more than allowed is enough to see that it is too large.
      const buffer = new Uint8Array(MANIFEST_BYTES_MAX + 1);
      let filled = 0;
      for (let read = -1; read !== 0 && filled < buffer.length; filled += read)
        read = readSync(file, buffer, filled, buffer.length - filled, null);
      return fromUtf8(buffer.subarray(0, filled));
    } finally {
      closeSync(file);
    }
  } catch (error) {
    if (error instanceof TypeError) {
      throw new HyperMeshError('manifest-invalid', `catalog.yaml: expected UTF-8 text, but ${path} is not.`, {
        cause: error,
      });
    }
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') {
      throw new HyperMeshError('manifest-missing', `Expected a manifest at ${path}, but there is none.`, {
        hint: 'Start one with `hypermesh new`, or name the folder that has a catalog.yaml.',
        cause: error,
      });
    }
    throw storageError(error, `reading ${path}`);
  }
}

/** Everything in the folder that is not left out, in canonical order. */
async function walk(root: string, exclude: readonly string[], options: FolderOptions): Promise<Found[]> {
  const entriesMax = options.entriesMax ?? TREE_LIMITS.entriesMax;
  const matches = exclusion(exclude);
  const leaveOut = options.leaveOut === undefined ? null : resolve(options.leaveOut);
  const isLeftOut = (path: string, name: string) =>
    name === '.git' || matches(path) || (leaveOut !== null && join(root, path) === leaveOut);
  const found: Found[] = [];
  const countAt = Math.ceil(entriesMax * REMEMBERED_SHARE);
  const turns = new Turns(options);
  for (const path of entriesIn(root, isLeftOut)) {
    found.push(look(root, path));
    if (found.length === countAt) await checkCount(root, isLeftOut, entriesMax, turns);
    // It has grown since it was counted.
    if (found.length > entriesMax) throw tooManyEntries(entriesMax);
    if (turns.isDue) await turns.next(found.length);
  }
  return found.sort((a, b) => comparePaths(a.entry.path, b.entry.path));
}

/** Counts what {@link walk} would find, and remembers none of it. */
async function checkCount(
  root: string,
  isLeftOut: (path: string, name: string) => boolean,
  entriesMax: number,
  turns: Turns,
): Promise<void> {
  let count = 0;
  for (const _ of entriesIn(root, isLeftOut)) {
    count += 1;
    if (count > entriesMax) throw tooManyEntries(entriesMax);
    if (turns.isDue) await turns.next(count);
  }
}

/** Lets others have their turn, when the last one was some time ago. */
class Turns {
  readonly #options: FolderOptions;
  #since = performance.now();

  constructor(options: FolderOptions) {
    this.#options = options;
  }

  get isDue(): boolean {
    return performance.now() - this.#since >= STRETCH_MS;
  }

  /** Errors: `cancelled`. */
  async next(listed: number): Promise<void> {
    await breathe();
    checkCancelled(this.#options.signal);
    this.#options.onProgress?.({ step: 'list', done: listed, unit: 'files' });
    this.#since = performance.now();
  }
}

/** The paths of a folder as the system gives them, each folder before what is in it. Holds those folders open that it is in, and no list of any. */
function* entriesIn(
  root: string,
  isLeftOut: (path: string, name: string) => boolean,
): Generator<string, void, undefined> {
  const open: { readonly path: string; readonly folder: Dir }[] = [{ path: '', folder: openFolder(root, '') }];
  try {
    for (let at = open.at(-1); at !== undefined; at = open.at(-1)) {
      const next = nextIn(at);
      if (next === null) {
        open.pop();
        at.folder.closeSync();
        continue;
      }
      const path = at.path === '' ? next.name : `${at.path}/${next.name}`;
      if (isLeftOut(path, next.name)) continue;
      yield path;
      if (!next.isDirectory()) continue;
      // Not deeper than a path may be long.
      checkEntry({ path, kind: 'directory', size: 0, executable: false });
      open.push({ path, folder: openFolder(root, path) });
    }
  } finally {
    for (const { folder } of open) folder.closeSync();
  }
}

function openFolder(root: string, path: string): Dir {
  try {
    return opendirSync(join(root, path), { bufferSize: LISTED_AT_ONCE });
  } catch (error) {
    throw unreadable(path === '' ? root : path, 'folder', error);
  }
}

function nextIn({ path, folder }: { readonly path: string; readonly folder: Dir }): Dirent | null {
  try {
    return folder.readSync();
  } catch (error) {
    throw unreadable(path === '' ? folder.path : path, 'folder', error);
  }
}

function look(root: string, path: string): Found {
  let stats: BigIntStats;
  let target: string | undefined;
  try {
    stats = lstatSync(join(root, path), { bigint: true });
    if (stats.isSymbolicLink()) target = readlinkSync(join(root, path));
  } catch (error) {
    const why = path.includes('\ufffd') ? 'has a name that is not valid UTF-8' : 'changed while the folder was listed';
    throw new HyperMeshError('tree-invalid', `The entry ${JSON.stringify(path)} ${why}.`, {
      hint: 'Rename it, or try again when nothing writes to the folder.',
      cause: error,
    });
  }
  const rest = { path, size: 0, executable: false };
  const state = stateOf(stats);
  if (target !== undefined) return { entry: { ...rest, kind: 'symlink', target }, state };
  if (stats.isDirectory()) return { entry: { ...rest, kind: 'directory' }, state };
  if (stats.isFile()) {
    const executable = (stats.mode & 0o100n) !== 0n;
    return { entry: { path, kind: 'file', size: Number(stats.size), executable }, state };
  }
  const kind = stats.isFIFO() ? 'pipe' : stats.isSocket() ? 'socket' : 'device';
  throw new HyperMeshError(
    'tree-invalid',
    `Expected files, folders and links, but ${JSON.stringify(path)} is a ${kind}.`,
    {
      hint: 'Remove it, or list it under `exclude` in catalog.yaml.',
      details: { path },
    },
  );
}

/**
 * `exclude` in words: a pattern with a slash is matched against the path from the root, one without against a name in any folder.
 * A folder that matches is left out with all it holds. As in a shell, `*` does not match a name that begins with a dot.
 */
function exclusion(patterns: readonly string[]): (path: string) => boolean {
  const cleaned = patterns.map((pattern) => pattern.replace(/^\.?\//, '').replace(/\/(\*\*)?$/, ''));
  const byName = cleaned.filter((pattern) => !pattern.includes('/'));
  const byPath = cleaned.filter((pattern) => pattern.includes('/'));
  return (path) => {
    const name = path.slice(path.lastIndexOf('/') + 1);
    return byName.some((pattern) => matchesGlob(name, pattern)) || byPath.some((pattern) => matchesGlob(path, pattern));
  };
}

function checkNamed(manifest: PackageManifest, found: readonly Found[]): void {
  const present = new Set(found.filter(({ entry }) => entry.kind !== 'directory').map(({ entry }) => entry.path));
  for (const key of ['entry', 'image', 'readme'] as const) {
    const path = manifest[key];
    if (path === undefined || present.has(path)) continue;
    // An image may also be a folder.
    if (key === 'image' && present.has(`${path}/oci-layout`)) continue;
    throw new HyperMeshError(
      'entry-missing',
      `catalog.yaml says ${key}: ${path}, but the folder has no file of that path.`,
      {
        hint: `Add the file, correct \`${key}\`, or check \`exclude\`.`,
        details: { key, path },
      },
    );
  }
}

async function* readTree(
  root: string,
  found: readonly Found[],
  total: number,
  options: FolderOptions,
): AsyncGenerator<Uint8Array, void, undefined> {
  let done = 0;
  for await (const piece of encodeTree(sources(root, found, options), options)) {
    checkCancelled(options.signal);
    yield piece;
    done += piece.length;
    options.onProgress?.({ step: 'pack', done, total, unit: 'bytes' });
  }
}

async function* sources(
  root: string,
  found: readonly Found[],
  options: FolderOptions,
): AsyncGenerator<TreeSource, void, undefined> {
  let since = performance.now();
  for (const { entry, state } of found) {
    if (performance.now() - since >= STRETCH_MS) {
      await breathe();
      checkCancelled(options.signal);
      since = performance.now();
    }
    if (entry.kind !== 'file' || entry.size === 0) yield { entry };
    else if (entry.size <= SMALL) yield { entry, content: readSmall(root, entry, state) };
    else yield { entry, content: readLarge(root, entry, state) };
  }
}

/** Never through a link, and never waiting for a pipe, that took the file's place. */
const READ = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0);

function readSmall(root: string, entry: TreeEntry, state: string): Uint8Array {
  try {
    const file = openSync(join(root, entry.path), READ);
    try {
      const buffer = new Uint8Array(entry.size);
      let filled = 0;
      for (let read = -1; read !== 0 && filled < buffer.length; filled += read)
        read = readSync(file, buffer, filled, buffer.length - filled, null);
      checkUnchanged(entry, state, fstatSync(file, { bigint: true }));
      return buffer.subarray(0, filled);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw unreadable(entry.path, 'file', error);
  }
}

async function* readLarge(root: string, entry: TreeEntry, state: string): AsyncGenerator<Uint8Array, void, undefined> {
  let file: FileHandle | undefined;
  try {
    file = await open(join(root, entry.path), READ);
    checkUnchanged(entry, state, await file.stat({ bigint: true }));
    // The encoder copies each piece before it asks for the next.
    const buffer = new Uint8Array(Math.min(PIECE, entry.size));
    for (let at = 0; at < entry.size; ) {
      const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, entry.size - at), at);
      if (bytesRead === 0) break;
      at += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
    checkUnchanged(entry, state, await file.stat({ bigint: true }));
  } catch (error) {
    throw unreadable(entry.path, 'file', error);
  } finally {
    await file?.close();
  }
}

function stateOf({ ino, size, mtimeNs, mode }: BigIntStats): string {
  return `${ino} ${size} ${mtimeNs} ${mode}`;
}

function checkUnchanged(entry: TreeEntry, before: string, now: BigIntStats): void {
  if (before === stateOf(now)) return;
  throw new HyperMeshError('tree-invalid', `The file ${JSON.stringify(entry.path)} changed while it was packed.`, {
    hint: 'Try again when nothing writes to the folder, or list the file under `exclude` in catalog.yaml.',
    details: { path: entry.path },
  });
}

function unreadable(path: string, kind: 'file' | 'folder', error: unknown): HyperMeshError {
  const code = (error as NodeJS.ErrnoException).code;
  if (code !== 'EACCES' && code !== 'EPERM' && code !== 'ENOENT' && code !== 'ELOOP' && code !== 'ENOTDIR')
    return storageError(error, `reading the ${kind} ${JSON.stringify(path)}`);
  const denied = code === 'EACCES' || code === 'EPERM';
  const why = denied ? 'you may not read it' : 'it went away or was replaced while the folder was packed';
  return new HyperMeshError('tree-invalid', `The ${kind} ${JSON.stringify(path)} cannot be packed: ${why}.`, {
    hint: denied
      ? `Give yourself the right (chmod u+r), or list it under \`exclude\` in catalog.yaml.`
      : 'Try again when nothing writes to the folder.',
    details: { path },
    cause: error,
  });
}

function checkCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new HyperMeshError('cancelled', 'Packing was cancelled.', { cause: signal.reason });
}
