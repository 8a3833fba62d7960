import { equal } from '../../../base/bytes.ts';
import { type CallOptions, checkCancelled } from '../../../base/call.ts';
import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import type { IncomingBlob } from '../../../capabilities/content.ts';
import { bitBytes, type Holding, hasBit, READ_RANGES_MAX } from '../../../wire/content.ts';
import type { NodeId } from '../channel/types.ts';
import { type Job, Plan } from './plan.ts';
import type { Shaper } from './shaper.ts';
import { Lie, lieIn, type Source, type SourcePool } from './source.ts';

export interface TransferLimits {
  /** A source that sends nothing for so long loses its place. */
  readonly silentMs: number;
  /** How often sources are looked for, and asked what they have got meanwhile. */
  readonly refreshMs: number;
  /** With nobody left to ask and no shard for so long, it has failed. */
  readonly patienceMs: number;
  /** Sources that are used at the same time. */
  readonly sourcesMax: number;
}

export interface TransferFigures {
  readonly blob: Digest;
  readonly size: number;
  readonly bytes: number;
  readonly bytesPerSecond: number;
  /** Those that are asked at the moment, with what counts of what they sent. */
  readonly sources: readonly SourceFigures[];
}

export interface SourceFigures {
  readonly node: NodeId;
  readonly bytes: number;
  readonly bytesPerSecond: number;
}

export interface TransferLent {
  readonly incoming: IncomingBlob;
  readonly pool: SourcePool;
  readonly downloads: Shaper;
  readonly random: () => number;
  /** Keeps a lie; the pool does not give that node again. */
  readonly judge: (error: unknown, node: NodeId) => void;
}

/** Asked for at first from a source whose speed is not known, and at most from any; in between, what it sends in {@link RUN_MS}. */
const RUN_BYTES_FIRST = 2 ** 20;
const RUN_BYTES_MIN = 2 ** 19;
const RUN_BYTES_MAX = 64 * 2 ** 20;
const RUN_MS = 1_500;
/** A source farther away than this is asked for more scattered shards before the last ones are there. */
const FAR_MS = 20;
/** And one farther away than this for the next run: nearer, the pause is short, and what comes in order need not be read again for the hash over the whole. */
const FAR_RUN_MS = 100;
const TICK_MS = 250;
/** How fast the measured speed follows. */
const SPEED_WEIGHT = 0.3;
/** Of a source from which nothing came yet, in bytes per millisecond, when it is asked how long it will take. */
const UNKNOWN_SPEED = 100;
/** A source this many times slower than the median of the others, for so long, makes room. */
const SLOW_FACTOR = 10;
const SLOW_MS = 5_000;
/** Failures in a row after which a source is not asked again, and the wait after the first; it doubles. */
const FAILURES_MAX = 4;
const BACKOFF_MS = 500;
/** A source that has nothing more for this transfer probably fetches the same: it is asked again after so long, doubling while it has nothing new. */
const DRY_MS = 200;
/** Fetched a second time from another source at once, near the end. */
const RESCUE_BYTES = 2 ** 20;

interface Task {
  readonly job: Job;
  readonly peer: Peer;
  readonly abort: AbortController;
  readonly startedAtMs: number;
  /** Also asked from somebody else; whoever is first counts. */
  readonly isRescue: boolean;
  /** Shards of it that do not count yet, by this or by another task. */
  readonly left: Set<number>;
  heardAtMs: number;
  /** It was not asked yet, or what came is being written here, or waits for the limit: the source is not silent. */
  isHeld: boolean;
}

/** One source in one transfer. */
interface Peer {
  readonly source: Source;
  /** Null: everything. */
  bits: Uint8Array | null;
  readonly tasks: Set<Task>;
  /** When it said last what it has, and how long after that it may be asked again. */
  saidAtMs: number;
  dryMs: number;
  /** Bytes per millisecond, null as long as nothing came. */
  speed: number | null;
  /** Since the last tick. */
  tickBytes: number;
  failures: number;
  restUntilMs: number;
  slowSinceMs: number | null;
  /** Asked only when nobody else is left: it was silent or slow. */
  isReserve: boolean;
  isGone: boolean;
}

