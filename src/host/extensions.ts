import type { CallOptions } from '../base/call.ts';
import type { Json } from '../base/json.ts';
import type {
  AssetExtensionHandler,
  CapabilityName,
  ExtensionDefinition,
  ExtensionLimits,
  ExtensionMetadata,
  ExtensionRequest,
  ExtensionResponse,
  ExtensionState,
  ExtensionStatus,
  HyperMeshExtension,
} from '../capabilities/extension.ts';
import type { AssetType, PrivacyLevel } from '../wire/names.ts';

export interface ExtensionsOptions {
  /** At most this many loaded at once. Default 100. */
  readonly extensionsMax?: number;
  /** For one call into an extension, unless the operation is a long one. Default 300,000. */
  readonly operationTimeoutMs?: number;
  /** For `shutdown()` of one extension. Default 10,000. */
  readonly shutdownTimeoutMs?: number;
  /** Refuse folders without a signature by one of `trustedPublishers` (key ids). */
  readonly requireSignature?: boolean;
  readonly trustedPublishers?: readonly string[];
}

export interface LoadOptions {
  /** What the operator grants. An extension that needs more is refused. */
  readonly grants: readonly CapabilityName[];
  readonly settings?: Json;
  readonly limits?: Partial<ExtensionLimits>;
  readonly privacy?: PrivacyLevel;
  readonly debug?: boolean;
  /** A cell is a process of its own under Node's permission model; only folders run in one. Default `in-process`. */
  readonly mode?: 'in-process' | 'cell';
}

export interface LoadedSummary {
  readonly id: string;
  readonly version: string;
  readonly state: ExtensionState;
  readonly mode: 'in-process' | 'cell';
  readonly granted: readonly CapabilityName[];
  readonly provides: readonly AssetType[];
}

export interface Extensions {
  /** Loads a definition, or the folder of an extension (in either mode); resolves when it runs. The result refuses every call once it is paused or unloaded. */
  load<E extends HyperMeshExtension>(
    // biome-ignore lint/suspicious/noExplicitAny: a definition of any needs
    source: ExtensionDefinition<any, E> | { readonly folder: string },
    options: LoadOptions,
  ): Promise<E>;
  pause(id: string): Promise<void>;
  resume(id: string): Promise<void>;
  unload(id: string): Promise<void>;
  route(extension: string, request: ExtensionRequest, options?: CallOptions): Promise<ExtensionResponse>;
  handlerFor(type: AssetType): AssetExtensionHandler | null;
  list(): readonly LoadedSummary[];
  status(id: string): Promise<ExtensionStatus>;
  metadata(id: string): ExtensionMetadata;
}
