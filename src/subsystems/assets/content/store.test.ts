import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, truncate, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { concat, utf8 } from '../../../base/bytes.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import { noise } from '../../../testing/made-content.ts';
import { encodeTree, type TreeSource } from '../../../wire/tree.ts';
import { type ContentLimits, openContentStore } from './store.ts';

const HOUR = 3_600_000;

async function temporary(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'hm-content-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

function clockAt(nowMs: number) {
  const clock = { ms: nowMs, nowMs: () => clock.ms };
  return clock;
}

async function opened(t: TestContext, limits: Partial<ContentLimits> = {}) {
  const directory = await temporary(t);
  const clock = clockAt(1_000_000);
  const store = await openContentStore({ directory, clock, limits });
  t.after(() => store[Symbol.asyncDispose]());
  return { directory, clock, store };
}

async function* stream(bytes: Uint8Array, piece = 100_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += piece) yield bytes.subarray(at, at + piece);
}

async function all(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  return concat(...(await Array.fromAsync(pieces)));
}

/** Bytes that look random and are the same in every run. */
function pathOf(directory: string, digest: Digest): string {
  const digits = digestHex(digest);
  return join(directory, 'sha256', digits.slice(0, 2), digits.slice(2));
}

async function tmpFiles(directory: string): Promise<string[]> {
  return readdir(join(directory, 'tmp'));
}

const sources: TreeSource[] = [
  { entry: { path: 'bin', kind: 'directory', size: 0, executable: false } },
  { entry: { path: 'bin/run', kind: 'file', size: 9, executable: true }, content: utf8('#!/bin/sh') },
  { entry: { path: 'empty', kind: 'file', size: 0, executable: false } },
  { entry: { path: 'link', kind: 'symlink', size: 0, executable: false, target: 'bin/run' } },
  { entry: { path: 'noise', kind: 'file', size: 3_000_000, executable: false }, content: noise(3_000_000, 'tree') },
];

test('put() gives the digest, and read() the bytes and any range of them', async (t) => {
  const { store } = await opened(t);
  const bytes = noise(3_500_000, 'a');
  const info = await store.put(stream(bytes));
  assert.equal(info.digest, digestOf(bytes));
  assert.equal(info.size, bytes.length);
  assert.ok(info.shards.count > 20);
  assert.deepEqual(await store.stat(info.digest), info);
  assert.deepEqual(await all(store.read(info.digest)), bytes);
  assert.deepEqual(
    await all(store.read(info.digest, { offset: 1_048_575, length: 2 })),
    bytes.slice(1_048_575, 1_048_577),
  );
  assert.deepEqual(await all(store.read(info.digest, { offset: 3_499_999, length: 50 })), bytes.slice(3_499_999));
  assert.equal((await all(store.read(info.digest, { offset: 9_999_999 }))).length, 0);
  for await (const piece of store.read(info.digest)) assert.ok(piece.length <= 2 ** 20);
  const shards = await store.shards(info.digest);
  assert.equal(
    shards.reduce((sum, shard) => sum + shard.length, 0),
    bytes.length,
  );
  assert.deepEqual(await store.findShard(shards[3]!.hash), {
    digest: info.digest,
    offset: shards[3]!.offset,
    length: shards[3]!.length,
  });
});

test('put() of the same bytes again is one blob; the empty blob is a blob', async (t) => {
  const { store, directory } = await opened(t);
  const first = await store.put(stream(utf8('hello')));
  const again = await store.put(stream(utf8('hello'), 1));
  assert.deepEqual(again, { ...first, shardsReused: 1, bytesReused: 5 });
  assert.deepEqual(await store.stat(first.digest), again);
  const both = await Promise.all([store.put(stream(utf8('twin'))), store.put(stream(utf8('twin')))]);
  assert.equal(both[0].digest, both[1].digest);
  const empty = await store.put(stream(new Uint8Array()));
  assert.equal(empty.shards.count, 0);
  assert.equal((await all(store.read(empty.digest))).length, 0);
  assert.deepEqual(await store.totals(), { blobs: 3, bytes: 9 });
  assert.deepEqual(await Array.fromAsync(store.list()), [first.digest, both[0].digest, empty.digest].sort());
  assert.deepEqual(await tmpFiles(directory), []);
});

test('put() reports the shards that another blob holds already', async (t) => {
  const { store } = await opened(t);
  const bytes = noise(2_000_000, 'reuse');
  const first = await store.put(stream(bytes));
  assert.equal(first.shardsReused, 0);
  const changed = concat(bytes.subarray(0, 1_000_000), utf8('changed'), bytes.subarray(1_000_010));
  const second = await store.put(stream(changed));
  assert.ok(second.shardsReused >= second.shards.count - 4, `${second.shardsReused} of ${second.shards.count}`);
  assert.ok(second.bytesReused > 1_000_000 && second.bytesReused < changed.length);
});

