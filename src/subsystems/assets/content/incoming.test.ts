import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, open, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { concat } from '../../../base/bytes.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import { once } from '../../../base/streams.ts';
import type { IncomingBlob } from '../../../capabilities/content.ts';
import { cut, type MadeContent, noise } from '../../../testing/made-content.ts';
import { hasBit } from '../../../wire/content.ts';
import { type ContentLimits, type ContentStore, openContentStore } from './store.ts';

const NOW = Date.now();
async function directoryOf(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'hm-incoming-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function opened(t: TestContext, limits: Partial<ContentLimits> = {}) {
  const directory = await directoryOf(t);
  const store = await openContentStore({ directory, clock: { nowMs: () => NOW }, limits });
  t.after(() => store[Symbol.asyncDispose]());
  return { directory, store };
}

const shardOf = ({ bytes, list }: MadeContent, index: number) => {
  const { offset, length } = list.shards[index]!;
  return bytes.slice(offset, offset + length);
};

async function pushAll({ bytes, list }: MadeContent, incoming: IncomingBlob, from = 0, piece = 150_000): Promise<void> {
  await using run = incoming.run(from, list.shards.length);
  for (let at = list.shards[from]!.offset; at < bytes.length; at += piece) await run.push(bytes.slice(at, at + piece));
}

async function read(store: ContentStore, digest: Digest): Promise<Uint8Array> {
  return concat(...(await Array.fromAsync(store.read(digest))));
}

const one = cut(noise(2_000_000, 'one'));

