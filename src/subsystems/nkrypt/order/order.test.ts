import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { base64, utf8 } from '../../../base/bytes.ts';
import { type Digest, sha256 } from '../../../base/digest.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../../../base/errors.ts';
import { canonicalJson, type Json } from '../../../base/json.ts';
import { EtcdCluster, etcdMissing } from '../../../testing/etcd-cluster.ts';
import { EntryMaker, seatOf } from '../../../testing/order.ts';
import { type Crash, crashing } from '../../../testing/ordered-validators.ts';
import { makeQuickSigner, quickCheck, type Signer } from '../../../testing/signer.ts';
import { until } from '../../../testing/until.ts';
import { attestationHolds, publicKeysOf } from '../../../wire/attestation.ts';
import {
  type Entry,
  encodeEntry,
  SEQUENCER_TYPE,
  type SequencerPlace,
  type SequencerStatement,
} from '../../../wire/entry.ts';
import type { Committee } from '../../../wire/epoch.ts';
import type { Genesis } from '../../../wire/genesis.ts';
import { HEAD_TYPE, type OrderMethod, PREPARE_TYPE } from '../../../wire/order.ts';
import { foundLedger, Ledger, type Refusal } from '../ledger/ledger.ts';
import { openStore, type Store } from '../store.ts';
import { Witness } from '../witness.ts';
import { Order } from './order.ts';
import { rest } from './rest.ts';

const folder = mkdtempSync(join(tmpdir(), 'hypermesh-orders-'));
after(() => rmSync(folder, { recursive: true }));

const signers = Array.from({ length: 5 }, makeQuickSigner);
const accounts = Array.from({ length: 5 }, makeQuickSigner);
const seats = signers.map((signer, at) => seatOf(signer, accounts[at]!));
let networks = 0;

/** Four validators (and a fifth home) with databases of their own, who talk as over the channel: in text. */
class Network implements AsyncDisposable {
  readonly make = new EntryMaker();
  readonly committee: Committee;
  readonly orders: (Order | undefined)[] = [];
  readonly ledgers: Ledger[] = [];
  readonly #stores: Store[] = [];
  readonly #name = String(networks++);
  snapshotEntries: number | undefined;
  patienceMs: number | undefined;
  /** Who asks that one waits. */
  hangs: number | undefined;
  /** Nobody hears what others commit to. */
  hidesCommits = false;
  /** What is heard of an answer. */
  heard: (from: number, method: OrderMethod, body: Json, answer: Json, by: number) => Json = (
    _from,
    _how,
    _body,
    said,
  ) => said;

  /** `first`: how many sit at first; the engine begins at the first of them. */
  constructor(first = 4) {
    this.committee = { epoch: 0, validators: seats.slice(0, first), digest: this.make.networkId };
  }

  /** `crashes`: the transaction with that number fails, and all after it. */
  open(of: number, crashes?: Crash): Order {
    const store = openStore(folder, `${this.#name}-${of}.db`);
    store.raw.exec('PRAGMA synchronous = OFF');
    this.#stores[of] = store;
    const stake = {
      ageMsMax: 1_000,
      accounts: accounts.map(({ keyId }) => ({ account: keyId, balance: 1_000, locked: 500 })),
    };
    const { networkId } = this.make;
    const terms = { claimLockedMin: 100, unbondingMs: 1, equivocationPercent: 50, spaceLostPercent: 5 };
    const ledger = new Ledger(
      { raw: store.raw, check: quickCheck },
      { terms: { networkId, ...terms }, first: this.committee },
    );
    if (ledger.isEmpty) store.transact((raw) => foundLedger(raw, { stake } as unknown as Genesis, this.committee));
    this.ledgers[of] = ledger;
    const order = new Order(
      {
        ...{ store: crashes === undefined ? store : crashing(store, crashes), state: ledger },
        trust: {
          attest: async (type, statement) => signers[of]!.attest(type, statement),
          attested: async (word, type, statement, keys) =>
            attestationHolds(word, type, statement, publicKeysOf(keys), quickCheck),
        },
        caught: new Witness(store).caughtHeads,
        ask: async (validator, method, body, { signal, timeoutMs }) => {
          const to = seats.findIndex(({ key }) => key === validator);
          if (to === this.hangs) {
            await rest(timeoutMs, signal ?? new AbortController().signal);
            throw new HyperMeshError('timeout', 'Nothing was said.');
          }
          const peer = this.orders[to];
          if (peer === undefined) throw new HyperMeshError('peer-unreachable', 'Nobody is there.');
          const carried = (text: Json) => {
            const said = JSON.parse(canonicalJson(text)) as Record<string, Json>;
            return this.hidesCommits && method === 'order/votes' ? { ...said, commits: [] } : said;
          };
          const answer = await peer.answer(method, accounts[of]!.keyId, carried(body), { signal });
          return this.heard(to, method, body, carried(answer), of);
        },
      },
      { networkId, self: signers[of]!.keyId, snapshotEntries: this.snapshotEntries, patienceMs: this.patienceMs },
    );
    this.orders[of] = order;
    order.start();
    return order;
  }

