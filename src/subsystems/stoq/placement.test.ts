import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { hex } from '../../base/bytes.ts';
import { readVectors } from '../../testing/vectors.ts';
import { Placement } from './placement.ts';

const key = fc.uint8Array({ minLength: 32, maxLength: 32 }).map(hex);

test('top() orders nodes as in the vectors', () => {
  const { placement } = readVectors<{
    placement: { why: string; resource: string; nodes: string[]; top: string[] }[];
  }>('overlay', 'valid');
  for (const { why, resource, nodes, top } of placement) {
    const ranking = new Placement(nodes);
    assert.deepEqual(ranking.top(`sha256:${resource}`, nodes.length), top, why);
    assert.deepEqual(ranking.top(`sha256:${resource}`, 3), top.slice(0, 3), why);
    assert.deepEqual(ranking.top(`sha256:${resource}`, 0), [], why);
  }
});

test('top() does not depend on the order in which nodes are known, and a node that goes moves nobody else', () => {
  fc.assert(
    fc.property(fc.uniqueArray(key, { minLength: 2, maxLength: 40 }), key, fc.nat(), (nodes, resource, at) => {
      const order = new Placement(nodes).top(`sha256:${resource}`, nodes.length);
      assert.deepEqual(order.toSorted(), nodes.toSorted());
      assert.deepEqual(new Placement(nodes.toSorted()).top(`sha256:${resource}`, nodes.length), order);
      const gone = nodes[at % nodes.length]!;
      const rest = nodes.filter((node) => node !== gone);
      assert.deepEqual(
        new Placement(rest).top(`sha256:${resource}`, nodes.length),
        order.filter((node) => node !== gone),
      );
    }),
  );
});

test('top() gives every node its share', () => {
  const digits = (n: number) => ((n * 0x9e37_79b1) >>> 0).toString(16).padStart(8, '0').repeat(8);
  const nodes = Array.from({ length: 20 }, (_, at) => digits(at + 1));
  const ranking = new Placement(nodes);
  const counts = new Map(nodes.map((node) => [node, 0]));
  for (let n = 0; n < 10_000; n++) {
    for (const node of ranking.top(`sha256:${digits(1_000 + n)}`, 3)) counts.set(node, counts.get(node)! + 1);
  }
  // 1,500 each; the deviation by chance is some 36.
  for (const [node, count] of counts) assert.ok(Math.abs(count - 1_500) < 250, `${node.slice(0, 8)} has ${count}`);
});
