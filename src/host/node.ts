import type { CallOptions } from '../base/call.ts';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { Consensus, SpaceStatus } from '../capabilities/consensus.ts';
import type { MetricSample, Monitoring } from '../capabilities/monitoring.ts';
import type { Resources, ResourceUsage } from '../capabilities/resources.ts';
import type { Trust } from '../capabilities/trust.ts';
import type { Execution } from '../capabilities/vm.ts';
import type { OperationKind, Requirements } from '../wire/proof.ts';
import type { Extensions, ExtensionsOptions, LoadedSummary } from './extensions.ts';
import type { Home } from './home.ts';

/** Everything that a node is made from. Only `home` is required. */
export interface NodeConfig {
  /** Folder of the node; made when it is not there. */
  readonly home: string;
  /** Opens the key store; without it the keys lie behind a key file that only the owner can read. */
  readonly passphrase?: string;
  /** Common name in this home's certificates. */
  readonly subject?: string;
  readonly clock?: Clock;
  /** Numbers of the network that a new home founds. Read only when its genesis is made. */
  readonly network?: {
    readonly requirements?: Partial<Record<OperationKind, Requirements>>;
    /** The standing space commitment: bytes, and hash iterations per label. */
    readonly space?: { readonly bytes: number; readonly iterations?: number };
    /** Tokens of the founding publisher. */
    readonly stakeInitial?: number;
  };
  /** Worker threads for proofs; all processors by default. */
  readonly threads?: number;
  readonly extensions?: ExtensionsOptions;
}

export interface NodeStatus {
  readonly version: string;
  readonly home: string;
  readonly pid: number;
  readonly startedAtMs: number;
  readonly uptimeMs: number;
  readonly networkId: Digest;
  /** Key id and subject that this home publishes as. */
  readonly publisher: { readonly keyId: string; readonly subject: string; readonly notAfterMs: number };
  readonly totals: Awaited<ReturnType<Assets['totals']>>;
  readonly space: SpaceStatus;
  readonly resources: ResourceUsage;
  readonly extensions: readonly LoadedSummary[];
}

/** Monitoring as the node's owner sees it. */
export interface NodeMonitoring extends Monitoring {
  /** The same instruments under another source. */
  for(source: string): Monitoring;
  /** Exposition text of all instruments, for a scrape. */
  prometheus(): Promise<string>;
}

/** One running node: the subsystems as capabilities, the extensions, and what concerns them all. */
export interface HostNode extends AsyncDisposable {
  readonly home: Home;
  readonly assets: Assets;
  readonly trust: Trust;
  readonly consensus: Consensus;
  readonly vm: Execution;
  readonly monitoring: NodeMonitoring;
  readonly resources: Resources;
  readonly extensions: Extensions;
  /** The whole node as one verified, versioned stream (docs/protocol/state-export.md). */
  exportState(options?: CallOptions): AsyncIterable<Uint8Array>;
  /** Verifies the whole stream before anything is touched. Errors: `state-invalid`, `state-too-new`. */
  importState(stream: AsyncIterable<Uint8Array>, options?: CallOptions): Promise<void>;
  getMetrics(pattern: string): Promise<readonly MetricSample[]>;
  status(): Promise<NodeStatus>;
}
