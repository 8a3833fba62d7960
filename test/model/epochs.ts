import { quorumOf } from '../../src/wire/genesis.ts';
import type { Action, Model } from './explore.ts';
import {
  A,
  applied,
  B,
  BOTH,
  type Clash,
  founded,
  isRecorded,
  isVotable,
  namedIn,
  nameOf,
  OPERATIONS,
  type Ordered,
  type OrderedEntry,
  type OrderedMistake,
  type OrderedRules,
} from './ordered.ts';

/**
 * How one committee takes over from another (docs/protocol/admission.md): four validators in each epoch, of which one is a liar, and some of the others sit in several. Each
 * follows the order at its own pace and judges by what its own copy says; it votes for one operation, for ever, on its disk before anybody sees it (`votes.ts` is about that).
 *
 * A publisher signed one operation, or two that conflict. Abstracted, each time to *more* than can really happen:
 * - the network and who makes the order: whatever was said can be used at any time, or never; entries come in whatever order;
 * - a crash: who crashed does nothing for a while, or for ever. All that a validator goes by is on its disk;
 * - certificates: whoever likes puts together what was voted for, and the order gets it, now, later or never;
 * - the liar votes for everything in every epoch, and hands over any selection of what the publisher signed. It cannot sign for others;
 * - a handover is one entry: `parts.ts` is about those in several.
 */
export interface EpochRules {
  readonly clash: Clash;
  /** Who of the honest validators sits in each epoch, the liar beside them. */
  readonly seats: readonly (readonly number[])[];
  /** Whether the publisher signed two operations that conflict. */
  readonly equivocates: boolean;
  /** Whether some are behind in the order; otherwise all follow at once, which makes few enough states for more epochs. */
  readonly lags: boolean;
  readonly mistake?: EpochMistake;
}

/** Rules that are not ours, each wrong in a way that the exploration must find. */
export type EpochMistake =
  | OrderedMistake
  | 'it votes before its order opened the epoch'
  | 'it votes on after its handover'
  | 'its handover leaves out what it voted for'
  | 'its handover leaves out what it knows to be certified';

/** What a validator goes by of its copy of the order. */
interface View {
  readonly id: number;
  readonly epoch: number;
  readonly isEnding: boolean;
  readonly votable: number;
  readonly recorded: number;
}

interface Honest {
  /** The one operation that it voted for. */
  readonly vote: number;
  /** In which epochs it did, and in which it votes no more, as bits. */
  readonly votedIn: number;
  readonly stoppedIn: number;
  readonly view: View;
}

/** Each value once, so that what follows from it is computed once. */
interface Known {
  readonly id: number;
  readonly order: Ordered;
  readonly view: View;
  readonly after: Map<string, Known>;
}

export interface EpochState {
  readonly known: Known;
  readonly honest: readonly Honest[];
}

const DISHONEST = 1;

export class EpochModel implements Model<EpochState> {
  readonly initial: EpochState;
  readonly #rules: EpochRules;
  readonly #ordered: OrderedRules;
  readonly #signed: readonly number[];
  readonly #liar: number;
  /** Validators with the same seats are alike: which of them did what does not matter. */
  readonly #alike: readonly number[];
  readonly #known = new Map<string, Known>();
  readonly #views = new Map<string, View>();

