import { createHash, randomBytes } from 'node:crypto';
import fs, { constants } from 'node:fs';
import { dirname, isAbsolute, join, normalize } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { type CallOptions, checkCancelled } from '../../base/call.ts';
import { type Digest, digestHex } from '../../base/digest.ts';
import { HyperMeshError, isCoded, storing } from '../../base/errors.ts';
import { makeFolders } from '../../base/folders.ts';
import type { Installation } from '../../capabilities/assets.ts';
import { checkLock, decodeLock, encodeLock, LOCK_LIMITS, type Lock } from '../../wire/lock.ts';
import type { TreeFile } from '../../wire/tree.ts';

/** What an installation takes from the content store. */
export interface Layers {
  treeFiles(layer: Digest, options?: CallOptions): Promise<readonly TreeFile[]>;
  /** With `reuse` a piece is only valid until the next. */
  read(digest: Digest, options?: CallOptions & { readonly reuse?: boolean }): AsyncIterable<Uint8Array>;
  hold(digests: Iterable<Digest>): Promise<readonly Digest[]>;
}

/** Where installations are known, so that collection keeps what they refer to. */
export interface Registry {
  registerInstallation(root: string, generation: number, lock: Lock): void;
  retainInstallation(root: string, generations: readonly number[]): void;
}

export interface Generation {
  readonly generation: number;
  readonly lock: Lock;
}

/** A difference between an installation and the store. */
export interface Difference {
  readonly path: string;
  readonly problem: string;
}

/** Older generations that stay for a rollback. */
const GENERATIONS_KEPT = 3;
const DIFFERENCES_MAX = 1_000;
const TREES_REMEMBERED_MAX = 10_000;
/** The event loop gets a turn after this much work with files. */
const SLICE_MS = 8;
const WAIT_MS_MAX = 60_000;
const SQLITE_BUSY = 5;
/** A package larger than this tells how far it is each time it has written as much. */
const REPORT_BYTES = 16 * 2 ** 20;
const LINK = /^\.hypermesh\/generations\/([1-9]\d{0,8})$/;

/**
 * Installations on disk (docs/protocol/installation.md): `packages` is a link to one generation, a generation is a folder of links to
 * trees, a tree is a folder named by its layer. To install is to build what is missing beside what is there, and then to turn one link.
 */
export class Installations {
  readonly #layers: Layers;
  readonly #registry: Registry;
  /** Trees written ahead of their installation, each with the number by which the file system knows its folder. */
  readonly #prepared = new LRUCache<string, bigint>({ max: TREES_REMEMBERED_MAX });
  /** The end of the work under way for a root. */
  readonly #turns = new Map<string, Promise<void>>();

  constructor(lent: { readonly layers: Layers; readonly registry: Registry }) {
    this.#layers = lent.layers;
    this.#registry = lent.registry;
  }

