import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { Endorsement, ProofSet } from './proof.ts';
import type { CertificateChain, Envelope, LogInclusion, TrustAnchor } from './signature.ts';

/** Everything that is needed to check one package offline, given the genesis of its network (docs/protocol/bundle.md). */
export interface Bundle {
  readonly formatVersion: 1;
  /** Exact bytes of the OCI manifest and of the config blob, base64. */
  readonly manifest: string;
  readonly config: string;
  /** DSSE over an in-toto statement whose subject is the manifest digest, by the publisher. */
  readonly signature: { readonly envelope: Envelope; readonly chain: CertificateChain };
  readonly proofs: ProofSet;
  readonly endorsement: Endorsement;
  readonly inclusion: LogInclusion;
  /** The network: its genesis document, and root certificate with revocations as of publishing. */
  readonly network: { readonly id: Digest; readonly genesis: Json; readonly anchor: TrustAnchor };
}
