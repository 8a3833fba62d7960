import { z } from 'zod';
import { canonicalBase64 } from './signature.ts';

/** Statements that are signed at once; a batch of more would make paths longer than a verifier should walk. */
const BATCH_MAX = 256;

/**
 * A validator's word, checked against the keys that the genesis or an epoch document pins to it. Ed25519 is over PAE(type, canonical JSON of the
 * statement); FALCON-1024 over the Merkle root of a batch that the statement is a leaf of.
 */
export interface Attestation {
  /** Key id of the validator. */
  readonly validator: string;
  /** 64 and 1,280 bytes, base64. */
  readonly ed25519: string;
  readonly falcon: string;
  /** Sibling hashes from the leaf to the root, 64 hex digits each; the leaf's place, and how many leaves there are. */
  readonly path: readonly string[];
  readonly index: number;
  readonly size: number;
}

const hex32 = z.string().regex(/^[0-9a-f]{64}$/, 'expected 64 lower-case hex digits');

export const attestation: z.ZodType<Attestation> = z.strictObject({
  validator: hex32,
  ed25519: canonicalBase64(64, 64),
  falcon: canonicalBase64(1280, 1280),
  path: z.array(hex32).max(Math.log2(BATCH_MAX)),
  index: z
    .int()
    .nonnegative()
    .max(BATCH_MAX - 1),
  size: z.int().positive().max(BATCH_MAX),
});
