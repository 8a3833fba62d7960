import { setTimeout as pause } from 'node:timers/promises';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, isDigest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { laterTurn } from '../../base/turn.ts';
import type { Admission, ProofVerdict } from '../../capabilities/consensus.ts';
import { claimable } from '../../wire/entry.ts';
import type { EpochDocument } from '../../wire/epoch.ts';
import {
  type Challenge,
  challenge as challengeSchema,
  decodeProofSet,
  type Endorsement,
  type OperationKind,
  operationKind,
  type ProofSet,
  type Requirements,
  type WorkProof,
} from '../../wire/proof.ts';
import { firstIssue, type TrustAnchor } from '../../wire/signature.ts';
import { gainAccess } from './access.ts';
import { checkEndorsement } from './certificate.ts';
import type { LentTrust, Membership } from './entering.ts';
import type { Law, LawBook } from './epoch-law.ts';
import { judge } from './judge.ts';
import type { NKrypt } from './nkrypt.ts';
import { Prover } from './prover.ts';
import type { Quorum } from './quorum.ts';

/** Before another anchor is asked for, growing. */
const ANCHOR_PAUSE_MS = 25;

export interface OperationsLent {
  readonly trust: LentTrust;
  readonly clock: Clock;
  readonly laws: LawBook;
  member(): Membership;
}

/** What this home does to have an operation admitted, as any other home: it asks for a challenge, proves, and brings the proofs to whoever judges them. */
export class Operations implements AsyncDisposable {
  readonly #lent: OperationsLent;
  readonly #laws: LawBook;
  readonly #prover: Prover;

  constructor(lent: OperationsLent, { threads }: { readonly threads?: number | undefined }) {
    this.#lent = lent;
    this.#laws = lent.laws;
    this.#prover = new Prover(threads === undefined ? {} : { threads });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#prover[Symbol.asyncDispose]();
  }

  async requirements(kind: OperationKind): Promise<Requirements> {
    return this.#member.genesis.requirements[operationOf(kind)];
  }

  async challenge(kind: OperationKind, subject: Digest, ref: string): Promise<Challenge> {
    operationOf(kind);
    if (!isDigest(subject)) throw new HyperMeshError('usage', 'Expected the subject to be a SHA-256 digest.');
    if (typeof ref !== 'string' || ref.length > 512) {
      throw new HyperMeshError('usage', 'Expected the reference to be text of at most 512 characters.');
    }
    // Who publishes under a name first in the order owns it.
    if (kind === 'publish' && claimable.safeParse(nameOf(ref)).success) await this.#member.account.claim(nameOf(ref));
    await laterTurn();
    return this.#judgeOf(kind).challenge(kind, subject, ref);
  }

  async prove(challenge: Challenge, options: CallOptions = {}): Promise<ProofSet> {
    const parsed = challengeSchema.safeParse(challenge);
    if (!parsed.success) {
      throw new HyperMeshError('proof-invalid', `Expected a challenge, but ${firstIssue(parsed.error)}.`);
    }
    const { space, identity, genesis, networkId, committee } = this.#member;
    const { operation, requirements } = parsed.data;
    if (operation.identity !== identity) {
      throw new HyperMeshError('proof-invalid', 'The challenge was issued to another identity than this home has.');
    }
    if (parsed.data.networkId !== networkId) {
      throw new HyperMeshError('network-mismatch', 'The challenge was issued in another network.');
    }
    const witness = this.#judgeOf(operation.kind);
    const nothing = { account: identity, balance: 0, locked: 0, unbonding: [], isSuspended: false };
    const account = requirements.stake === null ? nothing : await this.#member.account.read();
    const lent = { witness, space, account, spaceBytes: genesis.space.bytes };
    let current: Challenge | undefined = parsed.data;
    for (let anchors = 1; ; anchors++) {
      // Making the commitment, once for this home or again when it was damaged, can take longer than an anchor lasts.
      if (requirements.space !== null && space.status().state !== 'ready') {
        await space.ready(options);
        current = undefined;
      }
      current ??= await witness.anchor(operation, options);
      try {
        return await this.#prover.prove(current, lent, options);
      } catch (error) {
        // Each time another validator is passed over: after as many as may be faulty there is nobody left to pass over.
        if (anchors > committee.validators.length || !isCoded(error, 'anchor-lost')) throw error;
        // What a validator does not know yet it may learn in a moment.
        await pause(Math.min(1_000, ANCHOR_PAUSE_MS * 2 ** anchors), undefined, { signal: options.signal }).catch(
          () => undefined,
        );
        current = undefined;
      }
    }
  }

