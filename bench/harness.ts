import { availableParallelism, cpus, loadavg } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
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
export const BLOCK_MS_MAX = 20;
const RESOLUTION_MS = 1;

/** The longest that a timer was late while `work` went on, in milliseconds. */
export async function blocked(work: () => Promise<unknown>): Promise<number> {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delay.enable();
  try {
    await work();
    // What blocks at the very end is seen by the turn after it.
    await sleep(RESOLUTION_MS * 2);
  } finally {
    delay.disable();
  }
  return delay.max / 1e6 - RESOLUTION_MS;
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
