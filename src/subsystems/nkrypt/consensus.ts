import { mkdirSync } from 'node:fs';
import { base64 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type {
  Admission,
  PresentedAccess,
  ProofVerdict,
  SpaceStatus,
  StakeAccount,
} from '../../capabilities/consensus.ts';
import type { ApproveOptions, ProposalInfo, SeatAsk, SequencerInfo } from '../../capabilities/membership.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { AccessChallenge, Use } from '../../wire/access.ts';
import type { Attestation, ValidatorKeys } from '../../wire/attestation.ts';
import { type Action, type SequencerPlace, SPACE_LOST_TYPE } from '../../wire/entry.ts';
import { decodeGenesis } from '../../wire/genesis.ts';
import type { OrderMethod } from '../../wire/order.ts';
import type { Challenge, Endorsement, OperationKind, ProofSet, Requirements, WorkProof } from '../../wire/proof.ts';
import { auditContext, type SpaceOpening } from '../../wire/space-audit.ts';
import { isApproved } from './attest.ts';
import { checkedCertificate } from './certificate.ts';
import type { DeskMethod } from './desk.ts';
import { enter, type Lent, type LentTrust, type Membership } from './entering.ts';
import { type Law, LawBook } from './epoch-law.ts';
import type { Epochs } from './epochs.ts';
import type { NKrypt, NKryptOptions } from './nkrypt.ts';
import { Operations } from './operations.ts';
import type { MoveOptions, OrderLent } from './order/order.ts';
import { nobodyToAsk, type OrderedHome } from './ordered.ts';
import { accountId, tokenAmount } from './own-account.ts';
import { ensureGenesis, foundOwn, replaceGenesis } from './own-genesis.ts';
import { auditPositions } from './registration.ts';
import { Rounds } from './rounds.ts';
import { dropStaged, stateSection } from './section.ts';
import type { AuditsLent } from './space-audits.ts';
import { LABEL_BYTES } from './space-graph.ts';
import type { LossLent } from './space-loss.ts';
import { openStore, type Store } from './store.ts';
import { Turning } from './turning.ts';
import type { Accusation } from './witness.ts';

/**
 * Opens the folder; in a fresh one it founds a network by the given terms, which are never read again.
 * Starts to make the space commitment in the background. Errors: `config-invalid`, `key-locked`, `home-too-new`, `storage-*`.
 */
export async function openConsensus(lent: Lent, options: NKryptOptions): Promise<NKrypt> {
  try {
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
    dropStaged(options.directory);
  } catch (error) {
    throw storageError(error, `opening ${options.directory}`);
  }
  const store = openStore(options.directory);
  try {
    await ensureGenesis(store, lent.trust, options);
    return await Validator.open(lent, store, options);
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
}

class Validator implements NKrypt {
  readonly section: StateSection;
  readonly #trust: LentTrust;
  readonly #laws: LawBook;
  readonly #store: Store;
  readonly #options: NKryptOptions;
  readonly #entering: () => Promise<Membership>;
  readonly #operations: Operations;
  readonly #turning: Turning;
  readonly #rounds: Rounds;
  #member: Membership;
  #ask: SeatAsk | undefined;
  #watching: Omit<LossLent, 'trust'> | undefined;
  #meeting: OrderLent['ask'] | undefined;

  static async open(lent: Lent, store: Store, options: NKryptOptions): Promise<Validator> {
    let validator: Validator | undefined;
    const ask: SeatAsk = (...question) => validator?.askSeat(...question) ?? Promise.reject(notConnected());
    const audited: Pick<AuditsLent, 'ask' | 'lost'> = {
      ask: (...question) => validator?.askNode(...question) ?? Promise.reject(notConnected()),
      lost: async (identity, root) => validator?.lost(identity, root),
    };
    const meeting: OrderLent['ask'] = (...question) => validator?.askValidator(...question) ?? nobodyToAsk();
    const turned = () => validator?.turn();
    const entering = () => enter(lent, store, options, ask, audited, meeting, turned);
    validator = new Validator(lent.trust, store, options, await entering(), entering);
    // What a crash interrupted.
    validator.turn();
    return validator;
  }

  private constructor(
    trust: LentTrust,
    store: Store,
    options: NKryptOptions,
    member: Membership,
    entering: () => Promise<Membership>,
  ) {
    const { clock } = options;
    this.#trust = trust;
    this.#laws = new LawBook(trust);
    this.#store = store;
    this.#options = options;
    this.#member = member;
    this.#entering = entering;
    const lent = { trust, clock, store, laws: this.#laws, member: () => this.#member };
    this.#operations = new Operations(lent, options);
    this.#turning = new Turning({ ...lent, enterAnew: () => this.#switch() });
    this.#rounds = new Rounds({ ...lent, watching: () => this.#watching }, { roundMs: options.auditRoundMs });
    this.section = stateSection(store, options.directory, {
      approved: (genesis) => isApproved(genesis, trust),
      replaced: () => this.#switch(),
    });
  }

  /** Ends what the membership until now does, changes it, and begins with the one that the store says then. */
  async #switch(change?: () => Promise<void>): Promise<void> {
    await this.#member.audits?.[Symbol.asyncDispose]();
    await this.#member.order?.[Symbol.asyncDispose]();
    await this.#member.space[Symbol.asyncDispose]();
    await change?.();
    this.#member = await this.#entering();
  }

  get isCommittee(): boolean {
    return this.#member.seat !== null;
  }

  async desk(method: DeskMethod, identity: string, body: unknown, options?: CallOptions): Promise<Json> {
    const { seat } = this.#member;
    if (seat !== null) return seat.desk.answer(method, identity, body, options);
    throw new HyperMeshError('committee-only', 'This home does not sit in the committee of its network.');
  }

  async committee(): ReturnType<NKrypt['committee']> {
    const { genesis, seat, ledger, committee } = this.#member;
    const { epoch, digest, validators } = committee;
    return {
      ...{ epoch, digest },
      // Epoch documents carry no time: when a later one began is a matter of the order.
      sinceMs: ledger.epochDocuments().length === 0 ? genesis.createdAtMs : null,
      documents: 1 + ledger.epochDocuments().length,
      validators: validators.map(({ key, account }) => {
        return { key, account, locked: seat !== null ? ledger.account(account).locked : null };
      }),
    };
  }

  accusations(): readonly Accusation[] {
    return this.#member.votes.witness.all();
  }

  async certified(value: unknown): Promise<Endorsement> {
    const { genesis, networkId, committee, ledger } = this.#member;
    const law: Law = { genesis, networkId, committee, committeeOf: (digest) => ledger.committeeOf(digest) };
    return checkedCertificate(this.#trust, value, law);
  }

  async seats(): Promise<readonly ValidatorKeys[]> {
    return this.#member.committee.validators;
  }

  async proposals(): Promise<readonly ProposalInfo[]> {
    const epochs = this.#ownEpochs();
    await epochs.refresh();
    return epochs.proposals();
  }

  async proposeCommittee(validators: readonly ValidatorKeys[], options?: ApproveOptions): Promise<ProposalInfo> {
    return this.#ownEpochs().propose(validators, options);
  }

  async approveCommittee(digest: Digest | undefined, options?: ApproveOptions): Promise<ProposalInfo> {
    return this.#ownEpochs().approve(digest, options);
  }

  async answerEpochs(publisher: string, body: unknown): Promise<Json> {
    return (await this.#ownEpochs().answer(publisher, body)) as unknown as Json;
  }

  learnEpochs(documents: readonly unknown[]): Promise<void> {
    return this.#turning.learn(documents);
  }

  get epochRecords(): NKrypt['epochRecords'] {
    return this.#turning.records;
  }

  watchEpochs(changed: () => void): void {
    this.#turning.watch(changed);
  }

  /** The order has ended an epoch, or opened the next one. */
  turn(): void {
    this.#turning.soon();
  }

  #ownEpochs(): Epochs {
    const { epochs } = this.#member;
    if (epochs !== undefined) return epochs;
    throw seatless();
  }

  async grant(id: string, to: string, amount: number): Promise<void> {
    const { account, identity } = this.#member;
    if (to === identity) return;
    try {
      await account.instruct({ kind: 'grant', to, amount, id });
    } catch (error) {
      // They were spent since the invite was made: who joined is a member all the same.
      if (!isCoded(error, 'stake-insufficient')) throw error;
      await account.instruct({ kind: 'grant', to, amount: 0, id });
    }
  }

  async order(method: OrderMethod, publisher: string, body: unknown, options?: CallOptions): Promise<Json> {
    return this.#ownOrder().order.answer(method, publisher, body, options);
  }

  async sequencer(): Promise<SequencerInfo> {
    return this.#ownOrder().order.status();
  }

  async moveSequencer(to: SequencerPlace, options?: MoveOptions): Promise<SequencerInfo> {
    return this.#ownOrder().order.move(to, options);
  }

  #ownOrder(): OrderedHome {
    const { order } = this.#member;
    if (order !== undefined) return order;
    throw seatless();
  }

  meet(ask: OrderLent['ask']): void {
    this.#meeting = ask;
  }

  /** For `OrderedHome`. */
  askValidator(...question: Parameters<OrderLent['ask']>): Promise<unknown> {
    return this.#meeting?.(...question) ?? nobodyToAsk();
  }

  follow(ask: SeatAsk | undefined): void {
    this.#ask = ask;
    // A commitment that was made while nobody could be asked is registered now.
    if (ask !== undefined) this.#member.space.ready().catch(() => undefined);
  }

  /** For `Quorum`. */
  askSeat(...question: Parameters<SeatAsk>): Promise<unknown> {
    return this.#ask?.(...question) ?? Promise.reject(notConnected());
  }

  watchSpace(lent: Omit<LossLent, 'trust'>): void {
    this.#watching = lent;
  }

  seen(identity: string, node: string): void {
    this.#member.audits?.seen(identity, node);
  }

  /** For `SpaceAudits`. */
  askNode(...question: Parameters<AuditsLent['ask']>): Promise<Uint8Array> {
    return this.#watching?.ask(...question) ?? Promise.reject(notConnected());
  }

  async openForAudit(publisher: string, nonce: string): Promise<SpaceOpening> {
    const { genesis, networkId, identity, space } = this.#member;
    this.#checkValidator(publisher);
    const asked = genesis.requirements.publish.space ?? genesis.requirements.default.space;
    try {
      const { root } = space;
      if (asked === null || root === undefined) {
        const { state } = space.status();
        throw new HyperMeshError('space-unavailable', `The space commitment of this home is ${state}.`);
      }
      const context = auditContext(networkId, identity, nonce);
      const n = genesis.space.bytes / LABEL_BYTES;
      const { labels, path } = await space.open(auditPositions(nonce, context, root, n, asked.openings));
      return { root, labels: base64(labels), path: base64(path) };
    } catch (error) {
      // Damage is mended from here on, without waiting for who needs the commitment next.
      space.ready().catch(() => undefined);
      throw error;
    }
  }

  async lossSeen(publisher: string, account: string, root: string): Promise<Attestation | null> {
    this.#checkValidator(publisher);
    const { seat, audits, networkId, committee } = this.#member;
    if (seat === null) throw new HyperMeshError('committee-only', 'This home does not sit in the committee.');
    if (audits?.isLost(account, root) !== true) return null;
    return this.#trust.attest(SPACE_LOST_TYPE, { networkId, committee: committee.digest, account, root });
  }

  /** For `SpaceAudits`. */
  lost(identity: string, root: string): Promise<void> {
    return this.#rounds.lost(identity, root);
  }

  /** Audits answer whoever sits in the committee: the channel proved his publisher, the genesis names it. */
  #checkValidator(publisher: string): void {
    if (this.#member.committee.validators.some(({ account }) => account === publisher)) return;
    throw new HyperMeshError('not-permitted', 'Only the validators of the network ask that.');
  }

  async adopt(document: Json): Promise<void> {
    const { genesis, networkId } = decodeGenesis(document);
    if (networkId === this.#member.networkId) return;
    if (!(await isApproved(genesis, this.#trust))) throw notApproved();
    await this.#switch(async () =>
      this.#store.transact((raw) => {
        replaceGenesis(raw, genesis);
        raw.prepare('INSERT INTO joined (id) VALUES (1)').run();
      }),
    );
  }

  async abandon(): Promise<void> {
    if (this.#member.seat !== null) return;
    await this.#switch(() => foundOwn(this.#store, this.#trust, this.#options));
  }

  requirements(kind: OperationKind): Promise<Requirements> {
    return this.#operations.requirements(kind);
  }

  challenge(kind: OperationKind, subject: Digest, ref: string): Promise<Challenge> {
    return this.#operations.challenge(kind, subject, ref);
  }

  prove(challenge: Challenge, options?: CallOptions): Promise<ProofSet> {
    return this.#operations.prove(challenge, options);
  }

  verify(...asked: Parameters<NKrypt['verify']>): Promise<readonly ProofVerdict[]> {
    return this.#operations.verify(...asked);
  }

  admit(proofs: ProofSet, options?: CallOptions): Promise<Admission> {
    return this.#operations.admit(proofs, options);
  }

  verifyEndorsement(...asked: Parameters<NKrypt['verifyEndorsement']>): Promise<void> {
    return this.#operations.verifyEndorsement(...asked);
  }

  work(context: Digest, hexDigits: number, options?: CallOptions): Promise<WorkProof> {
    return this.#operations.work(context, hexDigits, options);
  }

  gainAccess(...asked: Parameters<NKrypt['gainAccess']>): ReturnType<NKrypt['gainAccess']> {
    return this.#operations.gainAccess(...asked);
  }

  async genesis(): ReturnType<NKrypt['genesis']> {
    const { networkId, document, ledger } = this.#member;
    return { networkId, document, epochs: ledger.epochDocuments() };
  }

  async stake(): Promise<StakeAccount> {
    return this.#member.account.read();
  }

  async lockStake(amount: number): Promise<StakeAccount> {
    return this.#instruct({ kind: 'lock', amount: tokenAmount(amount) });
  }

  async unlockStake(amount: number): Promise<StakeAccount> {
    return this.#instruct({ kind: 'unlock', amount: tokenAmount(amount) });
  }

  async transferStake(to: string, amount: number): Promise<StakeAccount> {
    return this.#instruct({ kind: 'transfer', amount: tokenAmount(amount), to: accountId(to) });
  }

  async #instruct(action: Action): Promise<StakeAccount> {
    const { account } = this.#member;
    await account.instruct(action);
    return account.read();
  }

  async space(): Promise<SpaceStatus> {
    return this.#member.space.status();
  }

  async commitSpace(options: CallOptions = {}): Promise<SpaceStatus> {
    const { space } = this.#member;
    await space.ready(options);
    return space.status();
  }

  hasAccess(identity: string, packageId: Digest): boolean {
    return this.#member.access.canAccess(identity, packageId);
  }

  async canAccessPackage(identity: string, packageId: Digest): Promise<boolean> {
    return this.hasAccess(identity, packageId);
  }

  async accessChallenge(identity: string, use: Use, packages: readonly Digest[]): Promise<AccessChallenge | null> {
    return this.#member.access.challenge(identity, use, packages);
  }

  async accessOpened(identity: string, nonce: string, opening: Digest): Promise<void> {
    this.#member.access.opened(identity, nonce, opening);
  }

  async validateAccessProof(
    identity: string,
    { proof, standing }: PresentedAccess,
  ): Promise<{ readonly forMs: number }> {
    return { forMs: await this.#member.access.validate(identity, proof, standing) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#turning[Symbol.dispose]();
    this.#rounds[Symbol.dispose]();
    await this.#member.audits?.[Symbol.asyncDispose]();
    await this.#operations[Symbol.asyncDispose]();
    await this.#member.space[Symbol.asyncDispose]();
    await this.#member.order?.[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }
}

function notApproved(): HyperMeshError {
  return new HyperMeshError('network-mismatch', 'The validators that the genesis document names did not sign it.', {
    hint: 'The document was altered, or the network was founded by an earlier version.',
  });
}

function seatless(): HyperMeshError {
  return new HyperMeshError('committee-only', 'This home does not sit in the committee of its network.', {
    hint: 'Run the command on the machine of a validator: hypermesh network validators',
  });
}

function notConnected(): HyperMeshError {
  return new HyperMeshError('committee-unreachable', 'This home is not connected to its network.', {
    hint: 'Start the node with `hypermesh up`, and try again when it has found its network.',
  });
}
