import { networkInterfaces } from 'node:os';
import { z } from 'zod';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { BlobInfo } from '../../capabilities/assets.ts';
import type { BlobDescription, ContentExchange } from '../../capabilities/content.ts';
import type {
  Arrival,
  Distribution,
  PeerInfo,
  PeerState,
  Resource,
  SyncSummary,
  Transfer,
  Transport,
  TransportStatus,
  Verdict,
} from '../../capabilities/transport.ts';
import type { Trust } from '../../capabilities/trust.ts';
import {
  decodeSignedNodeRecord,
  encodeNodeRecord,
  NODE_RECORD_LIMITS,
  NODE_RECORD_TYPE,
  type NodeRecord,
} from '../../wire/node-record.ts';
import { OVERLAY_BYTES_MAX } from '../../wire/overlay.ts';
import { RECORDS_LIMITS } from '../../wire/records.ts';
import { encodeSigned } from '../../wire/signed.ts';
import { Arrivals } from './arrivals.ts';
import {
  type Answer,
  type Ask,
  type AskOptions,
  every,
  promptly,
  type Surroundings,
  sample,
  systemTimers,
} from './ask.ts';
import { Book } from './book.ts';
import type { Channel, Connection, Method, NodeId } from './channel/index.ts';
import type { Downloader } from './content/index.ts';
import type { Directory } from './overlay/directory.ts';
import type { Liveness } from './overlay/liveness.ts';
import type { RecordExchange } from './records/exchange.ts';
import type { SyncRounds } from './records/rounds.ts';
import type { Replication } from './replication.ts';

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
  /** Times of the overlay; shorter ones for small networks and tests. */
  readonly pace?: Partial<Pace>;
}

export interface Pace {
  readonly probeMs: number;
  /** How long a node may be silent before its copies are made elsewhere. */
  readonly patienceMs: number;
  readonly syncMs: number;
  readonly replicationMs: number;
}

const LIMITS: StoqLimits = {
  nodesMax: 10_000,
  arrivalsMax: 20_000,
  uploadBytesPerSecond: null,
  downloadBytesPerSecond: null,
  bringingMax: 4,
};

const PACE: Pace = { probeMs: 2_000, patienceMs: 60_000, syncMs: 20_000, replicationMs: 300_000 };

export const DEFAULT_LISTEN = '[::]:9292';

/** A node record is made anew after this long, and when addresses change. */
const RECORD_RENEW_MS = 86_400_000;
const ADDRESSES_LOOK_MS = 30_000;
const CONNECT_TIMEOUT_MS = 8_000;
/** An address that did not work is not tried again for so long. */
const ADDRESS_REST_MS = 2_000;
/** Nodes that are asked for a blob. */
const SOURCES_MAX = 32;
/** Once one holder is connected, others are waited for so long; they are there when they are looked for again. */
const CONNECT_MOMENT_MS = 500;

/** Nodes of the local link that are remembered. */
const NEARBY_MAX = 256;
/** Nodes up to which a new one is looked at as soon as it is known. */
const GREETED_MAX = 64;

/** How this home takes part in its network. */
interface Entry {
  readonly networkId: string;
  /** `host:port`, where other nodes can connect. */
  readonly listen: string;
}

const entrySetting: z.ZodType<Entry> = z.object({ networkId: z.string(), listen: z.string() });

interface Lent {
  /** Key id of this home's node, also while its certificates have run out. */
  readonly node: NodeId;
  readonly trust: Pick<Trust, 'identity' | 'sign' | 'verify' | 'anchor'>;
  readonly network: () => Promise<Digest>;
  readonly content: ContentExchange;
  readonly read: (blob: Digest) => AsyncIterable<Uint8Array>;
  /** Nodes that are always to be found: the committee of the network. */
  readonly seats: () => readonly { readonly node: NodeId; readonly addresses: readonly string[] }[];
}

type Parts = typeof import('./parts.ts');

/** The code that sockets need: a home that is alone has none of it in memory. */
function parts(): Promise<Parts> {
  return import('./parts.ts');
}

