import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import { Kysely, SqliteDialect } from 'kysely';
import { HyperMeshError, storageError } from './errors.ts';

/** One numbered step of a schema. Never edited after release: add the next number. */
export interface Migration {
  /** `001-init`, `002-…`: sorted and applied in this order. */
  readonly name: string;
  readonly up: string;
}

export interface SqliteStore<Tables> extends AsyncDisposable {
  /** Typed queries. */
  readonly db: Kysely<Tables>;
  /** The connection itself, for prepared statements on hot paths and for `transact`. */
  readonly raw: DatabaseSync;
  /**
   * Runs `write` in one IMMEDIATE transaction. When it returns, the change is on disk (synchronous=FULL); when it throws, nothing happened.
   * `write` is synchronous: no other statement of this process can come between.
   */
  transact<T>(write: (raw: DatabaseSync) => T): T;
}

/**
 * Opens (or creates) a database in WAL mode and brings its schema up to date.
 * Errors: `home-too-new` when the file was written by a newer version; `storage-*`.
 */
export function openSqlite<Tables>(path: string, migrations: readonly Migration[]): SqliteStore<Tables> {
  try {
    const raw = new DatabaseSync(path, { timeout: 5_000 });
    raw.exec(
      'PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;',
    );
    const transact = <T>(write: (raw: DatabaseSync) => T): T => {
      raw.exec('BEGIN IMMEDIATE');
      try {
        const result = write(raw);
        raw.exec('COMMIT');
        return result;
      } catch (error) {
        if (raw.isTransaction) raw.exec('ROLLBACK');
        throw error;
      }
    };
    migrate(raw, path, migrations, transact);
    const db = new Kysely<Tables>({ dialect: new SqliteDialect({ database: adapt(raw) }) });
    return {
      db,
      raw,
      transact,
      async [Symbol.asyncDispose]() {
        if (raw.isOpen) raw.close();
      },
    };
  } catch (error) {
    throw storageError(sqliteErrno(error), `opening the database ${path}`);
  }
}

function migrate(
  raw: DatabaseSync,
  path: string,
  migrations: readonly Migration[],
  transact: (write: () => void) => void,
): void {
  const { user_version: at } = raw.prepare('PRAGMA user_version').get() as { user_version: number };
  if (at > migrations.length) {
    throw new HyperMeshError('home-too-new', `${path} has schema ${at}; this version knows ${migrations.length}.`, {
      hint: 'Update HyperMesh, or use another --home.',
    });
  }
  for (const [index, migration] of migrations.entries()) {
    if (index < at) continue;
    transact(() => {
      raw.exec(migration.up);
      raw.exec(`PRAGMA user_version = ${index + 1}`);
    });
  }
}

/** SQLITE_FULL and SQLITE_READONLY are the user's to mend like ENOSPC and EROFS; `storageError` knows those. */
function sqliteErrno(error: unknown): unknown {
  const errcode = (error as { errcode?: number } | null)?.errcode;
  if (errcode === undefined) return error;
  const primary = errcode & 0xff;
  const code = primary === 13 ? 'ENOSPC' : primary === 8 || primary === 14 ? 'EROFS' : undefined;
  return code === undefined ? error : Object.assign(new Error((error as Error).message, { cause: error }), { code });
}

/** Kysely's SQLite dialect wants the shape of better-sqlite3; node:sqlite has the same parts under other names. */
function adapt(raw: DatabaseSync) {
  const cache = new Map<string, StatementSync>();
  return {
    close: () => raw.close(),
    prepare(sql: string) {
      let statement = cache.get(sql);
      if (statement === undefined) {
        statement = raw.prepare(sql);
        if (cache.size < 256) cache.set(sql, statement);
      }
      const found = statement;
      return {
        reader: found.columns().length > 0,
        all: (values: readonly unknown[]) => found.all(...(values as SQLInputValue[])),
        run: (values: readonly unknown[]) => found.run(...(values as SQLInputValue[])),
        iterate: (values: readonly unknown[]) =>
          found.iterate(...(values as SQLInputValue[])) as IterableIterator<unknown>,
      };
    },
  };
}
