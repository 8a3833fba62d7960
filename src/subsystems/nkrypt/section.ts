import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { z } from 'zod';
import { base64, fromBase64, fromUtf8, utf8 } from '../../base/bytes.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { StateSection } from '../../capabilities/state.ts';
import { decodeGenesis, type Genesis } from '../../wire/genesis.ts';
import { ledgerObjection } from './ledger/ledger.ts';
import { openStore, type Store } from './store.ts';

/** Rows are documents of the network. 7: heads of the order are certified in views; what is older counts nowhere any more. */
const VERSION = 7;
const STAGE = 'nkrypt-import.db';
/** Bytes of rows after which a piece is closed; the largest row is a genesis document or an endorsement. */
const PIECE_BYTES = 64 * 2 ** 10;
const PIECE_ROWS = 500;

/** Tables and columns in the order of export. Space files do not travel: they follow from the identity and are made again. */
const TABLES = {
  genesis: ['id', 'document'],
  identities: ['identity', 'sequence'],
  orders: ['sequence', 'operation', 'signed'],
  votes: ['identity', 'sequence', 'epoch', 'kind', 'operation', 'proofs', 'at_ms', 'signed'],
  floors: ['identity', 'sequence'],
  closed: ['epoch'],
  certificates: ['identity', 'sequence', 'kind', 'operation', 'proofs', 'certificate', 'ref', 'is_open'],
  ballots: ['identity', 'sequence', 'operation', 'proofs', 'ref', 'ballot'],
  accusations: ['about', 'conflict', 'is_answered'],
  commitments: ['identity', 'roots', 'nonce', 'registered'],
  joined: ['id'],
  versions: ['ref', 'subject'],
  facts: ['key', 'value'],
  fact_sum: ['id', 'lanes'],
  epochs: ['epoch', 'digest', 'document'],
  log_entries: ['position', 'digest', 'entry', 'head', 'outcome'],
  log_certificates: ['position', 'turn', 'document'],
  log_state: ['id', 'applied', 'view', 'voted', 'lost', 'floor'],
  log_lock: ['id', 'view', 'position', 'head', 'document'],
  log_approved: ['id', 'view', 'position', 'head'],
  log_snapshot: ['id', 'base', 'head', 'document'],
  facts_before: ['key', 'value'],
  log_recovery: ['id', 'statement'],
  sequenced: ['log', 'position', 'digest', 'entry'],
} as const;
/** What follows from the order of the network: it is taken as a whole, and never goes back. */
const ORDERED: readonly string[] = [
  'facts',
  'fact_sum',
  'epochs',
  'log_entries',
  'log_certificates',
  'log_state',
  'log_lock',
  'log_approved',
  'log_snapshot',
  'facts_before',
  'log_recovery',
  'sequenced',
];
/** Columns of bytes: they travel as base64. */
const BYTES: readonly string[] = ['lanes', 'digest', 'entry', 'head'];
type Table = keyof typeof TABLES;

const piece = z.strictObject({
  table: z.enum(Object.keys(TABLES) as [Table, ...Table[]]),
  rows: z.array(z.array(z.union([z.string(), z.int(), z.null()])).max(16)).max(PIECE_ROWS),
});

/** A staged copy that a crash left behind. */
export function dropStaged(directory: string): void {
  for (const tail of ['', '-wal', '-shm']) rmSync(join(directory, STAGE + tail), { force: true });
}

/** The committee's memory and the ledger as a part of a state export. */
export function stateSection(
  store: Store,
  directory: string,
  home: {
    /** Whether the validators that a genesis document names signed it. */
    approved(genesis: Genesis): Promise<boolean>;
    /** Called after an import took effect. */
    replaced(): Promise<void>;
  },
): StateSection {
  return {
    name: 'nkrypt',
    version: VERSION,
    async *export() {
      // A connection of its own: its read transaction sees one moment, however slowly the pieces are taken, and blocks nobody.
      const reader = openStore(directory);
      try {
        reader.raw.exec('BEGIN');
        for (const [table, columns] of Object.entries(TABLES)) {
          const rows = reader.raw
            .prepare(`SELECT ${columns.join(', ')} FROM ${table} ORDER BY ${columns.slice(0, 2).join(', ')}`)
            .iterate();
          yield* cut(table, columns, rows as Iterable<Record<string, Json | Uint8Array>>);
        }
      } finally {
        await reader[Symbol.asyncDispose]();
      }
    },
    async import(version, pieces) {
      if (version < VERSION) {
        throw new HyperMeshError(
          'state-too-old',
          `The state export has the nkrypt section in version ${version}; this version of HyperMesh reads ${VERSION}. Nothing was imported.`,
          { hint: 'Use the version that wrote it, or begin a new home and publish the packages there.' },
        );
      }
      dropStaged(directory);
      const staged = openStore(directory, STAGE);
      try {
        for await (const bytes of pieces) {
          insert(staged, bytes);
          await turn();
        }
        if (!(await home.approved(check(staged)))) throw invalid('nobody signed its genesis document');
      } catch (error) {
        await staged[Symbol.asyncDispose]();
        dropStaged(directory);
        throw isCoded(error) ? error : invalid('the tables do not accept its rows', error);
      }
      await staged[Symbol.asyncDispose]();
      return {
        async commit() {
          replace(store, join(directory, STAGE));
          dropStaged(directory);
          await home.replaced();
        },
        async abandon() {
          dropStaged(directory);
        },
      };
    },
  };
}

