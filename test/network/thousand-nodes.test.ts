import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { promisify } from 'node:util';

// The same seed replays the same network: HYPERMESH_SEED=… HYPERMESH_NODES=… node --test test/network/thousand-nodes.test.ts
const seed = process.env['HYPERMESH_SEED'] ?? String(randomInt(2 ** 32));
const nodes = process.env['HYPERMESH_NODES'] ?? '1000';

test(`${nodes} simulated nodes find each other, gossip, and repair what dies`, { timeout: 600_000 }, async (t) => {
  t.diagnostic(`seed ${seed}`);
  const child = new URL('./simulation-child.ts', import.meta.url).pathname;
  const run = promisify(execFile)(process.execPath, [child, seed, nodes], { maxBuffer: 2 ** 20 });
  const { stdout } = await run.catch((error: { stderr: string }) => assert.fail(`seed ${seed}: ${error.stderr}`));
  for (const line of stdout.trim().split('\n')) t.diagnostic(line);
});