  async close(of: number): Promise<void> {
    const order = this.orders[of];
    this.orders[of] = undefined;
    await order?.[Symbol.asyncDispose]();
    await this.#stores[of]?.[Symbol.asyncDispose]();
  }

  count(of: number, table: 'log_entries' | 'log_lock' | 'sequenced'): number {
    const { rows } = this.#stores[of]!.raw.prepare(`SELECT count(*) AS rows FROM ${table}`).get() as { rows: number };
    return rows;
  }

  /** Puts an entry into the order of that name in a home, as whoever has a seat could. */
  plant(of: number, log: string, position: number, entry: Uint8Array): void {
    this.#stores[of]!.raw.prepare('INSERT INTO sequenced (log, position, digest, entry) VALUES (?, ?, ?, ?)').run(
      `${this.make.networkId.slice(7)}-${log}`,
      position,
      sha256(entry),
      entry,
    );
  }

  witness(of: number): Witness {
    return new Witness(this.#stores[of]!);
  }

  claim(by: Signer, name: string): Uint8Array {
    return encodeEntry(this.make.instruct(by, { kind: 'claim', name }));
  }

  move(to: SequencerPlace, moves: number, committee: Digest = this.make.networkId): Uint8Array {
    const { networkId } = this.make;
    const statement: SequencerStatement = { networkId, committee, moves, to };
    const attestations = signers.slice(0, 3).map((one) => one.attest(SEQUENCER_TYPE, statement));
    const entry: Entry = { formatVersion: 1, networkId, kind: 'sequencer', statement, attestations };
    return encodeEntry(entry);
  }

  async agreed(among: readonly number[]): Promise<void> {
    const states = () => new Set(among.map((of) => `${this.ledgers[of]!.index} ${this.ledgers[of]!.root()}`));
    for (const start = performance.now(); states().size > 1; await sleep(5)) {
      assert.ok(performance.now() - start < 300_000, [...states()].join('\n'));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const at of this.orders.keys()) await this.close(at);
  }
}

test('four validators and the engine of one: the first claim wins on all of them, whoever asks whom', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  const [ada, bob] = [accounts[0]!, accounts[1]!];
  const claims = [network.claim(ada, 'tools'), network.claim(bob, 'tools'), network.claim(bob, 'bobs')];
  const outcomes = await Promise.all(claims.map((claim, at) => network.orders[at]!.submit(claim)));
  await network.agreed([0, 1, 2, 3]);
  const owner = network.ledgers[3]!.ownerOf('tools');
  assert.equal(outcomes[0]!.outcome === null, owner === ada.keyId);
  assert.equal((outcomes[1]!.outcome as Refusal | null)?.code, owner === ada.keyId ? 'not-owner' : undefined);
  assert.deepEqual(await network.orders[3]!.submit(claims[2]!), outcomes[2]);
  for (const at of [0, 1, 2, 3]) assert.equal(network.orders[at]!.status().trouble, null);
});

test('without the home of the engine nothing is ordered, and nothing is lost; its database has it all', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  await network.orders[1]!.submit(network.claim(accounts[1]!, 'before'));
  await network.close(0);
  const late = network.claim(accounts[1]!, 'late');
  const giving = AbortSignal.timeout(400);
  await assert.rejects(network.orders[1]!.submit(late, { signal: giving }), (error) =>
    isCoded(error, 'cancelled', 'sequencer-unreachable'),
  );
  network.open(0);
  const { outcome } = await network.orders[1]!.submit(late);
  assert.equal(outcome, null);
  await network.agreed([0, 1, 2, 3]);
  assert.equal(network.ledgers[0]!.ownerOf('before'), accounts[1]!.keyId);
});

test('who may ask for what', async () => {
  await using network = new Network();
  const order = network.open(0);
  const stranger = makeQuickSigner().keyId;
  const log = `${network.make.networkId.slice(7)}-0`;
  const own = base64(network.claim(accounts[4]!, 'fifth'));
  for (const [method, publisher, body, code] of [
    ['order/votes', stranger, { applied: 0, prepares: [], commits: [], recovery: null }, 'not-permitted'],
    ['sequence/read', stranger, { log, after: 0 }, 'not-permitted'],
    ['sequence/append', stranger, { log, entry: own }, 'not-permitted'],
    ['sequence/read', accounts[1]!.keyId, { log: `${'0'.repeat(64)}-0`, after: 0 }, 'sequencer-unreachable'],
    ['sequence/read', accounts[1]!.keyId, { log: '../etc', after: 0 }, 'order-invalid'],
  ] as [OrderMethod, string, Json, ErrorCode][]) {
    await assert.rejects(order.answer(method, publisher, body), (error) => isCoded(error, code), method);
  }
  assert.deepEqual(await order.answer('order/part', stranger, { after: 0 }), {
    ...{ certificate: null, entries: [], floor: 0 },
  });
});