  async verify(
    proofs: ProofSet,
    options: {
      readonly atMs?: number;
      readonly genesis?: Json;
      readonly epochs?: readonly EpochDocument[] | undefined;
    } = {},
  ): Promise<readonly ProofVerdict[]> {
    const law =
      options.genesis === undefined
        ? await this.#lawOf(proofs)
        : await this.#laws.ofProofs(proofs, options.genesis, options.epochs);
    return judge(proofs, {
      trust: this.#lent.trust,
      ...law,
      atMs: options.atMs ?? this.#lent.clock.nowMs(),
    });
  }

  /** What this home judges itself holds by its own signature; everything else by those of the committee. */
  async #lawOf(proofs: ProofSet): Promise<Law> {
    const { court, document, ledger } = this.#member;
    const kind = operationKind.safeParse((proofs as Partial<ProofSet> | null)?.challenge?.operation?.kind);
    if (kind.success && this.#isJudgedHere(kind.data)) return court.law;
    return this.#laws.ofProofs(proofs, document, ledger.epochDocuments());
  }

  async admit(proofs: ProofSet, options: CallOptions = {}): Promise<Admission> {
    // Whoever made them brings them at once.
    await laterTurn();
    const set = decodeProofSet(proofs);
    if (set.challenge.networkId !== this.#member.networkId) {
      throw new HyperMeshError('network-mismatch', 'The challenge was issued in another network.', {
        hint: 'Run the command again with the home that belongs to the network.',
      });
    }
    return this.#judgeOf(set.challenge.operation.kind).admit(set, options);
  }

  async verifyEndorsement(
    endorsement: Endorsement,
    options: {
      readonly genesis: Json;
      readonly anchor: TrustAnchor;
      readonly epochs?: readonly EpochDocument[] | undefined;
    },
  ): Promise<void> {
    await checkEndorsement(this.#laws, endorsement, options);
    // Of this network, what members see is compared: two certificates that contradict each other show who voted twice.
    if (endorsement.networkId === this.#member.networkId) this.#member.votes.record(endorsement);
  }

  async work(context: Digest, hexDigits: number, options?: CallOptions): Promise<WorkProof> {
    const { work } = await this.#prover.effort(context, { work: { hexDigits }, time: null }, options);
    return work!;
  }

  gainAccess(
    ...[node, use, packages, ask, options]: Parameters<NKrypt['gainAccess']>
  ): ReturnType<NKrypt['gainAccess']> {
    const { identity, networkId, genesis, space, standing } = this.#member;
    return gainAccess(
      { prover: this.#prover, space, standing, ask },
      { identity, networkId, genesis, node, use, packages },
      options,
    );
  }

  /**
   * Whom an operation is brought to. Who publishes asks the committee; what a home serves to itself it judges itself, unless tokens are asked for, of
   * which only the committee knows.
   */
  #judgeOf(kind: OperationKind): Quorum {
    const { network, court } = this.#member;
    return this.#isJudgedHere(kind) ? court.quorum : network;
  }

  #isJudgedHere(kind: OperationKind): boolean {
    return (kind === 'install' || kind === 'execute') && this.#member.genesis.requirements[kind].stake === null;
  }

  get #member(): Membership {
    return this.#lent.member();
  }
}

function operationOf(kind: unknown): OperationKind {
  const parsed = operationKind.safeParse(kind);
  if (!parsed.success)
    throw new HyperMeshError('usage', `Expected ${operationKind.options.join(', ')} as the operation.`);
  return parsed.data;
}

/** `scope/name` of `scope/name@version`. */
function nameOf(ref: string): string {
  return ref.split('@')[0]!;
}
