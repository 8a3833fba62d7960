import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { assembleCommand } from '../../../testing/component.ts';
import { Trap } from './abi.ts';
import { readComponent } from './component.ts';
import { Files, Mounts } from './files.ts';
import { Fuel } from './fuel.ts';
import { link, prepareModules } from './link.ts';
import { ProgramInvalid } from './meter.ts';
import { preview2 } from './preview2.ts';
import { Exit } from './wasi.ts';

const LIMITS = { memoryPagesMax: 100, tableEntriesMax: 1_000 };
class OutOfFuel extends Error {}

/** Runs in this process, within a small budget; what it printed. */
function run(bytes: Uint8Array<ArrayBuffer>, input = '{}'): { printed: string; isWell: boolean } {
  let printed = '';
  const fuel = new Fuel(
    5_000_000n,
    () => {},
    () => {
      throw new OutOfFuel();
    },
  );
  const files = new Files(
    new Mounts([{ at: '/package', entries: [{ path: 'data/short.csv', size: 4 }] }]),
    100_000,
    () => Buffer.from('1\n2\n'),
  );
  const read = readComponent(bytes);
  const well = link(read, {
    modules: prepareModules(read, LIMITS),
    interfaces: preview2({
      args: ['main.wasm', 'one'],
      environment: ['NAME=a=b'],
      stdin: Buffer.from(input),
      files,
      write: (_to, text) => {
        printed = (printed + Buffer.from(text).toString('utf8')).slice(-10_000);
      },
      charge: (units) => fuel.charge(units),
      sleep: () => {
        throw new OutOfFuel();
      },
      elapsedMs: () => 1,
      cpuMs: () => 1,
    }),
    enter: () => fuel.charge(64),
    admit: ({ metered }) => {
      if (metered.memoryPagesMin > LIMITS.memoryPagesMax) throw new OutOfFuel();
    },
    arm: ({ metered }, exports) => fuel.arm(metered, exports),
  });
  return { isWell: well(), printed };
}

function isContained(error: unknown): boolean {
  return (
    error instanceof ProgramInvalid ||
    error instanceof Trap ||
    error instanceof Exit ||
    error instanceof OutOfFuel ||
    error instanceof WebAssembly.RuntimeError ||
    error instanceof WebAssembly.LinkError ||
    // The engine's: calls nested too deep, no memory, a type that a lie about a function brought.
    error instanceof RangeError ||
    (error instanceof TypeError && /WebAssembly|BigInt|wasm|i64/i.test(error.message))
  );
}

describe('components', () => {
  const series = new Uint8Array(
    readFileSync(new URL('../../../../examples/packages/series/component.wasm', import.meta.url)),
  );

  it('run, and say whether all went well', async () => {
    const good = run(series, '{"dataset": "short"}');
    assert.deepEqual([good.isWell, JSON.parse(good.printed).count], [true, 2]);
    const main = '(module (import "env" "memory" (memory 0)) (func (export "run") (result i32) (i32.const 1)))';
    assert.equal(run(await assembleCommand({ main })).isWell, false);
  });

  it('see arguments, variables, files and time as the canonical ABI lays them out', async () => {
    // Prints what lies in memory behind each call: list of text, list of pairs, stat of the root, time.
    const bytes = await assembleCommand({
      calls: [
        ['wasi:cli/environment', 'get-arguments'],
        ['wasi:cli/environment', 'get-environment'],
        ['wasi:filesystem/preopens', 'get-directories'],
        ['wasi:filesystem/types', '[method]descriptor.stat-at'],
        ['wasi:cli/stdout', 'get-stdout'],
        ['wasi:io/streams', '[method]output-stream.blocking-write-and-flush'],
      ],
      main: `(module (import "env" "memory" (memory 0))
        (import "host" "0" (func $arguments (param i32))) (import "host" "1" (func $environment (param i32)))
        (import "host" "2" (func $directories (param i32))) (import "host" "3" (func $stat (param i32 i32 i32 i32 i32)))
        (import "host" "4" (func $out (result i32))) (import "host" "5" (func $write (param i32 i32 i32 i32)))
        (data (i32.const 1000) "package/data/short.csv")
        (func $print (param i32 i32) (call $write (call $out) (local.get 0) (local.get 1) (i32.const 600)))
        (func (export "run") (result i32)
          (call $arguments (i32.const 0)) ;; second text
          (call $print (i32.load offset=8 (i32.load (i32.const 0))) (i32.load offset=12 (i32.load (i32.const 0))))
          (call $environment (i32.const 8)) ;; name and value
          (call $print (i32.load (i32.load (i32.const 8))) (i32.load offset=4 (i32.load (i32.const 8))))
          (call $print (i32.load offset=8 (i32.load (i32.const 8))) (i32.load offset=12 (i32.load (i32.const 8))))
          (call $directories (i32.const 16))
          (call $stat (i32.load (i32.load (i32.const 16))) (i32.const 0) (i32.const 1000) (i32.const 22) (i32.const 104))
          ;; good; a regular file; of 4 bytes; its times are there, and 0
          (if (i32.load8_u (i32.const 104)) (then (return (i32.const 1))))
          (if (i32.ne (i32.load8_u (i32.const 112)) (i32.const 6)) (then (return (i32.const 1))))
          (if (i64.ne (i64.load (i32.const 128)) (i64.const 4)) (then (return (i32.const 1))))
          (if (i32.ne (i32.load8_u (i32.const 136)) (i32.const 1)) (then (return (i32.const 1))))
          (i64.ne (i64.load (i32.const 144)) (i64.const 0))))`,
    });
    assert.deepEqual(run(bytes), { isWell: true, printed: 'oneNAMEa=b' });
  });

  it('are refused as test/vectors/run/invalid-components.json says, and told why', () => {
    const vectors = new URL('../../../../test/vectors/run/invalid-components.json', import.meta.url);
    const list = JSON.parse(readFileSync(vectors, 'utf8')) as { name: string; wasm: string; message: string }[];
    assert.ok(list.length > 10);
    for (const { name, wasm, message } of list)
      assert.throws(
        () => run(Uint8Array.fromHex(wasm)),
        (error) => error instanceof ProgramInvalid && error.message.includes(message),
        name,
      );
  });

  it('are contained, however they are damaged', async () => {
    const small = await assembleCommand({
      calls: [['wasi:cli/stdout', 'get-stdout'], ['wasi:io/streams', '[method]output-stream.write'], 'drop'],
      main: `(module (import "env" "memory" (memory 0)) (import "host" "0" (func $out (result i32)))
        (import "host" "1" (func $write (param i32 i32 i32 i32))) (import "host" "2" (func $drop (param i32)))
        (func (export "run") (result i32) (local $to i32) (local.set $to (call $out))
          (call $write (local.get $to) (i32.const 0) (i32.const 8) (i32.const 16)) (call $drop (local.get $to)) (i32.const 0)))`,
    });
    let ran = 0;
    for (const [bytes, numRuns] of [
      [small, 3_000],
      [series, 150],
    ] as const)
      fc.assert(
        fc.property(
          fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 }),
          fc.nat(50),
          (changes, cut) => {
            const damaged = bytes.slice(0, cut < 3 ? bytes.length - cut * 9 : bytes.length);
            for (const [at, value] of changes) if (at < damaged.length) damaged[at] = value;
            // What is no component any more is for the meter, which is tried elsewhere.
            damaged.set(bytes.subarray(0, 8));
            try {
              run(damaged);
              ran += 1;
            } catch (error) {
              if (!isContained(error)) throw error;
            }
          },
        ),
        { numRuns },
      );
    assert.ok(ran > 0);
  });
});
