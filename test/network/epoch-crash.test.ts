import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';

import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Facts } from '../../src/subsystems/nkrypt/ledger/facts.ts';
import { writePackage } from '../system/support.ts';
import { type MeshNode, mesh, until } from './mesh.ts';
import { auditHomes } from './signed.ts';

/** `HYPERMESH_EPOCHS=large`: more epochs, more deaths. */
const ROUNDS = process.env['HYPERMESH_EPOCHS'] === 'large' ? 12 : 2;
/** From the first approval on: the handovers of an idle machine are over in half of it. */
const DEATH_MS = 1_200;

/** What a home says about the order, read from its disk. */
function stateOf({ home }: MeshNode) {
  using database = new DatabaseSync(join(home, 'consensus', 'nkrypt.db'), { readOnly: true });
  const head = database.prepare('SELECT head FROM log_entries ORDER BY position DESC LIMIT 1').get();
  return {
    root: Buffer.from(new Facts(database).root()).toString('hex'),
    head: Buffer.from(head!['head'] as Uint8Array).toString('hex'),
    ...(database.prepare('SELECT applied FROM log_state').get() as { applied: number }),
  };
}

test('whoever loses its power while one committee follows another, all end in one epoch with one state, nobody votes twice, and publishing goes on', async (t) => {
  await using stack = new AsyncDisposableStack();
  const nodes = (await mesh(stack, 5)) as [MeshNode, MeshNode, MeshNode, MeshNode, MeshNode];
  const [founder, second, third, fourth, fifth] = nodes;
  const folderOf = (at: number, version: string) =>
    writePackage(
      join(founder.folder, `p${at}-${version}`),
      { name: `epochs/p${at}`, version, type: 'library' },
      { a: `${at} ${version}` },
    );
  const admitted: string[] = [];
  /** Tries again until it is admitted: what was asked for before counts once. */
  const publish = async (at: number, version: string) => {
    const folder = await folderOf(at, version);
    await until(`epochs/p${at}@${version} is admitted`, async () => {
      await nodes[at]!.publish(folder);
      return true;
    });
    admitted.push(`epochs/p${at}@${version}`);
  };
  const epochOf = async ({ client }: MeshNode) => (await client.networkValidators()).epoch;
  const allIn = (epoch: number) => async () => (await Promise.all(nodes.map(epochOf))).every((one) => one === epoch);

  await founder.client.changeValidators({ action: 'add', nodes: [second.id, third.id, fourth.id] });
  await until('four sit', allIn(1));
  for (const at of nodes.keys()) await publish(at, '1.0.0');

  for (let round = 1; round <= ROUNDS; round++) {
    const isGrowing = round % 2 === 1;
    const sitting = isGrowing ? [founder, second, third, fourth] : [...nodes];
    // The engine of the order is in the home of the founder.
    const victim = round % 2 === 1 ? founder : sitting[1 + Math.floor(Math.random() * (sitting.length - 1))]!;
    const proposer = sitting.find((one) => one !== victim)!;
    const afterMs = Math.floor(Math.random() * DEATH_MS);
    t.diagnostic(`epoch ${round + 1}: ${nodes.indexOf(victim)} dies after ${afterMs} ms`);
    const action = isGrowing ? 'add' : 'remove';
    // Who is dead, or finds the epoch over, does not agree.
    const agree = (one: MeshNode) => one.client.changeValidators({ action: 'approve' }).catch(() => undefined);

    await proposer.client.changeValidators({ action, nodes: [fifth.id] });
    const agreeing = sitting.filter((one) => one !== proposer).map(agree);
    const traffic = publish(2, `1.${round}.0`).catch((error: unknown) => error);
    await sleep(afterMs);
    await victim.end('SIGKILL');
    await Promise.all(agreeing);
    await victim.up();
    await until(`epoch ${round + 1} for all`, async () => {
      if (await allIn(round + 1)()) return true;
      // Who died may not have approved, and who proposed may not have been heard.
      await Promise.all(sitting.map(agree));
      return false;
    });
    assert.equal(await traffic, undefined);
    for (const at of nodes.keys()) if (at !== 2) await publish(at, `1.${round}.0`);
    const seated = isGrowing ? nodes : sitting.slice(0, 4);
    await until('all validators have the same order and state', () => {
      const [first, ...others] = seated.map((one) => JSON.stringify(stateOf(one)));
      return others.every((state) => state === first);
    });
  }

  await until('everybody has everything', async () => {
    const states = await Promise.all(
      nodes.flatMap(({ client }) => admitted.map(async (ref) => (await client.info(ref)).record.state)),
    );
    return states.every((state) => state === 'published');
  });
  const { conflicts, misdeeds, checked } = auditHomes(nodes);
  assert.deepEqual([conflicts, misdeeds], [[], []]);
  assert.ok(checked.certificates >= admitted.length && checked.committees === ROUNDS + 2, JSON.stringify(checked));
});
