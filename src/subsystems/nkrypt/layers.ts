/**
 * Makes layers of labels from and into files, a part at a time. Which labels a label is made of depends on its place alone, so all that
 * lies outside the part at hand is copied together before it is computed, in one pass over each file.
 *
 * Memory: some 3 labels for each of a part, at most a tenth of a layer; the labels themselves are read back from the file they were written to.
 */
import { readSync, writeSync } from 'node:fs';
import { KERNEL_BASE, type Kernel, LABEL_IV, openKernel, ZEROS } from './kernel.ts';
import { STORED_LEVEL, treeBytes, widths } from './merkle.ts';
import { LABEL_BYTES } from './space-graph.ts';

/** Of equal size. Each reads the layer below, and what there is of its own, once. */
const PARTS = 32;
/** Parts consist of whole blocks of a tree. */
const PART_STEP = 2_048;
/** Labels for each call into the kernel: some ten milliseconds, so that V8 may switch to optimised code early. */
const BATCH = 4_096;
/** Labels read at once: 1 MiB. */
const READ_LABELS = 32_768;
const WORDS = LABEL_BYTES / 4;
/** Two words for each label of a part: where those are that it is made of. */
const [FAR, BELOW] = [0, 1] as const;
const COLUMNS = 2;

export class LayerMaker {
  readonly #kernel: Kernel;
  readonly #bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #n: number;
  readonly #partLabels: number;
  /** Addresses: the part, behind the label before it; the table; the copies. */
  readonly #part = KERNEL_BASE + LABEL_BYTES;
  readonly #table: number;
  readonly #copies: number;
  /** Rows of the table by where in a file their label lies, and where each stretch of the file begins among them. */
  readonly #order: Uint32Array;
  readonly #ends: Uint32Array;
  readonly #read = new Uint8Array(READ_LABELS * LABEL_BYTES);

  static async open(labels: number, seed: Uint8Array): Promise<LayerMaker> {
    const partLabels = Math.ceil(labels / PARTS / PART_STEP) * PART_STEP;
    const bytes = KERNEL_BASE + LABEL_BYTES + partLabels * (LABEL_BYTES + COLUMNS * 4 + COLUMNS * LABEL_BYTES);
    const kernel = await openKernel(Math.ceil(bytes / 65_536));
    new Uint8Array(kernel.memory.buffer).set(seed, LABEL_IV);
    return new LayerMaker(kernel, labels, partLabels);
  }

  private constructor(kernel: Kernel, labels: number, partLabels: number) {
    this.#kernel = kernel;
    this.#bytes = new Uint8Array(kernel.memory.buffer);
    this.#words = new Uint32Array(kernel.memory.buffer);
    this.#n = labels;
    this.#partLabels = partLabels;
    this.#table = this.#part + partLabels * LABEL_BYTES;
    this.#copies = this.#table + partLabels * COLUMNS * 4;
    this.#order = new Uint32Array(partLabels);
    this.#ends = new Uint32Array(Math.ceil(labels / READ_LABELS));
  }

