import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { promisify } from 'node:util';

// The same seed replays the same network: HYPERMESH_SEED=… node --test test/network/simulation.test.ts
// A thousand nodes take minutes: HYPERMESH_NODES=1000
const seed = process.env['HYPERMESH_SEED'] ?? String(randomInt(2 ** 32));
const size = process.env['HYPERMESH_NODES'] ?? '150';

const networks: readonly (readonly [what: string, ...args: string[]])[] = [
  [`${size} simulated nodes find each other, gossip, and repair what dies`, size, '20', 'whole'],
  ['100 simulated nodes lose a third of them, are parted in halves, and agree again', '100', '33', 'parted'],
];

for (const [what, ...args] of networks) {
  test(what, { timeout: 1_200_000 + 3_000 * Number(args[0]) }, async (t) => {
    t.diagnostic(`seed ${seed}`);
    const child = new URL('./simulation-child.ts', import.meta.url).pathname;
    const run = promisify(execFile)(process.execPath, [child, seed, ...args], { maxBuffer: 2 ** 20, signal: t.signal });
    const { stdout } = await run.catch((error: { stderr: string }) => assert.fail(`seed ${seed}: ${error.stderr}`));
    for (const line of stdout.trim().split('\n')) t.diagnostic(line);
  });
}
