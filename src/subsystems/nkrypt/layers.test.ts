import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { open } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { hex } from '../../base/bytes.ts';
import { LayerMaker } from './layers.ts';
import { openLabels, rootOf, treeBytes } from './merkle.ts';
import { LABEL_BYTES, LAYERS, labelOf, labelSeed, parentsOf } from './space-graph.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-layers-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const seed = labelSeed(`sha256:${'33'.repeat(32)}`, '44'.repeat(32));
const iterations = 2;

// Several reads of a layer for each part, and a last part and a last read that are not full.
test('layers that are made part by part are those of the readable twin, wherever their parents lie', async () => {
  const n = 2_048 * 35;
  const maker = await LayerMaker.open(n, seed);
  const zero = new Uint8Array(LABEL_BYTES);
  let below: Uint8Array | undefined;
  for (let layer = 1; layer <= LAYERS; layer++) {
    const file = path.join(folder, `layer-${layer}`);
    const to = openSync(file, 'wx+');
    const from = layer === 1 ? undefined : openSync(path.join(folder, `layer-${layer - 1}`), 'r');
    const seen: number[] = [];
    const tree = maker.make({ layer, iterations }, { to, below: from }, (labels) => seen.push(labels));
    assert.deepEqual(Buffer.from(maker.treeOf(to)), Buffer.from(tree));
    closeSync(to);
    if (from !== undefined) closeSync(from);
    assert.equal(seen.at(-1)! <= n && seen.every((labels, i) => i === 0 || labels > seen[i - 1]!), true);
    const labels = readFileSync(file);
    assert.equal(labels.length, n * LABEL_BYTES);
    const at = (all: Uint8Array, label: number | undefined) =>
      label === undefined ? zero : all.subarray(label * LABEL_BYTES, (label + 1) * LABEL_BYTES);
    for (let label = 0; label < n; label += label < 64 ? 1 : 61) {
      const parents = parentsOf(layer, label, n);
      const made = labelOf(
        seed,
        { layer, label, iterations },
        {
          before: at(labels, parents.before),
          far: at(labels, parents.far),
          below: below === undefined ? zero : at(below, parents.below),
        },
      );
      assert.deepEqual(Buffer.from(at(labels, label)), Buffer.from(made), `layer ${layer} label ${label}`);
    }
    assert.equal(tree.length, treeBytes(n));
    const positions = [0, 2_047, 40_960, n - 1];
    await using opened = await open(file);
    const opening = await openLabels({ labels: opened, tree }, n, positions);
    assert.equal(hex(rootOf(n, positions, opening)!), hex(tree.subarray(-LABEL_BYTES)));
    below = labels;
  }
});

test('treeOf() of a layer that was cut off is no tree, and a layer is not made from one', async () => {
  const n = 2_048;
  const maker = await LayerMaker.open(n, seed);
  const [whole, short, next] = ['whole', 'short', 'next'].map((name) => path.join(folder, name));
  using files = new DisposableStack();
  const opened = (file: string) => files.adopt(openSync(file, 'wx+'), closeSync);
  const make = { layer: 1, iterations };
  const tree = maker.make(make, { to: opened(whole!), below: undefined }, () => {});
  const cut = opened(short!);
  assert.deepEqual(
    maker.make(make, { to: cut, below: undefined }, () => {}),
    tree,
  );
  truncateSync(short!, n * LABEL_BYTES - 1);
  assert.equal(maker.treeOf(cut).length, 0);
  assert.throws(() => maker.make({ layer: 2, iterations }, { to: opened(next!), below: cut }, () => {}), /cut off/);
});
