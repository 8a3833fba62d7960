import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { fromBase64, hex } from '../../base/bytes.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import {
  auditAnswer,
  auditContext,
  decodeSpaceAudit,
  encodeSpaceAudit,
  SPACE_AUDIT_LIMITS,
} from '../../wire/space-audit.ts';
import { rootOf } from './merkle.ts';
import { auditPositions } from './registration.ts';
import { LABEL_BYTES } from './space-graph.ts';

const MIGRATIONS = [
  {
    name: '001-init',
    up: `
      CREATE TABLE audited (
        identity TEXT PRIMARY KEY, root TEXT NOT NULL, next_at_ms INTEGER NOT NULL,
        passed_at_ms INTEGER, failures INTEGER NOT NULL DEFAULT 0
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX audited_next ON audited (next_at_ms);
      -- Where an identity was seen last.
      CREATE TABLE nodes (identity TEXT PRIMARY KEY, node TEXT NOT NULL) STRICT, WITHOUT ROWID;`,
  },
] as const;

/** Mean time between two audits of a member by one validator; after a failure; and after it could not be reached. */
const EVERY_MS = 3_600_000;
const DOUBTED_EVERY_MS = 120_000;
const AWAY_EVERY_MS = 600_000;
/** No pause is longer than so many times the mean: one in 400 would be. */
const PAUSE_MAX = 6;
/** Failures in a row, each at a time of its own, after which a validator says that the commitment is lost. */
export const FAILURES_LOST = 3;
/** Audits begun in one round; rounds are ten seconds apart, so that a validator begins no more than three in a second. */
const ROUND_AUDITS_MAX = 30;
const AT_ONCE_MAX = 4;
/** An answer is waited for a while after the deadline, so that one that is too late is told from one that never comes. */
const PATIENCE_MS = 3_000;

/** Calls a method of a node. */
type Ask = (
  node: string,
  method: string,
  body: Uint8Array,
  options: { readonly replyBytesMax: number; readonly timeoutMs?: number },
) => Promise<Uint8Array>;

export interface SpaceTerms {
  readonly networkId: Digest;
  readonly bytes: number;
  readonly openings: number;
  readonly deadlineMs: number;
}

export interface AuditsLent {
  /** Commitments that are registered with this validator, its own left out. */
  registered(): readonly { readonly identity: string; readonly root: string }[];
  readonly ask: Ask;
  /** A commitment failed {@link FAILURES_LOST} times in a row; called again after each further failure, until it is not registered any more. */
  lost(identity: string, root: string): Promise<void>;
}

export interface AuditOptions {
  readonly directory: string;
  readonly clock: Clock;
  readonly terms: SpaceTerms;
  /** Milliseconds that only grow; the deadline is measured with it. */
  readonly elapsedMs?: () => number;
  /** From 0 up to 1, not to be foreseen. */
  readonly random?: () => number;
}

/** The result of one audit. `away`: nobody answered there, which is no failure. */
export type AuditResult = 'passed' | 'failed' | 'away';

/**
 * What one validator does to find out whether members still have the space that they registered: it asks each of them for labels, at times drawn so
 * that the next one is never more or less likely than at any other moment. What it saw is in `audits.db`; a restart changes none of it.
 */
export class SpaceAudits implements AsyncDisposable {
  readonly #lent: AuditsLent;
  readonly #clock: Clock;
  readonly #terms: SpaceTerms;
  readonly #elapsedMs: () => number;
  readonly #random: () => number;
  readonly #directory: string;
  #opened: SqliteStore | undefined;
  #round: Promise<void> | null = null;

  constructor(lent: AuditsLent, options: AuditOptions) {
    this.#lent = lent;
    this.#clock = options.clock;
    this.#terms = options.terms;
    this.#elapsedMs = options.elapsedMs ?? (() => performance.now());
    this.#random = options.random ?? secretly;
    this.#directory = options.directory;
  }

  /** That identity is at that node. */
  seen(identity: string, node: string): void {
    const known = this.#store.raw.prepare('SELECT node FROM nodes WHERE identity = ?').get(identity);
    if (known?.['node'] === node) return;
    this.#store.raw.prepare('INSERT OR REPLACE INTO nodes (identity, node) VALUES (?, ?)').run(identity, node);
  }

  /** Whether this validator saw the commitment fail often enough to say that it is lost. */
  isLost(identity: string, root: string): boolean {
    const row = this.#row(identity);
    return row !== undefined && row.root === root && row.failures >= FAILURES_LOST;
  }

  /** When it passed last, and how often it has failed since; undefined while it was not looked at. */
  record(identity: string): { readonly passedAtMs: number | null; readonly failures: number } | undefined {
    const row = this.#row(identity);
    return row && { passedAtMs: row.passed_at_ms, failures: row.failures };
  }

