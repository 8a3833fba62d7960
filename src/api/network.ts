import {
  changeValidatorsRequest,
  createNetworkRequest,
  inviteRequest,
  joinRequest,
  leaveRequest,
  moveSequencerRequest,
  removeMemberRequest,
  syncRequest,
} from '../wire/http.ts';
import { type AnyRoute, route } from './route.ts';

export const networkRoutes: readonly AnyRoute[] = [
  route({
    method: 'GET',
    path: '/v1/network/place',
    summary: "Whether this home is alone, founder or member, and where its network's committee is.",
    access: 'read',
    handle: (_input, { node }) => node.membership.place(),
  }),
  route({
    method: 'POST',
    path: '/v1/network/create',
    summary: "Open this home's own network to others, or also to those without an invite.",
    access: 'token',
    body: createNetworkRequest,
    handle: ({ body }, { node }) => node.membership.create(body),
  }),
  route({
    method: 'POST',
    path: '/v1/network/close',
    summary: 'Ask everybody for an invite again.',
    access: 'token',
    body: syncRequest,
    handle: (_input, { node }) => node.membership.close(),
  }),
  route({
    method: 'POST',
    path: '/v1/network/invites',
    summary: 'Make an invite for one other machine.',
    access: 'token',
    body: inviteRequest,
    handle: ({ body }, { node }) => node.membership.invite(body),
  }),
  route({
    method: 'POST',
    path: '/v1/network/join',
    summary: 'Become a member of the network of an invite, or of an open one.',
    access: 'token',
    body: joinRequest,
    long: true,
    handle: ({ body: { invite, ...body } }, { node, ...options }) =>
      node.membership.join(invite, { ...options, ...body }),
  }),
  route({
    method: 'GET',
    path: '/v1/network/members',
    summary: 'Who belongs to the network, and who did.',
    access: 'read',
    handle: (_input, { node }) => node.membership.members(),
  }),
  route({
    method: 'GET',
    path: '/v1/network/validators',
    summary: 'Who sits in the committee, since when, and what is known of each.',
    access: 'read',
    handle: (_input, { node }) => node.membership.validators(),
  }),
  route({
    method: 'GET',
    path: '/v1/network/proposals',
    summary: 'What may be the next committee, and who approved it.',
    access: 'read',
    handle: (_input, { node }) => node.membership.proposals(),
  }),
  route({
    method: 'POST',
    path: '/v1/network/validators',
    summary: "Propose a committee with some seats more or less, or approve a proposal, for this home's validator.",
    access: 'token',
    body: changeValidatorsRequest,
    long: true,
    handle({ body }, { node, ...call }) {
      const options = { ...call, instead: body.instead };
      switch (body.action) {
        case 'add':
          return node.membership.addValidators(body.nodes, options);
        case 'remove':
          return node.membership.removeValidators(body.nodes, options);
        case 'approve':
          return node.membership.approveValidators(body.proposal, options);
      }
    },
  }),
  route({
    method: 'GET',
    path: '/v1/network/sequencer',
    summary: 'Where the order of names, tokens and committees is made, and what is the matter with it.',
    access: 'read',
    handle: (_input, { node }) => node.membership.sequencer(),
  }),
  route({
    method: 'POST',
    path: '/v1/network/sequencer',
    summary: "Approve, for this home's validator, that the order is made elsewhere.",
    access: 'token',
    body: moveSequencerRequest,
    long: true,
    handle: ({ body: { recover, ...to } }, { node, ...options }) =>
      node.membership.moveSequencer(to, { ...options, recover }),
  }),
  route({
    method: 'POST',
    path: '/v1/network/leave',
    summary: 'Go back to a network of its own.',
    access: 'token',
    body: leaveRequest,
    long: true,
    handle: ({ body }, { node, ...options }) => node.membership.leave({ ...options, ...body }),
  }),
  route({
    method: 'POST',
    path: '/v1/network/remove',
    summary: "Take a member's certificates back.",
    access: 'token',
    body: removeMemberRequest,
    handle: ({ body: { node: id, ...body } }, { node }) => node.membership.remove(id, body),
  }),
];
