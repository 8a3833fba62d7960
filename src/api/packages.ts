import type { AssetQuery } from '../capabilities/assets.ts';
import { packagePath, publishRequest, rangeQuery, searchRequest, stateRequest, TREE } from '../wire/http.ts';
import { type AnyRoute, refOf, route, streamRoute } from './route.ts';

export const packageRoutes: readonly AnyRoute[] = [
  streamRoute({
    method: 'POST',
    path: '/v1/layers',
    summary: 'Send the files of a package as a canonical tar; answers what the content store knows of it.',
    access: 'token',
    accepts: TREE,
    handle: ({ body }, { node, signal }) => node.catalog.stageLayer(body, { signal }),
  }),
  route({
    method: 'POST',
    path: '/v1/packages',
    summary: 'Publish a package: check, sign, prove, admit, commit.',
    access: 'token',
    body: publishRequest,
    long: true,
    async handle({ body }, { node, ...options }) {
      const staged = await node.catalog.stagePackage(body.manifestYaml, body.layer, options);
      const signed = await node.catalog.signPackage(staged, options);
      return node.catalog.publishPackage(signed, options);
    },
  }),
  route({
    method: 'GET',
    path: '/v1/packages',
    summary: 'Search packages.',
    access: 'read',
    query: searchRequest,
    handle: ({ query }, { node }) => node.catalog.search(query as AssetQuery),
  }),
  route({
    method: 'GET',
    path: '/v1/packages/:scope/:name',
    summary: 'A package: its newest version in a range, all versions, and what depends on it.',
    access: 'read',
    params: packagePath,
    query: rangeQuery,
    handle: ({ params, query }, { node }) => node.catalog.info(refOf(params, query.range)),
  }),
  route({
    method: 'GET',
    path: '/v1/packages/:scope/:name/bundle',
    summary: 'The verification bundle of a package.',
    access: 'read',
    params: packagePath,
    query: rangeQuery,
    handle: ({ params, query }, { node }) => node.catalog.bundle(refOf(params, query.range)),
  }),
  route({
    method: 'PUT',
    path: '/v1/packages/:scope/:name/state',
    summary: 'Deprecate, yank or restore a version.',
    access: 'token',
    params: packagePath,
    body: stateRequest,
    handle: ({ params, body }, { node }) => node.catalog.setState(refOf(params, body.range), body.state, body.reason),
  }),
  route({
    method: 'DELETE',
    path: '/v1/packages/:scope/:name',
    summary: 'Delete a version that nothing depends on.',
    access: 'token',
    params: packagePath,
    query: rangeQuery,
    handle: ({ params, query }, { node }) => node.catalog.delete(refOf(params, query.range)),
  }),
];