test('put() that fails leaves nothing behind', async (t) => {
  const { store, directory } = await opened(t, { blobBytesMax: 1_000_000, storageBytesMax: 1_500_000 });
  const cases: [string, () => Promise<unknown>][] = [
    ['limit-exceeded', () => store.put(stream(noise(11, 'x')), { sizeMax: 10 })],
    ['limit-exceeded', () => store.put(stream(noise(1_000_001, 'x')))],
    ['blob-mismatch', () => store.put(stream(utf8('x')), { expect: digestOf(utf8('y')) })],
    ['cancelled', () => store.put(stream(utf8('x')), { signal: AbortSignal.abort() })],
    ['tree-invalid', () => store.putTree(stream(utf8('no tree')))],
  ];
  for (const [code, put] of cases) await assert.rejects(put(), (error) => isCoded(error) && error.code === code, code);
  await store.put(stream(noise(900_000, 'fits')));
  await assert.rejects(store.put(stream(noise(900_000, 'full'))), (error) => isCoded(error, 'storage-full'));
  const broken = async function* () {
    yield utf8('part');
    throw new Error('the sender went away');
  };
  await assert.rejects(store.put(broken()), /the sender went away/);
  assert.deepEqual(await store.totals(), { blobs: 1, bytes: 900_000 });
  assert.deepEqual(await tmpFiles(directory), []);
});

test('put() whose bytes still come when the store is closed is cancelled', async (t) => {
  const { store, directory } = await opened(t);
  const [closed, begun] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const slow = async function* () {
    yield utf8('part');
    begun.resolve();
    await closed.promise;
    yield utf8('rest');
  };
  const put = store.put(slow());
  await begun.promise;
  await store[Symbol.asyncDispose]();
  closed.resolve();
  await assert.rejects(put, (error) => isCoded(error, 'cancelled'));
  assert.deepEqual(await tmpFiles(directory), []);
});

test('a folder that cannot be written gives storage-*', async (t) => {
  const { store, directory } = await opened(t);
  await rm(join(directory, 'tmp'), { recursive: true });
  await writeFile(join(directory, 'tmp'), 'in the way');
  await assert.rejects(store.put(stream(utf8('x'))), (error) => isCoded(error, 'storage-failed', 'storage-read-only'));
  await writeFile(join(directory, 'file'), '');
  await assert.rejects(openContentStore({ directory: join(directory, 'file'), clock: clockAt(0) }), (error) =>
    isCoded(error, 'storage-failed', 'storage-read-only'),
  );
});

test('missing blobs and files, and ranges without sense, are refused', async (t) => {
  const { store } = await opened(t);
  const absent = digestOf(utf8('absent'));
  assert.equal(await store.stat(absent), null);
  await assert.rejects(all(store.read(absent)), (error) => isCoded(error, 'blob-not-found'));
  await assert.rejects(store.stat('sha256:../../x' as Digest), (error) => isCoded(error, 'usage'));
  await assert.rejects(all(store.read(absent, { offset: -1 })), (error) => isCoded(error, 'usage'));
  const { digest } = await store.putTree(encodeTree(sources));
  for (const path of ['nothing', 'bin', 'link', '../x']) {
    await assert.rejects(all(store.readFile(digest, path)), (error) => isCoded(error, 'file-not-found'));
  }
});

test('tree() and readFile() know the files of a tree, put as a tree or as plain bytes, and larger than what is remembered', async (t) => {
  for (const [how, treeEntriesMax] of [
    ['put', 1_000],
    ['putTree', 1_000],
    ['put', 2],
    ['putTree', 2],
  ] as const) {
    const { store, directory, clock } = await opened(t, { treeEntriesMax });
    const { digest } = await store[how](encodeTree(sources));
    const check = async (from: typeof store) => {
      assert.deepEqual(
        await from.tree(digest),
        sources.map((source) => source.entry),
      );
      for (const { entry, content } of sources) {
        if (entry.kind === 'file')
          assert.deepEqual(await all(from.readFile(digest, entry.path)), content ?? new Uint8Array());
      }
    };
    await check(store);
    await store[Symbol.asyncDispose]();
    const again = await openContentStore({ directory, clock, limits: { treeEntriesMax } });
    t.after(() => again[Symbol.asyncDispose]());
    await check(again);
  }
});

test('tree() refuses a blob that is not a tree', async (t) => {
  const { store } = await opened(t);
  const { digest } = await store.put(stream(noise(5_000, 'plain')));
  await assert.rejects(store.tree(digest), (error) => isCoded(error, 'tree-invalid'));
});

