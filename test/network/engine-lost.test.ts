import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { test } from 'node:test';
import type { SequencerInfo } from '../../src/capabilities/membership.ts';
import { type MeshNode, mesh, until } from './mesh.ts';

test('the machine with the engine of the order hangs, and is gone then, disk and all: three validators of four go on elsewhere, and nothing is lost', async () => {
  await using stack = new AsyncDisposableStack();
  const nodes = (await mesh(stack, 4)) as [MeshNode, MeshNode, MeshNode, MeshNode];
  const [founder, second, third, fourth] = nodes;
  await founder.json(['network', 'validators', 'add', second.id, third.id, fourth.id]);
  await until('all of them sit, and everybody knows', async () => {
    const seen = await Promise.all(nodes.map(({ client }) => client.networkValidators()));
    const orders = await Promise.all(nodes.map(({ client }) => client.networkSequencer()));
    const applied = new Set(orders.map((order) => order.applied));
    return seen.every(({ epoch, validators }) => epoch === 1 && validators.length === 4) && applied.size === 1;
  });
  const { validators } = await second.client.networkValidators();
  const validator = validators.find(({ isSelf }) => isSelf)!.validator;
  const gone = founder.id;
  const tokensOf = async ({ client }: MeshNode) => (await client.stake()).locked;
  const unlock = (node: MeshNode, amount: number) => node.json(['stake', 'unlock', `${amount}`]);
  const before = await tokensOf(third);
  await unlock(third, 1);

  // Like a machine that lost its power: whoever asks it waits.
  process.kill(founder.pid, 'SIGSTOP');
  const recover = (node: MeshNode) =>
    node.json<SequencerInfo>(['network', 'sequencer', '--recover', '--to-home', validator]);
  const first = await recover(second);
  assert.deepEqual([first.moves, first.approved.map(({ by }) => by.length)], [0, [1]]);
  assert.equal((await recover(third)).moves, 0);
  // An approval that did not get through in time is brought again by the same command.
  await until('a quorum has approved', async () => {
    const said: SequencerInfo[] = [];
    for (const node of [fourth, third, second]) said.push(await recover(node));
    assert.ok(
      said.every(({ moves, engine }) => moves === 1 && engine.kind === 'embedded'),
      JSON.stringify(said),
    );
    return true;
  });

  await founder.end('SIGKILL');
  await rm(founder.home, { recursive: true });

  // What was said before, and what is said now.
  assert.equal(await tokensOf(third), before - 1);
  await unlock(third, 2);
  assert.equal(await tokensOf(third), before - 3);
  await second.json(['network', 'validators', 'remove', gone]);
  for (const node of [third, fourth]) await node.json(['network', 'validators', 'approve']);
  await until('the three go on without the fourth', async () => {
    const seen = await Promise.all([second, third, fourth].map(({ client }) => client.networkValidators()));
    return seen.every(({ epoch, validators: sit }) => epoch === 2 && sit.length === 3);
  });
});
