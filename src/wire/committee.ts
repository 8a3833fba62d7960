import { z } from 'zod';
import { fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { standingWord } from './access.ts';
import { claimable, ENTRY_LIMITS, selfSigned } from './entry.ts';
import { hex32 } from './fields.ts';
import { AUDITS, challenge, operation, wordsOf } from './proof.ts';
import { PROOF_LIMITS } from './proof-limits.ts';
import { firstIssue } from './signature.ts';

/**
 * What a member asks of the committee, and anybody of a network's front door, over the direct channel (docs/protocol/committee.md).
 * Bodies are canonical JSON. Answers are checked by who asked: nobody believes the committee what he can check himself.
 */

export const COMMITTEE_LIMITS = {
  /** Of a request, but for those below. */
  requestBytesMax: 64 * 2 ** 10,
  /** A proof set, in base64 where it is bytes. */
  proofsBytesMax: PROOF_LIMITS.bytesMax,
  /** A certificate of a hundred votes, and the order of an operation. */
  certificateBytesMax: 512 * 2 ** 10,
  /** Openings of three layers. */
  registrationBytesMax: 4 * 2 ** 20,
  answerBytesMax: 4 * 2 ** 20,
  membersMax: 10_000,
} as const;

/** Canonical base64 of at most that many bytes. */
function bytesUpTo(most: number) {
  return z
    .string()
    .max(Math.ceil(most / 3) * 4)
    .transform((text, context) => {
      try {
        const bytes = fromBase64(text);
        if (bytes.length <= most) return bytes;
      } catch {
        // Falls through: said below.
      }
      context.addIssue({ code: 'custom', message: `expected canonical base64 of at most ${most} bytes` });
      return z.NEVER;
    });
}

const opening = {
  labels: bytesUpTo(PROOF_LIMITS.openingsMax * 4 * 32),
  path: bytesUpTo(PROOF_LIMITS.openingsMax * 4 * 26 * 32),
};

/** Requests by the name of their method. */
export const COMMITTEE_REQUESTS = {
  /** `newest`: the certificate of the identity's last operation of the kind; judged where it is newer than what is known. */
  'committee/anchor': z.strictObject({ operation, order: selfSigned.nullable(), newest: z.unknown() }),
  'committee/reveal': z.strictObject({ challenge, attempt: z.int().positive().max(AUDITS) }),
  'committee/opening': z.strictObject({
    challenge,
    attempt: z.int().positive().max(AUDITS),
    revealed: z.array(hex32).min(1).max(PROOF_LIMITS.committeeMax),
    root: hex32,
    ...opening,
  }),
  'committee/statement': z.strictObject({ challenge }),
  'committee/vote': z.strictObject({ proofs: z.unknown(), order: selfSigned.nullable(), fast: z.boolean() }),
  'committee/confirm': z.strictObject({ certificate: z.unknown() }),
  'committee/account': z.strictObject({}),
  'committee/name': z.strictObject({ name: claimable }),
  'committee/entry': z.strictObject({ entry: bytesUpTo(ENTRY_LIMITS.bytesMax) }),
  'committee/register': z.strictObject({ roots: z.array(hex32).length(3) }),
  'committee/registration': z.strictObject({
    nonce: hex32,
    roots: z.array(hex32).length(3),
    layers: z.array(z.strictObject(opening)).length(3),
  }),
  'committee/standing': z.strictObject({}),
  'committee/introduce': z.strictObject({ root: hex32, words: wordsOf(standingWord) }),
  'committee/log': z.strictObject({ certificate: z.unknown() }),
  'committee/log-head': z.strictObject({}),
  'committee/log-consistency': z.strictObject({ from: z.int().nonnegative(), to: z.int().nonnegative() }),
  'network/epochs': z.strictObject({ proposals: z.array(z.unknown()).max(16) }),
  'network/documents': z.strictObject({ epochs: z.array(z.unknown()).max(1_000) }),
  'network/keys': z.strictObject({}),
  'network/news': z.strictObject({}),
  'network/members': z.strictObject({}),
  'network/leave': z.strictObject({}),
} as const;

export type CommitteeMethod = keyof typeof COMMITTEE_REQUESTS;
export type CommitteeRequest<M extends CommitteeMethod> = z.output<(typeof COMMITTEE_REQUESTS)[M]>;

const LARGER: Partial<Record<CommitteeMethod, number>> = {
  'committee/introduce': COMMITTEE_LIMITS.proofsBytesMax,
  'network/documents': COMMITTEE_LIMITS.proofsBytesMax,
  'network/epochs': COMMITTEE_LIMITS.proofsBytesMax,
  'committee/opening': COMMITTEE_LIMITS.proofsBytesMax,
  'committee/anchor': COMMITTEE_LIMITS.certificateBytesMax,
  'committee/vote': COMMITTEE_LIMITS.proofsBytesMax,
  'committee/confirm': COMMITTEE_LIMITS.certificateBytesMax,
  'committee/registration': COMMITTEE_LIMITS.registrationBytesMax,
  'committee/entry': 2 * ENTRY_LIMITS.bytesMax,
  'committee/log': COMMITTEE_LIMITS.certificateBytesMax,
};

export function requestBytesMax(method: CommitteeMethod): number {
  return LARGER[method] ?? COMMITTEE_LIMITS.requestBytesMax;
}

/** Errors: `usage`, with the first wrong field. */
export function decodeRequest<M extends CommitteeMethod>(method: M, value: unknown): CommitteeRequest<M> {
  const parsed = COMMITTEE_REQUESTS[method].safeParse(value);
  if (parsed.success) return parsed.data as CommitteeRequest<M>;
  throw new HyperMeshError('usage', `A request for ${method} is malformed: ${firstIssue(parsed.error)}.`, {
    hint: 'The machine that asked runs another version of HyperMesh, or is no HyperMesh.',
  });
}

/** A body as it travels. */
export function encodeBody(value: unknown): Uint8Array {
  return utf8(canonicalJson(value));
}

/** Errors: `usage` when the bytes are not JSON. */
export function decodeBody(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(fromUtf8(bytes));
  } catch (error) {
    throw new HyperMeshError('usage', 'What came over the channel is not JSON.', { cause: error });
  }
}
