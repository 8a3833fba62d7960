import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { ApproveOptions, ProposalInfo } from '../../capabilities/membership.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { Attestation } from '../../wire/attestation.ts';
import {
  decodeOrder,
  ENTRY_LIMITS,
  encodeEntry,
  HANDOVER_TYPE,
  type HandoverStatement,
  type SelfSigned,
} from '../../wire/entry.ts';
import {
  byKey,
  decodeEpochExchange,
  EPOCH_TYPE,
  type EpochExchange,
  type EpochProposal,
  epochDigest,
  type ProposedEpoch,
  type Seat,
} from '../../wire/epoch.ts';
import { quorumOf } from '../../wire/genesis.ts';
import { cut } from './cut.ts';
import type { Ledger } from './ledger/ledger.ts';
import { heard, PATIENCE_MS } from './order/heard.ts';
import type { Store } from './store.ts';

/** What others propose at the same time: who proposes more is refused. */
const PROPOSALS_MAX = 16;

export interface EpochsLent {
  readonly store: Store;
  readonly ledger: Ledger;
  readonly trust: Pick<Trust, 'attest' | 'attested'>;
  /** Puts an entry into the order and waits for what becomes of it. */
  submit(entry: Uint8Array, options?: CallOptions): Promise<void>;
  /** The vote book of this validator. */
  readonly votes: {
    /** Durable when it returns. */
    close(epoch: number): void;
    votedIn(epoch: number): readonly SelfSigned[];
  };
  /** Tells the validator with that key id what this one knows, and learns what it knows. */
  exchange(validator: string, known: Json): Promise<unknown>;
}

/**
 * How one committee follows another, on the side of a validator: proposals and approvals go from validator to validator until a quorum approved; then the
 * order has it, every validator stops voting and hands over what it voted for. All of it survives a crash at any point, and may be repeated.
 */
export class Epochs {
  readonly #lent: EpochsLent;
  readonly #networkId: Digest;
  readonly #self: string;
  readonly #patienceMs: number;
  #handing: Promise<void> | undefined;

  /** `self`: key id of this home's validator. `patienceMs`: how long others are waited for. */
  constructor(
    lent: EpochsLent,
    options: { readonly networkId: Digest; readonly self: string; readonly patienceMs?: number },
  ) {
    this.#lent = lent;
    this.#networkId = options.networkId;
    this.#self = options.self;
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS;
  }

