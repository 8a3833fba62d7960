import { readlinkSync } from 'node:fs';
import { setPriority } from 'node:os';

/** Above normal work on the scale of the operating system (0 normal, 19 least): about a third of the share of a normal thread. */
const NICENESS = 5;

/**
 * Puts the calling worker thread behind the threads that answer requests, so that proofs and signatures on all processors do not make
 * the node slow to answer. Linux knows priorities of single threads; elsewhere nothing happens.
 */
export function yieldPriority(): void {
  if (process.platform !== 'linux') return;
  try {
    const thread = Number(readlinkSync('/proc/thread-self').split('/').at(-1));
    if (Number.isInteger(thread) && thread !== process.pid) setPriority(thread, NICENESS);
  } catch {
    // Without /proc, or where it is forbidden, the thread keeps its priority: slower answers, same proofs.
  }
}
