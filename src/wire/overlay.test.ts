import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { OVERLAY_MESSAGES } from '../testing/overlay-messages.ts';
import { readVectors } from '../testing/vectors.ts';
import { decodeMessage, encodeMessage, HOLDERS_MAX, OVERLAY_BYTES_MAX, RESOURCE_IDS_MAX } from './overlay.ts';

interface Text {
  readonly why: string;
  readonly schema: keyof typeof OVERLAY_MESSAGES;
  readonly text: string;
}

const { messages } = readVectors<{ messages: (Text & { value: unknown })[] }>('overlay', 'valid');

suite('messages of the overlay', () => {
  test('are read and written as in the vectors', () => {
    for (const { why, schema, text, value } of messages) {
      assert.deepEqual(decodeMessage<unknown>(OVERLAY_MESSAGES[schema], utf8(text)), value, why);
      assert.equal(fromUtf8(encodeMessage(value)), text, why);
    }
    assert.deepEqual([...new Set(messages.map(({ schema }) => schema))].sort(), Object.keys(OVERLAY_MESSAGES).sort());
  });

  test('are refused as in the vectors', () => {
    for (const { why, schema, text } of readVectors<Text[]>('overlay', 'invalid')) {
      assert.throws(
        () => decodeMessage<unknown>(OVERLAY_MESSAGES[schema], utf8(text)),
        (error) => isCoded(error, 'peer-lied'),
        `${schema}: ${why}`,
      );
    }
  });

  test('the longest of them fit the limit', () => {
    const id = 'f'.repeat(64);
    for (const [schema, value] of [
      [OVERLAY_MESSAGES.resourceIds, { ids: new Array(RESOURCE_IDS_MAX).fill(`sha256:${id}`) }],
      [OVERLAY_MESSAGES.holders, { nodes: new Array(HOLDERS_MAX).fill(id) }],
    ] as const) {
      const written = encodeMessage(value);
      assert.ok(written.length <= OVERLAY_BYTES_MAX, `${written.length}`);
      assert.deepEqual(decodeMessage<unknown>(schema, written), value);
    }
  });
});
