import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { Replication, type ResourceBook } from './replication.ts';

const SELF = 'a'.repeat(64);
const id: Digest = `sha256:${'1'.repeat(64)}`;

test('a closed Replication leaves the book alone, whatever was still under way', async () => {
  let isOpen = true;
  const resource = { id, blobs: [], replication: 3, held: false };
  const use = <T>(value: T): T => {
    assert.ok(isOpen, 'the book is closed');
    return value;
  };
  const book: ResourceBook = {
    get: () => use(resource),
    page: () => use([resource]),
    setHeld: () => use(undefined),
  };
  const timers: (() => void)[] = [];
  const brought = Promise.withResolvers<void>();
  const replication = new Replication(
    {
      ask: async () => new Uint8Array(),
      clock: { nowMs: () => 1_000 },
      random: () => 0.5,
      timers: {
        after(_ms, work) {
          timers.push(work);
          return () => undefined;
        },
      },
    },
    {
      self: SELF,
      book,
      alive: () => [],
      isAway: () => false,
      bring: () => brought.promise,
      periodMs: 1_000,
      concurrency: 1,
      keeps: true,
    },
  );
  replication.changed();
  await replication.settle();
  replication[Symbol.dispose]();
  isOpen = false;
  brought.reject(new HyperMeshError('cancelled', 'The node stops.'));
  replication.changed();
  await replication.arrived(id);
  for (let work = timers.shift(); work !== undefined && timers.length < 50; work = timers.shift()) {
    work();
    await Promise.resolve();
  }
});
