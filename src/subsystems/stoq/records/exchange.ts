import { fromHex, hex, utf8 } from '../../../base/bytes.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import {
  compareAnswerBytesMax,
  decodeCompareAnswer,
  decodeCompareRequest,
  encodeCompareAnswer,
  encodeCompareRequest,
} from '../../../wire/reconcile.ts';
import {
  decodeRecordsAnswer,
  decodeRecordsNews,
  decodeRecordsRequest,
  encodeRecordsAnswer,
  encodeRecordsNews,
  encodeRecordsRequest,
  RECORDS_ANSWER_BYTES_MAX,
  RECORDS_LIMITS,
} from '../../../wire/records.ts';
import { type Answer, type Surroundings, sample } from '../ask.ts';
import type { NodeId } from '../channel/index.ts';
import type { IdSet } from './id-set.ts';
import { type Difference, reconcile } from './reconcile.ts';

/** `aside`: nothing is wrong with it, but it is not handed on, at least not yet; see {@link RecordExchange.accepted}. */
export type Reception = 'accepted' | 'aside' | 'refused';

/** Records of one kind, which every node of the network is to hold. */
export interface Collection {
  readonly name: string;
  /** Whoever has none learns of them from others alone: they tell it, and compare with it. */
  readonly isRare?: boolean;
  /** Those that were accepted: what this node vouches for and hands on. */
  readonly ids: IdSet;
  /** Whether there is nothing to gain from fetching it: accepted, waiting to be judged, or refused before. */
  knows(id: Digest): boolean;
  /** Whether more can be taken from that node now; what it has beyond waits for a later comparison. */
  hasRoom(from: NodeId): boolean;
  read(id: Digest): Promise<Uint8Array | null>;
  /** Takes bytes that hash to `id`. */
  receive(id: Digest, bytes: Uint8Array, from: NodeId): Promise<Reception>;
}

export interface SyncResult {
  /** Records that came, and that the other side was told of. */
  readonly received: number;
  readonly offered: number;
}

export interface ExchangeOptions {
  readonly collections: readonly Collection[];
  /** Nodes that news can be told to. */
  readonly reachable: () => readonly NodeId[];
  /** A node handed over what is no record, or one that breaks the rules: with the bytes that show it. */
  readonly accuse: (node: NodeId, why: string, evidence: Uint8Array) => void;
  /** Nodes that each piece of news is passed on to. */
  readonly fanout: number;
}

/** News gather for this long, so that many go in one message. */
const NEWS_DELAY_MS = 100;
const FETCH_BATCH = 64;
/** Ids that wait to be fetched from one node; what is beyond comes with the next sync. */
const WAITING_MAX = 4_096;

/**
 * Keeps collections of records equal among nodes: news of single records spread by gossip, and a comparison of sets with one node
 * at a time finds whatever gossip missed.
 */
export class RecordExchange implements AsyncDisposable {
  readonly #around: Surroundings;
  readonly #options: ExchangeOptions;
  readonly #collections: ReadonlyMap<string, Collection>;
  /** By collection: what is to be told, and who told it here. */
  readonly #news = new Map<string, Map<Digest, NodeId | undefined>>();
  /** By node: what it told of and is still to be fetched from it. */
  readonly #waiting = new Map<NodeId, { readonly ids: Map<string, Set<string>>; done: Promise<void> }>();
  /** What came and is being taken in. */
  readonly #fetching = new Map<Digest, Promise<Reception>>();
  #cancelNews: (() => void) | null = null;
  #closed = false;

  constructor(around: Surroundings, options: ExchangeOptions) {
    this.#around = around;
    this.#options = options;
    this.#collections = new Map(options.collections.map((collection) => [collection.name, collection]));
  }

