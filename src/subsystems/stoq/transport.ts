import { z } from 'zod';
import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { BlobInfo } from '../../capabilities/assets.ts';
import type { BlobDescription } from '../../capabilities/content.ts';
import type {
  Arrival,
  Ban,
  Code,
  ContentUse,
  Distribution,
  PeerInfo,
  Resource,
  SyncSummary,
  Transport,
  TransportStatus,
  Verdict,
} from '../../capabilities/transport.ts';
import { digest } from '../../wire/fields.ts';
import { splitAddress } from './addresses.ts';
import { Arrivals } from './arrivals.ts';
import { type Ask, sample } from './ask.ts';
import { Bans } from './bans.ts';
import { Book } from './book.ts';
import type { Connection, NodeId } from './channel/index.ts';
import { forgetCodings } from './coded/forget.ts';
import { type Fetching, movingNow } from './moving.ts';
import { type Settings, type StoqLent, type StoqOptions, settingsOf } from './options.ts';
import { type Entry, openGuestChannel, type Presence, type PresenceLent, preparePresence } from './presence.ts';
import { firstWorking, patiently } from './reach.ts';

const DEFAULT_LISTEN = '[::]:9292';
/** Nodes that a look for peers compares lists with, and that it probes. */
const COMPARED = 4;
const PROBED_MAX = 64;

const entrySetting: z.ZodType<Entry> = z.object({ networkId: digest, listen: z.string() });

/** Opens STOQ for a home; silent until {@link Stoq.openNetwork}. Errors: `storage-*`, `home-too-new`. */
export async function openTransport(lent: StoqLent, options: StoqOptions): Promise<Stoq> {
  const book = new Book(options.directory);
  try {
    return new Stoq(lent, book, options);
  } catch (error) {
    await book[Symbol.asyncDispose]();
    throw error;
  }
}

/** STOQ as others see it: entering and leaving a network, and what is lent of it. What is there only in a network is {@link Presence}. */
export class Stoq implements Transport, AsyncDisposable {
  #node: NodeId;
  readonly #lent: StoqLent;
  readonly #book: Book;
  readonly #settings: Settings;
  readonly #arrivals: Arrivals;
  readonly #bans: Bans;
  readonly #fetching = new Set<Fetching>();
  #presence: Presence | null = null;
  #changing: Promise<unknown> = Promise.resolve();

