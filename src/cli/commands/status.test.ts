import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NodeStatus } from '../../wire/http.ts';
import { movingText } from './status.ts';

type Transfer = NodeStatus['transport']['transfers'][number];

const [first, second] = ['1'.repeat(64), '2'.repeat(64)] as const;
const arriving: Transfer = {
  ...{ direction: 'in', blob: `sha256:${'a'.repeat(64)}`, resources: [], packages: ['ada/greeter@1.0.0'] },
  ...{ done: 2 ** 20, total: 4 * 2 ** 20, bytesPerSecond: 3 * 2 ** 20 },
  peers: [
    { node: first, bytes: 2 ** 19, bytesPerSecond: 2 ** 21 },
    { node: second, bytes: 2 ** 19, bytesPerSecond: 2 ** 20 },
  ],
};
const leaving: Transfer = {
  ...{ direction: 'out', blob: `sha256:${'b'.repeat(64)}`, resources: [], packages: ['ada/b@1.0.0', 'ada/b@2.0.0'] },
  ...{
    done: 2 ** 10,
    total: 2 ** 20,
    bytesPerSecond: 2 ** 22,
    peers: [{ node: second, bytes: 2 ** 10, bytesPerSecond: 2 ** 22 }],
  },
};

test('status says what moves, both ways, with whom, how fast, and which package it is', () => {
  assert.equal(movingText([]), '');
  const text = movingText([arriving, leaving]);
  assert.deepEqual(
    text.split('\n').map((line) => line.split(/ {2,}/)),
    [
      ['', 'Moving now', 'Bytes', 'Rate', 'With'],
      ['out', 'ada/b@1.0.0 and 1 more', '1.0 KiB given of 1.0 MiB', '4.0 MiB/s', '2222222222222222'],
      [
        ...['in', 'ada/greeter@1.0.0', '1.0 MiB of 4.0 MiB', '3.0 MiB/s'],
        '1111111111111111 (2.0 MiB/s), 2222222222222222 (1.0 MiB/s)',
      ],
    ],
  );
});

test('what the node has no name for goes by its digest, and many are cut short', () => {
  const nameless = { ...arriving, packages: [], peers: [] };
  assert.match(movingText([nameless]), /^in +blob aaaaaaaaaaaa +.* nobody yet$/m);
  assert.match(movingText(Array(25).fill(nameless)), /^and 5 more: --json lists all\.$/m);
});
