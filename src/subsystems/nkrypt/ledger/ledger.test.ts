import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, suite, test } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../../../base/bytes.ts';
import type { Digest } from '../../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../../base/errors.ts';
import { EntryMaker, seatOf, someId, subject } from '../../../testing/order.ts';
import { makeQuickSigner, makeSigner, quickCheck, type Signer, signatureCheck } from '../../../testing/signer.ts';
import {
  type Action,
  type Entry,
  encodeEntry,
  SEQUENCER_TYPE,
  type SelfSigned,
  type SequencerStatement,
  SPACE_LOST_TYPE,
  type SpaceLostStatement,
  type Word,
} from '../../../wire/entry.ts';
import { byKey, type Committee } from '../../../wire/epoch.ts';
import type { Genesis } from '../../../wire/genesis.ts';
import { type Operation, VOTE_TYPE } from '../../../wire/proof.ts';
import { openStore, type Store } from '../store.ts';
import { Facts } from './facts.ts';
import type { LedgerTerms } from './law.ts';
import { foundLedger, Ledger, type Refusal } from './ledger.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-order-'));
const stores: Store[] = [];
after(async () => {
  for (const store of stores) await store[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const DAY_MS = 86_400_000;
const SUPPLY = 10_000;
const STAKE = { claimLockedMin: 100, unbondingMs: 7 * DAY_MS, equivocationPercent: 50, spaceLostPercent: 5 };

/** Four validators that answer with accounts of their own; the first account has all tokens. */
const validators = Array.from({ length: 4 }, makeQuickSigner);
const accounts = Array.from({ length: 4 }, makeQuickSigner);
const [ada, bob, eve, joe] = accounts as [
  (typeof accounts)[0],
  (typeof accounts)[0],
  (typeof accounts)[0],
  (typeof accounts)[0],
];
const seats = validators.map((validator, at) => seatOf(validator, accounts[at]!));

interface Bench {
  readonly make: EntryMaker;
  readonly ledger: Ledger;
  readonly store: Store;
  /** Puts it at the end of the order. */
  add(entry: Entry | Uint8Array): Refusal | null;
  /** Refused with that code, or applied. */
  sure(entry: Entry, code?: ErrorCode): void;
}

function fresh(): Store {
  const store = openStore(folder, `${stores.length}.db`);
  stores.push(store);
  // Durability is the store's affair and tested with it.
  store.raw.exec('PRAGMA synchronous = OFF');
  return store;
}

function bench({
  make = new EntryMaker(),
  check = quickCheck,
  first = seats,
  store = undefined as Store | undefined,
} = {}): Bench {
  const used = store ?? fresh();
  for (const table of ['facts', 'fact_sum', 'epochs']) used.raw.exec(`DELETE FROM ${table}`);
  const committee: Committee = { epoch: 0, validators: first, digest: make.networkId };
  const funded = [...new Set(first.map(({ account }) => account))].map((account, at) => ({
    account,
    balance: at === 0 ? SUPPLY : 0,
    locked: at === 0 ? 1_000 : 0,
  }));
  // The ledger reads nothing else of a genesis.
  const genesis = { stake: { accounts: funded } } as unknown as Genesis;
  used.transact((raw) => foundLedger(raw, genesis, committee));
  const terms: LedgerTerms = { networkId: make.networkId, ...STAKE };
  const ledger = new Ledger({ raw: used.raw, check }, { terms, first: committee });
  const add = (entry: Entry | Uint8Array) =>
    used.transact(() => ledger.apply(entry instanceof Uint8Array ? entry : encodeEntry(entry), ledger.index + 1));
  const sure = (entry: Entry, code?: ErrorCode) => assert.equal(add(entry)?.code, code);
  return { make, ledger, store: used, add, sure };
}

const free = (ledger: Ledger, id: string) => {
  const { balance, locked, unbonding } = ledger.account(id);
  return balance - locked - unbonding.reduce((sum, { amount }) => sum + amount, 0);
};
const tell = ({ make, add }: Bench, atMs: number, who = validators, committee?: Digest) => {
  for (const one of who) add(make.clock(one, atMs, committee));
};
const publish = (sequence: number, ref: string, content: string): Omit<Operation, 'identity'> => ({
  kind: 'publish',
  subject: subject(content),
  ref,
  sequence,
});

suite('tokens', () => {
  test('move, are locked, and are free again when their unbonding has ended', () => {
    const at = bench();
    const { make, ledger, sure } = at;
    sure(make.instruct(ada, { kind: 'transfer', to: bob.keyId, amount: 500 }));
    sure(make.instruct(bob, { kind: 'lock', amount: 300 }));
    sure(make.instruct(bob, { kind: 'lock', amount: 201 }), 'stake-insufficient');
    sure(make.instruct(bob, { kind: 'unlock', amount: 301 }), 'stake-insufficient');
    tell(at, 5 * DAY_MS);
    sure(make.instruct(bob, { kind: 'unlock', amount: 300 }));
    assert.deepEqual(ledger.account(bob.keyId).unbonding, [{ amount: 300, endsAtMs: null }]);
    sure(make.instruct(bob, { kind: 'transfer', to: ada.keyId, amount: 201 }), 'stake-insufficient');
    // What was told before the unlock says nothing about when it was.
    tell(at, 20 * DAY_MS);
    assert.deepEqual(ledger.account(bob.keyId).unbonding, [{ amount: 300, endsAtMs: 27 * DAY_MS }]);
    tell(at, 27 * DAY_MS - 1);
    assert.equal(free(ledger, bob.keyId), 200);
    tell(at, 27 * DAY_MS);
    assert.equal(free(ledger, bob.keyId), 500);
    assert.deepEqual(ledger.account(bob.keyId).unbonding, []);
  });

  test('are not freed early by f clocks that are ahead, nor held back by f that are behind or silent', () => {
    const at = bench();
    const { make, ledger, sure } = at;
    const [liar, ...honest] = validators as [(typeof validators)[0], ...typeof validators];
    sure(make.instruct(ada, { kind: 'unlock', amount: 100 }));
    tell(at, 1_000 * DAY_MS, [liar]);
    tell(at, DAY_MS, honest.slice(0, 1));
    assert.equal(ledger.account(ada.keyId).unbonding[0]?.endsAtMs, null, 'two of four are no quorum');
    tell(at, DAY_MS, honest.slice(1));
    assert.equal(ledger.account(ada.keyId).unbonding[0]?.endsAtMs, 8 * DAY_MS);
    tell(at, 2_000 * DAY_MS, [liar]);
    assert.equal(ledger.timeMs(), DAY_MS);
    tell(at, 8 * DAY_MS, honest);
    assert.equal(free(ledger, ada.keyId), SUPPLY - 900);
    // Behind from the start: it does not hold the others.
    sure(make.instruct(ada, { kind: 'unlock', amount: 100 }));
    sure(make.clock(liar, 1), 'proof-replayed');
    tell(at, 9 * DAY_MS, honest);
    tell(at, 16 * DAY_MS, honest);
    assert.equal(free(ledger, ada.keyId), SUPPLY - 800);
  });

  test('answer for what their account did until the unbonding ends: evidence takes them, an unlock does not save them', () => {
    const at = bench();
    const { make, ledger, sure } = at;
    const [first, second] = ['1', '2'].map((content) => make.order(ada, publish(7, 'ada/greeter@1.0.0', content))) as [
      ReturnType<EntryMaker['order']>,
      ReturnType<EntryMaker['order']>,
    ];
    sure(make.instruct(ada, { kind: 'unlock', amount: 400 }));
    sure(make.instruct(ada, { kind: 'unlock', amount: 600 }));
    tell(at, DAY_MS);
    sure(make.conflict(ada, first, first), 'entry-invalid');
    sure(make.conflict(bob, first, second), 'entry-invalid');
    sure(make.conflict(ada, first, second));
    const { balance, locked, unbonding, isSuspended } = ledger.account(ada.keyId);
    assert.deepEqual({ balance, locked, isSuspended }, { balance: SUPPLY - 500, locked: 0, isSuspended: true });
    assert.deepEqual(
      unbonding.map(({ amount }) => amount),
      [400, 100],
    );
    assert.deepEqual(ledger.supply(), { founded: SUPPLY, burned: 500 });
    sure(make.conflict(ada, second, first), 'proof-replayed');
    sure(make.instruct(ada, { kind: 'claim', name: 'ada/greeter' }), 'not-permitted');
    // Its free tokens are still its own.
    sure(make.instruct(ada, { kind: 'transfer', to: bob.keyId, amount: 1_000 }));
  });

  test('are granted once for each id, locked; who is nobody can do nothing', () => {
    const { make, ledger, sure } = bench();
    const stranger = makeQuickSigner();
    const id = someId();
    sure(make.instruct(stranger, { kind: 'claim', name: 'stranger/thing' }), 'not-a-member');
    sure(make.instruct(ada, { kind: 'grant', to: stranger.keyId, amount: 150, id }));
    sure(make.instruct(ada, { kind: 'grant', to: stranger.keyId, amount: 700, id }));
    assert.deepEqual(ledger.account(stranger.keyId).locked, 150);
    sure(make.instruct(stranger, { kind: 'claim', name: 'stranger/thing' }));
    sure(make.instruct(stranger, { kind: 'grant', to: someId(), amount: 0, id }), 'not-permitted');
    sure(make.instruct(ada, { kind: 'grant', to: someId(), amount: 0, id: someId() }));
  });
});

suite('names', () => {
  test('belong to the first who claims them, scopes with all that is under them', () => {
    const { make, ledger, sure } = bench();
    sure(make.instruct(ada, { kind: 'grant', to: bob.keyId, amount: 100, id: someId() }));
    sure(make.instruct(ada, { kind: 'claim', name: 'demo/one' }));
    sure(make.instruct(ada, { kind: 'claim', name: 'demo/one' }));
    sure(make.instruct(bob, { kind: 'claim', name: 'demo/one' }), 'not-owner');
    sure(make.instruct(bob, { kind: 'claim', name: 'demo/two' }));
    sure(make.instruct(ada, { kind: 'claim', name: 'demo' }), 'not-owner');
    sure(make.instruct(bob, { kind: 'claim', name: 'bob' }));
    sure(make.instruct(ada, { kind: 'claim', name: 'bob/one' }), 'not-owner');
    assert.equal(ledger.ownerOf('bob/anything'), bob.keyId);
    assert.equal(ledger.ownerOf('demo/three'), undefined);
    sure(make.instruct(eve, { kind: 'claim', name: 'eve/one' }), 'stake-insufficient');
  });
});

suite('the committee', () => {
  test('pays for what a validator contradicts itself about', () => {
    const { make, ledger, sure } = bench();
    const { networkId } = make;
    sure(make.instruct(ada, { kind: 'grant', to: bob.keyId, amount: 200, id: someId() }));
    const say = (of: Omit<Operation, 'identity'>, committee: Digest = networkId): Word => {
      const statement = {
        ...{ formatVersion: 3, networkId, committee, atMs: 5, proofs: subject('proofs') },
        operation: { ...of, identity: joe.keyId },
      };
      return { statement, attestation: validators[1]!.attest(VOTE_TYPE, statement) };
    };
    const evidence = (first: Word, second: Word): Entry => ({
      ...{ formatVersion: 1, networkId, kind: 'evidence' },
      conflict: { kind: 'words', committee: networkId, type: VOTE_TYPE, first, second },
    });
    const vote = say(publish(1, 'joe/a@1.0.0', 'x'));
    sure(evidence(vote, vote), 'entry-invalid');
    sure(evidence(vote, say(publish(2, 'joe/a@1.0.1', 'y'))), 'entry-invalid');
    sure(evidence(vote, say(publish(1, 'joe/a@1.0.1', 'y'), subject('another'))), 'entry-invalid');
    sure(evidence(vote, { ...say(publish(1, 'joe/b@1.0.0', 'x')), attestation: vote.attestation }), 'entry-invalid');
    sure(evidence(vote, say(publish(1, 'joe/b@1.0.0', 'x'))));
    assert.deepEqual(ledger.supply().burned, 100);
    sure(evidence(vote, say(publish(1, 'joe/c@1.0.0', 'x'))), 'proof-replayed');
    // One version, two contents, under two numbers; build metadata does not tell versions apart.
    sure(evidence(vote, say(publish(9, 'joe/a@1.0.0+2', 'y'))));
    assert.deepEqual(ledger.supply().burned, 150);
  });

  test('says together that a commitment is lost, and where the order is made: once', () => {
    const { make, ledger, sure } = bench();
    const { networkId } = make;
    const lost: SpaceLostStatement = { networkId, committee: networkId, account: ada.keyId, root: someId() };
    const head = { formatVersion: 1, networkId } as const;
    const by = (count: number) => validators.slice(0, count).map((one) => one.attest(SPACE_LOST_TYPE, lost));
    sure({ ...head, kind: 'space-lost', statement: lost, attestations: by(2) }, 'entry-invalid');
    sure({ ...head, kind: 'space-lost', statement: lost, attestations: by(3) });
    sure({ ...head, kind: 'space-lost', statement: lost, attestations: by(4) }, 'proof-replayed');
    assert.equal(ledger.account(ada.keyId).locked, 950);
    const to = { kind: 'etcd', endpoints: ['http://192.0.2.7:2379'] } as const;
    const statement: SequencerStatement = { networkId, committee: networkId, moves: 0, to };
    const attestations = validators.slice(0, 3).map((one) => one.attest(SEQUENCER_TYPE, statement));
    sure({ ...head, kind: 'sequencer', statement, attestations });
    sure({ ...head, kind: 'sequencer', statement, attestations }, 'proof-replayed');
    assert.deepEqual(ledger.engine(), { moves: 1, place: to, origin: 4, name: '1' });
  });

  test('changes when a quorum approves, and votes again when a quorum has handed over', () => {
    const at = bench();
    const { make, ledger, sure } = at;
    const first = ledger.committee();
    const fresh = makeQuickSigner();
    const next = byKey([...seats.filter(({ key }) => key !== validators[3]!.keyId), seatOf(fresh, ada)]);
    const ghost = makeQuickSigner();
    sure(make.epoch(first, [...next.slice(1), seatOf(makeQuickSigner(), ghost)], validators), 'epoch-invalid');
    sure(make.epoch(first, next, validators.slice(0, 2)), 'epoch-invalid');
    sure(make.handover(validators[0]!, first.digest), 'entry-invalid');
    sure(make.epoch(first, next, validators.slice(0, 3)));
    assert.deepEqual(ledger.present(), { epoch: 0, isVoting: false });
    sure(make.epoch(first, next, validators), 'epoch-invalid');
    // Another document for the same epoch, though a quorum approved it as well, takes nobody's place.
    const other = make.epoch(first, seats, validators.slice(1)) as Extract<Entry, { kind: 'epoch' }>;
    assert.throws(
      () => ledger.learn([other.document]),
      (error) => isCoded(error, 'epoch-invalid'),
    );
    assert.deepEqual(ledger.epochDocument(1)!.validators, next);
    sure(make.instruct(ada, { kind: 'claim', name: 'ada' }));

    const mine = make.order(ada, publish(1, 'ada/a@1.0.0', 'one'));
    const split = ['x', 'y'].map((content) => make.order(ada, publish(2, 'ada/b@1.0.0', content)));
    sure(make.handover(validators[0]!, first.digest, [mine], { isLast: false }));
    sure(make.handover(validators[0]!, first.digest, [split[0]!]), 'proof-replayed');
    sure(make.handover(validators[0]!, first.digest, [split[0]!], { part: 1 }));
    sure(make.handover(validators[0]!, first.digest, [], { part: 2 }), 'proof-replayed');
    sure(make.handover(fresh, first.digest), 'entry-invalid');
    sure(make.handover(validators[1]!, first.digest, [split[1]!]));
    assert.deepEqual(
      ledger.handedOver().toSorted(),
      [validators[0]!, validators[1]!].map(({ keyId }) => keyId).toSorted(),
    );
    sure(make.handover(validators[2]!, first.digest));
    assert.deepEqual(ledger.present(), { epoch: 1, isVoting: true });
    const second = ledger.committee();
    assert.deepEqual([second.epoch, second.validators], [1, next]);
    assert.equal(ledger.committeeOf(second.digest), second);
    assert.equal(ledger.before(second), first);
    assert.deepEqual(ledger.epochDocument(1)!.validators, next);
    assert.equal(ledger.committeeOf(subject('another')), undefined);
    assert.throws(
      () => ledger.learn([other.document]),
      (error) => isCoded(error, 'epoch-invalid'),
    );
    sure(make.handover(validators[3]!, first.digest), 'entry-invalid');
    sure(make.clock(validators[3]!, DAY_MS, second.digest), 'entry-invalid');
    sure(make.clock(fresh, DAY_MS, first.digest), 'entry-invalid');
    sure(make.clock(fresh, DAY_MS, second.digest));

    const may = (of: Omit<Operation, 'identity'>, code?: ErrorCode) => {
      const check = () => ledger.checkOperation({ ...of, identity: ada.keyId });
      if (code === undefined) check();
      else assert.throws(check, (error) => isCoded(error, code));
    };
    may(publish(1, 'ada/a@1.0.0', 'one'));
    may(publish(1, 'ada/a@1.0.0', 'two'), 'equivocation');
    may(publish(3, 'ada/a@1.0.0', 'two'), 'version-exists');
    // Whichever of the two was certified: nothing else can be.
    for (const content of ['x', 'y']) {
      may(publish(2, 'ada/b@1.0.0', content), 'equivocation');
      may(publish(3, 'ada/b@1.0.0', content), 'version-exists');
    }
    may(publish(3, 'ada/c@1.0.0', 'three'));
    may(publish(3, 'other/c@1.0.0', 'three'), 'not-owner');
  });

  test('knows what was certified before, also in another epoch', () => {
    const { make, ledger, sure } = bench();
    const { networkId } = make;
    const certified = (
      of: Omit<Operation, 'identity'>,
      committee: Digest = networkId,
      voters = validators.slice(1),
    ): Entry => make.certified(ada, [of], committee, voters);
    sure(certified(publish(5, 'ada/a@1.0.0', 'one'), networkId, validators.slice(2)), 'entry-invalid');
    sure(
      certified(publish(5, 'ada/a@1.0.0', 'one'), networkId, [...validators.slice(2), makeQuickSigner()]),
      'entry-invalid',
    );
    const may = (of: Omit<Operation, 'identity'>, code?: ErrorCode) => {
      const check = () => ledger.checkOperation({ ...of, identity: ada.keyId });
      if (code === undefined) check();
      else assert.throws(check, (error) => isCoded(error, code));
    };
    sure(make.instruct(ada, { kind: 'claim', name: 'ada' }));
    sure(certified(publish(5, 'ada/a@1.0.0', 'one')));
    sure(certified(publish(5, 'ada/a@1.0.0', 'one')));
    sure(certified(publish(6, 'ada/a@1.0.0+1', 'two')), 'equivocation');
    sure(certified(publish(6, 'ada/b@1.0.0', 'two'), subject('another')), 'entry-invalid');
    may(publish(6, 'ada/a@1.0.0', 'two'), 'version-exists');
    // Others of the publisher may still be under way.
    may(publish(4, 'ada/a@0.9.0', 'zero'));
    sure(make.epoch(ledger.committee(), seats, validators));
    const late = make.order(ada, publish(4, 'ada/a@0.9.0', 'zero'));
    for (const validator of validators.slice(1)) sure(make.handover(validator, ledger.committee().digest, [late]));
    may(publish(4, 'ada/a@0.9.0', 'zero'));
    may(publish(3, 'ada/a@0.8.0', 'less'), 'equivocation');
    may(publish(5, 'ada/c@1.0.0', 'three'), 'equivocation');
    may(publish(6, 'ada/c@1.0.0', 'three'));
    sure(make.epoch(ledger.committee(), seats, validators));
    for (const validator of validators.slice(1)) sure(make.handover(validator, ledger.committee().digest));
    may(publish(4, 'ada/a@0.9.0', 'zero'), 'equivocation');
  });

  test('hands over nothing that opens again what is closed, or bars what belongs to somebody else', () => {
    const { make, ledger, sure } = bench();
    const may = (by: Signer, of: Omit<Operation, 'identity'>, code?: ErrorCode) => {
      const check = () => ledger.checkOperation({ ...of, identity: by.keyId });
      if (code === undefined) check();
      else assert.throws(check, (error) => isCoded(error, code));
    };
    const certified = (of: Omit<Operation, 'identity'>, committee = ledger.committee().digest) =>
      make.certified(ada, [of], committee, validators.slice(1));
    const [liar, ...honest] = validators as [Signer, ...Signer[]];
    const turn = (epoch: number, lie: readonly SelfSigned[], orders: readonly SelfSigned[] = []) => {
      sure(make.epoch(ledger.committee(), seats, validators));
      sure(make.handover(liar, ledger.committee().digest, lie));
      for (const validator of honest.slice(1)) sure(make.handover(validator, ledger.committee().digest, orders));
      assert.equal(ledger.present().epoch, epoch + 1);
    };
    sure(make.instruct(ada, { kind: 'grant', to: joe.keyId, amount: 1_000, id: someId() }));
    for (const [by, name] of [
      [ada, 'ada'],
      [joe, 'joe'],
    ] as const)
      sure(make.instruct(by, { kind: 'claim', name }));

    // Ada signed two operations under number 1, of which one is certified, and two under number 2, of which one was voted for.
    sure(certified(publish(1, 'ada/one@1.0.0', 'one')));
    assert.ok(ledger.isRecorded({ ...publish(1, 'ada/one@1.0.0', 'one'), identity: ada.keyId }));
    assert.ok(!ledger.isRecorded({ ...publish(1, 'ada/other@1.0.0', 'other'), identity: ada.keyId }));
    may(ada, publish(1, 'ada/other@1.0.0', 'other'), 'equivocation');
    const [settled, stolen] = [publish(1, 'ada/other@1.0.0', 'other'), publish(7, 'joe/tool@1.0.0', 'ada says')];
    const [two, both] = [publish(2, 'ada/two@1.0.0', 'two'), publish(2, 'ada/both@1.0.0', 'both')];
    turn(
      0,
      [settled, stolen].map((what) => make.order(ada, what)),
      [make.order(ada, two)],
    );
    may(ada, settled, 'equivocation');
    may(joe, publish(7, 'joe/tool@1.0.0', 'joe says'));
    may(ada, two);
    may(ada, both, 'equivocation');
    // Nobody votes for it in this epoch: the number is over, whatever the liar says now.
    turn(1, [make.order(ada, both), make.order(ada, settled)]);
    for (const what of [two, both, settled]) may(ada, what, 'equivocation');
    turn(2, [make.order(ada, both), make.order(ada, two)]);
    for (const what of [two, both, settled]) may(ada, what, 'equivocation');
    // What was certified in the epoch before, and becomes known now, settles what was handed over meanwhile.
    const { digest: before } = ledger.committee();
    turn(3, [make.order(ada, publish(9, 'ada/late@1.0.0', 'lie'))]);
    may(ada, publish(9, 'ada/late@1.0.0', 'lie'));
    sure(certified(publish(9, 'ada/nine@1.0.0', 'nine'), before));
    may(ada, publish(9, 'ada/late@1.0.0', 'lie'), 'equivocation');
    turn(4, [make.order(ada, publish(9, 'ada/late@1.0.0', 'lie'))]);
    may(ada, publish(9, 'ada/late@1.0.0', 'lie'), 'equivocation');
  });
});

/** One step of the random test: who does what, with which numbers. */
const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({
    kind: fc.constant('transfer' as const),
    to: fc.constantFrom(...accounts.map(({ keyId }) => keyId)),
    amount: fc.integer({ min: 1, max: 6_000 }),
  }),
  fc.record({ kind: fc.constant('lock' as const), amount: fc.integer({ min: 1, max: 3_000 }) }),
  fc.record({ kind: fc.constant('unlock' as const), amount: fc.integer({ min: 1, max: 1_500 }) }),
  fc.record({
    kind: fc.constant('grant' as const),
    to: fc.constantFrom(...accounts.map(({ keyId }) => keyId)),
    amount: fc.integer({ min: 0, max: 2_000 }),
    id: fc.constantFrom('aa'.repeat(32), 'bb'.repeat(32)),
  }),
  fc.record({ kind: fc.constant('claim' as const), name: fc.constantFrom('demo', 'demo/a', 'demo/b', 'ada/a') }),
);
const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ what: fc.constant('instruct' as const), who: fc.nat(3), action }) },
  { weight: 3, arbitrary: fc.record({ what: fc.constant('clock' as const), who: fc.nat(3), day: fc.nat(60) }) },
  {
    weight: 1,
    arbitrary: fc.record({ what: fc.constant('equivocate' as const), who: fc.nat(3), sequence: fc.nat(2) }),
  },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('lose' as const), who: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('replay' as const), which: fc.nat(60) }) },
  {
    weight: 1,
    arbitrary: fc.record({ what: fc.constant('rubbish' as const), bytes: fc.uint8Array({ maxLength: 20 }) }),
  },
);

