import { join } from 'node:path';
import { z } from 'zod';
import { fromHex } from '../../base/bytes.ts';
import { type Digest, digestHex } from '../../base/digest.ts';
import { canonicalJson } from '../../base/json.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type { Ban, Resource } from '../../capabilities/transport.ts';
import { type Coding, decodeSignedCoding, fragmentId, fragmentOf } from '../../wire/coding.ts';
import { digest } from '../../wire/fields.ts';
import type { NodeId } from './channel/index.ts';
import type { KeptResource, ResourceBook, ResourceLine } from './replication.ts';

/** `waiting`: to be judged. `retired`: known to be void, without its bytes. */
export type RecordState = 'waiting' | 'accepted' | 'refused' | 'retired';

export interface StoredRecord {
  readonly id: Digest;
  readonly state: RecordState;
  /** Null: it is a blob of the content store, or its bytes are gone. */
  readonly bytes: Uint8Array | null;
  /** The node that handed it over; null for this node's own. */
  readonly from: NodeId | null;
}

const MIGRATIONS = [
  {
    name: '001-init',
    up: `
      CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE nodes (node TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
      CREATE TABLE bans (node TEXT PRIMARY KEY, why TEXT NOT NULL, evidence BLOB NOT NULL, at_ms INTEGER NOT NULL) STRICT;
      CREATE TABLE records (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        state TEXT NOT NULL,
        bytes BLOB,
        from_node TEXT,
        due_ms INTEGER NOT NULL
      ) STRICT;
      CREATE INDEX records_waiting ON records (due_ms) WHERE state = 'waiting';
      CREATE TABLE resources (
        id TEXT PRIMARY KEY,
        blobs TEXT NOT NULL,
        replication INTEGER NOT NULL,
        held INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE shared (
        blob TEXT NOT NULL,
        resource TEXT NOT NULL REFERENCES resources ON DELETE CASCADE,
        PRIMARY KEY (blob, resource)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX shared_resource ON shared (resource);`,
  },
  {
    name: '002-waiting-by-node',
    up: "CREATE INDEX records_waiting_from ON records (from_node) WHERE state = 'waiting';",
  },
  {
    name: '003-known-ids',
    // All of them are read at every start, in this order.
    up: "CREATE INDEX records_known ON records (id) WHERE state IN ('accepted', 'retired');",
  },
  {
    name: '004-pinned',
    // Nothing said so far who wants to keep what is here.
    up: `ALTER TABLE resources ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
         UPDATE resources SET pinned = held;`,
  },
  {
    name: '005-resource-lines',
    // They are counted and gone through often, without their blobs.
    up: 'CREATE INDEX resources_lines ON resources (id, replication, held, pinned);',
  },
  {
    name: '006-codings',
    up: `
      CREATE TABLE codings (
        id TEXT PRIMARY KEY,
        resource TEXT NOT NULL,
        blob TEXT NOT NULL,
        coder TEXT NOT NULL,
        bytes BLOB NOT NULL,
        checked INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX codings_blob ON codings (blob);
      CREATE INDEX codings_resource ON codings (resource);
      CREATE INDEX codings_coder ON codings (coder);
      CREATE TABLE fragments (
        id TEXT NOT NULL,
        blob TEXT NOT NULL,
        coding TEXT NOT NULL REFERENCES codings ON DELETE CASCADE,
        PRIMARY KEY (id, coding)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX fragments_coding ON fragments (coding);
      CREATE INDEX fragments_blob ON fragments (blob);`,
  },
];

/** Of what was sent by somebody who is banned for it. */
const EVIDENCE_BYTES_MAX = 64 * 2 ** 10;
/** Record ids that are read at once. */
const IDS_PAGE = 4_096;

const blobs: z.ZodType<Resource['blobs']> = z.array(
  z.strictObject({
    digest,
    size: z.number(),
    shards: z.strictObject({
      algorithm: z.literal('fastcdc-v1'),
      averageBytes: z.number(),
      count: z.number(),
      root: z.string(),
    }),
  }),
);

/** What STOQ remembers: `stoq.db`. Every method is one transaction, durable when it returns. */
export class Book implements ResourceBook, AsyncDisposable {
  readonly #store: SqliteStore;
  readonly #sql: ReturnType<typeof statements>;

  /** Errors: `storage-*`, `home-too-new`. */
  constructor(directory: string) {
    this.#store = openSqlite(join(directory, 'stoq.db'), MIGRATIONS);
    this.#sql = statements(this.#store.raw);
  }

