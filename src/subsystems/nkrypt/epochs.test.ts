import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { fromProblem, HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { EntryMaker, seatOf, subject } from '../../testing/order.ts';
import { makeQuickSigner, quickCheck, type Signer } from '../../testing/signer.ts';
import { attestationHolds, publicKeysOf } from '../../wire/attestation.ts';
import { encodeEntry, type SelfSigned } from '../../wire/entry.ts';
import type { Committee } from '../../wire/epoch.ts';
import type { Genesis } from '../../wire/genesis.ts';
import { Epochs } from './epochs.ts';
import { foundLedger, Ledger } from './ledger/ledger.ts';
import { openStore, type Store } from './store.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-epochs-'));
const stores: Store[] = [];
after(async () => {
  for (const store of stores) await store[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** One validator: true rules and a true database; the order is a list that all of them apply. */
interface Home {
  readonly signer: Signer;
  readonly ledger: Ledger;
  epochs: Epochs;
  readonly closed: number[];
  readonly voted: SelfSigned[];
  isAway: boolean;
  hangs: boolean;
  /** What happens to its next entries on the way to the order. */
  readonly onTheWay: ((entry: Uint8Array) => void)[];
}

class Network {
  readonly make = new EntryMaker();
  readonly account = makeQuickSigner();
  readonly homes: Home[] = [];
  readonly order: Uint8Array[] = [];
  readonly #first: Committee;

  constructor(size: number) {
    const signers = Array.from({ length: size }, makeQuickSigner);
    // Each answers with an account of its own, by which it is known on the channel.
    const validators = signers.map((signer) => seatOf(signer, signer)).sort((a, b) => (a.key < b.key ? -1 : 1));
    this.#first = { epoch: 0, validators, digest: this.make.networkId };
    for (const signer of signers) this.add(signer);
  }

  add(signer: Signer): Home {
    const store = openStore(folder, `${stores.length}.db`);
    stores.push(store);
    store.raw.exec('PRAGMA synchronous = OFF');
    const accounts = [this.account.keyId, ...this.#first.validators.map(({ account }) => account)];
    const funded = accounts.map((account, at) => ({ account, balance: at === 0 ? 10_000 : 0, locked: 0 }));
    store.transact((raw) => foundLedger(raw, { stake: { accounts: funded } } as unknown as Genesis, this.#first));
    const { networkId } = this.make;
    const terms = { networkId, claimLockedMin: 0, unbondingMs: 1, equivocationPercent: 50, spaceLostPercent: 5 };
    const ledger = new Ledger({ raw: store.raw, check: quickCheck }, { terms, first: this.#first });
    const home = {
      signer,
      ledger,
      closed: [] as number[],
      voted: [] as SelfSigned[],
      isAway: false,
      hangs: false,
      onTheWay: [] as Home['onTheWay'],
    } as unknown as Home;
    const lent: ConstructorParameters<typeof Epochs>[0] = {
      ...{ store, ledger },
      trust: {
        attest: async (type, statement) => signer.attest(type, statement),
        attested: async (word, type, statement, keys) =>
          attestationHolds(word, type, statement, publicKeysOf(keys), quickCheck),
      },
      submit: async (entry) => {
        home.onTheWay.shift()?.(entry);
        this.submit(entry);
      },
      votes: { close: (epoch) => void home.closed.push(epoch), votedIn: () => home.voted },
      exchange: async (validator: string, known: Json) => {
        const other = this.homes.find((one) => one.signer.keyId === validator);
        if (other === undefined || other.isAway || home.isAway) throw new HyperMeshError('peer-unreachable', 'away');
        if (other.hangs) return new Promise(() => undefined);
        return other.epochs.answer(signer.keyId, known);
      },
    };
    home.epochs = new Epochs(lent, { networkId, self: signer.keyId, patienceMs: 50 });
    for (const entry of this.order) store.transact(() => ledger.apply(entry, ledger.index + 1));
    this.homes.push(home);
    return home;
  }

  submit(entry: Uint8Array): void {
    this.order.push(entry);
    const outcomes = this.homes.map(({ ledger }, at) =>
      stores.at(at - this.homes.length)!.transact(() => ledger.apply(entry, ledger.index + 1)),
    );
    const [refusal] = outcomes;
    assert.deepEqual(
      outcomes.map((one) => one?.code),
      outcomes.map(() => refusal?.code),
    );
    if (refusal != null) throw fromProblem(refusal);
  }
}

test('a committee follows another when a quorum approved, each on its own machine, and votes when a quorum has handed over', async () => {
  const network = new Network(4);
  const [a, b, c, d] = network.homes as [Home, Home, Home, Home];
  const fresh = network.add(makeQuickSigner());
  network.submit(
    encodeEntry(network.make.instruct(network.account, { kind: 'transfer', to: fresh.signer.keyId, amount: 100 })),
  );
  const next = [...a.ledger.committee().validators, seatOf(fresh.signer, fresh.signer)];

  await assert.rejects(fresh.epochs.propose(next), (error) => isCoded(error, 'not-permitted'));
  const ghost = makeQuickSigner();
  await assert.rejects(a.epochs.propose([seatOf(ghost, ghost)]), (error) => isCoded(error, 'epoch-invalid'));
  d.isAway = true;
  const proposed = await a.epochs.propose(next);
  assert.deepEqual(proposed.approvedBy, [a.signer.keyId]);
  assert.equal(proposed.needed, 3);
  assert.deepEqual(b.epochs.proposals()[0]?.digest, proposed.digest);
  assert.deepEqual(d.epochs.proposals(), []);
  // Again, and by somebody who approved already: nothing more.
  await a.epochs.propose(next);
  await b.epochs.approve();
  await b.epochs.approve(proposed.digest);
  assert.equal(b.epochs.proposals()[0]?.approvedBy.length, 2);
  assert.deepEqual(a.ledger.present(), { epoch: 0, isVoting: true });
  // Who was away learns of it when it looks, and is the third.
  d.isAway = false;
  await d.epochs.approve();
  assert.deepEqual(a.ledger.present(), { epoch: 0, isVoting: false });
  assert.deepEqual(a.epochs.proposals().length, 1);
  await assert.rejects(c.epochs.approve(), (error) => isCoded(error, 'epoch-invalid'));

  network.submit(encodeEntry(network.make.instruct(network.account, { kind: 'claim', name: 'demo' })));
  const order = network.make.order(network.account, {
    ...{ kind: 'publish', ref: 'demo/a@1.0.0', sequence: 1 },
    subject: subject('a'),
  });
  a.voted.push(order);
  await a.epochs.handOver();
  await Promise.all([a.epochs.handOver(), a.epochs.handOver()]);
  await b.epochs.handOver();
  await fresh.epochs.handOver();
  assert.deepEqual(a.ledger.present(), { epoch: 0, isVoting: false });
  await c.epochs.handOver();
  assert.deepEqual(d.ledger.present(), { epoch: 1, isVoting: true });
  assert.deepEqual([a.closed, b.closed, fresh.closed], [[0], [0], []]);
  assert.equal(fresh.ledger.committee().validators.length, 5);
  assert.deepEqual(d.epochs.proposals(), [], 'what was for the epoch before is gone');
  await d.epochs.handOver();
  // The number that was handed over stands for that operation alone.
  const identity = network.account.keyId;
  const operation = { kind: 'default', identity, sequence: 1, ref: '', subject: subject('b') } as const;
  assert.throws(
    () => fresh.ledger.checkOperation(operation),
    (error) => isCoded(error, 'equivocation'),
  );
  // The next change needs the new committee: four of five.
  const fewer = fresh.ledger.committee().validators.filter(({ key }) => key !== d.signer.keyId);
  assert.equal((await fresh.epochs.propose(fewer)).needed, 4);
  for (const home of [a, b, c]) await home.epochs.approve();
  assert.equal(a.ledger.present().isVoting, false);
});

test('only validators speak, each for itself, and only about what follows', async () => {
  const network = new Network(4);
  const [a, b] = network.homes as [Home, Home];
  const proposal = await a.epochs.propose(a.ledger.committee().validators.slice(1));
  const known = await a.epochs.answer(b.signer.keyId, { proposals: [] });
  await assert.rejects(b.epochs.answer(makeQuickSigner().keyId, known), (error) => isCoded(error, 'not-permitted'));
  await assert.rejects(b.epochs.answer(a.signer.keyId, { proposals: 1 }), (error) => isCoded(error, 'epoch-invalid'));
  const [one] = known.proposals;
  const forged = { ...one!.approvals[0]!, validator: b.signer.keyId };
  await b.epochs.answer(a.signer.keyId, { proposals: [{ ...one!, approvals: [forged] }] });
  const other = { ...one!.proposal, epoch: 2 };
  await b.epochs.answer(a.signer.keyId, { proposals: [{ proposal: other, approvals: one!.approvals }] });
  assert.deepEqual(b.epochs.proposals(), [proposal]);
});

test('a validator that hangs keeps nobody from changing the committee', async () => {
  const network = new Network(4);
  const [a, b, c, d] = network.homes as [Home, Home, Home, Home];
  d.hangs = true;
  const { digest } = await a.epochs.propose([a, b, c].map(({ signer }) => seatOf(signer, signer)));
  for (const home of [b, c]) await home.epochs.approve(digest);
  assert.equal(a.ledger.present().isVoting, false);
});

test('a validator approves one change in an epoch, unless its operator answers for it that the other one will not come about', async () => {
  const network = new Network(4);
  const [a, b, c] = network.homes as [Home, Home, Home];
  const seats = a.ledger.committee().validators;
  const one = await a.epochs.propose(seats.slice(1));
  const other = await b.epochs.propose(seats.slice(0, 3));
  await assert.rejects(a.epochs.approve(other.digest), (error) => isCoded(error, 'epoch-invalid'));
  await assert.rejects(a.epochs.propose(seats.slice(0, 2)), (error) => isCoded(error, 'epoch-invalid'));
  // The same again is nothing new.
  assert.equal((await a.epochs.approve(one.digest)).approvedBy.length, 1);
  assert.equal((await c.epochs.approve(one.digest)).approvedBy.length, 2);
  assert.equal((await a.epochs.approve(other.digest, { instead: true })).approvedBy.length, 2);
});

for (const isLate of [false, true]) {
  const what = isLate ? 'arrives after all' : 'is lost';
  test(`what was voted for is handed over, also when a part of it ${what} and some of it is certified meanwhile`, async () => {
    const network = new Network(4);
    const { make, account } = network;
    const [a, b, c, d] = network.homes as [Home, Home, Home, Home];
    const first = a.ledger.committee();
    network.submit(encodeEntry(make.instruct(account, { kind: 'claim', name: 'demo' })));
    // More than two entries can hold.
    const operations = Array.from({ length: 260 }, (_, at) => ({
      ...({ kind: 'publish', ref: `demo/a${at}@1.0.0`, sequence: at + 1 } as const),
      subject: subject(`${at}`),
    }));
    a.voted.push(...operations.map((operation) => make.order(account, operation)));
    for (const home of [a, b, c]) await home.epochs.propose(first.validators);
    const signers = [b, c, d].map(({ signer }) => signer);
    const certify = (count: number) =>
      network.submit(encodeEntry(make.certified(account, operations.slice(0, count), first.digest, signers)));

    const held: Uint8Array[] = [];
    const cutOff = (entry: Uint8Array) => {
      held.push(entry);
      throw new HyperMeshError('timeout', 'no answer');
    };
    const arrive = () => {
      for (const entry of held.splice(0)) if (isLate) network.submit(entry);
    };
    a.onTheWay.push(() => undefined, cutOff);
    await assert.rejects(a.epochs.handOver(), (error) => isCoded(error, 'timeout'));
    certify(20);
    // Just before the first entry of the next attempt.
    a.onTheWay.push(arrive, cutOff);
    await assert.rejects(a.epochs.handOver(), (error) => isCoded(error, 'timeout'));
    certify(40);
    a.onTheWay.push(arrive);
    await a.epochs.handOver();
    assert.deepEqual(a.ledger.handedOver(), [a.signer.keyId]);
    for (const home of [b, c]) await home.epochs.handOver();
    assert.equal(a.ledger.present().epoch, 1);
    // Whatever may have a certificate that the order does not know: under its number nothing else can be voted for.
    const open = operations.filter(({ sequence }) => {
      const other = { kind: 'default', identity: account.keyId, sequence, ref: '', subject: subject('other') } as const;
      try {
        d.ledger.checkOperation(other);
        return true;
      } catch (error) {
        assert.ok(isCoded(error, 'equivocation'));
        return false;
      }
    });
    assert.deepEqual(
      open.map(({ sequence }) => sequence),
      [],
    );
  });
}
