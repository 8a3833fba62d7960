import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HyperMesh } from '../src/index.ts';
import { writePackage } from '../test/system/support.ts';
import { type Bench, BLOCK_MS_MAX, blocked } from './harness.ts';
import { CHEAP_PUBLISHING, DEFAULT_PROOFS } from './networks.ts';
import { writeManyFiles } from './packages.ts';

const ROUNDS = 5;
const IDLE_MS = 2_000;

export const bench: Bench = {
  name: 'loop',
  about: 'longest time for which the event loop of a node answers nobody while it works, against the same process idle',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      const source = await writeManyFiles(join(folder, 'many'));
      const proofs = { ours: [] as number[], theirs: [] as number[] };
      const publish = { ours: [] as number[], theirs: [] as number[] };
      const install = { ours: [] as number[], theirs: [] as number[] };
      {
        await using hypermesh = await HyperMesh.create({ home: join(folder, 'proofs'), network: DEFAULT_PROOFS });
        const catalog = await hypermesh.loadExtension('catalog');
        for (let round = 0; round <= ROUNDS; round++) {
          const manifest = { name: 'bench/loop', version: `1.0.${round}`, type: 'library' };
          const staged = await hypermesh.stageFolder(await writePackage(join(folder, `proofs-${round}`), manifest));
          const figures = await blocked(async () => catalog.publishPackage(await catalog.signPackage(staged)));
          // The first round compiles the code.
          if (round > 0) add(proofs, figures, await blocked(() => sleep(IDLE_MS)));
        }
      }
      for (let round = 0; round <= ROUNDS; round++) {
        const home = join(folder, `files-${round}`);
        await using hypermesh = await HyperMesh.create({ home, network: CHEAP_PUBLISHING });
        const catalog = await hypermesh.loadExtension('catalog');
        const publishing = await blocked(async () =>
          catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source))),
        );
        const installing = await blocked(() => catalog.install(['bench/many'], { root: join(home, 'here') }));
        const idle = await blocked(() => sleep(IDLE_MS));
        if (round === 0) continue;
        add(publish, publishing, idle);
        add(install, installing, idle);
      }
      const shared = { unit: 'ms', reference: 'idle', oursMax: BLOCK_MS_MAX } as const;
      return [
        { name: 'default proofs', ...shared, ...proofs },
        { name: 'publish of 5,000 files', ...shared, ...publish },
        { name: 'install of 5,000 files', ...shared, ...install },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

function add(to: { ours: number[]; theirs: number[] }, ours: number, theirs: number): void {
  to.ours.push(ours);
  to.theirs.push(theirs);
}
