import { HyperMeshError, isCoded } from '../../../base/errors.ts';

/** What the other end says of a request. That somebody lied is for this end to find, and is never taken from there. */
export function told(problem: HyperMeshError): HyperMeshError {
  if (!isCoded(problem, 'peer-lied', 'shard-mismatch')) return problem;
  return new HyperMeshError('operation-unsupported', `The other node refused what this one sent: ${problem.message}`);
}

export function gone(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError(
    'peer-unreachable',
    `The connection to the other node is gone: ${why}.`,
    cause === undefined ? {} : { cause },
  );
}

export function cancelled(what: string, cause: unknown): HyperMeshError {
  return new HyperMeshError('cancelled', `The caller gave up ${what}.`, { cause });
}
