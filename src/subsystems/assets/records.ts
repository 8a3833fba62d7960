import { rmSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import semver from 'semver';
import { z } from 'zod';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type {
  AssetDraft,
  AssetPage,
  AssetQuery,
  AssetRecord,
  AssetState,
  Dependent,
} from '../../capabilities/assets.ts';
import { digest, timeMs } from '../../wire/fields.ts';
import type { Lock } from '../../wire/lock.ts';
import { packageManifest } from '../../wire/manifest.ts';
import { type AssetId, assetId, type PackageName, packageName, privacyLevel, semverVersion } from '../../wire/names.ts';
import { precedenceKey } from './precedence.ts';
import { ASSET_MIGRATIONS, type AssetTables } from './schema.ts';
import { documentOf, Search, spellingKeys, textRow } from './search.ts';

export const RECORD_LIMITS = {
  versionsPerPackageMax: 10_000,
  dependentsListedMax: 1_000,
  annotationsPerAssetMax: 256,
  annotationBytesMax: 64 * 1024,
} as const;

const assetState = z.enum(['published', 'deprecated', 'yanked']);
const stateReason = z.string().max(1_000).nullable();

const draftShape = z
  .strictObject({
    digest,
    type: z.string().regex(/^[a-z][a-z0-9-]{0,63}$/),
    name: packageName,
    version: semverVersion,
    owner: z.string().min(1).max(256),
    privacy: privacyLevel,
    manifest: packageManifest,
    blobs: z.array(digest).max(256),
    layers: z.array(digest).min(1).max(64),
    bundle: digest,
    size: timeMs,
  })
  .refine((draft) => draft.manifest.name === draft.name && draft.manifest.version === draft.version, {
    path: ['manifest'],
    message: 'the manifest has another name or version than the draft',
  });

/** A record as a state export carries it. */
export const recordShape = z.strictObject({
  ...draftShape.shape,
  state: assetState,
  stateReason,
  createdAtMs: timeMs,
  updatedAtMs: timeMs,
});

export type StoredRecord = Omit<AssetRecord, 'id'>;
type AssetRow = AssetTables['assets'];
type InstallationRow = AssetTables['installations'];

/** Parses what comes from outside. Errors: `usage`. */
export function checkDraft(draft: unknown): AssetDraft {
  const checked = draftShape.safeParse(draft);
  if (checked.success) return checked.data;
  const [issue] = checked.error.issues;
  throw new HyperMeshError('usage', `The asset has a wrong ${issue?.path.join('.') || 'form'}: ${issue?.message}.`);
}

/** All blobs that a record refers to, each once. */
export function blobsOf(record: Pick<AssetRecord, 'digest' | 'blobs' | 'layers' | 'bundle'>): Digest[] {
  return [...new Set([record.digest, record.bundle, ...record.layers, ...record.blobs])];
}

/**
 * Records, search and installations in one SQLite file. Every method is one transaction, done and durable when it returns; all are
 * synchronous, so nothing can come between.
 */
export class Records implements Disposable {
  readonly path: string;
  readonly #store: SqliteStore;
  readonly #clock: Clock;
  readonly #sql: ReturnType<typeof statements>;
  readonly #search: Search;

  /** Errors: `storage-*`, `home-too-new`. */
  constructor(path: string, clock: Clock) {
    this.path = path;
    this.#clock = clock;
    this.#store = openSqlite(path, ASSET_MIGRATIONS);
    this.#sql = statements(this.#store.raw);
    this.#search = new Search(this.#store.raw);
  }

  /** `draft` is what `checkDraft` returned. Safe to repeat. Errors: `version-exists`, `limit-exceeded`. */
  create(draft: AssetDraft): AssetRecord {
    const nowMs = this.#clock.nowMs();
    return this.#transact('publishing', () => {
      const same = this.#sql.samePrecedence.get(draft.name, precedenceKey(draft.version)) as AssetRow | undefined;
      if (same?.digest === draft.digest && same.owner === draft.owner) return recordOf(same);
      if (same !== undefined) throw versionExists(draft, same);
      const { n } = this.#sql.countVersions.get(draft.name) as { n: number };
      if (n >= RECORD_LIMITS.versionsPerPackageMax) {
        throw new HyperMeshError(
          'limit-exceeded',
          `${draft.name} has ${n} versions already, the most a package may have.`,
        );
      }
      return this.#insert({
        ...draft,
        state: 'published',
        stateReason: null,
        createdAtMs: nowMs,
        updatedAtMs: nowMs,
      });
    });
  }

  /** Another bundle about the same content, in the place of one that was lost. */
  replaceBundle(id: AssetId, { bundle, blobs }: Pick<AssetRecord, 'bundle' | 'blobs'>): AssetRecord {
    return this.#transact('replacing a bundle', () => {
      this.#sql.setBundle.run(bundle, canonicalJson(blobs), this.#clock.nowMs(), id);
      return recordOf(this.#require(id));
    });
  }

  /** Puts back a record of a state export as it was. Errors: `version-exists`. */
  restore(records: readonly StoredRecord[]): void {
    this.#transact('restoring records', () => {
      for (const record of records) {
        const same = this.#sql.samePrecedence.get(record.name, precedenceKey(record.version)) as AssetRow | undefined;
        if (same !== undefined) throw versionExists(record, same);
        this.#insert(record);
      }
    });
  }

  get(id: AssetId): AssetRecord | null {
    const row = this.#row(id);
    return row ? recordOf(row) : null;
  }

  /** Newest first by precedence. */
  versions(name: PackageName): AssetRecord[] {
    return (this.#sql.versions.all(name) as unknown as AssetRow[]).map(recordOf);
  }

  async query(query: AssetQuery): Promise<AssetPage> {
    const page = await this.#search.page(query).catch((error: unknown) => {
      throw storageError(error, 'searching');
    });
    // One may have been deleted since it was found.
    const hits = page.hits.flatMap(({ package: seq, score }) => {
      const head = this.#sql.head.get(seq) as unknown as AssetRow | undefined;
      return head === undefined ? [] : [{ record: recordOf(head), score }];
    });
    return { hits, total: page.total, cursor: page.cursor };
  }

  /** Errors: `asset-not-found`, `usage`. */
  setState(id: AssetId, state: AssetState, reason: string | null): AssetRecord {
    if (!assetState.safeParse(state).success || !stateReason.safeParse(reason).success) {
      throw new HyperMeshError(
        'usage',
        'Expected a state (published, deprecated, yanked) and a reason of at most 1,000 characters.',
      );
    }
    return this.#transact('changing the state of an asset', () => {
      const row = this.#require(id);
      this.#sql.setState.run(state, reason, this.#clock.nowMs(), row.seq);
      this.#refreshHead(row.name);
      return recordOf(this.#require(id));
    });
  }

  /**
   * Published versions, whatever their state, that require this version or have it as a peer where no other version that is not yanked
   * satisfies their range; and installations that hold it. At most 1,000. Errors: `asset-not-found`.
   */
  dependents(id: AssetId): Dependent[] {
    const row = this.#require(id);
    const others = this.#sql.availableVersions.all(row.name, row.seq) as { version: string }[];
    const needed = (this.#sql.rangesOn.all(row.name) as { range: string }[]).filter(
      ({ range }) =>
        semver.satisfies(row.version, range) && !others.some(({ version }) => semver.satisfies(version, range)),
    );
    const refs = new Set<string>();
    for (const { range } of needed) {
      for (const { ref } of this.#sql.dependentsOn.all(row.name, range, row.name) as { ref: string }[]) refs.add(ref);
    }
    const roots = this.#sql.rootsWith.all(id) as { root: string }[];
    return [
      ...[...refs].sort().map((ref): Dependent => ({ kind: 'package', ref })),
      ...roots.map(({ root }): Dependent => ({ kind: 'installation', ref: root })),
    ].slice(0, RECORD_LIMITS.dependentsListedMax);
  }

  /** Drops every record. What is installed stays where it is. */
  forget(): void {
    this.#transact('forgetting all packages', () => {
      this.#store.raw.exec(`DELETE FROM assets; DELETE FROM packages; DELETE FROM spellings;
        INSERT INTO texts (texts) VALUES ('delete-all'); INSERT INTO newest (newest) VALUES ('delete-all');`);
    });
  }

  /** Errors: `asset-not-found`, `has-dependents`. */
  delete(id: AssetId): void {
    this.#transact('deleting an asset', () => {
      const row = this.#require(id);
      const dependents = this.dependents(id);
      if (dependents.length > 0) {
        const some = dependents
          .slice(0, 5)
          .map(({ kind, ref }) => (kind === 'package' ? ref : `the installation ${ref}`));
        const more = dependents.length > some.length ? ` and ${dependents.length - some.length} more` : '';
        throw new HyperMeshError(
          'has-dependents',
          `${row.name}@${row.version} is still needed by ${some.join(', ')}${more}.`,
          {
            hint: 'Yank it instead: nobody new will get it, and whoever has it keeps it.',
            details: { dependents },
          },
        );
      }
      this.#sql.deleteAsset.run(row.seq);
      this.#refreshHead(row.name);
    });
  }

  /** Errors: `asset-not-found`, `usage`, `limit-exceeded`. */
  annotate(id: AssetId, key: string, value: Json): void {
    const text = canonicalJson(value);
    if (!/^[\x21-\x7e]{1,256}$/.test(key) || text === undefined) {
      throw new HyperMeshError('usage', 'Expected a key of 1 to 256 visible ASCII characters and a JSON value.');
    }
    if (Buffer.byteLength(text) > RECORD_LIMITS.annotationBytesMax) {
      throw new HyperMeshError(
        'limit-exceeded',
        `An annotation holds at most ${RECORD_LIMITS.annotationBytesMax} bytes of JSON.`,
      );
    }
    this.#transact('annotating an asset', () => {
      const { seq } = this.#require(id);
      this.#sql.annotate.run(seq, key, text);
      const { n } = this.#sql.countAnnotations.get(seq) as { n: number };
      if (n > RECORD_LIMITS.annotationsPerAssetMax) {
        throw new HyperMeshError(
          'limit-exceeded',
          `An asset holds at most ${RECORD_LIMITS.annotationsPerAssetMax} annotations.`,
        );
      }
    });
  }

  /** Errors: `asset-not-found`. */
  annotations(id: AssetId): Record<string, Json> {
    const rows = this.#sql.annotations.all(this.#require(id).seq) as { key: string; value: string }[];
    return Object.fromEntries(rows.map(({ key, value }) => [key, JSON.parse(value) as Json]));
  }

  totals(): { packages: number; versions: number } {
    return { ...(this.#sql.totals.get() as { packages: number; versions: number }) };
  }

  /** What garbage collection must keep. Read in steps: what is added meanwhile holds leases on its blobs. */
  *references(): Generator<Digest> {
    for (let seq = 0; ; ) {
      const rows = this.#sql.referencePage.all(seq) as unknown as AssetRow[];
      if (rows.length === 0) break;
      for (const row of rows) yield* blobsOf(recordBlobs(row));
      seq = rows.at(-1)!.seq;
    }
    for (const { lock } of this.#sql.allInstallations.all() as unknown as InstallationRow[]) {
      for (const { digest, layers } of (JSON.parse(lock) as Lock).packages) yield* [digest, ...layers];
    }
  }

  /** Whether an installation, any generation of it that is kept, has one of these. */
  areInstalled(blobs: readonly Digest[]): boolean {
    return (this.#sql.allInstallations.all() as unknown as InstallationRow[]).some(({ lock }) =>
      (JSON.parse(lock) as Lock).packages.some(({ layers }) => layers.some((layer) => blobs.includes(layer))),
    );
  }

  /** Whether a record or an installation names this blob. Looks through all records. */
  isNamed(blob: Digest): boolean {
    return this.#sql.naming.get(blob) !== undefined || this.areInstalled([blob]);
  }

  /** Protects what `lock` refers to, before the first byte of that generation is written. */
  registerInstallation(root: string, generation: number, lock: Lock): void {
    this.#transact('registering an installation', () => {
      this.#sql.register.run(root, generation, canonicalJson(lock));
    });
  }

  /** Keeps these generations of a root and forgets all others; none: forgets the root. */
  retainInstallation(root: string, generations: readonly number[]): void {
    const known = this.#sql.generations.all(root) as { generation: number }[];
    const gone = known.filter(({ generation }) => !generations.includes(generation));
    if (gone.length === 0) return;
    this.#transact('forgetting a generation', () => {
      for (const { generation } of gone) this.#sql.forget.run(root, generation);
    });
  }

  roots(): string[] {
    return (this.#sql.roots.all() as { root: string }[]).map(({ root }) => root);
  }

  /** Installations belong to this machine: a state import keeps them. */
  copyInstallationsTo(other: Records): void {
    for (const { root, generation, lock } of this.#sql.allInstallations.all() as unknown as InstallationRow[]) {
      other.registerInstallation(root, generation, JSON.parse(lock) as Lock);
    }
  }

  /** Puts everything into the file alone, without a journal beside it, and closes it. Errors: `storage-*`; it is open then. */
  settle(): void {
    try {
      this.#store.raw.exec('PRAGMA wal_checkpoint(TRUNCATE)');
    } catch (error) {
      throw storageError(error, `putting the journal into ${this.path}`);
    }
    this.#store.raw.close();
  }

  /** Closes the file. What a full disk keeps in the journal beside it is there at the next start. */
  [Symbol.dispose](): void {
    if (this.#store.raw.isOpen) this.#store.raw.close();
  }

  /** Closes the file and removes it. */
  discard(): void {
    this[Symbol.dispose]();
    rmSync(this.path, { force: true });
  }

  #insert(record: StoredRecord): AssetRecord {
    const id = assetId(record.type, record.digest);
    const { lastInsertRowid: seq } = this.#sql.insertAsset.run(
      id,
      record.name,
      record.version,
      precedenceKey(record.version),
      record.digest,
      record.type,
      record.owner,
      record.privacy,
      record.state,
      record.stateReason,
      canonicalJson(record.manifest),
      canonicalJson(record.layers),
      canonicalJson(record.blobs),
      record.bundle,
      record.size,
      record.createdAtMs,
      record.updatedAtMs,
    );
    const { dependencies, optionalDependencies, peerDependencies } = record.manifest;
    const kinds = { required: dependencies, optional: optionalDependencies, peer: peerDependencies };
    for (const [kind, ranges] of Object.entries(kinds)) {
      for (const [name, range] of Object.entries(ranges)) this.#sql.insertDependency.run(seq, kind, name, range);
    }
    this.#refreshHead(record.name);
    return recordOf(this.#row(id)!);
  }

  /** Search shows the newest version that is not yanked, or, when all are, the newest. */
  #refreshHead(name: string): void {
    const head = (this.#sql.newestAvailable.get(name) ?? this.#sql.newest.get(name)) as AssetRow | undefined;
    const known = this.#sql.packageByName.get(name) as AssetTables['packages'] | undefined;
    if (known !== undefined) {
      if (known.head === head?.seq && known.headState === head.state) return;
      this.#sql.hideText.run(known.textRow);
      this.#sql.hideNewest.run(known.seq);
    }
    if (head === undefined) {
      if (known !== undefined) this.#sql.deletePackage.run(known.seq);
      return;
    }
    let { seq, textRow: row } = known ?? { seq: 0, textRow: 0 };
    if (known === undefined) {
      seq = Number(this.#sql.insertPackage.run(name, head.seq, head.state).lastInsertRowid);
      row = textRow(seq, name);
      this.#sql.setTextRow.run(row, seq);
    } else this.#sql.setHead.run(head.seq, head.state, seq);

    const document = documentOf(recordOf(head));
    const { keywords, description, authors, facets } = document;
    this.#sql.showText.run(row, document.name, keywords, description, authors, facets);
    this.#sql.showNewest.run(seq, facets);
    for (const word of new Set(`${document.name} ${keywords} ${description}`.split(' '))) {
      const keys = spellingKeys(word);
      if (keys.length === 0 || this.#sql.knowsSpelling.get(word, word) !== undefined) continue;
      for (const key of keys) this.#sql.insertSpelling.run(key, word);
    }
  }

  #row(id: AssetId): AssetRow | undefined {
    return this.#sql.byId.get(id) as AssetRow | undefined;
  }

  #require(id: AssetId): AssetRow {
    const row = this.#row(id);
    if (row !== undefined) return row;
    throw new HyperMeshError('asset-not-found', `No asset has the id ${JSON.stringify(String(id).slice(0, 140))}.`);
  }

  #transact<T>(doing: string, write: (raw: DatabaseSync) => T): T {
    try {
      return this.#store.transact(write);
    } catch (error) {
      throw storageError(error, doing);
    }
  }
}

/** A consistent snapshot of the records for an export, while others go on writing. */
export class RecordsSnapshot implements Disposable {
  readonly #raw: DatabaseSync;

  constructor(path: string) {
    this.#raw = new DatabaseSync(path, { readOnly: true, timeout: 5_000 });
    this.#raw.exec('BEGIN');
    // The snapshot is taken by the first read.
    this.#raw.prepare('SELECT count(*) FROM assets').get();
  }

  get isOpen(): boolean {
    return this.#raw.isOpen;
  }

  /** In the order in which they were created. */
  *records(): Generator<StoredRecord> {
    for (const row of this.#raw.prepare('SELECT * FROM assets ORDER BY seq').iterate()) {
      const { id: _, ...record } = recordOf(row as unknown as AssetRow);
      yield record;
    }
  }

  *annotations(): Generator<{ id: AssetId; key: string; value: string }> {
    const rows = this.#raw
      .prepare('SELECT id, key, value FROM annotations JOIN assets ON assets.seq = asset ORDER BY asset, key')
      .iterate();
    for (const row of rows) yield row as { id: AssetId; key: string; value: string };
  }

  /** Every blob that some record refers to, once, in order. */
  *blobs(): Generator<Digest> {
    const rows = this.#raw
      .prepare(
        `SELECT digest FROM assets UNION SELECT bundle FROM assets
         UNION SELECT value FROM assets, json_each(layers) UNION SELECT value FROM assets, json_each(blobs) ORDER BY 1`,
      )
      .iterate();
    for (const row of rows) yield (row as { digest: Digest }).digest;
  }

  /** Whether every record that refers to the blob has it as a layer. */
  isOnlyLayer(blob: Digest): boolean {
    const others = this.#raw.prepare(
      `SELECT 1 FROM assets WHERE (digest = ?1 OR bundle = ?1 OR EXISTS (SELECT 1 FROM json_each(blobs) WHERE value = ?1))
         AND NOT EXISTS (SELECT 1 FROM json_each(layers) WHERE value = ?1) LIMIT 1`,
    );
    return others.get(blob) === undefined;
  }

  [Symbol.dispose](): void {
    if (this.#raw.isOpen) this.#raw.close();
  }
}

function statements(raw: DatabaseSync) {
  // With every change SQLite names the row it inserted last, and the text index numbers rows of its own higher than a JavaScript number goes.
  const change = (sql: string) => {
    const statement = raw.prepare(sql);
    statement.setReadBigInts(true);
    return statement;
  };
  return {
    byId: raw.prepare('SELECT * FROM assets WHERE id = ?'),
    samePrecedence: raw.prepare('SELECT * FROM assets WHERE name = ? AND precedence = ?'),
    countVersions: raw.prepare('SELECT count(*) AS n FROM assets WHERE name = ?'),
    versions: raw.prepare('SELECT * FROM assets WHERE name = ? ORDER BY precedence DESC'),
    newest: raw.prepare('SELECT * FROM assets WHERE name = ? ORDER BY precedence DESC LIMIT 1'),
    newestAvailable: raw.prepare(
      `SELECT * FROM assets WHERE name = ? AND state <> 'yanked' ORDER BY precedence DESC LIMIT 1`,
    ),
    availableVersions: raw.prepare(`SELECT version FROM assets WHERE name = ? AND seq <> ? AND state <> 'yanked'`),
    head: raw.prepare('SELECT assets.* FROM packages JOIN assets ON assets.seq = packages.head WHERE packages.seq = ?'),
    insertAsset: change(
      `INSERT INTO assets (id, name, version, precedence, digest, type, owner, privacy, state, stateReason,
         manifest, layers, blobs, bundle, size, createdAtMs, updatedAtMs)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    deleteAsset: change('DELETE FROM assets WHERE seq = ?'),
    setBundle: change('UPDATE assets SET bundle = ?, blobs = ?, updatedAtMs = ? WHERE id = ?'),
    setState: change('UPDATE assets SET state = ?, stateReason = ?, updatedAtMs = ? WHERE seq = ?'),
    insertDependency: change('INSERT INTO dependencies (asset, kind, name, range) VALUES (?, ?, ?, ?)'),
    rangesOn: raw.prepare(`SELECT DISTINCT range FROM dependencies WHERE name = ? AND kind <> 'optional'`),
    dependentsOn: raw.prepare(
      `SELECT assets.name || '@' || assets.version AS ref FROM dependencies JOIN assets ON assets.seq = dependencies.asset
       WHERE dependencies.name = ? AND range = ? AND kind <> 'optional' AND assets.name <> ?
       LIMIT ${RECORD_LIMITS.dependentsListedMax}`,
    ),
    packageByName: raw.prepare('SELECT * FROM packages WHERE name = ?'),
    insertPackage: change('INSERT INTO packages (name, head, headState) VALUES (?, ?, ?)'),
    setTextRow: change('UPDATE packages SET textRow = ? WHERE seq = ?'),
    setHead: change('UPDATE packages SET head = ?, headState = ? WHERE seq = ?'),
    deletePackage: change('DELETE FROM packages WHERE seq = ?'),
    showText: change(
      'INSERT INTO texts (rowid, name, keywords, description, authors, facets) VALUES (?, ?, ?, ?, ?, ?)',
    ),
    hideText: change('DELETE FROM texts WHERE rowid = ?'),
    showNewest: change('INSERT INTO newest (rowid, facets) VALUES (?, ?)'),
    hideNewest: change('DELETE FROM newest WHERE rowid = ?'),
    knowsSpelling: raw.prepare('SELECT 1 FROM spellings WHERE key = ? AND word = ?'),
    insertSpelling: change('INSERT OR IGNORE INTO spellings (key, word) VALUES (?, ?)'),
    annotate: change(
      'INSERT INTO annotations (asset, key, value) VALUES (?, ?, ?) ON CONFLICT (asset, key) DO UPDATE SET value = excluded.value',
    ),
    annotations: raw.prepare('SELECT key, value FROM annotations WHERE asset = ? ORDER BY key'),
    countAnnotations: raw.prepare('SELECT count(*) AS n FROM annotations WHERE asset = ?'),
    totals: raw.prepare('SELECT packages, versions FROM totals'),
    referencePage: raw.prepare(
      'SELECT seq, digest, bundle, layers, blobs FROM assets WHERE seq > ? ORDER BY seq LIMIT 500',
    ),
    register: change('INSERT OR REPLACE INTO installations (root, generation, lock) VALUES (?, ?, ?)'),
    forget: change('DELETE FROM installations WHERE root = ? AND generation = ?'),
    generations: raw.prepare('SELECT generation FROM installations WHERE root = ?'),
    naming: raw.prepare(
      `SELECT 1 FROM assets
       WHERE digest = ?1 OR bundle = ?1 OR instr(layers, ?1) > 0 OR instr(blobs, ?1) > 0 LIMIT 1`,
    ),
    roots: raw.prepare('SELECT DISTINCT root FROM installations ORDER BY root'),
    allInstallations: raw.prepare('SELECT * FROM installations'),
    rootsWith: raw.prepare(
      `SELECT DISTINCT i.root AS root FROM installations AS i, json_each(i.lock, '$.packages') AS p
       WHERE p.value ->> 'id' = ? AND i.generation = (SELECT max(generation) FROM installations WHERE root = i.root)
       ORDER BY i.root`,
    ),
  };
}

