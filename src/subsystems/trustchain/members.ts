import { randomBytes } from 'node:crypto';
import type { DatabaseSync } from 'node:sqlite';
import { base64, hex } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import {
  CERTIFIED_ROLES,
  type Certification,
  decodeJoinRequest,
  type OpenedRequest,
  secretHash,
} from '../../wire/certification.ts';
import { INVITE_LIMITS } from '../../wire/invite.ts';
import { keyIdOf, type PublicKeys } from '../../wire/key-id.ts';
import { openEnvelope } from '../../wire/signature.ts';
import type { OpenTerms } from '../../wire/terms.ts';
import { verifyEd25519 } from './ed25519.ts';
import { falconVerifier } from './falcon.ts';
import { certificateRow } from './issue.ts';
import { type CertificateRow, type IssuedRow, insertIssued, issuedRows } from './tables.ts';

/** At a join; two nodes that are members may be apart by an hour. */
const CLOCK_APART_MS_MAX = 300_000;
const INVITES_OPEN_MAX = 1_000;
const MEMBERS_MAX = 10_000;
const HOUR_MS = 3_600_000;
/** An invite that nobody used is forgotten this long after it expired; until then who comes late is told so. */
const INVITE_KEPT_MS = 7 * 86_400_000;

type CertifiedRole = (typeof CERTIFIED_ROLES)[number];

export interface MemberRow {
  readonly node: string;
  readonly publisher: string;
  readonly validator: string;
  readonly subject: string;
  readonly joined_at_ms: number;
  readonly left_at_ms: number | null;
  /** Where it came from without an invite; null with one. */
  readonly origin: string | null;
  /** 1: it did not leave by itself, and comes back by an invite only. */
  readonly removed: number;
}

/** How an open network takes in who has no invite. */
export interface OpenDoor extends Omit<OpenTerms, 'workHexDigits'> {
  /** What counts as one place. */
  readonly origin: string;
}

interface InviteRow {
  readonly hash: string;
  readonly expires_at_ms: number;
  readonly tokens: number;
  readonly used_by: string | null;
}

export interface MembersLent {
  readonly raw: DatabaseSync;
  transact<T>(write: (raw: DatabaseSync) => T): T;
  nowMs(): number;
  /** Key ids of this home. */
  own(): { readonly publisher: string; readonly validator: string; readonly node: string };
  /** A certificate by the intermediate of this home, not yet stored. */
  issue(role: CertifiedRole, subject: string, keys: PublicKeys): Promise<CertificateRow>;
}

/** What a network says to who asks for certificates, but for what everybody may know (genesis, anchor, committee). */
export interface Certified {
  readonly member: MemberRow;
  readonly certificates: Certification['certificates'];
  /** Of a new member: hash of its invite, and what it is to be given. */
  readonly grant: { readonly id: string; readonly tokens: number } | null;
}

/** The founder's register: invites, members, and the certificates that were issued to them. All of it lies in `trust.db`. */
export class Members {
  readonly #lent: MembersLent;

  constructor(lent: MembersLent) {
    this.#lent = lent;
  }

