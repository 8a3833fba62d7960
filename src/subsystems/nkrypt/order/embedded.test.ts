import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { utf8 } from '../../../base/bytes.ts';
import { isCoded } from '../../../base/errors.ts';
import { openSqlite } from '../../../base/sqlite.ts';
import { testSequencer, wholeOrder } from '../../../testing/sequencer-conformance.ts';
import { EMBEDDED_SCHEMA, EmbeddedSequencer } from './embedded.ts';

const folder = mkdtempSync(join(tmpdir(), 'hypermesh-order-'));
const open = () => openSqlite(join(folder, 'order.db'), [{ name: '001-init', up: EMBEDDED_SCHEMA }]);
const store = open();
after(async () => {
  await store[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

// Handles of one process share the one store; others reach it over the channel (remote.test.ts).
const handles = new Map<string, EmbeddedSequencer>();
testSequencer('embedded', async (log) => {
  const handle = handles.get(log) ?? new EmbeddedSequencer(store, log);
  handles.set(log, handle);
  return {
    append: (...args) => handle.append(...args),
    read: (after) => handle.read(after),
    watch: (...args) => handle.watch(...args),
    forget: (upTo) => handle.forget(upTo),
    [Symbol.asyncDispose]: async () => undefined,
  };
});

test('what was acknowledged is there after the store was opened again', async () => {
  {
    await using sequencer = new EmbeddedSequencer(store, 'again');
    await Promise.all(['a', 'b', 'c'].map((entry) => sequencer.append(utf8(entry))));
  }
  await using second = open();
  await using sequencer = new EmbeddedSequencer(second, 'again');
  assert.deepEqual(await wholeOrder(sequencer), ['a', 'b', 'c']);
  assert.equal(await sequencer.append(utf8('b')), 2);
});

test('who waits while it is closed is told, and nothing is half-written', async () => {
  const sequencer = new EmbeddedSequencer(store, 'closing');
  const waiting = sequencer.append(utf8('a'));
  await sequencer[Symbol.asyncDispose]();
  await assert.rejects(waiting, (error) => isCoded(error, 'sequencer-unreachable'));
  await assert.rejects(sequencer.append(utf8('b')), (error) => isCoded(error, 'sequencer-unreachable'));
  assert.deepEqual(await wholeOrder(new EmbeddedSequencer(store, 'closing')), []);
});
