import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Rate } from './rate.ts';

test('the rate is that of the last seconds, also of what comes in large pieces far apart', () => {
  const rate = new Rate();
  assert.equal(rate.perSecond(0), 0);
  // One piece of what is just beginning is not taken for a flood.
  rate.add(1_000, 0);
  assert.equal(rate.perSecond(1), 2_000);
  for (let ms = 100; ms <= 10_000; ms += 100) rate.add(1_000, ms);
  assert.ok(Math.abs(rate.perSecond(10_000) - 10_000) < 500, `${rate.perSecond(10_000)}`);
  assert.equal(rate.total, 101_000);

  const slow = new Rate();
  for (let ms = 0; ms <= 60_000; ms += 10_000) slow.add(100_000, ms);
  for (const ms of [60_000, 64_000, 69_000]) {
    const now = slow.perSecond(ms);
    assert.ok(now > 5_000 && now < 40_000, `${now} after ${ms} ms`);
  }
  const over = slow.perSecond(260_000);
  assert.ok(over < 1_000, `${over}`);
});
