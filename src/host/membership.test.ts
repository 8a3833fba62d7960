import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, test } from 'node:test';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../base/errors.ts';
import type { Membership, NetworkPlace } from '../capabilities/membership.ts';
import { HyperMesh, verifyBundleOffline } from '../hypermesh.ts';
import { openTrust, type TrustChain } from '../subsystems/trustchain/index.ts';
import { type TestNetwork, testNetwork } from '../testing/network.ts';
import { until } from '../testing/until.ts';
import { decodeCertification, encodeNetworkMove } from '../wire/certification.ts';
import { epochDigest } from '../wire/epoch.ts';
import { decodeInvite, encodeInvite } from '../wire/invite.ts';
import type { HostNode } from './node.ts';

const base = await mkdtemp(join(tmpdir(), 'membership-'));

/** Homes as their first start leaves them, made once and copied for each test. */
const made = new Map<string, Promise<string>>();
function template(subject: string): Promise<string> {
  const home = join(base, `template-${subject}`);
  const making =
    made.get(subject) ??
    HyperMesh.create({ home, network: TERMS, subject, threads: 1 }).then(async (hypermesh) => {
      await hypermesh.close();
      return home;
    });
  made.set(subject, making);
  return making;
}
const closing = new AsyncDisposableStack();
after(async () => {
  await closing.disposeAsync();
  await rm(base, { recursive: true, force: true });
});

const CHEAP = {
  space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 4 },
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
  let node: HostNode | undefined;
  const home = join(base, name);
  if (!existsSync(home))
    await cp(await template(name.split('-')[0]!), home, { recursive: true, preserveTimestamps: true });
  const hypermesh = await HyperMesh.create({
    home,
    network: TERMS,
    threads: 1,
    networkSide: network.side(name, () => network.identityOf(node!)),
    ...options,
  });
  node = hypermesh.node;
  return { name, hypermesh, membership: node.membership!, [Symbol.asyncDispose]: () => hypermesh.close() };
}

const DAY_MS = 86_400_000;

function clockFrom(startMs: number): Clock & { pass(ms: number): void } {
  let nowMs = startMs;
  return {
    nowMs: () => nowMs,
    pass: (ms) => {
      nowMs += ms;
    },
  };
}

async function* replay(pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* pieces;
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
  assert.deepEqual(place, { role: 'member', networkId, node: place.node, open: null, committee: place.committee });
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
  await assert.rejects(bob.membership.invite(), (error) => {
    assert.ok(isCoded(error, 'committee-only'));
    assert.match(error.message, /Only the founder of a network invites\. This home is a member/);
    assert.match(error.hint ?? '', /founder, which is reached at ada-[a-z0-9]+:9292: hypermesh network invite\./);
    return true;
  });
  await refused(eve.membership.invite(), 'network-state');
});

test('an invite ends by the clock of the founder, and one that was never issued opens nothing', async () => {
  const network = testNetwork();
  const time = clockFrom(Date.now());
  await using ada = await start(network, 'ada-3', { clock: time });
  await using bob = await start(network, 'bob-3', { clock: time });
  await ada.membership.create();
  await refused(ada.membership.invite({ expiresInMs: 0 }), 'usage');
  await refused(ada.membership.invite({ expiresInMs: 31 * DAY_MS }), 'usage');
  await refused(ada.membership.invite({ addresses: ['nowhere'] }), 'usage');
  await refused(ada.membership.invite({ tokens: 10_000_000 }), 'stake-insufficient');
  const { invite } = await ada.membership.invite({ expiresInMs: 60_000, tokens: 0 });
  time.pass(62_000);
  await refused(bob.membership.join(invite), 'invite-expired');
  const forged = encodeInvite({ ...decodeInvite(invite), secret: '00'.repeat(20) });
  await refused(bob.membership.join(forged), 'invite-unknown');
  const elsewhere = encodeInvite({ ...decodeInvite(invite), networkId: `sha256:${'11'.repeat(32)}` });
  await refused(bob.membership.join(elsewhere), 'network-mismatch');
  assert.equal((await bob.membership.place()).role, 'alone');

  // Not even once used does it live for ever: who left needs a new one.
  const { invite: good } = await ada.membership.invite({ expiresInMs: 60_000 });
  await bob.membership.join(good);
  await bob.membership.leave();
  await refused(bob.membership.join(good), 'not-a-member');
  const { invite: again } = await ada.membership.invite();
  await bob.membership.join(again);
  assert.equal((await bob.membership.members()).length, 2);
});

