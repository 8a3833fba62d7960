/**
 * Builds the space commitment: three layers of labels, each from the one below, and the Merkle tree of each.
 *
 * Memory: a tenth of a layer, which ends with the worker. Disk: three layers until the commitment is registered, then one.
 * Crash: `tree-k` is renamed into place after `layer-k` and is the commit point of layer k. Before it, the layer is computed again;
 * after it, the layer is checked against its tree, and the work goes on with the next one.
 */
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { hex } from '../../base/bytes.ts';
import { yieldPriority } from '../../base/yield-priority.ts';
import { LayerMaker } from './layers.ts';
import { LABEL_BYTES, LAYERS } from './space-graph.ts';

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

async function build(job: SpaceJob): Promise<readonly string[]> {
  const n = job.bytes / LABEL_BYTES;
  const maker = await LayerMaker.open(n, job.seed);
  const roots: string[] = [];
  for (let layer = 1; layer <= LAYERS; layer++) {
    const tree = finished(maker, job, layer) ?? make(maker, job, layer);
    roots.push(hex(tree.subarray(-LABEL_BYTES)));
  }
  return roots;
}

/** The tree of a layer that is there and fits it. */
function finished(maker: LayerMaker, job: SpaceJob, layer: number): Uint8Array | undefined {
  if (!existsSync(path(job, 'tree', layer)) || !existsSync(path(job, 'layer', layer))) return undefined;
  const tree = readFileSync(path(job, 'tree', layer));
  using file = opened(path(job, 'layer', layer), 'r');
  return Buffer.compare(tree, maker.treeOf(file.fd)) === 0 ? tree : undefined;
}

/** The names appear only when all bytes are on the disk. */
function make(maker: LayerMaker, job: SpaceJob, layer: number): Uint8Array {
  const n = job.bytes / LABEL_BYTES;
  const temporary = (kind: 'layer' | 'tree') => {
    const name = `${path(job, kind, layer)}.tmp`;
    rmSync(name, { force: true });
    return name;
  };
  using stack = new DisposableStack();
  const below = layer > 1 ? stack.use(opened(path(job, 'layer', layer - 1), 'r')) : undefined;
  const labels = stack.use(opened(temporary('layer'), 'wx+'));
  const tree = maker.make({ layer, iterations: job.iterations }, { to: labels.fd, below: below?.fd }, (done) =>
    tell({ kind: 'progress', fraction: (layer - 1 + done / n) / LAYERS }),
  );
  keep(labels.fd, job, 'layer', layer);
  const nodes = stack.use(opened(temporary('tree'), 'wx'));
  writeFileSync(nodes.fd, tree);
  keep(nodes.fd, job, 'tree', layer);
  return tree;
}

/** Gives a temporary file its name. */
function keep(fd: number, job: SpaceJob, kind: 'layer' | 'tree', layer: number): void {
  fsyncSync(fd);
  renameSync(`${path(job, kind, layer)}.tmp`, path(job, kind, layer));
  using folder = opened(job.directory, 'r');
  fsyncSync(folder.fd);
}

function opened(file: string, flags: 'r' | 'wx' | 'wx+'): Disposable & { readonly fd: number } {
  const fd = openSync(file, flags, 0o600);
  return { fd, [Symbol.dispose]: () => closeSync(fd) };
}

function path(job: SpaceJob, kind: 'layer' | 'tree', layer: number): string {
  return join(job.directory, `${kind}-${layer}`);
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
