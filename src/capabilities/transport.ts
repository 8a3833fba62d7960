import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Use } from '../wire/access.ts';
import type { BlobInfo } from './assets.ts';
import type { BlobDescription } from './content.ts';

/** Content that the network is to keep: what nodes announce, replicate and fetch. */
export interface Resource {
  /** Digest of what describes it, for a package its OCI manifest. */
  readonly id: Digest;
  readonly blobs: readonly BlobDescription[];
  /** Nodes that are to hold it. */
  readonly replication: number;
  /** This node keeps its copy whatever others hold, as the one who published it does. */
  readonly pinned?: boolean;
}

/** What content is fetched for. */
export interface ContentUse {
  readonly kind: Use;
  /** All resources that are taken with it. */
  readonly resources: readonly Digest[];
}

/** `unknown`: heard of, and not yet spoken to. */
export type PeerState = 'self' | 'unknown' | 'alive' | 'suspect' | 'away' | 'banned';

export interface PeerInfo {
  /** Key id of the node. */
  readonly node: string;
  readonly addresses: readonly string[];
  readonly state: PeerState;
  /** When it last gave a sign of life to this node; null when it never did. */
  readonly seenAtMs: number | null;
  /** Round trip of the open connection. */
  readonly rttMs: number | null;
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** Why it was banned, and when. */
  readonly reason: string | null;
  readonly bannedAtMs: number | null;
}

/** A node that this one does not speak to, until its owner forgives it or the home leaves the network. */
export interface Ban {
  readonly node: string;
  readonly reason: string;
  readonly bannedAtMs: number;
  /** Of the evidence, as much as is kept. */
  readonly evidenceBytes: number;
}

/** One blob on its way here, or to one other node. */
export interface Transfer {
  readonly direction: 'in' | 'out';
  readonly blob: Digest;
  /** What it belongs to; of what leaves, everything that has this blob. */
  readonly resources: readonly Digest[];
  /** Bytes of it that are here; of what leaves, those that this node gave, which may be a part of what the other one needs. */
  readonly done: number;
  readonly total: number;
  readonly bytesPerSecond: number;
  /** Those that give at the moment, or the one that is given to. */
  readonly peers: readonly TransferPeer[];
}

export interface TransferPeer {
  readonly node: string;
  /** In this transfer, by this node; of what arrives, those that were verified. */
  readonly bytes: number;
  readonly bytesPerSecond: number;
}

export interface TransportStatus {
  /** `alone`: the home is in no network of several. `offline`: it is, and nobody answers. */
  readonly state: 'alone' | 'offline' | 'online';
  readonly node: string;
  /** Where it answers other nodes; none when it does not listen. */
  readonly addresses: readonly string[];
  /** Why it does not listen although it should, in one sentence. */
  readonly problem: string | null;
  /** `alive`: that answered when they were last asked. */
  readonly peers: { readonly known: number; readonly alive: number };
  readonly transfers: readonly Transfer[];
  readonly resources: { readonly known: number; readonly held: number; readonly underReplicated: number };
  /**
   * Content that was coded: packages, fragments that are kept here, and fragments that nobody is known to hold, of what this node has a part of.
   */
  readonly coded: { readonly packages: number; readonly fragments: number; readonly missing: number };
  /** Records that wait to be judged. */
  readonly arrivals: number;
}

/** A record that another node vouched for; kept until it is judged. */
export interface Arrival {
  readonly id: Digest;
  readonly bytes: Uint8Array;
  readonly from: string;
}

/**
 * `refused`: it breaks the rules, which costs whoever vouched for it its place. `unwanted`: it does not count here, and nobody is to blame.
 * `later`: it cannot be judged yet, and is offered again after a while.
 */
export type Verdict = 'accepted' | 'refused' | 'unwanted' | 'later';

export interface SyncSummary {
  /** Nodes that were compared with, and those that could not be reached. */
  readonly nodes: number;
  readonly unreachable: number;
  readonly received: number;
  readonly offered: number;
}

export interface Distribution {
  readonly id: Digest;
  readonly wanted: number;
  /** Nodes that say they hold all of it; of what was coded, nodes that keep a fragment. */
  readonly holders: readonly string[];
  /** Of what was coded. */
  readonly fragments?: readonly CodedFragment[];
}

export interface CodedFragment {
  readonly blob: Digest;
  readonly index: number;
  /** Who keeps it; null: nobody yet. */
  readonly node: string | null;
}

/** Any `k` of `k + m` fragments restore the content. */
export interface Code {
  readonly k: number;
  readonly m: number;
}

/** STOQ: other nodes of the network, the records that all of them share, and content that some of them hold. */
export interface Transport {
  status(): Promise<TransportStatus>;
  peers(): Promise<readonly PeerInfo[]>;
  /** The specification's discover_peers: compares lists of nodes with some of them, then returns who answers. */
  discoverPeers(options?: CallOptions): Promise<readonly PeerInfo[]>;
  /**
   * Makes a record of this home everybody's: durable when it returns, then told to others. Safe to repeat.
   * Errors: `limit-exceeded` past 8 MiB, `storage-*`.
   */
  broadcast(bytes: Uint8Array): Promise<Digest>;
  /** What other nodes brought, each again at the next call until it is judged. Ends when `signal` aborts. */
  arrivals(options?: CallOptions): AsyncIterable<Arrival>;
  /** Does nothing when the record does not wait for it. */
  judge(id: Digest, verdict: Verdict): Promise<void>;
  /** The record is void: what it named is deleted. It stays known, so that it does not come back. */
  retire(id: Digest): Promise<void>;
  /** Compares records with every node that can be reached, and fetches what is missing. Errors: `cancelled`. */
  sync(options?: CallOptions): Promise<SyncSummary>;
  /** The specification's announce (ResourceAnnouncement): from now on this node holds the resource if it is one of its places. Safe to repeat. */
  announce(resource: Resource): Promise<void>;
  /** Nobody needs to hold it any more. */
  withdraw(id: Digest): Promise<void>;
  /**
   * Brings a blob from whoever holds it, several at once, every shard checked. Nothing to do when it is here. With `use`, each node that gives is
   * shown a proof of access first, one for all packages of the use; without, only where it asks for one.
   * Errors: `content-unavailable`, `cancelled`, `storage-*`.
   */
  fetch(
    resource: Digest,
    blob: BlobDescription,
    options?: CallOptions & { readonly use?: ContentUse },
  ): Promise<BlobInfo>;
  /**
   * Sees to it that a resource has its copies, and tells where they are. With `code`, the content, which has to be here, is kept as fragments in their
   * place. Errors: `cancelled`; with `code` also `usage`, `content-unavailable`, `network-unreachable`, `storage-*`.
   */
  distribute(id: Digest, options?: CallOptions & { readonly code?: Code }): Promise<Distribution>;
}