test('the committee changes by epoch and handovers; who is new had followed, and is needed afterwards', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3, 4]) network.open(at);
  const { make, committee } = network;
  await network.orders[0]!.submit(network.claim(accounts[0]!, 'before'));
  const next = [0, 1, 2, 4].map((at) => seats[at]!);
  const change = make.epoch(committee, next, [signers[0]!, signers[1]!, signers[2]!]);
  assert.equal((await network.orders[0]!.submit(encodeEntry(change))).outcome, null);
  for (const at of [0, 1, 2])
    await network.orders[at]!.submit(encodeEntry(make.handover(signers[at]!, committee.digest)));
  await network.agreed([0, 1, 2]);
  assert.deepEqual(network.ledgers[1]!.present(), { epoch: 1, isVoting: true });
  await network.close(3);
  await network.close(2);
  // Three of four: the fifth home votes.
  assert.equal((await network.orders[0]!.submit(network.claim(accounts[0]!, 'after'))).outcome, null);
  await network.agreed([0, 1, 4]);
});

/** A second home of an engine, and who approved it by the word of one validator. */
const elsewhere: SequencerPlace = { kind: 'embedded', validator: signers[2]!.keyId };
const approvedBy = (network: Network, of: number) => network.orders[of]!.status().approved[0]?.by.length ?? 0;
const moved = (network: Network, among: readonly number[]) =>
  until('they moved', () => among.every((of) => network.orders[of]!.status().moves === 1));

test('approvals of a move outlive everybody who knows them; who was away is told', async () => {
  await using network = new Network();
  const restart = async (...homes: readonly number[]) => {
    for (const at of homes) await network.close(at);
    for (const at of homes) network.open(at);
  };
  for (const at of [0, 1, 2, 3]) network.open(at);
  // Only two of four hear of it; then all of them start anew.
  for (const at of [2, 3]) await network.close(at);
  await network.orders[1]!.move(elsewhere);
  for (const at of [2, 3]) network.open(at);
  await restart(0, 1);
  await until('all were told', () => [0, 1, 2, 3].every((of) => approvedBy(network, of) === 1));
  // What was approved last counts.
  await network.orders[3]!.move({ kind: 'embedded', validator: signers[3]!.keyId });
  await network.orders[3]!.move(elsewhere);
  await restart(0, 1, 2, 3);
  assert.deepEqual(
    [0, 1, 2, 3].map((of) => approvedBy(network, of)),
    [2, 2, 2, 2],
  );
  await network.orders[2]!.move(elsewhere);
  await moved(network, [0, 1, 2, 3]);
  await network.agreed([0, 1, 2, 3]);
});

test('a move that a quorum approved while the engine was away happens when that is back, although everybody was restarted', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  await network.close(0);
  for (const at of [1, 2, 3]) {
    await network.orders[at]!.move(elsewhere, { signal: AbortSignal.timeout(at === 3 ? 200 : 20_000) }).catch(
      (error: unknown) => assert.ok(isCoded(error, 'cancelled', 'sequencer-unreachable')),
    );
  }
  for (const at of [1, 2, 3]) await network.close(at);
  for (const at of [0, 1, 2, 3]) network.open(at);
  await moved(network, [0, 1, 2, 3]);
});

test('an approval that was answered for is there after a crash at any point, and one that was not is told again', async () => {
  for (const crashes of [1, 2, 3].flatMap((at) => [false, true].map((late) => ({ at, late })))) {
    await using network = new Network();
    let answered = 0;
    network.heard = (from, method, _body, answer) => {
      if (from === 3 && method === 'order/approve') answered += 1;
      return answer;
    };
    for (const at of [0, 1, 2]) network.open(at);
    network.open(3, crashes);
    await network.orders[1]!.move(elsewhere);
    await network.orders[2]!.move(elsewhere);
    const kept = answered;
    await network.close(3);
    network.open(3);
    assert.ok(approvedBy(network, 3) >= kept, `${crashes.at} ${crashes.late}`);
    await network.orders[3]!.move(elsewhere);
    await moved(network, [0, 1, 2, 3]);
  }
});

