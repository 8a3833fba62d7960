import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import type { NetworkMember, NetworkPlace } from '../../src/capabilities/membership.ts';
import { decodeOpenInvite, encodeOpenInvite } from '../../src/wire/invite.ts';
import { writePackage } from '../system/support.ts';
import type { LiarOrder } from './liar-child.ts';
import { type MeshNode, meshNode, until } from './mesh.ts';

interface Refusal {
  readonly error: { readonly code: string; readonly message: string; readonly hint: string };
}
const LISTEN = ['--listen', '127.0.0.1:0'];

test('strangers join an open network within its bounds, use what is there, and lose their place for what they do', {
  timeout: 900_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const nodes = await Promise.all(Array.from({ length: 5 }, async () => stack.use(await meshNode())));
  await Promise.all(nodes.map((node) => node.up()));
  const [founder, ann, ben, cat, dan] = nodes as [MeshNode, MeshNode, MeshNode, MeshNode, MeshNode];
  const place = (node: MeshNode) => node.json<NetworkPlace>(['network', 'show']);
  const joins = (node: MeshNode, invite: string) => node.json<NetworkPlace>(['network', 'join', invite, ...LISTEN]);
  const refused = async (node: MeshNode, invite: string, status: number) => {
    const { error } = await node.json<Refusal>(['network', 'join', invite, ...LISTEN], status);
    assert.ok(error.hint);
    return error.code;
  };
  const memberRow = async (id: string) => {
    const { members } = await founder.json<{ members: NetworkMember[] }>(['network', 'members']);
    return members.find(({ node }) => node === id)!;
  };

  // Closed as ever: there is nothing to join with, and whoever makes it up is refused.
  const created = await founder.json<NetworkPlace>(['network', 'create', ...LISTEN]);
  assert.equal(created.open, null);
  const [{ addresses }] = created.committee as [NetworkPlace['committee'][number]];
  const made = encodeOpenInvite({ networkId: created.networkId, peer: created.node, addresses });
  assert.equal(await refused(ann, made, 4), 'network-closed');
  assert.equal((await founder.run('network', 'open', '--work', '9')).status, 2);

  const { open } = await founder.json<NetworkPlace>(['network', 'open', '--per-address', '2', '--work', '1']);
  assert.deepEqual([open!.membersMax, open!.joinsPerHour, open!.joinsPerAddressPerHour], [1_000, 60, 2]);
  assert.equal(open!.mayPublish, false);
  assert.equal(open!.invite, made);

  // Two at once; both use what the founder published, and neither publishes.
  const [first] = await Promise.all([joins(ann, made), joins(ben, made)]);
  assert.equal(first.role, 'member');
  const greeter = await writePackage(
    join(founder.folder, 'p'),
    { name: 'ada/notes', version: '1.0.0', type: 'library' },
    { x: 'x' },
  );
  await founder.publish(greeter);
  for (const node of [ann, ben]) {
    await until('it heard of the package', async () => (await node.client.search({})).total === 1);
    await node.json(['install', 'ada/notes']);
    const mine = await writePackage(join(node.folder, 'p'), { name: 'mine/notes', version: '1.0.0', type: 'library' });
    const { error } = await node.json<Refusal>(['publish', mine], 4);
    assert.match(error.code, /^(not-a-member|stake-insufficient)$/);
  }
  assert.deepEqual([(await memberRow(ann.id)).isOpen, (await memberRow(ann.id)).origin], [true, '127.0.0.1']);

  // The third one from this address is one too many, until the founder wants more; the way in leads through any member.
  assert.equal(await refused(cat, made, 8), 'quota-exceeded');
  await founder.json(['network', 'open', '--per-address', '20']);
  await until('members know what is asked for now', async () =>
    (await Promise.all([ann, ben].map(place))).every(({ open }) => open?.joinsPerAddressPerHour === 20),
  );
  const through = (await place(ann)).open!.invite!;
  assert.equal(decodeOpenInvite(through).peer, ann.id);
  await joins(cat, through);
  assert.equal((await memberRow(cat.id)).isOpen, true);

  // Closed, which is the founder's to say: who is in stays.
  for (const change of ['open', 'close']) {
    const { error } = await ann.json<Refusal>(['network', change], 4);
    assert.equal(error.code, 'committee-only');
  }
  assert.equal((await founder.json<NetworkPlace>(['network', 'close'])).open, null);
  await until('every member knows', async () =>
    (await Promise.all([ann, ben, cat].map(place))).every(({ open }) => open === null),
  );
  assert.equal(await refused(dan, made, 4), 'network-closed');
  assert.equal(await refused(dan, through, 4), 'network-closed');
  await until('it is still there', async () =>
    (await cat.client.peers()).some(({ node, state }) => node === founder.id && state === 'alive'),
  );

  // Who was removed does not come back, whatever the door; by an invite it does.
  await founder.json(['network', 'open']);
  await founder.json(['network', 'remove', ben.id]);
  await ben.json(['network', 'leave', '--forget']);
  assert.equal(await refused(ben, made, 4), 'not-a-member');
  const { invite } = await founder.json<{ invite: string }>(['network', 'invite']);
  await joins(ben, invite);
  assert.deepEqual([(await memberRow(ben.id)).isOpen, (await memberRow(ben.id)).wasRemoved], [false, false]);

  // Who breaks the protocol before the eyes of the founder is sent away.
  const { networkId } = await place(cat);
  await cat.end('SIGTERM');
  const liar = fork(new URL('./liar-child.ts', import.meta.url), [cat.home, '0', networkId]);
  stack.defer(() => void liar.kill('SIGKILL'));
  await once(liar, 'message');
  const [address] = (await founder.client.status()).transport.addresses;
  liar.send({ oversize: address! } satisfies LiarOrder);
  await until('it lost its place', async () => (await memberRow(cat.id)).wasRemoved);
});
