import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import type { Digest } from '../../src/base/digest.ts';
import { isCoded } from '../../src/base/errors.ts';
import type { AccountFact } from '../../src/subsystems/nkrypt/ledger/accounts.ts';
import type { HandedFact, VersionFact } from '../../src/subsystems/nkrypt/ledger/committees.ts';
import { foundLedger, Ledger } from '../../src/subsystems/nkrypt/ledger/ledger.ts';
import { openStore } from '../../src/subsystems/nkrypt/store.ts';
import { EntryMaker, seatOf, subject } from '../../src/testing/order.ts';
import { makeQuickSigner } from '../../src/testing/signer.ts';
import { type Entry, encodeEntry } from '../../src/wire/entry.ts';
import { byKey, type Committee, epochDigest } from '../../src/wire/epoch.ts';
import { type Genesis, quorumOf } from '../../src/wire/genesis.ts';
import { type Operation, operationDigest } from '../../src/wire/proof.ts';
import {
  A,
  applied,
  B,
  BOTH,
  type Clash,
  founded,
  isRecorded,
  isVotable,
  nameOf,
  numberOf,
  OPERATIONS,
  type Ordered,
  type OrderedEntry,
  type OrderedRules,
  versionOf,
} from './ordered.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'model-ordered-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** Three epochs, each with another member; validator 5 never has a seat in the first. */
const SEATS = [
  [0, 1, 2, 3],
  [1, 2, 3, 4],
  [2, 3, 4, 0],
];
const EPOCHS = 3;

for (const clash of ['number', 'version'] as const) {
  test(`what the model takes for the order is what the ledger makes of it, whatever is in it: one ${clash}, two operations`, async (t) => {
    await using real = new RealLedger(clash);
    const quorum = quorumOf(4);
    const seats = SEATS.map((some) => some.reduce((sum, one) => sum | (1 << one), 0));
    const rules: OrderedRules = { clash, quorum, seats };
    const seen = new Set<string>();
    let entries = 0;
    (function visit(order: Ordered): void {
      seen.add(JSON.stringify(order));
      for (const entry of entriesIn(order)) {
        entries += 1;
        const next = applied(rules, order, entry);
        real.within(() => {
          real.apply(entry, order.epoch);
          assert.deepEqual(real.says(), expected(rules, next), JSON.stringify({ order, entry }));
          if (!seen.has(JSON.stringify(next))) visit(next);
        });
      }
    })(founded());
    t.diagnostic(`${seen.size} states of the order, ${entries} entries`);
  });
}

/** Everything that could come next; of validators that have not handed over the first one, because which one it is does not matter. */
function entriesIn(order: Ordered): readonly OrderedEntry[] {
  const { epoch, isEnding, handedOver } = order;
  const all: OrderedEntry[] = OPERATIONS.map((operation) => ({ kind: 'certified', operation }));
  if (!isEnding) return epoch + 1 < EPOCHS ? [...all, { kind: 'end' }] : all;
  const next = SEATS[epoch]!.find((one) => (handedOver & (1 << one)) === 0)!;
  const seatless = [0, 1, 2, 3, 4].find((one) => !SEATS[epoch]!.includes(one))!;
  for (const by of [next, seatless])
    for (const named of [0, A, B, BOTH]) all.push({ kind: 'handover', by: 1 << by, named });
  return all;
}

/** The same, as {@link RealLedger.says}. */
function expected(rules: OrderedRules, order: Ordered) {
  const { epoch, isEnding, handedOver, numbers, closed, reached, versions } = order;
  return {
    ...{ epoch, isEnding, handedOver, closed, reached },
    handed: numbers.map(({ handed, handedIn }) => (handed === 0 ? null : { operation: handed, epoch: handedIn })),
    settled: numbers.map(({ settled }) => settled),
    versions: versions.map((one) => (one.subject === 0 ? null : one)),
    votable: OPERATIONS.filter((one) => isVotable(rules, order, one)),
    recorded: OPERATIONS.filter((one) => isRecorded(rules, order, one)),
  };
}

/** The ledger of the code, with its database; undone entry by entry. */
class RealLedger implements AsyncDisposable {
  readonly #operations: readonly Omit<Operation, 'identity'>[];
  readonly #make = new EntryMaker();
  readonly #ada = makeQuickSigner();
  readonly #validators = Array.from({ length: 5 }, makeQuickSigner);
  readonly #store: ReturnType<typeof openStore>;
  readonly #ledger: Ledger;
  readonly #committees: Committee[] = [];
  readonly #ends: Uint8Array[] = [];
  readonly #encoded = new Map<string, Uint8Array>();
  #depth = 0;