test('whatever is in the order: no token appears or vanishes, none is negative, replays and refusals change nothing, all machines agree', () => {
  const [one, another] = [fresh(), fresh()];
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 30 }), (steps) => {
      const here = bench({ store: one });
      const there = bench({ make: here.make, store: another });
      const { make, ledger } = here;
      const order: Uint8Array[] = [];
      const applied = new Set<Uint8Array>();
      for (const next of steps) {
        const bytes = made(make, next, order);
        const before = seen(ledger);
        const refused = here.add(bytes);
        order.push(bytes);
        assert.equal(ledger.index, order.length);
        if (refused !== null) assert.deepEqual(seen(ledger), before, refused.message);
        // What was applied once is refused, or says the same again and changes nothing.
        if (applied.has(bytes)) assert.deepEqual(seen(ledger), before);
        if (refused === null) applied.add(bytes);
        const { founded, burned } = ledger.supply();
        let sum = burned;
        for (const { keyId } of accounts) {
          const { balance, locked, unbonding } = ledger.account(keyId);
          assert.ok(locked >= 0 && unbonding.every(({ amount }) => amount > 0) && free(ledger, keyId) >= 0);
          sum += balance;
        }
        assert.equal(sum, founded);
        assert.equal(founded, SUPPLY);
      }
      for (const bytes of order) there.add(bytes);
      assert.equal(there.ledger.root(), ledger.root());
      assert.equal(new Facts(here.store.raw).recomputedRoot(), `sha256:${ledger.root()}`);
    }),
    { numRuns: 60 },
  );
});

