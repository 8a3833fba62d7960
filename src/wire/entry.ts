import { z } from 'zod';
import { base64, fromBase64, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { type Attestation, attestation } from './attestation.ts';
import { type EpochDocument, epochDocument } from './epoch.ts';
import { digest, hex32 } from './fields.ts';
import { decodeCanonical } from './json-message.ts';
import { keyIdOf, type PublicKeys } from './key-id.ts';
import { type Endorsement, endorsement, type Operation, operation } from './proof.ts';
import { PROOF_LIMITS } from './proof-limits.ts';
import { canonicalBase64, type Envelope, envelope } from './signature.ts';

/** What is in the ordered log of a network (docs/protocol/entry.md). */

export const ENTRY_LIMITS = {
  /** Canonical JSON of one entry. */
  bytesMax: 512 * 2 ** 10,
  /** Signed orders in one handover, and certificates in one entry: more make a further entry. */
  ordersMax: 256,
  certificatesMax: 256,
  nameLengthMax: 129,
  /** Of a statement in evidence. */
  depthMax: 16,
  endpointsMax: 16,
  endpointLengthMax: 256,
} as const;

/** Payload types of what is signed in entries. */
export const INSTRUCTION_TYPE = 'application/vnd.hypermesh.instruction.v1+json';
export const ORDER_TYPE = 'application/vnd.hypermesh.order.v1+json';
export const CLOCK_TYPE = 'application/vnd.hypermesh.clock.v2+json';
export const SPACE_LOST_TYPE = 'application/vnd.hypermesh.space-lost.v2+json';
export const HANDOVER_TYPE = 'application/vnd.hypermesh.handover.v2+json';
export const SEQUENCER_TYPE = 'application/vnd.hypermesh.sequencer.v3+json';

/** Both public keys, base64: who signs with them is known by their key id, without a certificate. */
export interface KeyText {
  readonly falcon: string;
  readonly ed25519: string;
}

/** What an account may ask for in its own name. Amounts are whole tokens. */
export type Action =
  /** `scope`, or `scope/name`: the first in the order owns it. */
  | { readonly kind: 'claim'; readonly name: string }
  | { readonly kind: 'transfer'; readonly to: string; readonly amount: number }
  | { readonly kind: 'lock'; readonly amount: number }
  /** Begins the unbonding: the tokens answer for the account until it ends. */
  | { readonly kind: 'unlock'; readonly amount: number }
  /** Free tokens of the account become locked ones of another; once for each `id`. */
  | { readonly kind: 'grant'; readonly to: string; readonly amount: number; readonly id: string };

/** What the owner of an account signs. */
export interface Instruction {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  readonly account: string;
  /** Higher than that of every earlier one of the account: what was applied once is never applied again. */
  readonly number: number;
  readonly action: Action;
}

/** What a publisher signs before it asks for votes: one operation for each of its sequence numbers in a network. */
export interface Order {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  readonly operation: Operation;
}

/** An instruction or an order with the keys that signed it. */
export interface SelfSigned {
  readonly keys: KeyText;
  readonly envelope: Envelope;
}

/** What one validator said: a statement of that payload type. */
export interface Word {
  readonly statement: Json;
  readonly attestation: Attestation;
}

/** Two signed statements that no honest holder of the keys makes. */
export type Conflict =
  /** Two orders of one publisher with one sequence number and different operations. */
  | { readonly kind: 'orders'; readonly keys: KeyText; readonly first: Envelope; readonly second: Envelope }
  /** Two votes of a validator for different operations of one sequence number or different content of one version, or two prepares or commits for different heads of one index in one view. */
  | {
      readonly kind: 'words';
      /** {@link Committee.digest} of the one whose member it is; both statements name it. */
      readonly committee: Digest;
      readonly type: string;
      readonly first: Word;
      readonly second: Word;
    };

export interface ClockStatement {
  readonly networkId: Digest;
  readonly committee: Digest;
  readonly validator: string;
  /** By the validator's own clock. */
  readonly atMs: number;
}

export interface SpaceLostStatement {
  readonly networkId: Digest;
  readonly committee: Digest;
  readonly account: string;
  /** Root of the commitment that could not be opened any more. */
  readonly root: string;
}

export interface HandoverStatement {
  readonly networkId: Digest;
  /** The one that stops. */
  readonly committee: Digest;
  readonly validator: string;
  /** 0, 1, …: a validator with much to hand over makes several entries. */
  readonly part: number;
  readonly isLast: boolean;
  /**
   * What it voted for in the epoch and the order does not have as certified. A certificate that is not in the order makes no difference: the next
   * committee would not know of it.
   */
  readonly orders: readonly SelfSigned[];
}

/** Where the order of a network is made. */
export type SequencerPlace =
  | { readonly kind: 'embedded'; readonly validator: string }
  | { readonly kind: 'etcd'; readonly endpoints: readonly string[] };

/** Where the order goes on without an engine that was lost. */
export interface RecoveryPlace {
  /** From 1 on in each committee: each attempt has a higher one. */
  readonly view: number;
  readonly index: number;
  /** 64 hex digits. */
  readonly head: string;
}

export interface SequencerStatement {
  readonly networkId: Digest;
  readonly committee: Digest;
  /** Moves that came before: one approval is good for one move. */
  readonly moves: number;
  readonly to: SequencerPlace;
  /**
   * Present where the engine before was lost, and is not asked any more: the entry follows this position of it, to which this head leads, and the committee votes in this view from
   * there on. Absent: the entry is the last one of the engine before. Either way the new engine begins after the entry.
   */
  readonly after?: RecoveryPlace;
}

export type Entry = { readonly formatVersion: 1; readonly networkId: Digest } & (
  | { readonly kind: 'instruction'; readonly signed: SelfSigned }
  | { readonly kind: 'clock'; readonly statement: ClockStatement; readonly attestation: Attestation }
  | { readonly kind: 'evidence'; readonly conflict: Conflict }
  | {
      readonly kind: 'space-lost';
      readonly statement: SpaceLostStatement;
      readonly attestations: readonly Attestation[];
    }
  | { readonly kind: 'certified'; readonly certificates: readonly Endorsement[] }
  | { readonly kind: 'epoch'; readonly document: EpochDocument }
  | { readonly kind: 'handover'; readonly statement: HandoverStatement; readonly attestation: Attestation }
  | {
      readonly kind: 'sequencer';
      readonly statement: SequencerStatement;
      readonly attestations: readonly Attestation[];
    }
);

const amount = z.int().positive().max(PROOF_LIMITS.tokensMax);
const keyText: z.ZodType<KeyText> = z.strictObject({
  falcon: canonicalBase64(1793, 1793),
  ed25519: canonicalBase64(32, 32),
});
const WORD = '[a-z0-9][a-z0-9._-]{0,63}';
/** A scope, or `scope/name`. */
export const claimable = z
  .string()
  .max(ENTRY_LIMITS.nameLengthMax)
  .regex(new RegExp(`^${WORD}(?:/${WORD})?$`), 'expected scope or scope/name in lower case');

const action: z.ZodType<Action> = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('claim'), name: claimable }),
  z.strictObject({ kind: z.literal('transfer'), to: hex32, amount }),
  z.strictObject({ kind: z.literal('lock'), amount }),
  z.strictObject({ kind: z.literal('unlock'), amount }),
  z.strictObject({
    kind: z.literal('grant'),
    to: hex32,
    /** Nothing is a grant as well: it makes an account of who joined. */
    amount: z.int().nonnegative().max(PROOF_LIMITS.tokensMax),
    id: hex32,
  }),
]);

