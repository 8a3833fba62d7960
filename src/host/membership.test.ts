import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../base/errors.ts';
import type { Membership } from '../capabilities/membership.ts';
import { HyperMesh, verifyBundleOffline } from '../hypermesh.ts';
import { type TestNetwork, testNetwork } from '../testing/network.ts';
import type { HostNode } from './node.ts';

const base = await mkdtemp(join(tmpdir(), 'membership-'));
const closing = new AsyncDisposableStack();
after(async () => {
  await closing.disposeAsync();
  await rm(base, { recursive: true, force: true });
});

const CHEAP = {
  space: { bytesMin: 65_536, deadlineMs: 10_000, openings: 4 },
  stake: { amountMin: 100 },
  work: { hexDigits: 1 },
  time: { squarings: 4_096, windowMs: 300_000 },
};
const TERMS = {
  space: { bytes: 65_536, iterations: 2 },
  requirements: {
    publish: { kind: 'publish', ...CHEAP },
    install: { kind: 'install', ...CHEAP, stake: null },
    execute: { kind: 'execute', ...CHEAP, stake: null },
    default: { kind: 'default', ...CHEAP },
  },
} as const;

interface Node extends AsyncDisposable {
  readonly name: string;
  readonly hypermesh: HyperMesh;
  readonly membership: Membership;
}

async function start(network: TestNetwork, name: string, options: { readonly clock?: Clock } = {}): Promise<Node> {
  // What a real channel would read from the certificates that are shown to it.
  let node: HostNode | undefined;
  const who = async () => {
    const keys = Object.fromEntries((await node!.trust.certificates()).map((one) => [one.role, one.keyId]));
    const { networkId } = await node!.consensus.genesis();
    return { node: keys['node']!, publisher: keys['publisher']!, networkId };
  };
  const hypermesh = await HyperMesh.create({
    home: join(base, name),
    network: TERMS,
    subject: name.split('-')[0]!,
    threads: 1,
    networkSide: network.side(name, who),
    ...options,
  });
  node = hypermesh.node;
  return { name, hypermesh, membership: node.membership!, [Symbol.asyncDispose]: () => hypermesh.close() };
}

const refused = (promise: Promise<unknown>, ...codes: ErrorCode[]) =>
  assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, ...codes), String(error));
    return true;
  });

/** Publishes a package with one file. */
async function publish({ hypermesh, name }: Node, ref = `${name.split('-')[0]}/notes`, version = '1.0.0') {
  const catalog = await hypermesh.loadExtension('catalog');
  const folder = await mkdtemp(join(base, 'package-'));
  const { writeFile } = await import('node:fs/promises');
  await writeFile(join(folder, 'catalog.yaml'), JSON.stringify({ name: ref, version, type: 'library' }));
  await writeFile(join(folder, 'notes.txt'), `notes of ${name} ${version}\n`);
  return catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(folder)));
}

async function bundleOf({ hypermesh }: Node, ref: string) {
  const catalog = await hypermesh.loadExtension('catalog');
  return catalog.bundle(ref);
}

test('a second home joins by an invite, publishes by the word of the founder, and both verify what it published', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-1');
  await using bob = await start(network, 'bob-1');
  assert.equal((await ada.membership.place()).role, 'alone');
  assert.equal((await ada.membership.create()).role, 'founder');
  const { invite, tokens } = await ada.membership.invite();
  assert.equal(tokens, 100);

  const place = await bob.membership.join(invite);
  const { networkId } = await ada.membership.place();
  assert.deepEqual(place, { role: 'member', networkId, node: place.node, committee: place.committee });
  assert.deepEqual(
    (await bob.membership.members()).map(({ subject, isCommittee, leftAtMs }) => [subject, isCommittee, leftAtMs]),
    [
      ['ada', true, null],
      ['bob', false, null],
    ],
  );
  assert.deepEqual(await ada.membership.members(), await bob.membership.members());

  const published = await publish(bob);
  assert.deepEqual(
    published.proofs.map(({ verdict }) => verdict),
    ['valid', 'valid', 'valid', 'valid'],
  );
  const bundle = await bundleOf(bob, 'bob/notes');
  for (const node of [ada, bob]) {
    const catalog = await node.hypermesh.loadExtension('catalog');
    const result = await catalog.verify({ bundle }, { offline: true });
    assert.equal(result.networkId, networkId);
    assert.match(result.publisher.subject, /CN=bob publisher/);
  }
  await verifyBundleOffline(bundle, { network: networkId as Digest });
  // What a member installs it judges itself.
  const catalog = await bob.hypermesh.loadExtension('catalog');
  await catalog.install(['bob/notes'], { root: join(base, 'bob-installed') });
});

test('an invite works once: repeated by the same home it changes nothing, another home is refused', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-2');
  await using bob = await start(network, 'bob-2');
  await using eve = await start(network, 'eve-2');
  await ada.membership.create();
  const { invite } = await ada.membership.invite();
  // The answer gets lost on the way: the founder has a new member who does not know it.
  network.onAnswer = (_from, method) => {
    if (method === 'network/join') throw new HyperMeshError('timeout', 'lost');
    return undefined;
  };
  await refused(bob.membership.join(invite), 'timeout');
  network.onAnswer = () => undefined;
  assert.equal((await bob.membership.place()).role, 'alone');
  await refused(eve.membership.join(invite), 'invite-used');
  const { networkId } = await bob.membership.join(invite);
  assert.deepEqual(await bob.membership.join(invite), await bob.membership.place());
  assert.equal(networkId, (await ada.membership.place()).networkId);
  assert.equal((await ada.membership.members()).length, 2);
  assert.equal((await bob.hypermesh.node.consensus.stake()).locked, 100);
  assert.equal((await ada.hypermesh.node.consensus.stake()).balance, 999_900);
  await refused(eve.membership.join(`${invite}a`), 'invite-invalid');
  await refused(ada.membership.join(invite), 'network-state');
  await refused(bob.membership.create(), 'network-state');
  await refused(bob.membership.invite(), 'committee-only');
  await refused(eve.membership.invite(), 'network-state');
});
