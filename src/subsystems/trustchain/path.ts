import { equal } from '../../base/bytes.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Certificate, DoubleSigned, LeafRole, RevocationList } from '../../wire/certificate.ts';
import type { PublicKeys } from '../../wire/key-id.ts';

/**
 * Path validation by RFC 5280 section 6, written out rule by rule. Stricter where the profile allows it: both signatures are required,
 * key identifiers must match the keys, an authority below the root may not issue itself, and every authority needs a current list.
 */

/** Root included. */
export const PATH_LENGTH_MAX = 5;

export interface PathQuestion {
  readonly role: LeafRole;
  /** The time that counts. */
  readonly atMs: number;
  /** Exact bytes of the trusted root. */
  readonly root: Uint8Array;
  readonly revocations: readonly RevocationList[];
  /** Checks both signatures. */
  readonly verifies: (signed: DoubleSigned, keys: PublicKeys) => boolean;
}

/** A path that holds, and for how long the same answer would be given. */
export interface ValidPath {
  readonly leaf: Certificate;
  readonly fromMs: number;
  readonly untilMs: number;
  /** No certificate of the path appears on a list; only then may the answer be reused for another time. */
  readonly unrevoked: boolean;
}

/** `chain`: leaf first, root last. Errors: `certificate-invalid`, `certificate-expired`, `certificate-revoked`. */
export function validatePath(chain: readonly Certificate[], question: PathQuestion): ValidPath {
  const [leaf] = chain;
  const root = chain.at(-1);
  if (leaf === undefined || root === undefined || chain.length < 2 || chain.length > PATH_LENGTH_MAX) {
    throw invalid(`A chain has 2 to ${PATH_LENGTH_MAX} certificates, but this one has ${chain.length}.`);
  }
  if (!equal(root.der, question.root)) {
    throw invalid('The chain leads to another root than the one that is trusted.', 'It belongs to another network.');
  }
  let fromMs = Number.NEGATIVE_INFINITY;
  let untilMs = Number.POSITIVE_INFINITY;
  let unrevoked = true;
  for (let depth = chain.length - 1; depth >= 0; depth--) {
    const certificate = chain[depth]!;
    const issuer = chain[depth + 1] ?? certificate;
    checkNames(certificate, issuer);
    checkSignatures(certificate, issuer, question);
    checkValidity(certificate, question.atMs);
    checkExtensions(certificate);
    if (depth > 0) checkAuthority(certificate, depth - 1);
    else checkLeaf(certificate, question.role);
    fromMs = Math.max(fromMs, certificate.notBeforeMs);
    untilMs = Math.min(untilMs, certificate.notAfterMs);
    if (certificate !== issuer) {
      const list = currentList(issuer, question);
      if (checkRevocation(certificate, list, question.atMs) === 'listed') unrevoked = false;
      untilMs = Math.min(untilMs, list.nextUpdateMs);
    }
  }
  return { leaf, fromMs, untilMs, unrevoked };
}

/** 6.1.3 (a)(4): name chaining, and the key identifiers that go with it. */
function checkNames(certificate: Certificate, issuer: Certificate): void {
  if (!equal(certificate.issuerDer, issuer.subjectDer)) {
    throw invalid(
      `${certificate.subject} names the issuer ${certificate.issuer}, but the next certificate is ${issuer.subject}.`,
    );
  }
  if (certificate !== issuer && equal(certificate.subjectDer, certificate.issuerDer)) {
    throw invalid(`${certificate.subject} names itself as its issuer, but is not the root.`);
  }
  if (certificate.subjectKeyId !== certificate.keyId) {
    throw invalid(`The subject key identifier of ${certificate.subject} does not match its keys.`);
  }
  if (certificate.authorityKeyId !== issuer.subjectKeyId) {
    throw invalid(`The authority key identifier of ${certificate.subject} does not match ${issuer.subject}.`);
  }
}

/** 6.1.3 (a)(1) */
function checkSignatures(certificate: Certificate, issuer: Certificate, question: PathQuestion): void {
  if (!question.verifies(certificate.signed, issuer.keys)) {
    throw invalid(`${certificate.subject} is not signed by ${issuer.subject} with both algorithms.`);
  }
}