test('a network moves from its own engine to etcd and back, while others go on asking', {
  skip: etcdMissing(),
}, async () => {
  await using cluster = await EtcdCluster.start(3);
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  const places: readonly SequencerPlace[] = [
    { kind: 'etcd', endpoints: cluster.endpoints },
    { kind: 'embedded', validator: signers[2]!.keyId },
    { kind: 'etcd', endpoints: cluster.endpoints },
  ];
  let stop = false;
  let claimed = 0;
  const asking = [0, 1, 2, 3].map(async (at) => {
    for (let count = 0; !stop; count += 1) {
      const { outcome } = await network.orders[at]!.submit(network.claim(accounts[at]!, `name-${at}-${count}`));
      assert.equal(outcome, null);
      claimed += 1;
    }
  });
  for (const [moves, place] of places.entries()) {
    await sleep(150);
    // Two of four approve, and nothing happens; one of them two things, of which the last counts; with the third it does.
    for (const at of [1, 2]) {
      await network.orders[at]!.move({ kind: 'embedded', validator: signers[3]!.keyId });
      const { moves: now, approved } = await network.orders[at]!.move(place);
      assert.equal(now, moves);
      assert.deepEqual(approved.at(-1)?.to, place);
    }
    const status = await network.orders[3]!.move(place);
    assert.deepEqual([status.moves, status.engine, status.approved], [moves + 1, place, []]);
    // An old approval is good for nothing.
    assert.notEqual((await network.orders[1]!.submit(network.move(places[0]!, moves))).outcome, null);
    // One of three machines may die.
    if (moves === 0) await cluster.kill(0);
  }
  await sleep(150);
  stop = true;
  await Promise.all(asking);
  await network.agreed([0, 1, 2, 3]);
  for (const at of [0, 1, 2, 3]) {
    assert.equal(network.orders[at]!.status().moves, 3);
    assert.equal(network.orders[at]!.status().trouble, null);
  }
  const owned = [0, 1, 2, 3].flatMap((at) =>
    Array.from(
      { length: claimed },
      (_, count) => network.ledgers[3]!.ownerOf(`name-${at}-${count}`) === accounts[at]!.keyId,
    ),
  );
  assert.equal(owned.filter(Boolean).length, claimed);
});

test('two votes for different heads of one index in one view are kept, once however often they are seen, and cost the validator that signed them its stake', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2]) network.open(at);
  const { networkId } = network.make;
  const nothing = { applied: 0, prepares: [], commits: [], recovery: null };
  const say = (index: number, text: string, view = 0) => {
    const place = { networkId, committee: networkId, view, index, head: text.repeat(64) };
    const shown = { formatVersion: 1, ...place };
    const committed = { formatVersion: 3, ...place, base: 0, stateRoot: 'f'.repeat(64) };
    const prepares = [{ statement: shown, attestation: signers[3]!.attest(PREPARE_TYPE, shown) }];
    const commits = [{ statement: committed, attestation: signers[3]!.attest(HEAD_TYPE, committed) }];
    return network.orders[0]!.answer('order/votes', accounts[3]!.keyId, { ...nothing, prepares, commits } as never);
  };
  for (let count = 0; count < 3; count += 1) for (const text of ['a', 'b']) await say(9, text);
  const accusations = network.witness(0).open();
  const about = ['prepare', 'commit'].map((vote) => `${signers[3]!.keyId}/head/${networkId}/${vote}/0/9`);
  assert.deepEqual(new Set(accusations.map((one) => one.about)), new Set(about));
  for (const [at, { conflict, ...one }] of accusations.entries()) {
    const evidence = encodeEntry({ formatVersion: 1, networkId, kind: 'evidence', conflict });
    assert.equal((await network.orders[0]!.submit(evidence)).outcome, null);
    assert.equal(network.ledgers[0]!.account(accounts[3]!.keyId).locked, [250, 125][at]);
    assert.ok(network.ledgers[0]!.isAnswered(one.about));
  }
  // Who was shown something else in a later view says so, and contradicts nothing.
  for (const view of [1, 2]) await say(9, 'c', view);
  assert.equal(network.witness(0).all().length, 2);
  // One who signs without end is not remembered without end.
  for (let index = 10; index < 40; index += 1) for (const text of ['a', 'b']) await say(index, text, 2);
  assert.equal(network.witness(0).all().length, 8);
});

test('entries of long ago are dropped, by the engine too; a validator of a later committee begins with a snapshot, and is needed afterwards', async () => {
  await using network = new Network();
  network.snapshotEntries = 8;
  for (const at of [0, 1, 2, 3]) network.open(at);
  const { make, committee } = network;
  const [ada] = accounts as [Signer];
  for (let at = 0; at < 12; at += 1) await network.orders[at % 4]!.submit(network.claim(ada, `early-${at}`));
  const next = [0, 1, 2, 4].map((at) => seats[at]!);
  const change = make.epoch(committee, next, [signers[0]!, signers[1]!, signers[2]!]);
  await network.orders[0]!.submit(encodeEntry(change));
  for (const at of [0, 1, 2])
    await network.orders[at]!.submit(encodeEntry(make.handover(signers[at]!, committee.digest)));
  for (let at = 0; at < 24; at += 1) await network.orders[at % 3]!.submit(network.claim(ada, `later-${at}`));
  const { floor, applied } = network.orders[0]!.status();
  assert.ok(floor >= 16 && floor < applied);
  assert.equal(network.count(0, 'log_entries'), applied - floor);
  for (const start = performance.now(); network.count(0, 'sequenced') > applied - floor; await sleep(5))
    assert.ok(performance.now() - start < 300_000);

  network.open(4);
  await network.agreed([0, 1, 2, 4]);
  const fresh = network.ledgers[4]!;
  assert.deepEqual([fresh.ownerOf('early-0'), fresh.ownerOf('later-23')], [ada.keyId, ada.keyId]);
  assert.deepEqual(fresh.epochDocuments(), network.ledgers[0]!.epochDocuments());
  assert.ok(network.orders[4]!.status().floor >= floor);
  // What was applied before the snapshot is refused when it comes again.
  assert.notEqual((await network.orders[4]!.submit(network.claim(ada, 'fresh'))).outcome, undefined);
  await network.close(2);
  assert.equal((await network.orders[0]!.submit(network.claim(ada, 'without-two'))).outcome, null);
  await network.agreed([0, 1, 4]);
  await network.close(4);
  network.open(4);
  for (let at = 0; at < 20; at += 1) await network.orders[4]!.submit(network.claim(ada, `last-${at}`));
  await network.agreed([0, 1, 4]);
  assert.ok(network.orders[4]!.status().floor > floor);
  for (const at of [0, 1, 4]) assert.equal(network.orders[at]!.status().trouble, null);
});

