import { utf8 } from '../../base/bytes.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { collect, once } from '../../base/streams.ts';
import type { ContentExchange } from '../../capabilities/content.ts';
import type { Arrival, Verdict } from '../../capabilities/transport.ts';
import { RECORDS_LIMITS } from '../../wire/records.ts';
import type { Book } from './book.ts';
import type { NodeId } from './channel/index.ts';
import type { Collection } from './records/exchange.ts';
import { IdSet } from './records/id-set.ts';

export interface ArrivalsOptions {
  readonly waitingMax: number;
  /** A record may be handed on now. */
  readonly accepted: (id: Digest, from: NodeId | null) => void;
  /** It counts as known, and is not handed on. */
  readonly retired: (id: Digest) => void;
  readonly accuse: (from: NodeId, why: string, bytes: Uint8Array) => void;
}

interface Lent {
  readonly book: Book;
  readonly clock: Clock;
  readonly content: Pick<ContentExchange, 'put' | 'stat'>;
  readonly read: (blob: Digest) => AsyncIterable<Uint8Array>;
}

/** Larger records are blobs of the content store, where the packages they describe refer to them. */
const INLINE_BYTES_MAX = 32 * 2 ** 10;
/** One node fills at most this part of what may wait, as a divisor. */
const SHARE = 4;
/** After a record could not be judged. */
const POSTPONED_MS = 30_000;
/** Some of those are looked at again as soon as others were accepted and nothing else waits, at most so many in this time. */
const AGAIN_MAX = 100;
const AGAIN_MS = 1_000;

/**
 * Records that everybody in the network holds: this node's own, and those that others brought. What is brought is kept until whoever knows its
 * meaning has judged it; only then is it handed on.
 */
export class Arrivals implements Disposable {
  readonly #lent: Lent;
  readonly #options: ArrivalsOptions;
  /** Whether something was accepted that others may have waited for. */
  #hasNew = false;
  #againAtMs = 0;
  #wake: () => void = () => {};
  #closed = false;

  constructor(lent: Lent, options: ArrivalsOptions) {
    this.#lent = lent;
    this.#options = options;
  }

  collection(): Collection {
    const { book, clock } = this.#lent;
    const { waitingMax } = this.#options;
    // So that no node can keep the others' records out by handing over what waits for ever.
    const hasRoom = (from: NodeId) => book.arrivals() < waitingMax && book.arrivalsFrom(from) < waitingMax / SHARE;
    return {
      name: 'records',
      ids: IdSet.ofSorted(book.recordIds()),
      knows: (id) => book.record(id) !== null,
      hasRoom,
      read: (id) => this.#read(id),
      receive: async (id, bytes, from) => {
        if (bytes.length > RECORDS_LIMITS.recordBytesMax) return 'refused';
        if (!hasRoom(from)) return 'aside';
        await this.#keep(id, bytes, 'waiting', from, clock.nowMs());
        this.#wake();
        return 'aside';
      },
    };
  }

  /** A record that this node made. */
  async own(bytes: Uint8Array): Promise<Digest> {
    if (bytes.length > RECORDS_LIMITS.recordBytesMax) {
      throw new HyperMeshError('limit-exceeded', `A record has at most ${RECORDS_LIMITS.recordBytesMax} bytes.`);
    }
    const id = digestOf(bytes);
    const before = this.#lent.book.record(id);
    if (before?.state !== 'accepted') await this.#keep(id, bytes, 'accepted', null, 0);
    this.#options.accepted(id, null);
    return id;
  }

  /** One after the other, for ever; each is to be judged before the next is asked for, or comes again later. */
  async *next(signal: AbortSignal | undefined): AsyncGenerator<Arrival, void, undefined> {
    const { book, clock } = this.#lent;
    while (!this.#closed && signal?.aborted !== true) {
      const nowMs = clock.nowMs();
      const { record, dueMs } = book.nextArrival(nowMs);
      if (record === null) {
        if (dueMs === null) await this.#sleep(null, signal);
        else if (!this.#hasNew) await this.#sleep(dueMs - nowMs, signal);
        else if (nowMs < this.#againAtMs) await this.#sleep(Math.min(dueMs, this.#againAtMs) - nowMs, signal);
        else {
          this.#hasNew = false;
          this.#againAtMs = nowMs + AGAIN_MS;
          book.hasten(nowMs, AGAIN_MAX);
        }
        continue;
      }
      // Whoever does not say otherwise before the next step could not judge it.
      book.postpone(record.id, clock.nowMs() + POSTPONED_MS);
      const bytes = await this.#bytesOf(record.id, record.bytes);
      if (bytes === null) book.dropRecord(record.id);
      else yield { id: record.id, bytes, from: record.from ?? '' };
    }
  }

  async judge(id: Digest, verdict: Verdict): Promise<void> {
    const { book } = this.#lent;
    const record = book.record(id);
    if (record?.state !== 'waiting' || verdict === 'later') return;
    const evidence = verdict === 'refused' ? await this.#bytesOf(id, record.bytes) : null;
    // What is unwanted is not fetched again either.
    book.setRecord(id, verdict === 'accepted' ? 'accepted' : 'refused');
    if (verdict === 'accepted') {
      this.#hasNew = true;
      this.#options.accepted(id, record.from);
    } else if (verdict === 'refused' && record.from !== null)
      this.#options.accuse(record.from, `vouched for the record ${id}, which breaks the rules`, evidence ?? utf8(id));
  }

  retire(id: Digest): void {
    const { book } = this.#lent;
    if (book.record(id) === null) book.addRecord({ id, state: 'retired', bytes: null, from: null }, 0);
    else book.setRecord(id, 'retired');
    this.#options.retired(id);
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    this.#wake();
  }

  async #keep(id: Digest, bytes: Uint8Array, state: 'waiting' | 'accepted', from: NodeId | null, dueMs: number) {
    const inline = bytes.length <= INLINE_BYTES_MAX;
    if (!inline) await this.#lent.content.put(once(bytes), { expect: id });
    this.#lent.book.addRecord({ id, state, bytes: inline ? bytes : null, from }, dueMs);
  }

  async #read(id: Digest): Promise<Uint8Array | null> {
    const record = this.#lent.book.record(id);
    return record?.state === 'accepted' ? this.#bytesOf(id, record.bytes) : null;
  }

  async #bytesOf(id: Digest, inline: Uint8Array | null): Promise<Uint8Array | null> {
    if (inline !== null) return new Uint8Array(inline);
    try {
      return await collect(this.#lent.read(id), RECORDS_LIMITS.recordBytesMax);
    } catch (error) {
      // Collected before it was judged: it is fetched again.
      if (isCoded(error, 'blob-not-found', 'blob-damaged')) return null;
      throw error;
    }
  }

  /** Until something arrives, the time is over, or nobody waits any more. */
  #sleep(ms: number | null, signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    signal?.addEventListener('abort', () => resolve(), { once: true });
    const timer = ms === null ? undefined : setTimeout(resolve, ms);
    timer?.unref();
    return promise.finally(() => clearTimeout(timer));
  }
}
