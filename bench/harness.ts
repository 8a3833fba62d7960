import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

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

/** Longest time for which a node may answer nobody. */
const BLOCK_MS_MAX = 20;
const TICK_MS = 1;

/** The worst turn of an event loop while some work went on, in milliseconds. */
export interface WorstTurn {
  /** For how long a timer that was due did not run. */
  readonly lateMs: number;
  /** The same without the time for which the loop was ready to run and the operating system gave the processors to others: what the process did itself. */
  readonly blockedMs: number;
}

/** Looks with a timer of a millisecond. Where the operating system does not tell for how long a thread stood ready, all that is late counts as blocked. */
export async function worstTurn(work: () => Promise<unknown>): Promise<WorstTurn> {
  let [lateMs, blockedMs] = [0, 0];
  let [sinceMs, queuedMs] = [performance.now(), queuedForMs()];
  const look = () => {
    const late = performance.now() - sinceMs - TICK_MS;
    lateMs = Math.max(lateMs, late);
    blockedMs = Math.max(blockedMs, late - (queuedForMs() - queuedMs));
    [sinceMs, queuedMs] = [performance.now(), queuedForMs()];
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

/** For how long the main thread stood ready since it began: `run_delay` of Linux. */
function queuedForMs(): number {
  try {
    return Number(readFileSync('/proc/self/schedstat', 'utf8').split(' ')[1]) / 1e6;
  } catch {
    return 0;
  }
}

/** The worst turns of a loop that works, and of one that idles, as two comparisons. */
export function worstTurns(name: string, ours: readonly WorstTurn[], idle: readonly WorstTurn[]): Comparison[] {
  const row = (what: string, of: (turn: WorstTurn) => number) => {
    return {
      name: `loop ${what}, ${name}`,
      unit: 'ms',
      reference: 'idle',
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
