import { z } from 'zod';
import { base64Length, concat, fromHex, hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf, sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { type Attestation, attestation, type FastAttestation, fastAttestation } from './attestation.ts';
import { digest, hex32, timeMs, tokens } from './fields.ts';
import { PROOF_LIMITS } from './proof-limits.ts';
import { firstIssue } from './signature.ts';

export const OPERATION_KINDS = ['publish', 'install', 'execute', 'default'] as const;
export type OperationKind = (typeof OPERATION_KINDS)[number];

/** Whether two operations of that kind can contradict each other: who asks for one signs for it. */
export function needsOrder(kind: OperationKind): boolean {
  return kind === 'publish' || kind === 'default';
}

/** One row of the network's requirement table; a proof that is null is not asked for. Defaults: docs/protocol/proofs.md. */
export interface Requirements {
  readonly kind: OperationKind;
  /** Bytes that must be committed; how long an answer to an audit may take; how many labels an audit opens. */
  readonly space: { readonly bytesMin: number; readonly deadlineMs: number; readonly openings: number } | null;
  /** Tokens that must be locked. */
  readonly stake: { readonly amountMin: number } | null;
  /** Leading zero hex digits of SHA-256. */
  readonly work: { readonly hexDigits: number } | null;
  /** Sequential squarings (a power of two), and how old the anchor may be. */
  readonly time: { readonly squarings: number; readonly windowMs: number } | null;
}

/** What is to be admitted. Its canonical JSON is hashed into every proof. */
export interface Operation {
  readonly kind: OperationKind;
  /** The manifest digest of what is published, or the digest of what is asked for. */
  readonly subject: Digest;
  /** Publishing: `scope/name@version`. */
  readonly ref: string;
  /** Key id of who asks. */
  readonly identity: string;
  /** Strictly increasing for each identity. */
  readonly sequence: number;
}

/** Unpredictable, from a quorum of the committee, fresh: proofs made before it cannot exist. */
export interface Challenge {
  readonly operation: Operation;
  readonly requirements: Requirements;
  readonly networkId: Digest;
  /** {@link Committee.digest} of the committee that is asked. */
  readonly committee: Digest;
  readonly anchor: {
    /** Medians of the shares. */
    readonly issuedAtMs: number;
    readonly hexDigits: number;
    /** Proof set of this identity's last certified operation of the kind, which all shares name; zeros at first. */
    readonly previous: Digest;
    readonly shares: readonly AnchorShare[];
  };
  /** H(operation, identity, network, anchor): what every proof is bound to. */
  readonly context: Digest;
}

/** What is a validator's own of a {@link ShareStatement}, and its word. */
export interface AnchorShare {
  /** SHA-256 applied {@link AUDITS} + 1 times to 32 secret random bytes, 64 hex digits. */
  readonly nonce: string;
  readonly issuedAtMs: number;
  readonly hexDigits: number;
  readonly attestation: FastAttestation;
}

/** What a validator signs to begin an operation. */
export interface ShareStatement {
  readonly networkId: Digest;
  readonly committee: Digest;
  /** {@link operationDigest} */
  readonly operation: Digest;
  readonly nonce: string;
  readonly issuedAtMs: number;
  readonly previous: Digest;
  /** Leading zeros that this validator asks for at its present load; 0 where the table asks for no work. */
  readonly hexDigits: number;
}

/** Openings of the standing commitment at positions that nobody could foresee, and the committee's word when they arrived. */
export interface SpaceProof {
  /** Merkle root of the last layer, 64 hex digits. */
  readonly root: string;
  /** Which audit of the operation this is: from 1 to {@link AUDITS}. */
  readonly attempt: number;
  /** What each validator of the anchor revealed for the audit, in their order, 64 hex digits each: unknown until then. */
  readonly revealed: readonly string[];
  /** The opened labels (32 bytes each, by ascending position without repetition), base64. */
  readonly labels: string;
  /** Merkle nodes (32 bytes each) in the order in which the verifier needs them, base64. */
  readonly path: string;
  /** By ascending key id of the validator, as all lists of words. */
  readonly receipts: readonly SignedReceipt[];
}

/** What is a validator's own of a {@link SpaceReceipt}, and its word. */
export interface SignedReceipt {
  readonly issuedAtMs: number;
  readonly arrivedAtMs: number;
  readonly attestation: FastAttestation;
}

/** What a validator signs about an audit: the commitment was registered with it, and the answer arrived at that time. */
export interface SpaceReceipt {
  readonly networkId: Digest;
  readonly committee: Digest;
  readonly identity: string;
  readonly context: Digest;
  readonly root: string;
  readonly bytes: number;
  /** {@link beaconOf} what was revealed. */
  readonly beacon: string;
  readonly issuedAtMs: number;
  readonly arrivedAtMs: number;
  /** SHA-256 of labels followed by path. */
  readonly opening: Digest;
}

/** The account as the committee's ledger has it: the least of what its members say counts. */
export interface StakeProof {
  readonly statements: readonly SignedStake[];
}

/** What is a validator's own of a {@link StakeStatement}, and its word. */
export interface SignedStake {
  readonly balance: number;
  readonly locked: number;
  readonly issuedAtMs: number;
  readonly attestation: FastAttestation;
}

export interface StakeStatement {
  readonly networkId: Digest;
  readonly committee: Digest;
  readonly account: string;
  readonly balance: number;
  readonly locked: number;
  readonly context: Digest;
  readonly issuedAtMs: number;
}

/** A number whose SHA-256 with the context starts with the required zeros. */
export interface WorkProof {
  /** Unsigned 64-bit number, big-endian, 16 hex digits. */
  readonly nonce: string;
}

/** Wesolowski's proof that `output` is the seed of the context squared `squarings` times, one after the other. */
export interface TimeProof {
  readonly squarings: number;
  /** Group element: 256 bytes big-endian, base64. */
  readonly output: string;
  /** Which hash is the challenge: one that is a prime. */
  readonly counter: number;
  /** Group element: the seed to the power of 2^squarings divided by the challenge, rounded down. Base64. */
  readonly quotient: string;
}

/** Proof bodies are specified in docs/protocol/proofs.md; each is verifiable alone. Null: not asked for. */
export interface ProofSet {
  readonly formatVersion: 4;
  readonly challenge: Challenge;
  readonly space: SpaceProof | null;
  readonly stake: StakeProof | null;
  readonly work: WorkProof | null;
  readonly time: TimeProof | null;
}

/** What every vote for an operation says. */
interface Admitted {
  readonly formatVersion: 3;
  readonly networkId: Digest;
  /** {@link Committee.digest}: of two documents for one epoch none can lend its votes to the other. */
  readonly committee: Digest;
  readonly operation: Operation;
  /** SHA-256 of the canonical JSON of the proof set. */
  readonly proofs: Digest;
}

/** What a validator signs to admit an operation. */
export interface Vote extends Admitted {
  /** By the clock of the validator. */
  readonly atMs: number;
}

/** What is a validator's own of a {@link Vote}, and its word. */
export interface SignedVote<Word extends FastAttestation = Attestation> {
  readonly atMs: number;
  readonly attestation: Word;
}

/** The committee's word, a certificate: a quorum checked the proofs and voted for this digest. Signed by both algorithms. */
export interface Endorsement extends Admitted {
  readonly votes: readonly SignedVote[];
}

/** The same as soon as a quorum has voted, by Ed25519 alone. Nothing that is kept. */
export interface FastEndorsement extends Admitted {
  readonly votes: readonly SignedVote<FastAttestation>[];
}

/** Audits of one operation: more would let a prover who lost labels wait for an easy question. */
export const AUDITS = 3;

/** Types of the statements that validators sign. */
export const SHARE_TYPE = 'application/vnd.hypermesh.anchor-share.v2+json';
export const VOTE_TYPE = 'application/vnd.hypermesh.vote.v3+json';
export const SPACE_RECEIPT_TYPE = 'application/vnd.hypermesh.space-receipt.v3+json';
export const STAKE_STATEMENT_TYPE = 'application/vnd.hypermesh.stake-statement.v3+json';

/** Strict base64 of `unit`-byte items, at most `most` of them. */
export function base64Of(unit: number, most: number, least = 0) {
  return z
    .string()
    .max(Math.ceil((unit * most) / 3) * 4)
    .refine((text) => {
      const length = base64Length(text);
      return length !== undefined && length % unit === 0 && length >= unit * least;
    }, `expected canonical base64 of ${unit}-byte items`);
}

/** Words of members of a committee: ascending by key id, so that each speaks once and there is one way to write the list. */
export function wordsOf<T extends { readonly attestation: FastAttestation }>(word: z.ZodType<T>) {
  return z
    .array(word)
    .min(1)
    .max(PROOF_LIMITS.committeeMax)
    .refine(
      (words) => words.every((one, i) => i === 0 || words[i - 1]!.attestation.validator < one.attestation.validator),
      'expected ascending key ids',
    );
}

export const operationKind = z.enum(OPERATION_KINDS);

export const requirements: z.ZodType<Requirements> = z.strictObject({
  kind: operationKind,
  space: z
    .strictObject({
      bytesMin: z.int().positive().max(PROOF_LIMITS.spaceBytesMax),
      deadlineMs: z.int().positive().max(PROOF_LIMITS.windowMsMax),
      openings: z.int().positive().max(PROOF_LIMITS.openingsMax),
    })
    .nullable(),
  stake: z.strictObject({ amountMin: tokens }).nullable(),
  work: z.strictObject({ hexDigits: z.int().positive().max(PROOF_LIMITS.hexDigitsMax) }).nullable(),
  time: z
    .strictObject({
      squarings: z
        .int()
        .min(PROOF_LIMITS.squaringsMin)
        .max(PROOF_LIMITS.squaringsMax)
        .refine((count) => Number.isInteger(Math.log2(count)), 'expected a power of two'),
      windowMs: z.int().positive().max(PROOF_LIMITS.windowMsMax),
    })
    .nullable(),
});

export const operation: z.ZodType<Operation> = z.strictObject({
  kind: operationKind,
  subject: digest,
  ref: z.string().max(512),
  identity: hex32,
  sequence: z.int().positive(),
});

const hexDigits = z.int().nonnegative().max(PROOF_LIMITS.hexDigitsMax);

export const anchorShare: z.ZodType<AnchorShare> = z.strictObject({
  nonce: hex32,
  issuedAtMs: timeMs,
  hexDigits,
  attestation: fastAttestation,
});

export const challenge: z.ZodType<Challenge> = z.strictObject({
  operation,
  requirements,
  networkId: digest,
  committee: digest,
  anchor: z.strictObject({ issuedAtMs: timeMs, hexDigits, previous: digest, shares: wordsOf(anchorShare) }),
  context: digest,
});

export const signedReceipt: z.ZodType<SignedReceipt> = z.strictObject({
  issuedAtMs: timeMs,
  arrivedAtMs: timeMs,
  attestation: fastAttestation,
});

export const spaceProof: z.ZodType<SpaceProof> = z.strictObject({
  root: hex32,
  attempt: z.int().positive().max(AUDITS),
  revealed: z.array(hex32).min(1).max(PROOF_LIMITS.committeeMax),
  labels: base64Of(32, PROOF_LIMITS.openingsMax, 1),
  path: base64Of(32, PROOF_LIMITS.openingsMax * 26),
  receipts: wordsOf(signedReceipt),
});

export const signedStake: z.ZodType<SignedStake> = z.strictObject({
  balance: tokens,
  locked: tokens,
  issuedAtMs: timeMs,
  attestation: fastAttestation,
});

export const stakeProof: z.ZodType<StakeProof> = z.strictObject({ statements: wordsOf(signedStake) });

export const workProof: z.ZodType<WorkProof> = z.strictObject({
  nonce: z.string().regex(/^[0-9a-f]{16}$/, 'expected 16 lower-case hex digits'),
});

export const timeProof: z.ZodType<TimeProof> = z.strictObject({
  squarings: z.int().min(PROOF_LIMITS.squaringsMin).max(PROOF_LIMITS.squaringsMax),
  output: base64Of(256, 1, 1),
  counter: z.int().nonnegative().max(PROOF_LIMITS.counterMax),
  quotient: base64Of(256, 1, 1),
});

const setVersion = z.literal(4, 'this version reads format 4 of proof sets');

/** The challenge with four bodies of whatever form: each is then judged alone, so that one malformed proof says nothing about the others. */
export const proofSetShell = z.strictObject({
  formatVersion: setVersion,
  challenge,
  space: z.unknown(),
  stake: z.unknown(),
  work: z.unknown(),
  time: z.unknown(),
});

export const proofSet: z.ZodType<ProofSet> = z.strictObject({
  formatVersion: setVersion,
  challenge,
  space: spaceProof.nullable(),
  stake: stakeProof.nullable(),
  work: workProof.nullable(),
  time: timeProof.nullable(),
});

const admitted = {
  formatVersion: z.literal(3),
  networkId: digest,
  committee: digest,
  operation,
  proofs: digest,
};

export const signedVote: z.ZodType<SignedVote> = z.strictObject({ atMs: timeMs, attestation });
export const fastVote: z.ZodType<SignedVote<FastAttestation>> = z.strictObject({
  atMs: timeMs,
  attestation: fastAttestation,
});
export const endorsement: z.ZodType<Endorsement> = z.strictObject({ ...admitted, votes: wordsOf(signedVote) });

/** When an operation counts as admitted: the median of the voters' clocks, of two in the middle the earlier. */
export function admittedAtMs({ votes }: Pick<FastEndorsement, 'votes'>): number {
  return medianOf(votes.map(({ atMs }) => atMs));
}

/** The lower median: with more than two thirds of honest members nobody else can move it out of what honest ones say. */
export function medianOf(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[(values.length - 1) >> 1]!;
}

/** The vote of one validator in a certificate, as it was signed. */
export function voteOf({ votes: _votes, ...admitted }: FastEndorsement, atMs: number): Vote {
  return { ...admitted, atMs };
}

/** Errors: `proof-invalid`, with the first wrong field. */
export function decodeProofSet(value: unknown): ProofSet {
  const parsed = proofSet.safeParse(value);
  if (!parsed.success)
    throw new HyperMeshError('proof-invalid', `Expected a proof set, but ${firstIssue(parsed.error)}.`);
  return parsed.data;
}

/** Errors: `endorsement-invalid`, with the first wrong field. */
export function decodeEndorsement(value: unknown): Endorsement {
  const parsed = endorsement.safeParse(value);
  if (!parsed.success) {
    throw new HyperMeshError('endorsement-invalid', `Expected an endorsement, but ${firstIssue(parsed.error)}.`);
  }
  return parsed.data;
}

/** SHA-256 of the canonical JSON of an operation: what the sequence number of an identity stands for. */
export function operationDigest(value: Operation): Digest {
  return digestOf(canonicalJson(value));
}

/** SHA-256 of the canonical JSON of a proof set: what an endorsement names. */
export function proofsDigest(value: ProofSet): Digest {
  return digestOf(canonicalJson(value));
}

/**
 * SHA-256 of `hm-ctx-v1`, zeros up to 32 bytes, then the operation digest, the identity, the network id and the digest of the anchor (32 bytes each).
 * Fixed widths: no two different challenges give the same input.
 */
export function contextOf(value: Pick<Challenge, 'operation' | 'networkId' | 'anchor'>): Digest {
  const domain = new Uint8Array(32);
  domain.set(utf8('hm-ctx-v1'));
  return digestOf(
    concat(
      domain,
      digestBytes(operationDigest(value.operation)),
      fromHex(value.operation.identity),
      digestBytes(value.networkId),
      sha256(canonicalJson(value.anchor)),
    ),
  );
}

/** The 32 bytes of a digest. */
export function digestBytes(value: Digest): Uint8Array {
  return fromHex(value.slice(7));
}

/** What nobody knew before the last of the validators of an anchor revealed its part, 64 hex digits. */
export function beaconOf(revealed: readonly string[]): string {
  return hex(sha256(concat(...revealed.map(fromHex))));
}

/** SHA-256 applied so many times to 32 bytes, in hex digits. */
export function hashedTimes(value: string, times: number): string {
  let bytes = fromHex(value);
  for (let i = 0; i < times; i++) bytes = sha256(bytes);
  return hex(bytes);
}

/** `previous` of an identity's first operation of a kind. */
export const NO_PREVIOUS: Digest = `sha256:${'0'.repeat(64)}`;
