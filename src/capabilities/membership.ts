import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';
import type { ValidatorKeys } from '../wire/attestation.ts';
import type { SequencerPlace } from '../wire/entry.ts';
import type { OpenTerms } from '../wire/terms.ts';

/** A home's place in a network: alone in one of its own, founder of one with others, or a member of somebody else's. */
export type NetworkRole = 'alone' | 'founder' | 'member';

export interface NetworkMember {
  /** Node id. */
  readonly node: string;
  /** Key id of its publisher. */
  readonly publisher: string;
  /** Name in its certificates. */
  readonly subject: string;
  readonly isCommittee: boolean;
  readonly joinedAtMs: number;
  /** When it left or was removed; null while it belongs. */
  readonly leftAtMs: number | null;
  /** It did not leave by itself: it comes back by an invite only. */
  readonly wasRemoved: boolean;
  /** It came without an invite. */
  readonly isOpen: boolean;
  /** From which address it came so; only the founder knows. */
  readonly origin: string | null;
}

export type OpenBounds = { readonly [bound in keyof OpenTerms]?: OpenTerms[bound] | undefined };

/** How an open network takes in who has no invite. */
export interface OpenInfo extends OpenTerms {
  /** What anybody can join with, as often as they like; null while this node listens nowhere. */
  readonly invite: string | null;
  /** Of the terms: each change has a higher one. */
  readonly version: number;
  /** Whether who comes so can publish: only where publishing asks for no stake. */
  readonly mayPublish: boolean;
}

export interface NetworkPlace {
  readonly role: NetworkRole;
  readonly networkId: Digest;
  /** Node id of this home. */
  readonly node: string;
  /** Members of the committee, and where they are reached. Empty while alone. */
  readonly committee: readonly { readonly node: string; readonly addresses: readonly string[] }[];
  /** Null: nobody comes without an invite, as far as this home knows. */
  readonly open: OpenInfo | null;
}

/** The place of a home that has left its network. */
export interface LeftPlace extends NetworkPlace {
  /** Whether the founder knows; if not, it lists the home until it is told, or the certificates have run out. */
  readonly isFounderTold: boolean;
}

export interface NewInvite {
  readonly invite: string;
  readonly expiresAtMs: number;
  readonly addresses: readonly string[];
  /** Tokens that the one who joins is given, locked. */
  readonly tokens: number;
}

/** One validator of the committee, as this home knows it. */
export interface ValidatorInfo {
  /** Key id of the validator. */
  readonly validator: string;
  /** Key id of the publisher whose tokens answer for it. */
  readonly account: string;
  /** The member it belongs to; null when nobody says. */
  readonly node: string | null;
  readonly subject: string | null;
  readonly isSelf: boolean;
  /** Whether its node answers this one. */
  readonly isReachable: boolean;
  /** Locked tokens of the account; null where only the committee knows. */
  readonly locked: number | null;
}

/** Who votes now. */
export interface CommitteeInfo {
  readonly networkId: Digest;
  readonly epoch: number;
  /** When the epoch began: the first one by the genesis, a later one when this home learned of it, by its own clock. Null when that is not known. */
  readonly sinceMs: number | null;
  /** Votes that it takes. */
  readonly quorum: number;
  /** Documents, genesis included, that this home checked to know the committee. */
  readonly documents: number;
  readonly validators: readonly ValidatorInfo[];
}

/** A next committee that validators can approve. */
export interface ProposalInfo {
  readonly digest: Digest;
  readonly epoch: number;
  readonly validators: readonly ValidatorKeys[];
  /** Key ids of validators. */
  readonly approvedBy: readonly string[];
  readonly needed: number;
}

/** Where the order of names, tokens and committees is made, and what is the matter with it. */
export interface SequencerInfo {
  readonly networkId: Digest;
  readonly engine: SequencerPlace;
  /** How often the network had another engine. */
  readonly moves: number;
  /** Entries that are certified and applied here, and those that are proposed and not certified yet. */
  readonly applied: number;
  readonly waiting: number;
  /** Entries up to there are not kept any more: a snapshot of what follows from them is in their place. */
  readonly floor: number;
  /** Of the hash chain of the applied entries. */
  readonly head: string;
  /** Validators to whom the engine seems to have shown other entries than to this one. */
  readonly split: readonly string[];
  /** Moves that validators have approved and that still lack others. */
  readonly approved: readonly {
    readonly to: SequencerPlace;
    /** The position after which it goes on there, because the engine before is lost; null: after the move itself. */
    readonly after: number | null;
    readonly by: readonly string[];
    readonly needed: number;
  }[];
  /** Why the order does not go on; null when nothing is known to be wrong. */
  readonly trouble: string | null;
}

/** `instead`: although this validator approved another change of the epoch, which whoever asks is sure will not come about. */
export type ApproveOptions = CallOptions & { readonly instead?: boolean | undefined };

