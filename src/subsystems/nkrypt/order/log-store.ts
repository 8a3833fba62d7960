import { fromHex, hex } from '../../../base/bytes.ts';
import { sha256 } from '../../../base/digest.ts';
import { canonicalJson, type Json } from '../../../base/json.ts';
import type { SqliteStore } from '../../../base/sqlite.ts';
import type { RecoveryPlace } from '../../../wire/entry.ts';
import {
  type ApprovedRecovery,
  decodeHeadCertificate,
  type HeadCertificate,
  ORDER_LIMITS,
  type OrderSnapshot,
  type PreparedHead,
} from '../../../wire/order.ts';

/** What a validator voted for binds it for ever. */
export const LOG_SCHEMA = `
  -- The entries that were applied, and after them those that this home prepared. Outcome: as soon as it was applied.
  CREATE TABLE log_entries (
    position INTEGER PRIMARY KEY, digest BLOB NOT NULL, entry BLOB NOT NULL, head BLOB NOT NULL, outcome TEXT
  ) STRICT;
  CREATE INDEX log_digests ON log_entries (digest);
  -- Enough certificates that each covers what one answer may hold. Turn: what follows was certified by another committee or ordered elsewhere.
  CREATE TABLE log_certificates (position INTEGER PRIMARY KEY, turn INTEGER NOT NULL, document TEXT NOT NULL) STRICT;
  -- Voted: the highest index that this home prepared. Lost: up to there that is something which is not in the order.
  -- Origin: where the present engine began.
  CREATE TABLE log_state (
    id INTEGER PRIMARY KEY CHECK (id = 1), applied INTEGER NOT NULL, voted INTEGER NOT NULL, lost INTEGER NOT NULL, origin INTEGER NOT NULL
  ) STRICT;
`;

/** How the order goes on without the engine that it had. */
export const RECOVERY_SCHEMA = `
  CREATE TABLE log_recovery (id INTEGER PRIMARY KEY CHECK (id = 1), statement TEXT NOT NULL) STRICT;
`;

/** What is in the place of entries that were dropped. */
export const SNAPSHOT_SCHEMA = `
  ALTER TABLE log_state DROP COLUMN origin;
  -- Entries up to there are dropped.
  ALTER TABLE log_state ADD COLUMN floor INTEGER NOT NULL DEFAULT 0;
  -- The state after so many entries was certified by that document, and is kept (facts, facts_before).
  CREATE TABLE log_snapshot (
    id INTEGER PRIMARY KEY CHECK (id = 1), base INTEGER NOT NULL, head BLOB NOT NULL, document TEXT NOT NULL
  ) STRICT;
`;

/** Two votes for a head, in views. */
export const VIEWS_SCHEMA = `
  -- Voted and lost: prepares of the present view, in the present committee.
  ALTER TABLE log_state ADD COLUMN view INTEGER NOT NULL DEFAULT 0;
  -- What this home knows to be prepared by a quorum, beyond what is certified. Document: its proof; null: it is where a view began.
  CREATE TABLE log_lock (
    id INTEGER PRIMARY KEY CHECK (id = 1), view INTEGER NOT NULL, position INTEGER NOT NULL, head BLOB NOT NULL, document TEXT
  ) STRICT;
  -- Where this home said that a later view begins: until it does this home votes in no other one.
  CREATE TABLE log_approved (
    id INTEGER PRIMARY KEY CHECK (id = 1), view INTEGER NOT NULL, position INTEGER NOT NULL, head BLOB NOT NULL
  ) STRICT;
`;

export interface Marks {
  readonly applied: number;
  /** In which this home votes. */
  readonly view: number;
  /** The highest index that this home prepared in it. */
  readonly voted: number;
  /** Up to there what it prepared in the view is not what is certified. */
  readonly lost: number;
  readonly floor: number;
}

/** A head that a quorum prepared, or after which a quorum began a view. */
export interface Lock extends RecoveryPlace {
  readonly prepared: PreparedHead | null;
}