  /** Proposals for the next epoch, by digest. */
  proposals(): readonly ProposalInfo[] {
    const needed = quorumOf(this.#lent.ledger.committee().validators.length);
    return this.#known().map(({ proposal, approvals }) => ({
      ...{ digest: epochDigest(proposal), epoch: proposal.epoch, validators: proposal.validators, needed },
      approvedBy: approvals.map(({ validator }) => validator),
    }));
  }

  /**
   * Proposes, and approves, a committee of these validators. With a quorum of approvals it is in the order when it returns. Safe to repeat.
   * Errors: `not-permitted`, `epoch-invalid` (also when this validator approved another one, unless `instead`), and those of the order.
   */
  async propose(validators: readonly Seat[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    const { epoch, digest } = this.#lent.ledger.committee();
    const proposal: EpochProposal = {
      ...{ formatVersion: 1, networkId: this.#networkId, epoch: epoch + 1 },
      ...{ validators: byKey(validators), previous: digest },
    };
    return this.#approve(proposal, options);
  }

  /** Approves a proposal; the only one when none is named. Errors: `usage`, and those of {@link propose}. */
  async approve(digest?: Digest, options: ApproveOptions = {}): Promise<ProposalInfo> {
    await this.#exchangeAll();
    const known = this.#known();
    const [named] = digest === undefined ? known : known.filter(({ proposal }) => epochDigest(proposal) === digest);
    if (named === undefined || (digest === undefined && known.length > 1)) {
      const what = known.length === 0 ? 'Nothing is proposed.' : 'Name the proposal that is approved.';
      throw new HyperMeshError('usage', what, { hint: 'See them: hypermesh network validators' });
    }
    return this.#approve(named.proposal, options);
  }

  /** Looks for proposals and approvals of the others. */
  async refresh(): Promise<void> {
    await this.#exchangeAll();
    await this.#submitIfApproved({});
  }

  /** What another validator knows; answers with what this one knows. `publisher`: as the channel proved it. Errors: `not-permitted`, `epoch-invalid`. */
  async answer(publisher: string, body: unknown): Promise<EpochExchange> {
    const { validators } = this.#lent.ledger.committee();
    if (!validators.some(({ account }) => account === publisher)) {
      throw new HyperMeshError('not-permitted', 'Only the validators of the present committee say who follows them.');
    }
    await this.#learn(decodeEpochExchange(body));
    // Whoever knows enough approvals brings them; the others find the epoch ended.
    void this.#submitIfApproved({}).catch(() => undefined);
    return { proposals: this.#known() };
  }

  /**
   * After an epoch ended: stops voting in it, and hands over the orders of what this validator voted for and the order does not have as certified.
   * Safe to repeat; does nothing while there is nothing to do.
   */
  handOver(options: CallOptions = {}): Promise<void> {
    this.#handing ??= this.#handOver(options).finally(() => {
      this.#handing = undefined;
    });
    return this.#handing;
  }

  async #handOver(options: CallOptions): Promise<void> {
    const { ledger, votes } = this.#lent;
    const { epoch, isVoting } = ledger.present();
    const { digest, validators } = ledger.committee();
    const sits = validators.some(({ key }) => key === this.#self);
    if (isVoting || !sits || ledger.handedOver().includes(this.#self)) return;
    votes.close(epoch);
    const isDue = () => ledger.present().epoch === epoch && !ledger.handedOver().includes(this.#self);
    while (isDue()) {
      const open = votes.votedIn(epoch).filter((order) => !ledger.isRecorded(decodeOrder(order).operation));
      await this.#handOverAll(digest, open, options);
    }
  }

  /**
   * All of it, after the parts that the order has. Those are of an earlier attempt, whose list was cut elsewhere: what is certified meanwhile makes the next one shorter.
   * So an attempt that meets a part of another one ends, and the next one begins with everything: the last part is never there without those before it.
   */
  async #handOverAll(committee: Digest, orders: readonly SelfSigned[], options: CallOptions): Promise<void> {
    const first = this.#lent.ledger.partsOf(this.#self);
    // At least one part, which says that there is nothing.
    const parts = orders.length === 0 ? [[]] : cut(orders, ENTRY_LIMITS.ordersMax);
    for (const [at, some] of parts.entries()) {
      const statement: HandoverStatement = {
        ...{ networkId: this.#networkId, committee, validator: this.#self },
        ...{ part: first + at, isLast: at === parts.length - 1, orders: some },
      };
      const attestation = await this.#lent.trust.attest(HANDOVER_TYPE, statement);
      if (!(await this.#submit({ kind: 'handover', statement, attestation }, options))) return;
    }
  }

  async #approve(proposal: EpochProposal, options: ApproveOptions): Promise<ProposalInfo> {
    const { ledger, trust } = this.#lent;
    const { epoch, isVoting } = ledger.present();
    if (!ledger.committee().validators.some(({ key }) => key === this.#self)) {
      throw new HyperMeshError('not-permitted', 'Only the validators of the present committee say who follows them.');
    }
    if (!isVoting) {
      throw new HyperMeshError('epoch-invalid', `Epoch ${epoch} has its successor already, which takes over.`, {
        hint: 'Try again when it has: hypermesh network epoch',
      });
    }
    const objection = ledger.objectionTo(proposal.validators);
    if (objection !== undefined) throw new HyperMeshError('epoch-invalid', objection);
    const digest = epochDigest(proposal);
    const other = this.#known().find(
      (one) => epochDigest(one.proposal) !== digest && one.approvals.some(({ validator }) => validator === this.#self),
    );
    // Two quorums share an honest validator: as long as it approves one, there is one next committee.
    if (other !== undefined && options.instead !== true) {
      const { length } = other.proposal.validators;
      throw new HyperMeshError(
        'epoch-invalid',
        `This validator approved another change for epoch ${proposal.epoch}, to ${length} validators: ${epochDigest(other.proposal)}.`,
        {
          hint: 'Of two that a quorum approved there would be two committees. Let the others approve that one and change it then; only when too few ever will (docs/operate.md says how to tell): --instead.',
        },
      );
    }
    this.#put({ proposal, approvals: [await trust.attest(EPOCH_TYPE, proposal)] });
    await this.#exchangeAll();
    await this.#submitIfApproved(options);
    const status = this.proposals().find((one) => one.digest === digest);
    const { validators } = proposal;
    const needed = quorumOf(ledger.committee().validators.length);
    // Gone from the list: it is in the order.
    return status ?? { digest, epoch: proposal.epoch, validators, approvedBy: [], needed };
  }

  async #submitIfApproved(options: CallOptions): Promise<void> {
    const { ledger } = this.#lent;
    if (!ledger.present().isVoting) return;
    const needed = quorumOf(ledger.committee().validators.length);
    const approved = this.#known().find(({ approvals }) => approvals.length >= needed);
    if (approved === undefined) return;
    const document = { ...approved.proposal, approvals: approved.approvals };
    await this.#submit({ kind: 'epoch', document }, options);
  }

  /** Resolves to whether this entry was applied; false: another one was there first. */
  async #submit(
    entry: Record<string, unknown> & { kind: 'epoch' | 'handover' },
    options: CallOptions,
  ): Promise<boolean> {
    // The cast: what is added is what every entry has.
    const whole = { formatVersion: 1, networkId: this.#networkId, ...entry } as unknown as Parameters<
      typeof encodeEntry
    >[0];
    try {
      await this.#lent.submit(encodeEntry(whole), options);
      return true;
    } catch (error) {
      // Another one brought the same, with other approvals or earlier.
      if (!isCoded(error, 'epoch-invalid', 'proof-replayed') || this.#isDone(entry.kind)) throw error;
      return false;
    }
  }

  #isDone(kind: 'epoch' | 'handover'): boolean {
    return kind === 'epoch' && this.#lent.ledger.present().isVoting;
  }

  async #exchangeAll(): Promise<void> {
    const others = this.#lent.ledger.committee().validators.filter(({ key }) => key !== this.#self);
    const known: EpochExchange = { proposals: this.#known() };
    const told = others.map(async ({ key }) =>
      this.#learn(decodeEpochExchange(await this.#lent.exchange(key, known as unknown as Json))),
    );
    // Who is away is told when it asks.
    await heard(told, { enough: others.length, patienceMs: this.#patienceMs });
  }

  /** Keeps what belongs to the present epoch and is signed by who says so. */
  async #learn({ proposals }: EpochExchange): Promise<void> {
    for (const { proposal, approvals } of proposals) {
      const { epoch, digest, validators } = this.#lent.ledger.committee();
      if (proposal.networkId !== this.#networkId || proposal.epoch !== epoch + 1 || proposal.previous !== digest)
        continue;
      const genuine: Attestation[] = [];
      for (const approval of approvals) {
        const seat = validators.find(({ key }) => key === approval.validator);
        if (seat !== undefined && (await this.#lent.trust.attested(approval, EPOCH_TYPE, proposal, seat)))
          genuine.push(approval);
      }
      if (genuine.length > 0) this.#put({ proposal, approvals: genuine });
    }
  }

  /** Those that follow the present committee; others are dropped. */
  #known(): readonly ProposedEpoch[] {
    const { epoch, digest } = this.#lent.ledger.committee();
    const rows = this.#lent.store.raw
      .prepare('SELECT digest, proposal, validator, attestation FROM approvals ORDER BY digest, validator')
      .all() as { digest: Digest; proposal: string; validator: string; attestation: string }[];
    const known = new Map<Digest, { proposal: EpochProposal; approvals: Attestation[] }>();
    for (const row of rows) {
      const one = known.get(row.digest) ?? { proposal: JSON.parse(row.proposal) as EpochProposal, approvals: [] };
      one.approvals.push(JSON.parse(row.attestation) as Attestation);
      if (one.proposal.epoch === epoch + 1 && one.proposal.previous === digest) known.set(row.digest, one);
    }
    return [...known.values()];
  }

  #put({ proposal, approvals }: ProposedEpoch): void {
    const { epoch, digest: previous } = this.#lent.ledger.committee();
    const digest = epochDigest(proposal);
    this.#lent.store.transact((raw) => {
      raw
        .prepare(
          "DELETE FROM approvals WHERE json_extract(proposal, '$.epoch') <> ? OR json_extract(proposal, '$.previous') <> ?",
        )
        .run(epoch + 1, previous);
      const { others } = raw
        .prepare('SELECT count(DISTINCT digest) AS others FROM approvals WHERE digest <> ?')
        .get(digest) as { others: number };
      if (others >= PROPOSALS_MAX) return;
      const put = raw.prepare(
        'INSERT OR IGNORE INTO approvals (digest, proposal, validator, attestation) VALUES (?, ?, ?, ?)',
      );
      for (const approval of approvals) {
        put.run(digest, canonicalJson(proposal), approval.validator, canonicalJson(approval));
      }
    });
  }
}
