import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { medianOf } from '../../wire/proof.ts';
import { WorkLoad } from './load.ts';

const MINUTE_MS = 60_000;
const PUBLISH = { work: { hexDigits: 6 }, time: { squarings: 2 ** 20, windowMs: 300_000 } };
const LIGHT = { work: { hexDigits: 1 }, time: { squarings: 2 ** 18, windowMs: 300_000 } };

/** A load in its own time. */
function simulated(targetPerMinute: number) {
  const time = { nowMs: 1_000 };
  const load = new WorkLoad({ nowMs: () => time.nowMs }, { targetPerMinute });
  return {
    load,
    time,
    steadily(perMinute: number, minutes: number): void {
      for (let i = 0; i < perMinute * minutes; i++) {
        time.nowMs += MINUTE_MS / perMinute;
        load.admitted();
      }
    },
  };
}

test('work follows the load: the table below sixteen times the target, one digit more for each factor of sixteen', () => {
  for (const [perMinute, digits] of [
    [1, 1],
    [10, 1],
    [140, 1],
    [180, 2],
    [2_400, 2],
    [2_800, 3],
  ] as const) {
    const { load, steadily } = simulated(10);
    steadily(perMinute, 4);
    assert.ok(Math.abs(load.perMinute() - perMinute) < 2 + perMinute * 0.03, `${load.perMinute()}`);
    assert.equal(load.hexDigits(LIGHT), digits, `${perMinute} a minute`);
  }
});

test('it is forgotten when it is over', () => {
  const { load, steadily, time } = simulated(10);
  steadily(2_800, 3);
  const seen: number[] = [];
  for (let i = 0; i < 10; i++) {
    seen.push(load.hexDigits(LIGHT));
    time.nowMs += 30_000;
  }
  assert.deepEqual(
    seen,
    [...seen].sort((a, b) => b - a),
  );
  assert.equal(seen[0], 3);
  assert.equal(seen.at(-1), 1);
});

test('it is never more than an ordinary core does in a fifth of the window, and never less than the table', () => {
  const { load, steadily } = simulated(1);
  steadily(30_000, 2);
  assert.equal(load.hexDigits(PUBLISH), 7);
  assert.equal(load.hexDigits({ ...PUBLISH, time: { squarings: 1_024, windowMs: 1_000 } }), 6);
  assert.equal(load.hexDigits({ work: { hexDigits: 9 }, time: null }), 9);
  assert.equal(load.hexDigits({ work: null, time: null }), 0);
});

test('whatever happens, in whatever order: bounded below and above, more admissions never ask for less, quiet time never for more', () => {
  const step = fc.record({
    waitMs: fc.integer({ min: -5_000, max: 120_000 }),
    admitted: fc.integer({ min: 0, max: 400 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), fc.integer({ min: 1, max: 7 }), (steps, hexDigits) => {
      const row = { work: { hexDigits }, time: { squarings: 1_024, windowMs: 300_000 } };
      const { load, time } = simulated(2);
      for (const { waitMs, admitted } of steps) {
        const before = load.hexDigits(row);
        time.nowMs += waitMs;
        const quiet = load.hexDigits(row);
        if (waitMs >= 0) assert.ok(quiet <= before);
        let last = quiet;
        for (let i = 0; i < admitted; i++) {
          load.admitted();
          const now = load.hexDigits(row);
          assert.ok(now >= last);
          last = now;
        }
        assert.ok(last >= hexDigits && last <= Math.max(7, hexDigits));
      }
    }),
    { numRuns: 200 },
  );
});

test('of 2f+1 shares f that lie move the median no further than honest ones are', () => {
  const digits = fc.integer({ min: 0, max: 16 });
  fc.assert(
    fc.property(
      fc
        .integer({ min: 0, max: 10 })
        .chain((f) =>
          fc.tuple(
            fc.array(digits, { minLength: f + 1, maxLength: f + 1 }),
            fc.array(digits, { minLength: f, maxLength: f }),
          ),
        ),
      ([honest, lies]) => {
        const median = medianOf([...honest, ...lies]);
        assert.ok(median >= Math.min(...honest) && median <= Math.max(...honest));
      },
    ),
  );
});
