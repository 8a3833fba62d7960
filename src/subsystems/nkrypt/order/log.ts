import { base64, fromBase64, hex } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, sha256 } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import type { Json } from '../../../base/json.ts';
import type { SqliteStore } from '../../../base/sqlite.ts';
import type { Attestation } from '../../../wire/attestation.ts';
import {
  type RecoveryPlace,
  SEQUENCER_TYPE,
  type SequencerPlace,
  type SequencerStatement,
} from '../../../wire/entry.ts';
import type { Committee, Seat } from '../../../wire/epoch.ts';
import { quorumOf } from '../../../wire/genesis.ts';
import {
  type ApprovedRecovery,
  type ByQuorum,
  type CertifiedPart,
  decodeCertifiedPart,
  decodeFacts,
  decodeOrderAnswer,
  decodeSnapshot,
  decodeVoteExchange,
  firstHead,
  HEAD_TYPE,
  type HeadCertificate,
  type HeadStatement,
  nextHead,
  ORDER_LIMITS,
  type OrderSnapshot,
  PREPARE_TYPE,
  type PreparedHead,
  type PrepareStatement,
  type VoteExchange,
} from '../../../wire/order.ts';
import { type Caught, HeadVotes } from './head-votes.ts';
import { heard, PATIENCE_MS } from './heard.ts';
import { type Lock, LogStore, type Marks, type Row, type Submitted } from './log-store.ts';
import { rest } from './rest.ts';
import { type Sequencer, sequencerUnreachable } from './sequencer.ts';

/** What entries mean. All of it belongs to one network, and lives in the database of the log: a transaction of the log is one of the state. */
export interface OrderedState {
  /** Whose votes certify what comes next. */
  committee(): Committee;
  /** By its digest; undefined: none that is known here. Also those that others say were approved; whether they were in office is the order's to say. */
  committeeOf(digest: Digest): Committee | undefined;
  /** Who sits in committees that others say were approved after it: they have what this node needs when nobody is left of the present one. */
  heirs(): readonly Seat[];
  engine(): Engine;
  /** 64 hex digits that are equal where the state is. */
  root(): string;
  /** Whether the entry, right after the position that this statement names, makes what it says part of the state. */
  recovers(entry: Uint8Array, statement: SequencerStatement): boolean;
  /** Whether the entry may change committee or engine: votes wait until it was applied. */
  turns(entry: Uint8Array): boolean;
  /**
   * Called in a transaction, once for each position, in order. Deterministic. What makes no sense changes nothing and has that as its outcome; so does an
   * entry that was applied before (an old engine had it too late, and the next one got it again).
   */
  apply(entry: Uint8Array, index: number): Json;

  // A snapshot: the state as it was once, and another one that takes the place of this.

  /** Called in a transaction: from here on {@link kept} is the state as it is now. */
  keep(): void;
  /** Facts of the state that is kept, those that follow a key: some of them, by key. */
  kept(after: string): { readonly facts: readonly Fact[]; readonly isLast: boolean };
  /** What shows who sits in the epochs after that one: some of it. */
  documentsAfter(epoch: number): readonly Json[];
  /** The other side: makes more epochs known; which is the last of them. Errors: `epoch-invalid`. */
  learn(documents: readonly unknown[]): number;
  /** Puts facts of another state beside this one; null: begins anew. */
  receive(facts: readonly Fact[] | null): void;
  /** {@link root} of what was received. */
  receivedRoot(): string;
  /** Called in a transaction: what was received takes the place of this state. */
  replace(): void;
}

/** Where the next entries are put in order. */
export interface Engine {
  /** How often the network had another engine before. */
  readonly moves: number;
  readonly place: SequencerPlace;
  /** After which position of the whole its order begins, and how this is called within the engine. */
  readonly origin: number;
  readonly name: string;
}

/** Key and value. */
export type Fact = readonly [string, string];

export interface LogLent {
  readonly store: SqliteStore;
  readonly state: OrderedState;
  readonly trust: {
    attest(payloadType: string, statement: unknown): Promise<Attestation>;
    attested(word: Attestation, payloadType: string, statement: unknown, keys: Seat): Promise<boolean>;
  };
  /** The engine at that place; `log` names this network's order in it. Errors: `config-invalid`. */
  engine(place: SequencerPlace, log: string): Sequencer;
  /** Asks another validator. Errors: `peer-*`, `timeout`. */
  ask(validator: Seat, method: LogMethod, body: Json): Promise<unknown>;
  /** {@link VotesLent.caught} */
  readonly caught: Caught;
}

export type LogMethod = 'order/votes' | 'order/part' | 'order/snapshot' | 'order/facts' | 'order/tail';

export interface LogStatus {
  readonly applied: number;
  /** Entries up to there were dropped; a snapshot of the state is in their place. */
  readonly floor: number;
  /** Entries that this node sees and that are not certified yet. */
  readonly waiting: number;
  readonly head: string;
  readonly engine: SequencerPlace;
  /** Validators to whom the engine seems to have shown other entries than to this one. */
  readonly split: readonly string[];
  /** Why the order does not go on; null when nothing is known to be wrong. */
  readonly trouble: string | null;
}

/** How often others are asked when nothing comes from them by itself, as long as something waits; then rarer, and rarely when nothing does. */
const AGAIN_MS = 250;
const AGAIN_MS_MAX = 10_000;
const IDLE_MS = 15_000;
const SUBMIT_MS = 30_000;
const SUBMITTED_MAX = 10_000;
/** Parts of the order that are fetched from one validator before the others are heard again. */
const PARTS_MAX = 1_000;
/** Who takes longer for a snapshot gives way to another one that has one, and may take twice as long when its turn comes again. */
const LOAD_MS = 30_000;
const LOAD_TURNS_MAX = 16;
/** A snapshot is kept each time that so much was applied since the last one; what came before that last one is dropped. */
const SNAPSHOT_ENTRIES = 1_024;
const SNAPSHOT_BYTES = 64 * 2 ** 20;
/** Of a state that is taken over: how large it is nobody certifies, so that one liar could go on for ever. */
const STATE_BYTES_MAX = 2 ** 30;
/** In the place of an entry: whoever waits for this looks at every certificate. */
const ANYTHING = '';
/** Who sends no part for so long gives way to another one, and whoever has it when another one has something, too. */
const SLOW_MS = 1_000;
const TURN_MS = 2_000;

interface Peer {
  busy: boolean;
  again: boolean;
}

/** A snapshot that is on its way in. */
interface Loading {
  readonly sinceMs: number;
  readonly patienceMs: number;
  readonly ends: AbortController;
}

/** The validator from which parts of the order come now. */
interface Turn {
  readonly key: string;
  readonly sinceMs: number;
}

