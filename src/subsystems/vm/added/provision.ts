import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import {
  chmod,
  lstat,
  lutimes,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  statfs,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, digestHex } from '../../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../../base/errors.ts';
import { mapBounded } from '../../../base/streams.ts';
import type { Assets } from '../../../capabilities/assets.ts';
import { decodeRuntimeImage, encodeRuntimeImage, type RuntimeImage } from '../../../wire/runtime-image.ts';
import { type AptSource, fetchPackages, readAptSources, unpackPackage } from './apt.ts';
import { unpackImage } from './image-package.ts';

/** An image that is complete: `root` is what programs get as `/`. */
export interface AddedImage extends RuntimeImage {
  readonly root: string;
}

/** How the image of a runtime is made from packages of a distribution. */
export interface Recipe {
  readonly runtime: RuntimeImage['runtime'];
  readonly title: string;
  /** With all that they need; the version of the first one is that of the image. */
  readonly packages: readonly [string, ...string[]];
  /** Older releases that are looked at after those of the machine. */
  readonly suites: readonly string[];
  /** What is left of the packages: no package tools, no documentation. `*` at the end stands for anything. */
  readonly kept: readonly string[];
  /** Links that are made: path -> target. */
  readonly links: Readonly<Record<string, string>>;
}

export interface ProvisionOptions extends CallOptions {
  /** Where packages come from; by default what apt on this machine is configured with. */
  readonly sources?: readonly AptSource[];
  /** A package with the image, instead of packages of the distribution. */
  readonly from?: { readonly assets: Pick<Assets, 'tree' | 'readFile'>; readonly layer: Digest };
  /** Adds to the files below `root` what the packages leave to their scripts. The same files must give the same ones. */
  readonly finish?: (root: string) => Promise<void>;
}

const FREE_BYTES_MIN = 2 ** 30;
const FILES_MAX = 100_000;
/** Set on every file, so that the same packages give the same tree. */
const MTIME = new Date('2000-01-01T00:00:00Z');
const NEW = '.new-';
const READ_BYTES = 2 ** 18;
/** Files that are read, changed or synced side by side. */
const AT_ONCE = 16;

/**
 * Adds a runtime to the images in `folder`, from packages of Debian: verified by apt, unpacked without running any of their scripts, trimmed, and
 * sealed under a digest; or from a package of this catalog, in which every digest must hold. Repeating it gives the image that is there.
 * Steps: `index`, `download`, `unpack`, `seal`.
 * Errors: `runtime-unavailable` (no apt, no source that has it), `program-invalid` (of a package), `limit-exceeded`, `storage-*`, `cancelled`.
 */
