import type { DatabaseSync } from 'node:sqlite';
import { utf8 } from '../../../base/bytes.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../../base/errors.ts';
import { canonicalJson, type Json } from '../../../base/json.ts';
import type { SignatureCheck } from '../../../wire/attestation.ts';
import { decodeEntry, type Entry, type SequencerStatement } from '../../../wire/entry.ts';
import {
  type Committee,
  decodeEpochDocument,
  EPOCH_TYPE,
  type EpochDocument,
  epochDigest,
  noSuccessor,
  proposalOf,
  quorumObjection,
  type Seat,
  succeed,
} from '../../../wire/epoch.ts';
import type { Genesis } from '../../../wire/genesis.ts';
import { ORDER_LIMITS } from '../../../wire/order.ts';
import type { Endorsement, Operation } from '../../../wire/proof.ts';
import type { Engine, Fact, OrderedState } from '../order/log.ts';
import {
  type AccountFact,
  accountOf,
  changeAccount,
  instruct,
  isSuspended,
  ownerOf,
  type UnbondingFact,
} from './accounts.ts';
import { forgetClocks, isClockAwaited, tellTime, timeOf } from './clock.ts';
import {
  checkOperation,
  endEpoch,
  forgetSettled,
  handOver,
  isRecorded,
  loseSpace,
  moveSequencer,
  presentOf,
  recordCertified,
  seatsObjection,
  sequencerOf,
} from './committees.ts';
import { judgeConflict } from './evidence.ts';
import { Draft, Facts } from './facts.ts';
import { KEYS, type LedgerTerms, type Place, refuse } from './law.ts';

/** Certificates on their way into the order. */
const GENUINE_MAX = 10_000;

/** Why an entry changed nothing. A type and not an interface, so that it is plain data for the log. */
export type Refusal = { readonly code: ErrorCode; readonly message: string; readonly hint?: string };

export interface LedgerAccount {
  readonly account: string;
  /** All tokens: free, locked and unbonding. */
  readonly balance: number;
  readonly locked: number;
  /** By when they began. `endsAtMs` is null until the clocks of the committee have told when that was. */
  readonly unbonding: readonly { readonly amount: number; readonly endsAtMs: number | null }[];
  /** Of its last instruction. */
  readonly number: number;
  readonly isSuspended: boolean;
}

/**
 * The ordered state: who owns which tokens and names, what is certified, who sits in the committee. It follows from the entries alone: the same
 * entries make the same state, and the same {@link stateRoot}, on every machine (docs/protocol/entry.md). The clock of this machine has no part in it.
 */
export class Ledger implements OrderedState {
  readonly #raw: DatabaseSync;
  readonly #facts: Facts;
  readonly #terms: LedgerTerms;
  readonly #check: SignatureCheck;
  readonly #first: Committee;
  readonly #committees = new Map<number, Committee>();
  readonly #genuine = new Set<Digest>();

  constructor(
    lent: { readonly raw: DatabaseSync; readonly check: SignatureCheck },
    options: { readonly terms: LedgerTerms /** That of the genesis. */; readonly first: Committee },
  ) {
    this.#raw = lent.raw;
    this.#facts = new Facts(lent.raw);
    this.#check = lent.check;
    this.#terms = options.terms;
    this.#first = options.first;
  }

  /** How many entries were applied. */
  get index(): number {
    return this.#draft().get<number>(KEYS.index) ?? 0;
  }

  /** Called, in the transaction of the entry, when the committee stopped voting or the next one is in office. */
  onTurn: (() => void) | undefined;

  /** Whether nothing was founded here yet. */
  get isEmpty(): boolean {
    return this.#facts.get(KEYS.supply) === undefined;
  }

