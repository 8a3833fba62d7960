import { createWriteStream } from 'node:fs';
import { chmod, link, mkdir, readdir, readFile, rename, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, digestHex } from '../../../base/digest.ts';
import { HyperMeshError, storageError } from '../../../base/errors.ts';
import { mapBounded } from '../../../base/streams.ts';
import type { Assets, TreeEntry } from '../../../capabilities/assets.ts';

/** Equal trees give equal folders, also in the times that compilers look at: 2000-01-01. */
const MTIME_S = 946_684_800;
const CONCURRENCY = 8;
const KEPT_BYTES_MAX = 4 * 2 ** 30;
const NAME = /^([0-9a-f]{64})\.(\d{1,15})$/;
/** Names of what a crash may leave begin so; the next opening removes it. */
export const UNFINISHED = '.new-';

/** An entry of a tree that is put on disk; `sameAs`: another name of that file. */
export type ShownEntry = TreeEntry & { readonly sameAs?: string };

/** Where the files of one tree come from. */
export interface TreeSource {
  tree(options: CallOptions): Promise<readonly ShownEntry[]>;
  readFile(path: string, options: CallOptions): AsyncIterable<Uint8Array>;
}

/** A tree that stays on disk until it is given back. */
export interface HeldTree extends Disposable {
  /** Absolute path of the folder. */
  readonly path: string;
}

export interface TreesOptions {
  /** Ours alone; made when missing. */
  readonly directory: string;
  /** Bytes and number of files of one tree. */
  readonly treeBytesMax: number;
  readonly filesMax: number;
  /** Bytes of trees that nobody holds any more. */
  readonly keptBytesMax?: number;
}

interface Kept {
  readonly folder: string;
  readonly bytes: number;
  holders: number;
}

/**
 * Package trees as folders, so that the kernel can show them to a program. A folder is written under another name and renamed when it
 * is whole: a crash before leaves a folder that the next start removes, a crash after one that is used. Nothing is synced: after
 * a power failure all are written anew, which is known by the identity of the boot.
 */
export class Trees {
  readonly #assets: Pick<Assets, 'tree' | 'readFile'>;
  readonly #options: TreesOptions;
  /** From the one that was used longest ago to the latest. */
  readonly #kept: Map<Digest, Kept>;
  readonly #coming = new Map<Digest, Promise<void>>();
  #unfinished = 0;

  private constructor(
    lent: { readonly assets: Pick<Assets, 'tree' | 'readFile'> },
    options: TreesOptions,
    kept: Map<Digest, Kept>,
  ) {
    this.#assets = lent.assets;
    this.#options = options;
    this.#kept = kept;
  }

  static async open(
    lent: { readonly assets: Pick<Assets, 'tree' | 'readFile'> },
    options: TreesOptions,
  ): Promise<Trees> {
    const { directory } = options;
    await mkdir(directory, { recursive: true });
    await chmod(directory, 0o711);
    const kept = new Map<Digest, Kept>();
    const bootFile = path.join(directory, 'boot');
    const boot = await readFile('/proc/sys/kernel/random/boot_id', 'latin1').catch(() => '');
    const isSameBoot = boot !== '' && (await readFile(bootFile, 'latin1').catch(() => '')) === boot;
    for (const name of await readdir(directory)) {
      const [, hex, bytes] = NAME.exec(name) ?? [];
      const folder = path.join(directory, name);
      if (isSameBoot && hex !== undefined) kept.set(`sha256:${hex}`, { folder, bytes: Number(bytes), holders: 0 });
      else if (hex !== undefined || name.startsWith(UNFINISHED)) await rm(folder, { recursive: true, force: true });
    }
    await writeFile(bootFile, boot);
    return new Trees(lent, options, kept);
  }

  /** The folder of trees, for whoever prepares one: a name that begins with {@link UNFINISHED} is free. */
  get directory(): string {
    return this.#options.directory;
  }

  /**
   * `open`: where the files come from when they are not there yet; a layer of a package unless it is given.
   * Errors: `blob-not-found`, `tree-invalid`, `limit-exceeded`, `storage-*`, `cancelled`, and those of `open`.
   */
  async hold(
    layer: Digest,
    options: CallOptions = {},
    open: () => Promise<TreeSource & Partial<AsyncDisposable>> = async () => this.#package(layer),
  ): Promise<HeldTree> {
    for (let tree = this.#kept.get(layer); ; tree = this.#kept.get(layer)) {
      if (tree !== undefined) return this.#held(layer, tree);
      // Whoever comes first writes it; the others look again, and write it themselves when the first one failed.
      const coming = this.#coming.get(layer);
      if (coming === undefined) await this.#write(layer, options, open);
      else await coming.catch(() => {});
    }
  }

