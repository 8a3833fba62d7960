import type { Digest } from '../base/digest.ts';

/** DSSE envelope (docs/protocol/signature.md): payload and signatures by FALCON-1024 and Ed25519, both required. */
export interface Envelope {
  readonly payloadType: string;
  /** Base64 of the exact bytes that were signed. */
  readonly payload: string;
  readonly signatures: readonly {
    readonly keyid: string;
    readonly alg: 'falcon1024-r3-padded' | 'ed25519';
    readonly sig: string;
  }[];
}

/** Certificates (DER, base64), leaf first, root last. */
export type CertificateChain = readonly string[];

/** The root of a network and what it has revoked so far. */
export interface TrustAnchor {
  /** Root certificate, DER in base64. */
  readonly root: string;
  /** Certificate revocation lists, DER in base64. */
  readonly revocations: readonly string[];
}

export interface SignedTreeHead {
  readonly origin: string;
  readonly size: number;
  /** RFC 6962 root hash. */
  readonly root: Digest;
  readonly timestampMs: number;
  /** Envelope over the canonical JSON of the four fields above, by the validator. */
  readonly envelope: Envelope;
}

export interface LogInclusion {
  readonly index: number;
  /** Sibling hashes from leaf to root, 64 hex digits each. */
  readonly path: readonly string[];
  readonly head: SignedTreeHead;
}
