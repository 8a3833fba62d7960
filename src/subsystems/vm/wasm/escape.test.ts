import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import type { SandboxPolicy, Termination } from '../../../capabilities/vm.ts';
import {
  assembleCommand,
  type CommandParts,
  component,
  coreModule,
  definition,
  MEMORY_MODULE,
  nested,
  u32,
} from '../../../testing/component.ts';
import { MemoryTrees, SMALL_POLICY, type TreeContent } from '../../../testing/runtime-conformance.ts';
import { assemble } from '../../../testing/wat.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { WasmRuntime } from './runtime.ts';
import { WASI_FUNCTIONS } from './wasi.ts';

/** Something that a hostile program does. A program ends with 0 when it was held, with another number when it reached what it must not. */
interface Attack {
  readonly name: string;
  /** The limit, as a key of `enforcedBy`, that has to stop it. */
  readonly limit: string;
  /** Text of a module with `_start`, or the parts of a component. */
  readonly program: string | CommandParts | (() => Promise<Uint8Array<ArrayBuffer>>);
  /** How the run ends when the limit ends the whole program; `refused`: before it runs. */
  readonly ends?: Termination | 'refused';
  /** What is said about it. */
  readonly says?: RegExp;
  readonly policy?: Partial<SandboxPolicy>;
  readonly features?: Readonly<Record<string, boolean>>;
  /** The second time it looks for what the first time left. */
  readonly isTwice?: true;
}

const MEMORY = '(memory (export "memory") 1)';
const EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))';
const LETTERS: Readonly<Record<string, string>> = { i: 'i32', I: 'i64' };

function imports(names: readonly string[]): string {
  const typed = (text: string) => [...text].map((letter) => LETTERS[letter]).join(' ');
  return names
    .map((name) => {
      const [parameters, results] = WASI_FUNCTIONS.get(name)!.split(':') as [string, string];
      return `(import "wasi_snapshot_preview1" "${name}" (func $${name} (param ${typed(parameters)}) (result ${typed(results)})))`;
    })
    .join('\n');
}

/** A module that imports `names`, with `fields` and a body for `_start`. */
function start(names: readonly string[], body: string, fields = ''): string {
  return `(module ${imports(names)} ${EXIT} ${MEMORY} ${fields} ${OPEN(names)}
    (func $held (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then (call $exit (i32.add (i32.const 1) (local.get 0))))))
    (func (export "_start") (local $i i32) (local $errno i32) ${body}))`;
}

/** $open(length, how, rights): opens the text at 1000; the descriptor is at 900. */
function OPEN(names: readonly string[]): string {
  if (!names.includes('path_open')) return '';
  return `(func $open (param $length i32) (param $how i32) (param $rights i64) (result i32)
    (call $path_open (i32.const 3) (i32.const 1) (i32.const 1000) (local.get $length)
      (local.get $how) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 900)))`;
}

/** Opens each path as it is told, and expects that error number. */
function refusedPaths(errno: number, how: number, rights: number, ...paths: string[]): string {
  const data = paths.map((path, index) => `(data (i32.const ${2000 + index * 400}) "${path}")`).join('\n');
  const tries = paths.map((path, index) => {
    const length = Buffer.byteLength(path.replaceAll(/\\[0-9a-f]{2}/g, '.'));
    return `(call $held (call $path_open (i32.const 3) (i32.const 1) (i32.const ${2000 + index * 400}) (i32.const ${length})
      (i32.const ${how}) (i64.const ${rights}) (i64.const 0) (i32.const 0) (i32.const 900)) (i32.const ${errno}))`;
  });
  return start(['path_open'], tries.join('\n'), data);
}

const READ = 2;
const WRITE = 64;
const NOT_CAPABLE = 76;
const READ_ONLY = 69;

