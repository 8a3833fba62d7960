import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { Lock, LockedPackage } from '../wire/lock.ts';
import type { PackageManifest } from '../wire/manifest.ts';
import type { AssetId, AssetType, PackageName, PrivacyLevel } from '../wire/names.ts';
import type { ShardSummary } from '../wire/package.ts';
import type { TreeEntry } from '../wire/tree.ts';

export type { TreeEntry } from '../wire/tree.ts';

/** What the content store knows of one blob. */
export interface BlobInfo {
  readonly digest: Digest;
  readonly size: number;
  readonly shards: ShardSummary;
  /** Of those shards, how many were in the store already when this blob last arrived. */
  readonly shardsReused: number;
  readonly bytesReused: number;
}

export interface PutOptions extends CallOptions {
  /** Refuse with `limit-exceeded` past this many bytes. */
  readonly sizeMax?: number;
  /** Refuse with `blob-mismatch` if the bytes hash to something else. */
  readonly expect?: Digest;
}

export type AssetState = 'published' | 'deprecated' | 'yanked';

/** One published version of one package, or one asset of a type that an extension added. */
export interface AssetRecord {
  readonly id: AssetId;
  /** SHA-256 of the OCI manifest. */
  readonly digest: Digest;
  readonly type: AssetType;
  readonly name: PackageName;
  readonly version: string;
  /** Fingerprint of the publisher's certificate subject key: who may change the state of this asset. */
  readonly owner: string;
  readonly privacy: PrivacyLevel;
  readonly state: AssetState;
  /** Why it was deprecated or yanked. */
  readonly stateReason: string | null;
  readonly manifest: PackageManifest;
  /** All blobs behind the asset: OCI manifest, config, layers, bundle. Garbage collection keeps them. */
  readonly blobs: readonly Digest[];
  /** Layers in order, as in the OCI manifest. */
  readonly layers: readonly Digest[];
  /** The verification bundle (docs/protocol/bundle.md), itself a blob. */
  readonly bundle: Digest;
  /** Bytes of all layers. */
  readonly size: number;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
}

export type AssetDraft = Omit<AssetRecord, 'state' | 'stateReason' | 'createdAtMs' | 'updatedAtMs' | 'id'>;

export interface AssetQuery {
  /** At most 12 words; all must match, the last one as a prefix; small typing errors are forgiven. Empty: everything, newest package first. */
  readonly text?: string;
  readonly type?: AssetType;
  readonly language?: string;
  readonly keyword?: string;
  readonly owner?: string;
  readonly license?: string;
  /** Show yanked versions too. Default false. */
  readonly includeYanked?: boolean;
  /** Page size, 1 to 100. Default 20. */
  readonly limit?: number;
  /** From the page before. Stable: no item is shown twice or skipped because others were published meanwhile. */
  readonly cursor?: string;
}

/** One package in a result list: its newest version that is not yanked. */
export interface AssetHit {
  readonly record: AssetRecord;
  /** Higher is better; only comparable inside one answer. */
  readonly score: number;
}

export interface AssetPage {
  readonly hits: readonly AssetHit[];
  readonly total: number;
  readonly cursor: string | null;
}

/** A dependent of an asset: somebody's published version, or an installation. */
export interface Dependent {
  readonly kind: 'package' | 'installation';
  /** `scope/name@version`, or the folder of the installation. */
  readonly ref: string;
}

export interface InstalledPackage extends LockedPackage {
  /** Absolute path of the folder that holds the package's files; `ROOT/packages/<scope>/<name>` is a link to it. */
  readonly path: string;
}

export interface Installation {
  readonly root: string;
  readonly generation: number;
  readonly lock: Lock;
  readonly packages: readonly InstalledPackage[];
}

export interface CollectReport {
  readonly blobsRemoved: number;
  readonly bytesFreed: number;
  readonly blobsKept: number;
}

/**
 * Records of what was published, the content behind them, and what is installed.
 * Content is addressed by SHA-256; a blob is durable (file and folder synced) when a call that made it returns.
 */
