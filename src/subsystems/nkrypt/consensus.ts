import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { hex } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, isDigest } from '../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { Admission, Consensus, ProofVerdict, SpaceStatus, StakeAccount } from '../../capabilities/consensus.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { decodeGenesis, type Genesis, genesisDocument } from '../../wire/genesis.ts';
import {
  type Challenge,
  challenge as challengeSchema,
  decodeEndorsement,
  type Endorsement,
  type OperationKind,
  operationKind,
  type ProofSet,
  type Requirements,
  VOTE_TYPE,
} from '../../wire/proof.ts';
import { firstIssue, type TrustAnchor } from '../../wire/signature.ts';
import { statementsOf } from './attest.ts';
import { Committee } from './committee.ts';
import { foundNetwork, type NetworkTerms } from './found.ts';
import { checkRoot, judge } from './judge.ts';
import { Ledger } from './ledger.ts';
import { Prover } from './prover.ts';
import { dropStaged, stateSection } from './section.ts';
import { SpaceCommitment } from './space.ts';
import { labelSeed } from './space-graph.ts';
import { openStore, type Store } from './store.ts';

type LentTrust = Pick<Trust, 'identity' | 'sign' | 'verify' | 'anchor'>;

export interface NKryptOptions extends NetworkTerms {
  /** Holds `nkrypt.db` and the files of the space commitment. */
  readonly directory: string;
  readonly clock: Clock;
  /** Worker threads for the work proof. Default: one for each processor. */
  readonly threads?: number;
}

/** The four proofs, and a committee of one. */
export interface NKrypt extends Consensus, AsyncDisposable {
  /** Genesis, ledger, sequence numbers and replay memory, as a part of a state export. */
  readonly section: StateSection;
}

/**
 * Opens the folder; in a fresh one it founds a network by the given terms, which are never read again.
 * Starts to make the space commitment in the background. Errors: `config-invalid`, `key-locked`, `home-too-new`, `storage-*`.
 */