const orders = new Map<string, ReturnType<EntryMaker['order']>>();
function made(
  make: EntryMaker,
  one: typeof step extends fc.Arbitrary<infer T> ? T : never,
  order: readonly Uint8Array[],
): Uint8Array {
  switch (one.what) {
    case 'instruct':
      return encodeEntry(make.instruct(accounts[one.who]!, one.action));
    case 'clock':
      return encodeEntry(make.clock(validators[one.who]!, one.day * DAY_MS));
    case 'equivocate': {
      const said = (content: string) => {
        const key = `${make.networkId} ${one.who} ${one.sequence} ${content}`;
        const known =
          orders.get(key) ?? make.order(accounts[one.who]!, publish(one.sequence + 1, 'demo/a@1.0.0', content));
        orders.set(key, known);
        return known;
      };
      return encodeEntry(make.conflict(accounts[one.who]!, said('x'), said('y')));
    }
    case 'lose': {
      const { networkId } = make;
      const statement = { networkId, committee: networkId, account: accounts[one.who]!.keyId, root: 'cd'.repeat(32) };
      const attestations = validators.slice(1).map((validator) => validator.attest(SPACE_LOST_TYPE, statement));
      return encodeEntry({ formatVersion: 1, networkId, kind: 'space-lost', statement, attestations });
    }
    case 'replay':
      return order[one.which % Math.max(1, order.length)] ?? utf8('{}');
    case 'rubbish':
      return one.bytes;
  }
}