  /** Durable when it returns; the secret itself is kept nowhere. Errors: `quota-exceeded`. */
  invite(expiresAtMs: number, tokens: number): string {
    const nowMs = this.#lent.nowMs();
    const secret = hex(randomBytes(INVITE_LIMITS.secretBytes));
    this.#lent.transact((raw) => {
      raw.prepare('DELETE FROM invite WHERE used_by IS NULL AND expires_at_ms < ?').run(nowMs - INVITE_KEPT_MS);
      const { open } = raw.prepare('SELECT count(*) AS open FROM invite WHERE used_by IS NULL').get() as {
        open: number;
      };
      if (open >= INVITES_OPEN_MAX) {
        throw new HyperMeshError('quota-exceeded', `${open} invites wait to be used.`, {
          hint: 'Wait until some have expired.',
        });
      }
      raw
        .prepare('INSERT INTO invite (hash, expires_at_ms, tokens) VALUES (?, ?, ?)')
        .run(secretHash(secret), expiresAtMs, tokens);
    });
    return secret;
  }

  /**
   * Certifies a new member by its invite or through the door of an open network, or a known one anew. The same machine may ask again and gets the same
   * certificates, as long as they are young. Nothing else changes certificates meanwhile (the caller sees to it). `enter` is asked about who comes
   * without an invite before anything costly is done for it, and throws what it refuses it with.
   * Errors: `certification-invalid`, `network-mismatch`, `clock-skewed`, `invite-*`, `not-a-member`, `certificate-revoked`, `quota-exceeded`.
   */
  async certify(
    value: unknown,
    networkId: Digest,
    enter: (opened: OpenedRequest) => OpenDoor | null = () => null,
  ): Promise<Certified> {
    const opened = decodeJoinRequest(value);
    const { request } = opened;
    this.#checkAddressee(opened, networkId);
    const door = opened.open === null ? null : enter(opened);
    const ids = checkPossession(opened);
    const invite = opened.secret === null ? null : this.#invite(secretHash(opened.secret), ids.node);
    this.#checkKeys(ids, invite, door);
    const fresh: IssuedRow[] = [];
    const certificates: Record<string, string> = {};
    for (const [at, role] of CERTIFIED_ROLES.entries()) {
      let row: CertificateRow | undefined = this.#young(role, ids[role], request.subject);
      if (row === undefined) {
        row = await this.#lent.issue(role, request.subject, opened.signed[at]!.keys);
        fresh.push({ ...row, node: ids.node });
      }
      certificates[role] = base64(row.der);
    }
    // The commit point: before it the invite is unused and nobody knows the certificates, after it they belong to each other.
    this.#lent.transact((raw) => {
      if (invite !== null) raw.prepare('UPDATE invite SET used_by = ? WHERE hash = ?').run(ids.node, invite.hash);
      raw
        .prepare(
          `INSERT INTO member (node, publisher, validator, subject, joined_at_ms, origin) VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT (node) DO UPDATE SET subject = excluded.subject, publisher = excluded.publisher, validator = excluded.validator,
             origin = CASE WHEN ? OR left_at_ms IS NOT NULL THEN excluded.origin ELSE origin END, removed = 0,
             joined_at_ms = CASE WHEN left_at_ms IS NULL THEN joined_at_ms ELSE excluded.joined_at_ms END, left_at_ms = NULL`,
        )
        .run(
          ...[ids.node, ids.publisher, ids.validator, request.subject, this.#lent.nowMs(), door?.origin ?? null],
          Number(invite !== null),
        );
      for (const row of fresh) insertIssued(raw, row);
    });
    return {
      member: this.member(ids.node)!,
      certificates: certificates as unknown as Certification['certificates'],
      grant: invite === null ? null : { id: invite.hash, tokens: invite.tokens },
    };
  }

  member(node: string): MemberRow | undefined {
    return this.#lent.raw.prepare('SELECT * FROM member WHERE node = ?').get(node) as MemberRow | undefined;
  }

  /** In the order in which they joined. */
  members(): readonly MemberRow[] {
    return this.#lent.raw.prepare('SELECT * FROM member ORDER BY joined_at_ms, node').all() as unknown as MemberRow[];
  }

  #checkAddressee({ request }: OpenedRequest, networkId: Digest): void {
    if (request.networkId !== networkId) {
      throw new HyperMeshError('network-mismatch', 'The request is for another network than this one.', {
        hint: 'Ask for a new invite: the machine that gave this one has moved to another network.',
      });
    }
    if (request.asked !== this.#lent.own().node) throw invalid('The request was made for another machine.');
    const apartMs = request.madeAtMs - this.#lent.nowMs();
    if (Math.abs(apartMs) > CLOCK_APART_MS_MAX) {
      const minutes = Math.round(Math.abs(apartMs) / 60_000);
      throw new HyperMeshError(
        'clock-skewed',
        `The clock of the machine that asks is ${minutes} minutes ${apartMs > 0 ? 'ahead of' : 'behind'} that of the network.`,
        {
          hint: 'Set the clock of that machine (or of the founder), then run the same command again; the invite is still good.',
        },
      );
    }
  }

  #invite(hash: string, node: string): InviteRow {
    const row = this.#lent.raw.prepare('SELECT * FROM invite WHERE hash = ?').get(hash) as InviteRow | undefined;
    const hint = 'Ask the founder of the network for a new one: `hypermesh network invite`';
    if (row === undefined)
      throw new HyperMeshError('invite-unknown', 'This network has issued no such invite.', { hint });
    if (row.used_by !== null && row.used_by !== node) {
      throw new HyperMeshError('invite-used', 'Another machine has joined with this invite.', {
        hint: `${hint}. If it was not meant for that machine, the founder can remove it.`,
      });
    }
    if (row.used_by === null && row.expires_at_ms < this.#lent.nowMs()) {
      throw new HyperMeshError(
        'invite-expired',
        `The invite expired on ${new Date(row.expires_at_ms).toISOString()}.`,
        { hint },
      );
    }
    return row;
  }

  #checkKeys(ids: Readonly<Record<CertifiedRole, string>>, invite: InviteRow | null, door: OpenDoor | null): void {
    const own: readonly string[] = Object.values(this.#lent.own());
    if (Object.values(ids).some((id) => own.includes(id))) {
      throw new HyperMeshError('network-state', 'The machine that asks has the keys of the founder of this network.', {
        hint: 'A copy of a home cannot join it: start a new home.',
      });
    }
    const known = this.member(ids.node);
    const isOfAnother = this.members().some(
      (row) => row.node !== ids.node && (row.publisher === ids.publisher || row.validator === ids.validator),
    );
    if (isOfAnother) throw invalid('A key in the request belongs to another member.');
    // An invite that was used by this node is only a way to hear the answer again, not a way back in.
    const isActive = known !== undefined && known.left_at_ms === null;
    if (!isActive && door !== null) this.#checkOpen(door, known);
    else if (!isActive && (invite === null || invite.used_by !== null)) {
      throw new HyperMeshError(
        'not-a-member',
        'The machine that asks is not, or not any more, a member of this network.',
        {
          hint: 'Ask the founder for a new invite: `hypermesh network invite`',
        },
      );
    }
    if (isActive && (known.publisher !== ids.publisher || known.validator !== ids.validator)) {
      throw invalid('The keys in the request are not those with which this machine joined.');
    }
    if (!isActive && known === undefined && this.members().length >= MEMBERS_MAX) {
      throw new HyperMeshError('quota-exceeded', `The network has ${MEMBERS_MAX} members already.`);
    }
    const stolen = issuedRows(this.#lent.raw).some(
      (row) => row.revoked_reason === 'key-compromise' && Object.values(ids).includes(row.key_id),
    );
    if (stolen) {
      throw new HyperMeshError('certificate-revoked', 'A key of the machine that asks was revoked as compromised.', {
        hint: 'Start a new home there, which makes new keys.',
      });
    }
  }

  /** Whether there is room for one more who has no invite. Errors: `not-a-member`, `quota-exceeded`. */
  #checkOpen(door: OpenDoor, known: MemberRow | undefined): void {
    const nowMs = this.#lent.nowMs();
    const hourAgoMs = nowMs - HOUR_MS;
    if (known?.removed === 1) {
      throw new HyperMeshError('not-a-member', 'This machine was removed from the network, which is open to others.', {
        hint: 'Ask the founder for an invite.',
      });
    }
    const count = (where: string, ...values: (string | number)[]) =>
      this.#lent.raw.prepare(`SELECT count(*) AS n FROM member WHERE ${where}`).get(...values)!['n'] as number;
    const full = () => count('origin IS NOT NULL AND left_at_ms IS NULL') >= door.membersMax;
    if (full() || count('true') >= MEMBERS_MAX) this.#forgetOpen(nowMs);
    if (full()) {
      throw new HyperMeshError('quota-exceeded', `${door.membersMax} came without an invite: no more are let in.`, {
        hint: 'Ask the founder for an invite.',
      });
    }
    const recent = 'origin IS NOT NULL AND joined_at_ms > ?';
    const isTooMany =
      count(recent, hourAgoMs) >= door.joinsPerHour ||
      count(`${recent} AND origin = ?`, hourAgoMs, door.origin) >= door.joinsPerAddressPerHour ||
      // Joining and leaving in turns would make the lists of revocations longer each time.
      (known?.left_at_ms ?? 0) > hourAgoMs;
    if (isTooMany) {
      throw new HyperMeshError('quota-exceeded', 'Too many came without an invite within the last hour.', {
        hint: 'Try again in an hour, or ask the founder for an invite.',
      });
    }
  }

  /** Those who came without an invite, and left by themselves or let all of their certificates run out. */
  #forgetOpen(nowMs: number): void {
    this.#lent.raw
      .prepare(
        `DELETE FROM member WHERE origin IS NOT NULL AND removed = 0 AND coalesce(left_at_ms, joined_at_ms) < ? AND NOT EXISTS
          (SELECT 1 FROM issued WHERE issued.node = member.node AND revoked_at_ms IS NULL AND not_after_ms > ?)`,
      )
      .run(nowMs - HOUR_MS, nowMs);
  }

  /** One that is good for more than two thirds of its life: asking again and again makes the register no longer. */
  #young(role: CertifiedRole, keyId: string, subject: string): IssuedRow | undefined {
    const nowMs = this.#lent.nowMs();
    const rows = this.#lent.raw
      .prepare(
        'SELECT * FROM issued WHERE role = ? AND key_id = ? AND revoked_at_ms IS NULL ORDER BY not_after_ms DESC',
      )
      .all(role, keyId) as unknown as IssuedRow[];
    return rows.find(
      (row) =>
        row.not_after_ms - nowMs > ((row.not_after_ms - row.not_before_ms) * 2) / 3 &&
        certificateRow(row.der, role).subject.includes(`CN=${subject} ${role}`),
    );
  }
}

/** All three keys signed, each with both algorithms. Errors: `certification-invalid`. */
function checkPossession({ signed }: OpenedRequest): Readonly<Record<CertifiedRole, string>> {
  const ids: Record<string, string> = {};
  for (const [at, role] of CERTIFIED_ROLES.entries()) {
    const { keys, envelope } = signed[at]!;
    const proof = openEnvelope(envelope);
    const id = keyIdOf(keys);
    const holds =
      proof.keyId === id &&
      verifyEd25519(proof.ed25519, proof.signed, keys.ed25519) &&
      falconVerifier().verify(proof.falcon, proof.signed, keys.falcon);
    if (!holds) throw invalid(`The request does not prove that its ${role} key is held by who asks.`);
    ids[role] = id;
  }
  if (new Set(Object.values(ids)).size !== CERTIFIED_ROLES.length)
    throw invalid('The three keys in the request are not different.');
  return ids as Readonly<Record<CertifiedRole, string>>;
}

function invalid(message: string): HyperMeshError {
  return new HyperMeshError('certification-invalid', message);
}
