import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { HyperMesh } from '../src/index.ts';
import { type Bench, inTurn, timed } from './harness.ts';
import { CHEAP_PUBLISHING } from './networks.ts';
import { writeManyFiles } from './packages.ts';

const run = promisify(execFile);

export const bench: Bench = {
  name: 'install',
  about: 'install a package of 5,000 small files whose content is in the store, against cp -r of the same tree',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      await using hypermesh = await HyperMesh.create({ home: join(folder, 'home'), network: CHEAP_PUBLISHING });
      const catalog = await hypermesh.loadExtension('catalog');
      const source = await writeManyFiles(join(folder, 'source'));
      await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source)));
      let n = 0;
      const figures = await inTurn(
        7,
        () => timed(() => catalog.install(['bench/many'], { root: join(folder, `here-${n++}`) })),
        () => timed(() => run('cp', ['-r', source, join(folder, `copy-${n++}`)])),
      );
      return [
        {
          name: 'install, cached',
          unit: 'ms',
          reference: 'cp -r',
          ratioMax: 1.5,
          ours: figures.ours,
          theirs: figures.theirs,
        },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
