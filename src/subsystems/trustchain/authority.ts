import { HyperMeshError } from '../../base/errors.ts';
import type { SqliteStore } from '../../base/sqlite.ts';
import type { CertificateRole } from '../../wire/certificate.ts';
import type { PublicKeys } from '../../wire/key-id.ts';
import { authorityOf, type Certificates, LEAF_ROLES } from './certificates.ts';
import type { Keys } from './keys.ts';
import { decodeSealed } from './keystore.ts';
import { type CertificateRow, insertCertificate, type RevocationListRow } from './tables.ts';
import { sealedIn } from './unlocking.ts';

export interface AuthorityLent {
  readonly store: SqliteStore;
  readonly certificates: Certificates;
  keys(): Keys;
  nowMs(): number;
}

/** Issues certificates with the root and the intermediate of this home. Nothing else changes certificates meanwhile (the caller sees to it). */
export class Authority {
  readonly #lent: AuthorityLent;

  constructor(lent: AuthorityLent) {
    this.#lent = lent;
  }

  /**
   * Makes keys, certificates and lists of a new home, and stores them in one transaction: a crash before it leaves nothing (but perhaps an
   * unused key file, which is taken up again), a crash after it the complete set.
   */
  async found(network: string): Promise<void> {
    const { store, certificates } = this.#lent;
    const keys = this.#lent.keys();
    const sealed = await keys.seal([['root'], ['intermediate', ...LEAF_ROLES]]);
    await keys.use(sealed);
    const { rows, lists } = await this.newNetwork(network);
    store.transact((raw) => {
      const keystore = raw.prepare('INSERT INTO keystore (name, sealed) VALUES (?, ?)');
      keystore.run('root', sealed[0]!);
      keystore.run('node', sealed[1]!);
      for (const row of rows) insertCertificate(raw, row);
      for (const list of lists) certificates.putList(list);
      raw.prepare('INSERT INTO setting (name, value) VALUES (?, ?)').run('network', network);
    });
  }

  /** Certificates and empty lists of a network whose root is this home's, not yet stored. */
  async newNetwork(
    network: string,
  ): Promise<{ readonly rows: readonly CertificateRow[]; readonly lists: readonly RevocationListRow[] }> {
    const { issue, issueList } = await import('./issue.ts');
    const keys = this.#lent.keys();
    const subject = this.#lent.certificates.subject();
    const publicKeys = await keys.publicKeys();
    const nowMs = this.#lent.nowMs();
    const make = (role: CertificateRole, issuer?: CertificateRow) =>
      issue(
        { role, network, subject, keys: publicKeys.get(role)!, nowMs, ...(issuer === undefined ? {} : { issuer }) },
        keys.authority(authorityOf(role)),
      );
    const root = await make('root');
    const intermediate = await make('intermediate', root);
    const rows = [root, intermediate];
    for (const role of LEAF_ROLES) rows.push(await make(role, intermediate));
    const first = { number: 1, nowMs, revoked: [] };
    const lists = [
      await issueList(root, first, keys.authority('root')),
      await issueList(intermediate, first, keys.authority('intermediate')),
    ];
    return { rows, lists };
  }

  /** A new certificate for the same keys. Errors: `certificate-revoked`, `certificate-expired`. */
  async issueAgain(role: Exclude<CertificateRole, 'root'>): Promise<CertificateRow> {
    const { keysIn } = await import('./issue.ts');
    const { certificates } = this.#lent;
    const row = await this.issue(role, certificates.subject(), keysIn(certificates.anyOf(role)));
    this.#lent.store.transact((raw) => insertCertificate(raw, row));
    return row;
  }

  /** Renews what has less than a third of its life left. What was revoked is not renewed by itself. */
  async keepCurrent(): Promise<void> {
    const { certificates } = this.#lent;
    for (const role of ['intermediate', ...LEAF_ROLES] as const) {
      const row = certificates.newest(role);
      if (row === undefined || !certificates.isAging(row)) continue;
      if (row.not_after_ms === certificates.newest(authorityOf(role))?.not_after_ms) continue;
      try {
        await this.issueAgain(role);
      } catch (error) {
        // Without the root key at hand the intermediate is used to its end.
        if (row.not_after_ms < this.#lent.nowMs() || role !== 'intermediate') throw error;
      }
    }
  }

  /** A home or an export of an earlier version has no node key. Key and certificate appear in one transaction, or are made at the next start. */
  async addNodeKey(): Promise<void> {
    const { store, certificates } = this.#lent;
    const { sealed: before } = store.raw.prepare("SELECT sealed FROM keystore WHERE name = 'node'").get() as {
      sealed: string;
    };
    const { keys: names } = decodeSealed(before);
    const issuer = certificates.newest('intermediate');
    if (names.includes('node') || issuer === undefined || issuer.not_after_ms <= this.#lent.nowMs()) return;
    const keys = this.#lent.keys();
    const [sealed] = await keys.seal([[...names, 'node']]);
    const row = await this.issue('node', certificates.subject(), (await keys.publicKeys()).get('node')!);
    store.transact((raw) => {
      raw.prepare("UPDATE keystore SET sealed = ? WHERE name = 'node'").run(sealed!);
      insertCertificate(raw, row);
    });
    await keys.use(sealedIn(store));
  }

  /** A certificate in the network of this home, not yet stored. Errors: `certificate-revoked`, `certificate-expired`. */
  async issue(role: Exclude<CertificateRole, 'root'>, subject: string, keys: PublicKeys): Promise<CertificateRow> {
    const { issue } = await import('./issue.ts');
    const authority = authorityOf(role);
    const issuer = this.#usable(authority);
    const network = this.#lent.certificates.network();
    return issue(
      { role, network, subject, keys, nowMs: this.#lent.nowMs(), issuer },
      this.#lent.keys().authority(authority),
    );
  }

  /** Errors: `certificate-revoked`, `certificate-expired`. */
  #usable(authority: 'root' | 'intermediate'): CertificateRow {
    const issuer = this.#lent.certificates.newest(authority);
    if (issuer === undefined) {
      throw new HyperMeshError(
        'certificate-revoked',
        `The ${authority} of this home was revoked; it cannot issue certificates.`,
        { hint: 'Start a new home.' },
      );
    }
    if (issuer.not_after_ms <= this.#lent.nowMs()) {
      throw new HyperMeshError('certificate-expired', `The ${authority} certificate of this home has expired.`, {
        hint: 'Start the node with the root key at hand; it renews the intermediate by itself.',
      });
    }
    return issuer;
  }
}