function recordOf(row: AssetRow): AssetRecord {
  return {
    id: row.id as AssetId,
    type: row.type,
    name: row.name as PackageName,
    version: row.version,
    owner: row.owner,
    privacy: row.privacy as AssetRecord['privacy'],
    state: row.state as AssetState,
    stateReason: row.stateReason,
    manifest: JSON.parse(row.manifest) as AssetRecord['manifest'],
    ...recordBlobs(row),
    size: row.size,
    createdAtMs: row.createdAtMs,
    updatedAtMs: row.updatedAtMs,
  };
}

function recordBlobs(row: Pick<AssetRow, 'digest' | 'bundle' | 'layers' | 'blobs'>) {
  return {
    digest: row.digest as Digest,
    bundle: row.bundle as Digest,
    layers: JSON.parse(row.layers) as Digest[],
    blobs: JSON.parse(row.blobs) as Digest[],
  };
}

function versionExists(draft: Pick<AssetDraft, 'name' | 'version' | 'digest'>, same: AssetRow): HyperMeshError {
  const how = same.digest === draft.digest ? 'by another publisher' : `with other content (${same.digest})`;
  return new HyperMeshError('version-exists', `${draft.name}@${same.version} was published before, ${how}.`, {
    hint: 'A version never changes: raise the version in catalog.yaml and publish again.',
    details: { name: draft.name, version: same.version, digest: same.digest },
  });
}