  /** The audits that are due. Called again and again; never two rounds at once. */
  round(): Promise<void> {
    this.#round ??= this.#run().finally(() => {
      this.#round = null;
    });
    return this.#round;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#round?.catch(() => undefined);
    await this.#opened?.[Symbol.asyncDispose]();
  }

  /** Most homes have nobody to audit. */
  get #store(): SqliteStore {
    this.#opened ??= openSqlite(join(this.#directory, 'audits.db'), MIGRATIONS);
    return this.#opened;
  }

  async #run(): Promise<void> {
    const registered = this.#lent.registered();
    if (registered.length === 0 && this.#opened === undefined) return;
    this.#follow(registered);
    const due = this.#store.raw
      .prepare(
        `SELECT identity, root, node, failures FROM audited JOIN nodes USING (identity) WHERE next_at_ms <= ? ORDER BY next_at_ms LIMIT ${ROUND_AUDITS_MAX}`,
      )
      .all(this.#clock.nowMs()) as unknown as Due[];
    const take = async () => {
      for (let next = due.shift(); next !== undefined; next = due.shift()) await this.#look(next);
    };
    await Promise.all(Array.from({ length: AT_ONCE_MAX }, take));
  }

  /** Who is registered is audited from here on; who is not any more, or with another commitment, begins anew. */
  #follow(registered: ReturnType<AuditsLent['registered']>): void {
    const nowMs = this.#clock.nowMs();
    this.#store.transact((raw) => {
      const known = new Map(
        (raw.prepare('SELECT identity, root FROM audited').all() as { identity: string; root: string }[]).map(
          ({ identity, root }) => [identity, root],
        ),
      );
      const add = raw.prepare(
        'INSERT OR REPLACE INTO audited (identity, root, next_at_ms, passed_at_ms, failures) VALUES (?, ?, ?, NULL, 0)',
      );
      for (const { identity, root } of registered) {
        if (known.get(identity) !== root) add.run(identity, root, nowMs + this.#pause(EVERY_MS));
        known.delete(identity);
      }
      for (const identity of known.keys()) raw.prepare('DELETE FROM audited WHERE identity = ?').run(identity);
    });
  }

  async #look({ identity, root, node, failures }: Due): Promise<void> {
    const result = await this.audit(identity, root, node);
    const nowMs = this.#clock.nowMs();
    const everyMs = result === 'passed' ? EVERY_MS : result === 'away' ? AWAY_EVERY_MS : DOUBTED_EVERY_MS;
    this.#store.raw
      .prepare(
        `UPDATE audited SET next_at_ms = ?1, passed_at_ms = iif(?2 = 'passed', ?3, passed_at_ms),
           failures = iif(?2 = 'passed', 0, failures + (?2 = 'failed')) WHERE identity = ?4 AND root = ?5`,
      )
      .run(nowMs + this.#pause(everyMs), result, nowMs, identity, root);
    if (result === 'failed' && failures + 1 >= FAILURES_LOST) await this.#lent.lost(identity, root);
  }

  /** Asks for labels once. */
  async audit(identity: string, root: string, node: string): Promise<AuditResult> {
    const { networkId, bytes, openings, deadlineMs } = this.#terms;
    try {
      // Whether it is there at all, and the connection, are not part of what is measured.
      await this.#lent.ask(node, 'overlay/ping', new Uint8Array(), { replyBytesMax: 0 });
    } catch (error) {
      if (isCoded(error)) return 'away';
      throw error;
    }
    const nonce = hex(randomBytes(32));
    const askedAtMs = this.#elapsedMs();
    try {
      const body = await this.#lent.ask(node, 'space/audit', encodeSpaceAudit({ nonce }), {
        replyBytesMax: SPACE_AUDIT_LIMITS.answerBytesMax,
        timeoutMs: deadlineMs + PATIENCE_MS,
      });
      if (this.#elapsedMs() - askedAtMs > deadlineMs) return 'failed';
      const answer = decodeSpaceAudit(auditAnswer, body);
      if (answer.root !== root) return 'failed';
      const opening = { labels: fromBase64(answer.labels), path: fromBase64(answer.path) };
      const n = bytes / LABEL_BYTES;
      const positions = auditPositions(nonce, auditContext(networkId, identity, nonce), root, n, openings);
      const led = rootOf(n, positions, opening);
      return led !== undefined && hex(led) === root ? 'passed' : 'failed';
    } catch (error) {
      if (!isCoded(error)) throw error;
      // Whoever answers pings and not this, or refuses it, does not have it; whose connection ends in between is not there.
      return isCoded(error, 'peer-unreachable', 'network-unreachable') ? 'away' : 'failed';
    }
  }

  /** Exponentially distributed: how long it is since the last one says nothing about the next. */
  #pause(meanMs: number): number {
    return Math.round(Math.min(PAUSE_MAX, -Math.log(1 - this.#random())) * meanMs);
  }

  #row(identity: string): Audited | undefined {
    return this.#store.raw
      .prepare('SELECT root, passed_at_ms, failures FROM audited WHERE identity = ?')
      .get(identity) as unknown as Audited | undefined;
  }
}

interface Audited {
  readonly root: string;
  readonly passed_at_ms: number | null;
  readonly failures: number;
}

interface Due {
  readonly identity: string;
  readonly root: string;
  readonly node: string;
  readonly failures: number;
}

/** Of the system's generator: nobody can say when the next audit is. */
function secretly(): number {
  return randomBytes(6).readUIntBE(0, 6) / 2 ** 48;
}