  /**
   * Writes a layer into the empty file `to`, which is also read, and gives the stored levels of its tree. `below`: the file of the layer
   * below; undefined for layer 1.
   */
  make(
    at: { readonly layer: number; readonly iterations: number },
    files: { readonly to: number; readonly below: number | undefined },
    onProgress: (labels: number) => void,
  ): Uint8Array {
    const tree = new Uint8Array(treeBytes(this.#n));
    this.#bytes.fill(0, this.#part - LABEL_BYTES, this.#part);
    for (let from = 0; from < this.#n; from += this.#partLabels) {
      const count = Math.min(this.#partLabels, this.#n - from);
      this.#gather(at.layer, from, count, files);
      for (let done = 0; done < count; done += BATCH) {
        const [first, end] = [from + done, from + Math.min(count, done + BATCH)];
        const table = this.#table + done * COLUMNS * 4;
        this.#kernel.labels(at.layer, first, end, at.iterations, this.#part + done * LABEL_BYTES, table);
        if (done % (BATCH * 16) === 0) onProgress(end);
      }
      const part = this.#bytes.subarray(this.#part, this.#part + count * LABEL_BYTES);
      for (let at = 0; at < part.length; )
        at += writeSync(files.to, part, at, part.length - at, from * LABEL_BYTES + at);
      this.#bytes.set(part.subarray(-LABEL_BYTES), this.#part - LABEL_BYTES);
      this.#fold(tree, from, count);
    }
    return this.#finish(tree);
  }

  /** The stored levels of the tree over a layer in a file; of no use when the file is too short. */
  treeOf(file: number): Uint8Array {
    const tree = new Uint8Array(treeBytes(this.#n));
    for (let from = 0; from < this.#n; from += this.#partLabels) {
      const count = Math.min(this.#partLabels, this.#n - from);
      const part = this.#bytes.subarray(this.#part, this.#part + count * LABEL_BYTES);
      if (!readWhole(file, part, from * LABEL_BYTES)) return new Uint8Array();
      this.#fold(tree, from, count);
    }
    return this.#finish(tree);
  }

  /** Fills the table for a part: addresses in the part itself, of copies, or of zeros. */
  #gather(
    layer: number,
    from: number,
    count: number,
    files: { readonly to: number; readonly below: number | undefined },
  ): void {
    this.#kernel.parents(layer, from, from + count, this.#n, this.#table);
    const rows = this.#words.subarray(this.#table / 4, this.#table / 4 + count * COLUMNS);
    const free = this.#copy(rows, FAR, { file: files.to, labels: from }, this.#copies / 4);
    if (from === 0) rows[FAR] = ZEROS;
    if (files.below !== undefined) this.#copy(rows, BELOW, { file: files.below, labels: this.#n }, free);
    else for (let row: number = BELOW; row < rows.length; row += COLUMNS) rows[row] = ZEROS;
  }

  /**
   * Puts addresses in the place of the labels in a column: of copies of those that `from` has, in the part of those behind them. Gives the
   * next free word.
   */
  #copy(
    rows: Uint32Array,
    column: number,
    from: { readonly file: number; readonly labels: number },
    free: number,
  ): number {
    const [ends, order, words] = [this.#ends.fill(0), this.#order, this.#words];
    for (let row = column; row < rows.length; row += COLUMNS) {
      const label = rows[row]!;
      if (label < from.labels) ends[Math.floor(label / READ_LABELS)]! += 1;
    }
    for (let i = 0, sum = 0; i < ends.length; i++) [ends[i], sum] = [sum, sum + ends[i]!];
    for (let row = column; row < rows.length; row += COLUMNS) {
      const label = rows[row]!;
      if (label < from.labels) order[ends[Math.floor(label / READ_LABELS)]!++] = row;
      else rows[row] = this.#part + (label - from.labels) * LABEL_BYTES;
    }
    const read = new Uint32Array(this.#read.buffer);
    let to = free;
    let at = 0;
    for (const [i, end] of ends.entries()) {
      if (at === end) continue;
      const first = i * READ_LABELS;
      const length = Math.min(READ_LABELS, from.labels - first) * LABEL_BYTES;
      if (!readWhole(from.file, this.#read.subarray(0, length), first * LABEL_BYTES))
        throw new Error('a layer of the space commitment was cut off while it was used');
      for (; at < end; at++) {
        const row = order[at]!;
        const source = (rows[row]! - first) * WORDS;
        for (let word = 0; word < WORDS; word++) words[to + word] = read[source + word]!;
        rows[row] = to * 4;
        to += WORDS;
      }
    }
    return to;
  }

  /** Replaces the part by the nodes of its blocks, and puts them into the tree. */
  #fold(tree: Uint8Array, from: number, count: number): void {
    let width = count;
    for (let level = 0; level < STORED_LEVEL; level++) {
      width /= 2;
      this.#pairs(width);
    }
    const nodes = this.#bytes.subarray(this.#part, this.#part + width * LABEL_BYTES);
    tree.set(nodes, (from >> STORED_LEVEL) * LABEL_BYTES);
  }

  /** All levels above those of the blocks. Uses the memory of the part and what follows it. */
  #finish(tree: Uint8Array): Uint8Array {
    let at = 0;
    for (const width of widths(this.#n).slice(STORED_LEVEL, -1)) {
      const end = at + width * LABEL_BYTES;
      this.#bytes.set(tree.subarray(at, end), this.#part);
      // A level of odd width is followed by the 32 zero bytes of an absent node.
      this.#bytes.fill(0, this.#part + (end - at), this.#part + (end - at) + LABEL_BYTES);
      const above = Math.ceil(width / 2);
      this.#pairs(above);
      tree.set(this.#bytes.subarray(this.#part, this.#part + above * LABEL_BYTES), end);
      at = end;
    }
    return tree;
  }

  #pairs(count: number): void {
    for (let done = 0; done < count; done += BATCH) {
      const from = this.#part + done * 2 * LABEL_BYTES;
      this.#kernel.pairs(from, this.#part + done * LABEL_BYTES, Math.min(BATCH, count - done));
    }
  }
}

/** Fills `target` from there on; false when the file is too short. */
function readWhole(file: number, target: Uint8Array, position: number): boolean {
  for (let at = 0; at < target.length; ) {
    const read = readSync(file, target, at, target.length - at, position + at);
    if (read === 0) return false;
    at += read;
  }
  return true;
}
