import { randomBytes } from 'node:crypto';
import { setImmediate } from 'node:timers';
import { hex } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { ProofVerdict } from '../../capabilities/consensus.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { StandingWord } from '../../wire/access.ts';
import type { FastAttestation } from '../../wire/attestation.ts';
import { decodeOrder, type SelfSigned, saysOrder } from '../../wire/entry.ts';
import {
  type AnchorShare,
  AUDITS,
  beaconOf,
  type Challenge,
  decodeProofSet,
  type Endorsement,
  hashedTimes,
  needsOrder,
  type Operation,
  type OperationKind,
  operationDigest,
  proofsDigest,
  SHARE_TYPE,
  type SignedReceipt,
  type SignedStake,
  type SignedVote,
  SPACE_RECEIPT_TYPE,
  STAKE_STATEMENT_TYPE,
  VOTE_TYPE,
  type Vote,
} from '../../wire/proof.ts';
import { isRevealed, revealedOf, shareStatement } from './anchor.ts';
import { checkedBallot, checkedCertificate } from './certificate.ts';
import type { Law } from './epoch-law.ts';
import {
  anchorAgeMs,
  type Court,
  checkChallenge,
  judge,
  judgeInTurn,
  openingDigest,
  reported,
  spaceReceipt,
  stakeStatement,
} from './judge.ts';
import type { Ledger } from './ledger/ledger.ts';
import { WorkLoad } from './load.ts';
import { type Opening, rootOf } from './merkle.ts';
import { auditPositions, checkRegistration } from './registration.ts';
import { LABEL_BYTES, labelSeed } from './space-graph.ts';
import { Standings, standFor } from './standing.ts';
import type { Store } from './store.ts';
import type { Decision, VoteBook } from './votes.ts';

/** An anchor is answerable for at least this long, also when the table asks for no time proof. */
const ANCHOR_MS_MIN = 300_000;
const OUTSTANDING_MAX = 10_000;
/** For one identity, so that one member cannot take the places of all others. */
const OUTSTANDING_EACH_MAX = 2_000;
/** Signatures of orders, and anchors, that were found genuine a moment ago. */
const GENUINE_MAX = 4_000;

/** A share that this validator gave. A crash forgets it: its holder then begins with a new anchor. */
interface Given {
  readonly identity: string;
  readonly operation: Digest;
  /** 32 secret bytes, hex. */
  readonly seed: string;
  readonly issuedAtMs: number;
  /** The anchor that it became a part of, and its audits; null until the first. */
  context: Digest | null;
  readonly audits: { readonly issuedAtMs: number }[];
}

/** Where one validator keeps which commitment of an identity is registered with it. */
export interface Register {
  /** Root of the registered commitment, 64 hex digits. */
  registered(): string | undefined;
  /** Takes the roots of the three layers and answers with the challenge of the registration, 64 hex digits. */
  begin(roots: readonly string[]): string;
  /** Errors: `proof-rejected`. Durable when it returns. */
  finish(registration: Parameters<typeof checkRegistration>[0]): Promise<void>;
  /** What a committee said about the commitment of this home. */
  remember(roots: readonly string[]): void;
  forget(): void;
}

/** What the order of the network says about operations. */
export interface Ruled {
  /** What it has against one is thrown. */
  allowed(this: void, operation: Operation): void;
  /** Waits until that holds, while others know more of the order than this validator, for some seconds at most. */
  until(holds: () => boolean): Promise<void>;
}

/**
 * One member of the committee: gives shares of anchors, witnesses audits, says what accounts have, judges submissions and votes. What it promised is in
 * the {@link VoteBook}; shares and open audits live in the process, because an audit that a crash interrupted is too late anyway.
 */
