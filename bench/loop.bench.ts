import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HyperMesh } from '../src/index.ts';
import { writePackage } from '../test/system/support.ts';
import { type Bench, type WorstTurn, worstIdleTurn, worstTurn, worstTurns } from './harness.ts';
import { CHEAP_PUBLISHING, DEFAULT_PROOFS } from './networks.ts';
import { writeManyFiles } from './packages.ts';

const ROUNDS = 5;
const IDLE_MS = 2_000;

export const bench: Bench = {
  name: 'loop',
  about:
    'longest time for which the event loop of a node answers nobody while it works, against the same process idle beside busy threads',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      const source = await writeManyFiles(join(folder, 'many'));
      const proofs = turns();
      const publish = turns();
      const install = turns();
      {
        await using hypermesh = await HyperMesh.create({ home: join(folder, 'proofs'), network: DEFAULT_PROOFS });
        const catalog = await hypermesh.loadExtension('catalog');
        for (let round = 0; round <= ROUNDS; round++) {
          const manifest = { name: 'bench/loop', version: `1.0.${round}`, type: 'library' };
          const staged = await hypermesh.stageFolder(await writePackage(join(folder, `proofs-${round}`), manifest));
          const figures = await worstTurn(async () => catalog.publishPackage(await catalog.signPackage(staged)));
          // The first round compiles the code.
          if (round > 0) add(proofs, figures, await worstIdleTurn(IDLE_MS));
        }
      }
      for (let round = 0; round <= ROUNDS; round++) {
        const home = join(folder, `files-${round}`);
        await using hypermesh = await HyperMesh.create({ home, network: CHEAP_PUBLISHING });
        const catalog = await hypermesh.loadExtension('catalog');
        const publishing = await worstTurn(async () =>
          catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source))),
        );
        const installing = await worstTurn(() => catalog.install(['bench/many'], { root: join(home, 'here') }));
        const idle = await worstIdleTurn(IDLE_MS);
        if (round === 0) continue;
        add(publish, publishing, idle);
        add(install, installing, idle);
      }
      return [
        ...worstTurns('default proofs', proofs.ours, proofs.idle),
        ...worstTurns('publish of 5,000 files', publish.ours, publish.idle),
        ...worstTurns('install of 5,000 files', install.ours, install.idle),
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

interface Turns {
  readonly ours: WorstTurn[];
  readonly idle: WorstTurn[];
}

function turns(): Turns {
  return { ours: [], idle: [] };
}

function add(to: Turns, ours: WorstTurn, idle: WorstTurn): void {
  to.ours.push(ours);
  to.idle.push(idle);
}
