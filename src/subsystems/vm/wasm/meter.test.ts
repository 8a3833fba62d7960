import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { assemble } from '../../../testing/wat.ts';
import { meter, ProgramInvalid } from './meter.ts';
import { WASI_FUNCTIONS, WASI_MODULE } from './wasi.ts';

const LIMITS = { memoryPagesMax: 16, tableEntriesMax: 1_000 };
const metered = (module: Uint8Array<ArrayBuffer>) =>
  meter(module, { kind: 'command', module: WASI_MODULE, functions: WASI_FUNCTIONS }, LIMITS);

const EVERYTHING = `(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (type $t (func (param i32 i32) (result i32 i32)))
  (memory (export "memory") 1) (table $t 10 20 funcref) (table $x 1 externref)
  (global $g (mut i32) (i32.const 3)) (elem $e (i32.const 0) func $exit $many) (elem $p func $many) (data $d "bytes")
  (export "hypermesh:fuel" (global $g))
  (start $begin)
  (func $begin (global.set $g (i32.const 4)))
  (func $many (param i32 i64 f32 f64) (result i32) (local i32 i64 i32)
    (block $out (result i32)
      (loop $l (result i32)
        (br_table $out $out (i32.const 1) (local.get 0))
        (loop (br_if $l (i32.const 0)))
        (if (result i32) (i64.eqz (local.get 1)) (then (i32.const -129)) (else (i32.trunc_sat_f64_s (local.get 3)))))
      (br_if $out (i32.const 0)) (drop) (select (result i32) (i32.const 1) (i32.const 2) (i32.const 3))))
  (func (export "_start")
    (memory.init $d (i32.const 0) (i32.const 0) (i32.const 5)) (data.drop $d)
    (memory.copy (i32.const 9) (i32.const 0) (i32.const 5)) (memory.fill (i32.const 90) (i32.const 0) (i32.const 5))
    (table.init $t $p (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop $p)
    (table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 2)) (drop (table.grow $t (ref.null func) (i32.const 1)))
    (table.set $t (i32.const 0) (table.get $t (i32.const 1))) (drop (ref.is_null (ref.func $many)))
    (drop (call_indirect $t (param i32 i64 f32 f64) (result i32) (i32.const 0) (i64.const 1) (f32.const 2) (f64.const 3) (i32.const 1)))
    (drop (i8x16.extract_lane_u 3 (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 (v128.const i64x2 1 2) (v128.load offset=3 (i32.const 0)))))
    (drop (v128.load8_lane 1 (i32.const 0) (v128.load32_zero (i32.const 0))))
    (drop (memory.grow (memory.size))) (call $exit (i32.const 0))))`;

describe('meter', () => {
  it('gives a valid module for every kind of instruction, with exports of its own', async () => {
    const result = metered(await assemble(EVERYTHING));
    assert.ok(WebAssembly.validate(result.bytes));
    assert.equal(result.exports.fuel, 'hypermesh:fuel_');
    assert.equal(result.exports.start, 'hypermesh:start');
    const instance = new WebAssembly.Instance(new WebAssembly.Module(result.bytes), {
      [WASI_MODULE]: { proc_exit: () => {} },
    });
    const global = instance.exports['hypermesh:fuel'] as WebAssembly.Global<'i32'>;
    assert.equal(global.value, 3, 'the start function did not run at instantiation');
    (instance.exports[result.exports.fuel] as WebAssembly.Global<'i64'>).value = 1_000n;
    (instance.exports['hypermesh:start'] as () => void)();
    assert.equal(global.value, 4);
  });

  it('refuses the modules of test/vectors/run/invalid.json, and says why', () => {
    const vectors = new URL('../../../../test/vectors/run/invalid.json', import.meta.url);
    const list = JSON.parse(readFileSync(vectors, 'utf8')) as { name: string; wasm: string; message: string }[];
    assert.ok(list.length > 10);
    for (const { name, wasm, message } of list)
      assert.throws(
        () => metered(Uint8Array.fromHex(wasm)),
        (error) => error instanceof ProgramInvalid && error.message.includes(message),
        name,
      );
  });

  it('gives a valid module or refuses, however a module is damaged', async () => {
    const good = await assemble(EVERYTHING);
    const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 });
    let accepted = 0;
    fc.assert(
      fc.property(damage, fc.nat(40), (changes, cut) => {
        const bytes = good.slice(0, cut < 4 ? good.length - cut * 9 : good.length);
        for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
        try {
          assert.ok(WebAssembly.validate(metered(bytes).bytes));
          accepted += 1;
        } catch (error) {
          assert.ok(error instanceof ProgramInvalid, String(error));
        }
      }),
      { numRuns: 3_000 },
    );
    assert.ok(accepted > 0);
  });
});
