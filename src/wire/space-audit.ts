import { z } from 'zod';
import { concat, fromHex, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { type Attestation, attestation } from './attestation.ts';
import { hex32 } from './fields.ts';
import { decodeJsonMessage, encodeJsonMessage } from './json-message.ts';
import { base64Of, digestBytes } from './proof.ts';
import { PROOF_LIMITS } from './proof-limits.ts';

/** Audits of standing space commitments at times that nobody can foresee (docs/protocol/space-audit.md). */
export const SPACE_AUDIT_LIMITS = {
  askBytesMax: 1_024,
  /** Labels and path in base64. */
  answerBytesMax: 512 * 2 ** 10,
} as const;

/** Labels of the last layer at the positions of an audit, and the path to its root; base64. */
export interface SpaceOpening {
  /** 64 hex digits. */
  readonly root: string;
  readonly labels: string;
  readonly path: string;
}

/** `space/audit`: 32 random bytes that choose the labels. */
export const auditAsk: z.ZodType<{ readonly nonce: string }> = z.strictObject({ nonce: hex32 });
export const auditAnswer: z.ZodType<SpaceOpening> = z.strictObject({
  root: hex32,
  labels: base64Of(32, PROOF_LIMITS.openingsMax),
  path: base64Of(32, PROOF_LIMITS.openingsMax * 26),
});

/** `space/lost`: whether another validator saw the same commitment fail. */
export const lostAsk: z.ZodType<{ readonly account: string; readonly root: string }> = z.strictObject({
  account: hex32,
  root: hex32,
});
/** Its word for the statement of a `space-lost` entry (docs/protocol/entry.md); null while it did not see that. */
export const lostAnswer: z.ZodType<{ readonly attestation: Attestation | null }> = z.strictObject({
  attestation: attestation.nullable(),
});

export const encodeSpaceAudit = encodeJsonMessage;

/** Errors: `peer-lied`. */
export function decodeSpaceAudit<T>(schema: z.ZodType<T>, bytes: Uint8Array): T {
  return decodeJsonMessage(schema, bytes, SPACE_AUDIT_LIMITS.answerBytesMax, 'a message about space');
}

/** SHA-256 of `hm-space-audit-v1`, zeros up to 32 bytes, the network id, the identity and the nonce. */
export function auditContext(networkId: Digest, identity: string, nonce: string): Digest {
  const domain = new Uint8Array(32);
  domain.set(utf8('hm-space-audit-v1'));
  return digestOf(concat(domain, digestBytes(networkId), fromHex(identity), fromHex(nonce)));
}
