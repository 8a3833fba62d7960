import { type Digest, digestOf } from '../base/digest.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import {
  type Attestation,
  attestationHolds,
  type FastAttestation,
  publicKeysOf,
  type SignatureCheck,
  type ValidatorKeys,
} from '../wire/attestation.ts';
import { keyBytes, type SelfSigned } from '../wire/entry.ts';
import { EPOCH_TYPE, epochDigest, proposalOf } from '../wire/epoch.ts';
import { GENESIS_TYPE } from '../wire/genesis.ts';
import {
  type ByQuorum,
  firstHead,
  HEAD_TYPE,
  type HeadStatement,
  nextHead,
  PREPARE_TYPE,
  type PrepareStatement,
} from '../wire/order.ts';
import { type Operation, operationDigest, VOTE_TYPE } from '../wire/proof.ts';
import { openEnvelope } from '../wire/signature.ts';
import { type Gathered, gather, nothing, type VoteWord } from './gather.ts';

/**
 * Judges what became of a network by what its members signed, and by nothing that they say about it. It shares the decoders of the formats and the
 * arithmetic of signatures with the validators, and none of their rules: what a quorum is, what follows from what and what contradicts what is written here again.
 */

export interface Finding {
  readonly kind:
    | 'two-operations'
    | 'two-contents'
    | 'two-owners'
    | 'two-committees'
    | 'two-orders'
    | 'two-states'
    | 'double-vote'
    | 'double-head'
    | 'double-order';
  /** One sentence. */
  readonly says: string;
  /** The signed statements that show it: whoever reads them comes to the same finding. */
  readonly evidence: readonly Json[];
}

export interface AuditReport {
  readonly networks: readonly Digest[];
  readonly checked: {
    readonly documents: number;
    /** Operations with the votes of a quorum, whether or not anybody put a certificate together. */
    readonly certificates: number;
    readonly votes: number;
    readonly committees: number;
    readonly orders: number;
    readonly heads: number;
    readonly entries: number;
  };
  /** Statements that count for nothing: a signature that does not hold, or somebody without a seat. */
  readonly worthless: number;
  /** Certified heads whose entries are not among the documents, so that only their index was compared. */
  readonly unlinked: number;
  /** What no network may ever have. */
  readonly conflicts: readonly Finding[];
  /** Dishonest members: a network can bear a third of them. */
  readonly misdeeds: readonly Finding[];
}

interface Committee {
  readonly epoch: number;
  readonly digest: Digest;
  readonly seats: ReadonlyMap<string, ValidatorKeys>;
}

interface CountedVote {
  readonly statement: Json;
  readonly attestation: FastAttestation;
}

interface Certified {
  readonly operation: Operation;
  readonly committee: Digest;
  readonly votes: readonly CountedVote[];
}

export class Auditor {
  readonly #check: SignatureCheck;
  readonly #gathered: Gathered = nothing();
  readonly #only: Digest | undefined;
  #documents = 0;
  #worthless = 0;

  /** `network`: everything else is passed over. */
  constructor(check: SignatureCheck, options: { readonly network?: Digest } = {}) {
    this.#check = check;
    this.#only = options.network;
  }

