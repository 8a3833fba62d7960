import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { someId } from '../../testing/order.ts';
import { requirementsOf } from '../../testing/requirements.ts';
import { until } from '../../testing/until.ts';
import { encodeOrder, ORDER_TYPE, type SelfSigned } from '../../wire/entry.ts';
import type { Operation, OperationKind, Requirements } from '../../wire/proof.ts';
import { openTrust, signatureCheck } from '../trustchain/index.ts';
import { enter, type LentTrust, type Membership } from './entering.ts';
import type { NKryptOptions } from './nkrypt.ts';
import { foundOwn, replaceGenesis } from './own-genesis.ts';
import { openStore, type Store } from './store.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-entering-'));
const closing = new AsyncDisposableStack();
after(async () => {
  await closing.disposeAsync();
  rmSync(folder, { recursive: true, force: true });
});

const clock = { nowMs: () => Date.now() };
/** No proofs: what a vote waits for here is the order alone. */
const free = (kind: OperationKind): Requirements => ({ kind, space: null, stake: null, work: null, time: null });
const TERMS = {
  requirements: requirementsOf(free),
  space: { bytes: 65_536, iterations: 4 },
  stakeInitial: 1_000,
};

/** A home with true keys, store and order; the others are asked through `ask`. */
class Home {
  readonly trust: LentTrust;
  readonly store: Store;
  readonly #options: NKryptOptions;
  readonly #ask: Parameters<typeof enter>[5];
  member!: Membership;

  constructor(trust: LentTrust, directory: string, ask: Parameters<typeof enter>[5]) {
    this.trust = trust;
    this.#options = { ...TERMS, directory, clock };
    this.#ask = ask;
    this.store = openStore(directory);
  }

  static async make(name: string, ask: Parameters<typeof enter>[5]): Promise<Home> {
    const [keys, directory] = [`${name}-trust`, name].map((one) => path.join(folder, one)) as [string, string];
    for (const one of [keys, directory]) mkdirSync(one, { mode: 0o700 });
    return new Home(closing.use(await openTrust({ directory: keys, clock })), directory, ask);
  }

  async found(): Promise<void> {
    await foundOwn(this.store, this.trust, this.#options);
  }

  /** Anew, with what its store says now. */
  async enter(): Promise<Membership> {
    await this.leave();
    const unused = () => Promise.reject(new HyperMeshError('peer-unreachable', 'not asked here'));
    const audited = { ask: unused, lost: async () => undefined };
    const lent = { trust: this.trust, check: signatureCheck };
    // Who turns, and when, is the test's to say.
    this.member = await enter(lent, this.store, this.#options, unused, audited, this.#ask, () => undefined);
    return this.member;
  }

  async leave(): Promise<void> {
    const before = this.member as Membership | undefined;
    await before?.order?.[Symbol.asyncDispose]();
    await before?.space[Symbol.asyncDispose]();
    await before?.audits?.[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.leave();
    await this.store[Symbol.asyncDispose]();
  }
}

test('who gets a seat votes when its own order has opened the epoch, not when it is announced, and then for nothing but what was handed over', async () => {
  let isConnected = false;
  const old: Home = await Home.make('old', () => Promise.reject(new HyperMeshError('peer-unreachable', 'away')));
  const fresh: Home = await Home.make('fresh', async (_validator, method, body, options) => {
    if (!isConnected) throw new HyperMeshError('peer-unreachable', 'away');
    return old.member.order!.order.answer(method, fresh.member.identity, body, options);
  });
  closing.use(fresh);
  closing.use(old);
  await old.found();
  const { genesis, account, epochs, identity, networkId } = await old.enter();
  fresh.store.transact((raw) => replaceGenesis(raw, genesis));
  await fresh.enter();
  assert.equal(fresh.member.seat, null);

  const operation = (content: string): Operation => ({
    ...({ kind: 'default', identity, sequence: 7, ref: '' } as const),
    subject: digestOf(content),
  });
  const order = async (of: Operation): Promise<SelfSigned> => ({
    keys: await old.trust.publicKeys('publisher'),
    envelope: await old.trust.sign(
      'publisher',
      ORDER_TYPE,
      encodeOrder({ formatVersion: 1, networkId, operation: of }),
    ),
  });
  const asked = async (of: Operation) => ({ of, order: await order(of) });
  const [one, another] = [await asked(operation('one')), await asked(operation('another'))];
  const proofs = digestOf('proofs');
  const votes = ({ member }: Home, what = one) => member.seat!.committee.decide(what.of, proofs, what.order);

  // The old committee, of one, votes for it; then another one follows, and what it voted for is handed over.
  await votes(old);
  await account.instruct({ kind: 'grant', to: fresh.member.identity, amount: 0, id: someId() });
  await epochs!.propose([await fresh.trust.validatorKeys()]);
  await epochs!.handOver();
  assert.deepEqual(old.member.ledger.present(), { epoch: 1, isVoting: true });
  await assert.rejects(votes(old, another), (error) => isCoded(error, 'epoch-over', 'equivocation'));

  // Announced: the document shows by itself that the committee was approved, and the home has a seat. Its order is where it was.
  fresh.store.transact(() => fresh.member.ledger.announce(old.member.ledger.epochDocuments()));
  await fresh.enter();
  assert.equal(fresh.member.committee.epoch, 1);
  assert.equal(fresh.member.ledger.present().epoch, 0);
  for (const what of [one, another]) {
    await assert.rejects(votes(fresh, what), (error) => isCoded(error, 'epoch-over'));
    await assert.rejects(fresh.member.seat!.committee.share(what.of, what.order, null), (error) =>
      isCoded(error, 'epoch-over'),
    );
  }
  // A restart changes nothing.
  await fresh.enter();
  await assert.rejects(votes(fresh, another), (error) => isCoded(error, 'epoch-over'));

  isConnected = true;
  await until('the order opens the epoch', async () => {
    await fresh.member.order!.order.until(() => fresh.member.ledger.present().epoch === 1, 1_000);
    return fresh.member.ledger.present().epoch === 1;
  });
  await assert.rejects(votes(fresh, another), (error) => isCoded(error, 'equivocation'));
  const { atMs } = await votes(fresh);
  const vote = await fresh.member.seat!.committee.sign(one.of, proofs, atMs, true);
  assert.equal(vote.attestation.validator, (await fresh.trust.validatorKeys()).key);
});
