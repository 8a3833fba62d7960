import { totalmem } from 'node:os';
import type { Resources } from '../../../capabilities/resources.ts';
import type { AheadBox } from './box.ts';

export interface StandbyBounds {
  /** Boxes that wait at the same time. */
  readonly boxesMax: number;
  /** What they all may take together. */
  readonly memoryBytesMax: number;
  /** How long one waits. */
  readonly idleMs: number;
  /** Processor time that a program may use before it waits for its input. */
  readonly loadingCpuMsMax: number;
}

const DEFAULT_BOUNDS: StandbyBounds = {
  boxesMax: 4,
  memoryBytesMax: totalmem() / 8,
  idleMs: 60_000,
  loadingCpuMsMax: 30_000,
};
const TICK_MS = 250;
/** Less than this in a tick, and the program has loaded and waits for its input. */
const QUIET_MS = 10;
/** Looks in a row. */
const AWAKE_MAX = 4;
const LOADING_MS_MAX = 120_000;
const LEASE_MS_MAX = 100;
const SLACK_MS = 60_000;
/** Programs that did not come to wait, and are not started ahead again. */
const FAILED_MAX = 1_000;

/** Something that a box which waits has to give back. */
export interface Waiting {
  readonly box: AheadBox;
  readonly memoryBytes: number;
  /** What is lent to it; given back when it has ended. */
  readonly held: Disposable;
}

/** What is asked of the resources of the node: memory for boxes that wait, as long as nobody else needs it. */
export type StandbyResources = Pick<Resources, 'allocate' | 'release' | 'usage'>;

interface Entry extends Waiting {
  readonly release: () => void;
  readonly sinceMs: number;
  cpuMs: number;
  isReady: boolean;
  /** Looks in a row at which it worked although it waits. */
  awake: number;
}

/**
 * Boxes that were started ahead of their next run, each for one run of exactly what its key says. What waits has loaded its program and can hardly
 * work until its run begins. When there are too many, or too large ones, the one that waits longest goes.
 */
export class Standby {
  readonly #bounds: StandbyBounds;
  readonly #resources: StandbyResources | null;
  readonly #waiting = new Map<string, Entry>();
  readonly #failed = new Set<string>();
  readonly #ending = new Set<Promise<unknown>>();
  readonly #coming = new Map<string, Promise<void>>();
  #ticks: NodeJS.Timeout | undefined;
  /** Each change of what may wait makes what comes from before worthless. */
  #generation = 0;

  /** Without `resources`, the bounds are all that is kept. */
  constructor(bounds: Partial<StandbyBounds> = {}, resources: StandbyResources | null = null) {
    this.#bounds = { ...DEFAULT_BOUNDS, ...bounds };
    this.#resources = resources;
  }

  /** The box that waits for this, if one does. It is the caller's from now on. */
  take(key: string): Waiting | null {
    const entry = this.#waiting.get(key);
    if (entry === undefined) return null;
    this.#waiting.delete(key);
    // From now on it is on the account of the run.
    entry.release();
    return entry;
  }