/** Growing a network: what the operator of a home does, never lent to extensions. */
export interface Membership {
  place(): Promise<NetworkPlace>;
  /**
   * Opens this home's own network to others. Safe to repeat. `listen`: `HOST:PORT`. `open`: also to those without an invite, within these bounds; what is
   * left out stays as it is, or gets its default. Errors: `network-state` (member of another), `committee-only` (the same, of `open`), `address-taken`, `usage`.
   */
  create(options?: {
    readonly listen?: string | undefined;
    readonly open?: OpenBounds | undefined;
  }): Promise<NetworkPlace>;
  /** From here on an invite is needed again; who is in stays. Safe to repeat. Errors: `committee-only`. */
  close(): Promise<NetworkPlace>;
  /** Errors: `network-state`, `committee-only`, `stake-insufficient`, `quota-exceeded`, `usage`. */
  invite(options?: {
    /** One day when absent; at most 30 days. */
    readonly expiresInMs?: number | undefined;
    /** In place of those where this node listens. */
    readonly addresses?: readonly string[] | undefined;
    /** As many as the network ever asks to be locked, when absent. */
    readonly tokens?: number | undefined;
  }): Promise<NewInvite>;
  /**
   * Makes this home a member of the network of the invite, also of one that is open. All or nothing: a crash leaves it before or after. Safe to repeat with
   * the same invite; a member learns from one of its own network where that node is. Errors: `invite-*`, `network-closed`, `quota-exceeded`, `not-a-member`, `home-not-empty`, `network-state`, `peer-*`, `certification-invalid`, `clock-skewed`, `certificate-*`.
   */
  join(
    invite: string,
    options?: CallOptions & {
      readonly listen?: string | undefined;
      /** Drop what the home holds of the network it was in. */
      readonly forget?: boolean | undefined;
    },
  ): Promise<NetworkPlace>;
  /** What may follow the present committee. Errors: `committee-only`. */
  proposals(): Promise<readonly ProposalInfo[]>;
  /**
   * Proposes, and approves for this home's validator, that the members at these nodes get seats, or lose them, all in one change. It happens when a quorum of the committee has approved.
   * Safe to repeat. A validator approves one change in an epoch. Errors: `committee-only`, `not-a-member`, `usage`, `epoch-invalid`, `peer-*`, and those of the order.
   */
  addValidators(nodes: readonly string[], options?: ApproveOptions): Promise<ProposalInfo>;
  removeValidators(nodes: readonly string[], options?: ApproveOptions): Promise<ProposalInfo>;
  /** Approves a proposal for this home's validator; the only one when none is named. Errors: `committee-only`, `usage`, `epoch-invalid`, and those of the order. */
  approveValidators(proposal: Digest | undefined, options?: ApproveOptions): Promise<ProposalInfo>;
  /** Errors: `committee-only`. */
  sequencer(): Promise<SequencerInfo>;
  /**
   * Approves, for this home's validator, that the order is made elsewhere: in the home of one of the validators (its key id; this one when absent), or in a
   * cluster of etcd. It is as soon as a quorum of the committee approved the same. Safe to repeat. `recover`: although the engine that it has is lost for good; it goes
   * on after everything that was certified.
   * Errors: `committee-only`, `usage`, `sequencer-unreachable`, `order-stopped`, `not-permitted`, `timeout`.
   */
  moveSequencer(
    to:
      | { readonly kind: 'embedded'; readonly validator?: string | undefined }
      | { readonly kind: 'etcd'; readonly endpoints: readonly string[] },
    options?: CallOptions & { readonly recover?: boolean | undefined },
  ): Promise<SequencerInfo>;
  /** Who sits in the committee, and what is known of them. */
  validators(): Promise<CommitteeInfo>;
  /** As the committee has them. Errors: `network-state`, `committee-unreachable`. */
  members(): Promise<readonly NetworkMember[]>;
  /**
   * Back to a network of its own. The committee is told when it can be reached; it cannot keep a home from leaving.
   * Errors: `network-state` (alone, or a founder with members), `home-not-empty`.
   */
  leave(options?: CallOptions & { readonly forget?: boolean | undefined }): Promise<LeftPlace>;
  /** Takes a member's certificates back. Errors: `committee-only`, `not-a-member`. */
  remove(node: string, options?: { readonly compromised?: boolean | undefined }): Promise<NetworkMember>;
}

/**
 * Asks one validator of the network's committee, by its key id. The answer is plain JSON, not yet checked by anybody.
 * Errors: `peer-unreachable`, `timeout`, `committee-unreachable` (not connected), and what the validator refuses with.
 */
export type SeatAsk = (
  validator: string,
  method: string,
  body: Json,
  options?: CallOptions & { readonly replyBytesMax?: number; readonly timeoutMs?: number },
) => Promise<unknown>;
