import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { concat } from '../../../base/bytes.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { once } from '../../../base/streams.ts';
import { cut, type MadeContent, noise } from '../../../testing/made-content.ts';
import { type BlobRange, bitBytes, type Holding, type ShardList, setBit } from '../../../wire/content.ts';
import { openAssets } from '../../assets/index.ts';
import { type Accusation, Downloader, type DownloadLimits } from './download.ts';
import { Shaper } from './shaper.ts';
import type { Source } from './source.ts';

const three = cut(noise(3_000_000, 'three'));

interface Conduct {
  /** Shards that it has; all by default. */
  readonly shards?: (index: number) => boolean;
  readonly rttMs?: number;
  readonly bytesPerMs?: number;
  /** What it really sends for a range. */
  readonly alter?: (bytes: Uint8Array, range: BlobRange) => Uint8Array;
  readonly list?: ShardList;
  /** Never answers: the question what it has, a request for a list, for bytes. */
  readonly silent?: readonly ('have' | 'list' | 'bytes')[];
  readonly refuses?: () => HyperMeshError | null;
}

/** A node at the other end that holds one blob, and behaves as it is told to. */
class Node implements Source {
  readonly node: string;
  readonly rttMs: number;
  readonly asked: BlobRange[] = [];
  readonly #content: MadeContent;
  readonly #conduct: Conduct;
  /** Of this node's link: what is asked for at the same time shares it. */
  #freeAtMs = 0;

  constructor(name: string, content: MadeContent, conduct: Conduct = {}) {
    this.node = name.padEnd(64, '0');
    this.rttMs = conduct.rttMs ?? 0;
    this.#content = content;
    this.#conduct = conduct;
  }

  async have(blobs: readonly Digest[], options: { signal?: AbortSignal | undefined } = {}): Promise<Holding[]> {
    await this.#answer('have', options.signal);
    const { shards } = this.#content.list;
    return blobs.map((blob): Holding => {
      if (blob !== this.#content.blob.digest) return { kind: 'none' };
      const has = this.#conduct.shards;
      if (has === undefined) return { kind: 'complete' };
      const bits = new Uint8Array(bitBytes(shards.length));
      for (let i = 0; i < shards.length; i++) if (has(i)) setBit(bits, i);
      return { kind: 'partial', count: shards.length, shards: bits };
    });
  }

  async shardList(_: Digest, options: { signal?: AbortSignal | undefined } = {}): Promise<ShardList> {
    await this.#answer('list', options.signal);
    return this.#conduct.list ?? this.#content.list;
  }

  async read(
    ranges: readonly BlobRange[],
    options: { signal?: AbortSignal | undefined; onBytes?: (bytes: number) => Promise<void> | void } = {},
  ): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (const range of ranges) {
      const bytes = await this.#bytes(range, options.signal);
      await options.onBytes?.(bytes.length);
      parts.push(bytes);
    }
    return concat(...parts);
  }

