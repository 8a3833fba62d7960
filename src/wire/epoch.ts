import { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import {
  type Attestation,
  attestation,
  attestationHolds,
  publicKeysOf,
  type SignatureCheck,
  type ValidatorKeys,
  validatorKeys,
} from './attestation.ts';
import { digest } from './fields.ts';
import { quorumOf } from './genesis.ts';
import { decodeCanonical } from './json-message.ts';
import { PROOF_LIMITS } from './proof-limits.ts';
import { firstIssue } from './signature.ts';

/** What validators sign to approve the next committee: an {@link EpochDocument} without its approvals. */
export const EPOCH_TYPE = 'application/vnd.hypermesh.epoch.v1+json';

/** Of the canonical JSON of one document; it has to fit into an entry. A committee of 100 with all approvals is 410 KiB. */
export const EPOCH_BYTES_MAX = 500 * 2 ** 10;

/** One seat of a committee. */
export type Seat = ValidatorKeys;

/** The validators of one epoch. */
export interface Committee {
  readonly epoch: number;
  readonly validators: readonly Seat[];
  /** Of the epoch document without its approvals; in the first epoch the network id. */
  readonly digest: Digest;
}

/** The next committee as it is proposed. */
export interface EpochProposal {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  /** One more than that of the committee that approves. */
  readonly epoch: number;
  /** By key id. */
  readonly validators: readonly Seat[];
  /** {@link Committee.digest} of the committee that approves. */
  readonly previous: Digest;
}

/** The next committee, approved by a quorum of the one before it: the chain of them from the genesis makes every committee verifiable offline. */
export interface EpochDocument extends EpochProposal {
  /** By key id, no more than one of each validator. */
  readonly approvals: readonly Attestation[];
}

function ascending(keys: readonly string[]): boolean {
  return keys.every((key, at) => at === 0 || keys[at - 1]! < key);
}

const proposalFields = {
  formatVersion: z.literal(1),
  networkId: digest,
  epoch: z.int().positive(),
  validators: z
    .array(validatorKeys)
    .min(1)
    .max(PROOF_LIMITS.committeeMax)
    .refine((all) => ascending(all.map(({ key }) => key)), 'expected distinct validators by ascending key id'),
  previous: digest,
};

export const epochProposal: z.ZodType<EpochProposal> = z.strictObject(proposalFields);

const approvalList = z
  .array(attestation)
  .min(1)
  .max(PROOF_LIMITS.committeeMax)
  .refine((all) => ascending(all.map(({ validator }) => validator)), 'expected distinct approvals by ascending key id');

export const epochDocument: z.ZodType<EpochDocument> = z.strictObject({
  ...proposalFields,
  approvals: approvalList,
});

/** A proposal with the approvals that are known of it: at least one. */
export interface ProposedEpoch {
  readonly proposal: EpochProposal;
  readonly approvals: readonly Attestation[];
}

/** What validators tell each other about the next committee. */
export interface EpochExchange {
  readonly proposals: readonly ProposedEpoch[];
}

const epochExchange: z.ZodType<EpochExchange> = z.strictObject({
  proposals: z.array(z.strictObject({ proposal: epochProposal, approvals: approvalList })).max(16),
});

/** Errors: `epoch-invalid`, with the first wrong field. */
export function decodeEpochExchange(value: unknown): EpochExchange {
  return decoded(epochExchange, value, 'proposals of an epoch', 16 * EPOCH_BYTES_MAX);
}

export function byKey(seats: readonly Seat[]): readonly Seat[] {
  return [...seats].sort((a, b) => (a.key < b.key ? -1 : 1));
}

/** Errors: `epoch-invalid`, with the first wrong field. */
export function decodeEpochDocument(value: unknown): EpochDocument {
  return decoded(epochDocument, value, 'an epoch document');
}

/** Errors: `epoch-invalid`, with the first wrong field. */
export function decodeEpochProposal(value: unknown): EpochProposal {
  return decoded(epochProposal, value, 'the proposal of an epoch');
}

function decoded<T>(schema: z.ZodType<T>, value: unknown, what: string, bytesMax = EPOCH_BYTES_MAX): T {
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    throw new HyperMeshError('epoch-invalid', `Expected ${what}, but ${firstIssue(parsed.error)}.`);
  }
  if (canonicalJson(parsed.data).length <= bytesMax) return parsed.data;
  throw new HyperMeshError('epoch-invalid', `Expected ${what} of at most ${bytesMax} bytes.`);
}

/** A document as nodes hand it on: its canonical JSON and nothing else. Errors: `epoch-invalid`. */
export function readEpochDocument(bytes: Uint8Array): EpochDocument {
  if (bytes.length > EPOCH_BYTES_MAX) throw noSuccessor('it is too long');
  return decodeCanonical(epochDocument, bytes, noSuccessor);
}

/** SHA-256 of the canonical JSON of what is approved: the same whoever approved it. */
export function epochDigest(proposal: EpochProposal): Digest {
  return digestOf(utf8(canonicalJson(proposalOf(proposal))));
}

/** Without the approvals, if it has some. */
export function proposalOf(document: EpochProposal): EpochProposal {
  const { formatVersion, networkId, epoch, validators, previous } = document;
  return { formatVersion, networkId, epoch, validators, previous };
}

/**
 * What speaks against a statement of the committee: who signed it are distinct members, a quorum of them. Strict: one bad attestation spoils the set.
 * Undefined: nothing does.
 */
export function quorumObjection(
  { validators }: Pick<Committee, 'validators'>,
  attestations: readonly Attestation[],
  signed: { readonly type: string; readonly statement: unknown; readonly check: SignatureCheck },
): string | undefined {
  const needed = quorumOf(validators.length);
  if (attestations.length < needed)
    return `${needed} of ${validators.length} validators must sign, not ${attestations.length}`;
  const left = new Map(validators.map((one) => [one.key, one]));
  for (const one of attestations) {
    const signer = left.get(one.validator);
    if (signer === undefined) return 'a signer is not in the committee or signed twice';
    left.delete(one.validator);
    if (!attestationHolds(one, signed.type, signed.statement, publicKeysOf(signer), signed.check))
      return 'a signature does not hold';
  }
  return undefined;
}

/** The committee that the document makes of the one before it, if its approvals hold, which is not checked here. Errors: `epoch-invalid`. */
export function succeed(before: Committee, document: EpochDocument, networkId: Digest): Committee {
  const objection =
    document.networkId !== networkId
      ? 'it is about another network'
      : document.epoch !== before.epoch + 1
        ? `it is for epoch ${document.epoch}, and ${before.epoch + 1} is next`
        : document.previous !== before.digest
          ? 'it follows another committee'
          : undefined;
  if (objection !== undefined) throw noSuccessor(objection);
  return { epoch: document.epoch, validators: document.validators, digest: epochDigest(document) };
}

export function noSuccessor(objection: string): HyperMeshError {
  return new HyperMeshError('epoch-invalid', `The document makes no committee: ${objection}.`, {
    hint: 'It was altered, or comes from another network.',
  });
}
