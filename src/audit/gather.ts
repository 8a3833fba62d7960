import { fromBase64, fromUtf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { attestation, type FastAttestation, fastAttestation } from '../wire/attestation.ts';
import { decodeOrder, type Order, type SelfSigned } from '../wire/entry.ts';
import { type EpochDocument, epochDocument } from '../wire/epoch.ts';
import { decodeGenesis, type Genesis } from '../wire/genesis.ts';
import {
  type HeadCertificate,
  type HeadVote,
  headCertificate,
  headVote,
  type PreparedHead,
  preparedHead,
  prepareVote,
} from '../wire/order.ts';
import { type Operation, operation, proofSet, proofsDigest } from '../wire/proof.ts';
import { envelope } from '../wire/signature.ts';

/** What a vote is for, without the committee and the time that are the voter's to say. */
export interface Subject {
  readonly networkId: Digest;
  readonly operation: Operation;
  readonly proofs: Digest;
}

/** A vote with everything that it says. */
export interface VoteWord extends Subject {
  readonly committee: Digest;
  readonly atMs: number;
  readonly word: FastAttestation;
}

/** A vote on its way: what it is for stands elsewhere in the same document. */
export interface BareVote {
  readonly atMs: number;
  readonly word: FastAttestation;
  readonly subjects: readonly Subject[];
}

/** What documents say that matters to an audit, wherever in them it stands. Only the form was checked. */
export interface Gathered {
  readonly geneses: Map<Digest, Genesis>;
  readonly epochs: EpochDocument[];
  readonly votes: VoteWord[];
  readonly bare: BareVote[];
  readonly orders: { readonly order: Order; readonly signed: SelfSigned }[];
  /** One vote, or those of a quorum. */
  readonly prepares: PreparedHead[];
  readonly headVotes: HeadVote[];
  readonly headCertificates: HeadCertificate[];
  /** Entries of the ordered log that stand before a certificate, by the index of the first. */
  readonly parts: { readonly certificate: HeadCertificate; readonly entries: readonly Uint8Array[] }[];
}

export function nothing(): Gathered {
  return {
    ...{ geneses: new Map(), epochs: [], votes: [], bare: [], orders: [] },
    ...{ prepares: [], headVotes: [], headCertificates: [], parts: [] },
  };
}

/** Deeper than any format of ours. */
const DEPTH_MAX = 64;

/**
 * Adds what a document contains: a bundle, an entry, an answer of a node, a line of a transcript, or anything that these are inside of.
 * What has not the form of something known is passed over.
 */
export function gather(document: unknown, into: Gathered): void {
  const subjects: Subject[] = [];
  const bare: Omit<BareVote, 'subjects'>[] = [];
  const visit = (value: unknown, depth: number): void => {
    if (value === null || typeof value !== 'object' || depth > DEPTH_MAX) return;
    if (!Array.isArray(value)) {
      const fields = value as Readonly<Record<string, unknown>>;
      read(fields, into, subjects, bare);
      if (typeof fields['certificate'] === 'object' && Array.isArray(fields['entries']))
        part(fields, into, visit, depth);
    }
    for (const inner of Object.values(value)) visit(inner, depth + 1);
  };
  visit(document, 0);
  for (const vote of bare) into.bare.push({ ...vote, subjects });
}

function read(
  value: Readonly<Record<string, unknown>>,
  into: Gathered,
  subjects: Subject[],
  bare: Omit<BareVote, 'subjects'>[],
): void {
  if ('requirements' in value && 'committee' in value && 'root' in value) {
    const found = attempt(() => decodeGenesis(value));
    if (found !== undefined) into.geneses.set(found.networkId, found.genesis);
  }
  if ('previous' in value && 'approvals' in value) {
    const parsed = epochDocument.safeParse(value);
    if (parsed.success) into.epochs.push(parsed.data);
  }
  if ('challenge' in value && 'space' in value && 'time' in value) {
    const parsed = proofSet.safeParse(value);
    if (parsed.success) {
      const { networkId, operation: what } = parsed.data.challenge;
      subjects.push({ networkId, operation: what, proofs: proofsDigest(parsed.data) });
    }
  }
  if ('keys' in value && 'envelope' in value) {
    const sealed = envelope.safeParse(value['envelope']);
    const signed = { ...value, envelope: sealed.data } as unknown as SelfSigned;
    const order = sealed.success ? attempt(() => decodeOrder(signed)) : undefined;
    if (order !== undefined) into.orders.push({ order, signed });
  }
  if ('statement' in value && 'attestation' in value) {
    const head = headVote.safeParse(value);
    const prepare = prepareVote.safeParse(value);
    if (head.success) into.headVotes.push(head.data);
    else if (prepare.success)
      into.prepares.push({ statement: prepare.data.statement, attestations: [prepare.data.attestation] });
    else vote(value['statement'], value['attestation'], into);
  }
  if ('statement' in value && 'attestations' in value) {
    const parsed = headCertificate.safeParse(value);
    const prepared = preparedHead.safeParse(value);
    if (parsed.success) into.headCertificates.push(parsed.data);
    if (prepared.success) into.prepares.push(prepared.data);
  }
  if ('atMs' in value && 'attestation' in value) {
    const word = wordOf(value['attestation']);
    if (word !== undefined && Number.isSafeInteger(value['atMs'])) bare.push({ atMs: value['atMs'] as number, word });
  }
  if ('operation' in value && 'proofs' in value && Array.isArray(value['votes'])) {
    for (const one of value['votes'] as readonly unknown[]) {
      const { atMs, attestation: word } = (one ?? {}) as Readonly<Record<string, unknown>>;
      vote({ ...value, atMs }, word, into);
    }
  }
}

/** The entries of a certified part are documents themselves. */
function part(
  value: Readonly<Record<string, unknown>>,
  into: Gathered,
  visit: (value: unknown, depth: number) => void,
  depth: number,
): void {
  const certificate = headCertificate.safeParse(value['certificate']);
  const entries = attempt(() => (value['entries'] as readonly string[]).map((text) => fromBase64(text)));
  if (!certificate.success || entries === undefined) return;
  into.parts.push({ certificate: certificate.data, entries });
  for (const entry of entries) {
    const inner = attempt(() => JSON.parse(fromUtf8(entry)) as unknown);
    visit(inner, depth + 1);
  }
}

function vote(statement: unknown, word: unknown, into: Gathered): void {
  const { networkId, committee, operation: what, proofs, atMs } = (statement ?? {}) as Partial<VoteWord>;
  const parsed = operation.safeParse(what);
  const signed = wordOf(word);
  if (!parsed.success || signed === undefined || !Number.isSafeInteger(atMs)) return;
  if (typeof networkId !== 'string' || typeof committee !== 'string' || typeof proofs !== 'string') return;
  into.votes.push({ networkId, committee, operation: parsed.data, proofs, atMs: atMs!, word: signed });
}

function wordOf(value: unknown): FastAttestation | undefined {
  const whole = attestation.safeParse(value);
  if (whole.success) return whole.data;
  const fast = fastAttestation.safeParse(value);
  return fast.success ? fast.data : undefined;
}

/** Undefined for what has another form: there is nothing in it for us. */
function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof HyperMeshError || error instanceof SyntaxError || error instanceof TypeError) return undefined;
    throw error;
  }
}