export async function openConsensus(lent: { readonly trust: LentTrust }, options: NKryptOptions): Promise<NKrypt> {
  try {
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
    dropStaged(options.directory);
  } catch (error) {
    throw storageError(error, `opening ${options.directory}`);
  }
  const store = openStore(options.directory);
  try {
    await ensureGenesis(store, lent.trust, options);
    return new Validator(lent.trust, store, options, await enter(lent.trust, store, options));
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
}

/** Commit point: genesis and its accounts appear together. A crash before it founds another network at the next start. */
async function ensureGenesis(store: Store, trust: LentTrust, options: NKryptOptions): Promise<void> {
  if (store.raw.prepare('SELECT 1 FROM genesis').get() !== undefined) return;
  const genesis = await foundNetwork(trust, options.clock, options);
  store.transact((raw) => {
    raw.prepare('INSERT INTO genesis (id, document) VALUES (1, ?)').run(canonicalJson(genesis));
    const account = raw.prepare('INSERT INTO accounts (account, balance, locked) VALUES (?, ?, ?)');
    for (const { account: key, balance, locked } of genesis.stake.accounts) account.run(key, balance, locked);
  });
}

/** What depends on the network and identity that the store is about. */
interface Membership {
  readonly genesis: Genesis;
  readonly document: Json;
  readonly networkId: Digest;
  readonly identity: string;
  readonly committee: Committee;
  readonly ledger: Ledger;
  readonly space: SpaceCommitment;
}

async function enter(trust: LentTrust, store: Store, options: NKryptOptions): Promise<Membership> {
  const { document } = store.raw.prepare('SELECT document FROM genesis').get() as { document: string };
  const { genesis, networkId } = decodeGenesis(JSON.parse(document));
  const { keyId: identity } = await trust.identity('publisher');
  const ledger = new Ledger(store);
  const committee = new Committee({ trust, store, ledger }, { clock: options.clock, genesis, networkId });
  const seed = labelSeed(networkId, identity);
  const { bytes, iterations, registrationOpenings } = genesis.space;
  const space = new SpaceCommitment(
    { registry: committee.registry(identity) },
    { directory: commitmentFolder(options.directory, seed), seed, bytes, iterations, registrationOpenings },
  );
  // In the background: who needs it waits for it and gets the error, if there is one.
  space.ready().catch(() => undefined);
  return { genesis, document: genesisDocument(genesis), networkId, identity, committee, ledger, space };
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
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #prover: Prover;
  #member: Membership;

  constructor(trust: LentTrust, store: Store, options: NKryptOptions, member: Membership) {
    this.#trust = trust;
    this.#store = store;
    this.#clock = options.clock;
    this.#member = member;
    this.#prover = new Prover(options.threads === undefined ? {} : { threads: options.threads });
    this.section = stateSection(store, options.directory, async () => {
      await this.#member.space[Symbol.asyncDispose]();
      this.#member = await enter(trust, store, options);
    });
  }

  async requirements(kind: OperationKind): Promise<Requirements> {
    return this.#member.genesis.requirements[operationOf(kind)];
  }

  async genesis(): Promise<{ readonly networkId: Digest; readonly document: Json }> {
    return { networkId: this.#member.networkId, document: this.#member.document };
  }

  async challenge(kind: OperationKind, subject: Digest, ref: string): Promise<Challenge> {
    operationOf(kind);
    if (!isDigest(subject)) throw new HyperMeshError('usage', 'Expected the subject to be a SHA-256 digest.');
    if (typeof ref !== 'string' || ref.length > 512) {
      throw new HyperMeshError('usage', 'Expected the reference to be text of at most 512 characters.');
    }
    return this.#member.committee.issue(this.#member.identity, kind, subject, ref);
  }

  async prove(challenge: Challenge, options: CallOptions = {}): Promise<ProofSet> {
    const parsed = challengeSchema.safeParse(challenge);
    if (!parsed.success) {
      throw new HyperMeshError('proof-invalid', `Expected a challenge, but ${firstIssue(parsed.error)}.`);
    }
    const { committee, ledger, space, identity, genesis } = this.#member;
    if (parsed.data.operation.identity !== identity) {
      throw new HyperMeshError('proof-invalid', 'The challenge was issued to another identity than this home has.');
    }
    return this.#prover.prove(
      parsed.data,
      { witness: committee, space, account: ledger.account(identity), spaceBytes: genesis.space.bytes },
      options,
    );
  }

  async verify(
    proofs: ProofSet,
    options: { readonly atMs?: number; readonly anchor?: TrustAnchor; readonly genesis?: Json } = {},
  ): Promise<readonly ProofVerdict[]> {
    const { genesis, networkId } = options.genesis === undefined ? this.#member : decodeGenesis(options.genesis);
    return judge(proofs, {
      trust: this.#trust,
      genesis,
      networkId,
      anchor: options.anchor,
      atMs: options.atMs ?? this.#clock.nowMs(),
    });
  }

  async admit(proofs: ProofSet, options: CallOptions = {}): Promise<Admission> {
    return this.#member.committee.admit(proofs, options);
  }

  async verifyEndorsement(
    endorsement: Endorsement,
    options: { readonly genesis: Json; readonly anchor: TrustAnchor },
  ): Promise<void> {
    await checkEndorsement(this.#trust, endorsement, options);
  }

  async stake(): Promise<StakeAccount> {
    return this.#member.ledger.account(this.#member.identity);
  }

  async lockStake(amount: number): Promise<StakeAccount> {
    return this.#member.ledger.lock(this.#member.identity, amount);
  }

  async unlockStake(amount: number): Promise<StakeAccount> {
    return this.#member.ledger.unlock(this.#member.identity, amount);
  }

  async transferStake(to: string, amount: number): Promise<StakeAccount> {
    return this.#member.ledger.transfer(this.#member.identity, to, amount);
  }

  async space(): Promise<SpaceStatus> {
    return this.#member.space.status();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#prover[Symbol.asyncDispose]();
    await this.#member.space[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }
}

/** Needs nothing but its arguments. Errors: `endorsement-invalid`. */
export async function checkEndorsement(
  trust: Pick<Trust, 'verify'>,
  value: unknown,
  { genesis: document, anchor }: { readonly genesis: Json; readonly anchor: TrustAnchor },
): Promise<void> {
  const { votes, ...vote } = decodeEndorsement(value);
  try {
    const { genesis, networkId } = decodeGenesis(document);
    if (vote.networkId !== networkId) throw new Error('it belongs to another network');
    if (vote.epoch !== genesis.committee.epoch) throw new Error('it names another committee');
    checkRoot(genesis, anchor);
    const by = { trust, genesis, anchor, atMs: vote.admittedAtMs, payloadType: VOTE_TYPE };
    for (const signed of await statementsOf(votes, by)) {
      if (canonicalJson(signed) !== canonicalJson(vote)) throw new Error('a vote is about something else');
    }
  } catch (error) {
    const why = isCoded(error) ? error.message : `${(error as Error).message}.`;
    throw new HyperMeshError('endorsement-invalid', `The endorsement is not the word of the committee: ${why}`, {
      hint: 'The content was altered, or comes from another network.',
      cause: error,
    });
  }
}

function operationOf(kind: unknown): OperationKind {
  const parsed = operationKind.safeParse(kind);
  if (!parsed.success)
    throw new HyperMeshError('usage', `Expected ${operationKind.options.join(', ')} as the operation.`);
  return parsed.data;
}
