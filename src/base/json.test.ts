import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { canonicalJson } from './json.ts';

test('canonicalJson() sorts keys by UTF-16 code unit, also those that look like integers', () => {
  assert.equal(
    canonicalJson({ b: 1, a: [true, null, 'x'], '10': 0, '9': 0 }),
    '{"10":0,"9":0,"a":[true,null,"x"],"b":1}',
  );
  // The example of RFC 8785 section 3.2.3.
  const keys = { '\u20ac': 1, '\r': 2, '\ufb33': 3, '1': 4, '\ud83d\ude00': 5, '\u0080': 6, '\u00f6': 7 };
  assert.deepEqual(Object.values(keys).toSorted(), [1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual([...canonicalJson(keys).matchAll(/:(\d)/g)].map(([, n]) => n).join(''), '2467153');
});

test('canonicalJson() gives equal values equal text, and loses nothing', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      const text = canonicalJson(value);
      assert.equal(canonicalJson(JSON.parse(text)), text);
      assert.deepEqual(JSON.parse(text), JSON.parse(JSON.stringify(value)));
    }),
  );
});

test('canonicalJson() leaves out undefined members and refuses what JSON cannot say', () => {
  assert.equal(canonicalJson({ a: undefined, b: 1 }), '{"b":1}');
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, undefined, () => 1, [undefined]]) {
    assert.throws(() => canonicalJson(bad), TypeError);
  }
});
