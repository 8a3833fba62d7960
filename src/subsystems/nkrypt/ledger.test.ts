import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../../base/errors.ts';
import { Ledger } from './ledger.ts';
import { openStore } from './store.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-ledger-'));
const store = openStore(folder);
after(async () => {
  await store[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});
// Durability is the store's affair and tested with it.
store.raw.exec('PRAGMA synchronous = OFF');

const ACCOUNTS = ['aa', 'bb', 'cc'].map((pair) => pair.repeat(32)) as [string, string, string];

test('whatever is done, in whatever order: no token appears or vanishes, none is spent twice, refusals change nothing', () => {
  const step = fc.tuple(
    fc.constantFrom('lock', 'unlock', 'transfer' as const),
    fc.constantFrom(...ACCOUNTS),
    fc.constantFrom(...ACCOUNTS),
    fc.integer({ min: -5, max: 1_200 }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      store.raw.exec('DELETE FROM accounts');
      store.raw.prepare('INSERT INTO accounts (account, balance, locked) VALUES (?, 1000, 100)').run(ACCOUNTS[0]);
      const ledger = new Ledger(store);
      for (const [what, who, to, amount] of steps) {
        const before = ACCOUNTS.map((account) => ledger.account(account));
        try {
          const after = what === 'transfer' ? ledger.transfer(who, to, amount) : ledger[what as 'lock'](who, amount);
          assert.deepEqual(after, ledger.account(who));
          assert.ok(amount > 0);
        } catch (error) {
          assert.ok(isCoded(error, amount > 0 ? 'stake-insufficient' : 'usage'), String(error));
          assert.deepEqual(
            ACCOUNTS.map((account) => ledger.account(account)),
            before,
          );
        }
        assert.equal(ledger.supply(), 1_000);
        for (const account of ACCOUNTS) {
          const { balance, locked } = ledger.account(account);
          assert.ok(locked >= 0 && locked <= balance);
        }
      }
    }),
    { numRuns: 60 },
  );
});

test('amounts and accounts that make no sense are refused', () => {
  const ledger = new Ledger(store);
  for (const amount of [0, -1, 0.5, Number.NaN, 2 ** 53, Number.POSITIVE_INFINITY]) {
    assert.throws(
      () => ledger.lock(ACCOUNTS[0], amount),
      (error) => isCoded(error, 'usage'),
    );
  }
  for (const to of ['', 'me', 'AA'.repeat(32)]) {
    assert.throws(
      () => ledger.transfer(ACCOUNTS[0], to, 1),
      (error) => isCoded(error, 'usage'),
    );
  }
});