/** Started as a process of its own: writes shard after shard and says how many bytes count, until it is killed. */
async function arrive(directory: string): Promise<never> {
  const store = await openContentStore({ directory, clock: { nowMs: () => NOW } });
  const incoming = await store.receive(one.blob, one.list);
  for (const index of incoming.wanted()) {
    await incoming.put(index, shardOf(one, index));
    process.stdout.write(`${incoming.bytes}\n`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  process.stdout.write('all\n');
  return new Promise(() => setInterval(() => {}, 1_000));
}

if (process.argv[2] === 'arrive') await arrive(process.argv[3]!);
else {
  test('a blob that comes in order, in pieces that are not shards, is stored with its shards', async (t) => {
    const { directory, store } = await opened(t);
    const incoming = await store.receive(one.blob, one.list);
    assert.equal(await store.has(one.blob.digest), false);
    assert.deepEqual(await store.holding(one.blob.digest), { kind: 'none' });
    await pushAll(one, incoming);
    assert.deepEqual(incoming.wanted(), []);
    const info = await incoming.complete();
    assert.deepEqual([info?.digest, info?.size, info?.shards], [one.blob.digest, one.blob.size, one.blob.shards]);
    assert.deepEqual(await read(store, one.blob.digest), one.bytes);
    assert.deepEqual(await store.shardList(one.blob.digest), one.list);
    assert.deepEqual(await readdir(join(directory, 'incoming')), []);
    assert.deepEqual(store.incomingTotals(), { blobs: 0, bytes: 0 });
    assert.deepEqual((await store.scrub()).damaged, []);
  });

  test('shards may come in any order, twice, and as runs that overlap with puts', async (t) => {
    const { store } = await opened(t);
    const last = one.list.shards.length - 1;
    const incoming = await store.receive(one.blob, one.list);
    assert.equal(await incoming.put(last, shardOf(one, last)), true);
    assert.equal(await incoming.put(last, shardOf(one, last)), true);
    assert.equal(incoming.has(last), true);
    {
      // A run is in the middle of shard 0 with wrong bytes when another brings that shard: the right ones stay.
      await using run = incoming.run(0, 3);
      await run.push(noise(1_000, 'wrong'));
      assert.equal(await incoming.put(0, shardOf(one, 0)), true);
      const rest = concat(noise(1_000, 'wrong'), shardOf(one, 0).slice(1_000)).slice(1_000);
      await assert.rejects(
        () => run.push(rest),
        (error) => isCoded(error, 'shard-mismatch'),
      );
    }
    assert.equal(incoming.has(0), true);
    await pushAll(one, incoming, 5, 70_001);
    for (const index of incoming.wanted()) await incoming.put(index, shardOf(one, index));
    assert.equal((await incoming.complete())?.digest, one.blob.digest);
    assert.deepEqual(await read(store, one.blob.digest), one.bytes);
  });

  test('a shard that turns out wrong far into a run, or comes from somebody else, leaves the hash over the whole right', async (t) => {
    const { store } = await opened(t);
    const incoming = await store.receive(one.blob, one.list);
    const { shards } = one.list;
    assert.ok(shards.length > 24);
    const wrong = one.bytes.slice();
    wrong[shards[22]!.offset + shards[22]!.length - 1]! ^= 1;
    await assert.rejects(
      () => pushAll({ ...one, bytes: wrong }, incoming, 0, 30_000),
      (error) => isCoded(error, 'shard-mismatch') && error.details?.['shard'] === 22,
    );
    assert.equal(incoming.has(21), true);
    {
      await using run = incoming.run(22, shards.length);
      const from = shards[22]!.offset;
      await run.push(one.bytes.slice(from, shards[23]!.offset + 10));
      assert.equal(await incoming.put(23, shardOf(one, 23)), true);
      await run.push(one.bytes.slice(shards[23]!.offset + 10));
    }
    assert.deepEqual(incoming.wanted(), []);
    assert.equal((await incoming.complete())?.digest, one.blob.digest);
  });

  test('two runs at the same time fill one blob', async (t) => {
    const { store } = await opened(t);
    const incoming = await store.receive(one.blob, one.list);
    const middle = 7;
    const first = async () => {
      await using run = incoming.run(0, middle);
      const end = one.list.shards[middle]!.offset;
      for (let at = 0; at < end; at += 60_000) await run.push(one.bytes.slice(at, Math.min(end, at + 60_000)));
    };
    await Promise.all([first(), pushAll(one, incoming, middle, 90_000)]);
    assert.equal((await incoming.complete())?.digest, one.blob.digest);
  });

  test('a wrong shard does not count; what came before it does', async (t) => {
    const { store } = await opened(t);
    const incoming = await store.receive(one.blob, one.list);
    const wrong = one.bytes.slice();
    wrong[one.list.shards[4]!.offset + 3]! ^= 1;
    await assert.rejects(
      () => pushAll({ ...one, bytes: wrong }, incoming),
      (error) => isCoded(error, 'shard-mismatch') && error.details?.['shard'] === 4,
    );
    assert.deepEqual(
      [0, 1, 2, 3].map((index) => incoming.has(index)),
      [true, true, true, true],
    );
    assert.equal(incoming.wanted()[0], 4);
    assert.equal(await incoming.put(4, shardOf({ ...one, bytes: wrong }, 4)), false);
    await pushAll(one, incoming, 4);
    assert.equal((await incoming.complete())?.digest, one.blob.digest);
  });

  test('what is verified can be given to others while the rest is on its way, and nothing else can', async (t) => {
    const { store } = await opened(t);
    const incoming = await store.receive(one.blob, one.list);
    await incoming.put(2, shardOf(one, 2));
    const holding = await store.holding(one.blob.digest);
    assert.ok(holding.kind === 'partial');
    assert.deepEqual(
      one.list.shards.map((_, index) => hasBit(holding.shards, index)),
      one.list.shards.map((_, index) => index === 2),
    );
    assert.deepEqual(await store.shardList(one.blob.digest), one.list);
    const { offset, length } = one.list.shards[2]!;
    const inside = new Uint8Array(length - 20);
    await store.readHeld(one.blob.digest, offset + 10, inside);
    assert.deepEqual(inside, shardOf(one, 2).slice(10, -10));
    for (const range of [
      { offset, length: length + 1 },
      { offset: offset - 1, length: 2 },
      { offset: 0, length: 10 },
    ]) {
      await assert.rejects(store.readHeld(one.blob.digest, range.offset, new Uint8Array(range.length)), (error) =>
        isCoded(error, 'blob-not-found'),
      );
    }
    await assert.rejects(
      () => Array.fromAsync(store.read(one.blob.digest)),
      (error) => isCoded(error, 'blob-not-found'),
    );
  });

  test('shards that any local blob has are copied, and one that occurs often is wanted once', async (t) => {
    const { store } = await opened(t);
    const zeros = new Uint8Array(1_500_000);
    const two = cut(concat(one.bytes, noise(300_000, 'new'), zeros));
    await store.put(once(one.bytes));
    const incoming = await store.receive(two.blob, two.list);
    const before = incoming.wanted().length;
    assert.ok(before < two.list.shards.length, 'the zeros are wanted once');
    const reused = await incoming.reuse();
    assert.ok(reused > 1_700_000, `${reused} bytes were reused`);
    const wanted = incoming.wanted();
    assert.ok(wanted.length < before - 20);
    for (const index of wanted) await incoming.put(index, shardOf(two, index));
    assert.equal((await incoming.complete())?.digest, two.blob.digest);
    assert.deepEqual(await read(store, two.blob.digest), two.bytes);
  });

  test('an arrival is gone on with after kill -9: every shard that was noted and is whole counts', async (t) => {
    const directory = await directoryOf(t);
    let reached = 0;
    for (let round = 0; round < 3; round++) {
      const child = spawn(process.execPath, [import.meta.filename, 'arrive', directory], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const said: string[] = [];
      const enough = Promise.withResolvers<void>();
      child.stdout.on('data', (bytes: Buffer) => {
        said.push(...bytes.toString().trim().split('\n'));
        if (said.length > 5 || said.at(-1) === 'all') enough.resolve();
      });
      await enough.promise;
      child.kill('SIGKILL');
      await new Promise((resolve) => child.once('close', resolve));
      // What came in the last moments may not have been noted.
      const sure = Number(said.filter((line) => line !== 'all').at(-5) ?? 0);
      {
        await using store = await openContentStore({ directory, clock: { nowMs: () => NOW } });
        await using incoming = await store.receive(one.blob, one.list);
        assert.ok(incoming.bytes >= sure, `${incoming.bytes} of ${sure} bytes are still there`);
        assert.ok(incoming.bytes >= reached);
        reached = incoming.bytes;
      }
    }
    await using store = await openContentStore({ directory, clock: { nowMs: () => NOW } });
    const damage = await open(join(directory, 'incoming', `${digestHex(one.blob.digest)}.data`), 'r+');
    await damage.write(noise(10, 'damage'), 0, 10, 100);
    await damage.close();
    const incoming = await store.receive(one.blob, one.list);
    assert.ok(incoming.wanted().includes(0), 'a noted shard that is not whole does not count');
    for (const index of incoming.wanted()) await incoming.put(index, shardOf(one, index));
    assert.equal((await incoming.complete())?.digest, one.blob.digest);
    assert.deepEqual(await read(store, one.blob.digest), one.bytes);
  });

  test('what turns bad on the disk while the rest comes is noticed and wanted again', async (t) => {
    const { directory, store } = await opened(t);
    const incoming = await store.receive(one.blob, one.list);
    await pushAll(one, incoming, 1);
    const damage = await open(join(directory, 'incoming', `${digestHex(one.blob.digest)}.data`), 'r+');
    await damage.write(noise(10, 'damage'), 0, 10, one.list.shards[3]!.offset);
    await damage.close();
    await incoming.put(0, shardOf(one, 0));
    assert.equal(await incoming.complete(), null);
    assert.deepEqual(incoming.wanted(), [3]);
    await incoming.put(3, shardOf(one, 3));
    assert.equal((await incoming.complete())?.digest, one.blob.digest);
  });

  test('a description whose shards are not those of its digest is found out, and leaves nothing', async (t) => {
    const { directory, store } = await opened(t);
    const lie = { ...one.blob, digest: digestOf(noise(10, 'other')) };
    const incoming = await store.receive(lie, one.list);
    await pushAll(one, incoming);
    await assert.rejects(
      () => incoming.complete(),
      (error) => isCoded(error, 'blob-mismatch'),
    );
    assert.equal(await store.has(lie.digest), false);
    assert.deepEqual(await readdir(join(directory, 'incoming')), []);
  });

  test('a list that nobody signed for, and a blob past the limits, are refused', async (t) => {
    const { store } = await opened(t, { storageBytesMax: 3_000_000, blobBytesMax: 2_500_000, incomingMax: 2 });
    const other = cut(noise(one.bytes.length, 'other'));
    await assert.rejects(
      () => store.receive(one.blob, other.list),
      (error) => isCoded(error, 'content-invalid'),
    );
    const large = cut(noise(2_600_000, 'large'));
    await assert.rejects(
      () => store.receive(large.blob, large.list),
      (error) => isCoded(error, 'limit-exceeded'),
    );
    await using _ = await store.receive(one.blob, one.list);
    await assert.rejects(
      () => store.receive(other.blob, other.list),
      (error) => isCoded(error, 'storage-full'),
    );
  });

  test('arrivals that were left alone make room for new ones, and go after a week', async (t) => {
    const directory = await directoryOf(t);
    const limits = { incomingMax: 2 };
    const blobs = ['a', 'b', 'c'].map((seed) => cut(noise(100_000, seed)));
    {
      await using store = await openContentStore({ directory, clock: { nowMs: () => NOW }, limits });
      for (const each of blobs) {
        await using incoming = await store.receive(each.blob, each.list);
        await incoming.put(0, shardOf(each, 0));
      }
      assert.deepEqual(store.incomingTotals(), { blobs: 2, bytes: 200_000 });
      assert.equal(await store.shardList(blobs[0]!.blob.digest), null);
      assert.deepEqual(await store.shardList(blobs[1]!.blob.digest), blobs[1]!.list);
    }
    const left = join(directory, 'incoming', `${digestHex(blobs[1]!.blob.digest)}.have`);
    await utimes(left, NOW / 1_000 - 8 * 86_400, NOW / 1_000 - 8 * 86_400);
    await writeFile(join(directory, 'incoming', `${'0'.repeat(64)}.data`), 'without a list');
    await using store = await openContentStore({ directory, clock: { nowMs: () => NOW }, limits });
    assert.deepEqual(store.incomingTotals(), { blobs: 1, bytes: 100_000 });
    assert.equal((await readdir(join(directory, 'incoming'))).length, 3);
  });
}
