import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import semver from 'semver';
import { precedenceKey } from './precedence.ts';

const number = fc.oneof(fc.nat(12), fc.nat(2 ** 31 - 1)).map(String);
const identifier = fc.oneof(
  number,
  fc.stringMatching(/^[0-9A-Za-z-]{1,4}$/).filter((text) => !/^0\d+$/.test(text)),
);
const version = fc
  .tuple(number, number, number, fc.option(fc.array(identifier, { minLength: 1, maxLength: 3 })), fc.boolean())
  .map(
    ([major, minor, patch, pre, build]) =>
      `${major}.${minor}.${patch}${pre ? `-${pre.join('.')}` : ''}${build ? '+b.1' : ''}`,
  );

test('precedenceKey() sorts like the versions themselves', () => {
  fc.assert(
    fc.property(version, version, (a, b) => {
      const [keyA, keyB] = [Buffer.from(precedenceKey(a)), Buffer.from(precedenceKey(b))];
      assert.equal(Buffer.compare(keyA, keyB), semver.compare(a, b), `${a} and ${b}`);
    }),
    { numRuns: 3_000 },
  );
});

test('precedenceKey() follows the example of the specification', () => {
  const sorted = [
    '1.0.0-alpha',
    '1.0.0-alpha.1',
    '1.0.0-alpha.beta',
    '1.0.0-beta',
    '1.0.0-beta.2',
    '1.0.0-beta.11',
    '1.0.0-rc.1',
    '1.0.0',
    '1.9.0',
    '1.10.0',
    '10.0.0',
  ];
  assert.deepEqual(
    sorted.toReversed().sort((a, b) => (precedenceKey(a) < precedenceKey(b) ? -1 : 1)),
    sorted,
  );
});