const FILES: readonly Attack[] = [
  {
    name: 'opens files of the host by their path',
    limit: 'files',
    program: refusedPaths(NOT_CAPABLE, 0, READ, '/etc/passwd', '/', '/proc/self/environ', '//etc/passwd'),
  },
  {
    name: 'climbs out of its root',
    limit: 'files',
    program: refusedPaths(NOT_CAPABLE, 0, READ, '..', '../etc/passwd', 'package/../../etc/passwd', 'tmp/./../..//../x'),
  },
  {
    name: 'follows links that its package brings',
    limit: 'files',
    program: refusedPaths(
      NOT_CAPABLE,
      0,
      READ,
      'package/absolute',
      'package/up',
      'package/sideways',
      'package/folder/x',
    ),
  },
  { name: 'follows a link to itself', limit: 'files', program: refusedPaths(32, 0, READ, 'package/loop') },
  {
    name: 'hides a path behind a zero byte',
    limit: 'files',
    program: refusedPaths(NOT_CAPABLE, 0, READ, 'package/main.wasm\\00/../../../etc/passwd'),
  },
  {
    name: 'makes links',
    limit: 'files',
    program: start(
      ['path_symlink', 'path_link'],
      `(call $held (call $path_symlink (i32.const 1000) (i32.const 4) (i32.const 3) (i32.const 1010) (i32.const 5)) (i32.const 58))
       (call $held (call $path_link (i32.const 3) (i32.const 0) (i32.const 1000) (i32.const 4) (i32.const 3) (i32.const 1010) (i32.const 5)) (i32.const 58))`,
      '(data (i32.const 1000) "/etc") (data (i32.const 1010) "tmp/x")',
    ),
  },
  {
    name: 'changes its package',
    limit: 'files',
    program: refusedPaths(READ_ONLY, 1, WRITE, 'package/new', 'package/main.wasm', 'new'),
  },
  {
    name: 'empties a file of its package',
    limit: 'files',
    program: refusedPaths(READ_ONLY, 8, READ, 'package/main.wasm'),
  },
  {
    name: 'removes, renames and covers files of its package',
    limit: 'files',
    program: start(
      ['path_unlink_file', 'path_rename', 'path_remove_directory', 'path_create_directory', 'path_open'],
      `(call $held (call $path_unlink_file (i32.const 3) (i32.const 1000) (i32.const 17)) (i32.const ${READ_ONLY}))
       (call $held (call $path_rename (i32.const 3) (i32.const 1000) (i32.const 17) (i32.const 3) (i32.const 1100) (i32.const 5)) (i32.const ${READ_ONLY}))
       (call $held (call $path_remove_directory (i32.const 3) (i32.const 1000) (i32.const 7)) (i32.const ${READ_ONLY}))
       (call $held (call $path_create_directory (i32.const 3) (i32.const 1000) (i32.const 7)) (i32.const ${READ_ONLY}))
       (call $held (call $path_create_directory (i32.const 3) (i32.const 1100) (i32.const 5)) (i32.const 0))
       (call $held (call $path_rename (i32.const 3) (i32.const 1100) (i32.const 5) (i32.const 3) (i32.const 1000) (i32.const 7)) (i32.const ${READ_ONLY}))
       (call $held (call $path_remove_directory (i32.const 3) (i32.const 1100) (i32.const 3)) (i32.const ${READ_ONLY}))`,
      '(data (i32.const 1000) "package/main.wasm") (data (i32.const 1100) "tmp/x")',
    ),
  },
  {
    name: 'puts a folder into itself',
    limit: 'files',
    program: start(
      ['path_create_directory', 'path_rename'],
      `(call $held (call $path_create_directory (i32.const 3) (i32.const 1000) (i32.const 5)) (i32.const 0))
       (call $held (call $path_rename (i32.const 3) (i32.const 1000) (i32.const 5) (i32.const 3) (i32.const 1000) (i32.const 7)) (i32.const 28))`,
      '(data (i32.const 1000) "tmp/a/b")',
    ),
  },
  {
    name: 'fills /tmp with bytes',
    limit: 'tmp',
    program: start(
      ['path_open', 'fd_write'],
      `(call $held (call $open (i32.const 5) (i32.const 1) (i64.const ${WRITE})) (i32.const 0))
       (i32.store (i32.const 4) (i32.const 60000))
       (loop $more (br_if $more (i32.eqz
         (local.tee $errno (call $fd_write (i32.load (i32.const 900)) (i32.const 0) (i32.const 1) (i32.const 8))))))
       (call $held (local.get $errno) (i32.const 51))`,
      '(data (i32.const 1000) "tmp/x")',
    ),
  },
  {
    name: 'fills /tmp with names, in folders inside each other',
    limit: 'tmp',
    program: start(
      ['path_create_directory', 'path_open'],
      `(local $fd i32) (local.set $fd (i32.const 3))
       (call $held (call $path_open (i32.const 3) (i32.const 0) (i32.const 1000) (i32.const 3) (i32.const 2) (i64.const ${READ}) (i64.const 0) (i32.const 0) (i32.const 900)) (i32.const 0))
       (loop $more
         (local.set $fd (i32.load (i32.const 900)))
         (br_if 1 (local.tee $errno (call $path_create_directory (local.get $fd) (i32.const 1000) (i32.const 3))))
         (br_if 1 (local.tee $errno (call $path_open (local.get $fd) (i32.const 0) (i32.const 1000) (i32.const 3) (i32.const 2) (i64.const ${READ}) (i64.const 0) (i32.const 0) (i32.const 900))))
         (br $more))
       (unreachable)`,
      '(data (i32.const 1000) "tmp")',
    ),
    policy: { tmpBytes: 100_000 },
  },
  {
    name: 'makes a file of a terabyte',
    limit: 'tmp',
    program: start(
      ['path_open', 'fd_pwrite', 'fd_filestat_set_size', 'fd_allocate'],
      `(call $held (call $open (i32.const 5) (i32.const 1) (i64.const ${WRITE})) (i32.const 0))
       (i32.store (i32.const 4) (i32.const 1))
       (call $held (call $fd_pwrite (i32.load (i32.const 900)) (i32.const 0) (i32.const 1) (i64.const 1000000000000) (i32.const 8)) (i32.const 51))
       (call $held (call $fd_filestat_set_size (i32.load (i32.const 900)) (i64.const 1000000000000)) (i32.const 51))
       (call $held (call $fd_allocate (i32.load (i32.const 900)) (i64.const 0) (i64.const 9223372036854775807)) (i32.const 22))`,
      '(data (i32.const 1000) "tmp/x")',
    ),
  },
  {
    name: 'keeps the space of files that it removed while they are open',
    limit: 'tmp',
    program: start(
      ['path_open', 'fd_filestat_set_size', 'path_unlink_file'],
      `(loop $more
         (call $held (call $open (i32.const 5) (i32.const 1) (i64.const ${WRITE})) (i32.const 0))
         (local.set $errno (call $fd_filestat_set_size (i32.load (i32.const 900)) (i64.const 400000)))
         (call $held (call $path_unlink_file (i32.const 3) (i32.const 1000) (i32.const 5)) (i32.const 0))
         (local.set $i (i32.add (local.get $i) (i32.const 1)))
         (br_if $more (i32.and (i32.eqz (local.get $errno)) (i32.lt_u (local.get $i) (i32.const 100)))))
       (call $held (local.get $errno) (i32.const 51))`,
      '(data (i32.const 1000) "tmp/x")',
    ),
  },
  {
    name: 'leaves a file for the next run',
    limit: 'tmp',
    isTwice: true,
    program: start(
      ['path_open'],
      `(call $held (call $open (i32.const 5) (i32.const 5) (i64.const ${WRITE})) (i32.const 0))`,
      '(data (i32.const 1000) "tmp/x")',
    ),
  },
];