test('nothing is said to a machine that is not the inviter, and a false answer changes nothing', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-4');
  await using bob = await start(network, 'bob-4');
  await using eve = await start(network, 'eve-4');
  await ada.membership.create();
  await eve.membership.create();
  const { invite } = await ada.membership.invite();
  const asked: string[] = [];
  network.onRequest = (to, method) => {
    asked.push(`${to} ${method}`);
    return undefined;
  };
  // The address leads to somebody else, who has not even to be in the same network.
  const redirected = encodeInvite({ ...decodeInvite(invite), addresses: ['eve-4:9292'] });
  await refused(bob.membership.join(redirected), 'network-mismatch', 'identity-mismatch');
  assert.deepEqual(asked, []);

  const { invite: other } = await eve.membership.invite();
  const answers: Uint8Array[] = [];
  network.onAnswer = (_from, method, body) => {
    if (method === 'network/join') answers.push(body);
    return undefined;
  };
  await using carol = await start(network, 'carol-4');
  await carol.membership.join(other);
  const [ofEve] = answers;
  const lies: readonly ((answer: Record<string, unknown>) => unknown)[] = [
    () => JSON.parse(Buffer.from(ofEve!).toString()),
    (answer) => ({ ...answer, certificates: JSON.parse(Buffer.from(ofEve!).toString()).certificates }),
    (answer) => ({ ...answer, anchor: JSON.parse(Buffer.from(ofEve!).toString()).anchor }),
    (answer) => ({
      ...answer,
      certificates: {
        ...(answer['certificates'] as object),
        node: (answer['certificates'] as Record<string, string>)['publisher'],
      },
    }),
    (answer) => ({ ...answer, anchor: { ...(answer['anchor'] as object), revocations: [] } }),
    () => null,
    () => 'x'.repeat(1_000),
  ];
  for (const [at, lie] of lies.entries()) {
    network.onAnswer = (_from, method, body) =>
      method === 'network/join'
        ? Buffer.from(JSON.stringify(lie(JSON.parse(Buffer.from(body).toString()))))
        : undefined;
    await assert.rejects(bob.membership.join(invite), (error) => isCoded(error, 'certification-invalid'), `lie ${at}`);
    assert.equal((await bob.membership.place()).role, 'alone');
  }
  network.onAnswer = () => undefined;
  // All the while the invite was bound to this home, so the truth still comes. A false time in it does no harm, now or at the next start.
  network.onAnswer = (_from, method, body) =>
    method === 'network/join'
      ? Buffer.from(JSON.stringify({ ...JSON.parse(Buffer.from(body).toString()), atMs: 0 }))
      : undefined;
  assert.equal((await bob.membership.join(invite)).networkId, (await ada.membership.place()).networkId);
});

test('a clock that is an hour off is named, on either side, and the invite stays good', async () => {
  const network = testNetwork();
  const time = clockFrom(Date.now());
  await using ada = await start(network, 'ada-5');
  await using bob = await start(network, 'bob-5', { clock: time });
  await ada.membership.create();
  const { invite } = await ada.membership.invite();
  for (const [hours, says] of [
    [1, /60 minutes ahead/],
    [-1, /60 minutes behind/],
  ] as const) {
    time.pass(hours * 3_600_000);
    await assert.rejects(
      bob.membership.join(invite),
      (error) => isCoded(error, 'clock-skewed') && says.test(error.message),
    );
    time.pass(-hours * 3_600_000);
  }
  await bob.membership.join(invite);
});

