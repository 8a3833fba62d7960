import assert from 'node:assert/strict';
import { test } from 'node:test';
import { base64, utf8 } from '../../base/bytes.ts';
import { isCoded } from '../../base/errors.ts';
import type { Committee } from './committee.ts';
import { Desk } from './desk.ts';

test('what members bring into the order is bounded, for each and for all of them', async () => {
  const { promise: ordered, resolve } = Promise.withResolvers<void>();
  const desk = new Desk({
    // The cast: nothing here is asked of it.
    committee: undefined as unknown as Committee,
    office: {
      submit: () => ordered,
      account: () => assert.fail('not asked for'),
      ownerOf: () => assert.fail('not asked for'),
    },
  });
  const refusals: unknown[] = [];
  const bring = async (who: string, what: string) => {
    const asked = desk.answer('committee/entry', who, { entry: base64(utf8(what)) });
    await asked.catch((error: unknown) => refusals.push(error));
  };
  const bringing = Array.from({ length: 9 }, (_, at) => bring('ada', `${at}`));
  for (let at = 0; at < 249; at += 1) bringing.push(bring(`member ${at % 100}`, `${at}`));
  resolve();
  await Promise.all(bringing);
  assert.equal(refusals.length, 2);
  for (const error of refusals)
    assert.ok(isCoded(error, 'quota-exceeded') && typeof error.details?.['retryInMs'] === 'number', String(error));
});