export async function addImage(folder: string, recipe: Recipe, options: ProvisionOptions = {}): Promise<AddedImage> {
  const there = await findImage(folder, recipe.runtime);
  if (there !== null) return there;
  await checkSpace(folder, recipe);
  const work = await mkdtemp(join(folder, NEW));
  try {
    const root = join(work, 'image', 'root');
    await mkdir(join(work, 'image'), { mode: 0o755 });
    const image =
      options.from === undefined
        ? await fetch(root, work, recipe, options)
        : await unpackFrom(root, work, recipe, options.from, options);
    // Whatever the umask: the users of boxes must reach the files.
    for (const path of [root, join(root, '..')]) await chmod(path, 0o755);
    await writeFile(join(work, 'image', 'image.json'), encodeRuntimeImage(image), { mode: 0o644 });
    await syncAll(join(work, 'image'));
    // Commit point: before it a folder that the next opening removes, after it an image.
    await rename(join(work, 'image'), join(folder, nameOf(image)));
    return { ...image, root: join(folder, nameOf(image), 'root') };
  } catch (error) {
    throw isCoded(error) ? error : storageError(error, `adding ${recipe.title} below ${folder}`);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** From packages of Debian. */
async function fetch(
  root: string,
  work: string,
  recipe: Recipe,
  { sources, finish, ...options }: ProvisionOptions,
): Promise<RuntimeImage> {
  await mkdir(root, { mode: 0o755 });
  const { suite, files } = await fetchPackages(recipe.packages, sources ?? (await readAptSources('/etc/apt')), {
    ...options,
    work,
    suites: recipe.suites,
  });
  const packages = await unpack(files, root, options);
  await trim(root, recipe);
  for (const [at, target] of Object.entries(recipe.links)) await symlink(target, join(root, at));
  // Programs in it are shown the files read-only, and as another user.
  for (const path of [root, dirname(root), work]) await chmod(path, 0o755);
  await finish?.(root);
  const { runtime } = recipe;
  const main = packages.find(({ name }) => name === recipe.packages[0])!;
  const { version, architecture } = main;
  const sealed = await seal(root, options);
  return { formatVersion: 1, runtime, version, architecture, suite, ...sealed, packages, addedAtMs: Date.now() };
}

/** From a package of this catalog: its files must be those that its record says. */
async function unpackFrom(
  root: string,
  work: string,
  { runtime }: Recipe,
  { assets, layer }: NonNullable<ProvisionOptions['from']>,
  options: CallOptions,
): Promise<RuntimeImage> {
  const record = await unpackImage(assets, layer, { ...options, to: root, work, prefix: NEW });
  const sealed = await seal(root, options);
  if (record.runtime !== runtime || sealed.digest !== record.digest) {
    throw new HyperMeshError(
      'program-invalid',
      `The package has an image of ${record.runtime} with the digest ${sealed.digest}, but its record says ${record.digest}.`,
      { hint: `Export the runtime again on a node that has it: \`hypermesh runtime export ${runtime}\`.` },
    );
  }
  return { ...record, ...sealed, addedAtMs: Date.now() };
}

/** The newest complete image in `folder`, or null. Errors: `config-invalid`, `storage-*`. */
export async function findImage(folder: string, runtime: RuntimeImage['runtime']): Promise<AddedImage | null> {
  const names = await imagesIn(folder, runtime);
  const images = await Promise.all(
    names.map(async (name) => ({
      ...decodeRuntimeImage(await readFile(join(folder, name, 'image.json'), 'utf8')),
      root: join(folder, name, 'root'),
    })),
  );
  return images.sort((one, other) => other.addedAtMs - one.addedAtMs)[0] ?? null;
}

/** Removes every image of a runtime in `folder`; whether there was one. */
export async function removeImage(folder: string, runtime: RuntimeImage['runtime']): Promise<boolean> {
  const names = await imagesIn(folder, runtime);
  for (const name of names) {
    // One step takes it away, whatever happens to the rest.
    const gone = await mkdtemp(join(folder, NEW));
    await rename(join(folder, name), join(gone, name));
    await rm(gone, { recursive: true, force: true });
  }
  return names.length > 0;
}

/** Removes what a crash left of images that were being added or removed. Only the owner of the folder may, before anything else. */
export async function removeUnfinished(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => []))
    if (name.startsWith(NEW)) await rm(join(folder, name), { recursive: true, force: true });
}

async function imagesIn(folder: string, runtime: RuntimeImage['runtime']): Promise<string[]> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw storageError(error, `looking for images in ${folder}`);
  });
  return names.filter((name) => name.startsWith(`${runtime}-`));
}

function nameOf({ runtime, digest }: RuntimeImage): string {
  return `${runtime}-${digestHex(digest).slice(0, 32)}`;
}

async function checkSpace(folder: string, { title }: Recipe): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  if (bavail * bsize >= FREE_BYTES_MIN) return;
  throw new HyperMeshError(
    'storage-full',
    `${title} needs ${FREE_BYTES_MIN} bytes below ${folder} while it is added.`,
    {
      hint: 'Free some space; less than half of it is taken when it is done.',
    },
  );
}

async function unpack(files: readonly string[], root: string, options: CallOptions): Promise<RuntimeImage['packages']> {
  const packages: RuntimeImage['packages'] = [];
  for (const file of files) {
    options.onProgress?.({ step: 'unpack', unit: 'packages', done: packages.length, total: files.length });
    const [name = '', version = '', architecture = ''] = decodeURIComponent(basename(file, '.deb')).split('_');
    await unpackPackage(file, root, options);
    packages.push({ name, version, architecture, digest: `sha256:${(await hashOf(file)).toString('hex')}` });
  }
  options.onProgress?.({ step: 'unpack', unit: 'packages', done: packages.length, total: files.length });
  return packages;
}

async function trim(root: string, { kept: all }: Recipe): Promise<void> {
  const isAbove = (path: string) => all.some((kept) => kept.startsWith(`${path}/`));
  const isKept = (path: string) =>
    all.some((kept) =>
      kept.endsWith('*') ? path.startsWith(kept.slice(0, -1)) : path === kept || path.startsWith(`${kept}/`),
    );
  async function visit(folder: string): Promise<void> {
    for (const entry of await readdir(join(root, folder), { withFileTypes: true })) {
      const path = folder === '' ? entry.name : `${folder}/${entry.name}`;
      if (isKept(path)) continue;
      if (isAbove(path) && entry.isDirectory()) await visit(path);
      else if (!isAbove(path)) await rm(join(root, path), { recursive: true, force: true });
    }
  }
  await visit('');
}