test('without the committee a publish says so, loses nothing, and goes on where it was', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-6');
  await using bob = await start(network, 'bob-6');
  await ada.membership.create();
  // Who comes while the founder is away is told what to do, and that the invite is for later.
  const { invite } = await ada.membership.invite();
  network.cut('ada-6');
  await assert.rejects(
    bob.membership.join(invite),
    (error) =>
      isCoded(error, 'peer-unreachable') && /founder's node .* same command again; .* good until/.test(error.hint!),
  );
  network.mend('ada-6');
  await bob.membership.join(invite);
  await publish(bob, 'bob/first');
  network.cut('ada-6');
  await refused(publish(bob, 'bob/notes'), 'committee-unreachable');
  await refused(bob.membership.members(), 'committee-unreachable');
  await refused(bob.hypermesh.node.consensus.stake(), 'committee-unreachable');
  // What needs nobody else goes on: installing, running, verifying.
  const catalog = await bob.hypermesh.loadExtension('catalog');
  await catalog.install(['bob/first'], { root: join(base, 'bob-6-installed') });
  network.mend('ada-6');
  // Answers get lost: of the admission, then of the log. Each repetition takes up what was done.
  const seen: string[] = [];
  network.onRequest = (_to, method) => {
    seen.push(method);
    return undefined;
  };
  for (const lost of ['committee/vote', 'committee/log']) {
    network.onAnswer = (_from, method) => {
      if (method === lost) throw new HyperMeshError('peer-unreachable', 'lost');
      return undefined;
    };
    await refused(publish(bob, 'bob/notes'), 'committee-unreachable');
  }
  network.onAnswer = () => undefined;
  await publish(bob, 'bob/notes');
  assert.equal(seen.filter((method) => method === 'committee/anchor').length, 1);
  const { inclusion } = await bundleOf(bob, 'bob/notes');
  assert.equal(inclusion.index, 1);
  assert.equal(inclusion.head.size, 2);
});

test('a member that is removed is refused at once; a compromise takes back what its keys signed', async () => {
  const network = testNetwork();
  const time = clockFrom(Date.now());
  await using ada = await start(network, 'ada-7', { clock: time });
  await using bob = await start(network, 'bob-7', { clock: time });
  await ada.membership.create();
  const { node } = await bob.membership.join((await ada.membership.invite()).invite);
  await publish(bob);
  const bundle = await bundleOf(bob, 'bob/notes');
  // Revocation lists count in whole seconds.
  time.pass(2_000);
  await refused(ada.membership.remove('00'.repeat(32)), 'not-a-member');
  await refused(bob.membership.remove(node), 'committee-only');
  assert.notEqual((await ada.membership.remove(node)).leftAtMs, null);
  // By the committee, or by bob's own node where it asked what was revoked before.
  await refused(publish(bob, 'bob/more'), 'not-a-member', 'certificate-revoked');
  const [adas, bobs] = [await ada.hypermesh.loadExtension('catalog'), await bob.hypermesh.loadExtension('catalog')];
  // What was signed before stays good.
  await adas.verify({ bundle });
  const { trust } = bob.hypermesh.node as unknown as { readonly trust: TrustChain };
  await trust.refreshAnchor();
  await bobs.verify({ bundle });
  // Without an invite there is no way back, with a new one there is.
  await refused(trust.renew('node'), 'not-a-member');

  await ada.membership.remove(node, { compromised: true });
  await refused(adas.verify({ bundle }), 'certificate-revoked');
  await trust.refreshAnchor();
  await refused(bobs.verify({ bundle }), 'certificate-revoked');
  await refused(bob.membership.leave({ forget: true }), 'certificate-revoked');
});

