import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { PeerInfo, PeerState, Resource } from '../../capabilities/transport.ts';
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
import { Access } from './access.ts';
import { isLoopback, type ListenAddress, reachableAt, splitAddress } from './addresses.ts';
import type { Arrivals } from './arrivals.ts';
import { type Answer, every, promptly, type Surroundings, sample, systemTimers } from './ask.ts';
import { Audit } from './audit.ts';
import type { Bans } from './bans.ts';
import type { Book } from './book.ts';
import type { Channel, ChannelOptions, Method, NodeId } from './channel/index.ts';
import type { Coded } from './coded/coded.ts';
import type { Accusation, ContentServing, Downloader } from './content/index.ts';
import type { Outgoing } from './content/outgoing.ts';
import type { Settings, StoqLent } from './options.ts';
import type { Directory } from './overlay/directory.ts';
import type { Liveness } from './overlay/liveness.ts';
import { Reach } from './reach.ts';
import { EpochCollection } from './records/epochs.ts';
import type { RecordExchange } from './records/exchange.ts';
import type { SyncRounds } from './records/rounds.ts';
import { TermsCollection } from './records/terms.ts';
import type { Replication } from './replication.ts';

type Parts = typeof import('./parts.ts');

/** The code that sockets need: a home that is alone has none of it in memory. */
function parts(): Promise<Parts> {
  return import('./parts.ts');
}

/** A node record is made anew after this long, and when addresses change. */
const RECORD_RENEW_MS = 86_400_000;
const ADDRESSES_LOOK_MS = 30_000;
/** Nodes that are asked for a blob. */
const SOURCES_MAX = 32;
/** Once one holder is connected, others are waited for so long; they are there when they are looked for again. */
const CONNECT_MOMENT_MS = 500;
/** Nodes of the local link that are remembered. */
const NEARBY_MAX = 256;
/** Nodes up to which a new one is looked at as soon as it is known. */
const GREETED_MAX = 64;

/** How a home takes part in its network. */
export interface Entry {
  readonly networkId: Digest;
  /** `host:port`, where other nodes can connect. */
  readonly listen: string;
}

export interface PresenceLent extends StoqLent {
  readonly book: Book;
  readonly bans: Bans;
  readonly arrivals: Arrivals;
  /** A node broke the rules. */
  readonly accuse: (node: NodeId, why: string, evidence: Uint8Array | string) => void;
  /** Brings every blob of a resource here, and gives the copy that is here up; see {@link ReplicationOptions}. */
  readonly bring: (resource: Resource, signal?: AbortSignal) => Promise<void>;
  readonly release: (resource: Resource) => Promise<boolean>;
  readonly warn: (message: string, error: unknown) => void;
}

/** Everything that taking part needs, silent until {@link Presence.begin}. */
export async function preparePresence(lent: PresenceLent, entry: Entry, settings: Settings): Promise<Presence> {
  return new Presence(lent, entry, settings, await parts());
}

/** A channel that answers nothing. */
export async function openGuestChannel(lent: PresenceLent, networkId: Digest, settings: Settings): Promise<Channel> {
  const { openChannel } = await parts();
  const nothing = { methods: new Map(), blobs: { open: async () => null } };
  return openChannel({ ...channelOptions(lent, networkId, settings), ...nothing });
}

/** What is there only while the home is in a network of several. */
export class Presence implements AsyncDisposable {
  readonly entry: Entry;
  readonly channel: Channel;
  readonly reach: Reach;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly exchange: RecordExchange;
  readonly rounds: SyncRounds;
  readonly replication: Replication;
  readonly downloader: Downloader;
  readonly outgoing: Outgoing;
  readonly access: Access;
  readonly coded: Coded;
  readonly #lent: PresenceLent;
  readonly #settings: Settings;
  readonly #around: Surroundings;
  readonly #stack = new AsyncDisposableStack();
  readonly #audit: Audit;
  readonly #epochs: EpochCollection;
  readonly #terms: TermsCollection;
  readonly #sourceOf: Parts['sourceOf'];
  /** Where nodes said they are on the local link, or a person said it. */
  readonly #nearby = new Map<NodeId, readonly string[]>();
  /** Of the committee, as of the last look. */
  #seats: ReturnType<StoqLent['seats']>;
  #listening: ListenAddress | null = null;
  #problem: HyperMeshError | null = null;