  setting(name: string): string | null {
    return (this.#sql.setting.get(name) as { value: string } | undefined)?.value ?? null;
  }

  set(name: string, value: string | null): void {
    if (value === null) this.#sql.unset.run(name);
    else this.#sql.set.run(name, value);
  }

  /** Everything that belongs to the network: whoever enters another begins with nothing. */
  clear(): void {
    this.#store.transact((raw) => {
      raw.exec(
        `DELETE FROM settings; DELETE FROM nodes; DELETE FROM bans; DELETE FROM records; DELETE FROM resources;
         DELETE FROM codings;`,
      );
    });
  }

  // Nodes

  nodes(): Uint8Array[] {
    return (this.#sql.nodes.all() as { bytes: Uint8Array }[]).map(({ bytes }) => bytes);
  }

  keepNode(node: NodeId, bytes: Uint8Array): void {
    this.#sql.keepNode.run(node, bytes);
  }

  forgetNode(node: NodeId): void {
    this.#sql.forgetNode.run(node);
  }

  ban(node: NodeId, why: string, evidence: Uint8Array, atMs: number): void {
    this.#sql.ban.run(node, why.slice(0, 500), evidence.subarray(0, EVIDENCE_BYTES_MAX), atMs);
  }

  bans(): Ban[] {
    return this.#sql.bans.all() as unknown as Ban[];
  }

  /** What shows that a ban is right, at most {@link EVIDENCE_BYTES_MAX}; null when there is none. */
  evidence(node: NodeId): Uint8Array | null {
    const row = this.#sql.evidence.get(node) as { evidence: Uint8Array } | undefined;
    return row?.evidence ?? null;
  }

  /** Whether it was banned. */
  forgive(node: NodeId): boolean {
    return Number(this.#sql.forgive.run(node).changes) > 0;
  }

  // Records

  record(id: Digest): StoredRecord | null {
    const row = this.#sql.record.get(bytesOf(id)) as unknown as RecordRow | undefined;
    return row === undefined ? null : storedRecord(row);
  }

  /** Ids of what was accepted or retired, ascending, one after the other: less than a microsecond for each. */
  recordIds(pageMax = IDS_PAGE): Uint8Array<ArrayBuffer> {
    const pages: Uint8Array[] = [];
    for (let after: Uint8Array = new Uint8Array(); ; ) {
      const page = this.#sql.recordIds.get(after, pageMax) as { ids: string | null; last: Uint8Array };
      if (page.ids === null) return Buffer.concat(pages);
      pages.push(fromHex(page.ids));
      after = page.last;
    }
  }

  addRecord(record: StoredRecord, dueMs: number): void {
    const { id, state, bytes, from } = record;
    this.#sql.addRecord.run(bytesOf(id), state, bytes, from, dueMs);
  }

  setRecord(id: Digest, state: RecordState): void {
    this.#sql.setRecord.run(state, state === 'accepted' ? 0 : 1, bytesOf(id));
  }

  postpone(id: Digest, dueMs: number): void {
    this.#sql.postpone.run(dueMs, bytesOf(id));
  }

  /** Lets records that wait longest come now. */
  hasten(nowMs: number, limit: number): void {
    this.#sql.hasten.run(nowMs, limit);
  }

  dropRecord(id: Digest): void {
    this.#sql.dropRecord.run(bytesOf(id));
  }

  /** The record that has waited longest among those that are due, and when the next one is. */
  nextArrival(nowMs: number): { readonly record: StoredRecord | null; readonly dueMs: number | null } {
    const row = this.#sql.nextArrival.get() as unknown as (RecordRow & { due_ms: number }) | undefined;
    if (row === undefined) return { record: null, dueMs: null };
    return row.due_ms <= nowMs ? { record: storedRecord(row), dueMs: row.due_ms } : { record: null, dueMs: row.due_ms };
  }

  arrivals(): number {
    return (this.#sql.countArrivals.get() as { n: number }).n;
  }

  arrivalsFrom(node: NodeId): number {
    return (this.#sql.countArrivalsFrom.get(node) as { n: number }).n;
  }

  // Resources

  get(id: Digest): KeptResource | null {
    const row = this.#sql.resource.get(id) as unknown as ResourceRow | undefined;
    return row === undefined ? null : keptResource(row);
  }

  page(after: string, limit: number): ResourceLine[] {
    const rows = this.#sql.resources.all(after, limit) as unknown as Omit<ResourceRow, 'blobs'>[];
    return rows.map(({ id, replication, held, pinned }) => {
      return { id, replication, held: held === 1, pinned: pinned === 1 };
    });
  }

  keepResource({ id, blobs: list, replication, pinned = false }: Resource, held: boolean): void {
    this.#store.transact(() => {
      this.#sql.keepResource.run(id, canonicalJson(list), replication, held ? 1 : 0, pinned ? 1 : 0);
      for (const { digest } of list) this.#sql.share.run(digest, id);
    });
  }

  setHeld(id: Digest, held: boolean): void {
    this.#sql.setHeld.run(held ? 1 : 0, id);
  }

  dropResource(id: Digest): void {
    this.#sql.dropResource.run(id);
  }

  /** Whether some resource that the network was told of has this blob. */
  isShared(blob: Digest): boolean {
    return this.#sql.sharing.get(blob) !== undefined;
  }

  /** Resources that have this blob. */
  resourcesWith(blob: Digest): Digest[] {
    return (this.#sql.resourcesWith.all(blob) as { resource: Digest }[]).map(({ resource }) => resource);
  }

  // Coded content

  /** `null`: no such one. */
  coding(id: Digest): KnownCoding | null {
    const row = this.#sql.coding.get(id) as unknown as CodingRow | undefined;
    return row === undefined ? null : knownCoding(row);
  }

  /** Of one blob; those come first that were found to be true here. */
  codingsOf(blob: Digest): KnownCoding[] {
    return (this.#sql.codingsOf.all(blob) as unknown as CodingRow[]).map(knownCoding);
  }

  codingIds(by: { readonly resource: Digest } | { readonly coder: NodeId } | 'all'): Digest[] {
    const rows =
      by === 'all'
        ? this.#sql.codingIds.all()
        : 'coder' in by
          ? this.#sql.codingIdsBy.all(by.coder)
          : this.#sql.codingIdsFor.all(by.resource);
    return (rows as { id: Digest }[]).map(({ id }) => id);
  }

  codingCount(by: { readonly coder: NodeId } | { readonly blob: Digest }): number {
    const row = 'coder' in by ? this.#sql.codingCountBy.get(by.coder) : this.#sql.codingCountOf.get(by.blob);
    return (row as { codings: number }).codings;
  }

  /** Blobs of which a coding was found to be true here, with what they belong to. */
  codedBlobs(): { readonly resource: Digest; readonly blob: Digest }[] {
    return (this.#sql.codedBlobs.all() as { resource: Digest; blob: Digest }[]).map((row) => ({ ...row }));
  }

  codingTotals(): { readonly codings: number; readonly packages: number; readonly fragments: number } {
    return { ...(this.#sql.codingTotals.get() as { codings: number; packages: number; fragments: number }) };
  }

  /** Whether one of these fragments belongs to other content. */
  isFragmentOfAnother(fragments: readonly Digest[], blob: Digest): boolean {
    return fragments.some((id) => this.#sql.fragmentOfAnother.get(id, blob) !== undefined);
  }

  keepCoding({ id, coding, coder, bytes }: Omit<KnownCoding, 'checked'>, checked: boolean): void {
    const { resource, blob } = coding;
    this.#store.transact(() => {
      this.#sql.keepCoding.run(id, resource, blob.digest, coder, bytes, checked ? 1 : 0);
      for (const index of coding.fragments.keys()) {
        const fragment = fragmentOf(coding, index);
        const named = fragmentId(fragment);
        // Where it lies is decided by whoever places it, and whoever keeps it does so until it is told otherwise.
        this.#sql.keepResource.run(named, canonicalJson([fragment]), 0, 0, 1);
        this.#sql.keepFragment.run(named, fragment.digest, id);
      }
    });
  }

  /** Forgets a coding. Returns the blobs of its fragments that are kept here, and belong to no other one. */
  dropCoding(id: Digest): Digest[] {
    return this.#store.transact(() => {
      const alone = this.#sql.fragmentsAlone.all(id) as { id: Digest; blob: Digest; held: number }[];
      for (const fragment of alone) this.#sql.dropResource.run(fragment.id);
      this.#sql.dropCoding.run(id);
      return alone.filter(({ held }) => held === 1).map(({ blob }) => blob);
    });
  }

  /** The fragment is kept here, for others too. */
  holdFragment({ id, blobs: [blob] }: Pick<Resource, 'id' | 'blobs'>): void {
    this.#store.transact(() => {
      this.#sql.setHeld.run(1, id);
      this.#sql.share.run(blob!.digest, id);
    });
  }

  /** Blobs of all fragments that are kept here. */
  fragmentsHeld(): Digest[] {
    return (this.#sql.fragmentsHeld.all() as { blob: Digest }[]).map(({ blob }) => blob);
  }

  /** What a fragment is one of. */
  codingsWith(fragment: Digest): KnownCoding[] {
    return (this.#sql.codingsWith.all(fragment) as unknown as CodingRow[]).map(knownCoding);
  }

  /** What a blob is a fragment of. */
  codedFrom(blob: Digest): Digest[] {
    return (this.#sql.codedFrom.all(blob) as { resource: Digest }[]).map(({ resource }) => resource);
  }

  resourceTotals(): { readonly known: number; readonly held: number } {
    return { ...(this.#sql.resourceTotals.get() as { known: number; held: number }) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }
}

/** Who coded what, as this node was told. */
export interface KnownCoding {
  readonly id: Digest;
  readonly coding: Coding;
  readonly coder: NodeId;
  readonly bytes: Uint8Array;
  /** This node had the content and made the same fragments of it. */
  readonly checked: boolean;
}

interface CodingRow {
  readonly id: Digest;
  readonly bytes: Uint8Array;
  readonly checked: number;
}

interface RecordRow {
  readonly id: Uint8Array;
  readonly state: RecordState;
  readonly bytes: Uint8Array | null;
  readonly from_node: string | null;
}

interface ResourceRow {
  readonly id: Digest;
  readonly blobs: string;
  readonly replication: number;
  readonly held: number;
  readonly pinned: number;
}

function statements(raw: SqliteStore['raw']) {
  return {
    setting: raw.prepare('SELECT value FROM settings WHERE name = ?'),
    set: raw.prepare(
      'INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value',
    ),
    unset: raw.prepare('DELETE FROM settings WHERE name = ?'),
    nodes: raw.prepare('SELECT bytes FROM nodes'),
    keepNode: raw.prepare(
      'INSERT INTO nodes (node, bytes) VALUES (?, ?) ON CONFLICT (node) DO UPDATE SET bytes = excluded.bytes',
    ),
    forgetNode: raw.prepare('DELETE FROM nodes WHERE node = ?'),
    ban: raw.prepare('INSERT INTO bans (node, why, evidence, at_ms) VALUES (?, ?, ?, ?) ON CONFLICT (node) DO NOTHING'),
    bans: raw.prepare(
      `SELECT node, why AS reason, at_ms AS bannedAtMs, length(evidence) AS evidenceBytes FROM bans ORDER BY at_ms`,
    ),
    evidence: raw.prepare('SELECT evidence FROM bans WHERE node = ?'),
    forgive: raw.prepare('DELETE FROM bans WHERE node = ?'),
    record: raw.prepare('SELECT id, state, bytes, from_node FROM records WHERE id = ?'),
    // SQLite sorts them and writes them into one text: as rows they would take seven times as long.
    recordIds: raw.prepare(
      `SELECT group_concat(hex(id), '' ORDER BY id) AS ids, max(id) AS last FROM
         (SELECT id FROM records WHERE state IN ('accepted', 'retired') AND id > ? ORDER BY id LIMIT ?)`,
    ),
    addRecord: raw.prepare(
      `INSERT INTO records (id, state, bytes, from_node, due_ms) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET state = excluded.state, bytes = excluded.bytes`,
    ),
    setRecord: raw.prepare('UPDATE records SET state = ?1, bytes = iif(?2, NULL, bytes) WHERE id = ?3'),
    postpone: raw.prepare('UPDATE records SET due_ms = ? WHERE id = ?'),
    hasten: raw.prepare(
      "UPDATE records SET due_ms = ?1 WHERE seq IN (SELECT seq FROM records WHERE state = 'waiting' ORDER BY due_ms, seq LIMIT ?2)",
    ),
    dropRecord: raw.prepare('DELETE FROM records WHERE id = ?'),
    nextArrival: raw.prepare(
      "SELECT id, state, bytes, from_node, due_ms FROM records WHERE state = 'waiting' ORDER BY due_ms, seq LIMIT 1",
    ),
    countArrivals: raw.prepare("SELECT count(*) AS n FROM records WHERE state = 'waiting'"),
    countArrivalsFrom: raw.prepare("SELECT count(*) AS n FROM records WHERE state = 'waiting' AND from_node = ?"),
    resource: raw.prepare('SELECT * FROM resources WHERE id = ?'),
    resources: raw.prepare('SELECT id, replication, held, pinned FROM resources WHERE id > ? ORDER BY id LIMIT ?'),
    keepResource: raw.prepare(
      `INSERT INTO resources (id, blobs, replication, held, pinned) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET replication = excluded.replication, held = max(held, excluded.held), pinned = max(pinned, excluded.pinned)`,
    ),
    setHeld: raw.prepare('UPDATE resources SET held = ? WHERE id = ?'),
    dropResource: raw.prepare('DELETE FROM resources WHERE id = ?'),
    share: raw.prepare('INSERT INTO shared (blob, resource) VALUES (?, ?) ON CONFLICT DO NOTHING'),
    resourcesWith: raw.prepare('SELECT resource FROM shared WHERE blob = ?'),
    sharing: raw.prepare('SELECT 1 FROM shared WHERE blob = ? LIMIT 1'),
    // Fragments ask for no places of their own, and are counted apart.
    resourceTotals: raw.prepare(
      'SELECT count(*) AS known, coalesce(sum(held), 0) AS held FROM resources WHERE replication > 0',
    ),
    coding: raw.prepare('SELECT id, bytes, checked FROM codings WHERE id = ?'),
    codingsOf: raw.prepare('SELECT id, bytes, checked FROM codings WHERE blob = ? ORDER BY checked DESC, id'),
    codingIds: raw.prepare('SELECT id FROM codings ORDER BY id'),
    codingIdsBy: raw.prepare('SELECT id FROM codings WHERE coder = ?'),
    codingIdsFor: raw.prepare('SELECT id FROM codings WHERE resource = ?'),
    codingCountBy: raw.prepare('SELECT count(*) AS codings FROM codings WHERE coder = ?'),
    codingCountOf: raw.prepare('SELECT count(*) AS codings FROM codings WHERE blob = ?'),
    codedBlobs: raw.prepare('SELECT DISTINCT resource, blob FROM codings WHERE checked = 1'),
    codingTotals: raw.prepare(
      `SELECT (SELECT count(*) FROM codings) AS codings, (SELECT count(DISTINCT resource) FROM codings) AS packages,
         (SELECT count(*) FROM resources WHERE replication = 0 AND held = 1) AS fragments`,
    ),
    keepCoding: raw.prepare(
      `INSERT INTO codings (id, resource, blob, coder, bytes, checked) VALUES (?, ?, ?, ?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET checked = max(checked, excluded.checked)`,
    ),
    dropCoding: raw.prepare('DELETE FROM codings WHERE id = ?'),
    keepFragment: raw.prepare('INSERT INTO fragments (id, blob, coding) VALUES (?, ?, ?) ON CONFLICT DO NOTHING'),
    fragmentsAlone: raw.prepare(
      `SELECT fragments.id, fragments.blob, resources.held FROM fragments JOIN resources USING (id)
       WHERE coding = ?1 AND NOT EXISTS (SELECT 1 FROM fragments AS f WHERE f.id = fragments.id AND f.coding <> ?1)`,
    ),
    fragmentOfAnother: raw.prepare(
      'SELECT 1 FROM fragments JOIN codings ON codings.id = coding WHERE fragments.id = ? AND codings.blob <> ? LIMIT 1',
    ),
    fragmentsHeld: raw.prepare(
      'SELECT DISTINCT blob FROM fragments JOIN resources USING (id) WHERE resources.held = 1',
    ),
    codingsWith: raw.prepare(
      `SELECT codings.id, bytes, checked FROM codings JOIN fragments ON coding = codings.id WHERE fragments.id = ?
       ORDER BY checked DESC, codings.id`,
    ),
    codedFrom: raw.prepare(
      'SELECT DISTINCT resource FROM codings JOIN fragments ON coding = codings.id WHERE fragments.blob = ?',
    ),
  };
}

function storedRecord(row: RecordRow): StoredRecord {
  return {
    id: `sha256:${Buffer.from(row.id).toString('hex')}`,
    state: row.state,
    bytes: row.bytes,
    from: row.from_node,
  };
}

function knownCoding({ id, bytes, checked }: CodingRow): KnownCoding {
  const { coding, coder } = decodeSignedCoding(bytes);
  return { id, coding, coder, bytes, checked: checked === 1 };
}

function keptResource(row: ResourceRow): KeptResource {
  const { id, replication, held, pinned } = row;
  return { id, blobs: blobs.parse(JSON.parse(row.blobs)), replication, held: held === 1, pinned: pinned === 1 };
}

function bytesOf(id: Digest): Uint8Array {
  return Buffer.from(digestHex(id), 'hex');
}
