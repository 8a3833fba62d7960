import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { hex, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { SEQUENCER_LIMITS, type Sequencer } from '../subsystems/nkrypt/order/sequencer.ts';

/** The names of one order, and everything that was ever put into it. */
export async function wholeOrder(sequencer: Sequencer): Promise<readonly string[]> {
  const all: string[] = [];
  for (;;) {
    const some = await sequencer.read(all.length);
    if (some.length === 0) return all;
    all.push(...some.map((entry) => Buffer.from(entry).toString()));
  }
}

/** What every engine promises. `open` gives another handle of the order with that name, as another validator would have it. */
export function testSequencer(
  name: string,
  open: (log: string) => Promise<Sequencer>,
  { skip = false }: { readonly skip?: string | false } = {},
): void {
  describe(`sequencer ${name}`, { skip }, () => {
    const fresh = () => `${hex(randomBytes(32))}-0`;

    it('gives positions from 1 on, without gaps, and shows the entries in that order to everybody', async () => {
      const log = fresh();
      await using one = await open(log);
      await using other = await open(log);
      assert.deepEqual(await one.read(0), []);
      assert.equal(await one.append(utf8('a')), 1);
      assert.equal(await other.append(utf8('b')), 2);
      assert.equal(await one.append(utf8('c')), 3);
      for (const handle of [one, other]) {
        assert.deepEqual(await wholeOrder(handle), ['a', 'b', 'c']);
        assert.deepEqual(
          (await handle.read(1)).map((entry) => Buffer.from(entry).toString()),
          ['b', 'c'],
        );
        assert.deepEqual(await handle.read(3), []);
        assert.deepEqual(await handle.read(99), []);
      }
    });

    it('has an entry once, whoever repeats it and however often, also at the same time', async () => {
      const log = fresh();
      await using one = await open(log);
      await using other = await open(log);
      const names = Array.from({ length: 40 }, (_, at) => `entry ${at % 10}`);
      const positions = await Promise.all(names.map((entry, at) => (at % 2 === 0 ? one : other).append(utf8(entry))));
      const all = await wholeOrder(one);
      assert.deepEqual([...all].sort(), [...new Set(names)].sort());
      assert.deepEqual(
        positions.map((position) => all[position - 1]),
        names,
      );
      assert.equal(await other.append(utf8('entry 3')), positions[3]);
    });

    it('keeps orders of different names apart', async () => {
      await using one = await open(fresh());
      await using other = await open(fresh());
      assert.equal(await one.append(utf8('mine')), 1);
      assert.deepEqual(await other.read(0), []);
      assert.equal(await other.append(utf8('mine')), 1);
    });

    it('takes the largest entry and every byte, and refuses what is larger or empty', async () => {
      await using sequencer = await open(fresh());
      const largest = randomBytes(SEQUENCER_LIMITS.entryBytesMax);
      assert.equal(await sequencer.append(new Uint8Array(largest)), 1);
      assert.ok(largest.equals((await sequencer.read(0))[0]!));
      for (const size of [0, SEQUENCER_LIMITS.entryBytesMax + 1]) {
        await assert.rejects(sequencer.append(new Uint8Array(size)), (error) => isCoded(error, 'limit-exceeded'));
      }
    });

    it('reads in bounded pieces, which join to the whole', async () => {
      await using sequencer = await open(fresh());
      const size = 100_000;
      const entries = Array.from({ length: 30 }, (_, at) => new Uint8Array(size).fill(at + 1));
      await Promise.all(entries.map((entry) => sequencer.append(entry)));
      const sizes: number[] = [];
      for (let at = 0; at < entries.length; ) {
        const piece = await sequencer.read(at);
        assert.ok(piece.length > 0 && piece.length * size <= SEQUENCER_LIMITS.readBytesMax);
        sizes.push(piece.length);
        at += piece.length;
      }
      assert.ok(sizes.length > 1);
    });

    it('may drop what nobody needs any more, and keeps the places of everything else', async () => {
      const log = fresh();
      await using one = await open(log);
      await using other = await open(log);
      const names = Array.from({ length: 40 }, (_, at) => `entry ${at + 1}`);
      for (const name of names) await one.append(utf8(name));
      const read = async (after: number) => (await other.read(after)).map((entry) => Buffer.from(entry).toString());
      await one.forget(0);
      assert.equal((await read(0))[0], 'entry 1');
      await Promise.all([one.forget(35), other.forget(30)]);
      await other.forget(20);
      assert.deepEqual(await read(35), names.slice(35));
      // Nothing, or what it still has; never something else in its place.
      assert.ok(['entry 1', undefined].includes((await read(0))[0]));
      assert.equal(await other.append(utf8('entry 36')), 36);
      assert.equal(await one.append(utf8('entry 41')), 41);
      await one.forget(99);
      assert.equal(await other.append(utf8('entry 42')), 42);
      assert.deepEqual(await read(41), ['entry 42']);
    });

    it('tells who watches that it has fewer entries than it had', async () => {
      const log = fresh();
      await using one = await open(log);
      await one.append(utf8('a'));
      await assert.rejects(
        async () => {
          for await (const _ of one.watch(2, AbortSignal.timeout(60_000)));
        },
        (error) => isCoded(error, 'order-stopped'),
      );
    });

    it('tells who watches that the order grew, from any handle, until the watching ends', {
      timeout: 900_000,
    }, async () => {
      const log = fresh();
      await using one = await open(log);
      await using other = await open(log);
      await other.append(utf8('before'));
      const ending = new AbortController();
      const seen: number[] = [];
      const watching = (async () => {
        for await (const length of one.watch(0, ending.signal)) seen.push(length);
      })();
      const until = async (length: number) => {
        while (seen.at(-1) !== length) await sleep(5);
      };
      await until(1);
      await other.append(utf8('after'));
      await until(2);
      await other.append(utf8('after'));
      await one.append(utf8('at last'));
      await until(3);
      assert.deepEqual(seen, [...seen].sort());
      ending.abort();
      await watching;
    });
  });
}
