import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isCoded } from '../../src/base/errors.ts';
import { openNode } from '../../src/host/node.ts';
import { EtcdCluster, etcdMissing } from '../../src/testing/etcd-cluster.ts';
import { SMALL_NETWORK } from './support.ts';

const home = await mkdtemp(join(tmpdir(), 'hypermesh-sequencer-'));
after(() => rm(home, { recursive: true, force: true }));

test('a home moves its order to etcd, goes on there with a machine down, survives a restart, and moves back', {
  skip: etcdMissing(),
}, async () => {
  await using cluster = await EtcdCluster.start(3);
  const other = 'ab'.repeat(32);
  const { endpoints } = cluster;
  {
    await using node = await openNode({ home, network: SMALL_NETWORK });
    const { membership, consensus } = node;
    assert.equal((await membership.sequencer()).engine.kind, 'embedded');
    await consensus.transferStake(other, 1);
    await assert.rejects(membership.moveSequencer({ kind: 'etcd', endpoints: ['http://127.0.0.1:1'] }), (error) =>
      isCoded(error, 'sequencer-unreachable'),
    );
    const moved = await membership.moveSequencer({ kind: 'etcd', endpoints });
    assert.deepEqual(
      [moved.engine, moved.moves, moved.applied, moved.trouble],
      [{ kind: 'etcd', endpoints }, 1, 2, null],
    );
    // Once more is nothing.
    assert.equal((await membership.moveSequencer({ kind: 'etcd', endpoints })).moves, 1);
    await cluster.kill(0);
    await consensus.transferStake(other, 2);
  }
  {
    await using node = await openNode({ home });
    const { membership, consensus } = node;
    const before = await consensus.stake();
    await consensus.transferStake(other, 3);
    const back = await membership.moveSequencer({ kind: 'embedded' });
    assert.deepEqual([back.engine.kind, back.moves, back.applied, back.waiting], ['embedded', 2, 5, 0]);
    for (const at of [1, 2]) await cluster.kill(at);
    const { balance } = await consensus.transferStake(other, 4);
    assert.equal(balance, before.balance - 7);
  }
});
