import { z } from 'zod';
import { concat, fromHex, hex, utf8 } from '../base/bytes.ts';
import { type Digest, sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { type Attestation, attestation } from './attestation.ts';
import { ENTRY_LIMITS, type SequencerStatement, sequencerStatement } from './entry.ts';
import { digest, hex32 } from './fields.ts';
import { PROOF_LIMITS } from './proof-limits.ts';
import { canonicalBase64, firstIssue } from './signature.ts';

/** How the order of a network is certified (docs/protocol/order.md): heads of a hash chain, votes for them, certificates. */

export const ORDER_LIMITS = {
  /** Entries, and their bytes, that one certificate goes beyond the last one; a single entry may be larger. */
  windowEntriesMax: 256,
  windowBytesMax: 2 * 2 ** 20,
  certificateBytesMax: 512 * 2 ** 10,
  /** Of one message with votes. */
  votesBytesMax: 2 ** 20,
  /** Of one answer with facts of a snapshot, which has at least one of them. */
  factsMax: 1_024,
  factsBytesMax: 2 ** 20,
  /** Epoch documents in one answer. */
  documentsMax: 4,
} as const;

/** Payload type of a {@link PrepareStatement}. */
export const PREPARE_TYPE = 'application/vnd.hypermesh.head-prepare.v1+json';
/** Payload type of a {@link HeadStatement}. */
export const HEAD_TYPE = 'application/vnd.hypermesh.head.v3+json';

/** The first vote of a validator for a head: these are the entries that it was shown. It binds in its view. */
export interface PrepareStatement {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  /** {@link Committee.digest} of the one that certifies it. */
  readonly committee: Digest;
  /** How often this committee went on without an engine that was lost. */
  readonly view: number;
  readonly index: number;
  /** 64 hex digits. The first `index` entries of the order lead to it. */
  readonly head: string;
}

/** The second vote, to commit: a quorum prepared that head in that view. */
export interface HeadStatement extends Omit<PrepareStatement, 'formatVersion'> {
  readonly formatVersion: 3;
  /** How much of the order this validator has applied, and the digest of the state that it has since. */
  readonly base: number;
  readonly stateRoot: string;
}

/** A vote as it travels. */
export interface Voted<S> {
  readonly statement: S;
  readonly attestation: Attestation;
}

export type PrepareVote = Voted<PrepareStatement>;
export type HeadVote = Voted<HeadStatement>;

/** One statement that a quorum of the committee signed. */
export interface ByQuorum<S> {
  readonly statement: S;
  /** By ascending key id. */
  readonly attestations: readonly Attestation[];
}

/** No other head of that index can be certified in the view. */
export type PreparedHead = ByQuorum<PrepareStatement>;
/** What was approved after an engine was lost. */
export type ApprovedRecovery = ByQuorum<SequencerStatement>;
/** The order up to `index` never changes any more. */
export type HeadCertificate = ByQuorum<HeadStatement>;

const position = z.int().nonnegative();

const place = { networkId: digest, committee: digest, view: position, index: z.int().positive(), head: hex32 };
const prepareStatement: z.ZodType<PrepareStatement> = z.strictObject({ formatVersion: z.literal(1), ...place });
const headStatement: z.ZodType<HeadStatement> = z
  .strictObject({ formatVersion: z.literal(3), ...place, base: position, stateRoot: hex32 })
  .refine(({ index, base }) => base < index, 'expected a base below the index');

export const prepareVote: z.ZodType<PrepareVote> = z.strictObject({ statement: prepareStatement, attestation });
export const headVote: z.ZodType<HeadVote> = z.strictObject({ statement: headStatement, attestation });

const attestations = z
  .array(attestation)
  .min(1)
  .max(PROOF_LIMITS.committeeMax)
  .refine(
    (all) => all.every(({ validator }, at) => at === 0 || all[at - 1]!.validator < validator),
    'expected distinct validators by ascending key id',
  );

const byQuorum = <S>(statement: z.ZodType<S>): z.ZodType<ByQuorum<S>> => z.strictObject({ statement, attestations });

export const headCertificate = byQuorum(headStatement);
export const preparedHead = byQuorum(prepareStatement);
const approvedRecovery = byQuorum(sequencerStatement);

/** Checks the form; says nothing about signatures. Errors: `order-invalid`. */
export function decodeHeadCertificate(value: unknown): HeadCertificate {
  const parsed = headCertificate.safeParse(value);
  if (!parsed.success) throw invalid('a certificate of the order', firstIssue(parsed.error));
  if (canonicalJson(parsed.data).length <= ORDER_LIMITS.certificateBytesMax) return parsed.data;
  throw invalid('a certificate of the order', `it has more than ${ORDER_LIMITS.certificateBytesMax} bytes`);
}

/** What validators tell each other: how far they have applied the order, the newest votes of each that they know, and how it goes on without an engine that is lost. */
export interface VoteExchange {
  readonly applied: number;
  readonly prepares: readonly PrepareVote[];
  readonly commits: readonly HeadVote[];
  readonly recovery: ApprovedRecovery | null;
}

const voteExchange: z.ZodType<VoteExchange> = z.strictObject({
  applied: position,
  prepares: z.array(prepareVote).max(PROOF_LIMITS.committeeMax),
  commits: z.array(headVote).max(PROOF_LIMITS.committeeMax),
  recovery: approvedRecovery.nullable(),
});

/** The entries that follow some position, up to one that is certified; null: nothing further is. */
export interface CertifiedPart {
  readonly certificate: HeadCertificate | null;
  /** Base64. */
  readonly entries: readonly string[];
  /** Entries up to there are not kept any more by who answers: in their place there is a {@link OrderSnapshot}. */
  readonly floor: number;
}

/** The state after `base` entries, without the facts themselves. */
export interface OrderSnapshot {
  readonly base: number;
  /** Which these entries lead to. */
  readonly head: string;
  /** Says which state it is. */
  readonly certificate: HeadCertificate;
}

const certifiedPart: z.ZodType<CertifiedPart> = z
  .strictObject({
    certificate: headCertificate.nullable(),
    entries: z.array(canonicalBase64(1, ENTRY_LIMITS.bytesMax)).max(ORDER_LIMITS.windowEntriesMax),
    floor: position,
  })
  .refine(({ certificate, entries }) => (certificate === null) === (entries.length === 0), 'expected both or neither');

const orderSnapshot: z.ZodType<OrderSnapshot> = z
  .strictObject({ base: position, head: hex32, certificate: headCertificate })
  .refine(({ base, certificate }) => certificate.statement.base === base, 'expected a certificate of that state');

/** What is there in the place of entries that are not kept any more, and documents that lead to the committee which certified it. */
const snapshotAnswer = z.strictObject({
  snapshot: orderSnapshot.nullable(),
  documents: z.array(z.unknown()).max(ORDER_LIMITS.documentsMax),
});

const factKey = z.string().min(1).max(1_024);
/** Facts of a snapshot by ascending key; null: it is not there any more. */
const factsAnswer = z.strictObject({
  facts: z
    .array(z.tuple([factKey, z.string().max(ORDER_LIMITS.factsBytesMax)]))
    .max(ORDER_LIMITS.factsMax)
    .refine((all) => all.every(([key], at) => at === 0 || all[at - 1]![0] < key), 'expected facts by ascending key')
    .nullable(),
  isLast: z.boolean(),
});

const entryText = canonicalBase64(1, ENTRY_LIMITS.bytesMax);
/** Of an order within an engine: network and number of moves; of one that only says that an engine was lost, also after which position. */
const logName = z
  .string()
  .regex(/^[0-9a-f]{64}-(0|[1-9]\d{0,9})(-(0|[1-9]\d{0,15}))?$/, 'expected the name of an order');

/** What validators and members ask of a validator, by the name of the method. */
const ORDER_REQUESTS = {
  'order/votes': voteExchange,
  'order/part': z.strictObject({ after: position }),
  /** `epoch`: the last one whose document is known to who asks. */
  'order/snapshot': z.strictObject({ epoch: position }),
  /** Entries that the validator prepared, certified or not. */
  'order/tail': z.strictObject({ after: position }),
  'order/facts': z.strictObject({ base: position, after: z.string().max(1_024) }),
  'order/approve': z.strictObject({ statement: sequencerStatement, attestation }),
  'sequence/append': z.strictObject({ log: logName, entry: entryText }),
  'sequence/read': z.strictObject({ log: logName, after: position }),
  'sequence/length': z.strictObject({ log: logName, after: position }),
} as const;

export type OrderMethod = keyof typeof ORDER_REQUESTS;
export type OrderRequest<M extends OrderMethod> = z.output<(typeof ORDER_REQUESTS)[M]>;
export const ORDER_METHODS = Object.keys(ORDER_REQUESTS) as readonly OrderMethod[];

/** Also of an answer. */
export const ORDER_BYTES_MAX: Readonly<Record<OrderMethod, number>> = {
  'order/votes': ORDER_LIMITS.votesBytesMax,
  'order/part': 64 * 2 ** 10,
  'order/snapshot': 64 * 2 ** 10,
  'order/facts': 64 * 2 ** 10,
  'order/tail': 64 * 2 ** 10,
  'order/approve': 64 * 2 ** 10,
  'sequence/append': 2 * ENTRY_LIMITS.bytesMax,
  'sequence/read': 64 * 2 ** 10,
  'sequence/length': 64 * 2 ** 10,
};

/** Errors: `order-invalid`, with the first wrong field. */
export function decodeOrderRequest<M extends OrderMethod>(method: M, value: unknown): OrderRequest<M> {
  return decoded(ORDER_REQUESTS[method] as unknown as z.ZodType<OrderRequest<M>>, value, `a request for ${method}`);
}

const answers = {
  append: z.strictObject({ position: z.int().positive() }),
  read: z.strictObject({ entries: z.array(entryText).max(ORDER_LIMITS.windowEntriesMax) }),
  length: z.strictObject({ length: position }),
  tail: z.strictObject({
    prepared: preparedHead.nullable(),
    entries: z.array(entryText).max(ORDER_LIMITS.windowEntriesMax),
  }),
} as const;

/** What the engine in another home, or another validator, says. Errors: `order-invalid`. */
export function decodeOrderAnswer<K extends keyof typeof answers>(
  kind: K,
  value: unknown,
): z.output<(typeof answers)[K]> {
  return decoded(
    answers[kind] as unknown as z.ZodType<z.output<(typeof answers)[K]>>,
    value,
    'an answer about the order',
  );
}

/** Errors: `order-invalid`. */
export function decodeVoteExchange(value: unknown): VoteExchange {
  return decoded(voteExchange, value, 'votes for the order');
}

/** Errors: `order-invalid`. */
export function decodeCertifiedPart(value: unknown): CertifiedPart {
  return decoded(certifiedPart, value, 'a part of the order');
}

/** Errors: `order-invalid`. */
export function decodeSnapshot(value: unknown): z.output<typeof snapshotAnswer> {
  return decoded(snapshotAnswer, value, 'a snapshot of the order');
}

/** Errors: `order-invalid`. */
export function decodeFacts(value: unknown): z.output<typeof factsAnswer> {
  return decoded(factsAnswer, value, 'facts of a snapshot');
}

/** The head of an order without entries. */
export function firstHead(networkId: Digest): string {
  return hex(sha256(utf8(`hm-order-v1\0${networkId}`)));
}

/** The head after one more entry: SHA-256 over the head before it and the SHA-256 of the entry. */
export function nextHead(head: string, entry: Uint8Array): string {
  return hex(sha256(concat(fromHex(head), sha256(entry))));
}

function decoded<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw invalid(what, firstIssue(parsed.error));
}

function invalid(what: string, why: string): HyperMeshError {
  return new HyperMeshError('order-invalid', `Expected ${what}, but ${why}.`, {
    hint: 'The machine that sent it runs another version of HyperMesh, or is no validator.',
  });
}