const DESCRIPTORS: readonly Attack[] = [
  {
    name: 'reads descriptors that it was not given',
    limit: 'files',
    program: start(
      ['fd_read', 'fd_fdstat_get', 'fd_readdir'],
      `(local.set $i (i32.const 4)) (i32.store (i32.const 0) (i32.const 2000)) (i32.store (i32.const 4) (i32.const 100))
       (loop $more
         (call $held (call $fd_read (local.get $i) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 8))
         (call $held (call $fd_fdstat_get (local.get $i) (i32.const 100)) (i32.const 8))
         (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 300))))
       (call $held (call $fd_read (i32.const -1) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 8))`,
    ),
  },
  {
    name: 'closes what it was given, and moves descriptors far away',
    limit: 'files',
    program: start(
      ['fd_close', 'fd_renumber', 'path_open'],
      `(call $held (call $fd_renumber (i32.const 3) (i32.const 1000000)) (i32.const 8))
       (call $held (call $fd_renumber (i32.const 3) (i32.const -1)) (i32.const 8))
       (loop $more
         (call $held (call $fd_close (local.get $i)) (i32.const 0))
         (call $held (call $fd_close (local.get $i)) (i32.const 8))
         (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4))))
       (call $held (call $open (i32.const 7) (i32.const 0) (i64.const ${READ})) (i32.const 8))`,
      '(data (i32.const 1000) "package")',
    ),
  },
  {
    name: 'opens files without end',
    limit: 'files',
    program: start(
      ['path_open'],
      `(loop $more
         (local.set $errno (call $open (i32.const 17) (i32.const 0) (i64.const ${READ})))
         (local.set $i (i32.add (local.get $i) (i32.const 1)))
         (br_if $more (i32.and (i32.eqz (local.get $errno)) (i32.lt_u (local.get $i) (i32.const 10000)))))
       (call $held (local.get $errno) (i32.const 33))`,
      '(data (i32.const 1000) "package/main.wasm")',
    ),
  },
  {
    name: 'reads what is for writing and writes what is for reading',
    limit: 'files',
    program: start(
      ['fd_read', 'fd_write', 'fd_pread', 'fd_seek'],
      `(call $held (call $fd_read (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 8))
       (call $held (call $fd_write (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 8))
       (call $held (call $fd_pread (i32.const 3) (i32.const 0) (i32.const 1) (i64.const -1) (i32.const 8)) (i32.const 31))
       (call $held (call $fd_seek (i32.const 1) (i64.const -5) (i32.const 0) (i32.const 8)) (i32.const 70))`,
    ),
  },
  {
    name: 'points out of its memory',
    limit: 'memory',
    program: start(
      ['fd_write', 'fd_read', 'random_get', 'args_get', 'path_open', 'fd_prestat_dir_name', 'clock_time_get'],
      `(call $held (call $fd_write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 8)) (i32.const 21))
       (call $held (call $fd_write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 8)) (i32.const 28))
       (i32.store (i32.const 0) (i32.const 65000)) (i32.store (i32.const 4) (i32.const -1))
       (call $held (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 21))
       (call $held (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 21))
       (call $held (call $random_get (i32.const 65535) (i32.const 2)) (i32.const 21))
       (call $held (call $args_get (i32.const -1) (i32.const -1)) (i32.const 21))
       (call $held (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 65530)) (i32.const 21))
       (call $held (call $fd_prestat_dir_name (i32.const 3) (i32.const 65536) (i32.const 1)) (i32.const 21))
       (call $held (call $open (i32.const 5000) (i32.const 0) (i64.const ${READ})) (i32.const 37))`,
    ),
  },
];

