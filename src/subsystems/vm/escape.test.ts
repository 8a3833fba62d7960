import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import type { SandboxPolicy } from '../../capabilities/vm.ts';
import { MemoryTrees, SMALL_POLICY, type TreeContent } from '../../testing/runtime-conformance.ts';
import { until } from '../../testing/until.ts';
import { assemble } from '../../testing/wat.ts';
import { openExecution } from './index.ts';
import { WASI_FUNCTIONS } from './wasm/wasi.ts';

const MEMORY = '(memory (export "memory") 1)';
/** Imports every function named in `names` as `$name`. */
function imports(...names: string[]): string {
  const letters: Record<string, string> = { i: 'i32', I: 'i64' };
  const typed = (text: string) => [...text].map((letter) => letters[letter]).join(' ');
  return names
    .map((name) => {
      const [parameters, results] = WASI_FUNCTIONS.get(name)!.split(':') as [string, string];
      return `(import "wasi_snapshot_preview1" "${name}" (func $${name} (param ${typed(parameters)}) (result ${typed(results)})))`;
    })
    .join('\n');
}
/** $path: opens the text at 1000 with oflags and rights, returns the error number; the descriptor is at 900. */
const OPEN = `(func $open (param $length i32) (param $how i32) (param $rights i64) (result i32)
  (call $path_open (i32.const 3) (i32.const 1) (i32.const 1000) (local.get $length)
    (local.get $how) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 900)))`;
const EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))';

