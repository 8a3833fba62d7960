import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { DEFAULT_LIMITS } from '../src/subsystems/vm/limits.ts';
import { MachineRuntime } from '../src/subsystems/vm/machine/runtime.ts';
import { openProcessSandbox } from '../src/subsystems/vm/process/sandbox.ts';
import { Standby } from '../src/subsystems/vm/process/standby.ts';
import { Trees } from '../src/subsystems/vm/process/trees.ts';
import { buildGuest, type Guest, machineFiles } from '../src/testing/guest.ts';
import { MemoryTrees, SMALL_POLICY } from '../src/testing/runtime-conformance.ts';
import { decodeMachineSnapshot } from '../src/wire/machine-snapshot.ts';
import { type Bench, type Comparison, timed } from './harness.ts';

const BOOTS = 1;
const ROUNDS = 8;
const SETTLE_MS_MAX = 30_000;
const policy = { ...SMALL_POLICY, memoryBytes: 96 * 2 ** 20, wallMs: 60_000 };

export const bench: Bench = {
  name: 'machine',
  about: 'a Linux machine until it has answered, against the boot of the same machine until it is ready',
  async run() {
    const guest = await buildGuest();
    if (typeof guest === 'string') throw new Error(guest);
    const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-bench-'));
    try {
      const comparisons: Comparison[] = [];
      for (const [name, boxesMax] of [
        ['from its snapshot, its box and the end of both included', 0],
        ['from one that went on ahead of the run, the same included', 1],
      ] as const) {
        const ours: number[] = [];
        const theirs: number[] = [];
        for (let boot = 0; boot < BOOTS; boot++)
          await measure(guest, path.join(folder, `${boxesMax}-${boot}`), boxesMax, ours, theirs);
        comparisons.push({ name, unit: 'ms', reference: 'boot', ours, theirs, oursMax: 250 });
      }
      return comparisons;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

async function measure(guest: Guest, directory: string, boxesMax: number, ours: number[], theirs: number[]) {
  const assets = new MemoryTrees();
  await using sandbox = await openProcessSandbox({ directory });
  const { filesMax } = DEFAULT_LIMITS;
  const trees = await Trees.open(
    { assets },
    { directory: path.join(directory, 'trees'), treeBytesMax: 2 ** 28, filesMax },
  );
  const standby = new Standby({ boxesMax });
  const machines = path.join(directory, 'machines');
  const runtime = new MachineRuntime(
    { assets, sandbox, trees, standby },
    { limits: DEFAULT_LIMITS, directory: machines, images: path.join(directory, 'emulators') },
  );
  const layer = assets.add(machineFiles(guest, ['main']));
  const run = async () => {
    const input = { boxesMax };
    const result = await runtime.run({ kind: 'vm', layer, entry: 'main.json', args: [], input, policy });
    if ((result.output as { received?: unknown } | null)?.received === undefined)
      throw new Error(`${result.termination}: ${result.reason} ${result.stderr}`);
  };
  // The first one boots, the second one finds the files in memory.
  for (let warm = 0; warm < 2; warm++) await run();
  theirs.push(await bootMsIn(machines));
  for (let round = 0; round < ROUNDS; round++) {
    const startedAt = performance.now();
    while (!standby.status().isSettled && performance.now() - startedAt < SETTLE_MS_MAX) await pause(20);
    ours.push(await timed(run));
  }
  await standby.clear();
}

async function bootMsIn(folder: string): Promise<number> {
  for (const name of await readdir(folder)) {
    const text = await readFile(path.join(folder, name, 'snapshot.json'), 'utf8').catch(() => null);
    if (text !== null) return decodeMachineSnapshot(text).bootMs;
  }
  throw new Error('no snapshot was kept');
}
