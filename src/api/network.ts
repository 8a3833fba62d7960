import { HyperMeshError } from '../base/errors.ts';
import type { Membership } from '../capabilities/membership.ts';
import { createNetworkRequest, inviteRequest, joinRequest, leaveRequest, removeMemberRequest } from '../wire/http.ts';
import { type AnyRoute, type RequestContext, route } from './route.ts';

export const networkRoutes: readonly AnyRoute[] = [
  route({
    method: 'GET',
    path: '/v1/network/place',
    summary: "Whether this home is alone, founder or member, and where its network's committee is.",
    access: 'read',
    handle: (_input, { node }) => membershipOf(node).place(),
  }),
  route({
    method: 'POST',
    path: '/v1/network/create',
    summary: "Open this home's own network to others.",
    access: 'token',
    body: createNetworkRequest,
    handle: ({ body }, { node }) => membershipOf(node).create(body),
  }),
  route({
    method: 'POST',
    path: '/v1/network/invites',
    summary: 'Make an invite for one other machine.',
    access: 'token',
    body: inviteRequest,
    handle: ({ body }, { node }) => membershipOf(node).invite(body),
  }),
  route({
    method: 'POST',
    path: '/v1/network/join',
    summary: 'Become a member of the network of an invite.',
    access: 'token',
    body: joinRequest,
    long: true,
    handle: ({ body: { invite, ...body } }, { node, ...options }) =>
      membershipOf(node).join(invite, { ...options, ...body }),
  }),
  route({
    method: 'GET',
    path: '/v1/network/members',
    summary: 'Who belongs to the network, and who did.',
    access: 'read',
    handle: (_input, { node }) => membershipOf(node).members(),
  }),
  route({
    method: 'POST',
    path: '/v1/network/leave',
    summary: 'Go back to a network of its own.',
    access: 'token',
    body: leaveRequest,
    long: true,
    handle: ({ body }, { node, ...options }) => membershipOf(node).leave({ ...options, ...body }),
  }),
  route({
    method: 'POST',
    path: '/v1/network/remove',
    summary: "Take a member's certificates back.",
    access: 'token',
    body: removeMemberRequest,
    handle: ({ body: { node: id, ...body } }, { node }) => membershipOf(node).remove(id, body),
  }),
];

function membershipOf({ membership }: RequestContext['node']): Membership {
  if (membership !== null) return membership;
  throw new HyperMeshError('network-state', 'This node was started without a network layer.');
}