test('collect() keeps what is referenced or leased, and removes the rest', async (t) => {
  const { store, clock, directory } = await opened(t);
  const [kept, gone] = [await store.put(stream(utf8('kept'))), await store.put(stream(utf8('gone')))];
  assert.deepEqual(await store.collect([]), { blobsRemoved: 0, bytesFreed: 0, blobsKept: 2 });
  clock.ms += HOUR + 1;
  const held = await store.put(stream(utf8('held')));
  clock.ms += HOUR + 1;
  const absent = digestOf(utf8('absent'));
  assert.deepEqual(await store.hold([held.digest, absent]), [absent]);
  assert.deepEqual(await store.collect([kept.digest]), { blobsRemoved: 1, bytesFreed: 4, blobsKept: 2 });
  assert.equal(await store.has(gone.digest), false);
  assert.equal(await store.has(kept.digest), true);
  assert.equal(await store.has(held.digest), true);
  await assert.rejects(stat(pathOf(directory, gone.digest)));
  assert.equal(
    await store.findShard((await store.shards(kept.digest))[0]!.hash).then((found) => found?.digest),
    kept.digest,
  );
  // Leases outlive the process.
  await store[Symbol.asyncDispose]();
  await using again = await openContentStore({ directory, clock });
  assert.deepEqual(await again.collect([]), { blobsRemoved: 1, bytesFreed: 4, blobsKept: 1 });
});

test('collect() beside puts of the same blobs never loses one', async (t) => {
  const { store, clock } = await opened(t);
  const contents = Array.from({ length: 20 }, (_, i) => noise(2_000 + i, `race-${i}`));
  for (let round = 0; round < 4; round++) {
    for (const content of contents) await store.put(stream(content));
    clock.ms += HOUR + 1;
    const [, ...infos] = await Promise.all([
      store.collect([]),
      ...contents.map((content) => store.put(stream(content, 700))),
    ]);
    for (const [i, info] of infos.entries()) assert.deepEqual(await all(store.read(info.digest)), contents[i]);
  }
});

test('what a crash leaves is healed: temporary files, a file without a row, a row without a file', async (t) => {
  const { store, directory, clock } = await opened(t);
  const rowless = noise(300_000, 'rowless');
  const { digest } = await store.put(stream(rowless));
  const fileless = await store.put(stream(utf8('fileless')));
  await store.delete(digest);
  await store[Symbol.asyncDispose]();
  await writeFile(join(directory, 'tmp', 'leftover'), 'half');
  await writeFile(pathOf(directory, digest), rowless);
  await unlink(pathOf(directory, fileless.digest));

  await using again = await openContentStore({ directory, clock });
  assert.deepEqual(await tmpFiles(directory), []);
  assert.equal((await again.stat(digest))?.size, rowless.length);
  assert.deepEqual(await all(again.read(digest)), rowless);
  assert.equal(await again.stat(fileless.digest), null);
  assert.deepEqual(await again.totals(), { blobs: 1, bytes: rowless.length });
  assert.deepEqual((await again.put(stream(utf8('fileless')))).digest, fileless.digest);
});

test('damage is set aside and never served: a short file at first use, others by scrub()', async (t) => {
  const { store, directory } = await opened(t);
  const [short, flipped, small, sound] = await Promise.all(
    ['short', 'flipped', 'small', 'sound'].map((seed) =>
      store.put(stream(noise(seed === 'small' ? 100 : 400_000, seed))),
    ),
  );
  await truncate(pathOf(directory, short!.digest), 1_000);
  for (const { digest } of [flipped!, small!]) {
    const bytes = await readFile(pathOf(directory, digest));
    bytes[50]! ^= 1;
    await writeFile(pathOf(directory, digest), bytes);
  }
  assert.equal(await store.stat(short!.digest), null);
  await assert.rejects(all(store.read(small!.digest)), (error) => isCoded(error, 'blob-damaged'));
  assert.deepEqual(await store.scrub(), { checked: 2, damaged: [flipped!.digest] });
  assert.equal(await store.has(flipped!.digest), false);
  assert.equal(await store.has(sound!.digest), true);
  assert.deepEqual(
    (await readdir(join(directory, 'damaged'))).sort(),
    [short!, small!, flipped!].map((info) => digestHex(info.digest)).sort(),
  );
  // The same content can come back.
  assert.equal((await store.put(stream(noise(400_000, 'flipped')))).digest, flipped!.digest);
});

test('cacheFigures() tells memory from disk, and memory stays bounded', async (t) => {
  const { store } = await opened(t, { memoryBytesMax: 10_000, memoryItemBytesMax: 4_000 });
  const infos = [];
  for (let i = 0; i < 6; i++) infos.push(await store.put(stream(noise(3_000, `small-${i}`))));
  const before = store.cacheFigures();
  for (const { digest } of infos) for (let i = 0; i < 3; i++) await all(store.read(digest));
  await store.has(digestOf(utf8('absent')));
  const after = store.cacheFigures();
  assert.equal(after.l1.hits - before.l1.hits, 12);
  assert.equal(after.l1.misses - before.l1.misses, 6);
  assert.ok(after.l1.bytes <= 10_000);
  assert.equal(after.l2.hits - before.l2.hits, 18);
  assert.equal(after.l2.misses - before.l2.misses, 1);
  assert.deepEqual([after.l2.items, after.l2.bytes], [6, 18_000]);
  const piece = (await Array.fromAsync(store.read(infos[5]!.digest)))[0]!;
  piece.fill(0);
  assert.deepEqual(await all(store.read(infos[5]!.digest)), noise(3_000, 'small-5'), 'a reader cannot alter the cache');
});
