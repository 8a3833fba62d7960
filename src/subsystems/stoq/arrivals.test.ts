import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, suite, test } from 'node:test';
import { hex, utf8 } from '../../base/bytes.ts';
import { type Digest, digestHex, digestOf } from '../../base/digest.ts';
import type { Verdict } from '../../capabilities/transport.ts';
import { Arrivals } from './arrivals.ts';
import { Book } from './book.ts';

const ADA = 'a'.repeat(64);
const BOB = 'b'.repeat(64);

let folder: string;
let book: Book;
let nowMs: number;
let told: string[];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'hypermesh-arrivals-'));
  book = new Book(folder);
  nowMs = 1_000_000;
  told = [];
});

afterEach(async () => {
  await book[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

function arrivals(waitingMax = 100): Arrivals {
  const never = () => assert.fail('small records are in the book');
  return new Arrivals(
    { book, clock: { nowMs: () => nowMs }, content: { put: never, stat: never }, read: never },
    {
      waitingMax,
      accepted: (id) => void told.push(`accepted ${id}`),
      retired: (id) => void told.push(`retired ${id}`),
      accuse: (from) => void told.push(`accused ${from}`),
    },
  );
}

async function arrive(at: Arrivals, text: string, from: string): Promise<Digest> {
  const id = digestOf(utf8(text));
  await at.collection().receive(id, utf8(text), from);
  return id;
}

/** The next record that waits, judged. */
async function judged(at: Arrivals, verdict: Verdict): Promise<Digest> {
  for await (const { id } of at.next(undefined)) {
    await at.judge(id, verdict);
    return id;
  }
  return assert.fail('nothing waits');
}

suite('records that arrive', () => {
  test('are handed on when they were accepted, and never before', async () => {
    using at = arrivals();
    const id = await arrive(at, 'one', ADA);
    assert.equal(await at.collection().read(id), null);
    assert.equal(at.collection().knows(id), true);
    assert.equal(await judged(at, 'accepted'), id);
    assert.deepEqual(told, [`accepted ${id}`]);
    assert.deepEqual(await at.collection().read(id), utf8('one'));
  });

  test('cost whoever brought them its place when they break the rules, and are not taken again', async () => {
    using at = arrivals();
    const broken = await arrive(at, 'broken', ADA);
    await judged(at, 'refused');
    const useless = await arrive(at, 'useless', BOB);
    await judged(at, 'unwanted');
    assert.deepEqual(told, [`accused ${ADA}`]);
    for (const id of [broken, useless]) {
      assert.equal(at.collection().knows(id), true);
      assert.equal(await at.collection().read(id), null);
    }
  });

  test('that cannot be judged yet come again after half a minute, also when nobody said so', async () => {
    using at = arrivals();
    const id = await arrive(at, 'early', ADA);
    await judged(at, 'later');
    const other = await arrive(at, 'on time', ADA);
    assert.equal(await judged(at, 'accepted'), other);
    nowMs += 30_000;
    assert.equal(await judged(at, 'accepted'), id);
  });

  test('that cannot be judged yet come again at once when others were accepted, but not over and over', async () => {
    using at = arrivals();
    const change = await arrive(at, 'about the other', ADA);
    await judged(at, 'later');
    const other = await arrive(at, 'the other', ADA);
    assert.equal(await judged(at, 'accepted'), other);
    assert.equal(await judged(at, 'later'), change);
    const third = await arrive(at, 'a third', ADA);
    assert.equal(await judged(at, 'accepted'), third);
    const stop = AbortSignal.timeout(100);
    for await (const { id } of at.next(stop)) assert.fail(`${id} comes again too soon`);
    nowMs += 1_000;
    assert.equal(await judged(at, 'accepted'), change);
  });

  test('of one node fill a quarter of the room: there is some left for others', async () => {
    using at = arrivals(8);
    for (let n = 0; n < 5; n++) await arrive(at, `flood ${n}`, ADA);
    assert.equal(book.arrivals(), 2);
    assert.equal(at.collection().hasRoom(ADA), false);
    assert.equal(at.collection().hasRoom(BOB), true);
    const id = await arrive(at, 'from somebody else', BOB);
    assert.equal(at.collection().knows(id), true);
  });

  test('that were retired stay known, and there is nothing to give', async () => {
    using at = arrivals();
    const id = await at.own(utf8('mine'));
    at.retire(id);
    assert.deepEqual(told, [`accepted ${id}`, `retired ${id}`]);
    assert.equal(await at.collection().read(id), null);
    assert.deepEqual([...at.collection().ids], [id]);
  });

  test('are listed in order, page by page, when they count as known', async () => {
    using at = arrivals();
    const known: Digest[] = [];
    for (let n = 0; n < 5; n++) known.push(await at.own(utf8(`own ${n}`)));
    at.retire(known[0]!);
    await arrive(at, 'waiting', ADA);
    for (const page of [1, 2, 5, 6]) {
      assert.equal(hex(book.recordIds(page)), known.map(digestHex).sort().join(''), `${page} at a time`);
    }
  });
});