  /** See `Assets.install`. */
  async install(
    root: string,
    wanted: Lock,
    options: CallOptions & { readonly expectGeneration?: number } = {},
  ): Promise<Installation> {
    const lock = checkLock(wanted);
    const home = await storing(`creating ${root}`, () => prepareRoot(root));
    return this.#alone(home, options.signal, async () => {
      const now = await this.#heal(home);
      const generation = now?.generation ?? 0;
      if (options.expectGeneration !== undefined && options.expectGeneration !== generation) {
        throw new HyperMeshError(
          'installation-changed',
          `Expected generation ${options.expectGeneration} of ${home.root}, but it has generation ${generation}.`,
          { hint: 'Another command changed the installation at the same time; run yours again.' },
        );
      }
      if (now !== null && encodeLock(now.lock) === encodeLock(lock)) {
        // Nothing to switch; a tree that somebody removed is put back.
        await this.#holdAll(lock);
        await this.#unpackMissing(home, lock, now, options);
        return describe(home, now);
      }
      return this.#switchTo(home, now, { generation: generation + 1, lock }, options);
    });
  }

  /** See `Assets.prepareInstallation`. */
  async prepare(root: string, wanted: Lock, options: CallOptions = {}): Promise<void> {
    const lock = checkLock(wanted);
    const home = await storing(`creating ${root}`, () => prepareRoot(root));
    await this.#alone(home, options.signal, async () => {
      const now = await this.#heal(home);
      try {
        await this.#holdAll(lock);
        for (const path of await this.#unpackMissing(home, lock, now, options))
          this.#prepared.set(path, inodeOf(path)!);
      } catch (error) {
        await emptyTemporary(home).catch(() => {});
        throw error;
      }
    });
  }

  /** See `Assets.installation`. */
  async installation(root: string): Promise<Installation | null> {
    const home = await storing(`reading ${root}`, () => existingRoot(root));
    if (home === null) return null;
    if (await storing(`reading ${root}`, () => leftovers(home))) {
      try {
        await this.#alone(home, undefined, () => this.#heal(home));
      } catch (error) {
        // Whoever may only read still sees what is installed.
        if (!isCoded(error, 'storage-read-only')) throw error;
      }
    }
    const now = await storing(`reading ${root}`, () => current(home));
    return now && describe(home, now);
  }

  /** What a rollback can go back to, newest first: the generation in use, then at most three before it. */
  async history(root: string): Promise<readonly Generation[]> {
    if ((await this.installation(root)) === null) return [];
    const home = existingRoot(root)!;
    const now = current(home)!;
    return generations(home)
      .filter((generation) => generation <= now.generation)
      .flatMap((generation) => {
        const lock = generation === now.generation ? now.lock : readOlderLock(home, generation);
        return lock === null ? [] : [{ generation, lock }];
      });
  }

  /** See `Assets.checkInstallation`. At most 1,000 differences. */
  async check(root: string, options: CallOptions = {}): Promise<readonly Difference[]> {
    const installation = await this.installation(root);
    if (installation === null) {
      throw new HyperMeshError('not-installed', `Nothing is installed in ${root}.`, {
        hint: 'Name the folder that holds `packages` and `hypermesh.lock`.',
      });
    }
    const found: Difference[] = [];
    const home = existingRoot(root)!;
    for (const [index, entry] of installation.packages.entries()) {
      if (found.length >= DIFFERENCES_MAX) break;
      options.onProgress?.({ step: 'check', done: index, total: installation.packages.length, unit: 'packages' });
      const link = join(home.generations, String(installation.generation), entry.name);
      if (linkOf(link) !== treeLink(entry.layers[0]!))
        found.push({ path: entry.path, problem: 'does not lead to its tree' });
      else await this.#compare(home, entry.layers[0]!, entry.path, found, options);
    }
    return found.slice(0, DIFFERENCES_MAX);
  }

  /** Forgets roots that are gone, or are no installation any more; returns those that are left. */
  prune(roots: readonly string[]): string[] {
    return roots.filter((root) => {
      if (isInstallation(root)) return true;
      this.#registry.retainInstallation(root, []);
      return false;
    });
  }

  /**
   * The steps of an installation. Until the link is turned nothing that is in use has changed: an error takes back what was begun, a crash
   * leaves it to `#heal`.
   */
  async #switchTo(home: Home, now: Generation | null, next: Generation, options: CallOptions): Promise<Installation> {
    const before = generations(home);
    await this.#holdAll(next.lock);
    // From here on collection keeps the blobs of the new generation. A crash leaves a row too many until the next look at this root.
    this.#registry.registerInstallation(home.root, next.generation, next.lock);
    try {
      await this.#unpackMissing(home, next.lock, now, options);
      checkCancelled(options.signal);
      await storing(`installing into ${home.root}`, async () => {
        await writeGeneration(home, next);
        const copy = await writeTemporary(home, encodeLock(next.lock));
        // The commit point: `packages` leads to the old generation before, to the new one after, at every instant.
        await turnLink(home, next.generation);
        // A crash here leaves the lock file of the generation before beside the new packages; the next look at this root finishes the copy.
        fs.renameSync(copy, home.lock);
        await syncFolder(home.root);
      });
    } catch (error) {
      this.#registry.retainInstallation(home.root, before);
      await emptyTemporary(home).catch(() => {});
      throw error;
    }
    // The switch is done; what cannot be tidied up now is tidied up next time.
    await this.#tidy(home, next.generation).catch(() => {});
    return describe(home, next);
  }

  /**
   * Returns the trees that it wrote. One that is in use, or was prepared a moment ago, is taken as it is; any other that bears the right
   * name may have been put there by anybody, so it is compared first.
   */
  async #unpackMissing(home: Home, lock: Lock, now: Generation | null, options: CallOptions): Promise<string[]> {
    const written: string[] = [];
    const inUse = new Set(now?.lock.packages.map(({ layers: [first] }) => first!));
    const layers = new Map(lock.packages.map(({ name, version, layers: [first] }) => [first!, `${name}@${version}`]));
    let done = 0;
    for (const [layer, ref] of layers) {
      options.onProgress?.({ step: 'unpack', done, total: layers.size, unit: 'packages', note: ref });
      const path = tree(home, layer);
      const found = inodeOf(path);
      const known = inUse.has(layer) || this.#prepared.get(path) === found;
      this.#prepared.delete(path);
      const sound = found !== undefined && (known || (await this.#isWhole(home, layer, options)));
      if (found !== undefined && !sound) await storing(`removing ${path}`, () => removeAll(home, [path]));
      if (!sound) {
        await this.#unpack(home, layer, ref, options);
        written.push(path);
      }
      done += 1;
    }
    return written;
  }

  async #isWhole(home: Home, layer: Digest, options: CallOptions): Promise<boolean> {
    const found: Difference[] = [];
    await this.#compare(home, layer, '', found, options);
    return found.length === 0;
  }

  async #holdAll(lock: Lock): Promise<void> {
    const missing = new Set(await this.#layers.hold(lock.packages.map(({ layers }) => layers[0]!)));
    const first = lock.packages.find(({ layers }) => missing.has(layers[0]!));
    if (first === undefined) return;
    throw new HyperMeshError(
      'blob-not-found',
      `The content of ${first.name}@${first.version} is not in the store (${first.layers[0]}).`,
      { hint: 'Fetch or publish that package on this node first.', details: { missing: [...missing].slice(0, 100) } },
    );
  }

  /**
   * Writes a tree under a temporary name, checks its digest, and gives it its name: a tree that has its name is complete. Its files are not
   * synced one by one: everything here can be derived again, and compared, from the store.
   */
  async #unpack(home: Home, layer: Digest, ref: string, options: CallOptions): Promise<void> {
    const files = await this.#layers.treeFiles(layer, options);
    const content = reportLarge(this.#layers.read(layer, { ...options, reuse: true }), files, ref, options);
    await storing(`unpacking into ${home.root}`, async () => {
      const folder = join(home.temporary, randomName());
      if ((await writeTree(folder, files, content)) !== digestHex(layer)) {
        throw new HyperMeshError(
          'blob-damaged',
          `The stored blob ${layer} no longer has its digest; nothing was installed.`,
          {
            hint: 'Run `hypermesh doctor`, then fetch or publish the package again.',
          },
        );
      }
      fs.renameSync(folder, tree(home, layer));
    });
  }

  /**
   * Brings a root back to what its link says, whatever a crash left: temporary files go; a generation that was never switched to goes, and
   * an older one that can no longer be read; the lock file is finished if it still is that of the generation before. Only while nobody else works on the root.
   */
  async #heal(home: Home): Promise<Generation | null> {
    return storing(`reading ${home.root}`, async () => {
      const now = current(home);
      await emptyTemporary(home);
      const unfit = generations(home).filter(
        (generation) =>
          generation > (now?.generation ?? 0) ||
          (generation !== now?.generation && readOlderLock(home, generation) === null),
      );
      await removeAll(
        home,
        unfit.map((generation) => join(home.generations, String(generation))),
      );
      if (now !== null && lockIsOld(home, now)) {
        fs.renameSync(await writeTemporary(home, encodeLock(now.lock)), home.lock);
        await syncFolder(home.root);
      }
      const kept = generations(home);
      // The root may have been made by another node, or this node's records restored: the disk decides.
      for (const generation of kept)
        this.#registry.registerInstallation(home.root, generation, readLock(home, generation));
      this.#registry.retainInstallation(home.root, kept);
      return now;
    });
  }

  /** Old generations go, and trees that no generation refers to. */
  async #tidy(home: Home, generation: number): Promise<void> {
    const all = generations(home);
    const old = all.filter((one) => one < generation).slice(GENERATIONS_KEPT);
    await removeAll(
      home,
      old.map((one) => join(home.generations, String(one))),
    );
    const kept = all.filter((one) => !old.includes(one));
    this.#registry.retainInstallation(home.root, kept);
    const used = new Set(
      kept.flatMap((one) => readLock(home, one).packages.map(({ layers }) => digestHex(layers[0]!))),
    );
    const unused = fs.readdirSync(home.trees).filter((name) => !used.has(name));
    await removeAll(
      home,
      unused.map((name) => join(home.trees, name)),
    );
  }

  async #compare(home: Home, layer: Digest, path: string, found: Difference[], options: CallOptions): Promise<void> {
    let files: readonly TreeFile[];
    try {
      files = await this.#layers.treeFiles(layer, options);
    } catch (error) {
      if (!isCoded(error, 'blob-not-found')) throw error;
      found.push({ path, problem: 'cannot be checked: its content is no longer in the store' });
      return;
    }
    await storing(`checking ${home.root}`, async () => {
      await compareTree(
        tree(home, layer),
        files,
        this.#layers.read(layer, { ...options, reuse: true }),
        (name, problem) => {
          if (found.length < DIFFERENCES_MAX) found.push({ path: join(path, name), problem });
        },
      );
    });
  }

  /** One at a time for a root: in this process by waiting in line, among processes by a lock that the system drops with its holder. */
  async #alone<T>(home: Home, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(home.root);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#turns.set(home.root, promise);
    try {
      await before;
      checkCancelled(signal);
      const lock = await storing(`locking ${home.root}`, () => lockRoot(home, signal));
      try {
        return await work();
      } finally {
        lock.close();
      }
    } finally {
      resolve();
      if (this.#turns.get(home.root) === promise) this.#turns.delete(home.root);
    }
  }
}

