import { HyperMeshError } from '../base/errors.ts';
import { type Event, encodeEvent } from '../wire/event.ts';
import {
  collectRequest,
  eventsRequest,
  grantPath,
  grantQuery,
  grantRequest,
  metricsRequest,
  type NodeStatus,
  runtimePath,
  runtimeRequest,
  STATE_EXPORT,
  TREE,
} from '../wire/http.ts';
import type { ApiNode } from './node.ts';
import { type AnyRoute, route, streamRoute } from './route.ts';

export const observeRoutes: readonly AnyRoute[] = [
  route({
    method: 'GET',
    path: '/v1/health',
    summary: 'Whether the node answers; cheap.',
    access: 'read',
    async handle() {
      return { ok: true, pid: process.pid };
    },
  }),
  route({
    method: 'GET',
    path: '/v1/status',
    summary: 'The node, its network, its identity and its totals.',
    access: 'read',
    handle: (_input, { node }) => status(node),
  }),
  route({
    method: 'GET',
    path: '/v1/runtimes',
    summary: 'What this machine can run, and why not.',
    access: 'read',
    handle: (_input, { node }) => node.vm.runtimes(),
  }),
  route({
    method: 'POST',
    path: '/v1/runtimes/:kind',
    summary: 'Add what a language needs to the node, from the distribution or from a package, and try it.',
    access: 'token',
    params: runtimePath,
    body: runtimeRequest,
    long: true,
    async handle({ params, body }, { node, ...options }) {
      const layer =
        'ref' in body ? (await node.catalog.open(body.ref, options)).layer : 'layer' in body ? body.layer : null;
      return node.vm.addRuntime(params.kind, layer === null ? options : { ...options, from: layer });
    },
  }),
  streamRoute({
    method: 'GET',
    path: '/v1/runtimes/image',
    summary: 'A language that was added to the node, as the tree of a package.',
    access: 'token',
    query: runtimePath,
    sends: TREE,
    async handle({ query }, { node, signal }) {
      return node.vm.exportRuntime(query.kind, { signal });
    },
  }),
  route({
    method: 'DELETE',
    path: '/v1/runtimes/:kind',
    summary: 'Remove a language from the node when its programs have ended.',
    access: 'token',
    params: runtimePath,
    async handle({ params }, { node }) {
      return { removed: await node.vm.removeRuntime(params.kind) };
    },
  }),
  route({
    method: 'GET',
    path: '/v1/grants',
    summary: 'What packages were granted on this machine beyond their box.',
    access: 'token',
    handle: (_input, { node }) => node.vm.grants(),
  }),
  route({
    method: 'POST',
    path: '/v1/grants',
    summary: 'Grant a package places on the network and folders of this machine.',
    access: 'token',
    body: grantRequest,
    handle: ({ body }, { node }) => node.vm.grant(body),
  }),
  route({
    method: 'DELETE',
    path: '/v1/grants/:package',
    summary: 'Take back what a package was granted, or one place or folder of it.',
    access: 'token',
    params: grantPath,
    query: grantQuery,
    async handle({ params, query }, { node }) {
      return { revoked: await node.vm.revoke(params.package, query.what) };
    },
  }),
  route({
    method: 'GET',
    path: '/v1/metrics',
    summary: 'Metrics whose names match a pattern.',
    access: 'read',
    query: metricsRequest,
    handle: ({ query }, { node }) => node.monitoring.metrics(query.pattern),
  }),
  streamRoute({
    method: 'GET',
    path: '/metrics',
    summary: 'All metrics in the text format of Prometheus.',
    access: 'read',
    sends: 'text/plain; version=0.0.4; charset=utf-8',
    async handle(_input, { node }) {
      return [await node.monitoring.prometheus()];
    },
  }),
  streamRoute({
    method: 'GET',
    path: '/v1/events',
    summary: 'Events as server-sent events; resumes after Last-Event-ID or `after`.',
    access: 'read',
    query: eventsRequest,
    sends: 'text/event-stream',
    headers: { 'cache-control': 'no-store', 'x-accel-buffering': 'no' },
    async handle({ query, headers }, { node, signal }) {
      const follow = query.follow ?? true;
      const events = node.monitoring.events({
        after: lastEventId(headers['last-event-id']) ?? query.after ?? (await newest(node, query.last)),
        ...(query.pattern === undefined ? {} : { pattern: query.pattern }),
        follow,
        signal,
      });
      return serverSent(events, signal);
    },
  }),
  route({
    method: 'POST',
    path: '/v1/gc',
    summary: 'Remove blobs that nothing refers to; with `scrub`, re-hash all that is kept.',
    access: 'token',
    body: collectRequest,
    long: true,
    async handle({ body }, { node, ...options }) {
      const collected = await node.assets.collect(options);
      return body.scrub ? { ...collected, scrub: await node.assets.scrub(options) } : collected;
    },
  }),
  streamRoute({
    method: 'GET',
    path: '/v1/state',
    summary: 'Export the state of the node.',
    access: 'token',
    sends: STATE_EXPORT,
    async handle(_input, { node, signal }) {
      return node.exportState({ signal });
    },
  }),
  streamRoute({
    method: 'PUT',
    path: '/v1/state',
    summary: 'Import an export: verified as a whole before anything changes.',
    access: 'token',
    accepts: STATE_EXPORT,
    async handle({ body }, { node, signal }) {
      await node.importState(body, { signal });
      return { imported: true };
    },
  }),
  route({
    method: 'POST',
    path: '/v1/shutdown',
    summary: 'Stop the node gracefully.',
    access: 'token',
    async handle(_input, { node }) {
      node.stop();
      return { stopping: true, pid: process.pid };
    },
  }),
];

async function status(node: ApiNode): Promise<NodeStatus> {
  const { rss, heapUsed } = process.memoryUsage();
  return {
    ...(await node.status()),
    runtime: process.version,
    memory: { residentBytes: rss, heapBytes: heapUsed },
  };
}

/** After which event to begin so that the last `count` follow; 0, the oldest kept, when no number is asked for. */
async function newest({ monitoring }: ApiNode, count: number | undefined): Promise<number> {
  if (count === undefined) return 0;
  const { oldest, last } = (await monitoring.health()).events;
  return last - count < oldest ? 0 : last - count;
}

function lastEventId(header: string | string[] | undefined): number | undefined {
  if (header === undefined || header === '') return undefined;
  const sequence = Number(header);
  if (typeof header === 'string' && Number.isSafeInteger(sequence) && sequence >= 0) return sequence;
  throw new HyperMeshError('usage', 'Expected a whole number in Last-Event-ID.');
}

const KEEP_ALIVE_MS = 15_000;

/** One message per event, and a comment now and then so that both ends notice a dead connection. */
async function* serverSent(events: AsyncIterable<Event>, signal: AbortSignal): AsyncIterable<string> {
  const iterator = events[Symbol.asyncIterator]();
  try {
    let next = iterator.next();
    // What cannot be resumed is refused before the answer begins.
    await withTimeout(next, 0);
    yield ': events follow\n\n';
    while (true) {
      const step = await withTimeout(next, KEEP_ALIVE_MS);
      if (step === 'late') {
        yield ':\n\n';
        continue;
      }
      if (step.done === true) return;
      yield encodeEvent(step.value);
      next = iterator.next();
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    await iterator.return?.();
  }
}

function withTimeout<T>(promise: Promise<T>, ms: number): Promise<T | 'late'> {
  const { promise: late, resolve } = Promise.withResolvers<'late'>();
  const timer = setTimeout(resolve, ms, 'late' as const);
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
