import assert from 'node:assert/strict';
import { SimulatedNetwork } from '../../src/testing/simulated-network.ts';
import { SimulatedNode } from '../../src/testing/simulated-node.ts';

/**
 * Many nodes discover each other, tell each other of records, and keep copies while some of them die and, when they are asked to, while half of them is cut off.
 * Arguments: seed, number of nodes, number of those that die, `whole` or `parted`. Prints what took how long in the network's own time; a failure names the seed.
 */
const [seed, size, deaths] = process.argv.slice(2, 5).map(Number) as [number, number, number];
const isParted = process.argv[5] === 'parted';
const MINUTE_MS = 60_000;

const network = new SimulatedNetwork(seed, { lossRate: 0.01 });
const nodes: SimulatedNode[] = [];
const up = () => nodes.filter(({ id }) => network.isUp(id));

async function seen(what: string, condition: () => boolean, withinMs: number): Promise<void> {
  const ms = await network.until(condition, withinMs);
  assert.ok(ms !== null, `not within ${withinMs / MINUTE_MS} min: ${what}; seed ${seed}, ${size} nodes`);
  console.log(`${what}: ${(ms / 1_000).toFixed(0)} s, ${network.messages} messages so far`);
}

// Discovery: each joins through one that is there already.
for (let at = 0; at < size; at++) {
  const node = new SimulatedNode(network, `node ${at}`);
  const through = nodes[Math.floor(network.random() * nodes.length)];
  nodes.push(node);
  void node.join(...(through === undefined ? [] : [through]));
  if (at % 200 === 199) await network.pass(1_000);
}
await seen('everybody knows everybody', () => nodes.every(({ directory }) => directory.size === size), 10 * MINUTE_MS);

// Gossip: records published in many places reach everybody.
const published = nodes.slice(0, 20).map((node, at) => node.publish(`resource ${at}`, 3));
const toldAll = (ids: typeof published) => up().every(({ records }) => ids.every((id) => records.has(id)));
await seen('everybody has every record', () => toldAll(published), 10 * MINUTE_MS);

// Replication: each resource lies on three nodes.
const holders = (id: (typeof published)[number]) => up().filter((node) => node.holds(id));
const replicated = () => published.every((id) => holders(id).length >= 3);
await seen('every resource has three copies', replicated, 5 * MINUTE_MS);

// Repair: some nodes die at once, among them all but one of the holders of some resources.
const doomed = published.slice(0, 5).flatMap((id) => holders(id).slice(1));
const keepers = new Set(published.map((id) => holders(id)[0]));
const victims = [...new Set([...doomed, ...nodes])].filter((node) => !keepers.has(node)).slice(0, deaths);
for (const { id } of victims) network.setUp(id, false);
assert.ok(!replicated(), `nothing was lost; seed ${seed}`);
await seen('copies of the dead are made elsewhere', replicated, 15 * MINUTE_MS);

// A partition: both sides go on, and agree when it is over.
if (isParted) {
  for (const [at, { id }] of nodes.entries()) network.setPart(id, at % 2);
  await network.pass(MINUTE_MS);
  const during = [0, 1].map((part) => {
    const node = nodes.findLast(({ id }, at) => at % 2 === part && network.isUp(id))!;
    return node.publish(`said in part ${part}`, 3);
  });
  await network.pass(MINUTE_MS);
  assert.ok(!up().some(({ records }) => during.every((id) => records.has(id))), `the partition leaks; seed ${seed}`);
  for (const { id } of nodes) network.setPart(id, 0);
  await seen('both sides of a partition agree again', () => toldAll(during), 10 * MINUTE_MS);
}

// The dead come back, and catch up with what was said meanwhile.
const later = up()[0]!.publish('said while some were away', 3);
await network.pass(MINUTE_MS);
for (const { id } of victims) network.setUp(id, true);
await seen('those who were away have caught up', () => toldAll([later]), 15 * MINUTE_MS);

// Who is back is known soon, although a round of probes takes as many periods as there are nodes.
const pairs = nodes.length * victims.length;
const awaited = () =>
  nodes.reduce((sum, node) => sum + victims.filter(({ id }) => node.liveness.vitality(id) === 'away').length, 0);
await seen('nearly everybody knows who is back', () => awaited() <= pairs / 50, 4 * MINUTE_MS);

// Copies that were made for the dead are given up again: what is left is as many as asked for, and the publisher's own.
const places = (id: (typeof published)[number]) => nodes[0]!.replication.places({ id, replication: 3 });
const isTidy = (id: (typeof published)[number]) =>
  places(id).every((place) => nodes.find((node) => node.id === place)!.holds(id)) && holders(id).length <= 4;
await seen('copies that are too many are given up', () => published.every(isTidy), 30 * MINUTE_MS);
