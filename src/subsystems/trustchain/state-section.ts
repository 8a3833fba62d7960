import { randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { z } from 'zod';
import { base64, concat, equal, fromBase64, fromUtf8, hex, utf8 } from '../../base/bytes.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { LeafRole } from '../../wire/certificate.ts';
import { CERTIFICATION_LIMITS, committeeSeat, subjectName } from '../../wire/certification.ts';
import { digest, hex32 } from '../../wire/fields.ts';
import { leafHash, rootDigest, treeHeadPayload } from '../../wire/log.ts';
import { signedTreeHead } from '../../wire/signature.ts';
import { signedTerms } from '../../wire/terms.ts';
import { decodeSealed, SEALED_BYTES_MAX, type Unlock } from './keystore.ts';
import type { MemberRow } from './members.ts';
import { verifyEnvelope } from './offline.ts';
import {
  type CertificateRow,
  type IssuedRow,
  insertCertificate,
  insertIssued,
  MIGRATIONS,
  type RevocationListRow,
} from './tables.ts';
import { completedBy, rangeHash } from './transparency-log.ts';

/** Files that begin so are left over from an import that did not finish; the next opening removes them. */
export const STAGED_PREFIX = 'trust-import-';

/** 2 has a node key, without which the home that takes an export of version 1 completes it; 3 knows networks of several homes, 4 open ones. */
const VERSION = 4;
const PIECE_BYTES_MAX = 1_048_576;
/** A revocation list of 1 MiB in base64 is the longest line. */
const LINE_BYTES_MAX = 2_097_152;

const certificateRole = z.enum(['root', 'intermediate', 'publisher', 'validator', 'node']);
const revoked = z
  .strictObject({ atMs: z.int(), reason: z.enum(['key-compromise', 'superseded', 'cessation-of-operation']) })
  .nullable();
const storedMembership = z.strictObject({
  networkId: digest,
  committee: z.array(committeeSeat).min(1).max(CERTIFICATION_LIMITS.committeeMax),
  joinedAtMs: z.int().nonnegative(),
});
const line = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('network'), name: z.string().min(1).max(32) }),
  z.strictObject({
    kind: z.literal('keystore'),
    name: z.enum(['root', 'node']),
    sealed: z.string().max(SEALED_BYTES_MAX),
  }),
  z.strictObject({
    kind: z.literal('certificate'),
    role: certificateRole,
    der: z.string(),
    revoked,
  }),
  z.strictObject({ kind: z.literal('revocation-list'), issuer: z.enum(['root', 'intermediate']), der: z.string() }),
  z.strictObject({ kind: z.literal('founder') }),
  z.strictObject({ kind: z.literal('membership'), membership: storedMembership }),
  z.strictObject({
    kind: z.literal('member'),
    node: hex32,
    publisher: hex32,
    validator: hex32,
    subject: subjectName,
    joinedAtMs: z.int(),
    leftAtMs: z.int().nullable(),
    origin: z.string().max(64).nullable().default(null),
    removed: z.boolean().default(false),
  }),
  z.strictObject({ kind: z.literal('terms'), signed: signedTerms }),
  z.strictObject({
    kind: z.literal('issued'),
    node: hex32,
    role: z.enum(['publisher', 'validator', 'node']),
    der: z.string(),
    revoked,
  }),
  z.strictObject({ kind: z.literal('leaf'), content: z.string() }),
  z.strictObject({ kind: z.literal('head'), head: signedTreeHead }),
  z.strictObject({ kind: z.literal('end'), lines: z.int() }),
]);
type Line = z.infer<typeof line>;

export interface SectionLent {
  readonly store: SqliteStore;
  readonly directory: string;
  /** What opens these sealed documents in this home. Errors: `key-locked`, `key-invalid`. */
  checkKeys(sealed: readonly string[]): Promise<Unlock>;
  /** Key ids of the keys that are here, by name. */
  ownKeyIds(): Promise<ReadonlyMap<string, string>>;
  /** Told after the tables were replaced; `unlock` when the keys were, too. */
  switched(unlock: Unlock | undefined): Promise<void>;
  /** Runs without any other change to certificates in between. */
  exclusive<T>(change: () => Promise<T>): Promise<T>;
}

/**
 * The trust data in a state export: JSON lines (docs/protocol/keystore.md). Keys are in it only when a passphrase protects them; an
 * export without keys can only be imported into a home that has the same keys.
 */
