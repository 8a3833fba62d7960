import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { firstAnswer } from './first-answer.ts';

const unreachable = () => Promise.reject(new HyperMeshError('peer-unreachable', 'Nobody is there.'));
const refusing = () => Promise.reject(new HyperMeshError('not-permitted', 'No.'));
const silent = () => new Promise<never>(() => undefined);
const options = { patienceMs: 1, isFinal: (error: unknown) => isCoded(error, 'not-permitted') };
const never = { ...options, patienceMs: 2 ** 30 };

test('firstAnswer() asks nobody else while the first one answers', async () => {
  const other = () => assert.fail('nobody else is needed');
  assert.equal(await firstAnswer([async () => 'first', other], never), 'first');
});

test('firstAnswer() asks the next one when one fails, and waits for none that says nothing', async () => {
  assert.equal(await firstAnswer([unreachable, unreachable, async () => 'third'], never), 'third');
  assert.equal(await firstAnswer([silent, silent, unreachable, async () => 'fourth'], options), 'fourth');
});

test('firstAnswer() takes what a slow one says after all, and tells the others to stop', async () => {
  const slow = Promise.withResolvers<string>();
  let stopped = false;
  const asked = (signal: AbortSignal) => {
    signal.addEventListener('abort', () => {
      stopped = true;
    });
    slow.resolve('slow');
    return silent();
  };
  assert.equal(await firstAnswer([() => slow.promise, unreachable, asked], options), 'slow');
  assert.equal(stopped, true);
});

test('firstAnswer() says why when nobody answers: a refusal, or what was wrong with the first', async () => {
  const refused = (code: 'not-permitted' | 'peer-unreachable') => (error: unknown) => isCoded(error, code);
  await assert.rejects(firstAnswer([unreachable, refusing, async () => 'too late'], never), refused('not-permitted'));
  const timeout = () => Promise.reject(new HyperMeshError('timeout', 'It took too long.'));
  await assert.rejects(firstAnswer([unreachable, timeout], never), refused('peer-unreachable'));
});
