import { createHash } from 'node:crypto';
import { digestOf } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import type { BlobDescription } from '../capabilities/content.ts';
import { sourceOf } from '../subsystems/stoq/content/index.ts';
import { certifiedNode } from './certified-network.ts';
import { ContentNode, type Place } from './content-node.ts';
import type { ChildCall, ChildOptions } from './content-process.ts';

/** A node as a process of its own, told what to do by its parent: {@link ContentProcess}. */

const { secrets, ...options } = JSON.parse(process.argv[2]!) as ChildOptions;
const node = await ContentNode.open({ ...options, certified: certifiedNode(secrets) });

/** Bytes that look random, the same for the same seed, without keeping them. */
async function* content(bytes: number, seed: string): AsyncGenerator<Uint8Array> {
  const block = createHash('shake256', { outputLength: 1 << 20 })
    .update(seed)
    .digest();
  for (let at = 0; at < bytes; at += block.length) {
    block.writeUInt32BE(at / block.length, 0);
    // A few more places, so that no shard occurs twice.
    for (let i = 1; i < 64; i++) block.writeUInt32BE(((at / block.length) * 2_654_435_761) >>> 0, i * 16_384);
    yield new Uint8Array(block.subarray(0, Math.min(block.length, bytes - at)));
  }
}

async function answer({ call, args }: ChildCall): Promise<unknown> {
  switch (call) {
    case 'place':
      return { address: node.address, node: node.node };
    case 'seed': {
      const [bytes, seed] = args as [number, string];
      return node.store.put(content(bytes, seed));
    }
    case 'fetch': {
      const [blob, others] = args as [BlobDescription, readonly Place[]];
      const startedAtMs = performance.now();
      const { from, ...report } = await node.fetch(blob, others, {
        onProgress: ({ done }) => process.send?.({ progress: done }),
      });
      return { ...report, from: Object.fromEntries(from), ms: performance.now() - startedAtMs };
    }
    case 'has': {
      const hash = createHash('sha256');
      const [blob] = args as [BlobDescription];
      if ((await node.store.stat(blob.digest)) === null) return false;
      for await (const piece of node.store.read(blob.digest)) hash.update(piece);
      return `sha256:${hash.digest('hex')}` === blob.digest;
    }
    case 'objects': {
      // Consecutive parts of a blob, so many in one request.
      const [blob, to, length, perRequest, inFlight] = args as [BlobDescription, Place, number, number, number];
      const source = sourceOf(await node.channel.connect(to.address, { expect: to.node }));
      const count = Math.floor(blob.size / length);
      const startedAtMs = performance.now();
      let next = 0;
      let bytes = 0;
      const lane = async () => {
        while (next < count) {
          const from = next;
          next = Math.min(count, next + perRequest);
          const ranges = Array.from({ length: next - from }, (_, i) => {
            return { blob: blob.digest, offset: (from + i) * length, length };
          });
          const objects = await source.read(ranges);
          for (let at = 0; at < objects.length; at += length) digestOf(objects.subarray(at, at + length));
          bytes += objects.length;
        }
      };
      await Promise.all(Array.from({ length: inFlight }, lane));
      return { count, bytes, ms: performance.now() - startedAtMs };
    }
    case 'requests': {
      // Small requests one after the other, for so long: how long each took.
      const [blob, to, forMs] = args as [BlobDescription, Place, number];
      const source = sourceOf(await node.channel.connect(to.address, { expect: to.node }));
      const took: number[] = [];
      for (const until = performance.now() + forMs; performance.now() < until; ) {
        const startedAtMs = performance.now();
        await source.read([{ blob: blob.digest, offset: 0, length: 1_024 }]);
        took.push(performance.now() - startedAtMs);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      return took;
    }
    case 'usage': {
      const { user, system } = process.cpuUsage();
      return {
        cpuMs: (user + system) / 1_000,
        rssBytes: process.memoryUsage.rss(),
        maxRssBytes: process.resourceUsage().maxRSS * 1_024,
      };
    }
    case 'close':
      await node[Symbol.asyncDispose]();
      return null;
  }
}

process.on('message', (message: ChildCall) => {
  void answer(message)
    .then(
      (result) => ({ id: message.id, result }),
      (error: unknown) => ({ id: message.id, error: isCoded(error) ? error.code : String(error) }),
    )
    .then((reply) => process.send?.(reply));
});
process.on('disconnect', () => process.exit());
process.send?.({ ready: true });