/** A validator whose snapshot this node did not get: how often it gave way to another one, and until when others come first. */
interface Source {
  readonly turns: number;
  readonly restsUntilMs: number;
}

/** What a quorum approved after a loss. */
type Recovery = ApprovedRecovery & { readonly after: RecoveryPlace };

interface OpenEngine {
  readonly name: string;
  readonly sequencer: Sequencer;
  readonly ends: AbortController;
  /** Of its order, as far as this node knows. */
  length: number;
  /** Entries that this node saw and passed over, because the engine only begins with the entry that makes it so. */
  passed: number;
}

interface Proposed extends Row {
  readonly turns: boolean;
}

/**
 * The order of a network as one validator has it (docs/protocol/order.md). The engine proposes entries; this validator prepares a head of their hash
 * chain, and stores the entries and that before it signs. When a quorum prepared one head it commits to it; what a quorum committed is applied, all up to it in one
 * transaction. What is prepared in one view is one chain, and a view begins after everything that can have been committed in the ones before: so no two certificates
 * contradict each other, whatever the engine shows to whom (docs/protocol/admission.md has the argument, test/model/ explores it).
 */
export class OrderedLog implements AsyncDisposable {
  readonly #lent: LogLent;
  readonly #networkId: Digest;
  readonly #self: string;
  readonly #submitMs: number;
  readonly #againMs: number;
  readonly #snapshotEntries: number;
  readonly #stateBytesMax: number;
  readonly #loadMs: number;
  readonly #patienceMs: number;
  readonly #store: LogStore;
  readonly #closing = new AbortController();
  readonly #peers = new Map<string, Peer>();
  readonly #waiting = new Map<string, Set<() => void>>();
  readonly #votes: HeadVotes;
  #marks: Marks;
  /** What a quorum prepared beyond that, as far as this validator knows: the next view begins after it. */
  #lock: Lock | undefined;
  /** Where this validator said last that a later view begins. */
  #approved: RecoveryPlace | undefined;
  #head: string;
  /** The last snapshot, and what was applied since. */
  #base: number;
  #since: { readonly entries: number; readonly bytes: number };
  /** What follows the applied part, as far as it was proposed: the first of them prepared. */
  #window: Proposed[] = [];
  #engine: OpenEngine | undefined;
  #trouble: string | null = null;
  #running: Promise<void> | undefined;
  #isRunning = false;
  #dirty = false;
  /** From whom parts come, when one last came, and until when those that had their turn let others go first. */
  #catching: Turn | undefined;
  #caughtAtMs = 0;
  readonly #rests = new Map<string, number>();
  #recovery: ApprovedRecovery | undefined;
  #loading: Loading | undefined;
  readonly #sources = new Map<string, Source>();
  /** How far others say to be: true or not, it is worth asking. */
  #claimed = 0;
  #turn = 0;
  #timer: NodeJS.Timeout | undefined;
  #pause: number;

