import type { Migration } from '../../base/sqlite.ts';

/** The index of a home (docs/protocol/index.md): what was published, how to find it, where it is installed. */
export interface AssetTables {
  /** One version of one package. `manifest`, `layers` and `blobs` are canonical JSON. */
  assets: {
    seq: number;
    id: string;
    name: string;
    version: string;
    /** Text that sorts as versions do. */
    precedence: string;
    digest: string;
    type: string;
    owner: string;
    privacy: string;
    state: string;
    stateReason: string | null;
    manifest: string;
    layers: string;
    blobs: string;
    bundle: string;
    size: number;
    createdAtMs: number;
    updatedAtMs: number;
  };
  /** One package name; `head` is the version that search shows, `textRow` its row in the text index. */
  packages: { seq: number; name: string; head: number; headState: string; textRow: number };
  dependencies: { asset: number; kind: 'required' | 'optional' | 'peer'; name: string; range: string };
  /** Each word, and each word less one letter, to that word: words one typing error apart share a key. */
  spellings: { key: string; word: string };
  annotations: { asset: number; key: string; value: string };
  /** The generations that each installation keeps; the newest is the one in use. */
  installations: { root: string; generation: number; lock: string };
  /** One row, kept by triggers: counting would take longer the more there are. */
  totals: { packages: number; versions: number };
}

export const ASSET_MIGRATIONS: readonly Migration[] = [
  {
    name: '001-init',
    up: `
      CREATE TABLE assets (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        version TEXT NOT NULL,
        precedence TEXT NOT NULL,
        digest TEXT NOT NULL,
        type TEXT NOT NULL,
        owner TEXT NOT NULL,
        privacy TEXT NOT NULL,
        state TEXT NOT NULL,
        stateReason TEXT,
        manifest TEXT NOT NULL,
        layers TEXT NOT NULL,
        blobs TEXT NOT NULL,
        bundle TEXT NOT NULL,
        size INTEGER NOT NULL,
        createdAtMs INTEGER NOT NULL,
        updatedAtMs INTEGER NOT NULL,
        UNIQUE (name, precedence)
      ) STRICT;
      CREATE TABLE packages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        head INTEGER NOT NULL,
        headState TEXT NOT NULL,
        textRow INTEGER NOT NULL DEFAULT 0
      ) STRICT;
      CREATE TABLE dependencies (
        asset INTEGER NOT NULL REFERENCES assets (seq) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        range TEXT NOT NULL,
        PRIMARY KEY (asset, kind, name)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX dependencies_by_name ON dependencies (name, range);
      CREATE TABLE annotations (
        asset INTEGER NOT NULL REFERENCES assets (seq) ON DELETE CASCADE,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (asset, key)
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE installations (
        root TEXT NOT NULL,
        generation INTEGER NOT NULL,
        lock TEXT NOT NULL,
        PRIMARY KEY (root, generation)
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE spellings (key TEXT NOT NULL, word TEXT NOT NULL, PRIMARY KEY (key, word)) STRICT, WITHOUT ROWID;
      CREATE VIRTUAL TABLE texts USING fts5(
        name, keywords, description, authors, facets,
        content = '', contentless_delete = 1, tokenize = 'ascii', detail = 'column', prefix = '1 2 3 4 5 6 7'
      );
      CREATE VIRTUAL TABLE newest USING fts5(
        facets,
        content = '', contentless_delete = 1, tokenize = 'ascii', detail = 'none'
      );
    `,
  },
  {
    name: '002-totals',
    up: `
      CREATE TABLE totals (packages INTEGER NOT NULL, versions INTEGER NOT NULL) STRICT;
      INSERT INTO totals SELECT (SELECT count(*) FROM packages), (SELECT count(*) FROM assets);
      CREATE TRIGGER packages_added AFTER INSERT ON packages BEGIN UPDATE totals SET packages = packages + 1; END;
      CREATE TRIGGER packages_removed AFTER DELETE ON packages BEGIN UPDATE totals SET packages = packages - 1; END;
      CREATE TRIGGER assets_added AFTER INSERT ON assets BEGIN UPDATE totals SET versions = versions + 1; END;
      CREATE TRIGGER assets_removed AFTER DELETE ON assets BEGIN UPDATE totals SET versions = versions - 1; END;
    `,
  },
];
