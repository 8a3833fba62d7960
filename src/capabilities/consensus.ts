import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { AccessChallenge, AccessProof, StandingWord, Use } from '../wire/access.ts';
import type { EpochDocument } from '../wire/epoch.ts';
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
  /** Key id of the owner. */
  readonly account: string;
  /** All tokens of the account, locked ones included. */
  readonly balance: number;
  readonly locked: number;
  /** Unlocked and not free yet: they answer for the account until they are. `endsAtMs`: null until the committee's clocks have told when the unlock was. */
  readonly unbonding: readonly { readonly amount: number; readonly endsAtMs: number | null }[];
  /** It contradicted itself: until the epoch ends it can neither publish nor claim. */
  readonly isSuspended: boolean;
}

/** A proof of access, with what makes its space commitment known. */
export interface PresentedAccess {
  readonly proof: AccessProof;
  readonly standing: readonly StandingWord[];
}

/** What came of a submission. */
export interface Admission {
  readonly endorsement: Endorsement;
  /** How the proofs were judged, in the order space, stake, work, time. */
  readonly verdicts: readonly ProofVerdict[];
}

/** The standing space commitment of this home. */
export interface SpaceStatus {
  readonly state: 'absent' | 'building' | 'ready' | 'damaged';
  readonly bytes: number;
  /** 0 to 1. */
  readonly fraction: number;
  /** When labels of it were last opened for somebody who asked, since the node was started. */
  readonly auditedAtMs: number | null;
}

/**
 * One validator of proofs for everybody; nobody re-implements it. A home that is a member of somebody else's network asks that network's
 * committee for everything but what it serves to itself (installing and running): then also `committee-unreachable`, and `not-a-member`.
 */
export interface Consensus {
  requirements(kind: OperationKind): Promise<Requirements>;
  /** The network's genesis document: its SHA-256 is the network id. Plain data, canonical JSON. */
  /** `epochs`: the documents that lead to the present committee. */
  genesis(): Promise<{
    readonly networkId: Digest;
    readonly document: Json;
    readonly epochs: readonly EpochDocument[];
  }>;
  /** A fresh challenge for an operation of this home's identity; the sequence number is taken and remembered. Errors: `quota-exceeded`, `usage`. */
  challenge(kind: OperationKind, subject: Digest, ref: string): Promise<Challenge>;
  /**
   * Makes every proof that the challenge asks for, in worker threads; waits for the space commitment when it is still being built.
   * Progress steps: `space`, `stake`, `work`, `time`.
   * Errors: `stake-insufficient`, `space-unavailable`, `storage-*`, `proof-expired` (an audit came too late), `cancelled`,
   * `quota-exceeded`; `proof-invalid`, `network-mismatch` for a challenge that is not this home's.
   */
  prove(challenge: Challenge, options?: CallOptions): Promise<ProofSet>;
  /**
   * Judges each proof by itself; never throws for a bad one. `atMs` is the arrival time by the judge's clock, for what was admitted
   * long ago the time of its endorsement (`admittedAtMs`); now when absent. `genesis` defaults to that of this home; the judgement needs
   * nothing else. Errors: `network-mismatch` when `genesis` is not a genesis document.
   */
  verify(
    proofs: ProofSet,
    options?: {
      readonly atMs?: number;
      readonly genesis?: Json;
      /** That lead from that genesis to the committee in whose epoch the challenge was issued. */
      readonly epochs?: readonly EpochDocument[] | undefined;
    },
  ): Promise<readonly ProofVerdict[]>;
  /**
   * The committee checks everything in cost order, remembers the proofs against replay, and votes. Nothing needs judging again after it.
   * Repeating the same submission returns the same endorsement, for a publish at least a day long, for others as long as the anchor
   * is good. Errors: `proof-invalid`, `network-mismatch`, `equivocation`, `proof-replayed`, `proof-expired`, `proof-rejected`,
   * `stake-insufficient`.
   */
  admit(proofs: ProofSet, options?: CallOptions): Promise<Admission>;
  /** Offline check of an endorsement against a genesis document. Errors: `endorsement-invalid`. */
  verifyEndorsement(
    endorsement: Endorsement,
    options: {
      readonly genesis: Json;
      readonly anchor: TrustAnchor;
      readonly epochs?: readonly EpochDocument[] | undefined;
    },
  ): Promise<void>;
  /** The account of this home's publisher. */
  stake(): Promise<StakeAccount>;
  /**
   * Changes of the account are entries of the network's order: done when they return, safe to repeat after a lost answer. Errors of all three:
   * `stake-insufficient`, `usage`, `not-a-member`, and `committee-unreachable`, `timeout`, `order-stopped`, `sequencer-unreachable` while it is not known what became of it.
   */
  lockStake(amount: number): Promise<StakeAccount>;
  /** Begins the unbonding: the tokens are free seven days later, and answer for the account until then. */
  unlockStake(amount: number): Promise<StakeAccount>;
  /** Free tokens only; `to` is a key id. */
  transferStake(to: string, amount: number): Promise<StakeAccount>;
  space(): Promise<SpaceStatus>;
  /**
   * Waits until the commitment is on the disk and registered; makes it where it is missing. Safe to repeat. Progress step: `space`.
   * Errors: `space-unavailable`, `storage-*`, `committee-unreachable`, `cancelled`.
   */
  commitSpace(options?: CallOptions): Promise<SpaceStatus>;
  // Access by proof, at the node that gives content to others (docs/protocol/access.md). `identity`: key id of the publisher of who asks.
  /** Whether a proof that was judged here a moment ago gives that publisher this package. */
  canAccessPackage(identity: string, packageId: Digest): Promise<boolean>;
  /** What has to be proved for these packages; null: nothing. Errors: `quota-exceeded`, `usage`. */
  accessChallenge(identity: string, use: Use, packages: readonly Digest[]): Promise<AccessChallenge | null>;
  /** Labels were read for a challenge, and this is the digest of what will be shown. Errors: `proof-expired`, `proof-rejected`, `proof-replayed`. */
  accessOpened(identity: string, nonce: string, opening: Digest): Promise<void>;
  /**
   * Judges a proof; one that holds gives its packages for `forMs`. A challenge is good for one attempt.
   * Errors: `proof-invalid`, `network-mismatch`, `not-permitted` (made for another publisher or node), `proof-replayed`, `proof-expired`, `proof-rejected`.
   */
  validateAccessProof(identity: string, presented: PresentedAccess): Promise<{ readonly forMs: number }>;
}
