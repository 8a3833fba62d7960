import type { Digest } from '../../../base/digest.ts';
import { canonicalJson } from '../../../base/json.ts';
import type { Attestation } from '../../../wire/attestation.ts';
import type { Committee, Seat } from '../../../wire/epoch.ts';
import { quorumOf } from '../../../wire/genesis.ts';
import {
  type ByQuorum,
  HEAD_TYPE,
  type HeadCertificate,
  type HeadStatement,
  type HeadVote,
  PREPARE_TYPE,
  type PreparedHead,
  type PrepareStatement,
  type PrepareVote,
  type Voted,
  type VoteExchange,
} from '../../../wire/order.ts';

export interface VotesLent {
  readonly networkId: Digest;
  /** Key id of this home's validator. */
  readonly self: string;
  committee(): Committee;
  /** Votes up to there are of no more use. */
  applied(): number;
  attested(word: Attestation, payloadType: string, statement: unknown, keys: Seat): Promise<boolean>;
  /** Whether that head is the one that this validator was shown. */
  agrees(head: Pick<PrepareStatement, 'index' | 'head'>): boolean;
  /** Called when a validator voted for two heads of one index in one view, with what proves it. */
  caught: Caught;
}

export type Caught = (type: typeof PREPARE_TYPE | typeof HEAD_TYPE, first: HeadWord, second: HeadWord) => void;
/** Either vote, as evidence needs it. */
export type HeadWord = Voted<PrepareStatement | HeadStatement>;

/** The newest votes of each validator for heads of the order, this one's included. Of the present committee only. */
export class HeadVotes {
  readonly #lent: VotesLent;
  readonly #prepares = new Map<string, PrepareVote>();
  readonly #commits = new Map<string, HeadVote>();

  constructor(lent: VotesLent) {
    this.#lent = lent;
  }

  told(): Pick<VoteExchange, 'prepares' | 'commits'> {
    return { prepares: [...this.#prepares.values()], commits: [...this.#commits.values()] };
  }

  ownPrepare(): PrepareStatement | undefined {
    return this.#prepares.get(this.#lent.self)?.statement;
  }

  ownCommit(): HeadStatement | undefined {
    return this.#commits.get(this.#lent.self)?.statement;
  }

  setPrepare(vote: PrepareVote): void {
    if (this.#use()(vote.statement)) this.#prepares.set(this.#lent.self, vote);
  }

  setCommit(vote: HeadVote): void {
    if (this.#use()(vote.statement)) this.#commits.set(this.#lent.self, vote);
  }

  /** Takes over what is newer. Whether anything was. */
  async hear({ prepares, commits }: Pick<VoteExchange, 'prepares' | 'commits'>): Promise<boolean> {
    const isPrepared = await this.#hear(PREPARE_TYPE, this.#prepares, prepares);
    return (await this.#hear(HEAD_TYPE, this.#commits, commits)) || isPrepared;
  }

  /** What others prepared in a view. */
  prepares(view: number): readonly PrepareStatement[] {
    return this.#present(this.#prepares)
      .map(({ statement }) => statement)
      .filter((one) => one.view === view);
  }

  /** Heads that a quorum prepared in one view: the furthest first. */
  prepared(): readonly PreparedHead[] {
    return this.#byQuorum(this.#prepares);
  }

  /** Heads that a quorum committed: the furthest first. */
  certified(): readonly HeadCertificate[] {
    return this.#byQuorum(this.#commits);
  }

  /** Who prepared another head of an index in that view than this one. */
  beside(view: number, headAt: (index: number) => string | undefined): readonly string[] {
    return this.#present(this.#prepares)
      .filter(
        ({ statement }) => statement.view === view && (headAt(statement.index) ?? statement.head) !== statement.head,
      )
      .map(({ attestation }) => attestation.validator)
      .sort();
  }

  /** After the applied part, or the committee, has changed. */
  sweep(): void {
    const isOfUse = this.#use();
    for (const votes of [this.#prepares, this.#commits])
      for (const [validator, { statement }] of votes) if (!isOfUse(statement)) votes.delete(validator);
  }

  #use(): (statement: PrepareStatement | HeadStatement) => boolean {
    const { networkId } = this.#lent;
    const { digest } = this.#lent.committee();
    const applied = this.#lent.applied();
    return (one) => one.networkId === networkId && one.committee === digest && one.index > applied;
  }

  #present<S extends PrepareStatement | HeadStatement>(votes: ReadonlyMap<string, Voted<S>>): readonly Voted<S>[] {
    const isOfUse = this.#use();
    return [...votes.values()].filter(({ statement }) => isOfUse(statement));
  }

  #byQuorum<S extends PrepareStatement | HeadStatement>(votes: ReadonlyMap<string, Voted<S>>): readonly ByQuorum<S>[] {
    const { validators } = this.#lent.committee();
    const needed = quorumOf(validators.length);
    return Map.groupBy(this.#present(votes), ({ statement }) => canonicalJson(statement))
      .values()
      .filter((alike) => alike.length >= needed)
      .map((alike) => ({
        statement: alike[0]!.statement,
        attestations: alike
          .map(({ attestation }) => attestation)
          .sort((a, b) => (a.validator < b.validator ? -1 : 1))
          .slice(0, needed),
      }))
      .toArray()
      .sort((a, b) => b.statement.index - a.statement.index);
  }

  async #hear<S extends PrepareStatement | HeadStatement>(
    type: typeof PREPARE_TYPE | typeof HEAD_TYPE,
    votes: Map<string, Voted<S>>,
    heard: readonly Voted<S>[],
  ): Promise<boolean> {
    let isNews = false;
    for (const vote of heard) {
      const { statement, attestation } = vote;
      const seat = this.#lent.committee().validators.find(({ key }) => key === attestation.validator);
      if (seat === undefined || seat.key === this.#lent.self || !this.#use()(statement)) continue;
      const known = votes.get(seat.key);
      const isOther = known !== undefined && contradict(known.statement, statement);
      // Of two votes the one that this validator agrees with: who said something else before, or of a place further on that nobody was shown, is heard again.
      const isBetter =
        known?.statement.view === statement.view && this.#lent.agrees(statement) && !this.#lent.agrees(known.statement);
      if (known !== undefined && !isOther && !isBetter && !isNewer(statement, known.statement)) continue;
      if (!(await this.#lent.attested(attestation, type, statement, seat))) continue;
      if (isOther) this.#lent.caught(type, known, vote);
      if (isOther && !isBetter) continue;
      if (votes.get(seat.key) !== known || !this.#use()(statement)) continue;
      votes.set(seat.key, vote);
      isNews = true;
    }
    return isNews;
  }
}

/** Whether no honest validator gives both, being votes of one kind. */
function contradict(one: PrepareStatement | HeadStatement, other: PrepareStatement | HeadStatement): boolean {
  const isOneIndex = one.committee === other.committee && one.view === other.view && one.index === other.index;
  return isOneIndex && one.head !== other.head;
}

function isNewer(one: PrepareStatement | HeadStatement, than: PrepareStatement | HeadStatement): boolean {
  if (one.view !== than.view) return one.view > than.view;
  if (one.index !== than.index) return one.index > than.index;
  return 'base' in one && 'base' in than && one.base > than.base;
}
