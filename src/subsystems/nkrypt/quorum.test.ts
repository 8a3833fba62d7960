import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fromBase64, utf8 } from '../../base/bytes.ts';
import { digestOf } from '../../base/digest.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { type CommitteeHome, type TestCommittee, testCommittee, type Wire } from '../../testing/committee.ts';
import { until } from '../../testing/until.ts';
import { decodeEntry, type Entry } from '../../wire/entry.ts';
import { decodeCertifiedPart, HEAD_TYPE } from '../../wire/order.ts';
import { type Endorsement, type ProofSet, proofsDigest, VOTE_TYPE, type Vote } from '../../wire/proof.ts';
import type { NKrypt } from './index.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'quorum-'));
const time = { nowMs: Date.now() };
const clock = { nowMs: () => time.nowMs };
const subjectOf = (text: string) => digestOf(utf8(text));
const honest: Wire = (_to, _method, _body, _from, pass) => pass();
const coded =
  (...codes: ErrorCode[]) =>
  (error: unknown) =>
    isCoded(error, ...codes);

let committee: TestCommittee;
let client: CommitteeHome;
let names = 0;

before(async () => {
  committee = await testCommittee(folder, { n: 4, clock });
  client = committee.homes[4]!;
});
after(async () => {
  await committee[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** A publish of something new; the names are claimed in the order of the network. */
async function publish(by: NKrypt = client.nkrypt): Promise<Endorsement> {
  time.nowMs += 10;
  const ref = `ada/package-${names++}@1.0.0`;
  const set = await by.prove(await by.challenge('publish', subjectOf(ref), ref));
  const { endorsement } = await by.admit(set);
  const anchor = await client.trust.anchor();
  // The root certificate is that of the first home; votes hold by the genesis alone.
  const root = await committee.homes[0]!.trust.anchor();
  await by.verifyEndorsement(endorsement, { genesis: committee.document, anchor: root });
  assert.notEqual(anchor.root, root.root);
  return endorsement;
}

async function with_<T>(wire: Wire, work: () => Promise<T>): Promise<T> {
  committee.wire = wire;
  try {
    return await work();
  } finally {
    committee.wire = honest;
  }
}

/** What the order needs of the home that has its engine goes on: that one silent home stops the order is the other tests' affair. */
const isCommittee = (method: string) =>
  /^committee\/(anchor|reveal|opening|statement|vote|confirm|standing|register|registration)$/.test(method);
const lying =
  (liars: readonly string[], lie: (method: string, answer: Json) => unknown): Wire =>
  async (to, method, _body, _from, pass) => {
    if (!liars.includes(to) || !isCommittee(method)) return pass();
    return lie(method, (await pass()) as Json);
  };

test('a publish gets three or more votes of four, and a seat publishes as everybody does', async () => {
  const endorsement = await publish();
  assert.equal(endorsement.votes.length, 3);
  const second = await publish();
  assert.notEqual(second.operation.sequence, endorsement.operation.sequence);
  await publish(committee.homes[0]!.nkrypt);
  await publish(committee.homes[3]!.nkrypt);
});

test('one of four that is silent, slow or lies in whatever way does not stop a publish', async () => {
  const [first] = committee.homes.map(({ validator }) => validator) as [string];
  const swap = (member: string, value: unknown) => (answer: Json) => ({ ...(answer as object), [member]: value });
  const word = { validator: first, ed25519: Buffer.alloc(64, 7).toString('base64') };
  const cases: readonly [why: string, wire: Wire][] = [
    [
      'silent',
      async (to, method, _body, _from, pass) => {
        if (to === first && isCommittee(method)) throw new HyperMeshError('peer-unreachable', 'silent');
        return pass();
      },
    ],
    [
      'never answers a vote',
      lying([first], (method, answer) => (method === 'committee/vote' ? new Promise(() => 0) : answer)),
    ],
    ['answers nonsense', lying([first], () => ({ nonsense: true }))],
    ['signs nothing true', lying([first], (_method, answer) => swap('attestation', word)(answer))],
    [
      'reveals something else than it was committed to',
      lying([first], (method, answer) =>
        method === 'committee/reveal' ? swap('revealed', '77'.repeat(32))(answer) : answer,
      ),
    ],
    [
      'refuses every audit',
      lying([first], (method, answer) => {
        if (method === 'committee/opening') throw new HyperMeshError('proof-rejected', 'I do not like it.');
        return answer;
      }),
    ],
    [
      'says that nothing is registered',
      lying([first], (method, answer) => (method === 'committee/reveal' ? swap('root', null)(answer) : answer)),
    ],
    [
      'lies about time',
      lying([first], (method, answer) => (method === 'committee/vote' ? swap('atMs', 1)(answer) : answer)),
    ],
  ];
  for (const [why, wire] of cases) {
    const endorsement = await with_(wire, () => publish()).catch((error: unknown) => assert.fail(`${why}: ${error}`));
    assert.ok(endorsement.votes.length >= 3, why);
    // Ten minutes later everybody is asked again.
    time.nowMs += 600_001;
  }
});

test('a name that was claimed a moment ago is known also where the order comes later', async () => {
  const silent = committee.homes[0]!.validator;
  const { validator: behind, publisher } = committee.homes[3]!;
  let isAsked = false;
  const wire: Wire = async (to, method, _body, from, pass) => {
    const isLate = method.startsWith('order/') && !isAsked && (to === behind || from === publisher);
    if (isLate || (to === silent && isCommittee(method))) throw new HyperMeshError('peer-unreachable', 'silent');
    if (to === behind && method === 'committee/anchor') isAsked = true;
    return pass();
  };
  assert.equal((await with_(wire, () => publish())).votes.length, 3);
  assert.ok(isAsked);
  time.nowMs += 600_001;
});

test('what an account has is believed when more than one validator says the same, and nobody believes a single one', async () => {
  const [liar] = committee.homes.map(({ validator }) => validator);
  const before = await client.nkrypt.stake();
  const lies: Wire = async (to, method, _body, _from, pass) => {
    const answer = (await pass()) as Json;
    return to === liar && method === 'committee/account' ? { ...(answer as object), balance: 999_999 } : answer;
  };
  assert.deepEqual(await with_(lies, () => client.nkrypt.stake()), before);
  const alone: Wire = (to, method, body, from, pass) => {
    if (to === liar || method !== 'committee/account') return lies(to, method, body, from, pass);
    throw new HyperMeshError('peer-unreachable', 'silent');
  };
  await with_(alone, () => assert.rejects(client.nkrypt.stake(), coded('committee-unreachable')));
});

test('with two of four silent a publish says how many answered, loses nothing, and goes on with the same proofs', async () => {
  const ref = 'ada/patient@1.0.0';
  const set = await client.nkrypt.prove(await client.nkrypt.challenge('publish', subjectOf(ref), ref));
  const gone = committee.homes.slice(0, 2).map(({ validator }) => validator);
  const silent: Wire = async (to, _method, _body, _from, pass) => {
    if (gone.includes(to)) throw new HyperMeshError('peer-unreachable', 'silent');
    return pass();
  };
  await with_(silent, async () => {
    await assert.rejects(
      client.nkrypt.admit(set),
      (error) => isCoded(error, 'committee-unreachable') && /Of 4 validators .* 3 are needed/.test(error.message),
    );
  });
  const { endorsement } = await client.nkrypt.admit(set);
  assert.deepEqual((await client.nkrypt.admit(set)).endorsement, endorsement);
  // What more than one honest validator refuses is the committee's refusal.
  const other = { kind: 'publish', subject: subjectOf('other'), ref } as const;
  await assert.rejects(client.nkrypt.challenge(other.kind, other.subject, other.ref), coded('version-exists'));
});

test('two copies of one home that publish different things under one number never get two certificates, whatever one validator votes for', async () => {
  const twin = await committee.copyOf(client);
  const [dishonest] = committee.homes as [CommitteeHome];
  for (let round = 0; round < 3; round++) {
    time.nowMs += 100_000;
    const sets: ProofSet[] = [];
    for (const [i, home] of [client.nkrypt, twin].entries()) {
      const ref = `ada/twin@${round}.${i}.0`;
      sets.push(await home.prove(await home.challenge('publish', subjectOf(ref), ref)));
    }
    const [first, second] = sets as [ProofSet, ProofSet];
    assert.equal(first.challenge.operation.sequence, second.challenge.operation.sequence);
    const forEverything: Wire = async (to, method, body, _from, pass) => {
      if (to !== dishonest.validator || method !== 'committee/vote') return pass();
      const { proofs } = body as { proofs: ProofSet };
      const { operation, networkId, committee } = proofs.challenge;
      const vote: Vote = {
        ...{ formatVersion: 3, networkId, committee, operation },
        ...{ proofs: proofsDigest(proofs), atMs: time.nowMs },
      };
      return { atMs: vote.atMs, attestation: await dishonest.trust.attest(VOTE_TYPE, vote) };
    };
    const outcomes = await with_(forEverything, () =>
      Promise.allSettled([client.nkrypt.admit(first), twin.admit(second)]),
    );
    const admitted = outcomes.filter(({ status }) => status === 'fulfilled');
    assert.ok(admitted.length <= 1, 'two certificates under one number');
  }
  const evidence = committee.homes.slice(1, 4).flatMap(({ nkrypt }) => nkrypt.accusations());
  assert.ok(evidence.length > 0, 'the contradicting orders are kept');
});

test('validators that were restarted, all of them and at any moment, vote for nothing else than before', async () => {
  time.nowMs += 100_000;
  const ref = 'ada/restarted@1.0.0';
  const set = await client.nkrypt.prove(await client.nkrypt.challenge('publish', subjectOf(ref), ref));
  // The votes are cast, their answers lost, and then everybody starts again.
  const lost: Wire = async (_to, method, _body, _from, pass) => {
    const answer = await pass();
    if (method === 'committee/vote') throw new HyperMeshError('peer-unreachable', 'lost');
    return answer;
  };
  await with_(lost, () => assert.rejects(client.nkrypt.admit(set), coded('committee-unreachable')));
  for (const home of committee.homes) await committee.restart(home);
  time.nowMs += 3_600_000;
  // Long after the window: it is the vote of then.
  const { endorsement } = await client.nkrypt.admit(set);
  assert.ok(endorsement.votes.every(({ atMs }) => atMs < time.nowMs - 3_000_000));
});

test('a committee of seven admits with two that are silent or lie, and not with three', async () => {
  await using seven = await testCommittee(path.join(folder, 'seven'), { n: 7, clock });
  const [one, two, three, ...others] = seven.homes;
  const publisher = others.at(-1)!.nkrypt;
  const attempt = async (ref: string) =>
    (await publisher.admit(await publisher.prove(await publisher.challenge('publish', subjectOf(ref), ref))))
      .endorsement;
  assert.equal((await attempt('eve/seven@1.0.0')).votes.length, 5);
  const bad = new Set([one!.validator]);
  seven.wire = async (to, method, _body, _from, pass) => {
    if (!isCommittee(method)) return pass();
    if (bad.has(to)) throw new HyperMeshError('timeout', 'silent');
    const answer = (await pass()) as Json;
    return to === two!.validator && method !== 'committee/anchor'
      ? { ...(answer as object), attestation: null }
      : answer;
  };
  time.nowMs += 1_000;
  assert.equal((await attempt('eve/seven@1.1.0')).votes.length, 5);
  bad.add(three!.validator);
  time.nowMs += 1_000;
  // With nobody better left the one who lies is asked again.
  await assert.rejects(attempt('eve/seven@1.2.0'), coded('committee-unreachable', 'anchor-lost'));
});

test('a publisher who signs two operations under one number pays half of its locked tokens, and publishes no more in the epoch', async () => {
  await using small = await testCommittee(path.join(folder, 'small'), { n: 1, clock, roundMs: 20 });
  const [, owner] = small.homes;
  const twin = await small.copyOf(owner!);
  const before = await owner!.nkrypt.stake();
  assert.equal(before.isSuspended, false);
  const first = await owner!.nkrypt.challenge('publish', subjectOf('one'), 'eve/one@1.0.0');
  await owner!.nkrypt.admit(await owner!.nkrypt.prove(first));
  // The clock stands still: the copy takes the same number.
  await assert.rejects(twin.challenge('publish', subjectOf('two'), 'eve/one@2.0.0'), coded('equivocation'));
  await until('it pays', async () => (await owner!.nkrypt.stake()).isSuspended);
  const now = await owner!.nkrypt.stake();
  assert.equal(now.locked, before.locked / 2);
  assert.equal(now.balance, before.balance - before.locked / 2);
  await assert.rejects(owner!.nkrypt.challenge('publish', subjectOf('three'), 'eve/one@3.0.0'), coded('not-permitted'));
});

test('a validator that failed lately is asked all the same when another one is away', async () => {
  const [failing, away] = [committee.homes[1]!.validator, committee.homes[2]!.validator];
  const isGone = (to: string, method: string) => to === away && isCommittee(method);
  const unreachable = () => new HyperMeshError('peer-unreachable', 'silent');
  // The other one misses the first anchor, so that the failing one is in it.
  let anchors = 0;
  await with_(
    async (to, method, _body, _from, pass) => {
      if (isGone(to, method) && method === 'committee/anchor' && ++anchors === 1) throw unreachable();
      const answer = (await pass()) as Json;
      return to === failing && method === 'committee/reveal'
        ? { ...(answer as object), revealed: '77'.repeat(32) }
        : answer;
    },
    () => publish(),
  );
  assert.equal(anchors, 2);
  await with_(
    async (to, method, _body, _from, pass) => {
      if (isGone(to, method)) throw unreachable();
      return pass();
    },
    () => publish(),
  );
});

/** What answers for each validator, when that of some is no longer what it was. */
async function lockedAfter(
  among: TestCommittee,
  changed: readonly string[],
  before: number,
): Promise<Map<string, number | null>> {
  for (const endMs = Date.now() + 300_000; ; await new Promise((done) => setTimeout(done, 20))) {
    const { validators } = await among.homes[1]!.nkrypt.committee();
    const locked = new Map(validators.map((one) => [one.key, one.locked]));
    if (changed.every((key) => locked.get(key) !== before)) return locked;
    assert.ok(Date.now() < endMs, 'nobody answered for it');
  }
}

async function voteOfHome({ trust }: CommitteeHome, about: Omit<Vote, 'formatVersion'>) {
  return { atMs: about.atMs, attestation: await trust.attest(VOTE_TYPE, { formatVersion: 3, ...about }) };
}

test('a validator that votes for two operations under one number pays, by the votes of a publisher who got no certificate', async () => {
  await using four = await testCommittee(path.join(folder, 'double'), { n: 4, clock, roundMs: 20 });
  const [dishonest, , , last, owner] = four.homes as [
    CommitteeHome,
    CommitteeHome,
    CommitteeHome,
    CommitteeHome,
    CommitteeHome,
  ];
  const twin = await four.copyOf(owner);
  const sets: ProofSet[] = [];
  for (const [i, home] of [owner.nkrypt, twin].entries()) {
    const ref = `eve/double@1.${i}.0`;
    sets.push(await home.prove(await home.challenge('publish', subjectOf(ref), ref)));
  }
  const [first, second] = sets as [ProofSet, ProofSet];
  assert.equal(first.challenge.operation.sequence, second.challenge.operation.sequence);
  four.wire = async (to, method, body, _from, pass) => {
    if (method !== 'committee/vote') return pass();
    if (to === last.validator && (body as { proofs: ProofSet }).proofs.challenge.operation.ref.endsWith('1.0.0'))
      throw new HyperMeshError('peer-unreachable', 'silent');
    if (to !== dishonest.validator) return pass();
    const { proofs } = body as { proofs: ProofSet };
    const { operation, networkId, committee } = proofs.challenge;
    return voteOfHome(dishonest, { networkId, committee, operation, proofs: proofsDigest(proofs), atMs: time.nowMs });
  };
  const { endorsement } = await owner.nkrypt.admit(first);
  assert.ok(endorsement.votes.some(({ attestation }) => attestation.validator === dishonest.validator));
  await assert.rejects(twin.admit(second), coded('equivocation'));
  const locked = await lockedAfter(four, [dishonest.validator], 100);
  assert.deepEqual(
    four.homes.slice(0, 4).map(({ validator }) => locked.get(validator)),
    [50, 100, 100, 100],
  );
});

test('a validator that commits to two heads of one index pays, although who saw it was kept from the order and then restarted', async () => {
  await using four = await testCommittee(path.join(folder, 'heads'), { n: 4, clock, roundMs: 20 });
  const homes = four.genesis.committee.validators.map(
    ({ key }) => four.homes.find(({ validator }) => validator === key)!,
  );
  // The engine is in the home of the first.
  const [, seeing, , dishonest] = homes as [CommitteeHome, CommitteeHome, CommitteeHome, CommitteeHome];
  const { networkId } = await seeing.nkrypt.genesis();
  let refused = 0;
  four.wire = async (_to, method, _body, from, pass) => {
    if (method !== 'sequence/append' || from !== seeing.publisher) return pass();
    refused += 1;
    throw new HyperMeshError('peer-unreachable', 'the line is cut');
  };
  for (const text of ['a', 'b']) {
    const statement = {
      ...({ formatVersion: 3, networkId, committee: networkId, view: 0, index: 9, base: 0 } as const),
      ...{ head: text.repeat(64), stateRoot: 'f'.repeat(64) },
    };
    const vote = { statement, attestation: await dishonest.trust.attest(HEAD_TYPE, statement) };
    const told = { applied: 0, prepares: [], commits: [vote], recovery: null };
    await seeing.nkrypt.order('order/votes', dishonest.publisher, told);
  }
  await until('it was kept from the order', () => refused > 0);
  await four.restart(seeing);
  four.wire = honest;
  const locked = await lockedAfter(four, [dishonest.validator], 100);
  assert.deepEqual(
    homes.map(({ validator }) => locked.get(validator)),
    [100, 100, 100, 50],
  );
});

test('a member that is shown two certificates which contradict each other brings all who voted for both before the order', async () => {
  await using four = await testCommittee(path.join(folder, 'member'), { n: 4, clock, roundMs: 20 });
  const [, , , , member] = four.homes as [CommitteeHome, CommitteeHome, CommitteeHome, CommitteeHome, CommitteeHome];
  const { networkId } = await member.nkrypt.genesis();
  const anchor = await four.homes[0]!.trust.anchor();
  const guilty = four.homes.slice(0, 3).sort((a, b) => (a.validator < b.validator ? -1 : 1));
  // Another number, the same version: what no honest validator votes for either.
  for (const [i, ref] of ['mallory/two@1.0.0', 'mallory/two@1.0.0+build'].entries()) {
    const operation = {
      kind: 'publish',
      identity: 'ab'.repeat(32),
      sequence: i + 1,
      ref,
      subject: subjectOf(`${i}`),
    } as const;
    const about = { networkId, committee: networkId, operation, proofs: subjectOf('proofs') };
    const votes = await Promise.all(guilty.map((home) => voteOfHome(home, { ...about, atMs: time.nowMs })));
    await member.nkrypt.verifyEndorsement({ formatVersion: 3, ...about, votes }, { genesis: four.document, anchor });
  }
  assert.equal(member.nkrypt.accusations().length, 3);
  const locked = await lockedAfter(
    four,
    guilty.map(({ validator }) => validator),
    100,
  );
  assert.deepEqual([...locked.values()].sort(), [100, 50, 50, 50]);
});

test('what is certified gets into the order by itself, so that a handover carries only what is unfinished', async () => {
  await using lone = await testCommittee(path.join(folder, 'settled'), { n: 1, clock, roundMs: 20 });
  const [home, publisher] = lone.homes as [CommitteeHome, CommitteeHome];
  const entries = async () => {
    const all: Entry[] = [];
    for (let after = 0; ; ) {
      const part = decodeCertifiedPart(await home.nkrypt.order('order/part', home.publisher, { after }));
      if (part.certificate === null) return all;
      all.push(...part.entries.map((text) => decodeEntry(fromBase64(text))));
      after = part.certificate.statement.index;
    }
  };
  const certified = async () =>
    (await entries()).flatMap((entry) => (entry.kind === 'certified' ? entry.certificates : []));
  const admitted: Endorsement[] = [];
  for (const [i, by] of [home, publisher, publisher].entries()) {
    const ref = `${by === home ? 'ada' : 'eve'}/settled@1.${i}.0`;
    const set = await by.nkrypt.prove(await by.nkrypt.challenge('publish', subjectOf(ref), ref));
    admitted.push((await by.nkrypt.admit(set)).endorsement);
    time.nowMs += 1_000;
  }
  for (const endMs = Date.now() + 300_000; (await certified()).length < 3; ) {
    assert.ok(Date.now() < endMs, 'it never got there');
    await new Promise((done) => setTimeout(done, 20));
  }
  const byNumber = (a: Endorsement, b: Endorsement) => a.operation.sequence - b.operation.sequence;
  assert.deepEqual((await certified()).toSorted(byNumber), admitted.toSorted(byNumber));
  await home.nkrypt.proposeCommittee(await home.nkrypt.seats());
  for (const endMs = Date.now() + 300_000; (await home.nkrypt.committee()).epoch === 0; ) {
    assert.ok(Date.now() < endMs, 'the epoch never ended');
    await new Promise((done) => setTimeout(done, 20));
  }
  const handovers = (await entries()).flatMap((entry) => (entry.kind === 'handover' ? [entry.statement] : []));
  assert.deepEqual(
    handovers.map(({ orders, isLast }) => [orders.length, isLast]),
    [[0, true]],
  );
});

test('answers that take longer than clocks may be apart are none the less timely', async () => {
  let questions = 0;
  const slow: Wire = async (_to, method, _body, _from, pass) => {
    const answer = await pass();
    // By the clock of everybody the way back takes seven seconds: of the anchor, and then of every other word.
    if (method === 'committee/anchor' || (/opening|statement/.test(method) && ++questions % 2 === 0))
      time.nowMs += 7_000;
    return answer;
  };
  await with_(slow, () => publish());
});
