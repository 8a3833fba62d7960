import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import type { Json } from '../../base/json.ts';
import type { Consensus } from '../../capabilities/consensus.ts';
import type { ApproveOptions, ProposalInfo, SeatAsk, SequencerInfo } from '../../capabilities/membership.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { Use } from '../../wire/access.ts';
import type { Attestation, ValidatorKeys } from '../../wire/attestation.ts';
import type { SequencerPlace } from '../../wire/entry.ts';
import type { OrderMethod } from '../../wire/order.ts';
import type { Endorsement, WorkProof } from '../../wire/proof.ts';
import type { SpaceOpening } from '../../wire/space-audit.ts';
import type { AccessAsk } from './access.ts';
import type { DeskMethod } from './desk.ts';
import type { NetworkTerms } from './found.ts';
import type { MoveOptions, OrderLent, OrderOptions } from './order/order.ts';
import type { LossLent } from './space-loss.ts';
import type { Accusation } from './witness.ts';

export interface NKryptOptions extends NetworkTerms {
  /** Holds `nkrypt.db` and the files of the space commitment. */
  readonly directory: string;
  readonly clock: Clock;
  /** Worker threads for the work proof. Default: one for each processor but one, at most 4. */
  readonly threads?: number;
  /** How often a validator looks whether an audit of space is due. */
  readonly auditRoundMs?: number;
  /** How this machine gets into a cluster of etcd. */
  readonly etcd?: OrderOptions['etcd'];
}

/** The four proofs, and the committee: this home's own seat in it, and who asks all of it. */
export interface NKrypt extends Consensus, AsyncDisposable {
  /** Whether this home's validator sits in the committee. */
  readonly isCommittee: boolean;
  /** What a member asks of this committee. Errors: `committee-only`, and those of the committee. */
  desk(method: DeskMethod, identity: string, body: unknown, options?: CallOptions): Promise<Json>;
  /** Who votes now, the locked tokens that answer for them where this home keeps the ledger, and how many documents say so. */
  committee(): Promise<{
    readonly epoch: number;
    readonly digest: Digest;
    readonly sinceMs: number | null;
    readonly documents: number;
    readonly validators: readonly (Pick<ValidatorKeys, 'key' | 'account'> & { readonly locked: number | null })[];
  }>;
  /** Who contradicted himself, as far as this home saw it: with what proves it. */
  accusations(): readonly Accusation[];
  /** A certificate of this network's committee, after its votes were checked. Errors: `endorsement-invalid`. */
  certified(value: unknown): Promise<Endorsement>;
  /** {@link Consensus.canAccessPackage}, at once. */
  hasAccess(identity: string, packageId: Digest): boolean;
  /**
   * Proves to another node that this home may use these packages, over `ask`: the methods `access/…` of that node. Resolves to how long the access
   * lasts. Errors: `space-unavailable`, `committee-unreachable`, `cancelled`, and what the other node refuses with.
   */
  gainAccess(
    node: string,
    use: Use,
    packages: readonly Digest[],
    ask: AccessAsk,
    options?: CallOptions,
  ): Promise<{ readonly forMs: number }>;
  /** A nonce that makes a hash over `context` begin with so many zeros, in hexadecimal digits. Errors: `cancelled`. */
  work(context: Digest, hexDigits: number, options?: CallOptions): Promise<WorkProof>;
  /** Opens labels of this home's commitment for a validator that asks. Errors: `not-permitted`, `space-unavailable`, `quota-exceeded`. */
  openForAudit(publisher: string, nonce: string): Promise<SpaceOpening>;
  /** This validator's word that it saw a commitment fail; null when it did not. Errors: `not-permitted`, `committee-only`. */
  lossSeen(publisher: string, account: string, root: string): Promise<Attestation | null>;
  /** That identity is at that node: where its audits go. */
  seen(identity: string, node: string): void;
  /** From here on the members of this committee are audited, at times that they cannot foresee. */
  watchSpace(lent: Omit<LossLent, 'trust'>): void;
  /** Gives tokens of this home, locked, to who joined: once for each id. Nothing makes an account of who joined all the same. Errors: `stake-insufficient`, and those of the order. */
  grant(id: string, to: string, amount: number): Promise<void>;
  /** What is asked about the order and its engine. Errors: `committee-only`, and those of the order. */
  order(method: OrderMethod, publisher: string, body: unknown, options?: CallOptions): Promise<Json>;
  /** Errors: `committee-only`. */
  sequencer(): Promise<SequencerInfo>;
  /** Errors: `committee-only`, and those of the order. */
  moveSequencer(to: SequencerPlace, options?: MoveOptions): Promise<SequencerInfo>;
  /** From here on the other validators are asked about the order through this. */
  meet(ask: OrderLent['ask']): void;
  /** From here on the validators of the committee are asked through this; undefined: they cannot be reached. */
  follow(ask: SeatAsk | undefined): void;
  /**
   * From here on this home is in the network of that genesis document. One transaction: what was known of the network before is forgotten.
   * Safe to repeat. Errors: `network-mismatch`, `storage-*`.
   */
  adopt(document: Json): Promise<void>;
  /** Founds a network of its own again, unless the one it has is. Safe to repeat. */
  abandon(): Promise<void>;
  /** Seats of the present committee, with their keys. */
  seats(): Promise<readonly ValidatorKeys[]>;
  /** What may follow the present committee. Errors: `committee-only`. */
  proposals(): Promise<readonly ProposalInfo[]>;
  /** Proposes, and approves for this validator, that these follow. Errors: `committee-only`, `epoch-invalid`, and those of the order. */
  proposeCommittee(validators: readonly ValidatorKeys[], options?: ApproveOptions): Promise<ProposalInfo>;
  /** Approves a proposal, the only one when none is named. Errors: `committee-only`, `usage`, and those of the order. */
  approveCommittee(digest: Digest | undefined, options?: ApproveOptions): Promise<ProposalInfo>;
  /** What another validator knows about the next committee; answered with what this one knows. Errors: `committee-only`, `not-permitted`, `epoch-invalid`. */
  answerEpochs(publisher: string, body: unknown): Promise<Json>;
  /** Documents from anybody, of which those count that follow what is known here. Errors: `epoch-invalid`. */
  learnEpochs(documents: readonly unknown[]): Promise<void>;
  /** The documents of the committees up to the one in office, as nodes hand them on to each other. */
  readonly epochRecords: {
    numbers(): readonly number[];
    read(epoch: number): Uint8Array | null;
    /** `known`: another one counts in its place. `later`: it cannot be judged yet. Errors: `epoch-invalid`. */
    take(bytes: Uint8Array): Promise<'accepted' | 'known' | 'later'>;
  };
  /** From here on it is said when another committee may be in office. */
  watchEpochs(changed: () => void): void;
  /** Genesis, ledger, sequence numbers and replay memory, as a part of a state export. */
  readonly section: StateSection;
}