test('certificates and lists are renewed from the network, at last also by who cannot say who he is any more', async () => {
  const network = testNetwork();
  const time = clockFrom(Date.now());
  await using ada = await start(network, 'ada-8', { clock: time });
  await using bob = await start(network, 'bob-8', { clock: time });
  await ada.membership.create();
  await bob.membership.join((await ada.membership.invite()).invite);
  const { trust } = bob.hypermesh.node;
  const first = await trust.identity('node');
  network.cut('ada-8');
  time.pass(6 * DAY_MS);
  await trust.anchor();
  time.pass(2 * DAY_MS);
  await refused(trust.anchor(), 'anchor-stale');
  await refused(publish(bob), 'anchor-stale', 'committee-unreachable');
  network.mend('ada-8');
  await trust.anchor();
  // Certificates: old ones serve until they end, new ones come behind their back.
  time.pass(60 * DAY_MS);
  await trust.anchor();
  assert.equal((await trust.identity('node')).fingerprint, first.fingerprint);
  await until(
    'it has another certificate',
    async () => (await trust.identity('node')).fingerprint !== first.fingerprint,
  );
  const second = await trust.identity('node');
  network.cut('ada-8');
  time.pass(100 * DAY_MS);
  await refused(trust.identity('node'), 'committee-unreachable');
  network.mend('ada-8');
  const third = await trust.identity('node');
  assert.notEqual(third.fingerprint, second.fingerprint);
  assert.equal(third.keyId, first.keyId);
  await publish(bob);
});

test('leaving gives the home a network of its own with the same keys; packages go only when that is said', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-9');
  await using bob = await start(network, 'bob-9');
  await refused(bob.membership.leave(), 'network-state');
  await publish(bob, 'bob/alone');
  await ada.membership.create();
  const { invite } = await ada.membership.invite();
  await refused(bob.membership.join(invite), 'home-not-empty');
  const { keyId } = await bob.hypermesh.node.trust.identity('publisher');
  const joined = await bob.membership.join(invite, { forget: true });
  assert.equal((await bob.hypermesh.node.assets.totals()).versions, 0);
  await publish(bob);
  await refused(ada.membership.leave(), 'network-state');
  await refused(bob.membership.leave(), 'home-not-empty');
  const left = await bob.membership.leave({ forget: true });
  assert.equal(left.role, 'alone');
  assert.notEqual(left.networkId, joined.networkId);
  assert.equal((await bob.hypermesh.node.trust.identity('publisher')).keyId, keyId);
  await publish(bob, 'bob/alone');
  await (await bob.hypermesh.loadExtension('catalog')).verify({ ref: 'bob/alone' });
  assert.equal((await ada.membership.members()).filter(({ leftAtMs }) => leftAtMs !== null).length, 1);
  assert.equal((await ada.membership.leave()).role, 'alone');
  await refused(ada.membership.invite(), 'network-state');
});

test('the committee serves everybody for himself only', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-10');
  await using bob = await start(network, 'bob-10');
  await using eve = await start(network, 'eve-10');
  await ada.membership.create();
  await bob.membership.join((await ada.membership.invite()).invite);
  await eve.membership.join((await ada.membership.invite({ tokens: 0 })).invite);
  const requests = new Map<string, unknown>();
  network.onRequest = (_to, method, body) => {
    requests.set(method, JSON.parse(Buffer.from(body).toString()));
    return undefined;
  };
  await publish(bob);
  network.onRequest = () => undefined;
  // Everything that bob said, said again by eve.
  for (const method of [
    'committee/anchor',
    'committee/reveal',
    'committee/opening',
    'committee/statement',
    'committee/vote',
  ]) {
    await refused(network.say('eve-10', 'ada-10', method, requests.get(method)), 'not-permitted');
  }
  // The log takes a certificate from whoever brings it, each once, and nothing else.
  const { certificate } = requests.get('committee/log') as { certificate: { votes: unknown[] } };
  const { head } = (await bundleOf(bob, 'bob/notes')).inclusion;
  const again = JSON.parse(
    Buffer.from(await network.say('eve-10', 'ada-10', 'committee/log', { certificate })).toString(),
  ) as { head: { size: number } };
  assert.equal(again.head.size, head.size);
  for (const bad of [{ ...certificate, proofs: `sha256:${'00'.repeat(32)}` }, { ...certificate, votes: [] }, {}]) {
    await refused(network.say('eve-10', 'ada-10', 'committee/log', { certificate: bad }), 'endorsement-invalid');
  }
  await refused(network.say('eve-10', 'bob-10', 'committee/account', {}), 'committee-only');
  for (const method of requests.keys()) {
    if (method !== 'network/news')
      await refused(network.say(null, 'ada-10', method, requests.get(method)), 'not-permitted');
  }
  // Without tokens there is no publish; somebody can give them.
  await refused(publish(eve), 'stake-insufficient');
  const eveId = (await eve.hypermesh.node.trust.identity('publisher')).keyId;
  assert.deepEqual(await eve.hypermesh.node.consensus.stake(), {
    ...{ account: eveId, balance: 0, locked: 0 },
    ...{ unbonding: [], isSuspended: false },
  });
  await refused(bob.hypermesh.node.consensus.transferStake(eveId, 1), 'stake-insufficient');
  const bobId = (await bob.hypermesh.node.trust.identity('publisher')).keyId;
  await ada.hypermesh.node.consensus.transferStake(bobId, 50);
  // An answer that is lost and asked for again moves the tokens once.
  let lose = true;
  network.onAnswer = (_from, method) => {
    if (method !== 'committee/entry' || !lose) return undefined;
    lose = false;
    throw new HyperMeshError('peer-unreachable', 'lost');
  };
  await bob.hypermesh.node.consensus.transferStake(eveId, 50);
  assert.equal((await eve.hypermesh.node.consensus.stake()).balance, 50);
  const { balance, locked } = await bob.hypermesh.node.consensus.stake();
  // Unlocked tokens go on answering for a week, in which nobody can spend them.
  const { unbonding, ...account } = await bob.hypermesh.node.consensus.unlockStake(locked);
  assert.deepEqual([account.balance, account.locked, unbonding.length], [balance, 0, 1]);
  assert.equal(unbonding[0]?.amount, locked);
  assert.ok(unbonding[0].endsAtMs !== null);
  await refused(bob.hypermesh.node.consensus.transferStake(eveId, 1), 'stake-insufficient');
});