test('documents that are known already lead to no later epoch: who repeats them is left for another one', async () => {
  await using network = new Network();
  network.snapshotEntries = 8;
  const asked: number[] = [];
  network.heard = (from, method, body, answer) => {
    if (from !== 1 || method !== 'order/snapshot') return answer;
    asked.push((body as { epoch: number }).epoch);
    const { snapshot } = answer as { snapshot: { certificate: { statement: object } } };
    const statement = { ...snapshot.certificate.statement, committee: `sha256:${'99'.repeat(32)}` };
    return {
      snapshot: { ...snapshot, certificate: { ...snapshot.certificate, statement } },
      documents: network.ledgers[1]!.epochDocuments() as unknown as Json[],
    };
  };
  for (const at of [0, 1, 2]) network.open(at);
  const { make, committee } = network;
  const next = [0, 1, 2, 4].map((at) => seats[at]!);
  const change = make.epoch(committee, next, [signers[0]!, signers[1]!, signers[2]!]);
  await network.orders[0]!.submit(encodeEntry(change));
  for (const at of [0, 1, 2])
    await network.orders[at]!.submit(encodeEntry(make.handover(signers[at]!, committee.digest)));
  for (let at = 0; at < 20; at += 1) await network.orders[0]!.submit(network.claim(accounts[0]!, `name-${at}`));
  await network.agreed([0, 1, 2]);
  // Only the liar is there at first.
  for (const at of [0, 2]) await network.close(at);
  network.open(4);
  for (const start = performance.now(); asked.length < 2; await sleep(5))
    assert.ok(performance.now() - start < 300_000);
  for (const at of [0, 2]) network.open(at);
  await network.agreed([0, 4]);
  assert.equal(network.ledgers[4]!.present().epoch, 1);
  // The one document that there is was asked for, and what follows it.
  assert.deepEqual([...new Set(asked)], [0, 1]);
});

test('with the home of the engine gone for good a quorum goes on with another one, after everything that was certified', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  const [ada, bob] = accounts as [Signer, Signer];
  for (let at = 0; at < 6; at += 1) await network.orders[0]!.submit(network.claim(ada, `before-${at}`));
  const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
  await assert.rejects(
    network.orders[1]!.move(to, { recover: true }),
    (error) => isCoded(error, 'usage') && /answers/.test(error.message),
  );
  await network.close(0);
  const waiting = network.claim(bob, 'waited');
  const late = network.orders[3]!.submit(waiting);
  for (const [at, count] of [
    [1, 1],
    [2, 2],
  ] as const) {
    const { approved, moves } = await network.orders[at]!.move(to, { recover: true });
    assert.deepEqual([moves, approved[0]?.by.length, approved[0]?.after], [0, count, 6]);
  }
  const { engine, moves, trouble } = await network.orders[3]!.move(to, { recover: true });
  assert.deepEqual([engine, moves, trouble], [to, 1, null]);
  assert.equal((await late).outcome, null);
  await network.agreed([1, 2, 3]);
  for (let at = 0; at < 6; at += 1) assert.equal(network.ledgers[2]!.ownerOf(`before-${at}`), ada.keyId);
  assert.equal(network.ledgers[2]!.ownerOf('waited'), bob.keyId);
  assert.deepEqual(network.ledgers[2]!.engine(), { moves: 1, place: to, origin: 7, name: '1' });
  // Once more is nothing; restarts find the way; and so does who comes back, with what only its engine has.
  assert.equal((await network.orders[2]!.move(to, { recover: true })).moves, 1);
  for (const at of [1, 2]) {
    await network.close(at);
    network.open(at);
  }
  assert.equal((await network.orders[3]!.submit(network.claim(bob, 'after'))).outcome, null);
  network.open(0);
  await network.agreed([0, 1, 2, 3]);
  assert.equal((await network.orders[0]!.submit(network.claim(ada, 'back'))).outcome, null);
  await network.agreed([0, 1, 2, 3]);
  // And on as planned.
  const home: SequencerPlace = { kind: 'embedded', validator: signers[0]!.keyId };
  for (const at of [1, 2, 3]) await network.orders[at]!.move(home);
  assert.equal((await network.orders[2]!.submit(network.claim(ada, 'planned'))).outcome, null);
  await network.agreed([0, 1, 2, 3]);
  assert.deepEqual([network.ledgers[0]!.engine().moves, network.ledgers[0]!.engine().place], [2, home]);
});

