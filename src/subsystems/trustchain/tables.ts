import type { DatabaseSync } from 'node:sqlite';
import type { Migration } from '../../base/sqlite.ts';
import type { CertificateRole, RevocationReason } from '../../wire/certificate.ts';

/** `trust.db` of a home: sealed keys, certificates, revocation lists and the log, so that each change is one transaction. */
export const MIGRATIONS: readonly Migration[] = [
  {
    name: '001-init',
    up: `
      CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE keystore (name TEXT PRIMARY KEY, sealed TEXT NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE certificate (
        fingerprint TEXT PRIMARY KEY, role TEXT NOT NULL, der BLOB NOT NULL, serial TEXT NOT NULL,
        subject TEXT NOT NULL, issuer TEXT NOT NULL, key_id TEXT NOT NULL,
        not_before_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER, revoked_reason TEXT) STRICT;
      CREATE TABLE revocation_list (
        issuer TEXT PRIMARY KEY, number INTEGER NOT NULL, der BLOB NOT NULL, next_update_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE leaf (position INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, content BLOB NOT NULL) STRICT;
      CREATE TABLE node (level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, position))
        STRICT, WITHOUT ROWID;
      CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), json TEXT NOT NULL) STRICT;
    `,
  },
  {
    name: '002-network',
    up: `
      -- Of a home that is a member of a network which another home founded: where its committee is.
      CREATE TABLE membership (one INTEGER PRIMARY KEY CHECK (one = 1), json TEXT NOT NULL) STRICT;
      -- Of a founder. What is kept of an invite is the hash of its secret.
      CREATE TABLE invite (
        hash TEXT PRIMARY KEY, expires_at_ms INTEGER NOT NULL, tokens INTEGER NOT NULL, used_by TEXT) STRICT, WITHOUT ROWID;
      CREATE TABLE member (
        node TEXT PRIMARY KEY, publisher TEXT NOT NULL, validator TEXT NOT NULL, subject TEXT NOT NULL,
        joined_at_ms INTEGER NOT NULL, left_at_ms INTEGER) STRICT, WITHOUT ROWID;
      CREATE TABLE issued (
        fingerprint TEXT PRIMARY KEY, node TEXT NOT NULL, role TEXT NOT NULL, der BLOB NOT NULL, serial TEXT NOT NULL,
        subject TEXT NOT NULL, issuer TEXT NOT NULL, key_id TEXT NOT NULL,
        not_before_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER, revoked_reason TEXT) STRICT;
      CREATE INDEX issued_key ON issued (role, key_id);
    `,
  },
  {
    name: '003-open',
    up: `
      -- Where a member came from that came without an invite; and whether it was sent away, which is for as long as nobody invites it.
      ALTER TABLE member ADD COLUMN origin TEXT;
      ALTER TABLE member ADD COLUMN removed INTEGER NOT NULL DEFAULT 0;
    `,
  },
];

export interface CertificateRow {
  readonly fingerprint: string;
  readonly role: CertificateRole;
  readonly der: Uint8Array;
  readonly serial: string;
  readonly subject: string;
  readonly issuer: string;
  readonly key_id: string;
  readonly not_before_ms: number;
  readonly not_after_ms: number;
  readonly revoked_at_ms: number | null;
  readonly revoked_reason: RevocationReason | null;
}

/** A certificate that this home issued to another one. */
export type IssuedRow = CertificateRow & { readonly node: string };

export function issuedRows(raw: DatabaseSync): readonly IssuedRow[] {
  return raw.prepare('SELECT * FROM issued').all() as unknown as IssuedRow[];
}

export function insertCertificate(raw: DatabaseSync, row: CertificateRow): void {
  raw
    .prepare(
      `INSERT INTO certificate (fingerprint, role, der, serial, subject, issuer, key_id, not_before_ms, not_after_ms, revoked_at_ms, revoked_reason)
       VALUES (:fingerprint, :role, :der, :serial, :subject, :issuer, :key_id, :not_before_ms, :not_after_ms, :revoked_at_ms, :revoked_reason)`,
    )
    .run({ ...row });
}

export function insertIssued(raw: DatabaseSync, row: IssuedRow): void {
  raw
    .prepare(
      `INSERT INTO issued (fingerprint, node, role, der, serial, subject, issuer, key_id, not_before_ms, not_after_ms, revoked_at_ms, revoked_reason)
       VALUES (:fingerprint, :node, :role, :der, :serial, :subject, :issuer, :key_id, :not_before_ms, :not_after_ms, :revoked_at_ms, :revoked_reason)`,
    )
    .run({ ...row });
}

export interface RevocationListRow {
  readonly issuer: 'root' | 'intermediate';
  readonly number: number;
  readonly der: Uint8Array;
  readonly next_update_ms: number;
}
