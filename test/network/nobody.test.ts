import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { test } from 'node:test';
import { writePackage } from '../system/support.ts';
import { type MeshNode, mesh, QUICK_PACE, until } from './mesh.ts';

test('a node that reaches nobody says plainly what it cannot do, and does it when somebody is back', async () => {
  await using stack = new AsyncDisposableStack();
  // Slow enough that the content of what it hears of is not here when the other one goes.
  const peers = { pace: QUICK_PACE, downloadBytesPerSecond: 2 ** 17 };
  const [founder, node] = (await mesh(stack, 2, (at) => (at === 1 ? { peers } : {}))) as [MeshNode, MeshNode];
  const manifest = { name: 'far/away', version: '1.0.0', type: 'library' };
  await founder.publish(await writePackage(join(founder.folder, 'p'), manifest, { 'x.bin': randomBytes(8_000_000) }));
  await until('it is known', async () => (await node.client.search({ text: 'away' })).total === 1);
  await founder.end('SIGKILL');
  await until('it notices', async () => (await node.client.status()).transport.state === 'offline');

  assert.match((await node.run('status')).stdout, /^Peers +offline: 0 of 1 node answer/m);
  assert.match((await node.run('search', 'away')).stdout, /far\/away/);
  const { stdout: synced } = await node.run('sync');
  assert.equal(synced, 'None of 1 node answers. This node compares records by itself as soon as one does.\n');
  const root = join(node.folder, 'here');
  const [distributed, installed] = await Promise.all([
    node.run('distribute', 'far/away'),
    node.run('install', 'far/away', '--to', root),
  ]);
  assert.equal(distributed.stdout, 'far/away is held by 0 nodes (3 wanted; no more nodes that answer take it).\n');
  assert.equal(installed.status, 8);
  assert.match(installed.stderr, /^Error: The content of far\/away@1\.0\.0 did not come: .* \(content-unavailable\)$/m);

  await founder.up();
  await until('it notices', async () => (await node.client.status()).transport.state === 'online');
  assert.equal((await node.client.install({ refs: ['far/away'], root })).installed.length, 1);
});
