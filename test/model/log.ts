import { quorumOf } from '../../src/wire/genesis.ts';
import type { Action, Model } from './explore.ts';

/**
 * How the log becomes one order that nobody has to be trusted for: validators vote twice for its *heads*, and go on in another *view* when their
 * operators say that the sequencer is lost. A head is written here as the entries that lead to it, `XY` being Y after X, as its hash chain would fix them.
 *
 * An orderly sequencer offers one sequence in each view; a lying one shows anybody anything at any time. The network and dishonest validators are
 * abstracted as in `votes.ts`: a dishonest one said everything, and what was said is heard at any time or never. So votes are counted, and it does not
 * matter whose they are. What an honest validator says is on its disk before, so that a crash changes nothing, but with some of the mistakes.
 */
export interface LogRules {
  readonly validators: number;
  readonly dishonest: number;
  /** What a log can be; `allHeads`, or some of them. */
  readonly heads: readonly string[];
  /** The last view that operators go on to. */
  readonly views: number;
  readonly sequencer: 'orderly' | 'lying';
  readonly mistake?: LogMistake;
}

export type LogMistake =
  | 'a quorum of 2f'
  | 'one round of votes'
  | 'one round of votes, without locks'
  | 'a prepare is stored after it was sent'
  | 'a lock is stored after the commit was sent'
  | 'an approval is stored after it was sent'
  | 'prepares need not continue each other'
  | 'prepares of older views count'
  | 'prepares bind in every later view'
  | 'commits go on after an approval'
  | 'an approval does not follow the lock'
  | 'an approval ends when what it follows is certified'
  | 'a view opens with one approval less'
  | 'a view need not continue what it was opened after'
  | 'a lock is forgotten when a view opens'
  | 'a lock is kept when a certificate opens a view'
  | 'a certificate opens no view';

/** Every log of up to so many entries, each of which is one of two. */
export function allHeads(entries: number): string[] {
  if (entries === 0) return [];
  return ['X', 'Y'].flatMap((entry) => [entry, ...allHeads(entries - 1).map((head) => entry + head)]);
}

interface At {
  readonly view: number;
  readonly head: string;
}

interface Honest {
  readonly view: number;
  /** What opened the view, as long as it is not certified. */
  readonly after: string;
  /** The last head that it prepared in this view. It continues those before, but for what a certificate overruled, so these need not be known. */
  readonly prepared: string;
  /** The highest head that it knows as prepared by a quorum, in this view or a later one. */
  readonly lock: At | undefined;
  /** What it approved last, as long as it is not there; without `head` when it is void. */
  readonly approval: { readonly view: number; readonly head: string | undefined } | undefined;
  /** The longest head whose certificate it has seen. */
  readonly certified: string;
  /** Which of its votes that count it could give again. */
  readonly sent: readonly string[];
  /** What it is after a crash, if something else. */
  readonly disk: Honest | undefined;
}

export interface LogState {
  readonly honest: readonly Honest[];
  /** How many honest validators gave each of the `VoteKind`s: a digit for each. */
  readonly votes: string;
  /** The longest head that an orderly sequencer offered in each view. */
  readonly offered: readonly string[];
}

/** A `prepare` or `commit` of a head in a view, or an `approval` of that view after that head. */
interface VoteKind extends At {
  readonly type: 'prepare' | 'commit' | 'approval';
  readonly name: string;
}

export class LogModel implements Model<LogState> {
  readonly initial: LogState;
  readonly quorum: number;
  readonly #rules: LogRules;
  readonly #views: readonly number[];
  readonly #kinds: readonly VoteKind[];
  readonly #placeOf: ReadonlyMap<string, number>;
  readonly #renamings: readonly Renaming[];
  readonly #known = new Map<string, Honest>();
  readonly #numbers = new WeakMap<Honest, readonly number[]>();
  readonly #numberOf = new Map<string, number>();

