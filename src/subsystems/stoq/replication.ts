import { setImmediate } from 'node:timers/promises';
import { checkCancelled } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import type { Distribution, Resource } from '../../capabilities/transport.ts';
import {
  aboutResource,
  decodeMessage,
  encodeMessage,
  HOLDERS_MAX,
  holders,
  keeping,
  OVERLAY_BYTES_MAX,
  RESOURCE_IDS_MAX,
  resourceIds,
} from '../../wire/overlay.ts';
import { type Answer, every, promptly, type Surroundings, sample } from './ask.ts';
import type { NodeId } from './channel/index.ts';
import { Placement } from './placement.ts';

export interface KeptResource extends Resource {
  /** Every blob of it is here. */
  readonly held: boolean;
  readonly pinned: boolean;
}

/** A resource without its blobs. */
export type ResourceLine = Pick<KeptResource, 'id' | 'replication' | 'held' | 'pinned'>;

/** Where resources are remembered: the book of the node, or the memory of a simulated one. */
export interface ResourceBook {
  get(id: Digest): KeptResource | null;
  /** In the order of their ids, those after `after`. */
  page(after: string, limit: number): readonly ResourceLine[];
  setHeld(id: Digest, held: boolean): void;
}

/** What is different for content that was coded (docs/protocol/coding.md). Fragments are resources that ask for no places. */
export interface CodedRules {
  /** Fragments stand in for the copies of this resource, as this node has seen for itself. */
  standIn(id: Digest): boolean;
  /** Whether every fragment of a resource that is held here is shown, each by another node. */
  shown(resource: Resource): Promise<boolean>;
  /** Whether a fragment may be kept here. */
  mayKeep(fragment: Resource): boolean;
}

export interface ReplicationOptions {
  readonly self: NodeId;
  readonly book: ResourceBook;
  /** Others that answer. */
  readonly alive: () => readonly NodeId[];
  readonly isAway: (node: NodeId) => boolean;
  /** Brings every blob of a resource here; resolves when it is whole. */
  readonly bring: (resource: Resource, signal?: AbortSignal) => Promise<void>;
  /** Whether a node that says it holds the resource, which is held here, shows that it does. */
  readonly audit: (node: NodeId, resource: Resource) => Promise<boolean>;
  /** Gives the copy that is here up, unless something on this node needs it. Returns whether it is gone. */
  readonly release: (resource: Resource) => Promise<boolean>;
  /** How often places are computed anew, and what is held is announced again. */
  readonly periodMs: number;
  /** Resources that are brought at the same time. */
  readonly concurrency: number;
  /** Whether this node keeps copies for others at all. */
  readonly keeps: boolean;
  readonly coded?: CodedRules;
}

/** Places beside those that are to hold a resource, who are told of it too: they take over when one of those goes. */
const DEPUTIES = 2;
/** An announcement is good for so many periods. */
const PERIODS_GOOD = 3;
const TRACKED_MAX = 200_000;
const ASKED_PLACES_MAX = 100_000;
const PAGE = 256;
const ANNOUNCE_TIMEOUT_MS = 10_000;
/** Once a holder is known, others are waited for so long. */
const FIND_MOMENT_MS = 500;
/** How often a node may answer that it has not heard of a resource yet, before another one is asked. */
const UNKNOWN_MAX = 40;
/** Claims of others that are looked into in one period, and copies that are given up. */
const AUDITS_MAX = 32;
const RELEASES_MAX = 16;
/** A claim that did not hold is not believed again for so many periods. */
const PERIODS_DOUBTED = 3;
/** Nodes come and go in groups. */
const SETTLE_DELAY_MS = 3_000;
/** After a resource could not be brought. */
const RETRY_MS = 30_000;

/**
 * Sees to it that each resource lies on as many nodes as it asks for: the first ones of its {@link placement} among those that answer. Each node acts for itself
 * alone: it fetches what it is a place of, and tells the places of a resource that it holds it. Nobody can announce for another.
 */