/** Plain modes and one time for everything; nothing but files, folders and links; and the digest of it all. */
async function seal(root: string, options: CallOptions): Promise<Sealed> {
  const entries = await entriesOf(root);
  await mapBounded(entries, AT_ONCE, async ({ path, kind, mode }) => {
    if (kind !== 'link') await chmod(join(root, path), mode);
    await lutimes(join(root, path), MTIME, MTIME);
  });
  return measure(root, entries, options);
}

/** Whether the files of an image are those that it was sealed with. */
export async function isIntact({ root, digest }: AddedImage): Promise<boolean> {
  try {
    return (await measure(root, await entriesOf(root), {})).digest === digest;
  } catch (error) {
    // What cannot be read, or is no file, was not sealed.
    if (isCoded(error, 'runtime-unavailable', 'limit-exceeded')) return false;
    if (error instanceof Error && 'code' in error && /^E(NOENT|IO|NOTDIR)$/.test(String(error.code))) return false;
    throw storageError(error, `checking ${root}`);
  }
}

type Sealed = Pick<RuntimeImage, 'digest' | 'files' | 'bytes'>;

interface ImageEntry {
  readonly path: string;
  readonly kind: 'file' | 'folder' | 'link';
  readonly mode: 0o644 | 0o755;
  readonly size: number;
}

/** Folder by folder, names in their order. Errors: `runtime-unavailable`, `limit-exceeded`. */
async function entriesOf(root: string): Promise<readonly ImageEntry[]> {
  const entries: ImageEntry[] = [];
  async function visit(folder: string): Promise<void> {
    for (const name of (await readdir(join(root, folder))).sort()) {
      const path = folder === '' ? name : `${folder}/${name}`;
      const info = await lstat(join(root, path));
      const kind = info.isSymbolicLink() ? 'link' : info.isDirectory() ? 'folder' : info.isFile() ? 'file' : null;
      if (kind === null)
        throw new HyperMeshError('runtime-unavailable', `A package of the image holds ${path}, which is no file.`);
      const mode = kind === 'file' && (info.mode & 0o100) === 0 ? 0o644 : 0o755;
      entries.push({ path, kind, mode, size: kind === 'file' ? info.size : 0 });
      if (entries.length > FILES_MAX)
        throw new HyperMeshError('limit-exceeded', `The image has more than ${FILES_MAX} files.`);
      if (kind === 'folder') await visit(path);
    }
  }
  await visit('');
  return entries;
}

/** The digest of an image (docs/protocol/runtime-image.md). */
async function measure(
  root: string,
  entries: readonly ImageEntry[],
  { signal, onProgress }: CallOptions,
): Promise<Sealed> {
  const all = createHash('sha256');
  let files = 0;
  const pieces = await mapBounded(entries, AT_ONCE, async ({ path, kind, mode }) => {
    if (signal?.aborted === true)
      throw new HyperMeshError('cancelled', 'The caller gave up.', { cause: signal.reason });
    files += 1;
    if (kind === 'link') return [`link ${path}\0${await readlink(join(root, path))}\0`];
    if (kind === 'folder') return [`folder ${path}\0`];
    onProgress?.({ step: 'seal', unit: 'files', done: files, total: entries.length });
    return [`file ${mode.toString(8)} ${path}\0`, await hashOf(join(root, path))];
  });
  for (const piece of pieces.flat()) all.update(piece);
  const bytes = entries.reduce((sum, { size }) => sum + size, 0);
  return { digest: `sha256:${all.digest('hex')}`, files: entries.length, bytes };
}

async function hashOf(file: string): Promise<Buffer> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(file, { highWaterMark: READ_BYTES })) hash.update(piece as Uint8Array);
  return hash.digest();
}

/** Everything below `folder` is on the disk when it returns. */
async function syncAll(folder: string): Promise<void> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const kept = entries.filter((entry) => entry.isFile() || entry.isDirectory());
  // Side by side: the disk orders them.
  await mapBounded(kept, AT_ONCE, async (entry) => {
    await using handle = await open(join(entry.parentPath, entry.name));
    await handle.sync();
  });
  for (const path of [folder, dirname(folder)]) {
    await using handle = await open(path);
    await handle.sync();
  }
}
