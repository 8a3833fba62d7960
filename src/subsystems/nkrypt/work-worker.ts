import type { Digest } from '../../base/digest.ts';
import { type Kernel, MIDSTATE, openKernel } from './kernel.ts';
import { serveLane } from './lane-worker.ts';
import { midstate } from './sha256.ts';
import { isSolution, workPrefix } from './work.ts';

export interface WorkJob {
  readonly context: Digest;
  readonly hexDigits: number;
  /** The solver takes the nonces whose upper half is `share` modulo `shares`. */
  readonly share: number;
  readonly shares: number;
}

/** About ten milliseconds: the solver looks for the stop flag, and V8 for hot code, between batches. */
const BATCH = 2 ** 17;

let kernel: Kernel | undefined;

serveLane<WorkJob, bigint>(async ({ context, hexDigits, share, shares }, stopped, progress) => {
  kernel ??= await openKernel(2);
  const prefix = workPrefix(context);
  new Int32Array(kernel.memory.buffer, MIDSTATE, 8).set(midstate(prefix));
  // The kernel looks at the first word only; further digits are checked here.
  const mask = hexDigits >= 8 ? -1 : ~(0xffff_ffff >>> (hexDigits * 4));
  let tried = 0;
  for (let high = share; high < 2 ** 32; high += shares) {
    for (let low = 0; low < 2 ** 32; low += BATCH) {
      if (stopped()) return undefined;
      for (let from = low; from < low + BATCH; ) {
        const found = kernel.search(high, from | 0, low + BATCH - from, mask);
        if (found < 0) break;
        const nonce = (BigInt(high) << 32n) | BigInt(from + found);
        if (isSolution(prefix, hexDigits, nonce)) return nonce;
        // On with the next four; of the three beside this one at most a solution is missed, and there are more.
        from += (found & ~3) + 4;
      }
      tried += BATCH;
      if (tried % (BATCH * 32) === 0) progress(tried);
    }
  }
  return undefined;
});
