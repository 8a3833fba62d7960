import { HyperMeshError } from '../../base/errors.ts';
import type { SqliteStore } from '../../base/sqlite.ts';
import type { RevocationReason } from '../../wire/certificate.ts';
import { authorityOf, type Certificates } from './certificates.ts';
import type { Keys } from './keys.ts';
import type { MemberRow, Members } from './members.ts';
import { type CertificateRow, issuedRows, type RevocationListRow } from './tables.ts';

const DAY_MS = 86_400_000;

/** With less time than this left a list is issued anew, or by a member asked for. */
const LIFE_LEFT_MS_MIN = { root: 180 * DAY_MS, intermediate: 3 * DAY_MS } as const;

export function isListDue(list: RevocationListRow, nowMs: number): boolean {
  return list.next_update_ms - nowMs < LIFE_LEFT_MS_MIN[list.issuer];
}

interface Revoked {
  readonly serial: string;
  readonly atMs: number;
  readonly reason: RevocationReason;
}

export interface RevocationListsLent {
  readonly store: SqliteStore;
  readonly certificates: Certificates;
  keys(): Keys;
  nowMs(): number;
}

/** Takes certificates back, on the lists of this home's authorities. Nothing else changes certificates meanwhile (the caller sees to it). */
export class RevocationLists {
  readonly #lent: RevocationListsLent;

  constructor(lent: RevocationListsLent) {
    this.#lent = lent;
  }

  /** Of a certificate of this home itself. Errors: `certificate-not-found`, `usage` for the root. */
  async revokeOwn(fingerprint: string, reason: RevocationReason): Promise<void> {
    const { store, certificates } = this.#lent;
    const target = certificates.rows().find((row) => row.fingerprint === fingerprint);
    if (target === undefined) {
      throw new HyperMeshError(
        'certificate-not-found',
        `This home has issued no certificate with the fingerprint ${fingerprint.slice(0, 64)}.`,
        { hint: '`hypermesh cert` lists them.' },
      );
    }
    if (target.role === 'root') {
      throw new HyperMeshError('usage', 'The root of a network cannot be revoked.', { hint: 'Start a new network.' });
    }
    // The other certificates of a stolen key are as good to the thief as this one.
    const targets = certificates
      .rows()
      .filter(
        (row) =>
          isRevocable(row, reason) &&
          (row.fingerprint === fingerprint || (reason === 'key-compromise' && row.key_id === target.key_id)),
      );
    if (targets.length === 0) return;
    const atMs = this.#lent.nowMs();
    const list = await this.#next(authorityOf(target.role), marked(targets, { atMs, reason }));
    // The commit point: before it nothing is revoked, after it the rows and the list that says so are both there.
    store.transact((raw) => {
      const mark = raw.prepare('UPDATE certificate SET revoked_at_ms = ?, revoked_reason = ? WHERE fingerprint = ?');
      for (const row of targets) mark.run(atMs, reason, row.fingerprint);
      certificates.putList(list);
    });
  }

  /** All certificates of a member. Safe to repeat. Errors: `not-a-member`. */
  async revokeMember(register: Members, node: string, reason: RevocationReason, left = false): Promise<MemberRow> {
    if (register.member(node) === undefined) {
      throw new HyperMeshError('not-a-member', `No node ${node.slice(0, 64)} ever joined this network.`, {
        hint: '`hypermesh network members` lists them.',
      });
    }
    const { store, certificates } = this.#lent;
    const atMs = this.#lent.nowMs();
    const targets = issuedRows(store.raw).filter((row) => row.node === node && isRevocable(row, reason));
    const list = targets.length === 0 ? undefined : await this.#next('intermediate', marked(targets, { atMs, reason }));
    // The commit point: before it the node is a member, after it its certificates are on the list.
    store.transact((raw) => {
      const mark = raw.prepare('UPDATE issued SET revoked_at_ms = ?, revoked_reason = ? WHERE fingerprint = ?');
      for (const row of targets) mark.run(atMs, reason, row.fingerprint);
      raw
        .prepare('UPDATE member SET left_at_ms = coalesce(left_at_ms, ?), removed = max(removed, ?) WHERE node = ?')
        .run(atMs, Number(!left), node);
      if (list !== undefined) certificates.putList(list);
    });
    return register.member(node)!;
  }

  /** Issues those anew whose life is running out. */
  async refresh(): Promise<void> {
    const { store, certificates } = this.#lent;
    for (const list of certificates.lists()) {
      const nowMs = this.#lent.nowMs();
      if (!isListDue(list, nowMs)) continue;
      try {
        const next = await this.#next(list.issuer, []);
        store.transact(() => certificates.putList(next));
      } catch (error) {
        // The old one is good for as long as it says.
        if (list.next_update_ms < nowMs) throw error;
      }
    }
  }

  /** What the last list of the authority says, and what is added; not yet stored. */
  async #next(authority: 'root' | 'intermediate', added: readonly Revoked[]): Promise<RevocationListRow> {
    const { store, certificates } = this.#lent;
    const { issueList } = await import('./issue.ts');
    const serials = new Set(added.map(({ serial }) => serial));
    const before = [...certificates.rows(), ...issuedRows(store.raw)]
      .filter((row) => authorityOf(row.role) === authority && row.role !== 'root' && !serials.has(row.serial))
      .flatMap(({ serial, revoked_at_ms: atMs, revoked_reason: reason }) =>
        atMs === null || reason === null ? [] : [{ serial, atMs, reason }],
      );
    return issueList(
      // Any certificate of the authority will do: they share name and keys.
      certificates.anyOf(authority),
      {
        number: (certificates.listNumber(authority) ?? 0) + 1,
        nowMs: this.#lent.nowMs(),
        revoked: [...before, ...added],
      },
      this.#lent.keys().authority(authority),
    );
  }
}

function marked(rows: readonly CertificateRow[], how: Omit<Revoked, 'serial'>): Revoked[] {
  return rows.map(({ serial }) => ({ serial, ...how }));
}

/** A reason is never weakened, but a certificate that was only superseded is worth nothing once its key is stolen. */
function isRevocable(row: CertificateRow, reason: RevocationReason): boolean {
  return row.revoked_at_ms === null || (reason === 'key-compromise' && row.revoked_reason !== 'key-compromise');
}
