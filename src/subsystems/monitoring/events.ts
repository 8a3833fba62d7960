import { join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { type Migration, openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import { type Event, type EventDraft, parseEventDraft, type Severity } from '../../wire/event.ts';
import { matcher } from './match.ts';

const MIGRATIONS: readonly Migration[] = [
  {
    name: '001-init',
    // AUTOINCREMENT: a sequence number is never given twice, not even after every event was dropped.
    up: `CREATE TABLE events (
           sequence INTEGER PRIMARY KEY AUTOINCREMENT,
           at_ms INTEGER NOT NULL,
           type TEXT NOT NULL,
           severity TEXT NOT NULL,
           source TEXT NOT NULL,
           data TEXT NOT NULL,
           bytes INTEGER NOT NULL
         ) STRICT;`,
  },
];

interface EventRow {
  readonly sequence: number;
  readonly at_ms: number;
  readonly type: string;
  readonly severity: Severity;
  readonly source: string;
  readonly data: string;
  readonly bytes: number;
}

export interface EventLimits {
  /** How many events are kept, how many bytes of them, and how long. The oldest go first. */
  readonly countMax: number;
  readonly bytesMax: number;
  readonly ageMsMax: number;
  /** How many emits may wait for the disk at once. */
  readonly waitingMax: number;
}

/** Bytes counted for an event beside its text: the row, the sequence number and the time. */
const ROW_OVERHEAD = 32;
/** What a reader holds in memory: events read from the table but not yet handed over. */
const PAGE = { eventsMax: 256, bytesMax: 262_144 } as const;

interface Waiting {
  readonly type: string;
  readonly severity: Severity;
  readonly source: string;
  readonly dataText: string;
  readonly bytes: number;
  readonly done: () => void;
  readonly failed: (error: unknown) => void;
}

/**
 * The ordered, bounded, durable stream of events of one node.
 * Writers of the same turn of the event loop share one transaction. Readers keep a position, not a queue: they read the table page by page,
 * so that a slow one costs no memory and there is no seam between history and what is new.
 */
export class EventLog {
  readonly #store: SqliteStore;
  readonly #clock: Clock;
  readonly #limits: EventLimits;
  readonly #wakers = new Set<() => void>();
  #waiting: Waiting[] = [];
  #flush: NodeJS.Immediate | undefined;
  #closed = false;
  /** Sequence of the last event given, and of the oldest one kept (`last + 1` when none is). */
  #last: number;
  #oldest: number;
  #count: number;
  #bytes: number;

  constructor(directory: string, lent: { readonly clock: Clock }, limits: EventLimits) {
    this.#store = openSqlite(join(directory, 'events.db'), MIGRATIONS);
    this.#clock = lent.clock;
    this.#limits = limits;
    const raw = this.#store.raw;
    const given = raw.prepare(`SELECT seq FROM sqlite_sequence WHERE name = 'events'`).get() as
      | { seq: number }
      | undefined;
    const kept = raw
      .prepare('SELECT count(*) AS count, coalesce(sum(bytes), 0) AS bytes, min(sequence) AS oldest FROM events')
      .get() as { count: number; bytes: number; oldest: number | null };
    this.#last = given?.seq ?? 0;
    this.#oldest = kept.oldest ?? this.#last + 1;
    this.#count = kept.count;
    this.#bytes = kept.bytes;
  }

  status(): { kept: number; bytes: number; oldest: number; last: number } {
    return { kept: this.#count, bytes: this.#bytes, oldest: this.#oldest, last: this.#last };
  }

  /** Durable when it resolves. */
  emit(source: string, draft: EventDraft): Promise<void> {
    const { type, severity, dataText } = parseEventDraft(draft);
    if (this.#closed) throw closedError();
    if (this.#waiting.length >= this.#limits.waitingMax) {
      throw new HyperMeshError('quota-exceeded', `${this.#waiting.length} events wait for the disk already.`, {
        hint: 'Await each emit, or emit less.',
      });
    }
    const bytes = Buffer.byteLength(dataText) + type.length + source.length + ROW_OVERHEAD;
    return new Promise((done, failed) => {
      this.#waiting.push({ type, severity, source, dataText, bytes, done, failed });
      this.#flush ??= setImmediate(() => this.#commit());
    });
  }

  /** The commit point: a crash before COMMIT leaves none of the batch, and no emit of it has resolved; after it, all of it is on disk. */
  #commit(): void {
    this.#flush = undefined;
    const batch = this.#waiting;
    this.#waiting = [];
    if (batch.length === 0) return;
    try {
      const after = this.#store.transact((raw) => {
        const insert = raw.prepare(
          'INSERT INTO events (at_ms, type, severity, source, data, bytes) VALUES (?, ?, ?, ?, ?, ?)',
        );
        const atMs = Math.trunc(this.#clock.nowMs());
        let last = this.#last;
        let bytes = this.#bytes;
        for (const event of batch) {
          const { lastInsertRowid } = insert.run(
            atMs,
            event.type,
            event.severity,
            event.source,
            event.dataText,
            event.bytes,
          );
          last = Number(lastInsertRowid);
          bytes += event.bytes;
        }
        return this.#dropOldest({ last, bytes, count: this.#count + batch.length, oldest: this.#oldest }, atMs);
      });
      this.#last = after.last;
      this.#oldest = after.oldest;
      this.#count = after.count;
      this.#bytes = after.bytes;
    } catch (error) {
      const coded = storageError(error, 'writing an event');
      for (const event of batch) event.failed(coded);
      return;
    }
    for (const event of batch) event.done();
    for (const wake of this.#wakers) wake();
  }

  #dropOldest(now: { last: number; bytes: number; count: number; oldest: number }, atMs: number): typeof now {
    const raw = this.#store.raw;
    const { countMax, bytesMax, ageMsMax } = this.#limits;
    let { bytes, count, oldest } = now;
    const first = raw.prepare('SELECT sequence, at_ms, bytes FROM events ORDER BY sequence').iterate();
    for (const row of first as Iterable<Pick<EventRow, 'sequence' | 'at_ms' | 'bytes'>>) {
      if (count <= countMax && bytes <= bytesMax && row.at_ms >= atMs - ageMsMax) break;
      count -= 1;
      bytes -= row.bytes;
      oldest = row.sequence + 1;
    }
    if (oldest > now.oldest) raw.prepare('DELETE FROM events WHERE sequence < ?').run(oldest);
    return { last: now.last, bytes, count, oldest };
  }

  async *read(
    options: { after?: number; pattern?: string; follow?: boolean; signal?: AbortSignal } = {},
  ): AsyncGenerator<Event, void, undefined> {
    const { after = 0, pattern = '*', follow = false, signal } = options;
    if (!Number.isSafeInteger(after) || after < 0) {
      throw new HyperMeshError('usage', 'Expected `after` to be a sequence number, 0 or more.');
    }
    const matches = matcher(pattern);
    let position = after === 0 ? this.#oldest - 1 : after;
    const over = () => this.#closed || signal?.aborted === true;
    while (!over()) {
      const page = this.#page(position);
      for (const row of page) {
        position = row.sequence;
        if (!matches(row.type)) continue;
        yield toEvent(row);
        if (over()) return;
      }
      if (page.length > 0) continue;
      if (!follow) return;
      await this.#next(position, signal);
    }
  }

  /** Synchronous, so nothing can be dropped between the check and the read. */
  #page(position: number): readonly EventRow[] {
    if (position + 1 < this.#oldest || position > this.#last) {
      throw new HyperMeshError(
        'events-lost',
        `Events after ${position} were asked for; ${this.#oldest - 1} to ${this.#last} can be resumed from.`,
        {
          hint: 'Start again from 0 (the oldest kept) and read the present state afresh.',
          details: { oldest: this.#oldest, last: this.#last },
        },
      );
    }
    const rows: EventRow[] = [];
    let bytes = 0;
    const statement = this.#store.raw.prepare('SELECT * FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?');
    for (const row of statement.iterate(position, PAGE.eventsMax) as Iterable<unknown> as Iterable<EventRow>) {
      rows.push(row);
      bytes += row.bytes;
      if (bytes >= PAGE.bytesMax) break;
    }
    return rows;
  }

  /** Resolves when there may be something after `position`, the log is closed, or the reader gives up. */
  #next(position: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      if (this.#last > position || this.#closed || signal?.aborted === true) return resolve();
      const wake = () => {
        this.#wakers.delete(wake);
        signal?.removeEventListener('abort', wake);
        resolve();
      };
      this.#wakers.add(wake);
      signal?.addEventListener('abort', wake, { once: true });
    });
  }

  /** Writes what waits, ends every follower, closes the file. */
  async close(): Promise<void> {
    if (this.#closed) return;
    if (this.#flush !== undefined) clearImmediate(this.#flush);
    this.#commit();
    this.#closed = true;
    for (const wake of this.#wakers) wake();
    await this.#store[Symbol.asyncDispose]();
  }
}

function toEvent(row: EventRow): Event {
  return {
    sequence: row.sequence,
    atMs: row.at_ms,
    type: row.type,
    severity: row.severity,
    source: row.source,
    data: JSON.parse(row.data) as Json,
  };
}

function closedError(): HyperMeshError {
  return new HyperMeshError('node-not-running', 'The event log is closed; the node is stopping.');
}
