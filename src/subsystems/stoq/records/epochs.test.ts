import assert from 'node:assert/strict';
import { test } from 'node:test';
import { utf8 } from '../../../base/bytes.ts';
import { digestOf } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { EpochCollection } from './epochs.ts';

/** Documents that are no more than their numbers: each follows the one before it. `changed` is what the home says when one is taken. */
function home(changed: (collection: EpochCollection) => void = (one) => void one.refresh()) {
  const kept: string[] = [];
  const collection: EpochCollection = new EpochCollection({
    numbers: () => kept.map((_, at) => at + 1),
    read: (epoch) => (kept[epoch - 1] === undefined ? null : utf8(kept[epoch - 1]!)),
    take: async (bytes) => {
      const text = Buffer.from(bytes).toString();
      const [number, approvals] = text.split(' ');
      if (!/^\d+$/.test(number!)) throw new HyperMeshError('epoch-invalid', 'It is none.');
      const epoch = Number(number);
      if (epoch <= kept.length) return kept[epoch - 1] === text ? 'accepted' : 'known';
      if (epoch > kept.length + 1) return 'later';
      kept.push(`${number} ${approvals}`);
      changed(collection);
      return 'accepted';
    },
  });
  const receive = (text: string) => collection.receive(digestOf(utf8(text)), utf8(text));
  return { kept, collection, receive };
}

const idOf = (text: string) => digestOf(utf8(text));

test('documents that come in the wrong order count as soon as those before them are there', async () => {
  const { kept, collection, receive } = home();
  assert.equal(await receive('3 abc'), 'aside');
  assert.equal(await receive('2 abc'), 'aside');
  assert.ok(collection.knows(idOf('3 abc')));
  assert.equal(await collection.read(idOf('3 abc')), null);
  assert.equal(await receive('1 abc'), 'accepted');
  // Two waited in the order in which they came: the one that could not follow yet is fetched again, or waits on.
  await receive('3 abc');
  assert.deepEqual(kept, ['1 abc', '2 abc', '3 abc']);
  assert.deepEqual(await collection.read(idOf('3 abc')), utf8('3 abc'));
});

test('the same committee by other approvals is not handed on, and nobody is blamed for it; what is no document costs its place', async () => {
  const { collection, receive } = home();
  assert.equal(await receive('1 abc'), 'accepted');
  assert.equal(await receive('1 abcd'), 'aside');
  assert.ok(collection.knows(idOf('1 abcd')));
  assert.equal(await collection.read(idOf('1 abcd')), null);
  assert.equal(await receive('nonsense'), 'refused');
  assert.ok(collection.knows(idOf('nonsense')));
});

test('what the home learns elsewhere is found once, and handed on', async () => {
  const { kept, collection } = home();
  kept.push('1 abc', '2 abc');
  assert.deepEqual(collection.refresh(), [idOf('1 abc'), idOf('2 abc')]);
  assert.deepEqual(collection.refresh(), []);
  assert.deepEqual(await collection.read(idOf('2 abc')), utf8('2 abc'));
});
