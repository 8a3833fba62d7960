import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { together } from './streams.ts';

test('together() waits for all, and passes a signal on', async () => {
  const done: string[] = [];
  const outer = new AbortController();
  await together(outer.signal, [
    async () => void done.push('a'),
    async () => {
      await sleep(1);
      done.push('b');
    },
  ]);
  assert.deepEqual(done, ['a', 'b']);

  const stopped = together(outer.signal, [(signal) => sleep(60_000, undefined, { signal })]);
  outer.abort(new Error('enough'));
  await assert.rejects(stopped, { name: 'AbortError' });
});

test('together() throws the first failure when the others have ended', async () => {
  let ended = false;
  const works = [
    async (signal: AbortSignal) => {
      await sleep(60_000, undefined, { signal }).catch(() => sleep(1));
      ended = true;
    },
    async () => {
      throw new Error('first');
    },
  ];
  await assert.rejects(together(undefined, works), /first/);
  assert.equal(ended, true);
});
