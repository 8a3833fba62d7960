import assert from 'node:assert/strict';
import test from 'node:test';
import { laterTurn } from './turn.ts';

/** Counts turns of the event loop until it is disposed. */
function turnCounter() {
  let turns = 0;
  let timer = setImmediate(count);
  function count() {
    turns += 1;
    timer = setImmediate(count);
  }
  return { now: () => turns, [Symbol.dispose]: () => clearImmediate(timer) };
}

function busy(ms: number): void {
  const fromMs = performance.now();
  while (performance.now() - fromMs < ms);
}

test('laterTurn gives each piece that takes long a turn of its own, whoever else waits', async () => {
  using turns = turnCounter();
  const seen: number[] = [];
  const work = async () => {
    for (let piece = 0; piece < 3; piece += 1) {
      await laterTurn();
      seen.push(turns.now());
      busy(3);
    }
  };
  await Promise.all([work(), work(), work()]);
  assert.equal(new Set(seen).size, 9, `of nine pieces some came in one turn: ${seen.join()}`);
});

test('laterTurn lets short pieces share a turn, in the order in which they asked', async () => {
  using turns = turnCounter();
  const from = turns.now();
  const order: number[] = [];
  const work = async (id: number) => {
    await laterTurn();
    await Promise.resolve();
    order.push(id);
  };
  await Promise.all(Array.from({ length: 1_000 }, (_, id) => work(id)));
  assert.deepEqual(
    order,
    Array.from({ length: 1_000 }, (_, id) => id),
  );
  assert.ok(turns.now() - from < 500, `${turns.now() - from} turns`);
});

test('laterTurn lets in what came before the work went on', async () => {
  const seen: string[] = [];
  setTimeout(() => seen.push('timer'), 1);
  busy(3);
  await laterTurn();
  seen.push('work');
  assert.deepEqual(seen, ['timer', 'work']);
});