/** One blob on its way from many sources, until nothing of it is wanted any more. */
export class Transfer {
  readonly #lent: TransferLent;
  readonly #blob: Digest;
  readonly #limits: TransferLimits;
  readonly #plan: Plan;
  readonly #wanted: Set<number>;
  readonly #peers = new Map<NodeId, Peer>();
  /** Asked what they have, no answer yet. */
  readonly #asking = new Set<Source>();
  /** Were asked and did not say: waited for no second time. */
  readonly #mute = new Set<NodeId>();
  readonly #from = new Map<NodeId, number>();
  readonly #over = new AbortController();
  readonly #done = Promise.withResolvers<void>();
  readonly #running = new Set<Promise<void>>();
  #movedAtMs = performance.now();
  #speed = 0;
  #tickBytes = 0;
  #tickAtMs = performance.now();
  #looking = false;
  #lookedAtMs = Number.NEGATIVE_INFINITY;
  #options: CallOptions = {};

  constructor(lent: TransferLent, blob: Digest, limits: TransferLimits) {
    this.#lent = lent;
    this.#blob = blob;
    this.#limits = limits;
    const wanted = lent.incoming.wanted();
    this.#wanted = new Set(wanted);
    this.#plan = new Plan(lent.incoming.list, wanted, lent.random);
  }