  /** `self`: key id of this home's validator; it votes while it sits in the committee. */
  constructor(
    lent: LogLent,
    options: {
      readonly networkId: Digest;
      readonly self: string;
      /** How long an entry may take. */
      readonly submitMs?: number;
      /** How soon others are asked again at first. */
      readonly againMs?: number;
      /** How many entries make another snapshot. */
      readonly snapshotEntries?: number | undefined;
      /** How large a state may be that is taken over. */
      readonly stateBytesMax?: number | undefined;
      /** How long one validator may take for it at first while others have it, too. */
      readonly loadMs?: number | undefined;
      /** How long one is waited for who hangs when the engine is lost. */
      readonly patienceMs?: number | undefined;
    },
  ) {
    this.#lent = lent;
    this.#networkId = options.networkId;
    this.#self = options.self;
    this.#submitMs = options.submitMs ?? SUBMIT_MS;
    this.#againMs = options.againMs ?? AGAIN_MS;
    this.#pause = this.#againMs;
    this.#snapshotEntries = options.snapshotEntries ?? SNAPSHOT_ENTRIES;
    this.#stateBytesMax = options.stateBytesMax ?? STATE_BYTES_MAX;
    this.#loadMs = options.loadMs ?? LOAD_MS;
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS;
    this.#store = new LogStore(lent.store);
    this.#marks = this.#store.marks();
    const { applied } = this.#marks;
    this.#votes = new HeadVotes({
      ...{ networkId: this.#networkId, self: this.#self, caught: lent.caught },
      committee: () => lent.state.committee(),
      applied: () => this.#marks.applied,
      attested: (...args) => lent.trust.attested(...args),
      agrees: (head) => this.#agrees(head),
    });
    this.#lock = this.#store.lock();
    this.#approved = this.#store.approved();
    this.#recovery = this.#store.recovery();
    const snapshot = this.#store.snapshot();
    this.#base = snapshot?.base ?? 0;
    this.#since = this.#store.sizeAfter(this.#base);
    this.#head = this.#store.headAt(applied) ?? snapshot?.head ?? firstHead(this.#networkId);
    this.#propose(this.#store.rows(applied, applied + ORDER_LIMITS.windowEntriesMax).map(({ entry }) => entry));
  }

  /** Begins to follow the engine and the other validators. */
  start(): void {
    this.#open();
    this.#kick();
    this.#tellAll();
  }

  /**
   * Puts an entry into the order and says what became of it. Safe to repeat: one entry is applied once.
   * Errors: `sequencer-unreachable`, `timeout` (it may still happen), `order-stopped`, `limit-exceeded`, `cancelled`, `storage-*`.
   */
  async submit(entry: Uint8Array, { signal }: CallOptions = {}): Promise<Submitted> {
    if (this.#waiting.size >= SUBMITTED_MAX) {
      throw new HyperMeshError('quota-exceeded', `${SUBMITTED_MAX} entries wait for the order.`, {
        hint: 'Try again in a moment.',
      });
    }
    const late = AbortSignal.timeout(this.#submitMs);
    const ends = AbortSignal.any([late, this.#closing.signal, ...(signal === undefined ? [] : [signal])]);
    const id = hex(sha256(entry));
    let given: string | undefined;
    let refused: unknown;
    for (;;) {
      // Before the database, which may be closed by now.
      if (this.#closing.signal.aborted) throw sequencerUnreachable('this node is closing');
      const done = this.#store.applied(entry);
      if (done !== undefined) return done;
      if (ends.aborted) break;
      const engine = this.#open();
      const recovery = this.#pending();
      // After a loss the new engine begins with the entry that makes it so: everything else would be passed over.
      const isReady = recovery === undefined || this.#lent.state.recovers(entry, recovery.statement);
      // Once for each engine: an entry that the old one had too late is given to the new one.
      if (engine !== undefined && isReady && given !== engine.name) {
        try {
          const position = await engine.sequencer.append(entry, { signal: ends });
          given = engine.name;
          this.#grew(engine.name, position);
          continue;
        } catch (error) {
          if (!isCoded(error, 'sequencer-unreachable', 'timeout', 'quota-exceeded', 'cancelled')) throw error;
          // It was this node that did not wait any longer.
          refused = isCoded(error, 'cancelled') ? (refused ?? sequencerUnreachable('not in time', error)) : error;
        }
      }
      await this.#applied(id, engine !== undefined && given === engine.name ? undefined : this.#againMs, ends);
    }
    if (signal?.aborted === true)
      throw new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: signal.reason });
    if (given === undefined && isCoded(refused)) throw refused;
    throw new HyperMeshError(
      this.#trouble === null ? 'timeout' : 'order-stopped',
      `The committee did not certify the entry within ${this.#submitMs} ms. ${this.#trouble ?? ''}`.trimEnd(),
      { hint: 'It may still happen; asking again for the same is safe.' },
    );
  }

  /** Takes over what the others have newer, until what is applied says so; no longer than that. Alone there is nothing newer. */
  async until(holds: () => boolean, ms: number): Promise<void> {
    const ends = AbortSignal.any([AbortSignal.timeout(ms), this.#closing.signal]);
    while (!ends.aborted && !holds() && !this.#isAlone()) {
      this.#tellAll();
      await this.#applied(ANYTHING, this.#againMs, ends);
    }
  }

  status(): LogStatus {
    return {
      applied: this.#marks.applied,
      floor: this.#marks.floor,
      waiting: this.#window.length,
      head: this.#head,
      engine: this.engine().place,
      split: this.#split(),
      trouble: this.#trouble ?? this.#splitTrouble(),
    };
  }

  /** The proof that the order up to where this node applied it never changes; undefined before the first entry. */
  certificate(): HeadCertificate | undefined {
    return this.#store.lastCertificate();
  }

  /** What another validator tells, and asks. `from`: its key id, as the channel proved it. Errors: `order-invalid`. */
  async exchange(value: unknown, from: string): Promise<VoteExchange> {
    const told = decodeVoteExchange(value);
    await this.#learn(told);
    this.#claimed = Math.max(this.#claimed, told.applied);
    const seat = this.#knowing().find(({ key }) => key === from);
    // Only who says that he is further is asked about it: a lie costs the liar as much as this node.
    if (seat !== undefined && told.applied > this.#marks.applied) void this.#talk(seat, () => this.#catchUp(seat));
    return this.#told();
  }

  /** Where the next entries are put in order: as the order says, or as a quorum approved after the engine was lost, until the order says that. */
  engine(): Engine {
    const said = this.#lent.state.engine();
    const recovery = this.#pending();
    if (recovery === undefined) return said;
    const { statement, after } = recovery;
    const moves = said.moves + 1;
    return { place: statement.to, moves, origin: after.index, name: `${moves}-${after.index}` };
  }

  /** The recovery that this node knows to be approved by a quorum, while its entry can still come in its place. */
  recovery(): ApprovedRecovery | undefined {
    return this.#pending() === undefined ? undefined : this.#recovery;
  }

  #pending(): Recovery | undefined {
    const { statement } = this.#recovery ?? {};
    if (this.#recovery === undefined || statement?.after === undefined) return undefined;
    const { state } = this.#lent;
    const isPresent = statement.moves === state.engine().moves && statement.committee === state.committee().digest;
    const { applied, view } = this.#marks;
    // A certificate of a later view may have been here since.
    const isNext = isPresent && statement.after.index >= applied && statement.after.view === view;
    return isNext ? { ...this.#recovery, after: statement.after } : undefined;
  }

  /** What this validator prepared after a position, certified or not, and how far a quorum did as far as it knows. */
  tail(after: number): { readonly prepared: PreparedHead | null; readonly entries: readonly string[] } {
    const isKept = after >= this.#marks.floor;
    const rows = isKept ? this.#store.rows(after, after + ORDER_LIMITS.windowEntriesMax) : [];
    const lock = this.#locked();
    return { prepared: lock?.prepared ?? null, entries: rows.map(({ entry }) => base64(entry)) };
  }

  /**
   * For when the engine is lost: finds out how far the others are, and where the order has to go on: after everything that a quorum prepared as far as this validator and those who
   * answer know. Whatever was certified is part of it, as long as a quorum does so; so nobody has to be waited for who hangs.
   */
  async settle(): Promise<Pick<RecoveryPlace, 'index' | 'head'>> {
    const { validators } = this.#lent.state.committee();
    const others = validators.filter(({ key }) => key !== this.#self);
    const asked = others.map(async (seat) => {
      await this.#talk(seat, () => this.#tell(seat));
      await this.#takeTail(seat);
    });
    await heard(asked, { enough: quorumOf(validators.length) - 1, patienceMs: this.#patienceMs });
    return this.#place();
  }

  /**
   * Binds this validator to it that this view begins there: it votes in no other one any more, unless the order goes beyond that place all the same. False: it cannot say so, because
   * it said otherwise of this view or a later one, or knows by now of another place.
   */
  bind({ view, index, head }: RecoveryPlace): boolean {
    const place = this.#place();
    const known = this.#approved;
    const isSame = known?.view === view && known.index === index && known.head === head;
    if (place.index !== index || place.head !== head || view <= this.#marks.view) return false;
    if (known !== undefined && known.view >= view && !isSame) return false;
    // Commit point: before anything is signed.
    this.#mark(() => {
      this.#store.setApproved({ view, index, head });
      return this.#marks;
    });
    return true;
  }

  /** The first view that this validator may still say to begin there. */
  nextView({ index, head }: Pick<RecoveryPlace, 'index' | 'head'>): number {
    const known = this.#approved;
    const isSame = known?.index === index && known.head === head && known.view > this.#marks.view;
    return isSame ? known.view : Math.max(this.#marks.view, known?.view ?? 0) + 1;
  }

  /** After which the next view begins, as far as this validator has a say. */
  #place(): Pick<RecoveryPlace, 'index' | 'head'> {
    const { index, head } = this.#locked() ?? { index: this.#marks.applied, head: this.#head };
    return { index, head };
  }

  /** The lock, as long as it is beyond what is certified. */
  #locked(): Lock | undefined {
    return this.#lock !== undefined && this.#lock.index > this.#marks.applied ? this.#lock : undefined;
  }

  /** Whether this validator said that a later view begins, and that can still be. */
  #isLeaving(): boolean {
    const { applied, view } = this.#marks;
    if (this.#approved === undefined || this.#approved.view <= view) return false;
    const { index, head } = this.#approved;
    return applied < index || (applied === index && this.#head === head);
  }

  /** What another validator prepared: the entries of a place that this one has to go on from and lacks, or a place further on that a quorum prepared. */
  async #takeTail(seat: Seat): Promise<void> {
    const { applied, view } = this.#marks;
    const first = this.#head;
    const { prepared, entries } = decodeOrderAnswer(
      'tail',
      await this.#lent.ask(seat, 'order/tail', { after: applied }),
    );
    const isGenuine =
      prepared !== null && (await this.#isByQuorum(PREPARE_TYPE, prepared, this.#lent.state.committee()));
    if (this.#marks.applied !== applied || this.#marks.view !== view || this.#closing.signal.aborted) return;
    const rows = this.#rowsAfter(first, entries.map(fromBase64));
    const leads = ({ index, head }: { readonly index: number; readonly head: string }) =>
      index > applied && rows[index - applied - 1]?.head === head;
    // Of views before this one nothing counts any more but what it began after.
    const isOfUse = isGenuine && prepared.statement.view >= view && leads(prepared.statement);
    if (isOfUse && isFurther(prepared.statement, this.#locked())) {
      const lock = { ...placeOf(prepared.statement), prepared };
      this.#hold(rows.slice(0, lock.index - applied), lock);
      return;
    }
    const [wanted] = [this.#locked(), this.#pending()?.after].filter((one) => one !== undefined && !this.#has(one));
    if (wanted !== undefined && leads(wanted)) this.#hold(rows.slice(0, wanted.index - applied), this.#lock);
  }

  #has({ index, head }: Pick<RecoveryPlace, 'index' | 'head'>): boolean {
    const { applied } = this.#marks;
    return index <= applied || this.#window[index - applied - 1]?.head === head;
  }

  /** Entries of others in the place of those that this validator was shown: what it prepared beside them it does not prepare again. */
  #hold(rows: readonly Row[], lock: Lock | undefined): void {
    const { applied } = this.#marks;
    const isOurs = rows.every(({ head }, at) => (this.#window[at]?.head ?? head) === head);
    this.#mark(() => {
      if (!isOurs) this.#store.dropAfter(applied);
      for (const [at, row] of rows.entries()) this.#store.put(applied + 1 + at, row, undefined);
      this.#store.setLock(lock);
      const { voted, lost } = this.#marks;
      return { ...this.#marks, lost: isOurs ? lost : Math.max(lost, voted) };
    });
    if (!isOurs || rows.length > this.#window.length) {
      this.#window = [];
      this.#propose(rows.map(({ entry }) => entry));
    }
    this.#kick();
  }

  /** From here on the order goes on as a quorum approved, although the engine that it had is not there to say so. Safe to repeat. */
  recover(recovery: ApprovedRecovery): void {
    const { after, committee, moves } = recovery.statement;
    const { state } = this.#lent;
    if (after === undefined || moves !== state.engine().moves || committee !== state.committee().digest) return;
    const { applied, view } = this.#marks;
    const known = this.#pending()?.after.view ?? 0;
    // Another entry is in its place, or another view.
    if (after.index < applied || after.view < view || after.view <= known) return;
    const isOurs = this.#has(after);
    // A certificate of this view may have been here before: then its place is part of what is applied.
    const isNew = after.view > view;
    // Everything that can have been committed in the views before leads to that place.
    const lock = isNew && after.index > applied ? { ...after, prepared: null } : undefined;
    this.#mark(() => {
      this.#store.setRecovery(recovery);
      if (!isNew) return this.#marks;
      this.#store.dropAfter(isOurs ? after.index : applied);
      this.#store.setLock(lock);
      return { ...this.#marks, view: after.view, voted: applied, lost: 0 };
    });
    this.#recovery = recovery;
    if (isNew) this.#window = isOurs ? this.#window.slice(0, after.index - applied) : [];
    this.#changeEngine();
    this.#open();
    this.#kick();
    this.#tellAll();
  }

  /** What follows that position, up to a certificate. */
  part(after: number): CertifiedPart {
    const { applied, floor } = this.#marks;
    const certificate = after >= floor && after < applied ? this.#store.certificateAfter(after) : undefined;
    if (certificate === undefined) return { certificate: null, entries: [], floor };
    const rows = this.#store.rows(after, certificate.statement.index);
    return { certificate, entries: rows.map(({ entry }) => base64(entry)), floor };
  }

  /** The last snapshot, and what shows who certified it to somebody who knows the committees up to that epoch. */
  snapshot(epoch: number): { readonly snapshot: OrderSnapshot | null; readonly documents: readonly Json[] } {
    return { snapshot: this.#store.snapshot() ?? null, documents: this.#lent.state.documentsAfter(epoch) };
  }

  /** Facts of the snapshot after so many entries; null when it is not there (any more). */
  facts(base: number, after: string): { readonly facts: readonly Fact[] | null; readonly isLast: boolean } {
    if (base === 0 || base !== this.#base) return { facts: null, isLast: true };
    return this.#lent.state.kept(after);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    this.#loading?.ends.abort();
    clearTimeout(this.#timer);
    await this.#running;
    await this.#leaveEngine();
  }

  // One thing at a time: fetch proposals, vote, count, apply; again while something changed.

  #kick(): void {
    this.#dirty = true;
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    try {
      while (this.#dirty && !this.#closing.signal.aborted) {
        this.#dirty = false;
        await this.#step();
      }
    } finally {
      // In the same turn as the last look at `dirty`, so that no kick gets lost.
      this.#isRunning = false;
    }
    this.#schedule();
  }

  async #step(): Promise<void> {
    try {
      await this.#fetch();
      const isPrepared = await this.#prepare();
      const isCommitted = await this.#commit();
      if (this.#count()) this.#dirty = true;
      if (isPrepared || isCommitted) this.#tellAll();
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      // What is wrong with this node or its engine is said by the status; the timer tries again.
      this.#trouble = isCoded(error) ? error.message : `an unexpected error: ${String(error)}`;
      if (!isCoded(error)) throw error;
    }
  }

  /** Proposals of the engine, up to what one certificate may cover. */
  async #fetch(): Promise<void> {
    const engine = this.#open();
    if (engine === undefined) return;
    for (;;) {
      if (this.#window.at(-1)?.turns === true) return;
      // The place that this validator goes on from in a later view is what it has.
      if (this.#isLeaving()) return;
      const recovery = this.#pending();
      if (recovery !== undefined) return this.#fetchRecovery(engine, recovery);
      const tip = this.#tip();
      // What is before the first entry of this engine comes from other validators.
      if (tip < this.#origin || engine.length <= tip - this.#origin) return;
      const entries = await this.#read(engine, tip - this.#origin);
      if (this.#tip() !== tip) continue;
      if (entries.length === 0 || !this.#propose(entries)) return;
    }
  }

  /** Of the engine after one that was lost only the entry that makes it so, which comes right after what a quorum was bound to. */
  async #fetchRecovery(engine: OpenEngine, recovery: Recovery): Promise<void> {
    const { index } = recovery.after;
    while (this.#tip() === index && engine.passed < engine.length) {
      if (!this.#has(recovery.after)) return;
      const entries = await this.#read(engine, engine.passed);
      if (entries.length === 0 || this.#tip() !== index) return;
      const at = entries.findIndex((entry) => this.#lent.state.recovers(entry, recovery.statement));
      if (at !== -1) {
        this.#propose([entries[at]!]);
        return;
      }
      engine.passed += entries.length;
    }
  }

  /** None when it cannot be read now. */
  #read({ sequencer }: OpenEngine, after: number): Promise<readonly Uint8Array[]> {
    return sequencer.read(after, { signal: this.#closing.signal }).catch((error: unknown) => {
      if (isCoded(error, 'sequencer-unreachable', 'timeout', 'cancelled')) return [];
      if (!isCoded(error)) throw error;
      // What it showed before is voted for and counted all the same.
      this.#trouble = error.message;
      return [];
    });
  }

  /** False when the window is full, or ends with a turn. */
  #propose(entries: readonly Uint8Array[]): boolean {
    let bytes = this.#window.reduce((sum, { entry }) => sum + entry.length, 0);
    for (const entry of entries) {
      bytes += entry.length;
      if (this.#window.length >= ORDER_LIMITS.windowEntriesMax) return false;
      if (this.#window.length > 0 && bytes > ORDER_LIMITS.windowBytesMax) return false;
      const turns = this.#lent.state.turns(entry);
      this.#window.push({ entry, head: nextHead(this.#window.at(-1)?.head ?? this.#head, entry), turns });
      if (turns) return false;
    }
    return true;
  }

  /** Whether this validator may vote now. */
  #mayVote(): boolean {
    const { applied, lost } = this.#marks;
    // What it prepared was overruled: nothing is voted for until the order is beyond that.
    if (applied < lost || this.#isLeaving()) return false;
    return this.#lent.state.committee().validators.some(({ key }) => key === this.#self);
  }

  /** The first vote: what this validator was shown. Whether there is a new one. */
  async #prepare(): Promise<boolean> {
    if (!this.#mayVote()) return false;
    const { applied, view, voted } = this.#marks;
    const { after } = this.#pending() ?? {};
    const index = this.#nextIndex();
    // A view goes on from where it began.
    if (index <= applied || (after !== undefined && (index < after.index || !this.#has(after)))) return false;
    const { digest } = this.#lent.state.committee();
    const own = this.#votes.ownPrepare();
    if (own?.index === index && own.view === view && own.committee === digest) return false;
    const { head } = this.#window[index - applied - 1]!;
    if (index > voted) {
      // Commit point: from here on the validator is bound in this view. After a crash it signs the same again.
      this.#mark(() => {
        for (let at = Math.max(voted, applied) + 1; at <= index; at += 1)
          this.#store.put(at, this.#window[at - applied - 1]!, undefined);
        return { ...this.#marks, voted: index };
      });
    }
    const statement: PrepareStatement = {
      ...{ formatVersion: 1, networkId: this.#networkId, committee: digest, view, index, head },
    };
    this.#votes.setPrepare({ statement, attestation: await this.#lent.trust.attest(PREPARE_TYPE, statement) });
    return true;
  }

  /** Everything that was proposed; while that waits for others, no more than others prepared, so that votes meet. */
  #nextIndex(): number {
    const { applied, view, voted } = this.#marks;
    if (voted <= applied) return this.#tip();
    return Math.max(voted, ...this.#votes.prepares(view).flatMap((one) => (this.#agrees(one) ? [one.index] : [])));
  }

  /** The second vote: for what a quorum prepared, this validator too. Whether there is a new one. */
  async #commit(): Promise<boolean> {
    if (!this.#mayVote()) return false;
    const { applied, view, voted } = this.#marks;
    const { digest } = this.#lent.state.committee();
    const kept = this.#locked()?.prepared ?? null;
    const [prepared] = [...this.#votes.prepared(), ...(kept === null ? [] : [kept])]
      .filter(({ statement }) => statement.view === view && statement.index <= voted && this.#agrees(statement))
      .sort((a, b) => b.statement.index - a.statement.index);
    if (prepared === undefined) return false;
    const { index, head } = prepared.statement;
    const own = this.#votes.ownCommit();
    const isSame = own?.index === index && own.base === applied;
    if (own?.view === view && own.committee === digest && (isSame || own.index > index)) return false;
    if (isFurther(prepared.statement, this.#locked())) {
      // Commit point: from here on no later view begins without it, as far as this validator has a say.
      this.#mark(() => {
        this.#store.setLock({ ...placeOf(prepared.statement), prepared });
        return this.#marks;
      });
    }
    const statement: HeadStatement = {
      ...{ formatVersion: 3, networkId: this.#networkId, committee: digest, view, index, head },
      ...{ base: applied, stateRoot: this.#lent.state.root() },
    };
    const attestation = await this.#lent.trust.attest(HEAD_TYPE, statement);
    if (this.#marks.applied !== applied) this.#dirty = true;
    this.#votes.setCommit({ statement, attestation });
    return true;
  }

  /** Whether that head is the one that this node was shown. */
  #agrees({ index, head }: Pick<RecoveryPlace, 'index' | 'head'>): boolean {
    return this.#window[index - this.#marks.applied - 1]?.head === head;
  }

  /** Applies what a quorum committed, if this node has the entries. Whether it did. */
  #count(): boolean {
    const best = this.#votes.certified().find(({ statement }) => this.#agrees(statement));
    if (best === undefined) return false;
    this.#apply(best, this.#window.slice(0, best.statement.index - this.#marks.applied));
    return true;
  }

  /** `rows`: exactly those from the applied part to the certified head. */
  #apply(certificate: HeadCertificate, rows: readonly Row[]): void {
    // Another log may go on over the same store by now.
    if (this.#closing.signal.aborted) return;
    const { committee, index, base, stateRoot } = certificate.statement;
    const { state } = this.#lent;
    const { applied } = this.#marks;
    const isOurs = rows.every(({ head }, at) => (this.#window[at]?.head ?? head) === head);
    const { name } = this.engine();
    // Commit point: certificate, entries, and everything that they change.
    this.#mark(() => {
      if (!isOurs) this.#store.dropAfter(applied);
      let { floor } = this.#marks;
      for (const [at, row] of rows.entries()) {
        if (applied + at === base) {
          if (state.root() !== stateRoot) throw diverged(base);
          if (this.#isSnapshotDue(base)) {
            // What the committee says of the state holds of it now, before the next entry.
            floor = this.#base;
            this.#store.setSnapshot({ base, head: rows[at - 1]?.head ?? this.#head, certificate });
            this.#store.dropUpTo(floor);
            state.keep();
          }
        }
        this.#store.put(applied + at + 1, row, state.apply(row.entry, applied + at + 1));
      }
      this.#store.addCertificate(certificate, state.turns(rows.at(-1)!.entry));
      return { ...this.#advanced(committee, certificate.statement, index, isOurs), floor };
    });
    this.#head = rows.at(-1)!.head;
    this.#measure();
    this.#window = isOurs ? this.#window.slice(rows.length) : [];
    this.#votes.sweep();
    this.#trouble = null;
    this.#pause = this.#againMs;
    for (const id of [...rows.map(({ entry }) => hex(sha256(entry))), ANYTHING]) {
      for (const wake of this.#waiting.get(id) ?? []) wake();
    }
    if (this.engine().name !== name) this.#changeEngine();
  }

  /** Marks and lock when what is applied goes further. Called in the transaction, after the state has changed. */
  #advanced(
    before: Digest,
    { committee, view }: HeadStatement,
    applied: number,
    isOurs: boolean,
  ): Omit<Marks, 'floor'> {
    const { digest } = this.#lent.state.committee();
    if (digest !== before) {
      // Another committee, whose views begin anew: this validator has not voted in it yet.
      this.#store.setLock(undefined);
      this.#store.setApproved(undefined);
      return { applied, view: digest === committee ? view : 0, voted: applied, lost: 0 };
    }
    const { view: present, voted, lost } = this.#marks;
    // What was prepared in later views, or further on in this one, continues it; what was prepared earlier was not committed.
    const isKept = this.#lock !== undefined && this.#lock.index > applied && this.#lock.view >= view;
    if (!isKept) this.#store.setLock(undefined);
    // A certificate of a later view: that began.
    if (view > present) return { applied, view, voted: applied, lost: 0 };
    return { applied, view: present, voted, lost: isOurs ? lost : Math.max(lost, voted) };
  }

  #isSnapshotDue(base: number): boolean {
    const { entries, bytes } = this.#since;
    return base > this.#base && (entries >= this.#snapshotEntries || bytes >= SNAPSHOT_BYTES);
  }

  /** After what is kept has changed. */
  #measure(): void {
    const base = this.#store.snapshot()?.base ?? 0;
    const { floor } = this.#marks;
    if (base !== this.#base && floor > this.#origin) {
      // Of use to nobody any more: who is so far behind begins with a snapshot.
      this.#engine?.sequencer.forget(floor - this.#origin, { signal: this.#closing.signal }).catch(() => undefined);
    }
    this.#base = base;
    this.#since = this.#store.sizeAfter(base);
  }

  #changeEngine(): void {
    void this.#leaveEngine();
    for (const waiters of this.#waiting.values()) for (const wake of waiters) wake();
  }

  get #origin(): number {
    return this.engine().origin;
  }

  // The other validators.

  #told(): VoteExchange {
    return { applied: this.#marks.applied, ...this.#votes.told(), recovery: this.recovery() ?? null };
  }

  #tellAll(): void {
    const { validators } = this.#lent.state.committee();
    const sits = validators.some(({ key }) => key === this.#self);
    if (sits) for (const seat of validators) if (seat.key !== this.#self) void this.#talk(seat, () => this.#tell(seat));
    // Who has no seat, or not yet, follows what is certified, from one after the other.
    const knowing = this.#knowing().filter(({ key }) => !sits || !validators.some((seat) => seat.key === key));
    if (knowing.length === 0) return;
    this.#turn += 1;
    const seat = knowing[this.#turn % knowing.length]!;
    void this.#talk(seat, () => this.#catchUp(seat));
  }

  /** Who may have more of the order than this node. */
  #knowing(): readonly Seat[] {
    const { validators } = this.#lent.state.committee();
    const seats = new Map([...validators, ...this.#lent.state.heirs()].map((seat) => [seat.key, seat]));
    seats.delete(this.#self);
    return [...seats.values()];
  }

  /** One conversation at a time with each, and at most one that waits; who is silent holds nobody up. */
  async #talk(seat: Seat, talk: () => Promise<void>): Promise<void> {
    const peer = this.#peers.get(seat.key) ?? { busy: false, again: false };
    this.#peers.set(seat.key, peer);
    peer.again = true;
    if (peer.busy) return;
    peer.busy = true;
    try {
      while (peer.again && !this.#closing.signal.aborted) {
        peer.again = false;
        await talk();
      }
    } catch (error) {
      // Silent, or not one of us: the timer asks again. An answer that came when this ended finds no store to put it in.
      if (this.#closing.signal.aborted) return;
      if (!isCoded(error)) throw error;
      if (error.code === 'order-stopped' || error.code.startsWith('storage-')) this.#trouble = error.message;
    } finally {
      peer.busy = false;
    }
  }

  async #tell(seat: Seat): Promise<void> {
    const told = this.#told() as unknown as Json;
    const said = await this.#lent.ask(seat, 'order/votes', told).catch((error: unknown) => {
      // Another committee is in office, and this node has no seat in it: what made it so is certified.
      if (isCoded(error, 'not-permitted')) return undefined;
      throw error;
    });
    if (said === undefined) return this.#catchUp(seat);
    const answer = decodeVoteExchange(said);
    await this.#learn(answer);
    this.#claimed = Math.max(this.#claimed, answer.applied);
    if (answer.applied > this.#marks.applied) await this.#catchUp(seat);
    const { after } = this.#pending() ?? {};
    if (after !== undefined && !this.#has(after)) await this.#takeTail(seat);
  }

  async #learn({ recovery, ...votes }: VoteExchange): Promise<void> {
    if (recovery !== null && (await this.#isApproved(recovery))) this.recover(recovery);
    if (await this.#votes.hear(votes)) this.#kick();
  }

  /** Whether a quorum of the present committee signed it. What is known already is not looked at again. */
  async #isApproved(recovery: ApprovedRecovery): Promise<boolean> {
    const { moves, after } = recovery.statement;
    const { state } = this.#lent;
    if (moves !== state.engine().moves || after === undefined) return false;
    const isKnown = after.view < this.#marks.view || after.view <= (this.#pending()?.after.view ?? 0);
    return !isKnown && this.#isByQuorum(SEQUENCER_TYPE, recovery, state.committee());
  }

  /** The validators that were shown other entries than this one. */
  #split(): readonly string[] {
    const { applied, view } = this.#marks;
    return this.#votes.beside(view, (index) => this.#window[index - applied - 1]?.head);
  }

  #splitTrouble(): string | null {
    const { length } = this.#lent.state.committee().validators;
    const split = this.#split().length;
    // So few may be liars themselves.
    if (split <= length - quorumOf(length)) return null;
    return `the engine seems to have shown other entries to ${split} of ${length} validators than to this one`;
  }

  /** Certified parts from one validator, until it has no more, or another one takes over. Nothing is believed: certificate, chain and state have to fit. */
  async #catchUp(seat: Seat): Promise<void> {
    if (!this.#isTurnOf(seat)) return;
    const nowMs = performance.now();
    const { length } = this.#lent.state.committee().validators;
    if (this.#catching !== undefined) this.#rests.set(this.#catching.key, nowMs + TURN_MS * length);
    const turn: Turn = { key: seat.key, sinceMs: nowMs };
    this.#catching = turn;
    this.#caughtAtMs = nowMs;
    try {
      for (let parts = 0; parts < PARTS_MAX && this.#catching === turn && !this.#closing.signal.aborted; parts += 1) {
        const after = this.#marks.applied;
        const first = this.#head;
        const part = decodeCertifiedPart(await this.#lent.ask(seat, 'order/part', { after }));
        const { certificate } = part;
        if (certificate === null) {
          if (part.floor <= after || !this.#isNext(seat) || !(await this.#loadFrom(seat))) return;
          continue;
        }
        if (!(await this.#isByQuorum(HEAD_TYPE, certificate, this.#lent.state.committee()))) throw lied(seat);
        // Votes may have brought this node further meanwhile.
        if (this.#marks.applied !== after) continue;
        this.#apply(certificate, this.#chained(seat, part, { index: after, head: first }));
        this.#caughtAtMs = performance.now();
        this.#kick();
      }
    } finally {
      if (this.#catching === turn) this.#catching = undefined;
    }
  }

  /**
   * Whether parts may come from that one: from one at a time, which gives way when it is slow, and when its turn is over to each of the others before it has another one. So nobody
   * who sends little, but always something, holds this node up for longer than its share of the time. With nobody else to ask nobody has to give way.
   */
  #isTurnOf({ key }: Seat): boolean {
    const turn = this.#catching;
    const nowMs = performance.now();
    if (turn === undefined || nowMs - this.#caughtAtMs >= SLOW_MS || this.#isOverdue()) return true;
    const isOver = this.#loading === undefined && nowMs - turn.sinceMs >= TURN_MS;
    return isOver && nowMs >= (this.#rests.get(key) ?? 0);
  }

  /** The entries of a part with the heads that they lead to, the last one of which is certified. */
  #chained(
    seat: Seat,
    { certificate, entries }: CertifiedPart,
    after: { readonly index: number; readonly head: string },
  ): readonly Row[] {
    const rows = this.#rowsAfter(after.head, entries.map(fromBase64));
    const { index, head } = certificate!.statement;
    const hasTurnWithin = rows.slice(0, -1).some(({ entry }) => this.#lent.state.turns(entry));
    if (index !== after.index + rows.length || rows.at(-1)!.head !== head || hasTurnWithin) throw lied(seat);
    return rows;
  }

  #rowsAfter(head: string, entries: readonly Uint8Array[]): readonly Row[] {
    const rows: Row[] = [];
    for (const entry of entries) rows.push({ entry, head: nextHead(rows.at(-1)?.head ?? head, entry) });
    return rows;
  }

  /** Whether that one may bring its snapshot: while another one does not, or takes too long. */
  #isNext({ key }: Seat): boolean {
    if (this.#loading !== undefined && !this.#isOverdue()) return false;
    return performance.now() >= (this.#sources.get(key)?.restsUntilMs ?? 0);
  }

  #isOverdue(): boolean {
    const loading = this.#loading;
    return loading !== undefined && performance.now() - loading.sinceMs > loading.patienceMs;
  }

  /**
   * In the place of whoever was at it. Each gets its turn and twice the time in the next one, and rests after it until all others had theirs: so nobody who sends little, or facts
   * that belong to no state, holds this node up for longer than an honest one needs. With nobody else to ask nobody has to give way. Whether that brought this node further.
   */
  async #loadFrom(seat: Seat): Promise<boolean> {
    this.#loading?.ends.abort();
    const { turns } = this.#sources.get(seat.key) ?? { turns: 0 };
    const sinceMs = performance.now();
    const loading = { sinceMs, patienceMs: this.#loadMs * 2 ** turns, ends: new AbortController() };
    this.#loading = loading;
    let isLoaded = false;
    try {
      isLoaded = await this.#load(seat, loading.ends.signal);
      return isLoaded;
    } finally {
      const nowMs = performance.now();
      const restsUntilMs = nowMs + (nowMs - sinceMs) * this.#lent.state.committee().validators.length;
      const isOvertaken = this.#loading !== loading;
      if (isLoaded) this.#sources.clear();
      else this.#sources.set(seat.key, { turns: Math.min(turns + Number(isOvertaken), LOAD_TURNS_MAX), restsUntilMs });
      if (!isOvertaken) this.#loading = undefined;
      // The others are asked soon.
      if (!isLoaded && nowMs - sinceMs > this.#loadMs) {
        this.#pause = this.#againMs;
        this.#schedule();
      }
    }
  }

  /**
   * Begins anew with the snapshot of a validator that does not have the entries any more which this node needs next. Nothing is believed: a committee that follows from those
   * known here certified the digest of the state, the facts have that digest, and the entries after them lead on to a certified head. Whether that brought this node further.
   * Errors: `peer-lied`, `timeout` (it had to give way).
   */
  async #load(seat: Seat, ends: AbortSignal): Promise<boolean> {
    const { state } = this.#lent;
    const ask = async (method: LogMethod, body: Json) => {
      const said = await this.#lent.ask(seat, method, body);
      if (!ends.aborted) return said;
      throw new HyperMeshError('timeout', `Validator ${seat.key.slice(0, 12)} takes too long for its snapshot.`);
    };
    let { epoch } = state.committee();
    let answer = decodeSnapshot(await ask('order/snapshot', { epoch }));
    while (
      answer.snapshot !== null &&
      answer.documents.length > 0 &&
      state.committeeOf(answer.snapshot.certificate.statement.committee) === undefined
    ) {
      // Known ones again would lead nowhere, for ever.
      const last = state.learn(answer.documents);
      if (last <= epoch) throw lied(seat);
      epoch = last;
      answer = decodeSnapshot(await ask('order/snapshot', { epoch }));
    }
    const { snapshot } = answer;
    if (snapshot === null) return false;
    const { base, head, certificate } = snapshot;
    const committee = state.committeeOf(certificate.statement.committee);
    if (committee === undefined || !(await this.#isByQuorum(HEAD_TYPE, certificate, committee))) throw lied(seat);
    if (ends.aborted) return false;
    this.#lent.store.transact(() => state.receive(null));
    let bytes = 0;
    for (let after = ''; ; ) {
      const { facts, isLast } = decodeFacts(await ask('order/facts', { base, after }));
      // Another one is in its place by now.
      if (facts === null) return false;
      const [first] = facts;
      if (first !== undefined && first[0] <= after) throw lied(seat);
      if (first === undefined && !isLast) throw lied(seat);
      bytes += facts.reduce((sum, [key, value]) => sum + key.length + value.length, 0);
      if (bytes > this.#stateBytesMax) throw lied(seat);
      this.#lent.store.transact(() => state.receive(facts));
      this.#caughtAtMs = performance.now();
      if (isLast) break;
      after = facts.at(-1)![0];
    }
    if (state.receivedRoot() !== certificate.statement.stateRoot) throw lied(seat);
    // That the entries before it lead to that head follows from where it leads to.
    const part = decodeCertifiedPart(await ask('order/part', { after: base }));
    if (part.certificate === null || !(await this.#isByQuorum(HEAD_TYPE, part.certificate, committee)))
      throw lied(seat);
    this.#chained(seat, part, { index: base, head });
    const { applied } = this.#marks;
    if (ends.aborted || applied >= base) return false;
    const at = this.#window[base - applied - 1];
    const isOurs = at === undefined || at.head === head;
    const { name } = this.engine();
    const { digest: before } = state.committee();
    // Commit point: the snapshot is in the place of everything before it.
    this.#mark(() => {
      this.#store.dropUpTo(base);
      if (!isOurs) this.#store.dropAfter(base);
      this.#store.setSnapshot(snapshot);
      state.replace();
      return { ...this.#advanced(before, certificate.statement, base, isOurs), floor: base };
    });
    this.#head = head;
    this.#window = isOurs ? this.#window.slice(base - applied) : [];
    this.#votes.sweep();
    this.#trouble = null;
    this.#pause = this.#againMs;
    this.#measure();
    if (this.engine().name !== name) this.#changeEngine();
    this.#kick();
    return true;
  }

  /** Whether it is the word of that committee, about this network. */
  async #isByQuorum<S extends { readonly networkId: Digest; readonly committee: Digest }>(
    type: string,
    { statement, attestations }: ByQuorum<S>,
    { digest, validators }: Committee,
  ): Promise<boolean> {
    if (statement.networkId !== this.#networkId || statement.committee !== digest) return false;
    if (attestations.length < quorumOf(validators.length)) return false;
    const seats = new Map(validators.map((seat) => [seat.key, seat]));
    for (const attestation of attestations) {
      const seat = seats.get(attestation.validator);
      if (seat === undefined || !(await this.#lent.trust.attested(attestation, type, statement, seat))) return false;
    }
    return true;
  }

  // The engine.

  /** The present one, followed; undefined when it cannot be used from this machine, which the status says. */
  #open(): OpenEngine | undefined {
    if (this.#closing.signal.aborted) return undefined;
    const { name, place } = this.engine();
    if (this.#engine?.name === name) return this.#engine;
    try {
      const sequencer = this.#lent.engine(place, `${this.#networkId.slice(7)}-${name}`);
      const engine = { name, sequencer, ends: new AbortController(), length: 0, passed: 0 };
      this.#engine = engine;
      void this.#follow(engine);
      return engine;
    } catch (error) {
      if (!isCoded(error)) throw error;
      this.#trouble = error.message;
      return undefined;
    }
  }

  async #follow(engine: OpenEngine): Promise<void> {
    const { signal } = engine.ends;
    while (!signal.aborted) {
      // What was certified it had.
      const from = Math.max(0, this.#marks.applied - this.#origin);
      try {
        for await (const length of engine.sequencer.watch(from, signal)) this.#grew(engine.name, length);
        return;
      } catch (error) {
        if (!isCoded(error)) throw error;
        if (!signal.aborted) this.#trouble = error.message;
        await rest(4 * AGAIN_MS, signal);
      }
    }
  }

  #grew(name: string, length: number): void {
    const engine = this.#engine;
    if (engine === undefined || engine.name !== name || engine.length >= length) return;
    engine.length = length;
    this.#kick();
  }

  async #leaveEngine(): Promise<void> {
    const engine = this.#engine;
    this.#engine = undefined;
    engine?.ends.abort();
    await engine?.sequencer[Symbol.asyncDispose]();
  }

  #tip(): number {
    return this.#marks.applied + this.#window.length;
  }

  /** One transaction; what this object remembers changes after it. */
  #mark(write: () => Marks): void {
    this.#marks = this.#store.transact(() => {
      const marks = write();
      this.#store.setMarks(marks);
      return marks;
    });
    this.#lock = this.#store.lock();
    this.#approved = this.#store.approved();
  }

  /** Resolves when that entry was applied, or the engine changed, or after that time, or at the end. */
  #applied(id: string, ms: number | undefined, ends: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const waiters = this.#waiting.get(id) ?? new Set();
      this.#waiting.set(id, waiters);
      const wake = () => {
        clearTimeout(timer);
        ends.removeEventListener('abort', wake);
        waiters.delete(wake);
        if (waiters.size === 0) this.#waiting.delete(id);
        resolve();
      };
      const timer = ms === undefined ? undefined : setTimeout(wake, ms);
      ends.addEventListener('abort', wake);
      waiters.add(wake);
      if (ends.aborted) wake();
    });
  }

  /** Asks again, in case something got lost; alone with nothing to wait for there is nobody to ask. */
  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#closing.signal.aborted) return;
    const isBehind = (this.#engine?.length ?? 0) > this.#tip() - this.#origin;
    const isWaiting =
      isBehind ||
      this.#claimed > this.#marks.applied ||
      this.#window.length > 0 ||
      this.#waiting.size > 0 ||
      this.#lent.state.heirs().length > 0;
    if (this.#isAlone() && !isWaiting) return;
    this.#timer = setTimeout(
      () => {
        this.#pause = isWaiting ? Math.min(2 * this.#pause, AGAIN_MS_MAX) : this.#againMs;
        this.#tellAll();
        this.#kick();
      },
      isWaiting ? this.#pause : IDLE_MS,
    );
    this.#timer.unref();
  }

  #isAlone(): boolean {
    return this.#lent.state.committee().validators.every(({ key }) => key === this.#self);
  }
}

function placeOf({ view, index, head }: PrepareStatement): RecoveryPlace {
  return { view, index, head };
}

function isFurther({ view, index }: PrepareStatement, than: Lock | undefined): boolean {
  return than === undefined || view > than.view || (view === than.view && index > than.index);
}

function diverged(base: number): HyperMeshError {
  return new HyperMeshError(
    'order-stopped',
    `This node computed another state up to entry ${base} than the committee.`,
    {
      hint: 'It runs another version of HyperMesh than the others, or its database was altered: restore it from a state export.',
    },
  );
}

function lied({ key }: Seat): HyperMeshError {
  return new HyperMeshError('peer-lied', `Validator ${key.slice(0, 12)} sent a part of the order that does not fit.`);
}