/** The places of one root. */
interface Home {
  readonly root: string;
  readonly packages: string;
  readonly lock: string;
  readonly generations: string;
  readonly trees: string;
  readonly temporary: string;
  readonly exclusive: string;
}

function homeOf(root: string): Home {
  const inside = join(root, '.hypermesh');
  return {
    root,
    packages: join(root, 'packages'),
    lock: join(root, 'hypermesh.lock'),
    generations: join(inside, 'generations'),
    trees: join(inside, 'trees'),
    temporary: join(inside, 'temporary'),
    exclusive: join(inside, 'exclusive.db'),
  };
}

/** The root by its real path, so that one folder has one name; null when there is no installation. Errors: `usage`. */
function existingRoot(root: string): Home | null {
  if (typeof root !== 'string' || !isAbsolute(root) || root.includes('\0') || root.length > 4_096) {
    throw new HyperMeshError(
      'usage',
      `Expected an absolute path of a folder, but got "${String(root).slice(0, 200)}".`,
    );
  }
  const found = fs.statSync(root, { throwIfNoEntry: false });
  if (found === undefined) return null;
  if (!found.isDirectory()) throw notAFolder(root);
  const home = homeOf(fs.realpathSync(root));
  checkPlaces(home);
  return fs.existsSync(home.generations) && fs.existsSync(home.temporary) ? home : null;
}