  /** How many wait, and whether all that were asked for have loaded their program or gone. */
  status(): { readonly boxes: number; readonly isSettled: boolean } {
    const isSettled = this.#coming.size === 0 && [...this.#waiting.values()].every(({ isReady }) => isReady);
    return { boxes: this.#waiting.size, isSettled };
  }

  /** Starts one in the background, unless one is there or on its way, or this did not come to wait before. Never fails. */
  prepare(key: string, memoryBytes: number, start: () => Promise<Omit<Waiting, 'memoryBytes'>>): void {
    if (this.#waiting.has(key) || this.#coming.has(key) || this.#failed.has(key)) return;
    if (!this.#makeRoom(memoryBytes)) return;
    const generation = this.#generation;
    const coming = this.#lease(memoryBytes)
      .then(async (release) => {
        const { box, held } = await start().catch((error: unknown) => {
          release();
          throw error;
        });
        const entry: Entry = {
          ...{ box, held, memoryBytes, release },
          ...{ sinceMs: performance.now(), cpuMs: 0, isReady: false, awake: 0 },
        };
        void box.exit.then(() => {
          release();
          held[Symbol.dispose]();
          // It ended by itself, so it would the next time.
          if (this.#waiting.get(key) !== entry) return;
          this.#waiting.delete(key);
          this.#fail(key);
        });
        if (generation !== this.#generation || !this.#makeRoom(memoryBytes)) return this.#end(entry);
        this.#waiting.set(key, entry);
        this.#ticks ??= setInterval(() => void this.#tick(), TICK_MS).unref();
      })
      .catch(() => {})
      .finally(() => this.#coming.delete(key));
    this.#coming.set(key, coming);
  }

  /** Ends all that wait; resolves when they are gone. */
  async clear(): Promise<void> {
    this.#generation += 1;
    this.#failed.clear();
    for (const key of [...this.#waiting.keys()]) this.#drop(key);
    await Promise.all(this.#coming.values());
    await Promise.all(this.#ending);
  }

  /** Rejects unless it is granted at once: nobody waits for a box that may never be needed. */
  async #lease(memoryBytes: number): Promise<() => void> {
    const resources = this.#resources;
    if (resources === null) return () => {};
    const { id } = await resources.allocate(
      {
        ...{ operation: 'standby', cpuCores: 0, memoryBytes, storageBytes: 0, priority: 'low' },
        durationMs: LOADING_MS_MAX + this.#bounds.idleMs + SLACK_MS,
      },
      { signal: AbortSignal.timeout(LEASE_MS_MAX) },
    );
    return () => void resources.release(id);
  }

  /** While others wait and half of the memory is lent, the one that waits longest gives way. */
  async #giveWay(): Promise<void> {
    const usage = await this.#resources?.usage();
    if (usage === undefined || usage.waiting === 0) return;
    if (usage.leased.memoryBytes * 2 < usage.capacity.memoryBytes) return;
    for (const key of this.#waiting.keys()) return this.#drop(key);
  }

  #drop(key: string): void {
    const entry = this.take(key);
    if (entry !== null) this.#end(entry);
  }

  #end({ box }: Waiting): void {
    box.kill();
    const ending = box.exit.finally(() => this.#ending.delete(ending));
    this.#ending.add(ending);
  }

  #fail(key: string): void {
    if (this.#failed.size >= FAILED_MAX) this.#failed.clear();
    this.#failed.add(key);
  }

  #makeRoom(memoryBytes: number): boolean {
    const { boxesMax, memoryBytesMax } = this.#bounds;
    if (boxesMax < 1 || memoryBytes > memoryBytesMax) return false;
    let sum = memoryBytes;
    for (const entry of this.#waiting.values()) sum += entry.memoryBytes;
    for (const [key, entry] of this.#waiting) {
      if (this.#waiting.size < boxesMax && sum <= memoryBytesMax) break;
      sum -= entry.memoryBytes;
      this.#drop(key);
    }
    return true;
  }

  async #tick(): Promise<void> {
    const { idleMs, loadingCpuMsMax } = this.#bounds;
    if (this.#waiting.size === 0) {
      clearInterval(this.#ticks);
      this.#ticks = undefined;
    }
    await this.#giveWay();
    for (const [key, entry] of this.#waiting) {
      const waitedMs = performance.now() - entry.sinceMs;
      const { cpuMs, isAsleep } = await entry.box.activity();
      if (this.#waiting.get(key) !== entry) continue;
      const isQuiet = isAsleep && cpuMs - entry.cpuMs < QUIET_MS;
      entry.cpuMs = cpuMs;
      entry.awake = isQuiet ? 0 : entry.awake + 1;
      if (entry.isReady ? entry.awake >= AWAKE_MAX : cpuMs > loadingCpuMsMax || waitedMs > LOADING_MS_MAX) {
        this.#drop(key);
        this.#fail(key);
      } else if (waitedMs > idleMs && entry.isReady) {
        this.#drop(key);
      } else if (isQuiet && !entry.isReady) {
        entry.isReady = true;
        await entry.box.rest().catch(() => {});
      }
    }
  }
}
