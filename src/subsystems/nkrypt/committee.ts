import { randomBytes } from 'node:crypto';
import { base64, equal, fromUtf8, hex } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, digestOf, isDigest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import type { Admission, ProofVerdict } from '../../capabilities/consensus.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { StandingWord } from '../../wire/access.ts';
import { inclusionLeaf } from '../../wire/bundle.ts';
import type { Genesis } from '../../wire/genesis.ts';
import {
  admittedAtMs,
  type Challenge,
  contextOf,
  decodeEndorsement,
  decodeProofSet,
  type Endorsement,
  NO_PREVIOUS,
  type Operation,
  type OperationKind,
  operationDigest,
  type ProofSet,
  proofsDigest,
  SPACE_RECEIPT_TYPE,
  type SpaceProof,
  STAKE_STATEMENT_TYPE,
  type StakeProof,
  VOTE_TYPE,
  type Vote,
} from '../../wire/proof.ts';
import {
  anchorAgeMs,
  type Court,
  judge,
  judgeInTurn,
  openingDigest,
  reported,
  spaceReceipt,
  stakeStatement,
} from './judge.ts';
import type { Ledger } from './ledger/ledger.ts';
import { type Opening, rootOf } from './merkle.ts';
import { auditPositions, checkRegistration } from './registration.ts';
import type { SpaceRegistry } from './space.ts';
import { LABEL_BYTES, labelSeed } from './space-graph.ts';
import { standFor } from './standing.ts';
import type { Store } from './store.ts';

/** An anchor is answerable for at least this long, also when the table asks for no time proof. */
const ANCHOR_MS_MIN = 300_000;
/** How long an endorsement of a publish is kept for the publisher who lost it on the way. */
const PUBLISH_KEPT_MS = 25 * 3_600_000;
const OUTSTANDING_MAX = 10_000;
/** For one identity, so that one member cannot take the places of all others. */
const OUTSTANDING_EACH_MAX = 2_000;
/** Audits of one operation: more attempts would let a prover who lost labels wait for an easy question. */
const AUDITS_MAX = 8;
const AUDITED_MAX = 1_000;

interface Audit {
  readonly beacon: string;
  readonly issuedAtMs: number;
  readonly attempts: number;
}

/** The part of the store that a commitment is registered in. */
export interface OwnRegistry extends SpaceRegistry {
  remember(roots: readonly string[]): void;
  forget(): void;
}

interface IssuedRow {
  readonly operation: Digest;
  readonly context: Digest;
  readonly used: number;
}

interface AdmissionRow {
  readonly operation: Digest;
  readonly proofs: Digest;
  readonly vote: string;
  readonly endorsement: string | null;
}

/**
 * One member of the committee: issues anchors, witnesses audits, certifies accounts, checks submissions and votes.
 * Its memory is the store; only open audits live in the process, because an audit that a crash interrupted is too late anyway.
 */
export class Committee {
  readonly #trust: Pick<Trust, 'attest' | 'attestFast' | 'attested'>;
  readonly #store: Store;
  readonly #ledger: Pick<Ledger, 'account'>;
  readonly #clock: Clock;
  readonly #genesis: Genesis;
  readonly #networkId: Digest;
  readonly #audits = new Map<Digest, Audit>();
  readonly #admitting = new Map<Digest, Promise<Admission>>();

  constructor(
    lent: {
      readonly trust: Pick<Trust, 'attest' | 'attestFast' | 'attested'>;
      readonly store: Store;
      readonly ledger: Pick<Ledger, 'account'>;
    },
    options: { readonly clock: Clock; readonly genesis: Genesis; readonly networkId: Digest },
  ) {
    this.#trust = lent.trust;
    this.#store = lent.store;
    this.#ledger = lent.ledger;
    this.#clock = options.clock;
    this.#genesis = options.genesis;
    this.#networkId = options.networkId;
  }

