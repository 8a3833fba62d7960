import fs from 'node:fs';
import { join } from 'node:path';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type {
  AssetDraft,
  AssetPage,
  AssetQuery,
  AssetRecord,
  AssetState,
  Assets,
  BlobInfo,
  CollectReport,
  Dependent,
  Installation,
  PutOptions,
  TreeEntry,
} from '../../capabilities/assets.ts';
import type { ContentExchange } from '../../capabilities/content.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { Lock } from '../../wire/lock.ts';
import type { AssetId, PackageName } from '../../wire/names.ts';
import {
  type CacheFigures,
  type ContentLimits,
  type ContentStore,
  openContentStore,
  type ScrubReport,
} from './content/store.ts';
import { type Difference, type Generation, Installations } from './installation.ts';
import { blobsOf, checkDraft, Records } from './records.ts';
import { AssetSection, STAGED } from './section.ts';

export type AssetLimits = ContentLimits;

/**
 * Opens records and content of a home, and clears what a crash left. One process at a time: the home is locked.
 * Errors: `storage-*`, `home-too-new`.
 */
export async function openAssets(options: {
  readonly directory: string;
  readonly clock: Clock;
  readonly limits?: Partial<AssetLimits>;
}): Promise<AssetStore> {
  const { directory, clock, limits } = options;
  const content = await openContentStore({
    directory: join(directory, 'content'),
    clock,
    ...(limits === undefined ? {} : { limits }),
  });
  try {
    for (const name of fs.readdirSync(directory)) {
      if (name.includes(STAGED)) fs.rmSync(join(directory, name), { force: true });
    }
    return new AssetStore({ content, clock, path: join(directory, 'index.db') });
  } catch (error) {
    await content[Symbol.asyncDispose]();
    throw storageError(error, `opening ${directory}`);
  }
}

/** The assets of one home: records in SQLite, content beside them, installations anywhere on this machine. */
export class AssetStore implements Assets, AsyncDisposable {
  /** Content as the network moves it: lent to STOQ. */
  readonly exchange: ContentExchange;
  readonly section: StateSection;
  readonly #content: ContentStore;
  readonly #clock: Clock;
  readonly #installations: Installations;
  #records: Records;

