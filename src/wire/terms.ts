import { z } from 'zod';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { type Attestation, attestation } from './attestation.ts';
import { type CommitteeSeat, committeeSeat } from './certification.ts';
import { digest, hex32, timeMs } from './fields.ts';
import { decodeGenesis, type Genesis } from './genesis.ts';
import { decodeCanonical, encodeJsonMessage } from './json-message.ts';
import { firstIssue } from './signature.ts';

/** What a network asks of who comes without an invite (docs/protocol/terms.md). Signed by its founder, and each change has a higher version. */

export const TERMS_TYPE = 'application/vnd.hypermesh.network-terms.v1+json';

export const TERMS_LIMITS = {
  membersMax: 10_000,
  /** An ordinary core searches a minute for it, and a request is good for five. */
  workHexDigitsMax: 7,
  /** As a record of the network. */
  recordBytesMax: 8_192,
} as const;

/** Bounds for who comes without an invite. */
export interface OpenTerms {
  /** How many of the members may have come so. */
  readonly membersMax: number;
  readonly joinsPerHour: number;
  /** From one address: an IPv4 address, or the /64 of an IPv6 address. */
  readonly joinsPerAddressPerHour: number;
  /** Zeros that the hash of a request has to begin with, in hexadecimal digits. */
  readonly workHexDigits: number;
}

export interface NetworkTerms {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  readonly version: number;
  readonly madeAtMs: number;
  /** Node id of who certifies. */
  readonly founder: string;
  /** Null: nobody comes without an invite. */
  readonly open: OpenTerms | null;
}

export interface SignedTerms {
  readonly terms: NetworkTerms;
  /** By the founder's validator, whose keys are in the genesis document. */
  readonly attestation: Attestation;
}

/** The answer of `network/terms`, to anybody. */
export interface TermsAnswer {
  readonly genesis: Json;
  /** Null: the network was never open. */
  readonly signed: SignedTerms | null;
  /** Where the founder is reached. */
  readonly committee: readonly CommitteeSeat[];
  /** What the work of a request has to be bound to, 64 hex digits; null from who does not certify. */
  readonly challenge: string | null;
}

const joins = z.int().min(1).max(TERMS_LIMITS.membersMax);

export const openTerms: z.ZodType<OpenTerms> = z.strictObject({
  membersMax: joins,
  joinsPerHour: joins,
  joinsPerAddressPerHour: joins,
  workHexDigits: z.int().min(1).max(TERMS_LIMITS.workHexDigitsMax),
});

export const signedTerms: z.ZodType<SignedTerms> = z.strictObject({
  terms: z.strictObject({
    formatVersion: z.literal(1, 'this version reads format 1'),
    networkId: digest,
    version: z.int().positive(),
    madeAtMs: timeMs,
    founder: hex32,
    open: openTerms.nullable(),
  }),
  attestation,
});

const answer = z.strictObject({
  genesis: z.custom<Json>((value) => value !== null && typeof value === 'object', 'expected a genesis document'),
  signed: signedTerms.nullable(),
  committee: z.array(committeeSeat).max(100),
  challenge: hex32.nullable(),
});

/**
 * Form, and that genesis, terms and who signed them belong to this network. Whether the signature holds is the trust subsystem's to say.
 * Errors: `network-mismatch`, `certification-invalid`.
 */
export function decodeTermsAnswer(value: unknown, networkId: Digest): TermsAnswer & { readonly founding: Genesis } {
  const parsed = answer.safeParse(value);
  if (!parsed.success) throw invalid(`the answer is malformed: ${firstIssue(parsed.error)}`);
  const { genesis, networkId: found } = decodeGenesis(parsed.data.genesis);
  if (found !== networkId) throw ofAnother();
  const { signed } = parsed.data;
  if (signed !== null) checkBelongs(signed, networkId, genesis);
  return { ...parsed.data, founding: genesis };
}

/** The document as a record: one document has one encoding. */
export function encodeTerms(signed: SignedTerms): Uint8Array {
  return encodeJsonMessage(signed);
}

/** Form alone. Errors: `certification-invalid`. */
export function decodeTerms(bytes: Uint8Array): SignedTerms {
  if (bytes.length > TERMS_LIMITS.recordBytesMax) throw invalid('they are too long');
  return decodeCanonical(signedTerms, bytes, invalid);
}

/** That terms and who signed them belong to the network of this genesis. Errors: `network-mismatch`, `certification-invalid`. */
export function checkBelongs({ terms, attestation }: SignedTerms, networkId: Digest, founding: Genesis): void {
  if (terms.networkId !== networkId) throw ofAnother();
  const isFounder = ({ key }: { readonly key: string }) => key === attestation.validator;
  if (!founding.committee.validators.some(isFounder)) throw invalid('the founder did not sign them');
}

/** Whether a document counts in the place of another one. Two of one version there are only of a founder that forgot what it had said. */
export function supersedes({ terms }: SignedTerms, before: SignedTerms | null): boolean {
  if (before === null || terms.version !== before.terms.version) return terms.version > (before?.terms.version ?? 0);
  return terms.madeAtMs > before.terms.madeAtMs;
}

function ofAnother(): HyperMeshError {
  return new HyperMeshError('network-mismatch', 'The terms are of another network than the one that was asked for.');
}

function invalid(why: string): HyperMeshError {
  return new HyperMeshError('certification-invalid', `The terms of the network do not hold: ${why}.`);
}
