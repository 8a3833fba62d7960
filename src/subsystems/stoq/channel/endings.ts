import { HyperMeshError } from '../../../base/errors.ts';

/** What the other end says of a request. That somebody lied is for this end to find, and that its caller wants nothing more only the caller can say. */
export function told(problem: HyperMeshError): HyperMeshError {
  const { code, message } = problem;
  if (code === 'cancelled') return gone('the other node gave up', problem);
  if (code !== 'peer-lied' && code !== 'shard-mismatch') return problem;
  return new HyperMeshError('operation-unsupported', `The other node refused what this one sent: ${message}`);
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
