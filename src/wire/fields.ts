import { z } from 'zod';
import { type Digest, isDigest } from '../base/digest.ts';
import { PROOF_LIMITS } from './proof-limits.ts';

/** Fields that many formats have. */

/** 32 bytes: a hash, a key id, a node id, an account, a nonce. */
export const hex32 = z.string().regex(/^[0-9a-f]{64}$/, 'expected 64 lower-case hex digits');

/** What names a blob, a manifest, a document, a network. */
export const digest = z.custom<Digest>(isDigest, 'expected sha256: and 64 lower-case hex digits');

/** Since the Unix epoch, or a span. */
export const timeMs = z.int().nonnegative();

export const tokens = z.int().nonnegative().max(PROOF_LIMITS.tokensMax);