test('the home of the engine hangs, and with it whoever sat before: a new validator that had not caught up does so from the other new ones', async () => {
  await using network = new Network(1);
  network.patienceMs = 500;
  for (const at of [0, 1, 2]) network.open(at);
  const { make, committee } = network;
  await network.orders[0]!.submit(network.claim(accounts[0]!, 'before'));
  const change = make.epoch(committee, seats.slice(0, 4), [signers[0]!]) as Entry & { kind: 'epoch' };
  await network.orders[0]!.submit(encodeEntry(change));
  await network.orders[0]!.submit(encodeEntry(make.handover(signers[0]!, committee.digest)));
  await until('two of the three others know', () => [1, 2].every((of) => network.ledgers[of]!.present().epoch === 1));
  network.hangs = 0;
  network.open(3);
  network.ledgers[3]!.learn([change.document]);
  const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
  for (const at of [1, 2]) await network.orders[at]!.move(to, { recover: true });
  await until('it has caught up', () => network.ledgers[3]!.present().epoch === 1);
  await network.orders[3]!.move(to, { recover: true });
  await moved(network, [1, 2, 3]);
  assert.equal((await network.orders[2]!.submit(network.claim(accounts[1]!, 'after'))).outcome, null);
  await network.agreed([1, 2, 3]);
});

test('who approved a recovery after a shorter order than another one does so again by himself when he has the longer one', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  const [ada] = accounts as [Signer];
  await network.orders[0]!.submit(network.claim(ada, 'all'));
  await network.agreed([0, 1, 2, 3]);
  await network.close(1);
  await network.orders[0]!.submit(network.claim(ada, 'three'));
  await network.agreed([0, 2, 3]);
  for (const at of [0, 2, 3]) await network.close(at);
  const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
  network.open(1);
  assert.equal((await network.orders[1]!.move(to, { recover: true })).approved[0]?.after, 1);
  for (const at of [2, 3]) network.open(at);
  for (const at of [2, 3])
    await network.orders[at]!.move(to, { recover: true }).catch((error: unknown) => assert.ok(isCoded(error)));
  await moved(network, [1, 2, 3]);
  await until('it is in the order', () => [1, 2, 3].every((of) => network.ledgers[of]!.engine().origin === 3));
  assert.equal(network.ledgers[1]!.ownerOf('three'), ada.keyId);
});

test('an engine is lost in the middle of an epoch change: what was put into the new one before the entry that makes it so does not count, and the next committee goes on', async () => {
  await using network = new Network();
  network.patienceMs = 500;
  const { make, committee } = network;
  for (const at of [0, 1, 2, 3, 4]) network.open(at);
  const [ada, bob] = accounts as [Signer, Signer];
  await network.orders[0]!.submit(network.claim(ada, 'before'));
  const next = [0, 1, 2, 4].map((at) => seats[at]!);
  await network.orders[0]!.submit(encodeEntry(make.epoch(committee, next, signers.slice(0, 3))));
  const handover = (of: number) => encodeEntry(make.handover(signers[of]!, committee.digest));
  for (const at of [0, 1]) await network.orders[at]!.submit(handover(at));
  await network.agreed([0, 1, 2, 3]);
  await network.close(0);
  const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
  // With these the epoch opens: the committee that approved the recovery is not in office any more when its entry comes.
  network.plant(1, '1-4', 1, handover(3));
  const late = [2, 3].map((at) => network.orders[at]!.submit(handover(at)));
  assert.equal(network.ledgers[1]!.index, 4);
  for (const at of [1, 2, 3]) await network.orders[at]!.move(to, { recover: true });
  await Promise.all(late);
  await until('the next epoch is open', () => [1, 2, 4].every((of) => network.ledgers[of]!.present().epoch === 1));
  assert.equal((await network.orders[4]!.submit(network.claim(bob, 'after'))).outcome, null);
  await network.agreed([1, 2, 4]);
  assert.deepEqual(network.ledgers[4]!.engine(), { moves: 1, place: to, origin: 5, name: '1' });
});