export interface Assets {
  /**
   * Streams `content` into the store. Safe to repeat: equal bytes give the same blob once.
   * The blob is held against collection for an hour, by then a record must refer to it.
   * Errors: `limit-exceeded`, `blob-mismatch`, `storage-*`, `cancelled`.
   */
  put(content: AsyncIterable<Uint8Array>, options?: PutOptions): Promise<BlobInfo>;
  /** {@link put} of a tree layer, checked as it arrives: nothing unsafe or not canonical is stored. Errors: also `tree-invalid`. */
  putTree(content: AsyncIterable<Uint8Array>, options?: PutOptions): Promise<BlobInfo>;
  /** What the store knows of a blob, or null. */
  stat(digest: Digest): Promise<BlobInfo | null>;
  /** Verified when written and again by `scrub`; pieces of at most 1 MiB. Errors: `blob-not-found`. */
  read(
    digest: Digest,
    options?: CallOptions & { readonly offset?: number; readonly length?: number },
  ): AsyncIterable<Uint8Array>;
  /** The files of a tree layer in path order, without their bytes. Errors: `blob-not-found`, `tree-invalid`. */
  tree(layer: Digest, options?: CallOptions): Promise<readonly TreeEntry[]>;
  /** The bytes of one file of a tree layer. Errors: `blob-not-found`, `file-not-found`. */
  readFile(layer: Digest, path: string, options?: CallOptions): AsyncIterable<Uint8Array>;

  /**
   * The commit point of a publish: record, search entry and dependency edges in one transaction. Atomic, durable when it returns.
   * Repeating a draft (same digest and owner) returns the record that exists, with the draft's bundle if its own was lost. Versions that differ only in build metadata are one version.
   * With `layersLater` the layers may still be on other nodes.
   * Errors: `version-exists`, `blob-not-found`, `usage` on a draft that does not hold together, `limit-exceeded` past 10,000 versions.
   */
  create(draft: AssetDraft, options?: { readonly layersLater?: boolean }): Promise<AssetRecord>;
  get(id: AssetId): Promise<AssetRecord | null>;
  /** All versions of a package, newest first by semver precedence. */
  versions(name: PackageName): Promise<readonly AssetRecord[]>;
  /** Ranked search. Errors: `usage` on a bad cursor or filter. */
  query(query: AssetQuery): Promise<AssetPage>;
  /** Deprecate, yank or restore. Errors: `asset-not-found`. */
  setState(id: AssetId, state: AssetState, reason: string | null): Promise<AssetRecord>;
  /**
   * Who would break if this version went away: published versions that require it, or have it as a peer, in a range that no other version
   * which is not yanked satisfies; and installations that hold it. Optional dependencies do not count. At most 1,000.
   */
  dependents(id: AssetId): Promise<readonly Dependent[]>;
  /** Errors: `asset-not-found`, `has-dependents` (with the list). The blobs go with the next collection. */
  delete(id: AssetId): Promise<void>;
  /** Counts for status and metrics. */
  totals(): Promise<{
    readonly packages: number;
    readonly versions: number;
    readonly blobs: number;
    readonly bytes: number;
  }>;

  /**
   * Makes `root` hold exactly the packages of `lock`, in one atomic switch: a crash leaves the set before or the set after.
   * Trees already there are reused; a lock that is installed already changes nothing. `expectGeneration` refuses with
   * `installation-changed` if somebody else switched meanwhile; 0 stands for "nothing installed".
   * Errors: `lock-invalid`, `usage` on a path that is relative or a file, `blob-not-found`, `installation-changed`, `storage-*`, `cancelled`.
   */
  install(
    root: string,
    lock: Lock,
    options?: CallOptions & { readonly expectGeneration?: number },
  ): Promise<Installation>;
  /**
   * Writes what `install` of the same lock will need beside what is installed, which stays as it is: the slow part, ahead of the decision.
   * What is not installed after all goes with the next change. Errors: as `install`, but for `installation-changed`.
   */
  prepareInstallation(root: string, lock: Lock, options?: CallOptions): Promise<void>;
  /** Heals what a crash left, then tells what is installed; null when nothing ever was. Errors: `usage`, `storage-*`. */
  installation(root: string): Promise<Installation | null>;
  /** What was installed before, newest generation first, as far back as it can be rolled back to (at least three). */
  installationHistory(root: string): Promise<readonly { readonly generation: number; readonly lock: Lock }[]>;
  /** Compares the files of an installation with the store, byte for byte. At most 1,000 differences. Errors: `not-installed`. */
  checkInstallation(
    root: string,
    options?: CallOptions,
  ): Promise<readonly { readonly path: string; readonly problem: string }[]>;

  /** Removes blobs that nothing refers to. Safe while publishes and installs run. */
  collect(options?: CallOptions): Promise<CollectReport>;
  /** Re-hashes every blob; a bad one is set aside, never served. */
  scrub(options?: CallOptions): Promise<{ readonly checked: number; readonly damaged: readonly Digest[] }>;
  /** Free-form metadata that an extension keeps with an asset: at most 256 keys, 64 KiB each. Errors: `asset-not-found`, `limit-exceeded`, `usage`. */
  annotate(id: AssetId, key: string, value: Json): Promise<void>;
  /** What was annotated, by key. Errors: `asset-not-found`. */
  annotations(id: AssetId): Promise<Readonly<Record<string, Json>>>;
}
