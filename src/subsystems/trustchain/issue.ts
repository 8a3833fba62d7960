import { randomBytes } from 'node:crypto';
import {
  type CertificateRole,
  type CertificateSigner,
  decodeCertificate,
  decodeRevocationList,
  issueCertificate,
  issueRevocationList,
  type RevocationReason,
} from '../../wire/certificate.ts';
import type { PublicKeys } from '../../wire/key-id.ts';
import type { CertificateRow, RevocationListRow } from './tables.ts';

const DAY_MS = 86_400_000;

/** How long certificates and lists live. */
export const LIFETIME_MS = {
  root: 3650 * DAY_MS,
  intermediate: 1095 * DAY_MS,
  publisher: 90 * DAY_MS,
  validator: 90 * DAY_MS,
  node: 90 * DAY_MS,
  rootList: 365 * DAY_MS,
  intermediateList: 7 * DAY_MS,
} as const;

/** New certificates and lists count from earlier, for readers whose clocks are an hour late, their own included. */
const CLOCK_SKEW_MS = 2 * 3_600_000;

export interface Issue {
  readonly role: CertificateRole;
  readonly network: string;
  readonly subject: string;
  readonly keys: PublicKeys;
  readonly nowMs: number;
  /** Its certificate; absent for the root. */
  readonly issuer?: CertificateRow;
}

/** A certificate, not yet stored. It never outlives the authority that issues it. */
export async function issue(what: Issue, signer: CertificateSigner): Promise<CertificateRow> {
  const { role, issuer, nowMs } = what;
  const serial = new Uint8Array(randomBytes(16));
  // Positive, and of constant length.
  serial[0] = (serial[0]! & 0x3f) | 0x40;
  const label = role === 'root' || role === 'intermediate' ? what.network : what.subject;
  const der = await issueCertificate(
    {
      role,
      serial,
      subject: { organization: `HyperMesh ${what.network}`, commonName: `${label} ${role}` },
      keys: what.keys,
      notBeforeMs: nowMs - CLOCK_SKEW_MS,
      notAfterMs: Math.min(nowMs + LIFETIME_MS[role], issuer?.not_after_ms ?? Number.POSITIVE_INFINITY),
      ...(issuer === undefined
        ? {}
        : { issuer: { subjectDer: decodeCertificate(issuer.der).subjectDer, keyId: issuer.key_id } }),
    },
    signer,
  );
  return certificateRow(der, role);
}

export function certificateRow(der: Uint8Array, role: CertificateRole): CertificateRow {
  const certificate = decodeCertificate(der);
  return {
    fingerprint: certificate.fingerprint,
    role,
    der,
    serial: certificate.serial,
    subject: certificate.subject,
    issuer: certificate.issuer,
    key_id: certificate.keyId,
    not_before_ms: certificate.notBeforeMs,
    not_after_ms: certificate.notAfterMs,
    revoked_at_ms: null,
    revoked_reason: null,
  };
}

/** The next revocation list of an authority, not yet stored. */
export async function issueList(
  authority: CertificateRow,
  what: {
    readonly number: number;
    readonly nowMs: number;
    readonly revoked: readonly { readonly serial: string; readonly atMs: number; readonly reason: RevocationReason }[];
  },
  signer: CertificateSigner,
): Promise<RevocationListRow> {
  const issuer = authority.role === 'root' ? 'root' : 'intermediate';
  const der = await issueRevocationList(
    {
      issuer: { subjectDer: decodeCertificate(authority.der).subjectDer, keyId: authority.key_id },
      number: what.number,
      thisUpdateMs: what.nowMs - CLOCK_SKEW_MS,
      nextUpdateMs: what.nowMs + (issuer === 'root' ? LIFETIME_MS.rootList : LIFETIME_MS.intermediateList),
      revoked: what.revoked,
    },
    signer,
  );
  return { issuer, number: what.number, der, next_update_ms: decodeRevocationList(der).nextUpdateMs };
}

/** The keys in a stored certificate, for the next one of the same subject. */
export function keysIn(row: CertificateRow): PublicKeys {
  return decodeCertificate(row.der).keys;
}
