import type { Progress } from '../base/call.ts';
import { ERRORS, fromProblem, HyperMeshError, type ProblemDocument } from '../base/errors.ts';
import { decodeEvent, type Event } from '../wire/event.ts';
import { HTTP_LIMITS, type Line } from '../wire/http.ts';

/** The error that an answer reports. */
export async function readProblem(response: Response): Promise<HyperMeshError> {
  const problem: unknown = await response.json().catch(() => undefined);
  return isProblem(problem) ? fromProblem(problem) : notOurs(`status ${response.status} without a problem document`);
}

/** Passes progress on; returns the result or throws the error in the last line. */
export async function readLines(response: Response, onProgress?: (progress: Progress) => void): Promise<unknown> {
  for await (const text of linesOf(response)) {
    if (text === '') continue;
    const line = parse(text) as Line;
    if ('result' in line) return line.result;
    if ('error' in line && isProblem(line.error)) throw fromProblem(line.error);
    if ('progress' in line) onProgress?.(line.progress);
  }
  throw cutOff();
}

/** Server-sent events, as this API sends them: `id:` and `data:` on one line each. */
export async function* readEvents(response: Response): AsyncIterable<Event> {
  for await (const text of linesOf(response)) {
    if (text.startsWith('data: ')) yield decodeEvent(text.slice(6));
  }
}

async function* linesOf(response: Response): AsyncIterable<string> {
  if (response.body === null) return;
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for await (const bytes of response.body) {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split('\n');
      rest = lines.pop()!;
      if (rest.length > HTTP_LIMITS.lineBytesMax) throw notOurs('a line without end');
      yield* lines;
    }
  } catch (error) {
    if (error instanceof HyperMeshError) throw error;
    if ((error as Error).name === 'AbortError')
      throw new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: error });
    throw cutOff(error);
  }
}

function parse(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (value !== null && typeof value === 'object') return value as Record<string, unknown>;
  } catch {
    // Not JSON: answered below like anything else that a node does not send.
  }
  throw notOurs('a line that is not JSON');
}

function isProblem(value: unknown): value is ProblemDocument {
  const { code, message } = (value ?? {}) as { code?: unknown; message?: unknown };
  return typeof code === 'string' && Object.hasOwn(ERRORS, code) && typeof message === 'string';
}

function notOurs(what: string): HyperMeshError {
  return new HyperMeshError('node-not-running', `Expected an answer of a HyperMesh node, but got ${what}.`, {
    hint: 'Another program may use the port of the node; check with `hypermesh status`.',
  });
}

function cutOff(cause?: unknown): HyperMeshError {
  return new HyperMeshError('node-not-running', 'The node ended before it answered.', {
    hint: 'Its log is in the folder logs of its home. Start it again and repeat the command: nothing is half-done.',
    cause,
  });
}
