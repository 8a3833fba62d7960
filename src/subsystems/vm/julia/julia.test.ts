import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as pause, setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { isCoded } from '../../../base/errors.ts';
import type { Json } from '../../../base/json.ts';
import type { JuliaOptions, RunRequest, RunResult, SandboxPolicy } from '../../../capabilities/vm.ts';
import { imageOfHome, layImage } from '../../../testing/added-image.ts';
import {
  MemoryTrees,
  type RuntimeFixture,
  SMALL_POLICY,
  type TreeContent,
  testRuntime,
} from '../../../testing/runtime-conformance.ts';
import { openExecution } from '../execution.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Standby, type StandbyBounds } from '../process/standby.ts';
import { Trees } from '../process/trees.ts';
import { JuliaRuntime, projectName } from './julia.ts';

const image = await imageOfHome('julia');
const skip = image === null ? 'no Julia in ~/.hypermesh: `hypermesh runtime add julia`' : false;

async function open(bounds: Partial<StandbyBounds> = { boxesMax: 0 }): Promise<RuntimeFixture & { standby: Standby }> {
  const directory = await mkdtemp(join(tmpdir(), 'hypermesh-julia-'));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rm(directory, { recursive: true, force: true }));
  await layImage(image!, join(directory, 'images'), { isShared: true });
  const assets = new MemoryTrees();
  const sandbox = stack.use(await openProcessSandbox({ directory }));
  const { filesMax } = DEFAULT_LIMITS;
  const trees = await Trees.open({ assets }, { directory: join(directory, 'trees'), treeBytesMax: 2 ** 30, filesMax });
  const standby = new Standby(bounds);
  const runtime = new JuliaRuntime(
    { assets, sandbox, trees, standby },
    { limits: DEFAULT_LIMITS, images: join(directory, 'images'), depots: join(directory, 'depots') },
  );
  const layer = assets.add(
    files({
      'echo.jl': 'write(stdout, read(stdin))',
      'seven.jl': 'exit(7)',
      'spin.jl': 'while true; end',
      'flood.jl': 'while true; print("x"^1000); end',
      'complain.jl': 'print(stderr, "\\e[31mred")',
      'read.jl': 'write(stdout, read(ARGS[1]))',
      'hoard.jl': 'held = Any[]; while true; push!(held, ones(UInt8, 2^20)); end',
      'environment.jl': 'for (name, value) in ENV; print(name, "=", value, "\\0"); end',
      'broken.jl': 'x = [1, 2\nfunction (',
    }),
  );
  const owned = stack.move();
  return {
    ...{ runtime, standby },
    trees: assets,
    programs: {
      layer,
      ...{ echo: 'echo.jl', seven: 'seven.jl', spin: 'spin.jl', flood: 'flood.jl', complain: 'complain.jl' },
      ...{ read: 'read.jl', hoard: 'hoard.jl', environment: 'environment.jl', broken: 'broken.jl' },
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function files(texts: Readonly<Record<string, string>>): Record<string, TreeContent> {
  return Object.fromEntries(Object.entries(texts).map(([path, text]) => [path, Buffer.from(text)]));
}

testRuntime('julia', () => open(), { skip });

describe('Julia', { skip }, () => {
  let fixture: RuntimeFixture;
  before(async () => {
    fixture = await open();
  });
  after(() => fixture[Symbol.asyncDispose]());

  function run(
    program: string,
    { input = null, ...policy }: Partial<SandboxPolicy> & { readonly input?: Json } = {},
  ): Promise<RunResult> {
    const layer = fixture.trees.add(files({ 'main.jl': program }));
    return fixture.runtime.run({
      ...{ kind: 'julia', layer, entry: 'main.jl', args: [], input },
      policy: { ...SMALL_POLICY, wallMs: 600_000, outputBytes: 2 ** 20, ...policy },
    });
  }

  it('calls main with the input, takes what it returns as the output, and what it prints as its log', async () => {
    const result = await run(
      'main(input) = (println("working"); (sum = sum(input["list"]), threads = Threads.nthreads()))',
      {
        input: { list: [1, 2, 3.5] },
      },
    );
    assert.deepEqual([result.output, result.stderr, result.exitCode], [{ sum: 6.5, threads: 1 }, 'working\n', 0]);
  });

  it('finds packages by the names in their Project.toml, and theirs, without a network', async () => {
    const words = fixture.trees.add(
      files({
        'Project.toml': `name = "Words"\nuuid = "${UUID.words}"\n`,
        'src/Words.jl': 'module Words\nconst COMPILED = time()\ngreet(name) = "hello $name"\nend\n',
      }),
    );
    const stats = fixture.trees.add(
      files({
        'Project.toml': `name = "Stats"\nuuid = "${UUID.stats}"\n\n[deps]\nWords = "${UUID.words}"\n`,
        'src/Stats.jl': 'module Stats\nusing Words\ngreeting(name) = uppercase(Words.greet(name))\nend\n',
      }),
    );
    const mounts = [
      { layer: words, at: '/packages/ada/words' },
      { layer: stats, at: '/packages/ada/stats' },
    ];
    const program = 'using Stats, LinearAlgebra\nmain(name) = [Stats.greeting(name), norm([3.0, 4.0])]';
    assert.deepEqual((await run(program, { input: 'you', mounts })).output, ['HELLO YOU', 5]);
    // What was computed while the package was compiled is the same in each run: it was compiled once.
    const stamp = () => run('import Words\nmain(input) = Words.COMPILED', { mounts }).then(({ output }) => output);
    assert.equal(await stamp(), await stamp());
    // Two who come at the same time compile once; one who gives up meanwhile does not spoil it for the other.
    const more = [...mounts, { layer: fixture.trees.add(files({ x: '' })), at: '/packages/ada/x' }];
    const stranger = fixture.trees.add(
      files({
        'Project.toml': 'name = "Other"\nuuid = "0a0f5b5e-7a4c-4b0a-9b68-3f3d5d1f7a03"\n',
        'src/Other.jl': 'module Other\nconst COMPILED = time()\nend\n',
      }),
    );
    const layer = fixture.trees.add(files({ 'main.jl': 'import Other\nmain(input) = Other.COMPILED' }));
    const policy = {
      ...SMALL_POLICY,
      wallMs: 600_000,
      mounts: [...more, { layer: stranger, at: '/packages/ada/other' }],
    };
    const request = { kind: 'julia', layer, entry: 'main.jl', args: [], input: null, policy } as const;
    const gaveUp = fixture.runtime.run(request, { signal: AbortSignal.timeout(100) }).then(
      ({ termination }) => termination,
      (error: unknown) => isCoded(error) && error.code,
    );
    const [first, second] = await Promise.all([fixture.runtime.run(request), fixture.runtime.run(request)]);
    assert.equal(await gaveUp, 'cancelled');
    assert.equal(typeof first.output, 'number', first.stderr);
    assert.equal(first.output, second.output, first.stderr + second.stderr);
    const twice = [...mounts, { layer: words, at: '/packages/bob/words' }];
    await assert.rejects(run(program, { mounts: twice }), {
      code: 'program-invalid',
      message: '/packages/ada/words and /packages/bob/words both hold a Julia package named Words.',
    });
  });

  it('tells on standard error where a program failed', async () => {
    const { exitCode, output, stderr } = await run('deep() = error("no luck")\nmain(input) = deep()');
    assert.deepEqual([exitCode, output], [1, null]);
    assert.match(stderr, /^no luck\n {2}at error .*\n {2}at deep \(\/package\/main.jl:1\)\n {2}at main/);
  });

  it('reads and writes JSON as everybody does, and refuses what is none', async () => {
    const seed = Date.now();
    const documents = fc
      .sample(fc.json({ maxDepth: 5 }), { numRuns: 300, seed })
      .map((text) => JSON.parse(text) as Json);
    const program = `main(input) = Dict("same" => input["documents"], "refused" => map(input["texts"]) do text
      try
        HyperMeshJson.read_json(Vector{UInt8}(text))
        text
      catch error
        error isa HyperMeshJson.JsonError
      end
    end)`;
    const { output } = await run(program, { input: { documents, texts: NOT_JSON } });
    assert.deepEqual(
      output,
      { same: withoutNegativeZero(documents), refused: NOT_JSON.map(() => true) },
      `seed ${seed}`,
    );
  });

  it('refuses to write what has no form in JSON', async () => {
    const { exitCode, output, stderr } = await run('main(input) = [1, NaN]');
    assert.deepEqual([exitCode, output], [1, null]);
    assert.match(stderr, /^JSON: NaN has no form in JSON/);
    const others = await run(`main(input) =
      map([sin, [1 2; 3 4], Dict((1,) => 2), String([0xff]), (a = Ref(1),)]) do value
        try
          sprint(HyperMeshJson.write_json, value)
        catch error
          error isa HyperMeshJson.JsonError
        end
      end`);
    assert.deepEqual(others.output, Array<boolean>(5).fill(true), others.stderr);
  });

  it('leaves nothing to the next run, and no way to the node', async () => {
    const program = `
      touch("/tmp/left")
      outside = filter(path -> try; touch(path); true; catch; false; end, ["/package/x", "/usr/x", "/x", "/julia/x", "/etc/x"])
      main(input) = Dict("tmp" => readdir("/tmp"), "written" => outside,
        "control" => ccall(:write, Cssize_t, (Cint, Ptr{UInt8}, Csize_t), 3, "{}", 2))`;
    for (let round = 0; round < 2; round++)
      assert.deepEqual((await run(program)).output, { tmp: ['left'], written: [], control: -1 });
  });

  it('runs the template of a package in Julia', async () => {
    const template = new URL('../../../../templates/julia/main.jl', import.meta.url);
    const { output, stderr } = await run(readFileSync(template, 'utf8'), { input: { numbers: [1, 2, 6] } });
    assert.deepEqual([output, stderr], [{ mean: 3, median: 2 }, '3 numbers came\n']);
  });

  it('is held in its box whatever it calls', async () => {
    const secret = join(homedir(), '.hypermesh');
    const program = `
      reaches(work) = try work(); true catch; false end
      main(host) = Dict(
        "calls" => Dict(
          "internet" => ccall(:socket, Cint, (Cint, Cint, Cint), 2, 1, 0),
          "internet 6" => ccall(:socket, Cint, (Cint, Cint, Cint), 10, 1, 0),
          "netlink" => ccall(:socket, Cint, (Cint, Cint, Cint), 16, 3, 0),
          "hypervisor" => ccall(:socket, Cint, (Cint, Cint, Cint), 40, 1, 0),
          "user namespace" => ccall(:unshare, Cint, (Cint,), 0x10000000),
          "mount" => ccall(:mount, Cint, (Cstring, Cstring, Cstring, Culong, Ptr{Cvoid}), "none", "/tmp", "tmpfs", 0, C_NULL),
          "chroot" => ccall(:chroot, Cint, (Cstring,), "/tmp"),
          "root" => ccall(:setuid, Cint, (Cuint,), 0),
          "debugger" => ccall(:ptrace, Clong, (Clong, Clong, Ptr{Cvoid}, Ptr{Cvoid}), 16, 1, C_NULL, C_NULL),
          "host name" => ccall(:sethostname, Cint, (Cstring, Csize_t), "x", 1),
          "signal" => ccall(:kill, Cint, (Cint, Cint), host["pid"], 0)),
        "files" => filter(path -> reaches(() -> isdir(path) ? readdir(path) : read(path)), [host["secret"], "/etc/shadow", "/root", "/home", "/proc/kcore", "/proc/keys"]),
        "writes" => filter(path -> reaches(() -> touch(path)), ["/usr/bin/x", "/proc/sys/kernel/core_pattern", "/sys/x", "/dev/x"]),
        "shell" => reaches(() -> run(\`/bin/sh -c true\`)))`;
    const input = { pid: process.pid, secret };
    const { output, stderr, termination } = await run(program, { input });
    assert.deepEqual([termination, stderr], ['exit', '']);
    const { calls, ...rest } = output as { calls: Record<string, number> };
    assert.deepEqual(rest, { files: [], writes: [], shell: false });
    assert.deepEqual([...new Set(Object.values(calls))], [-1], JSON.stringify(calls));
  });

  it('is held in its box when it multiplies', async () => {
    const program = `
      function forks()
        count = 0
        while count < 1000
          child = ccall(:fork, Cint, ())
          child < 0 && break
          child == 0 && while true ccall(:pause, Cint, ()) end
          count += 1
        end
        count
      end
      main(input) = forks()`;
    const { output, termination } = await run(program, { memoryBytes: 2 ** 29 });
    // A watchdog counts what processes share once for each of them.
    if (termination === 'memory') return;
    assert.equal(termination, 'exit');
    assert.ok(Number(output) < 200, String(output));
  });
});

describe('Julia programs started ahead of their next run', { skip }, () => {
  let fixture: Awaited<ReturnType<typeof open>>;
  before(async () => {
    fixture = await open({ boxesMax: 1, loadingCpuMsMax: 5_000 });
  });
  after(() => fixture[Symbol.asyncDispose]());

  const PROGRAM = `const LOADED = time()
    const calls = Ref(0)
    main(input) = (calls[] += 1; println(input); touch("/tmp/left");
      (loaded = LOADED, calls = calls[], tmp = readdir("/tmp"), sum = sum(Float64.(input))))`;
  interface Said {
    readonly loaded: number;
    readonly calls: number;
    readonly tmp: readonly string[];
    readonly sum: number;
  }

  async function settled(): Promise<number> {
    const deadline = performance.now() + 300_000;
    for (;;) {
      const { boxes, isSettled } = fixture.standby.status();
      if (isSettled || performance.now() > deadline) return boxes;
      await pause(50);
    }
  }

  function request(program: string, more: Partial<RunRequest> = {}): RunRequest {
    const layer = fixture.trees.add(files({ 'main.jl': program, 'example.json': '[1, 2.5]' }));
    const policy = { ...SMALL_POLICY, memoryBytes: 128 * 2 ** 20, wallMs: 600_000 };
    return { kind: 'julia', layer, entry: 'main.jl', args: [], input: [1, 2], policy, ...more };
  }

  function said({ output, stderr }: RunResult): Said {
    assert.notEqual(output, null, stderr);
    return output as unknown as Said;
  }

  it('are loaded and compiled already, serve one run, and leave nothing to the next one', async () => {
    const one = request(PROGRAM, { julia: { example: 'example.json' } });
    const cold = await fixture.runtime.run(one);
    assert.deepEqual([said(cold).calls, cold.stderr], [1, 'Any[1, 2]\n']);
    for (let round = 0; round < 2; round++) {
      assert.equal(await settled(), 1);
      const askedAt = Date.now() / 1_000;
      const result = await fixture.runtime.run({ ...one, input: [round, 0.5] });
      const { loaded, ...rest } = said(result);
      assert.ok(loaded < askedAt);
      // The call with the example was made in the box of this run, and what it printed is not said.
      assert.deepEqual(rest, { calls: 2, tmp: ['left'], sum: round + 0.5 });
      assert.deepEqual([result.termination, result.stderr], ['exit', `Any[${round}, 0.5]\n`]);
      assert.ok(result.usage.cpuMs * 10 < cold.usage.cpuMs, `${result.usage.cpuMs} ms of ${cold.usage.cpuMs}`);
    }
  });

  it('serve exactly what they were started for', async () => {
    const words = fixture.trees.add(files({ 'Project.toml': 'x' }));
    const one = request(PROGRAM);
    await fixture.runtime.run(one);
    for (const other of [
      { ...one, args: ['x'] },
      { ...one, policy: { ...one.policy, environment: { A: 'b' } } },
      { ...one, policy: { ...one.policy, mounts: [{ layer: words, at: '/packages/ada/words' }] } },
    ]) {
      assert.equal(await settled(), 1);
      const askedAt = Date.now() / 1_000;
      const { loaded, calls, tmp } = said(await fixture.runtime.run(other));
      assert.deepEqual([loaded > askedAt, calls, tmp], [true, 1, ['left']]);
    }
  });

  it('run as scripts only when their input is there; their time counts from then', async () => {
    const script = request('using LinearAlgebra\nprint(time())');
    await fixture.runtime.run(script);
    assert.equal(await settled(), 1);
    const askedAt = Date.now() / 1_000;
    const { output, usage } = await fixture.runtime.run(script);
    assert.ok(Number(output) > askedAt);
    assert.ok(usage.wallMs <= Date.now() - askedAt * 1_000);
  });

  it('end by the same limits', async () => {
    const ends = request('main(input) = input == "spin" ? (while true end) : input == "hoard" ? ones(2^28) : nothing');
    await fixture.runtime.run(ends);
    await settled();
    const hoard = await fixture.runtime.run({ ...ends, input: 'hoard' });
    assert.equal(hoard.termination, 'memory');
    await fixture.runtime.run(ends);
    await settled();
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 200);
    const spin = await fixture.runtime.run({ ...ends, input: 'spin' }, { signal: controller.signal });
    assert.equal(spin.termination, 'cancelled');
  });

  it('are given up when they do not come to wait', async () => {
    const busy = request('@async while true; yield(); end\nmain(input) = 1');
    assert.equal((await fixture.runtime.run(busy)).output, 1);
    assert.equal(await settled(), 0);
    assert.equal((await fixture.runtime.run(busy)).output, 1);
    assert.equal(await settled(), 0);
  });
});

describe('options of Julia', { skip }, () => {
  let fixture: RuntimeFixture;
  before(async () => {
    fixture = await open();
  });
  after(() => fixture[Symbol.asyncDispose]());

  async function run(
    program: string,
    julia: JuliaOptions | undefined,
    policy: Partial<SandboxPolicy> = {},
  ): Promise<Json> {
    const layer = fixture.trees.add(files({ 'main.jl': program }));
    const result = await fixture.runtime.run({
      ...{ kind: 'julia', layer, entry: 'main.jl', args: [], input: null, julia },
      policy: { ...SMALL_POLICY, memoryBytes: 128 * 2 ** 20, wallMs: 600_000, ...policy },
    });
    assert.equal(result.exitCode, 0, result.stderr);
    return result.output;
  }

  it('threads: four, or as many as asked for, and no more than processors', async () => {
    const cores = availableParallelism();
    const threads = (julia: JuliaOptions | undefined, cpuCores: number) =>
      run('main(input) = Threads.nthreads()', julia, { cpuCores });
    assert.equal(await threads(undefined, 1), 1);
    assert.equal(await threads(undefined, cores), Math.min(4, cores));
    assert.equal(await threads({ threads: 1 }, cores), 1);
    assert.equal(await threads({ threads: 64 }, cores), cores);
  });

  it('optimizationLevel: two, or what is asked for', async () => {
    const level = 'main(input) = Base.JLOptions().opt_level';
    assert.equal(await run(level, undefined), 2);
    for (const optimizationLevel of [0, 3] as const)
      assert.equal(await run(level, { optimizationLevel }), optimizationLevel);
  });

  it('precompile: packages are compiled once, or each time', async () => {
    const layer = fixture.trees.add(
      files({
        'Project.toml': `name = "Stamp"\nuuid = "${UUID.words}"\n`,
        'src/Stamp.jl': 'module Stamp\nconst COMPILED = time()\nend\n',
      }),
    );
    const mounts = [{ layer, at: '/packages/ada/stamp' }];
    const stamp = (precompile: boolean | undefined) =>
      run('import Stamp\nmain(input) = Stamp.COMPILED', { precompile }, { mounts });
    assert.notEqual(await stamp(false), await stamp(false));
    assert.equal(await stamp(undefined), await stamp(true));
  });
});

describe('taking Julia away', { skip }, () => {
  it('waits for the programs that run, and refuses new ones', async () => {
    await using fixture = await open();
    const runtime = fixture.runtime as JuliaRuntime;
    const layer = fixture.trees.add(files({ 'main.jl': 'main(input) = (sleep(0.5); "done")' }));
    const request = { kind: 'julia', layer, entry: 'main.jl', args: [], input: null, policy: SMALL_POLICY } as const;
    await runtime.probe();
    const running = runtime.run(request);
    // It knows its image by now.
    await setImmediate();
    const removed = runtime.remove();
    assert.deepEqual([(await running).output, await removed], ['done', true]);
    await assert.rejects(runtime.run(request), { code: 'runtime-unavailable' });
    assert.deepEqual([await runtime.remove(), (await runtime.probe()).available], [false, false]);
  });
});

describe('a node without Julia', () => {
  it('says so, and how to add it', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'hypermesh-julia-'));
    await using stack = new AsyncDisposableStack();
    stack.defer(() => rm(directory, { recursive: true, force: true }));
    const assets = new MemoryTrees();
    const sandbox = stack.use(await openProcessSandbox({ directory }));
    const trees = await Trees.open({ assets }, { directory: join(directory, 'trees'), treeBytesMax: 1, filesMax: 1 });
    const runtime = new JuliaRuntime(
      { assets, sandbox, trees, standby: new Standby() },
      { limits: DEFAULT_LIMITS, images: directory, depots: join(directory, 'depots') },
    );
    const status = await runtime.probe();
    assert.deepEqual([status.available, status.version], [false, null]);
    assert.match(status.reason ?? '', /hypermesh runtime add julia/);
    const request = {
      kind: 'julia',
      layer: assets.add({}),
      entry: 'x.jl',
      args: [],
      input: null,
      policy: SMALL_POLICY,
    } as const;
    await assert.rejects(runtime.run(request), { code: 'runtime-unavailable', hint: /hypermesh runtime add julia/ });
  });
});

