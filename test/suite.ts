import { globSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

/**
 * Every test, each file in a process of its own. `node --test` begins them in the order of the alphabet and ends with one processor that waits for the
 * longest; here whole systems and sandboxes come first, and what takes a moment last. Three times as many at once as there are processors: half of the time a test
 * waits, for disks, for other processes, and for what takes its time by intention.
 */
const ORDER = [
  'test/{system,network}/**/*.test.ts',
  'src/subsystems/vm/**/*.test.ts',
  'src/{subsystems,host,catalog}/**/*.test.ts',
  '{src,test,examples}/**/*.test.ts',
];
const root = join(import.meta.dirname, '..');
const files = [...new Set(ORDER.flatMap((pattern) => globSync(pattern, { cwd: root }).sort()))];

run({ cwd: root, files: files.map((file) => join(root, file)), concurrency: 3 * availableParallelism() })
  .on('test:fail', () => {
    process.exitCode = 1;
  })
  .compose(new spec())
  .pipe(process.stdout);
