import type { Migration } from '../../../base/sqlite.ts';

/** The database beside the blobs (docs/protocol/store.md). Everything in it can be computed again from the blob files, except leases. */
export interface ContentTables {
  /** A blob whose file is durable. */
  blobs: {
    id: number;
    digest: string;
    size: number;
    averageBytes: number;
    shardCount: number;
    shardRoot: string;
    shardsReused: number;
    bytesReused: number;
    /** 1: scanned in full once, and a canonical tree. */
    isTree: 0 | 1;
  };
  /** Where a shard lies: several blobs may hold the same one. */
  shards: { blob: number; position: number; hash: Uint8Array; offset: number; length: number };
  /** No collection removes the blob before that time, whoever refers to it. */
  leases: { digest: string; untilMs: number };
  /** One row, kept by triggers. */
  totals: { blobs: number; bytes: number };
}

export const CONTENT_MIGRATIONS: readonly Migration[] = [
  {
    name: '001-init',
    up: `
      CREATE TABLE blobs (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        averageBytes INTEGER NOT NULL,
        shardCount INTEGER NOT NULL,
        shardRoot TEXT NOT NULL,
        shardsReused INTEGER NOT NULL,
        bytesReused INTEGER NOT NULL,
        isTree INTEGER NOT NULL DEFAULT 0
      ) STRICT;
      CREATE TABLE shards (
        blob INTEGER NOT NULL REFERENCES blobs (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        hash BLOB NOT NULL,
        offset INTEGER NOT NULL,
        length INTEGER NOT NULL,
        PRIMARY KEY (blob, position)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX shards_by_hash ON shards (hash);
      CREATE TABLE leases (digest TEXT PRIMARY KEY, untilMs INTEGER NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE totals (blobs INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
      INSERT INTO totals VALUES (0, 0);
      CREATE TRIGGER blobs_added AFTER INSERT ON blobs BEGIN
        UPDATE totals SET blobs = blobs + 1, bytes = bytes + new.size;
      END;
      CREATE TRIGGER blobs_removed AFTER DELETE ON blobs BEGIN
        UPDATE totals SET blobs = blobs - 1, bytes = bytes - old.size;
      END;
    `,
  },
];
