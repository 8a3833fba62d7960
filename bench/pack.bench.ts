import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { writePackageFile } from '../src/client/pack.ts';
import { type Bench, inTurn, timed } from './harness.ts';

const run = promisify(execFile);

export const bench: Bench = {
  name: 'pack',
  about: 'pack 512 MiB in 64 files, against sha256sum and then cat of the same files',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      const source = join(folder, 'source');
      await mkdir(source);
      await writeFile(join(source, 'catalog.yaml'), 'name: bench/pack\nversion: 1.0.0\ntype: library\n');
      for (let n = 0; n < 64; n++) await writeFile(join(source, `f${n}.bin`), randomBytes(8 * 2 ** 20));
      const figures = await inTurn(
        5,
        () => timed(() => writePackageFile(source, join(folder, 'out.hmp'))),
        () =>
          timed(() => run('sh', ['-c', 'sha256sum source/* > /dev/null && cat source/* > out.cat'], { cwd: folder })),
      );
      // At least half the throughput is at most twice the time.
      return [
        {
          name: 'pack',
          unit: 'ms',
          reference: 'sha256sum + cat',
          ratioMax: 2,
          ours: figures.ours,
          theirs: figures.theirs,
        },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
