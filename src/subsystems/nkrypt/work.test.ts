import assert from 'node:assert/strict';
import { test } from 'node:test';
import { workThreads } from './work.ts';

test('threads for work leave one processor to the proof of time, and do not grow with a large machine', () => {
  assert.deepEqual([1, 2, 3, 5, 64, 256].map(workThreads), [1, 1, 2, 4, 4, 4]);
});
