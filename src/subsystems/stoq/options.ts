import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import type { ContentExchange } from '../../capabilities/content.ts';
import type { ContentUse } from '../../capabilities/transport.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { AskOptions } from './ask.ts';
import type { Method, NodeId } from './channel/index.ts';
import type { EpochRecords } from './records/epochs.ts';
import type { TermsRecord } from './records/terms.ts';

export interface StoqLimits {
  readonly nodesMax: number;
  /** Records that wait to be judged. */
  readonly arrivalsMax: number;
  /** Bytes per second that leave and arrive; null for no limit. */
  readonly uploadBytesPerSecond: number | null;
  readonly downloadBytesPerSecond: number | null;
  /** Resources that are replicated to this node at the same time. */
  readonly bringingMax: number;
}

/** Times of the overlay; shorter ones for small networks and tests. */
export interface Pace {
  readonly probeMs: number;
  /** How long a node may be silent before its copies are made elsewhere. */
  readonly patienceMs: number;
  readonly syncMs: number;
  readonly replicationMs: number;
  /** How long a fragment of coded content may be missed before it is made again. */
  readonly fragmentPatienceMs: number;
}

export interface StoqOptions {
  /** Holds `stoq.db`. */
  readonly directory: string;
  readonly clock: Clock;
  /** Methods of other parts that nodes may call. */
  readonly methods?: ReadonlyMap<string, Method>;
  /** A node that ends with its one command neither listens nor keeps copies for others. */
  readonly stays: boolean;
  /** `host:port` that others are told to connect to, where this machine cannot know by itself. */
  readonly advertise?: readonly string[];
  /** Looks for nodes of the same network on the local link, and answers those who look. Default true. */
  readonly lan?: boolean;
  readonly log?: (level: 'info' | 'warn', message: string, details?: Readonly<Record<string, unknown>>) => void;
  readonly limits?: Partial<StoqLimits>;
  readonly pace?: Partial<Pace>;
}

/** Who may take content to use it, and how this home gets to be one of those. */
export interface ContentAccess {
  /** Whether that publisher showed here a moment ago that it may use this resource. */
  has(publisher: string, resource: Digest): boolean;
  /** Shows it to another node, over its methods `access/…`. */
  gain(
    node: NodeId,
    use: ContentUse,
    ask: (method: string, body: Uint8Array, options: AskOptions) => Promise<Uint8Array>,
  ): Promise<void>;
}

/** What STOQ is given of the home. */
export interface StoqLent {
  /** Key id of this home's node, also while its certificates have run out. */
  readonly node: NodeId;
  readonly trust: Pick<Trust, 'identity' | 'sign' | 'verify' | 'anchor'>;
  readonly network: () => Promise<Digest>;
  readonly content: ContentExchange;
  readonly read: (blob: Digest) => AsyncIterable<Uint8Array>;
  readonly access: ContentAccess;
  readonly epochs: EpochRecords;
  readonly terms: TermsRecord;
  /** Nodes that are always to be found: the committee of the network. */
  readonly seats: () => readonly { readonly node: NodeId; readonly addresses: readonly string[] }[];
  /** A node was banned for what it did. */
  readonly banned?: (node: NodeId) => void;
}

/** The options with everything that has a default. */
export interface Settings extends StoqOptions {
  readonly limits: StoqLimits;
  readonly pace: Pace;
}

const LIMITS: StoqLimits = {
  nodesMax: 10_000,
  arrivalsMax: 20_000,
  uploadBytesPerSecond: null,
  downloadBytesPerSecond: null,
  bringingMax: 4,
};

const PACE: Pace = {
  probeMs: 2_000,
  patienceMs: 60_000,
  syncMs: 20_000,
  replicationMs: 300_000,
  fragmentPatienceMs: 4 * 3_600_000,
};

export function settingsOf(options: StoqOptions): Settings {
  return { ...options, limits: { ...LIMITS, ...options.limits }, pace: { ...PACE, ...options.pace } };
}
