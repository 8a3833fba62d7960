import { base64 } from '../base/bytes.ts';
import {
  type BanWithEvidence,
  banPath,
  distributeRequest,
  forgiveRequest,
  packagePath,
  syncRequest,
} from '../wire/http.ts';
import { type AnyRoute, refOf, route } from './route.ts';

export const peerRoutes: readonly AnyRoute[] = [
  route({
    method: 'GET',
    path: '/v1/peers',
    summary: 'The other nodes of the network: where they are, whether they answer, and who is banned.',
    access: 'read',
    handle: (_input, { node }) => node.transport.peers(),
  }),
  route({
    method: 'POST',
    path: '/v1/peers/discover',
    summary: 'Ask other nodes whom they know, and see who answers.',
    access: 'token',
    body: syncRequest,
    long: true,
    handle: (_input, { node, ...options }) => node.transport.discoverPeers(options),
  }),
  route({
    method: 'GET',
    path: '/v1/peers/bans',
    summary: 'The nodes that this one does not speak to: why, since when, and how much evidence there is.',
    access: 'read',
    handle: (_input, { node }) => node.transport.bans(),
  }),
  route({
    method: 'GET',
    path: '/v1/peers/bans/:node',
    summary: 'One ban with its evidence in base64, at most 64 KiB of it.',
    access: 'token',
    params: banPath,
    async handle({ params }, { node }): Promise<BanWithEvidence> {
      const { evidence, ...ban } = await node.transport.ban(params.node);
      return { ...ban, evidence: base64(evidence) };
    },
  }),
  route({
    method: 'POST',
    path: '/v1/peers/forgive',
    summary: 'Speak to a banned node again.',
    access: 'token',
    body: forgiveRequest,
    async handle({ body }, { node }) {
      await node.transport.forgive(body.node);
      return { node: body.node };
    },
  }),
  route({
    method: 'POST',
    path: '/v1/sync',
    summary: 'Compare records with every other node now, and fetch what is missing.',
    access: 'token',
    body: syncRequest,
    long: true,
    handle: (_input, { node, ...options }) => node.catalog.sync(options),
  }),
  route({
    method: 'POST',
    path: '/v1/packages/:scope/:name/distribute',
    summary: 'Wait until as many nodes as the package asks for hold its content, or fragments of it.',
    access: 'token',
    params: packagePath,
    body: distributeRequest,
    long: true,
    handle: ({ params, body: { range, code } }, { node, ...options }) =>
      node.catalog.distribute(refOf(params, range), { ...options, ...(code === undefined ? {} : { code }) }),
  }),
];
