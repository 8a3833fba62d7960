import { type CallOptions, checkCancelled } from '../../../base/call.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { canonicalJson } from '../../../base/json.ts';
import { mapBounded } from '../../../base/streams.ts';
import type { BlobDescription, ContentExchange } from '../../../capabilities/content.ts';
import type { CodedFragment, ContentUse, Distribution, Resource } from '../../../capabilities/transport.ts';
import type { Trust } from '../../../capabilities/trust.ts';
import {
  CODING_LIMITS,
  CODING_TYPE,
  type Coding,
  type CodingShape,
  checkShape,
  encodeCoding,
  fragmentId,
  fragmentOf,
  fragmentSize,
} from '../../../wire/coding.ts';
import type { Holding } from '../../../wire/content.ts';
import { encodeSigned } from '../../../wire/signed.ts';
import { every, type Surroundings } from '../ask.ts';
import type { Audit } from '../audit.ts';
import type { Book, KnownCoding } from '../book.ts';
import type { NodeId } from '../channel/index.ts';
import type { Accusation, Downloader } from '../content/download.ts';
import type { Source } from '../content/source.ts';
import { Placement } from '../placement.ts';
import type { CodingCollection } from '../records/codings.ts';
import type { CodedRules, Replication } from '../replication.ts';
import { forgetCodings } from './forget.ts';
import {
  describe,
  digestOfWhole,
  fragmentBytes,
  type Material,
  materialOfFragments,
  materialOfWhole,
  wholeBytes,
} from './material.ts';

/** `use`: what the content is fetched for; see `Transport.fetch`. */
type FetchOptions = CallOptions & { readonly use?: ContentUse };

export interface CodedLent {
  readonly self: NodeId;
  readonly networkId: Digest;
  readonly book: Book;
  readonly content: ContentExchange;
  readonly trust: Pick<Trust, 'identity' | 'sign'>;
  readonly audit: Pick<Audit, 'holds'>;
  readonly replication: Replication;
  readonly collection: CodingCollection;
  /** A coding of this node is to be everybody's. */
  readonly accepted: (id: Digest) => void;
  /** Lets a node know at once what is coded here. */
  readonly inform: (node: NodeId, signal?: AbortSignal) => Promise<void>;
  /** These nodes, and some others, as far as they can be connected; they are shown that this home may use `resource` where they want to see it. */
  readonly sources: (nodes: readonly NodeId[], resource: Digest, options: FetchOptions) => Promise<readonly Source[]>;
  /** For what one coding describes alone: who does not give what a false word promised is no liar. */
  readonly downloader: (accuse: (accusation: Accusation) => void) => Downloader;
  readonly accuse: (node: NodeId, why: string, evidence: Uint8Array | string) => void;
  readonly warn: (message: string, error: unknown) => void;
  /** How long a fragment may be missed before it is made again. */
  readonly patienceMs: number;
}

/** Codings that are looked after in one round. */
const LOOKED_AFTER_MAX = 256;
/** Rounds in one patience. */
const ROUNDS = 16;
const ROUND_MS_MAX = 900_000;
/** Fragments that move at the same time. */
const TOGETHER = 4;
/** How long a node may take to say what it has. */
const HAVE_MS_MAX = 5_000;
/** The first of those who could repair does; the next one when nothing came of it for this part of the patience. */
const TURN = 4;

/** What is looked at of one coding. */
interface Entry extends KnownCoding {
  readonly fragments: readonly Resource[];
}

/**
 * Content of which fragments lie on other nodes (docs/protocol/coding.md): makes and places them, puts the whole together from them, and makes those again
 * that are missed for long. What a coding says is believed by nobody who did not see it for himself: a false one costs time.
 */
export class Coded implements CodedRules, AsyncDisposable {
  readonly #around: Surroundings;
  readonly #lent: CodedLent;
  readonly #closing = new AbortController();
  readonly #stop: () => void;
  /** Fragments that were made here for others, and are here only until they have them. */
  readonly #offered = new Set<Digest>();
  /** `node blob`: who was asked to keep what. */
  readonly #entrusted = new Set<string>();
  /** By blob: works on it come one after the other. */
  readonly #turns = new Map<Digest, Promise<unknown>>();
  /** `coding index` -> since when nobody is known to hold it. */
  readonly #missedSinceMs = new Map<string, number>();
  #standIn: ReadonlySet<Digest> = new Set();
  #rounding: Promise<void> = Promise.resolve();
  /** Where the next round begins. */
  #cursor = 0;