/** An entry in its place. */
export interface Row {
  readonly entry: Uint8Array;
  readonly head: string;
}

export interface Submitted {
  readonly index: number;
  readonly outcome: Json;
}

/** The tables of {@link LOG_SCHEMA}. What changes them is called in a transaction of the log. */
export class LogStore {
  readonly #store: SqliteStore;

  constructor(store: SqliteStore) {
    this.#store = store;
  }

  transact<T>(write: () => T): T {
    return this.#store.transact(write);
  }

  marks(): Marks {
    const row = this.#store.raw.prepare('SELECT applied, view, voted, lost, floor FROM log_state').get();
    return (row as unknown as Marks | undefined) ?? { applied: 0, view: 0, voted: 0, lost: 0, floor: 0 };
  }

  setMarks({ applied, view, voted, lost, floor }: Marks): void {
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO log_state (id, applied, view, voted, lost, floor) VALUES (1, ?, ?, ?, ?, ?)')
      .run(applied, view, voted, lost, floor);
  }

  lock(): Lock | undefined {
    const row = this.#store.raw.prepare('SELECT view, position, head, document FROM log_lock').get() as
      | { view: number; position: number; head: Uint8Array; document: string | null }
      | undefined;
    if (row === undefined) return undefined;
    const { document } = row;
    return { ...placeOf(row), prepared: document === null ? null : (JSON.parse(document) as PreparedHead) };
  }

  setLock(lock: Lock | undefined): void {
    if (lock === undefined) {
      this.#store.raw.prepare('DELETE FROM log_lock').run();
      return;
    }
    const { view, index, head, prepared } = lock;
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO log_lock (id, view, position, head, document) VALUES (1, ?, ?, ?, ?)')
      .run(view, index, fromHex(head), prepared === null ? null : canonicalJson(prepared));
  }

  approved(): RecoveryPlace | undefined {
    const row = this.#store.raw.prepare('SELECT view, position, head FROM log_approved').get();
    return row === undefined ? undefined : placeOf(row as unknown as Parameters<typeof placeOf>[0]);
  }

  setApproved(place: RecoveryPlace | undefined): void {
    if (place === undefined) {
      this.#store.raw.prepare('DELETE FROM log_approved').run();
      return;
    }
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO log_approved (id, view, position, head) VALUES (1, ?, ?, ?)')
      .run(place.view, place.index, fromHex(place.head));
  }

  headAt(position: number): string | undefined {
    const row = this.#store.raw.prepare('SELECT head FROM log_entries WHERE position = ?').get(position);
    return row === undefined ? undefined : hex((row as { head: Uint8Array }).head);
  }

  /** The entries after one position, up to another. */
  rows(after: number, to: number): readonly Row[] {
    const rows = this.#store.raw
      .prepare('SELECT entry, head FROM log_entries WHERE position > ? AND position <= ? ORDER BY position')
      .all(after, to) as { entry: Uint8Array; head: Uint8Array }[];
    return rows.map(({ entry, head }) => ({ entry, head: hex(head) }));
  }

  put(position: number, { entry, head }: Row, outcome: Json | undefined): void {
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO log_entries (position, digest, entry, head, outcome) VALUES (?, ?, ?, ?, ?)')
      .run(position, sha256(entry), entry, fromHex(head), outcome === undefined ? null : canonicalJson(outcome));
  }

  /** How much was applied after that position. */
  sizeAfter(position: number): { readonly entries: number; readonly bytes: number } {
    return this.#store.raw
      .prepare(
        'SELECT count(*) AS entries, coalesce(sum(length(entry)), 0) AS bytes FROM log_entries WHERE position > ? AND outcome IS NOT NULL',
      )
      .get(position) as { entries: number; bytes: number };
  }