  /** SHA-256 over everything that the state consists of, 64 hex digits. */
  root(): string {
    return digestHex(this.#facts.root());
  }

  /** Of the present epoch: its votes certify what comes next, also after it has ended, until the next one is open. */
  committee(): Committee {
    return this.committeeOf(presentOf(this.#draft()).digest)!;
  }

  engine(): Engine {
    const { moves, to, origin, name } = sequencerOf(this.#draft());
    return { moves, origin, name, place: to ?? { kind: 'embedded', validator: this.#first.validators[0]!.key } };
  }

  turns(entry: Uint8Array): boolean {
    try {
      return ['epoch', 'handover', 'sequencer'].includes(decodeEntry(entry).kind);
    } catch (error) {
      if (isCoded(error)) return false;
      throw error;
    }
  }

  recovers(bytes: Uint8Array, statement: SequencerStatement): boolean {
    try {
      const entry = decodeEntry(bytes);
      if (entry.kind !== 'sequencer' || canonicalJson(entry.statement) !== canonicalJson(statement)) return false;
      return this.#try({ draft: this.#draft(), index: statement.after!.index + 1 }, bytes) === null;
    } catch (error) {
      if (isCoded(error)) return false;
      throw error;
    }
  }

  /**
   * Applies the next entry: that each one is applied once, and in its turn, is the caller's affair, who does it in a transaction together with what
   * says so. Null: it was applied. Otherwise it changed nothing but the position, and everybody says so.
   */
  apply(bytes: Uint8Array, index: number): Refusal | null {
    if (index !== this.index + 1) throw new Error(`entry ${index} was to be applied, and ${this.index + 1} is next`);
    const draft = this.#draft();
    const refused = this.#try({ draft, index }, bytes);
    const changes = refused === null ? draft : this.#draft();
    changes.set(KEYS.index, index);
    this.#facts.write(changes.changes);
    if (refused === null && changes.changes.has(KEYS.epoch)) this.onTurn?.();
    return refused;
  }

  keep(): void {
    this.#facts.keep();
  }

  kept(after: string): { readonly facts: readonly Fact[]; readonly isLast: boolean } {
    return this.#facts.kept(after, ORDER_LIMITS.factsMax / 2);
  }

  documentsAfter(epoch: number): readonly Json[] {
    const rows = this.#raw
      .prepare('SELECT document FROM epochs WHERE epoch > ? AND epoch <= ? ORDER BY epoch LIMIT ?')
      .all(epoch, presentOf(this.#draft()).epoch, ORDER_LIMITS.documentsMax) as { document: string }[];
    return rows.map(({ document }) => JSON.parse(document) as Json);
  }

  learn(documents: readonly unknown[]): number {
    let last = 0;
    for (const value of documents) {
      const document = decodeEpochDocument(value);
      const before = this.committeeOf(document.previous);
      if (before === undefined) throw noSuccessor('it does not follow from what is known here');
      const ordered = this.#ordered(document.epoch);
      if (ordered !== undefined && ordered !== epochDigest(document))
        throw noSuccessor('another one is in the order for its epoch');
      succeed(before, document, this.#terms.networkId);
      const signed = { type: EPOCH_TYPE, statement: proposalOf(document), check: this.#check };
      const objection = quorumObjection(before, document.approvals, signed);
      if (objection !== undefined) throw noSuccessor(objection);
      this.#keep(document);
      last = document.epoch;
    }
    return last;
  }

  receive(facts: readonly Fact[] | null): void {
    this.#facts.receive(facts);
  }

  receivedRoot(): string {
    return digestHex(this.#facts.receivedRoot());
  }

  replace(): void {
    this.#facts.replace();
    const { epoch, digest } = presentOf(this.#draft());
    if (this.committeeOf(digest)?.epoch !== epoch) throw noSuccessor('another committee sits in the state that came');
    this.onTurn?.();
  }

  account(id: string): LedgerAccount {
    const draft = this.#draft();
    const { balance, locked, number } = accountOf(draft, id);
    const unbonding = draft
      .list<UnbondingFact>(`unbonding/${id}/`)
      .map(([, { amount, endsAtMs }]) => ({ amount, endsAtMs }));
    return { account: id, balance, locked, unbonding, number, isSuspended: isSuspended(draft, id) };
  }

  /** Who owns the name, or the scope it is in; undefined while nobody does. */
  ownerOf(name: string): string | undefined {
    return ownerOf(this.#draft(), name);
  }

  /** Whether the commitment was said to be lost in this epoch, or in the one before. */
  isSpaceLost(account: string, root: string): boolean {
    const draft = this.#draft();
    const { epoch } = presentOf(draft);
    return [epoch, epoch - 1].some((one) => draft.get(KEYS.spaceLost(one, account, root)) !== undefined);
  }

  /** Whether somebody answered for contradicting himself about that. */
  isAnswered(about: string): boolean {
    return this.#draft().get(KEYS.evidence(about)) !== undefined;
  }

  /** Tokens that were founded, and those that were burned since; the rest is what all accounts have together. */
  supply(): { readonly founded: number; readonly burned: number } {
    const draft = this.#draft();
    return { founded: draft.get<number>(KEYS.supply) ?? 0, burned: draft.get<number>(KEYS.burned) ?? 0 };
  }

  /** What the order has against a vote for the operation. Errors: `not-owner`, `version-exists`, `equivocation`, `not-permitted`. */
  checkOperation(operation: Operation): void {
    checkOperation(this.#draft(), operation);
  }

  /** The epoch, and whether its committee votes: it stops when its successor is in the order. */
  present(): { readonly epoch: number; readonly isVoting: boolean } {
    const { epoch, next } = presentOf(this.#draft());
    return { epoch, isVoting: next === null };
  }

  /** Who has handed over everything since the present epoch ended, by key id. */
  handedOver(): readonly string[] {
    return Object.entries(presentOf(this.#draft()).handed).flatMap(([key, { isWhole }]) => (isWhole ? [key] : []));
  }

  /** How many parts of its handover a validator has put into the order. */
  partsOf(validator: string): number {
    return presentOf(this.#draft()).handed[validator]?.parts ?? 0;
  }

  /** Whether the order knows enough of that operation, so that it need not be handed over. */
  isRecorded(operation: Operation): boolean {
    return isRecorded(this.#draft(), operation);
  }

  /** A certificate that was found to be the word of a committee that this ledger names: when it comes in an entry, its signatures are not checked again. */
  remember(certificate: Endorsement): void {
    const [oldest] = this.#genuine;
    if (this.#genuine.size >= GENUINE_MAX && oldest !== undefined) this.#genuine.delete(oldest);
    this.#genuine.add(digestOf(utf8(canonicalJson(certificate))));
  }

  /** Why these could not be a committee, whoever approves; undefined when they could. */
  objectionTo(validators: readonly Seat[]): string | undefined {
    return seatsObjection(this.#draft(), validators);
  }

  /** By epoch: they lead from the genesis to the latest committee that is known here. */
  epochDocuments(): readonly EpochDocument[] {
    const rows = this.#raw.prepare('SELECT document FROM epochs ORDER BY epoch').all() as { document: string }[];
    return rows.map(({ document }) => JSON.parse(document) as EpochDocument);
  }

  /** Documents that were checked, in a home that does not follow the order. Within a transaction of the caller. */
  announce(documents: readonly EpochDocument[]): void {
    for (const document of documents) this.#keep(document);
  }

  /**
   * Of a home whose validator sits, or sat in the epoch before, the committee that the order put into office; of others, also of one that gets a seat and has not caught up with
   * the order yet, the last one that was announced.
   */
  latest(validator: string): Committee {
    const present = this.committee();
    if (this.index > 0 && this.#inOffice().some(({ key }) => key === validator)) return present;
    const { epoch } = this.#raw.prepare('SELECT max(epoch) AS epoch FROM epochs').get() as { epoch: number | null };
    return (epoch === null || epoch < present.epoch ? undefined : this.#inEpoch(epoch)) ?? present;
  }

  /**
   * Whether the validator sits in the committee that is in office, in one that was approved and announced after it, or in the one before it: others may still
   * need its votes, and what it has, to learn that it went.
   */
  isSeated(validator: string): boolean {
    return [...this.#inOffice(), ...this.heirs()].some(({ key }) => key === validator);
  }

  /** In this epoch, and in the one before. */
  #inOffice(): readonly Seat[] {
    const present = this.committee();
    return [...(this.before(present)?.validators ?? []), ...present.validators];
  }

  heirs(): readonly Seat[] {
    const { epoch } = presentOf(this.#draft());
    const rows = this.#raw.prepare('SELECT document FROM epochs WHERE epoch > ?').all(epoch) as { document: string }[];
    return rows.flatMap(({ document }) => (JSON.parse(document) as EpochDocument).validators);
  }

  /** By its {@link Committee.digest}: of two that were approved for one epoch neither is taken for the other. Undefined: none that is known here. */
  committeeOf(digest: Digest): Committee | undefined {
    if (digest === this.#first.digest) return this.#first;
    const row = this.#raw.prepare('SELECT epoch FROM epochs WHERE digest = ?').get(digest) as
      | { epoch: number }
      | undefined;
    return row === undefined ? undefined : this.#inEpoch(row.epoch);
  }

  /** Which sat in the epoch before; undefined of the first one. */
  before(committee: Committee): Committee | undefined {
    return this.#inEpoch(committee.epoch - 1);
  }

  #inEpoch(epoch: number): Committee | undefined {
    if (epoch === this.#first.epoch) return this.#first;
    const known = this.#committees.get(epoch);
    if (known !== undefined) return known;
    const document = this.epochDocument(epoch);
    if (document === undefined) return undefined;
    const committee = { epoch, validators: document.validators, digest: epochDigest(document) };
    this.#committees.set(epoch, committee);
    return committee;
  }

  epochDocument(epoch: number): EpochDocument | undefined {
    const row = this.#raw.prepare('SELECT document FROM epochs WHERE epoch = ?').get(epoch) as
      | { document: string }
      | undefined;
    return row === undefined ? undefined : (JSON.parse(row.document) as EpochDocument);
  }

  /** What the clocks of the committee agree has passed; 0 while they have told nothing. */
  timeMs(): number {
    return timeOf(this.#draft());
  }

  /** Whether somebody's unbonding waits for this validator to tell its clock, by which it is `nowMs`. */
  isClockAwaited(validator: string, nowMs: number): boolean {
    return isClockAwaited(this.#draft(), validator, nowMs);
  }

  #draft(): Draft {
    return new Draft(this.#facts);
  }

  #try(at: Pick<Place, 'draft' | 'index'>, bytes: Uint8Array): Refusal | null {
    const place: Place = {
      ...at,
      terms: this.#terms,
      check: this.#check,
      // Not those that are only announced: on another machine they may not be yet.
      committeeOf: (digest) => {
        const known = this.committeeOf(digest);
        return known !== undefined && known.epoch <= presentOf(at.draft).epoch ? known : undefined;
      },
    };
    try {
      this.#rule(place, decodeEntry(bytes));
      return null;
    } catch (error) {
      if (!isCoded(error)) throw error;
      const { code, message, hint } = error;
      return { code, message, ...(hint === undefined ? {} : { hint }) };
    }
  }

  #rule(place: Place, entry: Entry): void {
    if (entry.networkId !== place.terms.networkId) refuse('network-mismatch', 'The entry is for another network.');
    forgetSettled(place.draft);
    switch (entry.kind) {
      case 'instruction':
        instruct(place, entry.signed);
        return;
      case 'clock':
        tellTime(place, entry.statement, entry.attestation);
        return;
      case 'evidence':
        judgeConflict(place, entry.conflict);
        return;
      case 'space-lost':
        loseSpace(place, entry.statement, entry.attestations);
        return;
      case 'certified':
        recordCertified(place, entry.certificates, (one) => this.#genuine.has(digestOf(utf8(canonicalJson(one)))));
        return;
      case 'epoch':
        endEpoch(place, entry.document);
        this.#keep(entry.document);
        return;
      case 'handover':
        if (handOver(place, entry.statement, entry.attestation)) forgetClocks(place.draft);
        return;
      case 'sequencer':
        moveSequencer(place, entry.statement, entry.attestations);
        return;
    }
  }

  /** The fact has its digest; the document itself lies beside, in the same transaction. */
  #keep(document: EpochDocument): void {
    this.#committees.delete(document.epoch);
    this.#raw
      .prepare('INSERT OR REPLACE INTO epochs (epoch, digest, document) VALUES (?, ?, ?)')
      .run(document.epoch, epochDigest(document), canonicalJson(document));
  }

  /** Which document the order has for that epoch; undefined: none yet. */
  #ordered(epoch: number): Digest | undefined {
    const now = presentOf(this.#draft());
    if (epoch === now.epoch + 1) return now.next ?? undefined;
    return epoch <= now.epoch ? this.#inEpoch(epoch)?.digest : undefined;
  }
}

/** The committee that the genesis names. */
export function firstCommittee({ committee }: Genesis, networkId: Digest): Committee {
  return { ...committee, digest: networkId };
}

/** The state before the first entry. Within a transaction of the caller. */
export function foundLedger(raw: DatabaseSync, genesis: Genesis, first: Committee): void {
  const facts = new Facts(raw);
  const draft = new Draft(facts);
  let supply = 0;
  for (const { account, balance, locked } of genesis.stake.accounts) {
    changeAccount(draft, account, { balance, locked });
    supply += balance;
  }
  draft.set(KEYS.supply, supply);
  draft.set(KEYS.epoch, { epoch: first.epoch, digest: first.digest, next: null, handed: {} });
  facts.write(draft.changes);
}

/** What does not belong together in a state that came from elsewhere; undefined when everything does. */
export function ledgerObjection(raw: DatabaseSync, genesis: Genesis): string | undefined {
  const facts = new Facts(raw);
  if (facts.recomputedRoot() !== facts.root()) return 'the sum of its facts is another one';
  const draft = new Draft(facts);
  const founded = genesis.stake.accounts.reduce((sum, { balance }) => sum + balance, 0);
  const owned = draft.list<AccountFact>('account/').reduce((sum, [, { balance }]) => sum + balance, 0);
  const burned = draft.get<number>(KEYS.burned) ?? 0;
  if (owned + burned !== founded) {
    return `it has ${owned} tokens and ${burned} burned ones; the network was founded with ${founded}`;
  }
  return undefined;
}
