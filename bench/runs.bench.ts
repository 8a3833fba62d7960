import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freshHome, nodeOf, writePackage } from '../test/system/support.ts';
import type { Bench } from './harness.ts';
import { quantile } from './harness.ts';

const RUNS = 100;
const ROUNDS = 2;
const ASK_EVERY_MS = 10;
/** About as many answers as while the programs run: the p99 of fewer is that of the one worst moment. */
const IDLE_MS = 6_000;
const P99_MS_MAX = 100;
/** Some arithmetic, and the input back. */
const PROGRAM = `
import json, sys
number = json.load(sys.stdin)
total = 0
for value in range(20000): total = (total * 31 + value) % 1000003
print(json.dumps([number, total]))
`;

export const bench: Bench = {
  name: 'runs',
  about: `${RUNS} programs asked for at once: none is lost, and the node's API answers meanwhile`,
  async run() {
    await using home = await freshHome();
    await home.json(['up', '--detach']);
    const { client, ...file } = await nodeOf(home);
    const folder = await writePackage(
      join(home.folder, 'package'),
      { name: 'bench/python', version: '1.0.0', language: 'python', entry: 'main.py' },
      { 'main.py': PROGRAM },
    );
    await home.json(['publish', folder]);
    const ref = 'bench/python';
    await client.run({ ref, input: -1 });
    const asked = { ours: [] as number[], theirs: [] as number[] };
    const each = { ours: [] as number[], theirs: [] as number[] };
    for (let round = 0; round < ROUNDS; round++) {
      asked.theirs.push(quantile(await asking(file.http, sleep(IDLE_MS)), 0.99));
      const aloneAt = performance.now();
      await client.run({ ref, input: -2 });
      each.theirs.push(performance.now() - aloneAt);
      const startedAt = performance.now();
      const runs = Array.from({ length: RUNS }, async (_, index) => {
        const { output, reason } = await client.run({ ref, input: index });
        if (!Array.isArray(output) || output[0] !== index) throw new Error(`Run ${index} was lost: ${reason}`);
      });
      asked.ours.push(quantile(await asking(file.http, Promise.all(runs)), 0.99));
      each.ours.push((performance.now() - startedAt) / RUNS);
    }
    return [
      { name: 'an answer of the API, p99', unit: 'ms', reference: 'idle', oursMax: P99_MS_MAX, ...asked },
      { name: 'each run', unit: 'ms', reference: 'alone', ...each },
    ];
  },
};

/** How long the answers took that were asked for, one every few milliseconds, until the work was done. */
async function asking(http: string, work: Promise<unknown>): Promise<number[]> {
  const took: Promise<number>[] = [];
  let isDone = false;
  const done = work.finally(() => {
    isDone = true;
  });
  while (!isDone) {
    const askedAt = performance.now();
    took.push(
      fetch(`${http}/v1/status`).then(async (answer) => {
        await answer.arrayBuffer();
        return performance.now() - askedAt;
      }),
    );
    await sleep(ASK_EVERY_MS);
  }
  await done;
  return Promise.all(took);
}
