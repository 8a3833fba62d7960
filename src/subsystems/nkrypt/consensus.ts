import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { base64, equal, hex, utf8 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, isDigest } from '../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import { laterTurn } from '../../base/turn.ts';
import type {
  Admission,
  Consensus,
  PresentedAccess,
  ProofVerdict,
  SpaceStatus,
  StakeAccount,
} from '../../capabilities/consensus.ts';
import type { ApproveOptions, ProposalInfo, SeatAsk, SequencerInfo } from '../../capabilities/membership.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { AccessChallenge, Use } from '../../wire/access.ts';
import type { Attestation, SignatureCheck, ValidatorKeys } from '../../wire/attestation.ts';
import {
  type Action,
  claimable,
  ENTRY_LIMITS,
  encodeEntry,
  type SequencerPlace,
  SPACE_LOST_TYPE,
} from '../../wire/entry.ts';
import { decodeEpochDocument, type EpochDocument, readEpochDocument } from '../../wire/epoch.ts';
import { decodeGenesis, type Genesis, genesisDocument } from '../../wire/genesis.ts';
import type { OrderMethod } from '../../wire/order.ts';
import {
  admittedAtMs,
  type Challenge,
  challenge as challengeSchema,
  decodeProofSet,
  type Endorsement,
  type Operation,
  type OperationKind,
  operationKind,
  type ProofSet,
  type Requirements,
  type WorkProof,
} from '../../wire/proof.ts';
import { firstIssue, type TrustAnchor } from '../../wire/signature.ts';
import { auditContext, type SpaceOpening } from '../../wire/space-audit.ts';
import { type AccessAsk, gainAccess } from './access.ts';
import { AccessCourt } from './access-court.ts';
import { isApproved } from './attest.ts';
import { checkEndorsement, checkedCertificate } from './certificate.ts';
import { Committee, type Ruled } from './committee.ts';
import { cut } from './cut.ts';
import { Desk, type DeskMethod } from './desk.ts';
import { type Law, LawBook, successor } from './epoch-law.ts';
import { Epochs } from './epochs.ts';
import { foundNetwork, type NetworkTerms } from './found.ts';
import { judge } from './judge.ts';
import { termsOf } from './ledger/law.ts';
import { firstCommittee, foundLedger, Ledger } from './ledger/ledger.ts';
import type { MoveOptions, OrderLent, OrderOptions } from './order/order.ts';
import { nobodyToAsk, OrderedHome } from './ordered.ts';
import { OwnOrders } from './orders.ts';
import { accountId, type LedgerOffice, leavesOpen, OwnAccount, tokenAmount } from './own-account.ts';
import { Prover } from './prover.ts';
import { type OwnSeat, Quorum } from './quorum.ts';
import { auditPositions } from './registration.ts';
import { RemoteOffice } from './remote-office.ts';
import { dropStaged, stateSection } from './section.ts';
import { SpaceCommitment } from './space.ts';
import { type AuditsLent, SpaceAudits } from './space-audits.ts';
import { LABEL_BYTES, labelSeed } from './space-graph.ts';
import { type LossLent, lossEntry } from './space-loss.ts';
import { OwnStanding, Standings } from './standing.ts';
import { openStore, type Store } from './store.ts';
import { VoteBook } from './votes.ts';
import type { Accusation } from './witness.ts';

/** After a handover that did not get through. */
const TURN_AGAIN_MS = 1_000;

type LentTrust = Pick<
  Trust,
  | 'identity'
  | 'sign'
  | 'anchor'
  | 'certificates'
  | 'attest'
  | 'attestFast'
  | 'attested'
  | 'signedBy'
  | 'publicKeys'
  | 'validatorKeys'
>;

interface Lent {
  readonly trust: LentTrust;
  /** Judges signatures at once: what the order says must not wait between its entries. */
  readonly check: SignatureCheck;
}

/** Before another anchor is asked for, growing. */
const ANCHOR_PAUSE_MS = 25;

