import { MemoryTrees, testRuntime } from '../../../testing/runtime-conformance.ts';
import { assemble } from '../../../testing/wat.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { WasmRuntime } from './runtime.ts';

const READ = '(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))';
const WRITE = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))';
/** Writes memory 100…100+length to a descriptor. */
const PRINT = `(func $print (param $fd i32) (param $length i32)
  (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (local.get $length))
  (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))`;

const ECHO = `(module ${READ} ${WRITE} (memory (export "memory") 1) ${PRINT}
  (func (export "_start") (loop $more
    (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 7))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (if (i32.load (i32.const 8)) (then (call $print (i32.const 1) (i32.load (i32.const 8))) (br $more))))))`;
const SEVEN = `(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 7))))`;
const SPIN = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))';
const FLOOD = `(module ${WRITE} (memory (export "memory") 1) ${PRINT}
  (func (export "_start") (memory.fill (i32.const 100) (i32.const 120) (i32.const 1000))
    (loop (call $print (i32.const 1) (i32.const 1000)) (br 0))))`;
const COMPLAIN = `(module ${WRITE} (memory (export "memory") 1) (data (i32.const 100) "\\1b[31mred") ${PRINT}
  (func (export "_start") (call $print (i32.const 2) (i32.const 8))))`;
const HOARD = `(module (memory (export "memory") 1)
  (func (export "_start") (loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)))`;
const READ_FILE = `(module ${READ} ${WRITE}
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1) ${PRINT}
  (func (export "_start") (local $path i32) (local $end i32)
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 1000) (i32.const 2000)))
    (local.set $path (i32.load (i32.const 1004)))
    (local.set $end (i32.add (i32.const 1999) (i32.load (i32.const 20))))
    (if (call $open (i32.const 3) (i32.const 1) (local.get $path) (i32.sub (local.get $end) (local.get $path))
          (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 12))
      (then (call $exit (i32.const 1))))
    (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 500))
    (if (call $read (i32.load (i32.const 12)) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $exit (i32.const 2))))
    (call $print (i32.const 1) (i32.load (i32.const 8)))))`;
const ENVIRONMENT = `(module ${WRITE}
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (memory (export "memory") 1) ${PRINT}
  (func (export "_start")
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $get (i32.const 1000) (i32.const 100)))
    (call $print (i32.const 1) (i32.load (i32.const 20)))))`;

testRuntime('wasm', async () => {
  const trees = new MemoryTrees();
  const layer = trees.add({
    'echo.wasm': await assemble(ECHO),
    'seven.wasm': await assemble(SEVEN),
    'spin.wasm': await assemble(SPIN),
    'flood.wasm': await assemble(FLOOD),
    'complain.wasm': await assemble(COMPLAIN),
    'read.wasm': await assemble(READ_FILE),
    'hoard.wasm': await assemble(HOARD),
    'environment.wasm': await assemble(ENVIRONMENT),
    'broken.wasm': Buffer.from('not a module'),
  });
  const runtime = new WasmRuntime({ assets: trees }, { limits: DEFAULT_LIMITS });
  return {
    runtime,
    trees,
    programs: {
      layer,
      echo: 'echo.wasm',
      seven: 'seven.wasm',
      spin: 'spin.wasm',
      flood: 'flood.wasm',
      complain: 'complain.wasm',
      read: 'read.wasm',
      hoard: 'hoard.wasm',
      environment: 'environment.wasm',
      broken: 'broken.wasm',
    },
    [Symbol.asyncDispose]: () => runtime[Symbol.asyncDispose](),
  };
});
