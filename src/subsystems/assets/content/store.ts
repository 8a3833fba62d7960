import { createHash, type Hash, randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rename, rm, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { LRUCache } from 'lru-cache';
import { type CallOptions, checkCancelled } from '../../../base/call.ts';
import type { Clock } from '../../../base/clock.ts';
import { type Digest, digestHex, digestOf, isDigest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded, storageError, storing } from '../../../base/errors.ts';
import { openSqlite, type SqliteStore } from '../../../base/sqlite.ts';
import type { BlobInfo, CollectReport, PutOptions, TreeEntry } from '../../../capabilities/assets.ts';
import type { BlobDescription, ContentExchange } from '../../../capabilities/content.ts';
import { type Holding, isListOf, type ShardList } from '../../../wire/content.ts';
import type { ShardSummary } from '../../../wire/package.ts';
import { averageFor, type Blake3, loadBlake3, type Shard, ShardCutter } from '../../../wire/shards.ts';
import { type TreeFile, TreeScanner } from '../../../wire/tree.ts';
import { type Incoming, incomingPath, openIncoming, readIncomingList, removeIncoming } from './incoming.ts';
import { OpenFiles } from './open-files.ts';
import { CONTENT_MIGRATIONS, type ContentTables } from './schema.ts';

export interface ContentLimits {
  /** Largest blob. */
  readonly blobBytesMax: number;
  /** All blobs together; past it a put is refused with `storage-full`. */
  readonly storageBytesMax: number;
  /** L1: bytes of small blobs and small files kept in memory. */
  readonly memoryBytesMax: number;
  /** L1: what is larger than this is read from disk each time. */
  readonly memoryItemBytesMax: number;
  /** Entries of tree listings kept in memory, over all trees. */
  readonly treeEntriesMax: number;
  /** How long a put or a hold protects a blob from collection. */
  readonly leaseMs: number;
  /** Blobs that began to arrive and are not complete; past it the one that was left alone longest is dropped. */
  readonly incomingMax: number;
  /** How long one that nobody goes on with is kept. */
  readonly incomingAgeMsMax: number;
}

export const CONTENT_LIMITS: ContentLimits = {
  blobBytesMax: 16 * 2 ** 30,
  storageBytesMax: Number.MAX_SAFE_INTEGER,
  memoryBytesMax: 32 * 2 ** 20,
  memoryItemBytesMax: 256 * 2 ** 10,
  treeEntriesMax: 200_000,
  leaseMs: 3_600_000,
  incomingMax: 256,
  incomingAgeMsMax: 7 * 24 * 3_600_000,
};

export interface CacheFigures {
  /** Memory: small blobs and files. */
  readonly l1: { readonly hits: number; readonly misses: number; readonly items: number; readonly bytes: number };
  /** Disk: the blob was there, or not. */
  readonly l2: { readonly hits: number; readonly misses: number; readonly items: number; readonly bytes: number };
}

export interface ScrubReport {
  readonly checked: number;
  /** Set aside in `damaged/`, never served again. */
  readonly damaged: readonly Digest[];
}

const PIECE = 2 ** 20;
/** When the lease of a blob ends that is kept until somebody says otherwise. */
const FOR_EVER_MS = Number.MAX_SAFE_INTEGER;
/** Blobs that others are given parts of. */
const OPEN_FILES_MAX = 32;
/** Bytes that are checked, hashed and cut in one go: many small files make that slow. */
const INGEST_BYTES = 2 ** 18;

type BlobRow = ContentTables['blobs'];

/**
 * Opens the content store of a home, and clears what a crash left in `tmp/`. One process at a time: the home is locked.
 * Errors: `storage-*`, `home-too-new`.
 */
export async function openContentStore(options: {
  readonly directory: string;
  readonly clock: Clock;
  readonly limits?: Partial<ContentLimits>;
}): Promise<ContentStore> {
  const { directory, clock } = options;
  try {
    await rm(join(directory, 'tmp'), { recursive: true, force: true });
    for (const folder of ['tmp', 'sha256', 'damaged', 'incoming'])
      await mkdir(join(directory, folder), { recursive: true, mode: 0o700 });
  } catch (error) {
    throw storageError(error, `opening the content store ${directory}`);
  }
  const database = openSqlite(join(directory, 'content.db'), CONTENT_MIGRATIONS);
  const store = new ContentStore(
    { directory, clock, database, blake3: await loadBlake3() },
    { ...CONTENT_LIMITS, ...options.limits },
  );
  await store.sweepIncoming();
  return store;
}

/**
 * Blobs by SHA-256: files `sha256/ab/cdef…`, and a database that knows their sizes and shards.
 *
 * A put has one commit point, the rename of a synced temporary file to its final name. A crash before it leaves a temporary file, which the
 * next open removes; a crash between it and the database row leaves a file without a row, which the first use of that digest checks and adopts
 * (and a collection removes when nothing refers to it). A removal deletes the row first: a crash after that again leaves a file without a row.
 */
export class ContentStore implements Omit<ContentExchange, 'release' | 'drop'>, AsyncDisposable {
  readonly #directory: string;
  readonly #clock: Clock;
  readonly #database: SqliteStore;
  readonly #blake3: Blake3;
  readonly #limits: ContentLimits;
  readonly #memory: LRUCache<string, Uint8Array>;
  readonly #trees: LRUCache<Digest, ReadonlyMap<string, TreeFile>>;
  /** The tail of the work under way for a digest: commit, adoption and removal of one blob never overlap. */
  readonly #turns = new Map<Digest, Promise<unknown>>();
  /** No turn begins any more. */
  #isClosed = false;
  /** Arrivals that somebody works on now. */
  readonly #incoming = new Map<Digest, Incoming>();
  /** Every arrival with files in `incoming/`, the one that was left alone longest first, and the size that it will have. */
  readonly #begun = new Map<Digest, number>();
  readonly #openFiles = new OpenFiles(openBlob, OPEN_FILES_MAX);
  readonly #figures = { l1Hits: 0, l1Misses: 0, l2Hits: 0, l2Misses: 0 };
  readonly #sql;

  constructor(
    lent: {
      readonly directory: string;
      readonly clock: Clock;
      readonly database: SqliteStore;
      readonly blake3: Blake3;
    },
    limits: ContentLimits,
  ) {
    this.#directory = lent.directory;
    this.#clock = lent.clock;
    this.#database = lent.database;
    this.#blake3 = lent.blake3;
    this.#limits = limits;
    this.#memory = new LRUCache({ maxSize: limits.memoryBytesMax, sizeCalculation: (bytes) => bytes.length + 128 });
    this.#trees = new LRUCache({ maxSize: limits.treeEntriesMax, sizeCalculation: (files) => files.size + 1 });
    const { raw } = lent.database;
    this.#sql = {
      find: raw.prepare('SELECT * FROM blobs WHERE digest = ?'),
      insert: raw.prepare(
        `INSERT INTO blobs (digest, size, averageBytes, shardCount, shardRoot, shardsReused, bytesReused, isTree)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
      ),
      remove: raw.prepare('DELETE FROM blobs WHERE digest = ?'),
      markTree: raw.prepare('UPDATE blobs SET isTree = 1 WHERE digest = ?'),
      markReused: raw.prepare('UPDATE blobs SET shardsReused = shardCount, bytesReused = size WHERE digest = ?'),
      insertShard: raw.prepare('INSERT INTO shards (blob, position, hash, offset, length) VALUES (?, ?, ?, ?, ?)'),
      knowsShard: raw.prepare('SELECT 1 FROM shards WHERE hash = ? LIMIT 1'),
      shardsOf: raw.prepare('SELECT hash, offset, length FROM shards WHERE blob = ? ORDER BY position'),
      findShard: raw.prepare(
        `SELECT digest, shards.offset, length FROM shards JOIN blobs ON blobs.id = shards.blob WHERE hash = ? LIMIT 1`,
      ),
      lease: raw.prepare(
        `INSERT INTO leases (digest, untilMs) VALUES (?, ?)
         ON CONFLICT (digest) DO UPDATE SET untilMs = max(untilMs, excluded.untilMs)`,
      ),
      leased: raw.prepare('SELECT 1 FROM leases WHERE digest = ? AND untilMs > ?'),
      endLease: raw.prepare('DELETE FROM leases WHERE digest = ?'),
      expireLeases: raw.prepare('DELETE FROM leases WHERE untilMs <= ?'),
      page: raw.prepare('SELECT digest FROM blobs WHERE digest > ? ORDER BY digest LIMIT 512'),
      totals: raw.prepare('SELECT blobs, bytes FROM totals'),
    };
  }

  /**
   * Streams `content` into the store: hashed, cut into shards and written in one pass, durable when it returns. Safe to repeat.
   * The blob is leased against collection. On any error nothing is left behind.
   * Errors: `limit-exceeded`, `blob-mismatch`, `storage-*`, `cancelled`, and whatever `content` throws.
   */
  put(content: AsyncIterable<Uint8Array>, options: PutOptions = {}): Promise<BlobInfo> {
    return this.#put(content, options, null);
  }

  /** Like `put`, and refuses what is not a canonical tree (docs/protocol/tree.md). Errors: also `tree-invalid`. */
  putTree(content: AsyncIterable<Uint8Array>, options: PutOptions = {}): Promise<BlobInfo> {
    return this.#put(content, options, new TreeListing(this.#limits.treeEntriesMax));
  }

  /** What the store knows of a blob, or null. Adopts a file that a crash left without a row; forgets a row without a file. */
  async stat(digest: Digest): Promise<BlobInfo | null> {
    const row = await this.#find(digest);
    return row === null ? null : blobInfo(row);
  }

  async has(digest: Digest): Promise<boolean> {
    return (await this.#find(digest)) !== null;
  }

  /** Leases blobs for another `leaseMs`, durably; returns those that are not here. */
  async hold(digests: Iterable<Digest>): Promise<readonly Digest[]> {
    const wanted = [...new Set(digests)];
    for (const digest of wanted) await this.has(digest);
    const untilMs = this.#clock.nowMs() + this.#limits.leaseMs;
    // No removal comes between looking and leasing.
    return this.#transact('holding blobs', () => {
      const present = wanted.filter((digest) => this.#sql.find.get(digest) !== undefined);
      for (const digest of present) this.#sql.lease.run(digest, untilMs);
      return wanted.filter((digest) => !present.includes(digest));
    });
  }

  /**
   * The bytes of a blob, or `length` of them from `offset` (cut at the end of the blob), in pieces of at most 1 MiB. With `reuse` a piece is
   * only valid until the next is asked for, and a large blob costs one buffer.
   * Errors: `blob-not-found`, `blob-damaged`, `cancelled`, `usage` on a range that makes no sense.
   */
  async *read(
    digest: Digest,
    options: CallOptions & { readonly offset?: number; readonly length?: number; readonly reuse?: boolean } = {},
  ): AsyncGenerator<Uint8Array, void, undefined> {
    const { offset = 0, length = Number.MAX_SAFE_INTEGER } = options;
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0) {
      throw new HyperMeshError(
        'usage',
        `Expected offset and length to be whole numbers from 0, but got ${offset} and ${length}.`,
      );
    }
    checkCancelled(options.signal);
    const row = await this.#require(digest);
    const end = Math.min(row.size, offset + length);
    if (row.size <= this.#limits.memoryItemBytesMax) {
      const bytes = await this.#small(digest, () => this.#readWhole(digest, row.size));
      if (offset < end) yield bytes.slice(offset, end);
      return;
    }
    yield* readPieces(this.#path(digest), offset, end, options);
  }

  /** The files of a tree layer in path order. Errors: `blob-not-found`, `tree-invalid`. */
  async tree(layer: Digest, options: CallOptions = {}): Promise<readonly TreeEntry[]> {
    const files = await this.#tree(layer, options.signal);
    return [...files.values()].map(({ offset: _, ...entry }) => entry);
  }

  /** As `tree`, with the offset of each file's bytes in the layer: whoever wants many files reads the layer once. */
  async treeFiles(layer: Digest, options: CallOptions = {}): Promise<readonly TreeFile[]> {
    return [...(await this.#tree(layer, options.signal)).values()];
  }

  /** The bytes of one file of a tree layer; links are not followed. Errors: `blob-not-found`, `tree-invalid`, `file-not-found`. */
  async *readFile(layer: Digest, path: string, options: CallOptions = {}): AsyncGenerator<Uint8Array, void, undefined> {
    const file = (await this.#tree(layer, options.signal)).get(path);
    if (file?.kind !== 'file') {
      const came = file === undefined ? 'it has no such entry' : `that is a ${file.kind}`;
      throw new HyperMeshError(
        'file-not-found',
        `Expected the file ${JSON.stringify(path.slice(0, 200))} in the tree ${layer}, but ${came}.`,
      );
    }
    if (file.size === 0) return;
    if (file.size <= this.#limits.memoryItemBytesMax) {
      await this.#require(layer);
      yield (
        await this.#small(`${layer}:${file.offset}`, () =>
          this.#readPart(layer, file.offset, file.size, options.signal),
        )
      ).slice();
      return;
    }
    yield* this.read(layer, { ...options, offset: file.offset, length: file.size });
  }

  /** How a blob is cut. Errors: `blob-not-found`. */
  async shards(digest: Digest): Promise<readonly Shard[]> {
    const { id } = await this.#require(digest);
    return this.#sql.shardsOf.all(id) as unknown as Shard[];
  }

  /** Where some local blob holds a shard with this BLAKE3 hash, or null. */
  async findShard(
    hash: Uint8Array,
  ): Promise<{ readonly digest: Digest; readonly offset: number; readonly length: number } | null> {
    const row = this.#sql.findShard.get(hash) as { digest: Digest; offset: number; length: number } | undefined;
    return row === undefined ? null : { ...row };
  }

  async holding(digest: Digest): Promise<Holding> {
    const incoming = this.#incoming.get(digest);
    if (await this.has(digest)) return { kind: 'complete' };
    if (incoming === undefined || incoming.bytes === 0) return { kind: 'none' };
    return { kind: 'partial', count: incoming.list.shards.length, shards: incoming.bits };
  }

  async shardList(digest: Digest): Promise<ShardList | null> {
    const row = await this.#find(digest);
    if (row === null) return this.#incoming.get(digest)?.list ?? readIncomingList(this.#incomingFolder, digest);
    const shards = (this.#sql.shardsOf.all(row.id) as unknown as Shard[]).map((shard) => ({ ...shard }));
    return { size: row.size, averageBytes: row.averageBytes, shards };
  }

  async readHeld(digest: Digest, offset: number, into: Uint8Array): Promise<void> {
    const { length } = into;
    const incoming = this.#incoming.get(digest);
    if (incoming?.covers(offset, length)) return incoming.read(offset, into);
    const path = this.#path(digest);
    // While it is open it is there, and too large to be kept in memory.
    if (!this.#openFiles.has(path)) {
      const { size } = await this.#holdingOf(digest, offset + length);
      if (size <= this.#limits.memoryItemBytesMax) {
        const bytes = await this.#small(digest, () => this.#readWhole(digest, size));
        into.set(bytes.subarray(offset, offset + length));
        return;
      }
    }
    await this.#openFiles.use(path, (file) =>
      storing('reading a blob', async () => {
        for (let at = 0; at < length; ) {
          const { bytesRead } = await file.read(into, at, length - at, offset + at);
          if (bytesRead === 0) {
            await this.#holdingOf(digest, offset + length);
            throw damagedBlob(digest);
          }
          at += bytesRead;
        }
      }),
    );
  }

  /** Errors: `blob-not-found`, also when it ends before `end`. */
  async #holdingOf(digest: Digest, end: number): Promise<BlobRow> {
    const row = await this.#require(digest);
    if (end <= row.size) return row;
    throw new HyperMeshError('blob-not-found', `${digest} has ${row.size} bytes; up to ${end} are not there.`);
  }

  async receive(blob: BlobDescription, list: ShardList, options: CallOptions = {}): Promise<Incoming> {
    const { digest, size } = blob;
    if (!isListOf(this.#blake3, list, blob))
      throw new HyperMeshError('content-invalid', `This is not how ${digest} is cut by those who signed for it.`);
    if (size > this.#limits.blobBytesMax)
      throw new HyperMeshError(
        'limit-exceeded',
        `Expected at most ${this.#limits.blobBytesMax} bytes, but ${digest} has ${size}.`,
      );
    return this.#inTurn(digest, async () => {
      if (this.#incoming.has(digest)) throw new HyperMeshError('usage', `${digest} is arriving already.`);
      this.#begun.delete(digest);
      await this.#makeRoom(size);
      this.#begun.set(digest, size);
      const incoming = await openIncoming(
        {
          folder: this.#incomingFolder,
          blake3: this.#blake3,
          local: (shard) => this.#localShard(shard),
          commit: (path, of) =>
            this.#inTurn(digest, () => this.#commit(path, digest, { ...of, summary: blob.shards }, null)),
          closed: () => this.#incoming.delete(digest),
          ended: () => this.#begun.delete(digest),
        },
        blob,
        list,
        options,
      );
      this.#incoming.set(digest, incoming);
      return incoming;
    });
  }

  /** Arrivals that are not complete: how many, and the bytes that they will have. */
  incomingTotals(): { readonly blobs: number; readonly bytes: number } {
    return { blobs: this.#begun.size, bytes: this.#begun.values().reduce((sum, size) => sum + size, 0) };
  }

  /** Drops arrivals that a crash left without their list, and those that nobody went on with for too long. */
  async sweepIncoming(): Promise<void> {
    const folder = this.#incomingFolder;
    const names = await storing('listing arrivals', () => readdir(folder));
    const since = this.#clock.nowMs() - this.#limits.incomingAgeMsMax;
    const kept: { digest: Digest; size: number; usedAtMs: number }[] = [];
    for (const digest of new Set(names.map((name) => `sha256:${name.split('.')[0]}` as const))) {
      if (this.#incoming.has(digest)) continue;
      const list = await readIncomingList(folder, digest);
      const used = await stat(incomingPath(folder, digest, 'have')).catch(() => null);
      if (list !== null && used !== null && used.mtimeMs >= since)
        kept.push({ digest, size: list.size, usedAtMs: used.mtimeMs });
      else {
        this.#begun.delete(digest);
        await storing('dropping an arrival', () => removeIncoming(folder, digest));
      }
    }
    for (const { digest, size } of kept.sort((a, b) => a.usedAtMs - b.usedAtMs)) this.#begun.set(digest, size);
  }

  /** All blobs, in the order of their digests. Those added or removed meanwhile may or may not be among them. */
  async *list(): AsyncGenerator<Digest, void, undefined> {
    for (let last = ''; ; ) {
      const page = this.#sql.page.all(last) as { digest: Digest }[];
      if (page.length === 0) return;
      for (const { digest } of page) yield digest;
      last = page.at(-1)!.digest;
    }
  }

  async totals(): Promise<{ readonly blobs: number; readonly bytes: number }> {
    return { ...(this.#sql.totals.get() as { blobs: number; bytes: number }) };
  }

  cacheFigures(): CacheFigures {
    const { l1Hits, l1Misses, l2Hits, l2Misses } = this.#figures;
    const { blobs, bytes } = this.#sql.totals.get() as { blobs: number; bytes: number };
    return {
      l1: { hits: l1Hits, misses: l1Misses, items: this.#memory.size, bytes: this.#memory.calculatedSize },
      l2: { hits: l2Hits, misses: l2Misses, items: blobs, bytes },
    };
  }

  /** Removes a blob whatever refers to it, and its lease. Returns whether it was there. */
  async delete(digest: Digest): Promise<boolean> {
    return this.#inTurn(digest, () => this.#remove(digest));
  }

  /** Removes blobs unless one of them is leased or `areNeeded`, looked at again right before each goes. Returns whether all are gone. Errors: `storage-*`. */
  async release(digests: readonly Digest[], areNeeded: () => boolean): Promise<boolean> {
    if (digests.some((digest) => this.#sql.leased.get(digest, this.#clock.nowMs()) !== undefined)) return false;
    for (const digest of digests) {
      const remove = async () => !areNeeded() && (await this.#removeUnleased(digest)) !== null;
      if (!(await this.#inTurn(digest, remove))) return false;
    }
    return true;
  }

  async keep(digest: Digest): Promise<void> {
    await this.#require(digest);
    this.#transact('keeping a blob', () => this.#sql.lease.run(digest, FOR_EVER_MS));
  }

  /** Removes blobs, leased or not, but those that `isNamed`, looked at again right before each goes; they lose their lease alone. Errors: `storage-*`. */
  async drop(digests: readonly Digest[], isNamed: (digest: Digest) => boolean): Promise<void> {
    for (const digest of digests) {
      await this.#inTurn(digest, async () => {
        if (isNamed(digest)) this.#transact('ending a lease', () => this.#sql.endLease.run(digest));
        else await this.#remove(digest);
      });
    }
  }

  /**
   * Removes every blob that is neither in `referenced` nor leased. Safe while blobs are put and read: a put leases before its blob
   * can be seen, and the lease is looked at again in the turn that removes. Whoever is about to refer to an old blob `hold`s it first.
   * Errors: `storage-*`, `cancelled`; what was removed until then stays removed.
   */
  async collect(
    referenced: Iterable<Digest> | AsyncIterable<Digest>,
    options: CallOptions = {},
  ): Promise<CollectReport> {
    const keep = new Set<Digest>();
    for await (const digest of referenced) keep.add(digest);
    let blobsRemoved = 0;
    let bytesFreed = 0;
    let blobsKept = 0;
    // Files, not rows: what a crash left without a row goes too.
    for await (const digest of this.#files()) {
      checkCancelled(options.signal);
      const freed = keep.has(digest) ? null : await this.#inTurn(digest, () => this.#removeUnleased(digest));
      if (freed === null) {
        blobsKept += 1;
      } else {
        blobsRemoved += 1;
        bytesFreed += freed;
      }
      options.onProgress?.({ step: 'collect', done: blobsRemoved + blobsKept, note: `${blobsRemoved} blobs removed` });
    }
    await this.sweepIncoming();
    this.#transact('clearing leases', () => this.#sql.expireLeases.run(this.#clock.nowMs()));
    return { blobsRemoved, bytesFreed, blobsKept };
  }

  /** Reads every blob file and sets those aside whose bytes do not have their digest. Errors: `storage-*`, `cancelled`. */
  async scrub(options: CallOptions = {}): Promise<ScrubReport> {
    let checked = 0;
    const damaged: Digest[] = [];
    const { blobs: total } = await this.totals();
    for await (const digest of this.#files()) {
      checkCancelled(options.signal);
      const sound = await this.#inTurn(digest, async () => {
        const hash = createHash('sha256');
        try {
          for await (const piece of readPieces(this.#path(digest), 0, Number.MAX_SAFE_INTEGER, {
            ...options,
            reuse: true,
          }))
            hash.update(piece);
        } catch (error) {
          if (isMissing(error)) return true;
          throw error;
        }
        if (hashed(hash) === digest) return true;
        await this.#setAside(digest);
        return false;
      });
      checked += 1;
      if (!sound) damaged.push(digest);
      options.onProgress?.({ step: 'scrub', done: checked, total });
    }
    // A row whose file is gone is damage too: its blob can no longer be served.
    for await (const digest of this.list()) {
      if ((await fileSize(this.#path(digest))) === null) {
        await this.#inTurn(digest, () => this.#forgetIfMissing(digest));
        damaged.push(digest);
      }
    }
    return { checked, damaged };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled([...this.#incoming.values()].map((incoming) => incoming[Symbol.asyncDispose]()));
    this.#isClosed = true;
    await Promise.allSettled(this.#turns.values());
    await this.#openFiles[Symbol.asyncDispose]();
    await this.#database[Symbol.asyncDispose]();
  }

  async #put(content: AsyncIterable<Uint8Array>, options: PutOptions, listing: TreeListing | null): Promise<BlobInfo> {
    const temporary = join(this.#directory, 'tmp', randomBytes(16).toString('hex'));
    try {
      const ingest = await this.#write(temporary, content, options, listing);
      const digest = hashed(ingest.hash);
      if (options.expect !== undefined && digest !== options.expect) {
        throw new HyperMeshError(
          'blob-mismatch',
          `Expected bytes with digest ${options.expect}, but they have ${digest}.`,
          {
            hint: 'The content was altered or cut on its way; send it again.',
          },
        );
      }
      return await this.#inTurn(digest, () => this.#commit(temporary, digest, cutOf(ingest), listing));
    } finally {
      // What cannot be removed now is removed at the next open; it must not hide why the put failed.
      await rm(temporary, { force: true }).catch(() => {});
    }
  }

  /** Writes and syncs the temporary file; nothing of it counts yet. */
  async #write(
    temporary: string,
    content: AsyncIterable<Uint8Array>,
    options: PutOptions,
    listing: TreeListing | null,
  ): Promise<Ingest> {
    const sizeMax = Math.min(options.sizeMax ?? Number.MAX_SAFE_INTEGER, this.#limits.blobBytesMax);
    const stored = this.cacheFigures().l2.bytes;
    const ingest: Ingest = {
      hash: createHash('sha256'),
      cutter: new ShardCutter(this.#blake3, averageFor(0)),
      size: 0,
    };
    const file = await storing('creating a blob', () => open(temporary, 'wx', 0o600));
    try {
      for await (const bytes of content) {
        // Short pieces bound how long the event loop waits for others.
        for (let at = 0; at < bytes.length; at += INGEST_BYTES) {
          checkCancelled(options.signal);
          const piece = bytes.subarray(at, at + INGEST_BYTES);
          ingest.size += piece.length;
          if (ingest.size > sizeMax) {
            throw new HyperMeshError('limit-exceeded', `Expected at most ${sizeMax} bytes, but more came.`, {
              details: { sizeMax },
            });
          }
          if (stored + ingest.size > this.#limits.storageBytesMax) {
            throw storageFull(this.#limits.storageBytesMax);
          }
          listing?.scanner.push(piece);
          ingest.hash.update(piece);
          // Past the size where a coarser cut is due, the shards are cut from the file afterwards.
          if (averageFor(ingest.size) === ingest.cutter.average) ingest.cutter.push(piece);
          await storing('writing a blob', () => writeAll(file, piece));
        }
        options.onProgress?.({ step: 'store', done: ingest.size, unit: 'bytes' });
      }
      listing?.scanner.end();
      await storing('writing a blob', () => file.sync());
    } finally {
      await file.close();
    }
    if (averageFor(ingest.size) !== ingest.cutter.average) await this.#cutAgain(temporary, ingest, options.signal);
    return ingest;
  }

  async #cutAgain(path: string, ingest: Ingest, signal: AbortSignal | undefined): Promise<void> {
    ingest.cutter = new ShardCutter(this.#blake3, averageFor(ingest.size));
    for await (const piece of readPieces(path, 0, ingest.size, { signal, reuse: true })) ingest.cutter.push(piece);
  }

  /** In the turn of `digest`. */
  async #commit(temporary: string, digest: Digest, cut: Cut, listing: TreeListing | null): Promise<BlobInfo> {
    const untilMs = this.#clock.nowMs() + this.#limits.leaseMs;
    const known = await this.#heal(digest);
    if (known !== null) {
      this.#transact('renewing a lease', () => {
        this.#sql.lease.run(digest, untilMs);
        if (listing !== null) this.#sql.markTree.run(digest);
        this.#sql.markReused.run(digest);
      });
      this.#remember(digest, listing);
      return { ...blobInfo(known), shardsReused: known.shardCount, bytesReused: known.size };
    }
    const path = this.#path(digest);
    await storing('storing a blob', async () => {
      await mkdir(join(path, '..'), { recursive: true, mode: 0o700 });
      // The commit point. Before: a temporary file, removed at the next open. After: a file that stands for itself, adopted at first use.
      await rename(temporary, path);
      await syncFolder(join(path, '..'));
      await syncFolder(join(path, '..', '..'));
    });
    const row = this.#insert(digest, cut, listing !== null, untilMs);
    this.#remember(digest, listing);
    return blobInfo(row);
  }

  #insert(digest: Digest, cut: Cut, isTree: boolean, untilMs: number): BlobRow {
    const { size, shards, summary } = cut;
    return this.#transact('recording a blob', () => {
      const reused = shards.filter((shard) => this.#sql.knowsShard.get(shard.hash) !== undefined);
      const bytesReused = reused.reduce((sum, shard) => sum + shard.length, 0);
      const { lastInsertRowid } = this.#sql.insert.run(
        digest,
        size,
        summary.averageBytes,
        summary.count,
        summary.root,
        reused.length,
        bytesReused,
        isTree ? 1 : 0,
      );
      for (const [position, shard] of shards.entries())
        this.#sql.insertShard.run(lastInsertRowid, position, shard.hash, shard.offset, shard.length);
      this.#sql.lease.run(digest, untilMs);
      return this.#sql.find.get(digest) as unknown as BlobRow;
    });
  }

  /** The row of a blob whose file is there with the right size; otherwise what a crash left is healed first. */
  async #find(digest: Digest): Promise<BlobRow | null> {
    if (!isDigest(digest))
      throw new HyperMeshError(
        'usage',
        `Expected a digest like "sha256:<64 hex digits>", but got ${JSON.stringify(String(digest).slice(0, 100))}.`,
      );
    const row = this.#sql.find.get(digest) as BlobRow | undefined;
    const size = await fileSize(this.#path(digest));
    const found =
      row?.size === size
        ? row
        : row === undefined && size === null
          ? null
          : await this.#inTurn(digest, () => this.#heal(digest));
    if (found === null) this.#figures.l2Misses += 1;
    else this.#figures.l2Hits += 1;
    return found ?? null;
  }

  async #require(digest: Digest): Promise<BlobRow> {
    const row = await this.#find(digest);
    if (row !== null) return row;
    throw new HyperMeshError('blob-not-found', `The content store has no blob ${digest}.`, {
      hint: 'If it belongs to a package, publish that again from its folder: equal content is put back.',
    });
  }

  /** In the turn of `digest`: makes row and file agree. */
  async #heal(digest: Digest): Promise<BlobRow | null> {
    const row = this.#sql.find.get(digest) as BlobRow | undefined;
    const path = this.#path(digest);
    const size = await fileSize(path);
    if (size === null) {
      if (row !== undefined) this.#forget(digest);
      return null;
    }
    if (row?.size === size) return row;
    const ingest: Ingest = {
      hash: createHash('sha256'),
      cutter: new ShardCutter(this.#blake3, averageFor(size)),
      size,
    };
    for await (const piece of readPieces(path, 0, size, { reuse: true })) {
      ingest.hash.update(piece);
      ingest.cutter.push(piece);
    }
    if (hashed(ingest.hash) !== digest) {
      await this.#setAside(digest);
      return null;
    }
    if (row !== undefined) this.#forget(digest);
    return this.#insert(digest, cutOf(ingest), false, this.#clock.nowMs() + this.#limits.leaseMs);
  }

  async #forgetIfMissing(digest: Digest): Promise<void> {
    if ((await fileSize(this.#path(digest))) === null) this.#forget(digest);
  }

  /** In the turn of `digest`. */
  async #removeUnleased(digest: Digest): Promise<number | null> {
    const size = await fileSize(this.#path(digest));
    // Nothing is awaited between this look and the row's removal: a hold comes before both or finds no row.
    if (this.#sql.leased.get(digest, this.#clock.nowMs()) !== undefined) return null;
    return (await this.#remove(digest)) ? size : 0;
  }

  /** In the turn of `digest`. The row first: a crash between leaves a file without a row, which the next collection removes. */
  async #remove(digest: Digest): Promise<boolean> {
    this.#forget(digest);
    try {
      await unlink(this.#path(digest));
      return true;
    } catch (error) {
      if (isMissing(error)) return false;
      throw storageError(error, 'removing a blob');
    }
  }

  async #setAside(digest: Digest): Promise<void> {
    this.#forget(digest);
    await storing('setting a damaged blob aside', () =>
      rename(this.#path(digest), join(this.#directory, 'damaged', digestHex(digest))),
    );
  }

  /** Row and lease; the shards go with the row. What memory holds stays true (equal digest, equal bytes) and is only served with a row. */
  #forget(digest: Digest): void {
    this.#openFiles.forget(this.#path(digest));
    this.#transact('forgetting a blob', () => {
      this.#sql.remove.run(digest);
      this.#sql.endLease.run(digest);
    });
    this.#trees.delete(digest);
    this.#memory.delete(digest);
  }

  #remember(digest: Digest, listing: TreeListing | null): void {
    if (listing?.isWhole === true) this.#trees.set(digest, listing.files);
  }

  async #tree(layer: Digest, signal: AbortSignal | undefined): Promise<ReadonlyMap<string, TreeFile>> {
    checkCancelled(signal);
    const row = await this.#require(layer);
    const cached = this.#trees.get(layer);
    if (cached !== undefined) return cached;
    // Of what may prove to be no tree only as much is remembered as is kept of any.
    let listing = new TreeListing(row.isTree === 1 ? Number.POSITIVE_INFINITY : this.#limits.treeEntriesMax);
    try {
      await this.#scan(layer, row, listing.scanner, signal);
    } catch (error) {
      // It was a tree when it came: what is wrong now is the disk.
      if (row.isTree === 0 || !isCoded(error, 'tree-invalid', 'limit-exceeded')) throw error;
      await this.#inTurn(layer, () => this.#setAside(layer));
      throw damagedBlob(layer);
    }
    if (row.isTree === 0) this.#transact('recording a tree', () => this.#sql.markTree.run(layer));
    if (!listing.isWhole) {
      listing = new TreeListing(Number.POSITIVE_INFINITY);
      await this.#scan(layer, { ...row, isTree: 1 }, listing.scanner, signal);
    }
    this.#trees.set(layer, listing.files);
    return listing.files;
  }

  /** Reads the headers of a tree; also the content in between when it was never checked. */
  async #scan(layer: Digest, row: BlobRow, scanner: TreeScanner, signal: AbortSignal | undefined): Promise<void> {
    for (let at = 0; at < row.size; ) {
      // Jump over large contents, read through small ones.
      const skipped = row.isTree === 1 && scanner.skippable > PIECE ? scanner.skip() : 0;
      at += skipped;
      for await (const piece of this.#readFile(layer, at, Math.min(row.size, at + PIECE), signal)) {
        scanner.push(piece);
        at += piece.length;
      }
    }
    scanner.end();
  }

  async #small(key: string, load: () => Promise<Uint8Array>): Promise<Uint8Array> {
    const cached = this.#memory.get(key);
    if (cached !== undefined) {
      this.#figures.l1Hits += 1;
      return cached;
    }
    this.#figures.l1Misses += 1;
    const bytes = await load();
    this.#memory.set(key, bytes);
    return bytes;
  }

  /** A small blob is checked whenever it comes from disk. */
  async #readWhole(digest: Digest, size: number): Promise<Uint8Array> {
    const bytes = await this.#readPart(digest, 0, size, undefined);
    if (digestOf(bytes) === digest) return bytes;
    await this.#inTurn(digest, () => this.#setAside(digest));
    throw damagedBlob(digest);
  }

  async #readPart(digest: Digest, offset: number, size: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for await (const piece of this.#readFile(digest, offset, offset + size, signal)) parts.push(piece);
    const bytes = parts.length === 1 ? parts[0]! : new Uint8Array(Buffer.concat(parts));
    if (bytes.length !== size) throw damagedBlob(digest);
    return bytes;
  }

  #readFile(digest: Digest, offset: number, end: number, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    return readPieces(this.#path(digest), offset, end, { signal });
  }

  /** Digests of all blob files, with a row or without. */
  async *#files(): AsyncGenerator<Digest, void, undefined> {
    const root = join(this.#directory, 'sha256');
    for (const prefix of (await storing('listing blobs', () => readdir(root))).sort()) {
      for (const name of await storing('listing blobs', () => readdir(join(root, prefix)))) {
        const digest = `sha256:${prefix}${name}`;
        if (isDigest(digest)) yield digest;
      }
    }
  }

  /** Drops arrivals that were left alone until another of `size` bytes fits. Errors: `storage-full`, `limit-exceeded`. */
  async #makeRoom(size: number): Promise<void> {
    const stored = this.cacheFigures().l2.bytes;
    const full = () => stored + this.incomingTotals().bytes + size > this.#limits.storageBytesMax;
    for (const digest of [...this.#begun.keys()]) {
      if (!full() && this.#begun.size < this.#limits.incomingMax) return;
      if (this.#incoming.has(digest)) continue;
      this.#begun.delete(digest);
      await storing('dropping an arrival', () => removeIncoming(this.#incomingFolder, digest));
    }
    if (full()) throw storageFull(this.#limits.storageBytesMax);
    if (this.#begun.size >= this.#limits.incomingMax)
      throw new HyperMeshError(
        'limit-exceeded',
        `Expected at most ${this.#limits.incomingMax} blobs to arrive at the same time.`,
      );
  }

  async #localShard(shard: Shard): Promise<Uint8Array | null> {
    const found = await this.findShard(shard.hash);
    if (found === null || found.length !== shard.length) return null;
    try {
      return await this.#readPart(found.digest, found.offset, found.length, undefined);
    } catch (error) {
      // Removed or damaged meanwhile: then it comes from elsewhere.
      if (isCoded(error, 'blob-not-found', 'blob-damaged')) return null;
      throw error;
    }
  }

  get #incomingFolder(): string {
    return join(this.#directory, 'incoming');
  }

  #path(digest: Digest): string {
    const digits = digestHex(digest);
    return join(this.#directory, 'sha256', digits.slice(0, 2), digits.slice(2));
  }

  #transact<T>(doing: string, write: (raw: SqliteStore['raw']) => T): T {
    try {
      return this.#database.transact(write);
    } catch (error) {
      throw storageError(error, doing);
    }
  }

  /** Runs `work` after whatever is under way for this digest. */
  async #inTurn<T>(digest: Digest, work: () => Promise<T>): Promise<T> {
    // Bytes may come for as long as their sender wants; nobody waits for that when a node stops.
    if (this.#isClosed) throw new HyperMeshError('cancelled', 'The content store is closed.');
    const before = this.#turns.get(digest) ?? Promise.resolve();
    const turn = before.then(work, work);
    const settled = turn.then(
      () => {},
      () => {},
    );
    this.#turns.set(digest, settled);
    try {
      return await turn;
    } finally {
      if (this.#turns.get(digest) === settled) this.#turns.delete(digest);
    }
  }
}

/** What one pass over the bytes of a blob yields. */
interface Ingest {
  readonly hash: Hash;
  cutter: ShardCutter;
  size: number;
}

/** A blob and how it is cut. */
interface Cut {
  readonly size: number;
  readonly shards: readonly Shard[];
  readonly summary: ShardSummary;
}

function cutOf({ size, cutter }: Ingest): Cut {
  const summary = cutter.finish();
  return { size, shards: cutter.shards, summary };
}

/** The files of a tree by path, filled while it is scanned, up to a number of them. */
class TreeListing {
  readonly files = new Map<string, TreeFile>();
  readonly scanner: TreeScanner;
  /** Nothing is remembered when there are too many. */
  isWhole = true;

  constructor(entriesMax: number) {
    this.scanner = new TreeScanner({
      entry: (entry, offset) => {
        this.isWhole &&= this.files.size < entriesMax;
        if (this.isWhole) this.files.set(entry.path, { ...entry, offset });
        else this.files.clear();
      },
    });
  }
}

function blobInfo(row: BlobRow): BlobInfo {
  const shards: ShardSummary = {
    algorithm: 'fastcdc-v1',
    averageBytes: row.averageBytes,
    count: row.shardCount,
    root: row.shardRoot,
  };
  return {
    digest: row.digest as Digest,
    size: row.size,
    shards,
    shardsReused: row.shardsReused,
    bytesReused: row.bytesReused,
  };
}

function hashed(hash: Hash): Digest {
  return `sha256:${hash.digest('hex')}`;
}

function storageFull(bytesMax: number): HyperMeshError {
  return new HyperMeshError('storage-full', `The content store may hold ${bytesMax} bytes; this blob is past that.`, {
    hint: 'Run `hypermesh gc`, delete packages, or raise the limit; nothing was half-written.',
  });
}

function damagedBlob(digest: Digest): HyperMeshError {
  return new HyperMeshError('blob-damaged', `The stored blob ${digest} no longer has its digest; it was set aside.`, {
    hint: 'Publish or install the package again; check the disk with `hypermesh doctor`.',
  });
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at)).bytesWritten;
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

async function fileSize(path: string): Promise<number | null> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (isMissing(error)) return null;
    throw storageError(error, 'looking for a blob');
  }
}

function isMissing(error: unknown): boolean {
  const failed = error as (NodeJS.ErrnoException & { cause?: NodeJS.ErrnoException }) | null;
  return failed?.code === 'ENOENT' || failed?.cause?.code === 'ENOENT';
}

async function openBlob(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0));
  } catch (error) {
    if (isMissing(error))
      throw new HyperMeshError('blob-not-found', 'The blob was removed meanwhile.', { cause: error });
    throw storageError(error, 'opening a blob');
  }
}

/** Bytes `offset` to `end` of a file, in pieces of at most 1 MiB; with `reuse` each is only valid until the next. */
async function* readPieces(
  path: string,
  offset: number,
  end: number,
  options: { readonly signal?: AbortSignal | undefined; readonly reuse?: boolean },
): AsyncGenerator<Uint8Array, void, undefined> {
  const file = await openBlob(path);
  try {
    let buffer = new Uint8Array(Math.min(PIECE, Math.max(0, end - offset)));
    for (let at = offset; at < end; ) {
      checkCancelled(options.signal);
      const length = Math.min(buffer.length, end - at);
      const { bytesRead } = await storing('reading a blob', () => file.read(buffer, 0, length, at));
      if (bytesRead === 0) return;
      yield buffer.subarray(0, bytesRead);
      at += bytesRead;
      if (options.reuse !== true && at < end) buffer = new Uint8Array(Math.min(PIECE, end - at));
    }
  } finally {
    await file.close();
  }
}