const instruction: z.ZodType<Instruction> = z.strictObject({
  formatVersion: z.literal(1),
  networkId: digest,
  account: hex32,
  number: z.int().positive(),
  action,
});

const order: z.ZodType<Order> = z.strictObject({ formatVersion: z.literal(1), networkId: digest, operation });

export const selfSigned: z.ZodType<SelfSigned> = z.strictObject({ keys: keyText, envelope });

/** What of another format is signed: judged where it means something. Not so deep that one machine's stack could hold it and another's not. */
const anyJson = z.custom<Json>((value) => depthOf(value, 0) <= ENTRY_LIMITS.depthMax, 'expected a statement');

function depthOf(value: unknown, above: number): number {
  if (value === null || typeof value !== 'object' || above > ENTRY_LIMITS.depthMax) return above;
  return Math.max(above + 1, ...Object.values(value).map((member) => depthOf(member, above + 1)));
}

const word: z.ZodType<Word> = z.strictObject({ statement: anyJson, attestation });

const conflict: z.ZodType<Conflict> = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('orders'), keys: keyText, first: envelope, second: envelope }),
  z.strictObject({ kind: z.literal('words'), committee: digest, type: z.string().max(128), first: word, second: word }),
]);

const attestations = z.array(attestation).min(1).max(PROOF_LIMITS.committeeMax);
const endpoint = z
  .string()
  .max(ENTRY_LIMITS.endpointLengthMax)
  .regex(/^https?:\/\/[^\s/]+$/, 'expected http://HOST:PORT or https://HOST:PORT');

