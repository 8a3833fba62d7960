import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { writePackage } from '../system/support.ts';
import { type MeshNode, mesh, until } from './mesh.ts';

test('a committee of four, seated in one change, admits while its founder is dead, and while it hangs, also after a restart of who publishes', async (t) => {
  await using stack = new AsyncDisposableStack();
  const nodes = (await mesh(stack, 5)) as [MeshNode, MeshNode, MeshNode, MeshNode, MeshNode];
  const [founder, second, third, fourth, reader] = nodes;
  const folderOf = (name: string, version: string) =>
    writePackage(
      join(founder.folder, `${name}-${version}`),
      { name: `away/${name}`, version, type: 'library' },
      { a: version },
    );

  await founder.json(['network', 'validators', 'add', second.id, third.id, fourth.id]);
  // Who has no seat is told by the other nodes: its committee is asked for news every ten minutes only.
  await until('all of them sit, and everybody knows', async () => {
    const seen = await Promise.all(nodes.map(({ client }) => client.networkValidators()));
    return seen.every(({ epoch, validators }) => epoch === 1 && validators.length === 4);
  });
  // Names are claimed while there is an engine for the order. The commitments of all are brought to who sits since a moment ago.
  for (const [at, node] of nodes.entries()) {
    await until(`the ${at + 1}th is admitted`, async () => {
      await node.publish(await folderOf(`p${at}`, '1.0.0'));
      return true;
    });
  }

  // Its machine still takes connections, and nobody answers on them.
  process.kill(founder.pid, 'SIGSTOP');
  for (const [at, node, version] of [
    [1, second, '1.0.1'],
    [4, reader, '1.0.1'],
    [4, reader, '1.0.2'],
  ] as const) {
    const folder = await folderOf(`p${at}`, version);
    const beganMs = performance.now();
    await until('it is admitted without who hangs', async () => {
      await node.publish(folder);
      return true;
    });
    t.diagnostic(`away/p${at}@${version} took ${Math.round(performance.now() - beganMs)} ms while the founder hangs`);
    const { inclusion } = await node.client.bundle(`away/p${at}@${version}`);
    const { inclusion: before } = await node.client.bundle(`away/p${at}@1.0.0`);
    assert.notEqual(inclusion.head.origin, before.head.origin);
  }

  await founder.end('SIGKILL');
  await until('the other three admit', async () => {
    await second.publish(await folderOf('p1', '1.1.0'));
    return true;
  });
  await until('they admit what a member without a seat publishes', async () => {
    await reader.publish(await folderOf('p4', '1.1.0'));
    return true;
  });
  const { endorsement, inclusion } = await second.client.bundle('away/p1@1.1.0');
  assert.equal(endorsement.votes.length, 3);
  // Another validator's log stands in for that of the founder.
  const before = await second.client.bundle('away/p1@1.0.0');
  assert.notEqual(inclusion.head.origin, before.inclusion.head.origin);

  // Where the others are is remembered.
  await third.end('SIGTERM');
  await third.up();
  await until('the one that was restarted publishes', async () => {
    await third.publish(await folderOf('p2', '1.1.0'));
    return true;
  });
  await until('everybody accepts both', async () => {
    const versions = await Promise.all(
      [second, third, fourth].flatMap(({ client }) =>
        ['away/p1@1.1.0', 'away/p2@1.1.0'].map(async (ref) => (await client.info(ref)).record.state),
      ),
    );
    return versions.every((state) => state === 'published');
  });

  await founder.up();
  await until('the founder has what was published without it', async () => {
    const { record } = await founder.client.info('away/p2@1.1.0');
    return record.state === 'published';
  });
  await founder.publish(await folderOf('p0', '1.1.0'));
  const { conflicts } = await founder.json<{ conflicts: unknown[] }>(['network', 'audit']);
  assert.deepEqual(conflicts, []);
});
