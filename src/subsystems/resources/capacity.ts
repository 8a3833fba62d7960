import { statfs } from 'node:fs/promises';
import { availableParallelism, totalmem } from 'node:os';
import type { ResourceUsage } from '../../capabilities/resources.ts';

export type Capacity = ResourceUsage['capacity'];

/** What is left to the operating system and to the node itself. */
const MEMORY_SHARE = 0.8;

/**
 * What this process may use of the machine: the processors of its affinity mask and control group (version 1 or 2, counted whole, at least 1),
 * four fifths of the memory of the machine or of its control group, and what is free on the disk of `directory`.
 */
export async function machineCapacity(directory: string): Promise<Capacity> {
  // Zero or an absurd number when the control group sets no limit.
  const constrained = process.constrainedMemory();
  const memory = constrained > 0 ? Math.min(constrained, totalmem()) : totalmem();
  return {
    cpuCores: availableParallelism(),
    memoryBytes: Math.floor(memory * MEMORY_SHARE),
    storageBytes: await freeBytes(directory),
  };
}

/** Free for a process that is not root. */
export async function freeBytes(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}
