import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { imageOfHome, layImage } from '../../../testing/added-image.ts';
import { MemoryTrees, SMALL_POLICY, testRuntime } from '../../../testing/runtime-conformance.ts';
import { openExecution } from '../index.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Trees } from '../process/trees.ts';

import { PythonRuntime } from './python.ts';

async function make() {
  const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-python-'));
  const images = path.join(directory, 'images');
  const assets = new MemoryTrees();
  const sandbox = await openProcessSandbox({ directory });
  const trees = await Trees.open(
    { assets },
    { directory: path.join(directory, 'trees'), treeBytesMax: 2 ** 20, filesMax: 100 },
  );
  return {
    ...{ assets, images },
    runtime: new PythonRuntime(
      { assets, sandbox, trees },
      { limits: DEFAULT_LIMITS, images: path.join(directory, 'images') },
    ),
    async [Symbol.asyncDispose]() {
      await sandbox[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

const skip = await (async () => {
  await using made = await make();
  return (await made.runtime.probe()).reason ?? false;
})();

testRuntime(
  'python',
  async () => {
    const made = await make();
    const layer = made.assets.add({
      'echo.py': Buffer.from('import sys; sys.stdout.write(sys.stdin.read())'),
      'seven.py': Buffer.from('raise SystemExit(7)'),
      'spin.py': Buffer.from('while True: pass'),
      'flood.py': Buffer.from('while True: print("x" * 1000)'),
      'complain.py': Buffer.from('import sys; sys.stderr.write("\\x1b[31mred")'),
      'read.py': Buffer.from('import sys; sys.stdout.write(open(sys.argv[1]).read())'),
      'hoard.py': Buffer.from('all = []\nwhile True: all.append(b"x" * 2 ** 20)'),
      'environment.py': Buffer.from(
        'import os, sys; sys.stdout.write("".join("%s=%s\\0" % pair for pair in os.environ.items()))',
      ),
      'broken.py': Buffer.from('not a program'),
    });
    return {
      runtime: made.runtime,
      trees: made.assets,
      programs: {
        layer,
        echo: 'echo.py',
        seven: 'seven.py',
        spin: 'spin.py',
        flood: 'flood.py',
        complain: 'complain.py',
        read: 'read.py',
        hoard: 'hoard.py',
        environment: 'environment.py',
        broken: 'broken.py',
      },
      [Symbol.asyncDispose]: () => made[Symbol.asyncDispose](),
    };
  },
  { skip },
);

describe('runtime python', { skip }, () => {
  it('imports from its package and from its dependencies, and has its own arguments', async () => {
    await using made = await make();
    const words = made.assets.add({ 'words/__init__.py': Buffer.from('def shout(text): return text.upper()') });
    const layer = made.assets.add({
      'bin/main.py': Buffer.from(
        'import json, sys, near, own\nfrom words import shout\n' +
          'assert __name__ == "__main__" and __file__ == "/package/bin/main.py"\n' +
          'print(json.dumps([shout(json.load(sys.stdin)), near.NEAR, own.OWN, sys.argv]))',
      ),
      'bin/near.py': Buffer.from('NEAR = 1'),
      'own.py': Buffer.from('OWN = 2'),
    });
    const result = await made.runtime.run({
      kind: 'python',
      layer,
      entry: 'bin/main.py',
      args: ['a', '--b'],
      input: 'hey',
      policy: { ...SMALL_POLICY, mounts: [{ layer: words, at: '/packages/ada/words' }] },
    });
    assert.equal(result.stderr, '');
    assert.deepEqual(result.output, ['HEY', 1, 2, ['/package/bin/main.py', 'a', '--b']]);
  });

  it('ends with the node: what runs is cancelled, and nothing is left in its folder but trees', async () => {
    const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-python-'));
    const assets = new MemoryTrees();
    const layer = assets.add({ 'main.py': Buffer.from('while True: pass') });
    const execution = await openExecution({ assets }, { directory });
    const running = execution.run({
      ...{ kind: 'python', layer, entry: 'main.py', args: [], input: null },
      policy: SMALL_POLICY,
    });
    const status = (await execution.runtimes()).find(({ kind }) => kind === 'python');
    assert.deepEqual([status?.available, typeof status?.enforces?.['memory']], [true, 'string']);
    await setTimeout(200);
    await execution[Symbol.asyncDispose]();
    const outcome = await running.then(
      ({ termination }) => termination,
      (error: { code: string }) => error.code,
    );
    assert.equal(outcome, 'cancelled');
    const known = ['containers', 'images', 'lent', 'machines', 'seccomp.bpf', 'trees'];
    assert.deepEqual(
      (await readdir(directory)).filter((name) => !known.includes(name)),
      [],
    );
    // Where boxes were shown folders of others: nothing is shown any more.
    assert.deepEqual(await readdir(path.join(directory, 'lent')).catch(() => []), []);
    await rm(directory, { recursive: true });
  });

  it('refuses what it cannot hold', async () => {
    await using made = await make();
    const layer = made.assets.add({ 'main.py': Buffer.from('') });
    await assert.rejects(
      made.runtime.run({
        ...{ kind: 'python', layer, entry: 'main.py', args: [], input: null },
        policy: { ...SMALL_POLICY, fuel: 1n },
      }),
      { code: 'policy-refused' },
    );
  });
});

const image = await imageOfHome('python');

describe('Python that was added to the node', {
  skip: image === null ? 'no Python in ~/.hypermesh: `hypermesh runtime add python`' : skip,
}, () => {
  it('has its standard library and numpy, and nothing of the machine', async () => {
    await using made = await make();
    await layImage(image!, made.images, { isShared: true });
    const { version } = await made.runtime.probe();
    assert.match(version ?? '', /^Python 3\.\d+\.\d+, numpy \d+\.\d+/);
    const program = `
import json, os, sqlite3, ssl, statistics, sys
import numpy
numbers = numpy.array(json.load(sys.stdin), dtype=float)
compiled = [os.path.basename(module.__cached__) for module in (json, numpy) if os.path.exists(module.__cached__)]
print(json.dumps({"solved": numpy.linalg.solve(numpy.diag(numbers), numbers).tolist(), "mean": statistics.mean(numbers), "compiled": len(compiled),
  "shell": os.path.exists("/bin/sh"), "file": os.path.relpath(numpy.__file__, "/")}))`;
    const layer = made.assets.add({ 'main.py': Buffer.from(program) });
    const { output, stderr } = await made.runtime.run({
      ...{ kind: 'python', layer, entry: 'main.py', args: [], input: [1, 2, 4.5] },
      policy: { ...SMALL_POLICY, memoryBytes: 2 ** 26 },
    });
    const file = 'usr/lib/python3/dist-packages/numpy/__init__.py';
    assert.deepEqual(output, { solved: [1, 1, 1], mean: 2.5, compiled: 2, shell: false, file }, stderr);
    const pieces: number[] = [];
    for await (const piece of made.runtime.export()) pieces.push(piece.length);
    assert.ok(pieces.reduce((sum, size) => sum + size, 0) > 2 ** 20);
    assert.equal(await made.runtime.remove(), true);
    assert.doesNotMatch((await made.runtime.probe()).version ?? '', /numpy/);
  });
});
