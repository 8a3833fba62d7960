import { hash } from 'node:crypto';
import { equal, fromBase64 } from '../../base/bytes.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { CertificateInfo, Verified } from '../../capabilities/trust.ts';
import {
  type Certificate,
  type CertificateRole,
  type DoubleSigned,
  decodeCertificate,
  decodeRevocationList,
  type LeafRole,
} from '../../wire/certificate.ts';
import type { PublicKeys } from '../../wire/key-id.ts';
import { certificateChain, firstIssue, openEnvelope, trustAnchor } from '../../wire/signature.ts';
import { ChainCache } from './chain-cache.ts';
import { verifyEd25519 } from './ed25519.ts';
import { falconVerifier } from './falcon.ts';
import { type ValidPath, validatePath } from './path.ts';

export interface VerifyOptions {
  readonly role: LeafRole;
  /** The time that counts, milliseconds since the epoch. */
  readonly atMs: number;
  readonly cache?: ChainCache;
}

/** The work behind `verifyEnvelope`, on the calling thread. */
export function checkEnvelope(envelope: unknown, chain: unknown, anchor: unknown, options: VerifyOptions): Verified {
  const opened = openEnvelope(envelope);
  const { leaf } = checkChain(chain, anchor, options);
  if (opened.keyId !== leaf.keyId) {
    throw invalid('The envelope names another key than the certificate that came with it.');
  }
  // Ed25519 first: it is the cheaper refusal when the bytes were altered.
  if (!verifyEd25519(opened.ed25519, opened.signed, leaf.keys.ed25519)) {
    throw invalid('The Ed25519 signature does not match the payload and the key.');
  }
  if (!falconVerifier().verify(opened.falcon, opened.signed, leaf.keys.falcon)) {
    throw invalid('The FALCON-1024 signature does not match the payload and the key.');
  }
  return { signer: leaf.keyId, certificate: describe(leaf, options.atMs, false), payload: opened.payload };
}

/** A chain by the rules of path validation. Errors: `certificate-*`. */
export function checkChain(
  chainInput: unknown,
  anchorInput: unknown,
  { role, atMs, cache = new ChainCache({ chainsMax: 1 }) }: VerifyOptions,
): ValidPath {
  const chain = certificateChain.safeParse(chainInput);
  if (!chain.success) throw badCertificate(`The certificate chain is malformed: ${firstIssue(chain.error)}.`);
  const anchor = trustAnchor.safeParse(anchorInput);
  if (!anchor.success) throw badCertificate(`The trust anchor is malformed: ${firstIssue(anchor.error)}.`);
  const { root, revocations } = anchor.data;
  const key = hash('sha256', [role, root, revocations.length, ...revocations, ...chain.data].join('\n'), 'base64');
  const cached = cache.get(key, atMs);
  if (cached !== undefined) return cached;
  const path = validatePath(
    chain.data.map((der) => cache.certificate(der, decodeCertificate)),
    {
      role,
      atMs,
      root: fromBase64(root),
      revocations: revocations.map((der) => cache.revocationList(der, decodeRevocationList)),
      verifies: (signed, keys) => cache.genuine(signed, keys, () => verifies(signed, keys)),
    },
  );
  cache.set(key, path);
  return path;
}

/** Both signatures of a certificate or a revocation list. */
export function verifies(signed: DoubleSigned, keys: PublicKeys): boolean {
  return (
    verifyEd25519(signed.ed25519.signature, signed.ed25519.bytes, keys.ed25519) &&
    falconVerifier().verify(signed.falcon.signature, signed.falcon.bytes, keys.falcon)
  );
}

export function roleOf(certificate: Certificate): CertificateRole {
  if (certificate.basicConstraints?.ca === true) {
    return equal(certificate.issuerDer, certificate.subjectDer) ? 'root' : 'intermediate';
  }
  const [role] = certificate.roles;
  if (role === undefined) throw badCertificate(`${certificate.subject} has none of the roles of this network.`);
  return role;
}

export function describe(certificate: Certificate, atMs: number, revoked: boolean): CertificateInfo {
  const { fingerprint, serial, subject, issuer, notBeforeMs, notAfterMs, keyId } = certificate;
  const status = statusAt({ notBeforeMs, notAfterMs, revoked }, atMs);
  return { fingerprint, serial, subject, issuer, role: roleOf(certificate), notBeforeMs, notAfterMs, keyId, status };
}

function statusAt(
  about: { readonly notBeforeMs: number; readonly notAfterMs: number; readonly revoked: boolean },
  atMs: number,
): CertificateInfo['status'] {
  if (about.revoked) return 'revoked';
  if (atMs < about.notBeforeMs) return 'not-yet-valid';
  return atMs > about.notAfterMs ? 'expired' : 'valid';
}

function invalid(message: string): HyperMeshError {
  return new HyperMeshError('signature-invalid', message, {
    hint: 'The content was altered on the way, or signed by somebody else: fetch it again from another source.',
  });
}

function badCertificate(message: string): HyperMeshError {
  return new HyperMeshError('certificate-invalid', message);
}
