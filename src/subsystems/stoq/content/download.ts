import { setTimeout as sleep } from 'node:timers/promises';
import { type CallOptions, checkCancelled, orCancelled, type Progress } from '../../../base/call.ts';
import type { Clock } from '../../../base/clock.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { once } from '../../../base/streams.ts';
import type { BlobDescription, ContentExchange, IncomingBlob } from '../../../capabilities/content.ts';
import { SHARDS_MAX, type ShardList } from '../../../wire/content.ts';
import { averageFor } from '../../../wire/shards.ts';
import type { NodeId } from '../channel/types.ts';
import type { Shaper } from './shaper.ts';
import { Lie, type LieKind, lieIn, type Source, type SourcePool } from './source.ts';
import { Transfer, type TransferFigures, type TransferLimits } from './transfer.ts';

/** What a node did that an honest one never does, as far as this node saw it. */
export interface Accusation {
  readonly node: NodeId;
  readonly blob: Digest;
  readonly what: LieKind;
  readonly atMs: number;
  /** What was expected and what came. */
  readonly evidence: string;
}

export interface DownloadLimits extends TransferLimits {
  /** Without an answer for so long, the next source is asked the same. */
  readonly hedgeMs: number;
  /** How long a node that lied is not asked. */
  readonly banMs: number;
}

const DOWNLOAD_LIMITS: DownloadLimits = {
  silentMs: 15_000,
  hedgeMs: 1_000,
  refreshMs: 2_000,
  patienceMs: 30_000,
  sourcesMax: 16,
  banMs: 24 * 3_600_000,
};

export interface DownloadReport {
  readonly size: number;
  /** Bytes that were here before: from an earlier attempt, and from other blobs. */
  readonly resumed: number;
  readonly reused: number;
  /** Verified bytes by the node that sent them. */
  readonly from: ReadonlyMap<NodeId, number>;
}

export interface DownloadLent {
  readonly store: Pick<ContentExchange, 'stat' | 'put' | 'shardList' | 'receive'>;
  readonly clock: Clock;
  readonly random: () => number;
  /** The limit for everything that arrives; one for the whole node. */
  readonly downloads: Shaper;
  /** Told once for each lie; it is for the caller to keep. */
  readonly accuse: (accusation: Accusation) => void;
}

interface Running {
  readonly done: Promise<DownloadReport>;
  transfer: Transfer | null;
  /** Of everybody who waits for it. */
  readonly watchers: Set<NonNullable<CallOptions['onProgress']>>;
}

/**
 * Fetches blobs from many nodes at once. Nothing that a node says is believed: the list of shards is checked against what was signed, each shard
 * against the list, the whole against its digest. Whoever lies, is silent or is slow loses its place, and the others finish the work.
 */
export class Downloader {
  readonly #lent: DownloadLent;
  readonly #limits: DownloadLimits;
  readonly #running = new Map<Digest, Running>();
  readonly #banned = new Map<NodeId, number>();

  constructor(lent: DownloadLent, limits: Partial<DownloadLimits> = {}) {
    this.#lent = lent;
    this.#limits = { ...DOWNLOAD_LIMITS, ...limits };
  }

