import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { hex } from '../src/base/bytes.ts';
import { KERNEL_BASE, LABEL_IV, openKernel, ZEROS } from '../src/subsystems/nkrypt/kernel.ts';
import { LABEL_BYTES, LAYERS } from '../src/subsystems/nkrypt/space-graph.ts';
import type { Bench } from './harness.ts';

const run = promisify(execFile);

/** Of the default network (src/subsystems/nkrypt/found.ts). */
const BYTES = 100 * 2 ** 20;
const ITERATIONS = 10;
const DEADLINE_MS = 2_000;
const ROUNDS = 3;
/** Labels for each call into the kernel. */
const BATCH = 4_096;

interface Made {
  /** Processor time of each layer. */
  readonly layersMs: readonly number[];
  /** The last label, by which two ways to make them are known to be the same. */
  readonly last: string;
}

export const bench: Bench = {
  name: 'regenerate',
  about: 'the deadline of a space audit against making all labels again, as whoever did not keep them would',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      const native = await compiled(folder);
      const seed = randomBytes(32);
      const small = await own(65_536, 4, seed);
      if (native !== null && (await native(65_536, 4, seed)).last !== small.last) {
        throw new Error('the native program makes other labels');
      }
      const again = native ?? own;
      const how = native === null ? 'by our own kernel: no C compiler with SHA extensions here' : 'natively, one core';
      const [all, lower, ours] = [[], [], []] as number[][] as [number[], number[], number[]];
      for (let round = 0; round < ROUNDS; round++) {
        const { layersMs } = await again(BYTES, ITERATIONS, seed);
        all.push(layersMs.reduce((a, b) => a + b, 0));
        lower.push(layersMs[0]! + layersMs[1]!);
      }
      ours.push((await own(BYTES, ITERATIONS, seed)).layersMs.reduce((a, b) => a + b, 0));
      const deadline = all.map(() => DEADLINE_MS);
      return [
        { name: 'deadline', unit: 'ms', reference: `three layers, ${how}`, ratioMax: 1, ours: deadline, theirs: all },
        { name: 'deadline', unit: 'ms', reference: `two layers, ${how}`, ratioMax: 1, ours: deadline, theirs: lower },
        { name: 'make them here', unit: 'ms', reference: `three layers, ${how}`, ours, theirs: all },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

type Make = (bytes: number, iterations: number, seed: Uint8Array) => Promise<Made>;

/** Null where there is no compiler, or no processor for it. */
async function compiled(folder: string): Promise<Make | null> {
  const program = join(folder, 'regenerate');
  try {
    await run('cc', ['-O3', '-march=native', '-o', program, join(import.meta.dirname, 'regenerate.c')]);
  } catch {
    return null;
  }
  return async (bytes, iterations, seed) => {
    const { stdout } = await run(program, [String(bytes), String(iterations), hex(seed)]);
    const words = stdout.trim().split(' ');
    return { layersMs: words.slice(0, LAYERS).map(Number), last: words.at(-1)! };
  };
}

const own: Make = async (bytes, iterations, seed) => {
  const n = bytes / LABEL_BYTES;
  const parts = KERNEL_BASE + BATCH * 8;
  const kernel = await openKernel(2 + (BATCH * 8 + 2 * bytes) / 65_536);
  const memory = new Uint8Array(kernel.memory.buffer);
  const rows = new Uint32Array(kernel.memory.buffer, KERNEL_BASE, BATCH * 2);
  memory.set(seed, LABEL_IV);
  let [current, previous] = [parts + LABEL_BYTES, parts + bytes + 2 * LABEL_BYTES];
  const layersMs: number[] = [];
  for (let layer = 1; layer <= LAYERS; layer++) {
    memory.fill(0, current - LABEL_BYTES, current);
    const from = process.cpuUsage();
    for (let at = 0; at < n; at += BATCH) {
      kernel.parents(layer, at, Math.min(n, at + BATCH), n, KERNEL_BASE);
      for (let row = 0; row < rows.length; row += 2) {
        rows[row] = current + rows[row]! * LABEL_BYTES;
        rows[row + 1] = layer === 1 ? ZEROS : previous + rows[row + 1]! * LABEL_BYTES;
      }
      if (at === 0) rows[0] = ZEROS;
      kernel.labels(layer, at, Math.min(n, at + BATCH), iterations, current + at * LABEL_BYTES, KERNEL_BASE);
    }
    const { user, system } = process.cpuUsage(from);
    layersMs.push((user + system) / 1_000);
    [current, previous] = [previous, current];
  }
  return { layersMs, last: hex(memory.slice(previous + bytes - LABEL_BYTES, previous + bytes)) };
};
