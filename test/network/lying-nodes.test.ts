import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { utf8 } from '../../src/base/bytes.ts';
import { digestOf } from '../../src/base/digest.ts';
import { admittedAtMs } from '../../src/wire/proof.ts';
import { writePackage } from '../system/support.ts';
import type { Behaviour, Submission } from './lies.ts';
import type { Flood } from './lying-node-child.ts';
import { type MeshNode, mesh, until } from './mesh.ts';
import { auditHomes } from './signed.ts';
import { TakenOver } from './taken-over.ts';

const LIES: readonly Behaviour[] = ['votes for everything', 'replays', 'lies about time', 'silent'];

test('one of four validators that got their seats by command lies over the real channel in every way: nothing that conflicts is certified, the others go on, and take its seat', async (t) => {
  await using stack = new AsyncDisposableStack();
  const nodes = (await mesh(stack, 4)) as [MeshNode, MeshNode, MeshNode, MeshNode];
  const [founder, second, third, fourth] = nodes;
  const honest = [founder, second, third];
  const liarId = fourth.id;
  const folderOf = (at: number, version: string) =>
    writePackage(
      join(founder.folder, `p${at}-${version}`),
      { name: `lies/p${at}`, version, type: 'library' },
      { a: `${at} ${version}` },
    );
  const publish = async (at: number, version: string) => {
    const folder = await folderOf(at, version);
    await until(`lies/p${at}@${version} is admitted`, async () => {
      await nodes[at]!.publish(folder);
      return true;
    });
    return nodes[at]!.client.bundle(`lies/p${at}@${version}`);
  };
  const allIn = (epoch: number) => async () =>
    (await Promise.all(honest.map(({ client }) => client.networkValidators()))).every((one) => one.epoch === epoch);

  await founder.client.changeValidators({ action: 'add', nodes: [second.id, third.id, liarId] });
  await until('all sit', allIn(1));
  for (const at of nodes.keys()) await publish(at, '1.0.0');
  const { account, validator } = (await founder.client.networkValidators()).validators.find(
    ({ node }) => node === liarId,
  )!;
  await fourth.end('SIGTERM');
  const liar = stack.use(await TakenOver.up(fourth.home));

  for (const [number, behave] of LIES.entries()) {
    await liar.obey({ behave });
    for (const at of [0, 1]) {
      const beganMs = Date.now();
      const { endorsement } = await publish(at, `1.1.${number}`);
      const atMs = admittedAtMs(endorsement);
      // Whoever has a wrong clock does not move the time of admission.
      assert.ok(atMs >= beganMs && atMs <= Date.now(), `${behave}: ${atMs - beganMs} ms after the beginning`);
    }
  }

  // It floods the engine while nothing is certified, because two of the others hang: it gets so far and no farther, and costs them a moment when they are back.
  const { validators } = await founder.client.networkValidators();
  const host = validators.find(({ node }) => node === founder.id)!.validator;
  for (const { pid } of [second, third]) process.kill(pid, 'SIGSTOP');
  const { taken, refusal } = await liar.obey<Flood>({ flood: host });
  assert.ok(taken > 300 && taken <= 512, `${taken} were taken`);
  const retryInMs = refusal.details?.['retryInMs'] as number;
  assert.ok(refusal.code === 'quota-exceeded' && retryInMs > 0 && retryInMs <= 10_000, JSON.stringify(refusal));
  for (const { pid } of [second, third]) process.kill(pid, 'SIGCONT');
  await until('tokens move', async () => {
    await founder.json(['stake', 'lock', '1']);
    return true;
  });
  await until('all of it was ordered, and changed nothing', async () => {
    const orders = await Promise.all(honest.map(({ client }) => client.networkSequencer()));
    return orders.every(({ applied, waiting, trouble }) => applied > taken && waiting === 0 && trouble === null);
  });

  // As a publisher it signs two contents for one version, with one number, and brings them to different halves; it votes for both itself.
  await liar.obey({ behave: 'votes for everything' });
  const ref = 'lies/p3@1.1.0';
  const subjects = ['one', 'two'].map((text) => digestOf(utf8(text)));
  let submissions: readonly Submission[] = [];
  await until('two orders with one number are proved', async () => {
    submissions = await liar.obey<readonly Submission[]>({ equivocate: { subjects, refs: [ref, ref] } });
    return true;
  });
  const [first, other, last] = validators.flatMap((one) => (one.validator === validator ? [] : [one.validator]));
  const voters: [Set<string>, Set<string>] = [new Set(), new Set()];
  const bring = (which: 0 | 1, to: readonly string[]) =>
    Promise.allSettled(
      to.map(async (one) => {
        await liar.obey({ submit: submissions[which]!, to: one });
        voters[which].add(one);
      }),
    );
  await Promise.all([bring(0, [validator, first!, other!]), bring(1, [validator, last!])]);
  // Each honest one is asked for both.
  await Promise.all([bring(0, [last!]), bring(1, [first!, other!])]);
  t.diagnostic(`${voters[0].size} and ${voters[1].size} votes`);
  assert.deepEqual([...voters[0].intersection(voters[1])], [validator]);
  assert.ok(voters[0].size < 3 || voters[1].size < 3);
  await until('its tokens answer for it', async () => {
    const seats = await Promise.all(honest.map(({ client }) => client.networkValidators()));
    return seats.every((one) => one.validators.find((seat) => seat.account === account)!.locked! < 1_000);
  });

  // Three of four are enough to take its seat, whatever it says about that.
  await liar.obey({ behave: 'silent' });
  await founder.client.changeValidators({ action: 'remove', nodes: [liarId] });
  await until('its seat is taken', async () => {
    if (await allIn(2)()) return true;
    await Promise.all(
      [second, third].map(({ client }) => client.changeValidators({ action: 'approve' }).catch(() => 0)),
    );
    return false;
  });
  for (const at of [0, 1, 2]) await publish(at, '1.2.0');

  const { conflicts, misdeeds, checked } = auditHomes(honest);
  assert.deepEqual(conflicts, []);
  assert.ok(checked.certificates > 0 && checked.entries > taken && misdeeds.length > 0, JSON.stringify(checked));
  for (const { says } of misdeeds) assert.ok(says.includes(account) || says.includes(validator), says);
});
