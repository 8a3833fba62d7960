import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { testEscapes } from '../../../testing/escape-battery.ts';
import { MemoryTrees } from '../../../testing/runtime-conformance.ts';
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
    runtime: new PythonRuntime({ assets, sandbox, trees }, { limits: DEFAULT_LIMITS }),
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
