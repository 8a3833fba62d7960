import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../../base/errors.ts';
import { matcher } from './match.ts';

test('matcher() agrees with the regular expression of the pattern', () => {
  const word = fc.string({ unit: fc.constantFrom('a', 'b', '.', '*'), maxLength: 8 });
  fc.assert(
    fc.property(word, word, (pattern, text) => {
      const escaped = pattern.split('*').map((part) => part.replaceAll('.', '\\.'));
      assert.equal(matcher(pattern)(text), new RegExp(`^${escaped.join('.*')}$`).test(text));
    }),
    { numRuns: 2_000 },
  );
});

test('matcher() refuses a pattern that is too long', () => {
  assert.throws(
    () => matcher('*a'.repeat(200)),
    (error) => isCoded(error, 'usage'),
  );
});
