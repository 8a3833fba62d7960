import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../../base/bytes.ts';
import { isCoded } from '../../base/errors.ts';
import { openSqlite } from '../../base/sqlite.ts';
import { LEAF_BYTES_MAX, rootDigest, verifyConsistency, verifyInclusion } from '../../wire/log.ts';
import type { SignedTreeHead } from '../../wire/signature.ts';
import { MIGRATIONS } from './tables.ts';
import { type LogLent, TransparencyLog } from './transparency-log.ts';

/** A log in memory whose heads are not signed: signatures are tested with the whole subsystem. */
function openLog(lent: Partial<LogLent> = {}, waitingMax = 1_000) {
  const store = openSqlite(':memory:', MIGRATIONS);
  const envelope = { payloadType: 'none/none', payload: '', signatures: [] };
  let heads = 0;
  const log = new TransparencyLog(
    {
      raw: store.raw,
      transact: (write) => store.transact(write),
      async signHead(size, root): Promise<SignedTreeHead> {
        heads += 1;
        return { origin: 'test', size, root: rootDigest(root), timestampMs: heads, envelope, chain: [] };
      },
      ...lent,
    },
    { waitingMax },
  );
  return { log, store, signed: () => heads };
}

test('every inclusion and consistency proof of the sizes 1 to 64 verifies', async () => {
  const { log, store } = openLog();
  const heads: SignedTreeHead[] = [];
  for (let size = 1; size <= 64; size++) {
    const leaf = utf8(`leaf ${size - 1}`);
    const appended = await log.append(leaf);
    assert.equal(appended.index, size - 1);
    heads.push(appended.head);
    for (let index = 0; index < size; index++) {
      const again = await log.append(utf8(`leaf ${index}`));
      assert.equal(again.index, index);
      assert.equal(again.head.size, size);
      verifyInclusion(utf8(`leaf ${index}`), again);
    }
    for (const older of heads) verifyConsistency(older, appended.head, await log.consistency(older.size, size));
  }
  const rewritten = { ...heads[9]!, root: heads[10]!.root };
  const proof = await log.consistency(10, 64);
  assert.throws(
    () => verifyConsistency(rewritten, heads[63]!, proof),
    (error) => isCoded(error, 'log-invalid'),
  );
  await store[Symbol.asyncDispose]();
});

test('leaves that arrive together share one head, and equal leaves one place', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 1, maxLength: 60 }), async (numbers) => {
      const { log, store, signed } = openLog();
      const leaves = numbers.map((number) => utf8(`leaf ${number}`));
      const answers = await Promise.all(leaves.map((leaf) => log.append(leaf)));
      for (const [at, answer] of answers.entries()) {
        verifyInclusion(leaves[at]!, answer);
        assert.equal(answer.index, answers[numbers.indexOf(numbers[at]!)]!.index);
      }
      assert.equal((await log.head()).size, new Set(numbers).size);
      assert.ok(signed() <= 2);
      await store[Symbol.asyncDispose]();
    }),
    { numRuns: 30 },
  );
});

test('an append whose head could not be signed leaves nothing behind', async () => {
  let fails = true;
  const { log, store } = openLog({
    async signHead(size, root) {
      if (fails) throw new Error('no key');
      const envelope = { payloadType: 'none/none', payload: '', signatures: [] };
      return { origin: 'test', size, root: rootDigest(root), timestampMs: 0, envelope, chain: [] };
    },
  });
  await assert.rejects(log.append(utf8('a')), /no key/);
  fails = false;
  assert.equal((await log.append(utf8('b'))).index, 0);
  assert.equal((await log.append(utf8('a'))).index, 1);
  await store[Symbol.asyncDispose]();
});

test('the log refuses what is too large, too much, or not there', async () => {
  const { log, store } = openLog({}, 2);
  await assert.rejects(log.append(new Uint8Array(LEAF_BYTES_MAX + 1)), (error) => isCoded(error, 'limit-exceeded'));
  const many = await Promise.allSettled(['a', 'b', 'c', 'd', 'e'].map((text) => log.append(utf8(text))));
  const refused = many.flatMap((answer) => (answer.status === 'rejected' ? [answer.reason as unknown] : []));
  assert.ok(refused.length > 0 && refused.every((error) => isCoded(error, 'quota-exceeded')));
  await assert.rejects(log.consistency(1, 99), (error) => isCoded(error, 'usage'));
  await assert.rejects(log.consistency(-1, 1), (error) => isCoded(error, 'usage'));
  await store[Symbol.asyncDispose]();
});