  constructor(rules: EpochRules) {
    this.#rules = rules;
    this.#signed = rules.equivocates ? OPERATIONS : [A];
    const persons = 1 + Math.max(...rules.seats.flat());
    this.#liar = 1 << persons;
    const seats = rules.seats.map((honest) => honest.reduce((sum, one) => sum | (1 << one), this.#liar));
    const quorum = quorumOf(rules.seats[0]!.length + DISHONEST);
    this.#ordered = { clash: rules.clash, quorum, seats, mistake: rules.mistake };
    const known = this.#intern(founded());
    const honest: Honest = { vote: 0, votedIn: 0, stoppedIn: 0, view: known.view };
    this.initial = { known, honest: Array<Honest>(persons).fill(honest) };
    this.#alike = this.initial.honest.map(
      (_, at) => rules.seats.reduce((sum, some) => 2 * sum + Number(some.includes(at)), 0) * CODES,
    );
  }

  key({ known, honest }: EpochState): string {
    return `${known.id},${honest.map((one, at) => this.#alike[at]! + codeOf(one)).sort((a, b) => a - b)}`;
  }

  *actions(state: EpochState): Iterable<Action<EpochState>> {
    yield* this.helpful(state, { endsEpochs: true });
    if (!state.known.order.isEnding) return;
    const lies = this.#rules.equivocates ? [0, A, B, BOTH] : [0, A];
    for (const named of lies)
      yield* this.#enter(state, `the liar hands over ${says(named)}`, { kind: 'handover', by: this.#liar, named });
  }

  /** What honest validators, and a publisher whose messages get through, do by themselves. */
  *helpful(state: EpochState, { endsEpochs }: { readonly endsEpochs: boolean }): Iterable<Action<EpochState>> {
    const seen = new Set<number>();
    for (const [at, one] of state.honest.entries()) {
      const like = this.#alike[at]! + codeOf(one);
      if (seen.has(like)) continue;
      seen.add(like);
      yield* this.#votes(state, at, one);
      yield* this.#handsOver(state, at, one);
      yield* this.#follows(state, at, one);
    }
    for (const operation of this.#signed) {
      if (this.certified(state, operation))
        yield* this.#enter(state, `the order gets the certificate of ${nameOf(operation)}`, {
          kind: 'certified',
          operation,
        });
    }
    const { epoch, isEnding } = state.known.order;
    if (endsEpochs && !isEnding && epoch + 1 < this.#rules.seats.length)
      yield* this.#enter(state, `epoch ${epoch} ends`, { kind: 'end' });
  }

  /** One transaction: in office by its own order, which has nothing against it, not stopped, and nothing else voted for. */
  *#votes(state: EpochState, at: number, one: Honest): Iterable<Action<EpochState>> {
    const { order } = state.known;
    const isEarly = this.#rules.mistake === 'it votes before its order opened the epoch';
    const last = isEarly ? order.epoch + Number(order.isEnding) : one.view.epoch;
    for (let epoch = one.view.epoch; epoch <= last; epoch++) {
      if (!this.#sits(at, epoch) || ((one.votedIn | one.stoppedIn) & (1 << epoch)) !== 0) continue;
      for (const operation of this.#signed) {
        if ((one.view.votable & operation) === 0 || (one.vote !== 0 && one.vote !== operation)) continue;
        const voted = { ...one, vote: operation, votedIn: one.votedIn | (1 << epoch) };
        yield step(state, at, `${at} votes for ${nameOf(operation)} in epoch ${epoch}`, voted);
      }
    }
  }