const MEMORIES: readonly Attack[] = [
  {
    name: 'takes memory without end',
    limit: 'memory',
    ends: 'memory',
    program: start([], '(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)'),
  },
  {
    name: 'takes more memory at once than there is',
    limit: 'memory',
    ends: 'memory',
    program: '(module (memory (export "memory") 65536) (func (export "_start")))',
  },
  {
    name: 'grows its tables without end',
    limit: 'memory',
    program: start(
      [],
      `(loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
       (if (i32.gt_u (table.size $t) (i32.const 100000)) (then (call $exit (i32.const 1))))`,
      '(table $t 1 funcref)',
    ),
  },
  {
    name: 'brings a huge table',
    limit: 'memory',
    ends: 'refused',
    says: /100000 are offered/,
    program: `(module ${MEMORY} (table 5000000 funcref) (func (export "_start")))`,
  },
  {
    name: 'brings data for places that it does not have',
    limit: 'memory',
    ends: 'error',
    program: `(module ${MEMORY} (data (i32.const 65000) "${'x'.repeat(1_000)}") (func (export "_start")))`,
  },
  {
    name: 'calls itself without end',
    limit: 'isolation',
    ends: 'error',
    says: /stack/,
    program: `(module ${MEMORY} (func $f (param i64 i64 i64 i64) (call $f (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
      (func (export "_start") (call $f (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))))`,
  },
  {
    name: 'calls itself without end before it starts, through a table and the host',
    limit: 'isolation',
    ends: 'error',
    says: /stack/,
    program: `(module ${imports(['sched_yield', 'fd_write'])} ${MEMORY} (type $t (func)) (table 1 funcref) (elem (i32.const 0) $f)
      (func $f (drop (call $sched_yield)) (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call_indirect (type $t) (i32.const 0)) (drop (call $sched_yield)))
      (start $f) (func (export "_start")))`,
  },
  {
    name: 'has a frame of 50,000 variables, and calls itself',
    limit: 'isolation',
    ends: 'error',
    says: /stack/,
    program: `(module ${MEMORY} (func $f ${'(local i64)'.repeat(45_000)} (call $f)) (func (export "_start") (call $f)))`,
  },
];

