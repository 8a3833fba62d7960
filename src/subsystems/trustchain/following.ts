import { base64, equal } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { SqliteStore } from '../../base/sqlite.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { LeafRole } from '../../wire/certificate.ts';
import {
  CERTIFICATION_TYPE,
  CERTIFIED_ROLES,
  type Certification,
  type CommitteeSeat,
  certificationPayload,
  type JoinRequest,
  secretHash,
} from '../../wire/certification.ts';
import { TREE_HEAD_TYPE, treeHeadPayload, verifyInclusion } from '../../wire/log.ts';
import { type LogInclusion, pae, type SignedTreeHead, sealEnvelope, type TrustAnchor } from '../../wire/signature.ts';
import { type Certificates, LEAF_ROLES } from './certificates.ts';
import type { Keys } from './keys.ts';
import type { NetworkNotes } from './network-notes.ts';
import { isListDue } from './revocation-lists.ts';
import { type CertificateRow, insertCertificate } from './tables.ts';

/** What a member asks of its network. */
export interface NetworkAuthority {
  /** What is known of revocations today, and where the committee is. Errors: `committee-unreachable`. */
  news(): Promise<{ readonly anchor: TrustAnchor; readonly committee: readonly CommitteeSeat[] }>;
  /** New certificates for the same keys. Errors: `committee-unreachable`, `not-a-member`, `certificate-revoked`. */
  renew(request: (asked: string) => Promise<JoinRequest>): Promise<Certification>;
  /** The committee makes the leaf itself, from a certificate that it checks. Errors: `committee-unreachable`, and what the committee refuses with. */
  logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion>;
  logHead(): Promise<SignedTreeHead>;
  logConsistency(from: number, to: number): Promise<readonly string[]>;
}

export interface FollowingLent {
  readonly store: SqliteStore;
  readonly certificates: Certificates;
  readonly notes: NetworkNotes;
  readonly verify: Trust['verify'];
  keys(): Keys;
  nowMs(): number;
  /** Runs without any other change to certificates in between. */
  exclusive<T>(change: () => Promise<T>): Promise<T>;
}

/** After the network was asked for something that can wait. */
const ASK_AGAIN_MS = 600_000;

/** A home that is a member: it keeps its own keys, and asks the network that it follows for certificates, for revocations and for the log. */
export class Following {
  readonly #lent: FollowingLent;
  #authority: NetworkAuthority | undefined;
  /** What was asked of the network for later, and until when it is not asked again. */
  readonly #asking = new Map<'news' | 'renew', { readonly work: Promise<void>; readonly untilMs: number }>();

  constructor(lent: FollowingLent) {
    this.#lent = lent;
  }

  /** Who is asked from here on. */
  follow(authority: NetworkAuthority | undefined): void {
    this.#authority = authority;
  }

  /** The home changes its network: what was asked of the one before does not hold back what is asked of the next. */
  forget(): void {
    this.#asking.clear();
  }