export class Replication implements Disposable {
  readonly #around: Surroundings;
  readonly #options: ReplicationOptions;
  /** By resource: who said that it holds it, and until when that is good. */
  readonly #holders = new Map<Digest, Map<NodeId, number>>();
  readonly #bringing = new Map<Digest, Promise<boolean>>();
  readonly #retryAtMs = new Map<Digest, number>();
  readonly #queue = new Set<Digest>();
  /** `node resource` of claims that did not hold -> until when they do not count. */
  readonly #doubted = new Map<string, number>();
  /** Held here without being a place of it, as of the last look. */
  #surplus: ReadonlySet<Digest> = new Set();
  readonly #closing = new AbortController();
  readonly #stop: () => void;
  /** Of the nodes that are alive; computed anew when they change. */
  #placement: Placement | null = null;
  /** Answers of {@link isPlace} for that placement. */
  readonly #isPlace = new Map<string, boolean>();
  #cancelSettle: (() => void) | null = null;
  #settling: Promise<void> | null = null;

  constructor(around: Surroundings, options: ReplicationOptions) {
    this.#around = around;
    this.#options = options;
    this.#stop = every(around, options.periodMs, () => this.settle());
  }

  answers(): ReadonlyMap<string, Answer> {
    return new Map<string, Answer>([
      ['resources/announce', async (body, from) => this.#announced(decodeMessage(resourceIds, body).ids, from)],
      ['resources/holders', async (body) => this.#tellHolders(decodeMessage(aboutResource, body).id)],
      ['resources/keep', async (body) => this.#keep(decodeMessage(aboutResource, body).id)],
    ]);
  }

  /** Nodes that are to hold the resource, best first, this one perhaps among them. */
  places(resource: Pick<Resource, 'id' | 'replication'>): NodeId[] {
    return this.#ranking().top(resource.id, resource.replication);
  }

  /** Whether that node is asked to hold the resource, as far as this node sees; the deputies are, too. */
  isPlace(node: NodeId, id: Digest): boolean {
    const key = `${node} ${id}`;
    let is = this.#isPlace.get(key);
    if (is === undefined) {
      is = this.#ranking()
        .top(id, this.#replicationOf(id) + DEPUTIES)
        .includes(node);
      if (this.#isPlace.size >= ASKED_PLACES_MAX) this.#isPlace.clear();
      this.#isPlace.set(key, is);
    }
    return is;
  }

  /** A resource became known, or is held here now. */
  async arrived(id: Digest): Promise<void> {
    if (this.#isClosed) return;
    const resource = this.#options.book.get(id);
    if (resource === null) return;
    if (resource.held) await this.#announce([resource]);
    else this.#consider(resource);
  }

  /** Not all of a resource is here after all. */
  async lost(id: Digest): Promise<void> {
    const resource = this.#isClosed ? null : this.#options.book.get(id);
    if (resource?.held !== true) return;
    this.#options.book.setHeld(id, false);
    this.#consider(resource);
  }

  /** Membership changed: places are computed anew soon, once for many changes. */
  changed(): void {
    if (this.#isClosed) return;
    this.#placement = null;
    this.#cancelSettle ??= this.#around.timers.after(SETTLE_DELAY_MS, () => {
      this.#cancelSettle = null;
      this.settle().catch((error: unknown) => {
        // What could not be looked at now is looked at in the next period.
        if (!isCoded(error)) throw error;
      });
    });
  }

  /** Goes through all resources: takes those that this node became a place of, and announces what it holds. */
  settle(): Promise<void> {
    this.#settling ??= this.#settle().finally(() => {
      this.#settling = null;
    });
    return this.#settling;
  }

  /** Nodes that said they hold it and are not away, and what its places know of others. Nearest knowledge first. */
  async find(id: Digest): Promise<NodeId[]> {
    const known = this.#known(id);
    const trackers = this.#ranking().top(id, this.#replicationOf(id) + DEPUTIES);
    const others = trackers.filter((node) => node !== this.#options.self);
    const answers = others.map(async (node) => {
      const body = encodeMessage({ id });
      const options = { replyBytesMax: OVERLAY_BYTES_MAX, timeoutMs: ANNOUNCE_TIMEOUT_MS };
      return decodeMessage(holders, await this.#around.ask(node, 'resources/holders', body, options)).nodes;
    });
    const said = [Promise.resolve(known), ...answers];
    const found = new Set((await promptly(this.#around, FIND_MOMENT_MS, said, ({ length }) => length > 0)).flat());
    found.delete(this.#options.self);
    return [...found].filter((node) => !this.#options.isAway(node));
  }

  /** Asks the places of a resource to hold it, until they do or nothing moves any more. */
  async distribute(
    id: Digest,
    options: {
      readonly signal?: AbortSignal | undefined;
      readonly report?: (held: number, wanted: number) => void;
    } = {},
  ): Promise<Distribution> {
    const resource = this.#options.book.get(id)!;
    const held = new Set<NodeId>(resource.held ? [this.#options.self] : []);
    const hopeless = new Set<NodeId>();
    const puzzled = new Map<NodeId, number>();
    for (;;) {
      options.signal?.throwIfAborted();
      const ranking = this.#ranking();
      const candidates = ranking.top(id, ranking.size).filter((node) => !hopeless.has(node) && !held.has(node));
      const wanted = Math.min(resource.replication, held.size + candidates.length);
      options.report?.(held.size, wanted);
      if (held.size >= wanted) return { id, wanted: resource.replication, holders: [...held] };
      const states = await Promise.all(
        candidates.slice(0, wanted - held.size).map(async (node) => [node, await this.#askToKeep(node, id)] as const),
      );
      for (const [node, state] of states) {
        if (state === 'held') (await this.#isTrue(node, resource)) ? held.add(node) : hopeless.add(node);
        else if (state === 'refused') hopeless.add(node);
        else if (state === 'unknown') {
          const times = (puzzled.get(node) ?? 0) + 1;
          puzzled.set(node, times);
          if (times >= UNKNOWN_MAX) hopeless.add(node);
        }
      }
      if (states.some(([, state]) => state === 'coming' || state === 'unknown')) await this.#wait(250);
    }
  }

  /** All nodes that can be asked to hold something, this one perhaps among them, in the order of their places for that id. */
  ranked(id: Digest): NodeId[] {
    const ranking = this.#ranking();
    return ranking.top(id, ranking.size);
  }

  /** Asks one node to hold a resource, and waits until it does or will not. Whether it says that it does. */
  async entrust(node: NodeId, id: Digest, signal?: AbortSignal): Promise<boolean> {
    for (let unknown = 0; unknown < UNKNOWN_MAX && !this.#isClosed; ) {
      checkCancelled(signal);
      const state = await this.#askToKeep(node, id);
      if (state === 'held') return true;
      if (state === 'refused') return false;
      if (state === 'unknown') unknown += 1;
      await this.#wait(250);
    }
    return false;
  }

  /** What a node said of a resource did not hold: it does not count for a while. */
  doubt(node: NodeId, id: Digest): void {
    const untilMs = this.#around.clock.nowMs() + PERIODS_DOUBTED * this.#options.periodMs;
    this.#doubted.set(claimOf(node, id), untilMs);
    this.#holders.get(id)?.delete(node);
  }

  /** Tells one node that this one holds a resource. */
  async tell(node: NodeId, id: Digest): Promise<void> {
    await this.#tell(node, [id]);
  }

  /** Resources that are held here and are known to lie on fewer nodes than they should and could. */
  async underReplicated(): Promise<number> {
    const possible = this.#options.alive().length + 1;
    // Nobody else could have a copy.
    if (possible === 1) return 0;
    let count = 0;
    for await (const page of this.#pages()) {
      for (const resource of page) {
        if (!resource.held || this.#options.coded?.standIn(resource.id) === true) continue;
        const copies = 1 + this.#known(resource.id).filter((node) => node !== this.#options.self).length;
        if (copies < Math.min(resource.replication, possible)) count += 1;
      }
    }
    return count;
  }

  [Symbol.dispose](): void {
    this.#stop();
    this.#cancelSettle?.();
    this.#closing.abort();
    this.#queue.clear();
  }

  /** The book is closed soon after this. */
  get #isClosed(): boolean {
    return this.#closing.signal.aborted;
  }

  async #settle(): Promise<void> {
    this.#placement = null;
    const nowMs = this.#around.clock.nowMs();
    for (const [id, nodes] of this.#holders) {
      for (const [node, untilMs] of nodes) if (untilMs < nowMs) nodes.delete(node);
      if (nodes.size === 0) this.#holders.delete(id);
    }
    for (const [id, atMs] of this.#retryAtMs) if (atMs < nowMs) this.#retryAtMs.delete(id);
    for (const [claim, untilMs] of this.#doubted) if (untilMs < nowMs) this.#doubted.delete(claim);
    let held: ResourceLine[] = [];
    const surplus = new Set<Digest>();
    const own: Digest[] = [];
    for await (const page of this.#pages()) {
      for (const resource of page) {
        if (!resource.held) {
          this.#consider(resource);
          continue;
        }
        const standIn = this.#options.coded?.standIn(resource.id) === true;
        if (!standIn && this.places(resource).includes(this.#options.self)) own.push(resource.id);
        else if (!resource.pinned) surplus.add(resource.id);
        if (held.push(resource) >= PAGE) {
          await this.#announce(held);
          held = [];
        }
      }
    }
    await this.#announce(held);
    await this.#auditSome(own);
    // What was too much a period ago, and is still: nodes that only went for a moment get their copies back.
    const lasting = [...surplus].filter((id) => this.#surplus.has(id));
    this.#surplus = surplus;
    if (this.#options.keeps) for (const id of lasting.slice(0, RELEASES_MAX)) await this.#release(id);
  }

  /** Looks into what others say of resources that this node is to hold with them. */
  async #auditSome(ids: readonly Digest[]): Promise<void> {
    const { book, self } = this.#options;
    for (const id of sample(ids, AUDITS_MAX, this.#around.random)) {
      const resource = this.#isClosed ? null : book.get(id);
      if (resource?.held !== true) continue;
      const [node] = sample(
        this.#known(id).filter((other) => other !== self),
        1,
        this.#around.random,
      );
      if (node !== undefined) await this.#isTrue(node, resource);
    }
  }

  /** Whether a node holds what it says; if not, its word on that does not count for a while. */
  async #isTrue(node: NodeId, resource: KeptResource): Promise<boolean> {
    // Only who has the bytes can tell.
    if (node === this.#options.self || !resource.held) return true;
    if (await this.#options.audit(node, resource)) return true;
    this.doubt(node, resource.id);
    return false;
  }

  /** Gives up a copy that nobody asked this node for, once every node that was asked, or each of enough fragments, has shown that it holds its own. */
  async #release(id: Digest): Promise<void> {
    const { book, release } = this.#options;
    const resource = this.#isClosed ? null : book.get(id);
    if (resource === null || !resource.held || resource.pinned || !(await this.#isElsewhere(resource))) return;
    // Whoever asks for it from here on is sent to the others; a crash before the bytes are gone leaves them for the next collection.
    book.setHeld(id, false);
    if (!(await release(resource)) && !this.#isClosed) book.setHeld(id, true);
  }

  async #isElsewhere(resource: KeptResource): Promise<boolean> {
    const { isAway, self, coded } = this.#options;
    if (coded?.standIn(resource.id) === true) return (await coded.shown(resource)) && !this.#isClosed;
    const places = this.places(resource);
    if (places.length < resource.replication || places.includes(self) || places.some(isAway)) return false;
    for (const node of places) if (!(await this.#isTrue(node, resource))) return false;
    return !this.#isClosed && this.places(resource).join() === places.join();
  }

  /** All resources, and a turn for everybody else after each page. */
  async *#pages(): AsyncGenerator<readonly ResourceLine[], void, undefined> {
    for (let after = ''; !this.#isClosed; ) {
      const page = this.#options.book.page(after, PAGE);
      yield page;
      if (page.length < PAGE) return;
      after = page.at(-1)!.id;
      await setImmediate();
    }
  }

  #ranking(): Placement {
    const { alive, self, keeps } = this.#options;
    if (this.#placement === null) {
      this.#placement = new Placement(keeps ? [self, ...alive()] : alive());
      this.#isPlace.clear();
    }
    return this.#placement;
  }

  #replicationOf(id: Digest): number {
    return this.#options.book.get(id)?.replication ?? 3;
  }

  #consider(resource: Pick<Resource, 'id' | 'replication'>): void {
    if (this.#closing.signal.aborted || this.#retryAtMs.has(resource.id) || this.#bringing.has(resource.id)) return;
    if (!this.places(resource).includes(this.#options.self) || this.#options.coded?.standIn(resource.id) === true)
      return;
    this.#queue.add(resource.id);
    this.#work();
  }

  #work(): void {
    while (this.#bringing.size < this.#options.concurrency) {
      const id = this.#queue.values().next().value;
      if (id === undefined) return;
      this.#queue.delete(id);
      void this.#bring(id);
    }
  }

  /** Whether the resource is here whole afterwards. */
  #bring(id: Digest): Promise<boolean> {
    const under = this.#bringing.get(id);
    if (under !== undefined) return under;
    const work = this.#bringNow(id).finally(() => {
      this.#bringing.delete(id);
      this.#work();
    });
    this.#bringing.set(id, work);
    return work;
  }

  async #bringNow(id: Digest): Promise<boolean> {
    const { book } = this.#options;
    const resource = book.get(id);
    if (resource === null) return false;
    if (resource.held) return true;
    try {
      await this.#options.bring(resource, this.#closing.signal);
    } catch (error) {
      if (!isCoded(error)) throw error;
      this.#retryAtMs.set(id, this.#around.clock.nowMs() + RETRY_MS);
      this.#around.timers.after(RETRY_MS, () => {
        this.#retryAtMs.delete(id);
        const again = this.#isClosed ? null : book.get(id);
        if (again !== null && !again.held) this.#consider(again);
      });
      return false;
    }
    // Withdrawn meanwhile: what came goes with the next collection.
    if (this.#isClosed || book.get(id) === null) return false;
    book.setHeld(id, true);
    await this.#announce([resource]);
    return true;
  }

  /** Tells the places of each resource that it is here. */
  async #announce(resources: readonly Pick<Resource, 'id' | 'replication'>[]): Promise<void> {
    const { self } = this.#options;
    const byNode = new Map<NodeId, Digest[]>();
    for (const { id, replication } of resources) {
      for (const node of this.#ranking().top(id, replication + DEPUTIES)) {
        if (node !== self) byNode.set(node, [...(byNode.get(node) ?? []), id]);
      }
    }
    const told = [...byNode].map(async ([node, ids]) => {
      for (let rest = ids; rest.length > 0; rest = rest.slice(RESOURCE_IDS_MAX)) {
        await this.#tell(node, rest.slice(0, RESOURCE_IDS_MAX));
      }
    });
    await Promise.all(told);
  }

  async #tell(node: NodeId, ids: readonly Digest[]): Promise<void> {
    const options = { replyBytesMax: 0, timeoutMs: ANNOUNCE_TIMEOUT_MS };
    // Who misses it hears it again in the next period.
    await this.#around.ask(node, 'resources/announce', encodeMessage({ ids }), options).catch(() => undefined);
  }

  #announced(ids: readonly Digest[], from: NodeId): Uint8Array {
    const untilMs = this.#around.clock.nowMs() + PERIODS_GOOD * this.#options.periodMs;
    for (const id of ids) {
      let nodes = this.#holders.get(id);
      if (nodes === undefined) {
        if (this.#holders.size >= TRACKED_MAX) this.#holders.delete(this.#holders.keys().next().value!);
        nodes = new Map();
        this.#holders.set(id, nodes);
      }
      if (this.#doubted.has(claimOf(from, id))) continue;
      if (nodes.size < HOLDERS_MAX || nodes.has(from)) nodes.set(from, untilMs);
    }
    return new Uint8Array();
  }

  #tellHolders(id: Digest): Uint8Array {
    const own = this.#options.book.get(id)?.held === true ? [this.#options.self] : [];
    const others = this.#known(id).filter((node) => node !== this.#options.self);
    return encodeMessage({ nodes: [...own, ...sample(others, HOLDERS_MAX - 1, this.#around.random)] });
  }

  #known(id: Digest): NodeId[] {
    return [...(this.#holders.get(id)?.keys() ?? [])].filter((node) => !this.#options.isAway(node));
  }

  #keep(id: Digest): Uint8Array {
    const resource = this.#options.book.get(id);
    if (resource === null) return encodeMessage({ state: 'unknown' });
    if (resource.held) return encodeMessage({ state: 'held' });
    // Also for a while after it could not be brought: whoever asks turns to another node meanwhile.
    const may = resource.replication > 0 || this.#options.coded?.mayKeep(resource) === true;
    if (!this.#options.keeps || this.#retryAtMs.has(id) || !may) return encodeMessage({ state: 'refused' });
    this.#queue.add(id);
    this.#work();
    return encodeMessage({ state: 'coming' });
  }

  async #askToKeep(node: NodeId, id: Digest): Promise<'held' | 'coming' | 'unknown' | 'refused'> {
    if (node === this.#options.self) return (await this.#bring(id)) ? 'held' : 'refused';
    const options = { replyBytesMax: OVERLAY_BYTES_MAX, timeoutMs: ANNOUNCE_TIMEOUT_MS };
    try {
      return decodeMessage(keeping, await this.#around.ask(node, 'resources/keep', encodeMessage({ id }), options))
        .state;
    } catch (error) {
      if (!isCoded(error)) throw error;
      return 'refused';
    }
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => this.#around.timers.after(ms, resolve));
  }
}

function claimOf(node: NodeId, id: Digest): string {
  return `${node} ${id}`;
}