/** All but the position in the order. */
function seen(ledger: Ledger) {
  return {
    accounts: accounts.map(({ keyId }) => ledger.account(keyId)),
    supply: ledger.supply(),
    timeMs: ledger.timeMs(),
    owners: ['demo', 'demo/a', 'demo/b', 'ada/a'].map((name) => ledger.ownerOf(name)),
  };
}

test('facts of a snapshot are found also behind more new ones than one page has', () => {
  const { store } = bench();
  const facts = new Facts(store.raw);
  const written = (prefix: string, count: number) =>
    new Map(Array.from({ length: count }, (_, at) => [`${prefix}/${`${at}`.padStart(3, '0')}`, '1']));
  store.transact((raw) => {
    raw.exec('DELETE FROM facts; DELETE FROM facts_before; DELETE FROM log_snapshot');
    facts.write(new Map([...written('a', 2), ...written('z', 3)]));
    raw.exec("INSERT INTO log_snapshot (id, base, head, document) VALUES (1, 1, x'00', '{}')");
    facts.keep();
    facts.write(new Map([...written('b', 20), ...written('c', 7)]));
  });
  const all: string[] = [];
  for (let after = '', isLast = false; !isLast; after = all.at(-1)!) {
    const page = facts.kept(after, 4);
    assert.ok(page.isLast || page.facts.length > 0, `nothing follows ${after}`);
    all.push(...page.facts.map(([key]) => key));
    ({ isLast } = page);
  }
  assert.deepEqual(all, ['a/000', 'a/001', 'z/000', 'z/001', 'z/002']);
});

