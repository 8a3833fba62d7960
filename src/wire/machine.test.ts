import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { decodeMachineFile } from './machine.ts';
import { decodeMachineSnapshot, encodeMachineSnapshot, snapshotKey } from './machine-snapshot.ts';

interface Vector {
  readonly name: string;
  readonly text: string;
  /** Invalid: the member that is wrong. */
  readonly why?: string;
  readonly value?: unknown;
  readonly key?: string;
}

function vectors(format: string, list: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(
    readFileSync(new URL(`../../test/vectors/${format}/${list}.json`, import.meta.url), 'utf8'),
  ) as Vector[];
}

for (const { name, text, value } of vectors('machine', 'valid')) {
  test(`the description of a machine is read: ${name}`, () => assert.deepEqual(decodeMachineFile(text), value));
}

for (const { name, why, text } of vectors('machine', 'invalid')) {
  test(`the description of a machine is refused: ${name}`, () => {
    assert.throws(() => decodeMachineFile(text), { code: 'program-invalid', message: new RegExp(`valid: ${why}`) });
  });
}

for (const { name, text, key } of vectors('machine-snapshot', 'valid')) {
  test(`the record of a snapshot is read, written and named: ${name}`, () => {
    const snapshot = decodeMachineSnapshot(text);
    assert.deepEqual(snapshot, JSON.parse(text));
    assert.deepEqual(decodeMachineSnapshot(encodeMachineSnapshot(snapshot)), snapshot);
    assert.equal(snapshotKey(snapshot.origin), key);
    assert.notEqual(snapshotKey({ ...snapshot.origin, memoryMiB: 97 }), key);
  });
}

for (const { name, why, text } of vectors('machine-snapshot', 'invalid')) {
  test(`the record of a snapshot is refused: ${name}`, () => {
    assert.throws(() => decodeMachineSnapshot(text), {
      code: 'config-invalid',
      message: new RegExp(`damaged: ${why}`),
    });
  });
}

test('texts without end are refused', () => {
  assert.throws(() => decodeMachineFile(' '.repeat(65 * 1024)), { code: 'program-invalid', message: /too long/ });
  assert.throws(() => decodeMachineSnapshot(' '.repeat(600 * 1024)), { code: 'config-invalid', message: /too long/ });
});
