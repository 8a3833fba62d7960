import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

/**
 * `npm test`: everything that must hold before a change lands, in the order in which it fails fastest.
 * Each step is a command that a person can run alone.
 */
const steps: readonly (readonly [string, readonly string[]])[] = [
  ['biome', ['check', '--error-on-warnings']],
  ['tsc', ['--noEmit']],
  ['tsc', ['--noEmit', '-p', 'src/dashboard']],
  ['oxlint', ['--type-aware', '--deny-warnings']],
  ['knip', []],
  ['node', ['test/suite.ts']],
];

const root = join(import.meta.dirname, '..');
// Hundreds of processes read the same sources: each compiles them once less.
const env = { ...process.env, NODE_COMPILE_CACHE: join(root, 'node_modules', '.cache', 'compiled') };
for (const [command, args] of steps) {
  process.stdout.write(`\n> ${command} ${args.join(' ')}\n`);
  const { status } = spawnSync(join(root, 'node_modules', '.bin', command), args, { cwd: root, env, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
