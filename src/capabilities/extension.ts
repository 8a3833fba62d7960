import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { AssetId, AssetType, PrivacyLevel } from '../wire/names.ts';
import type { ProofSet } from '../wire/proof.ts';
import type { AssetQuery, Assets } from './assets.ts';
import type { Consensus } from './consensus.ts';
import type { Monitoring } from './monitoring.ts';
import type { Resources } from './resources.ts';
import type { State } from './state.ts';
import type { Transport } from './transport.ts';
import type { Trust } from './trust.ts';
import type { Execution } from './vm.ts';

/** What a host can lend. The key is the name that an extension asks for and an operator grants. */
export interface Capabilities {
  readonly assets: Assets;
  readonly consensus: Consensus;
  readonly trust: Trust;
  readonly vm: Execution;
  readonly monitoring: Monitoring;
  readonly state: State;
  readonly resources: Resources;
  readonly transport: Transport;
}

export type CapabilityName = keyof Capabilities;

export const CAPABILITY_NAMES = [
  'assets',
  'consensus',
  'trust',
  'vm',
  'monitoring',
  'state',
  'resources',
  'transport',
] as const satisfies readonly CapabilityName[];

export interface ExtensionMetadata {
  /** Lower-case words joined by `-` or `.`, for example `catalog`. */
  readonly id: string;
  readonly name: string;
  readonly version: string;
  readonly description: string;
  readonly author: string;
  readonly license: string;
  readonly category:
    | 'asset-library'
    | 'compute-engine'
    | 'storage-provider'
    | 'network-protocol'
    | 'security'
    | 'monitoring'
    | 'developer-tools'
    | 'machine-learning'
    | 'custom';
  /** Semver range of hosts it works with. */
  readonly hypermesh: string;
  readonly dependencies: readonly { readonly id: string; readonly range: string; readonly optional: boolean }[];
  readonly needs: readonly CapabilityName[];
  /** Asset types it registers handlers for. */
  readonly provides: readonly AssetType[];
}

export type ExtensionState = 'initializing' | 'running' | 'paused' | 'shutting-down' | 'stopped' | 'error';

export interface ExtensionLimits {
  readonly concurrentCalls: number;
  readonly callsPerSecond: number;
  readonly callTimeoutMs: number;
  readonly assets: number;
  readonly stateBytes: number;
}

/** Handed to `initialize`. */
export interface ExtensionConfig {
  readonly settings: Json;
  readonly limits: ExtensionLimits;
  readonly granted: readonly CapabilityName[];
  readonly privacy: PrivacyLevel;
  readonly debug: boolean;
}

export interface ExtensionStatus {
  readonly state: ExtensionState;
  readonly health: { readonly kind: 'healthy' } | { readonly kind: 'degraded' | 'unhealthy'; readonly why: string };
  readonly activeOperations: number;
  readonly totalRequests: number;
  readonly errors: number;
  readonly uptimeMs: number;
}

export interface ValidationReport {
  readonly valid: boolean;
  readonly errors: readonly { readonly code: string; readonly message: string }[];
  readonly warnings: readonly { readonly code: string; readonly message: string }[];
}

export interface ExtensionRequest {
  readonly id: string;
  readonly method: string;
  readonly params: Json;
  readonly proofs?: ProofSet;
}

export type ExtensionResponse =
  | { readonly requestId: string; readonly ok: true; readonly data: Json }
  | {
      readonly requestId: string;
      readonly ok: false;
      readonly error: { readonly code: string; readonly message: string };
    };

/** Portable snapshot of what an extension keeps (docs/protocol/state.md). */
export interface ExtensionSnapshot {
  readonly version: number;
  readonly extension: string;
  readonly data: Json;
  /** SHA-256 of the canonical JSON of `data`. */
  readonly checksum: string;
  readonly exportedAtMs: number;
}

