import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { answer } from './ask.ts';

test('answer() gives what was typed, and is cancelled by Ctrl-C and Ctrl-D', async () => {
  for (const [typed, expected] of [
    ['/srv/books\r', '/srv/books'],
    ['\r', ''],
    ['\u0003', null],
    ['\u0004', null],
  ] as const) {
    const [input, output] = [new PassThrough(), new PassThrough()];
    const answered = answer('Which one? ', input, output);
    input.write(typed);
    if (expected === null) await assert.rejects(answered, { code: 'cancelled' });
    else assert.equal(await answered, expected);
  }
});
