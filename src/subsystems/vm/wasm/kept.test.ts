import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { after, describe, it, mock } from 'node:test';
import type { SandboxPolicy } from '../../../capabilities/vm.ts';
import { MemoryTrees, SMALL_POLICY } from '../../../testing/runtime-conformance.ts';
import { until } from '../../../testing/until.ts';
import { assemble } from '../../../testing/wat.ts';
import { openExecution } from '../index.ts';

const WASI = 'wasi_snapshot_preview1';
/** Ends with 0 when everything is as at the first start, else with the number of what is not; then changes all of it. */
const TRACES = `(module
  (import "${WASI}" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "${WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "${WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "${WASI}" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
  (import "${WASI}" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))
  (import "${WASI}" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1 8) (table $t 2 9 funcref) (elem (i32.const 0) func $one) (elem $later func $one)
  (global $g (mut i32) (i32.const 3)) (global (export "shown") (mut i64) (i64.const 0))
  (data (i32.const 1000) "tmp/left") (data $d "once")
  (func $one) (start $begin)
  (func $begin (global.set $g (i32.add (global.get $g) (i32.const 1))))
  (func $fresh (param $what i32) (param $isFresh i32)
    (if (i32.eqz (local.get $isFresh)) (then (call $exit (local.get $what)))))
  (func (export "_start")
    (call $fresh (i32.const 1) (i32.eqz (i32.load (i32.const 60000))))
    (call $fresh (i32.const 2) (i32.eq (memory.size) (i32.const 1)))
    (call $fresh (i32.const 3) (i32.eq (global.get $g) (i32.const 4)))
    (call $fresh (i32.const 4) (i64.eqz (global.get 1)))
    (call $fresh (i32.const 5) (i32.and (i32.eq (table.size $t) (i32.const 2)) (ref.is_null (table.get $t (i32.const 1)))))
    (memory.init $d (i32.const 60000) (i32.const 0) (i32.const 4))
    (table.init $t $later (i32.const 1) (i32.const 0) (i32.const 1))
    ;; a file in /tmp must not be there; what it gets as descriptor is the first free one
    (call $fresh (i32.const 6) (i32.eq (i32.const 44) (call $open (i32.const 3) (i32.const 1) (i32.const 1000) (i32.const 8)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 900))))
    (drop (call $open (i32.const 3) (i32.const 1) (i32.const 1000) (i32.const 8)
      (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 900)))
    (call $fresh (i32.const 7) (i32.eq (i32.load (i32.const 900)) (i32.const 4)))
    (i32.store (i32.const 0) (i32.const 1000)) (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 8)))
    ;; standard input is read from its start
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $fresh (i32.const 8) (i32.eq (i32.load (i32.const 8)) (i32.const 4)))
    ;; the monotonic clock knows of this run alone
    (drop (call $now (i32.const 1) (i64.const 0) (i32.const 16)))
    (call $fresh (i32.const 9) (i64.lt_u (i64.load (i32.const 16)) (i64.const 2000000000)))
    (i32.store (i32.const 60000) (i32.const 1)) (drop (memory.grow (i32.const 3)))
    (global.set $g (i32.const 77)) (global.set 1 (i64.const 77)) (data.drop $d) (elem.drop $later)
    (table.set $t (i32.const 1) (ref.func $one)) (drop (table.grow $t (ref.func $one) (i32.const 2)))
    (drop (call $renumber (i32.const 4) (i32.const 3)))))`;
const TRAP = '(module (memory (export "memory") 1) (func (export "_start") (unreachable)))';
const SPIN = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))';

/** Processes below this one: boxes are the only ones. */
function boxes(): number[] {
  return readFileSync(`/proc/self/task/${process.pid}/children`, 'latin1')
    .trim()
    .split(' ')
    .filter(Boolean)
    .map(Number);
}

describe('kept boxes', { skip: !existsSync('/proc/self/task') }, () => {
  const trees = new MemoryTrees();
  const execution = openExecution({ assets: trees }, { limits: { keptBoxesMax: 2 } });
  after(async () => (await execution)[Symbol.asyncDispose]());

  async function program(text: string) {
    const layer = trees.add({ 'main.wasm': await assemble(text) });
    return async (policy: Partial<SandboxPolicy> = {}, on = execution) =>
      (await on).run({
        kind: 'wasm',
        layer,
        entry: 'main.wasm',
        args: [],
        input: 1234,
        policy: { ...SMALL_POLICY, ...policy },
      });
  }

  it('give each run an instance, files and clocks of its own, in one process', async () => {
    const run = await program(TRACES);
    assert.deepEqual([(await run()).exitCode, (await run()).exitCode], [0, 0]);
    const before = boxes();
    for (let again = 0; again < 20; again++) assert.equal((await run()).exitCode, 0);
    assert.deepEqual(boxes(), before);
  });

  it('do not outlive a run that was stopped or trapped', async () => {
    for (const [text, policy] of [
      [TRAP, {}],
      [SPIN, { wallMs: 50 }],
      [SPIN, { fuel: 1_000n }],
    ] as const) {
      const run = await program(text);
      await run(policy);
      const before = new Set(boxes());
      await run(policy);
      assert.ok(boxes().some((pid) => !before.has(pid)));
    }
  });

  it('serve one program with one size of memory, and no other', async () => {
    const [one, other] = [await program(TRACES), await program(TRACES)];
    await one();
    const before = new Set(boxes());
    await other();
    assert.ok(boxes().some((pid) => !before.has(pid)));
    const between = new Set(boxes());
    await other({ memoryBytes: 2 ** 20 });
    assert.ok(boxes().some((pid) => !between.has(pid)));
  });

  it('are so many and no more, and none when the node wants none', async () => {
    const none = openExecution({ assets: trees }, { limits: { keptBoxesMax: 0 } });
    const runs = await Promise.all(Array.from({ length: 4 }, () => program(TRACES)));
    for (const run of runs) await run();
    await gone(() => boxes().length <= 3);
    const before = new Set(boxes());
    for (let again = 0; again < 2; again++) await runs[0]!({}, none);
    await (await none)[Symbol.asyncDispose]();
    await gone(() => boxes().every((pid) => before.has(pid)));
  });

  it('end when half a minute passed', async () => {
    mock.timers.enable({ apis: ['setTimeout'] });
    try {
      await using own = await openExecution({ assets: trees });
      const before = new Set(boxes());
      const run = await program(TRACES);
      await run({}, Promise.resolve(own));
      assert.equal(boxes().filter((pid) => !before.has(pid)).length, 2);
      mock.timers.tick(30_000);
      await gone(() => boxes().every((pid) => before.has(pid)));
    } finally {
      mock.timers.reset();
    }
  });

  it('measure each run for itself', async () => {
    const run = await program(TRACES);
    const first = await run();
    const second = await run();
    assert.equal(first.usage.fuelUsed, second.usage.fuelUsed);
    assert.equal(first.usage.peakMemoryBytes, second.usage.peakMemoryBytes);
    assert.ok(second.usage.cpuMs <= first.usage.cpuMs + 50);
  });
});

function gone(isSo: () => boolean): Promise<void> {
  return until(String(isSo), isSo, { everyMs: 20 });
}
