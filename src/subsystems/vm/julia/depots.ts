import { chmod, mkdir, mkdtemp, open, readdir, rename, rm, stat, utimes } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { storageError } from '../../../base/errors.ts';

/** What Julia compiled of packages, kept for the next run with exactly the same packages. */
export interface HeldDepot extends Disposable {
  /** Absolute path of the folder. */
  readonly path: string;
}

export interface CompiledFile {
  /** Relative, for example `v1.5/Words/x1y2z.ji`. */
  readonly path: string;
  readonly bytes: Uint8Array;
}

const KEPT_MAX = 64;
const UNFINISHED = '.new-';
const KEY = /^[0-9a-f]{64}$/;
const PATH = /^v\d{1,4}\.\d{1,4}\/[A-Za-z0-9_]{1,128}\/[A-Za-z0-9_]{1,128}\.ji$/;

/** Depots in one folder, each named by what it was made from. */
export class Depots {
  readonly #folder: string;
  readonly #holders = new Map<string, number>();

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Removes what a crash left half-made. `folder` is made when missing. */
  static async open(folder: string): Promise<Depots> {
    await mkdir(folder, { recursive: true });
    await chmod(folder, 0o711);
    for (const name of await readdir(folder))
      if (name.startsWith(UNFINISHED)) await rm(join(folder, name), { recursive: true, force: true });
    return new Depots(folder);
  }

  async hold(key: string): Promise<HeldDepot | null> {
    const path = join(this.#folder, key);
    const now = new Date();
    this.#holders.set(key, (this.#holders.get(key) ?? 0) + 1);
    let isHeld = true;
    const depot: HeldDepot = {
      path,
      [Symbol.dispose]: () => {
        if (isHeld) this.#holders.set(key, this.#holders.get(key)! - 1);
        if (this.#holders.get(key) === 0) this.#holders.delete(key);
        isHeld = false;
      },
    };
    // The time tells what was used longest ago.
    const isThere = await utimes(path, now, now).then(
      () => true,
      () => false,
    );
    if (isThere) return depot;
    depot[Symbol.dispose]();
    return null;
  }

  /** Errors: `storage-*`. What is there already stays. */
  async add(key: string, files: readonly CompiledFile[]): Promise<void> {
    try {
      await this.#makeRoom();
      const unfinished = await mkdtemp(join(this.#folder, UNFINISHED));
      try {
        for (const { path, bytes } of files) await writeDurably(unfinished, join('compiled', path), bytes);
        await chmod(unfinished, 0o755);
        // Commit point: before it a folder that the next opening removes, after it a depot.
        await rename(unfinished, join(this.#folder, key));
      } finally {
        await rm(unfinished, { recursive: true, force: true });
      }
    } catch (error) {
      throw storageError(error, 'keeping what Julia compiled');
    }
  }

  async clear(): Promise<void> {
    for (const name of await readdir(this.#folder))
      await rm(join(this.#folder, name), { recursive: true, force: true });
  }

  /** Removes what was used longest ago and is not held. */
  async #makeRoom(): Promise<void> {
    const names = (await readdir(this.#folder)).filter((name) => KEY.test(name));
    if (names.length < KEPT_MAX) return;
    const used = await Promise.all(
      names.map(async (name) => ({ name, atMs: (await stat(join(this.#folder, name))).mtimeMs })),
    );
    const free = used.filter(({ name }) => !this.#holders.has(name)).sort((one, other) => one.atMs - other.atMs);
    for (const { name } of free.slice(0, names.length - KEPT_MAX + 1))
      await rm(join(this.#folder, name), { recursive: true, force: true });
  }
}

/** What `precompile.jl` sent, or null when it is not in that form: it came from a box. */
export function readCompiled(sent: Uint8Array): CompiledFile[] | null {
  const files: CompiledFile[] = [];
  for (let at = 0; at < sent.length; ) {
    const end = sent.indexOf(0x0a, at);
    if (end < 0 || end - at > 512) return null;
    const match = /^(\d{1,10}) (\S+)$/.exec(Buffer.from(sent.subarray(at, end)).toString('latin1'));
    const size = Number(match?.[1]);
    if (match === null || !PATH.test(match[2]!) || end + 1 + size > sent.length) return null;
    files.push({ path: match[2]!, bytes: sent.subarray(end + 1, end + 1 + size) });
    at = end + 1 + size;
  }
  return new Set(files.map(({ path }) => path)).size === files.length ? files : null;
}

async function writeDurably(root: string, path: string, bytes: Uint8Array): Promise<void> {
  const at = join(root, path);
  await mkdir(dirname(at), { recursive: true });
  // Whatever the umask: the users of boxes must reach the files.
  for (let folder = dirname(at); folder !== root; folder = dirname(folder)) await chmod(folder, 0o755);
  await using file = await open(at, 'wx', 0o644);
  await file.chmod(0o644);
  await file.writeFile(bytes);
  await file.sync();
}
