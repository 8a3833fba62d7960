import type { IncomingMessage } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import Fastify, { type FastifyError, type FastifyInstance, type FastifyReply } from 'fastify';
import { HyperMeshError, isCoded, storageError } from '../base/errors.ts';
import { HTTP_LIMITS, type HttpProblem, PROBLEM, STATE_EXPORT, TREE } from '../wire/http.ts';
import { servePage } from './dashboard.ts';
import { guard } from './guard.ts';
import { installationRoutes } from './installations.ts';
import { networkRoutes } from './network.ts';
import type { ApiLog, ApiNode } from './node.ts';
import { observeRoutes } from './observe.ts';
import { packageRoutes } from './packages.ts';
import { peerRoutes } from './peers.ts';
import { toHttpProblem } from './problem.ts';
import { type AnyRoute, register } from './route.ts';
import { trustRoutes } from './trust.ts';

export interface ServerOptions {
  readonly host: string;
  /** 0: the operating system chooses. */
  readonly port: number;
  /** Bearer token that lets a client change things. */
  readonly token: string;
}

export interface Server extends AsyncDisposable {
  /** For example `http://127.0.0.1:40123`. */
  readonly url: string;
}

/** Every operation of the API, in the order of docs/openapi.json. */
export const ROUTES: readonly AnyRoute[] = [
  ...packageRoutes,
  ...installationRoutes,
  ...trustRoutes,
  ...networkRoutes,
  ...peerRoutes,
  ...observeRoutes,
];

const LIMITS = {
  connectionsMax: 512,
  headerBytesMax: 16 * 1024,
  headersTimeoutMs: 10_000,
  /** A large layer over a slow disk takes its time. */
  requestTimeoutMs: 3_600_000,
  /** How long requests may go on after a stop was asked for, before they are cancelled. */
  drainMs: 5_000,
  /** How long the rest of a body that was refused may take: until a busy client has read why. */
  lingerMs: 5_000,
  /** How long cancelled requests may take to say so, before their connections are cut. */
  farewellMs: 1_000,
} as const;

/** The HTTP face of a node. Errors: `usage` when the address cannot be used. */
export async function serve(node: ApiNode, options: ServerOptions, log: ApiLog): Promise<Server> {
  const closing = new AbortController();
  const app = createApp(node, options, log, closing.signal);
  await app.listen({ host: options.host, port: options.port, backlog: 128 }).catch((error: unknown) => {
    throw listenError(error, options);
  });
  const { address, family, port } = app.server.address() as AddressInfo;
  return {
    url: `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`,
    async [Symbol.asyncDispose]() {
      const cancel = setTimeout(() => closing.abort(stopping()), LIMITS.drainMs);
      // A client that does not read or does not finish its request must not keep the node up.
      const cut = setTimeout(() => app.server.closeAllConnections(), LIMITS.drainMs + LIMITS.farewellMs);
      await app.close().finally(() => {
        clearTimeout(cancel);
        clearTimeout(cut);
      });
    },
  };
}

/** The application without a port: `inject` answers requests in tests. */
export function createApp(
  node: ApiNode,
  options: Pick<ServerOptions, 'host' | 'token'>,
  log: ApiLog,
  closing: AbortSignal,
): FastifyInstance {
  const app = Fastify({
    bodyLimit: HTTP_LIMITS.jsonBytesMax,
    requestTimeout: LIMITS.requestTimeoutMs,
    forceCloseConnections: 'idle',
    exposeHeadRoutes: false,
    // What is no URL never reaches a handler.
    frameworkErrors: (error, _request, reply) => {
      sendProblem(reply as FastifyReply, toHttpProblem(error));
    },
    schemaController: { compilersFactory: { buildValidator: noSchemas, buildSerializer: noSchemas } },
    http: { maxHeaderSize: LIMITS.headerBytesMax, headersTimeout: LIMITS.headersTimeoutMs },
  });
  app.server.maxConnections = LIMITS.connectionsMax;

  // Streamed bodies reach the handler as they arrive; what they carry has its limits where it is stored.
  for (const type of [TREE, STATE_EXPORT])
    app.addContentTypeParser(type, (_request, payload, done) => done(null, payload));

  app.addHook('onRequest', async (request, reply) => {
    reply.headers(SECURITY_HEADERS);
    if (!request.is404) check(request);
  });
  const check = guard(options);

  app.setNotFoundHandler((request) => {
    check(request);
    throw new HyperMeshError('usage', `There is no operation ${request.method} ${request.url.slice(0, 200)}.`, {
      hint: 'docs/openapi.json lists every operation.',
    });
  });
  app.setErrorHandler((error: FastifyError, request, reply) => {
    const problem = toHttpProblem(error);
    if (problem.code === 'internal')
      log.error({ err: error, method: request.method, url: request.url }, 'request failed');
    if (!request.raw.complete) linger(request.raw);
    return sendProblem(reply, problem);
  });

  const streams = new AbortController();
  app.addHook('preClose', async () => streams.abort(stopping()));
  for (const definition of ROUTES) {
    const ends = definition.path === '/v1/events' ? AbortSignal.any([closing, streams.signal]) : closing;
    register(app, definition, { node, log, closing: ends });
  }
  servePage(app);
  return app;
}

/**
 * Lets a client that still sends its body read the refusal: closed at once, the connection would be reset before it could. What comes is
 * thrown away, and after a while so is the connection.
 */
function linger(request: IncomingMessage): void {
  const socket = request.socket as Socket | null;
  if (socket === null) return;
  // By then the connection may be at the next request.
  const cut = setTimeout(() => request.complete || socket.destroy(), LIMITS.lingerMs);
  const spare = () => clearTimeout(cut);
  request.once('end', spare);
  socket.once('close', spare);
  request.resume();
}

function sendProblem(reply: FastifyReply, problem: HttpProblem): FastifyReply {
  return reply.code(problem.status).header('content-type', PROBLEM).send(JSON.stringify(problem));
}

/** Every request is checked by its route (`route.ts`). Without this, the compilers for schemas of Fastify's own are loaded, a hundred modules. */
function noSchemas(): never {
  throw new Error('no route has a schema for Fastify');
}

const SECURITY_HEADERS = {
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
} as const;

function stopping(): HyperMeshError {
  return new HyperMeshError('cancelled', 'The node is stopping.', { hint: 'Start it again, then repeat the command.' });
}

function listenError(error: unknown, { host, port }: ServerOptions): unknown {
  if (isCoded(error)) return error;
  const code = (error as NodeJS.ErrnoException).code;
  const where = `${host}:${port}`;
  if (code === 'EADDRINUSE') {
    return new HyperMeshError('config-invalid', `Cannot listen on ${where}: another program uses that port.`, {
      hint: 'Choose another port with --http, or 0 to let the system choose.',
    });
  }
  if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND' || code === 'EACCES') {
    return new HyperMeshError('config-invalid', `Cannot listen on ${where}: ${code}.`, {
      hint: 'Choose an address of this machine and a port above 1023 with --http.',
    });
  }
  return storageError(error, `listening on ${where}`);
}
