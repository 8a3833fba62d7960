import { HyperMeshError } from '../base/errors.ts';
import type { Answer, Ask, Surroundings, Timers } from '../subsystems/stoq/ask.ts';
import type { NodeId } from '../subsystems/stoq/channel/index.ts';

/** A generator of pseudo-random numbers from 0 up to 1 (mulberry32): the same seed, the same numbers. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Place {
  readonly answers: ReadonlyMap<string, Answer>;
  isUp: boolean;
  /** What its timers would have done while it was down: a machine that wakes up does it then. */
  readonly missed: (() => void)[];
  /** Nodes reach each other only within one part. */
  part: number;
}

/** Longest that a request waits for an answer that does not come. */
const TIMEOUT_MS = 30_000;

/**
 * A network in one process and in its own time: nodes are the real code above the channel, messages are function calls that arrive later or not
 * at all. Everything that happens follows from the seed.
 */
export class SimulatedNetwork {
  readonly random: () => number;
  readonly #places = new Map<NodeId, Place>();
  readonly #queue = new Map<number, (() => void)[]>();
  readonly #times: number[] = [];
  readonly #lossRate: number;
  #nowMs = 1_000_000;
  messages = 0;

  constructor(seed: number, options: { readonly lossRate?: number } = {}) {
    this.random = seeded(seed);
    this.#lossRate = options.lossRate ?? 0;
  }

  get nowMs(): number {
    return this.#nowMs;
  }

  /** What a node with that id sees of the world. */
  around(self: NodeId): Surroundings {
    const timers: Timers = {
      after: (ms, work) => {
        let cancelled = false;
        const due = () => {
          if (cancelled) return;
          const place = this.#places.get(self);
          if (place?.isUp === false) place.missed.push(due);
          else work();
        };
        this.#at(ms, due);
        return () => {
          cancelled = true;
        };
      },
    };
    return { ask: this.#asker(self), clock: { nowMs: () => this.#nowMs }, timers, random: this.random };
  }

  add(node: NodeId, answers: ReadonlyMap<string, Answer>): void {
    this.#places.set(node, { answers, isUp: true, missed: [], part: 0 });
  }

  setUp(node: NodeId, isUp: boolean): void {
    const place = this.#places.get(node)!;
    place.isUp = isUp;
    if (isUp) for (const work of place.missed.splice(0)) this.#at(this.#latencyMs(), work);
  }

  isUp(node: NodeId): boolean {
    return this.#places.get(node)!.isUp;
  }

  setPart(node: NodeId, part: number): void {
    this.#places.get(node)!.part = part;
  }

  /** Lets time pass until `condition` holds, looked at every second. Returns how long it took, or null when it never came. */
  async until(condition: () => boolean, withinMs: number): Promise<number | null> {
    const startedAtMs = this.#nowMs;
    while (!condition()) {
      if (this.#nowMs - startedAtMs >= withinMs) return null;
      await this.pass(1_000);
    }
    return this.#nowMs - startedAtMs;
  }

  async pass(ms: number): Promise<void> {
    const end = this.#nowMs + ms;
    for (;;) {
      const at = this.#times[0];
      if (at === undefined || at > end) break;
      this.#popTime();
      this.#nowMs = at;
      const works = this.#queue.get(at)!;
      this.#queue.delete(at);
      for (const work of works) work();
      // Whatever these set off without waiting for time has happened when this returns.
      await new Promise(setImmediate);
    }
    this.#nowMs = end;
  }

  #asker(self: NodeId): Ask {
    return (to, method, body, options) =>
      new Promise((resolve, reject) => {
        this.messages += 1;
        const timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
        const fail = (after: number) =>
          this.#at(after, () => reject(new HyperMeshError('peer-unreachable', `${to.slice(0, 8)} does not answer.`)));
        const arrives = () => this.#reaches(self, to) && this.random() >= this.#lossRate;
        if (!arrives()) return fail(timeoutMs);
        this.#at(this.#latencyMs(), () => {
          const answer = this.#places.get(to)?.answers.get(method);
          if (answer === undefined || !this.#places.get(to)!.isUp) return fail(timeoutMs);
          void answer(body, self).then(
            (bytes) => (arrives() ? this.#at(this.#latencyMs(), () => resolve(bytes)) : fail(timeoutMs)),
            (error) => this.#at(this.#latencyMs(), () => reject(error)),
          );
        });
      });
  }

  #reaches(from: NodeId, to: NodeId): boolean {
    const [a, b] = [this.#places.get(from), this.#places.get(to)];
    return a !== undefined && b !== undefined && a.isUp && b.isUp && a.part === b.part;
  }

  /** 10 to 100 ms, rounded so that many messages arrive together. */
  #latencyMs(): number {
    return 10 * (1 + Math.floor(this.random() * 10));
  }

  #at(ms: number, work: () => void): void {
    const at = this.#nowMs + Math.max(10, Math.ceil(ms / 10) * 10);
    const works = this.#queue.get(at);
    if (works !== undefined) works.push(work);
    else {
      this.#queue.set(at, [work]);
      this.#pushTime(at);
    }
  }

  // A binary heap of the times at which something happens.

  #pushTime(time: number): void {
    const heap = this.#times;
    let at = heap.push(time) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent]! <= heap[at]!) return;
      [heap[parent], heap[at]] = [heap[at]!, heap[parent]!];
      at = parent;
    }
  }

  #popTime(): void {
    const heap = this.#times;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    heap[0] = last;
    for (let at = 0; ; ) {
      let child = 2 * at + 1;
      if (child >= heap.length) return;
      if (child + 1 < heap.length && heap[child + 1]! < heap[child]!) child += 1;
      if (heap[at]! <= heap[child]!) return;
      [heap[at], heap[child]] = [heap[child]!, heap[at]!];
      at = child;
    }
  }
}
