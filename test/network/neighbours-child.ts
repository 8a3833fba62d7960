import { randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemTimers } from '../../src/subsystems/stoq/ask.ts';
import { findNeighbours } from '../../src/subsystems/stoq/overlay/neighbours.ts';
import { until } from '../../src/testing/until.ts';

/** Two nodes of one network and one of another on one link. Prints, as JSON, whom each of them found. */
const around = {
  // An hour in three minutes: a machine with other work loses what is shouted over, and the next question comes after a minute.
  timers: { ...systemTimers, after: (ms: number, then: () => void) => systemTimers.after(ms / 20, then) },
  random: Math.random,
};
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

/** Whoever is on the link can send anything: noise, names that point to themselves, answers without sense. */
async function shout(): Promise<void> {
  const socket = createSocket('udp4');
  const header = (counts: readonly number[]) => Buffer.from([0, 0, 0x84, 0, ...counts.flatMap((count) => [0, count])]);
  const service = Buffer.from('\x0b_hypermesh\x04_tcp\x05local\0', 'latin1');
  const record = (type: number, data: Buffer) =>
    Buffer.concat([service, Buffer.from([0, type, 0, 1, 0, 0, 0, 9, data.length >> 8, data.length & 255]), data]);
  for (let n = 0; n < 300; n++) {
    const noise = randomBytes(n);
    for (const packet of [
      noise,
      Buffer.concat([header([0, 1, 0, 0]), Buffer.from([0xc0, 12]), noise]),
      Buffer.concat([header([255, 255, 255, 255]), service, noise]),
      Buffer.concat([header([0, 2, 0, 0]), record(33, noise), record(16, noise)]),
    ]) {
      await new Promise((sent) => socket.send(packet, 5353, '224.0.0.251', sent));
    }
  }
  socket.close();
}

using _a = await look('a', '1', 9001);
using _b = await look('b', '1', null);
using _c = await look('c', '2', 9003);
await shout();
await until('b has found a', () => found['b']!.length > 0);
await sleep(200);
console.log(JSON.stringify(found));
