import type { CallOptions } from '../base/call.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { Consensus } from '../capabilities/consensus.ts';
import type { Membership } from '../capabilities/membership.ts';
import type { Monitoring } from '../capabilities/monitoring.ts';
import type { Trust } from '../capabilities/trust.ts';
import type { Catalog } from '../catalog/api.ts';
import type { HostNode } from '../host/node.ts';
import type { NodeStatus } from '../wire/http.ts';

/** What the API needs of the node behind it. */
export interface ApiNode {
  readonly catalog: Catalog;
  readonly assets: Pick<Assets, 'read' | 'collect' | 'scrub'>;
  readonly trust: Pick<Trust, 'identity' | 'certificates' | 'renew' | 'revoke' | 'anchor' | 'logHead'>;
  readonly consensus: Pick<
    Consensus,
    | 'requirements'
    | 'genesis'
    | 'challenge'
    | 'prove'
    | 'verify'
    | 'stake'
    | 'lockStake'
    | 'unlockStake'
    | 'transferStake'
    | 'space'
    | 'commitSpace'
  >;
  readonly membership: Membership;
  readonly transport: Pick<HostNode['transport'], 'peers' | 'discoverPeers' | 'bans' | 'ban' | 'forgive'>;
  readonly vm: Pick<
    HostNode['vm'],
    'runtimes' | 'addRuntime' | 'removeRuntime' | 'exportRuntime' | 'grants' | 'grant' | 'revoke'
  >;
  readonly monitoring: Pick<Monitoring, 'metrics' | 'events'> & {
    /** Metrics in the text format of Prometheus. */
    prometheus(): Promise<string>;
    /** The sequence numbers of the oldest and the newest event that are kept. */
    health(): Promise<{ readonly events: { readonly oldest: number; readonly last: number } }>;
  };
  status(): Promise<Omit<NodeStatus, 'runtime' | 'memory'>>;
  exportState(options?: CallOptions): AsyncIterable<Uint8Array>;
  importState(stream: AsyncIterable<Uint8Array>, options?: CallOptions): Promise<void>;
  /** Asks the process to stop gracefully; returns at once. */
  stop(): void;
}

/** Where the API writes what must not reach a client. */
export interface ApiLog {
  info(fields: object, message: string): void;
  error(fields: object, message: string): void;
}
