import { DatabaseSync } from 'node:sqlite';
import { HyperMeshError, storageCode, storageError } from './errors.ts';
import { makeOwnFile } from './folders.ts';

/** One numbered step of a schema. Never edited after release: add the next number. */
export interface Migration {
  /** `001-init`, `002-…`: sorted and applied in this order. */
  readonly name: string;
  readonly up: string;
}

export interface SqliteStore extends AsyncDisposable {
  /** The connection: prepared statements, whose rows each store types itself. */
  readonly raw: DatabaseSync;
  /**
   * Runs `write` in one IMMEDIATE transaction. When it returns, the change is on disk (synchronous=FULL); when it throws, nothing happened.
   * A full or read-only disk is `storage-*`.
   * `write` is synchronous: no other statement of this process can come between.
   */
  transact<T>(write: (raw: DatabaseSync) => T): T;
}

/**
 * Opens (or creates, readable by its owner alone) a database in WAL mode and brings its schema up to date.
 * Errors: `home-too-new` when the file was written by a newer version; `storage-*`.
 */
export function openSqlite(path: string, migrations: readonly Migration[]): SqliteStore {
  try {
    // The files that SQLite puts beside it get the same mode.
    if (path !== ':memory:') makeOwnFile(path);
    const raw = new DatabaseSync(path, { timeout: 5_000 });
    raw.exec(
      'PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;',
    );
    const transact = <T>(write: (raw: DatabaseSync) => T): T => {
      try {
        raw.exec('BEGIN IMMEDIATE');
        const result = write(raw);
        raw.exec('COMMIT');
        return result;
      } catch (error) {
        if (raw.isTransaction) raw.exec('ROLLBACK');
        const ofTheDisk =
          (error as { errcode?: number } | null)?.errcode !== undefined && storageCode(error) !== undefined;
        throw ofTheDisk ? storageError(error, `writing the database ${path}`) : error;
      }
    };
    migrate(raw, path, migrations, transact);
    return {
      raw,
      transact,
      async [Symbol.asyncDispose]() {
        if (raw.isOpen) raw.close();
      },
    };
  } catch (error) {
    throw storageError(error, `opening the database ${path}`);
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