export const sequencerInEtcd = z.strictObject({
  kind: z.literal('etcd'),
  endpoints: z.array(endpoint).min(1).max(ENTRY_LIMITS.endpointsMax),
});
const sequencerPlace: z.ZodType<SequencerPlace> = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('embedded'), validator: hex32 }),
  sequencerInEtcd,
]);

export const sequencerStatement: z.ZodType<SequencerStatement> = z.strictObject({
  networkId: digest,
  committee: digest,
  moves: z.int().nonnegative(),
  to: sequencerPlace,
  after: z.strictObject({ view: z.int().positive(), index: z.int().nonnegative(), head: hex32 }).exactOptional(),
});

const head = { formatVersion: z.literal(1, 'this version reads format 1 of entries'), networkId: digest };

const entry: z.ZodType<Entry> = z.discriminatedUnion('kind', [
  z.strictObject({ ...head, kind: z.literal('instruction'), signed: selfSigned }),
  z.strictObject({
    ...head,
    kind: z.literal('clock'),
    statement: z.strictObject({ networkId: digest, committee: digest, validator: hex32, atMs: z.int().nonnegative() }),
    attestation,
  }),
  z.strictObject({ ...head, kind: z.literal('evidence'), conflict }),
  z.strictObject({
    ...head,
    kind: z.literal('space-lost'),
    statement: z.strictObject({ networkId: digest, committee: digest, account: hex32, root: hex32 }),
    attestations,
  }),
  z.strictObject({
    ...head,
    kind: z.literal('certified'),
    certificates: z.array(endorsement).min(1).max(ENTRY_LIMITS.certificatesMax),
  }),
  z.strictObject({ ...head, kind: z.literal('epoch'), document: epochDocument }),
  z.strictObject({
    ...head,
    kind: z.literal('handover'),
    statement: z.strictObject({
      networkId: digest,
      committee: digest,
      validator: hex32,
      part: z.int().nonnegative(),
      isLast: z.boolean(),
      orders: z.array(selfSigned).max(ENTRY_LIMITS.ordersMax),
    }),
    attestation,
  }),
  z.strictObject({
    ...head,
    kind: z.literal('sequencer'),
    statement: sequencerStatement,
    attestations,
  }),
]);

/** Canonical JSON: one entry is one sequence of bytes, and has one id. */
export function encodeEntry(value: Entry): Uint8Array {
  return utf8(canonicalJson(value));
}

/** SHA-256 of the encoded entry: appending it again finds it by this. */
export function entryId(bytes: Uint8Array): Digest {
  return digestOf(bytes);
}

/** Checks the form; says nothing about signatures. Errors: `entry-invalid`. */
export function decodeEntry(bytes: Uint8Array): Entry {
  if (bytes.length > ENTRY_LIMITS.bytesMax) throw invalid(`it has more than ${ENTRY_LIMITS.bytesMax} bytes`);
  return decodeCanonical(entry, bytes, invalid);
}

/** What an envelope of an instruction holds, in its only form; says nothing about signatures. Errors: `entry-invalid`. */
export function decodeInstruction({ keys, envelope: sealed }: SelfSigned): Instruction {
  const value = payloadOf(instruction, sealed, INSTRUCTION_TYPE);
  if (value.account !== keyIdOf(keyBytes(keys))) throw invalid('the account is not that of the keys');
  return value;
}

/** What an envelope of an order holds, in its only form; says nothing about signatures. Errors: `entry-invalid`. */
export function decodeOrder({ keys, envelope: sealed }: SelfSigned): Order {
  const value = payloadOf(order, sealed, ORDER_TYPE);
  if (value.operation.identity !== keyIdOf(keyBytes(keys))) throw invalid('the identity is not that of the keys');
  return value;
}

/** Whether that is what the envelope holds: with nothing decoded, where the order is known already. Says nothing about signatures. */
export function saysOrder({ payloadType, payload }: Envelope, value: Order): boolean {
  return payloadType === ORDER_TYPE && payload === base64(encodeOrder(value));
}

export function encodeInstruction(value: Instruction): Uint8Array {
  return utf8(canonicalJson(value));
}

export function encodeOrder(value: Order): Uint8Array {
  return utf8(canonicalJson(value));
}

export function keyBytes({ falcon, ed25519 }: KeyText): PublicKeys {
  return { falcon: fromBase64(falcon), ed25519: fromBase64(ed25519) };
}

function payloadOf<T>(schema: z.ZodType<T>, { payloadType, payload }: Envelope, type: string): T {
  if (payloadType !== type) throw invalid('it is a statement about something else');
  return decodeCanonical(schema, fromBase64(payload), invalid);
}

function invalid(what: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('entry-invalid', `Expected an entry of the ordered log, but ${what}.`, { cause });
}
