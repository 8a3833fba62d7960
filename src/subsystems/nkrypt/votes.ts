import type { StatementSync } from 'node:sqlite';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import type { SelfSigned } from '../../wire/entry.ts';
import {
  type Endorsement,
  NO_PREVIOUS,
  needsOrder,
  type Operation,
  type OperationKind,
  operationDigest,
} from '../../wire/proof.ts';
import type { Store } from './store.ts';
import { refOf, Witness } from './witness.ts';

/** What a validator decided: the time that its vote carries. */
export interface Decision {
  readonly atMs: number;
}

/** What a validator found right, and would vote for. */
export interface Wanted {
  readonly epoch: number;
  readonly operation: Operation;
  /** {@link operationDigest} */
  readonly digest: Digest;
  readonly proofs: Digest;
  readonly signed: SelfSigned | null;
  readonly nowMs: number;
  readonly allowed?: ((operation: Operation) => void) | undefined;
}

interface VoteRow {
  readonly operation: Digest;
  readonly proofs: Digest;
  readonly at_ms: number;
  readonly signed: string | null;
}

/** How long a vote for something that conflicts with nothing (an install) is remembered. */
const PASSING_KEPT_MS = 3_600_000;
/** Reading so many holds up the process for no more than a moment. */
const UNSETTLED_AT_ONCE = 64;
const FORGET_EVERY_MS = 60_000;

/**
 * The vote rule of one validator (docs/protocol/admission.md). Everything that it promises is on the disk before anybody can see it:
 * one operation for each sequence number of an identity, one content for each version, no vote in an epoch that it closed. Who owns a name is the order's to say.
 */
export class VoteBook {
  readonly #store: Store;
  /** What contradicts itself, of all that comes by here. */
  readonly witness: Witness;
  readonly #prepared = new Map<string, StatementSync>();
  #forgottenAtMs = 0;

  constructor(store: Store) {
    this.#store = store;
    this.witness = new Witness(store);
  }

  /** {@link decideAll} of one. */
  decide(wanted: Wanted): Decision {
    const [decision] = this.decideAll([wanted]);
    if (decision instanceof Error) throw decision;
    return decision!;
  }