export function trustSection(lent: SectionLent): StateSection {
  return {
    name: 'trust',
    version: VERSION,
    export: () => exportPieces(join(lent.directory, 'trust.db')),
    import: (version, pieces) => importPieces(lent, version, pieces),
  };
}

/** Reads through its own connection in one transaction: a snapshot, whatever happens meanwhile. */
async function* exportPieces(path: string): AsyncGenerator<Uint8Array> {
  const raw = new DatabaseSync(path, { readOnly: true });
  try {
    raw.exec('BEGIN');
    let waiting: Uint8Array[] = [];
    let bytes = 0;
    let lines = 0;
    for (const entry of exportLines(raw, () => lines)) {
      lines += 1;
      const encoded = utf8(`${canonicalJson(entry)}\n`);
      waiting.push(encoded);
      bytes += encoded.length;
      if (bytes < PIECE_BYTES_MAX / 2) continue;
      yield* cut(concat(...waiting));
      waiting = [];
      bytes = 0;
    }
    yield* cut(concat(...waiting));
  } finally {
    raw.close();
  }
}

function* cut(bytes: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += PIECE_BYTES_MAX) yield bytes.subarray(at, at + PIECE_BYTES_MAX);
}

function* exportLines(raw: DatabaseSync, lines: () => number): Generator<Line> {
  yield {
    kind: 'network',
    name: raw.prepare("SELECT value FROM setting WHERE name = 'network'").get()!['value'] as string,
  };
  const sealed = raw.prepare('SELECT name, sealed FROM keystore ORDER BY name').all() as {
    name: 'root' | 'node';
    sealed: string;
  }[];
  for (const { name, sealed: text } of sealed) {
    if (decodeSealed(text).kdf.name === 'scrypt') yield { kind: 'keystore', name, sealed: text };
  }
  const rows = raw.prepare('SELECT * FROM certificate ORDER BY rowid').all() as unknown as CertificateRow[];
  for (const { role, der, revoked_at_ms: atMs, revoked_reason: reason } of rows) {
    const revoked = atMs === null || reason === null ? null : { atMs, reason };
    yield { kind: 'certificate', role, der: base64(der), revoked };
  }
  for (const row of raw
    .prepare('SELECT * FROM revocation_list ORDER BY issuer')
    .all() as unknown as RevocationListRow[]) {
    yield { kind: 'revocation-list', issuer: row.issuer, der: base64(row.der) };
  }
  if (raw.prepare("SELECT 1 FROM setting WHERE name = 'founder'").get() !== undefined) yield { kind: 'founder' };
  const terms = raw.prepare("SELECT value FROM setting WHERE name = 'terms'").get();
  if (terms !== undefined) yield { kind: 'terms', signed: signedTerms.parse(JSON.parse(terms['value'] as string)) };
  const membership = raw.prepare('SELECT json FROM membership').get();
  if (membership !== undefined) {
    yield { kind: 'membership', membership: storedMembership.parse(JSON.parse(membership['json'] as string)) };
  }
  // Invites stay: what is restored elsewhere must not let anybody in twice.
  for (const row of raw.prepare('SELECT * FROM member ORDER BY node').iterate() as Iterable<unknown>) {
    const { joined_at_ms: joinedAtMs, left_at_ms: leftAtMs, removed, ...about } = row as MemberRow;
    yield { kind: 'member', ...about, joinedAtMs, leftAtMs, removed: removed === 1 };
  }
  for (const row of raw.prepare('SELECT * FROM issued ORDER BY rowid').iterate() as Iterable<unknown>) {
    const { node, role, der, revoked_at_ms: atMs, revoked_reason: reason } = row as IssuedRow;
    yield {
      kind: 'issued',
      node,
      role: role as LeafRole,
      der: base64(der),
      revoked: atMs === null || reason === null ? null : { atMs, reason },
    };
  }
  for (const row of raw.prepare('SELECT content FROM leaf ORDER BY position').iterate()) {
    yield { kind: 'leaf', content: base64(row['content'] as Uint8Array) };
  }
  const head = raw.prepare('SELECT json FROM head').get();
  if (head !== undefined) yield { kind: 'head', head: signedTreeHead.parse(JSON.parse(head['json'] as string)) };
  yield { kind: 'end', lines: lines() };
}

