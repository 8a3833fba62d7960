import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { concat, equal } from '../../../base/bytes.ts';
import { noise } from '../../../testing/made-content.ts';
import { DataFile, PAGE, PageBuffers } from './data-file.ts';

const MIB = 2 ** 20;

test('a data file has every byte in its place, whether it went straight to the disk or not', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'hm-data-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const buffers = new PageBuffers(MIB, 2);
  const expected = noise(8 * MIB, 'data');
  for (const size of [8 * MIB, 64 * MIB]) {
    const file = await DataFile.open(join(folder, `${size}`), size, buffers);
    await file.truncate(size);
    // Whole pages and parts of pages, in buffers that fit the file, in those that do not, and in ordinary ones; out of order.
    for (const [from, length, start] of [
      [4 * MIB, MIB, 0],
      [5 * MIB, MIB - 1, 0],
      [6 * MIB - 1, 300_000, PAGE - 1],
      [6 * MIB + 299_999, MIB / 2, 17],
      [6 * MIB + 299_999 + MIB / 2, 2 * MIB - 299_999 - MIB / 2, null],
      [0, 4 * MIB, null],
    ] as const) {
      const bytes = start === null ? new Uint8Array(length) : buffers.take().subarray(start, start + length);
      bytes.set(expected.subarray(from, from + length));
      await file.write(bytes, from);
      assert.ok(equal(await file.read(new Uint8Array(length), from), bytes));
    }
    for (const [from, length] of [
      [0, 8 * MIB],
      [4 * MIB, PAGE],
      [5 * MIB - 3, 2 * MIB + 17],
      [8 * MIB - 5, 5],
    ] as const) {
      const seen: Uint8Array[] = [];
      await file.look(from, length, (bytes) => void seen.push(new Uint8Array(bytes)));
      assert.ok(equal(concat(...seen), expected.subarray(from, from + length)), `${from} of ${size}`);
    }
    let beyond = 0;
    await file.look(size - 10, 100, (bytes) => {
      beyond += bytes.length;
    });
    assert.equal(beyond, 10, 'less where the file ends');
    await file.sync();
    await file.close();
    const found = await readFile(join(folder, `${size}`));
    assert.equal(found.length, size);
    assert.ok(found.subarray(0, expected.length).equals(expected), `${size}`);
  }
});

test('buffers go around, and ordinary ones are made when all are taken', () => {
  const buffers = new PageBuffers(PAGE, 2);
  const taken = [buffers.take(), buffers.take(), buffers.take()];
  assert.deepEqual(
    taken.map((buffer) => [buffer.length, buffers.owns(buffer)]),
    [
      [PAGE, true],
      [PAGE, true],
      [PAGE, false],
    ],
  );
  for (const buffer of taken) buffers.give(buffer);
  assert.deepEqual(
    [buffers.owns(buffers.take()), buffers.owns(buffers.take()), buffers.owns(buffers.take())],
    [true, true, false],
  );
});