  /** Those that can be compared; what hardly any network has is not asked for by a node that has none. */
  get names(): string[] {
    const some = [...this.#collections.values()].filter(({ isRare, ids }) => isRare !== true || ids.size > 0);
    return some.map(({ name }) => name);
  }

  /** The methods that other nodes call. */
  answers(): ReadonlyMap<string, Answer> {
    return new Map<string, Answer>([
      ['records/compare', async (body) => this.#compare(body)],
      ['records/get', (body) => this.#get(body)],
      ['records/news', async (body, from) => this.#heard(body, from)],
    ]);
  }

  /** The record was accepted: other nodes get to hear of it. `from` knows it already. */
  accepted(collection: string, id: Digest, from?: NodeId): void {
    if (!this.#of(collection).ids.add(id)) return;
    this.#spread(collection, id, from);
  }

  /** The record counts as known, although this node has no bytes of it to hand on. */
  known(collection: string, id: Digest): void {
    this.#of(collection).ids.add(id);
  }

  /** Compares one collection with another node's, fetches what is missing here and tells it what is missing there. */
  async sync(node: NodeId, name: string, signal?: AbortSignal): Promise<SyncResult> {
    const collection = this.#of(name);
    const salt = Uint8Array.from({ length: 16 }, () => Math.floor(this.#around.random() * 256));
    const { theirs, ours } = await this.#accusing(node, () => this.#difference(node, collection, salt, signal));
    const received = await this.#accusing(node, () => this.#fetch(node, collection, theirs.map(hex), signal));
    const offered = ours.map((short) => collection.ids.find(short)).filter((id) => id !== null);
    for (let at = 0; at < offered.length; at += RECORDS_LIMITS.idsMax) {
      await this.#tell(node, name, offered.slice(at, at + RECORDS_LIMITS.idsMax), signal);
    }
    return { received, offered: offered.length };
  }

  /** Nothing is taken in any more when it resolves. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#cancelNews?.();
    this.#waiting.clear();
    await Promise.allSettled(this.#fetching.values());
  }

  #difference(node: NodeId, { name, ids }: Collection, salt: Uint8Array, signal?: AbortSignal): Promise<Difference> {
    return reconcile(ids, salt, async (ranges) => {
      const question = encodeCompareRequest({ collection: name, salt: hex(salt), ranges });
      const options = { replyBytesMax: compareAnswerBytesMax(ranges.length), signal };
      return decodeCompareAnswer(await this.#around.ask(node, 'records/compare', question, options), ranges);
    });
  }

  /** An answer that cannot be read costs whoever gave it its place. */
  async #accusing<T>(node: NodeId, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (isCoded(error, 'peer-lied')) {
        const { message, cause } = error;
        const evidence = cause instanceof Uint8Array ? cause : utf8(message);
        this.#options.accuse(node, `broke the protocol: ${message}`, evidence);
      }
      throw error;
    }
  }

  /** How many records came that were not known here. */
  async #fetch(node: NodeId, collection: Collection, wanted: readonly string[], signal?: AbortSignal): Promise<number> {
    let left = wanted;
    let received = 0;
    while (left.length > 0 && collection.hasRoom(node)) {
      signal?.throwIfAborted();
      const asked = left.slice(0, FETCH_BATCH);
      const body = encodeRecordsRequest({ collection: collection.name, ids: asked });
      const options = { replyBytesMax: RECORDS_ANSWER_BYTES_MAX, signal };
      const bodies = decodeRecordsAnswer(await this.#around.ask(node, 'records/get', body, options), asked.length);
      for (const [index, bytes] of bodies.entries()) {
        if (bytes !== null && (await this.#receive(node, collection, asked[index]!, bytes))) received += 1;
      }
      left = left.slice(bodies.length);
    }
    return received;
  }

  async #receive(node: NodeId, collection: Collection, asked: string, bytes: Uint8Array): Promise<boolean> {
    const id = digestOf(bytes);
    if (!digestHex(id).startsWith(asked)) {
      throw new HyperMeshError('peer-lied', `The other node handed over ${id} as the record ${asked}.`, {
        cause: bytes,
      });
    }
    if (this.#closed) throw new HyperMeshError('cancelled', 'This node takes no records any more.');
    if (collection.knows(id) || this.#fetching.has(id)) return false;
    const receiving = collection.receive(id, bytes, node);
    this.#fetching.set(id, receiving);
    try {
      const reception = await receiving;
      if (reception === 'accepted') this.accepted(collection.name, id, node);
      if (reception === 'refused')
        this.#options.accuse(node, `vouched for the record ${id}, which breaks the rules`, bytes);
      return reception !== 'refused';
    } finally {
      this.#fetching.delete(id);
    }
  }

  // What others ask

  #compare(body: Uint8Array): Uint8Array {
    const { collection, salt, ranges } = decodeCompareRequest(body);
    const { ids } = this.#of(collection);
    return encodeCompareAnswer(ranges.map((prefix) => ids.answer(prefix, fromHex(salt))));
  }

  async #get(body: Uint8Array): Promise<Uint8Array> {
    const { collection: name, ids } = decodeRecordsRequest(body);
    const collection = this.#of(name);
    const records: (Uint8Array | null)[] = [];
    let size = 0;
    for (const short of ids) {
      const id = collection.ids.find(fromHex(short));
      const record = id === null ? null : await collection.read(id);
      records.push(record);
      size += record?.length ?? 0;
      if (size > RECORDS_LIMITS.answerBytes) break;
    }
    return encodeRecordsAnswer(records);
  }

  #heard(body: Uint8Array, from: NodeId): Uint8Array {
    const { collection: name, ids } = decodeRecordsNews(body);
    const collection = this.#of(name);
    const unknown = ids.filter((id) => !collection.knows(id) && !this.#fetching.has(id));
    if (unknown.length > 0) this.#later(from, name, unknown);
    return new Uint8Array();
  }

  /** One fetch at a time from each node; what it tells meanwhile goes into the next. */
  #later(node: NodeId, collection: string, ids: readonly Digest[]): void {
    let entry = this.#waiting.get(node);
    if (entry === undefined) {
      entry = { ids: new Map(), done: Promise.resolve() };
      this.#waiting.set(node, entry);
      entry.done = this.#fetchWaiting(node, entry.ids);
    }
    const waiting = entry.ids.get(collection) ?? new Set();
    entry.ids.set(collection, waiting);
    for (const id of ids) if (waiting.size < WAITING_MAX) waiting.add(digestHex(id));
  }

  async #fetchWaiting(node: NodeId, queue: Map<string, Set<string>>): Promise<void> {
    await Promise.resolve();
    try {
      while (!this.#closed && queue.size > 0) {
        const [name, ids] = queue.entries().next().value!;
        queue.delete(name);
        const collection = this.#of(name);
        const wanted = [...ids].filter(
          (id) => !collection.knows(`sha256:${id}`) && !this.#fetching.has(`sha256:${id}`),
        );
        await this.#accusing(node, () => this.#fetch(node, collection, wanted));
      }
    } catch (error) {
      // Whoever cannot be reached now is compared with later.
      if (!isCoded(error)) throw error;
    } finally {
      this.#waiting.delete(node);
    }
  }

  // What others are told

  #spread(name: string, id: Digest, from: NodeId | undefined): void {
    if (this.#closed) return;
    const news = this.#news.get(name) ?? new Map<Digest, NodeId | undefined>();
    this.#news.set(name, news.set(id, from));
    this.#cancelNews ??= this.#around.timers.after(NEWS_DELAY_MS, () => this.#flush());
  }

  #flush(): void {
    this.#cancelNews = null;
    if (this.#closed) return;
    const news = [...this.#news];
    this.#news.clear();
    const told = sample(this.#options.reachable(), this.#options.fanout, this.#around.random);
    for (const [name, ids] of news) {
      for (const node of told) {
        let rest = [...ids].filter(([, from]) => from !== node).map(([id]) => id);
        for (; rest.length > 0; rest = rest.slice(RECORDS_LIMITS.idsMax)) {
          // Gossip is a favour: a node that misses it finds out when it compares.
          this.#tell(node, name, rest.slice(0, RECORDS_LIMITS.idsMax)).catch(() => undefined);
        }
      }
    }
  }

  async #tell(node: NodeId, collection: string, ids: readonly Digest[], signal?: AbortSignal): Promise<void> {
    const options = { replyBytesMax: 0, signal };
    await this.#around.ask(node, 'records/news', encodeRecordsNews({ collection, ids }), options);
  }

  #of(name: string): Collection {
    const collection = this.#collections.get(name);
    if (collection === undefined) throw new HyperMeshError('peer-lied', 'There is no such collection of records.');
    return collection;
  }
}
