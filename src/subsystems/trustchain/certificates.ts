import { base64 } from '../../base/bytes.ts';
import type { SqliteStore } from '../../base/sqlite.ts';
import type { CertificateInfo } from '../../capabilities/trust.ts';
import type { CertificateRole, LeafRole } from '../../wire/certificate.ts';
import type { CertificateChain, TrustAnchor } from '../../wire/signature.ts';
import type { StoredMembership } from './network-notes.ts';
import { NAME, type SettledOptions } from './options.ts';
import { type CertificateRow, insertCertificate, type RevocationListRow } from './tables.ts';

export const LEAF_ROLES = ['publisher', 'validator', 'node'] as const satisfies readonly LeafRole[];

/** Who issues the certificates of a role. */
export function authorityOf(role: CertificateRole): 'root' | 'intermediate' {
  return role === 'root' || role === 'intermediate' ? 'root' : 'intermediate';
}

/** The certificates and revocation lists of a home as they lie in `trust.db`. It neither issues nor judges any. */
export class Certificates {
  readonly #store: SqliteStore;
  readonly #options: SettledOptions;
  /** Made from the rows; absent when they may have changed. */
  #anchor: TrustAnchor | undefined;

  constructor(store: SqliteStore, options: SettledOptions) {
    this.#store = store;
    this.#options = options;
  }

  /** Newest first. */
  rows(): CertificateRow[] {
    return this.#store.raw
      .prepare('SELECT * FROM certificate ORDER BY not_after_ms DESC, rowid DESC')
      .all() as unknown as CertificateRow[];
  }

  /** Also one that was revoked. */
  anyOf(role: CertificateRole): CertificateRow {
    return this.rows().find((row) => row.role === role)!;
  }

  /** Of those that were not revoked. */
  newest(role: CertificateRole): CertificateRow | undefined {
    return this.rows().find((row) => row.role === role && row.revoked_at_ms === null);
  }

  /** Key ids of this home, also when its certificates have expired. */
  keyIds(): Readonly<Record<LeafRole, string>> {
    const id = (role: LeafRole) => this.anyOf(role).key_id;
    return { publisher: id('publisher'), validator: id('validator'), node: id('node') };
  }

  chainOf(leaf: CertificateRow): CertificateChain {
    const intermediate = this.newest('intermediate') ?? this.anyOf('intermediate');
    return [leaf, intermediate, this.newest('root')!].map((row) => base64(row.der));
  }

  /** With less than a third of its life left. */
  isAging(row: CertificateRow): boolean {
    return row.not_after_ms - this.#nowMs < (row.not_after_ms - row.not_before_ms) / 3;
  }

  describe(row: CertificateRow): CertificateInfo {
    const nowMs = this.#nowMs;
    return {
      fingerprint: row.fingerprint,
      serial: row.serial,
      subject: row.subject,
      issuer: row.issuer,
      role: row.role,
      notBeforeMs: row.not_before_ms,
      notAfterMs: row.not_after_ms,
      keyId: row.key_id,
      status:
        row.revoked_at_ms !== null
          ? 'revoked'
          : nowMs < row.not_before_ms
            ? 'not-yet-valid'
            : nowMs > row.not_after_ms
              ? 'expired'
              : 'valid',
    };
  }

  lists(): RevocationListRow[] {
    return this.#store.raw
      .prepare('SELECT * FROM revocation_list ORDER BY issuer')
      .all() as unknown as RevocationListRow[];
  }

  /** Of the last list of an authority. */
  listNumber(issuer: RevocationListRow['issuer']): number | undefined {
    return this.lists().find((list) => list.issuer === issuer)?.number;
  }

  isNewer(list: RevocationListRow): boolean {
    return list.number > (this.listNumber(list.issuer) ?? -1);
  }

  putList(list: RevocationListRow): void {
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO revocation_list (issuer, number, der, next_update_ms) VALUES (?, ?, ?, ?)')
      .run(list.issuer, list.number, list.der, list.next_update_ms);
    this.reread();
  }

  anchor(): TrustAnchor {
    this.#anchor ??= {
      root: base64(this.newest('root')!.der),
      revocations: this.lists().map((list) => base64(list.der)),
    };
    return this.#anchor;
  }

  /** Others wrote to the tables. */
  reread(): void {
    this.#anchor = undefined;
  }

  /** Name of the network that this home is in. */
  network(): string {
    const row = this.#store.raw.prepare("SELECT value FROM setting WHERE name = 'network'").get();
    return (row?.['value'] as string | undefined) ?? this.#options.network;
  }

  /** The name that this home chose for itself: of the certificates it has, as long as no other was configured. */
  subject(): string {
    const { subject } = this.#options;
    if (subject !== 'local') return subject;
    const name = /CN=(.*) publisher$/.exec(this.rows().find((row) => row.role === 'publisher')?.subject ?? '')?.[1];
    return name !== undefined && NAME.test(name) ? name : subject;
  }

  /** The commit point of joining and leaving, for this part of the home: before it the one network, after it the other. */
  replace(
    rows: readonly CertificateRow[],
    lists: readonly RevocationListRow[],
    network: string,
    membership: StoredMembership | null,
  ): void {
    this.#store.transact((raw) => {
      for (const table of [
        'certificate',
        'revocation_list',
        'leaf',
        'node',
        'head',
        'invite',
        'member',
        'issued',
        'membership',
      ])
        raw.exec(`DELETE FROM ${table}`);
      for (const row of rows) insertCertificate(raw, row);
      for (const list of lists) this.putList(list);
      raw.exec("DELETE FROM setting WHERE name IN ('founder', 'machines', 'epoch', 'terms')");
      raw.prepare("UPDATE setting SET value = ? WHERE name = 'network'").run(network);
      if (membership !== null)
        raw.prepare('INSERT INTO membership (one, json) VALUES (1, ?)').run(JSON.stringify(membership));
    });
  }

  get #nowMs(): number {
    return this.#options.clock.nowMs();
  }
}