  /**
   * Takes the next sequence number of the identity and an anchor that nobody can foresee. One transaction: a crash before it leaves
   * nothing, a crash after it leaves a number that is never used. Errors: `quota-exceeded`; `not-owner`, `version-exists` for a publish that
   * could not be admitted.
   */
  issue(identity: string, kind: OperationKind, subject: Digest, ref: string): Challenge {
    const nowMs = this.#clock.nowMs();
    const requirements = this.#genesis.requirements[kind];
    this.#checkClaim({ kind, identity, subject, ref });
    return this.#store.transact((raw) => {
      raw.prepare('DELETE FROM challenges WHERE keep_until_ms < ?').run(nowMs);
      raw.prepare('DELETE FROM admissions WHERE keep_until_ms < ?').run(nowMs);
      const { open } = raw
        .prepare('SELECT count(*) AS open FROM challenges WHERE used = 0 AND issued_at_ms > ?')
        .get(nowMs - ANCHOR_MS_MIN) as { open: number };
      if (open >= OUTSTANDING_MAX) {
        throw new HyperMeshError('quota-exceeded', `${open} challenges wait for their proofs.`, {
          hint: 'Try again in some minutes.',
        });
      }
      const { own } = raw
        .prepare('SELECT count(*) AS own FROM challenges WHERE identity = ? AND used = 0 AND issued_at_ms > ?')
        .get(identity, nowMs - ANCHOR_MS_MIN) as { own: number };
      if (own >= OUTSTANDING_EACH_MAX) {
        throw new HyperMeshError('quota-exceeded', `${own} challenges of this identity wait for their proofs.`, {
          hint: 'Try again in some minutes.',
        });
      }
      const { sequence } = raw
        .prepare(
          'INSERT INTO identities (identity, sequence) VALUES (?, 1) ON CONFLICT (identity) DO UPDATE SET sequence = sequence + 1 RETURNING sequence',
        )
        .get(identity) as { sequence: number };
      const tip = raw.prepare('SELECT previous FROM tips WHERE identity = ? AND kind = ?').get(identity, kind) as
        | { previous: Digest }
        | undefined;
      const unsealed = {
        operation: { kind, subject, ref, identity, sequence },
        requirements,
        networkId: this.#networkId,
        anchor: { nonce: hex(randomBytes(32)), issuedAtMs: nowMs, previous: tip?.previous ?? NO_PREVIOUS },
      };
      const challenge: Challenge = { ...unsealed, context: contextOf(unsealed) };
      raw
        .prepare(
          'INSERT INTO challenges (nonce, identity, sequence, operation, context, issued_at_ms, keep_until_ms) VALUES (?, ?, ?, ?, ?, ?, ?)',
        )
        .run(
          challenge.anchor.nonce,
          identity,
          sequence,
          operationDigest(challenge.operation),
          challenge.context,
          nowMs,
          nowMs + 2 * windowMs(challenge) + 10 * 60_000,
        );
      return challenge;
    });
  }

  /** The part of the store that a commitment of this identity is registered in. */
  registry(identity: string): OwnRegistry {
    const raw = this.#store.raw;
    const row = () =>
      raw.prepare('SELECT roots, nonce, registered FROM commitments WHERE identity = ?').get(identity) as
        | { roots: string; nonce: string; registered: number }
        | undefined;
    return {
      registered: () => {
        const found = row();
        return found?.registered === 1 ? (JSON.parse(found.roots) as string[]).at(-1) : undefined;
      },
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
      // What another committee said about the commitment of this home.
      remember: (roots) => {
        raw
          .prepare('INSERT OR REPLACE INTO commitments (identity, roots, nonce, registered) VALUES (?, ?, ?, 1)')
          .run(identity, JSON.stringify(roots), '');
      },
      forget: () => {
        raw.prepare('DELETE FROM commitments WHERE identity = ?').run(identity);
      },
      finish: async (registration) => {
        const found = row();
        if (found?.nonce !== registration.nonce || found.roots !== JSON.stringify(registration.roots)) {
          throw new HyperMeshError('proof-rejected', 'The registration answers another challenge.');
        }
        const { bytes, iterations, registrationOpenings } = this.#genesis.space;
        const seed = labelSeed(this.#networkId, identity);
        await checkRegistration(registration, { seed, bytes, iterations, openings: registrationOpenings });
        // Commit point: before it the layers are still there and the registration is done again.
        raw
          .prepare('UPDATE commitments SET registered = 1 WHERE identity = ? AND nonce = ?')
          .run(identity, registration.nonce);
      },
    };
  }

  /** Every commitment that is registered here. */
  registrations(): readonly { readonly identity: string; readonly root: string }[] {
    const rows = this.#store.raw.prepare('SELECT identity, roots FROM commitments WHERE registered = 1').all();
    return (rows as { identity: string; roots: string }[]).map(({ identity, roots }) => ({
      identity,
      root: (JSON.parse(roots) as string[]).at(-1)!,
    }));
  }

  /** What this committee says about the commitment of an identity. Errors: `space-unavailable` when none is registered. */
  async standing(identity: string): Promise<readonly StandingWord[]> {
    const root = this.registry(identity).registered();
    if (root === undefined) {
      throw new HyperMeshError('space-unavailable', 'The committee does not know the space commitment of this home.', {
        hint: 'It is registered again; the next attempt waits for it.',
      });
    }
    const terms = { genesis: this.#genesis, networkId: this.#networkId, clock: this.#clock };
    return [await standFor(this.#trust, terms, identity, root)];
  }

  /** Asks for labels; the clock runs from now. Errors: `proof-rejected` after too many attempts for one operation. */
  beginAudit(challenge: Challenge): { readonly beacon: string } {
    this.#issued(challenge);
    const attempts = (this.#audits.get(challenge.context)?.attempts ?? 0) + 1;
    if (attempts > AUDITS_MAX) throw rejected('space', `${AUDITS_MAX} audits of one operation are enough`);
    const audit: Audit = { beacon: hex(randomBytes(32)), issuedAtMs: this.#clock.nowMs(), attempts };
    this.#audits.delete(challenge.context);
    this.#audits.set(challenge.context, audit);
    const [oldest] = this.#audits.keys();
    if (this.#audits.size > AUDITED_MAX && oldest !== undefined) this.#audits.delete(oldest);
    return audit;
  }

  /** Signs when the answer arrived, if it is right. Errors: `proof-expired` (too late), `proof-rejected`. */
  async finishAudit(challenge: Challenge, root: string, opening: Opening): Promise<SpaceProof> {
    const arrivedAtMs = this.#clock.nowMs();
    this.#issued(challenge);
    const audit = this.#audits.get(challenge.context);
    const asked = challenge.requirements.space;
    if (audit === undefined || asked === null) throw rejected('space', 'there is no audit of this operation');
    const { identity } = challenge.operation;
    if (this.registry(identity).registered() !== root) throw rejected('space', 'the commitment is not registered');
    const { beacon, issuedAtMs } = audit;
    if (arrivedAtMs - issuedAtMs > asked.deadlineMs) {
      throw new HyperMeshError('proof-expired', `The audit took longer than ${asked.deadlineMs} ms.`, {
        hint: 'The disk or the processor is very busy; run the command again.',
      });
    }
    const { bytes } = this.#genesis.space;
    const n = bytes / LABEL_BYTES;
    const positions = auditPositions(beacon, challenge.context, root, n, asked.openings);
    const led = rootOf(n, positions, opening);
    if (led === undefined || hex(led) !== root) throw rejected('space', 'the opened labels do not lead to the root');
    const about = { root, bytes, beacon, opening: openingDigest(opening) };
    const own = { issuedAtMs, arrivedAtMs };
    const attestation = await this.#trust.attestFast(SPACE_RECEIPT_TYPE, spaceReceipt(challenge, about, own));
    return {
      root,
      beacon,
      labels: base64(opening.labels),
      path: base64(opening.path),
      receipts: [{ ...own, attestation }],
    };
  }

  /** What the ledger says about the account that asks. */
  async certifyStake(challenge: Challenge): Promise<StakeProof> {
    this.#issued(challenge);
    const { balance, ...account } = this.#ledger.account(challenge.operation.identity);
    const locked = account.isSuspended ? 0 : account.locked;
    const own = { balance, locked, issuedAtMs: this.#clock.nowMs() };
    const attestation = await this.#trust.attestFast(STAKE_STATEMENT_TYPE, stakeStatement(challenge, own));
    return { statements: [{ ...own, attestation }] };
  }

  /**
   * Syntax, memory, anchor age, then the proofs in cost order, then the vote.
   * Errors: `proof-invalid`, `network-mismatch`, `equivocation`, `proof-replayed`, `proof-expired`, `proof-rejected`, `stake-insufficient`.
   */
  admit(proofs: unknown, options: CallOptions = {}): Promise<Admission> {
    const set = decodeProofSet(proofs);
    const digest = proofsDigest(set);
    const running = this.#admitting.get(digest);
    if (running !== undefined) return running;
    const admission = this.#admit(set, digest, options).finally(() => this.#admitting.delete(digest));
    this.#admitting.set(digest, admission);
    return admission;
  }

  /** Whether this committee endorsed the publish that a leaf of the log is about. */
  endorsed(identity: string, leaf: Uint8Array): boolean {
    const named = leafSubject(leaf);
    if (named === undefined) return false;
    const rows = this.#store.raw
      .prepare(
        `SELECT endorsement FROM admissions WHERE identity = ? AND endorsement IS NOT NULL
           AND json_extract(vote, '$.operation.subject') = ? AND json_extract(vote, '$.operation.kind') = 'publish'`,
      )
      .all(identity, named) as { endorsement: string }[];
    return rows.some(({ endorsement }) =>
      equal(leaf, inclusionLeaf(named, decodeEndorsement(JSON.parse(endorsement)))),
    );
  }

  async #admit(set: ProofSet, digest: Digest, { signal, onProgress }: CallOptions): Promise<Admission> {
    const { challenge } = set;
    const { operation } = challenge;
    this.#own(challenge);
    const known = this.#admission(operation, digest);
    if (known !== undefined) {
      const endorsement = await this.#endorse(known);
      return { endorsement, verdicts: await judge(set, this.#court(admittedAtMs(endorsement))) };
    }
    const issued = this.#issued(challenge);
    if (issued.used !== 0) throw replayed();
    const nowMs = this.#clock.nowMs();
    if (anchorAgeMs(challenge, nowMs) > windowMs(challenge)) throw expired(challenge, nowMs);
    const verdicts: ProofVerdict[] = [];
    for await (const verdict of judgeInTurn(set, this.#court(nowMs))) {
      if (signal?.aborted === true) throw new HyperMeshError('cancelled', 'The admission was cancelled.');
      if (verdict.verdict === 'invalid') throw rejected(verdict.kind, verdict.says);
      onProgress?.({ step: 'admit', note: `the ${verdict.kind} proof holds` });
      verdicts.push(verdict);
    }
    onProgress?.({ step: 'admit', done: 1, total: 1, unit: 'steps' });
    const asked = challenge.requirements.stake?.amountMin ?? 0;
    if (this.#ledger.account(operation.identity).locked < asked) {
      throw new HyperMeshError(
        'stake-insufficient',
        `${asked} locked tokens are needed, and were unlocked meanwhile.`,
        {
          hint: 'Lock them again with `hypermesh stake lock`.',
        },
      );
    }
    const vote: Vote = {
      formatVersion: 2,
      networkId: this.#networkId,
      epoch: this.#genesis.committee.epoch,
      operation,
      proofs: digest,
      atMs: nowMs,
    };
    const endorsement = await this.#endorse(this.#decide(set, digest, vote));
    return { endorsement, verdicts: reported(verdicts) };
  }

  #court(atMs: number): Court {
    return { trust: this.#trust, genesis: this.#genesis, networkId: this.#networkId, atMs };
  }

  /**
   * Commit point: the sequence number stands for this operation from here on. A crash before leaves an unused anchor; a crash after
   * leaves a vote without signature, which the same submission gets signed later, with the same time in it.
   */
  #decide(set: ProofSet, digest: Digest, vote: Vote): AdmissionRow {
    const { operation, anchor } = set.challenge;
    return this.#store.transact((raw) => {
      // Another submission for the same number may have been judged at the same time.
      const known = this.#admission(operation, digest);
      if (known !== undefined) return known;
      const { changes } = raw.prepare('UPDATE challenges SET used = 1 WHERE nonce = ? AND used = 0').run(anchor.nonce);
      if (changes !== 1) throw replayed();
      this.#claim(operation);
      const row: AdmissionRow = {
        operation: operationDigest(operation),
        proofs: digest,
        vote: canonicalJson(vote),
        endorsement: null,
      };
      const keptMs = operation.kind === 'publish' ? PUBLISH_KEPT_MS : 2 * windowMs(set.challenge);
      raw
        .prepare(
          'INSERT INTO admissions (identity, sequence, operation, proofs, vote, keep_until_ms) VALUES (?, ?, ?, ?, ?, ?)',
        )
        .run(operation.identity, operation.sequence, row.operation, digest, row.vote, vote.atMs + keptMs);
      if (set.time !== null) {
        raw
          .prepare('INSERT OR REPLACE INTO tips (identity, kind, previous) VALUES (?, ?, ?)')
          .run(operation.identity, operation.kind, digestOf(Buffer.from(set.time.output, 'base64')));
      }
      return row;
    });
  }

  /** What a publish may not be about: a name of somebody else, or a version that stands for other content. Errors: `not-owner`, `version-exists`. */
  #checkClaim({ kind, identity, subject, ref }: Pick<Operation, 'kind' | 'identity' | 'subject' | 'ref'>): void {
    if (kind !== 'publish') return;
    const { raw } = this.#store;
    const owner = raw.prepare('SELECT identity FROM names WHERE name = ?').get(nameOf(ref));
    if (owner !== undefined && owner['identity'] !== identity) {
      throw new HyperMeshError('not-owner', `${nameOf(ref)} belongs to the publisher ${owner['identity'] as string}.`, {
        hint: 'Publish under a name of your own.',
      });
    }
    const version = raw.prepare('SELECT subject FROM versions WHERE ref = ?').get(versionOf(ref));
    if (version !== undefined && version['subject'] !== subject) {
      throw new HyperMeshError('version-exists', `${ref} was published before with other content.`, {
        hint: 'A version never changes, also when it was deleted: raise `version` in catalog.yaml and publish again.',
      });
    }
  }

  /** In the transaction that decides: of two publishes that were judged at the same time one is first. */
  #claim(operation: Operation): void {
    this.#checkClaim(operation);
    if (operation.kind !== 'publish') return;
    const { identity, ref, subject } = operation;
    const { raw } = this.#store;
    raw.prepare('INSERT INTO names (name, identity) VALUES (?, ?) ON CONFLICT DO NOTHING').run(nameOf(ref), identity);
    raw
      .prepare('INSERT INTO versions (ref, subject) VALUES (?, ?) ON CONFLICT DO NOTHING')
      .run(versionOf(ref), subject);
  }

  async #endorse(row: AdmissionRow): Promise<Endorsement> {
    if (row.endorsement !== null) return decodeEndorsement(JSON.parse(row.endorsement));
    const vote = JSON.parse(row.vote) as Vote;
    const { atMs, ...admitted } = vote;
    const attestation = await this.#trust.attest(VOTE_TYPE, vote);
    const endorsement: Endorsement = { ...admitted, votes: [{ atMs, attestation }] };
    this.#store.raw
      .prepare('UPDATE admissions SET endorsement = ? WHERE identity = ? AND sequence = ? AND endorsement IS NULL')
      .run(canonicalJson(endorsement), vote.operation.identity, vote.operation.sequence);
    // What is stored is what everybody gets, even if two signed at once.
    const stored = this.#admission(vote.operation, vote.proofs);
    return stored?.endorsement == null ? endorsement : decodeEndorsement(JSON.parse(stored.endorsement));
  }

  /** What was admitted under the operation's sequence number. Errors: `equivocation`, `proof-replayed`. */
  #admission(operation: Operation, digest: Digest): AdmissionRow | undefined {
    const row = this.#store.raw
      .prepare('SELECT operation, proofs, vote, endorsement FROM admissions WHERE identity = ? AND sequence = ?')
      .get(operation.identity, operation.sequence) as AdmissionRow | undefined;
    if (row === undefined) return undefined;
    if (row.operation !== operationDigest(operation)) throw equivocation(operation);
    if (row.proofs !== digest) throw replayed();
    return row;
  }

  /** Sequence numbers mean something within one network only. Errors: `network-mismatch`. */
  #own(challenge: Challenge): void {
    if (challenge.networkId === this.#networkId) return;
    throw new HyperMeshError('network-mismatch', 'The challenge was issued in another network.', {
      hint: 'Run the command again with the home that belongs to the network.',
    });
  }

  /** The anchor's row, if this committee issued exactly this challenge. Errors: `network-mismatch`, `equivocation`, `proof-expired`, `proof-rejected`. */
  #issued(challenge: Challenge): IssuedRow {
    const { operation, anchor } = challenge;
    this.#own(challenge);
    const taken = this.#store.raw
      .prepare('SELECT operation FROM challenges WHERE identity = ? AND sequence = ?')
      .get(operation.identity, operation.sequence) as { operation: Digest } | undefined;
    if (taken !== undefined && taken.operation !== operationDigest(operation)) throw equivocation(operation);
    const row = this.#store.raw
      .prepare('SELECT operation, context, used FROM challenges WHERE nonce = ?')
      .get(anchor.nonce) as IssuedRow | undefined;
    if (row === undefined) {
      const nowMs = this.#clock.nowMs();
      if (anchorAgeMs(challenge, nowMs) > windowMs(challenge)) throw expired(challenge, nowMs);
      throw new HyperMeshError('proof-rejected', 'The challenge was not issued by this committee.', {
        hint: 'Ask the network that the operation is for; run the command again.',
      });
    }
    if (row.context !== challenge.context || contextOf(challenge) !== challenge.context) {
      throw new HyperMeshError('proof-rejected', 'The challenge is not the one that was issued under its number.');
    }
    if (anchorAgeMs(challenge, this.#clock.nowMs()) < -this.#genesis.limits.clockSkewMs) {
      throw new HyperMeshError('proof-rejected', 'The anchor is from the future: the clock of this machine went back.');
    }
    return row;
  }
}

/** `scope/name` of `scope/name@version`. */
function nameOf(ref: string): string {
  return ref.split('@')[0]!;
}

/** Without build metadata, which does not tell versions apart (Semantic Versioning 2.0.0, 10). */
function versionOf(ref: string): string {
  return ref.split('+')[0]!;
}

/** The manifest that a leaf names; undefined for any other leaf. */
function leafSubject(leaf: Uint8Array): Digest | undefined {
  try {
    const { manifest } = JSON.parse(fromUtf8(leaf)) as { manifest?: unknown };
    return isDigest(manifest) ? manifest : undefined;
  } catch {
    return undefined;
  }
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

function replayed(): HyperMeshError {
  return new HyperMeshError('proof-replayed', 'The anchor of these proofs was used before for something else.', {
    hint: 'Each operation needs proofs of its own; run the command again.',
  });
}

function expired(challenge: Challenge, nowMs: number): HyperMeshError {
  return new HyperMeshError(
    'proof-expired',
    `The anchor is ${anchorAgeMs(challenge, nowMs)} ms old; the window is ${windowMs(challenge)} ms.`,
    { hint: 'Run the command again for a fresh challenge.' },
  );
}

function equivocation(operation: Operation): HyperMeshError {
  return new HyperMeshError(
    'equivocation',
    `Sequence number ${operation.sequence} of this identity stands for another operation.`,
    { hint: 'Run the command again; each operation takes a number of its own.' },
  );
}