  async fetchRange(
    range: BlobRange,
    write: (bytes: Uint8Array) => Promise<void> | void,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    const slab = new Uint8Array(64_000);
    for (let at = 0; at < range.length; at += slab.length) {
      const length = Math.min(slab.length, range.length - at);
      const piece = slab.subarray(0, length);
      piece.set(await this.#bytes({ ...range, offset: range.offset + at, length }, options.signal));
      await write(piece);
      // The slab goes around.
      slab.fill(0xee);
    }
  }

  async #answer(what: 'have' | 'list' | 'bytes', signal: AbortSignal | undefined): Promise<void> {
    const refusal = what === 'bytes' ? this.#conduct.refuses?.() : null;
    if (refusal) throw refusal;
    if (this.#conduct.silent?.includes(what)) await sleep(3_600_000, undefined, { signal });
    else await sleep(this.rttMs, undefined, { signal });
  }

  async #bytes(range: BlobRange, signal: AbortSignal | undefined): Promise<Uint8Array> {
    this.asked.push(range);
    await this.#answer('bytes', signal);
    if (this.#conduct.bytesPerMs !== undefined) {
      const now = performance.now();
      this.#freeAtMs = Math.max(now, this.#freeAtMs) + range.length / this.#conduct.bytesPerMs;
      await sleep(this.#freeAtMs - now, undefined, { signal });
    }
    const bytes = this.#content.bytes.slice(range.offset, range.offset + range.length);
    return this.#conduct.alter?.(bytes, range) ?? bytes;
  }
}

async function home(t: TestContext, limits: Partial<DownloadLimits> = {}, bytesPerSecond: number | null = null) {
  const directory = await mkdtemp(join(tmpdir(), 'hm-download-'));
  const store = await openAssets({ directory, clock: { nowMs: () => Date.now() } });
  t.after(async () => {
    await store[Symbol.asyncDispose]();
    await rm(directory, { recursive: true, force: true });
  });
  const accusations: Accusation[] = [];
  const downloader = new Downloader(
    {
      store: store.exchange,
      clock: { nowMs: () => 1_000 },
      random: Math.random,
      downloads: new Shaper(bytesPerSecond),
      accuse: (accusation) => accusations.push(accusation),
    },
    // A busy machine makes everybody silent for a while: tests of who is silent, or gone, ask for less.
    { silentMs: 5_000, hedgeMs: 50, refreshMs: 100, patienceMs: 5_000, ...limits },
  );
  const fetch = (content: MadeContent, nodes: readonly Source[], signal?: AbortSignal) =>
    downloader.fetch(content.blob, { sources: async () => nodes }, { signal });
  const check = async (content: MadeContent) => {
    assert.equal((await store.stat(content.blob.digest))?.size, content.bytes.length);
    assert.equal(digestOf(concat(...(await Array.fromAsync(store.read(content.blob.digest))))), content.blob.digest);
  };
  return { directory, store, downloader, accusations, fetch, check };
}

const sum = (counts: ReadonlyMap<string, number>) => counts.values().reduce((total, bytes) => total + bytes, 0);

test('a blob comes from one source in order, or from many at once, and is asked for once', async (t) => {
  const { fetch, check, accusations } = await home(t);
  const alone = new Node('a', three);
  const report = await fetch(three, [alone]);
  assert.deepEqual([report.resumed, report.reused, sum(report.from)], [0, 0, three.bytes.length]);
  await check(three);
  const offsets = alone.asked.map(({ offset }) => offset);
  assert.deepEqual(
    offsets,
    offsets.toSorted((a, b) => a - b),
  );

  const other = cut(noise(8_000_000, 'many'));
  const nodes = ['a', 'b', 'c'].map((name) => new Node(name, other, { bytesPerMs: 8_000 }));
  const many = await fetch(other, nodes);
  await check(other);
  assert.equal(sum(many.from), other.bytes.length);
  assert.equal(many.from.size, 3, 'each gave a part');
  assert.deepEqual(accusations, []);
});

test('who fetches the same is asked again and again what it has got meanwhile', async (t) => {
  const { fetch, check } = await home(t, { refreshMs: 3_600_000 });
  let got = 0;
  const timer = setInterval(() => (got += 1), 20);
  t.after(() => clearInterval(timer));
  await fetch(three, [new Node('growing', three, { shards: (index) => index < got })]);
  await check(three);
});

test('whoever does not know yet how a blob is cut is asked again', async (t) => {
  const { fetch, check } = await home(t);
  const late = new Node('late', three);
  let asked = 0;
  t.mock.method(late, 'shardList', async () => {
    asked += 1;
    if (asked < 3) throw new HyperMeshError('blob-not-found', 'This node does not give it.');
    return three.list;
  });
  await fetch(three, [late]);
  await check(three);
  assert.equal(asked, 3);
});

test('an empty blob needs nobody; one of one shard is asked for whole', async (t) => {
  const { fetch, check, accusations } = await home(t);
  const empty = cut(new Uint8Array());
  await fetch(empty, []);
  await check(empty);
  const small = cut(noise(1_000, 'small'));
  const liar = new Node('liar', small, { alter: (bytes) => bytes.map((byte) => byte ^ 1) });
  await fetch(small, [liar, new Node('honest', small)]);
  await check(small);
  assert.deepEqual(
    accusations.map(({ node, what }) => [node, what]),
    [[liar.node, 'wrong-bytes']],
  );
});

test('what is here already is not fetched: the whole, an earlier part, shards of other blobs', async (t) => {
  const { fetch, check, store } = await home(t);
  await store.put(once(three.bytes));
  const nothing = await fetch(three, []);
  assert.deepEqual([nothing.reused, nothing.from.size], [0, 0]);
  const next = cut(concat(three.bytes.slice(0, 1_500_000), noise(200_000, 'changed'), three.bytes.slice(1_500_000)));
  const node = new Node('a', next);
  const report = await fetch(next, [node]);
  await check(next);
  assert.ok(report.reused > 2_300_000, `${report.reused} bytes were reused`);
  assert.equal(report.reused + sum(report.from), next.bytes.length);
  assert.ok(node.asked.reduce((total, { length }) => total + length, 0) < 800_000);
});

test('a cancelled download is gone on with, and only the rest is fetched', async (t) => {
  const { fetch, check, downloader } = await home(t);
  const slow = new Node('slow', three, { bytesPerMs: 3_000 });
  const gaveUp = new AbortController();
  const first = downloader.fetch(
    three.blob,
    { sources: async () => [slow] },
    {
      signal: gaveUp.signal,
      onProgress: ({ done }) => {
        if (done! > 500_000) gaveUp.abort();
      },
    },
  );
  const second = fetch(three, [slow], new AbortController().signal);
  await assert.rejects(first, (error) => isCoded(error, 'cancelled'));
  const report = await second;
  assert.ok(report.resumed > 100_000, 'the second caller goes on where the first gave up');
  assert.equal(report.resumed + sum(report.from), three.bytes.length);
  await check(three);
  assert.deepEqual(downloader.active(), []);
});

test('whoever waits for a download that somebody else began sees how far it is', async (t) => {
  const { check, downloader } = await home(t);
  const slow = new Node('slow', three, { bytesPerMs: 3_000 });
  const pool = { sources: async () => [slow] };
  const first = downloader.fetch(three.blob, pool);
  const seen: number[] = [];
  const second = downloader.fetch(three.blob, pool, { onProgress: ({ done }) => void seen.push(done!) });
  await Promise.all([first, second]);
  assert.equal(seen.at(-1), three.bytes.length);
  await check(three);
});

const LIES: Readonly<Record<string, { readonly conduct: Conduct; readonly what: Accusation['what'] }>> = {
  'one wrong byte in every shard': {
    conduct: { alter: (bytes) => bytes.with(bytes.length >> 1, bytes[bytes.length >> 1]! ^ 1) },
    what: 'wrong-bytes',
  },
  'the list of another blob': { conduct: { list: cut(noise(3_000_000, 'other')).list }, what: 'wrong-list' },
  'an answer that cannot be': {
    conduct: { refuses: () => new HyperMeshError('peer-lied', 'Another node sent more bytes than were asked for.') },
    what: 'broken-protocol',
  },
};

for (const [lie, { conduct, what }] of Object.entries(LIES)) {
  test(`${lie}: costs the liar its place, with evidence, and the user nothing`, async (t) => {
    const { fetch, check, accusations, downloader } = await home(t);
    const liar = new Node('liar', three, conduct);
    const honest = new Node('honest', three, { rttMs: 2 });
    await fetch(three, [liar, honest]);
    await check(three);
    assert.equal(accusations.length, 1);
    const [accusation] = accusations;
    assert.deepEqual([accusation!.node, accusation!.blob, accusation!.what], [liar.node, three.blob.digest, what]);
    assert.ok(downloader.isBanned(liar.node) && !downloader.isBanned(honest.node));
    const before = liar.asked.length;
    const other = cut(noise(500_000, lie));
    await fetch(other, [liar, new Node('honest', other)]);
    assert.equal(liar.asked.length, before, 'it is not asked again');
  });
}

for (const silent of ['have', 'list', 'bytes'] as const) {
  test(`a source that is silent when asked for ${silent} is left alone, and accused of nothing`, async (t) => {
    const { fetch, check, accusations } = await home(t, { silentMs: 400 });
    const mute = new Node('mute', three, { silent: [silent] });
    const startedAtMs = performance.now();
    await fetch(three, [mute, new Node('honest', three, { rttMs: 2 })]);
    assert.ok(performance.now() - startedAtMs < 240_000);
    await check(three);
    assert.deepEqual(accusations, []);
  });
}

test('near the end a fast source takes over what a slow one was asked for', async (t) => {
  const { fetch, check } = await home(t);
  const slow = new Node('slow', three, { bytesPerMs: 2 });
  const startedAtMs = performance.now();
  const report = await fetch(three, [slow, new Node('fast', three, { bytesPerMs: 20_000 })]);
  await check(three);
  // Alone the slow one would need 1,500 seconds, and 500 for what it was given at first.
  assert.ok(performance.now() - startedAtMs < 240_000);
  assert.ok((report.from.get(slow.node) ?? 0) < 500_000);
});

test('a slow source is used when there is no other', async (t) => {
  const { fetch, check } = await home(t);
  await fetch(three, [
    new Node('slow', three, { bytesPerMs: 2_000 }),
    new Node('none', three, { shards: () => false }),
  ]);
  await check(three);
});

test('what one source alone has is asked for first', async (t) => {
  const { fetch, check } = await home(t);
  const rare = (index: number) => index >= 20 && index < 24;
  const seed = new Node('seed', three, { bytesPerMs: 1_000 });
  const others = ['a', 'b'].map(
    (name) => new Node(name, three, { shards: (index) => !rare(index), bytesPerMs: 1_000 }),
  );
  await fetch(three, [...others, seed]);
  await check(three);
  const first = seed.asked[0]!.offset;
  const from = three.list.shards[20]!.offset;
  const to = three.list.shards[24]!.offset;
  assert.ok(first >= from && first < to, `the seed was first asked for offset ${first}, rare are ${from} to ${to}`);
});

test('sources that have only parts, none of them all, are enough together', async (t) => {
  const { fetch, check } = await home(t);
  const parts = [0, 1, 2].map((part) => new Node(`part${part}`, three, { shards: (index) => index % 3 === part }));
  const report = await fetch(three, parts);
  await check(three);
  assert.equal(report.from.size, 3);
});

test('with nobody who has it, or only some of it, the download fails, says so and keeps what came', async (t) => {
  const { fetch, check } = await home(t, { patienceMs: 300 });
  const unavailable = (error: unknown) => isCoded(error, 'content-unavailable');
  await assert.rejects(() => fetch(three, []), unavailable);
  await assert.rejects(
    () => fetch(three, [new Node('half', three, { shards: (index) => index % 2 === 0 })]),
    unavailable,
  );
  const report = await fetch(three, [new Node('whole', three)]);
  assert.ok(report.resumed > 1_000_000);
  await check(three);
});

test('a node that was asked what it has is waited for, however short the patience', async (t) => {
  const { fetch, check } = await home(t, { patienceMs: 1 });
  const few = cut(noise(300_000, 'few'));
  await fetch(few, [new Node('slow', few, { rttMs: 600 })]);
  await check(few);
});

test('a source that fails now and then is asked again', async (t) => {
  const { fetch, check, accusations } = await home(t);
  let failures = 0;
  const refuses = () => (failures++ % 20 === 3 ? new HyperMeshError('quota-exceeded', 'Too many requests.') : null);
  await fetch(three, [new Node('busy', three, { refuses })]);
  await check(three);
  assert.deepEqual(accusations, []);
});

test('a description that cannot be, or that lies about the whole, is refused', async (t) => {
  const { downloader, store } = await home(t);
  const pool = { sources: async () => [new Node('a', three)] };
  const shards = { ...three.blob.shards, count: 1 };
  await assert.rejects(
    () => downloader.fetch({ ...three.blob, shards }, pool),
    (error) => isCoded(error, 'content-invalid'),
  );
  const lie = { ...three.blob, digest: digestOf(noise(3, 'another')) };
  const content = { ...three, blob: lie };
  await assert.rejects(
    () => downloader.fetch(lie, { sources: async () => [new Node('a', content)] }),
    (error) => isCoded(error, 'blob-mismatch'),
  );
  assert.equal(await store.stat(lie.digest), null);
});

test('a limit is kept, and progress is told', async (t) => {
  const { downloader, check } = await home(t, {}, 4_000_000);
  const seen: number[] = [];
  const startedAtMs = performance.now();
  await downloader.fetch(
    three.blob,
    { sources: async () => [new Node('a', three)] },
    { onProgress: ({ done }) => seen.push(done!) },
  );
  const ms = performance.now() - startedAtMs;
  await check(three);
  assert.ok(ms > 400, `3 MB at 4 MB/s, a quarter of a second saved up: ${ms} ms`);
  assert.deepEqual(
    seen,
    seen.toSorted((a, b) => a - b),
  );
  assert.equal(seen.at(-1), three.bytes.length);
});