  constructor(rules: LogRules) {
    this.#rules = rules;
    this.quorum = rules.mistake === 'a quorum of 2f' ? 2 * rules.dishonest : quorumOf(rules.validators);
    this.#views = Array.from({ length: rules.views + 1 }, (_, view) => view);
    this.#kinds = this.#views.flatMap((view) => [
      ...rules.heads.map((head) => voteKind('prepare', view, head)),
      ...rules.heads.map((head) => voteKind('commit', view, head)),
      ...(view === 0 ? [] : ['', ...rules.heads].map((head) => voteKind('approval', view, head))),
    ]);
    this.#placeOf = new Map(this.#kinds.map(({ name }, place) => [name, place]));
    this.#renamings = renamings(rules.heads).map((heads) => ({
      heads,
      places: this.#kinds.map(({ type, view, head }) => this.#placeOf.get(voteName(type, view, heads[head]!))!),
    }));
    const honest = this.#intern({
      view: 0,
      after: '',
      prepared: '',
      lock: undefined,
      approval: undefined,
      certified: '',
      sent: [],
      disk: undefined,
    });
    this.initial = {
      honest: Array<Honest>(rules.validators - rules.dishonest).fill(honest),
      votes: '0'.repeat(this.#kinds.length),
      offered: rules.sequencer === 'orderly' ? this.#views.map(() => '') : [],
    };
  }

  /** Which of the honest validators it is does not matter, and which of two entries neither. */
  key({ honest, votes, offered }: LogState): string {
    const numbers = honest.map((one) => this.#numbersOf(one));
    let least: number[] | undefined;
    let key = '';
    for (const [at, { heads, places }] of this.#renamings.entries()) {
      const each = numbers.map((of) => of[at]!).sort((one, other) => one - other);
      const order = least === undefined ? -1 : compare(each, least);
      if (order > 0) continue;
      let renamed = String.fromCharCode(...each);
      for (const place of places) renamed += votes[place];
      for (const head of offered) renamed += `,${heads[head]}`;
      if (order < 0 || renamed < key) key = renamed;
      least = each;
    }
    return key;
  }

  *actions(state: LogState): Iterable<Action<LogState>> {
    for (const [at, one] of state.honest.entries()) {
      if (state.honest.indexOf(one) !== at) continue;
      for (const head of this.#rules.heads) {
        // A prepare after those of a quorum binds whoever gives it, and serves nobody.
        if (
          this.#isOffered(state, one, head) &&
          this.#mayPrepare(one, head) &&
          !this.#isPrepared(state, one.view, head)
        )
          yield this.#gives('prepare', state, at, { ...one, prepared: head }, one.view, head);
        if (this.#mayCommit(one, head) && this.#isCommittable(state, one, head))
          yield this.#gives('commit', state, at, this.#commit(one, head), one.view, head);
        for (const view of this.#views) {
          const next = this.#hasVotes(state, 'commit', view, head) ? this.#see(one, view, head) : undefined;
          if (next !== undefined)
            yield this.#becomes(`${at} sees the certificate of ${head} in view ${view}`, state, at, next);
        }
      }
      for (let view = one.view + 1; view <= this.#rules.views; view++) {
        if (view > (one.approval?.view ?? 0)) {
          for (const lock of this.#locks(state, one)) {
            const head = this.#follows({ ...one, lock });
            yield this.#gives('approval', state, at, { ...one, lock, approval: { view, head } }, view, head);
          }
        }
        for (const head of ['', ...this.#rules.heads]) {
          if (this.#hasVotes(state, 'approval', view, head))
            yield this.#becomes(`${at} opens view ${view} after '${head}'`, state, at, this.#open(one, view, head));
        }
      }
      if (one.disk !== undefined) {
        yield this.#becomes(`${at} crashes`, state, at, { ...one.disk, sent: one.sent });
        yield this.#becomes(`${at} stores it`, state, at, { ...one, disk: undefined });
      }
    }
  }

  #isOffered({ offered }: LogState, { view }: Honest, head: string): boolean {
    return offered.length === 0 || head.startsWith(offered[view]!) || offered[view]!.startsWith(head);
  }

  #mayPrepare(one: Honest, head: string): boolean {
    const { certified, prepared, after } = one;
    if (isApproving(one) || !isBeyond(head, certified) || head.length <= prepared.length) return false;
    const binds = prepared.length > certified.length && !this.#errs('prepares need not continue each other');
    if (binds && !head.startsWith(prepared)) return false;
    return head.startsWith(after) || this.#errs('a view need not continue what it was opened after');
  }

  #isPrepared(state: LogState, view: number, head: string): boolean {
    return this.#hasVotes(state, 'prepare', view, head);
  }

  #mayCommit(one: Honest, head: string): boolean {
    return (!isApproving(one) || this.#errs('commits go on after an approval')) && isBeyond(head, one.certified);
  }

  /** Whether its commit would be one, and one that counts. */
  #isCommittable(state: LogState, { view, prepared, sent }: Honest, head: string): boolean {
    const isOneRound = this.#errs('one round of votes') || this.#errs('one round of votes, without locks');
    if (isOneRound ? prepared !== head : !this.#isPrepared(state, view, head)) return false;
    return !sent.includes(voteName('commit', view, head)) && !this.#hasVotes(state, 'commit', view, head);
  }

  #commit(one: Honest, head: string): Honest {
    const lock = { view: one.view, head };
    return isAbove(lock, one.lock) && !this.#errs('one round of votes, without locks') ? { ...one, lock } : one;
  }

  /**
   * Which locks it can have, its own or by a quorum's prepares that it hears of. These matter for nothing but what it approves, and it may always hear of
   * them later: so it hears of them just before.
   */
  *#locks(state: LogState, one: Honest): Iterable<At | undefined> {
    yield one.lock;
    for (let view = one.view; view <= this.#rules.views; view++) {
      for (const head of this.#rules.heads) {
        const lock = { view, head };
        if (this.#isPrepared(state, view, head) && this.#mayLock(one, lock)) yield lock;
      }
    }
  }

  #mayLock({ view, certified, lock }: Honest, other: At): boolean {
    return other.view >= view && isBeyond(other.head, certified) && isAbove(other, lock);
  }

  #follows({ lock, certified }: Honest): string {
    return this.#errs('an approval does not follow the lock') ? certified : (lock?.head ?? certified);
  }

  #open(one: Honest, view: number, head: string): Honest {
    const isLocked = head.length > one.certified.length && !this.#errs('a lock is forgotten when a view opens');
    return { ...this.#leave(one), view, after: head, lock: isLocked ? { view, head } : undefined };
  }

  /** A certificate opens its view, too: what was certified in those before is in what opened it, so that their locks say nothing any more. */
  #see(one: Honest, view: number, head: string): Honest | undefined {
    const certified = head.length > one.certified.length ? head : one.certified;
    if (view > one.view && !this.#errs('a certificate opens no view')) {
      const isKept = (one.lock?.view ?? 0) >= view || this.#errs('a lock is kept when a certificate opens a view');
      return { ...this.#leave(one), view, after: '', certified, lock: isKept ? one.lock : undefined };
    }
    return certified === one.certified ? undefined : { ...one, certified };
  }

  #leave(one: Honest): Honest {
    return this.#errs('prepares bind in every later view') ? one : { ...one, prepared: '' };
  }

  #errs(mistake: LogMistake): boolean {
    return this.#rules.mistake === mistake;
  }

  /** Honest votes that make a quorum together with those of the dishonest. */
  #enough(type: VoteKind['type']): number {
    const fewer = type === 'approval' && this.#errs('a view opens with one approval less') ? 1 : 0;
    return this.quorum - this.#rules.dishonest - fewer;
  }

  #placeFor(type: VoteKind['type'], view: number, head: string): number {
    const isOne = type === 'prepare' && this.#errs('prepares of older views count');
    return this.#placeOf.get(voteName(type, isOne ? 0 : view, head))!;
  }

  #hasVotes({ votes }: LogState, type: VoteKind['type'], view: number, head: string): boolean {
    return digit(votes, this.#placeFor(type, view, head)) >= this.#enough(type);
  }

  #gives(
    type: VoteKind['type'],
    state: LogState,
    at: number,
    to: Honest,
    view: number,
    head: string,
  ): Action<LogState> {
    const one = state.honest[at]!;
    const isLate =
      (type === 'prepare' && this.#errs('a prepare is stored after it was sent')) ||
      (type === 'commit' && this.#errs('a lock is stored after the commit was sent')) ||
      (type === 'approval' && this.#errs('an approval is stored after it was sent'));
    const disk = isLate ? (one.disk ?? one) : undefined;
    const place = this.#placeFor(type, view, head);
    const { name } = this.#kinds[place]!;
    let { votes, offered } = state;
    let { sent } = one;
    if (!sent.includes(name)) {
      const count = Math.min(digit(votes, place) + 1, this.#enough(type));
      votes = `${votes.slice(0, place)}${count}${votes.slice(place + 1)}`;
      sent = [...sent, name];
    }
    if (type === 'prepare' && offered.length > 0 && head.length > offered[view]!.length)
      offered = offered.with(view, head);
    const what = type === 'approval' ? `approves view ${view} after '${head}'` : `${type}s ${head} in view ${view}`;
    return this.#becomes(`${at} ${what}`, { ...state, votes, offered }, at, { ...to, sent, disk });
  }

  /** One honest validator is another; what does not matter any more is gone. */
  #becomes(name: string, state: LogState, at: number, next: Honest): Action<LogState> {
    const honest = state.honest.with(at, next);
    let { votes } = state;
    for (let place = 0; place < votes.length; place++) {
      const count = digit(votes, place);
      if (count > 0 && !this.#matters(this.#kinds[place]!, count, honest))
        votes = `${votes.slice(0, place)}0${votes.slice(place + 1)}`;
    }
    const first = Math.min(...honest.map((one) => one.disk?.view ?? one.view));
    const offered = state.offered.map((head, view) => (view < first ? '' : head));
    const tidy = honest.map((one) => (one !== next && one.sent.length === 0 ? one : this.#tidy(one, votes)));
    return { name, to: { honest: tidy, votes, offered } };
  }

  /** Enough votes matter while somebody can act on them, fewer while enough others can still join them. */
  #matters({ type, view, head }: VoteKind, count: number, honest: readonly Honest[]): boolean {
    const missing = this.#enough(type) - count;
    const isLasting = this.#errs('prepares of older views count');
    const acts = (one: Honest): boolean => {
      if (type === 'approval') return one.view < view;
      if (type === 'commit') return one.view < view || !one.certified.startsWith(head);
      return (one.view <= view || isLasting) && head.length > one.certified.length;
    };
    const joins = (one: Honest): boolean => {
      if (type === 'approval') return view > one.view && view > (one.approval?.view ?? 0);
      if (!isBeyond(head, one.certified) || (one.view > view && !isLasting)) return false;
      return type === 'commit' || one.view !== view || isLasting || head.length > one.prepared.length;
    };
    const can = missing > 0 ? joins : acts;
    return honest.filter((one) => can(one) || (one.disk !== undefined && can(one.disk))).length >= Math.max(missing, 1);
  }

  #tidy(one: Honest, votes: string): Honest {
    const { view, certified, lock, sent, disk } = one;
    let { approval } = one;
    if (approval !== undefined && approval.view <= view) approval = undefined;
    else if (approval?.head !== undefined && this.#isVoid(approval.head, certified))
      approval = { view: approval.view, head: undefined };
    return this.#intern({
      view,
      after: one.after.length > certified.length ? one.after : '',
      prepared: one.prepared.length > certified.length ? one.prepared : '',
      lock: lock !== undefined && isBeyond(lock.head, certified) ? lock : undefined,
      approval,
      certified,
      sent: sent.filter((name) => this.#couldRepeat(name, view, votes)),
      disk: disk === undefined ? undefined : this.#tidy({ ...disk, sent: [] }, votes),
    });
  }

  /** Whether a vote that it gave would be counted again, and it could give it again. */
  #couldRepeat(name: string, view: number, votes: string): boolean {
    const place = this.#placeOf.get(name)!;
    const kind = this.#kinds[place]!;
    const count = digit(votes, place);
    if (count === 0 || count >= this.#enough(kind.type)) return false;
    const forgets =
      this.#rules.mistake?.includes('stored after') === true || this.#errs('prepares of older views count');
    return forgets || (kind.type === 'commit' && kind.view === view);
  }

  #isVoid(head: string, certified: string): boolean {
    if (this.#errs('an approval ends when what it follows is certified') && certified === head) return head !== '';
    return !head.startsWith(certified);
  }

  #intern(one: Honest): Honest {
    const key = describe(one);
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    this.#known.set(key, one);
    return one;
  }

  /** A number for what it is under each renaming. */
  #numbersOf(one: Honest): readonly number[] {
    const known = this.#numbers.get(one);
    if (known !== undefined) return known;
    const numbers = this.#renamings.map(({ heads }) => {
      const key = describe(one, heads);
      const number = this.#numberOf.get(key) ?? this.#numberOf.size;
      if (number > 0xffff)
        throw new Error('A validator of the model can be in more states than a character has values.');
      this.#numberOf.set(key, number);
      return number;
    });
    this.#numbers.set(one, numbers);
    return numbers;
  }

  /** Two certified heads of which none continues the other. */
  hasConflict({ honest, votes }: LogState): boolean {
    const certified = honest.map((one) => one.certified);
    for (const [place, { type, head }] of this.#kinds.entries())
      if (type === 'commit' && digit(votes, place) >= this.#enough(type)) certified.push(head);
    return certified.some((head) => certified.some((other) => !head.startsWith(other) && !other.startsWith(head)));
  }

  /** Whether an honest validator could commit two heads of one length in one view. */
  hasDoubleVote(state: LogState): boolean {
    return this.#views.some((view) => {
      const prepared = this.#rules.heads.filter((head) => this.#isPrepared(state, view, head));
      return prepared.some((head) => prepared.some((other) => head !== other && head.length === other.length));
    });
  }

  /** Whether the operators of all can go on to another view, and honest validators then certify the whole, whatever an orderly sequencer offers there. */
  recovers({ honest }: LogState): boolean {
    const recovered = this.#recovered(honest);
    return recovered !== undefined && this.#certifiable(recovered).every(({ isCertified }) => isCertified);
  }

  /** The same of a sequencer that is orderly from now on, without any recovery. */
  goesOn({ honest, offered }: LogState): boolean {
    return this.#certifiable(this.#shared(honest), offered).every(({ isCertified }) => isCertified);
  }

  /** Whether nothing whole can be certified any more, whatever an orderly sequencer offers, with a recovery or without. */
  isStuck({ honest, offered }: LogState): boolean {
    const recovered = this.#recovered(honest);
    const ways = [
      ...this.#certifiable(this.#shared(honest), offered),
      ...(recovered === undefined ? [] : this.#certifiable(recovered)),
    ];
    return !ways.some(({ isCertified }) => isCertified);
  }

  /** Whole logs that an orderly sequencer can offer now, and whether validators certify it without a word of a dishonest one. */
  #certifiable(honest: readonly Honest[], offered: readonly string[] = []): { readonly isCertified: boolean }[] {
    const { heads } = this.#rules;
    const { view, certified, after } = honest[0]!;
    const begun = [certified, after, offered[view] ?? ''].sort((one, other) => other.length - one.length)[0]!;
    const votes = (one: Honest, head: string): boolean =>
      one.certified === head ||
      (one.view === view && this.#mayCommit(one, head) && (one.prepared === head || this.#mayPrepare(one, head)));
    return heads
      .filter((head) => head.startsWith(begun) && !heads.some((other) => isBeyond(other, head)))
      .map((head) => ({ isCertified: honest.filter((one) => votes(one, head)).length >= this.quorum }));
  }

  /** What honest validators are once all approved the next view, and opened it; undefined when they cannot agree after what. */
  #recovered(all: readonly Honest[]): readonly Honest[] | undefined {
    const honest = this.#shared(all);
    const view = 1 + Math.max(...honest.map((one) => Math.max(one.view, one.approval?.view ?? 0)));
    const approved = honest.map((one) => this.#follows(one));
    const after = approved.find((head) => approved.filter((other) => head === other).length >= this.quorum);
    return after === undefined ? undefined : honest.map((one) => this.#forgetting(this.#open(one, view, after)));
  }

  /**
   * What honest validators are once each told all what it holds: its certificate, what opened its view, and the prepares of its lock. What else was said is
   * not heard any more, nor dishonest ones.
   */
  #shared(all: readonly Honest[]): readonly Honest[] {
    let honest = all.map((one) => this.#forgetting({ ...one, disk: undefined }));
    for (let before: readonly Honest[] = []; honest.some((one, at) => one !== before[at]); ) {
      before = honest;
      for (const { view, after, certified, lock } of before) {
        honest = honest.map((one) => {
          let to = certified.length > one.certified.length ? { ...one, certified } : one;
          if (view > to.view) to = this.#open(to, view, after);
          if (lock !== undefined && this.#mayLock(to, lock)) to = { ...to, lock };
          return to === one ? one : this.#forgetting(to);
        });
      }
    }
    return honest;
  }

  #forgetting(one: Honest): Honest {
    return this.#tidy(one, this.initial.votes);
  }
}

/** Other names for the same, and where the votes of a state then are. */
interface Renaming {
  readonly heads: Readonly<Record<string, string>>;
  readonly places: readonly number[];
}

/** Which of two entries it is has no meaning, after whatever other ones, if as much can follow both. */
function renamings(heads: readonly string[]): Readonly<Record<string, string>>[] {
  let found: Record<string, string>[] = [{ '': '' }];
  for (const head of [...heads].sort((one, other) => one.length - other.length)) {
    const [before, entry] = [head.slice(0, -1), head.slice(-1)];
    found = found.flatMap((names) => {
      const taken = names[before + (entry === 'X' ? 'Y' : 'X')];
      const ways = ['X', 'Y']
        .map((other) => names[before]! + other)
        .filter((name) => name !== taken && heads.includes(name));
      return ways.map((name) => ({ ...names, [head]: name }));
    });
  }
  return found;
}

function isApproving({ approval, view }: Honest): boolean {
  return approval?.head !== undefined && approval.view > view;
}

function isBeyond(head: string, certified: string): boolean {
  return head.length > certified.length && head.startsWith(certified);
}

function isAbove(lock: At, other: At | undefined): boolean {
  if (other === undefined || lock.view !== other.view) return lock.view > (other?.view ?? -1);
  return lock.head.length > other.head.length;
}

function voteKind(type: VoteKind['type'], view: number, head: string): VoteKind {
  return { type, view, head, name: voteName(type, view, head) };
}

function voteName(type: VoteKind['type'], view: number, head: string): string {
  return `${type[0]}${view}${head}`;
}

function digit(votes: string, place: number): number {
  return votes.charCodeAt(place) - 0x30;
}

function compare(numbers: readonly number[], others: readonly number[]): number {
  for (const [at, number] of numbers.entries()) if (number !== others[at]) return number - others[at]!;
  return 0;
}

function describe(one: Honest, names?: Readonly<Record<string, string>>): string {
  const name = (head: string): string => (names === undefined ? head : names[head]!);
  const { view, after, prepared, lock, approval, certified, sent, disk } = one;
  const locked = lock === undefined ? '' : `${lock.view}${name(lock.head)}`;
  const approved =
    approval === undefined ? '' : `${approval.view}${approval.head === undefined ? '-' : name(approval.head)}`;
  const given =
    sent.length === 0
      ? ''
      : sent
          .map((vote) => vote.slice(0, 2) + name(vote.slice(2)))
          .sort()
          .join();
  const stored = disk === undefined ? '' : describe(disk, names);
  return `${view}${name(after)};${name(prepared)};${locked};${approved};${name(certified)};${given};${stored}`;
}