test('an export carries the place in the network, for a member and for the founder', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-11');
  await using bob = await start(network, 'bob-11');
  await ada.membership.create();
  const { invite } = await ada.membership.invite();
  const { networkId } = await bob.membership.join(invite);
  await publish(bob);
  const [adas, bobs] = await Promise.all([ada, bob].map((node) => Array.fromAsync(node.hypermesh.exportState())));
  assert.equal((await bob.membership.leave({ forget: true })).isFounderTold, true);
  await bob.hypermesh.importState(replay(bobs!));
  assert.deepEqual((await bob.membership.place()).networkId, networkId);
  assert.equal((await bob.membership.place()).role, 'member');
  // The committee heard it leave, so the place alone is not enough; what was published still verifies.
  await refused(bob.membership.members(), 'not-a-member');
  await (await bob.hypermesh.loadExtension('catalog')).verify({ ref: 'bob/notes' });
  // Who leaves while the founder is away is told that the founder does not know.
  network.cut('ada-11');
  assert.equal((await bob.membership.leave({ forget: true })).isFounderTold, false);
  network.mend('ada-11');
  // The founder's older export does not forget that somebody left, nor does it let an invite in twice.
  await ada.hypermesh.importState(replay(adas!));
  assert.equal((await ada.membership.place()).role, 'founder');
  assert.equal((await ada.membership.members()).filter(({ leftAtMs }) => leftAtMs !== null).length, 1);
  await using eve = await start(network, 'eve-11');
  await refused(eve.membership.join(invite), 'invite-used');
});

