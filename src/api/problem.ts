import { ERRORS, HyperMeshError, isCoded, toProblem } from '../base/errors.ts';
import type { HttpProblem } from '../wire/http.ts';

/** RFC 9457. What is not a coded error becomes `internal` and says nothing of its cause. */
export function toHttpProblem(error: unknown): HttpProblem {
  const problem = toProblem(coded(error));
  const row = ERRORS[problem.code];
  return {
    type: `urn:hypermesh:error:${problem.code}`,
    title: row.when,
    status: row.status,
    detail: problem.message,
    ...problem,
  };
}

/** Errors of Fastify and of aborted work have a counterpart among ours. */
function coded(error: unknown): unknown {
  if (isCoded(error)) return error;
  const { code, name, statusCode, message } = error as {
    code?: unknown;
    name?: unknown;
    statusCode?: unknown;
    message?: unknown;
  };
  if (name === 'AbortError') return new HyperMeshError('cancelled', 'The operation was cancelled.');
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE' || statusCode === 413)
    return new HyperMeshError('limit-exceeded', 'The body of the request is larger than the limit.');
  if (typeof code === 'string' && code.startsWith('FST_') && typeof statusCode === 'number' && statusCode < 500)
    return new HyperMeshError('usage', String(message).slice(0, 500), {
      hint: 'docs/openapi.json describes every request.',
    });
  return error;
}