  /** It stops, and names what it voted for and its own order does not have as certified. */
  *#handsOver(state: EpochState, at: number, one: Honest): Iterable<Action<EpochState>> {
    const { epoch, isEnding, recorded } = one.view;
    const { order } = state.known;
    const { mistake } = this.#rules;
    const maySit = this.#sits(at, epoch) || mistake === 'who has no seat hands over';
    if (!isEnding || epoch !== order.epoch || !maySit || (order.handedOver & (1 << at)) !== 0) return;
    let named = (one.votedIn & (1 << epoch)) === 0 ? 0 : one.vote & ~recorded;
    if (mistake === 'its handover leaves out what it voted for') named = 0;
    if (mistake === 'its handover leaves out what it knows to be certified' && this.certified(state, named)) named = 0;
    const stoppedIn = mistake === 'it votes on after its handover' ? one.stoppedIn : one.stoppedIn | (1 << epoch);
    const { to } = step(state, at, '', { ...one, stoppedIn });
    yield* this.#enter(to, `${at} hands over ${says(named)}`, { kind: 'handover', by: 1 << at, named });
  }

  /** As far as the order goes: who is behind stands where it stood when it last did. */
  *#follows(state: EpochState, at: number, one: Honest): Iterable<Action<EpochState>> {
    const { view } = state.known;
    if (view === one.view || !this.#rules.seats.some((some, epoch) => epoch >= one.view.epoch && some.includes(at)))
      return;
    yield step(state, at, `${at} follows the order`, { ...one, view });
  }

  *#enter(state: EpochState, name: string, entry: OrderedEntry): Iterable<Action<EpochState>> {
    const known = this.#after(state.known, entry);
    if (known === state.known) return;
    const { view } = known;
    const honest = this.#rules.lags ? state.honest : state.honest.map((one) => ({ ...one, view }));
    yield { name, to: { known, honest } };
  }

  /** Whether there can be a certificate, with the votes of the liar. */
  certified(state: EpochState, operation: number): boolean {
    return operation !== 0 && this.#votesFor(state, operation) + DISHONEST >= this.#ordered.quorum;
  }

  hasConflict(state: EpochState): boolean {
    return this.certified(state, A) && this.certified(state, B);
  }

  /** Whether there is a certificate that nobody can keep back: without the liar, or in the order. */
  isAdmitted(state: EpochState): boolean {
    return (
      state.known.order.versions.some(({ isCertified }) => isCertified) ||
      this.#signed.some((operation) => this.#votesFor(state, operation) >= this.#ordered.quorum)
    );
  }

  /** Whether the publisher stands in its own way: both of what it signed was voted for, or named. */
  isContested({ known, honest }: EpochState): boolean {
    return honest.reduce((seen, { vote }) => seen | vote, namedIn(known.order)) === BOTH;
  }

  /** Whether nothing of it can be voted for any more; the publisher goes on with its next number. */
  isBarred({ known }: EpochState): boolean {
    return this.#signed.every((operation) => (known.view.votable & operation) === 0);
  }

  /** In one epoch, by its members. */
  #votesFor({ honest }: EpochState, operation: number): number {
    const counts = this.#rules.seats.map(
      (some, epoch) =>
        some.filter((at) => honest[at]!.vote === operation && (honest[at]!.votedIn & (1 << epoch)) !== 0).length,
    );
    return Math.max(...counts);
  }

  #sits(at: number, epoch: number): boolean {
    return this.#rules.seats[epoch]?.includes(at) ?? false;
  }

  #after(known: Known, entry: OrderedEntry): Known {
    const key = JSON.stringify(entry);
    let after = known.after.get(key);
    if (after === undefined) {
      after = this.#intern(applied(this.#ordered, known.order, entry));
      known.after.set(key, after);
    }
    return after;
  }

  #intern(order: Ordered): Known {
    const key = JSON.stringify(order);
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const these = (holds: typeof isVotable) =>
      OPERATIONS.reduce((sum, one) => sum | (holds(this.#ordered, order, one) ? one : 0), 0);
    const { epoch, isEnding } = order;
    const seen = { epoch, isEnding, votable: these(isVotable), recorded: these(isRecorded) };
    const like = JSON.stringify(seen);
    const view = this.#views.get(like) ?? { ...seen, id: this.#views.size };
    this.#views.set(like, view);
    const fresh = { id: this.#known.size, order, view, after: new Map<string, Known>() };
    this.#known.set(key, fresh);
    return fresh;
  }
}

/** What one validator did and knows, as a number. */
const CODES = 2 ** 24;
function codeOf({ vote, votedIn, stoppedIn, view }: Honest): number {
  return vote | (votedIn << 2) | (stoppedIn << 7) | (view.id << 12);
}

function step(state: EpochState, at: number, name: string, one: Honest): Action<EpochState> {
  return { name, to: { ...state, honest: state.honest.with(at, one) } };
}

function says(named: number): string {
  return named === 0
    ? 'nothing'
    : OPERATIONS.filter((one) => (named & one) !== 0)
        .map(nameOf)
        .join(' and ');
}
