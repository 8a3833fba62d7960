import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCoded } from '../../../base/errors.ts';
import { Allowance } from './allowance.ts';

/** What is refused has to wait so long. */
function fullFor(retryInMs: number): (error: unknown) => boolean {
  return (error) => isCoded(error, 'quota-exceeded') && error.details?.['retryInMs'] === retryInMs;
}

function setUp(limits: Partial<ConstructorParameters<typeof Allowance>[0]> = {}) {
  const clock = { nowMs: 0 };
  const all = { entriesMax: 3, bytesMax: 100, runningMax: 3, heldMs: 10_000, ...limits };
  return { clock, allowance: new Allowance(all, () => clock.nowMs) };
}

test('take() counts what is settled for a while, and says when there is room again', async () => {
  const { clock, allowance } = setUp();
  for (const at of [0, 1_000, 2_000]) {
    clock.nowMs = at;
    assert.equal(await allowance.take('ada', 10, async () => at), at);
  }
  await assert.rejects(
    allowance.take('ada', 10, async () => 'fourth'),
    fullFor(8_000),
  );
  assert.equal(await allowance.take('bob', 10, async () => 'another one'), 'another one');
  clock.nowMs = 10_000;
  assert.equal(await allowance.take('ada', 10, async () => 'fourth'), 'fourth');
  await assert.rejects(
    allowance.take('ada', 10, async () => 'fifth'),
    fullFor(1_000),
  );
});

test('take() counts bytes, and says when there is room for so many', async () => {
  const { clock, allowance } = setUp();
  await allowance.take('ada', 60, async () => 0);
  clock.nowMs = 4_000;
  await allowance.take('ada', 40, async () => 0);
  await assert.rejects(
    allowance.take('ada', 1, async () => 0),
    fullFor(6_000),
  );
  await assert.rejects(
    allowance.take('ada', 61, async () => 0),
    fullFor(10_000),
  );
});

test('take() counts what waits for as long as it does', async () => {
  const { clock, allowance } = setUp();
  let settled = 0;
  for (const position of [1, 2, 3])
    await allowance.take(
      'ada',
      10,
      async () => position,
      (came) => came > settled,
    );
  clock.nowMs = 1_000_000;
  await assert.rejects(
    allowance.take('ada', 10, async () => 4),
    fullFor(500),
  );
  settled = 1;
  assert.equal(await allowance.take('ada', 10, async () => 4), 4);
});

test('take() lets few of them be on their way at once, and what failed counts as well', async () => {
  const { clock, allowance } = setUp({ runningMax: 1 });
  const { promise, reject } = Promise.withResolvers<never>();
  const first = allowance.take('ada', 10, () => promise);
  await assert.rejects(
    allowance.take('ada', 10, async () => 0),
    fullFor(500),
  );
  reject(new Error('the disk is full'));
  await assert.rejects(first, /disk/);
  for (const _ of [1, 2]) await allowance.take('ada', 10, async () => 0);
  clock.nowMs = 4_000;
  await assert.rejects(
    allowance.take('ada', 10, async () => 0),
    fullFor(6_000),
  );
});
