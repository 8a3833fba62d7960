import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { z } from 'zod';
import { fromUtf8, utf8 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import { type Migration, openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type { StagedSection, State, StateSection } from '../../capabilities/state.ts';

export interface StateLimits {
  /** Of one space, unless it was opened with its own: keys and values together, in bytes. */
  readonly spaceBytesMax: number;
  readonly spaceKeysMax: number;
  /** Of all spaces together. */
  readonly totalBytesMax: number;
}

const DEFAULT_LIMITS: StateLimits = {
  spaceBytesMax: 64 * 1_048_576,
  spaceKeysMax: 100_000,
  totalBytesMax: 1_073_741_824,
};

const KEY_LENGTH_MAX = 256;
const VALUE_BYTES_MAX = 1_048_576;
const CHANGES_MAX = 1_000;
const LIST_LIMIT_DEFAULT = 100;
const LIST_LIMIT_MAX = 1_000;
const LIST_BYTES_MAX = 4 * 1_048_576;
const SPACE_ID = /^[a-z][a-z0-9.-]{0,127}$/;
const SECTION_VERSION = 1;
const PIECE_BYTES = 262_144;

const MIGRATIONS: readonly Migration[] = [
  {
    name: '001-init',
    // `spaces` carries the totals, so that a quota check does not read the entries; both change in one transaction.
    up: `CREATE TABLE entries (
           space TEXT NOT NULL,
           key TEXT NOT NULL,
           value TEXT NOT NULL,
           bytes INTEGER NOT NULL,
           PRIMARY KEY (space, key)
         ) STRICT, WITHOUT ROWID;
         CREATE TABLE spaces (
           space TEXT PRIMARY KEY,
           keys INTEGER NOT NULL,
           bytes INTEGER NOT NULL
         ) STRICT, WITHOUT ROWID;
         CREATE TABLE staged (
           space TEXT NOT NULL,
           key TEXT NOT NULL,
           value TEXT NOT NULL,
           bytes INTEGER NOT NULL,
           PRIMARY KEY (space, key)
         ) STRICT, WITHOUT ROWID;`,
  },
];

interface EntryRow {
  readonly space: string;
  readonly key: string;
  readonly value: string;
  readonly bytes: number;
}

interface Totals {
  readonly keys: number;
  readonly bytes: number;
}

export interface StateSubsystem extends AsyncDisposable {
  /** The key-value space of one extension; `limits` narrow or widen its quota. Errors: `usage` for a bad id. */
  space(id: string, limits?: Partial<Pick<StateLimits, 'spaceBytesMax' | 'spaceKeysMax'>>): State;
  /** What a space holds now. */
  usage(id: string): Promise<Totals>;
  /** All spaces, as a part of a state export. */
  readonly section: StateSection;
  /** Folds the write-ahead log into the database file. Nothing depends on it but the size of the log. */
  checkpoint(): Promise<void>;
}

/** Opens `state.db` in `directory`, which is made if need be. Errors: `home-too-new`, `storage-*`. */
export async function openState(options: {
  readonly directory: string;
  readonly clock: Clock;
  readonly limits?: Partial<StateLimits>;
}): Promise<StateSubsystem> {
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  await mkdir(options.directory, { recursive: true }).catch((error: unknown) => {
    throw storageError(error, `making the folder ${options.directory}`);
  });
  const path = join(options.directory, 'state.db');
  const store = openSqlite(path, MIGRATIONS);
  // A staged copy that a crash left behind belongs to an import that will be done again from the start, or never.
  store.raw.exec('DELETE FROM staged');

  return {
    space(id, own = {}) {
      if (!SPACE_ID.test(id)) throw new HyperMeshError('usage', `"${id.slice(0, 128)}" cannot name a state space.`);
      return new Space(store, id, { ...limits, ...own });
    },
    usage: async (id) => totalsOf(store, id),
    section: {
      name: 'state',
      version: SECTION_VERSION,
      export: (call) => exportEntries(path, call),
      import: (_version, pieces, call) => stageEntries(store, pieces, limits, call),
    },
    async checkpoint() {
      store.raw.exec('PRAGMA wal_checkpoint(TRUNCATE)');
    },
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

class Space implements State {
  readonly #store: SqliteStore;
  readonly #id: string;
  readonly #limits: StateLimits;

  constructor(store: SqliteStore, id: string, limits: StateLimits) {
    this.#store = store;
    this.#id = id;
    this.#limits = limits;
  }

  async get(key: string): Promise<Json | undefined> {
    const value = this.#read(checkKey(key))?.value;
    return value === undefined ? undefined : (JSON.parse(value) as Json);
  }

  #read(key: string): EntryRow | undefined {
    const statement = this.#store.raw.prepare('SELECT * FROM entries WHERE space = ? AND key = ?');
    return statement.get(this.#id, key) as EntryRow | undefined;
  }

  async write(
    changes: Readonly<Record<string, Json | undefined>>,
    options: { readonly expect?: Readonly<Record<string, Json | undefined>> } = {},
  ): Promise<void> {
    const wanted = Object.entries(changes).map(([key, value]) => ({
      key: checkKey(key),
      value: value === undefined ? undefined : valueText(key, value),
    }));
    const expected = Object.entries(options.expect ?? {}).map(([key, value]) => ({
      key: checkKey(key),
      value: value === undefined ? undefined : canonicalJson(value),
    }));
    if (wanted.length > CHANGES_MAX || expected.length > CHANGES_MAX) {
      throw new HyperMeshError('limit-exceeded', `One write changes at most ${CHANGES_MAX} keys.`);
    }
    if (wanted.length === 0 && expected.length === 0) return;
    try {
      // The commit point: a crash before COMMIT leaves every key as it was, after it every key is changed.
      this.#store.transact((raw) => {
        for (const { key, value } of expected) {
          const row = this.#read(key);
          const present = row === undefined ? undefined : canonicalJson(JSON.parse(row.value));
          if (present !== value) {
            throw new HyperMeshError('state-conflict', `The value of "${key}" changed since it was read.`, {
              hint: 'Read it again, apply the change to what is there now, and write again.',
              details: { key },
            });
          }
        }
        const before = totalsOf(this.#store, this.#id);
        let { keys, bytes } = before;
        const put = raw.prepare('INSERT OR REPLACE INTO entries (space, key, value, bytes) VALUES (?, ?, ?, ?)');
        const drop = raw.prepare('DELETE FROM entries WHERE space = ? AND key = ?');
        for (const { key, value } of wanted) {
          const row = this.#read(key);
          keys -= row === undefined ? 0 : 1;
          bytes -= row?.bytes ?? 0;
          if (value === undefined) {
            drop.run(this.#id, key);
          } else {
            const size = entryBytes(key, value);
            put.run(this.#id, key, value, size);
            keys += 1;
            bytes += size;
          }
        }
        this.#checkQuota(before, { keys, bytes });
        raw.prepare('INSERT OR REPLACE INTO spaces (space, keys, bytes) VALUES (?, ?, ?)').run(this.#id, keys, bytes);
      });
    } catch (error) {
      throw storageError(error, 'writing state');
    }
  }

  /** A space that is over its quota (it was lowered, or an import filled it) may still shrink. */
  #checkQuota(before: Totals, after: Totals): void {
    const { spaceBytesMax, spaceKeysMax, totalBytesMax } = this.#limits;
    const hint = 'Delete what is no longer needed, or ask the operator for a larger quota.';
    if (after.bytes > before.bytes) {
      if (after.bytes > spaceBytesMax) {
        throw new HyperMeshError('quota-exceeded', `State would take ${after.bytes} of ${spaceBytesMax} bytes.`, {
          hint,
        });
      }
      const { bytes } = this.#store.raw.prepare('SELECT coalesce(sum(bytes), 0) AS bytes FROM spaces').get() as {
        bytes: number;
      };
      const total = bytes - before.bytes + after.bytes;
      if (total > totalBytesMax) {
        throw new HyperMeshError(
          'quota-exceeded',
          `All state together would take ${total} of ${totalBytesMax} bytes.`,
          {
            hint,
          },
        );
      }
    }
    if (after.keys > before.keys && after.keys > spaceKeysMax) {
      throw new HyperMeshError('quota-exceeded', `State would have ${after.keys} of ${spaceKeysMax} keys.`, { hint });
    }
  }

  async list(
    prefix: string,
    options: { readonly limit?: number; readonly after?: string } = {},
  ): Promise<readonly { readonly key: string; readonly value: Json }[]> {
    const { limit = LIST_LIMIT_DEFAULT, after } = options;
    if (!Number.isInteger(limit) || limit < 1 || limit > LIST_LIMIT_MAX) {
      throw new HyperMeshError('usage', `Expected a limit of 1 to ${LIST_LIMIT_MAX}, but got ${String(limit)}.`);
    }
    if (prefix !== '') checkKey(prefix);
    if (after !== undefined) checkKey(after);
    // Keys with one prefix stand together in key order, so the first key without it ends the page.
    const statement = this.#store.raw.prepare(
      'SELECT * FROM entries WHERE space = ? AND key >= ? AND key > ? ORDER BY key LIMIT ?',
    );
    const page: { key: string; value: Json }[] = [];
    let bytes = 0;
    for (const row of statement.iterate(
      this.#id,
      prefix,
      after ?? '',
      limit,
    ) as Iterable<unknown> as Iterable<EntryRow>) {
      if (!row.key.startsWith(prefix)) break;
      page.push({ key: row.key, value: JSON.parse(row.value) as Json });
      bytes += row.bytes;
      if (bytes >= LIST_BYTES_MAX) break;
    }
    return page;
  }
}

function totalsOf(store: SqliteStore, id: string): Totals {
  const row = store.raw.prepare('SELECT keys, bytes FROM spaces WHERE space = ?').get(id) as Totals | undefined;
  return { keys: row?.keys ?? 0, bytes: row?.bytes ?? 0 };
}

function entryBytes(key: string, value: string): number {
  return Buffer.byteLength(key) + Buffer.byteLength(value);
}

function isKey(key: unknown): key is string {
  // Control characters have no place in a key, and a lone surrogate has no form in UTF-8.
  return (
    typeof key === 'string' &&
    key.length >= 1 &&
    key.length <= KEY_LENGTH_MAX &&
    !/\p{Cc}/u.test(key) &&
    key.isWellFormed()
  );
}

function checkKey(key: string): string {
  if (isKey(key)) return key;
  throw new HyperMeshError(
    'usage',
    `A state key must have 1 to ${KEY_LENGTH_MAX} characters and no control characters.`,
  );
}

function valueText(key: string, value: Json): string {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    // A cycle, a bigint, or nesting deeper than the stack.
    throw new HyperMeshError('usage', `The value of "${key}" is not plain JSON.`, { cause: error });
  }
  if (typeof text !== 'string') throw new HyperMeshError('usage', `The value of "${key}" is not plain JSON.`);
  const size = Buffer.byteLength(text);
  if (size > VALUE_BYTES_MAX) {
    throw new HyperMeshError(
      'limit-exceeded',
      `The value of "${key}" has ${size} bytes; the limit is ${VALUE_BYTES_MAX}.`,
      {
        hint: 'Put large content into the content store and keep its digest here.',
      },
    );
  }
  return text;
}

/**
 * The section's content: lines of UTF-8, each a JSON array `[space, key, value]`, in order of space and key.
 * Read on a connection of its own inside one transaction: a consistent snapshot however long the reader takes.
 */
async function* exportEntries(path: string, { signal }: CallOptions = {}): AsyncGenerator<Uint8Array, void, undefined> {
  const raw = new DatabaseSync(path, { readOnly: true, timeout: 5_000 });
  try {
    raw.exec('BEGIN');
    const rows = raw.prepare('SELECT space, key, value FROM entries ORDER BY space, key').iterate();
    let lines: string[] = [];
    let size = 0;
    for (const row of rows as Iterable<unknown> as Iterable<EntryRow>) {
      const line = `[${JSON.stringify(row.space)},${JSON.stringify(row.key)},${row.value}]\n`;
      if (size > 0 && size + line.length > PIECE_BYTES) {
        yield* cut(utf8(lines.join('')));
        lines = [];
        size = 0;
        if (signal?.aborted === true) throw new HyperMeshError('cancelled', 'The caller gave up before the end.');
      }
      lines.push(line);
      size += line.length;
    }
    if (size > 0) yield* cut(utf8(lines.join('')));
  } finally {
    raw.close();
  }
}

function* cut(bytes: Uint8Array): Generator<Uint8Array, void, undefined> {
  for (let at = 0; at < bytes.length; at += VALUE_BYTES_MAX) yield bytes.subarray(at, at + VALUE_BYTES_MAX);
}

const LINE_BYTES_MAX = VALUE_BYTES_MAX + 8_192;
const lineSchema = z.tuple([z.string().regex(SPACE_ID), z.custom<string>(isKey), z.unknown()]);

async function stageEntries(
  store: SqliteStore,
  pieces: AsyncIterable<Uint8Array>,
  limits: StateLimits,
  { signal }: CallOptions = {},
): Promise<StagedSection> {
  const abandon = async () => {
    store.raw.exec('DELETE FROM staged');
  };
  await abandon();
  let total = 0;
  try {
    for await (const lines of linesOf(pieces)) {
      if (signal?.aborted === true) throw new HyperMeshError('cancelled', 'The caller gave up before the end.');
      store.transact((raw) => {
        const insert = raw.prepare('INSERT INTO staged (space, key, value, bytes) VALUES (?, ?, ?, ?)');
        for (const line of lines) {
          const entry = parseLine(line);
          total += entry.bytes;
          if (total > limits.totalBytesMax) {
            throw new HyperMeshError(
              'limit-exceeded',
              `The state to import has more than ${limits.totalBytesMax} bytes.`,
            );
          }
          insert.run(entry.space, entry.key, entry.value, entry.bytes);
        }
      });
    }
  } catch (error) {
    await abandon();
    if (isCoded(error)) throw error;
    throw isDuplicate(error) ? invalidSection('a key is there twice', error) : storageError(error, 'staging state');
  }
  return {
    abandon,
    async commit() {
      try {
        // The commit point of the section: one transaction.
        store.transact((raw) => {
          raw.exec(`DELETE FROM entries;
                    DELETE FROM spaces;
                    INSERT INTO entries SELECT * FROM staged;
                    INSERT INTO spaces SELECT space, count(*), sum(bytes) FROM staged GROUP BY space;
                    DELETE FROM staged;`);
        });
      } catch (error) {
        throw storageError(error, 'importing state');
      }
    },
  };
}

function parseLine(line: Uint8Array): EntryRow {
  let value: unknown;
  try {
    value = JSON.parse(fromUtf8(line));
  } catch (error) {
    throw invalidSection('a line is not JSON', error);
  }
  const parsed = lineSchema.safeParse(value);
  if (!parsed.success) throw invalidSection('a line is not [space, key, value]', parsed.error);
  const [space, key, content] = parsed.data;
  try {
    const text = valueText(key, content as Json);
    return { space, key, value: text, bytes: entryBytes(key, text) };
  } catch (error) {
    throw invalidSection(`the value of "${key}" is too large or too deep`, error);
  }
}

/** The lines of each piece, however lines and pieces overlap. */
async function* linesOf(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<readonly Uint8Array[], void, undefined> {
  let parts: Uint8Array[] = [];
  let held = 0;
  for await (const piece of pieces) {
    const lines: Uint8Array[] = [];
    let start = 0;
    for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, start)) {
      lines.push(
        parts.length === 0 ? piece.subarray(start, end) : Buffer.concat([...parts, piece.subarray(start, end)]),
      );
      parts = [];
      held = 0;
      start = end + 1;
    }
    if (start < piece.length) {
      parts.push(piece.subarray(start));
      held += piece.length - start;
    }
    if (held > LINE_BYTES_MAX) throw invalidSection(`a line is longer than ${LINE_BYTES_MAX} bytes`);
    if (lines.length > 0) yield lines;
  }
  if (held > 0) throw invalidSection('the last line has no end');
}

function isDuplicate(error: unknown): boolean {
  const SQLITE_CONSTRAINT = 19;
  return (((error as { errcode?: number } | null)?.errcode ?? 0) & 0xff) === SQLITE_CONSTRAINT;
}

function invalidSection(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError(
    'state-invalid',
    `The state section of the export is wrong: ${why}. Nothing was imported.`,
    {
      cause,
    },
  );
}
