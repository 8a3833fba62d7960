import { spawn } from 'node:child_process';
import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import type { RunRequest, Runtime } from '../src/capabilities/vm.ts';
import { findImage } from '../src/subsystems/vm/added/provision.ts';
import { JuliaRuntime } from '../src/subsystems/vm/julia/julia.ts';
import { DEFAULT_LIMITS } from '../src/subsystems/vm/limits.ts';
import { openProcessSandbox } from '../src/subsystems/vm/process/sandbox.ts';
import { Standby } from '../src/subsystems/vm/process/standby.ts';
import { Trees } from '../src/subsystems/vm/process/trees.ts';
import { PythonRuntime } from '../src/subsystems/vm/python/python.ts';
import { MemoryTrees, SMALL_POLICY } from '../src/testing/runtime-conformance.ts';
import { type Bench, type Comparison, inTurn, timed } from './harness.ts';

const PYTHON_ROUNDS = 20;
const JULIA_ROUNDS = 10;
const COLD_ROUNDS = 3;
const SETTLE_MS_MAX = 60_000;
const MiB = 2 ** 20;

const PYTHON = `
import json, statistics, sys
numbers = json.load(sys.stdin)
print(json.dumps({"mean": statistics.mean(numbers), "deviation": statistics.pstdev(numbers)}))
`;
/** Solves equations, with a package beside it: what the first call compiles takes seconds. */
const JULIA = {
  'main.jl': `using LinearAlgebra, Statistics, Fits
function main(input)
    matrix = reduce(hcat, [Float64.(row) for row in input["matrix"]])
    vector = Float64.(input["vector"])
    solution = Fits.solve(matrix, vector)
    println("solved ", size(matrix))
    Dict("solution" => solution, "norm" => norm(solution), "mean" => mean(vector), "deviation" => std(vector),
        "values" => eigvals(Symmetric(matrix + matrix')))
end
`,
  'example.json': '{"matrix": [[2, 1], [1, 3.5]], "vector": [1, 2]}',
};
const FITS = {
  'Project.toml': `name = "Fits"
uuid = "0a0f5b5e-7a4c-4b0a-9b68-3f3d5d1f7a09"

[deps]
LinearAlgebra = "37e2e46d-f89d-539d-b4ee-838fcccc9c8e"
`,
  'src/Fits.jl': 'module Fits\nusing LinearAlgebra\nsolve(matrix, vector) = qr(matrix) \\ vector\nend\n',
};
const INPUT = { matrix: [4, 1, 1].map((_, row) => [row + 4, 1, row * row]), vector: [1, 2.5, 3] };

export const bench: Bench = {
  name: 'languages',
  about:
    'a call of a program in a fresh process and box: Python against Python outside, Julia against its own cold call',
  async run() {
    const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-bench-'));
    try {
      const assets = new MemoryTrees();
      await using sandbox = await openProcessSandbox({ directory });
      const { filesMax } = DEFAULT_LIMITS;
      const trees = await Trees.open(
        { assets },
        { directory: path.join(directory, 'trees'), treeBytesMax: 2 ** 30, filesMax },
      );
      const python = new PythonRuntime(
        { assets, sandbox, trees },
        { limits: DEFAULT_LIMITS, images: path.join(directory, 'images') },
      );
      return [await pythonCall(python, assets), ...(await juliaCalls({ assets, sandbox, trees }, directory))];
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  },
};

async function pythonCall(runtime: Runtime, assets: MemoryTrees): Promise<Comparison> {
  const layer = assets.add({ 'main.py': Buffer.from(PYTHON) });
  const numbers = Array.from({ length: 100 }, (_, index) => index / 7);
  const request: RunRequest = {
    ...{ kind: 'python', layer, entry: 'main.py', args: [], input: numbers },
    policy: SMALL_POLICY,
  };
  const measured = await inTurn(
    PYTHON_ROUNDS,
    () => timed(() => called(runtime, request)),
    () =>
      timed(async () => {
        const child = spawn('/usr/bin/python3', ['-I', '-c', PYTHON], { stdio: ['pipe', 'pipe', 'inherit'] });
        child.stdin.end(JSON.stringify(numbers));
        await text(child.stdout);
      }),
  );
  return { name: 'Python', unit: 'ms', reference: 'outside', oursMax: 100, ...measured };
}

async function juliaCalls(
  lent: { readonly assets: MemoryTrees } & Pick<ConstructorParameters<typeof JuliaRuntime>[0], 'sandbox' | 'trees'>,
  directory: string,
): Promise<Comparison[]> {
  const added = path.join(homedir(), '.hypermesh', 'vm', 'images');
  if ((await findImage(added, 'julia').catch(() => null)) === null) {
    process.stderr.write('  no Julia in ~/.hypermesh: `hypermesh runtime add julia`\n');
    return [];
  }
  const images = path.join(directory, 'images');
  await cp(added, images, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true });
  const layer = lent.assets.add(files(JULIA));
  const fits = lent.assets.add(files(FITS));
  const request: RunRequest = {
    ...{ kind: 'julia', layer, entry: 'main.jl', args: [], input: INPUT, julia: { example: 'example.json' } },
    policy: {
      ...{ ...SMALL_POLICY, memoryBytes: 256 * MiB, wallMs: 60_000 },
      mounts: [{ layer: fits, at: '/packages/ada/fits' }],
    },
  };
  const cold: number[] = [];
  for (let round = 0; round < COLD_ROUNDS; round++) {
    const runtime = new JuliaRuntime(
      { ...lent, standby: new Standby({ boxesMax: 0 }) },
      { limits: DEFAULT_LIMITS, images, depots: path.join(directory, `depots-${round}`) },
    );
    await runtime.probe();
    cold.push(await timed(() => called(runtime, request)));
  }
  await mkdir(path.join(directory, 'depots'));
  const standby = new Standby();
  const runtime = new JuliaRuntime(
    { ...lent, standby },
    { limits: DEFAULT_LIMITS, images, depots: path.join(directory, 'depots') },
  );
  const calls = async (asked: RunRequest) => {
    await called(runtime, asked);
    const taken: number[] = [];
    for (let round = 0; round < JULIA_ROUNDS; round++) {
      const deadline = performance.now() + SETTLE_MS_MAX;
      while (!standby.status().isSettled && performance.now() < deadline) await sleep(50);
      taken.push(await timed(() => called(runtime, asked)));
    }
    await standby.clear();
    return taken;
  };
  const shared = { unit: 'ms', reference: 'first call', theirs: cold } as const;
  return [
    { name: 'Julia, started ahead', ...shared, ours: await calls(request), oursMax: 30, ratioMax: 1 / 50 },
    // What only the values of an input tell is compiled in the call.
    { name: 'Julia, started ahead, without an example', ...shared, ours: await calls({ ...request, julia: {} }) },
  ];
}

async function called(runtime: Runtime, request: RunRequest): Promise<void> {
  const { exitCode, stderr, reason } = await runtime.run(request);
  if (exitCode !== 0) throw new Error(`The program ended with ${exitCode}: ${reason ?? stderr}`);
}

function files(texts: Readonly<Record<string, string>>): Record<string, Buffer> {
  return Object.fromEntries(Object.entries(texts).map(([name, content]) => [name, Buffer.from(content)]));
}