  #held(layer: Digest, tree: Kept): HeldTree {
    tree.holders += 1;
    this.#kept.delete(layer);
    this.#kept.set(layer, tree);
    let isHeld = true;
    return {
      path: tree.folder,
      [Symbol.dispose]: () => {
        if (isHeld) tree.holders -= 1;
        isHeld = false;
      },
    };
  }

  #package(layer: Digest): TreeSource {
    return {
      tree: (options) => this.#assets.tree(layer, options),
      readFile: (name, options) => this.#assets.readFile(layer, name, options),
    };
  }

  async #write(
    layer: Digest,
    options: CallOptions,
    open: () => Promise<TreeSource & Partial<AsyncDisposable>>,
  ): Promise<void> {
    const materialised = async () => {
      const source = await open();
      try {
        await this.#materialise(layer, source, options);
      } finally {
        await source[Symbol.asyncDispose]?.();
      }
    };
    const writing = materialised().finally(() => this.#coming.delete(layer));
    this.#coming.set(layer, writing);
    await writing;
  }

  async #materialise(layer: Digest, source: TreeSource, options: CallOptions): Promise<void> {
    const { directory, treeBytesMax, filesMax } = this.#options;
    const entries = await source.tree(options);
    const bytes = entries.reduce((sum, { size }) => sum + size, 0);
    if (entries.length > filesMax || bytes > treeBytesMax) {
      throw new HyperMeshError(
        'limit-exceeded',
        `A package has ${entries.length} files of ${bytes} bytes; a program is shown at most ${filesMax} files of ${treeBytesMax} bytes.`,
      );
    }
    await this.#makeRoom(bytes);
    const unfinished = path.join(directory, `${UNFINISHED}${this.#unfinished++}-${digestHex(layer).slice(0, 16)}`);
    const folder = path.join(directory, `${digestHex(layer)}.${bytes}`);
    try {
      await fill(unfinished, source, entries, options);
      await rename(unfinished, folder);
    } catch (error) {
      await rm(unfinished, { recursive: true, force: true });
      if (options.signal?.aborted)
        throw new HyperMeshError('cancelled', 'The caller gave up while the package was prepared.', { cause: error });
      throw storageError(error, 'preparing a package to run');
    }
    this.#kept.set(layer, { folder, bytes, holders: 0 });
  }

  /** Removes what was used longest ago and is not held, until `bytes` more may be kept. */
  async #makeRoom(bytes: number): Promise<void> {
    const keptBytesMax = this.#options.keptBytesMax ?? KEPT_BYTES_MAX;
    let sum = bytes;
    for (const tree of this.#kept.values()) sum += tree.bytes;
    for (const [layer, tree] of this.#kept) {
      if (sum <= keptBytesMax) return;
      if (tree.holders > 0) continue;
      this.#kept.delete(layer);
      sum -= tree.bytes;
      await rm(tree.folder, { recursive: true, force: true });
    }
  }
}

/** Writes the files into the new folder `root`, with the modes and the one time of trees. */
export async function fill(
  root: string,
  source: TreeSource,
  entries: readonly ShownEntry[],
  options: CallOptions,
): Promise<void> {
  const folders = new Set([root]);
  for (const entry of entries) {
    const at = path.join(root, entry.path);
    // Trees were checked when they came; this one is about to be written on our disk.
    if (path.isAbsolute(entry.path) || path.normalize(entry.path) !== entry.path || !at.startsWith(`${root}/`))
      throw new HyperMeshError('tree-invalid', `A package tree has the path "${entry.path}".`);
    for (let one = entry.kind === 'directory' ? at : path.dirname(at); !folders.has(one); one = path.dirname(one))
      folders.add(one);
  }
  for (const folder of [...folders].sort()) await mkdir(folder, { mode: 0o755 });
  const files = entries.filter(({ kind, sameAs }) => kind === 'file' && sameAs === undefined);
  await mapBounded(files, CONCURRENCY, async (entry) => {
    const at = path.join(root, entry.path);
    const mode = entry.executable ? 0o755 : 0o644;
    const content = Readable.from(source.readFile(entry.path, options));
    await pipeline(content, createWriteStream(at, { flags: 'wx', mode }));
    // Whatever the mask of the node: the user of a box is another one.
    await chmod(at, mode);
    await utimes(at, MTIME_S, MTIME_S);
  });
  for (const { path: name, sameAs } of entries)
    if (sameAs !== undefined) await link(path.join(root, sameAs), path.join(root, name));
  // After the files: none is written through a link.
  for (const { kind, path: name, target } of entries)
    if (kind === 'symlink') await symlink(target ?? '', path.join(root, name));
  for (const folder of [...folders].sort().reverse()) {
    await chmod(folder, 0o755);
    await utimes(folder, MTIME_S, MTIME_S);
  }
}
