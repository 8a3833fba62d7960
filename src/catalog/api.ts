import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type {
  AssetPage,
  AssetQuery,
  AssetRecord,
  AssetState,
  BlobInfo,
  Dependent,
  InstalledPackage,
} from '../capabilities/assets.ts';
import type { ProofVerdict } from '../capabilities/consensus.ts';
import type { Code, Distribution, SyncSummary } from '../capabilities/transport.ts';
import type { RunResult, SandboxPolicy } from '../capabilities/vm.ts';
import type { Bundle } from '../wire/bundle.ts';
import type { Lock } from '../wire/lock.ts';
import type { PackageManifest } from '../wire/manifest.ts';
import type { AssetId, PackageName } from '../wire/names.ts';
import type { Envelope } from '../wire/signature.ts';
import type { RunLimits } from './policy.ts';

/** Ready to be signed: content is in the store, the manifest is checked. */
export interface StagedPackage {
  readonly ref: string;
  /** Digest of the OCI manifest. */
  readonly digest: Digest;
  /** Digest of the config blob. */
  readonly config: Digest;
  readonly id: AssetId;
  readonly manifest: PackageManifest;
  readonly layer: BlobInfo;
}

export interface SignedPackage extends StagedPackage {
  readonly envelope: Envelope;
}

export interface PublishResult {
  readonly id: AssetId;
  readonly name: PackageName;
  readonly version: string;
  readonly digest: Digest;
  /** Digest of the bundle in the store. */
  readonly bundle: Digest;
  readonly size: number;
  readonly shards: { readonly total: number; readonly reused: number; readonly bytesReused: number };
  readonly proofs: readonly ProofVerdict[];
  /** False when exactly this package was published before: nothing changed, but for a bundle that had been lost. */
  readonly created: boolean;
}

export interface InstallResult {
  readonly root: string;
  readonly generation: number;
  /** Everything in the installation that this call added or changed. */
  readonly installed: readonly InstalledPackage[];
  readonly unchanged: readonly InstalledPackage[];
  readonly removed: readonly string[];
  readonly lock: Lock;
}

export interface VerifyResult {
  readonly ref: string;
  readonly digest: Digest;
  readonly offline: boolean;
  /** One row per statement, in the order checked. */
  readonly checks: readonly { readonly check: string; readonly ok: true; readonly says: string }[];
  readonly publisher: { readonly subject: string; readonly keyId: string; readonly fingerprint: string };
  readonly networkId: Digest;
}

export interface CatalogRun extends RunResult {
  readonly ref: string;
  readonly id: AssetId;
  /** What held; `fuel` in decimal. */
  readonly policy: Omit<SandboxPolicy, 'fuel'> & { readonly fuel?: string };
}

/** What the catalog does for people; the HTTP API, the CLI and the programmatic API are thin faces of this. */
export interface Catalog {
  /** Streams one blob in (a tree layer as a tar of docs/protocol/tree.md). Refuses an unsafe or non-canonical tree. */
  stageLayer(tree: AsyncIterable<Uint8Array>, options?: CallOptions): Promise<BlobInfo>;
  /** Builds manifest and config from `catalog.yaml` and a staged layer. Errors: `manifest-*`, `entry-missing`, `blob-not-found`. */
  stagePackage(manifestYaml: string, layer: Digest, options?: CallOptions): Promise<StagedPackage>;
  signPackage(staged: StagedPackage, options?: CallOptions): Promise<SignedPackage>;
  /** Prove, admit, commit. Safe to repeat. Errors: `version-exists`, `proof-*`, `stake-insufficient`, `dependency-cycle`. */
  publishPackage(signed: SignedPackage, options?: CallOptions): Promise<PublishResult>;

  search(query: AssetQuery): Promise<AssetPage>;
  /** The newest version in the range that is not yanked. Errors: `package-not-found`, `version-not-found`. */
  resolve(ref: string): Promise<AssetRecord>;
  info(ref: string): Promise<{
    readonly record: AssetRecord;
    readonly versions: readonly AssetRecord[];
    readonly dependents: readonly Dependent[];
  }>;

  /** Adds packages to the installation at `root` (absolute; the node's own when absent). With `locked`, exactly the lock, or `lock-outdated`. */
  install(
    refs: readonly string[],
    options?: CallOptions & { readonly root?: string; readonly locked?: boolean; readonly lock?: Lock },
  ): Promise<InstallResult>;
  uninstall(names: readonly PackageName[], options?: CallOptions & { readonly root?: string }): Promise<InstallResult>;
  /** Newest versions inside the ranges asked for; all packages when `names` is empty. */
  update(names: readonly PackageName[], options?: CallOptions & { readonly root?: string }): Promise<InstallResult>;
  /** Back to the previous generation. */
  rollback(options?: CallOptions & { readonly root?: string }): Promise<InstallResult>;
  installed(root?: string): Promise<readonly InstalledPackage[]>;

  run(
    ref: string,
    input: Json,
    options?: CallOptions & {
      readonly args?: readonly string[];
      readonly environment?: Readonly<Record<string, string>>;
      readonly limits?: RunLimits;
    },
  ): Promise<CatalogRun>;

  /**
   * The layer of a package, for who unpacks it on this machine: verified, and access to it proved. Errors: `package-not-found`, `version-not-found`,
   * `signature-*`, `certificate-*`, `proof-*`, `endorsement-invalid`, `log-invalid`, `content-unavailable`.
   */
  open(
    ref: string,
    options?: CallOptions,
  ): Promise<{ readonly ref: string; readonly id: AssetId; readonly layer: Digest }>;

  /** The bundle of a published package: everything needed to check it offline. */
  bundle(ref: string): Promise<Bundle>;
  /** Checks a published package and its content, or a bundle alone with `offline`. */
  verify(
    target: { readonly ref: string } | { readonly bundle: Bundle },
    options?: CallOptions & { readonly offline?: boolean },
  ): Promise<VerifyResult>;

  /** Compares records with the other nodes of the network now. Errors: `network-unreachable`, `cancelled`. */
  sync(options?: CallOptions): Promise<SyncSummary>;
  /**
   * Waits until as many nodes as the package asks for hold its content, or with `code` as many as there are fragments one of these.
   * Errors: `network-unreachable`, `asset-not-found`, `cancelled`; with `code` also `usage`, `content-unavailable`, `storage-*`.
   */
  distribute(ref: string, options?: CallOptions & { readonly code?: Code }): Promise<Distribution>;

  setState(ref: string, state: AssetState, reason: string | null): Promise<AssetRecord>;
  delete(ref: string): Promise<AssetRecord>;
}