function isInstallation(root: string): boolean {
  try {
    return existingRoot(root) !== null;
  } catch {
    return false;
  }
}

/**
 * What is written and removed must lie in the root: a folder prepared by somebody else could hold links that lead out of it.
 * Errors: `usage`.
 */
function checkPlaces(home: Home): void {
  for (const path of [dirname(home.generations), home.generations, home.trees, home.temporary]) {
    const found = fs.lstatSync(path, { throwIfNoEntry: false });
    if (found !== undefined && !found.isDirectory()) throw notOurs(path, 'is not a folder');
  }
  const exclusive = fs.lstatSync(home.exclusive, { throwIfNoEntry: false });
  if (exclusive !== undefined && !exclusive.isFile()) throw notOurs(home.exclusive, 'is not a file');
  if (fs.lstatSync(home.lock, { throwIfNoEntry: false })?.isDirectory()) throw notOurs(home.lock, 'is a folder');
}

function notOurs(path: string, problem: string): HyperMeshError {
  return new HyperMeshError('usage', `${path} ${problem} and was not made by an installation; nothing was changed.`, {
    hint: 'Move it away, or choose another folder with --to.',
  });
}

function prepareRoot(root: string): Home {
  existingRoot(root);
  try {
    makeFolders(normalize(root));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOTDIR' || code === 'EEXIST') throw notAFolder(root);
    // What Node reports when a parent cannot be written; asking the parent gives the reason.
    if (code === 'ENOENT') fs.accessSync(nearestFolder(root), constants.W_OK);
    throw error;
  }
  const home = homeOf(fs.realpathSync(root));
  current(home);
  for (const folder of [home.generations, home.trees, home.temporary]) fs.mkdirSync(folder, { recursive: true });
  return home;
}