test('a change of network that a crash cut off after its commit point is finished at the next start', async () => {
  const network = testNetwork();
  let answer: Uint8Array | undefined;
  network.onAnswer = (_from, method, body) => {
    if (method === 'network/join') answer = body;
    return undefined;
  };
  await using ada = await start(network, 'ada-12');
  await ada.membership.create();
  const { networkId } = await ada.membership.place();
  {
    await using bob = await start(network, 'bob-12');
    await bob.membership.join((await ada.membership.invite()).invite);
    await bob.membership.leave();
  }
  const { certification } = decodeCertification(JSON.parse(Buffer.from(answer!).toString()));
  const file = join(base, 'bob-12', 'network', 'move.json');
  const move = (kind: 'join' | 'leave') =>
    writeFile(
      file,
      encodeNetworkMove(
        kind === 'join'
          ? { formatVersion: 1, kind, certification, forget: false }
          : { formatVersion: 1, kind, forget: true },
      ),
    );
  const nowAt = async (role: NetworkPlace['role']) => {
    await using bob = await start(network, 'bob-12');
    const place = await bob.membership.place();
    assert.equal(place.role, role);
    assert.equal(place.networkId === networkId, role === 'member');
    await bob.hypermesh.node.trust.identity('publisher');
    assert.equal(existsSync(file), false);
  };
  await nowAt('alone');
  // Before any step; after the first one; after all of them.
  await move('join');
  await nowAt('member');
  await move('join');
  await nowAt('member');
  await move('leave');
  await nowAt('alone');
  await move('join');
  {
    await using trust = await openTrust({
      directory: join(base, 'bob-12', 'trust'),
      clock: { nowMs: () => Date.now() },
    });
    await trust.adopt(certification, { networkId, committee: certification.committee, joinedAtMs: 1 });
  }
  await nowAt('member');
  await move('leave');
  {
    await using trust = await openTrust({
      directory: join(base, 'bob-12', 'trust'),
      clock: { nowMs: () => Date.now() },
    });
    await trust.abandon();
  }
  await nowAt('alone');
  await writeFile(`${file}.new`, 'half');
  await nowAt('alone');
  await writeFile(file, 'damaged');
  await refused(start(network, 'bob-12'), 'storage-failed');
});

test('a committee that lost the registration of a commitment gets it again, and the publish goes on', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-13');
  await using bob = await start(network, 'bob-13');
  await ada.membership.create();
  await bob.membership.join((await ada.membership.invite()).invite);
  await publish(bob);
  const { keyId } = await bob.hypermesh.node.trust.identity('publisher');
  using database = new DatabaseSync(join(base, 'ada-13', 'consensus', 'nkrypt.db'));
  const { changes } = database.prepare('DELETE FROM commitments WHERE identity = ?').run(keyId);
  assert.equal(changes, 1);
  await publish(bob, 'bob/more');
});

test('a member gets a seat in the committee: from the next epoch on it takes both, and everybody verifies that', async () => {
  const network = testNetwork();
  await using ada = await start(network, 'ada-20');
  await using bob = await start(network, 'bob-20');
  await ada.membership.create();
  await bob.membership.join((await ada.membership.invite()).invite);
  const before = await publish(ada);
  const { node } = await bob.membership.place();
  await refused(bob.membership.addValidators([node]), 'committee-only');
  await refused(ada.membership.addValidators(['ab'.repeat(32)]), 'not-a-member');
  await refused(ada.membership.removeValidators([node]), 'usage');
  const beganMs = Date.now();
  const proposal = await ada.membership.addValidators([node]);
  assert.equal(proposal.validators.length, 2);
  for (const { membership } of [ada, bob]) {
    // Validators that missed something ask each other again, more and more rarely.
    await until('the first epoch', async () => (await membership.validators()).epoch === 1);
    const { epoch, quorum, documents } = await membership.validators();
    assert.deepEqual([epoch, quorum, documents], [1, 2, 2]);
    await until('when it began is noted', async () => {
      const { sinceMs } = await membership.validators();
      return sinceMs !== null && sinceMs >= beganMs && sinceMs <= Date.now();
    });
  }
  for (const home of [ada, bob]) {
    await publish(home, `${home.name.split('-')[0]}/seated`);
    const bundle = await bundleOf(home, `${home.name.split('-')[0]}/seated`);
    assert.equal(bundle.endorsement.committee, epochDigest(bundle.network.epochs![0]!));
    assert.equal(bundle.endorsement.votes.length, 2);
    await verifyBundleOffline(bundle);
  }
  assert.ok(before);
  // Back to one: both have to agree.
  const fewer = await ada.membership.removeValidators([node]);
  assert.deepEqual([fewer.approvedBy.length, fewer.needed], [1, 2]);
  await bob.membership.approveValidators(undefined);
  await until('the second epoch', async () => (await ada.membership.validators()).epoch === 2);
  await publish(ada, 'ada/alone');
  // Who had a seat goes on knowing whose word counts.
  await until('for both', async () => (await bob.membership.validators()).epoch === 2);
  await publish(bob, 'bob/unseated');
});
