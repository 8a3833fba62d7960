import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { decodeEvent, type Event, encodeEvent, severity } from './event.ts';

function vectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/events/${name}.json`, import.meta.url), 'utf8')) as T[];
}

function dataLine(message: string): string {
  return /^data: (.*)$/m.exec(message)![1]!;
}

for (const { name, event, text } of vectors<{ name: string; event: Event; text: string }>('valid')) {
  test(`valid vector: ${name}`, () => {
    assert.equal(encodeEvent(event), text);
    assert.deepEqual(decodeEvent(dataLine(text)), event);
  });
}

for (const { name, data } of vectors<{ name: string; data: string }>('invalid')) {
  test(`invalid vector: ${name}`, () => {
    assert.throws(
      () => decodeEvent(data),
      (error) => isCoded(error, 'usage'),
    );
  });
}

test('any event is one message of two lines and survives the way there and back', () => {
  const event = fc.record(
    {
      sequence: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      atMs: fc.nat(),
      type: fc.constantFrom('a', 'catalog.published', 'x-1.y_2'),
      severity: fc.constantFrom(...severity.options),
      source: fc.constantFrom('catalog', 'host'),
      data: fc.json().map((text) => JSON.parse(text) as Json),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(event, (value) => {
      const message = encodeEvent(value);
      assert.match(message, /^id: \d+\ndata: [^\n\r]+\n\n$/);
      assert.deepEqual(decodeEvent(dataLine(message)), value);
    }),
  );
});
