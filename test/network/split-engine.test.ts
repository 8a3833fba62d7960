import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SequencerInfo } from '../../src/capabilities/membership.ts';
import { type MeshNode, mesh, until } from './mesh.ts';
import { auditHomes } from './signed.ts';
import { TakenOver } from './taken-over.ts';

test('the validator with the engine of the order shows one other validator other entries than two, votes with the one, and falls silent: the three go on without it by command', async () => {
  await using stack = new AsyncDisposableStack();
  const nodes = (await mesh(stack, 4)) as [MeshNode, MeshNode, MeshNode, MeshNode];
  const [founder, second, third, fourth] = nodes;
  const honest = [founder, second, third];
  const orders = () => Promise.all(honest.map(({ client }) => client.networkSequencer()));
  await founder.json(['network', 'validators', 'add', second.id, third.id, fourth.id]);
  await until('all of them sit', async () => {
    const seen = await Promise.all(nodes.map(({ client }) => client.networkValidators()));
    return seen.every(({ epoch, validators }) => epoch === 1 && validators.length === 4);
  });
  const { validators } = await founder.client.networkValidators();
  const validatorOf = ({ id }: MeshNode) => validators.find(({ node }) => node === id)!.validator;
  const move = (node: MeshNode, to: string, ...how: readonly string[]) =>
    node.json<SequencerInfo>(['network', 'sequencer', ...how, '--to-home', to]);
  await until('the engine is in the home of the fourth', async () => {
    for (const node of nodes) await move(node, validatorOf(fourth));
    return (await orders()).every(({ moves, waiting }) => moves === 1 && waiting === 0);
  });

  await fourth.end('SIGTERM');
  const liar = stack.use(await TakenOver.up(fourth.home));
  await liar.obey({ behave: 'shows different entries' });
  const unlock = (node: MeshNode) => node.json(['stake', 'unlock', '1']);
  const stuck = [second, third].map((node) => unlock(node).catch(() => undefined));
  await until('somebody sees that others were shown something else', async () => {
    return (await orders()).some(({ split }) => split.length > 1);
  });
  await liar[Symbol.asyncDispose]();

  await until('a quorum goes on without it', async () => {
    for (const node of honest) await move(node, validatorOf(founder), '--recover').catch(() => undefined);
    return (await orders()).every(({ moves }) => moves === 2);
  });
  await Promise.all(stuck);
  for (const node of honest) await until(`tokens of ${node.id} move`, async () => (await unlock(node)) !== undefined);
  await until('all three have one order', async () => {
    const seen = await orders();
    return (
      new Set(seen.map(({ head }) => head)).size === 1 &&
      seen.every(({ split, trouble }) => split.length === 0 && trouble === null)
    );
  });
  const { conflicts, checked } = auditHomes(honest);
  assert.deepEqual(conflicts, []);
  assert.ok(checked.heads > 0 && checked.entries > 0, JSON.stringify(checked));
});