async function importPieces(
  lent: SectionLent,
  version: number,
  pieces: AsyncIterable<Uint8Array>,
): Promise<{ commit(): Promise<void>; abandon(): Promise<void> }> {
  if (version > VERSION)
    throw new HyperMeshError('state-too-new', `The trust data has version ${version}; this node knows ${VERSION}.`);
  const path = join(lent.directory, `${STAGED_PREFIX}${hex(randomBytes(8))}.db`);
  const staged = openSqlite(path, MIGRATIONS);
  const drop = async () => {
    await staged[Symbol.asyncDispose]();
    for (const suffix of ['', '-wal', '-shm']) await rm(path + suffix, { force: true });
  };
  try {
    await fill(staged.raw, pieces);
    await checkStaged(staged.raw, version);
    const sealed = staged.raw
      .prepare('SELECT sealed FROM keystore ORDER BY name')
      .all()
      .map((row) => row['sealed'] as string);
    let unlock: Unlock | undefined;
    if (sealed.length > 0) unlock = await lent.checkKeys(sealed);
    else checkSameKeys(staged.raw, lent.store.raw, await lent.ownKeyIds());
    await staged[Symbol.asyncDispose]();
    return {
      commit: () =>
        lent.exclusive(async () => {
          switchTo(path, lent.store, unlock !== undefined);
          await lent.switched(unlock);
          await drop();
        }),
      abandon: drop,
    };
  } catch (error) {
    await drop();
    if (isCoded(error)) throw error;
    throw (error as { errcode?: number }).errcode === undefined
      ? invalid('The trust data in the export is damaged', error)
      : storageError(error, 'staging the trust data');
  }
}

async function fill(raw: DatabaseSync, pieces: AsyncIterable<Uint8Array>): Promise<void> {
  const { certificateRow } = await import('./issue.ts');
  const { decodeRevocationList } = await import('../../wire/certificate.ts');
  const node = raw.prepare('SELECT hash FROM node WHERE level = ? AND position = ?');
  const insertNode = raw.prepare('INSERT INTO node VALUES (?, ?, ?)');
  const insertLeaf = raw.prepare('INSERT INTO leaf VALUES (?, ?, ?)');
  const lookUp = (level: number, position: number) => node.get(level, position)!['hash'] as Uint8Array;
  let lines = 0;
  let leaves = 0;
  let ended = false;
  raw.exec('BEGIN');
  for await (const entry of readLines(pieces)) {
    if (ended) throw invalid('The trust data goes on after its end');
    switch (entry.kind) {
      case 'network':
        raw.prepare("INSERT INTO setting VALUES ('network', ?)").run(entry.name);
        break;
      case 'keystore':
        if (decodeSealed(entry.sealed).kdf.name !== 'scrypt')
          throw invalid('The keys in the export are not protected by a passphrase');
        raw.prepare('INSERT INTO keystore VALUES (?, ?)').run(entry.name, entry.sealed);
        break;
      case 'certificate': {
        const row = certificateRow(fromBase64(entry.der), entry.role);
        const { atMs, reason } = entry.revoked ?? { atMs: null, reason: null };
        insertCertificate(raw, { ...row, revoked_at_ms: atMs, revoked_reason: reason });
        break;
      }
      case 'revocation-list': {
        const list = decodeRevocationList(fromBase64(entry.der));
        raw
          .prepare('INSERT INTO revocation_list VALUES (?, ?, ?, ?)')
          .run(entry.issuer, list.number, list.der, list.nextUpdateMs);
        break;
      }
      case 'founder':
        raw.prepare("INSERT INTO setting VALUES ('founder', 'yes')").run();
        break;
      case 'terms':
        raw.prepare("INSERT INTO setting VALUES ('terms', ?)").run(JSON.stringify(entry.signed));
        break;
      case 'membership':
        raw.prepare('INSERT INTO membership VALUES (1, ?)').run(JSON.stringify(entry.membership));
        break;
      case 'member':
        raw
          .prepare(
            'INSERT INTO member (node, publisher, validator, subject, joined_at_ms, left_at_ms, origin, removed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
          )
          .run(
            ...[entry.node, entry.publisher, entry.validator, entry.subject, entry.joinedAtMs, entry.leftAtMs],
            ...[entry.origin, Number(entry.removed)],
          );
        break;
      case 'issued': {
        const row = certificateRow(fromBase64(entry.der), entry.role);
        const { atMs, reason } = entry.revoked ?? { atMs: null, reason: null };
        insertIssued(raw, { ...row, node: entry.node, revoked_at_ms: atMs, revoked_reason: reason });
        break;
      }
      case 'leaf': {
        const content = fromBase64(entry.content);
        const hash = leafHash(content);
        insertLeaf.run(leaves, hash, content);
        for (const { level, position, hash: value } of completedBy(leaves, hash, lookUp))
          insertNode.run(level, position, value);
        leaves += 1;
        break;
      }
      case 'head':
        raw.prepare('INSERT INTO head VALUES (1, ?)').run(JSON.stringify(entry.head));
        break;
      case 'end':
        if (entry.lines !== lines) throw invalid('Lines of the trust data are missing');
        ended = true;
        break;
    }
    lines += 1;
  }
  if (!ended) throw invalid('The trust data is cut off');
  raw.exec('COMMIT');
}

