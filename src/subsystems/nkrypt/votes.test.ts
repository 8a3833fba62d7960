import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { openSqlite } from '../../base/sqlite.ts';
import type { SelfSigned } from '../../wire/entry.ts';
import { quorumOf } from '../../wire/genesis.ts';
import { type Endorsement, type Operation, operationDigest } from '../../wire/proof.ts';
import { OwnOrders } from './orders.ts';
import { MIGRATIONS, openStore } from './store.ts';
import { VoteBook } from './votes.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'votes-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const digest = (text: string): Digest => digestOf(utf8(text));
const identity = (n: number) => String(n).repeat(64);
/** Votes do not look into orders: that they are genuine was checked before. */
const signed = (operation: Operation) =>
  ({ keys: {}, envelope: { payload: operationDigest(operation) } }) as unknown as SelfSigned;
const wantedOf = (operation: Operation, proofs: Digest, more: { nowMs?: number; epoch?: number } = {}) => ({
  ...{ epoch: more.epoch ?? 0, operation, digest: operationDigest(operation), proofs },
  ...{ signed: operation.kind === 'publish' ? signed(operation) : null, nowMs: more.nowMs ?? 1_000 },
});
const publish = (who: number, sequence: number, version: number, subject: number): Operation => ({
  ...{ kind: 'publish', subject: digest(`content ${subject}`), ref: `scope/name@${version}.0.0` },
  ...{ identity: identity(who), sequence },
});

test('whatever is asked of whom and whenever it crashes, four validators with a dishonest one never certify a conflict', async () => {
  const n = 4;
  const operation = fc
    .tuple(fc.integer({ min: 1, max: 2 }), fc.integer({ min: 1, max: 3 }), fc.nat(2), fc.nat(2))
    .map((of) => publish(...of));
  const step = fc.oneof(
    { weight: 8, arbitrary: fc.record({ at: fc.nat(n - 2), operation, proofs: fc.nat(1) }) },
    { weight: 1, arbitrary: fc.record({ at: fc.nat(n - 2), crash: fc.constant(true) }) },
  );
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const name = (i: number) => `run-${run}-${i}.db`;
      const stores = Array.from({ length: n - 1 }, (_, i) => openStore(folder, name(i)));
      const votes = new Map<string, { readonly operation: Operation; readonly by: Set<number> }>();
      for (const one of steps) {
        if ('crash' in one) {
          await stores[one.at]![Symbol.asyncDispose]();
          stores[one.at] = openStore(folder, name(one.at));
          continue;
        }
        const proofs = digest(`proofs ${one.proofs}`);
        try {
          new VoteBook(stores[one.at]!).decide(wantedOf(one.operation, proofs));
        } catch (error) {
          assert.ok(isCoded(error, 'equivocation', 'version-exists'), String(error));
          continue;
        }
        const key = operationDigest(one.operation);
        const cast = votes.get(key) ?? { operation: one.operation, by: new Set() };
        cast.by.add(one.at);
        votes.set(key, cast);
      }
      // The dishonest one votes for everything.
      const certified = [...votes.values()].filter(({ by }) => by.size + 1 >= quorumOf(n));
      for (const [i, { operation: a }] of certified.entries()) {
        for (const { operation: b } of certified.slice(i + 1)) {
          assert.ok(a.identity !== b.identity || a.sequence !== b.sequence, 'two operations under one number');
          assert.ok(a.ref !== b.ref || a.subject === b.subject, 'two contents of one version');
        }
      }
      run += 1;
      for (const store of stores) await store[Symbol.asyncDispose]();
    }),
    { numRuns: 25 },
  );
});

test('a vote is on the disk before it is answered, the same proofs get the same vote, and other proofs a new one', async () => {
  const [operation, other] = [publish(1, 1, 1, 1), publish(1, 1, 2, 1)];
  {
    await using store = openStore(folder, 'kept.db');
    assert.deepEqual(new VoteBook(store).decide(wantedOf(operation, digest('a'))), { atMs: 1_000 });
  }
  await using store = openStore(folder, 'kept.db');
  const book = new VoteBook(store);
  assert.deepEqual(book.decide(wantedOf(operation, digest('a'), { nowMs: 9_000 })), { atMs: 1_000 });
  assert.deepEqual(book.decide(wantedOf(operation, digest('b'), { nowMs: 9_000 })), { atMs: 9_000 });
  assert.throws(() => book.decide(wantedOf(other, digest('a'))), /stands for another operation/);
  const [caught, ...others] = book.witness.open();
  assert.equal(caught?.about, `order/${operation.identity}/${operation.sequence}`);
  assert.deepEqual(
    new Set([caught.conflict.first, caught.conflict.second]),
    new Set([signed(operation).envelope, signed(other).envelope]),
  );
  book.witness.answered(caught.about);
  assert.deepEqual([others, book.witness.open(), book.witness.all()], [[], [], [caught]]);
  const [refused, accepted] = book.decideAll([
    wantedOf(publish(2, 7, 1, 2), digest('c')),
    wantedOf(publish(2, 8, 3, 2), digest('d')),
  ]);
  assert.ok(refused instanceof HyperMeshError && refused.code === 'version-exists');
  assert.deepEqual(accepted, { atMs: 1_000 });
  assert.equal(book.votedIn(0).length, 2);
});

