import type { DatabaseSync } from 'node:sqlite';
import { setImmediate } from 'node:timers/promises';
import { hex } from '../../base/bytes.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { emptyRoot, LEAF_BYTES_MAX, leafHash, nodeHash } from '../../wire/log.ts';
import type { LogInclusion, SignedTreeHead } from '../../wire/signature.ts';

/** Leaves that share one signed head, at most. */
const BATCH_MAX = 256;

export interface LogLent {
  readonly raw: DatabaseSync;
  transact<T>(write: (raw: DatabaseSync) => T): T;
  /** Signs a head of that size and root as the validator of this home. */
  signHead(size: number, root: Uint8Array): Promise<SignedTreeHead>;
}

interface Waiting {
  readonly leaf: Uint8Array;
  readonly hash: Uint8Array;
  resolve(inclusion: LogInclusion): void;
  reject(error: unknown): void;
}

/**
 * The append-only tree of RFC 6962, with the hashes of all complete subtrees stored: an append writes O(1) rows on average, a proof reads
 * O(log^2 n). Leaves that arrive together share one signed head.
 */
export class TransparencyLog {
  readonly #lent: LogLent;
  readonly #waitingMax: number;
  #waiting: Waiting[] = [];
  #running: Promise<void> | undefined;
  /** Batches, and what must not fall into one, take turns. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(lent: LogLent, options: { readonly waitingMax: number }) {
    this.#lent = lent;
    this.#waitingMax = options.waitingMax;
  }

  append(leaf: Uint8Array): Promise<LogInclusion> {
    if (leaf.length > LEAF_BYTES_MAX) {
      const message = `A leaf of the log has at most ${LEAF_BYTES_MAX} bytes, but this one has ${leaf.length}.`;
      return Promise.reject(new HyperMeshError('limit-exceeded', message));
    }
    if (this.#waiting.length >= this.#waitingMax) {
      const message = `${this.#waitingMax} leaves are waiting to be logged already.`;
      return Promise.reject(new HyperMeshError('quota-exceeded', message, { hint: 'Try again in a moment.' }));
    }
    const own = leaf.slice();
    return new Promise((resolve, reject) => {
      this.#waiting.push({ leaf: own, hash: leafHash(own), resolve, reject });
      this.#running ??= this.#run();
    });
  }

  async head(): Promise<SignedTreeHead> {
    await this.#running;
    const stored = this.#storedHead();
    if (stored !== undefined) return stored;
    const head = await this.#lent.signHead(0, emptyRoot());
    return this.#storedHead() ?? head;
  }

  /** Runs `work` while nothing is being appended. */
  between<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  /** Resolves once nothing is being appended. */
  async settled(): Promise<void> {
    await this.#running;
  }

  async consistency(from: number, to: number): Promise<readonly string[]> {
    const size = this.#size();
    if (!(Number.isSafeInteger(from) && Number.isSafeInteger(to) && from >= 0 && from <= to && to <= size)) {
      throw new HyperMeshError('usage', `Expected 0 <= from <= to <= ${size}, but got from ${from} to ${to}.`);
    }
    if (from === 0 || from === to) return [];
    return this.#consistencyPath(from, 0, to, true).map(hex);
  }

  async #run(): Promise<void> {
    while (this.#waiting.length > 0) {
      // One turn of the event loop, so that leaves that arrive together are taken together.
      await setImmediate();
      const batch = this.#waiting.splice(0, BATCH_MAX);
      try {
        const answers = await this.between(() => this.#appendBatch(batch));
        for (const [at, waiting] of batch.entries()) waiting.resolve(answers[at]!);
      } catch (error) {
        for (const waiting of batch) waiting.reject(error);
      }
    }
    // In the same step as the check above: a leaf that arrives from here on starts the next run.
    this.#running = undefined;
  }

  async #appendBatch(batch: readonly Waiting[]): Promise<LogInclusion[]> {
    const positions = batch.map(({ hash }) => this.#positionOf(hash));
    const fresh = new Map<string, { position: number; waiting: Waiting }>();
    const staged = new Map<string, Uint8Array>();
    const lookUp: LookUp = (level, position) => staged.get(`${level}/${position}`) ?? this.#node(level, position);
    const start = this.#size();
    for (const [at, waiting] of batch.entries()) {
      if (positions[at] !== undefined) continue;
      const key = hex(waiting.hash);
      const position = fresh.get(key)?.position ?? start + fresh.size;
      positions[at] = position;
      if (fresh.has(key)) continue;
      fresh.set(key, { position, waiting });
      for (const node of completedBy(position, waiting.hash, lookUp))
        staged.set(`${node.level}/${node.position}`, node.hash);
    }
    const size = start + fresh.size;
    let head = this.#storedHead();
    if (head?.size !== size) {
      head = await this.#lent.signHead(size, rangeHash(0, size, lookUp));
      this.#commit(fresh, staged, head);
    }
    const final = head;
    return positions.map((index) => ({
      index: index!,
      path: this.#inclusionPath(index!, 0, size).map(hex),
      head: final,
    }));
  }