test('an entry is applied whole or not at all, and never out of its turn', () => {
  const { make, ledger, store, add } = bench();
  const entry = encodeEntry(make.instruct(ada, { kind: 'transfer', to: bob.keyId, amount: 5 }));
  assert.throws(() => ledger.apply(entry, 2), /1 is next/);
  const root = ledger.root();
  assert.throws(() =>
    store.transact(() => {
      assert.equal(ledger.apply(entry, 1), null);
      assert.equal(ledger.account(bob.keyId).balance, 5);
      throw new Error('the machine stops here');
    }),
  );
  assert.equal(ledger.root(), root);
  assert.equal(ledger.index, 0);
  add(entry);
  assert.equal(ledger.account(bob.keyId).balance, 5);
  assert.throws(() => ledger.apply(entry, 1), /2 is next/);
});

test('both signatures of an instruction and of a clock count', () => {
  const [owner, validator] = [makeSigner(), makeSigner()];
  const make = new EntryMaker();
  const { ledger, sure } = bench({ make, check: signatureCheck, first: [seatOf(validator, owner)] });
  const lock = make.instruct(owner, { kind: 'unlock', amount: 1 }) as Extract<Entry, { kind: 'instruction' }>;
  const other = make.instruct(owner, { kind: 'unlock', amount: 1 }) as typeof lock;
  const [falcon, ed25519] = lock.signed.envelope.signatures as unknown as [never, never];
  const [otherFalcon, otherEd25519] = other.signed.envelope.signatures as unknown as [never, never];
  for (const signatures of [
    [falcon, otherEd25519],
    [otherFalcon, ed25519],
  ]) {
    sure({ ...lock, signed: { ...lock.signed, envelope: { ...lock.signed.envelope, signatures } } }, 'entry-invalid');
  }
  sure(make.clock(validator, 5));
  assert.equal(ledger.timeMs(), 5);
  assert.equal(ledger.isClockAwaited(validator.keyId, 10), false);
});
