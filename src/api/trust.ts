import { concat, utf8 } from '../base/bytes.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { BUNDLE_BYTES_MAX, type Bundle, decodeBundle } from '../wire/bundle.ts';
import {
  proofRequest,
  proofVerifyRequest,
  renewRequest,
  revokeRequest,
  stakeRequest,
  verifyRequest,
} from '../wire/http.ts';
import type { ProofSet } from '../wire/proof.ts';
import { type AnyRoute, type RequestContext, route } from './route.ts';

export const trustRoutes: readonly AnyRoute[] = [
  route({
    method: 'POST',
    path: '/v1/verify',
    summary: 'Check a published package, or a bundle alone.',
    access: 'token',
    body: verifyRequest,
    long: true,
    async handle({ body }, { node, ...options }) {
      const { offline = false } = body;
      if ('ref' in body) return node.catalog.verify({ ref: body.ref }, { ...options, offline });
      const bundle =
        'bundle' in body ? decodeBundle(utf8(canonicalJson(body.bundle))) : await storedBundle(body.digest, node);
      return node.catalog.verify({ bundle }, { ...options, offline });
    },
  }),
  route({
    method: 'GET',
    path: '/v1/keys',
    summary: 'The public identity of this home: publisher, validator and node.',
    access: 'read',
    async handle(_input, { node }) {
      const { trust } = node;
      const [publisher, validator, own] = await Promise.all([
        trust.identity('publisher'),
        trust.identity('validator'),
        trust.identity('node'),
      ]);
      return { publisher, validator, node: own };
    },
  }),
  route({
    method: 'GET',
    path: '/v1/certificates',
    summary: 'Certificates that this home knows.',
    access: 'read',
    handle: (_input, { node }) => node.trust.certificates(),
  }),
  route({
    method: 'POST',
    path: '/v1/certificates/renew',
    summary: 'Issue a fresh certificate for the same keys.',
    access: 'token',
    body: renewRequest,
    handle: ({ body }, { node }) => node.trust.renew(body.role),
  }),
  route({
    method: 'POST',
    path: '/v1/certificates/revoke',
    summary: 'Revoke a certificate.',
    access: 'token',
    body: revokeRequest,
    async handle({ body }, { node }) {
      await node.trust.revoke(body.fingerprint, body.reason);
      return { revoked: body.fingerprint, reason: body.reason };
    },
  }),
  route({
    method: 'GET',
    path: '/v1/network',
    summary:
      'The network: genesis, root certificate with revocations, proof requirements, signed head of the log (null while its committee is unreachable).',
    access: 'read',
    async handle(_input, { node }) {
      const kinds = ['publish', 'install', 'execute', 'default'] as const;
      const [genesis, anchor, log, ...requirements] = await Promise.all([
        node.consensus.genesis(),
        node.trust.anchor(),
        // A member asks its committee for it; everything else is known here.
        node.trust.logHead().catch((error: unknown) => {
          if (isCoded(error, 'committee-unreachable')) return null;
          throw error;
        }),
        ...kinds.map((kind) => node.consensus.requirements(kind)),
      ]);
      return { ...genesis, anchor, log, requirements };
    },
  }),
  route({
    method: 'POST',
    path: '/v1/proofs',
    summary: 'Make the proofs for an operation of this home, without submitting them.',
    access: 'token',
    body: proofRequest,
    long: true,
    async handle({ body }, { node, ...options }) {
      const challenge = await node.consensus.challenge(body.kind, body.subject, body.ref);
      return node.consensus.prove(challenge, options);
    },
  }),
  route({
    method: 'POST',
    path: '/v1/proofs/verify',
    summary: 'Judge each proof of a set.',
    access: 'token',
    body: proofVerifyRequest,
    handle({ body: { proofs, atMs } }, { node }) {
      return node.consensus.verify(proofs as unknown as ProofSet, atMs === undefined ? {} : { atMs });
    },
  }),
  route({
    method: 'GET',
    path: '/v1/stake',
    summary: 'Tokens of this home.',
    access: 'read',
    handle: (_input, { node }) => node.consensus.stake(),
  }),
  route({
    method: 'POST',
    path: '/v1/stake',
    summary: 'Lock, unlock or transfer tokens.',
    access: 'token',
    body: stakeRequest,
    handle({ body }, { node }) {
      switch (body.action) {
        case 'lock':
          return node.consensus.lockStake(body.amount);
        case 'unlock':
          return node.consensus.unlockStake(body.amount);
        case 'transfer':
          return node.consensus.transferStake(body.to, body.amount);
      }
    },
  }),
  route({
    method: 'GET',
    path: '/v1/space',
    summary: 'The standing space commitment of this home.',
    access: 'read',
    handle: (_input, { node }) => node.consensus.space(),
  }),
  route({
    method: 'POST',
    path: '/v1/space',
    summary: 'Wait until the space commitment of this home is made and registered.',
    access: 'token',
    long: true,
    handle: (_input, { node, ...options }) => node.consensus.commitSpace(options),
  }),
];

async function storedBundle(digest: `sha256:${string}`, node: RequestContext['node']): Promise<Bundle> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of node.assets.read(digest)) {
    size += part.length;
    if (size > BUNDLE_BYTES_MAX)
      throw new HyperMeshError(
        'bundle-invalid',
        `${digest} has more than ${BUNDLE_BYTES_MAX} bytes: it is not a bundle.`,
      );
    parts.push(part);
  }
  return decodeBundle(concat(...parts));
}