test('what the approvers of a recovery are bound to opens the next epoch: they approve it again in the new committee, with whoever else sits there', async () => {
  await using network = new Network();
  network.patienceMs = 500;
  const { make, committee } = network;
  for (const at of [0, 1, 2, 3, 4]) network.open(at);
  const next = [0, 1, 2, 4].map((at) => seats[at]!);
  await network.orders[0]!.submit(encodeEntry(make.epoch(committee, next, signers.slice(0, 3))));
  const handover = (of: number) => encodeEntry(make.handover(signers[of]!, committee.digest));
  for (const at of [0, 1]) await network.orders[at]!.submit(handover(at));
  await network.agreed([0, 1, 2, 3, 4]);
  // The last handover is prepared by a quorum, and certified by none, before the engine is gone.
  await network.close(1);
  network.hidesCommits = true;
  const last = network.orders[2]!.submit(handover(2));
  await until('it is prepared', () => [2, 3].every((of) => network.count(of, 'log_lock') === 1));
  await network.close(0);
  network.hidesCommits = false;
  network.open(1);
  const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
  for (const at of [2, 1, 3]) await network.orders[at]!.move(to, { recover: true });
  await until('the next epoch is open', () => [1, 2, 4].every((of) => network.ledgers[of]!.present().epoch === 1));
  assert.equal(network.orders[4]!.status().moves, 0);
  assert.equal((await last).outcome, null);
  for (const at of [1, 2]) await network.orders[at]!.pursue();
  assert.equal(network.orders[1]!.status().approved[0]?.by.length, 2);
  await network.orders[4]!.move(to, { recover: true });
  await moved(network, [1, 2, 4]);
  assert.equal((await network.orders[4]!.submit(network.claim(accounts[4]!, 'after'))).outcome, null);
  await network.agreed([1, 2, 4]);
});

test('a validator that crashes anywhere in a recovery, also the one that has the engine from then on, ends it with the same command', async () => {
  const points = [1, 2, 3, 4, 5, 6, 7].map((at) => ({ who: 1, at, late: at % 2 === 0 }));
  for (const { who, ...crashes } of [...points, { who: 2, at: 1, late: true }, { who: 2, at: 4, late: false }]) {
    await using network = new Network();
    network.patienceMs = 200;
    for (const at of [0, 1, 2, 3]) network.open(at);
    await network.orders[0]!.submit(network.claim(accounts[0]!, 'before'));
    await network.agreed([0, 1, 2, 3]);
    for (const at of [0, who]) await network.close(at);
    network.open(who, crashes);
    const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
    const recover = (at: number, signal?: AbortSignal) =>
      network.orders[at]!.move(to, { recover: true, signal }).catch((error: unknown) => assert.ok(isCoded(error)));
    for (const at of [3 - who, who, 3]) await recover(at, AbortSignal.timeout(500));
    await network.close(who);
    network.open(who);
    for (const at of [3, 3 - who, who]) await recover(at);
    await moved(network, [1, 2, 3]);
    assert.equal((await network.orders[who]!.submit(network.claim(accounts[1]!, 'after'))).outcome, null);
    await network.agreed([1, 2, 3]);
  }
});

test('with the whole cluster of etcd gone a quorum goes on in the home of one of them', {
  skip: etcdMissing(),
}, async () => {
  await using network = new Network();
  for (const at of [0, 1, 2, 3]) network.open(at);
  const [ada] = accounts as [Signer];
  {
    await using cluster = await EtcdCluster.start(3);
    const to: SequencerPlace = { kind: 'etcd', endpoints: cluster.endpoints };
    for (const at of [0, 1, 2]) await network.orders[at]!.move(to);
    for (let at = 0; at < 4; at += 1) await network.orders[at]!.submit(network.claim(ada, `etcd-${at}`));
  }
  await network.agreed([0, 1, 2, 3]);
  const home: SequencerPlace = { kind: 'embedded', validator: signers[3]!.keyId };
  // One of the four is away; who was not asked learns it from the others.
  await network.close(2);
  for (const at of [0, 1, 3]) await network.orders[at]!.move(home, { recover: true });
  assert.equal((await network.orders[1]!.submit(network.claim(ada, 'home'))).outcome, null);
  network.open(2);
  await network.agreed([0, 1, 2, 3]);
  assert.deepEqual([network.ledgers[2]!.engine().moves, network.ledgers[2]!.ownerOf('etcd-3')], [2, ada.keyId]);
  assert.equal((await network.orders[2]!.submit(network.claim(ada, 'all'))).outcome, null);
});

