/**
 * Builds the space commitment: three layers of labels, each from the one below, and the Merkle tree of each.
 *
 * Memory: two layers in one WebAssembly memory (2 x the commitment, plus 192 KiB), which ends with the worker.
 * Disk: three layers until the commitment is registered, then one.
 * Crash: `tree-k` is renamed into place after `layer-k` and is the commit point of layer k. Before it, the layer is computed again;
 * after it, the layer is loaded, checked against its tree, and the work goes on with the next one.
 */
import { constants, existsSync, readFileSync, rmSync } from 'node:fs';
import { type FileHandle, open, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { KERNEL_BASE, type Kernel, LABEL_IV, openKernel } from './kernel.ts';
import { STORED_LEVEL, treeBytes, widths } from './merkle.ts';
import { LABEL_BYTES, LAYERS } from './space-graph.ts';
import { yieldPriority } from './yield-priority.ts';

export interface SpaceJob {
  readonly directory: string;
  readonly seed: Uint8Array;
  readonly bytes: number;
  readonly iterations: number;
}

export type SpaceNews =
  | { readonly kind: 'progress'; readonly fraction: number }
  | { readonly kind: 'done'; readonly roots: readonly string[] }
  | { readonly kind: 'failed'; readonly message: string; readonly code: string | undefined };

/** Labels for each call into the kernel: some ten milliseconds, so that V8 may switch to optimised code early. */
const BATCH = 4_096;
/** A tree is built in the memory of a layer; absent nodes make it a little larger than one. */
const TREE_SLACK = 65_536;
const WRITE = 4 * 2 ** 20;

async function build(job: SpaceJob): Promise<readonly string[]> {
  const n = job.bytes / LABEL_BYTES;
  const kernel = await openKernel(1 + (2 * (job.bytes + TREE_SLACK)) / 65_536);
  const memory = new Uint8Array(kernel.memory.buffer);
  memory.set(job.seed, LABEL_IV);
  let [current, previous] = [KERNEL_BASE, KERNEL_BASE + job.bytes + TREE_SLACK];
  const roots: string[] = [];
  for (let layer = 1; layer <= LAYERS; layer++) {
    const labels = memory.subarray(current, current + job.bytes);
    const loaded = await loadLayer(kernel, job, layer, labels, current, previous);
    if (!loaded) {
      // Loading may have used the memory of the layer below for a tree.
      if (layer > 1 && existsSync(path(job, 'tree', layer)))
        await readInto(path(job, 'layer', layer - 1), memory.subarray(previous, previous + job.bytes));
      for (let from = 0; from < n; from += BATCH) {
        kernel.labels(layer, from, Math.min(n, from + BATCH), n, job.iterations, current, previous);
        if (from % (BATCH * 16) === 0) tell({ kind: 'progress', fraction: (layer - 1 + from / n) / LAYERS });
      }
      const tree = buildTree(kernel, n, current, previous);
      await writeDurably(path(job, 'layer', layer), labels);
      await writeDurably(path(job, 'tree', layer), tree);
    }
    roots.push(
      readFileSync(path(job, 'tree', layer))
        .subarray(-LABEL_BYTES)
        .toString('hex'),
    );
    [current, previous] = [previous, current];
  }
  return roots;
}

/** Loads a finished layer, if it is there and still fits its tree. Leaves it in `labels`; uses the memory at `spare`. */
async function loadLayer(
  kernel: Kernel,
  job: SpaceJob,
  layer: number,
  labels: Uint8Array,
  at: number,
  spare: number,
): Promise<boolean> {
  if (!existsSync(path(job, 'tree', layer)) || !existsSync(path(job, 'layer', layer))) return false;
  await readInto(path(job, 'layer', layer), labels);
  const tree = buildTree(kernel, job.bytes / LABEL_BYTES, at, spare);
  return Buffer.compare(tree, readFileSync(path(job, 'tree', layer))) === 0;
}

/** The stored levels of the tree over the labels at `from`; all levels are computed in the memory at `to`. */
function buildTree(kernel: Kernel, n: number, from: number, to: number): Uint8Array {
  const memory = new Uint8Array(kernel.memory.buffer);
  const out = new Uint8Array(treeBytes(n));
  let filled = 0;
  let source = from;
  let target = to;
  for (const [level, width] of widths(n).entries()) {
    if (level > 0) {
      for (let done = 0; done < width; done += BATCH) {
        kernel.pairs(source + done * 64, target + done * 32, Math.min(BATCH, width - done));
      }
      source = target;
      // A level of odd width is followed by the 32 zero bytes of an absent node.
      target += (width + (width & 1)) * LABEL_BYTES;
      memory.fill(0, source + width * LABEL_BYTES, target);
    }
    if (level >= STORED_LEVEL) {
      out.set(memory.subarray(source, source + width * LABEL_BYTES), filled);
      filled += width * LABEL_BYTES;
    }
  }
  return out;
}

function path(job: SpaceJob, kind: 'layer' | 'tree', layer: number): string {
  return join(job.directory, `${kind}-${layer}`);
}

async function readInto(from: string, target: Uint8Array): Promise<void> {
  const file = await open(from, constants.O_RDONLY);
  try {
    for (let at = 0; at < target.length; ) {
      const { bytesRead } = await file.read(target, at, Math.min(WRITE, target.length - at), at);
      // A short file leaves zeros, which do not fit the tree.
      if (bytesRead === 0) return void target.fill(0, at);
      at += bytesRead;
    }
  } finally {
    await file.close();
  }
}

/** The name appears only when all bytes are on the disk. */
async function writeDurably(to: string, bytes: Uint8Array): Promise<void> {
  const temporary = `${to}.tmp`;
  rmSync(temporary, { force: true });
  const file: FileHandle = await open(temporary, 'wx', 0o600);
  try {
    for (let at = 0; at < bytes.length; ) {
      // Copied: the operating system must not read from memory that is shared with WebAssembly.
      const { bytesWritten } = await file.write(bytes.slice(at, at + WRITE), 0, undefined, at);
      at += bytesWritten;
    }
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, to);
  const directory = await open(join(to, '..'), constants.O_RDONLY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

function tell(news: SpaceNews): void {
  parentPort?.postMessage(news);
}

try {
  yieldPriority();
  tell({ kind: 'done', roots: await build(workerData as SpaceJob) });
} catch (error) {
  tell({ kind: 'failed', message: (error as Error).message, code: (error as NodeJS.ErrnoException).code });
}
