import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { base64, base64Length, fromBase64 } from './bytes.ts';

test('fromBase64() takes the one text of some bytes, and no other', () => {
  const inserted = fc.constantFrom(' ', '\n', '\t', '=', '-', '_', '\0', 'é');
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 12 }), inserted, fc.nat(), (bytes, extra, where) => {
      const text = base64(bytes);
      assert.deepEqual(fromBase64(text), bytes);
      assert.equal(base64Length(text), bytes.length);
      const at = where % (text.length + 1);
      const refused = [text.slice(0, at) + extra + text.slice(at), ...(text.endsWith('=') ? [text.slice(0, -1)] : [])];
      for (const other of refused) {
        assert.throws(() => fromBase64(other), SyntaxError, other);
        assert.equal(base64Length(other), undefined);
      }
    }),
  );
  for (const length of [0, 49_152, 49_153, 65_536, 1_000_000])
    assert.equal(base64Length(base64(new Uint8Array(length))), length);
  // "AA==" and "AB==" differ in bits that stand for nothing.
  assert.throws(() => fromBase64('AB=='), SyntaxError);
});