const TIMES: readonly Attack[] = [
  { name: 'never ends', limit: 'wall', ends: 'timeout', policy: { wallMs: 150 }, program: start([], '(loop (br 0))') },
  {
    name: 'sleeps for an hour',
    limit: 'wall',
    ends: 'timeout',
    policy: { wallMs: 150 },
    program: start(
      ['poll_oneoff'],
      `(i64.store (i32.const 24) (i64.const 3600000000000))
       (drop (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))`,
    ),
  },
  {
    name: 'waits for four billion things, and for none',
    limit: 'isolation',
    program: start(
      ['poll_oneoff'],
      `(call $held (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const -1) (i32.const 200)) (i32.const 28))
       (call $held (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const 0) (i32.const 200)) (i32.const 28))
       (i32.store8 (i32.const 8) (i32.const 9))
       (call $held (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)) (i32.const 28))`,
    ),
  },
  {
    name: 'asks the host for nothing without end',
    limit: 'wall',
    ends: 'timeout',
    policy: { wallMs: 150 },
    program: start(['sched_yield'], '(loop (drop (call $sched_yield)) (br 0))'),
  },
  {
    name: 'never ends, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    program: start([], '(loop (br 0))'),
  },
  {
    name: 'never ends before it starts, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    program: `(module ${MEMORY} (func $s (loop (br 0))) (start $s) (func (export "_start")))`,
  },
  {
    name: 'never ends by tail calls, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    features: { tail_call: true },
    program: `(module ${MEMORY} (func $f (return_call $f)) (func (export "_start") (call $f)))`,
  },
  {
    name: 'lets single instructions do the work, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    program: start([], '(loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0))'),
  },
  {
    name: 'lets the host do the work, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    program: start(['random_get'], '(loop (drop (call $random_get (i32.const 0) (i32.const 65536))) (br 0))'),
  },
  {
    name: 'prints nothing without end, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    program: start(
      ['fd_write'],
      '(loop (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 8))) (br 0))',
    ),
  },
  {
    name: 'names the counter of its fuel',
    limit: 'fuel',
    ends: 'refused',
    says: /does not validate/,
    program: async () => {
      const bytes = await assemble(
        `(module ${MEMORY} (global (mut i64) (i64.const 0)) (func (export "_start") (global.set 0 (i64.const 99))))`,
      );
      // The index behind its own, where the counter will be.
      const at = bytes.lastIndexOf(0x24);
      bytes[at + 1] = 1;
      return bytes;
    },
  },
];

const OUTPUTS: readonly Attack[] = (['output', 'error output'] as const).map((stream, index) => ({
  name: `floods its ${stream}`,
  limit: 'output',
  ends: 'output',
  program: start(
    ['fd_write'],
    `(i32.store (i32.const 4) (i32.const 60000))
     (loop (drop (call $fd_write (i32.const ${1 + index}) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))`,
  ),
}));

const OUTSIDE: readonly Attack[] = [
  {
    name: 'imports what is not WASI',
    limit: 'isolation',
    ends: 'refused',
    says: /"env"\."system"/,
    program: `(module (import "env" "system" (func)) ${MEMORY} (func (export "_start")))`,
  },
  {
    name: 'uses sockets and signals',
    limit: 'network',
    program: start(
      ['sock_accept', 'sock_recv', 'sock_send', 'sock_shutdown', 'proc_raise'],
      `(call $held (call $sock_accept (i32.const 3) (i32.const 0) (i32.const 0)) (i32.const 52))
       (call $held (call $sock_recv (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 52))
       (call $held (call $sock_send (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 52))
       (call $held (call $sock_shutdown (i32.const 3) (i32.const 0)) (i32.const 52))
       (call $held (call $proc_raise (i32.const 9)) (i32.const 58))`,
    ),
  },
  {
    name: 'looks for the environment of the node',
    limit: 'isolation',
    program: start(
      ['environ_sizes_get', 'args_sizes_get'],
      `(drop (call $environ_sizes_get (i32.const 0) (i32.const 4))) (call $held (i32.load (i32.const 0)) (i32.const 0))
       (drop (call $args_sizes_get (i32.const 0) (i32.const 4))) (call $held (i32.load (i32.const 0)) (i32.const 1))`,
    ),
  },
  {
    name: 'reads clocks that are not there',
    limit: 'isolation',
    program: start(
      ['clock_time_get', 'clock_res_get'],
      `(call $held (call $clock_time_get (i32.const 99) (i64.const 0) (i32.const 0)) (i32.const 28))
       (call $held (call $clock_res_get (i32.const -1) (i32.const 0)) (i32.const 28))`,
    ),
  },
  {
    name: 'shares its memory with threads',
    limit: 'cpu',
    ends: 'refused',
    says: /shared memory/,
    features: { threads: true },
    program: '(module (memory (export "memory") 1 2 shared) (func (export "_start")))',
  },
];

