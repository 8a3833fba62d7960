import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Clock } from '../../src/base/clock.ts';
import { type ErrorCode, isCoded } from '../../src/base/errors.ts';
import type { CommitteeInfo } from '../../src/capabilities/membership.ts';
import { HyperMesh } from '../../src/index.ts';
import { freePort } from '../../src/testing/free-port.ts';
import { until } from '../../src/testing/until.ts';
import { decodeInvite, encodeInvite } from '../../src/wire/invite.ts';
import { type Folder, freshHome, SMALL_NETWORK, temporaryFolder, writePackage } from '../system/support.ts';

/** Homes on the loopback, with the real channel between them. */

const HOUR_MS = 3_600_000;
const LISTEN = { listen: '127.0.0.1:0' };

function open(folder: Folder, name: string, clock?: Clock): Promise<HyperMesh> {
  return HyperMesh.create({
    home: join(folder.path, name),
    network: SMALL_NETWORK,
    subject: name,
    threads: 1,
    ...(clock === undefined ? {} : { clock }),
  });
}

function shifted(byMs: () => number): Clock {
  return { nowMs: () => Date.now() + byMs() };
}

const refused = (promise: Promise<unknown>, ...codes: ErrorCode[]) =>
  assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, ...codes), String(error));
    return true;
  });

test('by command: two machines become one network, and what one publishes the other verifies', async () => {
  await using ada = await freshHome();
  await using bob = await freshHome();
  for (const { run } of [ada, bob]) assert.equal((await run('up', '--detach')).status, 0);
  await ada.json(['network', 'create', '--listen', '127.0.0.1:0']);
  const { invite } = await ada.json<{ invite: string }>(['network', 'invite', '--expires', '10m']);
  const place = await bob.json(['network', 'join', invite, '--listen', '127.0.0.1:0']);
  assert.equal(place['role'], 'member');
  const { members } = await bob.json<{ members: unknown[] }>(['network', 'members']);
  assert.equal(members.length, 2);
  const committee = await bob.json<CommitteeInfo>(['network', 'validators']);
  const [seat] = committee.validators;
  assert.deepEqual([committee.quorum, committee.validators.length, seat!.isReachable], [1, 1, true]);
  const epoch = await bob.json<{ epoch: number; validators: string[] }>(['network', 'epoch']);
  assert.deepEqual([epoch.epoch, epoch.validators], [committee.epoch, [seat!.validator]]);
  assert.match((await bob.run('network', 'validators')).stdout, /answers/);
  assert.match((await bob.run('network', 'epoch')).stdout, /1 validator, of whom 1 must agree/);
  const source = await writePackage(join(bob.folder, 'notes'), {
    name: 'bob/notes',
    version: '1.0.0',
    type: 'library',
  });
  const bundle = join(bob.folder, 'notes.bundle');
  await bob.json(['publish', source, '--bundle', bundle]);
  for (const { json } of [ada, bob]) assert.equal((await json(['verify', bundle]))['networkId'], place['networkId']);
  // Nobody else gets in with it, and the member is let go by its node id.
  await using eve = await freshHome();
  const { error } = await eve.json<{ error: { code: string; hint: string } }>(['network', 'join', invite], 4);
  assert.equal(error.code, 'invite-used');
  await ada.json(['network', 'remove', place['node'] as string]);
  const again = await writePackage(join(bob.folder, 'more'), { name: 'bob/more', version: '1.0.0', type: 'library' });
  // The committee says so, unless the list with its certificate has arrived already.
  const publish = (status: number) => bob.json<{ error: { code: ErrorCode } }>(['publish', again], status);
  const refusal = await publish(4).catch(() => publish(7));
  assert.match(refusal.error.code, /^(not-a-member|certificate-revoked)$/);
});

test('over the real channel: an hour of clock skew is named, and another node at the address learns nothing', async () => {
  await using folder = await temporaryFolder();
  let skewMs = 0;
  await using ada = await open(folder, 'ada');
  await using eve = await open(folder, 'eve');
  await using bob = await open(
    folder,
    'bob',
    shifted(() => skewMs),
  );
  const { membership } = bob.node;
  await ada.node.membership.create(LISTEN);
  await eve.node.membership.create(LISTEN);
  const { invite } = await ada.node.membership.invite();
  const { addresses } = await eve.node.membership.invite();
  const elsewhere = encodeInvite({ ...decodeInvite(invite), addresses });
  await eventually(() => refused(membership.join(elsewhere), 'network-mismatch', 'identity-mismatch'));
  await refused(
    membership.join(encodeInvite({ ...decodeInvite(invite), addresses: ['127.0.0.1:1'] })),
    'peer-unreachable',
  );
  for (const hours of [1, -1]) {
    skewMs = hours * HOUR_MS;
    await eventually(() => refused(membership.join(invite), 'clock-skewed'));
  }
  skewMs = 0;
  assert.equal((await membership.place()).role, 'alone');
  await membership.join(invite, LISTEN);
  assert.equal((await eventually(() => membership.members())).length, 2);
});

test('over the real channel: a member that was away until its lists and certificates ran out comes back by itself', async () => {
  await using folder = await temporaryFolder();
  let days = 0;
  const clock = shifted(() => days * 24 * HOUR_MS);
  await using ada = await open(folder, 'ada', clock);
  await ada.node.membership.create(LISTEN);
  {
    await using bob = await open(folder, 'bob', clock);
    await bob.node.membership.join((await ada.node.membership.invite()).invite, LISTEN);
  }
  days = 100;
  await using bob = await open(folder, 'bob', clock);
  const { trust, consensus, membership } = bob.node;
  await trust.anchor();
  assert.equal((await trust.identity('node')).status, 'valid');
  assert.equal((await consensus.stake()).locked, 1_000);
  assert.equal((await eventually(() => membership.members())).length, 2);
});

test('over the real channel: a committee that is gone is named, and the publish goes on when it is back', async () => {
  await using folder = await temporaryFolder();
  await using ada = await open(folder, 'ada');
  await using bob = await open(folder, 'bob');
  await ada.node.membership.create({ listen: `127.0.0.1:${await freePort()}` });
  const { invite } = await ada.node.membership.invite();
  await bob.node.membership.join(invite, LISTEN);
  const source = await writePackage(join(folder.path, 'notes'), {
    name: 'bob/notes',
    version: '1.0.0',
    type: 'library',
  });
  const catalog = await bob.loadExtension('catalog');
  const publish = async () => catalog.publishPackage(await catalog.signPackage(await bob.stageFolder(source)));
  await ada.close();
  await refused(publish(), 'committee-unreachable');
  await using again = await open(folder, 'ada');
  assert.equal((await again.node.membership.place()).role, 'founder');
  const published = await eventually(publish);
  assert.equal(published.created, true);
  await catalog.verify({ ref: 'bob/notes' });
});

/** A machine with other work may not answer in time. */
async function eventually<T>(work: () => Promise<T>): Promise<T> {
  let result: { readonly value: T } | undefined;
  await until('it works', async () => {
    result = { value: await work() };
    return true;
  });
  return result!.value;
}
