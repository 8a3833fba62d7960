import { execFileSync } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { testEscapes } from '../../../testing/escape-battery.ts';
import { entriesFrom, layoutIn } from '../../../testing/image.ts';
import { MemoryTrees } from '../../../testing/runtime-conformance.ts';
import { DEFAULT_LIMITS } from '../limits.ts';
import { openProcessSandbox } from '../process/sandbox.ts';
import { Trees } from '../process/trees.ts';
import { ContainerRuntime } from './container.ts';

const PYTHON = '/usr/bin/python3';
/** Of the standard library, what the attacks do without. */
const LEFT_OUT = [
  'dist-packages',
  'test',
  '__pycache__',
  'idlelib',
  'lib2to3',
  'ensurepip',
  'tkinter',
  'asyncio',
  'email',
];

/** An image with the Python of this machine. */
function pythonImage(): Record<string, Uint8Array> {
  const python = realpathSync(PYTHON);
  const library = execFileSync(PYTHON, ['-I', '-c', 'import os; print(os.path.dirname(os.__file__))'])
    .toString()
    .trim();
  const modules = execFileSync(PYTHON, ['-I', '-c', 'import _ctypes, json; print(_ctypes.__file__)']).toString().trim();
  const libraries = [python, modules].flatMap((file) =>
    [...execFileSync('/usr/bin/ldd', [file], { encoding: 'utf8' }).matchAll(/(\/\S+) \(0x/g)].map(
      ([, found]) => found!,
    ),
  );
  const entries = [
    ...entriesFrom([...new Set([python, ...libraries])]),
    ...entriesFrom([library], LEFT_OUT),
    { path: PYTHON.slice(1), flag: '2', target: python },
  ];
  return layoutIn('image', {
    layers: [{ entries }],
    config: { Entrypoint: [PYTHON, '-I', '-B', '-X', 'utf8', '/package/main.py'] },
  });
}

async function make(cgroups: boolean, image: Record<string, Uint8Array>) {
  const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-escape-'));
  const assets = new MemoryTrees();
  const sandbox = await openProcessSandbox({ directory, cgroups });
  const limits = { treeBytesMax: 256 * 2 ** 20, filesMax: 20_000 };
  const trees = await Trees.open({ assets }, { directory: path.join(directory, 'trees'), ...limits });
  const roots = await Trees.open({ assets }, { directory: path.join(directory, 'roots'), ...limits });
  return {
    trees: assets,
    runtime: new ContainerRuntime({ assets, sandbox, trees, roots }, { limits: DEFAULT_LIMITS }),
    wrap: { files: image, entry: 'image', memoryBytes: 24 * 2 ** 20 },
    async [Symbol.asyncDispose]() {
      await sandbox[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

const skip = await (async () => {
  if (!existsSync(PYTHON) || !existsSync('/usr/bin/ldd')) return 'this machine has no Python to make an image of';
  await using made = await make(true, {});
  return (await made.runtime.probe()).reason ?? false;
})();
const image = skip === false ? pythonImage() : {};

testEscapes('a container', () => make(true, image), { skip });
// Where the machine lends no control groups, other mechanisms hold the amounts.
testEscapes('a container without control groups', () => make(false, image), {
  skip,
  limits: ['memory', 'pids', 'cpu', 'wall', 'tmp', 'fileSize', 'output'],
});
