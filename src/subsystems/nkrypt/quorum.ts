import { setTimeout as after } from 'node:timers/promises';
import { z } from 'zod';
import { base64 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import { laterTurn } from '../../base/turn.ts';
import type { Admission, ProofVerdict } from '../../capabilities/consensus.ts';
import type { SeatAsk } from '../../capabilities/membership.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { SPACE_STANDING_TYPE, type StandingWord, standingWord } from '../../wire/access.ts';
import type { FastAttestation } from '../../wire/attestation.ts';
import type { CommitteeMethod } from '../../wire/committee.ts';
import { digest, hex32 } from '../../wire/fields.ts';
import { quorumOf } from '../../wire/genesis.ts';
import {
  type AnchorShare,
  admittedAtMs,
  anchorShare,
  type Challenge,
  type Endorsement,
  hashedTimes,
  NO_PREVIOUS,
  type Operation,
  type OperationKind,
  type ProofSet,
  proofsDigest,
  SHARE_TYPE,
  type SignedReceipt,
  type SignedVote,
  SPACE_RECEIPT_TYPE,
  STAKE_STATEMENT_TYPE,
  type StakeProof,
  signedReceipt,
  signedStake,
  signedVote,
  VOTE_TYPE,
  type Vote,
} from '../../wire/proof.ts';
import { firstIssue } from '../../wire/signature.ts';
import { byValidator, challengeOf, shareStatement } from './anchor.ts';
import { checkedCertificate } from './certificate.ts';
import type { Committee } from './committee.ts';
import type { Desk, DeskMethod } from './desk.ts';
import type { Law } from './epoch-law.ts';
import { gather, Senseless } from './gather.ts';
import { judge, openingDigest, spaceReceipt, stakeStatement } from './judge.ts';
import type { Opening } from './merkle.ts';
import type { OwnOrders } from './orders.ts';
import type { AuditAnswer, Witness } from './prover.ts';
import type { SpaceRegistry } from './space.ts';
import { standingOf } from './standing.ts';
import type { VoteBook } from './votes.ts';

const shared = z.strictObject({
  share: anchorShare,
  previous: digest,
  newest: z.unknown(),
});
const revealed = z.strictObject({ revealed: hex32, root: hex32.nullable() });
const nonce = z.strictObject({ nonce: hex32.nullable() });
const nothing = z.strictObject({});

/** Judging a proof set takes a validator a moment, more when it is busy. */
const VOTE_TIMEOUT_MS = 120_000;
/** Validators that disagree on what was last are asked again, once they can have heard of it. */
const ANCHORS_MAX = 4;
const REGISTER_GRACE_MS = 5_000;
/** Who failed in the middle of an operation comes last for so long. */
const SHUNNED_MS = 600_000;
/** Who then failed again is not asked at all for so long, as long as others may be faulty in its place. */
const LEFT_OUT_MS = 10_000;
/** After somebody said nothing, nobody comes last for so long: each step of each operation would wait for that one first. */
const HANGING_MS = 60_000;

/** This home's own seat, which is asked without a network. */
export interface OwnSeat {
  readonly validator: string;
  readonly committee: Committee;
  readonly desk: Desk;
}

interface QuorumLent {
  readonly trust: Pick<Trust, 'attested'>;
  readonly votes: VoteBook;
  readonly orders: OwnOrders;
  readonly own: OwnSeat | null;
  readonly ask: SeatAsk;
}

interface QuorumOptions extends Law {
  readonly clock: Clock;
  readonly identity: string;
  /** Called when the committee does not know the commitment that this home took for registered. */
  readonly forgotten: () => void;
}

/**
 * The committee as who publishes sees it: all validators are asked at once, and what a quorum says in the same way is the word of the committee. Nothing is
 * taken on trust that can be checked; silent, slow and lying ones are passed over as long as a quorum is left. A lone home asks itself, by the same code.
 * Errors of all: `committee-unreachable` (it says how many answered), and what the committee refuses with.
 */
export class Quorum implements Witness {
  readonly #lent: QuorumLent;
  readonly #options: QuorumOptions;
  readonly #shunned = new Map<string, number>();
  readonly #leftOut = new Map<string, number>();
  #hangingUntilMs = 0;
  readonly #introduced = new Set<string>();
  /**
   * How far the clock of this home is behind that of the committee, at least and at most, by the median of the last anchor: no third of liars moves it out of
   * what honest ones say. When exactly a time was told between question and answer is not known.
   */
  #behindMs: { readonly least: number; readonly most: number } | undefined;

  constructor(lent: QuorumLent, options: QuorumOptions) {
    this.#lent = lent;
    this.#options = options;
  }

  /** Takes a sequence number for the operation, signs the order, and gets an anchor for it. */
  async challenge(kind: OperationKind, subject: Digest, ref: string, options: CallOptions = {}): Promise<Challenge> {
    return this.anchor(this.#lent.orders.take({ kind, subject, ref }), options);
  }

  /** A fresh anchor for an operation that this home took a number for; also another one, when validators of the first do not answer any more. */
  async anchor(operation: Operation, { signal }: CallOptions = {}): Promise<Challenge> {
    const { votes, orders } = this.#lent;
    const { genesis, networkId } = this.#options;
    const order = await orders.signed(operation);
    const { digest: committee } = this.#options.committee;
    const requirements = genesis.requirements[operation.kind];
    for (let attempt = 1; ; attempt++) {
      const newest = votes.newest(operation.identity, operation.kind);
      const said = new Set<Digest>();
      const ask = async (validator: string, stop: AbortSignal) => {
        const body = { operation, order, newest };
        const askedAtMs = this.#options.clock.nowMs();
        const answer = await this.#answer(validator, 'committee/anchor', body, shared, either(signal, stop)).catch(
          (error: unknown) => {
            // Everybody waited for it: it comes last from now on.
            if (isCoded(error, 'timeout')) this.#shun(validator);
            throw error;
          },
        );
        const { share, previous } = answer;
        const statement = shareStatement({ networkId, committee, operation, previous }, share);
        await this.#holds(validator, share.attestation, SHARE_TYPE, statement);
        if (share.hexDigits < (requirements.work?.hexDigits ?? 0)) throw new Senseless('it asks for too little work');
        if (answer.newest !== null) await this.#catchUp(operation, answer.newest);
        said.add(previous);
        return { share, previous, askedAtMs, answeredAtMs: this.#options.clock.nowMs() };
      };
      try {
        const { first, reserve } = this.#turns();
        const shares = await gather(first, { ...this.#quorum, reserve, alike: ({ previous }) => previous }, ask);
        const [{ previous } = { previous: NO_PREVIOUS }] = shares;
        const terms = { operation, requirements, networkId, committee, previous };
        const challenge = challengeOf(
          terms,
          shares.map(({ share }) => share),
        );
        const { issuedAtMs } = challenge.anchor;
        const middle = shares.find(({ share }) => share.issuedAtMs === issuedAtMs)!;
        this.#behindMs = { least: issuedAtMs - middle.answeredAtMs, most: issuedAtMs - middle.askedAtMs };
        const apart = shares.filter((one) => !this.#isTimely(one.share.issuedAtMs, one.askedAtMs, one.answeredAtMs));
        if (apart.length === 0 || attempt >= ANCHORS_MAX) return challenge;
        // With another clock than the others nothing that they say later would hold together.
        for (const { share } of apart) this.#shun(share.attestation.validator);
      } catch (error) {
        // Who knows less than others, or this home itself, catches up by the certificate that goes along the next time.
        if (attempt >= ANCHORS_MAX || said.size < 2) throw error;
      }
    }
  }

  async beginAudit(challenge: Challenge, attempt: number): Promise<readonly string[]> {
    const { shares } = challenge.anchor;
    const deadlineMs = challenge.requirements.space?.deadlineMs ?? VOTE_TIMEOUT_MS;
    let unknown = 0;
    const answers = await this.#each(shares, async ({ nonce: committed, attestation: { validator } }) => {
      // Half of the time is for the opening: who keeps everybody waiting is not waited for.
      const answer = await this.#answer(validator, 'committee/reveal', { challenge, attempt }, revealed, {
        timeoutMs: Math.max(1_000, deadlineMs / 2),
      });
      if (answer.root === null) unknown += 1;
      if (hashedTimes(answer.revealed, attempt) !== committed) throw new Senseless('it reveals something else');
      return answer;
    });
    if (unknown > this.#quorum.faulty) {
      this.#options.forgotten();
      throw new HyperMeshError('space-unavailable', 'The committee does not know the space commitment of this home.', {
        hint: 'It is registered again; the next attempt waits for it.',
      });
    }
    const without = answers.findIndex(({ root }) => root === null);
    if (without >= 0) {
      const { validator } = shares[without]!.attestation;
      const known = answers.find(({ root }) => root !== null);
      if (known !== undefined) void this.#introduce(validator, known.root!);
      throw this.#lost(validator);
    }
    return answers.map((answer) => answer.revealed);
  }

  async finishAudit(challenge: Challenge, answer: AuditAnswer, opening: Opening): Promise<readonly SignedReceipt[]> {
    const { labels, path } = opening;
    const { root, attempt, revealed: parts, beacon } = answer;
    const body = { challenge, attempt, revealed: parts, root, labels: base64(labels), path: base64(path) };
    const about = { root, bytes: this.#options.genesis.space.bytes, beacon, opening: openingDigest(opening) };
    return this.#each(challenge.anchor.shares, async ({ attestation: { validator } }) => {
      const askedAtMs = this.#options.clock.nowMs();
      const receipt = await this.#answer(validator, 'committee/opening', body, signedReceipt);
      const { attestation, ...own } = receipt;
      await this.#holds(validator, attestation, SPACE_RECEIPT_TYPE, spaceReceipt(challenge, about, own));
      if (!this.#isTimely(own.arrivedAtMs, askedAtMs)) throw new Senseless('its clock is wrong');
      return receipt;
    });
  }

  async certifyStake(challenge: Challenge): Promise<StakeProof> {
    const { first, reserve } = this.#turns();
    const statements = await gather(first, { ...this.#quorum, reserve }, async (validator, signal) => {
      const askedAtMs = this.#options.clock.nowMs();
      const said = await this.#answer(validator, 'committee/statement', { challenge }, signedStake, { signal });
      const { attestation, ...own } = said;
      await this.#holds(validator, attestation, STAKE_STATEMENT_TYPE, stakeStatement(challenge, own));
      if (!this.#isTimely(own.issuedAtMs, askedAtMs)) throw new Senseless('its clock is wrong');
      return said;
    });
    return { statements: [...statements].sort(byValidator) };
  }

  /**
   * Collects the votes of a quorum. The certificate is on the disk of this home when it returns, and on its way to all validators. The same submission
   * again gets the same certificate.
   */
  async admit(set: ProofSet, options: CallOptions = {}): Promise<Admission> {
    const { trust, votes, orders, own } = this.#lent;
    const { genesis, networkId, committee } = this.#options;
    const { operation } = set.challenge;
    const proofs = proofsDigest(set);
    const court = (atMs: number) => ({ trust, genesis, networkId, committee, atMs });
    const known = votes.certificate(operation, proofs);
    if (known !== undefined) return { endorsement: known, verdicts: await judge(set, court(admittedAtMs(known))) };
    // Proofs that were kept over a change of the committee: nobody votes for them any more.
    if (set.challenge.committee !== committee.digest) {
      throw new HyperMeshError(
        'proof-expired',
        'The proofs were made for a committee that is not in office any more.',
        {
          hint: 'Run the command again for a fresh challenge.',
        },
      );
    }
    const order = await orders.signed(operation);
    let verdicts: readonly ProofVerdict[] | undefined;
    const admitted = { formatVersion: 3, networkId, committee: committee.digest, operation, proofs } as const;
    const { first, reserve } = this.#turns();
    const heard: SignedVote[] = [];
    let isLost = false;
    const enough = new AbortController();
    // Where it fails, also what is said too late is heard: it may be what a validator should not have said.
    const collect = async (validator: string) => {
      let vote: SignedVote<FastAttestation>;
      if (validator === own?.validator) {
        await laterTurn();
        const judged = await own.committee.vote(set, order, options);
        verdicts = judged.verdicts;
        vote = judged.vote;
      } else {
        vote = await this.#answer(validator, 'committee/vote', { proofs: set, order, fast: false }, signedVote, {
          ...either(options.signal, enough.signal),
          timeoutMs: VOTE_TIMEOUT_MS,
        });
      }
      const statement: Vote = { ...admitted, atMs: vote.atMs };
      await this.#holds(validator, vote.attestation, VOTE_TYPE, statement);
      options.onProgress?.({ step: 'admit', note: 'a validator voted for it' });
      heard.push(vote as SignedVote);
      if (isLost) this.#bear({ ...admitted, votes: [vote as SignedVote] });
      return vote as SignedVote;
    };
    const cast = await gather(first, { ...this.#quorum, reserve }, collect).catch((error: unknown) => {
      // Somebody may hold other votes of the same validators: together they show who votes for everything.
      isLost = true;
      if (heard.length > 0) this.#bear({ ...admitted, votes: [...heard].sort(byValidator) });
      throw error;
    });
    enough.abort();
    const endorsement: Endorsement = { ...admitted, votes: [...cast].sort(byValidator) };
    votes.record(endorsement);
    this.#confirm(endorsement);
    await laterTurn();
    return { endorsement, verdicts: verdicts ?? (await judge(set, court(admittedAtMs(endorsement)))) };
  }

  /** What so many validators say alike that an honest one is among them. Errors: {@link gather}. */
  async agreed(
    method: DeskMethod,
    body: object,
    options: CallOptions & { readonly timeoutMs?: number } = {},
  ): Promise<unknown> {
    const { faulty, hangs } = this.#quorum;
    const { first, reserve } = this.#turns();
    const [answer] = await gather(
      first,
      { needed: faulty + 1, faulty, hangs, reserve, alike: (one) => canonicalJson(one) },
      (validator, stop) =>
        this.#answer(validator, method, body, z.unknown(), { ...options, ...either(options.signal, stop) }),
    );
    return answer;
  }

  /** Registration with each validator; that a quorum has it is remembered in `memory`, so that a start needs no network. */
  registry(memory: { registered(): string | undefined; remember(roots: readonly string[]): void }): SpaceRegistry {
    return {
      registered: () => memory.registered(),
      register: async (roots, answer) => {
        const registering: Promise<void>[] = [];
        const one = async (validator: string) => {
          const asked = await this.#answer(validator, 'committee/register', { roots }, nonce);
          if (asked.nonce === null) return;
          const registration = await answer(asked.nonce);
          const layers = registration.layers.map(({ labels, path }) => ({
            labels: base64(labels),
            path: base64(path),
          }));
          await this.#answer(validator, 'committee/registration', { ...registration, layers }, nothing, {
            timeoutMs: VOTE_TIMEOUT_MS,
          });
        };
        await gather(this.#all(), this.#quorum, (validator) => {
          const work = one(validator);
          registering.push(work);
          return work;
        });
        // The lower layers are needed by nobody any more afterwards: who is slower than the quorum gets a moment.
        const moment = new AbortController();
        await Promise.race([
          Promise.allSettled(registering),
          after(REGISTER_GRACE_MS, undefined, { signal: moment.signal, ref: false }).catch(() => undefined),
        ]);
        moment.abort();
        if (this.#lent.own === null) memory.remember(roots);
      },
    };
  }

  /** The committee's word for the space commitment of this home. */
  async standing(root: string): Promise<readonly StandingWord[]> {
    const { identity } = this.#options;
    try {
      const { first, reserve } = this.#turns();
      const words = await gather(first, { ...this.#quorum, reserve }, async (validator, signal) => {
        const word = await this.#answer(validator, 'committee/standing', {}, standingWord, { signal });
        const statement = standingOf(this.#options, identity, root, word.atMs);
        await this.#holds(validator, word.attestation, SPACE_STANDING_TYPE, statement);
        return word;
      });
      return [...words].sort(byValidator);
    } catch (error) {
      if (isCoded(error, 'space-unavailable')) this.#options.forgotten();
      throw error;
    }
  }

  /**
   * Brings this home's commitment to validators that do not know it, because they got their seats after it was registered, so that nothing waits for that when
   * another one is away. Returns whether all know it now.
   */
  async introduce(root: string): Promise<boolean> {
    const validators = this.#all();
    const ask = (validator: string) => this.#answer(validator, 'committee/standing', {}, standingWord);
    const asked = await Promise.allSettled(validators.map(ask));
    const isKnown = asked.every(({ status }) => status === 'fulfilled');
    for (const [i, validator] of validators.entries()) {
      const said = asked[i]!;
      if (said.status === 'rejected' && isCoded(said.reason, 'space-unavailable'))
        await this.#introduce(validator, root);
    }
    return isKnown;
  }

  /** A validator that does not know this home's commitment gets the word of the others for it: it is of use for the next anchor. */
  async #introduce(validator: string, root: string): Promise<void> {
    try {
      const words = await this.standing(root);
      await this.#answer(validator, 'committee/introduce', { root, words }, nothing);
      // Once: who was told and still says that it does not know is passed over as anybody who fails.
      if (this.#introduced.has(`${validator} ${root}`)) return;
      this.#introduced.add(`${validator} ${root}`);
      this.#shunned.delete(validator);
    } catch {
      // It stays without until the next time that it is asked.
    }
  }

  /** Votes that did not suffice are kept, here and by the validators. */
  #bear(ballot: Endorsement): void {
    if (this.#all().length === 1) return;
    this.#lent.votes.witness.keep(ballot);
    this.#confirm(ballot);
  }

  /** To everybody, not waiting for anybody: who misses it hears of it with the next operation. */
  #confirm(certificate: Endorsement): void {
    for (const validator of this.#all()) {
      if (validator === this.#lent.own?.validator) continue;
      this.#answer(validator, 'committee/confirm', { certificate }, nothing).catch(() => undefined);
    }
  }

  /** A newer certificate of this identity than this home has: it was restored from an older copy of itself, or did not live to see the answer. */
  async #catchUp({ identity, kind }: Operation, value: unknown): Promise<void> {
    const { trust, votes } = this.#lent;
    try {
      const certificate = await checkedCertificate(trust, value, this.#options);
      const { operation } = certificate;
      if (operation.identity === identity && operation.kind === kind) votes.record(certificate);
    } catch {
      throw new Senseless('its certificate does not hold');
    }
  }

  /** All validators of an anchor, each with its share. One that fails in the middle costs the anchor. Errors: `anchor-lost`, `proof-expired`, refusals. */
  async #each<T>(shares: readonly AnchorShare[], ask: (share: AnchorShare) => Promise<T>): Promise<readonly T[]> {
    const asked = await Promise.allSettled(shares.map(ask));
    const refusals: unknown[] = [];
    let lost: HyperMeshError | undefined;
    for (const [i, outcome] of asked.entries()) {
      if (outcome.status === 'fulfilled') continue;
      const { reason } = outcome;
      if (
        isCoded(
          reason,
          'proof-expired',
          'proof-rejected',
          'network-mismatch',
          'epoch-over',
          'cancelled',
          'quota-exceeded',
        )
      )
        refusals.push(reason);
      else lost = this.#lost(shares[i]!.attestation.validator, reason);
    }
    // Of what more than the faulty say there is an honest one who says it; a refusal by fewer is as good as silence.
    if (refusals.length > this.#quorum.faulty) throw refusals[0];
    const refuser = asked.findIndex((outcome) => outcome.status === 'rejected');
    if (lost !== undefined) throw lost;
    if (refusals.length > 0) {
      throw isCoded(refusals[0], 'proof-expired')
        ? refusals[0]
        : this.#lost(shares[refuser]!.attestation.validator, refusals[0]);
    }
    return asked.map((outcome) => (outcome as PromiseFulfilledResult<T>).value);
  }

  #lost(validator: string, cause?: unknown): HyperMeshError {
    // With nobody else to ask there is no use in avoiding it.
    this.#shun(validator);
    if (this.#all().length === 1 && cause !== undefined && isCoded(cause)) return cause;
    const why = cause === undefined ? 'it does not know the space commitment of this home.' : (cause as Error).message;
    return new HyperMeshError('anchor-lost', `A validator of the anchor does not answer for it any more: ${why}`, {
      hint: 'Run the command again; it begins with a new anchor.',
      cause,
    });
  }

  #shun(validator: string): void {
    const nowMs = this.#options.clock.nowMs();
    if (this.#isShunned(validator) && this.#quorum.faulty > 0) this.#leftOut.set(validator, nowMs + LEFT_OUT_MS);
    this.#shunned.set(validator, nowMs + SHUNNED_MS);
  }

  #isShunned(validator: string): boolean {
    return (this.#shunned.get(validator) ?? 0) > this.#options.clock.nowMs();
  }

  /** Whether the committee could take that for a moment between question and answer, however long that was. Judges allow as much between their clocks. */
  #isTimely(atMs: number, askedAtMs: number, answeredAtMs: number = this.#options.clock.nowMs()): boolean {
    if (this.#behindMs === undefined) return true;
    const { least, most } = this.#behindMs;
    const { clockSkewMs } = this.#options.genesis.limits;
    return atMs >= askedAtMs + least - clockSkewMs && atMs <= answeredAtMs + most + clockSkewMs;
  }

  /** Whose answers are wanted first: all, but for those that failed lately, who are asked when too few of the others answer. */
  #turns(): { readonly first: readonly string[]; readonly reserve: readonly string[] } {
    const nowMs = this.#options.clock.nowMs();
    const asked = this.#all().filter((validator) => (this.#leftOut.get(validator) ?? 0) <= nowMs);
    const first = asked.filter((validator) => !this.#isShunned(validator));
    if (first.length < this.#quorum.needed || nowMs < this.#hangingUntilMs) return { first: asked, reserve: [] };
    return { first, reserve: asked.filter((validator) => this.#isShunned(validator)) };
  }

  #all(): readonly string[] {
    return this.#options.committee.validators.map(({ key }) => key);
  }

  get #quorum(): { readonly needed: number; readonly faulty: number; readonly hangs: () => void } {
    const { length } = this.#options.committee.validators;
    const hangs = () => {
      this.#hangingUntilMs = this.#options.clock.nowMs() + HANGING_MS;
    };
    return { needed: quorumOf(length), faulty: Math.floor((length - 1) / 3), hangs };
  }

  /** Errors: {@link Senseless}. */
  async #holds(validator: string, word: FastAttestation, type: string, statement: unknown): Promise<void> {
    const keys = this.#options.committee.validators.find(({ key }) => key === validator)!;
    if (word.validator !== validator || !(await this.#lent.trust.attested(word, type, statement, keys)))
      throw new Senseless('its signature does not hold');
  }

  async #answer<T>(
    validator: string,
    method: CommitteeMethod & DeskMethod,
    body: object,
    schema: z.ZodType<T>,
    options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number } = {},
  ): Promise<T> {
    const { own, ask } = this.#lent;
    const isOwn = validator === own?.validator;
    // Other validators answer from another process.
    if (isOwn) await laterTurn();
    const said = isOwn
      ? await own.desk.answer(method, this.#options.identity, body, options)
      : await ask(validator, method, body as Json, options);
    const parsed = schema.safeParse(said);
    if (parsed.success) return parsed.data;
    throw new Senseless(firstIssue(parsed.error));
  }
}

function either(signal: AbortSignal | undefined, stop: AbortSignal): { readonly signal: AbortSignal } {
  return { signal: signal === undefined ? stop : AbortSignal.any([signal, stop]) };
}