  /** Adds a document; in any order, and the same one again changes nothing. */
  add(document: unknown): void {
    this.#documents += 1;
    gather(document, this.#gathered);
  }

  report(): AuditReport {
    this.#worthless = 0;
    const conflicts: Finding[] = [];
    const misdeeds: Finding[] = [];
    const counts = { certificates: 0, votes: 0, committees: 0, orders: 0, heads: 0, entries: 0 };
    let unlinked = 0;
    const networks = [...this.#gathered.geneses.keys()].filter((id) => this.#only === undefined || id === this.#only);
    for (const networkId of networks) {
      const committees = this.#committees(networkId, conflicts);
      const votes = this.#votes(networkId, committees);
      const certified = certifiedBy(votes, committees);
      counts.committees += committees.length;
      counts.votes += votes.length;
      counts.certificates += certified.length;
      conflicts.push(...contradictions(certified));
      misdeeds.push(...doubleVotes(votes, committees));
      const { held, found } = this.#orders(networkId);
      counts.orders += held;
      misdeeds.push(...found);
      const order = this.#order(networkId, committees, conflicts, misdeeds);
      counts.heads += order.heads;
      counts.entries += order.entries;
      unlinked += order.unlinked;
    }
    const checked = { documents: this.#documents, ...counts };
    return { networks, checked, worthless: this.#worthless, unlinked, conflicts, misdeeds };
  }

  /** The committee of the genesis, and every one that a quorum of the one before it approved. */
  #committees(networkId: Digest, conflicts: Finding[]): readonly Committee[] {
    const { approvals, ...genesis } = this.#gathered.geneses.get(networkId)!;
    const { epoch, validators } = genesis.committee;
    const first: Committee = { epoch, digest: networkId, seats: seatsOf(validators) };
    if (!approvals.every((word) => this.#holds(first, word, GENESIS_TYPE, genesis))) {
      this.#worthless += 1;
      return [];
    }
    const found = [first];
    const shown = new Map<Committee, Json>();
    const documents = this.#gathered.epochs.filter((document) => document.networkId === networkId);
    for (const before of found) {
      for (const document of documents) {
        if (document.epoch !== before.epoch + 1 || document.previous !== before.digest) continue;
        const digest = epochDigest(document);
        if (found.some((known) => known.epoch === document.epoch && known.digest === digest)) continue;
        const statement = proposalOf(document);
        const approved = new Set<string>();
        for (const approval of document.approvals)
          if (this.#holds(before, approval, EPOCH_TYPE, statement)) approved.add(approval.validator);
        if (approved.size < quorum(before)) continue;
        const next = { epoch: document.epoch, digest, seats: seatsOf(document.validators) };
        const other = found.find(({ epoch }) => epoch === next.epoch);
        if (other !== undefined)
          conflicts.push({
            kind: 'two-committees',
            says: `Epoch ${next.epoch} of ${networkId} has two committees.`,
            evidence: [shown.get(other)!, document as unknown as Json],
          });
        shown.set(next, document as unknown as Json);
        found.push(next);
      }
    }
    return found;
  }

  /** Every vote of a member of the committee that it names, once. */
  #votes(networkId: Digest, committees: readonly Committee[]): readonly (VoteWord & CountedVote)[] {
    const counted = new Map<string, VoteWord & CountedVote>();
    const count = (vote: VoteWord): boolean => {
      const statement = statementOf(vote);
      const key = `${vote.word.validator} ${canonicalJson(statement)}`;
      if (counted.has(key)) return true;
      const seated = committees.find(({ digest }) => digest === vote.committee);
      if (seated === undefined || !this.#holds(seated, vote.word, VOTE_TYPE, statement)) return false;
      counted.set(key, { ...vote, statement, attestation: vote.word });
      return true;
    };
    for (const vote of this.#gathered.votes) if (vote.networkId === networkId && !count(vote)) this.#worthless += 1;
    for (const { subjects, ...bare } of this.#gathered.bare) {
      // Which of them it is for only its signature says.
      for (const subject of subjects) {
        if (subject.networkId !== networkId) continue;
        for (const { digest } of committees) count({ ...subject, ...bare, committee: digest });
      }
    }
    return [...counted.values()];
  }

  /** Publishers who signed two operations with one number. */
  #orders(networkId: Digest): { readonly held: number; readonly found: readonly Finding[] } {
    const signed = new Map<string, Map<Digest, Json>>();
    let held = 0;
    for (const { order, signed: by } of this.#gathered.orders) {
      if (order.networkId !== networkId) continue;
      const { identity, sequence } = order.operation;
      const of = `${identity} ${sequence}`;
      const known = signed.get(of) ?? new Map<Digest, Json>();
      const digest = operationDigest(order.operation);
      if (known.has(digest)) continue;
      if (!this.#isSigned(by)) {
        this.#worthless += 1;
        continue;
      }
      held += 1;
      signed.set(of, known.set(digest, by as unknown as Json));
    }
    const found = [...signed].filter(([, orders]) => orders.size > 1);
    return {
      held,
      found: found.map(([of, orders]) => ({
        kind: 'double-order',
        says: `The publisher ${of.split(' ')[0]} signed ${orders.size} operations with the number ${of.split(' ')[1]}.`,
        evidence: [...orders.values()],
      })),
    };
  }

  /** The ordered log: heads that a quorum voted for, and whether they are on one chain. */
  #order(
    networkId: Digest,
    committees: readonly Committee[],
    conflicts: Finding[],
    misdeeds: Finding[],
  ): { readonly heads: number; readonly entries: number; readonly unlinked: number } {
    const { prepares, headVotes, headCertificates, parts } = this.#gathered;
    const statements = this.#said(networkId, committees, HEAD_TYPE, [
      ...headVotes.map(({ statement, attestation }) => ({ statement, attestations: [attestation] })),
      ...[...headCertificates, ...parts.map(({ certificate }) => certificate)],
    ]);
    misdeeds.push(
      ...doubleHeads(statements),
      ...doubleHeads(this.#said(networkId, committees, PREPARE_TYPE, prepares)),
    );
    const certified = statements.filter(({ statement, by }) =>
      committees.some((one) => one.digest === statement.committee && by.size >= quorum(one)),
    );
    conflicts.push(...contradictingStates(certified));
    const heads = new Map<number, Map<string, Json>>();
    for (const { statement, by } of certified) {
      const at = heads.get(statement.index) ?? new Map<string, Json>();
      const evidence = { statement, attestations: [...by.values()] } as unknown as Json;
      heads.set(statement.index, at.set(statement.head, evidence));
    }
    for (const [index, at] of heads)
      if (at.size > 1)
        conflicts.push({
          kind: 'two-orders',
          says: `The order of ${networkId} has ${at.size} certified heads at ${index}.`,
          evidence: [...at.values()],
        });
    const { entries, linked } = followed(networkId, parts, heads, conflicts);
    const count = [...heads.values()].reduce((sum, at) => sum + at.size, 0);
    return { heads: count, entries, unlinked: count - linked };
  }

  /** Statements about heads of that network, and who signed each. */
  #said<S extends PrepareStatement | HeadStatement>(
    networkId: Digest,
    committees: readonly Committee[],
    type: string,
    all: readonly ByQuorum<S>[],
  ): readonly Said<S>[] {
    const statements = new Map<string, { readonly statement: S; readonly by: Map<string, Attestation> }>();
    for (const { statement, attestations } of all) {
      if (statement.networkId !== networkId) continue;
      const key = canonicalJson(statement);
      const known = statements.get(key) ?? { statement, by: new Map<string, Attestation>() };
      statements.set(key, known);
      for (const word of attestations) {
        if (known.by.has(word.validator)) continue;
        const seated = committees.find(({ digest }) => digest === statement.committee);
        if (seated !== undefined && this.#holds(seated, word, type, statement)) known.by.set(word.validator, word);
        else this.#worthless += 1;
      }
    }
    return [...statements.values()];
  }

  #isSigned({ keys, envelope }: SelfSigned): boolean {
    const { signed, falcon, ed25519 } = openEnvelope(envelope);
    const publicKeys = keyBytes(keys);
    return (
      this.#check.ed25519(ed25519, signed, publicKeys.ed25519) && this.#check.falcon(falcon, signed, publicKeys.falcon)
    );
  }

  #holds(committee: Committee, word: FastAttestation, type: string, statement: unknown): boolean {
    const seat = committee.seats.get(word.validator);
    return seat !== undefined && attestationHolds(word, type, statement, publicKeysOf(seat), this.#check);
  }
}

/** More than two thirds, so that any two have more in common than may be dishonest. */
function quorum({ seats }: Committee): number {
  return Math.floor((2 * seats.size) / 3) + 1;
}

function seatsOf(validators: readonly ValidatorKeys[]): ReadonlyMap<string, ValidatorKeys> {
  return new Map(validators.map((one) => [one.key, one]));
}

function statementOf({ networkId, committee, operation, proofs, atMs }: VoteWord): Json {
  return { formatVersion: 3, networkId, committee, operation, proofs, atMs } as unknown as Json;
}

/** Operations that a quorum of one committee voted for with one proof set. */
function certifiedBy(
  votes: readonly (VoteWord & CountedVote)[],
  committees: readonly Committee[],
): readonly Certified[] {
  const groups = new Map<string, (VoteWord & CountedVote)[]>();
  for (const vote of votes) {
    const key = `${vote.committee} ${operationDigest(vote.operation)} ${vote.proofs}`;
    groups.set(key, [...(groups.get(key) ?? []), vote]);
  }
  const certified: Certified[] = [];
  for (const group of groups.values()) {
    const { committee, operation } = group[0]!;
    const byVoter = new Map(group.map((vote) => [vote.word.validator, vote]));
    const reaches = committees.some((one) => one.digest === committee && byVoter.size >= quorum(one));
    if (reaches) certified.push({ committee, operation, votes: [...byVoter.values()].map(shown) });
  }
  return certified;
}

function shown({ statement, attestation }: CountedVote): CountedVote {
  return { statement, attestation };
}

/** What two certificates may never say. */
function contradictions(certified: readonly Certified[]): readonly Finding[] {
  const findings: Finding[] = [];
  const compare = (
    kind: Finding['kind'],
    of: (operation: Operation) => string | undefined,
    what: (operation: Operation) => string,
    says: (of: string) => string,
  ): void => {
    const groups = new Map<string, Map<string, Certified>>();
    for (const one of certified) {
      const key = of(one.operation);
      if (key === undefined) continue;
      const group = groups.get(key) ?? new Map<string, Certified>();
      groups.set(key, group.set(what(one.operation), one));
    }
    for (const [key, group] of groups)
      if (group.size > 1) findings.push({ kind, says: says(key), evidence: [...group.values()] as unknown as Json[] });
  };
  const published = ({ kind, ref }: Operation, cut: string) => (kind === 'publish' ? ref.split(cut)[0] : undefined);
  compare(
    'two-operations',
    ({ identity, sequence }) => `${identity} ${sequence}`,
    operationDigest,
    (of) => `Two operations of ${of.split(' ')[0]} were admitted with the number ${of.split(' ')[1]}.`,
  );
  // Build metadata does not tell versions apart.
  compare(
    'two-contents',
    (one) => published(one, '+'),
    ({ subject }) => subject,
    (of) => `${of} was admitted twice.`,
  );
  compare(
    'two-owners',
    (one) => published(one, '@'),
    ({ identity }) => identity,
    (of) => `${of} has two owners.`,
  );
  return findings;
}

/** Votes that no honest validator casts together. */
function doubleVotes(votes: readonly (VoteWord & CountedVote)[], committees: readonly Committee[]): readonly Finding[] {
  // Of two committees of one epoch an honest validator sits in one at most.
  const epochs = new Map(committees.map(({ digest, epoch }) => [digest, epoch]));
  const findings: Finding[] = [];
  const cast = new Map<string, Map<string, CountedVote>>();
  const note = (key: string, what: string, vote: CountedVote): void => {
    const known = cast.get(key) ?? new Map<string, CountedVote>();
    if (!known.has(what)) known.set(what, shown(vote));
    cast.set(key, known);
  };
  for (const vote of votes) {
    const { identity, sequence, kind, ref, subject } = vote.operation;
    const by = `${vote.word.validator} in epoch ${epochs.get(vote.committee)}`;
    note(`${by} for the number ${sequence} of ${identity}`, operationDigest(vote.operation), vote);
    if (kind === 'publish') note(`${by} for ${ref.split('+')[0]}`, subject, vote);
  }
  for (const [of, known] of cast)
    if (known.size > 1)
      findings.push({
        kind: 'double-vote',
        says: `Two votes of ${of}.`,
        evidence: [...known.values()] as unknown as Json[],
      });
  return findings;
}

/** A statement, and who signed it. */
interface Said<S> {
  readonly statement: S;
  readonly by: ReadonlyMap<string, Attestation>;
}

function doubleHeads(votes: readonly Said<PrepareStatement | HeadStatement>[]): readonly Finding[] {
  const cast = new Map<string, Map<string, Json>>();
  for (const { statement, by } of votes) {
    const { committee, view, index } = statement;
    for (const [validator, attestation] of by) {
      const key = `${validator} for ${index} in view ${view} of ${committee}`;
      const known = cast.get(key) ?? new Map<string, Json>();
      cast.set(key, known.set(statement.head, { statement, attestation } as unknown as Json));
    }
  }
  return [...cast]
    .filter(([, known]) => known.size > 1)
    .map(([of, known]) => ({ kind: 'double-head', says: `Two heads by ${of}.`, evidence: [...known.values()] }));
}

function contradictingStates(certified: readonly Said<HeadStatement>[]): readonly Finding[] {
  const roots = new Map<number, Map<string, Json>>();
  for (const { statement, by } of certified) {
    const at = roots.get(statement.base) ?? new Map<string, Json>();
    const evidence = { statement, attestations: [...by.values()] } as unknown as Json;
    roots.set(statement.base, at.set(statement.stateRoot, evidence));
  }
  return [...roots]
    .filter(([, at]) => at.size > 1)
    .map(([base, at]) => ({
      kind: 'two-states',
      says: `Two states after entry ${base} were certified.`,
      evidence: [...at.values()],
    }));
}

/**
 * Computes every hash chain that the known entries allow, and holds the certified heads against them: a chain that leads to one certified head has to lead
 * through every other below it.
 */
function followed(
  networkId: Digest,
  parts: Gathered['parts'],
  heads: ReadonlyMap<number, ReadonlyMap<string, Json>>,
  conflicts: Finding[],
): { readonly entries: number; readonly linked: number } {
  const proposed = new Map<number, Map<Digest, Uint8Array>>();
  for (const { certificate, entries } of parts) {
    if (certificate.statement.networkId !== networkId) continue;
    for (const [at, entry] of entries.entries()) {
      const index = certificate.statement.index - entries.length + at + 1;
      proposed.set(index, (proposed.get(index) ?? new Map<Digest, Uint8Array>()).set(digestOf(entry), entry));
    }
  }
  let linked = 0;
  let entries = 0;
  let reached: readonly Chain[] = [{ head: firstHead(networkId), missed: undefined }];
  for (let index = 1; reached.length > 0; index++) {
    const following: Chain[] = [];
    for (const { head, missed } of reached)
      for (const entry of proposed.get(index)?.values() ?? []) following.push({ head: nextHead(head, entry), missed });
    if (following.length > 0) entries = index;
    const certified = heads.get(index);
    const marked = following.map(({ head, missed }): Chain => {
      const evidence = certified?.get(head);
      if (evidence !== undefined) {
        linked += 1;
        if (missed !== undefined)
          conflicts.push({
            kind: 'two-orders',
            says: `The certified head at ${index} does not go through the certified head at ${missed}.`,
            evidence: [evidence, ...heads.get(missed)!.values()],
          });
      }
      return { head, missed: certified === undefined || evidence !== undefined ? missed : index };
    });
    // Chains that missed no certified head first: what is left out of many is what somebody made up.
    reached = marked
      .sort((a, b) => Number(a.missed !== undefined) - Number(b.missed !== undefined))
      .slice(0, CHAINS_MAX);
  }
  return { entries, linked };
}

/** Chains that are followed at once: more than one only where entries contradict each other. */
const CHAINS_MAX = 64;

interface Chain {
  readonly head: string;
  /** The last index at which it did not lead through a certified head. */
  readonly missed: number | undefined;
}
