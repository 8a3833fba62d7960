import { sha256 } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { SqliteStore } from '../../../base/sqlite.ts';
import { checkEntry, fitting, SEQUENCER_LIMITS, type Sequencer, type SequencerOptions, shorter } from './sequencer.ts';

/** One order for each time that a network chose this engine. */
export const EMBEDDED_SCHEMA = `
  CREATE TABLE sequenced (
    log TEXT NOT NULL, position INTEGER NOT NULL, digest BLOB NOT NULL, entry BLOB NOT NULL,
    PRIMARY KEY (log, position), UNIQUE (log, digest)
  ) STRICT;
`;

interface Waiting {
  readonly entry: Uint8Array;
  readonly resolve: (position: number) => void;
  readonly reject: (error: unknown) => void;
}

/** How many wait for the disk at most. */
const WAITING_MAX = 10_000;
/** Of one transaction: it holds up the process. */
const GROUP_MAX = 256;

/** The order in a table of this home. Whoever appends while another append is on its way to the disk shares the next transaction. */
export class EmbeddedSequencer implements Sequencer {
  readonly #store: SqliteStore;
  readonly #log: string;
  readonly #waiting: Waiting[] = [];
  readonly #grown = new Set<() => void>();
  #scheduled: NodeJS.Immediate | undefined;
  #closed = false;

  constructor(store: SqliteStore, log: string) {
    this.#store = store;
    this.#log = log;
  }

  append(entry: Uint8Array, { signal }: SequencerOptions = {}): Promise<number> {
    return new Promise((resolve, reject) => {
      checkEntry(entry);
      if (signal?.aborted === true) throw cancelled(signal);
      if (this.#closed) throw closed();
      if (this.#waiting.length >= WAITING_MAX) {
        throw new HyperMeshError('quota-exceeded', `${WAITING_MAX} entries wait to be written.`, {
          hint: 'Try again in a moment.',
        });
      }
      this.#waiting.push({ entry, resolve, reject });
      this.#scheduled ??= setImmediate(() => this.#flush());
    });
  }

  async read(after: number): Promise<readonly Uint8Array[]> {
    if (this.#closed) throw closed();
    const rows = this.#store.raw
      .prepare('SELECT position, entry FROM sequenced WHERE log = ? AND position > ? ORDER BY position LIMIT ?')
      .iterate(this.#log, after, SEQUENCER_LIMITS.entriesMax) as Iterable<{ position: number; entry: Uint8Array }>;
    return fitting(
      (function* () {
        let next = after + 1;
        for (const { position, entry } of rows) {
          if (position !== next) return;
          next += 1;
          yield entry;
        }
      })(),
    );
  }

  async forget(upTo: number): Promise<void> {
    if (this.#closed) throw closed();
    const upToLast = Math.min(upTo, this.#length() - 1);
    this.#store.transact((raw) => {
      raw.prepare('DELETE FROM sequenced WHERE log = ? AND position <= ?').run(this.#log, upToLast);
      // What the network ordered here before it moved away, and came back.
      const ended = 'DELETE FROM sequenced WHERE substr(log, 1, 64) = substr(?1, 1, 64) AND log <> ?1';
      if (upToLast > 0) raw.prepare(ended).run(this.#log);
    });
  }

  async *watch(after: number, signal: AbortSignal): AsyncIterable<number> {
    let said = after;
    while (!signal.aborted && !this.#closed) {
      const length = this.#length();
      if (length < said) throw shorter(length, said);
      if (length > said) {
        said = length;
        yield length;
        continue;
      }
      await new Promise<void>((resolve) => {
        const done = () => {
          this.#grown.delete(done);
          signal.removeEventListener('abort', done);
          resolve();
        };
        this.#grown.add(done);
        signal.addEventListener('abort', done);
      });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearImmediate(this.#scheduled);
    this.#closed = true;
    for (const { reject } of this.#waiting.splice(0)) reject(closed());
    for (const wake of [...this.#grown]) wake();
  }

  #length(): number {
    const { length } = this.#store.raw
      .prepare('SELECT coalesce(max(position), 0) AS length FROM sequenced WHERE log = ?')
      .get(this.#log) as { length: number };
    return length;
  }

  /** Commit point: an append is acknowledged after this transaction, never before. */
  #flush(): void {
    const group = this.#waiting.splice(0, GROUP_MAX);
    this.#scheduled = this.#waiting.length === 0 ? undefined : setImmediate(() => this.#flush());
    try {
      const positions = this.#store.transact((raw) => {
        const known = raw.prepare('SELECT position FROM sequenced WHERE log = ? AND digest = ?');
        const insert = raw.prepare('INSERT INTO sequenced (log, position, digest, entry) VALUES (?, ?, ?, ?)');
        let length = this.#length();
        return group.map(({ entry }) => {
          const digest = sha256(entry);
          const found = known.get(this.#log, digest) as { position: number } | undefined;
          if (found !== undefined) return found.position;
          length += 1;
          insert.run(this.#log, length, digest, entry);
          return length;
        });
      });
      for (const [at, { resolve }] of group.entries()) resolve(positions[at]!);
      for (const wake of [...this.#grown]) wake();
    } catch (error) {
      for (const { reject } of group) reject(error);
    }
  }
}

function cancelled(signal: AbortSignal): HyperMeshError {
  return new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: signal.reason });
}

function closed(): HyperMeshError {
  return new HyperMeshError('sequencer-unreachable', 'The engine that orders entries is closed on this machine.', {
    hint: 'Start the node again.',
  });
}
