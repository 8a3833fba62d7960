import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { open, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import fc from 'fast-check';
import { hex } from '../../base/bytes.ts';
import { systemClock } from '../../base/clock.ts';
import { isCoded } from '../../base/errors.ts';
import { ascending, openLabels, rootOf, treeBytes, widths } from './merkle.ts';
import { checkRegistration, type Registration, registrationPositions } from './registration.ts';
import { SpaceCommitment, type SpaceRegistry } from './space.ts';
import { labelSeed } from './space-graph.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-space-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const seed = labelSeed(`sha256:${'11'.repeat(32)}`, '22'.repeat(32));
const terms = { seed, bytes: 196_608, iterations: 4, openings: 32 };

function registry(): SpaceRegistry & { root: string | undefined; last: Registration | undefined } {
  const it = {
    root: undefined as string | undefined,
    last: undefined as Registration | undefined,
    registered: () => it.root,
    async register(_roots: readonly string[], answer: (nonce: string) => Promise<Registration>) {
      const registration = await answer(hex(randomBytes(32)));
      await checkRegistration(registration, terms);
      it.last = registration;
      it.root = registration.roots.at(-1)!;
    },
  };
  return it;
}

function commitment(directory: string, lent: SpaceRegistry) {
  return new SpaceCommitment(
    { registry: lent },
    {
      ...{ directory, seed, bytes: terms.bytes, iterations: terms.iterations, registrationOpenings: terms.openings },
      clock: systemClock,
    },
  );
}

test('a commitment is made once, registered, kept as one layer, and opens to its root', async () => {
  const directory = path.join(folder, 'once');
  const lent = registry();
  await using space = commitment(directory, lent);
  assert.equal(space.status().state, 'absent');
  const root = await space.ready();
  assert.equal(space.status().state, 'ready');
  assert.deepEqual((await readdir(directory)).sort(), ['layer-3', 'tree-3']);
  const positions = ascending([0, 1, 63, 64, 4095, 6143]);
  const opening = await space.open(positions);
  assert.equal(hex(rootOf(terms.bytes / 32, positions, opening)!), root);
  await using again = commitment(directory, lent);
  assert.equal(await again.ready(), root);
});

test('a commitment resumes after the last finished layer, and notices a damaged one', async () => {
  const directory = path.join(folder, 'resume');
  const first = registry();
  await using space = commitment(directory, { ...first, registered: () => undefined, register: async () => undefined });
  const root = await space.ready();
  const kept = await readFile(path.join(directory, 'layer-3'));
  assert.equal(hex((await space.open([0, 1])).labels), hex(kept.subarray(0, 64)));
  // As a crash leaves it: the last tree is missing, one byte of an earlier layer is wrong.
  await writeFile(path.join(directory, 'layer-2'), Buffer.alloc(terms.bytes));
  await writeFile(path.join(directory, 'tree-2'), Buffer.alloc(treeBytes(terms.bytes / 32)));
  await writeFile(path.join(directory, 'layer-3.tmp'), 'half');
  await truncate(path.join(directory, 'layer-3'), 100);
  const lent = registry();
  await using resumed = commitment(directory, lent);
  assert.equal(await resumed.ready(), root);
  assert.deepEqual(await readFile(path.join(directory, 'layer-3')), kept);

  const file = await open(path.join(directory, 'layer-3'), 'r+');
  await file.write(Buffer.of(kept[5000 * 32]! ^ 1), 0, 1, 5000 * 32);
  await file.close();
  await assert.rejects(resumed.open([5000]), (error) => isCoded(error, 'space-unavailable'));
  assert.equal(resumed.status().state, 'damaged');
  assert.equal(await resumed.ready(), root);
  assert.equal(resumed.status().state, 'ready');
  assert.deepEqual(await readFile(path.join(directory, 'layer-3')), kept);
});

test('a commitment that is stopped again and again comes to the same root', async () => {
  const directory = path.join(folder, 'stopped');
  const lent = registry();
  for (let delayMs = 40; delayMs < 160; delayMs += 15) {
    const space = commitment(directory, lent);
    const made = space.ready().then(
      () => undefined,
      (error: unknown) => error,
    );
    await delay(delayMs);
    await space[Symbol.asyncDispose]();
    const error = await made;
    assert.ok(error === undefined || isCoded(error, 'cancelled'), String(error));
  }
  await using space = commitment(directory, lent);
  const root = await space.ready();
  await using fresh = commitment(path.join(folder, 'undisturbed'), registry());
  assert.equal(await fresh.ready(), root);
  assert.deepEqual((await readdir(directory)).sort(), ['layer-3', 'tree-3']);
});

test('each layer on the disk fits its tree from the first label to the last', async () => {
  const directory = path.join(folder, 'layers');
  const lent = registry();
  const n = terms.bytes / 32;
  const all = Array.from({ length: n }, (_, i) => i);
  const opened: string[] = [];
  await using space = commitment(directory, {
    ...lent,
    async register(roots) {
      for (const [index, root] of roots.entries()) {
        const tree = await readFile(path.join(directory, `tree-${index + 1}`));
        await using labels = await open(path.join(directory, `layer-${index + 1}`));
        opened.push(hex(rootOf(n, all, await openLabels({ labels, tree }, n, all))!));
        assert.equal(opened[index], root);
      }
    },
  });
  await space.ready();
  assert.equal(opened.length, 3);
});

test('checkRegistration() refuses altered labels, paths, roots and another identity', async () => {
  const lent = registry();
  await using space = commitment(path.join(folder, 'register'), lent);
  await space.ready();
  const good = lent.last!;
  const refused = (bad: Registration, on = terms) =>
    assert.rejects(checkRegistration(bad, on), (error) => isCoded(error, 'proof-rejected'));
  for (let layer = 0; layer < 3; layer++) {
    for (const part of ['labels', 'path'] as const) {
      const layers = structuredClone(good.layers) as { labels: Uint8Array; path: Uint8Array }[];
      layers[layer]![part][7]! ^= 1;
      await refused({ ...good, layers });
      layers[layer]![part] = good.layers[layer]![part].subarray(32);
      await refused({ ...good, layers });
    }
  }
  await refused({ ...good, roots: [...good.roots].reverse() });
  await refused({ ...good, layers: good.layers.slice(1) });
  await refused({ ...good, nonce: 'ab'.repeat(32) });
  await refused(good, { ...terms, seed: labelSeed(`sha256:${'11'.repeat(32)}`, '23'.repeat(32)) });
  await refused(good, { ...terms, seed: labelSeed(`sha256:${'12'.repeat(32)}`, '22'.repeat(32)) });
  await refused(good, { ...terms, iterations: 5 });
  const { needed } = registrationPositions(good.nonce, good.roots, terms.bytes / 32, terms.openings);
  assert.ok(needed.every((positions) => positions.every((at, i) => i === 0 || at > positions[i - 1]!)));
});

test('openLabels() and rootOf() agree for any positions; no other bytes lead to the root', async () => {
  const directory = path.join(folder, 'once');
  const tree = await readFile(path.join(directory, 'tree-3'));
  await using labels = await open(path.join(directory, 'layer-3'));
  const n = terms.bytes / 32;
  assert.equal(widths(n).at(-1), 1);
  const root = hex(tree.subarray(-32));
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(fc.nat(n - 1), { minLength: 1, maxLength: 80 }), fc.nat(), async (draw, at) => {
      const positions = ascending(draw);
      const opening = await openLabels({ labels, tree }, n, positions);
      assert.equal(hex(rootOf(n, positions, opening)!), root);
      const part = at % 2 === 0 ? 'labels' : 'path';
      if (opening[part].length === 0) return;
      const bytes = Uint8Array.from(opening[part]);
      bytes[at % bytes.length]! ^= 1;
      assert.notEqual(hex(rootOf(n, positions, { ...opening, [part]: bytes })!), root);
      assert.equal(rootOf(n, positions, { ...opening, [part]: bytes.subarray(1) }), undefined);
    }),
    { numRuns: 40 },
  );
});
