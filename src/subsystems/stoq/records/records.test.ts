import assert from 'node:assert/strict';
import { hash, randomBytes } from 'node:crypto';
import { suite, test } from 'node:test';
import fc from 'fast-check';
import { fromHex, hex, utf8 } from '../../../base/bytes.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import { readVectors } from '../../../testing/vectors.ts';
import {
  decodeCompareAnswer,
  decodeCompareRequest,
  encodeCompareAnswer,
  encodeCompareRequest,
} from '../../../wire/reconcile.ts';
import { type Answer, type Ask, systemTimers } from '../ask.ts';
import type { NodeId } from '../channel/index.ts';
import { type Collection, type Reception, RecordExchange } from './exchange.ts';
import { IdSet } from './id-set.ts';
import { reconcile } from './reconcile.ts';

const idBytes = fc.uint8Array({ minLength: 32, maxLength: 32 });
const digestsOf = (ids: readonly Uint8Array[]) => ids.map((id): Digest => `sha256:${hex(id)}`);

/** Both ends of a comparison, and what went over the wire between them. */
async function compared(ours: IdSet, theirs: IdSet) {
  const salt = randomBytes(16);
  let bytes = 0;
  let rounds = 0;
  const difference = await reconcile(ours, salt, async (ranges) => {
    const question = encodeCompareRequest({ collection: 'catalog', salt: hex(salt), ranges });
    const asked = decodeCompareRequest(question);
    const answer = encodeCompareAnswer(asked.ranges.map((prefix) => theirs.answer(prefix, salt)));
    bytes += question.length + answer.length;
    rounds += 1;
    return decodeCompareAnswer(answer, ranges);
  });
  return { difference, bytes, rounds };
}

suite('sets of record ids', () => {
  test('behave as sets do, whatever comes in whatever order', () => {
    fc.assert(
      fc.property(fc.array(idBytes, { maxLength: 200 }), fc.array(fc.nat(199), { maxLength: 50 }), (ids, removed) => {
        const digests = digestsOf(ids);
        const model = new Set(digests);
        const set = new IdSet(ids.slice(0, ids.length / 2));
        for (const id of digests.slice(ids.length / 2)) set.add(id);
        for (const at of removed) {
          const id = digests[at];
          if (id !== undefined) assert.equal(set.delete(id), model.delete(id));
        }
        assert.equal(set.size, model.size);
        assert.deepEqual([...set], [...model].sort());
        for (const id of digests) assert.equal(set.has(id), model.has(id));
      }),
    );
  });

  test('find the difference of any two sets, and nothing else', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(idBytes, { maxLength: 400, selector: hex }),
        fc.infiniteStream(fc.nat(9)),
        async (ids, where) => {
          const places = ids.map(() => where.next().value!);
          const ours = new IdSet(ids.filter((_, at) => places[at]! !== 1));
          const theirs = new IdSet(ids.filter((_, at) => places[at]! !== 2));
          const { difference } = await compared(ours, theirs);
          const short = (which: number) =>
            ids
              .filter((_, at) => places[at] === which)
              .map((id) => hex(id).slice(0, 16))
              .sort();
          assert.deepEqual(difference.theirs.map(hex).sort(), short(1));
          assert.deepEqual(difference.ours.map(hex).sort(), short(2));
        },
      ),
    );
  });

  test('are compared in the words of the vectors', async () => {
    type Spans = [from: number, to: number][];
    const numbers = (spans: Spans) =>
      spans.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, at) => from + at));
    const setOf = (spans: Spans) => new IdSet(numbers(spans).map((n) => hash('sha256', String(n), 'buffer')));
    for (const { why, ours, theirs, salt, steps, onlyTheirs, onlyOurs } of readVectors<
      {
        why: string;
        salt: string;
        ours: Spans;
        theirs: Spans;
        steps: { question: string; answer: string }[];
        onlyTheirs: string[];
        onlyOurs: string[];
      }[]
    >('reconcile', 'conversations')) {
      const other = setOf(theirs);
      const left = [...steps];
      const difference = await reconcile(setOf(ours), fromHex(salt), async (ranges) => {
        const { question, answer } = left.shift()!;
        const asked = decodeCompareRequest(utf8(question));
        assert.deepEqual(asked, { collection: 'records', salt, ranges }, why);
        const answers = ranges.map((prefix) => other.answer(prefix, fromHex(salt)));
        assert.equal(hex(encodeCompareAnswer(answers)), answer, why);
        return decodeCompareAnswer(fromHex(answer), ranges);
      });
      assert.deepEqual(left, [], why);
      assert.deepEqual([difference.theirs.map(hex).sort(), difference.ours.map(hex).sort()], [onlyTheirs, onlyOurs]);
    }
  });

  test('100 missing of 100,000 cost at most 64 KiB and a handful of questions', async (t) => {
    const ids = Array.from({ length: 100_000 }, () => randomBytes(32));
    const { difference, bytes, rounds } = await compared(new IdSet(ids.slice(100)), new IdSet(ids));
    t.diagnostic(`${bytes} bytes in ${rounds} questions`);
    assert.equal(difference.theirs.length, 100);
    assert.equal(difference.ours.length, 0);
    assert.ok(bytes <= 64 * 1024, `${bytes} bytes`);
    assert.ok(rounds <= 8, `${rounds} questions`);
  });
});

/** Nodes in one process: a call is a function call. */
class Room {
  readonly nodes = new Map<NodeId, { readonly exchange: RecordExchange; readonly bodies: Map<Digest, Uint8Array> }>();
  readonly accused: { readonly by: NodeId; readonly node: NodeId }[] = [];
  #answers = new Map<NodeId, ReadonlyMap<string, Answer>>();