/** 6.1.3 (a)(2) */
function checkValidity(certificate: Certificate, atMs: number): void {
  if (atMs < certificate.notBeforeMs) {
    throw expired(`${certificate.subject} is valid from ${iso(certificate.notBeforeMs)}, after ${iso(atMs)}.`);
  }
  if (atMs > certificate.notAfterMs) {
    throw expired(`${certificate.subject} was valid until ${iso(certificate.notAfterMs)}, before ${iso(atMs)}.`);
  }
}

/** 6.1.4 (o) and 6.1.5 (f) */
function checkExtensions(certificate: Certificate): void {
  const [unknown] = certificate.unknownCritical;
  if (unknown !== undefined) throw invalid(`${certificate.subject} has the unknown critical extension ${unknown}.`);
}

/** 6.1.4 (k) to (n): what an authority must be. `below`: authorities between it and the leaf. */
function checkAuthority(certificate: Certificate, below: number): void {
  const constraints = certificate.basicConstraints;
  if (constraints?.ca !== true) throw invalid(`${certificate.subject} is not an authority, but issued a certificate.`);
  if (constraints.pathLengthMax !== null && below > constraints.pathLengthMax) {
    throw invalid(
      `${certificate.subject} allows ${constraints.pathLengthMax} authorities below it, but there are ${below}.`,
    );
  }
  if (certificate.keyUsage?.signsCertificates !== true) {
    throw invalid(`The key of ${certificate.subject} may not sign certificates.`);
  }
}

function checkLeaf(certificate: Certificate, role: LeafRole): void {
  if (certificate.basicConstraints?.ca === true)
    throw invalid(`${certificate.subject} is an authority, not a ${role}.`);
  if (certificate.keyUsage?.signs !== true) throw invalid(`The key of ${certificate.subject} may not sign documents.`);
  if (!certificate.roles.includes(role)) throw invalid(`${certificate.subject} may not act as a ${role}.`);
}

/** 6.3: the newest list of that authority; it must be genuine and must not be out of date at the time that counts. */
function currentList(issuer: Certificate, { revocations, atMs, verifies }: PathQuestion): RevocationList {
  const list = revocations
    .filter((candidate) => equal(candidate.issuerDer, issuer.subjectDer) && candidate.authorityKeyId === issuer.keyId)
    .reduce<RevocationList | undefined>((best, next) => (best && best.number >= next.number ? best : next), undefined);
  const hint = 'Get a fresh list of revocations from the network, then try again.';
  if (list === undefined) throw invalid(`There is no revocation list of ${issuer.subject}.`, hint);
  if (issuer.keyUsage?.signsLists !== true)
    throw invalid(`The key of ${issuer.subject} may not sign revocation lists.`);
  if (!verifies(list.signed, issuer.keys))
    throw invalid(`The revocation list of ${issuer.subject} is forged or damaged.`);
  if (atMs > list.nextUpdateMs) {
    throw invalid(`The revocation list of ${issuer.subject} was due for renewal on ${iso(list.nextUpdateMs)}.`, hint);
  }
  return list;
}

/**
 * What was signed before a certificate was superseded or laid down stays good. After a compromise nothing does: whoever has the key
 * could have signed at any claimed time.
 */
function checkRevocation(certificate: Certificate, list: RevocationList, atMs: number): 'listed' | 'unlisted' {
  const entry = list.revoked.get(certificate.serial);
  if (entry === undefined) return 'unlisted';
  if (entry.reason !== 'key-compromise' && atMs < entry.atMs) return 'listed';
  throw new HyperMeshError(
    'certificate-revoked',
    `${certificate.subject} was revoked on ${iso(entry.atMs)} (${entry.reason}).`,
    {
      hint: 'Do not use what it signed; ask the publisher for a new release.',
      details: { fingerprint: certificate.fingerprint },
    },
  );
}

function iso(ms: number): string {
  return Number.isFinite(ms) && Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : String(ms);
}

function invalid(message: string, hint?: string): HyperMeshError {
  return new HyperMeshError('certificate-invalid', message, hint === undefined ? {} : { hint });
}

function expired(message: string): HyperMeshError {
  return new HyperMeshError('certificate-expired', message, {
    hint: 'Check the clock of this machine; if it is right, the signer has to renew the certificate and sign again.',
  });
}
