import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { concat, fromUtf8, utf8 } from '../base/bytes.ts';
import { HyperMeshError, storageError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import type { ExtensionSnapshot } from '../capabilities/extension.ts';
import type { StateSection } from '../capabilities/state.ts';
import { extensionId } from '../wire/extension.ts';

const PIECE_BYTES = 2 ** 20;
const SNAPSHOTS_BYTES_MAX = 64 * 2 ** 20;

const snapshotSchema = z.strictObject({
  version: z.int().nonnegative(),
  extension: extensionId,
  data: z.json(),
  checksum: z.string().max(128),
  exportedAtMs: z.int().nonnegative(),
});

/** The extensions that run, as far as snapshots concern them. */
export interface SnapshotSource {
  exportSnapshots(): Promise<readonly ExtensionSnapshot[]>;
  /** Hands waiting snapshots to the extensions that run. */
  applySnapshots(): Promise<void>;
}

/**
 * Snapshots of extensions in a state export, and those that came with an import and wait for their extension to run.
 * A waiting snapshot is one file; it goes when its extension has taken it, so a crash in between only hands it over again.
 */
export class Snapshots {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** What an import brought for this extension and it has not taken yet. */
  async waiting(extension: string): Promise<ExtensionSnapshot | null> {
    const text = await readFile(this.#file(extension), 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return null;
      throw storageError(error, `reading the snapshot of ${extension}`);
    });
    return text === null ? null : parseSnapshot(text);
  }

  async taken(extension: string): Promise<void> {
    await rm(this.#file(extension), { force: true });
  }

  section(source: SnapshotSource): StateSection {
    return {
      name: 'extensions',
      version: 1,
      async *export() {
        const lines = (await source.exportSnapshots()).map((snapshot) => `${canonicalJson(snapshot)}\n`);
        const all = utf8(lines.join(''));
        for (let at = 0; at < all.length; at += PIECE_BYTES) yield all.subarray(at, at + PIECE_BYTES);
      },
      import: async (_version, pieces) => {
        const snapshots = await readSnapshots(pieces);
        const staged = join(this.#directory, 'staged');
        await rm(staged, { recursive: true, force: true });
        await mkdir(staged, { recursive: true, mode: 0o700 });
        for (const snapshot of snapshots) {
          await writeDurable(join(staged, `${snapshot.extension}.json`), canonicalJson(snapshot));
        }
        return {
          commit: async () => {
            // Each rename is a commit point of its own; an import that a crash cut short is done again from the start.
            for (const name of await readdir(staged)) await rename(join(staged, name), join(this.#directory, name));
            await rm(staged, { recursive: true, force: true });
            await source.applySnapshots();
          },
          abandon: () => rm(staged, { recursive: true, force: true }),
        };
      },
    };
  }

  #file(extension: string): string {
    return join(this.#directory, `${extension}.json`);
  }
}

async function readSnapshots(pieces: AsyncIterable<Uint8Array>): Promise<ExtensionSnapshot[]> {
  const parts: Uint8Array[] = [];
  let bytesLeft = SNAPSHOTS_BYTES_MAX;
  for await (const piece of pieces) {
    bytesLeft -= piece.length;
    if (bytesLeft < 0)
      throw new HyperMeshError('limit-exceeded', `The snapshots are larger than ${SNAPSHOTS_BYTES_MAX} bytes.`);
    parts.push(piece.slice());
  }
  let text: string;
  try {
    text = fromUtf8(concat(...parts));
  } catch (error) {
    throw new HyperMeshError('state-invalid', 'The snapshots of extensions are not UTF-8.', { cause: error });
  }
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map(parseSnapshot);
}

function parseSnapshot(text: string): ExtensionSnapshot {
  try {
    const snapshot = snapshotSchema.parse(JSON.parse(text));
    return { ...snapshot, data: snapshot.data as Json };
  } catch (error) {
    throw new HyperMeshError('state-invalid', 'A snapshot of an extension is damaged.', { cause: error });
  }
}

async function writeDurable(file: string, text: string): Promise<void> {
  await using handle = await open(file, 'w', 0o600);
  await handle.writeFile(text);
  await handle.sync();
}