it('only a language that is added can be added or removed', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'hypermesh-julia-'));
  try {
    await using execution = await openExecution({ assets: new MemoryTrees() }, { directory });
    for (const kind of ['wasm', 'container'] as const)
      for (const change of [() => execution.addRuntime(kind), () => execution.removeRuntime(kind)])
        await assert.rejects(change(), {
          code: 'usage',
          message: new RegExp(`^${kind} is not a runtime that is added`),
        });
    assert.equal(await execution.removeRuntime('julia'), false);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});

it('the name of a Julia package is read from its Project.toml', () => {
  for (const [text, name] of [
    ['name = "Words"\nuuid = "x"', 'Words'],
    ['# mine\n  name="A_1" # really\n[deps]\nname = "B"', 'A_1'],
    ['[deps]\nname = "B"', null],
    ['name = "../up"', null],
    ["name = 'Words'", null],
    ['', null],
  ] as const)
    assert.equal(projectName(text), name, text);
});

const UUID = { words: '0a0f5b5e-7a4c-4b0a-9b68-3f3d5d1f7a01', stats: '0a0f5b5e-7a4c-4b0a-9b68-3f3d5d1f7a02' };

const NOT_JSON = [
  ...[
    '',
    ' ',
    '{',
    '[1,]',
    '{"a":1,}',
    '{a:1}',
    "'a'",
    '01',
    '1.',
    '.5',
    '+1',
    '1e',
    'NaN',
    'Infinity',
    '1e999',
    'tru',
    'nul',
  ],
  ...[
    '"\u0001"',
    '"\\x"',
    '"\\u12"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"',
    '[1 2]',
    '{"a" 1}',
    '{"a":1,"a":2}',
    '1 2',
    '// c\n1',
  ],
  '['.repeat(600) + ']'.repeat(600),
];

/** JSON in JavaScript has no negative zero to compare with. */
function withoutNegativeZero(value: Json): Json {
  return JSON.parse(JSON.stringify(value)) as Json;
}