/** Specification interface 1: what every extension is. */
export interface HyperMeshExtension {
  metadata(): ExtensionMetadata;
  initialize(config: ExtensionConfig): Promise<void>;
  /** Handlers for the asset types in `metadata().provides`. */
  registerAssets(): Promise<ReadonlyMap<AssetType, AssetExtensionHandler>>;
  /** Called once after registration with the asset manager, when `assets` was granted. */
  extendManager(assets: Assets): Promise<void>;
  handleRequest(request: ExtensionRequest, options?: CallOptions): Promise<ExtensionResponse>;
  status(): Promise<ExtensionStatus>;
  validate(): Promise<ValidationReport>;
  exportState(): Promise<ExtensionSnapshot>;
  /** Checks version and checksum before it changes anything. Errors: `state-invalid`, `state-too-new`. */
  importState(snapshot: ExtensionSnapshot): Promise<void>;
  shutdown(): Promise<void>;
}

export interface AssetCreation {
  readonly name: string;
  readonly version: string;
  readonly description: string;
  readonly metadata: Json;
  /** The content, already in the store. */
  readonly layer: string;
  readonly tags: readonly string[];
  readonly privacy: PrivacyLevel;
}

export type AssetOperation =
  | { readonly kind: 'deploy'; readonly environment: string }
  | { readonly kind: 'execute'; readonly input: Json; readonly timeoutMs?: number }
  | { readonly kind: 'transfer'; readonly newOwner: string; readonly reason: string }
  | { readonly kind: 'share'; readonly with: readonly string[]; readonly expiresAtMs: number | null }
  | { readonly kind: 'validate'; readonly proofs: ProofSet }
  | { readonly kind: 'custom'; readonly payload: Json };

export interface OperationResult {
  readonly ok: boolean;
  readonly data: Json;
}

/** Specification interface 2: behaviour of one asset type. */
export interface AssetExtensionHandler {
  assetType(): AssetType;
  createAsset(spec: AssetCreation): Promise<AssetId>;
  updateAsset(
    id: AssetId,
    update: { readonly description?: string; readonly metadata?: Json; readonly tags?: readonly string[] },
  ): Promise<void>;
  deleteAsset(id: AssetId): Promise<void>;
  queryAssets(query: AssetQuery): Promise<readonly AssetId[]>;
  getMetadata(id: AssetId): Promise<Json>;
  validateAsset(id: AssetId, proofs: ProofSet): Promise<boolean>;
  handleOperation(id: AssetId, operation: AssetOperation): Promise<OperationResult>;
}

/** What is to be published: `catalog.yaml` and a tree layer that is in the store already. */
export interface PackageSpec {
  readonly manifestYaml: string;
  readonly layer: Digest;
}

/** Specification interface 3: an extension that is a library of packages. */
export interface AssetLibraryExtension extends HyperMeshExtension {
  listPackages(filter: AssetQuery): Promise<readonly AssetId[]>;
  getPackage(id: AssetId): Promise<Json>;
  installPackage(id: AssetId, options: { readonly root: string }): Promise<Json>;
  uninstallPackage(id: AssetId, options: { readonly root: string }): Promise<void>;
  updatePackage(id: AssetId, range: string, options: { readonly root: string }): Promise<Json>;
  searchPackages(query: string, options: AssetQuery): Promise<readonly AssetId[]>;
  publishPackage(spec: PackageSpec, options?: CallOptions): Promise<unknown>;
  verifyPackage(id: AssetId): Promise<Json>;
}

/**
 * The form in which an extension is written. `needs` decides the type of `lent`: touching what was not asked for does not compile,
 * and what was not granted stops the load with `capability-not-granted`.
 */
export interface ExtensionDefinition<
  Needs extends CapabilityName = CapabilityName,
  E extends HyperMeshExtension = HyperMeshExtension,
> {
  readonly metadata: Omit<ExtensionMetadata, 'needs'>;
  readonly needs: readonly Needs[];
  create(lent: Pick<Capabilities, Needs>): E;
}

export function defineExtension<const Needs extends CapabilityName, E extends HyperMeshExtension>(
  definition: ExtensionDefinition<Needs, E>,
): ExtensionDefinition<Needs, E> {
  return definition;
}