async function* readLines(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Line> {
  let rest: Uint8Array[] = [];
  let restBytes = 0;
  for await (const piece of pieces) {
    let at = 0;
    for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, at)) {
      yield line.parse(JSON.parse(fromUtf8(concat(...rest, piece.subarray(at, end)))));
      rest = [];
      restBytes = 0;
      at = end + 1;
    }
    restBytes += piece.length - at;
    if (restBytes > LINE_BYTES_MAX) throw invalid('A line of the trust data is too long');
    if (at < piece.length) rest.push(piece.slice(at));
  }
  if (restBytes > 0) throw invalid('The trust data is cut off');
}

/** The whole must hold together: every certificate is signed by the one root, the lists are genuine, the head fits the leaves. */
async function checkStaged(raw: DatabaseSync, version: number): Promise<void> {
  const { decodeCertificate, decodeRevocationList } = await import('../../wire/certificate.ts');
  const { verifies, roleOf } = await import('./verify.ts');
  const rows = raw.prepare('SELECT * FROM certificate').all() as unknown as CertificateRow[];
  const newest = (role: string) => rows.filter((row) => row.role === role).at(-1);
  const root = newest('root');
  const intermediate = newest('intermediate');
  if (
    !root ||
    !intermediate ||
    rows.filter((row) => row.role === 'root').length !== 1 ||
    !newest('publisher') ||
    !newest('validator') ||
    (version > 1 && !newest('node'))
  ) {
    throw invalid('The trust data lacks one of its certificates');
  }
  if (raw.prepare("SELECT 1 FROM setting WHERE name = 'network'").get() === undefined)
    throw invalid('The trust data does not name its network');
  const authorities = { root: decodeCertificate(root.der), intermediate: decodeCertificate(intermediate.der) };
  const issued = raw.prepare('SELECT * FROM issued').all() as unknown as CertificateRow[];
  for (const row of [...rows, ...issued]) {
    const certificate = decodeCertificate(row.der);
    const issuer = row.role === 'root' || row.role === 'intermediate' ? authorities.root : authorities.intermediate;
    if (
      roleOf(certificate) !== row.role ||
      !equal(certificate.issuerDer, issuer.subjectDer) ||
      !verifies(certificate.signed, issuer.keys)
    ) {
      throw invalid(`The certificate ${row.fingerprint} in the trust data is not what it says`);
    }
  }
  const lists = raw.prepare('SELECT * FROM revocation_list').all() as unknown as RevocationListRow[];
  for (const row of lists) {
    if (!verifies(decodeRevocationList(row.der).signed, authorities[row.issuer].keys))
      throw invalid('A revocation list is not genuine');
  }
  if (lists.length !== 2) throw invalid('The trust data lacks a revocation list');
  const { size } = raw.prepare('SELECT count(*) AS size FROM leaf').get() as { size: number };
  const stored = raw.prepare('SELECT json FROM head').get();
  if (stored === undefined) {
    if (size > 0) throw invalid('The log in the trust data has no signed head');
    return;
  }
  const head = signedTreeHead.parse(JSON.parse(stored['json'] as string));
  const node = raw.prepare('SELECT hash FROM node WHERE level = ? AND position = ?');
  const hash = rangeHash(0, size, (level, position) => node.get(level, position)!['hash'] as Uint8Array);
  if (head.size !== size || head.root !== rootDigest(hash))
    throw invalid('The signed head does not fit the leaves of the log');
  const anchor = { root: base64(root.der), revocations: lists.map((row) => base64(row.der)) };
  const { payload } = await verifyEnvelope(head.envelope, head.chain, anchor, {
    role: 'validator',
    atMs: head.timestampMs,
  });
  if (!equal(payload, treeHeadPayload(head))) throw invalid('The head of the log was altered');
}