  /** The commit point. Before it, a signed head exists only in memory and nobody saw it; after it, leaves, tree and head are all there. */
  #commit(
    fresh: ReadonlyMap<string, { readonly position: number; readonly waiting: Waiting }>,
    staged: ReadonlyMap<string, Uint8Array>,
    head: SignedTreeHead,
  ): void {
    this.#lent.transact((raw) => {
      const leaf = raw.prepare('INSERT INTO leaf (position, hash, content) VALUES (?, ?, ?)');
      for (const { position, waiting } of fresh.values()) leaf.run(position, waiting.hash, waiting.leaf);
      const node = raw.prepare('INSERT INTO node (level, position, hash) VALUES (?, ?, ?)');
      for (const [key, hash] of staged) {
        const [level, position] = key.split('/').map(Number);
        node.run(level!, position!, hash);
      }
      raw.prepare('INSERT OR REPLACE INTO head (one, json) VALUES (1, ?)').run(JSON.stringify(head));
    });
  }

  #rangeHash(start: number, count: number): Uint8Array {
    return rangeHash(start, count, (level, position) => this.#node(level, position));
  }

  /** RFC 6962 section 2.1.1. */
  #inclusionPath(index: number, start: number, count: number): Uint8Array[] {
    if (count === 1) return [];
    const left = splitOf(count);
    return index < left
      ? [...this.#inclusionPath(index, start, left), this.#rangeHash(start + left, count - left)]
      : [...this.#inclusionPath(index - left, start + left, count - left), this.#rangeHash(start, left)];
  }

  /** RFC 6962 section 2.1.2. `known`: the verifier has the root of this part already. */
  #consistencyPath(from: number, start: number, count: number, known: boolean): Uint8Array[] {
    if (from === count) return known ? [] : [this.#rangeHash(start, count)];
    const left = splitOf(count);
    return from <= left
      ? [...this.#consistencyPath(from, start, left, known), this.#rangeHash(start + left, count - left)]
      : [...this.#consistencyPath(from - left, start + left, count - left, false), this.#rangeHash(start, left)];
  }

  #node(level: number, position: number): Uint8Array {
    const row = this.#lent.raw.prepare('SELECT hash FROM node WHERE level = ? AND position = ?').get(level, position);
    if (row === undefined) throw new HyperMeshError('log-invalid', `The stored log lacks node ${level}/${position}.`);
    return row['hash'] as Uint8Array;
  }

  #positionOf(hash: Uint8Array): number | undefined {
    return this.#lent.raw.prepare('SELECT position FROM leaf WHERE hash = ?').get(hash)?.['position'] as
      | number
      | undefined;
  }

  #size(): number {
    return this.#lent.raw.prepare('SELECT coalesce(max(position) + 1, 0) AS size FROM leaf').get()!['size'] as number;
  }

  #storedHead(): SignedTreeHead | undefined {
    const row = this.#lent.raw.prepare('SELECT json FROM head').get();
    return row === undefined ? undefined : (JSON.parse(row['json'] as string) as SignedTreeHead);
  }
}

/** The stored hash of the complete subtree of 2^level leaves, the position-th of that level. */
export type LookUp = (level: number, position: number) => Uint8Array;

/** The nodes that a new leaf adds: itself, and every subtree that it completes. */
export function completedBy(
  position: number,
  leaf: Uint8Array,
  lookUp: LookUp,
): { readonly level: number; readonly position: number; readonly hash: Uint8Array }[] {
  const nodes = [];
  let hash = leaf;
  let at = position;
  for (let level = 0; ; level++) {
    nodes.push({ level, position: at, hash });
    if (at % 2 === 0) return nodes;
    hash = nodeHash(lookUp(level, at - 1), hash);
    at = (at - 1) / 2;
  }
}

/** The tree hash of `count` leaves from `start`, which is 0 or a multiple of the power of two at or above `count`. */
export function rangeHash(start: number, count: number, lookUp: LookUp): Uint8Array {
  if (count === 0) return emptyRoot();
  const level = Math.log2(count);
  if (Number.isInteger(level)) return lookUp(level, start / count);
  const left = splitOf(count);
  return nodeHash(rangeHash(start, left, lookUp), rangeHash(start + left, count - left, lookUp));
}

/** The largest power of two below `count`. */
function splitOf(count: number): number {
  let left = 1;
  while (left * 2 < count) left *= 2;
  return left;
}