function* cut(
  table: string,
  columns: readonly string[],
  rows: Iterable<Record<string, Json | Uint8Array>>,
): Iterable<Uint8Array> {
  let batch: Json[][] = [];
  let size = 0;
  for (const row of rows) {
    const values = columns.map((column) => {
      const value = row[column] ?? null;
      return value instanceof Uint8Array ? base64(value) : value;
    });
    batch.push(values);
    size += canonicalJson(values).length;
    if (size <= PIECE_BYTES && batch.length < PIECE_ROWS) continue;
    yield utf8(canonicalJson({ table, rows: batch }));
    batch = [];
    size = 0;
  }
  if (batch.length > 0) yield utf8(canonicalJson({ table, rows: batch }));
}

function insert(staged: Store, bytes: Uint8Array): void {
  const parsed = piece.safeParse(parseJson(bytes));
  if (!parsed.success) throw invalid('a piece is not a list of rows');
  const { table, rows } = parsed.data;
  const columns = TABLES[table];
  const statement = `INSERT INTO ${table} (${columns.join(', ')}) VALUES (${columns.map(() => '?').join(', ')})`;
  staged.transact((raw) => {
    const prepared = raw.prepare(statement);
    for (const row of rows) {
      if (row.length !== columns.length) throw invalid(`a row of ${table} has ${row.length} values`);
      prepared.run(...row.map((value, at) => (BYTES.includes(columns[at]!) ? bytesOf(value) : value)));
    }
  });
}

function bytesOf(value: Json): Uint8Array {
  try {
    return fromBase64(value as string);
  } catch (error) {
    throw invalid('bytes are not base64', error);
  }
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(fromUtf8(bytes));
  } catch (error) {
    throw invalid('a piece is not JSON', error);
  }
}

/** A network, and a state of its order that belongs together: exactly the tokens that it was founded with. */
function check(staged: Store): Genesis {
  const row = staged.raw.prepare('SELECT document FROM genesis').get() as { document: string } | undefined;
  if (row === undefined) throw invalid('it has no genesis document');
  const { genesis } = decodeGenesis(JSON.parse(row.document));
  const objection = ledgerObjection(staged.raw, genesis);
  if (objection !== undefined) throw invalid(objection);
  return genesis;
}

/** What this home promised: going back to an older state of the same network takes none of it back. */
const PROMISES: readonly Table[] = [
  'orders',
  'votes',
  'floors',
  'closed',
  'certificates',
  'ballots',
  'accusations',
  'versions',
];

/**
 * Commit point: one transaction that writes this database only. Sequence numbers that this home took in the same network stay
 * taken, and its votes stay cast, so that going back to an older state never makes it say two things under one number.
 */
function replace(store: Store, path: string): void {
  store.raw.prepare('ATTACH ? AS staged').run(path);
  try {
    store.transact((raw) => {
      raw.exec(`
        CREATE TEMP TABLE given AS SELECT identity, sequence FROM main.identities
          WHERE (SELECT document FROM main.genesis) = (SELECT document FROM staged.genesis);
      `);
      const kept = isFurther(raw) ? ORDERED : [];
      const isSame =
        raw
          .prepare('SELECT 1 FROM main.genesis JOIN staged.genesis ON main.genesis.document = staged.genesis.document')
          .get() !== undefined;
      for (const [table, columns] of Object.entries(TABLES)) {
        if (kept.includes(table)) continue;
        const names = columns.join(', ');
        if (!isSame || !PROMISES.includes(table as Table)) raw.exec(`DELETE FROM main.${table}`);
        raw.exec(`INSERT OR IGNORE INTO main.${table} (${names}) SELECT ${names} FROM staged.${table}`);
      }
      raw.exec(`
        INSERT INTO main.identities (identity, sequence) SELECT identity, sequence FROM given WHERE true
          ON CONFLICT (identity) DO UPDATE SET sequence = max(sequence, excluded.sequence);
        DROP TABLE given;
      `);
    });
  } finally {
    store.raw.exec('DETACH staged');
  }
}

/** Whether this home is in the same network, and its order further on, or its validator bound beyond what comes. */
function isFurther(raw: Store['raw']): boolean {
  const row = raw
    .prepare(
      `SELECT (SELECT document FROM main.genesis) = (SELECT document FROM staged.genesis) AS same,
         max(applied, voted, (SELECT coalesce(max(position), 0) FROM main.log_lock), (SELECT coalesce(max(position), 0) FROM main.log_approved))
           >= (SELECT coalesce(max(applied), 0) FROM staged.log_state) AS further FROM main.log_state`,
    )
    .get() as { same: number; further: number } | undefined;
  return row?.same === 1 && row.further === 1;
}

function invalid(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('state-invalid', `The nkrypt section of the export makes no sense: ${why}.`, {
    hint: 'Export the state again from the node that it came from.',
    cause,
  });
}
