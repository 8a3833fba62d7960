import { randomBytes } from 'node:crypto';
import { fromBase64 } from '../../src/base/bytes.ts';
import type { Digest } from '../../src/base/digest.ts';
import type { Json } from '../../src/base/json.ts';
import type { Consensus } from '../../src/capabilities/consensus.ts';
import type { SeatAsk } from '../../src/capabilities/membership.ts';
import type { Trust } from '../../src/capabilities/trust.ts';
import { challengeOf, shareStatement } from '../../src/subsystems/nkrypt/anchor.ts';
import { openingDigest, spaceReceipt } from '../../src/subsystems/nkrypt/judge.ts';
import { encodeOrder, ORDER_TYPE, type SelfSigned } from '../../src/wire/entry.ts';
import { epochDigest } from '../../src/wire/epoch.ts';
import {
  HEAD_TYPE,
  type HeadStatement,
  PREPARE_TYPE,
  type PrepareStatement,
  type VoteExchange,
} from '../../src/wire/order.ts';
import {
  type AnchorShare,
  AUDITS,
  beaconOf,
  type Challenge,
  type Endorsement,
  hashedTimes,
  type Operation,
  type ProofSet,
  proofsDigest,
  SHARE_TYPE,
  SPACE_RECEIPT_TYPE,
  VOTE_TYPE,
} from '../../src/wire/proof.ts';

/** How a validator answers others. Whatever it signs, it signs as itself. */
export type Behaviour =
  | 'honest'
  | 'silent'
  | 'votes for everything'
  | 'replays'
  | 'lies about time'
  | 'lies about the order'
  /** Of the engine in its home: one order for the first who asks, and another one for everybody else. */
  | 'shows different entries';

export interface Submission {
  readonly proofs: ProofSet;
  readonly order: SelfSigned;
}

export interface LiarLent {
  readonly trust: Pick<Trust, 'attest' | 'attestFast' | 'sign' | 'publicKeys'>;
  readonly consensus: Pick<Consensus, 'genesis' | 'challenge' | 'prove'>;
}

const HOUR_MS = 3_600_000;

interface Opened {
  readonly challenge: Challenge;
  readonly revealed: readonly string[];
  readonly root: string;
  readonly labels: string;
  readonly path: string;
}

/** What a dishonest validator does with the keys and proofs of a real one. */
export class Liar {
  behaviour: Behaviour = 'honest';
  /** Of the whole home, which believes it itself. */
  readonly clock = { nowMs: () => Date.now() + (this.behaviour === 'lies about time' ? HOUR_MS : 0) };
  /** Answers that it gave, by method, for replaying. */
  readonly #given = new Map<string, Json>();
  /** Who asked its engine first. */
  #first: string | undefined;
  /** Seeds of shares that it made up. */
  readonly #seeds = new Map<string, string>();
  #lent: LiarLent | undefined;

  /** To be called once the home is open, which needs the clock. */
  take(lent: LiarLent): void {
    this.#lent = lent;
  }

