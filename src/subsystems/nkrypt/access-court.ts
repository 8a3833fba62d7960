import { randomBytes } from 'node:crypto';
import { fromBase64, hex } from '../../base/bytes.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import {
  ACCESS_LIMITS,
  type AccessChallenge,
  type AccessProof,
  accessContext,
  accessProof,
  packageSet,
  type StandingWord,
  USES,
  type Use,
} from '../../wire/access.ts';
import type { Genesis } from '../../wire/genesis.ts';
import type { Requirements } from '../../wire/proof.ts';
import { firstIssue } from '../../wire/signature.ts';
import { openingDigest } from './judge.ts';
import { rootOf } from './merkle.ts';
import { auditPositions } from './registration.ts';
import { LABEL_BYTES } from './space-graph.ts';
import { checkTime } from './time.ts';
import { checkWork } from './work.ts';

/** Where the table names no window. */
const WINDOW_MS = 60_000;
/** Challenges that wait, or were used and are remembered for their window. */
const CHALLENGES_MAX = 10_000;
const CHALLENGES_EACH_MAX = 64;
/** Packages that somebody has access to now. */
const GRANTS_MAX = 200_000;

interface Asked {
  readonly challenge: AccessChallenge;
  readonly untilMs: number;
  /** What `opened` said in time; null before. */
  opening: Digest | null;
  used: boolean;
}

/**
 * The node that gives content is the judge of who may take it: it makes the challenge, so it knows that the proof is for it, fresh, and new;
 * it looks at its own clock; it needs nobody's signature. All of it is memory: after a restart whoever asks proves once more.
 */
export class AccessCourt {
  readonly #standing: (identity: string, root: string, standing: readonly StandingWord[]) => Promise<void>;
  readonly #clock: Clock;
  readonly #genesis: Genesis;
  readonly #networkId: Digest;
  readonly #node: string;
  readonly #asked = new Map<string, Asked>();
  readonly #waiting = new Map<string, number>();
  /** `identity package` -> until when. In the order of time, because every grant of a use is good for equally long. */
  readonly #grants = new Map<string, number>();

  constructor(
    lent: {
      /** That the commitment of this root is registered, by the word of the committee. Errors: `proof-rejected`. */
      standing(identity: string, root: string, standing: readonly StandingWord[]): Promise<void>;
    },
    options: {
      readonly clock: Clock;
      readonly genesis: Genesis;
      readonly networkId: Digest;
      /** Key id of this node. */
      readonly node: string;
    },
  ) {
    this.#standing = lent.standing;
    this.#clock = options.clock;
    this.#genesis = options.genesis;
    this.#networkId = options.networkId;
    this.#node = options.node;
  }

