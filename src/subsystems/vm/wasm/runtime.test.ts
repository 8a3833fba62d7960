import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, it } from 'node:test';
import { assembleCommand } from '../../../testing/component.ts';
import { MemoryTrees, type RuntimeFixture, testRuntime } from '../../../testing/runtime-conformance.ts';
import { assemble } from '../../../testing/wat.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { openProcessSandbox, type ProcessSandbox } from '../process/sandbox.ts';
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

async function modules(sandbox?: ProcessSandbox): Promise<RuntimeFixture> {
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
  const runtime = new WasmRuntime(
    { assets: trees, ...(sandbox === undefined ? {} : { sandbox }) },
    { limits: DEFAULT_LIMITS },
  );
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
}

testRuntime('wasm', () => modules());

const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-wasm-'));
const sandbox = await openProcessSandbox({ directory });
const { available, reason } = await sandbox.probe();
after(async () => {
  await sandbox[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});

testRuntime('wasm, in a box', () => modules(sandbox), { skip: available ? false : (reason ?? 'no boxes') });

it('says which box holds the engine', { skip: available ? false : (reason ?? 'no boxes') }, async () => {
  await using fixture = await modules(sandbox);
  const { enforces } = await fixture.runtime.probe();
  assert.match(enforces?.['isolation'] ?? '', /permission model.*bubblewrap/);
  assert.match(enforces?.['syscalls'] ?? '', /seccomp/);
});

const STDOUT = [
  ['wasi:cli/stdout', 'get-stdout'],
  ['wasi:io/streams', '[method]output-stream.blocking-write-and-flush'],
] as const;
/** The functions of {@link STDOUT}, first of those that a module imports; $print takes where and how many. */
const PRINTING = `(import "host" "0" (func $stdout (result i32))) (import "host" "1" (func $write (param i32 i32 i32 i32)))`;
const PRINT_TEXT = `(func $print (param i32 i32) (call $write (call $stdout) (local.get 0) (local.get 1) (i32.const 8)))`;
const parts = (
  calls: readonly (readonly [string, string])[],
  functions: string,
  body: string,
  printing = STDOUT as readonly (readonly [string, string])[],
) => ({
  calls: [...printing, ...calls],
  main: `(module (import "env" "memory" (memory 0)) ${PRINTING} ${functions} ${PRINT_TEXT}
    (func (export "run") (result i32) (local $at i32) (local $end i32) ${body} (i32.const 0)))`,
});
const EXIT_WITH = ['wasi:cli/exit', 'exit-with-code'] as const;

testRuntime('wasm, components', async () => {
  const trees = new MemoryTrees();
  const layer = trees.add({
    'echo.wasm': await assembleCommand(
      parts(
        [
          ['wasi:cli/stdin', 'get-stdin'],
          ['wasi:io/streams', '[method]input-stream.blocking-read'],
        ],
        '(import "host" "2" (func $stdin (result i32))) (import "host" "3" (func $read (param i32 i64 i32)))',
        `(local.set $at (call $stdin))
         (loop $more (call $read (local.get $at) (i64.const 65536) (i32.const 16))
           (if (i32.eqz (i32.load8_u (i32.const 16)))
             (then (call $print (i32.load (i32.const 20)) (i32.load (i32.const 24))) (br $more))))`,
      ),
    ),
    'seven.wasm': await assembleCommand(
      parts([EXIT_WITH], '(import "host" "2" (func $exit (param i32)))', '(call $exit (i32.const 7))'),
    ),
    'spin.wasm': await assembleCommand(parts([], '', '(loop (br 0))')),
    'flood.wasm': await assembleCommand(
      parts(
        [],
        '',
        `(memory.fill (i32.const 100) (i32.const 120) (i32.const 1000))
         (local.set $at (call $stdout))
         (loop (call $write (local.get $at) (i32.const 100) (i32.const 1000) (i32.const 8)) (br 0))`,
      ),
    ),
    'complain.wasm': await assembleCommand(
      parts([], '(data (i32.const 100) "\\1b[31mred")', '(call $print (i32.const 100) (i32.const 8))', [
        ['wasi:cli/stderr', 'get-stderr'],
        STDOUT[1],
      ]),
    ),
    'read.wasm': await assembleCommand(
      parts(
        [
          EXIT_WITH,
          ['wasi:cli/environment', 'get-arguments'],
          ['wasi:filesystem/preopens', 'get-directories'],
          ['wasi:filesystem/types', '[method]descriptor.open-at'],
          ['wasi:filesystem/types', '[method]descriptor.read'],
        ],
        `(import "host" "2" (func $exit (param i32))) (import "host" "3" (func $arguments (param i32)))
         (import "host" "4" (func $directories (param i32)))
         (import "host" "5" (func $open (param i32 i32 i32 i32 i32 i32 i32)))
         (import "host" "6" (func $read (param i32 i64 i64 i32)))`,
        `(call $arguments (i32.const 16)) (local.set $at (i32.load (i32.const 16)))
         (call $directories (i32.const 24))
         (call $open (i32.load (i32.load (i32.const 24))) (i32.const 1) (i32.load offset=8 (local.get $at))
           (i32.load offset=12 (local.get $at)) (i32.const 0) (i32.const 1) (i32.const 32))
         (if (i32.load8_u (i32.const 32)) (then (call $exit (i32.const 1))))
         (call $read (i32.load (i32.const 36)) (i64.const 500) (i64.const 0) (i32.const 40))
         (if (i32.load8_u (i32.const 40)) (then (call $exit (i32.const 2))))
         (call $print (i32.load (i32.const 44)) (i32.load (i32.const 48)))`,
      ),
    ),
    'hoard.wasm': await assembleCommand(
      parts([], '', '(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)'),
    ),
    'environment.wasm': await assembleCommand(
      parts(
        [['wasi:cli/environment', 'get-environment']],
        '(import "host" "2" (func $environment (param i32))) (data (i32.const 100) "=")',
        `(call $environment (i32.const 16)) (local.set $at (i32.load (i32.const 16)))
         (local.set $end (i32.add (local.get $at) (i32.mul (i32.load (i32.const 20)) (i32.const 16))))
         (loop $more
           (call $print (i32.load (local.get $at)) (i32.load offset=4 (local.get $at)))
           (call $print (i32.const 100) (i32.const 1))
           (call $print (i32.load offset=8 (local.get $at)) (i32.load offset=12 (local.get $at)))
           (call $print (i32.const 101) (i32.const 1))
           (br_if $more (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (local.get $end))))`,
      ),
    ),
    'broken.wasm': Uint8Array.of(0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0, 10, 1, 1),
  });
  const runtime = new WasmRuntime({ assets: trees }, { limits: DEFAULT_LIMITS });
  const names = ['echo', 'seven', 'spin', 'flood', 'complain', 'read', 'hoard', 'environment', 'broken'] as const;
  const programs = Object.fromEntries(names.map((name) => [name, `${name}.wasm`])) as Record<
    (typeof names)[number],
    string
  >;
  return {
    runtime,
    trees,
    programs: { layer, ...programs },
    [Symbol.asyncDispose]: () => runtime[Symbol.asyncDispose](),
  };
});