function nearestFolder(path: string): string {
  return fs.existsSync(path) ? path : nearestFolder(dirname(path));
}

function notAFolder(path: string): HyperMeshError {
  return new HyperMeshError('usage', `Expected a folder to install into, but ${path} is, or leads through, a file.`, {
    hint: 'Choose another folder with --to.',
  });
}

/** What the link says. Errors: `usage` when something else has its name, `lock-invalid`. */
function current(home: Home): Generation | null {
  const target = linkOf(home.packages);
  if (target === undefined) return null;
  const generation = target === null ? null : LINK.exec(target);
  if (!generation) {
    throw notOurs(home.packages, 'is not a link of this form');
  }
  return { generation: Number(generation[1]), lock: readLock(home, Number(generation[1])) };
}

/** Undefined: nothing there; null: something else than a link. */
function linkOf(path: string): string | null | undefined {
  try {
    return fs.readlinkSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    if (code === 'EINVAL') return null;
    throw error;
  }
}

/** Complete generations, newest first. */
function generations(home: Home): number[] {
  return fs
    .readdirSync(home.generations)
    .filter((name) => /^[1-9]\d{0,8}$/.test(name))
    .map(Number)
    .sort((a, b) => b - a);
}

/** Errors: `lock-invalid`, which says how to begin again. */
function readLock(home: Home, generation: number): Lock {
  const path = join(home.generations, String(generation), 'lock.json');
  try {
    return decodeLock(readPlain(path) ?? '');
  } catch (error) {
    if (!isCoded(error, 'lock-invalid') && (error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new HyperMeshError('lock-invalid', `${path} is damaged: ${(error as Error).message}`, {
      hint: `Remove ${home.packages}; then install the packages again, with --locked if hypermesh.lock is whole.`,
      cause: error,
    });
  }
}

/** Null when it is damaged: an older generation can be done without. */
function readOlderLock(home: Home, generation: number): Lock | null {
  try {
    return readLock(home, generation);
  } catch (error) {
    if (isCoded(error, 'lock-invalid')) return null;
    throw error;
  }
}

/** The text of a file of the size that a lock may have; null when it is something else, such as a link, a pipe or a device. */
function readPlain(path: string): string | null {
  let file: number;
  try {
    file = fs.openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ELOOP') return null;
    throw error;
  }
  try {
    const found = fs.fstatSync(file);
    return found.isFile() && found.size <= LOCK_LIMITS.bytesMax ? fs.readFileSync(file, 'utf8') : null;
  } finally {
    fs.closeSync(file);
  }
}

function tree(home: Home, layer: Digest): string {
  return join(home.trees, digestHex(layer));
}

/** From `.hypermesh/generations/N/scope/` to the tree. */
function treeLink(layer: Digest): string {
  return `../../../trees/${digestHex(layer)}`;
}

function describe(home: Home, { generation, lock }: Generation): Installation {
  const packages = lock.packages.map((entry) => ({ ...entry, path: tree(home, entry.layers[0]!) }));
  return { root: home.root, generation, lock, packages };
}

/** Is there anything for `#heal` to do? */
function leftovers(home: Home): boolean {
  const now = current(home);
  return (
    fs.readdirSync(home.temporary).length > 0 ||
    generations(home).some((generation) => generation > (now?.generation ?? 0)) ||
    (now !== null && lockIsOld(home, now))
  );
}

/** The lock file is missing, or still that of the generation before. One that a person changed is theirs. */
function lockIsOld(home: Home, now: Generation): boolean {
  const previous = generations(home).find((generation) => generation < now.generation);
  let text: string | null;
  try {
    text = readPlain(home.lock);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true;
    throw error;
  }
  if (previous === undefined || text === encodeLock(now.lock)) return false;
  const before = readOlderLock(home, previous);
  return before !== null && text === encodeLock(before);
}

/** Undefined when there is nothing. */
function inodeOf(path: string): bigint | undefined {
  return fs.lstatSync(path, { bigint: true, throwIfNoEntry: false })?.ino;
}

async function writeGeneration(home: Home, { generation, lock }: Generation): Promise<void> {
  const folder = join(home.temporary, randomName());
  fs.mkdirSync(folder);
  const slice = new Slice();
  const scopes = new Set<string>();
  for (const { name, layers } of lock.packages) {
    const scope = join(folder, name.slice(0, name.indexOf('/')));
    if (!scopes.has(scope)) fs.mkdirSync(scope);
    scopes.add(scope);
    fs.symlinkSync(treeLink(layers[0]!), join(folder, name));
    await slice.turn();
  }
  await fs.promises.writeFile(join(folder, 'lock.json'), encodeLock(lock), { mode: 0o644, flush: true });
  for (const scope of scopes) await syncFolder(scope);
  await syncFolder(folder);
  await syncFolder(home.trees);
  fs.renameSync(folder, join(home.generations, String(generation)));
  await syncFolder(home.generations);
}

async function turnLink(home: Home, generation: number): Promise<void> {
  const link = join(home.temporary, randomName());
  fs.symlinkSync(`.hypermesh/generations/${generation}`, link);
  fs.renameSync(link, home.packages);
  await syncFolder(home.root);
}

async function writeTemporary(home: Home, text: string): Promise<string> {
  const path = join(home.temporary, randomName());
  await fs.promises.writeFile(path, text, { flag: 'wx', mode: 0o644, flush: true });
  return path;
}

/** Unlike other calls, a sync may wait for the disk for long: it never happens in place. */
async function syncFolder(path: string): Promise<void> {
  const folder = await fs.promises.open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** First out of its place in one step, so that nothing half-removed has the name of something whole. */
async function removeAll(home: Home, paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const away = join(home.temporary, randomName());
    fs.renameSync(path, away);
    await fs.promises.rm(away, { recursive: true, force: true });
  }
}

async function emptyTemporary(home: Home): Promise<void> {
  await removeAll(
    home,
    fs.readdirSync(home.temporary).map((name) => join(home.temporary, name)),
  );
}

function randomName(): string {
  return randomBytes(12).toString('hex');
}

/** An exclusive transaction on an empty database: a lock that all systems have, and that dies with the process. */
async function lockRoot(home: Home, signal: AbortSignal | undefined): Promise<DatabaseSync> {
  const database = new DatabaseSync(home.exclusive, { timeout: 0 });
  try {
    for (let waitedMs = 0; ; waitedMs += 50) {
      try {
        database.exec('BEGIN EXCLUSIVE');
        return database;
      } catch (error) {
        const { errcode = 0 } = error as { errcode?: number };
        if ((errcode & 0xff) !== SQLITE_BUSY) throw error;
        if (waitedMs >= WAIT_MS_MAX) {
          throw new HyperMeshError(
            'installation-changed',
            `Another process has been changing ${home.root} for a minute.`,
            {
              hint: 'Wait until it has finished and run the command again.',
            },
          );
        }
      }
      checkCancelled(signal);
      await sleep(50);
    }
  } catch (error) {
    database.close();
    throw error;
  }
}

/** Calls to the file system wait for nothing and are fastest in place; this gives others their turn in between. */
class Slice {
  #sinceMs = performance.now();

  async turn(): Promise<void> {
    if (performance.now() - this.#sinceMs < SLICE_MS) return;
    await nextTurn();
    this.#sinceMs = performance.now();
  }
}

/** Hands the bytes of each file to `visit`, piece by piece, in the order in which they lie in the layer. Returns the layer's SHA-256. */
async function sweep(
  files: readonly TreeFile[],
  pieces: AsyncIterable<Uint8Array>,
  visit: (file: TreeFile, bytes: Uint8Array, at: number) => void,
): Promise<string> {
  const contents = files.filter(({ kind, size }) => kind === 'file' && size > 0);
  const digest = createHash('sha256');
  const slice = new Slice();
  let next = 0;
  let position = 0;
  for await (const piece of pieces) {
    digest.update(piece);
    const end = position + piece.length;
    for (let file = contents[next]; file !== undefined && file.offset < end; file = contents[next]) {
      const from = Math.max(file.offset, position);
      const to = Math.min(file.offset + file.size, end);
      visit(file, piece.subarray(from - position, to - position), from - file.offset);
      await slice.turn();
      if (to < file.offset + file.size) break;
      next += 1;
    }
    position = end;
    await slice.turn();
  }
  return digest.digest('hex');
}

/** Passes the content of one package on, and tells how much of it went by: of many packages the number is told, of a large one also its bytes. */
async function* reportLarge(
  content: AsyncIterable<Uint8Array>,
  files: readonly TreeFile[],
  ref: string,
  { onProgress }: CallOptions,
): AsyncIterable<Uint8Array> {
  const total = files.reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  let next = REPORT_BYTES;
  for await (const piece of content) {
    yield piece;
    done += piece.length;
    if (done < next || done >= total) continue;
    next = done + REPORT_BYTES;
    onProgress?.({ step: 'unpack', done, total, unit: 'bytes', note: ref });
  }
}

/** Writes a tree into a folder that does not exist yet, with exact modes whatever the umask. Returns the layer's SHA-256. */
async function writeTree(
  folder: string,
  files: readonly TreeFile[],
  pieces: AsyncIterable<Uint8Array>,
): Promise<string> {
  fs.mkdirSync(folder, 0o755);
  const masked = (fs.statSync(folder).mode & 0o777) !== 0o755;
  if (masked) fs.chmodSync(folder, 0o755);
  const slice = new Slice();
  const create = ({ path, executable }: TreeFile): number => {
    const mode = executable ? 0o755 : 0o644;
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    const file = fs.openSync(`${folder}/${path}`, flags, mode);
    if (masked || mode === 0o755) fs.fchmodSync(file, mode);
    return file;
  };
  // A folder comes before what is in it, so every parent is there and is a folder made here.
  for (const entry of files) {
    if (entry.kind === 'directory') {
      fs.mkdirSync(`${folder}/${entry.path}`, 0o755);
      if (masked) fs.chmodSync(`${folder}/${entry.path}`, 0o755);
    } else if (entry.kind === 'file' && entry.size === 0) fs.closeSync(create(entry));
    await slice.turn();
  }
  let open: number | null = null;
  try {
    const digest = await sweep(files, pieces, (file, bytes, at) => {
      open ??= create(file);
      for (let written = 0; written < bytes.length; ) written += fs.writeSync(open, bytes, written);
      if (at + bytes.length < file.size) return;
      fs.closeSync(open);
      open = null;
    });
    // Links last: nothing is ever written through one.
    for (const { kind, path, target } of files) {
      if (kind === 'symlink') fs.symlinkSync(target!, `${folder}/${path}`);
      await slice.turn();
    }
    return digest;
  } finally {
    if (open !== null) fs.closeSync(open);
  }
}

/** Reports everything in which a folder differs from the tree it was made from; `path` is empty for the folder itself. */
async function compareTree(
  folder: string,
  files: readonly TreeFile[],
  pieces: AsyncIterable<Uint8Array>,
  report: (path: string, problem: string) => void,
): Promise<void> {
  const slice = new Slice();
  if (!fs.lstatSync(folder, { throwIfNoEntry: false })?.isDirectory()) return report('', 'is missing');
  const expected = new Map(files.map((entry) => [entry.path, entry]));
  const pending = [''];
  for (let inside = pending.pop(); inside !== undefined; inside = pending.pop()) {
    for (const entry of fs.readdirSync(join(folder, inside), { withFileTypes: true })) {
      const path = inside === '' ? entry.name : `${inside}/${entry.name}`;
      if (!expected.has(path)) report(path, 'is not part of the package');
      else if (entry.isDirectory() && expected.get(path)!.kind === 'directory') pending.push(path);
    }
    await slice.turn();
  }
  const whole = new Set<string>();
  for (const entry of files) {
    const problem = compareEntry(`${folder}/${entry.path}`, entry);
    if (problem !== null) report(entry.path, problem);
    else whole.add(entry.path);
    await slice.turn();
  }
  const buffer = Buffer.alloc(2 ** 20);
  await sweep(files, pieces, ({ path }, bytes, at) => {
    if (!whole.has(path) || equalPart(`${folder}/${path}`, bytes, at, buffer)) return;
    whole.delete(path);
    report(path, 'has other bytes');
  });
}

function compareEntry(path: string, entry: TreeFile): string | null {
  const found = fs.lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return 'is missing';
  const kind = found.isSymbolicLink()
    ? 'symlink'
    : found.isDirectory()
      ? 'directory'
      : found.isFile()
        ? 'file'
        : 'other';
  if (kind !== entry.kind) return `is not a ${entry.kind}`;
  if (kind === 'symlink') return fs.readlinkSync(path) === entry.target ? null : `does not lead to ${entry.target}`;
  const mode = kind === 'directory' || entry.executable ? 0o755 : 0o644;
  if ((found.mode & 0o7777) !== mode)
    return `has mode 0${(found.mode & 0o7777).toString(8)} instead of 0${mode.toString(8)}`;
  return kind === 'file' && found.size !== entry.size ? `has ${found.size} bytes instead of ${entry.size}` : null;
}

function equalPart(path: string, bytes: Uint8Array, at: number, buffer: Buffer): boolean {
  const file = fs.openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    for (let done = 0; done < bytes.length; ) {
      const read = fs.readSync(file, buffer, 0, Math.min(buffer.length, bytes.length - done), at + done);
      if (read === 0 || buffer.compare(bytes, done, done + read, 0, read) !== 0) return false;
      done += read;
    }
    return true;
  } finally {
    fs.closeSync(file);
  }
}