  constructor(lent: PresenceLent, entry: Entry, settings: Settings, loaded: Parts) {
    const { bulkSource, contentMethods, openChannel, Coded, CodingCollection, Directory, Downloader } = loaded;
    const { Liveness, Outgoing } = loaded;
    const { RecordExchange, Replication, Shaper, SyncRounds, sourceOf } = loaded;
    const { book, bans } = lent;
    const { clock, pace, limits } = settings;
    this.entry = entry;
    this.#lent = lent;
    this.#settings = settings;
    this.#sourceOf = sourceOf;
    this.#seats = lent.seats();
    this.outgoing = new Outgoing();
    const serving: ContentServing = {
      store: lent.content,
      served: (blob) => book.isShared(blob) || this.coded.offers(blob),
      admit: (blob, to) => this.access.admit(blob, to),
      uploads: new Shaper(limits.uploadBytesPerSecond),
      outgoing: this.outgoing,
    };
    // Those of the parts below are added: nobody is connected yet.
    const methods = new Map([...(settings.methods ?? []), ...contentMethods(serving)]);
    const blobs = bulkSource(serving);
    this.channel = this.#stack.use(openChannel({ ...channelOptions(lent, entry.networkId, settings), methods, blobs }));
    this.reach = new Reach(this.channel, {
      ...{ clock, bans },
      addressesOf: (node) => this.#addressesOf(node),
      heard: (node) => this.liveness.heard(node),
    });
    this.#around = { ask: this.reach.ask, clock, timers: systemTimers, random: Math.random };
    this.directory = new Directory({
      ...{ clock, self: lent.node, nodesMax: limits.nodesMax },
      seats: () => this.#seats.map(({ node }) => node),
      isBanned: (node) => bans.has(node),
      judge: (bytes) => this.#judgeNode(bytes),
      learned: ({ node, bytes }) => {
        if (node === lent.node) return;
        book.keepNode(node, bytes);
        // In a large network everybody's first look at everybody would be too much; there the rounds of probes find out.
        if (this.directory.size <= GREETED_MAX) this.liveness.doubt(node);
        this.replication.changed();
      },
    });
    this.liveness = this.#stack.use(
      new Liveness(this.#around, {
        nodes: () => this.directory.others(),
        periodMs: pace.probeMs,
        patienceMs: pace.patienceMs,
        changed: (node, vitality, before) => {
          if (vitality === 'suspect') return;
          settings.log?.('info', vitality === 'alive' ? 'node answers' : 'node is away', { node });
          // Whoever is not known to be away has its places already.
          if (vitality === 'away' || before === 'away') this.replication.changed();
          if (vitality === 'alive') this.rounds.with(node);
        },
      }),
    );
    this.#epochs = new EpochCollection(lent.epochs);
    this.#terms = new TermsCollection(lent.terms);
    const codings = new CodingCollection({
      ...{ book, clock, networkId: entry.networkId, trust: lent.trust },
      isBanned: (node) => bans.has(node),
    });
    this.exchange = this.#stack.use(
      new RecordExchange(this.#around, {
        collections: [this.directory, this.#epochs, lent.arrivals.collection(), this.#terms, codings],
        reachable: () => this.#presumed(),
        accuse: lent.accuse,
        fanout: 4,
      }),
    );
    this.replication = this.#stack.use(
      new Replication(this.#around, {
        self: lent.node,
        book,
        alive: () => this.#presumed().filter((node) => this.directory.get(node) !== undefined),
        isAway: (node) => ['away', 'banned'].includes(this.stateOf(node)),
        bring: lent.bring,
        audit: (node, resource) => this.#audit.holds(node, resource),
        release: lent.release,
        periodMs: pace.replicationMs,
        concurrency: limits.bringingMax,
        keeps: settings.stays,
        coded: {
          standIn: (id) => this.coded.standIn(id),
          shown: (resource) => this.coded.shown(resource),
          mayKeep: (fragment) => this.coded.mayKeep(fragment),
        },
      }),
    );
    this.#audit = new Audit(this.#around, {
      content: lent.content,
      isShared: (blob) => book.isShared(blob),
      missed: (blob) => {
        for (const id of book.resourcesWith(blob)) void this.replication.lost(id);
      },
    });
    this.access = new Access(lent.access, {
      ...{ ask: this.reach.ask, book, replication: () => this.replication },
      wasEntrusted: (node, blob) => this.coded.wasEntrusted(node, blob),
    });
    const downloads = new Shaper(limits.downloadBytesPerSecond);
    const downloader = (accuse: (accusation: Accusation) => void) =>
      new Downloader({ store: lent.content, clock, random: Math.random, downloads, accuse });
    this.downloader = downloader(({ node, what, evidence }) =>
      lent.accuse(node, `sent content that is not what was signed for (${what})`, evidence),
    );
    this.coded = this.#stack.use(
      new Coded(this.#around, {
        ...{ self: lent.node, networkId: entry.networkId, book, content: lent.content, trust: lent.trust },
        ...{ audit: this.#audit, replication: this.replication, collection: codings, downloader },
        accepted: (id) => this.exchange.accepted('codings', id),
        inform: async (node, signal) => void (await this.exchange.sync(node, 'codings', signal)),
        sources: async (nodes, resource, options) => {
          const access = this.access.for(resource, options);
          return (await this.#reachable(nodes, options.signal)).map(access.from);
        },
        accuse: lent.accuse,
        warn: lent.warn,
        patienceMs: pace.fragmentPatienceMs,
      }),
    );
    for (const part of [this.liveness, this.exchange, this.replication, this.#audit]) {
      for (const [name, answer] of part.answers()) {
        methods.set(
          name,
          memberMethod(name, answer, (from) => this.liveness.heard(from)),
        );
      }
    }
    this.rounds = this.#stack.use(
      new SyncRounds(this.#around, this.exchange, {
        candidates: () => {
          const presumed = this.#presumed();
          return presumed.length > 0 ? presumed : this.directory.others();
        },
        periodMs: pace.syncMs,
        eagerMs: Math.min(2_000, pace.syncMs),
      }),
    );
  }

  /** Listens, looks around, and meets the network; what takes long goes on after it resolves. */
  async begin(): Promise<void> {
    const { pace, lan, stays } = this.#settings;
    this.#stack.defer(every(this.#around, Math.min(ADDRESSES_LOOK_MS, 5 * pace.syncMs), () => this.#keepRecord()));
    await this.#listen();
    if (lan !== false && stays && !isLoopback(this.entry.listen)) {
      const { findNeighbours } = await parts();
      const neighbours = await findNeighbours(this.#around, {
        self: this.#lent.node,
        networkId: this.entry.networkId,
        port: () => this.#listening?.port ?? null,
        heard: (node, address) => this.found(node, [address]),
        failed: (error) => this.#lent.warn('cannot look for nodes on the local link', error),
      });
      this.#stack.use(neighbours);
    }
    void this.#meet().catch((error) => this.#lent.warn('meeting the network failed', error));
  }

  /** Where others can connect; none while it does not listen. */
  addresses(): readonly string[] {
    return this.#listening === null ? [] : (this.#settings.advertise ?? reachableAt(this.#listening));
  }

  /** Why it does not listen although it should. */
  get problem(): HyperMeshError | null {
    return this.#problem;
  }

  alive(): NodeId[] {
    return this.directory.others().filter((node) => {
      const vitality = this.liveness.vitality(node);
      return vitality === 'alive' || vitality === 'suspect';
    });
  }

  stateOf(node: NodeId): PeerState {
    if (node === this.#lent.node) return 'self';
    if (this.#lent.bans.has(node)) return 'banned';
    return this.liveness.vitality(node);
  }

  peers(): readonly PeerInfo[] {
    const { node: self, bans } = this.#lent;
    const ids = new Set([
      self,
      ...[...this.directory.nodes()].map(({ node }) => node),
      ...bans.all().map(({ node }) => node),
    ]);
    const connections = this.channel.connections();
    for (const { remote } of connections) if (remote.node !== null) ids.add(remote.node);
    return [...ids].map((node): PeerInfo => {
      const open = connections.filter(({ remote }) => remote.node === node);
      return {
        node,
        addresses: node === self ? this.addresses() : (this.directory.get(node)?.addresses ?? []),
        state: this.stateOf(node),
        seenAtMs: this.liveness.seenAtMs(node),
        rttMs: open.find(({ rttMs }) => rttMs !== null)?.rttMs ?? null,
        bytesIn: open.reduce((sum, { bytesIn }) => sum + bytesIn, 0),
        bytesOut: open.reduce((sum, { bytesOut }) => sum + bytesOut, 0),
        reason: bans.get(node)?.reason ?? null,
        bannedAtMs: bans.get(node)?.bannedAtMs ?? null,
      };
    });
  }

  /** Nodes that may have a resource, connected. Whoever says that it holds it comes first; others are asked too, because that may be untrue, and may have been said to nobody. */
  async sources(resource: Digest, signal: AbortSignal) {
    return this.#reachable(await this.replication.find(resource), signal);
  }

  async #reachable(found: readonly NodeId[], signal: AbortSignal | undefined) {
    const others = sample(this.alive(), SOURCES_MAX, Math.random);
    const nodes = [...new Set([...found, ...others])].slice(0, SOURCES_MAX);
    const connecting = nodes.map((node) => this.reach.connected(node, { signal }));
    return (await promptly(this.#around, CONNECT_MOMENT_MS, connecting)).map(this.#sourceOf);
  }

  /** A node is not spoken to any more. */
  banned(node: NodeId): void {
    this.reach.disconnect(node);
    this.directory.refresh();
    this.replication.changed();
  }

  /** Another committee may be in office: others are told by which documents. */
  epochsChanged(): void {
    for (const id of this.#epochs.refresh()) this.exchange.accepted('epochs', id);
  }

  /** The terms of the network may be others: who takes part is told. */
  termsChanged(): void {
    const id = this.#terms.refresh();
    if (id !== null) this.exchange.accepted('terms', id);
  }

  forgiven(node: NodeId): void {
    this.downloader.forgive(node);
    this.directory.refresh();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }

  #addressesOf(node: NodeId): string[] {
    return [
      ...(this.directory.get(node)?.addresses ?? []),
      ...(this.#nearby.get(node) ?? []),
      ...this.#seats.filter((seat) => seat.node === node).flatMap(({ addresses }) => addresses),
    ];
  }

  /** A hint, which is tried beside what the node's own record says. */
  found(node: NodeId, addresses: readonly string[]): void {
    if (this.#nearby.size >= NEARBY_MAX && !this.#nearby.has(node)) return;
    this.#nearby.set(node, addresses);
    if (this.liveness.vitality(node) !== 'alive') this.rounds.with(node);
  }

  /** What takes time at a start: who was known before, this node's own record, and a first look at others. */
  async #meet(): Promise<void> {
    for (const bytes of this.#lent.book.nodes()) await this.directory.take(bytes);
    await this.#keepRecord();
    for (const { node } of this.#seats) if (node !== this.#lent.node) this.rounds.with(node);
    for (const node of sample(this.directory.others(), 3, Math.random)) this.liveness.doubt(node);
  }

  async #listen(): Promise<void> {
    if (!this.#settings.stays || this.#listening !== null) return;
    const { host, port } = splitAddress(this.entry.listen);
    try {
      this.#listening = await this.channel.listen(host, port);
      this.#problem = null;
      this.#settings.log?.('info', 'listening to other nodes', { ...this.#listening });
    } catch (error) {
      if (!isCoded(error)) throw error;
      if (this.#problem === null) this.#lent.warn('cannot listen to other nodes', error);
      this.#problem = error;
    }
  }

  /** This node's record: made anew when it has none that is fresh, or lives elsewhere now. */
  async #keepRecord(): Promise<void> {
    const { node, book, trust, seats } = this.#lent;
    for (const over of this.directory.sweep()) book.forgetNode(over);
    this.#seats = seats();
    this.directory.refresh();
    await this.#listen();
    const addresses = this.addresses().slice(0, NODE_RECORD_LIMITS.addressesMax);
    if (addresses.length === 0) return;
    const nowMs = this.#settings.clock.nowMs();
    const own = this.directory.get(node);
    if (own !== undefined && nowMs - own.sequence < RECORD_RENEW_MS && own.addresses.join() === addresses.join())
      return;
    const { chain } = await trust.identity('node');
    const sequence = Math.max(nowMs, (own?.sequence ?? 0) + 1);
    const payload = encodeNodeRecord({
      ...{ formatVersion: 1, network: this.entry.networkId, node, addresses, sequence },
      notAfterMs: sequence + NODE_RECORD_LIMITS.lifeMsMax,
    });
    const bytes = encodeSigned({ envelope: await trust.sign('node', NODE_RECORD_TYPE, payload), chain });
    const id = digestOf(bytes);
    if ((await this.directory.receive(id, bytes)) === 'accepted') this.exchange.accepted('nodes', id);
  }

  async #judgeNode(bytes: Uint8Array): Promise<NodeRecord> {
    const { record, envelope, chain } = decodeSignedNodeRecord(bytes);
    if (record.network !== this.entry.networkId) {
      throw new HyperMeshError('record-invalid', 'A node record is about another network.');
    }
    await this.#lent.trust.verify(envelope, chain, { role: 'node' });
    return record;
  }

  /** Those that are not known to be away. */
  #presumed(): NodeId[] {
    return this.directory.others().filter((node) => this.liveness.vitality(node) !== 'away');
  }
}

function channelOptions({ bans, trust, accuse, warn }: PresenceLent, networkId: Digest, { clock }: Settings) {
  return {
    ...{ networkId, clock, trust },
    permits: ({ node }) => node === null || !bans.has(node),
    onDefect: (error) => warn('a method failed', error),
    onBreach: ({ node }, { message }) => {
      if (node !== null) accuse(node, `broke the protocol: ${message}`, message);
    },
  } satisfies Omit<ChannelOptions, 'methods' | 'blobs'>;
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
