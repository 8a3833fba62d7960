import { z } from 'zod';
import { concat, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf, sha256 } from '../base/digest.ts';
import { canonicalJson } from '../base/json.ts';
import { type Attestation, attestation } from './attestation.ts';
import { digest, hex32, timeMs } from './fields.ts';
import { decodeJsonMessage, encodeJsonMessage } from './json-message.ts';
import { base64Of, type TimeProof, timeProof, type WorkProof, wordsOf, workProof } from './proof.ts';
import { PROOF_LIMITS } from './proof-limits.ts';

/** Access by proof: what a node asks of whoever takes content from it to use it (docs/protocol/access.md). */
export const ACCESS_LIMITS = {
  /** In one proof. */
  packagesMax: 1_000,
  askBytesMax: 128 * 2 ** 10,
  openedBytesMax: 512,
  proveBytesMax: PROOF_LIMITS.bytesMax,
  answerBytesMax: 128 * 2 ** 10,
} as const;

/** Payload type of a {@link SpaceStanding}. */
export const SPACE_STANDING_TYPE = 'application/vnd.hypermesh.space-standing.v2+json';

export const USES = ['install', 'execute'] as const;
/** What content is taken for; the row of the requirement table of that name says what is asked. */
export type Use = (typeof USES)[number];

/** Made by the node that gives, for one publisher and some packages; of use once, and soon. */
export interface AccessChallenge {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  /** Key id of the node that gives. */
  readonly node: string;
  /** Key id of the publisher of the home that asks. */
  readonly identity: string;
  readonly use: Use;
  /** Manifest digests, ascending, each once. */
  readonly packages: readonly Digest[];
  /** 32 random bytes, 64 hex digits. They are the beacon of the space audit too. */
  readonly nonce: string;
  readonly issuedAtMs: number;
}

export interface AccessProof {
  readonly formatVersion: 1;
  readonly challenge: AccessChallenge;
  /** Labels of the standing commitment at the positions that the nonce chooses; `opened` said in time what they are. */
  readonly space: { readonly root: string; readonly labels: string; readonly path: string } | null;
  readonly work: WorkProof | null;
  readonly time: TimeProof | null;
}

/** What the committee says about the space commitment of an identity: this one was registered, and was not lost until then. */
export interface SpaceStanding {
  readonly networkId: Digest;
  /** {@link Committee.digest} */
  readonly committee: Digest;
  readonly identity: string;
  readonly root: string;
  readonly bytes: number;
  readonly atMs: number;
}

/** One validator's word for a {@link SpaceStanding}, with its own time; the rest of the statement is the same for all. */
export interface StandingWord {
  readonly atMs: number;
  readonly attestation: Attestation;
}

const use = z.enum(USES);

/** Ascending without repetition: one way to write a set. */
const packages = z
  .array(digest)
  .min(1)
  .max(ACCESS_LIMITS.packagesMax)
  .refine((list) => list.every((id, at) => at === 0 || list[at - 1]! < id), 'expected ascending digests, each once');

const accessChallenge: z.ZodType<AccessChallenge> = z.strictObject({
  formatVersion: z.literal(1),
  networkId: digest,
  node: hex32,
  identity: hex32,
  use,
  packages,
  nonce: hex32,
  issuedAtMs: timeMs,
});

export const accessProof: z.ZodType<AccessProof> = z.strictObject({
  formatVersion: z.literal(1),
  challenge: accessChallenge,
  space: z
    .strictObject({
      root: hex32,
      labels: base64Of(32, PROOF_LIMITS.openingsMax),
      path: base64Of(32, PROOF_LIMITS.openingsMax * 26),
    })
    .nullable(),
  work: workProof.nullable(),
  time: timeProof.nullable(),
});

export const standingWord: z.ZodType<StandingWord> = z.strictObject({ atMs: timeMs, attestation });

/** `access/ask`: who wants these packages, and what for. */
export const accessAsk: z.ZodType<{ readonly use: Use; readonly packages: readonly Digest[] }> = z.strictObject({
  use,
  packages,
});
/** The answer: what to prove; null when nothing has to be proved now. */
export const accessAsked: z.ZodType<{ readonly challenge: AccessChallenge | null }> = z.strictObject({
  challenge: accessChallenge.nullable(),
});
/** `access/opened`: SHA-256 of labels followed by path, as soon as they were read. */
export const accessOpened: z.ZodType<{ readonly nonce: string; readonly opening: Digest }> = z.strictObject({
  nonce: hex32,
  opening: digest,
});
/** `access/prove`. `standing` is empty where no space is asked for. */
export const accessProve: z.ZodType<{
  readonly proof: AccessProof;
  readonly standing: readonly StandingWord[];
}> = z.strictObject({ proof: accessProof, standing: wordsOf(standingWord).or(z.array(z.never()).max(0)) });
/** The answer: how long the access is good for. */
export const accessGranted: z.ZodType<{ readonly forMs: number }> = z.strictObject({
  forMs: z.int().nonnegative().max(PROOF_LIMITS.windowMsMax),
});

export const encodeAccess = encodeJsonMessage;

/** Errors: `peer-lied`. */
export function decodeAccess<T>(
  schema: z.ZodType<T>,
  bytes: Uint8Array,
  bytesMax: number = ACCESS_LIMITS.answerBytesMax,
): T {
  return decodeJsonMessage(schema, bytes, bytesMax, 'a message about access');
}

/** What each part of the proof is bound to: SHA-256 of `hm-access-v1`, zeros up to 32 bytes, and the SHA-256 of the canonical JSON of the challenge. */
export function accessContext(challenge: AccessChallenge): Digest {
  const domain = new Uint8Array(32);
  domain.set(utf8('hm-access-v1'));
  return digestOf(concat(domain, sha256(utf8(canonicalJson(challenge)))));
}

/** Packages as a challenge lists them. */
export function packageSet(ids: readonly Digest[]): readonly Digest[] {
  return [...new Set(ids)].sort();
}
