import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Digest, digestHex } from '../../../base/digest.ts';
import { storing } from '../../../base/errors.ts';
import {
  decodeMachineSnapshot,
  encodeMachineSnapshot,
  type MachineSnapshot,
  type SnapshotOrigin,
  snapshotKey,
} from '../../../wire/machine-snapshot.ts';

/** A snapshot that stays on the disk until it is given back. */
export interface HeldSnapshot extends Disposable {
  /** Absolute path of the folder with `state` and `files`. */
  readonly path: string;
}

export interface SnapshotsOptions {
  /** Ours alone; made when missing. */
  readonly directory: string;
  readonly keptMax?: number;
  readonly keptBytesMax?: number;
}

const KEPT_MAX = 32;
const KEPT_BYTES_MAX = 4 * 2 ** 30;
const UNFINISHED = '.new-';
const KEY = /^[0-9a-f]{64}$/;

interface Kept {
  readonly layers: readonly Digest[];
  readonly bytes: number;
  usedAtMs: number;
  holders: number;
  /** Read and compared with its digest since this node started. */
  checked: Promise<boolean> | null;
}

/**
 * Machines as they were when they said that they are ready: one folder for each, named by all that it was made of. A folder is renamed
 * when it is whole. Nothing is synced: what a power failure damaged does not have its digest, and is made anew.
 */
export class Snapshots {
  readonly #directory: string;
  readonly #keptMax: number;
  readonly #keptBytesMax: number;
  readonly #kept: Map<string, Kept>;

  private constructor(options: SnapshotsOptions, kept: Map<string, Kept>) {
    this.#directory = options.directory;
    this.#keptMax = options.keptMax ?? KEPT_MAX;
    this.#keptBytesMax = options.keptBytesMax ?? KEPT_BYTES_MAX;
    this.#kept = kept;
  }

  /** Removes what a crash left half-made, and what cannot be read. Errors: `storage-*`. */
  static async open(options: SnapshotsOptions): Promise<Snapshots> {
    const { directory } = options;
    return storing('opening the snapshots of virtual machines', async () => {
      await mkdir(directory, { recursive: true });
      await chmod(directory, 0o711);
      const kept = new Map<string, Kept>();
      for (const name of await readdir(directory)) {
        const found = KEY.test(name) ? await readKept(join(directory, name), name) : null;
        if (found !== null) kept.set(name, found);
        else await rm(join(directory, name), { recursive: true, force: true });
      }
      return new Snapshots(options, kept);
    });
  }

  /** Packages whose snapshots are kept. */
  layers(): ReadonlySet<Digest> {
    return new Set([...this.#kept.values()].flatMap(({ layers }) => layers));
  }

  /** Null when there is none, or not any more what it was. */
  async hold(origin: SnapshotOrigin): Promise<HeldSnapshot | null> {
    const key = digestHex(snapshotKey(origin));
    const kept = this.#kept.get(key);
    if (kept === undefined) return null;
    const path = join(this.#directory, key);
    kept.holders += 1;
    let isHeld = true;
    const giveBack = () => {
      if (isHeld) kept.holders -= 1;
      isHeld = false;
    };
    kept.checked ??= isWhole(path);
    if (await kept.checked) {
      kept.usedAtMs = Date.now();
      await utimes(path, new Date(), new Date()).catch(() => {});
      return { path, [Symbol.dispose]: giveBack };
    }
    giveBack();
    if (this.#kept.get(key) === kept) await this.#remove(key);
    return null;
  }

  /**
   * Keeps what `make` puts into the folder that it is given: `state` and `files`. What is there already stays. Commit point: the rename; a crash
   * before leaves a folder that the next opening removes. Errors: those of `make`, `storage-*`.
   */
  async add(
    origin: SnapshotOrigin,
    make: (folder: string) => Promise<Omit<MachineSnapshot, 'formatVersion' | 'origin' | 'madeAtMs'>>,
  ): Promise<void> {
    const unfinished = await storing('preparing a snapshot', () => mkdtemp(join(this.#directory, UNFINISHED)));
    try {
      await chmod(unfinished, 0o755);
      const made = await make(unfinished);
      const snapshot: MachineSnapshot = { formatVersion: 1, origin, ...made, madeAtMs: Date.now() };
      await storing('keeping a snapshot', async () => {
        await writeFile(join(unfinished, 'snapshot.json'), encodeMachineSnapshot(snapshot));
        const key = digestHex(snapshotKey(origin));
        const bytes = made.state.bytes + made.files.bytes;
        await this.#makeRoom(bytes);
        if (this.#kept.has(key)) return;
        await rename(unfinished, join(this.#directory, key));
        const layers = layersOf(origin);
        this.#kept.set(key, { layers, bytes, usedAtMs: Date.now(), holders: 0, checked: Promise.resolve(true) });
      });
    } finally {
      await rm(unfinished, { recursive: true, force: true });
    }
  }

  /** Removes the snapshots of a package; those that are held stay until they are given back and this is called again. */
  async forget(layer: Digest): Promise<void> {
    for (const [key, { layers, holders }] of this.#kept)
      if (holders === 0 && layers.includes(layer)) await this.#remove(key);
  }

  /** Removes what was used longest ago and is not held. */
  async #makeRoom(bytes: number): Promise<void> {
    let sum = bytes;
    for (const kept of this.#kept.values()) sum += kept.bytes;
    const free = [...this.#kept].filter(([, { holders }]) => holders === 0);
    for (const [key, kept] of free.sort(([, one], [, other]) => one.usedAtMs - other.usedAtMs)) {
      if (sum <= this.#keptBytesMax && this.#kept.size < this.#keptMax) return;
      sum -= kept.bytes;
      await this.#remove(key);
    }
  }

  async #remove(key: string): Promise<void> {
    this.#kept.delete(key);
    await rm(join(this.#directory, key), { recursive: true, force: true });
  }
}

function layersOf(origin: SnapshotOrigin): Digest[] {
  return [origin.layer, ...origin.mounts.map(({ layer }) => layer)];
}

async function readKept(folder: string, key: string): Promise<Kept | null> {
  try {
    const { origin, state, files } = decodeMachineSnapshot(await readFile(join(folder, 'snapshot.json'), 'utf8'));
    if (digestHex(snapshotKey(origin)) !== key) return null;
    const usedAtMs = (await stat(folder)).mtimeMs;
    return { layers: layersOf(origin), bytes: state.bytes + files.bytes, usedAtMs, holders: 0, checked: null };
  } catch {
    return null;
  }
}

/** Whether the files are those that were written. */
async function isWhole(folder: string): Promise<boolean> {
  try {
    const { state, files } = decodeMachineSnapshot(await readFile(join(folder, 'snapshot.json'), 'utf8'));
    return (
      (await digestOfFile(join(folder, 'state'))) === state.digest &&
      (await digestOfFile(join(folder, 'files'))) === files.digest
    );
  } catch {
    return false;
  }
}

export async function digestOfFile(file: string): Promise<Digest> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(file, { highWaterMark: 2 ** 20 })) hash.update(piece as Uint8Array);
  return `sha256:${hash.digest('hex')}`;
}
