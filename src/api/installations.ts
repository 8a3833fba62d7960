import path from 'node:path';
import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';
import { installRequest, namesRequest, rootRequest, runRequest } from '../wire/http.ts';
import { checkLock } from '../wire/lock.ts';
import { type AnyRoute, route } from './route.ts';

export const installationRoutes: readonly AnyRoute[] = [
  route({
    method: 'GET',
    path: '/v1/installations',
    summary: 'What is installed in a folder.',
    access: 'token',
    query: z.strictObject({ root: z.string().min(1).max(4_096).optional() }),
    handle: ({ query }, { node }) => node.catalog.installed(rootOf(query).root),
  }),
  route({
    method: 'POST',
    path: '/v1/installations',
    summary: 'Add packages, with what they depend on, to a folder.',
    access: 'token',
    body: installRequest,
    long: true,
    handle: ({ body }, { node, ...options }) =>
      node.catalog.install(body.refs, {
        ...options,
        ...rootOf(body),
        ...(body.locked === undefined ? {} : { locked: body.locked }),
        ...(body.lock === undefined ? {} : { lock: checkLock(body.lock) }),
      }),
  }),
  route({
    method: 'POST',
    path: '/v1/installations/uninstall',
    summary: 'Take packages out of a folder, and what only they needed.',
    access: 'token',
    body: namesRequest,
    long: true,
    handle: ({ body }, { node, ...options }) => node.catalog.uninstall(body.names, { ...options, ...rootOf(body) }),
  }),
  route({
    method: 'POST',
    path: '/v1/installations/update',
    summary: 'Move packages to the newest versions in their ranges; all of them when none is named.',
    access: 'token',
    body: namesRequest,
    long: true,
    handle: ({ body }, { node, ...options }) => node.catalog.update(body.names, { ...options, ...rootOf(body) }),
  }),
  route({
    method: 'POST',
    path: '/v1/installations/rollback',
    summary: 'Back to the installation before the last change.',
    access: 'token',
    body: rootRequest,
    long: true,
    handle: ({ body }, { node, ...options }) => node.catalog.rollback({ ...options, ...rootOf(body) }),
  }),
  route({
    method: 'POST',
    path: '/v1/runs',
    summary: 'Run a package in a sandbox. A program that fails is a result, not an error.',
    access: 'token',
    body: runRequest,
    long: true,
    handle: ({ body }, { node, ...options }) =>
      node.catalog.run(body.ref, body.input, {
        ...options,
        ...(body.args === undefined ? {} : { args: body.args }),
        ...(body.environment === undefined ? {} : { environment: body.environment }),
        ...(body.limits === undefined ? {} : { limits: defined(body.limits) }),
      }),
  }),
];

/** The working folder of the node means nothing to a client, so a root must be absolute. */
function rootOf(input: { readonly root?: string | undefined }): { readonly root?: string } {
  if (input.root === undefined) return {};
  if (!path.isAbsolute(input.root))
    throw new HyperMeshError('usage', `Expected an absolute path, but got "${input.root.slice(0, 200)}".`);
  return { root: path.normalize(input.root) };
}

function defined<T extends object>(members: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as never;
}
