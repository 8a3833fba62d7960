import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { type Bench, inTurn, timed } from './harness.ts';

function spawned(args: readonly string[]): Promise<number> {
  return timed(() => {
    const { promise, resolve } = Promise.withResolvers<void>();
    spawn(process.execPath, args, { stdio: 'ignore' }).once('close', () => resolve());
    return promise;
  });
}

export const bench: Bench = {
  name: 'help',
  about: '`hypermesh --help`, a whole process, against Node doing nothing',
  async run() {
    const entry = join(import.meta.dirname, '..', 'bin', 'hypermesh.js');
    const figures = await inTurn(
      15,
      () => spawned([entry, '--help']),
      () => spawned(['-e', '0']),
    );
    return [
      {
        name: 'hypermesh --help',
        unit: 'ms',
        reference: 'node -e 0',
        oursMax: 150,
        ours: figures.ours,
        theirs: figures.theirs,
      },
    ];
  },
};
