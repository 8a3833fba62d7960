import assert from 'node:assert/strict';
import { test } from 'node:test';
import { utf8 } from '../../../base/bytes.ts';
import { digestOf } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { TermsCollection } from './terms.ts';

/** Terms that are no more than their version. `judging` is waited for before one counts. */
function home(judging: () => Promise<void> = async () => undefined) {
  const kept = { text: null as string | null };
  const collection = new TermsCollection({
    read: () => (kept.text === null ? null : utf8(kept.text)),
    take: async (bytes) => {
      const text = Buffer.from(bytes).toString();
      if (!/^\d+$/.test(text)) throw new HyperMeshError('certification-invalid', 'The founder did not sign them.');
      await judging();
      if (Number(text) > Number(kept.text ?? 0)) kept.text = text;
    },
  });
  return { kept, collection, receive: (text: string) => collection.receive(idOf(text), utf8(text)) };
}

const idOf = (text: string) => digestOf(utf8(text));

test('terms take the place of those before them, and older ones are neither handed on nor asked for again', async () => {
  const { collection, receive } = home();
  assert.equal(await receive('2'), 'accepted');
  collection.ids.add(idOf('2'));
  assert.equal(await receive('3'), 'accepted');
  assert.ok(!collection.ids.has(idOf('2')));
  assert.equal(await receive('2'), 'aside');
  assert.ok(collection.knows(idOf('2')));
  assert.equal(await collection.read(idOf('2')), null);
  assert.deepEqual(await collection.read(idOf('3')), utf8('3'));
  assert.equal(await receive('by somebody else'), 'refused');
  assert.ok(collection.knows(idOf('by somebody else')));
});

test('of two that are judged at once the one that counts is handed on', async () => {
  const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const { collection, receive } = home(
    (
      (at) => () =>
        gates[at++]!.promise
    )(0),
  );
  const [first, second] = [receive('5'), receive('4')];
  gates[0]!.resolve();
  gates[1]!.resolve();
  assert.deepEqual(await Promise.all([first, second]), ['accepted', 'aside']);
  assert.deepEqual(await collection.read(idOf('5')), utf8('5'));
});

test('what the home says itself is found once, and terms that it went back behind are taken again', async () => {
  const { kept, collection, receive } = home();
  assert.equal(collection.refresh(), null);
  kept.text = '2';
  assert.equal(collection.refresh(), idOf('2'));
  assert.equal(collection.refresh(), null);
  // A copy of the home of earlier was put back.
  kept.text = '1';
  assert.equal(collection.refresh(), idOf('1'));
  assert.equal(await receive('2'), 'accepted');
});
