import { canonicalJson, type Json } from '../../base/json.ts';
import type { Conflict, SelfSigned } from '../../wire/entry.ts';
import { type Endorsement, operationDigest, type SignedVote, VOTE_TYPE, voteOf } from '../../wire/proof.ts';
import { headAbout, orderAbout, voteAbout } from './ledger/evidence.ts';
import type { Caught } from './order/head-votes.ts';
import type { Store } from './store.ts';

/** Something that somebody has to answer for, and what proves it. */
export interface Accusation {
  /** What the two statements contradict each other about: answered for once. */
  readonly about: string;
  readonly conflict: Conflict;
}

/** Votes that never became a certificate are kept of the last so many operations of an identity. */
const BALLOTS_EACH_MAX = 64;
/** Of the heads of one validator in one epoch: each costs it half of what it still has. */
const HEADS_EACH_MAX = 8;
/** That are brought into the order in one go. */
const OPEN_MAX = 16;

/**
 * What this home saw others sign, and that contradicts itself. Whoever sees two votes of one validator that no honest one gives keeps both: a publisher those that it
 * was given, a validator those in certificates and those for heads of the order, a member those in bundles. All signatures were checked before they come here.
 */
export class Witness {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** Two orders of a publisher with one number. Within a transaction of the caller. */
  caughtOrders(identity: string, sequence: number, first: SelfSigned, second: SelfSigned): void {
    // Sorted, so that what several validators saw is one entry.
    const [one, other] = [first.envelope, second.envelope].sort((a, b) => (a.payload < b.payload ? -1 : 1));
    const conflict = { kind: 'orders', keys: first.keys, first: one!, second: other! } as const;
    this.#accuse({ about: orderAbout(identity, sequence), conflict });
  }

  /** Two votes of one kind for different heads of one index of the order in one view, by one validator. Durable when it returns. Safe to repeat. */
  readonly caughtHeads: Caught = (type, first, second) => {
    const { committee } = first.statement;
    const [one, other] = [first, second]
      .sort((a, b) => (a.statement.head < b.statement.head ? -1 : 1))
      .map(({ statement, attestation }) => ({ statement: statement as unknown as Json, attestation }));
    const conflict = { kind: 'words', committee, type, first: one!, second: other! } as const;
    const { validator } = first.attestation;
    this.#store.transact((raw) => {
      const { known } = raw
        .prepare("SELECT count(*) AS known FROM accusations WHERE about > ?1 || '/' AND about < ?1 || '0'")
        .get(`${validator}/head/${committee}`) as { known: number };
      if (known < HEADS_EACH_MAX) this.#accuse({ about: `${validator}/${headAbout(type, first.statement)}`, conflict });
    });
  };

  /** Votes for one operation that may never become a certificate, because they are too few. Safe to repeat. */
  keep(ballot: Endorsement): void {
    const { operation, proofs } = ballot;
    const { identity, sequence } = operation;
    this.#store.transact((raw) => {
      this.see(ballot);
      const digest = operationDigest(operation);
      const known = raw
        .prepare('SELECT ballot FROM ballots WHERE identity = ? AND sequence = ? AND operation = ? AND proofs = ?')
        .get(identity, sequence, digest, proofs) as { ballot: string } | undefined;
      const before = known === undefined ? [] : (JSON.parse(known.ballot) as Endorsement).votes;
      const votes = new Map([...before, ...ballot.votes].map((vote) => [vote.attestation.validator, vote]));
      raw
        .prepare(
          'INSERT OR REPLACE INTO ballots (identity, sequence, operation, proofs, ref, ballot) VALUES (?, ?, ?, ?, ?, ?)',
        )
        .run(
          ...[identity, sequence, digest, proofs, refOf(ballot)],
          canonicalJson({ ...ballot, votes: [...votes.values()] }),
        );
      raw
        .prepare(
          `DELETE FROM ballots WHERE identity = ?1 AND id <=
             (SELECT id FROM ballots WHERE identity = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)`,
        )
        .run(identity, BALLOTS_EACH_MAX);
    });
  }

  /** Compares votes with all others that are known here and are about the same number or version. Within a transaction of the caller. */
  see(ballot: Endorsement): void {
    for (const other of this.#about(ballot)) {
      if (other.committee !== ballot.committee) continue;
      const about = voteAbout(ballot.committee, ballot.operation, other.operation);
      if (about === undefined) continue;
      const cast = new Map(other.votes.map((vote) => [vote.attestation.validator, vote]));
      for (const vote of ballot.votes) {
        const { validator } = vote.attestation;
        const contrary = cast.get(validator);
        if (contrary === undefined) continue;
        const [first, second] = [wordOf(ballot, vote), wordOf(other, contrary)];
        const conflict = { kind: 'words', committee: ballot.committee, type: VOTE_TYPE, first, second } as const;
        this.#accuse({ about: `${validator}/${about}`, conflict });
      }
    }
  }

  /** What nobody answered for yet, as far as this home knows; some of it. */
  open(): readonly Accusation[] {
    return this.#accusations(`WHERE is_answered = 0 LIMIT ${OPEN_MAX}`);
  }

  /** Everything. */
  all(): readonly Accusation[] {
    return this.#accusations('');
  }

  answered(about: string): void {
    this.#store.raw.prepare('UPDATE accusations SET is_answered = 1 WHERE about = ?').run(about);
  }

  #accuse({ about, conflict }: Accusation): void {
    this.#store.raw
      .prepare('INSERT INTO accusations (about, conflict) VALUES (?, ?) ON CONFLICT DO NOTHING')
      .run(about, canonicalJson(conflict));
  }

  #accusations(which: string): readonly Accusation[] {
    const rows = this.#store.raw.prepare(`SELECT about, conflict FROM accusations ${which}`).all();
    return (rows as { about: string; conflict: string }[]).map(({ about, conflict }) => ({
      about,
      conflict: JSON.parse(conflict) as Conflict,
    }));
  }

  /** By number or by version. */
  #about(ballot: Endorsement): readonly Endorsement[] {
    const { identity, sequence } = ballot.operation;
    const digest = operationDigest(ballot.operation);
    const ref = refOf(ballot);
    const texts = (['certificates', 'ballots'] as const).flatMap((table) => {
      const column = table === 'ballots' ? 'ballot' : 'certificate';
      const select = `SELECT operation, ${column} AS text FROM ${table} WHERE`;
      return [
        ...this.#store.raw.prepare(`${select} identity = ? AND sequence = ?`).all(identity, sequence),
        ...(ref === null ? [] : this.#store.raw.prepare(`${select} ref = ?`).all(ref)),
      ] as { operation: string; text: string }[];
    });
    return texts.filter(({ operation }) => operation !== digest).map(({ text }) => JSON.parse(text) as Endorsement);
  }
}

/** `scope/name@version` of a publish, without build metadata, which does not tell versions apart (Semantic Versioning 2.0.0, 10). */
export function refOf({ operation: { kind, ref } }: Pick<Endorsement, 'operation'>): string | null {
  return kind === 'publish' ? ref.split('+')[0]! : null;
}

function wordOf(
  ballot: Endorsement,
  { atMs, attestation }: SignedVote,
): { statement: Json; attestation: SignedVote['attestation'] } {
  return { statement: voteOf(ballot, atMs) as unknown as Json, attestation };
}