  constructor(clash: Clash) {
    this.#operations = OPERATIONS.map((one) => ({
      ...({ kind: 'publish', ref: `demo/${'ab'[versionOf(clash, one)]}@1.0.0` } as const),
      ...{ sequence: numberOf(clash, one), subject: subject(nameOf(one)) },
    }));
    const { networkId } = this.#make;
    const seatsOf = (some: readonly number[]) => byKey(some.map((one) => seatOf(this.#validators[one]!, this.#ada)));
    const first: Committee = { epoch: 0, validators: seatsOf(SEATS[0]!), digest: networkId };
    this.#committees.push(first);
    for (const [epoch, some] of SEATS.slice(1).entries()) {
      const before = this.#committees[epoch]!;
      const approving = SEATS[epoch]!.map((one) => this.#validators[one]!);
      const entry = this.#make.epoch(before, seatsOf(some), approving) as Extract<Entry, { kind: 'epoch' }>;
      this.#ends.push(encodeEntry(entry));
      this.#committees.push({
        epoch: epoch + 1,
        validators: entry.document.validators,
        digest: epochDigest(entry.document),
      });
    }
    this.#store = openStore(folder, `${clash}.db`);
    this.#store.raw.exec('PRAGMA synchronous = OFF');
    const accounts = [{ account: this.#ada.keyId, balance: 10_000, locked: 0 }];
    this.#store.transact((raw) => foundLedger(raw, { stake: { accounts } } as unknown as Genesis, first));
    const terms = { networkId, claimLockedMin: 0, unbondingMs: 1, equivocationPercent: 50, spaceLostPercent: 5 };
    // Who signed what is not what this is about.
    const check = { ed25519: () => true, falcon: () => true };
    this.#ledger = new Ledger({ raw: this.#store.raw, check }, { terms, first });
    const claim = encodeEntry(this.#make.instruct(this.#ada, { kind: 'claim', name: 'demo' }));
    assert.equal(
      this.#store.transact(() => this.#ledger.apply(claim, 1)),
      null,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }

  /** What is applied meanwhile is undone afterwards. */
  within(work: () => void): void {
    const name = `at${this.#depth++}`;
    this.#store.raw.exec(`SAVEPOINT ${name}`);
    work();
    this.#store.raw.exec(`ROLLBACK TO ${name}; RELEASE ${name}`);
    this.#depth -= 1;
  }

  apply(entry: OrderedEntry, epoch: number): void {
    const key = JSON.stringify([entry, epoch]);
    const bytes = this.#encoded.get(key) ?? this.#encode(entry, epoch);
    this.#encoded.set(key, bytes);
    this.#ledger.apply(bytes, this.#ledger.index + 1);
  }

  /** All that is stored about the two operations, and what is answered about them. */
  says(): ReturnType<typeof expected> {
    const ledger = this.#ledger;
    const { epoch, isVoting } = ledger.present();
    const handedOver = ledger.handedOver().map((key) => 1 << this.#validators.findIndex(({ keyId }) => keyId === key));
    const identity = this.#ada.keyId;
    const { closed, reached, epoch: since } = this.#fact<AccountFact>(`account/${identity}`)!.sequence;
    const numbers = [1, 2].map((number) => `${identity}/${padded(number)}`);
    return {
      ...{ epoch, isEnding: !isVoting, handedOver: handedOver.reduce((sum, one) => sum | one, 0), reached },
      closed: since < epoch ? Math.max(closed, reached) : closed,
      handed: numbers.map((number) => {
        const fact = this.#fact<HandedFact>(`handed/${number}`);
        return fact && { operation: this.#bit(fact.operation), epoch: fact.epoch };
      }),
      settled: numbers.map((number) => {
        const operation = this.#fact<Digest>(`settled/${padded(epoch)}/${number}`);
        return operation === null ? 0 : this.#bit(operation);
      }),
      versions: ['demo/a@1.0.0', 'demo/b@1.0.0'].map((ref) => {
        const fact = this.#fact<VersionFact>(`version/${ref}`);
        const contents = this.#operations.map(({ subject: content }) => content);
        return (
          fact && {
            subject: 1 + contents.indexOf(fact.subject as Digest) || BOTH,
            isCertified: fact.isCertified,
          }
        );
      }),
      votable: OPERATIONS.filter((one) => this.#isVotable(one)),
      recorded: OPERATIONS.filter((one) => ledger.isRecorded(this.#operation(one))),
    };
  }

  #isVotable(operation: number): boolean {
    try {
      this.#ledger.checkOperation(this.#operation(operation));
      return true;
    } catch (error) {
      if (!isCoded(error, 'equivocation', 'version-exists')) throw error;
      return false;
    }
  }

  #operation(operation: number): Operation {
    return { ...this.#operations[operation - 1]!, identity: this.#ada.keyId };
  }

  /** Null stands for both: for neither. */
  #bit(digest: Digest | null): number {
    return OPERATIONS.find((one) => operationDigest(this.#operation(one)) === digest) ?? BOTH;
  }

  #encode(entry: OrderedEntry, epoch: number): Uint8Array {
    switch (entry.kind) {
      case 'end':
        return this.#ends[epoch]!;
      case 'certified': {
        const voters = SEATS[0]!.slice(1).map((one) => this.#validators[one]!);
        const { digest } = this.#committees[0]!;
        return encodeEntry(this.#make.certified(this.#ada, [this.#operations[entry.operation - 1]!], digest, voters));
      }
      case 'handover': {
        const by = this.#validators[Math.log2(entry.by)]!;
        const orders = OPERATIONS.filter((one) => (entry.named & one) !== 0).map((one) =>
          this.#make.order(this.#ada, this.#operations[one - 1]!),
        );
        return encodeEntry(this.#make.handover(by, this.#committees[epoch]!.digest, orders));
      }
    }
  }

  #fact<T>(key: string): T | null {
    const row = this.#store.raw.prepare('SELECT value FROM facts WHERE key = ?').get(key) as
      | { value: string }
      | undefined;
    return row === undefined ? null : (JSON.parse(row.value) as T);
  }
}

/** As numbers are written in keys. */
function padded(value: number): string {
  return String(value).padStart(16, '0');
}
