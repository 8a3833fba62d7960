import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { test } from 'node:test';
import { packFolder } from '../../src/client/folder.ts';
import { until } from '../../src/testing/until.ts';
import { PROOFLESS_NETWORK, writePackage } from '../system/support.ts';
import { type MeshNode, mesh, QUICK_PACE } from './mesh.ts';

// One publish takes about 75 ms of processor time even without proofs (signatures, votes, a log that is synced to the disk), so that a thousand are for
// whoever has the minutes: HYPERMESH_PUBLISHES=1000 node --test test/network/catch-up.test.ts
const publishes = Number(process.env['HYPERMESH_PUBLISHES'] ?? 25);

test(`a node that was away for ${publishes} publishes has them all soon after it is back`, {
  timeout: 900_000 + 2_000 * publishes,
}, async (t) => {
  await using stack = new AsyncDisposableStack();
  const settings = () => ({ network: PROOFLESS_NETWORK, peers: { pace: QUICK_PACE } });
  const [publisher, other, away] = (await mesh(stack, 3, settings)) as [MeshNode, MeshNode, MeshNode];
  await away.end('SIGTERM');

  const source = await writePackage(
    join(publisher.folder, 'p'),
    { name: 'busy/package', version: '1.0.0', type: 'library' },
    { 'x.bin': randomBytes(10_000) },
  );
  const { client } = publisher;
  const layer = await client.stageLayer((await packFolder(source)).tree);
  const startedAt = performance.now();
  const todo = Array.from({ length: publishes }, (_, n) => n).values();
  const publishing = Array.from({ length: 4 }, async () => {
    for (const n of todo) {
      await client.publish(
        JSON.stringify({ name: `busy/p${n % 50}`, version: `1.0.${n}`, type: 'library' }),
        layer.digest,
      );
      if (n % 10 === 0) await client.setState(`busy/p${n % 50}@1.0.${n}`, 'yanked', `for reason ${n}`);
    }
  });
  await Promise.all(publishing);
  t.diagnostic(`published in ${Math.round(performance.now() - startedAt)} ms`);

  const backAt = performance.now();
  await away.up();
  const whole = await versionsAt(publisher);
  assert.equal(whole.length, publishes);
  const limits = { withinMs: 300_000 + 1_000 * publishes, everyMs: 200 };
  const has = async (node: MeshNode) => (await versionsAt(node)).join('\n') === whole.join('\n');
  await until('it has caught up', () => has(away), limits);
  t.diagnostic(`caught up in ${Math.round(performance.now() - backAt)} ms, its start included`);
  await until('so has the one that was there', () => has(other), limits);

  const { installed } = await away.client.install({ refs: ['busy/p1'], root: join(away.folder, 'here') });
  assert.equal(installed[0]?.name, 'busy/p1');
  assert.equal((await away.client.status()).transport.arrivals, 0);
});

/** Every version of every package with its digest and its state, in one order. */
async function versionsAt({ client }: MeshNode): Promise<string[]> {
  const { totals } = await client.status();
  if (totals.versions < publishes) return [];
  const refs = Array.from({ length: Math.min(50, publishes) }, (_, n) => `busy/p${n}@1.0.${n}`);
  const infos = await Promise.all(refs.map((ref) => client.info(ref)));
  return infos
    .flatMap(({ versions }) => versions)
    .map(({ name, version, digest, state, stateReason }) => `${name}@${version} ${digest} ${state} ${stateReason}`)
    .sort();
}
