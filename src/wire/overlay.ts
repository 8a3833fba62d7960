import { z } from 'zod';
import type { Digest } from '../base/digest.ts';
import { digest, hex32 } from './fields.ts';
import { decodeJsonMessage, encodeJsonMessage } from './json-message.ts';

/** Small messages of the overlay, canonical JSON (docs/protocol/overlay.md). */
export const OVERLAY_BYTES_MAX = 16_384;

/** Ids in one message about resources. */
export const RESOURCE_IDS_MAX = 128;
/** Nodes in one answer. */
export const HOLDERS_MAX = 128;

/** `overlay/doubt` and `overlay/reach`: a node that did not answer. */
export const aboutNode: z.ZodType<{ readonly node: string }> = z.strictObject({ node: hex32 });
export const reached: z.ZodType<{ readonly reached: boolean }> = z.strictObject({ reached: z.boolean() });

/** `resources/announce`: what the sender holds now, and nothing about anybody else. */
export const resourceIds: z.ZodType<{ readonly ids: readonly Digest[] }> = z.strictObject({
  ids: z.array(digest).min(1).max(RESOURCE_IDS_MAX),
});

/** `resources/holders` and `resources/keep`: one resource. */
export const aboutResource: z.ZodType<{ readonly id: Digest }> = z.strictObject({ id: digest });
export const holders: z.ZodType<{ readonly nodes: readonly string[] }> = z.strictObject({
  nodes: z.array(hex32).max(HOLDERS_MAX),
});
/** `resources/audit`: bytes of a blob that the other side says it holds. */
export interface AuditQuestion {
  readonly blob: Digest;
  readonly offset: number;
  readonly length: number;
  /** Fresh for each question: an answer is good for no other. */
  readonly nonce: string;
}
/** Bytes that one audit is about. */
export const AUDIT_BYTES_MAX = 65_536;
export const auditQuestion: z.ZodType<AuditQuestion> = z.strictObject({
  blob: digest,
  offset: z.int().min(0),
  length: z.int().min(1).max(AUDIT_BYTES_MAX),
  nonce: z.string().regex(/^[0-9a-f]{32}$/, 'expected 16 bytes'),
});
/** SHA-256 over the nonce and the bytes; null: they are not there. */
export const auditAnswer: z.ZodType<{ readonly proof: string | null }> = z.strictObject({
  proof: hex32.nullable(),
});

export const keeping: z.ZodType<{ readonly state: 'held' | 'coming' | 'unknown' | 'refused' }> = z.strictObject({
  state: z.enum(['held', 'coming', 'unknown', 'refused']),
});

export const encodeMessage = encodeJsonMessage;

/** Errors: `peer-lied`. */
export function decodeMessage<T>(schema: z.ZodType<T>, bytes: Uint8Array): T {
  return decodeJsonMessage(schema, bytes, OVERLAY_BYTES_MAX, 'a message of the overlay');
}
