import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../../src/testing/until.ts';
import { writePackage } from '../system/support.ts';
import { type MeshNode, mesh, meshNode } from './mesh.ts';

test('a founder that comes back at another address is found again, also by a member that was away when it moved', {
  timeout: 900_000,
}, async (t) => {
  await using stack = new AsyncDisposableStack();
  // Every start is at another port.
  const [founder, steady, away] = (await mesh(stack, 3)) as [MeshNode, MeshNode, MeshNode];
  const addressOf = async (node: MeshNode) => (await node.client.status()).transport.addresses[0]!;
  const before = await addressOf(founder);
  await away.end('SIGTERM');
  await founder.end('SIGTERM');
  await until(
    'the member that stayed is alone',
    async () => (await steady.client.status()).transport.peers.alive === 0,
  );
  await founder.up();
  const after = await addressOf(founder);
  assert.notEqual(after, before);
  const backAt = performance.now();
  const knows = async (node: MeshNode) =>
    (await node.client.peers()).some(({ node: id, state, addresses }) => {
      return id === founder.id && state === 'alive' && addresses.includes(after);
    });
  await until('the member that stayed knows where the founder is', () => knows(steady));
  await away.up();
  await until('so does the one that was away', () => knows(away));
  t.diagnostic(`found in ${Math.round(performance.now() - backAt)} ms`);
  // Also for whom they tell of it, minutes before the news of the committee.
  const { committee } = await steady.client.networkPlace();
  assert.deepEqual(
    committee.map(({ addresses }) => addresses),
    [[after]],
  );

  // Publishing needs the word of the founder, which both get at its new address.
  for (const [at, node] of [steady, away].entries()) {
    const name = `moved/by-${at}`;
    const source = await writePackage(
      join(node.folder, `p${at}`),
      { name, version: '1.0.0', type: 'library' },
      { x: 'x' },
    );
    await node.publish(source);
    await until(`${name} is everywhere`, async () => {
      const found = await Promise.all([founder, steady, away].map(({ client }) => client.info(`${name}@1.0.0`)));
      return found.every(({ record }) => record.state === 'published');
    });
  }
});

test('when every address is another one, a member that is shown an invite of its own network finds the others', {
  timeout: 900_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const [founder, member] = (await mesh(stack, 2)) as [MeshNode, MeshNode];
  for (const node of [member, founder]) await node.end('SIGTERM');
  for (const node of [member, founder]) await node.up();
  const sees = async (node: MeshNode, other: MeshNode) =>
    (await node.client.peers()).some(({ node: id, state }) => id === other.id && state === 'alive');
  assert.deepEqual([await sees(member, founder), await sees(founder, member)], [false, false]);
  const { invite } = await founder.client.invite({});
  assert.equal((await member.client.joinNetwork({ invite })).role, 'member');
  await until('both found each other', async () => (await sees(member, founder)) && (await sees(founder, member)));
  // It was shown, not used: another machine can still join with it.
  const other = stack.use(await meshNode());
  await other.up();
  assert.equal((await other.client.joinNetwork({ invite, listen: '127.0.0.1:0' })).role, 'member');
});