  /**
   * Brings a blob into the store, durably. Safe to repeat; a second call for a blob that is on its way waits for the first, and sees how far it is. What came before an
   * error, a cancellation or a crash is kept for the next call.
   * Errors: `content-unavailable` when nobody reachable gives it, `content-invalid` on a description that cannot be, `blob-mismatch` on one that
   * lies, `limit-exceeded`, `storage-*`, `cancelled`.
   */
  async fetch(blob: BlobDescription, pool: SourcePool, options: CallOptions = {}): Promise<DownloadReport> {
    for (;;) {
      checkCancelled(options.signal);
      const running = this.#running.get(blob.digest);
      if (running === undefined) break;
      const watcher = options.onProgress;
      if (watcher !== undefined) running.watchers.add(watcher);
      try {
        return await orCancelled(running.done, options.signal);
      } catch (error) {
        // The other caller gave up; this one did not.
        if (!isCoded(error, 'cancelled')) throw error;
      } finally {
        if (watcher !== undefined) running.watchers.delete(watcher);
      }
    }
    const watchers = new Set(options.onProgress === undefined ? [] : [options.onProgress]);
    const onProgress = (progress: Progress) => {
      for (const watcher of watchers) watcher(progress);
    };
    const entry = { done: this.#fetch(blob, pool, { ...options, onProgress }), transfer: null, watchers };
    this.#running.set(blob.digest, entry);
    try {
      return await entry.done;
    } finally {
      this.#running.delete(blob.digest);
    }
  }

  /** What is on its way now. */
  active(): readonly TransferFigures[] {
    return [...this.#running.values()].flatMap(({ transfer }) => (transfer === null ? [] : [transfer.figures()]));
  }

  /** It is asked again. */
  forgive(node: NodeId): void {
    this.#banned.delete(node);
  }

  isBanned(node: NodeId): boolean {
    return (this.#banned.get(node) ?? 0) > this.#lent.clock.nowMs();
  }

  async #fetch(blob: BlobDescription, pool: SourcePool, options: CallOptions): Promise<DownloadReport> {
    const nothing = { size: blob.size, resumed: 0, reused: 0, from: new Map<NodeId, number>() };
    if ((await this.#lent.store.stat(blob.digest)) !== null) return nothing;
    checkDescription(blob);
    if (blob.shards.count <= 1) return { ...nothing, from: await this.#fetchWhole(blob, pool, options) };
    await using incoming = await this.#begin(blob, pool, options);
    const resumed = incoming.bytes;
    const reused = await incoming.reuse(options);
    const from = new Map<NodeId, number>();
    do {
      const transfer = new Transfer(
        {
          ...{ incoming, pool: this.#honest(pool), downloads: this.#lent.downloads, random: this.#lent.random },
          judge: (error, node) => this.#judge(error, node, blob.digest),
        },
        blob.digest,
        this.#limits,
      );
      const running = this.#running.get(blob.digest);
      if (running !== undefined) running.transfer = transfer;
      await transfer.run(options);
      for (const [node, bytes] of transfer.from()) from.set(node, (from.get(node) ?? 0) + bytes);
    } while ((await incoming.complete(options)) === null);
    return { size: blob.size, resumed, reused, from };
  }

  /** One shard is the whole. */
  async #fetchWhole(blob: BlobDescription, pool: SourcePool, options: CallOptions): Promise<Map<NodeId, number>> {
    const { digest, size } = blob;
    if (size === 0) {
      await this.#lent.store.put(once(new Uint8Array()), { expect: digest, ...options });
      return new Map();
    }
    return this.#fromAny(blob, pool, options, {
      ask: (source, signal) =>
        source.read([{ blob: digest, offset: 0, length: size }], {
          signal,
          onBytes: (count) => this.#lent.downloads.pass(digest, count, signal),
        }),
      take: async (bytes, { node }) => {
        if (digestOf(bytes) !== digest) throw new Lie('wrong-bytes', `bytes of ${digestOf(bytes)} for ${digest}`);
        await this.#lent.store.put(once(bytes), { expect: digest, ...options });
        return new Map([[node, size]]);
      },
    });
  }

  /** Goes on with what is here, or gets the list from somebody. */
  async #begin(blob: BlobDescription, pool: SourcePool, options: CallOptions): Promise<IncomingBlob> {
    const receive = async (list: ShardList) => {
      try {
        return await this.#lent.store.receive(blob, list, options);
      } catch (error) {
        throw isCoded(error, 'content-invalid') ? new Lie('wrong-list', error.message) : error;
      }
    };
    const known = await this.#lent.store.shardList(blob.digest);
    if (known !== null) {
      try {
        return await receive(known);
      } catch (error) {
        if (!(error instanceof Lie)) throw error;
      }
    }
    return this.#fromAny(blob, pool, options, {
      ask: (source, signal) => source.shardList(blob.digest, { signal }),
      take: receive,
    });
  }