  snapshot(): OrderSnapshot | undefined {
    const row = this.#store.raw.prepare('SELECT base, head, document FROM log_snapshot').get() as
      | { base: number; head: Uint8Array; document: string }
      | undefined;
    if (row === undefined) return undefined;
    return { base: row.base, head: hex(row.head), certificate: decodeHeadCertificate(JSON.parse(row.document)) };
  }

  /** What a quorum approved after the engine was lost, until the order says it. */
  recovery(): ApprovedRecovery | undefined {
    const row = this.#store.raw.prepare('SELECT statement FROM log_recovery').get() as
      | { statement: string }
      | undefined;
    return row === undefined ? undefined : (JSON.parse(row.statement) as ApprovedRecovery);
  }

  setRecovery(recovery: ApprovedRecovery): void {
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO log_recovery (id, statement) VALUES (1, ?)')
      .run(canonicalJson(recovery));
  }

  setSnapshot({ base, head, certificate }: OrderSnapshot): void {
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO log_snapshot (id, base, head, document) VALUES (1, ?, ?, ?)')
      .run(base, fromHex(head), canonicalJson(certificate));
  }

  /** Entries and certificates up to there. */
  dropUpTo(position: number): void {
    for (const table of ['log_entries', 'log_certificates'])
      this.#store.raw.prepare(`DELETE FROM ${table} WHERE position <= ?`).run(position);
  }

  dropAfter(position: number): void {
    this.#store.raw.prepare('DELETE FROM log_entries WHERE position > ?').run(position);
  }

  /** Where that entry was applied first. */
  applied(entry: Uint8Array): Submitted | undefined {
    const row = this.#store.raw
      .prepare(
        'SELECT position, outcome FROM log_entries WHERE digest = ? AND outcome IS NOT NULL ORDER BY position LIMIT 1',
      )
      .get(sha256(entry)) as { position: number; outcome: string } | undefined;
    return row === undefined ? undefined : { index: row.position, outcome: JSON.parse(row.outcome) as Json };
  }

  /** Keeps it, and drops the one before where this one and the one before that are near enough. */
  addCertificate(certificate: HeadCertificate, turn: boolean): void {
    const { raw } = this.#store;
    const { index } = certificate.statement;
    const [last, before] = raw
      .prepare('SELECT position, turn FROM log_certificates WHERE position < ? ORDER BY position DESC LIMIT 2')
      .all(index) as { position: number; turn: number }[];
    raw
      .prepare('INSERT OR REPLACE INTO log_certificates (position, turn, document) VALUES (?, ?, ?)')
      .run(index, turn ? 1 : 0, canonicalJson(certificate));
    if (last === undefined || last.turn === 1) return;
    const from = before?.position ?? 0;
    const { bytes } = raw
      .prepare('SELECT sum(length(entry)) AS bytes FROM log_entries WHERE position > ? AND position <= ?')
      .get(from, index) as { bytes: number };
    if (index - from > ORDER_LIMITS.windowEntriesMax || bytes > ORDER_LIMITS.windowBytesMax) return;
    raw.prepare('DELETE FROM log_certificates WHERE position = ?').run(last.position);
  }

  /** The first kept certificate beyond that position. */
  certificateAfter(position: number): HeadCertificate | undefined {
    return this.#certificate('position > ? ORDER BY position', position);
  }

  /** The newest one. */
  lastCertificate(): HeadCertificate | undefined {
    return this.#certificate('position > ? ORDER BY position DESC', 0);
  }

  #certificate(which: string, position: number): HeadCertificate | undefined {
    const row = this.#store.raw.prepare(`SELECT document FROM log_certificates WHERE ${which} LIMIT 1`).get(position) as
      | { document: string }
      | undefined;
    return row === undefined ? undefined : decodeHeadCertificate(JSON.parse(row.document));
  }
}

function placeOf({ view, position, head }: { view: number; position: number; head: Uint8Array }): RecoveryPlace {
  return { view, index: position, head: hex(head) };
}
