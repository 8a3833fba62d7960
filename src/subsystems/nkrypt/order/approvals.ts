import { canonicalJson } from '../../../base/json.ts';
import type { SqliteStore } from '../../../base/sqlite.ts';
import type { Attestation } from '../../../wire/attestation.ts';
import type { SequencerStatement } from '../../../wire/entry.ts';

export const MOVES_SCHEMA = `
  -- What each validator approved last of how the order goes on in another engine: its word alone, until a quorum said the same.
  CREATE TABLE move_approvals (validator TEXT PRIMARY KEY, statement TEXT NOT NULL, attestation TEXT NOT NULL) STRICT;
`;

export interface MoveApproval {
  readonly statement: SequencerStatement;
  readonly attestation: Attestation;
}

/** Approvals of the next move of the order, of this validator and of others. Whose signature does not hold has no place here. */
export class MoveApprovals {
  readonly #store: SqliteStore;

  constructor(store: SqliteStore) {
    this.#store = store;
  }

  /** In the place of what the same validator approved before. Durable when it returns. */
  put({ statement, attestation }: MoveApproval): void {
    this.#store.transact((raw) =>
      raw
        .prepare('INSERT OR REPLACE INTO move_approvals (validator, statement, attestation) VALUES (?, ?, ?)')
        .run(attestation.validator, canonicalJson(statement), canonicalJson(attestation)),
    );
  }

  /** Whether that is what the validator approved last, as far as known. */
  has({ statement, attestation }: MoveApproval): boolean {
    const row = this.#store.raw
      .prepare('SELECT statement FROM move_approvals WHERE validator = ?')
      .get(attestation.validator);
    return (row as { statement: string } | undefined)?.statement === canonicalJson(statement);
  }

  all(): readonly MoveApproval[] {
    const rows = this.#store.raw.prepare('SELECT statement, attestation FROM move_approvals ORDER BY validator').all();
    return (rows as { statement: string; attestation: string }[]).map((row) => ({
      statement: JSON.parse(row.statement) as SequencerStatement,
      attestation: JSON.parse(row.attestation) as Attestation,
    }));
  }
}