  constructor(lent: StoqLent, book: Book, options: StoqOptions) {
    this.#node = lent.node;
    this.#lent = lent;
    this.#book = book;
    this.#settings = settingsOf(options);
    this.#bans = new Bans(book);
    this.#arrivals = new Arrivals(
      { book, clock: options.clock, content: lent.content, read: lent.read },
      {
        waitingMax: this.#settings.limits.arrivalsMax,
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
    await this.#exclusive(async () => {
      await this.#leave();
      this.#clear();
    });
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
    return this.#presence?.addresses() ?? [];
  }

  /** Where that node said last that it is; none while it is not known. */
  addressesOf(node: NodeId): readonly string[] {
    return this.#presence?.directory.get(node)?.addresses ?? [];
  }

  readonly ask: Ask = async (...call) => this.#present().reach.ask(...call);

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
    await using channel = await openGuestChannel(this.#presenceLent(), networkId, this.#settings);
    const connection = await firstWorking(addresses, (address) =>
      patiently(options.signal, (signal) => channel.connect(address, { expect, guest: true, networkId, signal })),
    );
    // Awaited: the channel closes when this returns.
    return await talk((method, body, limits) => connection.request(method, body, { ...options, ...limits }));
  }

  /** To be called when another committee may be in office. */
  epochsChanged(): void {
    this.#presence?.epochsChanged();
  }

  /** To be called when the terms of the network may be others. */
  termsChanged(): void {
    this.#presence?.termsChanged();
  }

  /** The node for which that publisher vouched, as a connection that is open now proved it. */
  nodeOf(publisher: string): NodeId | undefined {
    const open = this.#presence?.channel.connections().find(({ remote }) => remote.publisher === publisher);
    return open?.remote.node ?? undefined;
  }

  /** Where a node may be reached, which was learned elsewhere. */
  heardOf(node: NodeId, addresses: readonly string[]): void {
    if (node !== this.#node) this.#presence?.found(node, addresses);
  }

  /** A node is no member any more. */
  expel(node: NodeId): void {
    this.#presence?.directory.forget(node);
    this.#book.forgetNode(node);
    this.#presence?.reach.disconnect(node);
  }

  /** Who is not spoken to, and since when; the oldest ban first. */
  async bans(): Promise<readonly Ban[]> {
    return this.#bans.all();
  }

  /** One ban with what shows that it is right, at most 64 KiB: what that node sent, or what it should have sent. Errors: `usage` when no banned node has that id. */
  async ban(node: NodeId): Promise<Ban & { readonly evidence: Uint8Array }> {
    const [ban, evidence] = [this.#bans.get(node), this.#bans.evidence(node)];
    if (ban === null || evidence === null) throw notBanned(node);
    return { ...ban, evidence };
  }

  /** Errors: `usage` when no banned node has that id. */
  async forgive(node: NodeId): Promise<void> {
    if (!this.#bans.remove(node)) throw notBanned(node);
    this.#presence?.forgiven(node);
  }

  // What is lent

  async status(): Promise<TransportStatus> {
    const presence = this.#presence;
    const others = presence?.directory.others() ?? [];
    const alive = others.filter((node) => presence?.stateOf(node) === 'alive').length;
    const incoming = presence?.downloader.active() ?? [];
    const outgoing = presence?.outgoing.figures() ?? [];
    return {
      state: presence === null ? 'alone' : alive > 0 ? 'online' : 'offline',
      node: this.node,
      addresses: this.addresses(),
      problem: presence?.problem?.message ?? null,
      peers: { known: others.length, alive },
      transfers: movingNow(this.#fetching, incoming, outgoing, this.#book),
      resources: {
        ...this.#book.resourceTotals(),
        underReplicated: (await presence?.replication.underReplicated()) ?? 0,
      },
      coded: presence?.coded.figures() ?? { packages: 0, fragments: 0, missing: 0 },
      arrivals: this.#book.arrivals(),
    };
  }

  async peers(): Promise<readonly PeerInfo[]> {
    return this.#presence?.peers() ?? [];
  }

  async discoverPeers(options: CallOptions = {}): Promise<readonly PeerInfo[]> {
    const presence = this.#presence;
    if (presence !== null) {
      const { directory, exchange, liveness } = presence;
      const some = sample(directory.others(), COMPARED, Math.random);
      await Promise.allSettled(some.map((node) => exchange.sync(node, 'nodes', options.signal)));
      const probed = directory.others().slice(0, PROBED_MAX);
      await Promise.allSettled(probed.map((node) => liveness.probe(node)));
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
    const { directory, exchange } = this.#present();
    const nodes = directory.others();
    const summary = { nodes: 0, unreachable: 0, received: 0, offered: 0 };
    // One after the other: what the first one brought, the second need not send again.
    for (const [at, node] of nodes.entries()) {
      options.signal?.throwIfAborted();
      options.onProgress?.({ step: 'sync', done: at, total: nodes.length, unit: 'steps', note: node.slice(0, 12) });
      try {
        for (const name of exchange.names) {
          const { received, offered } = await exchange.sync(node, name, options.signal);
          if (name !== 'records') continue;
          summary.received += received;
          summary.offered += offered;
        }
        summary.nodes += 1;
      } catch (error) {
        if (!isCoded(error) || isCoded(error, 'cancelled')) throw error;
        summary.unreachable += 1;
      }
    }
    return summary;
  }

  async announce(resource: Resource): Promise<void> {
    this.#keepOnly(await this.#lent.network());
    this.#book.keepResource(resource, await this.#isHere(resource));
    void this.#presence?.replication.arrived(resource.id);
  }

  async withdraw(id: Digest): Promise<void> {
    this.#book.dropResource(id);
    const codings = this.#book.codingIds({ resource: id });
    if (codings.length === 0) return;
    const { content } = this.#lent;
    await (this.#presence?.coded.forget(codings) ?? forgetCodings({ book: this.#book, content }, codings));
  }

  async fetch(
    resource: Digest,
    blob: BlobDescription,
    options: CallOptions & { readonly use?: ContentUse } = {},
  ): Promise<BlobInfo> {
    const here = await this.#lent.content.stat(blob.digest);
    if (here !== null) return here;
    const presence = this.#presence;
    if (presence === null) {
      throw new HyperMeshError('content-unavailable', `${blob.digest} is not on this node, which is in no network.`, {
        hint: 'Publish the package here, or join the network that has it: hypermesh network join INVITE',
      });
    }
    const { coded } = presence;
    const isRestored = (await coded.isAlone(resource, blob, options)) && (await coded.restore(blob, options));
    if (!isRestored) {
      try {
        await this.#download(presence, resource, blob, options);
      } catch (error) {
        if (!isCoded(error, 'content-unavailable') || !(await coded.restore(blob, options))) throw error;
      }
    }
    const known = this.#book.get(resource);
    if (known !== null && !known.held && (await this.#isHere(known))) {
      this.#book.setHeld(resource, true);
      void presence.replication.arrived(resource);
    }
    return (await this.#lent.content.stat(blob.digest))!;
  }

  async distribute(id: Digest, options: CallOptions & { readonly code?: Code } = {}): Promise<Distribution> {
    const { coded, exchange, replication } = this.#present();
    const resource = this.#book.get(id);
    if (resource === null) {
      throw new HyperMeshError('asset-not-found', `The network was not told of ${id}.`, {
        hint: 'Private packages stay where they are.',
      });
    }
    // Whoever has not heard of it yet learns of it first.
    const { code } = options;
    const asked = code === undefined ? replication.places(resource) : replication.ranked(id).slice(0, code.k + code.m);
    const others = asked.filter((node) => node !== this.node);
    await Promise.allSettled(others.map((node) => exchange.sync(node, 'records', options.signal)));
    if (code !== undefined) return coded.code(resource, code, options);
    return replication.distribute(id, {
      signal: options.signal,
      report: (done, total) => {
        const note = `${done} of ${total} copies`;
        options.onProgress?.({ step: 'distribute', done, total, unit: 'steps', note });
      },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#arrivals[Symbol.dispose]();
    await this.#exclusive(() => this.#leave());
    await this.#book[Symbol.asyncDispose]();
  }

  async #enter(entry: Entry): Promise<void> {
    await this.#leave();
    this.#presence = await preparePresence(this.#presenceLent(), entry, this.#settings);
    try {
      await this.#presence.begin();
    } catch (error) {
      await this.#leave();
      throw error;
    }
  }

  async #leave(): Promise<void> {
    const presence = this.#presence;
    this.#presence = null;
    await presence?.[Symbol.asyncDispose]();
  }

  async #download(
    presence: Presence,
    resource: Digest,
    blob: BlobDescription,
    options: CallOptions & { readonly use?: ContentUse },
  ): Promise<void> {
    const fetching = { resource, blob: blob.digest, done: 0, total: blob.size };
    const access = presence.access.for(resource, options);
    const sources = async (_blob: Digest, { signal }: { readonly signal: AbortSignal }) => {
      return (await presence.sources(resource, signal)).map(access.from);
    };
    this.#fetching.add(fetching);
    try {
      await presence.downloader.fetch(
        blob,
        { sources },
        {
          signal: options.signal,
          onProgress: (progress) => {
            fetching.done = progress.done ?? fetching.done;
            options.onProgress?.({ ...progress, step: 'fetch' });
          },
        },
      );
    } catch (error) {
      throw access.told(error);
    } finally {
      this.#fetching.delete(fetching);
    }
  }

  #presenceLent(): PresenceLent {
    return {
      ...{ ...this.#lent, node: this.#node, book: this.#book, bans: this.#bans, arrivals: this.#arrivals },
      accuse: (node, why, evidence) => this.#accuse(node, why, evidence),
      bring: async (resource, signal) => {
        if (resource.replication === 0) await this.#present().coded.keep(resource, signal);
        else for (const blob of resource.blobs) await this.fetch(resource.id, blob, { signal });
      },
      release: (resource) => this.#release(resource),
      warn: (message, error) => {
        this.#settings.log?.('warn', message, { error: isCoded(error) ? error.message : String(error) });
      },
    };
  }

  /** What is remembered of another network is forgotten; what this home said in its own before it was opened to others is told to them. */
  #keepOnly(networkId: Digest): void {
    if (this.#book.setting('network') === networkId) return;
    this.#clear();
    this.#book.set('network', networkId);
  }

  #clear(): void {
    const fragments = this.#book.fragmentsHeld();
    this.#book.clear();
    this.#bans.reload();
    // What is left of them is only space that is taken.
    this.#lent.content.drop(fragments).catch((error: unknown) => {
      this.#settings.log?.('warn', 'cannot remove fragments of another network', { error: String(error) });
    });
  }

  #accuse(node: NodeId, why: string, evidence: Uint8Array | string): void {
    if (node === this.node || this.#bans.has(node)) return;
    this.#bans.add(node, why, evidence, this.#settings.clock.nowMs());
    this.#settings.log?.('warn', 'node banned', { node, why });
    this.#presence?.banned(node);
    this.#lent.banned?.(node);
  }

  /** A blob that something else here has as well stays. */
  async #release({ id, blobs }: Resource): Promise<boolean> {
    const isShared = (blob: Digest) =>
      this.#book.resourcesWith(blob).some((other) => other !== id && this.#book.get(other)?.held === true);
    const alone = blobs.map(({ digest }) => digest).filter((digest) => !isShared(digest));
    const gone = alone.length > 0 && (await this.#lent.content.release(alone));
    if (gone) this.#settings.log?.('info', 'gave up a copy that others hold', { resource: id });
    return gone;
  }

  async #isHere({ blobs }: Resource): Promise<boolean> {
    const here = await Promise.all(blobs.map(({ digest }) => this.#lent.content.stat(digest)));
    return here.every((blob) => blob !== null);
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
}

function notBanned(node: NodeId): HyperMeshError {
  return new HyperMeshError('usage', `No banned node has the id ${node.slice(0, 64)}.`, {
    hint: '`hypermesh peers bans` lists those that are.',
  });
}
