/**
 * Merkle tree over the labels of one layer. Leaves are the labels themselves; a node is SHA-256(left || right); a node that would lie
 * behind the last one of its level is 32 zero bytes. The number of labels is part of the parameters, so depth and shape are fixed
 * and a node cannot be passed off as a leaf.
 */
import { hash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { HyperMeshError } from '../../base/errors.ts';
import { mapBounded } from '../../base/streams.ts';
import { LABEL_BYTES } from './space-graph.ts';

const NODE = 32;
const ABSENT = '\0'.repeat(NODE);

const READS_MAX = 4;

/** Levels below this one are not stored: they are recomputed from a block of 64 labels. */
export const STORED_LEVEL = 6;
const BLOCK_LABELS = 1 << STORED_LEVEL;

/** Number of nodes on each level, leaves first, root last. */
export function widths(labels: number): readonly number[] {
  const out = [labels];
  while (out.at(-1)! > 1) out.push(Math.ceil(out.at(-1)! / 2));
  return out;
}

/** Bytes of the stored upper part of a tree: levels {@link STORED_LEVEL} to the root, one after the other. */
export function treeBytes(labels: number): number {
  return widths(labels)
    .slice(STORED_LEVEL)
    .reduce((sum, width) => sum + width * NODE, 0);
}

/** What opens some labels of one layer: the labels by ascending position, and the nodes that the verifier lacks, level by level. */
export interface Opening {
  readonly labels: Uint8Array;
  readonly path: Uint8Array;
}

/** Positions ascending and without repetition. */
export function ascending(positions: Iterable<number>): readonly number[] {
  return [...new Set(positions)].sort((a, b) => a - b);
}

/**
 * Reads what is needed to open `positions` (ascending, distinct) and nothing else: a block of 2 KiB for each, and the upper tree.
 * Errors: `space-unavailable` when a block does not belong to the tree any more.
 */
export async function openLabels(
  files: { readonly labels: FileHandle; readonly tree: Uint8Array },
  count: number,
  positions: readonly number[],
): Promise<Opening> {
  const levels = widths(count);
  const wanted = [...new Set(positions.map((position) => Math.floor(position / BLOCK_LABELS)))];
  // Several at a time: while others keep the event loop busy, each turn of it counts.
  const read = await mapBounded(wanted, READS_MAX, (block) => readBlock(files, block));
  const blocks = new Map(wanted.map((block, i) => [block, read[i]!]));
  const stored = (level: number, index: number) => storedNode(files.tree, levels, level, index);
  const node = (level: number, index: number): Uint8Array => {
    if (level >= STORED_LEVEL) return stored(level, index);
    const perBlock = BLOCK_LABELS >> level;
    const nodes = blocks.get(Math.floor(index / perBlock))![level]!;
    return nodes.subarray((index % perBlock) * NODE, (index % perBlock) * NODE + NODE);
  };
  const path: Uint8Array[] = [];
  let known = positions;
  for (let level = 0; level < levels.length - 1; level++) {
    walk(known, levels[level]!, (index) => path.push(node(level, index)));
    known = ascending(known.map((index) => index >> 1));
  }
  return { labels: Buffer.concat(positions.map((position) => node(0, position))), path: Buffer.concat(path) };
}

async function readBlock(
  files: { readonly labels: FileHandle; readonly tree: Uint8Array },
  block: number,
): Promise<readonly Uint8Array[]> {
  const leaves = new Uint8Array(BLOCK_LABELS * LABEL_BYTES);
  const { bytesRead } = await files.labels.read(leaves, 0, leaves.length, block * leaves.length);
  const nodes = [leaves];
  for (let level = 0; level < STORED_LEVEL; level++) {
    const below = nodes[level]!;
    const above = new Uint8Array(below.length / 2);
    for (let at = 0; at < above.length; at += NODE) {
      above.set(hash('sha256', below.subarray(at * 2, at * 2 + 64), 'buffer'), at);
    }
    nodes.push(above);
  }
  const expected = files.tree.subarray(block * NODE, block * NODE + NODE);
  if (bytesRead !== leaves.length || Buffer.compare(nodes[STORED_LEVEL]!, expected) !== 0) {
    throw new HyperMeshError('space-unavailable', 'The space commitment on this disk is damaged.', {
      hint: 'It is being built again; try once more in a minute.',
    });
  }
  return nodes;
}

function storedNode(tree: Uint8Array, levels: readonly number[], level: number, index: number): Uint8Array {
  let at = index;
  for (let below = STORED_LEVEL; below < level; below++) at += levels[below]!;
  return tree.subarray(at * NODE, at * NODE + NODE);
}

/** Calls `lacking` for each sibling that is not known and not absent, in order. */
function walk(known: readonly number[], width: number, lacking: (index: number) => void): void {
  for (const [at, index] of known.entries()) {
    const sibling = index ^ 1;
    if (sibling < width && known[at - 1] !== sibling && known[at + 1] !== sibling) lacking(sibling);
  }
}

/**
 * The root that an opening leads to, or undefined when it has too few or too many bytes. Nodes are kept as Latin-1 text meanwhile: node:crypto
 * hands a hash over as text in a third of the time that a buffer takes.
 */
export function rootOf(count: number, positions: readonly number[], opening: Opening): Uint8Array | undefined {
  if (opening.labels.length !== positions.length * LABEL_BYTES || positions.length === 0) return undefined;
  const levels = widths(count);
  const labels = Buffer.from(opening.labels).toString('latin1');
  const path = Buffer.from(opening.path).toString('latin1');
  let at = 0;
  let known = new Map(positions.map((position, i) => [position, labels.slice(i * LABEL_BYTES, (i + 1) * LABEL_BYTES)]));
  const pair = Buffer.alloc(2 * NODE);
  for (const width of levels.slice(0, -1)) {
    const above = new Map<number, string>();
    const next = () => {
      at += NODE;
      return path.slice(at - NODE, at);
    };
    for (const [index, value] of known) {
      if (above.has(index >> 1)) continue;
      const sibling = index ^ 1;
      const other = known.get(sibling) ?? (sibling < width ? next() : ABSENT);
      if (other.length !== NODE) return undefined;
      pair.write(value, (index & 1) * NODE, 'latin1');
      pair.write(other, (sibling & 1) * NODE, 'latin1');
      above.set(index >> 1, hash('sha256', pair, 'latin1'));
    }
    known = above;
  }
  const root = known.get(0);
  return at === path.length && root !== undefined ? new Uint8Array(Buffer.from(root, 'latin1')) : undefined;
}
