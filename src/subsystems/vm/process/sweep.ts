import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { Cgroups, killQuietly } from './cgroups.ts';
import { forgetLent } from './lend.ts';

const ROUNDS_MAX = 50;

/** Whether this build knows how boxes are made here. */
const isBoxable = process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64');

/** What processes and control groups of the boxes of a home are known by; `directory` is its real path. */
export function boxesName(directory: string): string {
  return `hypermesh-${createHash('sha256').update(directory).digest('hex').slice(0, 16)}`;
}

/** Ends and removes what the boxes of a killed node left behind. */
export async function sweepBoxes(directory: string): Promise<void> {
  if (!isBoxable) return;
  const name = boxesName(directory);
  await endMarked(markOf(name));
  await Cgroups.sweep(name);
  await forgetLent(directory);
}

/** Ends what a killed node left: whatever has its mark among its arguments. */
async function endMarked(mark: string): Promise<void> {
  // Again until there is none: one that was seen may have started another before it was ended.
  for (let found = 1, round = 0; found > 0 && round < ROUNDS_MAX; round++) {
    found = 0;
    for (const name of await readdir('/proc').catch(() => [])) {
      if (!/^\d+$/.test(name)) continue;
      const line = await readFile(`/proc/${name}/cmdline`, 'latin1').catch(() => '');
      if (!line.split('\0').includes(mark)) continue;
      killQuietly(Number(name));
      found += 1;
    }
    if (found > 0) await pause(round);
  }
}

export function markOf(name: string): string {
  return `/proc/0/${name}`;
}
