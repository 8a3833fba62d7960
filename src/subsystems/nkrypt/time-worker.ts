import type { Digest } from '../../base/digest.ts';
import type { TimeProof } from '../../wire/proof.ts';
import { serveLane } from './lane-worker.ts';
import { proveTime } from './time.ts';

export interface TimeJob {
  readonly context: Digest;
  readonly squarings: number;
}

serveLane<TimeJob, TimeProof>(({ context, squarings }, stopped, progress) =>
  proveTime(context, squarings, stopped, progress),
);