  constructor(lent: { readonly content: ContentStore; readonly clock: Clock; readonly path: string }) {
    this.#content = lent.content;
    const { content } = lent;
    this.exchange = {
      stat: (digest) => content.stat(digest),
      put: (bytes, options) => content.put(bytes, options),
      holding: (digest) => content.holding(digest),
      shardList: (digest) => content.shardList(digest),
      readHeld: (digest, offset, into) => content.readHeld(digest, offset, into),
      release: (digests) => content.release(digests, () => this.#records.areInstalled(digests)),
      keep: (digest) => content.keep(digest),
      drop: (digests) => content.drop(digests, (digest) => this.#records.isNamed(digest)),
      receive: (blob, list, options) => content.receive(blob, list, options),
    };
    this.#clock = lent.clock;
    this.#records = new Records(lent.path, lent.clock);
    this.#installations = new Installations({
      layers: lent.content,
      registry: {
        registerInstallation: (root, generation, lock) => this.#records.registerInstallation(root, generation, lock),
        retainInstallation: (root, generations) => this.#records.retainInstallation(root, generations),
      },
    });
    this.section = new AssetSection({ ...lent, replace: (staged) => this.#replace(staged) });
  }

  put(content: AsyncIterable<Uint8Array>, options?: PutOptions): Promise<BlobInfo> {
    return this.#content.put(content, options);
  }

  /** As `put`, and refuses what is not a canonical tree. Errors: also `tree-invalid`. */
  putTree(content: AsyncIterable<Uint8Array>, options?: PutOptions): Promise<BlobInfo> {
    return this.#content.putTree(content, options);
  }

  stat(digest: Digest): Promise<BlobInfo | null> {
    return this.#content.stat(digest);
  }

  read(
    digest: Digest,
    options?: CallOptions & { readonly offset?: number; readonly length?: number },
  ): AsyncIterable<Uint8Array> {
    return this.#content.read(digest, options);
  }

  tree(layer: Digest, options?: CallOptions): Promise<readonly TreeEntry[]> {
    return this.#content.tree(layer, options);
  }

  readFile(layer: Digest, path: string, options?: CallOptions): AsyncIterable<Uint8Array> {
    return this.#content.readFile(layer, path, options);
  }

  async create(asked: AssetDraft, options: { readonly layersLater?: boolean } = {}): Promise<AssetRecord> {
    const draft = checkDraft(asked);
    // Leased from here on: a collection that runs now finds the record, or the lease.
    const absent = await this.#content.hold(blobsOf(draft));
    const missing = options.layersLater === true ? absent.filter((blob) => !draft.layers.includes(blob)) : absent;
    if (missing.length > 0) {
      throw new HyperMeshError(
        'blob-not-found',
        `${draft.name}@${draft.version} refers to ${missing[0]}, which is not in the content store.`,
        { hint: 'Put the content first, then create the record.', details: { missing } },
      );
    }
    const record = this.#records.create(draft);
    if (record.bundle === draft.bundle || (await this.#content.has(record.bundle))) return record;
    return this.#records.replaceBundle(record.id, draft);
  }

  async get(id: AssetId): Promise<AssetRecord | null> {
    return this.#records.get(id);
  }

  async versions(name: PackageName): Promise<readonly AssetRecord[]> {
    return this.#records.versions(name);
  }

  async query(query: AssetQuery): Promise<AssetPage> {
    return this.#records.query(query);
  }

  async setState(id: AssetId, state: AssetState, reason: string | null): Promise<AssetRecord> {
    return this.#records.setState(id, state, reason);
  }

  async dependents(id: AssetId): Promise<readonly Dependent[]> {
    this.#installations.prune(this.#records.roots());
    return this.#records.dependents(id);
  }

  async delete(id: AssetId): Promise<void> {
    this.#installations.prune(this.#records.roots());
    this.#records.delete(id);
  }

  /** Drops every record, in one transaction: content that nothing installed refers to goes with the next collection. */
  async forget(): Promise<void> {
    this.#records.forget();
  }

  async totals(): Promise<{ packages: number; versions: number; blobs: number; bytes: number }> {
    return { ...this.#records.totals(), ...(await this.#content.totals()) };
  }

  install(
    root: string,
    lock: Lock,
    options?: CallOptions & { readonly expectGeneration?: number },
  ): Promise<Installation> {
    return this.#installations.install(root, lock, options);
  }

  prepareInstallation(root: string, lock: Lock, options?: CallOptions): Promise<void> {
    return this.#installations.prepare(root, lock, options);
  }

  installation(root: string): Promise<Installation | null> {
    return this.#installations.installation(root);
  }

  installationHistory(root: string): Promise<readonly Generation[]> {
    return this.#installations.history(root);
  }

  checkInstallation(root: string, options?: CallOptions): Promise<readonly Difference[]> {
    return this.#installations.check(root, options);
  }

  async collect(options?: CallOptions): Promise<CollectReport> {
    this.#installations.prune(this.#records.roots());
    return this.#content.collect(this.#records.references(), options);
  }

  scrub(options?: CallOptions): Promise<ScrubReport> {
    return this.#content.scrub(options);
  }

  async annotate(id: AssetId, key: string, value: Json): Promise<void> {
    this.#records.annotate(id, key, value);
  }

  async annotations(id: AssetId): Promise<Record<string, Json>> {
    return this.#records.annotations(id);
  }

  /** Hits and misses of the memory and disk caches. */
  cacheFigures(): CacheFigures {
    return this.#content.cacheFigures();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#records[Symbol.dispose]();
    await this.#content[Symbol.asyncDispose]();
  }

  /**
   * The commit point of an import is the rename. Before it the old file is in place, closed and without a journal; after it the new one is.
   * Nothing waits in here, so no call sees the moment between.
   */
  #replace(staged: Records): void {
    const { path } = this.#records;
    this.#records.copyInstallationsTo(staged);
    staged.settle();
    this.#records.settle();
    try {
      if (fs.existsSync(`${path}-wal`)) throw new Error('the journal of the index is still in use');
      fs.renameSync(staged.path, path);
      const folder = fs.openSync(join(path, '..'), 'r');
      fs.fsyncSync(folder);
      fs.closeSync(folder);
    } catch (error) {
      throw storageError(error, 'replacing the index');
    } finally {
      this.#records = new Records(path, this.#clock);
    }
  }
}
