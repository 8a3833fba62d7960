import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { digestOf } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { checkLock, decodeLock, encodeLock, type Lock } from './lock.ts';
import { assetId, type PackageName } from './names.ts';

const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/lock/${kind}.json`, import.meta.url), 'utf8'));

for (const { name, text } of vectors('valid') as { name: string; text: string }[]) {
  test(`decodeLock() accepts and reproduces: ${name}`, () => assert.equal(encodeLock(decodeLock(text)), text));
}

for (const { why, text, says } of vectors('invalid') as { why: string; text: string; says: string }[]) {
  test(`decodeLock() refuses: ${why}`, () => {
    assert.throws(
      () => decodeLock(text),
      (error) => {
        assert.ok(isCoded(error, 'lock-invalid'), String(error));
        assert.match(error.message, new RegExp(says));
        assert.ok(error.hint);
        return true;
      },
    );
  });
}

const word = fc.stringMatching(/^[a-z][a-z0-9-]{0,6}$/);
const locks: fc.Arbitrary<Lock> = fc
  .uniqueArray(fc.tuple(word, word), { maxLength: 6, selector: String })
  .chain((names) =>
    fc
      .tuple(
        fc.array(fc.nat(99), { minLength: names.length, maxLength: names.length }),
        fc.infiniteStream(fc.boolean()),
      )
      .map(([minors, coins]) => {
        const full = names.map((pair) => pair.join('/') as PackageName);
        const packages = full.map((name, index) => {
          const version = `1.${minors[index]}.0`;
          const digest = digestOf(Buffer.from(`${name}@${version}`));
          const dependencies = full.slice(index + 1).filter(() => coins.next().value);
          return { name, version, digest, id: assetId('package', digest), layers: [digest], dependencies };
        });
        const requested = Object.fromEntries(full.filter(() => coins.next().value).map((name) => [name, '^1.0.0']));
        return { formatVersion: 1, requested, packages };
      }),
  );

test('encodeLock() is canonical: any order of packages and keys gives the same text, which decodes to the same lock', () => {
  fc.assert(
    fc.property(locks, (lock) => {
      const text = encodeLock(lock);
      const shuffled = {
        packages: lock.packages
          .toReversed()
          .map((entry) => ({ ...entry, dependencies: entry.dependencies.toReversed() })),
        requested: Object.fromEntries(Object.entries(lock.requested).reverse()),
        formatVersion: 1,
      };
      assert.equal(encodeLock(checkLock(shuffled)), text);
      assert.deepEqual(decodeLock(text), checkLock(lock));
      assert.ok(text.endsWith('}\n') && !text.endsWith('\n\n'));
    }),
  );
});

test('decodeLock() meets hostile text with nothing but lock-invalid', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
      assert.throws(
        () => decodeLock(text),
        (error) => isCoded(error, 'lock-invalid'),
      );
    }),
  );
});