  /**
   * Asks one source after the other, the next as soon as one fails or has not answered for a while, until an answer can be taken.
   * The requests that are still under way then are given up.
   */
  async #fromAny<Answer, T>(
    blob: BlobDescription,
    pool: SourcePool,
    options: CallOptions,
    {
      ask,
      take,
    }: {
      readonly ask: (source: Source, signal: AbortSignal) => Promise<Answer>;
      /** Throws a {@link Lie} about a bad answer; what else it throws is the end. */
      readonly take: (answer: Answer, source: Source) => Promise<T>;
    },
  ): Promise<T> {
    const over = new AbortController();
    const signal = options.signal === undefined ? over.signal : AbortSignal.any([over.signal, options.signal]);
    const honest = this.#honest(pool);
    /** When it may be asked again. */
    const asked = new Map<Source, number>();
    const came: { readonly source: Source; readonly answer?: Answer; readonly error?: unknown }[] = [];
    let under = 0;
    let wake = Promise.withResolvers<void>();
    const send = (source: Source) => {
      under += 1;
      void ask(source, AbortSignal.any([signal, AbortSignal.timeout(this.#limits.silentMs)]))
        .then(
          (answer) => came.push({ source, answer }),
          (error: unknown) => came.push({ source, error }),
        )
        .then(() => {
          under -= 1;
          wake.resolve();
        });
    };
    const giveUpAtMs = performance.now() + this.#limits.patienceMs;
    const note = 'looking for nodes that give it';
    options.onProgress?.({ step: 'fetch', done: 0, total: blob.size, unit: 'bytes', note });
    try {
      for (;;) {
        checkCancelled(options.signal);
        for (const { source, answer, error } of came.splice(0)) {
          try {
            if (answer === undefined) throw error;
            return await take(answer, source);
          } catch (failure) {
            if (answer !== undefined && !(failure instanceof Lie)) throw failure;
            this.#judge(failure, source.node, blob.digest);
            // It may only not have it yet.
            asked.set(source, performance.now() + this.#limits.refreshMs);
          }
        }
        const sources = await honest.sources(blob.digest, { signal });
        const nowMs = performance.now();
        const next = sources.find((source) => (asked.get(source) ?? 0) <= nowMs);
        if (next !== undefined) {
          asked.set(next, Number.POSITIVE_INFINITY);
          send(next);
        } else if (under === 0 && nowMs > giveUpAtMs) throw unavailable(blob.digest, asked.size);
        const waitMs = next === undefined ? this.#limits.refreshMs : this.#limits.hedgeMs;
        // An abort is noticed at the top.
        await Promise.race([wake.promise, sleep(waitMs, undefined, { signal }).catch(() => {})]);
        wake = Promise.withResolvers();
      }
    } finally {
      over.abort();
    }
  }

  #honest(pool: SourcePool): SourcePool {
    return {
      sources: async (blob, options) => (await pool.sources(blob, options)).filter(({ node }) => !this.isBanned(node)),
    };
  }

  /** Keeps a lie; everything else that fails can happen to an honest node. */
  #judge(error: unknown, node: NodeId, blob: Digest): void {
    const lie = lieIn(error);
    if (lie === null) return;
    const atMs = this.#lent.clock.nowMs();
    this.#banned.set(node, atMs + this.#limits.banMs);
    this.#lent.accuse({ node, blob, what: lie.what, atMs, evidence: lie.message });
  }
}

/** What no description made by this software says; a count that fits the size bounds everything that follows from it. */
function checkDescription({ digest, size, shards }: BlobDescription): void {
  const { averageBytes, count } = shards;
  const fits = size === 0 ? count === 0 : size <= count * averageBytes * 4 && (count - 1) * (averageBytes / 4) < size;
  if (averageBytes !== averageFor(size) || count > SHARDS_MAX || !fits)
    throw new HyperMeshError('content-invalid', `A blob of ${size} bytes cannot be ${count} shards: ${digest}.`);
}

function unavailable(blob: Digest, asked: number): HyperMeshError {
  const says =
    asked === 0 ? `No node that has ${blob} answers.` : `None of ${asked} nodes that were asked gave ${blob}.`;
  return new HyperMeshError('content-unavailable', says, {
    hint: 'Try again when more nodes are connected. What came so far is kept.',
  });
}
