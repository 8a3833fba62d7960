import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { imageOfHome, layImage } from '../../../testing/added-image.ts';
import { testJuliaEscapes } from '../../../testing/julia-escapes.ts';
import { MemoryTrees } from '../../../testing/runtime-conformance.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Standby } from '../process/standby.ts';
import { Trees } from '../process/trees.ts';
import { JuliaRuntime } from './julia.ts';

const image = await imageOfHome('julia');
const skip = image === null ? 'no Julia in ~/.hypermesh: `hypermesh runtime add julia`' : false;

async function make(cgroups: boolean) {
  const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-escape-'));
  // What breaks out shall not reach the image of the home.
  await layImage(image!, path.join(directory, 'images'), { isShared: false });
  const assets = new MemoryTrees();
  const sandbox = await openProcessSandbox({ directory, cgroups });
  const trees = await Trees.open(
    { assets },
    { directory: path.join(directory, 'trees'), treeBytesMax: 2 ** 20, filesMax: 100 },
  );
  const standby = new Standby({ boxesMax: 2 });
  const options = {
    limits: DEFAULT_LIMITS,
    images: path.join(directory, 'images'),
    depots: path.join(directory, 'depots'),
  };
  return {
    trees: assets,
    runtime: new JuliaRuntime({ assets, sandbox, trees, standby }, options),
    async settled() {
      for (let round = 0; round < 6_000 && !standby.status().isSettled; round++) await pause(50);
    },
    async [Symbol.asyncDispose]() {
      await sandbox[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

testJuliaEscapes('a Julia program', () => make(true), { skip });
// Where the machine lends no control groups, other mechanisms hold the amounts.
testJuliaEscapes('a Julia program without control groups', () => make(false), {
  skip,
  limits: ['memory', 'pids', 'wall', 'tmp', 'fileSize', 'output'],
});
