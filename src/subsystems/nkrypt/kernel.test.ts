import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { KERNEL_BASE, LABEL_IV, MIDSTATE, openKernel, ZEROS } from './kernel.ts';
import { compress, IV, midstate, wordsOf } from './sha256.ts';
import { labelOf, labelSeed, parentsOf } from './space-graph.ts';

const sha = (...parts: Uint8Array[]) => {
  const h = createHash('sha256');
  for (const part of parts) h.update(part);
  return h.digest();
};

test('compress() is the compression function of SHA-256', () => {
  const message = Uint8Array.from({ length: 64 }, (_, i) => i * 7);
  const state = Int32Array.from(IV);
  compress(state, wordsOf(message));
  const padding = new Uint8Array(64);
  padding[0] = 0x80;
  padding[62] = 2;
  compress(state, wordsOf(padding));
  const view = new DataView(new ArrayBuffer(32));
  for (const [i, word] of state.entries()) view.setInt32(i * 4, word);
  assert.deepEqual(new Uint8Array(view.buffer), new Uint8Array(sha(message)));
});

test('pairs() gives SHA-256 of 64 bytes each', async () => {
  const kernel = await openKernel(2);
  const bytes = new Uint8Array(kernel.memory.buffer);
  const input = randomBytes(64 * 9);
  bytes.set(input, KERNEL_BASE);
  kernel.pairs(KERNEL_BASE, KERNEL_BASE + 4096, 9);
  for (let i = 0; i < 9; i++) {
    assert.deepEqual(
      bytes.slice(KERNEL_BASE + 4096 + i * 32, KERNEL_BASE + 4096 + i * 32 + 32),
      new Uint8Array(sha(input.subarray(i * 64, i * 64 + 64))),
    );
  }
});

test('search() finds the first nonce that node:crypto agrees with, across the end of 32 bits', async () => {
  const kernel = await openKernel(2);
  const prefix = randomBytes(64);
  new Int32Array(kernel.memory.buffer, MIDSTATE, 8).set(midstate(prefix));
  for (const [high, low] of [
    [0, 0],
    [7, 0xffff_0000],
  ] as const) {
    const count = 1 << 16;
    const found = kernel.search(high, low, count, 0xfff00000 | 0);
    const first = Array.from({ length: count }, (_, offset) => offset).findIndex((offset) => {
      const nonce = Buffer.alloc(8);
      nonce.writeUInt32BE(high);
      nonce.writeUInt32BE(low + offset, 4);
      return sha(prefix, nonce).readUInt32BE() >>> 20 === 0;
    });
    assert.equal(found, first);
  }
});

test('parents() and labels() make the same labels as their readable twin, in every layer', async () => {
  const n = 2048;
  const iterations = 3;
  const seed = labelSeed(`sha256:${'11'.repeat(32)}`, '22'.repeat(32));
  const kernel = await openKernel(4);
  const memory = new Uint8Array(kernel.memory.buffer);
  memory.set(seed, LABEL_IV);
  let previous = KERNEL_BASE + 32;
  let current = previous + n * 32 + 32;
  const table = current + n * 32;
  const rows = new Uint32Array(kernel.memory.buffer, table, 2 * n);
  let below: Uint8Array[] = [];
  const zero = new Uint8Array(32);
  for (let layer = 1; layer <= 3; layer++) {
    memory.fill(0, current - 32, current);
    kernel.parents(layer, 0, 1000, n, table);
    kernel.parents(layer, 1000, n, n, table + 8_000);
    for (let label = 0; label < n; label++) {
      const parents = parentsOf(layer, label, n);
      if (parents.far !== undefined) assert.equal(rows[2 * label], parents.far);
      if (parents.below !== undefined) assert.equal(rows[2 * label + 1], parents.below);
      rows[2 * label] = parents.far === undefined ? ZEROS : current + parents.far * 32;
      rows[2 * label + 1] = parents.below === undefined ? ZEROS : previous + parents.below * 32;
    }
    kernel.labels(layer, 0, 1000, iterations, current, table);
    kernel.labels(layer, 1000, n, iterations, current + 32_000, table + 8_000);
    const labels: Uint8Array[] = [];
    for (let label = 0; label < n; label++) {
      const parents = parentsOf(layer, label, n);
      const of = (from: Uint8Array[], index: number | undefined) => (index === undefined ? zero : from[index]!);
      labels.push(
        labelOf(
          seed,
          { layer, label, iterations },
          {
            before: of(labels, parents.before),
            far: of(labels, parents.far),
            below: of(below, parents.below),
          },
        ),
      );
      assert.deepEqual(
        memory.slice(current + label * 32, current + label * 32 + 32),
        labels[label],
        `layer ${layer} label ${label}`,
      );
    }
    below = labels;
    [previous, current] = [current, previous];
  }
});
