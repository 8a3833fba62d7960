import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { utf8 } from '../../../base/bytes.ts';
import { digestOf } from '../../../base/digest.ts';
import { encodeReadAsk, READ_RANGES_MAX } from '../../../wire/content.ts';
import { Outgoing } from './outgoing.ts';
import { contentMethods } from './serve.ts';
import { Shaper } from './shaper.ts';

test('an answer is read from few blobs at a time, however many it is asked from, in the order asked', async () => {
  let reading = 0;
  let most = 0;
  const blobs = Array.from({ length: READ_RANGES_MAX }, (_, i) => digestOf(utf8(`blob ${i}`)));
  const read = contentMethods({
    store: {
      holding: async () => ({ kind: 'complete' }),
      shardList: async () => null,
      stat: async () => null,
      async readHeld(blob, _, into) {
        reading += 1;
        most = Math.max(most, reading);
        await sleep(1);
        into.fill(blobs.indexOf(blob));
        reading -= 1;
      },
    },
    served: () => true,
    admit: () => {},
    uploads: new Shaper(null),
    outgoing: new Outgoing(),
  }).get('content/read')!;
  const ask = encodeReadAsk(blobs.map((blob) => ({ blob, offset: 0, length: 300 })));
  const from = { kind: 'member', node: 'a'.repeat(64), publisher: null, address: 'there' } as const;
  const reply = await read.handle(ask, from, { signal: new AbortController().signal });
  assert.ok(!(reply instanceof Uint8Array));
  // A piece is good until the next one is asked for.
  const came: number[] = [];
  for await (const piece of reply.body) came.push(...piece);
  assert.deepEqual(
    came,
    blobs.flatMap((_, i) => new Array(300).fill(i)),
  );
  assert.ok(most > 1 && most <= 8, `${most} at a time`);
});