export class Committee {
  readonly #trust: Pick<Trust, 'attest' | 'attestFast' | 'attested' | 'signedBy'>;
  readonly #store: Store;
  readonly #votes: VoteBook;
  readonly #ledger: Pick<Ledger, 'account' | 'ownerOf'>;
  readonly #ruled: Ruled | undefined;
  readonly #told: ((certificate: Endorsement) => void) | undefined;
  readonly #clock: Clock;
  readonly #law: Law;
  readonly #given = new Map<string, Given>();
  readonly #outstanding = new Map<string, number>();
  readonly #genuine = new Set<string>();
  readonly #load: WorkLoad;
  readonly #standings: Standings;
  readonly #isLost: (identity: string, root: string) => boolean;
  readonly #judging = new Map<Digest, Promise<Judged>>();
  #deciding: {
    readonly operation: Operation;
    readonly proofs: Digest;
    readonly order: SelfSigned | null;
    resolve(decision: Decision): void;
    reject(error: unknown): void;
  }[] = [];

  constructor(
    lent: {
      readonly trust: Pick<Trust, 'attest' | 'attestFast' | 'attested' | 'signedBy'>;
      readonly store: Store;
      readonly votes: VoteBook;
      readonly ledger: Pick<Ledger, 'account' | 'ownerOf'>;
      /** Is told of certificates that were found genuine. */
      readonly genuine?: (certificate: Endorsement) => void;
      /** Whether the order says that an identity lost that commitment once. */
      readonly isSpaceLost?: (identity: string, root: string) => boolean;
      readonly ruled?: Ruled | undefined;
    },
    options: Law & { readonly clock: Clock },
  ) {
    this.#trust = lent.trust;
    this.#store = lent.store;
    this.#votes = lent.votes;
    this.#ledger = lent.ledger;
    this.#ruled = lent.ruled;
    this.#told = lent.genuine;
    this.#clock = options.clock;
    this.#law = options;
    this.#load = new WorkLoad(options.clock);
    this.#standings = new Standings(lent.trust, options);
    this.#isLost = lent.isSpaceLost ?? (() => false);
  }

  /**
   * A share of the anchor of an operation: fresh, and committed to what it will reveal. `newest`: the certificate of the identity's last operation of the
   * kind, as the identity knows it; this validator's own comes back where it is a newer one.
   * Errors: `entry-invalid` (the order), `equivocation`, `not-owner`, `version-exists`, `quota-exceeded`, `endorsement-invalid`.
   */
  async share(
    operation: Operation,
    order: SelfSigned | null,
    newest: unknown,
  ): Promise<{ readonly share: AnchorShare; readonly previous: Digest; readonly newest: Endorsement | null }> {
    await this.checkOrder(operation, order);
    this.#votes.check(operation, order);
    const { identity, kind, ref } = operation;
    // Whoever publishes under a new name claimed it a moment ago: this validator may hear of that later than of the operation.
    if (kind === 'publish') await this.#ruled?.until(() => this.#ledger.ownerOf(ref.split('@')[0]!) !== undefined);
    this.#ruled?.allowed(operation);
    let tip = this.#votes.tip(identity, kind);
    const known = newest === null ? null : await this.#follow(identity, kind, tip.sequence, newest);
    if (known !== null) tip = this.#votes.tip(identity, kind);
    const nowMs = this.#clock.nowMs();
    const seed = hex(randomBytes(32));
    const { genesis, networkId, committee } = this.#law;
    const own = {
      nonce: hashedTimes(seed, AUDITS + 1),
      issuedAtMs: nowMs,
      hexDigits: this.#load.hexDigits(genesis.requirements[kind]),
    };
    this.#give(own.nonce, {
      ...{ identity, operation: operationDigest(operation), seed, issuedAtMs: nowMs },
      ...{ context: null, audits: [] },
    });
    const about = { networkId, committee: committee.digest, operation, previous: tip.previous };
    const attestation = await this.#trust.attestFast(SHARE_TYPE, shareStatement(about, own));
    const asked = newest === null ? 0 : ((newest as Endorsement).operation?.sequence ?? 0);
    return {
      share: { ...own, attestation },
      previous: tip.previous,
      newest: tip.sequence > asked ? this.#votes.newest(identity, kind) : null,
    };
  }

  /**
   * What this validator's share of the anchor was committed to for an audit; its clock runs from the first time it is asked for. Audits come in order,
   * and a share belongs to the first anchor that it is asked about. `root`: of the commitment that is registered here.
   * Errors: `anchor-lost`, `proof-rejected`, `network-mismatch`.
   */
  async reveal(
    challenge: Challenge,
    attempt: number,
  ): Promise<{ readonly revealed: string; readonly root: string | null }> {
    const root = this.registry(challenge.operation.identity).registered() ?? null;
    await this.#checkGenuine(challenge);
    const given = this.#ownShare(challenge);
    if (given.context !== null && given.context !== challenge.context)
      throw rejected('space', 'the share of this validator belongs to another anchor');
    if (attempt > given.audits.length + 1) throw rejected('space', 'audits come one after the other');
    given.context = challenge.context;
    // Without the commitment there is nothing to audit: no attempt is lost.
    if (root !== null && attempt > given.audits.length) given.audits.push({ issuedAtMs: this.#clock.nowMs() });
    return { revealed: revealedOf(given.seed, attempt), root };
  }

  /** Says when the answer arrived, if it is right. Errors: `anchor-lost`, `proof-expired` (too late), `proof-rejected`, `network-mismatch`. */
  async receive(
    challenge: Challenge,
    answer: { readonly attempt: number; readonly revealed: readonly string[]; readonly root: string },
    opening: Opening,
  ): Promise<SignedReceipt> {
    const arrivedAtMs = this.#clock.nowMs();
    const given = this.#ownShare(challenge);
    const audit = given.audits[answer.attempt - 1];
    const asked = challenge.requirements.space;
    if (given.context !== challenge.context || audit === undefined || asked === null)
      throw rejected('space', 'there is no audit of this operation');
    const { attempt, revealed, root } = answer;
    if (attempt !== given.audits.length) throw rejected('space', 'a later audit was begun');
    if (this.registry(given.identity).registered() !== root)
      throw rejected('space', 'the commitment is not registered');
    const { issuedAtMs } = audit;
    if (arrivedAtMs - issuedAtMs > asked.deadlineMs) {
      throw new HyperMeshError('proof-expired', `The audit took longer than ${asked.deadlineMs} ms.`, {
        hint: 'The disk or the processor is very busy; run the command again.',
      });
    }
    if (!isRevealed(challenge.anchor.shares, attempt, revealed))
      throw rejected('space', 'the beacon is not what the validators were committed to');
    const { bytes } = this.#law.genesis.space;
    const n = bytes / LABEL_BYTES;
    const beacon = beaconOf(revealed);
    const led = rootOf(n, auditPositions(beacon, challenge.context, root, n, asked.openings), opening);
    if (led === undefined || hex(led) !== root) throw rejected('space', 'the opened labels do not lead to the root');
    const own = { issuedAtMs, arrivedAtMs };
    const about = { root, bytes, beacon, opening: openingDigest(opening) };
    const attestation = await this.#trust.attestFast(SPACE_RECEIPT_TYPE, spaceReceipt(challenge, about, own));
    return { ...own, attestation };
  }

  /** What the ledger says about the account that asks. */
  async certifyStake(challenge: Challenge): Promise<SignedStake> {
    this.#own(challenge);
    const { identity } = challenge.operation;
    // As with names: tokens may have been locked a moment ago.
    await this.#ruled?.until(
      () => this.#ledger.account(identity).locked >= (challenge.requirements.stake?.amountMin ?? 0),
    );
    const { balance, ...account } = this.#ledger.account(identity);
    const locked = account.isSuspended ? 0 : account.locked;
    const own = { balance, locked, issuedAtMs: this.#clock.nowMs() };
    const attestation = await this.#trust.attestFast(STAKE_STATEMENT_TYPE, stakeStatement(challenge, own));
    return { ...own, attestation };
  }

  /**
   * Form, order, anchor and its age, then the proofs in cost order, then the vote rule, then the vote: `fast` by Ed25519 alone.
   * The same submission gets the same vote, however late. Errors: `proof-invalid`, `network-mismatch`, `entry-invalid`, `equivocation`, `proof-replayed`,
   * `proof-expired`, `proof-rejected`, `stake-insufficient`, `not-owner`, `version-exists`, `epoch-over`.
   */
  async vote(
    proofs: unknown,
    order: SelfSigned | null,
    options: CallOptions & { readonly fast?: boolean } = {},
  ): Promise<{ readonly vote: SignedVote<FastAttestation>; readonly verdicts: readonly ProofVerdict[] }> {
    const set = decodeProofSet(proofs);
    const digest = proofsDigest(set);
    const { operation } = set.challenge;
    let judged = this.#judging.get(digest);
    if (judged === undefined) {
      judged = this.#judge(set, digest, order, options).finally(() => this.#judging.delete(digest));
      this.#judging.set(digest, judged);
    }
    const { atMs, verdicts } = await judged;
    return { vote: await this.sign(operation, digest, atMs, options.fast ?? false), verdicts };
  }

  /** Signs what was decided. */
  async sign(operation: Operation, proofs: Digest, atMs: number, fast: boolean): Promise<SignedVote<FastAttestation>> {
    const { networkId, committee } = this.#law;
    const vote: Vote = { formatVersion: 3, networkId, committee: committee.digest, operation, proofs, atMs };
    const attestation = fast
      ? await this.#trust.attestFast(VOTE_TYPE, vote)
      : await this.#trust.attest(VOTE_TYPE, vote);
    return { atMs, attestation };
  }

  /** Every commitment that is registered here. */
  registrations(): readonly { readonly identity: string; readonly root: string }[] {
    const rows = this.#store.raw.prepare('SELECT identity, roots FROM commitments WHERE registered = 1').all();
    return (rows as { identity: string; roots: string }[]).map(({ identity, roots }) => ({
      identity,
      root: (JSON.parse(roots) as string[]).at(-1)!,
    }));
  }

  /**
   * Takes the word of a quorum of the other validators for a commitment that was registered with them, before this one sat here, or while it was away: the labels of
   * the lower layers are gone by then. Safe to repeat. Errors: `proof-rejected`, also where the commitment was lost since it was registered first.
   */
  async introduce(identity: string, root: string, words: readonly StandingWord[]): Promise<void> {
    const registry = this.registry(identity);
    if (registry.registered() === root) return;
    if (this.#isLost(identity, root)) throw rejected('space', 'the commitment was lost; it has to be registered anew');
    await this.#standings.check(identity, root, words);
    registry.remember([root]);
  }

  /** What this validator says about the commitment of an identity. Errors: `space-unavailable` when none is registered. */
  async standing(identity: string): Promise<StandingWord> {
    const root = this.registry(identity).registered();
    if (root === undefined) {
      throw new HyperMeshError('space-unavailable', 'The committee does not know the space commitment of this home.', {
        hint: 'It is registered again; the next attempt waits for it.',
      });
    }
    return standFor(this.#trust, { ...this.#law, clock: this.#clock }, identity, root);
  }

  /**
   * The committee's certificate, brought by whoever has it; or votes that are too few for one, brought by the publisher whom they were given to.
   * Errors: `endorsement-invalid`, `not-permitted`.
   */
  async confirm(identity: string, value: unknown): Promise<void> {
    const { ballot, isCertificate } = await checkedBallot(this.#trust, value, this.#law);
    if (isCertificate) {
      this.#told?.(ballot);
      return this.#votes.record(ballot);
    }
    if (ballot.operation.identity !== identity)
      throw new HyperMeshError('not-permitted', 'Votes that are no certificate are brought by who asked for them.');
    this.#votes.witness.keep(ballot);
  }

  /** The part of the store that a commitment of this identity is registered in. */
  registry(identity: string): Register {
    const raw = this.#store.raw;
    const row = () =>
      raw.prepare('SELECT roots, nonce, registered FROM commitments WHERE identity = ?').get(identity) as
        | { roots: string; nonce: string; registered: number }
        | undefined;
    const registered = () => {
      const found = row();
      return found?.registered === 1 ? (JSON.parse(found.roots) as string[]).at(-1) : undefined;
    };
    return {
      registered,
      begin: (roots) => {
        const found = row();
        // The same roots keep their question: asking again must not give another chance.
        if (found?.roots === JSON.stringify(roots)) return found.nonce;
        const nonce = hex(randomBytes(32));
        raw
          .prepare('INSERT OR REPLACE INTO commitments (identity, roots, nonce, registered) VALUES (?, ?, ?, 0)')
          .run(identity, JSON.stringify(roots), nonce);
        return nonce;
      },
      remember: (roots) => {
        raw
          .prepare('INSERT OR REPLACE INTO commitments (identity, roots, nonce, registered) VALUES (?, ?, ?, 1)')
          .run(identity, JSON.stringify(roots), '');
      },
      forget: () => {
        raw.prepare('DELETE FROM commitments WHERE identity = ?').run(identity);
      },
      finish: async (registration) => {
        // Others may have introduced it since the challenge was given.
        if (registered() === registration.roots.at(-1)) return;
        const found = row();
        if (found?.nonce !== registration.nonce || found.roots !== JSON.stringify(registration.roots)) {
          throw new HyperMeshError('proof-rejected', 'The registration answers another challenge.');
        }
        const { genesis, networkId } = this.#law;
        const { bytes, iterations, registrationOpenings } = genesis.space;
        const seed = labelSeed(networkId, identity);
        await checkRegistration(registration, { seed, bytes, iterations, openings: registrationOpenings });
        // Commit point: before it the layers are still there and the registration is done again.
        raw
          .prepare('UPDATE commitments SET registered = 1 WHERE identity = ? AND nonce = ?')
          .run(identity, registration.nonce);
      },
    };
  }

  async #judge(
    set: ReturnType<typeof decodeProofSet>,
    digest: Digest,
    order: SelfSigned | null,
    { signal, onProgress }: CallOptions,
  ): Promise<Judged> {
    const { challenge } = set;
    const { operation } = challenge;
    this.#own(challenge);
    const known = this.#votes.decided(operation, digest);
    if (known !== undefined) return { ...known, verdicts: await judge(set, this.#court(known.atMs)) };
    await this.checkOrder(operation, order);
    this.#votes.check(operation, order);
    const nowMs = this.#clock.nowMs();
    if (anchorAgeMs(challenge, nowMs) > windowMs(challenge)) throw expired(challenge, nowMs);
    if (anchorAgeMs(challenge, nowMs) < -this.#law.genesis.limits.clockSkewMs)
      throw new HyperMeshError('proof-rejected', 'The anchor is from the future: the clock of this machine went back.');
    const verdicts: ProofVerdict[] = [];
    for await (const verdict of judgeInTurn(set, this.#court(nowMs))) {
      if (signal?.aborted === true) throw new HyperMeshError('cancelled', 'The admission was cancelled.');
      if (verdict.verdict === 'invalid') throw rejected(verdict.kind, verdict.says);
      onProgress?.({ step: 'admit', note: `the ${verdict.kind} proof holds` });
      verdicts.push(verdict);
    }
    onProgress?.({ step: 'admit', done: 1, total: 1, unit: 'steps' });
    const asked = challenge.requirements.stake?.amountMin ?? 0;
    if (asked > 0 && this.#ledger.account(operation.identity).locked < asked) {
      throw new HyperMeshError(
        'stake-insufficient',
        `${asked} locked tokens are needed, and were unlocked meanwhile.`,
        { hint: 'Lock them again with `hypermesh stake lock`.' },
      );
    }
    return { ...(await this.decide(operation, digest, order)), verdicts: reported(verdicts) };
  }

  /** The vote rule, after everything else was found right: durable when it resolves. Errors: those of {@link VoteBook.decideAll}. */
  decide(operation: Operation, proofs: Digest, order: SelfSigned | null): Promise<Decision> {
    const { promise, resolve, reject } = Promise.withResolvers<Decision>();
    this.#deciding.push({ operation, proofs, order, resolve, reject });
    // What comes in the same turn of the event loop is one transaction.
    if (this.#deciding.length === 1) setImmediate(() => this.#decideAll());
    return promise;
  }

  #decideAll(): void {
    const deciding = this.#deciding;
    this.#deciding = [];
    const { epoch } = this.#law.committee;
    const nowMs = this.#clock.nowMs();
    try {
      const decisions = this.#votes.decideAll(
        deciding.map(({ operation, proofs, order: signed }) => ({
          ...{ epoch, operation, digest: operationDigest(operation), proofs, signed, nowMs },
          allowed: this.#ruled?.allowed,
        })),
      );
      for (const [i, { resolve, reject }] of deciding.entries()) {
        const decision = decisions[i]!;
        if (decision instanceof Error) {
          reject(decision);
          continue;
        }
        if (this.#law.genesis.requirements[deciding[i]!.operation.kind].work !== null) this.#load.admitted();
        resolve(decision);
      }
    } catch (error) {
      for (const { reject } of deciding) reject(error);
    }
  }

  #court(atMs: number): Court {
    return { trust: this.#trust, ...this.#law, atMs };
  }

  /** A newer certificate than this validator has is taken over; one that does not hold is somebody's mistake and said. */
  async #follow(identity: string, kind: OperationKind, since: number, value: unknown): Promise<Endorsement | null> {
    const certificate = await checkedCertificate(this.#trust, value, this.#law);
    const { operation } = certificate;
    if (operation.identity !== identity || operation.kind !== kind || operation.sequence <= since) return null;
    this.#votes.record(certificate);
    return certificate;
  }

  /** Only publishers sign orders, and only for what can conflict. Errors: `entry-invalid`. */
  async checkOrder(operation: Operation, order: SelfSigned | null): Promise<void> {
    if (!needsOrder(operation.kind)) return;
    if (order === null) throw badOrder('there is none');
    const { keys, envelope } = order;
    const { networkId } = this.#law;
    const id = `order ${digestOf(JSON.stringify([order, operation]))}`;
    if (this.#genuine.has(id)) return;
    if (!saysOrder(envelope, { formatVersion: 1, networkId, operation })) {
      const said = decodeOrder(order);
      throw badOrder(said.networkId === networkId ? 'it is for another operation' : 'it is for another network');
    }
    if (envelope.signatures[0]?.keyid !== operation.identity) throw badOrder('the identity is not that of the keys');
    if (!(await this.#trust.signedBy(envelope, keys))) throw badOrder('its signatures do not hold');
    this.#remember(id);
  }

  /** The anchor is what a quorum signed. Errors: `proof-rejected`, `network-mismatch`. */
  async #checkGenuine(challenge: Challenge): Promise<void> {
    this.#own(challenge);
    if (this.#genuine.has(challenge.context)) return;
    const objection = await checkChallenge(challenge, this.#court(this.#clock.nowMs()));
    if (objection !== undefined) throw new HyperMeshError('proof-rejected', objection);
    this.#remember(challenge.context);
  }

  #remember(genuine: string): void {
    const [oldest] = this.#genuine;
    if (this.#genuine.size >= GENUINE_MAX && oldest !== undefined) this.#genuine.delete(oldest);
    this.#genuine.add(genuine);
  }

  #give(nonce: string, given: Given): void {
    for (const [old, { issuedAtMs }] of this.#given) {
      if (given.issuedAtMs - issuedAtMs < 2 * ANCHOR_MS_MIN) break;
      this.#drop(old);
    }
    const own = this.#outstanding.get(given.identity) ?? 0;
    if (own >= OUTSTANDING_EACH_MAX || this.#given.size >= OUTSTANDING_MAX) {
      const of = own >= OUTSTANDING_EACH_MAX ? ' of this identity' : '';
      throw new HyperMeshError('quota-exceeded', `Too many anchors${of} wait for their proofs.`, {
        hint: 'Try again in some minutes.',
      });
    }
    this.#outstanding.set(given.identity, own + 1);
    this.#given.set(nonce, given);
  }

  #drop(nonce: string): void {
    const given = this.#given.get(nonce);
    if (given === undefined) return;
    this.#given.delete(nonce);
    const left = this.#outstanding.get(given.identity)! - 1;
    if (left === 0) this.#outstanding.delete(given.identity);
    else this.#outstanding.set(given.identity, left);
  }

  /** The share of this validator in an anchor. Errors: `anchor-lost`. */
  #ownShare({ operation, anchor }: Challenge): Given {
    const digest = operationDigest(operation);
    for (const { nonce } of anchor.shares) {
      const given = this.#given.get(nonce);
      if (given?.operation === digest) return given;
    }
    throw new HyperMeshError('anchor-lost', 'This validator does not know the anchor, or not any more.', {
      hint: 'Run the command again; it begins with a new one.',
    });
  }

  /**
   * Sequence numbers mean something within one network only, and a challenge only to the committee that issued it: what was decided in an epoch before is not voted for
   * again in this one. Errors: `network-mismatch`, `epoch-over`.
   */
  #own(challenge: Challenge): void {
    const { networkId, committee } = this.#law;
    if (challenge.networkId !== networkId) {
      throw new HyperMeshError('network-mismatch', 'The challenge was issued in another network.', {
        hint: 'Run the command again with the home that belongs to the network.',
      });
    }
    if (challenge.committee === committee.digest) return;
    throw new HyperMeshError('epoch-over', 'The challenge was issued by another committee than the present one.', {
      hint: 'Run the command again; it begins with a new anchor.',
    });
  }
}

interface Judged {
  readonly atMs: number;
  readonly verdicts: readonly ProofVerdict[];
}

function windowMs(challenge: Challenge): number {
  return challenge.requirements.time?.windowMs ?? ANCHOR_MS_MIN;
}

function rejected(kind: string, why: string): HyperMeshError {
  return new HyperMeshError('proof-rejected', `The ${kind} proof was refused: ${why}`, {
    hint: 'Run the command again for fresh proofs.',
    details: { proof: kind },
  });
}

function badOrder(why: string): HyperMeshError {
  return new HyperMeshError('entry-invalid', `An operation needs the signed order of its publisher, but ${why}.`);
}

function expired(challenge: Challenge, nowMs: number): HyperMeshError {
  return new HyperMeshError(
    'proof-expired',
    `The anchor is ${anchorAgeMs(challenge, nowMs)} ms old; the window is ${windowMs(challenge)} ms.`,
    { hint: 'Run the command again for a fresh challenge.' },
  );
}
