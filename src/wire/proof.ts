import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { CertificateChain, Envelope } from './signature.ts';

export type OperationKind = 'publish' | 'install' | 'execute' | 'default';

/** One row of the network's requirement table; a proof that is null is not asked for. Defaults: docs/protocol/proofs.md. */
export interface Requirements {
  readonly kind: OperationKind;
  /** Bytes that must be committed. */
  readonly space: { readonly bytesMin: number; readonly deadlineMs: number; readonly openings: number } | null;
  /** Tokens that must be locked. */
  readonly stake: { readonly amountMin: number } | null;
  /** Leading zero hex digits of SHA-256. */
  readonly work: { readonly hexDigits: number } | null;
  /** Sequential squarings, and how old the anchor may be. */
  readonly time: { readonly squarings: number; readonly windowMs: number } | null;
}

/** What is to be admitted. Its canonical JSON is hashed into every proof. */
export interface Operation {
  readonly kind: OperationKind;
  /** The manifest digest of what is published, or the digest of what is asked for. */
  readonly subject: Digest;
  /** Publishing: `scope/name@version`. */
  readonly ref: string;
  /** Key id of who asks. */
  readonly identity: string;
  /** Strictly increasing for each identity. */
  readonly sequence: number;
}

/** Unpredictable, issued by the committee, fresh: proofs made before it cannot exist. */
export interface Challenge {
  readonly operation: Operation;
  readonly requirements: Requirements;
  readonly networkId: Digest;
  readonly anchor: { readonly nonce: string; readonly issuedAtMs: number; readonly previous: Digest };
  /** H(operation, identity, network, anchor): what every proof is bound to. */
  readonly context: Digest;
}

/** Proof bodies are specified in docs/protocol/proofs.md; each is verifiable alone. */
export interface ProofSet {
  readonly formatVersion: 1;
  readonly challenge: Challenge;
  readonly space: Json;
  readonly stake: Json;
  readonly work: Json;
  readonly time: Json;
}

/** The committee's word: 2f+1 validators checked the proofs and the signature and voted for this digest. */
export interface Endorsement {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  readonly epoch: number;
  readonly operation: Operation;
  /** SHA-256 of the canonical JSON of the proof set. */
  readonly proofs: Digest;
  readonly admittedAtMs: number;
  readonly votes: readonly {
    readonly validator: string;
    readonly chain: CertificateChain;
    readonly envelope: Envelope;
  }[];
}