/** How often a validator looks whether an audit is due, and what has to be brought into the order. */
const ROUND_MS = 10_000;
/** Certificates that a validator brings into the order in one round. */
const SETTLED_AT_ONCE_MAX = 1_024;
/** How long a validator waits for a part of the order that the others have. */
const SETTLE_MS = 3_000;

export interface NKryptOptions extends NetworkTerms {
  /** Holds `nkrypt.db` and the files of the space commitment. */
  readonly directory: string;
  readonly clock: Clock;
  /** Worker threads for the work proof. Default: one for each processor but one. */
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

/** Commit point: genesis and its accounts appear together. A crash before it founds another network at the next start. */
async function ensureGenesis(store: Store, trust: LentTrust, options: NKryptOptions): Promise<void> {
  if (store.raw.prepare('SELECT 1 FROM genesis').get() !== undefined) return;
  await found(store, trust, options);
}

async function found(store: Store, trust: LentTrust, options: NKryptOptions): Promise<void> {
  const genesis = await foundNetwork(trust, options.clock, options);
  store.transact((raw) => {
    forget(raw);
    raw.prepare('INSERT INTO genesis (id, document) VALUES (1, ?)').run(canonicalJson(genesis));
  });
}

/** Everything that is known of a network: it means nothing in another one. */
function forget(raw: Store['raw']): void {
  for (const table of [
    'genesis',
    'identities',
    'orders',
    'votes',
    'floors',
    'closed',
    'certificates',
    'ballots',
    'accusations',
    'facts',
    'fact_sum',
    'epochs',
    'instructions',
    'log_entries',
    'log_certificates',
    'log_state',
    'log_snapshot',
    'log_recovery',
    'move_approvals',
    'facts_before',
    'sequenced',
    'commitments',
    'joined',
    'versions',
  ])
    raw.exec(`DELETE FROM ${table}`);
}

/** What depends on the network and identity that the store is about. */
interface Membership {
  readonly genesis: Genesis;
  readonly document: Json;
  readonly networkId: Digest;
  readonly identity: string;
  /** This home's seat in the committee of the network, and its part in the order. */
  readonly seat: OwnSeat | null;
  readonly order: OrderedHome | undefined;
  /** All that the order says; of a home without a seat only what the genesis says. */
  readonly ledger: Ledger;
  /** How the next committee follows; undefined in a home without a seat. */
  readonly epochs: Epochs | undefined;
  readonly account: OwnAccount;
  readonly office: LedgerOffice;
  readonly votes: VoteBook;
  /** The committee of the network, and this home as the court of what it serves to itself. */
  readonly network: Quorum;
  readonly court: { readonly quorum: Quorum; readonly law: Genesis };
  readonly space: SpaceCommitment;
  readonly standing: OwnStanding;
  readonly access: AccessCourt;
  /** Of other members' commitments; null in a home without a seat, and where nobody has to commit space. */
  readonly audits: SpaceAudits | null;
}

async function enter(
  { trust, check }: Lent,
  store: Store,
  options: NKryptOptions,
  ask: SeatAsk,
  audited: Pick<AuditsLent, 'ask' | 'lost'>,
  meeting: OrderLent['ask'],
  turned: () => void,
): Promise<Membership> {
  const { document } = store.raw.prepare('SELECT document FROM genesis').get() as { document: string };
  const { genesis: founded, networkId } = decodeGenesis(JSON.parse(document));
  // Also with expired certificates: a home must open to get new ones.
  const own = await trust.certificates();
  const [identity, node] = (['publisher', 'node'] as const).map(
    (role) => own.find((one) => one.role === role)!.keyId,
  ) as [string, string];
  const validator = await trust.validatorKeys();
  const { clock } = options;
  const votes = new VoteBook(store);
  const first = firstCommittee(founded, networkId);
  const ledger = new Ledger({ raw: store.raw, check }, { terms: termsOf(founded, networkId), first });
  if (ledger.isEmpty) store.transact((raw) => foundLedger(raw, founded, first));
  const sits = ledger.isSeated(validator.key);
  const { epoch, validators } = ledger.latest(sits);
  // The committee of the present epoch in the place of the first one; entered anew when the next one opens.
  const genesis: Genesis = { ...founded, committee: { epoch, validators } };
  const order = sits
    ? new OrderedHome(
        { trust, store, ledger, ask: meeting, caught: (first, second) => votes.witness.caughtHeads(first, second) },
        { clock, networkId, self: validator.key, etcd: options.etcd },
      )
    : undefined;
  const epochs =
    order === undefined
      ? undefined
      : new Epochs(
          {
            ...{ store, ledger, trust, votes },
            submit: (entry, given) => order.submit(entry, given),
            exchange: (seat, known) => ask(seat, 'network/epochs', known, { replyBytesMax: 8 * 2 ** 20 }),
          },
          { networkId, self: validator.key },
        );
  // In a transaction that may still be undone: looked at when it is over.
  ledger.onTurn = () => setImmediate(turned);
  const orders = new OwnOrders({ trust, store }, { clock, networkId, identity });
  // A court of its own judges by itself in every epoch.
  const lawWith = (law: Genesis): Law => ({
    ...{ genesis: law, networkId },
    committeeOf: (one) => (law === genesis ? ledger.committeeOf(one) : law.committee),
  });
  const seatOf = (law: Genesis, office: LedgerOffice, ruled?: Ruled): OwnSeat => {
    const isSpaceLost = (account: string, root: string) => ledger.isSpaceLost(account, root);
    // A court of its own asks no committee.
    const genuine = law === genesis ? (certificate: Endorsement) => ledger.remember(certificate) : () => undefined;
    const lent = { trust, store, votes, ledger, genuine, isSpaceLost, ruled };
    const committee = new Committee(lent, { clock, ...lawWith(law) });
    return { validator: validator.key, committee, desk: new Desk({ committee, office }) };
  };
  const quorumOf = (law: Genesis, seat: OwnSeat | null) =>
    new Quorum({ trust, votes, orders, own: seat, ask }, { clock, ...lawWith(law), identity, forgotten });
  // Who has just lost its seat goes on with the order for others, and votes and brings nothing.
  const inOffice = validators.some(({ key }) => key === validator.key) ? order : undefined;
  const seat =
    inOffice === undefined
      ? null
      : seatOf(genesis, inOffice, {
          allowed: (operation) => ledger.checkOperation(operation),
          until: (holds) => inOffice.order.until(holds, SETTLE_MS),
        });
  const network = quorumOf(genesis, seat);
  const office = inOffice ?? new RemoteOffice(network);
  const account = new OwnAccount({ trust, store, office }, { networkId, account: identity });
  const law = seat !== null && validators.length === 1 ? genesis : withCourt(genesis, validator);
  const ownCourt = seat !== null && law === genesis ? seat : seatOf(law, office);
  const court = { law, quorum: law === genesis ? network : quorumOf(law, ownCourt) };
  const registry = ownCourt.committee.registry(identity);
  const seed = labelSeed(networkId, identity);
  const { bytes, iterations, registrationOpenings } = genesis.space;
  const directory = commitmentFolder(options.directory, seed);
  const space = new SpaceCommitment(
    { registry: network.registry(registry) },
    { directory, seed, bytes, iterations, registrationOpenings, clock },
  );
  const standing = new OwnStanding((root) => network.standing(root), { directory, clock });
  const standings = new Standings(trust, { clock, genesis, networkId });
  const access = new AccessCourt(
    { standing: (...presented) => standings.check(...presented) },
    { clock, genesis, networkId, node },
  );
  function forgotten(): void {
    registry.forget();
    space.registerAgain();
  }
  const asked = genesis.requirements.publish.space ?? genesis.requirements.default.space;
  const audits =
    seat !== null && asked !== null
      ? new SpaceAudits(
          { ...audited, registered: () => seat.committee.registrations().filter((one) => one.identity !== identity) },
          { directory: options.directory, clock, terms: { networkId, bytes, ...asked } },
        )
      : null;
  // In the background: who needs it waits for it and gets the error, if there is one.
  space.ready().catch(() => undefined);
  return {
    ...{ genesis, document: genesisDocument(founded), networkId, identity, epochs },
    ...{ seat, order, ledger, account, office, votes, network, court, space, standing, access, audits },
  };
}

/** The same law with this home as the judge of what it serves to itself. */
function withCourt(genesis: Genesis, validator: ValidatorKeys): Genesis {
  const { epoch } = genesis.committee;
  return { ...genesis, committee: { epoch, validators: [validator] } };
}

/** Named by the seed, so that labels of another identity or network are never taken for ours; those are removed. */
function commitmentFolder(directory: string, seed: Uint8Array): string {
  const parent = join(directory, 'space');
  const own = hex(seed).slice(0, 32);
  try {
    mkdirSync(parent, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(parent)) {
      if (name !== own) rmSync(join(parent, name), { recursive: true, force: true });
    }
  } catch (error) {
    throw storageError(error, `opening ${parent}`);
  }
  return join(parent, own);
}

class Validator implements NKrypt {
  readonly section: StateSection;
  readonly #trust: LentTrust;
  readonly #laws: LawBook;
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #prover: Prover;
  readonly #switch: (change?: () => Promise<void>) => Promise<void>;
  readonly #found: () => Promise<void>;
  #member: Membership;
  #ask: SeatAsk | undefined;
  #watching: Omit<LossLent, 'trust'> | undefined;
  #meeting: OrderLent['ask'] | undefined;
  readonly #rounds: NodeJS.Timeout;
  readonly #roundMs: number;
  #isSettling = false;
  #turning: Promise<void> = Promise.resolve();
  #isClosed = false;
  #epochsChanged: () => void = () => undefined;
  /** The epoch, and the commitment that all of its validators know. */
  #introducedTo: string | undefined;