  figures(): TransferFigures {
    return {
      ...{ blob: this.#blob, size: this.#lent.incoming.list.size, bytes: this.#lent.incoming.bytes },
      bytesPerSecond: Math.round(this.#speed * 1_000),
      sources: this.#peers
        .values()
        .filter(({ tasks }) => tasks.size > 0)
        .map(({ source: { node }, speed }) => {
          return { node, bytes: this.#from.get(node) ?? 0, bytesPerSecond: Math.round((speed ?? 0) * 1_000) };
        })
        .toArray(),
    };
  }

  /** Verified bytes by source. */
  from(): ReadonlyMap<NodeId, number> {
    return this.#from;
  }

  /** Errors: `content-unavailable`, `storage-*`, `cancelled`. Nothing is under way any more when it settles. */
  async run(options: CallOptions): Promise<void> {
    checkCancelled(options.signal);
    if (this.#wanted.size === 0) return;
    this.#options = options;
    const onAbort = () => {
      try {
        checkCancelled(options.signal);
      } catch (error) {
        this.#done.reject(error);
      }
    };
    options.signal?.addEventListener('abort', onAbort, { once: true });
    const timer = setInterval(() => this.#tick(), Math.min(TICK_MS, this.#limits.silentMs / 4));
    try {
      this.#look();
      await this.#done.promise;
    } finally {
      clearInterval(timer);
      options.signal?.removeEventListener('abort', onAbort);
      this.#over.abort();
      await Promise.allSettled(this.#running);
      this.#report();
    }
  }

  /** Looks for sources, and asks those that did not have everything what they have by now. */
  #look(): void {
    if (this.#looking) return;
    this.#looking = true;
    const work = async () => {
      const signal = this.#promptly();
      const found = await this.#lent.pool.sources(this.#blob, { signal });
      for (const [node, peer] of this.#peers) {
        const source = found.find((each) => each.node === node);
        // Another connection to it is another chance.
        if (source === undefined || source === peer.source) continue;
        this.#drop(peer);
        this.#peers.delete(node);
      }
      const fresh = found.filter(({ node }) => !this.#peers.has(node));
      const stale = this.#peers.values().filter(({ bits, isGone }) => bits !== null && !isGone);
      const room =
        this.#limits.sourcesMax -
        this.#peers
          .values()
          .filter(({ isGone }) => !isGone)
          .toArray().length;
      for (const source of [...[...stale].map((peer) => peer.source), ...fresh.slice(0, Math.max(0, room))])
        if (!this.#asking.has(source)) this.#track(this.#ask(source, signal));
    };
    this.#track(
      work()
        .catch(() => {})
        .finally(() => {
          this.#looking = false;
          this.#lookedAtMs = performance.now();
          this.#pump();
        }),
    );
  }

  /** For a question that is answered soon, or not at all. */
  #promptly(): AbortSignal {
    return AbortSignal.any([this.#over.signal, AbortSignal.timeout(this.#limits.silentMs)]);
  }

  async #ask(source: Source, signal: AbortSignal): Promise<void> {
    this.#asking.add(source);
    try {
      const [holding] = await source.have([this.#blob], { signal });
      this.#learn(source, holding!);
    } catch (error) {
      this.#mute.add(source.node);
      this.#lent.judge(error, source.node);
      const peer = this.#peers.get(source.node);
      if (peer?.source === source) this.#fail(peer, error);
    } finally {
      this.#asking.delete(source);
    }
    this.#pump();
  }

  #learn(source: Source, holding: Holding): void {
    const { shards } = this.#lent.incoming.list;
    if (holding.kind === 'partial' && holding.count !== shards.length)
      throw new Lie('broken-protocol', `It has some of ${holding.count} shards of a blob of ${shards.length}.`);
    // One that has nothing yet may be fetching it, too: it is asked again, and the order is one that lets it give later.
    let peer = this.#peers.get(source.node);
    if (peer === undefined) {
      peer = {
        ...{ source, bits: null, tasks: new Set<Task>(), saidAtMs: 0, dryMs: DRY_MS, speed: null, tickBytes: 0 },
        ...{ failures: 0, restUntilMs: 0, slowSinceMs: null, isReserve: false, isGone: false },
      };
      this.#peers.set(source.node, peer);
    }
    const bits =
      holding.kind === 'complete'
        ? null
        : holding.kind === 'partial'
          ? holding.shards
          : new Uint8Array(bitBytes(shards.length));
    const isSame = bits !== null && peer.bits !== null && equal(bits, peer.bits);
    peer.dryMs = isSame ? Math.min(2 * peer.dryMs, this.#limits.refreshMs) : DRY_MS;
    peer.saidAtMs = performance.now();
    if (peer.bits !== null) this.#plan.count(peer.bits, -1);
    peer.bits = bits;
    if (peer.bits !== null) this.#plan.count(peer.bits, 1);
  }

  /** Gives work to every source that is free. */
  #pump(): void {
    if (this.#over.signal.aborted) return;
    if (this.#wanted.size === 0) {
      this.#done.resolve();
      return;
    }
    const now = performance.now();
    const able = [...this.#peers.values()].filter((peer) => !peer.isGone && peer.restUntilMs <= now);
    const first = able.filter(({ isReserve }) => !isReserve);
    for (const peer of first) this.#employ(peer, able.length);
    // Those that were silent or slow only when all others are idle.
    if (first.some(({ tasks }) => tasks.size > 0)) return;
    for (const peer of able) this.#employ(peer, able.length);
  }

  #employ(peer: Peer, sources: number): void {
    const rttMs = peer.source.rttMs ?? 0;
    for (;;) {
      const runs = [...peer.tasks].filter(({ job }) => job.kind === 'run');
      // One stream fills a link. Scattered shards cost a round trip each time.
      const isFull = runs.length >= (rttMs > FAR_RUN_MS ? 2 : 1) || runs.some((run) => this.#leftMs(run) > 2 * rttMs);
      if (isFull || peer.tasks.size - runs.length >= (rttMs > FAR_MS ? 4 : 2)) return;
      const job = this.#plan.take(peer.bits, this.#share(peer, sources));
      if (job !== null) this.#start(peer, job, false);
      else if (peer.tasks.size > 0 || !this.#rescue(peer)) break;
    }
    const isDry = peer.tasks.size === 0 && peer.bits !== null && performance.now() - peer.saidAtMs > peer.dryMs;
    if (isDry && !this.#asking.has(peer.source)) this.#track(this.#ask(peer.source, this.#promptly()));
  }

  /** How much to ask of a source at once: what it sends in a while, and not what others would rather do. */
  #share(peer: Peer, sources: number): number {
    const most = peer.speed === null ? RUN_BYTES_FIRST : peer.speed * RUN_MS;
    const open = peer.bits === null ? this.#plan.rareBytes : this.#plan.openBytes;
    const fair = sources > 1 ? open / (2 * sources) : RUN_BYTES_MAX;
    return Math.max(RUN_BYTES_MIN, Math.min(most, fair, RUN_BYTES_MAX));
  }

  /** Endgame: everything is asked for, and this source is free. It takes over the last shards of whoever takes longest, if it is likely first. */
  #rescue(peer: Peer): boolean {
    const others = this.#peers.values().filter((other) => other !== peer);
    const late = others.flatMap(({ tasks }) => tasks.values().filter(({ isRescue }) => !isRescue)).toArray();
    const byTime = late.map((task) => ({ task, ms: this.#remainingMs(task) })).sort((a, b) => b.ms - a.ms);
    const { shards } = this.#lent.incoming.list;
    for (const { task, ms } of byTime) {
      const taken: number[] = [];
      let bytes = 0;
      for (const index of [...task.left].reverse()) {
        if ((peer.bits !== null && !hasBit(peer.bits, index)) || this.#isRescued(index)) continue;
        if (taken.length === READ_RANGES_MAX || (taken.length > 0 && bytes + shards[index]!.length > RESCUE_BYTES))
          break;
        taken.push(index);
        bytes += shards[index]!.length;
      }
      const mineMs = (peer.speed === null ? 0 : bytes / peer.speed) + (peer.source.rttMs ?? 0);
      if (mineMs * 2 > ms) return false;
      if (taken.length === 0) continue;
      this.#start(peer, { kind: 'batch', shards: taken }, true);
      return true;
    }
    return false;
  }

  #isRescued(index: number): boolean {
    return this.#peers
      .values()
      .some(({ tasks }) => tasks.values().some((task) => task.isRescue && task.left.has(index)));
  }

  #remainingMs(task: Task): number {
    return this.#leftMs(task) + performance.now() - task.heardAtMs;
  }

  #leftMs({ left, peer }: Task): number {
    const { shards } = this.#lent.incoming.list;
    let bytes = 0;
    for (const index of left) bytes += shards[index]!.length;
    return bytes / (peer.speed || UNKNOWN_SPEED);
  }

  #start(peer: Peer, job: Job, isRescue: boolean): void {
    const now = performance.now();
    const indices = job.kind === 'run' ? Array.from({ length: job.to - job.from }, (_, i) => job.from + i) : job.shards;
    const task: Task = {
      ...{ job, peer, abort: new AbortController(), startedAtMs: now, isRescue },
      ...{ left: new Set(indices), heardAtMs: now, isHeld: false },
    };
    peer.tasks.add(task);
    this.#track(this.#work(task));
  }

  async #work(task: Task): Promise<void> {
    const { peer, job } = task;
    const signal = AbortSignal.any([this.#over.signal, task.abort.signal]);
    try {
      if (job.kind === 'run') await this.#fetchRun(task, job.from, job.to, signal);
      else await this.#fetchBatch(task, job.shards, signal);
    } catch (error) {
      if (error instanceof Local) this.#done.reject(error.cause);
      else if (!signal.aborted) {
        this.#lent.judge(error, peer.source.node);
        this.#fail(peer, error);
      }
    } finally {
      peer.tasks.delete(task);
      if (!task.isRescue) for (const index of task.left) if (this.#wanted.has(index)) this.#plan.reopen(index);
      this.#pump();
    }
  }

  async #fetchRun(task: Task, from: number, to: number, signal: AbortSignal): Promise<void> {
    const { incoming, downloads } = this.#lent;
    const { shards } = incoming.list;
    const { offset } = shards[from]!;
    const length = shards[to - 1]!.offset + shards[to - 1]!.length - offset;
    await using run = incoming.run(from, to);
    let next = from;
    const write = async (bytes: Uint8Array) => {
      this.#hear(task, bytes.length);
      await this.#held(task, async () => {
        await downloads.pass(this.#blob, bytes.length, signal);
        try {
          await run.push(bytes);
        } catch (error) {
          throw isCoded(error, 'shard-mismatch') ? error : new Local(error);
        } finally {
          for (; next < run.next; next++) this.#count(next, task.peer);
        }
      });
      // The rest came from somebody else meanwhile.
      if (task.left.size === 0 && run.next < to) task.abort.abort();
    };
    const onWait = (isWaiting: boolean) => {
      task.isHeld = isWaiting;
      task.heardAtMs = performance.now();
    };
    await task.peer.source.fetchRange({ blob: this.#blob, offset, length }, write, { signal, onWait });
  }

  async #fetchBatch(task: Task, indices: readonly number[], signal: AbortSignal): Promise<void> {
    const { incoming, downloads } = this.#lent;
    const ranges = indices.map((index) => {
      const { offset, length } = incoming.list.shards[index]!;
      return { blob: this.#blob, offset, length };
    });
    const bytes = await task.peer.source.read(ranges, {
      signal,
      onBytes: (count) => {
        this.#hear(task, count);
        return this.#held(task, () => downloads.pass(this.#blob, count, signal));
      },
    });
    let at = 0;
    for (const [i, index] of indices.entries()) {
      const { length } = ranges[i]!;
      const isRight = await incoming.put(index, bytes.subarray(at, at + length)).catch((error: unknown) => {
        throw new Local(error);
      });
      if (!isRight) throw new Lie('wrong-bytes', `The bytes that came are not shard ${index} of ${this.#blob}.`);
      this.#count(index, task.peer);
      at += length;
    }
  }

  /** A shard counts. Whoever else was asked for it need not go on when that was its last. */
  #count(index: number, peer: Peer): void {
    if (!this.#wanted.delete(index)) return;
    peer.failures = 0;
    const { node } = peer.source;
    this.#from.set(node, (this.#from.get(node) ?? 0) + this.#lent.incoming.list.shards[index]!.length);
    this.#movedAtMs = performance.now();
    for (const { tasks } of this.#peers.values()) {
      for (const task of tasks) {
        if (task.left.delete(index) && task.left.size === 0 && task.peer !== peer) task.abort.abort();
      }
    }
    if (this.#wanted.size === 0) this.#done.resolve();
  }

  async #held(task: Task, work: () => Promise<void>): Promise<void> {
    task.isHeld = true;
    try {
      await work();
    } finally {
      task.isHeld = false;
      task.heardAtMs = performance.now();
    }
  }

  #hear(task: Task, bytes: number): void {
    task.heardAtMs = performance.now();
    task.peer.tickBytes += bytes;
    this.#tickBytes += bytes;
  }

  #fail(peer: Peer, error: unknown): void {
    peer.failures += 1;
    peer.restUntilMs = performance.now() + BACKOFF_MS * 2 ** (peer.failures - 1);
    // What it does not have it will not have in a moment, unless it says so; and a liar is not asked again.
    const isOver = lieIn(error) !== null || (isCoded(error, 'blob-not-found') && peer.bits === null);
    if (isOver || peer.failures >= FAILURES_MAX) this.#drop(peer);
  }

  #drop(peer: Peer): void {
    if (peer.isGone) return;
    peer.isGone = true;
    if (peer.bits !== null) {
      this.#plan.count(peer.bits, -1);
      peer.bits = null;
    }
    for (const task of peer.tasks) task.abort.abort();
  }

  #tick(): void {
    const now = performance.now();
    const ms = Math.max(1, now - this.#tickAtMs);
    this.#tickAtMs = now;
    this.#speed += SPEED_WEIGHT * (this.#tickBytes / ms - this.#speed);
    this.#tickBytes = 0;
    const working = [...this.#peers.values()].filter(({ tasks }) => tasks.size > 0);
    for (const peer of working) {
      const speed = peer.tickBytes / ms;
      peer.tickBytes = 0;
      peer.speed = peer.speed === null ? speed || null : peer.speed + SPEED_WEIGHT * (speed - peer.speed);
    }
    for (const peer of working) this.#watch(peer, working, now);
    if (
      !this.#peers.values().some((peer) => this.#isUseful(peer)) &&
      !this.#asking.values().some(({ node }) => !this.#peers.has(node) && !this.#mute.has(node)) &&
      !this.#looking &&
      now - this.#movedAtMs > this.#limits.patienceMs
    ) {
      this.#done.reject(
        new HyperMeshError('content-unavailable', `Nobody who is left gives the rest of ${this.#blob}.`, {
          hint: 'Try again when more nodes are connected. What came so far is kept.',
        }),
      );
    }
    if (now - this.#lookedAtMs > this.#limits.refreshMs) this.#look();
    this.#report();
    this.#pump();
  }

  #isUseful({ isGone, tasks, bits }: Peer): boolean {
    if (isGone) return false;
    return tasks.size > 0 || bits === null || this.#wanted.values().some((index) => hasBit(bits, index));
  }

  /** A silent or slow source makes room; it is asked again when nobody else is left. */
  #watch(peer: Peer, working: readonly Peer[], now: number): void {
    if ([...peer.tasks].some(({ isHeld }) => isHeld)) return;
    const heardAtMs = Math.max(...[...peer.tasks].map((task) => task.heardAtMs));
    if (now - heardAtMs > this.#limits.silentMs) {
      peer.isReserve = true;
      peer.failures += 1;
      peer.restUntilMs = now + this.#limits.silentMs;
      if (peer.failures >= FAILURES_MAX) this.#drop(peer);
      for (const task of peer.tasks) task.abort.abort();
      return;
    }
    const others = working.filter((other) => other !== peer && other.speed !== null).map((other) => other.speed!);
    const median = others.sort((a, b) => a - b)[others.length >> 1];
    if (median === undefined || (peer.speed ?? 0) * SLOW_FACTOR > median) {
      peer.slowSinceMs = null;
      return;
    }
    peer.slowSinceMs ??= now;
    if (now - peer.slowSinceMs < SLOW_MS) return;
    peer.isReserve = true;
    for (const task of peer.tasks) task.abort.abort();
  }

  #report(): void {
    const { bytes, size, sources } = this.figures();
    const note = `from ${sources.length} ${sources.length === 1 ? 'node' : 'nodes'}`;
    this.#options.onProgress?.({ step: 'fetch', done: bytes, total: size, unit: 'bytes', note });
  }

  #track(work: Promise<void>): void {
    this.#running.add(work);
    void work.finally(() => this.#running.delete(work));
  }
}

/** A failure of this node, not of the source. */
class Local extends Error {
  constructor(cause: unknown) {
    super('local', { cause });
  }
}
