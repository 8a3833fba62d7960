import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Holding, ShardList } from '../wire/content.ts';
import type { ShardSummary } from '../wire/package.ts';
import type { BlobInfo, PutOptions } from './assets.ts';

/** A blob as somebody signed for it: its bytes, and how they are cut. */
export interface BlobDescription {
  readonly digest: Digest;
  readonly size: number;
  readonly shards: ShardSummary;
}

/**
 * Content as the network moves it. The assets subsystem lends this to STOQ; no extension can be granted it.
 * A blob that is still arriving is seen here alone, never through `Assets`.
 */
export interface ContentExchange {
  stat(digest: Digest): Promise<BlobInfo | null>;
  /** As in `Assets`: for what is small enough to arrive whole. */
  put(content: AsyncIterable<Uint8Array>, options?: PutOptions): Promise<BlobInfo>;
  /** What of a blob can be given to others now. */
  holding(digest: Digest): Promise<Holding>;
  /** How a blob is cut that is here, or that has begun to arrive; else null. The second kind was true when it came, and is to be checked again. */
  shardList(digest: Digest): Promise<ShardList | null>;
  /**
   * Fills `into` with bytes of a blob that is here, or of those shards of an arriving one that were verified.
   * Errors: `blob-not-found` when any of them is not here, `storage-*`.
   */
  readHeld(digest: Digest, offset: number, into: Uint8Array): Promise<void>;
  /**
   * Removes blobs unless an installation refers to one of them, or somebody put, fetched or held it a short while ago; that records name them does not count.
   * Returns whether they are gone. Errors: `storage-*`.
   */
  release(digests: readonly Digest[]): Promise<boolean>;
  /** Keeps a blob that no record names until {@link drop}, also past a restart. Errors: `blob-not-found`, `storage-*`. */
  keep(digest: Digest): Promise<void>;
  /** Removes blobs that were kept or came a short while ago, but not what a record or an installation names. Errors: `storage-*`. */
  drop(digests: readonly Digest[]): Promise<void>;
  /**
   * Begins or goes on with an arrival: what came before a crash is checked and counts. One at a time for each blob.
   * `list` must be the one of the blob's `shards.root`. Errors: `limit-exceeded`, `storage-*`, `cancelled`.
   */
  receive(blob: BlobDescription, list: ShardList, options?: CallOptions): Promise<IncomingBlob>;
}

/** A blob that is arriving, shard by shard and in any order. Disposed of before it is complete, it can be gone on with later. */
export interface IncomingBlob extends AsyncDisposable {
  readonly list: ShardList;
  /** Bytes of verified shards. */
  readonly bytes: number;
  /** Shards that must still come from elsewhere, in order; a shard that occurs twice is wanted once. */
  wanted(): readonly number[];
  has(index: number): boolean;
  /** Copies what any local blob holds already, each shard verified. Returns the bytes. Errors: `storage-*`, `cancelled`. */
  reuse(options?: CallOptions): Promise<number>;
  /** Takes shards `from` to `to` (exclusive) as their bytes come, without keeping them in memory. Two runs never overlap. */
  run(from: number, to: number): ShardRun;
  /** One whole shard. False: these are not its bytes, and nothing was kept. May be called while a run works on the same shard. */
  put(index: number, bytes: Uint8Array): Promise<boolean>;
  /**
   * With nothing wanted any more: checks the whole and makes it a blob, durably. Null: some shards are wanted, or wanted again because the disk
   * gave back other bytes than it was given. Errors: `blob-mismatch` when all shards are as signed for and the whole is not: the description lied.
   */
  complete(options?: CallOptions): Promise<BlobInfo | null>;
}

export interface ShardRun extends AsyncDisposable {
  /** The shard that the next byte belongs to. */
  readonly next: number;
  /**
   * The next bytes in order; the caller's again when it settles. A shard counts a little after its last byte, all of them when the last byte of
   * the run was pushed. Errors: `shard-mismatch` at the first wrong shard, those before it count; `storage-*`, also of a push before.
   */
  push(bytes: Uint8Array): Promise<void>;
}