  add(name: NodeId, judge: (bytes: Uint8Array) => Reception | Promise<Reception> = () => 'accepted'): void {
    const bodies = new Map<Digest, Uint8Array>();
    const refused = new Set<Digest>();
    const ids = new IdSet();
    const collection: Collection = {
      name: 'catalog',
      ids,
      knows: (id) => bodies.has(id) || refused.has(id),
      hasRoom: () => true,
      read: async (id) => bodies.get(id) ?? null,
      async receive(id, bytes) {
        const reception = await judge(bytes);
        if (reception === 'refused') refused.add(id);
        else bodies.set(id, bytes);
        return reception;
      },
    };
    const ask: Ask = async (to, method, body) => this.#answers.get(to)!.get(method)!(body, name);
    const exchange = new RecordExchange(
      { ask, clock: { nowMs: () => 0 }, timers: systemTimers, random: Math.random },
      {
        collections: [collection],
        reachable: () => [...this.nodes.keys()].filter((other) => other !== name),
        accuse: (node) => this.accused.push({ by: name, node }),
        fanout: 4,
      },
    );
    this.nodes.set(name, { exchange, bodies });
    this.#answers.set(name, exchange.answers());
  }

  replace(name: NodeId, method: string, answer: Answer): void {
    this.#answers.set(name, new Map([...this.#answers.get(name)!, [method, answer]]));
  }

  publish(name: NodeId, text: string): Digest {
    const { exchange, bodies } = this.nodes.get(name)!;
    const bytes = utf8(text);
    const id = digestOf(bytes);
    bodies.set(id, bytes);
    exchange.accepted('catalog', id);
    return id;
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

suite('exchange of records', () => {
  test('news reach everybody, and a late comer catches up with one comparison that heals both sides', {
    timeout: 900_000,
  }, async () => {
    const room = new Room();
    for (const name of ['a', 'b', 'c', 'd', 'e']) room.add(name);
    const published = ['a', 'b', 'c'].flatMap((name) => [1, 2, 3].map((n) => room.publish(name, `${name}${n}`)));
    await room.until(() => [...room.nodes.values()].every(({ bodies }) => bodies.size === published.length));

    room.add('late');
    const own = room.publish('late', 'from the one who was away');
    const { received, offered } = await room.nodes.get('late')!.exchange.sync('a', 'catalog');
    assert.equal(received, published.length);
    assert.equal(offered, 1);
    await room.until(() => room.nodes.get('a')!.bodies.has(own));
  });

  test('what is being taken in when it ends is there when it has ended, and nothing comes after that', async () => {
    const room = new Room();
    const [begun, judged] = [Promise.withResolvers<void>(), Promise.withResolvers<Reception>()];
    room.add('a', () => {
      begun.resolve();
      return judged.promise;
    });
    room.add('b');
    for (const text of ['one', 'two']) room.publish('b', text);
    const { exchange, bodies } = room.nodes.get('a')!;
    const sync = assert.rejects(exchange.sync('b', 'catalog'), (error) => isCoded(error, 'cancelled'));
    await begun.promise;
    const ending = exchange[Symbol.asyncDispose]();
    judged.resolve('accepted');
    await ending;
    assert.equal(bodies.size, 1);
    await sync;
    assert.equal(bodies.size, 1);
  });

  test('who hands over other bytes than were asked for, or what breaks the rules, is accused', async () => {
    const room = new Room();
    room.add('honest', (bytes) => (bytes.length > 5 ? 'refused' : 'accepted'));
    room.add('liar');
    const { exchange, bodies } = room.nodes.get('honest')!;
    room.publish('liar', 'breaks the rules');
    assert.deepEqual(await exchange.sync('liar', 'catalog'), { received: 0, offered: 0 });
    assert.deepEqual(room.accused, [{ by: 'honest', node: 'liar' }]);

    room.publish('liar', 'good');
    room.replace('liar', 'records/get', async () => Uint8Array.of(0, 0, 0, 1, 65));
    await assert.rejects(exchange.sync('liar', 'catalog'), (error) => isCoded(error, 'peer-lied'));
    assert.equal(room.accused.length, 2);
    assert.equal(bodies.size, 0);
  });

  test('an answer that never ends in sense is refused, not followed', async () => {
    const room = new Room();
    room.add('honest');
    room.add('liar');
    // Always sixteen other fingerprints: an honest set this deep would have been listed.
    room.replace('liar', 'records/compare', async (body) => {
      const { ranges } = decodeCompareRequest(body);
      return encodeCompareAnswer(
        ranges.map(() => ({ kind: 'split', fingerprints: Array.from({ length: 16 }, () => randomBytes(8)) })),
      );
    });
    await assert.rejects(room.nodes.get('honest')!.exchange.sync('liar', 'catalog'), (error) =>
      isCoded(error, 'peer-lied'),
    );
  });

  test('sorted ids make the set that they make in any order, and it grows', () => {
    for (const count of [0, 1, 2, 63, 200]) {
      const ids = Array.from({ length: count }, () => randomBytes(32));
      const sorted = IdSet.ofSorted(Buffer.concat([...ids].sort(Buffer.compare)));
      assert.deepEqual([...sorted], [...new IdSet(ids)]);
      const more = digestOf(randomBytes(8));
      assert.ok(sorted.add(more) && sorted.has(more) && sorted.size === count + 1);
    }
  });

  test('a record is found by the first bytes of its id', () => {
    const ids = Array.from({ length: 50 }, () => randomBytes(32));
    const set = new IdSet(ids);
    for (const id of ids) assert.equal(digestHex(set.find(id.subarray(0, 8))!), id.toString('hex'));
    assert.equal(set.find(randomBytes(8)), null);
  });
});