  constructor(around: Surroundings, lent: CodedLent) {
    this.#around = around;
    this.#lent = lent;
    this.#stop = every(around, Math.min(ROUND_MS_MAX, lent.patienceMs / ROUNDS), () => {
      this.#rounding = this.#round();
      return this.#rounding;
    });
    this.#countTrue();
  }

  // Rules for others

  standIn(id: Digest): boolean {
    return this.#standIn.has(id);
  }

  async shown(resource: Resource): Promise<boolean> {
    for (const blob of resource.blobs) {
      let isShown = false;
      for (const entry of this.#entries(blob.digest)) isShown ||= entry.checked && (await this.#allShown(entry));
      if (!isShown) return false;
    }
    return true;
  }

  /** One fragment of a blob, whatever it was coded as: who has two of them is no better than who has one. */
  mayKeep(fragment: Resource): boolean {
    const { book } = this.#lent;
    return book.codingsWith(fragment.id).some(({ coding }) => {
      const others = this.#entries(coding.blob.digest).flatMap(({ fragments }) => fragments);
      return others.every(({ id }) => id === fragment.id || book.get(id)?.held !== true);
    });
  }

  /** Whether that blob is a fragment which this node gives although it does not keep it. */
  offers(blob: Digest): boolean {
    return this.#offered.has(blob);
  }

  wasEntrusted(node: NodeId, blob: Digest): boolean {
    return this.#entrusted.has(`${node} ${blob}`);
  }

  // What is asked of this node

  /**
   * Makes the fragments of what is held here, places each at another node, and lets the network know.
   * Errors: `usage`, `content-unavailable`, `network-unreachable`, `cancelled`, `storage-*`.
   */
  async code(resource: Resource, shape: CodingShape, asked: CallOptions = {}): Promise<Distribution> {
    checkShape(shape);
    const options = { ...asked, signal: this.#signal(asked) };
    const wanted = shape.k + shape.m;
    const nodes = this.#lent.replication.ranked(resource.id).length;
    if (nodes < wanted) {
      const text = `${shape.k}+${shape.m} needs ${wanted} nodes that keep content for others; ${nodes} answer now.`;
      throw new HyperMeshError('network-unreachable', text, { hint: 'Copies serve a small network better.' });
    }
    for (const { size } of resource.blobs) {
      if (size >= CODING_LIMITS.blobBytesMin) continue;
      throw new HyperMeshError('usage', `Content of less than ${CODING_LIMITS.blobBytesMin} bytes is not coded.`, {
        hint: 'Copies serve it better: leave the code out.',
      });
    }
    const fragments: CodedFragment[] = [];
    for (const blob of resource.blobs) {
      const placed = await this.#inTurn(blob.digest, () => this.#codeOne(resource.id, blob, shape, options));
      for (const [index, node] of placed.entries()) fragments.push({ blob: blob.digest, index, node });
    }
    this.#countTrue();
    const holders = new Set(fragments.flatMap(({ node }) => node ?? []));
    return { id: resource.id, wanted, holders: [...holders], fragments };
  }

  /** Whether a blob was coded, and no node that answers says that it has any of it as it is. */
  async isAlone(resource: Digest, { digest }: BlobDescription, options: FetchOptions = {}): Promise<boolean> {
    const { book, replication, sources } = this.#lent;
    if (book.codingsOf(digest).length === 0) return false;
    const signal = this.#signal(options);
    const all = await sources(await replication.find(resource), resource, { ...options, signal });
    return (await this.#having(all, digest, signal, 'complete', 'partial')).length === 0;
  }

  /** Puts a blob together from fragments, where enough of them can be had. Errors: `cancelled`, `storage-*`. */
  async restore(blob: BlobDescription, asked: FetchOptions = {}): Promise<boolean> {
    if (this.#entries(blob.digest).length === 0) return false;
    const options = { ...asked, signal: this.#signal(asked) };
    return this.#inTurn(blob.digest, async () => {
      for (const entry of this.#entries(blob.digest)) {
        const here = await this.#lent.content.stat(blob.digest);
        if (here !== null || (await this.#restoreBy(entry, options))) return true;
      }
      return false;
    });
  }

  /** Brings a fragment here, to be kept. Errors: `content-unavailable`, `not-permitted`, `storage-*`, `cancelled`. */
  async keep(fragment: Resource, signal?: AbortSignal): Promise<void> {
    const { book, content } = this.#lent;
    const [blob] = fragment.blobs;
    const [entry] = book.codingsWith(fragment.id).map(withFragments);
    if (blob === undefined || entry === undefined) throw unavailable('nobody described it');
    // Being here for another reason, it may be somebody's secret: what is kept as a fragment is given to others.
    if (!this.#offered.has(blob.digest) && (await content.stat(blob.digest)) !== null) {
      throw new HyperMeshError('not-permitted', 'These bytes are here for another reason.');
    }
    if (!this.#offered.has(blob.digest)) await this.#fetch(entry, blob, await this.#nodesOf([fragment]), { signal });
    await content.keep(blob.digest);
    if (book.get(fragment.id) === null) {
      await content.drop([blob.digest]);
      throw unavailable('its description was found to be false meanwhile');
    }
    book.holdFragment(fragment);
  }

  /** A resource is gone, or the coding was false: nothing of it is kept. */
  async forget(codings: readonly Digest[]): Promise<void> {
    await forgetCodings(this.#lent, codings);
    for (const id of codings) this.#lent.collection.forget(id);
    this.#countTrue();
  }

  /** What this node knows of coded content; `missing`: fragments that nobody is known to hold, of what this node has a part of. */
  figures(): { readonly packages: number; readonly fragments: number; readonly missing: number } {
    const { packages, fragments } = this.#lent.book.codingTotals();
    return { packages, fragments, missing: this.#missedSinceMs.size };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop();
    this.#closing.abort();
    await Promise.allSettled([this.#rounding, ...this.#turns.values()]);
  }

  // Making and placing

  async #codeOne(
    resource: Digest,
    blob: BlobDescription,
    shape: CodingShape,
    options: CallOptions & { readonly signal: AbortSignal },
  ): Promise<(NodeId | null)[]> {
    const { content } = this.#lent;
    if ((await content.stat(blob.digest)) === null) {
      throw new HyperMeshError('content-unavailable', `${blob.digest} is not on this node.`, {
        hint: 'Code it where it is, or install it first.',
      });
    }
    const known = this.#entries(blob.digest).find(
      ({ coding, checked }) => checked && coding.k === shape.k && coding.m === shape.m,
    );
    const material = materialOfWhole(content, { blob, ...shape });
    const size = fragmentSize(blob, shape);
    const count = shape.k + shape.m;
    // What a disk gave back wrong would be signed as the truth.
    if ((await digestOfWhole(material, { blob, ...shape }, options.signal)) !== blob.digest) {
      throw new HyperMeshError('blob-damaged', `The stored blob ${blob.digest} no longer has its digest.`, {
        hint: 'Publish or install the package again; check the disk with `hypermesh doctor`.',
      });
    }
    const made: Digest[] = [];
    try {
      const fragments: Coding['fragments'][number][] = [];
      for (let index = 0; index < count; index++) {
        options.onProgress?.({ step: 'encode', done: index, total: count, unit: 'steps' });
        const { digest, shards } = await this.#make(material, index, size, made, options);
        fragments.push({ digest, count: shards.count, root: shards.root });
      }
      const entry = known ?? (await this.#describe(resource, blob, shape, fragments));
      return await this.#place(entry, [...fragments.keys()], options);
    } finally {
      await this.#withdraw(made);
    }
  }

  /** Puts a fragment into the store, to be given to others. */
  async #make(material: Material, index: number, size: number, made: Digest[], options: CallOptions) {
    const { content } = this.#lent;
    const { signal } = options;
    const info = await content.put(fragmentBytes(material, index, 0, size), { sizeMax: size, signal });
    if (this.#isKept(info.digest)) return info;
    made.push(info.digest);
    this.#offered.add(info.digest);
    return info;
  }

  async #describe(
    resource: Digest,
    { digest, size }: BlobDescription,
    { k, m }: CodingShape,
    fragments: Coding['fragments'],
  ): Promise<Entry> {
    const { trust, networkId, book, self, accepted } = this.#lent;
    if (new Set([digest, ...fragments.map((fragment) => fragment.digest)]).size <= fragments.length) {
      throw new HyperMeshError('usage', 'Parts of this content are alike, so its fragments would be the same.', {
        hint: 'Copies serve it: leave the code out.',
      });
    }
    const coding: Coding = {
      ...{ formatVersion: 1, network: networkId, resource, blob: { digest, size }, k, m, fragments },
      codedAtMs: this.#around.clock.nowMs(),
    };
    const { chain } = await trust.identity('node');
    const bytes = encodeSigned({ envelope: await trust.sign('node', CODING_TYPE, encodeCoding(coding)), chain });
    const known = { id: digestOf(bytes), coding, coder: self, bytes, checked: true };
    book.keepCoding(known, true);
    accepted(known.id);
    return withFragments(known);
  }

  /** Has fragments that are offered here kept by a node each that has no other one. Returns who keeps them, in the order of all fragments. */
  async #place(
    entry: Entry,
    indexes: readonly number[],
    { signal, onProgress }: CallOptions,
  ): Promise<(NodeId | null)[]> {
    const { replication, self, inform } = this.#lent;
    const placed: (NodeId | null)[] = [];
    const taken = new Set<NodeId>();
    for (const [index, { id }] of entry.fragments.entries()) {
      placed[index] = null;
      for (const node of this.#isHeld(id) ? [self] : await replication.find(id)) {
        // Who is known to hold one from an earlier attempt keeps it.
        if (taken.has(node) || (node !== self && !(await this.#isShown(entry, index, node)))) continue;
        placed[index] = node;
        taken.add(node);
        break;
      }
    }
    const others = replication.ranked(entry.coding.resource).filter((node) => node !== self && !taken.has(node));
    const isHere = replication.ranked(entry.coding.resource).includes(self) && !taken.has(self);
    const candidates = (isHere ? [...others, self] : others).values();
    const open = indexes.filter((index) => placed[index] === null);
    const report = () =>
      onProgress?.({
        ...{ step: 'distribute', done: placed.filter((node) => node !== null).length, total: entry.fragments.length },
        unit: 'steps',
      });
    await mapBounded(open, TOGETHER, async (index) => {
      const { id, blobs } = entry.fragments[index]!;
      for (const node of candidates) {
        checkCancelled(signal);
        report();
        this.#entrusted.add(`${node} ${blobs[0]!.digest}`);
        if (node !== self) {
          await inform(node, signal).catch(ignoreCoded);
          await replication.tell(node, id);
        }
        if (!(await replication.entrust(node, id, signal))) continue;
        if (node !== self && !(await this.#isShown(entry, index, node))) continue;
        placed[index] = node;
        break;
      }
    });
    report();
    const nowMs = this.#around.clock.nowMs();
    for (const [index, node] of placed.entries()) {
      const key = keyOf(entry, index);
      if (node !== null) this.#missedSinceMs.delete(key);
      else if (!this.#missedSinceMs.has(key)) this.#missedSinceMs.set(key, nowMs);
    }
    return placed;
  }

  /** Fragments that were made here for others go, but the one that is kept here. */
  async #withdraw(made: readonly Digest[]): Promise<void> {
    for (const blob of made) this.#offered.delete(blob);
    const gone = new Set(made);
    for (const key of this.#entrusted) if (gone.has(key.slice(65) as Digest)) this.#entrusted.delete(key);
    await this.#lent.content.drop(made.filter((blob) => !this.#isKept(blob)));
  }

  // Putting together

  async #restoreBy(entry: Entry, options: FetchOptions): Promise<boolean> {
    const { content } = this.#lent;
    const { coding } = entry;
    await using gathered = await this.#gather(entry, options);
    if (gathered === null) return false;
    const { digest, size } = coding.blob;
    try {
      const bytes = wholeBytes(materialOfFragments(content, coding, gathered.have), coding);
      await content.put(bytes, { expect: digest, sizeMax: size, signal: options.signal });
      return true;
    } catch (error) {
      if (!isCoded(error, 'blob-mismatch')) throw error;
      await this.#suspect(entry, gathered.have);
      return false;
    }
  }

  /** Brings k fragments here, or says that they cannot be had; those that came for this alone go when it is disposed of. */
  async #gather(entry: Entry, options: FetchOptions) {
    const { content } = this.#lent;
    const { coding, fragments } = entry;
    const have: number[] = [];
    const brought: Digest[] = [];
    const letGo = async () => {
      await content.drop(brought.filter((blob) => !this.#isKept(blob) && !this.#offered.has(blob)));
    };
    try {
      const absent: number[] = [];
      for (const [index, { blobs }] of fragments.entries()) {
        if ((await content.stat(blobs[0]!.digest)) === null) absent.push(index);
        else if (have.length < coding.k) have.push(index);
      }
      if (have.length < coding.k) {
        const nodes = await this.#nodesOf(absent.map((index) => fragments[index]!));
        const queue = absent.values();
        const fetchSome = async () => {
          for (const index of queue) {
            if (have.length >= coding.k) return;
            const blob = fragments[index]!.blobs[0]!;
            try {
              await this.#fetch(entry, blob, nodes, options);
              brought.push(blob.digest);
              have.push(index);
              const done = have.length;
              options.onProgress?.({ step: 'restore', done, total: coding.k, unit: 'steps' });
            } catch (error) {
              ignoreCoded(error);
              checkCancelled(options.signal);
            }
          }
        };
        await Promise.all(Array.from({ length: Math.min(TOGETHER, coding.k - have.length) }, fetchSome));
      }
    } catch (error) {
      await letGo();
      throw error;
    }
    if (have.length >= coding.k) return { have: have.slice(0, coding.k), [Symbol.asyncDispose]: letGo };
    await letGo();
    return null;
  }

  /** One fragment from those nodes that say that they have it. Errors: `content-unavailable`, `storage-*`, `cancelled`. */
  async #fetch(entry: Entry, blob: BlobDescription, nodes: readonly NodeId[], options: FetchOptions): Promise<void> {
    const { accuse, downloader, sources } = this.#lent;
    const signal = this.#signal(options);
    const all = await sources(nodes, entry.coding.resource, { ...options, signal });
    const having = await this.#having(all, blob.digest, signal, 'complete');
    if (having.length === 0) throw unavailable('no node that answers has it');
    const fetching = downloader(({ node, what, evidence }) => {
      if (entry.checked) accuse(node, `sent content that is not what was signed for (${what})`, evidence);
    });
    await fetching.fetch(blob, { sources: async () => having }, { signal });
  }

  /** Those that say that they have a blob; who does not answer for a moment has not. */
  async #having(sources: readonly Source[], blob: Digest, signal: AbortSignal, ...kinds: Holding['kind'][]) {
    const prompt = AbortSignal.any([signal, AbortSignal.timeout(HAVE_MS_MAX)]);
    const asked = sources.map(async (source) => {
      const [holding] = await source.have([blob], { signal: prompt }).catch(() => []);
      return holding !== undefined && kinds.includes(holding.kind) ? source : null;
    });
    return (await Promise.all(asked)).filter((source) => source !== null);
  }

  /** What was put together is not what it should be: either a disk gave back other bytes than it was given, or the coding is a lie. */
  async #suspect(entry: Entry, have: readonly number[]): Promise<void> {
    const { content } = this.#lent;
    const { coding } = entry;
    const material = materialOfFragments(content, coding, have);
    for (const index of have) {
      const { digest } = await describe(material, index, fragmentSize(coding.blob, coding), this.#signal({}));
      if (digest !== coding.fragments[index]!.digest) return;
    }
    await this.#lied(entry);
  }

  async #lied({ id, coder, bytes }: Entry): Promise<void> {
    const { book, accuse } = this.#lent;
    const others = book.codingIds({ coder }).filter((other) => book.coding(other)?.checked === false);
    await this.forget([...new Set([id, ...others])]);
    accuse(coder, `described content by fragments that do not make it (${id})`, bytes);
  }

  // Looking after

  async #round(): Promise<void> {
    const { book } = this.#lent;
    if (this.#isClosed || book.codingTotals().codings === 0) return;
    const ids = book.codingIds('all');
    const some = Array.from(
      { length: Math.min(LOOKED_AFTER_MAX, ids.length) },
      (_, at) => ids[(this.#cursor + at) % ids.length]!,
    );
    this.#cursor = (this.#cursor + some.length) % ids.length;
    for (const id of some) {
      const known = this.#isClosed ? null : book.coding(id);
      if (known === null) continue;
      try {
        await this.#lookAfter(withFragments(known));
      } catch (error) {
        if (!isCoded(error)) throw error;
        if (!this.#isClosed) this.#lent.warn('cannot look after coded content', error);
      }
    }
    for (const key of this.#missedSinceMs.keys()) {
      if (book.coding(key.split(' ')[0] as Digest) === null) this.#missedSinceMs.delete(key);
    }
  }

  async #lookAfter(entry: Entry): Promise<void> {
    const { book, content, replication } = this.#lent;
    const { coding, fragments } = entry;
    const hasWhole = (await content.stat(coding.blob.digest)) !== null;
    const isHeld = fragments.map(({ id }) => this.#isHeld(id));
    if (!hasWhole && !isHeld.includes(true)) {
      for (const index of fragments.keys()) this.#missedSinceMs.delete(keyOf(entry, index));
      return;
    }
    if (hasWhole && !entry.checked && !(await this.#inTurn(coding.blob.digest, () => this.#check(entry)))) return;
    const nowMs = this.#around.clock.nowMs();
    const holders = new Set<NodeId>([this.#lent.self]);
    const late: number[] = [];
    let longestMs = 0;
    for (const [index, { id }] of fragments.entries()) {
      const found = await replication.find(id);
      for (const node of found) holders.add(node);
      const key = keyOf(entry, index);
      const [one] = found;
      // Only who has the whole can tell whether somebody has a part of it.
      const isThere = isHeld[index] || (one !== undefined && (!hasWhole || (await this.#isShown(entry, index, one))));
      if (isThere) this.#missedSinceMs.delete(key);
      else if (!this.#missedSinceMs.has(key)) this.#missedSinceMs.set(key, nowMs);
      const missedMs = nowMs - (this.#missedSinceMs.get(key) ?? nowMs);
      if (missedMs >= this.#lent.patienceMs) late.push(index);
      longestMs = Math.max(longestMs, missedMs);
    }
    if (late.length === 0 || book.coding(entry.id) === null) return;
    for (const node of await replication.find(coding.resource)) holders.add(node);
    const order = new Placement([...holders]).top(coding.blob.digest, holders.size);
    const turn = Math.floor(((longestMs - this.#lent.patienceMs) * TURN) / this.#lent.patienceMs);
    if (order.indexOf(this.#lent.self) > turn) return;
    await this.#inTurn(coding.blob.digest, () => this.#repair(entry, late, hasWhole));
  }

  /** Whether the coding is what comes of the whole, which is here. */
  async #check(entry: Entry): Promise<boolean> {
    const { book, content } = this.#lent;
    const { coding, id, coder, bytes } = entry;
    const material = materialOfWhole(content, coding);
    const size = fragmentSize(coding.blob, coding);
    for (const [index, fragment] of coding.fragments.entries()) {
      const is = await describe(material, index, size, this.#signal({}));
      if (canonicalJson({ ...is }) === canonicalJson({ ...fragment })) continue;
      // It may be the disk that lies.
      if ((await digestOfWhole(material, coding, this.#signal({}))) === coding.blob.digest) await this.#lied(entry);
      return false;
    }
    if (book.coding(id) === null) return false;
    book.keepCoding({ id, coding, coder, bytes }, true);
    this.#countTrue();
    return true;
  }

  async #repair(entry: Entry, late: readonly number[], hasWhole: boolean): Promise<void> {
    const { content } = this.#lent;
    const { coding } = entry;
    const options = { signal: this.#closing.signal };
    await using gathered = hasWhole ? null : await this.#gather(entry, options);
    if (!hasWhole && gathered === null) return;
    const material =
      gathered === null ? materialOfWhole(content, coding) : materialOfFragments(content, coding, gathered.have);
    const made: Digest[] = [];
    try {
      for (const index of late) {
        const size = fragmentSize(coding.blob, coding);
        const { digest } = await this.#make(material, index, size, made, options);
        if (digest === coding.fragments[index]!.digest) continue;
        if (gathered !== null) await this.#suspect(entry, gathered.have);
        return;
      }
      await this.#place(entry, late, options);
    } finally {
      await this.#withdraw(made);
    }
  }

  async #allShown(entry: Entry): Promise<boolean> {
    const { replication, self } = this.#lent;
    const used = new Set<NodeId>();
    for (const [index, { id }] of entry.fragments.entries()) {
      let holder: NodeId | undefined;
      for (const node of this.#isHeld(id) ? [self] : await replication.find(id)) {
        if (used.has(node) || (node !== self && !(await this.#isShown(entry, index, node)))) continue;
        holder = node;
        break;
      }
      if (holder === undefined) return false;
      used.add(holder);
    }
    return true;
  }

  /** Whether a node shows bytes of a fragment as they follow from the whole, which is here. */
  async #isShown(entry: Entry, index: number, node: NodeId): Promise<boolean> {
    const { audit, content, replication } = this.#lent;
    const fragment = entry.fragments[index]!;
    const material = materialOfWhole(content, entry.coding);
    const [blob] = fragment.blobs;
    const hasWhole = (await content.stat(entry.coding.blob.digest)) !== null;
    const isHere = (await content.stat(blob!.digest)) !== null;
    // Whoever has neither cannot tell.
    if (!hasWhole && !isHere) return true;
    const read = async (offset: number, into: Uint8Array) => {
      if (isHere) return content.readHeld(blob!.digest, offset, into);
      let at = 0;
      for await (const piece of fragmentBytes(material, index, offset, into.length)) {
        into.set(piece, at);
        at += piece.length;
      }
    };
    if (await audit.holds(node, fragment, read)) return true;
    replication.doubt(node, fragment.id);
    return false;
  }

  // Small things

  #entries(blob: Digest): Entry[] {
    return this.#lent.book.codingsOf(blob).map(withFragments);
  }

  #isHeld(fragment: Digest): boolean {
    return this.#lent.book.get(fragment)?.held === true;
  }

  /** Whether a blob is kept here as a fragment. */
  #isKept(blob: Digest): boolean {
    const { book } = this.#lent;
    return book.resourcesWith(blob).some((id) => this.#isHeld(id));
  }

  async #nodesOf(fragments: readonly Resource[]): Promise<NodeId[]> {
    const found = await mapBounded(fragments, TOGETHER, ({ id }) => this.#lent.replication.find(id));
    return [...new Set(found.flat())];
  }

  /** For which resources fragments stand in. */
  #countTrue(): void {
    const { book } = this.#lent;
    const coded = new Map<Digest, Set<Digest>>();
    for (const { resource, blob } of book.codedBlobs())
      coded.set(resource, (coded.get(resource) ?? new Set()).add(blob));
    const whole = [...coded].filter(
      ([resource, blobs]) => book.get(resource)?.blobs.every(({ digest }) => blobs.has(digest)) === true,
    );
    this.#standIn = new Set(whole.map(([resource]) => resource));
  }

  #signal({ signal }: CallOptions): AbortSignal {
    return signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
  }

  get #isClosed(): boolean {
    return this.#closing.signal.aborted;
  }

  async #inTurn<T>(blob: Digest, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(blob) ?? Promise.resolve();
    const turn = before.then(work, work);
    const settled = turn.then(
      () => undefined,
      () => undefined,
    );
    this.#turns.set(blob, settled);
    try {
      return await turn;
    } finally {
      if (this.#turns.get(blob) === settled) this.#turns.delete(blob);
    }
  }
}

function withFragments(known: KnownCoding): Entry {
  const fragments = known.coding.fragments.map((_, index): Resource => {
    const blob = fragmentOf(known.coding, index);
    return { id: fragmentId(blob), blobs: [blob], replication: 0 };
  });
  return { ...known, fragments };
}

function keyOf({ id }: Entry, index: number): string {
  return `${id} ${index}`;
}

function ignoreCoded(error: unknown): void {
  if (!isCoded(error)) throw error;
}

function unavailable(why: string): HyperMeshError {
  return new HyperMeshError('content-unavailable', `A fragment cannot be had: ${why}.`);
}