  /**
   * Commit point of votes: from here on each number stands for its operation, whatever happens. One transaction for all of them, because what a vote waits for is
   * the disk. The same proofs again get the same decision; other proofs for the same operation a new one. What is refused says so in its place and changes
   * nothing: `equivocation`, `proof-replayed`, `version-exists`, `epoch-over`, and what `allowed` throws, which is asked in the same transaction.
   */
  decideAll(wanted: readonly Wanted[]): readonly (Decision | HyperMeshError)[] {
    return this.#store.transact(() =>
      wanted.map((one) => {
        try {
          return this.#decide(one);
        } catch (error) {
          // Thrown before anything of it was written, but for what two orders give away.
          if (error instanceof HyperMeshError) return error;
          throw error;
        }
      }),
    );
  }

  #decide({ epoch, operation, digest, proofs, signed, nowMs, allowed }: Wanted): Decision {
    const { identity, sequence, kind } = operation;
    if (this.#sql('SELECT 1 FROM closed WHERE epoch = ?').get(epoch) !== undefined) throw over(epoch);
    const known = this.#row(operation);
    if (known !== undefined && known.operation !== digest) {
      this.#caught(operation, digest, signed);
      throw equivocation(operation);
    }
    if (known?.proofs === proofs) return { atMs: known.at_ms };
    if (known === undefined) {
      const floor = this.#sql('SELECT sequence FROM floors WHERE identity = ?').get(identity);
      if (floor !== undefined && (floor['sequence'] as number) >= sequence) throw replayed();
      this.#forget(nowMs);
    }
    allowed?.(operation);
    this.#claim(operation);
    const text = signed === null ? null : JSON.stringify(signed);
    this.#sql(
      `INSERT INTO votes (identity, sequence, epoch, kind, operation, proofs, at_ms, signed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (identity, sequence) DO UPDATE SET epoch = excluded.epoch, proofs = excluded.proofs, at_ms = excluded.at_ms`,
    ).run(identity, sequence, epoch, kind, digest, proofs, nowMs, text);
    return { atMs: nowMs };
  }

  /** Before the proofs are asked for: what could not be voted for anyway. Errors: `equivocation`, `version-exists`. */
  check(operation: Operation, signed: SelfSigned | null): void {
    const digest = operationDigest(operation);
    this.#caught(operation, digest, signed);
    const known = this.#row(operation);
    if (known !== undefined && known.operation !== digest) throw equivocation(operation);
    this.#checkClaim(operation);
  }

  /** A vote that was decided for exactly these proofs. */
  decided(operation: Operation, proofs: Digest): Decision | undefined {
    const row = this.#row(operation);
    return row?.operation === operationDigest(operation) && row.proofs === proofs ? { atMs: row.at_ms } : undefined;
  }

  /** A certificate that was found genuine. Safe to repeat. */
  record(certificate: Endorsement): void {
    const { operation, proofs } = certificate;
    const { identity, sequence, kind } = operation;
    const digest = operationDigest(operation);
    const known = this.#sql('SELECT operation, proofs FROM certificates WHERE identity = ? AND sequence = ?').get(
      identity,
      sequence,
    );
    if (known?.['operation'] === digest && known['proofs'] === proofs) return;
    this.#store.transact(() => {
      this.witness.see(certificate);
      this.#sql(
        `INSERT INTO certificates (identity, sequence, kind, operation, proofs, ref, is_open, certificate) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
           ON CONFLICT DO NOTHING`,
      ).run(
        ...[identity, sequence, kind, digest, proofs, refOf(certificate), needsOrder(kind) ? 1 : 0],
        canonicalJson(certificate),
      );
      if (kind === 'publish') return;
      this.#sql(
        `DELETE FROM certificates WHERE identity = ?1 AND kind = ?2 AND sequence <
           (SELECT max(sequence) FROM certificates WHERE identity = ?1 AND kind = ?2)`,
      ).run(identity, kind);
    });
  }

  /** The last certified operation of the kind. */
  newest(identity: string, kind: OperationKind): Endorsement | null {
    const row = this.#sql(
      'SELECT certificate FROM certificates WHERE identity = ? AND kind = ? ORDER BY sequence DESC LIMIT 1',
    ).get(identity, kind);
    return row === undefined ? null : (JSON.parse(row['certificate'] as string) as Endorsement);
  }

  /** {@link newest}, as an anchor names it, and its number (0: there is none). */
  tip(identity: string, kind: OperationKind): { readonly previous: Digest; readonly sequence: number } {
    const row = this.#sql(
      'SELECT proofs, sequence FROM certificates WHERE identity = ? AND kind = ? ORDER BY sequence DESC LIMIT 1',
    ).get(identity, kind) as { proofs: Digest; sequence: number } | undefined;
    return { previous: row?.proofs ?? NO_PREVIOUS, sequence: row?.sequence ?? 0 };
  }

  /** The certificate of exactly this submission. */
  certificate(operation: Operation, proofs: Digest): Endorsement | undefined {
    const row = this.#sql(
      'SELECT certificate FROM certificates WHERE identity = ? AND sequence = ? AND operation = ? AND proofs = ?',
    ).get(operation.identity, operation.sequence, operationDigest(operation), proofs);
    return row === undefined ? undefined : (JSON.parse(row['certificate'] as string) as Endorsement);
  }

  /** Certificates that the order may not have yet, by identity and number: those that follow one, some of them. */
  unsettled(after: Pick<Operation, 'identity' | 'sequence'> = { identity: '', sequence: 0 }): readonly Endorsement[] {
    const rows = this.#sql(
      'SELECT certificate FROM certificates WHERE is_open = 1 AND (identity, sequence) > (?, ?) ORDER BY identity, sequence LIMIT ?',
    ).all(after.identity, after.sequence, UNSETTLED_AT_ONCE);
    return rows.map((row) => JSON.parse(row['certificate'] as string) as Endorsement);
  }

  /** The order has them, or does not want them. */
  settled(operations: readonly Operation[]): void {
    if (operations.length === 0) return;
    const settle = this.#sql('UPDATE certificates SET is_open = 0 WHERE identity = ? AND sequence = ?');
    this.#store.transact(() => {
      for (const { identity, sequence } of operations) settle.run(identity, sequence);
    });
  }

  /** Stops voting in the epoch, for good; durable when it returns. */
  close(epoch: number): void {
    this.#store.transact((raw) => {
      raw.prepare('INSERT INTO closed (epoch) VALUES (?) ON CONFLICT DO NOTHING').run(epoch);
    });
  }

  /** The orders of everything that was voted for in the epoch: what a handover is made from. */
  votedIn(epoch: number): readonly SelfSigned[] {
    const rows = this.#store.raw
      .prepare('SELECT signed FROM votes WHERE epoch = ? AND signed IS NOT NULL ORDER BY identity, sequence')
      .all(epoch) as { signed: string }[];
    return rows.map(({ signed }) => JSON.parse(signed) as SelfSigned);
  }

  #row({ identity, sequence }: Operation): VoteRow | undefined {
    return this.#sql('SELECT operation, proofs, at_ms, signed FROM votes WHERE identity = ? AND sequence = ?').get(
      identity,
      sequence,
    ) as VoteRow | undefined;
  }

  /** Preparing a statement takes longer than running one of these. */
  #sql(text: string): StatementSync {
    let statement = this.#prepared.get(text);
    if (statement === undefined) {
      statement = this.#store.raw.prepare(text);
      this.#prepared.set(text, statement);
    }
    return statement;
  }

  /** What was signed and contradicts what is known is kept, whatever comes of it. */
  #caught(operation: Operation, digest: Digest, signed: SelfSigned | null): void {
    if (signed === null) return;
    const known = this.#row(operation);
    if (known === undefined || known.operation === digest || known.signed === null) return;
    const { identity, sequence } = operation;
    this.witness.caughtOrders(identity, sequence, JSON.parse(known.signed) as SelfSigned, signed);
  }

  #checkClaim({ kind, subject, ref }: Operation): void {
    if (kind !== 'publish') return;
    const version = this.#sql('SELECT subject FROM versions WHERE ref = ?').get(versionOf(ref));
    if (version !== undefined && version['subject'] !== subject) {
      throw new HyperMeshError('version-exists', `${ref} was published before with other content.`, {
        hint: 'A version never changes, also when it was deleted: raise `version` in catalog.yaml and publish again.',
      });
    }
  }

  /** In the transaction that decides: of two publishes that were judged at the same time one is first. */
  #claim(operation: Operation): void {
    this.#checkClaim(operation);
    if (operation.kind !== 'publish') return;
    const { ref, subject } = operation;
    this.#sql('INSERT INTO versions (ref, subject) VALUES (?, ?) ON CONFLICT DO NOTHING').run(versionOf(ref), subject);
  }

  /** Votes without an order conflict with nothing; their numbers are never voted for again. */
  #forget(nowMs: number): void {
    if (nowMs - this.#forgottenAtMs < FORGET_EVERY_MS) return;
    this.#forgottenAtMs = nowMs;
    const { raw } = this.#store;
    const rows = raw
      .prepare(
        'SELECT identity, max(sequence) AS sequence FROM votes WHERE signed IS NULL AND at_ms < ? GROUP BY identity',
      )
      .all(nowMs - PASSING_KEPT_MS) as { identity: string; sequence: number }[];
    if (rows.length === 0) return;
    const floor = raw.prepare(
      'INSERT INTO floors (identity, sequence) VALUES (?, ?) ON CONFLICT (identity) DO UPDATE SET sequence = max(sequence, excluded.sequence)',
    );
    for (const { identity, sequence } of rows) floor.run(identity, sequence);
    raw.prepare('DELETE FROM votes WHERE signed IS NULL AND at_ms < ?').run(nowMs - PASSING_KEPT_MS);
  }
}

/** Without build metadata, which does not tell versions apart (Semantic Versioning 2.0.0, 10). */
function versionOf(ref: string): string {
  return ref.split('+')[0]!;
}

function over(epoch: number): HyperMeshError {
  return new HyperMeshError('epoch-over', `This validator votes no more in epoch ${epoch}.`, {
    hint: 'The next committee takes over in a moment; run the command again.',
  });
}

function replayed(): HyperMeshError {
  return new HyperMeshError('proof-replayed', 'The sequence number of these proofs was passed long ago.', {
    hint: 'Each operation needs a number and proofs of its own; run the command again.',
  });
}

function equivocation(operation: Operation): HyperMeshError {
  return new HyperMeshError(
    'equivocation',
    `Sequence number ${operation.sequence} of this identity stands for another operation.`,
    { hint: 'Run the command again; each operation takes a number of its own.' },
  );
}
