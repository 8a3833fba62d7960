import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { Challenge, Endorsement, OperationKind, ProofSet, Requirements } from '../wire/proof.ts';
import type { TrustAnchor } from '../wire/signature.ts';

export interface ProofVerdict {
  readonly kind: 'space' | 'stake' | 'work' | 'time';
  /** `not-required` when the table does not ask for it. */
  readonly verdict: 'valid' | 'invalid' | 'not-required';
  /** What was established or what is wrong, one sentence. */
  readonly says: string;
  readonly verifyMs: number;
}

export interface StakeAccount {
  readonly account: string;
  readonly balance: number;
  readonly locked: number;
}

/** The standing space commitment of this home. */
export interface SpaceStatus {
  readonly state: 'absent' | 'building' | 'ready' | 'damaged';
  readonly bytes: number;
  /** 0 to 1. */
  readonly fraction: number;
}

/** One validator of proofs for everybody; nobody re-implements it. */
export interface Consensus {
  requirements(kind: OperationKind): Promise<Requirements>;
  /** The network's genesis document: its SHA-256 is the network id. Plain data, canonical JSON. */
  genesis(): Promise<{ readonly networkId: Digest; readonly document: Json }>;
  /** A fresh challenge for an operation of this home's identity; the sequence number is taken and remembered. */
  challenge(kind: OperationKind, subject: Digest, ref: string): Promise<Challenge>;
  /**
   * Makes every proof that the challenge asks for, in worker threads; waits for the space commitment when it is still being built.
   * Progress steps: `space`, `stake`, `work`, `time`. Errors: `stake-insufficient`, `cancelled`.
   */
  prove(challenge: Challenge, options?: CallOptions): Promise<ProofSet>;
  /** Judges each proof; never throws for a bad one. `atMs` is the arrival time by the judge's clock. */
  verify(
    proofs: ProofSet,
    options?: { readonly atMs?: number; readonly anchor?: TrustAnchor; readonly genesis?: Json },
  ): Promise<readonly ProofVerdict[]>;
  /**
   * The committee checks everything in cost order, remembers the proofs against replay, and votes.
   * Repeating the same submission returns the same endorsement. Errors: `proof-rejected`, `proof-replayed`, `proof-expired`, `equivocation`.
   */
  admit(proofs: ProofSet, options?: CallOptions): Promise<Endorsement>;
  /** Offline check of an endorsement against a genesis document. Errors: `endorsement-invalid`. */
  verifyEndorsement(
    endorsement: Endorsement,
    options: { readonly genesis: Json; readonly anchor: TrustAnchor },
  ): Promise<void>;
  stake(): Promise<StakeAccount>;
  /** Errors: `stake-insufficient`. */
  lockStake(amount: number): Promise<StakeAccount>;
  unlockStake(amount: number): Promise<StakeAccount>;
  transferStake(to: string, amount: number): Promise<StakeAccount>;
  space(): Promise<SpaceStatus>;
}
