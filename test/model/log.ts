import { quorumOf } from '../../src/wire/genesis.ts';
import type { Action, Model } from './explore.ts';

/**
 * How the ordered log becomes one order that nobody has to be trusted for: validators vote for its *heads*. A head is written here as the entries that
 * lead to it, `XY` being Y after X, as its hash chain would fix them.
 *
 * The sequencer offers entries. An orderly one, which can crash and lose nothing, offers one sequence; a lying one shows anybody anything at any time.
 * The network, certificates and dishonest validators are abstracted as in `votes.ts`.
 */
export interface LogRules {
  readonly validators: number;
  readonly dishonest: number;
  /** Length of the longest log. */
  readonly entries: number;
  readonly sequencer: 'orderly' | 'lying';
  readonly mistake?: LogMistake;
}

export type LogMistake =
  | 'a quorum of 2f'
  | 'the vote is stored after it was sent'
  | 'one head for each index and no more than that';

interface Honest {
  /** Heads it voted for: in memory, on disk, and sent. */
  readonly known: readonly string[];
  readonly disk: readonly string[];
  readonly sent: readonly string[];
  /** The longest head whose certificate it has seen. */
  readonly certified: string;
}

export interface LogState {
  readonly honest: readonly Honest[];
}

export class LogModel implements Model<LogState> {
  readonly initial: LogState;
  readonly quorum: number;
  readonly #rules: LogRules;
  readonly #heads: readonly string[];

  constructor(rules: LogRules) {
    this.#rules = rules;
    this.quorum = rules.mistake === 'a quorum of 2f' ? 2 * rules.dishonest : quorumOf(rules.validators);
    const letters = rules.sequencer === 'lying' ? ['X', 'Y'] : ['X'];
    const heads: string[] = [];
    for (let level = ['']; level[0]!.length < rules.entries; ) {
      level = level.flatMap((head) => letters.map((letter) => head + letter));
      heads.push(...level);
    }
    this.#heads = heads;
    const honest: Honest = { known: [], disk: [], sent: [], certified: '' };
    this.initial = { honest: Array<Honest>(rules.validators - rules.dishonest).fill(honest) };
  }

  key({ honest }: LogState): string {
    const each = honest.map(({ known, disk, sent, certified }) =>
      [known.join(), disk.join(), sent.join(), certified].join(';'),
    );
    return each.sort().join('|');
  }

  *actions(state: LogState): Iterable<Action<LogState>> {
    yield* this.helpful(state);
    for (const [at, validator] of state.honest.entries()) {
      if (validator.known.length !== validator.disk.length)
        yield step(`${at} crashes`, state, at, { ...validator, known: validator.disk });
    }
  }

  /** What honest validators do while their messages get through. */
  *helpful(state: LogState): Iterable<Action<LogState>> {
    const isLate = this.#rules.mistake === 'the vote is stored after it was sent';
    const seen = new Set<string>();
    for (const [at, validator] of state.honest.entries()) {
      const like = JSON.stringify(validator);
      if (seen.has(like)) continue;
      seen.add(like);
      const { known, disk, sent, certified } = validator;
      for (const head of this.#heads) {
        if (this.#mayVote(validator, head)) {
          const voted = [...known, head].sort();
          const next = isLate ? { ...validator, known: voted } : { ...validator, known: voted, disk: voted };
          yield step(`${at} decides for ${head}`, state, at, next);
        }
        if (head.length > certified.length && this.certified(state, head))
          yield step(`${at} sees the certificate of ${head}`, state, at, { ...validator, certified: head });
      }
      for (const head of known) {
        if (!sent.includes(head))
          yield step(`${at} votes for ${head}`, state, at, { ...validator, sent: [...sent, head].sort() });
      }
      if (disk.length < known.length) yield step(`${at} stores its votes`, state, at, { ...validator, disk: known });
    }
  }

  /**
   * The rule: a head beyond everything that it voted for and that is certified. It continues the longest certified head that the validator knows, and each
   * of its own votes that goes beyond this one; a vote that lost to a certificate binds no more. Heads may be skipped.
   */
  #mayVote({ known, certified }: Honest, head: string): boolean {
    if (this.#rules.mistake === 'one head for each index and no more than that')
      return known.every((own) => own.length !== head.length);
    return (
      head.length > certified.length &&
      head.startsWith(certified) &&
      known.every((own) => own.length < head.length && (own.length <= certified.length || head.startsWith(own)))
    );
  }

  /** Whether votes for a certificate of exactly this head were sent, those of dishonest validators included. */
  certified(state: LogState, head: string): boolean {
    return this.#votesFor(state, head) + this.#rules.dishonest >= this.quorum;
  }

  /** Two certified heads of which none continues the other. */
  hasConflict(state: LogState): boolean {
    const certified = this.#heads.filter((head) => this.certified(state, head));
    return certified.some((head) => certified.some((other) => !head.startsWith(other) && !other.startsWith(head)));
  }

  /** Whether an honest validator holds a certificate of the whole log, or can get one without any further dishonest vote. */
  isComplete(state: LogState): boolean {
    const whole = this.#heads.filter((head) => head.length === this.#rules.entries);
    return (
      whole.some((head) => this.#votesFor(state, head) >= this.quorum) ||
      state.honest.some(({ certified }) => whole.includes(certified))
    );
  }

  /** Whether honest validators decided for heads that cannot both be in one log. */
  isSplit({ honest }: LogState): boolean {
    const voted = honest.flatMap(({ disk }) => disk);
    return voted.some((head) => voted.some((other) => !head.startsWith(other) && !other.startsWith(head)));
  }

  #votesFor({ honest }: LogState, head: string): number {
    return honest.filter(({ sent }) => sent.includes(head)).length;
  }
}

function step(label: string, state: LogState, at: number, validator: Honest): Action<LogState> {
  return { name: label, to: { honest: state.honest.with(at, validator) } };
}