const FS = 'wasi:filesystem/types';
const STREAMS = 'wasi:io/streams';
const STDOUT: readonly [string, string] = ['wasi:cli/stdout', 'get-stdout'];
const PREOPENS: readonly [string, string] = ['wasi:filesystem/preopens', 'get-directories'];
/** A module with `run`; `types`: of the functions "0", "1", …. */
function main(types: readonly string[], body: string, fields = ''): string {
  const functions = types.map((type, index) => `(import "host" "${index}" (func $${index} ${type}))`).join('\n');
  return `(module (import "env" "memory" (memory 0)) ${functions} ${fields}
    (func (export "run") (result i32) (local $i i32) ${body}))`;
}
const PATHS = ['/etc/passwd', '../etc/passwd', 'package/absolute', 'package/../../x'];

const COMPONENTS: readonly Attack[] = [
  {
    name: 'as a component, opens files of the host',
    limit: 'files',
    program: {
      calls: [PREOPENS, [FS, '[method]descriptor.open-at']],
      main: main(
        ['(param i32)', '(param i32 i32 i32 i32 i32 i32 i32)'],
        `(call $0 (i32.const 0)) ;; a list of one, whose first word is the handle
         ${PATHS.map(
           (
             path,
             index,
           ) => `(call $1 (i32.load (i32.load (i32.const 0))) (i32.const 1) (i32.const ${2000 + index * 100})
             (i32.const ${path.length}) (i32.const 0) (i32.const 1) (i32.const 100))
           (if (i32.ne (i32.load8_u (i32.const 100)) (i32.const 1)) (then (return (i32.const 1))))
           (if (i32.ne (i32.load8_u (i32.const 104)) (i32.const 31)) (then (return (i32.const 1))))`,
         ).join('\n')}
         (i32.const 0)`,
        PATHS.map((path, index) => `(data (i32.const ${2000 + index * 100}) "${path}")`).join('\n'),
      ),
    },
  },
  {
    name: 'as a component, makes sockets and looks up names',
    limit: 'network',
    program: {
      calls: [
        ['wasi:sockets/tcp-create-socket', 'create-tcp-socket'],
        ['wasi:sockets/udp-create-socket', 'create-udp-socket'],
        ['wasi:sockets/instance-network', 'instance-network'],
        ['wasi:sockets/ip-name-lookup', 'resolve-addresses'],
      ],
      main: main(
        ['(param i32 i32)', '(param i32 i32)', '(result i32)', '(param i32 i32 i32 i32)'],
        `(call $0 (i32.const 0) (i32.const 100)) (call $1 (i32.const 0) (i32.const 108))
         (call $3 (call $2) (i32.const 200) (i32.const 4) (i32.const 116))
         (i32.eqz (i32.and (i32.load8_u (i32.const 116)) (i32.and (i32.load8_u (i32.const 100)) (i32.load8_u (i32.const 108)))))`,
      ),
    },
  },
  {
    name: 'as a component, calls a socket that is not there',
    limit: 'network',
    ends: 'error',
    says: /no such resource/,
    program: {
      calls: [['wasi:sockets/tcp', '[method]tcp-socket.start-connect']],
      main: main(['(param i32)'], '(call $0 (i32.const 1)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, imports more than the world of a command',
    limit: 'network',
    ends: 'refused',
    says: /wasi:http\/outgoing-handler@0\.2\.3/,
    program: { calls: [['wasi:http/outgoing-handler', 'handle']], main: main([''], '(i32.const 0)') },
  },
  {
    name: 'as a component, takes the counter of its fuel for a variable',
    limit: 'fuel',
    ends: 'refused',
    says: /no core global "hypermesh:fuel"/,
    program: {
      main: main([], '(i32.const 0)'),
      more: [definition(6, [0x00, 0x03], 0x01, 3, 'hypermesh:fuel')],
    },
  },
  {
    name: 'as a component, never ends in one of two modules, with fuel',
    limit: 'fuel',
    ends: 'fuel',
    policy: { fuel: 100_000n },
    program: {
      calls: [['wasi:cli/environment', 'get-arguments']],
      memory: `${MEMORY_MODULE.slice(0, MEMORY_MODULE.lastIndexOf('(func'))}(func (export "realloc") (param i32 i32 i32 i32) (result i32) (loop (br 0)) (unreachable)))`,
      main: main(
        ['(param i32)'],
        '(loop $work (br_if $work (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000)))) (call $0 (i32.const 0)) (i32.const 0)',
      ),
    },
  },
  {
    name: 'as a component, guesses handles',
    limit: 'isolation',
    ends: 'error',
    says: /not the handle/,
    program: {
      calls: [[STREAMS, '[method]output-stream.flush']],
      main: main(['(param i32 i32)'], '(call $0 (i32.const 77) (i32.const 0)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, uses one kind of handle for another',
    limit: 'isolation',
    ends: 'error',
    says: /not the handle/,
    program: {
      calls: [STDOUT, [FS, '[method]descriptor.sync']],
      main: main(['(result i32)', '(param i32 i32)'], '(call $1 (call $0) (i32.const 0)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, drops a handle twice',
    limit: 'isolation',
    ends: 'error',
    says: /not a handle/,
    program: {
      calls: [STDOUT, 'drop'],
      main: main(
        ['(result i32)', '(param i32)'],
        '(local.set $i (call $0)) (call $1 (local.get $i)) (call $1 (local.get $i)) (i32.const 0)',
      ),
    },
  },
  {
    name: 'as a component, holds resources without end',
    limit: 'memory',
    ends: 'error',
    says: /more than 4096 resources/,
    program: { calls: [STDOUT], main: main(['(result i32)'], '(loop (drop (call $0)) (br 0)) (i32.const 0)') },
  },
  {
    name: 'as a component, writes what lies behind its memory',
    limit: 'memory',
    ends: 'error',
    says: /out of the memory/,
    program: {
      calls: [STDOUT, [STREAMS, '[method]output-stream.write']],
      main: main(
        ['(result i32)', '(param i32 i32 i32 i32)'],
        '(call $1 (call $0) (i32.const 65000) (i32.const -1) (i32.const 0)) (i32.const 0)',
      ),
    },
  },
  {
    name: 'as a component, has results put behind its memory',
    limit: 'memory',
    ends: 'error',
    says: /out of the memory/,
    program: {
      calls: [['wasi:clocks/wall-clock', 'now']],
      main: main(['(param i32)'], '(call $0 (i32.const -4)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, makes room for results behind its memory',
    limit: 'memory',
    ends: 'error',
    says: /out of the memory/,
    program: {
      calls: [['wasi:cli/environment', 'get-arguments']],
      memory: `(module ${MEMORY} (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const -4096)))`,
      main: main(['(param i32)'], '(call $0 (i32.const 0)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, calls out while it makes room',
    limit: 'isolation',
    ends: 'error',
    says: /while it made room/,
    program: () => reentrant(),
  },
  {
    name: 'as a component, asks for more random bytes than there is memory',
    limit: 'memory',
    ends: 'error',
    says: /random bytes/,
    program: {
      calls: [['wasi:random/random', 'get-random-bytes']],
      main: main(['(param i64 i32)'], '(call $0 (i64.const 1099511627776) (i32.const 0)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, waits for nothing',
    limit: 'wall',
    ends: 'error',
    says: /waits for nothing/,
    program: {
      calls: [['wasi:io/poll', 'poll']],
      main: main(['(param i32 i32 i32)'], '(call $0 (i32.const 0) (i32.const 0) (i32.const 8)) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, sleeps for centuries',
    limit: 'wall',
    ends: 'timeout',
    policy: { wallMs: 200 },
    program: {
      calls: [
        ['wasi:clocks/monotonic-clock', 'subscribe-duration'],
        ['wasi:io/poll', '[method]pollable.block'],
      ],
      main: main(['(param i64) (result i32)', '(param i32)'], '(call $1 (call $0 (i64.const -1))) (i32.const 0)'),
    },
  },
  {
    name: 'as a component, grows the memory of another module without end',
    limit: 'memory',
    ends: 'memory',
    program: {
      main: main([], '(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)'),
    },
  },
  {
    name: 'as a component, brings memories beside its own',
    limit: 'memory',
    ends: 'refused',
    says: /more than one memory/,
    program: { main: main([], '(i32.const 0)'), more: [definition(2, 0x00, 0, 0)] },
  },
  {
    name: 'as a component, instantiates a module without end',
    limit: 'memory',
    ends: 'refused',
    says: /more than 64 modules/,
    program: async () => {
      const module = await assemble('(module)');
      return component(
        coreModule(module),
        Array.from({ length: 50_000 }, () => definition(2, 0x00, 0, 0)),
      );
    },
  },
  {
    name: 'as a component, makes a thousand large tables',
    limit: 'memory',
    ends: 'memory',
    program: async () => {
      const tables = await assemble(`(module ${'(table 100000 funcref)'.repeat(15)})`);
      return component(
        coreModule(tables),
        Array.from({ length: 60 }, () => definition(2, 0x00, 0, 0)),
      );
    },
  },
  {
    name: 'as a component, multiplies by components in components',
    limit: 'memory',
    ends: 'refused',
    says: /more than 1000 instances/,
    program: async () => {
      let inner = component();
      for (let level = 0; level < 7; level++)
        inner = component(
          nested(inner),
          Array.from({ length: 10 }, () => definition(5, 0x00, 0, 0)),
        );
      return inner;
    },
  },
  {
    name: 'as a component, nests without end',
    limit: 'isolation',
    ends: 'refused',
    says: /deeper than 8/,
    program: async () => {
      let inner = component();
      for (let level = 0; level < 1_000; level++) inner = component(nested(inner));
      return inner;
    },
  },
  {
    name: 'as a component, nests its types without end',
    limit: 'isolation',
    ends: 'refused',
    says: /types nest too deep/,
    program: async () => {
      const types = Array.from({ length: 10_000 }, () => [0x42, 1, 0x01]).flat();
      const body = [1, ...types, 0x42, 0];
      return component([7, ...u32(body.length), ...body]);
    },
  },
];

/** A component whose `realloc` prints: it can only be called through a table that is filled later. */
async function reentrant(): Promise<Uint8Array<ArrayBuffer>> {
  return assembleCommand({
    calls: [['wasi:cli/environment', 'get-arguments'], STDOUT],
    memory: `(module ${MEMORY} (table (export "table") 1 funcref) (type $t (func (result i32)))
      (func (export "realloc") (param i32 i32 i32 i32) (result i32)
        (drop (call_indirect (type $t) (i32.const 0))) (i32.const 4096)))`,
    main: `(module (import "env" "memory" (memory 0)) (import "host" "0" (func $arguments (param i32)))
      (import "host" "1" (func $out (result i32))) (import "env" "table" (table 1 funcref)) (elem (i32.const 0) func $out)
      (func (export "run") (result i32) (call $arguments (i32.const 0)) (i32.const 0)))`,
    shared: 'table',
  });
}

const ATTACKS = [...FILES, ...DESCRIPTORS, ...MEMORIES, ...TIMES, ...OUTPUTS, ...OUTSIDE, ...COMPONENTS];

const LINKS: Readonly<Record<string, TreeContent>> = {
  absolute: { link: '/etc/passwd' },
  up: { link: '../../../etc/passwd' },
  sideways: { link: '../tmp' },
  folder: { link: '/' },
  loop: { link: 'loop' },
};

describe(`escapes from wasm, ${ATTACKS.length} of them`, { concurrency: 2 }, () => {
  const trees = new MemoryTrees();
  const runtime = new WasmRuntime({ assets: trees }, { limits: DEFAULT_LIMITS });
  after(() => runtime[Symbol.asyncDispose]());

  for (const { name, limit, program, ends, says, policy, features, isTwice } of ATTACKS) {
    it(`${name}: stopped by ${limit}`, async () => {
      const module =
        typeof program === 'string'
          ? await assemble(program, features)
          : typeof program === 'function'
            ? await program()
            : await assembleCommand(program);
      const layer = trees.add({ 'main.wasm': module, ...LINKS });
      const request = {
        kind: 'wasm',
        layer,
        entry: 'main.wasm',
        args: [],
        input: null,
        policy: { ...SMALL_POLICY, ...policy },
      } as const;
      if (ends === 'refused') {
        await assert.rejects(runtime.run(request), { code: 'program-invalid', message: says ?? /./ });
        return;
      }
      if (isTwice) await runtime.run(request);
      const result = await runtime.run(request);
      assert.deepEqual(
        [result.termination, result.exitCode],
        ends === undefined ? ['exit', 0] : [ends, null],
        `${result.reason} ${result.stderr}`,
      );
      assert.match(result.reason ?? '', says ?? /(?:)/);
      assert.ok(result.enforcedBy[limit], `enforcedBy.${limit}`);
      assert.ok(result.usage.peakMemoryBytes <= SMALL_POLICY.memoryBytes + SMALL_POLICY.tmpBytes);
    });
  }
});
