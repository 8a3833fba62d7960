import { once } from 'node:events';
import { Readable } from 'node:stream';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import type { CallOptions, Progress } from '../base/call.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { NDJSON } from '../wire/http.ts';
import type { ApiLog, ApiNode } from './node.ts';
import { toHttpProblem } from './problem.ts';

/** What a handler is given beside its checked input. The signal ends when the client goes away or the node stops. */
export interface RequestContext extends CallOptions {
  readonly node: ApiNode;
  readonly signal: AbortSignal;
}

interface Input<Params, Query, Body> {
  readonly params: Params;
  readonly query: Query;
  readonly body: Body;
}

/** One operation of the API: the source of its handler and of its entry in docs/openapi.json. */
export interface Route<
  Params extends z.ZodType = z.ZodType,
  Query extends z.ZodType = z.ZodType,
  Body extends z.ZodType = z.ZodType,
> {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly path: string;
  readonly summary: string;
  /** `read`: open to programs on this machine. `token`: needs the bearer token of `HOME/node.json`. */
  readonly access: 'read' | 'token';
  readonly params?: Params;
  readonly query?: Query;
  /** A schema of a JSON body, or the media type of a streamed one. */
  readonly body?: Body;
  /** Answers NDJSON with progress when the client accepts it. */
  readonly long?: true;
  handle(input: Input<z.output<Params>, z.output<Query>, z.output<Body>>, context: RequestContext): Promise<unknown>;
}

/** A request whose body, answer, or both are streams. */
export interface StreamRoute<Query extends z.ZodType = z.ZodType> {
  readonly method: 'GET' | 'POST' | 'PUT';
  readonly path: string;
  readonly summary: string;
  readonly access: 'read' | 'token';
  readonly query?: Query;
  /** Media type of the body. */
  readonly accepts?: string;
  /** Media type of the answer; JSON when absent. */
  readonly sends?: string;
  readonly long?: true;
  readonly headers?: Readonly<Record<string, string>>;
  handle(
    input: {
      readonly query: z.output<Query>;
      readonly body: AsyncIterable<Uint8Array>;
      readonly headers: FastifyRequest['headers'];
    },
    context: RequestContext,
  ): Promise<unknown>;
}

export type AnyRoute =
  | (Omit<Route, 'handle'> & { readonly kind: 'json'; handle(input: never, context: RequestContext): Promise<unknown> })
  | (Omit<StreamRoute, 'handle'> & {
      readonly kind: 'stream';
      handle(input: never, context: RequestContext): Promise<unknown>;
    });

export function route<Params extends z.ZodType, Query extends z.ZodType, Body extends z.ZodType>(
  definition: Route<Params, Query, Body>,
): AnyRoute {
  return { ...definition, kind: 'json' };
}

export function streamRoute<Query extends z.ZodType>(definition: StreamRoute<Query>): AnyRoute {
  return { ...definition, kind: 'stream' };
}

/** What the handlers of one server share. */
export interface Serving {
  readonly node: ApiNode;
  readonly log: ApiLog;
  /** Ends when the server closes: streams stop at once, operations are cancelled. */
  readonly closing: AbortSignal;
}

const HEARTBEAT_MS = 15_000;

export function register(app: FastifyInstance, definition: AnyRoute, serving: Serving): void {
  app.route({
    method: definition.method,
    url: definition.path,
    config: { access: definition.access },
    handler: async (request, reply) => {
      const gone = new AbortController();
      reply.raw.once('close', () => {
        if (!reply.raw.writableFinished)
          gone.abort(new HyperMeshError('cancelled', 'The client closed the connection.'));
      });
      const signal = AbortSignal.any([gone.signal, serving.closing]);
      const input = readInput(definition, request);
      // Async, so that a handler that throws at once rejects like one that throws later.
      const work = async (onProgress?: (progress: Progress) => void) =>
        definition.handle(input as never, { node: serving.node, signal, onProgress });
      if (definition.long === true && (request.headers.accept ?? '').includes(NDJSON)) {
        return sendLines(reply, work, signal, serving.log);
      }
      const result = await work().catch((error: unknown) => {
        throw cause(error, signal);
      });
      if (definition.kind === 'stream' && definition.sends !== undefined) {
        const stream = Readable.from(result as AsyncIterable<Uint8Array | string>, { objectMode: false });
        // An answer that was begun cannot become a refusal any more: what fails before its first piece is one.
        await once(stream, 'readable').catch((error: unknown) => {
          throw cause(error, signal);
        });
        reply.headers({ ...definition.headers, 'content-type': definition.sends });
        return reply.send(stream);
      }
      return reply.send(result ?? null);
    },
  });
}

/** The body as it arrives. Whoever stops reading it still answers: the request, and with it the connection, is not destroyed. */
function bodyOf({ body }: FastifyRequest): AsyncIterable<Uint8Array> | undefined {
  return body instanceof Readable ? body.iterator({ destroyOnReturn: false }) : undefined;
}

function readInput(definition: AnyRoute, request: FastifyRequest): unknown {
  const query = definition.query === undefined ? {} : check(definition.query, request.query, 'query parameter');
  if (definition.kind === 'stream') return { query, body: bodyOf(request), headers: request.headers };
  return {
    query,
    params: definition.params === undefined ? {} : check(definition.params, request.params, 'path'),
    body: definition.body === undefined ? undefined : check(definition.body, request.body ?? {}, 'body'),
  };
}

/** Errors: `usage`, naming each wrong member. */
export function check<T extends z.ZodType>(schema: T, value: unknown, where: string): z.output<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues
    .slice(0, 5)
    .map((issue) => `${issue.path.length === 0 ? where : `${where} "${issue.path.join('.')}"`}: ${issue.message}`);
  throw new HyperMeshError('usage', `The request is not as expected. ${issues.join('; ')}.`.slice(0, 2_000), {
    hint: 'docs/openapi.json describes every request.',
  });
}

/** What goes wrong because the client went away is no defect. */
function cause(error: unknown, signal: AbortSignal): unknown {
  return signal.aborted && (!isCoded(error) || isCoded(error, 'internal')) ? signal.reason : error;
}

/** Progress lines are dropped while the client does not keep up; the last line, result or error, never is. */
function sendLines(
  reply: FastifyReply,
  work: (onProgress: (progress: Progress) => void) => Promise<unknown>,
  signal: AbortSignal,
  log: ApiLog,
): FastifyReply {
  const lines = new Readable({ read: () => undefined, highWaterMark: 64 * 1024 });
  let open = true;
  const line = (value: unknown) => open && lines.push(`${JSON.stringify(value)}\n`);
  const heartbeat = setInterval(() => open && lines.push('\n'), HEARTBEAT_MS);
  const finish = (last: string) => {
    clearInterval(heartbeat);
    if (open) lines.push(`${last}\n`);
    open = false;
    lines.push(null);
  };
  lines.once('close', () => {
    open = false;
    clearInterval(heartbeat);
  });
  work((progress) => {
    if (lines.readableLength < lines.readableHighWaterMark) line({ progress });
  })
    .then((result) => JSON.stringify({ result: result ?? null }))
    .then(finish, (error: unknown) => {
      const reported = cause(error, signal);
      const problem = toHttpProblem(reported);
      if (problem.code === 'internal') log.error({ err: reported }, 'operation failed');
      finish(JSON.stringify({ error: problem }));
    });
  return reply.header('content-type', NDJSON).send(lines);
}

/** What the path of a package and a range in the request name together. */
export function refOf(params: { readonly scope: string; readonly name: string }, range: string | undefined): string {
  return `${params.scope}/${params.name}${range === undefined ? '' : `@${range}`}`;
}