test('an epoch that was closed gets no vote any more, also after a crash', async () => {
  {
    await using store = openStore(folder, 'closed.db');
    const book = new VoteBook(store);
    book.decide(wantedOf(publish(1, 1, 1, 1), digest('a')));
    book.close(0);
  }
  await using store = openStore(folder, 'closed.db');
  const book = new VoteBook(store);
  assert.throws(() => book.decide(wantedOf(publish(1, 1, 1, 1), digest('a'))), /no more in epoch 0/);
  assert.deepEqual(book.decide(wantedOf(publish(1, 1, 1, 1), digest('a'), { epoch: 1 })), { atMs: 1_000 });
});

test('numbers of installs are forgotten, and then never voted for again', async () => {
  await using store = openStore(folder, 'passing.db');
  const book = new VoteBook(store);
  const install = (sequence: number): Operation => ({
    ...{ kind: 'install', subject: digest('x'), ref: '', identity: identity(1), sequence },
  });
  book.decide(wantedOf(install(5), digest('a'), { nowMs: 100_000 }));
  book.decide(wantedOf(install(9), digest('b'), { nowMs: 10_000_000 }));
  assert.throws(() => book.decide(wantedOf(install(5), digest('c'), { nowMs: 10_000_000 })), /passed long ago/);
  book.decide(wantedOf(install(6), digest('c'), { nowMs: 10_000_000 }));
});

test('votes and certificates of a home of before are kept when their tables are laid out anew', async () => {
  const operation = publish(1, 7, 1, 1);
  const certificate = {
    ...{ formatVersion: 2, networkId: digest('network'), epoch: 0, operation },
    proofs: digest('a'),
  };
  {
    await using store = openSqlite(
      path.join(folder, 'before.db'),
      MIGRATIONS.filter(({ name }) => name < '010'),
    );
    const book = new VoteBook(store);
    book.decide(wantedOf(operation, digest('a')));
    book.record({ ...certificate, votes: [] } as unknown as Endorsement);
  }
  await using store = openStore(folder, 'before.db');
  const book = new VoteBook(store);
  assert.throws(() => book.decide(wantedOf(publish(1, 7, 2, 2), digest('b'))), /another operation/);
  assert.deepEqual(book.decided(operation, digest('a')), { atMs: 1_000 });
  assert.deepEqual(book.votedIn(0), [signed(operation)]);
  assert.equal(book.newest(identity(1), 'publish')?.operation.sequence, 7);
  assert.equal(book.unsettled().length, 1);
});

test('a number is taken for one operation before anything is signed, and never again, whatever crashes', async () => {
  const lent = {
    async sign() {
      throw new Error('the process ends here');
    },
    async publicKeys() {
      return { falcon: '', ed25519: '' };
    },
  };
  const options = { clock: { nowMs: () => 50 }, networkId: digest('network'), identity: identity(1) };
  const about = (text: string) => ({ kind: 'publish', subject: digest(text), ref: `${text}@1.0.0` }) as const;
  let first: Operation;
  {
    await using store = openStore(folder, 'orders.db');
    const orders = new OwnOrders({ trust: lent, store }, options);
    first = orders.take(about('a'));
    await assert.rejects(orders.signed(first), /ends here/);
  }
  await using store = openStore(folder, 'orders.db');
  let count = 0;
  const envelope = () => {
    count += 1;
    return { count } as never;
  };
  const orders = new OwnOrders({ trust: { ...lent, sign: async () => envelope() }, store }, options);
  const second = orders.take(about('b'));
  assert.ok(second.sequence > first.sequence);
  assert.deepEqual(await orders.signed(first), await orders.signed(first));
  assert.equal(count, 1);
  await assert.rejects(orders.signed({ ...first, subject: digest('b') }), (error) => isCoded(error, 'equivocation'));
  assert.equal(await orders.signed(orders.take({ kind: 'install', subject: digest('c'), ref: '' })), null);
});