  /** `from`: who asks. */
  async answer(method: string, body: Json, from: string, honestly: () => Promise<Json>): Promise<Json> {
    switch (this.behaviour) {
      case 'silent':
        return new Promise(() => undefined);
      case 'votes for everything':
        return (await this.#everything(method, body)) ?? honestly();
      case 'replays': {
        const before = this.#given.get(method);
        const now = await honestly();
        this.#given.set(method, now);
        return before ?? now;
      }
      case 'lies about the order':
        return method === 'order/votes' ? this.#heads((await honestly()) as unknown as VoteExchange) : honestly();
      case 'shows different entries': {
        if (method !== 'sequence/read') return honestly();
        const { entries } = (await honestly()) as { readonly entries: readonly string[] };
        // With a single one there is nothing to show differently.
        if (entries.length < 2) return { entries: [] };
        this.#first ??= from;
        return { entries: from === this.#first ? [...entries] : entries.toReversed() };
      }
      case 'honest':
      case 'lies about time':
        return honestly();
    }
  }

  /** Signs and proves two operations with one number, and hands the sets with their orders to whoever asks: nothing was voted for. */
  async equivocate(
    [first, second]: readonly Digest[],
    [ref, otherRef]: readonly string[],
    ask: SeatAsk,
  ): Promise<readonly Submission[]> {
    const { trust, consensus } = this.#lent!;
    const honest = await consensus.challenge('publish', first!, ref!);
    const operation: Operation = { ...honest.operation, subject: second!, ref: otherRef! };
    const { networkId, committee, requirements } = honest;
    const signed = async (what: Operation): Promise<SelfSigned> => {
      const payload = encodeOrder({ formatVersion: 1, networkId, operation: what });
      const [keys, envelope] = await Promise.all([
        trust.publicKeys('publisher'),
        trust.sign('publisher', ORDER_TYPE, payload),
      ]);
      return { keys, envelope };
    };
    const order = await signed(operation);
    const { validators } = await this.#committee();
    const body = { operation, order, newest: null } as unknown as Json;
    const answers = await Promise.allSettled(validators.map(({ key }) => ask(key, 'committee/anchor', body)));
    const shares = answers.flatMap((one) =>
      one.status === 'fulfilled' ? [one.value as { share: AnchorShare; previous: Digest }] : [],
    );
    const needed = honest.anchor.shares.length;
    const alikeTo = (previous: Digest) => shares.filter((one) => one.previous === previous);
    const { previous } = shares.find((one) => alikeTo(one.previous).length >= needed)!;
    const alike = alikeTo(previous).slice(0, needed);
    const other = challengeOf(
      { operation, requirements, networkId, committee, previous },
      alike.map(({ share }) => share),
    );
    const submissions: Submission[] = [];
    for (const challenge of [honest, other])
      submissions.push({ proofs: await consensus.prove(challenge), order: await signed(challenge.operation) });
    return submissions;
  }

  /** Who votes now: that of the genesis, or of the last document. */
  async #committee(): Promise<{ readonly digest: Digest; readonly validators: readonly { readonly key: string }[] }> {
    const { networkId, document, epochs } = await this.#lent!.consensus.genesis();
    const last = epochs.at(-1);
    if (last !== undefined) return { digest: epochDigest(last), validators: last.validators };
    const { validators } = (document as unknown as { committee: { validators: [] } }).committee;
    return { digest: networkId, validators };
  }

  /** Another head to everybody who asks, and entries that nobody has. */
  async #heads({ applied, prepares }: VoteExchange): Promise<Json> {
    const { trust, consensus } = this.#lent!;
    const { networkId } = await consensus.genesis();
    const { digest: committee } = await this.#committee();
    const { view, index } = prepares[0]?.statement ?? { view: 0, index: applied + 1 };
    const place = { networkId, committee, view, index, head: randomBytes(32).toString('hex') };
    const shown: PrepareStatement = { formatVersion: 1, ...place };
    const statement: HeadStatement = {
      ...{ formatVersion: 3, ...place },
      ...{ base: applied, stateRoot: randomBytes(32).toString('hex') },
    };
    return {
      ...{ applied: applied + 3, recovery: null },
      prepares: [{ statement: shown, attestation: await trust.attest(PREPARE_TYPE, shown) }],
      commits: [{ statement, attestation: await trust.attest(HEAD_TYPE, statement) }],
    } as unknown as Json;
  }

  /** Says yes to whatever is asked, checks nothing, and remembers nothing of it. */
  async #everything(method: string, body: Json): Promise<Json | undefined> {
    const { trust, consensus } = this.#lent!;
    const { networkId, document } = await consensus.genesis();
    const { digest: committee } = await this.#committee();
    const nowMs = this.clock.nowMs();
    switch (method) {
      case 'committee/anchor': {
        const { operation } = body as unknown as { operation: Operation };
        const seed = randomBytes(32).toString('hex');
        const own = { nonce: hashedTimes(seed, AUDITS + 1), issuedAtMs: nowMs, hexDigits: 1 };
        this.#seeds.set(own.nonce, seed);
        const { newest } = body as unknown as { newest: Endorsement | null };
        const previous = newest === null ? (`sha256:${'0'.repeat(64)}` as const) : newest.proofs;
        const statement = shareStatement({ networkId, committee, operation, previous }, own);
        const share: AnchorShare = { ...own, attestation: await trust.attestFast(SHARE_TYPE, statement) };
        return { share, previous, newest: null } as unknown as Json;
      }
      case 'committee/reveal': {
        const { challenge, attempt } = body as unknown as { challenge: Challenge; attempt: number };
        const mine = challenge.anchor.shares.find(({ nonce }) => this.#seeds.has(nonce));
        if (mine === undefined) return undefined;
        const revealed = hashedTimes(this.#seeds.get(mine.nonce)!, AUDITS + 1 - attempt);
        return { revealed, root: 'f'.repeat(64) };
      }
      case 'committee/opening': {
        const { challenge, revealed, root, labels, path } = body as unknown as Opened;
        if (!challenge.anchor.shares.some(({ nonce }) => this.#seeds.has(nonce))) return undefined;
        const opening = openingDigest({ labels: fromBase64(labels), path: fromBase64(path) });
        const { bytes } = (document as unknown as { space: { bytes: number } }).space;
        const own = { issuedAtMs: nowMs - 1, arrivedAtMs: nowMs };
        const receipt = spaceReceipt(challenge, { root, bytes, beacon: beaconOf(revealed), opening }, own);
        return { ...own, attestation: await trust.attestFast(SPACE_RECEIPT_TYPE, receipt) } as unknown as Json;
      }
      case 'committee/vote': {
        const { proofs } = body as unknown as { proofs: ProofSet };
        const { operation } = proofs.challenge;
        const vote = { formatVersion: 3, networkId, committee, operation, proofs: proofsDigest(proofs), atMs: nowMs };
        return { atMs: vote.atMs, attestation: await trust.attest(VOTE_TYPE, vote) } as unknown as Json;
      }
      default:
        return undefined;
    }
  }
}
