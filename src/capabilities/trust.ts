import type { Json } from '../base/json.ts';
import type { Attestation, FastAttestation, ValidatorKeys } from '../wire/attestation.ts';
import type { CertificateRole, LeafRole, RevocationReason } from '../wire/certificate.ts';
import type { CertificateChain, Envelope, LogInclusion, SignedTreeHead, TrustAnchor } from '../wire/signature.ts';

export interface CertificateInfo {
  /** SHA-256 of the DER, 64 hex digits. */
  readonly fingerprint: string;
  readonly serial: string;
  readonly subject: string;
  readonly issuer: string;
  readonly role: CertificateRole;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** SHA-256 over the subject's public keys (FALCON and Ed25519): stable when the certificate is renewed. */
  readonly keyId: string;
  readonly status: 'valid' | 'expired' | 'not-yet-valid' | 'revoked';
}

/** What a successful verification established. */
export interface Verified {
  /** Key id of the signer: the owner of what was signed. */
  readonly signer: string;
  readonly certificate: CertificateInfo;
  /** The exact bytes that were signed. */
  readonly payload: Uint8Array;
}

/** Keys, certificates, signatures. Private keys never leave the subsystem. */
export interface Trust {
  /** The certificate that this home signs with in a role. Errors: `key-locked`. */
  identity(role: LeafRole): Promise<CertificateInfo & { readonly chain: CertificateChain }>;
  /** Signs with both algorithms, in worker threads. Errors: `key-locked`, `certificate-expired`. */
  sign(role: LeafRole, payloadType: string, payload: Uint8Array): Promise<Envelope>;
  /**
   * Checks both signatures, the chain up to this network's root (RFC 5280), validity at `atMs` and revocation.
   * Errors: `signature-invalid`, `certificate-invalid`, `certificate-expired`, `certificate-revoked`.
   */
  verify(
    envelope: Envelope,
    chain: CertificateChain,
    options: { readonly role: LeafRole; readonly atMs?: number; readonly anchor?: TrustAnchor },
  ): Promise<Verified>;
  /**
   * The word of this home's validator, by both algorithms; what waits at the same time shares one FALCON signature. The statement is plain data, signed
   * as canonical JSON. Certificates do not matter: who reads it has pinned the keys. Errors: `key-locked`, `quota-exceeded`.
   */
  attest(payloadType: string, statement: unknown): Promise<Attestation>;
  /** The same by Ed25519 alone, at once. */
  attestFast(payloadType: string, statement: unknown): Promise<FastAttestation>;
  /** Whether these keys signed the statement: all signatures that the word has. The form of the word was checked before. */
  attested(
    word: FastAttestation | Attestation,
    payloadType: string,
    statement: unknown,
    keys: Pick<ValidatorKeys, 'falcon' | 'ed25519'>,
  ): Promise<boolean>;
  /** Whether both signatures of an envelope are by these keys. Certificates do not matter. The form of the envelope was checked before. */
  signedBy(envelope: Envelope, keys: { readonly falcon: string; readonly ed25519: string }): Promise<boolean>;
  /** The public keys of this home in a role, base64. */
  publicKeys(role: LeafRole): Promise<{ readonly falcon: string; readonly ed25519: string }>;
  /** The public keys of this home's validator, as a network pins them, with the account of this home's publisher. */
  validatorKeys(): Promise<ValidatorKeys>;
  /** Errors: `anchor-stale` for a member whose lists ran out while its committee cannot be reached. */
  anchor(): Promise<TrustAnchor>;
  certificates(): Promise<readonly CertificateInfo[]>;
  /** Issues a fresh certificate for the same keys. */
  renew(role: LeafRole): Promise<CertificateInfo>;
  /** Errors: `certificate-not-found`; `committee-only` for a member. */
  revoke(fingerprint: string, reason: RevocationReason): Promise<void>;

  /**
   * Appends to the transparency log (RFC 6962 tree) and returns the proof. Safe to repeat: the same leaf keeps its index. A member's log is that of its
   * network's committee, which takes only what a certificate (an endorsement) says was published; the leaf is what follows from that.
   * Errors: `committee-unreachable`, `not-permitted`, `endorsement-invalid`.
   */
  logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion>;
  logHead(): Promise<SignedTreeHead>;
  logConsistency(from: number, to: number): Promise<readonly string[]>;
}