test('the home of the engine shows one validator another entry than two others, approves whatever confuses them, and is left by the three', async () => {
  await using network = new Network();
  network.patienceMs = 500;
  for (const at of [0, 1, 2, 3]) network.open(at);
  const [ada, bob] = accounts as [Signer, Signer];
  await network.orders[0]!.submit(network.claim(ada, 'before'));
  await network.agreed([0, 1, 2, 3]);
  const [x, y] = [network.claim(ada, 'of-ada'), network.claim(bob, 'of-bob')];
  network.heard = (from, method, _body, answer, by) =>
    from === 0 && method === 'sequence/read' ? { entries: (by === 1 ? [x, y] : [y, x]).map(base64) } : answer;
  // Who has the engine votes for nothing.
  const { networkId, digest: committee } = { networkId: network.make.networkId, ...network.committee };
  network.orders[0]!.answer = async (method, publisher, body, options) =>
    method === 'order/votes'
      ? { applied: 1, prepares: [], commits: [], recovery: null }
      : Order.prototype.answer.call(network.orders[0]!, method, publisher, body, options);
  const late = [network.orders[1]!.submit(x), network.orders[2]!.submit(y)];
  await until('all prepared something', () => [1, 2, 3].every((of) => network.count(of, 'log_entries') === 3));
  await network.close(0);
  const to: SequencerPlace = { kind: 'embedded', validator: signers[2]!.keyId };
  const [{ head } = { head: '' }] = [network.orders[1]!.status()];
  for (const [at, view] of [1, 2, 3].map((of) => [of, 7 * of] as const)) {
    const statement: SequencerStatement = { networkId, committee, moves: 0, to, after: { view, index: 1, head } };
    const attestation = signers[0]!.attest(SEQUENCER_TYPE, statement);
    await network.orders[at]!.answer('order/approve', accounts[0]!.keyId, { statement, attestation } as never);
  }
  const moves = [1, 2, 3].map((at) => network.orders[at]!.move(to, { recover: true }).catch(() => undefined));
  // As homes do from time to time.
  const timer = setInterval(() => {
    for (const at of [1, 2, 3]) void network.orders[at]!.pursue().catch(() => undefined);
  }, 1_000);
  await moved(network, [1, 2, 3]);
  await until('it is in the order', () => [1, 2, 3].every((of) => network.ledgers[of]!.engine().moves === 1));
  clearInterval(timer);
  await Promise.all(moves);
  for (const { outcome } of await Promise.all(late)) assert.equal(outcome, null);
  await network.agreed([1, 2, 3]);
  assert.equal(network.ledgers[3]!.ownerOf('of-ada'), ada.keyId);
  assert.equal(network.ledgers[3]!.ownerOf('of-bob'), bob.keyId);
  assert.deepEqual(network.orders[3]!.status().split, []);
});

test('an engine that keeps back just the entry which moves away from it is left all the same', async () => {
  await using network = new Network();
  const isMove = (entry: string) => Buffer.from(entry, 'base64').includes('"kind":"sequencer"');
  network.heard = (from, method, _body, answer) => {
    if (from !== 0 || (method !== 'sequence/read' && method !== 'order/tail')) return answer;
    const { entries } = answer as { entries: string[] };
    const at = entries.findIndex(isMove);
    return { entries: at === -1 ? entries : entries.slice(0, at) };
  };
  for (const at of [0, 1, 2, 3]) network.open(at);
  const [ada] = accounts as [Signer];
  await network.orders[1]!.submit(network.claim(ada, 'before'));
  await network.agreed([0, 1, 2, 3]);
  const to: SequencerPlace = { kind: 'embedded', validator: signers[1]!.keyId };
  for (const at of [1, 2]) await network.orders[at]!.move(to);
  await assert.rejects(network.orders[3]!.move(to, { signal: AbortSignal.timeout(500) }), (error) =>
    isCoded(error, 'cancelled'),
  );
  const goOn = [1, 2, 3].map((at) => network.orders[at]!.move(to, { recover: true }));
  assert.deepEqual((await Promise.all(goOn)).at(-1)!.engine, to);
  assert.equal((await network.orders[2]!.submit(network.claim(ada, 'after'))).outcome, null);
  await network.agreed([1, 2, 3]);
  assert.deepEqual([network.ledgers[3]!.engine().moves, network.ledgers[3]!.ownerOf('before')], [1, ada.keyId]);
});

test('a validator that floods the engine in another home has so much in it and no more, and is told when; the others go on meanwhile', async () => {
  await using network = new Network();
  for (const at of [0, 1, 2]) network.open(at);
  const log = `${network.make.networkId.slice(7)}-0`;
  const append = (by: number, entry: Uint8Array) =>
    network.orders[0]!.answer('sequence/append', accounts[by]!.keyId, { log, entry: base64(entry) });
  const flood = await Promise.allSettled(
    Array.from({ length: 600 }, (_, at) => append(3, utf8(`not even an entry ${at}`))),
  );
  const refused = flood.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []));
  assert.equal(refused.length, 600 - 512);
  for (const error of refused) {
    assert.ok(isCoded(error, 'quota-exceeded') && (error.details?.['retryInMs'] as number) <= 10_000, String(error));
  }
  const outcomes = await Promise.all(
    [1, 2].map((at) => network.orders[at]!.submit(network.claim(accounts[at]!, `honest-${at}`))),
  );
  assert.deepEqual(
    outcomes.map(({ outcome }) => outcome),
    [null, null],
  );
  // Bytes count as well, of whoever brings them.
  const large = Array.from({ length: 17 }, (_, at) => utf8(`${at} `.padEnd(512 * 2 ** 10, 'x')));
  const taken = await Promise.allSettled(large.map((entry) => append(0, entry)));
  assert.deepEqual(
    taken.map(({ status }) => status === 'fulfilled'),
    large.map((_, at) => at < 16),
  );
});
