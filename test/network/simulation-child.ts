import assert from 'node:assert/strict';
import { SimulatedNetwork } from '../../src/testing/simulated-network.ts';
import { SimulatedNode } from '../../src/testing/simulated-node.ts';

/**
 * Many nodes discover each other, tell each other of records, and keep copies while some of them die and a part is cut off.
 * Arguments: seed, number of nodes. Prints what took how long in the network's own time; a failure names the seed.
 */
const [seed, size] = process.argv.slice(2).map(Number) as [number, number];
const MINUTE_MS = 60_000;

const network = new SimulatedNetwork(seed, { lossRate: 0.01 });
const nodes: SimulatedNode[] = [];
const report = (what: string, ms: number | null) => {
  assert.ok(ms !== null, `${what}: never came; seed ${seed}, ${size} nodes`);
  console.log(`${what}: ${(ms / 1_000).toFixed(0)} s, ${network.messages} messages so far`);
};

// Discovery: each joins through one that is there already.
for (let at = 0; at < size; at++) {
  const node = new SimulatedNode(network, `node ${at}`);
  const through = nodes[Math.floor(network.random() * nodes.length)] ?? null;
  nodes.push(node);
  void node.join(through);
  if (at % 200 === 199) await network.pass(1_000);
}
const knowAll = () => nodes.every(({ directory }) => directory.size === nodes.length);
report('everybody knows everybody', await network.until(knowAll, 10 * MINUTE_MS));

// Gossip: records published in many places reach everybody.
const published = nodes.slice(0, 20).map((node, at) => node.publish(`resource ${at}`, 3));
const toldAll = (ids = published, whom = nodes) => whom.every(({ records }) => ids.every((id) => records.has(id)));
report('everybody has every record', await network.until(toldAll, 5 * MINUTE_MS));

// Replication: each resource lies on its three places.
const up = () => nodes.filter(({ id }) => network.isUp(id));
const copies = (id: (typeof published)[number]) => up().filter((node) => node.holds(id)).length;
const replicated = () => published.every((id) => copies(id) >= 3);
report('every resource has three copies', await network.until(replicated, 5 * MINUTE_MS));

// Repair: a tenth of all nodes die at once, and with them two of the three holders of some resources.
const holders = published.slice(0, 5).flatMap((id) => nodes.filter((node) => node.holds(id)).slice(0, 2));
const victims = [...new Set([...nodes.filter((_, at) => at % 10 === 3), ...holders])];
for (const { id } of victims) network.setUp(id, false);
report('copies of the dead are made elsewhere', await network.until(replicated, 15 * MINUTE_MS));

// A partition: both sides go on, and heal.
for (const [at, { id }] of nodes.entries()) network.setPart(id, at % 2);
await network.pass(MINUTE_MS);
const [even, odd] = [
  up().find((node) => nodes.indexOf(node) % 2 === 0)!,
  up().find((node) => nodes.indexOf(node) % 2 === 1)!,
];
const during = [even.publish('said on one side', 3), odd.publish('said on the other side', 3)];
await network.pass(MINUTE_MS);
assert.ok(!up().some(({ records }) => during.every((id) => records.has(id))), 'the partition leaks');
for (const { id } of nodes) network.setPart(id, 0);
report('both sides of a partition agree again', await network.until(() => toldAll(during, up()), 10 * MINUTE_MS));

// The dead come back.
for (const { id } of victims) network.setUp(id, true);
report('those who were away have caught up', await network.until(() => toldAll(during, nodes), 15 * MINUTE_MS));
