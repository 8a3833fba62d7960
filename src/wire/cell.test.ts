import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { decodeCellMessage } from './cell.ts';

const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/cell/${kind}.json`, import.meta.url), 'utf8')) as {
    name: string;
    why: string;
    message: unknown;
    says: string;
  }[];

describe('decodeCellMessage()', () => {
  for (const { name, message } of vectors('valid')) {
    it(`accepts ${name}`, () => assert.equal(decodeCellMessage(message), message));
  }

  for (const { why, message, says } of vectors('invalid')) {
    it(`refuses ${why}`, () => {
      assert.throws(
        () => decodeCellMessage(message),
        (error) => error instanceof TypeError && error.message.includes(says),
      );
    });
  }

  it('answers any value with a message or a TypeError', () => {
    const kinds = fc.constantFrom('call', 'done', 'fail', 'cancel', 'progress', 'pull', 'item', 'end', 'stop');
    const message = fc.tuple(kinds, fc.anything(), fc.anything(), fc.anything(), fc.anything());
    fc.assert(
      fc.property(
        fc.oneof(
          fc.anything(),
          message,
          message.map((all) => all.slice(0, 3)),
        ),
        (value) => {
          try {
            decodeCellMessage(value);
          } catch (error) {
            assert.ok(error instanceof TypeError && error.message.startsWith('expected '), String(error));
          }
        },
      ),
    );
  });
});
