import { setTimeout as sleep } from 'node:timers/promises';
import { systemTimers } from '../../src/subsystems/stoq/ask.ts';
import { findNeighbours } from '../../src/subsystems/stoq/overlay/neighbours.ts';

/** Two nodes of one network and one of another on one link. Prints, as JSON, whom each of them found. */
const around = { timers: systemTimers, random: Math.random };
const found: Record<string, string[]> = { a: [], b: [], c: [] };
const look = (name: string, network: string, port: number | null) =>
  findNeighbours(around, {
    self: name.repeat(64),
    networkId: `sha256:${network.repeat(64)}`,
    port: () => port,
    heard: (node, address) => found[name]!.push(`${node.slice(0, 1)} ${address}`),
    failed: (error) => {
      throw error;
    },
  });

using _a = await look('a', '1', 9001);
using _b = await look('b', '1', null);
using _c = await look('c', '2', 9003);
for (let waited = 0; waited < 5_000 && found['b']!.length === 0; waited += 50) await sleep(50);
await sleep(200);
console.log(JSON.stringify(found));
