import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Digest } from '../../../base/digest.ts';
import { testEscapes } from '../../../testing/escape-battery.ts';
import { MemoryTrees } from '../../../testing/runtime-conformance.ts';
import { openExecution } from '../execution.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Trees } from '../process/trees.ts';
import { PythonRuntime } from './python.ts';

async function make(cgroups: boolean) {
  const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-escape-'));
  const assets = new MemoryTrees();
  const sandbox = await openProcessSandbox({ directory, cgroups });
  const trees = await Trees.open(
    { assets },
    { directory: path.join(directory, 'trees'), treeBytesMax: 2 ** 20, filesMax: 100 },
  );
  return {
    trees: assets,
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
  await using made = await make(true);
  return (await made.runtime.probe()).reason ?? false;
})();

testEscapes('a Python program', () => make(true), { skip });
// Where the machine lends no control groups, other mechanisms hold the amounts.
testEscapes('a Python program without control groups', () => make(false), {
  skip,
  limits: ['memory', 'pids', 'cpu', 'wall', 'tmp', 'fileSize', 'output'],
});

/** The same programs, to which the owner granted a place and two folders. */
async function makeGranted() {
  const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-escape-'));
  const lent = path.join(folder, 'lent');
  const out = path.join(folder, 'out');
  for (const one of [folder, lent, out]) {
    await mkdir(one, { recursive: true });
    await chmod(one, one === folder ? 0o755 : 0o777);
  }
  const assets = new MemoryTrees();
  const execution = await openExecution({ assets }, { directory: path.join(folder, 'vm') });
  const place = '127.0.0.1:1';
  return {
    trees: assets,
    runtime: { kind: 'python' as const, run: execution.run.bind(execution) },
    granted: {
      connect: [place],
      folders: [
        { name: 'lent', access: 'read' as const },
        { name: 'out', access: 'write' as const },
      ],
    },
    async grant(layer: Digest) {
      await execution.grant({
        ...{ package: layer, program: layer, ref: 'test/attack@1.0.0', connect: [place] },
        folders: [
          { name: 'lent', access: 'read', path: lent },
          { name: 'out', access: 'write', path: out },
        ],
      });
    },
    async [Symbol.asyncDispose]() {
      await execution[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

testEscapes('a Python program that was granted something', makeGranted, {
  skip,
  limits: ['files', 'network', 'isolation', 'syscalls'],
});
