import { quorumOf } from '../../src/wire/genesis.ts';
import type { Action, Model } from './explore.ts';

/**
 * The vote rule of the committee (docs/protocol/admission.md) as a state machine, small enough to be explored whole.
 *
 * One publisher signed one operation, or two that conflict: the same sequence number, or one version with two contents. `n - f` validators follow the
 * rule, `f` do whatever they like. Abstracted, each time to *more* than can really happen:
 * - the network: a message that was sent stays available for ever, or is never used. Loss, delay, repetition and order are in there;
 * - certificates: whoever likes puts together whatever was sent, so a certificate exists as soon as the votes for it do;
 * - dishonest validators vote for everything in every epoch, and hand over any selection of what the publisher signed. They cannot sign for others;
 * - the ordered log is one order that each validator follows at its own pace; `log.ts` is about how it becomes one;
 * - proofs, time and stake only ever make an honest validator refuse, which it may do here at any time by not moving.
 */
export interface VoteRules {
  readonly validators: number;
  readonly dishonest: number;
  /** Epochs one after the other; the committee of each has as many members and remembers no votes of the one before. */
  readonly epochs: number;
  /** Whether the publisher signed two operations that conflict. */
  readonly equivocates: boolean;
  readonly mistake?: VoteMistake;
}

/** Rules that are not ours, each wrong in a way that the exploration must find. */
export type VoteMistake =
  | 'a quorum of 2f'
  | 'the vote is stored after it was sent'
  | 'nothing is handed over'
  | 'what has a certificate is not handed over'
  | 'handed over while still voting'
  | 'of two operations one wins'
  | 'handed over for one epoch only';

/** The two operations as bits, so that sets of them are numbers. */
const A = 1;
const B = 2;
const name = (operation: number) => (operation === A ? 'A' : 'B');

/** What an honest validator did in one epoch: the operation it remembers, the one on its disk, and those that its signed votes are for. */
interface Ballot {
  readonly known: number;
  readonly disk: number;
  readonly sent: number;
}

interface Honest {
  readonly ballots: readonly Ballot[];
  /** How far it followed the log: the epoch it is in, and whether it knows that this one ends. */
  readonly epoch: number;
  readonly hasStopped: boolean;
  readonly hasHandedOver: boolean;
}

export interface VoteState {
  readonly honest: readonly Honest[];
  /** What the ordered log says. */
  readonly epoch: number;
  readonly isEnding: boolean;
  /** Operations in the handovers of the epoch that ends; how many of these are by dishonest validators. */
  readonly named: number;
  readonly dishonestHandovers: number;
  /** Operations that earlier epochs handed over, and those whose certificate somebody had recorded. */
  readonly bound: number;
  readonly recorded: number;
  /** What may be voted for in each epoch, fixed when it opened. */
  readonly votable: readonly number[];
}

export class VoteModel implements Model<VoteState> {
  readonly initial: VoteState;
  readonly quorum: number;
  readonly #rules: VoteRules;
  readonly #signed: readonly number[];

  constructor(rules: VoteRules) {
    this.#rules = rules;
    this.#signed = rules.equivocates ? [A, B] : [A];
    this.quorum = rules.mistake === 'a quorum of 2f' ? 2 * rules.dishonest : quorumOf(rules.validators);
    const ballot: Ballot = { known: 0, disk: 0, sent: 0 };
    const honest: Honest = {
      ballots: Array<Ballot>(rules.epochs).fill(ballot),
      epoch: 0,
      hasStopped: false,
      hasHandedOver: false,
    };
    this.initial = {
      honest: Array<Honest>(rules.validators - rules.dishonest).fill(honest),
      epoch: 0,
      isEnding: false,
      named: 0,
      dishonestHandovers: 0,
      bound: 0,
      recorded: 0,
      votable: [A | B],
    };
  }

  /** Honest validators are alike: which of them did what does not matter. */
  key({ honest, ...log }: VoteState): string {
    const each = honest.map(
      ({ ballots, epoch, hasStopped, hasHandedOver }) =>
        ballots.map(({ known, disk, sent }) => (known << 4) | (disk << 2) | sent).join('.') +
        (4 * epoch + 2 * Number(hasStopped) + Number(hasHandedOver)),
    );
    const { epoch, isEnding, named, dishonestHandovers, bound, recorded, votable } = log;
    return `${each.sort().join()}|${epoch}${isEnding ? '!' : ''}${named}${dishonestHandovers}${bound}${recorded}${votable.join('')}`;
  }

