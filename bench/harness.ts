import { once } from 'node:events';
import { availableParallelism, cpus, loadavg } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';

/** One comparison: ours and the named reference, measured in turn in the same run. */
export interface Comparison {
  readonly name: string;
  /** What `ours` and `reference` count. */
  readonly unit: 'ms' | 'MiB' | 'µs' | 'failed';
  readonly reference: string;
  /** What the ratio ours / reference should not exceed, when the project has a target for it. */
  readonly ratioMax?: number;
  /** What `ours` should not exceed. */
  readonly oursMax?: number;
  readonly ours: readonly number[];
  readonly theirs: readonly number[];
}

export interface Bench {
  readonly name: string;
  /** One line on what it measures. */
  readonly about: string;
  run(): Promise<readonly Comparison[]>;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
}

/** Milliseconds that `work` takes. */
export async function timed(work: () => unknown): Promise<number> {
  const startedAt = performance.now();
  await work();
  return performance.now() - startedAt;
}

let collect: (() => void) | undefined;

/** So that what was made for a measurement is not collected at its expense. */
export function collectGarbage(): void {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as () => void;
  }
  collect();
}

/** Longest time for which a node may compute and answer nobody. */
const BLOCK_MS_MAX = 20;
const TICK_MS = 1;

/** The worst turn of an event loop while some work went on, in milliseconds. */
export interface WorstTurn {
  /**
   * For how long the thread of the loop computed: what the process can do something about. Where a hypervisor takes processors away without saying so, what it
   * took in that turn is in it.
   */
  readonly blockedMs: number;
  /** For how long a timer that was due did not run: also while others had the processors, or the loop waited for a disk to confirm a transaction. */
  readonly lateMs: number;
}

/** Looks with a timer of a millisecond. */
export async function worstTurn(work: () => Promise<unknown>): Promise<WorstTurn> {
  let [lateMs, blockedMs] = [0, 0];
  let [sinceMs, usedMs] = [performance.now(), computedMs()];
  const look = () => {
    const late = performance.now() - sinceMs - TICK_MS;
    if (late > TICK_MS) rest();
    lateMs = Math.max(lateMs, late);
    blockedMs = Math.max(blockedMs, computedMs() - usedMs);
    [sinceMs, usedMs] = [performance.now(), computedMs()];
    timer = setTimeout(look, TICK_MS);
  };
  let timer = setTimeout(look, TICK_MS);
  try {
    await work();
    // What blocks at the very end is seen by the turn after it.
    await sleep(TICK_MS * 4);
  } finally {
    clearTimeout(timer);
  }
  return { lateMs, blockedMs };
}

/** Processor time of this thread. */
function computedMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1e3;
}

const never = new Int32Array(new SharedArrayBuffer(4));

/** For a moment: Linux counts the time of a thread when it stops, and otherwise only every few milliseconds. */
function rest(): void {
  Atomics.wait(never, 0, 0, 0.01);
}

/** The loop of this process idle for so long, beside as many busy threads as proofs take: the worst turn that the machine makes of nothing. */
export async function worstIdleTurn(ms: number): Promise<WorstTurn> {
  const priority = import.meta.resolve('../src/base/yield-priority.ts');
  const busy = `import(${JSON.stringify(priority)}).then(({ yieldPriority }) => {
    yieldPriority();
    require('node:worker_threads').parentPort.postMessage('busy');
    for (;;);
  })`;
  const threads = Array.from({ length: availableParallelism() }, () => new Worker(busy, { eval: true }));
  try {
    await Promise.all(threads.map((thread) => once(thread, 'message')));
    return await worstTurn(() => sleep(ms));
  } finally {
    await Promise.all(threads.map((thread) => thread.terminate()));
  }
}

/** The worst turns of a loop that works, and of one that idles, as two comparisons. */
export function worstTurns(name: string, ours: readonly WorstTurn[], idle: readonly WorstTurn[]): Comparison[] {
  const row = (what: string, of: (turn: WorstTurn) => number) => {
    return {
      name: `loop ${what}, ${name}`,
      unit: 'ms',
      reference: 'idle beside busy threads',
      ours: ours.map(of),
      theirs: idle.map(of),
    } as const;
  };
  return [
    { ...row('blocked', ({ blockedMs }) => blockedMs), oursMax: BLOCK_MS_MAX },
    row('late', ({ lateMs }) => lateMs),
  ];
}

/** Ours, theirs, ours, theirs, …: a machine that slows down slows both. One round first that is not counted. */
export async function inTurn(
  rounds: number,
  ours: () => Promise<number>,
  theirs: () => Promise<number>,
): Promise<{ readonly ours: number[]; readonly theirs: number[] }> {
  await ours();
  await theirs();
  const result = { ours: [] as number[], theirs: [] as number[] };
  for (let round = 0; round < rounds; round++) {
    result.ours.push(await ours());
    result.theirs.push(await theirs());
  }
  return result;
}

export interface Row {
  readonly name: string;
  readonly unit: string;
  readonly ours: number;
  readonly reference: string;
  readonly theirs: number;
  readonly ratio: number;
  readonly target: string;
  readonly met: boolean | null;
}

export function rowOf(comparison: Comparison): Row {
  const ours = median(comparison.ours);
  const theirs = median(comparison.theirs);
  const ratio = ours / theirs;
  const { ratioMax, oursMax } = comparison;
  const target = [
    ...(ratioMax === undefined ? [] : [`ratio <= ${ratioMax}`]),
    ...(oursMax === undefined ? [] : [`<= ${oursMax} ${comparison.unit}`]),
  ].join(' and ');
  const met =
    target === ''
      ? null
      : ratio <= (ratioMax ?? Number.POSITIVE_INFINITY) && ours <= (oursMax ?? Number.POSITIVE_INFINITY);
  return {
    name: comparison.name,
    unit: comparison.unit,
    ours,
    reference: comparison.reference,
    theirs,
    ratio,
    target,
    met,
  };
}

export function machine(): Record<string, string | number> {
  return {
    node: process.version,
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: availableParallelism(),
    load: loadavg()[0]!,
  };
}
