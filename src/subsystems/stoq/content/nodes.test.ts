import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, type TestContext, test } from 'node:test';
import { concat } from '../../../base/bytes.ts';
import { digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import { once } from '../../../base/streams.ts';
import type { BlobInfo } from '../../../capabilities/assets.ts';
import { CertifiedNetwork } from '../../../testing/certified-network.ts';
import { ContentNode, type ContentNodeOptions } from '../../../testing/content-node.ts';
import { noise } from '../../../testing/made-content.ts';
import { until } from '../../../testing/until.ts';
import { encodeHaveAsk, encodeReadAsk } from '../../../wire/content.ts';
import { type DownloadReport, sourceOf } from './index.ts';

/** Two or more nodes with true channels between them, in one process. */

let network: CertifiedNetwork;
before(async () => {
  network = await CertifiedNetwork.found();
});

async function open(t: TestContext, options: Partial<ContentNodeOptions> = {}): Promise<ContentNode> {
  const directory = await mkdtemp(join(tmpdir(), 'hm-nodes-'));
  const certified = await network.node();
  const node = await ContentNode.open({ directory, certified, networkId: network.networkId, ...options });
  t.after(async () => {
    await node[Symbol.asyncDispose]();
    await rm(directory, { recursive: true, force: true });
  });
  return node;
}

async function holds(node: ContentNode, blob: BlobInfo): Promise<void> {
  assert.equal(digestOf(concat(...(await Array.fromAsync(node.store.read(blob.digest))))), blob.digest);
}

const sum = (counts: ReadonlyMap<string, number>) => counts.values().reduce((total, bytes) => total + bytes, 0);

test('a blob goes from node to node, large or small, and a changed one only by its difference', async (t) => {
  const [seed, peer] = [await open(t), await open(t)];
  for (const size of [0, 1, 5_000, 70_000, 300_000, 12_000_000]) {
    const blob = await seed.store.put(once(noise(size, `${size}`)));
    const report = await peer.fetch(blob, [seed]);
    assert.equal(sum(report.from), size);
    await holds(peer, blob);
    assert.deepEqual(
      await peer.store.exchange.shardList(blob.digest),
      await seed.store.exchange.shardList(blob.digest),
    );
  }
  const bytes = noise(12_000_000, '12000000');
  bytes.set(noise(10, 'changed'), 1_000);
  bytes.set(noise(10, 'changed'), 6_000_000);
  const next = await seed.store.put(once(bytes));
  const report = await peer.fetch(next, [seed]);
  await holds(peer, next);
  assert.ok(sum(report.from) < 1_000_000, `${sum(report.from)} bytes were fetched`);
  assert.deepEqual(peer.accusations, []);
});

test('a node gives only what it is told to give, and answers nothing but what was asked', async (t) => {
  const secret = noise(100_000, 'secret');
  const seed = await open(t, { served: (blob, to) => blob !== digestOf(secret) && to.kind === 'member' });
  const peer = await open(t, { limits: { patienceMs: 200, refreshMs: 50 } });
  const blob = await seed.store.put(once(secret));
  await assert.rejects(
    () => peer.fetch(blob, [seed]),
    (error) => isCoded(error, 'content-unavailable'),
  );
  const connection = await peer.channel.connect(seed.address, { expect: seed.node });
  assert.deepEqual(await sourceOf(connection).have([blob.digest]), [{ kind: 'none' }]);
  const range = { blob: blob.digest, offset: 0, length: 10 };
  await assert.rejects(
    () => sourceOf(connection).fetchRange(range, () => {}),
    (error) => isCoded(error, 'blob-not-found'),
  );
  const ask = (method: string, body: Uint8Array) => connection.request(method, body, { replyBytesMax: 1_000 });
  for (const [method, body] of [
    ['content/have', new Uint8Array(3)],
    ['content/shards', encodeHaveAsk([blob.digest, blob.digest])],
    ['content/read', noise(50, 'x')],
  ] as const) {
    await assert.rejects(
      () => ask(method, body),
      (error) => isCoded(error, 'content-invalid'),
    );
  }
  await assert.rejects(
    () => ask('content/read', encodeReadAsk([range])),
    (error) => isCoded(error, 'blob-not-found'),
  );
  const open2 = await seed.store.put(once(noise(100_000, 'open')));
  const beyond = { blob: open2.digest, offset: 99_999, length: 2 };
  await assert.rejects(
    () => sourceOf(connection).read([beyond]),
    (error) => isCoded(error),
  );
});

test('those who fetch the same blob give it to each other while it comes', async (t) => {
  const limits = { refreshMs: 150, patienceMs: 300_000, silentMs: 300_000 };
  const peers = await Promise.all(Array.from({ length: 4 }, () => open(t, { limits })));
  const [first, ...others] = peers as [ContentNode, ...ContentNode[]];
  const bytesOf = (peer: ContentNode) => peer.downloader.active()[0]?.bytes ?? 0;
  const allHaveSome = Promise.withResolvers<void>();
  const served = async () => {
    // The seed gives a beginning, and then nothing until what it gave has gone around.
    if (bytesOf(first) > 0) await allHaveSome.promise;
    return true;
  };
  const seed = await open(t, { served });
  const blob = await seed.store.put(once(noise(4_000_000, 'swarm')));
  const fetching = [first.fetch(blob, [seed, ...others])];
  await until('the first has some of it', () => bytesOf(first) > 0);
  for (const peer of others)
    fetching.push(
      peer.fetch(
        blob,
        peers.filter((of) => of !== peer),
      ),
    );
  await until('all have some of it', () => peers.every((peer) => bytesOf(peer) > 0));
  for (const peer of peers) assert.equal(await peer.store.stat(blob.digest), null);
  allHaveSome.resolve();
  const reports = await Promise.all(fetching);
  for (const peer of peers) await holds(peer, blob);
  for (const { from } of reports) assert.equal(sum(from), blob.size);
  const given = reports.reduce((total, { from }) => total + (from.get(seed.node) ?? 0), 0);
  assert.ok(given <= blob.size, `the seed gave ${given} of ${4 * blob.size} bytes`);
});

test('an upload limit is shared evenly, however much one node asks for at once', async (t) => {
  const seed = await open(t, { uploadBytesPerSecond: 4_000_000 });
  const blob = await seed.store.put(once(noise(8_000_000, 'shared')));
  const nodes = [await open(t), await open(t)] as const;
  const counts = [0, 0];
  const enough = Promise.withResolvers<void>();
  const over = new AbortController();
  const pull = async (who: 0 | 1, offset: number) => {
    const source = sourceOf(await nodes[who].channel.connect(seed.address, { expect: seed.node }));
    for (;;) {
      await source.fetchRange(
        { blob: blob.digest, offset, length: 2_000_000 },
        (bytes) => {
          // From the moment on that both get something.
          counts[who]! += bytes.length;
          if (counts[0] === 0 || counts[1] === 0) counts[who] = 1;
          if (counts[0]! + counts[1]! > 6_000_000) enough.resolve();
        },
        { signal: over.signal },
      );
    }
  };
  const pulls = [pull(0, 0), pull(0, 1), pull(0, 2), pull(1, 3)];
  await Promise.race([enough.promise, ...pulls]);
  over.abort();
  await Promise.allSettled(pulls);
  const [much, little] = counts as [number, number];
  assert.ok(much / little < 1.7, `${much} and ${little} bytes`);
});

test('a source that goes away in the middle is replaced; with none left, the rest comes when one is back', async (t) => {
  const blobs = noise(10_000_000, 'gone');
  const [first, second] = [await open(t, { uploadBytesPerSecond: 4_000_000 }), await open(t)];
  const peer = await open(t, { limits: { refreshMs: 100, patienceMs: 4_000 } });
  const blob = await first.store.put(once(blobs));
  const half = Promise.withResolvers<void>();
  const failing = peer.fetch(blob, [first], {
    onProgress: ({ done }) => {
      if (done! > 1_500_000) half.resolve();
    },
  });
  await half.promise;
  await first.channel[Symbol.asyncDispose]();
  await assert.rejects(failing, (error) => isCoded(error, 'content-unavailable'));
  await second.store.put(once(blobs));
  let report: DownloadReport | undefined;
  // A busy machine may take longer than it has patience.
  await until('the rest comes', async () => {
    report = await peer.fetch(blob, [first, second]);
    return true;
  });
  assert.ok(report!.resumed > 1_000_000);
  assert.equal(report!.resumed + sum(report!.from), blob.size);
  await holds(peer, blob);
});

test('who is given what can be seen as long as it moves, over bulk sockets and in small pieces', async (t) => {
  const seed = await open(t, { uploadBytesPerSecond: 2 * 2 ** 20 });
  const [peer, other] = [await open(t), await open(t)];
  const large = await seed.store.put(once(noise(4_000_000, 'seen')));
  const small = await seed.store.put(once(noise(60_000, 'seen')));
  assert.deepEqual(seed.outgoing.figures(), []);
  const fetching = Promise.all([
    peer.fetch(large, [seed]),
    other.fetch(large, [seed]).then(() => other.fetch(small, [seed])),
  ]);
  const given = (node: string, blob: BlobInfo) =>
    seed.outgoing.figures().find((of) => of.node === node && of.blob === blob.digest);
  for (const { node } of [peer, other]) {
    await until('it moves', () => (given(node, large)?.bytes ?? 0) > 500_000, { everyMs: 5 });
    assert.ok(given(node, large)!.bytesPerSecond > 0);
  }
  await until('the small one', () => given(other.node, small)?.bytes === small.size, { everyMs: 5 });
  await fetching;
  await until('nothing moves', () => seed.outgoing.figures().length === 0);
});
