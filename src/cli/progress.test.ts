import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { progressMode, showProgress } from './progress.ts';

test('without a terminal, a step that takes long says once what is awaited, and short ones say nothing', (t) => {
  let nowMs = 0;
  t.mock.method(performance, 'now', () => nowMs);
  const stream = new PassThrough();
  const mode = progressMode({}, false);
  using view = showProgress(stream, mode);
  const note = 'making the space commitment, once for this home';
  for (; nowMs <= 20_000; nowMs += 500) {
    view.show({ step: 'space', done: nowMs, total: 40_000, unit: 'bytes', note });
    view.show({ step: nowMs % 1_000 === 0 ? 'work' : 'time', done: 1, total: 1 });
  }
  view.show({ step: 'space', done: 40_000, total: 40_000, unit: 'bytes', note });
  view.end();
  assert.equal(String(stream.read()), `  space  12%  4.9 KiB of 39.1 KiB  ${note}\n`);
});

test('what a program writes stands in whole lines above what goes on', () => {
  const stream = new PassThrough();
  let written = '';
  stream.on('data', (piece) => {
    written += String(piece);
  });
  stream.resume();
  using view = showProgress(stream, 'late');
  view.show({ step: 'run', log: 'one\ntw' });
  assert.equal(written, 'one\n');
  view.show({ step: 'run', log: 'o\u202e\nthree' });
  view.end();
  assert.equal(written, 'one\ntwo\\u{202e}\nthree\n');
});