  /** Whether that publisher showed a moment ago that it may use this package. */
  canAccess(identity: string, id: Digest): boolean {
    return (this.#grants.get(`${identity} ${id}`) ?? 0) > this.#clock.nowMs();
  }

  /** What has to be proved; null: nothing. Errors: `quota-exceeded`, `usage`. */
  challenge(identity: string, use: Use, ids: readonly Digest[]): AccessChallenge | null {
    if (!USES.includes(use)) throw new HyperMeshError('usage', `Expected ${USES.join(' or ')} as the use of content.`);
    const packages = packageSet(ids);
    if (packages.length === 0 || packages.length > ACCESS_LIMITS.packagesMax) {
      throw new HyperMeshError('usage', `Access is to 1 to ${ACCESS_LIMITS.packagesMax} packages at once.`);
    }
    const nowMs = this.#clock.nowMs();
    if (packages.every((id) => this.canAccess(identity, id))) return null;
    const row = this.#row(use);
    if (row.space === null && row.work === null && row.time === null) {
      this.#grant(identity, packages, nowMs + windowMs(row));
      return null;
    }
    this.#forget(nowMs);
    if (this.#asked.size >= CHALLENGES_MAX || (this.#waiting.get(identity) ?? 0) >= CHALLENGES_EACH_MAX) {
      throw new HyperMeshError('quota-exceeded', 'Too many proofs of access are under way here.', {
        hint: 'Try again in a moment.',
      });
    }
    const challenge: AccessChallenge = {
      formatVersion: 1,
      networkId: this.#networkId,
      node: this.#node,
      identity,
      use,
      packages,
      nonce: hex(randomBytes(32)),
      issuedAtMs: nowMs,
    };
    this.#asked.set(challenge.nonce, { challenge, untilMs: nowMs + windowMs(row), opening: null, used: false });
    this.#waiting.set(identity, (this.#waiting.get(identity) ?? 0) + 1);
    return challenge;
  }

  /** The labels were read: what they are is said now, and shown with the proof. The clock of the audit stops here. Errors: `proof-expired`, `proof-rejected`, `proof-replayed`. */
  opened(identity: string, nonce: string, opening: Digest): void {
    const asked = this.#asked.get(nonce);
    if (asked === undefined || asked.challenge.identity !== identity) throw unknown();
    if (asked.used || asked.opening !== null) throw replayed();
    const { deadlineMs } = this.#row(asked.challenge.use).space ?? {
      deadlineMs: windowMs(this.#row(asked.challenge.use)),
    };
    const tookMs = this.#clock.nowMs() - asked.challenge.issuedAtMs;
    if (tookMs > deadlineMs) {
      asked.used = true;
      throw new HyperMeshError('proof-expired', `The audit took ${tookMs} of ${deadlineMs} ms.`, {
        hint: 'The disk or the processor is very busy; run the command again.',
      });
    }
    asked.opening = opening;
  }

  /**
   * Judges a proof that is to give `identity` its packages here; one that holds is remembered for the window. A challenge is good for one attempt.
   * Returns how long the access lasts. Errors: `proof-invalid`, `network-mismatch`, `not-permitted` (made for somebody else, or for another node),
   * `proof-replayed`, `proof-expired`, `proof-rejected`.
   */
  async validate(identity: string, value: unknown, standing: readonly StandingWord[]): Promise<number> {
    const parsed = accessProof.safeParse(value);
    if (!parsed.success) {
      throw new HyperMeshError('proof-invalid', `Expected a proof of access, but ${firstIssue(parsed.error)}.`);
    }
    const proof = parsed.data;
    const { challenge } = proof;
    if (challenge.networkId !== this.#networkId) {
      throw new HyperMeshError('network-mismatch', 'The proof of access is about another network.');
    }
    if (challenge.node !== this.#node) {
      throw new HyperMeshError('not-permitted', 'The proof of access was made for another node.');
    }
    if (challenge.identity !== identity) {
      throw new HyperMeshError(
        'not-permitted',
        'The proof of access was made for another publisher than the one who asks.',
      );
    }
    const asked = this.#asked.get(challenge.nonce);
    const row = this.#row(challenge.use);
    const nowMs = this.#clock.nowMs();
    const expired = nowMs - challenge.issuedAtMs > windowMs(row);
    if (asked?.used === true) throw replayed();
    if (expired) throw new HyperMeshError('proof-expired', 'The proof of access is older than its window.');
    if (asked === undefined) throw unknown();
    if (canonicalJson(asked.challenge) !== canonicalJson(challenge)) {
      throw new HyperMeshError('proof-rejected', 'The proof of access answers another challenge than was made here.');
    }
    // From here on this challenge is used, whatever comes of it.
    asked.used = true;
    await this.#check(proof, row, asked.opening, standing);
    const untilMs = nowMs + windowMs(row);
    this.#grant(identity, challenge.packages, untilMs);
    return untilMs - nowMs;
  }

  async #check(
    { challenge, space, work, time }: AccessProof,
    row: Requirements,
    opening: Digest | null,
    standing: readonly StandingWord[],
  ): Promise<void> {
    const context = accessContext(challenge);
    for (const [name, body, asked] of [
      ['space', space, row.space],
      ['work', work, row.work],
      ['time', time, row.time],
    ] as const) {
      if ((body === null) !== (asked === null))
        throw refused(name, body === null ? 'it is missing' : 'it is not asked for');
    }
    if (row.work !== null) refuse('work', checkWork(context, row.work.hexDigits, work!));
    if (row.space !== null) {
      const [labels, path] = [fromBase64(space!.labels), fromBase64(space!.path)];
      if (opening === null) throw refused('space', 'nothing was opened in time');
      if (opening !== openingDigest({ labels, path })) throw refused('space', 'other labels were opened in time');
      const { bytes } = this.#genesis.space;
      if (bytes < row.space.bytesMin) throw refused('space', `${row.space.bytesMin} bytes are asked for`);
      const n = bytes / LABEL_BYTES;
      const positions = auditPositions(challenge.nonce, context, space!.root, n, row.space.openings);
      const root = rootOf(n, positions, { labels, path });
      if (root === undefined || hex(root) !== space!.root) throw refused('space', 'the labels do not lead to the root');
      await this.#standing(challenge.identity, space!.root, standing);
    }
    if (row.time !== null) refuse('time', checkTime(context, row.time.squarings, time!));
  }

  #row(use: Use): Requirements {
    return this.#genesis.requirements[use];
  }

  #grant(identity: string, packages: readonly Digest[], untilMs: number): void {
    for (const id of packages) {
      const key = `${identity} ${id}`;
      this.#grants.delete(key);
      this.#grants.set(key, untilMs);
    }
    const nowMs = this.#clock.nowMs();
    for (const [key, endsMs] of this.#grants) {
      if (endsMs > nowMs && this.#grants.size <= GRANTS_MAX) break;
      this.#grants.delete(key);
    }
  }

  #forget(nowMs: number): void {
    for (const [nonce, { challenge, untilMs }] of this.#asked) {
      if (untilMs > nowMs) continue;
      this.#asked.delete(nonce);
      const left = this.#waiting.get(challenge.identity)! - 1;
      if (left === 0) this.#waiting.delete(challenge.identity);
      else this.#waiting.set(challenge.identity, left);
    }
  }
}

function windowMs(row: Requirements): number {
  return row.time?.windowMs ?? WINDOW_MS;
}

function refuse(part: string, why: string | undefined): void {
  if (why !== undefined) throw refused(part, why);
}

function refused(part: string, why: string): HyperMeshError {
  return new HyperMeshError('proof-rejected', `The ${part} part of a proof of access was refused: ${why}.`, {
    details: { proof: part },
  });
}

function unknown(): HyperMeshError {
  return new HyperMeshError('proof-rejected', 'The proof of access answers a challenge that this node did not make.');
}

function replayed(): HyperMeshError {
  return new HyperMeshError('proof-replayed', 'The challenge of this proof of access was used before.');
}