  static async open(lent: Lent, store: Store, options: NKryptOptions): Promise<Validator> {
    let validator: Validator | undefined;
    const ask: SeatAsk = (...question) => validator?.askSeat(...question) ?? Promise.reject(notConnected());
    const audited: Pick<AuditsLent, 'ask' | 'lost'> = {
      ask: (...question) => validator?.askNode(...question) ?? Promise.reject(notConnected()),
      lost: async (identity, root) => validator?.lost(identity, root),
    };
    const meeting: OrderLent['ask'] = (...question) => validator?.askValidator(...question) ?? nobodyToAsk();
    // What does not succeed now, because others are away, is tried again.
    const turned = () => void validator?.turned().catch(() => setTimeout(turned, TURN_AGAIN_MS).unref());
    const entering = () => enter(lent, store, options, ask, audited, meeting, turned);
    validator = new Validator(lent.trust, store, options, await entering(), entering);
    // What a crash interrupted.
    turned();
    return validator;
  }

  private constructor(
    trust: LentTrust,
    store: Store,
    options: NKryptOptions,
    member: Membership,
    entering: () => Promise<Membership>,
  ) {
    this.#trust = trust;
    this.#laws = new LawBook(trust);
    this.#store = store;
    this.#clock = options.clock;
    this.#member = member;
    this.#found = () => found(store, trust, options);
    this.#switch = async (change) => {
      await this.#member.audits?.[Symbol.asyncDispose]();
      await this.#member.order?.[Symbol.asyncDispose]();
      await this.#member.space[Symbol.asyncDispose]();
      await change?.();
      this.#member = await entering();
    };
    this.#roundMs = options.auditRoundMs ?? ROUND_MS;
    const round = async (work: () => Promise<void>) => {
      await laterTurn();
      if (!this.#isClosed) await work();
    };
    const all = [() => this.#auditRound(), () => this.#accuse(), () => this.#settle(), () => this.#introduce()];
    this.#rounds = setInterval(() => {
      // What fails now is looked at again in the next round.
      for (const work of all) round(work).catch(() => undefined);
    }, this.#roundMs);
    this.#rounds.unref();
    this.#prover = new Prover(options.threads === undefined ? {} : { threads: options.threads });
    this.section = stateSection(store, options.directory, {
      approved: (genesis) => isApproved(genesis, trust),
      replaced: () => this.#switch(),
    });
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
    const { genesis, seat, ledger } = this.#member;
    const { epoch, validators } = genesis.committee;
    return {
      epoch,
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
    const { genesis, networkId, ledger } = this.#member;
    const law: Law = { genesis, networkId, committeeOf: (epoch) => ledger.committeeOf(epoch) };
    return checkedCertificate(this.#trust, value, law);
  }

  /** The order has ended an epoch, or opened the next one. Safe to repeat. */
  async turned(): Promise<void> {
    const result = this.#turning.then(async () => {
      if (this.#isClosed) return;
      await this.#member.epochs?.handOver();
      const { ledger, order, genesis } = this.#member;
      if (ledger.latest(order !== undefined).epoch !== genesis.committee.epoch) await this.#switch();
      this.#epochsChanged();
    });
    this.#turning = result.catch(() => undefined);
    await result;
  }

  async seats(): Promise<readonly ValidatorKeys[]> {
    return this.#member.genesis.committee.validators;
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

  async learnEpochs(documents: readonly unknown[]): Promise<void> {
    const { document, ledger, order } = this.#member;
    // Who has a seat learns it from the order.
    if (order !== undefined || documents.length <= ledger.epochDocuments().length) return;
    const first = decodeGenesis(document).genesis.committee.epoch;
    await this.#laws.of(document, documents, first + documents.length);
    this.#store.transact(() => ledger.announce(documents.map(decodeEpochDocument)));
    await this.turned();
  }

  readonly epochRecords: NKrypt['epochRecords'] = {
    numbers: () => {
      const { ledger, order } = this.#member;
      // Who follows the order knows of a committee before that takes over.
      const { epoch: present } = ledger.latest(order !== undefined);
      return ledger.epochDocuments().flatMap(({ epoch }) => (epoch <= present ? [epoch] : []));
    },
    read: (epoch) => {
      const document = this.#member.ledger.epochDocument(epoch);
      return document === undefined ? null : utf8(canonicalJson(document));
    },
    take: async (bytes) => {
      const document = readEpochDocument(bytes);
      const { ledger, order, networkId } = this.#member;
      const latest = ledger.latest(order !== undefined);
      if (document.epoch <= latest.epoch) {
        const known = this.epochRecords.read(document.epoch);
        return known !== null && equal(known, bytes) ? 'accepted' : 'known';
      }
      // Who has a seat learns it from the order.
      if (order !== undefined || document.epoch > latest.epoch + 1) return 'later';
      await successor(this.#trust, latest, document, networkId);
      this.#store.transact(() => ledger.announce([document]));
      await this.turned();
      return 'accepted';
    },
  };

  watchEpochs(changed: () => void): void {
    this.#epochsChanged = changed;
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

  /** For {@link OrderedHome}. */
  askValidator(...question: Parameters<OrderLent['ask']>): Promise<unknown> {
    return this.#meeting?.(...question) ?? nobodyToAsk();
  }

  follow(ask: SeatAsk | undefined): void {
    this.#ask = ask;
    // A commitment that was made while nobody could be asked is registered now.
    if (ask !== undefined) this.#member.space.ready().catch(() => undefined);
  }

  /** For {@link Quorum}. */
  askSeat(...question: Parameters<SeatAsk>): Promise<unknown> {
    return this.#ask?.(...question) ?? Promise.reject(notConnected());
  }

  watchSpace(lent: Omit<LossLent, 'trust'>): void {
    this.#watching = lent;
  }

  seen(identity: string, node: string): void {
    this.#member.audits?.seen(identity, node);
  }

  /** For {@link SpaceAudits}. */
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
    const { seat, audits, networkId, genesis } = this.#member;
    if (seat === null) throw new HyperMeshError('committee-only', 'This home does not sit in the committee.');
    if (audits?.isLost(account, root) !== true) return null;
    const { epoch } = genesis.committee;
    return this.#trust.attest(SPACE_LOST_TYPE, { networkId, epoch, account, root });
  }

  /** A commitment failed here again and again: when a quorum saw the same, the order is told, and its registration ends. */
  async lost(identity: string, root: string): Promise<void> {
    const { genesis, networkId, seat } = this.#member;
    const watching = this.#watching;
    if (watching === undefined || seat === null) return;
    const { epoch, validators } = genesis.committee;
    const { key: self } = await this.#trust.validatorKeys();
    const entry = await lossEntry(
      { ...watching, trust: this.#trust },
      { networkId, epoch, validators, self },
      identity,
      root,
    );
    if (entry === undefined) return;
    try {
      // Commit point is the order's. A crash between the two audits, and says, the same again.
      await this.#member.order?.submit(entry);
    } catch (error) {
      // Another validator was first.
      if (!isCoded(error, 'proof-replayed')) throw error;
    }
    seat.committee.registry(identity).forget();
  }

  async #auditRound(): Promise<void> {
    if (this.#watching !== undefined) await this.#member.audits?.round();
  }

  /** Once for each epoch: who got a seat in it has to know the commitment of this home. */
  async #introduce(): Promise<void> {
    const { genesis, network, space } = this.#member;
    const { epoch, validators } = genesis.committee;
    const { root } = space;
    if (validators.length === 1 || root === undefined || this.#introducedTo === `${epoch} ${root}`) return;
    if (await network.introduce(root)) this.#introducedTo = `${epoch} ${root}`;
  }

  /**
   * What was certified goes into the order, so that a handover carries only what is unfinished. Another validator is first for each certificate; the others step in, one
   * after the other, when the order does not have it.
   */
  async #settle(): Promise<void> {
    const { seat, order, ledger, networkId, votes, genesis } = this.#member;
    if (seat === null || order === undefined || this.#isSettling) return;
    this.#isSettling = true;
    try {
      const { validators } = genesis.committee;
      const own = validators.findIndex(({ key }) => key === seat.validator);
      const due: Endorsement[] = [];
      for (let page = votes.unsettled(); page.length > 0 && due.length < SETTLED_AT_ONCE_MAX && !this.#isClosed; ) {
        const settled: Operation[] = [];
        for (const certificate of page) {
          const { operation, proofs } = certificate;
          const turn = (own + Number.parseInt(proofs.slice(-8), 16)) % validators.length;
          if (ledger.isRecorded(operation)) settled.push(operation);
          else if (this.#clock.nowMs() - admittedAtMs(certificate) >= turn * this.#roundMs) due.push(certificate);
        }
        votes.settled(settled);
        await laterTurn();
        page = this.#isClosed ? [] : votes.unsettled(page.at(-1)!.operation);
      }
      const submit = (certificates: readonly Endorsement[]) =>
        order.submit(encodeEntry({ formatVersion: 1, networkId, kind: 'certified', certificates }));
      for (const part of cut(due, ENTRY_LIMITS.certificatesMax)) {
        await submit(part).catch(async (error: unknown) => {
          if (leavesOpen(error)) throw error;
          // One of them spoils it: each for itself, and what is refused has nothing to say.
          for (const one of part) await submit([one]).catch(rethrowUnlessRefused);
        });
        votes.settled(part.map(({ operation }) => operation));
      }
    } finally {
      this.#isSettling = false;
    }
  }

  /** Who signed two things that contradict each other answers for it with his stake: the order of the network gets both. */
  async #accuse(): Promise<void> {
    const { seat, office, ledger, networkId, votes } = this.#member;
    for (const { about, conflict } of votes.witness.open()) {
      try {
        // Another one may have been first.
        if (seat === null || !ledger.isAnswered(about))
          await office.submit(encodeEntry({ formatVersion: 1, networkId, kind: 'evidence', conflict }));
      } catch (error) {
        if (leavesOpen(error)) throw error;
      }
      votes.witness.answered(about);
    }
  }

  /** Audits answer whoever sits in the committee: the channel proved his publisher, the genesis names it. */
  #checkValidator(publisher: string): void {
    if (this.#member.genesis.committee.validators.some(({ account }) => account === publisher)) return;
    throw new HyperMeshError('not-permitted', 'Only the validators of the network ask that.');
  }

  async adopt(document: Json): Promise<void> {
    const { genesis, networkId } = decodeGenesis(document);
    if (networkId === this.#member.networkId) return;
    if (!(await isApproved(genesis, this.#trust))) throw notApproved();
    await this.#switch(async () =>
      this.#store.transact((raw) => {
        forget(raw);
        raw.prepare('INSERT INTO genesis (id, document) VALUES (1, ?)').run(canonicalJson(genesis));
        raw.prepare('INSERT INTO joined (id) VALUES (1)').run();
      }),
    );
  }

  async abandon(): Promise<void> {
    if (this.#member.seat !== null) return;
    await this.#switch(this.#found);
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

  async requirements(kind: OperationKind): Promise<Requirements> {
    return this.#member.genesis.requirements[operationOf(kind)];
  }

  async genesis(): ReturnType<NKrypt['genesis']> {
    const { networkId, document, ledger } = this.#member;
    return { networkId, document, epochs: ledger.epochDocuments() };
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
    const { space, identity, genesis, networkId } = this.#member;
    const { operation, requirements } = parsed.data;
    if (operation.identity !== identity) {
      throw new HyperMeshError('proof-invalid', 'The challenge was issued to another identity than this home has.');
    }
    if (parsed.data.networkId !== networkId) {
      throw new HyperMeshError('network-mismatch', 'The challenge was issued in another network.');
    }
    const witness = this.#judgeOf(operation.kind);
    const nothing = { account: identity, balance: 0, locked: 0, unbonding: [], isSuspended: false };
    const account = requirements.stake === null ? nothing : await this.stake();
    const lent = { witness, space, account, spaceBytes: genesis.space.bytes };
    let current: Challenge = parsed.data;
    // Making the commitment, once for this home, can take longer than an anchor lasts.
    if (requirements.space !== null && space.status().state !== 'ready') {
      await space.ready(options);
      current = await witness.anchor(operation, options);
    }
    for (let anchors = 1; ; anchors++) {
      try {
        return await this.#prover.prove(current, lent, options);
      } catch (error) {
        // Each time another validator is passed over: after as many as may be faulty there is nobody left to pass over.
        if (anchors > genesis.committee.validators.length || !isCoded(error, 'anchor-lost')) throw error;
        // What a validator does not know yet it may learn in a moment.
        await pause(Math.min(1_000, ANCHOR_PAUSE_MS * 2 ** anchors), undefined, { signal: options.signal }).catch(
          () => undefined,
        );
        current = await witness.anchor(operation, options);
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
    const { genesis, networkId } =
      options.genesis === undefined
        ? await this.#lawOf(proofs)
        : await this.#laws.ofProofs(proofs, options.genesis, options.epochs);
    return judge(proofs, {
      trust: this.#trust,
      genesis,
      networkId,
      atMs: options.atMs ?? this.#clock.nowMs(),
    });
  }

  /** What this home judges itself holds by its own signature; everything else by those of the committee. */
  async #lawOf(proofs: ProofSet): Promise<Law> {
    const { court, document, ledger, networkId } = this.#member;
    const kind = operationKind.safeParse((proofs as Partial<ProofSet> | null)?.challenge?.operation?.kind);
    if (kind.success && this.#isJudgedHere(kind.data)) return { genesis: court.law, networkId };
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

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    clearInterval(this.#rounds);
    await this.#member.audits?.[Symbol.asyncDispose]();
    await this.#prover[Symbol.asyncDispose]();
    await this.#member.space[Symbol.asyncDispose]();
    await this.#member.order?.[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }
}

function rethrowUnlessRefused(error: unknown): void {
  if (leavesOpen(error)) throw error;
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