describe('the box', () => {
  const trees = new MemoryTrees();
  const execution = openExecution({ assets: trees }, { limits: { wallMsMax: 600_000 } });
  after(async () => (await execution)[Symbol.asyncDispose]());

  async function run(
    program: string | Uint8Array,
    policy: Partial<SandboxPolicy> = {},
    more: { files?: Record<string, TreeContent>; features?: Record<string, boolean> } = {},
  ) {
    const module = typeof program === 'string' ? await assemble(program, more.features) : program;
    const layer = trees.add({ 'main.wasm': module, ...more.files });
    return (await execution).run({
      kind: 'wasm',
      layer,
      entry: 'main.wasm',
      args: [],
      input: null,
      policy: { ...SMALL_POLICY, ...policy },
    });
  }
  const start = (body: string) => `(module ${MEMORY} (func (export "_start") ${body}))`;

  it('counts the same fuel each time, and no more than the budget', async () => {
    const work = start(
      '(local $i i32) (loop (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if 0 (i32.lt_u (local.get $i) (i32.const 1000))))',
    );
    const [first, second] = await Promise.all([run(work), run(work, { fuel: 10_000n })]);
    assert.equal(first.usage.fuelUsed, second.usage.fuelUsed);
    assert.equal((await run(work, { fuel: BigInt(first.usage.fuelUsed!) })).termination, 'exit');
    assert.equal((await run(work, { fuel: BigInt(first.usage.fuelUsed!) - 1n })).termination, 'fuel');
  });

  it('charges bulk operations by their length', async () => {
    const fill = '(memory.fill (i32.const 0) (i32.const 1) (i32.const 65536))';
    const copy = '(memory.copy (i32.const 0) (i32.const 1) (i32.const 65535))';
    for (const operation of [fill, copy]) {
      const { usage } = await run(start(operation));
      assert.ok(Number(usage.fuelUsed) >= 8191, `${operation}: ${usage.fuelUsed}`);
      assert.equal((await run(start(`(loop ${operation} (br 0))`), { fuel: 100_000n })).termination, 'fuel');
    }
    const table = `(module ${MEMORY} (table $t 100000 funcref) (func (export "_start")
      (loop (table.fill $t (i32.const 0) (ref.null func) (i32.const 100000)) (br 0))))`;
    assert.equal((await run(table, { fuel: 100_000n })).termination, 'fuel');
  });

  it('lets a short sleep pass', async () => {
    const nap = `(module ${imports('poll_oneoff')} ${EXIT} ${MEMORY} (func (export "_start")
      (i64.store (i32.const 24) (i64.const 2000000))
      (call $exit (call $poll_oneoff (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))`;
    const result = await run(nap);
    assert.deepEqual([result.termination, result.exitCode], ['exit', 0]);
  });

  it('never gives more memory than the policy', async () => {
    const pages = `(module ${EXIT} ${MEMORY} (func (export "_start")
      (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (call $exit (memory.size))))`;
    const result = await run(pages, { memoryBytes: 20 * 65_536 + 5 });
    assert.deepEqual([result.exitCode, result.usage.peakMemoryBytes], [20, 20 * 65_536]);
    const atOnce = `(module (memory (export "memory") 300) (func (export "_start")))`;
    assert.equal((await run(atOnce)).termination, 'memory');
    const most = `(module (memory (export "memory") 1 65536) (func (export "_start") (drop (memory.grow (i32.const 60000))) (unreachable)))`;
    assert.equal((await run(most)).termination, 'memory');
  });

  it('ends a deep recursion and a trap as errors', async () => {
    const deep = `(module ${MEMORY} (func $f (param i64 i64 i64 i64) (call $f (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
      (func (export "_start") (call $f (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))))`;
    const recursion = await run(deep);
    assert.deepEqual([recursion.termination, recursion.exitCode], ['error', null]);
    assert.match(recursion.reason ?? '', /stack/);
    assert.match((await run(start('(unreachable)'))).reason ?? '', /trapped: unreachable/);
    assert.equal((await run(start('(drop (i32.load (i32.const -1)))'))).termination, 'error');
    assert.equal((await run(start('(drop (i32.div_u (i32.const 1) (i32.const 0)))'))).termination, 'error');
  });

  it('says that a program failed for want of space', async () => {
    const program = (end: string) => `(module ${imports('path_open', 'fd_filestat_set_size')} ${EXIT} ${MEMORY}
      (data (i32.const 1000) "tmp/x") ${OPEN} (func (export "_start")
        (drop (call $open (i32.const 5) (i32.const 1) (i64.const 64)))
        (drop (call $fd_filestat_set_size (i32.load (i32.const 900)) (i64.const 3000000))) ${end}))`;
    const ended = async (end: string) => {
      const { termination, exitCode } = await run(program(end));
      return [termination, exitCode];
    };
    assert.deepEqual(await ended('(call $exit (i32.const 5))'), ['disk', 5]);
    assert.deepEqual(await ended('(unreachable)'), ['disk', null]);
    assert.deepEqual(await ended(''), ['exit', 0]);
  });

  it('reads large files whole and refuses what is too large', async () => {
    const big = Buffer.alloc(3_000_000, 'x');
    const program = `(module ${imports('path_open', 'fd_read')} ${EXIT} (memory (export "memory") 2)
      (data (i32.const 1000) "package/big") ${OPEN}
      (func (export "_start") (local $sum i32)
        (drop (call $open (i32.const 11) (i32.const 0) (i64.const 2)))
        (i32.store (i32.const 0) (i32.const 65536)) (i32.store (i32.const 4) (i32.const 65536))
        (loop $more
          (if (call $fd_read (i32.load (i32.const 900)) (i32.const 0) (i32.const 1) (i32.const 8)) (then (call $exit (i32.const 29))))
          (local.set $sum (i32.add (local.get $sum) (i32.load (i32.const 8))))
          (br_if $more (i32.load (i32.const 8))))
        (call $exit (i32.div_u (local.get $sum) (i32.const 100000)))))`;
    assert.equal((await run(program, {}, { files: { big } })).exitCode, 30);
    await using strict = await openExecution({ assets: trees }, { limits: { fileBytesMax: 1_000_000 } });
    const layer = trees.add({ 'main.wasm': await assemble(program), big });
    const result = await strict.run({
      kind: 'wasm',
      layer,
      entry: 'main.wasm',
      args: [],
      input: null,
      policy: SMALL_POLICY,
    });
    assert.equal(result.exitCode, 29);
  });

  it('takes large modules and data, and says what is too large', async () => {
    const data = `(module (memory (export "memory") 100) (data (i32.const 0) "${'x'.repeat(2_000_000)}") (func (export "_start")))`;
    assert.equal((await run(data)).termination, 'exit');
    const outside = `(module ${MEMORY} (data (i32.const 65000) "${'x'.repeat(1_000)}") (func (export "_start")))`;
    assert.equal((await run(outside)).termination, 'error');
    await assert.rejects(run(new Uint8Array(33 * 2 ** 20)), { code: 'program-invalid', message: /at most/ });
  });

  it('holds a program back to its share of a processor', async () => {
    const result = await run(start('(loop (br 0))'), { cpuCores: 0.2, wallMs: 600 });
    assert.equal(result.termination, 'timeout');
    assert.ok(result.usage.cpuMs < result.usage.wallMs);
  });

  it('refuses a policy beyond the node, other kinds, and malformed requests', async () => {
    await assert.rejects(run(start(''), { memoryBytes: 2 ** 40, wallMs: 10 ** 9 }), {
      code: 'policy-refused',
      message: /memoryBytes 1099511627776, at most \d+; wallMs/,
    });
    const layer = trees.add({});
    const request = { layer, entry: 'main.jl', args: [], input: null, policy: SMALL_POLICY };
    await assert.rejects((await execution).run({ kind: 'julia', ...request }), { code: 'runtime-unavailable' });
    for (const at of ['/package/x', '/tmp', '/a/../b', 'relative', '/a//b', '/']) {
      const policy = { ...SMALL_POLICY, mounts: [{ layer, at }] };
      await assert.rejects((await execution).run({ kind: 'wasm', ...request, policy }), { code: 'usage' }, at);
    }
    const kinds = await (await execution).runtimes();
    assert.deepEqual(
      kinds.map(({ kind, available }) => [kind, available]),
      [
        ['wasm', true],
        ['julia', false],
        ['python', false],
        ['container', false],
        ['vm', false],
      ],
    );
  });

  it('survives damaged modules', async () => {
    const good = await assemble(
      `(module ${imports('fd_write', 'path_open')} ${EXIT} (memory (export "memory") 1 9) (table 3 funcref) (global (mut i32) (i32.const 1))
        (elem (i32.const 0) func 3) (data (i32.const 8) "text") (func $f (param i32) (result i32) (local i64)
          (loop (result i32) (br_if 0 (i32.eqz (local.get 0))) (memory.fill (i32.const 0) (i32.const 1) (i32.const 9)) (i32.const 4)))
        (func (export "_start") (drop (call $f (i32.const 1))) (call $exit (i32.const 0))))`,
    );
    const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(damage, fc.nat(good.length), async (changes, length) => {
        const bytes = good.slice(0, length < good.length / 8 ? length + 8 : good.length);
        for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
        const outcome = await run(bytes, { fuel: 100_000n }).then(
          (result) => result.termination,
          (error: { code?: string }) => error.code,
        );
        assert.ok(['exit', 'error', 'fuel', 'memory', 'program-invalid'].includes(outcome ?? ''), outcome ?? 'no code');
      }),
      { numRuns: 6 },
    );
  });

  it('runs several at a time, lets the rest wait, and takes a place back from who gives up', async () => {
    await using narrow = await openExecution({ assets: trees }, { concurrency: 1, limits: { waitingMax: 1 } });
    const layer = trees.add({ 'main.wasm': await assemble(start('(loop (br 0))')) });
    const policy = { ...SMALL_POLICY, wallMs: 300 };
    const request = { kind: 'wasm', layer, entry: 'main.wasm', args: [], input: null, policy } as const;
    const controller = new AbortController();
    const first = narrow.run(request);
    const second = narrow.run(request, { signal: controller.signal });
    await assert.rejects(narrow.run(request), { code: 'quota-exceeded' });
    controller.abort();
    await assert.rejects(second, { code: 'cancelled' });
    assert.equal((await first).termination, 'timeout');
    assert.equal((await narrow.run(request)).termination, 'timeout');
  });

  it('stops what runs when the node stops', async () => {
    const closing = await openExecution({ assets: trees });
    const layer = trees.add({ 'main.wasm': await assemble(start('(loop (br 0))')) });
    const running = closing.run({
      kind: 'wasm',
      layer,
      entry: 'main.wasm',
      args: [],
      input: null,
      policy: SMALL_POLICY,
    });
    const outcome = running.then(
      (result) => result.termination,
      (error: { code: string }) => error.code,
    );
    await closing.runtimes();
    await closing[Symbol.asyncDispose]();
    assert.equal(await outcome, 'cancelled');
  });

  it('leaves no process behind when the node is killed', { skip: !existsSync('/proc/self/stat') }, async () => {
    // A node of its own that runs an endless program, and says so.
    const source = `
      import { openExecution } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
      const module = Uint8Array.fromHex(${JSON.stringify(Buffer.from(await assemble(start('(loop (br 0))'))).toString('hex'))});
      const assets = {
        tree: async () => [{ path: 'main.wasm', kind: 'file', size: module.length, executable: false }],
        readFile: async function* () { yield module; },
      };
      const execution = await openExecution({ assets });
      await execution.runtimes();
      const policy = ${JSON.stringify({ ...SMALL_POLICY, wallMs: 60_000 })};
      execution.run({ kind: 'wasm', layer: 'sha256:${'0'.repeat(64)}', entry: 'main.wasm', args: [], input: null, policy });
      process.stdout.write('running');`;
    const node = spawn(process.execPath, ['--input-type=module', '--no-warnings', '-e', source]);
    await once(node.stdout, 'data');
    let boxes: readonly number[] = [];
    await until('its box is there', () => {
      boxes = childrenOf(node.pid!);
      return boxes.length > 0;
    });
    node.kill('SIGKILL');
    await once(node, 'exit');
    await until('all of them are gone', () => !boxes.some((pid) => existsSync(`/proc/${pid}`)));
  });
});

function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number);
}
