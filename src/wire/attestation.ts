import { z } from 'zod';
import { base64, fromBase64, fromHex, hex } from '../base/bytes.ts';
import { canonicalJson } from '../base/json.ts';
import { hex32 } from './fields.ts';
import { keyIdOf, type PublicKeys } from './key-id.ts';
import { foldPath, leafHash } from './log.ts';
import { canonicalBase64, pae, paeOfText } from './signature.ts';

/**
 * The word of a validator (docs/protocol/attestation.md). It does not carry the statement: who reads it makes the statement from what it should say,
 * so that nothing has to be compared. It holds under the keys that the network pinned, without certificates.
 */

/** A validator as genesis and epoch documents name it. */
export interface ValidatorKeys {
  /** Key id of the two public keys. */
  readonly key: string;
  /** Raw public keys, base64. */
  readonly falcon: string;
  readonly ed25519: string;
  /** Key id of the publisher whose stake answers for it. */
  readonly account: string;
}

/** Signed at once, by Ed25519 alone: good for what only lives for minutes, or what a later {@link Attestation} covers. */
export interface FastAttestation {
  /** Key id of the validator. */
  readonly validator: string;
  /** Over the pre-authentication encoding of type and statement, base64. */
  readonly ed25519: string;
}

/** Both algorithms. FALCON signs the root of a tree whose leaf `index` of `size` is the same encoding. */
export interface Attestation extends FastAttestation {
  /** Over the pre-authentication encoding of {@link BATCH_TYPE} and the root, base64. */
  readonly falcon: string;
  /** Sibling hashes from the leaf to the root, 64 hex digits each. */
  readonly path: readonly string[];
  readonly index: number;
  readonly size: number;
}

/** Payload type of a root that FALCON signs. */
export const BATCH_TYPE = 'application/vnd.hypermesh.batch.v1';

export const ATTESTATION_LIMITS = {
  /** Statements that share one FALCON signature. */
  batchMax: 256,
} as const;

const fast = { validator: hex32, ed25519: canonicalBase64(64, 64) };

export const fastAttestation: z.ZodType<FastAttestation> = z.strictObject(fast);

export const attestation: z.ZodType<Attestation> = z
  .strictObject({
    ...fast,
    falcon: canonicalBase64(1280, 1280),
    path: z.array(hex32).max(Math.log2(ATTESTATION_LIMITS.batchMax)),
    index: z.int().nonnegative(),
    size: z.int().positive().max(ATTESTATION_LIMITS.batchMax),
  })
  .refine(({ index, size }) => index < size, 'expected an index below the size');

export const validatorKeys: z.ZodType<ValidatorKeys> = z
  .strictObject({ key: hex32, falcon: canonicalBase64(1793, 1793), ed25519: canonicalBase64(32, 32), account: hex32 })
  .refine(isNamedByItsKeys, 'expected the key id of its keys');

/** Also asked about values whose fields were refused already. */
function isNamedByItsKeys(value: ValidatorKeys): boolean {
  try {
    return keyIdOf(publicKeysOf(value)) === value.key;
  } catch {
    return false;
  }
}

export function publicKeysOf({ falcon, ed25519 }: Pick<ValidatorKeys, 'falcon' | 'ed25519'>): PublicKeys {
  return { falcon: fromBase64(falcon), ed25519: fromBase64(ed25519) };
}

/** What Ed25519 signs, and the leaf that FALCON covers. */
export function attestedBytes(payloadType: string, statement: unknown): Uint8Array {
  return paeOfText(payloadType, canonicalJson(statement));
}

/** What FALCON signs. */
export function batchBytes(root: Uint8Array): Uint8Array {
  return pae(BATCH_TYPE, root);
}

/** Does the arithmetic of signatures; never throws on hostile bytes. */
export interface SignatureCheck {
  ed25519(signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array): boolean;
  falcon(signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array): boolean;
}

/** Whether these keys signed the statement: both algorithms where the attestation has both. The form was checked before. */
export function attestationHolds(
  word: FastAttestation | Attestation,
  payloadType: string,
  statement: unknown,
  keys: PublicKeys,
  check: SignatureCheck,
): boolean {
  const bytes = attestedBytes(payloadType, statement);
  if (!check.ed25519(fromBase64(word.ed25519), bytes, keys.ed25519)) return false;
  if (!('falcon' in word)) return true;
  const root = foldPath(leafHash(bytes), word.index, word.size, word.path.map(fromHex));
  return root !== undefined && check.falcon(fromBase64(word.falcon), batchBytes(root), keys.falcon);
}

/** The FALCON half of an attestation. */
export function sealed(
  word: FastAttestation,
  seal: {
    readonly falcon: Uint8Array;
    readonly path: readonly Uint8Array[];
    readonly index: number;
    readonly size: number;
  },
): Attestation {
  const { falcon, path, index, size } = seal;
  return { ...word, falcon: base64(falcon), path: path.map(hex), index, size };
}
