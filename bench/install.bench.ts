import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { HyperMesh } from '../src/index.ts';
import { SMALL_NETWORK } from '../test/system/support.ts';
import { type Bench, inTurn, timed } from './harness.ts';

const run = promisify(execFile);

export const bench: Bench = {
  name: 'install',
  about: 'install a package of 5,000 small files whose content is in the store, against cp -r of the same tree',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      // The proof of access is that of the default network; only what publishing costs is made small.
      const install = { ...SMALL_NETWORK.requirements.install, time: { squarings: 65_536, windowMs: 60_000 } };
      const network = { ...SMALL_NETWORK, requirements: { ...SMALL_NETWORK.requirements, install } };
      await using hypermesh = await HyperMesh.create({ home: join(folder, 'home'), network });
      const catalog = await hypermesh.loadExtension('catalog');
      const source = join(folder, 'source');
      await mkdir(source);
      await writeFile(join(source, 'catalog.yaml'), 'name: bench/many\nversion: 1.0.0\ntype: library\n');
      for (let d = 0; d < 50; d++) {
        await mkdir(join(source, `d${d}`));
        for (let f = 0; f < 100; f++)
          await writeFile(join(source, `d${d}`, `f${f}.txt`), `${d} ${f}\n`.repeat(1 + ((d * f) % 400)));
      }
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
