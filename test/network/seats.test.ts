import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { isCoded } from '../../src/base/errors.ts';
import { epochDigest } from '../../src/wire/epoch.ts';
import { writePackage } from '../system/support.ts';
import { type MeshNode, mesh, until } from './mesh.ts';

test('by command: a network gives its members seats one after the other, and admits with one of four killed, not with two', async () => {
  await using stack = new AsyncDisposableStack();
  const nodes = (await mesh(stack, 4)) as [MeshNode, MeshNode, MeshNode, MeshNode];
  const [founder, second, third, fourth] = nodes;
  const folderOf = (name: string, version = '1.0.0') =>
    writePackage(
      join(founder.folder, `${name}-${version}`),
      { name: `seats/${name}`, version, type: 'library' },
      { a: version },
    );
  const seats = async ({ client }: MeshNode) => (await client.networkValidators()).validators.length;

  for (const [at, node] of [second, third, fourth].entries()) {
    await founder.json(['network', 'validators', 'add', node.id]);
    // All who sit already have to agree, as long as they are no more than three.
    for (const other of [second, third].slice(0, at)) await other.json(['network', 'validators', 'approve']);
    // The others hear of it with the next news, or when they publish.
    await until(`${at + 2} seats, for all who sit`, async () =>
      (await Promise.all(nodes.slice(0, at + 2).map(seats))).every((count) => count === at + 2),
    );
  }

  // Whoever sits since a moment ago learns of the commitments of the others within some seconds: by then one may be away.
  await fourth.publish(await folderOf('first'));
  const { network, endorsement } = await fourth.client.bundle('seats/first');
  assert.deepEqual([network.epochs?.map(epochDigest).indexOf(endorsement.committee), endorsement.votes.length], [2, 3]);
  await second.publish(await folderOf('second'));

  await third.end('SIGKILL');
  await until('three of four admit', async () => {
    await second.publish(await folderOf('third'));
    return true;
  });
  process.kill(founder.pid, 'SIGSTOP');
  // The name is claimed already: no need to wait for the order, whose engine is in the home of the founder.
  await assert.rejects(second.publish(await folderOf('second', '1.1.0')), (error) =>
    isCoded(error, 'committee-unreachable'),
  );
  process.kill(founder.pid, 'SIGCONT');
  await third.up();
  await until('all three that were needed admit again', async () => {
    await second.publish(await folderOf('second', '1.1.0'));
    return true;
  });
  await until('the one that was away has all of it', async () => {
    const { record } = await third.client.info('seats/second@1.1.0');
    return record.state === 'published';
  });
  const { conflicts } = await second.json<{ conflicts: unknown[] }>(['network', 'audit']);
  assert.deepEqual(conflicts, []);
});