/** The authorities of a network that another home founded are not keys of this home. */
function checkSameKeys(staged: DatabaseSync, live: DatabaseSync, own: ReadonlyMap<string, string>): void {
  const isMember = staged.prepare('SELECT 1 FROM membership').get() !== undefined;
  const ids = (raw: DatabaseSync) =>
    raw.prepare('SELECT DISTINCT role, key_id FROM certificate').all() as { role: string; key_id: string }[];
  const here = new Set([
    ...ids(live).map(({ role, key_id: id }) => `${role} ${id}`),
    ...[...own].map(([role, id]) => `${role} ${id}`),
  ]);
  const isOurs = ({ role, key_id: id }: { role: string; key_id: string }) =>
    here.has(`${role} ${id}`) || (isMember && (role === 'root' || role === 'intermediate'));
  if (ids(staged).every(isOurs)) return;
  throw new HyperMeshError(
    'state-invalid',
    'The export holds no keys, and this home has other keys than the one it came from.',
    {
      hint: 'Only a home with a passphrase exports its keys. Import into the home it came from, or copy that home as a whole.',
    },
  );
}

/**
 * The commit point: one transaction. Before it the old state is complete, after it the new one is.
 * Restoring an older export of the same network never un-revokes a certificate and never shortens the log: both only grow.
 */
function switchTo(path: string, store: SqliteStore, withKeys: boolean): void {
  store.raw.prepare('ATTACH ? AS staged').run(path);
  try {
    store.transact((raw) => {
      const root = (schema: string) =>
        raw.prepare(`SELECT fingerprint FROM ${schema}.certificate WHERE role = 'root'`).get()?.['fingerprint'];
      const size = (schema: string) =>
        raw.prepare(`SELECT count(*) AS size FROM ${schema}.leaf`).get()!['size'] as number;
      const same = root('main') === root('staged');
      if (withKeys) raw.exec('DELETE FROM keystore; INSERT INTO keystore SELECT * FROM staged.keystore;');
      const listNumber = (schema: string) =>
        (raw.prepare(`SELECT number FROM ${schema}.revocation_list WHERE issuer = 'intermediate'`).get()?.['number'] ??
          0) as number;
      // Who belongs to the network is what the newer of the two knows.
      const isNewer = !same || listNumber('staged') > listNumber('main');
      if (!same) {
        for (const table of ['setting', 'certificate', 'revocation_list', 'membership', 'member', 'issued', 'invite'])
          raw.exec(`DELETE FROM ${table}`);
      }
      raw.exec('INSERT OR IGNORE INTO membership SELECT * FROM staged.membership;');
      raw.exec(`INSERT OR ${isNewer ? 'REPLACE' : 'IGNORE'} INTO member SELECT * FROM staged.member;`);
      raw.exec('INSERT OR IGNORE INTO issued SELECT * FROM staged.issued;');
      raw.exec('INSERT OR IGNORE INTO setting SELECT * FROM staged.setting;');
      raw.exec('INSERT OR IGNORE INTO certificate SELECT * FROM staged.certificate;');
      for (const table of ['certificate', 'issued']) {
        raw.exec(`UPDATE ${table} AS mine SET revoked_at_ms = theirs.revoked_at_ms, revoked_reason = theirs.revoked_reason
          FROM staged.${table} AS theirs
          WHERE theirs.fingerprint = mine.fingerprint AND mine.revoked_at_ms IS NULL AND theirs.revoked_at_ms IS NOT NULL;`);
      }
      raw.exec(`INSERT INTO revocation_list SELECT * FROM staged.revocation_list WHERE true
        ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, der = excluded.der, next_update_ms = excluded.next_update_ms
        WHERE excluded.number > number;`);
      if (!same || size('staged') >= size('main')) {
        for (const table of ['leaf', 'node', 'head'])
          raw.exec(`DELETE FROM ${table}; INSERT INTO ${table} SELECT * FROM staged.${table};`);
      }
    });
  } finally {
    store.raw.exec('DETACH staged');
  }
}

function invalid(message: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('state-invalid', `${message}; nothing was imported.`, cause === undefined ? {} : { cause });
}