  /** Nothing that was asked in the background is under way when it returns. */
  async settled(): Promise<void> {
    await Promise.all([...this.#asking.values()].map(({ work }) => work));
  }

  // --- certificates

  /**
   * A request that all three keys of this home signed; expired certificates do not matter. `secret`: of an invite, null for a renewal.
   * Errors: `certificate-revoked` when a key of this home was stolen.
   */
  async request(to: {
    readonly networkId: Digest;
    readonly asked: string;
    readonly secret: string | null;
  }): Promise<JoinRequest> {
    await this.checkNotStolen();
    const { certificates } = this.#lent;
    const own = this.#lent.keys();
    const publicKeys = await own.publicKeys();
    const keys = Object.fromEntries(
      CERTIFIED_ROLES.map((role) => {
        const { falcon, ed25519 } = publicKeys.get(role)!;
        return [role, { falcon: base64(falcon), ed25519: base64(ed25519) }];
      }),
    ) as Readonly<Record<LeafRole, { readonly falcon: string; readonly ed25519: string }>>;
    const payload = certificationPayload({
      formatVersion: 1,
      networkId: to.networkId,
      asked: to.asked,
      invite: to.secret === null ? null : secretHash(to.secret),
      subject: certificates.subject(),
      keys,
      madeAtMs: this.#lent.nowMs(),
    });
    const ids = certificates.keyIds();
    const sealed = await Promise.all(
      CERTIFIED_ROLES.map(async (role) =>
        sealEnvelope(CERTIFICATION_TYPE, payload, ids[role], await own.sign(role, pae(CERTIFICATION_TYPE, payload))),
      ),
    );
    return { secret: to.secret, envelopes: sealed as unknown as JoinRequest['envelopes'] };
  }

  /** New certificates for the keys of this home. Errors: those of {@link NetworkAuthority.renew}, `certification-invalid`. */
  async renew(): Promise<void> {
    const { store, certificates, notes } = this.#lent;
    const { networkId } = notes.membership()!;
    const { checkCertification } = await import('./joining.ts');
    const answer = await this.#followed().renew((asked) => this.request({ networkId, asked, secret: null }));
    this.#checkRoot(answer.anchor);
    const { authorities, leaves, lists } = checkCertification(answer, certificates.keyIds(), this.#lent.nowMs());
    const known = new Set(certificates.rows().map(({ fingerprint }) => fingerprint));
    store.transact((raw) => {
      for (const row of [...authorities, ...leaves]) if (!known.has(row.fingerprint)) insertCertificate(raw, row);
      for (const list of lists) if (certificates.isNewer(list)) certificates.putList(list);
    });
  }

  /** An old certificate is as good as a new one until it ends: nobody waits for the network before. */
  async renewAging(row: CertificateRow): Promise<void> {
    const renew = () => this.#lent.exclusive(() => this.renew());
    if (row.not_after_ms >= this.#lent.nowMs()) this.#inBackground('renew', renew);
    else await renew();
  }

  /** By its own register, or as a member by the lists of its network. Errors: `certificate-revoked`. */
  async checkNotStolen(): Promise<void> {
    const { certificates, notes } = this.#lent;
    const own = certificates.rows().filter((row) => LEAF_ROLES.some((role) => role === row.role));
    let stolen = own.some((row) => row.revoked_reason === 'key-compromise');
    if (!stolen && notes.membership() !== null) {
      const { decodeRevocationList } = await import('../../wire/certificate.ts');
      const lists = certificates.lists().map((list) => decodeRevocationList(list.der));
      stolen = own.some((row) => lists.some(({ revoked }) => revoked.get(row.serial)?.reason === 'key-compromise'));
    }
    if (!stolen) return;
    throw new HyperMeshError('certificate-revoked', 'A key of this home was revoked as compromised.', {
      hint: 'Start a new home, which makes new keys.',
    });
  }

  // --- revocations

  /** Lists past half of their life are asked for, and waited for once they are out of date. Errors: `anchor-stale`. */
  async keepFresh(): Promise<void> {
    const nowMs = this.#lent.nowMs();
    const lists = this.#lent.certificates.lists();
    if (lists.some((list) => list.next_update_ms < nowMs)) await this.#freshLists();
    else if (lists.some((list) => isListDue(list, nowMs))) this.#inBackground('news', () => this.refreshAnchor());
  }

  /** Asks the network what was revoked. Older lists than the known ones change nothing. Errors: `committee-unreachable`, `certification-invalid`. */
  async refreshAnchor(): Promise<void> {
    const { store, certificates, notes } = this.#lent;
    const membership = notes.membership();
    if (membership === null) return;
    const { anchor, committee } = await this.#followed().news();
    const { newestLists } = await import('./joining.ts');
    this.#checkRoot(anchor);
    const authorities = certificates.rows().filter(({ role }) => role === 'root' || role === 'intermediate');
    const newer = newestLists(anchor, authorities).filter((list) => certificates.isNewer(list));
    // Only where the known ones are: who sits in the committee is not the word of one answer.
    const seats = membership.committee.map((seat) => committee.find(({ node }) => node === seat.node) ?? seat);
    const moved = JSON.stringify(seats) !== JSON.stringify(membership.committee);
    if (newer.length === 0 && !moved) return;
    store.transact((raw) => {
      for (const list of newer) certificates.putList(list);
      raw.prepare('UPDATE membership SET json = ?').run(JSON.stringify({ ...membership, committee: seats }));
    });
  }

  /** Errors: `anchor-stale`. */
  async #freshLists(): Promise<void> {
    let cause: unknown;
    try {
      await this.refreshAnchor();
    } catch (error) {
      cause = error;
    }
    const stale = this.#lent.certificates.lists().find((list) => list.next_update_ms < this.#lent.nowMs());
    if (stale === undefined) return;
    throw new HyperMeshError(
      'anchor-stale',
      `What this home knows of the network's revocations was due for renewal on ${new Date(stale.next_update_ms).toISOString()}.`,
      {
        hint: 'Connect this machine to the network (or check its clock), then run the same command again.',
        ...(cause === undefined ? {} : { cause }),
      },
    );
  }

  // --- the log

  async logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion> {
    const inclusion = await this.#followed().logAppend(leaf, certificate);
    verifyInclusion(leaf, inclusion);
    await this.#checkHead(inclusion.head);
    return inclusion;
  }

  async logHead(): Promise<SignedTreeHead> {
    const head = await this.#followed().logHead();
    await this.#checkHead(head);
    return head;
  }

  async logConsistency(from: number, to: number): Promise<readonly string[]> {
    return this.#followed().logConsistency(from, to);
  }

  /** The signer of a head is not asked for its seat here: who checks a bundle does, and finds its votes by the same key. */
  async #checkHead(head: SignedTreeHead): Promise<void> {
    const { payload } = await this.#lent.verify(head.envelope, head.chain, {
      role: 'validator',
      atMs: head.timestampMs,
    });
    if (head.envelope.payloadType !== TREE_HEAD_TYPE || !equal(payload, treeHeadPayload(head))) {
      throw new HyperMeshError('log-invalid', 'The head of the log that the committee sent was altered.');
    }
  }

  // --- asking

  /** Errors: `committee-unreachable` while the home is not connected to its network. */
  #followed(): NetworkAuthority {
    if (this.#authority !== undefined) return this.#authority;
    throw new HyperMeshError('committee-unreachable', 'This home is not connected to its network.');
  }

  #checkRoot(anchor: TrustAnchor): void {
    if (anchor.root === this.#lent.certificates.anchor().root) return;
    throw new HyperMeshError('certification-invalid', 'The committee answered with the root of another network.');
  }

  /** Once at a time, and not again for some minutes after it failed; who needs the result now does not come this way. */
  #inBackground(what: 'news' | 'renew', work: () => Promise<void>): void {
    const nowMs = this.#lent.nowMs();
    const before = this.#asking.get(what);
    if (before !== undefined && nowMs < before.untilMs) return;
    this.#asking.set(what, { work: work().catch(() => undefined), untilMs: nowMs + ASK_AGAIN_MS });
  }
}
