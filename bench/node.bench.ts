import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HyperMesh } from '../src/index.ts';
import { freePort } from '../src/testing/free-port.ts';
import { PROJECT, SMALL_NETWORK } from '../test/system/support.ts';
import type { Bench, Comparison } from './harness.ts';
import { addPackages } from './packages.ts';
import { peer } from './peers.ts';

const ROUNDS = 7;
const IDLE_MS = 5_000;
const START_MS_MAX = 60_000;
const [FEW, MANY] = [10, 100_000] as const;

interface Figures {
  /** From the start of the process to its first answer. */
  readonly coldMs: number[];
  /** What all its threads computed until then. It does not depend on how busy the machine is with others. */
  readonly computedMs: number[];
  /** Resident memory of the process, idle since it answered. */
  readonly idleMiB: number[];
}

export const bench: Bench = {
  name: 'node',
  about: `cold start and idle memory of a node with ${FEW} and with ${MANY.toLocaleString('en')} packages, against Verdaccio with none`,
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      const few = await homeWith(join(folder, 'few'), FEW);
      const many = await homeWith(join(folder, 'many'), MANY);
      const verdaccio = await verdaccioIn(join(folder, 'verdaccio'));
      const measured = { few: none(), many: none(), verdaccio: none() };
      // The first round warms the files that all of them read, and is not counted.
      for (let round = 0; round <= ROUNDS; round++) {
        const into = round === 0 ? { few: none(), many: none(), verdaccio: none() } : measured;
        const idleMs = round === 0 ? 0 : IDLE_MS;
        const turns = [
          () => measure(into.few, up(few), '/v1/status', idleMs),
          ...(verdaccio === null ? [] : [() => measure(into.verdaccio, verdaccio, '/-/ping', idleMs)]),
          () => measure(into.many, up(many), '/v1/status', idleMs),
        ];
        // There and back: none of them always comes after the same one.
        for (const turn of round % 2 === 0 ? turns : turns.reverse()) await turn();
      }
      return [
        ...(verdaccio === null ? [] : against('Verdaccio', measured.few, measured.verdaccio, [1.2, 1.1])),
        ...against(`${FEW} packages`, measured.many, measured.few, [1.1, 1.1]),
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

function against(reference: string, ours: Figures, theirs: Figures, ratios: readonly [number, number]): Comparison[] {
  return [
    { name: 'cold start', unit: 'ms', reference, ratioMax: ratios[0], ours: ours.coldMs, theirs: theirs.coldMs },
    { name: 'cold start, processor', unit: 'ms', reference, ours: ours.computedMs, theirs: theirs.computedMs },
    { name: 'idle memory', unit: 'MiB', reference, ratioMax: ratios[1], ours: ours.idleMiB, theirs: theirs.idleMiB },
  ];
}

function none(): Figures {
  return { coldMs: [], computedMs: [], idleMiB: [] };
}

/** A home whose space commitment is ready, with that many packages in its index. */
async function homeWith(home: string, packages: number): Promise<string> {
  {
    await using hypermesh = await HyperMesh.create({ home, network: SMALL_NETWORK });
    await hypermesh.loadExtension('catalog');
    while ((await hypermesh.node.consensus.space()).state !== 'ready') await sleep(50);
  }
  addPackages(join(home, 'assets'), 0, packages);
  return home;
}

type Start = (port: number) => ChildProcess;

function up(home: string): Start {
  const entry = join(PROJECT, 'bin', 'hypermesh.js');
  return (port) =>
    spawn(process.execPath, [entry, 'up', '--home', home, '--http', `127.0.0.1:${port}`], { stdio: 'ignore' });
}

/** Null when it is not installed and cannot be installed now. */
async function verdaccioIn(folder: string): Promise<Start | null> {
  const entry = await peer('Verdaccio', 'verdaccio/bin/verdaccio');
  if (entry === null) return null;
  await mkdir(folder);
  const config = join(folder, 'config.yaml');
  await writeFile(
    config,
    JSON.stringify({
      storage: join(folder, 'storage'),
      auth: { htpasswd: { file: join(folder, 'htpasswd') } },
      packages: { '**': { access: '$all', publish: '$authenticated' } },
      log: { type: 'stdout', format: 'json', level: 'warn' },
    }),
  );
  return (port) =>
    spawn(process.execPath, [entry, '--config', config, '--listen', `127.0.0.1:${port}`], { stdio: 'ignore' });
}

async function measure(into: Figures, start: Start, path: string, idleMs: number): Promise<void> {
  const port = await freePort();
  const startedAt = performance.now();
  const child = start(port);
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  try {
    for (;;) {
      const answered = await fetch(`http://127.0.0.1:${port}${path}`).catch(() => null);
      await answered?.arrayBuffer();
      if (answered?.ok) break;
      if (child.exitCode !== null || performance.now() - startedAt > START_MS_MAX)
        throw new Error(`no answer at ${path}: exit status ${child.exitCode}, answer ${answered?.status ?? 'none'}`);
      await sleep(2);
    }
    into.coldMs.push(performance.now() - startedAt);
    into.computedMs.push(await computedMs(child.pid!));
    await sleep(idleMs);
    into.idleMiB.push(await residentMiB(child.pid!));
  } finally {
    child.kill('SIGTERM');
    await ended;
  }
}

/** User and system time of a process, in ticks of a hundredth of a second. */
async function computedMs(pid: number): Promise<number> {
  const [, after] = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ');
  const fields = after!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

async function residentMiB(pid: number): Promise<number> {
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))!;
  return Number(kib) / 1024;
}