/** Opens STOQ for a home; silent until {@link Stoq.openNetwork}. Errors: `storage-*`, `home-too-new`. */
export async function openTransport(lent: Lent, options: StoqOptions): Promise<Stoq> {
  const book = new Book(options.directory);
  try {
    return new Stoq(lent, book, lent.node, options);
  } catch (error) {
    await book[Symbol.asyncDispose]();
    throw error;
  }
}

/** What is there only while the home is in a network of several. */
interface Presence extends AsyncDisposable {
  readonly networkId: Digest;
  readonly channel: Channel;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly exchange: RecordExchange;
  readonly rounds: SyncRounds;
  readonly replication: Replication;
  readonly downloader: Downloader;
  readonly listen: string;
  listening: { readonly host: string; readonly port: number } | null;
  /** Why it does not listen although it should. */
  problem: HyperMeshError | null;
}

export class Stoq implements Transport, AsyncDisposable {
  #node: NodeId;
  readonly #lent: Lent;
  readonly #book: Book;
  readonly #options: StoqOptions;
  readonly #limits: StoqLimits;
  readonly #pace: Pace;
  readonly #arrivals: Arrivals;
  readonly #transfers = new Set<Transfer & { done: number }>();
  /** Addresses that did not work a moment ago, and why. */
  readonly #resting = new Map<string, { readonly untilMs: number; readonly error: unknown }>();
  /** Where nodes said they are on the local link. */
  readonly #nearby = new Map<NodeId, string>();
  /** Of the committee, as of the last look. */
  #seats: ReturnType<Lent['seats']> = [];
  #bans: ReadonlyMap<NodeId, string>;
  #presence: Presence | null = null;
  #changing: Promise<unknown> = Promise.resolve();

