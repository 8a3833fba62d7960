import { equal, fromBase64 } from '../../base/bytes.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { decodeCertificate, decodeRevocationList, type LeafRole } from '../../wire/certificate.ts';
import { CERTIFIED_ROLES, type Certification } from '../../wire/certification.ts';
import type { CertificateChain, TrustAnchor } from '../../wire/signature.ts';
import { certificateRow } from './issue.ts';
import type { CertificateRow, RevocationListRow } from './tables.ts';
import { checkChain, verifies } from './verify.ts';

/** What a home stores of a network that certified its keys. */
export interface Adopted {
  readonly authorities: readonly CertificateRow[];
  readonly leaves: readonly CertificateRow[];
  readonly lists: readonly RevocationListRow[];
}

/**
 * Checks that an answer certifies exactly these keys, by the rules of path validation and the clock of this machine.
 * Errors: `certification-invalid`, with what path validation found as its cause; `clock-skewed`.
 */
export function checkCertification(
  answer: Certification,
  own: Readonly<Record<LeafRole, string>>,
  nowMs: number,
): Adopted {
  const root = certificateRow(fromBase64(answer.anchor.root), 'root');
  const authorities = [root, ...answer.authorities.map((der) => certificateRow(fromBase64(der), 'intermediate'))];
  const leaves = CERTIFIED_ROLES.map((role) => {
    const der = answer.certificates[role];
    const chain = [der, ...answer.authorities, answer.anchor.root];
    if (chainKeyId(chain, answer.anchor, role, nowMs) !== own[role]) {
      throw invalid(`The ${role} certificate is for another key than this home has.`);
    }
    return certificateRow(fromBase64(der), role);
  });
  return { authorities, leaves, lists: newestLists(answer.anchor, authorities) };
}

function chainKeyId(chain: CertificateChain, anchor: TrustAnchor, role: LeafRole, atMs: number): string {
  try {
    return checkChain(chain, anchor, { role, atMs }).leaf.keyId;
  } catch (error) {
    if (!isCoded(error)) throw error;
    if (error.code !== 'certificate-expired')
      throw invalid(`The ${role} certificate does not hold: ${error.message}`, error);
    throw new HyperMeshError(
      'clock-skewed',
      `By the clock of this machine the certificates do not hold. ${error.message}`,
      {
        hint: 'Set the clock of this machine (or of the founder), then run the same command again.',
        cause: error,
      },
    );
  }
}

/** The newest genuine list of each authority. Errors: `certification-invalid` when a list is forged or of nobody known. */
export function newestLists(anchor: TrustAnchor, authorities: readonly CertificateRow[]): readonly RevocationListRow[] {
  const newest = new Map<string, RevocationListRow>();
  for (const text of anchor.revocations) {
    const list = decodeRevocationList(fromBase64(text));
    const issuer = authorities
      .map((row) => ({ row, certificate: decodeCertificate(row.der) }))
      .find(
        ({ certificate }) => equal(certificate.subjectDer, list.issuerDer) && certificate.keyId === list.authorityKeyId,
      );
    if (issuer === undefined || !verifies(list.signed, issuer.certificate.keys)) {
      throw invalid('A revocation list is not by an authority of this network.');
    }
    const name = issuer.row.role === 'root' ? 'root' : 'intermediate';
    if ((newest.get(name)?.number ?? -1) >= list.number) continue;
    newest.set(name, { issuer: name, number: list.number, der: list.der, next_update_ms: list.nextUpdateMs });
  }
  return [...newest.values()];
}

function invalid(message: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('certification-invalid', message, cause === undefined ? {} : { cause });
}