  *actions(state: VoteState): Iterable<Action<VoteState>> {
    yield* this.helpful(state, { endsEpochs: true });
    yield* this.#dishonest(state);
    for (const [at, validator] of state.honest.entries()) {
      for (const [epoch, { known, disk }] of validator.ballots.entries()) {
        // Only what the disk has is left. Where that is everything, a crash changes nothing but what was on its way.
        if (known !== disk) yield step(`${at} crashes`, state, at, withBallot(validator, epoch, { known: disk }));
      }
    }
  }

  /** What honest validators, and a publisher whose messages get through, do by themselves. */
  *helpful(state: VoteState, { endsEpochs }: { readonly endsEpochs: boolean }): Iterable<Action<VoteState>> {
    const seen = new Set<string>();
    for (const [at, validator] of state.honest.entries()) {
      // Of several validators in the same state one speaks for all.
      const like = JSON.stringify(validator);
      if (seen.has(like)) continue;
      seen.add(like);
      yield* this.#votes(state, at, validator);
      yield* this.#follows(state, at, validator);
    }
    yield* this.#ordered(state, endsEpochs);
  }

  *#votes(state: VoteState, at: number, validator: Honest): Iterable<Action<VoteState>> {
    const { epoch, hasStopped, ballots } = validator;
    const { known } = ballots[epoch]!;
    const isLate = this.#rules.mistake === 'the vote is stored after it was sent';
    for (const operation of this.#signed) {
      // The vote rule, one transaction: this epoch, nothing else voted for in it, nothing that an earlier epoch bars.
      if (hasStopped || known !== 0 || (state.votable[epoch]! & operation) === 0) continue;
      const stored = isLate ? { known: operation } : { known: operation, disk: operation };
      yield step(`${at} decides for ${name(operation)}`, state, at, withBallot(validator, epoch, stored));
    }
    for (const [when, ballot] of ballots.entries()) {
      if (ballot.known === 0) continue;
      if ((ballot.sent & ballot.known) === 0) {
        const sent = ballot.sent | ballot.known;
        yield step(`${at} sends its vote for ${name(ballot.known)}`, state, at, withBallot(validator, when, { sent }));
      }
      if (ballot.disk !== ballot.known)
        yield step(`${at} stores its vote`, state, at, withBallot(validator, when, { disk: ballot.known }));
    }
  }

  *#follows(state: VoteState, at: number, validator: Honest): Iterable<Action<VoteState>> {
    const { epoch, hasStopped, hasHandedOver, ballots } = validator;
    if (!hasStopped && (epoch < state.epoch || state.isEnding))
      yield step(`${at} stops voting in epoch ${epoch}`, state, at, { ...validator, hasStopped: true });
    if (epoch < state.epoch) {
      const next = { ...validator, epoch: epoch + 1, hasStopped: false, hasHandedOver: false };
      yield step(`${at} enters epoch ${epoch + 1}`, state, at, next);
    }
    const { mistake } = this.#rules;
    const mayHandOver = hasStopped || mistake === 'handed over while still voting';
    if (mayHandOver && !hasHandedOver && epoch === state.epoch && state.isEnding) {
      let { disk } = ballots[epoch]!;
      if (mistake === 'nothing is handed over') disk = 0;
      if (mistake === 'what has a certificate is not handed over' && this.certified(state, epoch, disk)) disk = 0;
      const { to } = step('', state, at, { ...validator, hasHandedOver: true });
      yield { name: `${at} hands over`, to: { ...to, named: state.named | disk } };
    }
  }

  /** Entries that whoever gets them ordered, and what follows from them. */
  *#ordered(state: VoteState, endsEpochs: boolean): Iterable<Action<VoteState>> {
    const { epoch, isEnding, named, dishonestHandovers, bound, recorded, votable } = state;
    for (const operation of this.#signed) {
      const isCertified = votable.some((_, when) => this.certified(state, when, operation));
      if (isCertified && (recorded & operation) === 0)
        yield {
          name: `the certificate of ${name(operation)} is recorded`,
          to: { ...state, recorded: recorded | operation },
        };
    }
    if (endsEpochs && !isEnding && epoch + 1 < this.#rules.epochs)
      yield { name: `epoch ${epoch} ends`, to: { ...state, isEnding: true } };
    const handovers = state.honest.filter(({ hasHandedOver }) => hasHandedOver).length + dishonestHandovers;
    if (!isEnding || handovers < this.quorum) return;
    const kept = this.#rules.mistake === 'handed over for one epoch only' ? named : bound | named;
    yield {
      name: `epoch ${epoch + 1} opens`,
      to: {
        ...state,
        // A handover of an epoch that is over is of no more use.
        honest: state.honest.map((one) => ({ ...one, hasHandedOver: false })),
        epoch: epoch + 1,
        isEnding: false,
        named: 0,
        dishonestHandovers: 0,
        bound: kept,
        votable: [...votable, this.#votableAfter(kept, recorded)],
      },
    };
  }

  /** A recorded certificate settles it. Of what was handed over one operation may be gone on with; two bar each other. */
  #votableAfter(bound: number, recorded: number): number {
    if (recorded !== 0) return recorded;
    if (bound === 0) return A | B;
    if (bound !== (A | B)) return bound;
    return this.#rules.mistake === 'of two operations one wins' ? A : 0;
  }

  *#dishonest(state: VoteState): Iterable<Action<VoteState>> {
    if (!state.isEnding || state.dishonestHandovers >= this.#rules.dishonest) return;
    const selections = this.#rules.equivocates ? [0, A, B, A | B] : [0, A];
    for (const named of selections)
      yield {
        name: `a dishonest validator hands over ${named}`,
        to: { ...state, named: state.named | named, dishonestHandovers: state.dishonestHandovers + 1 },
      };
  }

  /** Whether votes for a certificate were sent, those of dishonest validators included. */
  certified(state: VoteState, epoch: number, operation: number): boolean {
    return operation !== 0 && this.#votesFor(state, epoch, operation) + this.#rules.dishonest >= this.quorum;
  }

  /** Whether there is a certificate without any dishonest vote. */
  isAdmitted(state: VoteState): boolean {
    return this.#signed.some((operation) =>
      state.votable.some((_, epoch) => this.#votesFor(state, epoch, operation) >= this.quorum),
    );
  }

  /** Two certificates that conflict. */
  hasConflict(state: VoteState): boolean {
    const certified = (operation: number) => state.votable.some((_, epoch) => this.certified(state, epoch, operation));
    return certified(A) && certified(B);
  }

  /** Whether an honest validator voted for two operations within one epoch. */
  hasDoubleVote(state: VoteState): boolean {
    return state.honest.some(({ ballots }) => ballots.some(({ sent }) => sent === (A | B)));
  }

  /**
   * Whether the two operations stand in each other's way now: each was decided for by an honest validator in the present epoch, or is named by a handover.
   * Without a publisher who signed both this cannot be.
   */
  isContested(state: VoteState): boolean {
    const decided = state.honest.reduce((seen, { ballots }) => seen | ballots[state.epoch]!.disk, 0);
    return (decided | state.bound | state.named) === (A | B);
  }

  /** Whether neither operation can be voted for any more; the publisher goes on with its next sequence number. */
  isBarred({ votable, epoch }: VoteState): boolean {
    return votable[epoch] === 0;
  }

  #votesFor({ honest }: VoteState, epoch: number, operation: number): number {
    return honest.filter(({ ballots }) => (ballots[epoch]!.sent & operation) !== 0).length;
  }
}

function withBallot(validator: Honest, epoch: number, change: Partial<Ballot>): Honest {
  return { ...validator, ballots: validator.ballots.with(epoch, { ...validator.ballots[epoch]!, ...change }) };
}

function step(label: string, state: VoteState, at: number, validator: Honest): Action<VoteState> {
  return { name: label, to: { ...state, honest: state.honest.with(at, validator) } };
}