  constructor(lent: Lent, book: Book, node: NodeId, options: StoqOptions) {
    this.#node = node;
    this.#lent = lent;
    this.#book = book;
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#pace = { ...PACE, ...options.pace };
    this.#bans = new Map(book.bans().map(({ node: banned, why }) => [banned, why]));
    this.#arrivals = new Arrivals(
      { book, clock: options.clock, content: lent.content, read: lent.read },
      {
        waitingMax: this.#limits.arrivalsMax,
        accepted: (id, from) => this.#presence?.exchange.accepted('records', id, from ?? undefined),
        retired: (id) => this.#presence?.exchange.known('records', id),
        accuse: (from, why, bytes) => this.#accuse(from, why, bytes),
      },
    );
  }

  // Entering and leaving a network

  /**
   * Takes part in the home's network from now on, also after a restart; what is remembered of another network is forgotten. `listen` is kept for the
   * next time. When the port that was asked for is taken nothing changes; one that was kept is tried again later.
   * Errors: `config-invalid`, `address-taken`, `network-unreachable`.
   */
  async openNetwork(listen?: string): Promise<void> {
    if (listen !== undefined) splitAddress(listen);
    const networkId = await this.#lent.network();
    await this.#exclusive(async () => {
      // The keys of the home are others after a state import.
      const { keyId } = await this.#lent.trust.identity('node');
      const before = this.#entry();
      const isSame = before?.networkId === networkId && keyId === this.#node;
      this.#node = keyId;
      if (!isSame) await this.#leave();
      this.#keepOnly(networkId);
      if (isSame && this.#presence !== null && (listen === undefined || listen === before.listen)) return;
      const entry: Entry = { networkId, listen: listen ?? (isSame ? before.listen : DEFAULT_LISTEN) };
      await this.#enter(entry);
      const problem = this.#presence?.problem ?? null;
      if (listen !== undefined && problem !== null) {
        await this.#leave();
        if (isSame) await this.#enter(before);
        throw problem;
      }
      this.#book.set('entry', JSON.stringify(entry));
    });
  }

  /** Takes no part any more, and forgets the network's records. */
  async closeNetwork(): Promise<void> {
    await this.#exclusive(() => this.#forgetNetwork());
  }

  /** Key id of this home's node. */
  get node(): NodeId {
    return this.#node;
  }

  /** Whether this node takes part in a network of several now. */
  get isOpen(): boolean {
    return this.#presence !== null;
  }

  /** Addresses that an invite can name. */
  addresses(): readonly string[] {
    const listening = this.#presence?.listening ?? null;
    return listening === null ? [] : (this.#options.advertise ?? reachableAt(listening));
  }

  readonly ask: Ask = async (to, method, body, options) => {
    const presence = this.#present();
    const open = this.#openTo(presence, to);
    const answer = await this.#request(presence, to, method, body, options).catch((error: unknown) => {
      // It was about to end, or the other side closed it: what counts is whether a new one can be had. Every method can be asked twice.
      if (open === undefined || !isCoded(error, 'peer-unreachable') || options.signal?.aborted) throw error;
      return this.#request(presence, to, method, body, options);
    });
    presence.liveness.heard(to);
    return answer;
  };

  /**
   * A conversation of somebody who says nothing about himself, with one node that has to prove to be `expect`, at the first address that works.
   * Errors: those of the last address, and what the other side refuses with.
   */
  async asGuest<T>(
    networkId: Digest,
    expect: NodeId,
    addresses: readonly string[],
    talk: (request: Connection['request']) => Promise<T>,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<T> {
    await using channel = this.#openChannel(await parts(), networkId, new Map());
    const connection = await firstWorking(addresses, (address) =>
      patiently(options.signal, (signal) => channel.connect(address, { expect, guest: true, networkId, signal })),
    );
    // Awaited: the channel closes when this returns.
    return await talk((method, body, limits) => connection.request(method, body, { ...options, ...limits }));
  }

  /** A node is no member any more. */
  expel(node: NodeId): void {
    this.#presence?.directory.forget(node);
    this.#book.forgetNode(node);
    this.#closeConnections(node);
  }

  /** Errors: `usage` when no banned node has that id. */
  async forgive(node: NodeId): Promise<void> {
    if (!this.#book.forgive(node)) {
      throw new HyperMeshError('usage', `No banned node has the id ${node.slice(0, 64)}.`, {
        hint: '`hypermesh peers` lists those that are.',
      });
    }
    this.#bans = new Map(this.#book.bans().map(({ node: banned, why }) => [banned, why]));
    this.#presence?.downloader.forgive(node);
    this.#presence?.directory.refresh();
  }

  // What is lent

  async status(): Promise<TransportStatus> {
    const presence = this.#presence;
    const alive = presence === null ? 0 : this.#alive(presence).length;
    return {
      state: !this.isOpen ? 'alone' : alive > 0 ? 'online' : 'offline',
      node: this.node,
      addresses: this.addresses(),
      problem: presence?.problem?.message ?? null,
      peers: { known: presence === null ? 0 : presence.directory.others().length, alive },
      transfers: [...this.#transfers].map((transfer) => ({ ...transfer })),
      resources: { ...this.#book.resourceTotals(), underReplicated: presence?.replication.underReplicated() ?? 0 },
      arrivals: this.#book.arrivals(),
    };
  }

  async peers(): Promise<readonly PeerInfo[]> {
    const presence = this.#presence;
    if (presence === null) return [];
    const ids = new Set([this.node, ...[...presence.directory.nodes()].map(({ node }) => node), ...this.#bans.keys()]);
    for (const { remote } of presence.channel.connections()) if (remote.node !== null) ids.add(remote.node);
    const connections = presence.channel.connections();
    return [...ids].map((node): PeerInfo => {
      const open = connections.filter(({ remote }) => remote.node === node);
      return {
        node,
        addresses: node === this.node ? this.addresses() : (presence.directory.get(node)?.addresses ?? []),
        state: this.#stateOf(presence, node),
        seenAtMs: presence.liveness.seenAtMs(node),
        rttMs: open.find(({ rttMs }) => rttMs !== null)?.rttMs ?? null,
        bytesIn: open.reduce((sum, { bytesIn }) => sum + bytesIn, 0),
        bytesOut: open.reduce((sum, { bytesOut }) => sum + bytesOut, 0),
        reason: this.#bans.get(node) ?? null,
      };
    });
  }

  async discoverPeers(options: CallOptions = {}): Promise<readonly PeerInfo[]> {
    const presence = this.#presence;
    if (presence !== null) {
      const some = sample(presence.directory.others(), 4, Math.random);
      await Promise.allSettled(some.map((node) => presence.exchange.sync(node, 'nodes', options.signal)));
      await Promise.allSettled(
        presence.directory
          .others()
          .slice(0, 64)
          .map((node) => presence.liveness.probe(node)),
      );
    }
    return this.peers();
  }

  async broadcast(bytes: Uint8Array): Promise<Digest> {
    this.#keepOnly(await this.#lent.network());
    return this.#arrivals.own(bytes);
  }

  arrivals(options: CallOptions = {}): AsyncIterable<Arrival> {
    return this.#arrivals.next(options.signal);
  }

  async judge(id: Digest, verdict: Verdict): Promise<void> {
    await this.#arrivals.judge(id, verdict);
  }

  async retire(id: Digest): Promise<void> {
    this.#arrivals.retire(id);
  }

  async sync(options: CallOptions = {}): Promise<SyncSummary> {
    const presence = this.#present();
    const nodes = presence.directory.others();
    const summary = { nodes: 0, unreachable: 0, received: 0, offered: 0 };
    // One after the other: what the first one brought, the second need not send again.
    for (const [at, node] of nodes.entries()) {
      options.signal?.throwIfAborted();
      options.onProgress?.({ step: 'sync', done: at, total: nodes.length, unit: 'steps', note: node.slice(0, 12) });
      try {
        await presence.exchange.sync(node, 'nodes', options.signal);
        const { received, offered } = await presence.exchange.sync(node, 'records', options.signal);
        summary.nodes += 1;
        summary.received += received;
        summary.offered += offered;
      } catch (error) {
        if (!isCoded(error) || isCoded(error, 'cancelled')) throw error;
        summary.unreachable += 1;
      }
    }
    return summary;
  }

  async announce(resource: Resource): Promise<void> {
    this.#keepOnly(await this.#lent.network());
    const here = await Promise.all(resource.blobs.map(({ digest }) => this.#lent.content.stat(digest)));
    this.#book.keepResource(
      resource,
      here.every((blob) => blob !== null),
    );
    void this.#presence?.replication.arrived(resource.id);
  }

  async withdraw(id: Digest): Promise<void> {
    this.#book.dropResource(id);
  }

  async fetch(resource: Digest, blob: BlobDescription, options: CallOptions = {}): Promise<BlobInfo> {
    const here = await this.#lent.content.stat(blob.digest);
    if (here !== null) return here;
    const presence = this.#presence;
    if (presence === null) {
      throw new HyperMeshError('content-unavailable', `${blob.digest} is not on this node, which is in no network.`, {
        hint: 'Publish the package here, or join the network that has it: hypermesh network join INVITE',
      });
    }
    const transfer = { blob: blob.digest, done: 0, total: blob.size, from: 0 };
    this.#transfers.add(transfer);
    try {
      await presence.downloader.fetch(
        blob,
        { sources: async (_blob, { signal }) => this.#sources(presence, resource, transfer, signal) },
        {
          signal: options.signal,
          onProgress: (progress) => {
            transfer.done = progress.done ?? transfer.done;
            options.onProgress?.({ ...progress, step: 'fetch' });
          },
        },
      );
    } finally {
      this.#transfers.delete(transfer);
    }
    const known = this.#book.get(resource);
    if (known !== null && !known.held) {
      const all = await Promise.all(known.blobs.map(({ digest }) => this.#lent.content.stat(digest)));
      if (all.every((one) => one !== null)) {
        this.#book.setHeld(resource, true);
        void presence.replication.arrived(resource);
      }
    }
    return (await this.#lent.content.stat(blob.digest))!;
  }

  async distribute(id: Digest, options: CallOptions = {}): Promise<Distribution> {
    const presence = this.#present();
    if (this.#book.get(id) === null) {
      throw new HyperMeshError('asset-not-found', `The network was not told of ${id}.`, {
        hint: 'Private packages stay where they are.',
      });
    }
    // Whoever has not heard of it yet learns of it first.
    await Promise.allSettled(
      presence.replication
        .places(this.#book.get(id)!)
        .filter((node) => node !== this.node)
        .map((node) => presence.exchange.sync(node, 'records', options.signal)),
    );
    return presence.replication.distribute(id, {
      signal: options.signal,
      report: (held, wanted) =>
        options.onProgress?.({
          step: 'distribute',
          done: held,
          total: wanted,
          unit: 'steps',
          note: `${held} of ${wanted} copies`,
        }),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#arrivals[Symbol.dispose]();
    await this.#exclusive(() => this.#leave());
    await this.#book[Symbol.asyncDispose]();
  }

  // Presence

  async #enter({ networkId: id, listen }: Entry): Promise<void> {
    await this.#leave();
    const networkId = id as Digest;
    this.#seats = this.#lent.seats();
    await using stack = new AsyncDisposableStack();
    const around: Surroundings = {
      ask: this.ask,
      clock: this.#options.clock,
      timers: systemTimers,
      random: Math.random,
    };
    const methods = new Map<string, Method>(this.#options.methods);
    const loaded = await parts();
    const { Directory, Downloader, Liveness, RecordExchange, Replication, Shaper, SyncRounds } = loaded;
    const channel = stack.use(this.#openChannel(loaded, networkId, methods));
    const reachable = () => this.#presumed(presence);
    const directory = new Directory({
      clock: this.#options.clock,
      self: this.node,
      seats: () => this.#seats.map(({ node }) => node),
      isBanned: (node) => this.#bans.has(node),
      nodesMax: this.#limits.nodesMax,
      judge: (bytes) => this.#judgeNode(networkId, bytes),
      learned: ({ node, bytes }) => {
        if (node === this.node) return;
        this.#book.keepNode(node, bytes);
        // In a large network everybody's first look at everybody would be too much; there the rounds of probes find out.
        if (directory.size <= GREETED_MAX) liveness.doubt(node);
        replication.changed();
      },
    });
    const liveness = stack.use(
      new Liveness(around, {
        nodes: () => presence.directory.others(),
        periodMs: this.#pace.probeMs,
        patienceMs: this.#pace.patienceMs,
        changed: (node, vitality) => {
          if (vitality === 'suspect') return;
          this.#options.log?.('info', vitality === 'alive' ? 'node answers' : 'node is away', { node });
          replication.changed();
          if (vitality === 'alive') rounds.with(node);
        },
      }),
    );
    const exchange = stack.use(
      new RecordExchange(around, {
        collections: [directory, this.#arrivals.collection()],
        reachable,
        accuse: (node, why, evidence) => this.#accuse(node, why, evidence),
        fanout: 4,
      }),
    );
    const replication = stack.use(
      new Replication(around, {
        self: this.node,
        book: this.#book,
        alive: () => reachable().filter((node) => directory.get(node) !== undefined),
        isAway: (node) => ['away', 'banned'].includes(this.#stateOf(presence, node)),
        bring: async ({ id, blobs }, signal) => {
          for (const blob of blobs) await this.fetch(id, blob, { signal });
        },
        periodMs: this.#pace.replicationMs,
        concurrency: this.#limits.bringingMax,
        keeps: this.#options.stays,
      }),
    );
    const downloader = new Downloader({
      store: this.#lent.content,
      clock: this.#options.clock,
      random: Math.random,
      downloads: new Shaper(this.#limits.downloadBytesPerSecond),
      accuse: ({ node, what, evidence }) =>
        this.#accuse(node, `sent content that is not what was signed for (${what})`, evidence),
    });
    for (const [method, answer] of [...liveness.answers(), ...exchange.answers(), ...replication.answers()]) {
      methods.set(
        method,
        memberMethod(method, answer, (from) => liveness.heard(from)),
      );
    }
    const rounds = stack.use(
      new SyncRounds(around, exchange, {
        candidates: () => {
          const presumed = this.#presumed(presence);
          return presumed.length > 0 ? presumed : directory.others();
        },
        periodMs: this.#pace.syncMs,
        eagerMs: Math.min(2_000, this.#pace.syncMs),
      }),
    );
    const presence: Presence = {
      networkId,
      channel,
      directory,
      liveness,
      exchange,
      rounds,
      replication,
      downloader,
      listen,
      listening: null,
      problem: null,
      async [Symbol.asyncDispose]() {
        await entered.disposeAsync();
      },
    };
    stack.defer(every(around, Math.min(ADDRESSES_LOOK_MS, 5 * this.#pace.syncMs), () => this.#keepRecord(presence)));
    const entered = stack.move();
    this.#presence = presence;
    await this.#listen(presence);
    if (this.#options.lan !== false && this.#options.stays && !isLoopback(listen)) {
      entered.use(await this.#lookAround(presence, around));
    }
    void this.#meet(presence).catch((error) => this.#warn('meeting the network failed', error));
  }

  async #lookAround(presence: Presence, around: Surroundings): Promise<Disposable> {
    const { findNeighbours } = await parts();
    return findNeighbours(around, {
      self: this.node,
      networkId: presence.networkId,
      port: () => presence.listening?.port ?? null,
      heard: (node, address) => {
        if (this.#nearby.size >= NEARBY_MAX && !this.#nearby.has(node)) return;
        this.#nearby.set(node, address);
        if (presence.liveness.vitality(node) !== 'alive') presence.rounds.with(node);
      },
      failed: (error) => this.#warn('cannot look for nodes on the local link', error),
    });
  }

  /** What takes time at a start: who was known before, this node's own record, and a first look at others. */
  async #meet(presence: Presence): Promise<void> {
    for (const bytes of this.#book.nodes()) await presence.directory.take(bytes);
    await this.#keepRecord(presence);
    for (const { node } of this.#seats) if (node !== this.node) presence.rounds.with(node);
    for (const node of sample(presence.directory.others(), 3, Math.random)) presence.liveness.doubt(node);
  }

  #openChannel(
    { bulkSource, contentMethods, openChannel, Shaper }: Parts,
    networkId: Digest,
    methods: ReadonlyMap<string, Method>,
  ): Channel {
    const { clock } = this.#options;
    const serving = {
      store: this.#lent.content,
      served: (blob: Digest) => this.#book.isShared(blob),
      uploads: new Shaper(this.#limits.uploadBytesPerSecond),
    };
    for (const [name, method] of contentMethods(serving)) (methods as Map<string, Method>).set(name, method);
    return openChannel({
      networkId,
      clock,
      trust: this.#lent.trust,
      methods,
      blobs: bulkSource(serving),
      permits: ({ node }) => node === null || !this.#bans.has(node),
      onDefect: (error) => this.#warn('a method failed', error),
      onBreach: ({ node }, { message }) => {
        if (node !== null) this.#accuse(node, `broke the protocol: ${message}`, message);
      },
    });
  }

  async #listen(presence: Presence): Promise<void> {
    if (!this.#options.stays || presence.listening !== null) return;
    const { host, port } = splitAddress(presence.listen);
    try {
      presence.listening = await presence.channel.listen(host, port);
      presence.problem = null;
      this.#options.log?.('info', 'listening to other nodes', presence.listening);
    } catch (error) {
      if (!isCoded(error)) throw error;
      if (presence.problem === null) this.#warn('cannot listen to other nodes', error);
      presence.problem = error;
    }
  }

  async #leave(): Promise<void> {
    const presence = this.#presence;
    this.#presence = null;
    await presence?.[Symbol.asyncDispose]();
  }

  /** What is remembered of another network is forgotten; what this home said in its own before it was opened to others is told to them. */
  #keepOnly(networkId: Digest): void {
    if (this.#book.setting('network') === networkId) return;
    this.#book.clear();
    this.#bans = new Map();
    this.#book.set('network', networkId);
  }

  async #forgetNetwork(): Promise<void> {
    await this.#leave();
    this.#book.clear();
    this.#bans = new Map();
  }

  /** This node's record: made anew when it has none that is fresh, or lives elsewhere now. */
  async #keepRecord(presence: Presence): Promise<void> {
    for (const node of presence.directory.sweep()) this.#book.forgetNode(node);
    this.#seats = this.#lent.seats();
    presence.directory.refresh();
    await this.#listen(presence);
    const addresses = this.addresses().slice(0, NODE_RECORD_LIMITS.addressesMax);
    if (addresses.length === 0) return;
    const nowMs = this.#options.clock.nowMs();
    const own = presence.directory.get(this.node);
    if (own !== undefined && nowMs - own.sequence < RECORD_RENEW_MS && own.addresses.join() === addresses.join())
      return;
    const { chain } = await this.#lent.trust.identity('node');
    const sequence = Math.max(nowMs, (own?.sequence ?? 0) + 1);
    const payload = encodeNodeRecord({
      formatVersion: 1,
      network: presence.networkId,
      node: this.node,
      addresses,
      sequence,
      notAfterMs: sequence + NODE_RECORD_LIMITS.lifeMsMax,
    });
    const bytes = encodeSigned({ envelope: await this.#lent.trust.sign('node', NODE_RECORD_TYPE, payload), chain });
    const id = digestOf(bytes);
    if ((await presence.directory.receive(id, bytes)) === 'accepted') presence.exchange.accepted('nodes', id);
  }

  async #judgeNode(networkId: Digest, bytes: Uint8Array): Promise<NodeRecord> {
    const { record, envelope, chain } = decodeSignedNodeRecord(bytes);
    if (record.network !== networkId) {
      throw new HyperMeshError('record-invalid', 'A node record is about another network.');
    }
    await this.#lent.trust.verify(envelope, chain, { role: 'node' });
    return record;
  }

  // Connections

  async #request(presence: Presence, ...[to, method, body, options]: Parameters<Ask>): Promise<Uint8Array> {
    return (await this.#connected(presence, to, options)).request(method, body, options);
  }

  #openTo(presence: Presence, to: NodeId): Connection | undefined {
    return presence.channel.connections().find(({ remote }) => remote.node === to);
  }

  async #connected(presence: Presence, to: NodeId, options: Pick<AskOptions, 'signal'>): Promise<Connection> {
    if (this.#bans.has(to)) {
      throw new HyperMeshError('peer-unreachable', `${to.slice(0, 12)} is banned: ${this.#bans.get(to)}.`, {
        hint: `Let it in again, if that was a mistake: hypermesh peers forgive ${to}`,
      });
    }
    const open = this.#openTo(presence, to);
    if (open !== undefined) return open;
    const nowMs = this.#options.clock.nowMs();
    const known = [
      ...(presence.directory.get(to)?.addresses ?? []),
      ...(this.#nearby.has(to) ? [this.#nearby.get(to)!] : []),
      ...this.#seats.filter(({ node }) => node === to).flatMap(({ addresses }) => addresses),
    ];
    return firstWorking([...new Set(known)], async (address) => {
      const resting = this.#resting.get(`${to} ${address}`);
      if (resting !== undefined && resting.untilMs > nowMs) throw resting.error;
      try {
        return await patiently(options.signal, (signal) => presence.channel.connect(address, { expect: to, signal }));
      } catch (error) {
        // That somebody gave up says nothing about the address.
        if (isCoded(error, 'cancelled')) throw error;
        if (this.#resting.size > 10_000) this.#resting.clear();
        this.#resting.set(`${to} ${address}`, { untilMs: nowMs + ADDRESS_REST_MS, error });
        throw error;
      }
    });
  }

  async #sources(presence: Presence, resource: Digest, transfer: { from: number }, signal: AbortSignal) {
    // Whoever says that it holds the resource comes first; others are asked too, because that may be untrue, and may have been said to nobody.
    const found = await presence.replication.find(resource);
    const others = sample(this.#alive(presence), SOURCES_MAX, Math.random);
    const nodes = [...new Set([...found, ...others])].slice(0, SOURCES_MAX);
    const { sourceOf } = await parts();
    const connecting = nodes.map((node) => this.#connected(presence, node, { signal }));
    const sources = (await promptly({ timers: systemTimers }, CONNECT_MOMENT_MS, connecting)).map(sourceOf);
    transfer.from = sources.length;
    return sources;
  }

  #closeConnections(node: NodeId): void {
    for (const connection of this.#presence?.channel.connections() ?? []) {
      if (connection.remote.node === node) void connection[Symbol.asyncDispose]();
    }
  }

  // Who is who

  /** Those that are not known to be away. */
  #presumed(presence: Presence): NodeId[] {
    return presence.directory.others().filter((node) => presence.liveness.vitality(node) !== 'away');
  }

  #alive(presence: Presence): NodeId[] {
    return presence.directory.others().filter((node) => {
      const vitality = presence.liveness.vitality(node);
      return vitality === 'alive' || vitality === 'suspect';
    });
  }

  #stateOf(presence: Presence, node: NodeId): PeerState {
    if (node === this.node) return 'self';
    if (this.#bans.has(node)) return 'banned';
    return presence.liveness.vitality(node);
  }

  #accuse(node: NodeId, why: string, evidence: Uint8Array | string): void {
    if (node === this.node || this.#bans.has(node)) return;
    const bytes = typeof evidence === 'string' ? new TextEncoder().encode(evidence) : evidence;
    this.#book.ban(node, why, bytes, this.#options.clock.nowMs());
    this.#bans = new Map([...this.#bans, [node, why]]);
    this.#options.log?.('warn', 'node banned', { node, why });
    this.#closeConnections(node);
    this.#presence?.directory.refresh();
    this.#presence?.replication.changed();
  }

  #present(): Presence {
    if (this.#presence !== null) return this.#presence;
    throw new HyperMeshError('network-unreachable', 'This home is in no network with other nodes.', {
      hint: 'Join one: hypermesh network join INVITE',
    });
  }

  #entry(): Entry | null {
    const text = this.#book.setting('entry');
    return text === null ? null : entrySetting.parse(JSON.parse(text));
  }

  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#changing.then(work, work);
    this.#changing = done.catch(() => undefined);
    return done;
  }

  #warn(message: string, error: unknown): void {
    this.#options.log?.('warn', message, { error: isCoded(error) ? error.message : String(error) });
  }
}

function memberMethod(name: string, answer: Answer, heard: (from: NodeId) => void): Method {
  return {
    access: 'member',
    requestBytesMax: name.startsWith('records/') ? RECORDS_LIMITS.requestBytesMax : OVERLAY_BYTES_MAX,
    async handle(body, { node }) {
      heard(node!);
      return answer(body, node!);
    },
  };
}

/** Gives an attempt up after a while. That is a failure of the other side, and not `cancelled`, which is what the caller wants. */
async function patiently<T>(signal: AbortSignal | undefined, attempt: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const patience = AbortSignal.timeout(CONNECT_TIMEOUT_MS);
  try {
    return await attempt(signal === undefined ? patience : AbortSignal.any([patience, signal]));
  } catch (error) {
    if (!isCoded(error, 'cancelled') || !patience.aborted || signal?.aborted === true) throw error;
    throw new HyperMeshError('peer-unreachable', `A node did not answer within ${CONNECT_TIMEOUT_MS / 1_000} s.`, {
      cause: error,
    });
  }
}

/** Tries one after the other; the error of the last when none works. */
async function firstWorking<T>(addresses: readonly string[], attempt: (address: string) => Promise<T>): Promise<T> {
  let failure: unknown = new HyperMeshError('peer-unreachable', 'No address of the node is known.');
  for (const address of addresses) {
    try {
      return await attempt(address);
    } catch (error) {
      failure = error;
      if (!isCoded(error) || isCoded(error, 'cancelled', 'identity-mismatch')) break;
    }
  }
  throw failure;
}

/** `host:port`, `[v6]:port`. Errors: `config-invalid`. */
function splitAddress(address: string): { readonly host: string; readonly port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) {
    throw new HyperMeshError(
      'config-invalid',
      `Expected an address such as [::]:9292 or 192.0.2.1:9292, but got "${address.slice(0, 100)}".`,
    );
  }
  return { host: (match[1] ?? match[2])!, port };
}

function isLoopback(address: string): boolean {
  const { host } = splitAddress(address);
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

/** What a listener on all addresses can be reached at; this machine alone when it has no network. */
function reachableAt({ host, port }: { readonly host: string; readonly port: number }): string[] {
  if (host !== '::' && host !== '0.0.0.0') return [host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`];
  const found = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter(
      ({ internal, family, address }) =>
        !internal && (family === 'IPv4' || (host === '::' && !address.startsWith('fe80'))),
    )
    .map(({ address, family }) => (family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`));
  return found.length > 0 ? found.slice(0, NODE_RECORD_LIMITS.addressesMax) : [`127.0.0.1:${port}`];
}
