import type { DatabaseSync } from 'node:sqlite';
import type { Digest } from '../../../base/digest.ts';
import { canonicalJson, type Json } from '../../../base/json.ts';
import { FactSum } from './sum.ts';

/** What is stored of the ordered state: a map from keys to canonical JSON, and its sum. */
export class Facts {
  readonly #raw: DatabaseSync;
  #coming = new FactSum();

  constructor(raw: DatabaseSync) {
    this.#raw = raw;
  }

  get(key: string): string | undefined {
    const row = this.#raw.prepare('SELECT value FROM facts WHERE key = ?').get(key) as { value: string } | undefined;
    return row?.value;
  }

  /** By key. Keys are ASCII. */
  list(prefix: string): readonly (readonly [string, string])[] {
    const rows = this.#raw
      .prepare('SELECT key, value FROM facts WHERE key >= ? AND key < ? ORDER BY key')
      .all(prefix, `${prefix}\x7f`) as { key: string; value: string }[];
    return rows.map(({ key, value }) => [key, value]);
  }

  /** The first of them. */
  firstKeys(prefix: string, limit: number): readonly string[] {
    const rows = this.#raw
      .prepare('SELECT key FROM facts WHERE key >= ? AND key < ? ORDER BY key LIMIT ?')
      .all(prefix, `${prefix}\x7f`, limit) as { key: string }[];
    return rows.map(({ key }) => key);
  }

  root(): Digest {
    return this.#sum().root();
  }

  /** Computed from the facts alone: what the stored sum has to be. */
  recomputedRoot(): Digest {
    const sum = new FactSum();
    for (const row of this.#raw.prepare('SELECT key, value FROM facts').iterate()) {
      const { key, value } = row as { key: string; value: string };
      sum.add(key, value);
    }
    return sum.root();
  }

  /** Within a transaction of the caller. Null: the fact is gone. */
  write(changes: ReadonlyMap<string, string | null>): void {
    const sum = this.#sum();
    const put = this.#raw.prepare(
      'INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value',
    );
    const drop = this.#raw.prepare('DELETE FROM facts WHERE key = ?');
    const keep = this.#raw.prepare(
      'INSERT OR IGNORE INTO facts_before (key, value) SELECT ?, ? WHERE EXISTS (SELECT 1 FROM log_snapshot)',
    );
    for (const [key, value] of changes) {
      const before = this.get(key);
      if (before === (value ?? undefined)) continue;
      keep.run(key, before ?? null);
      if (before !== undefined) sum.remove(key, before);
      if (value === null) {
        drop.run(key);
      } else {
        sum.add(key, value);
        put.run(key, value);
      }
    }
    this.#raw
      .prepare('INSERT INTO fact_sum (id, lanes) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET lanes = excluded.lanes')
      .run(sum.bytes());
  }

  /** From here on {@link kept} is what there is now. Within a transaction of the caller, who keeps a snapshot. */
  keep(): void {
    this.#raw.exec('DELETE FROM facts_before');
  }

  /** What there was when {@link keep} was called last: the facts that follow a key, some of them, and at least one if there is any. */
  kept(
    after: string,
    limit: number,
  ): { readonly facts: readonly (readonly [string, string])[]; readonly isLast: boolean } {
    const page = (table: string, from: string) =>
      this.#raw.prepare(`SELECT key, value FROM ${table} WHERE key > ? ORDER BY key LIMIT ?`).all(from, limit) as {
        key: string;
        value: string | null;
      }[];
    for (let from = after; ; ) {
      const pages = [page('facts', from), page('facts_before', from)];
      // As far as both pages reach; what was changed since has its value of then.
      const [end] = pages.flatMap((rows) => (rows.length < limit ? [] : [rows.at(-1)!.key])).sort();
      const known = new Map(pages.flat().map(({ key, value }) => [key, value]));
      const facts = [...known]
        .filter((fact): fact is [string, string] => fact[1] !== null && (end === undefined || fact[0] <= end))
        .sort(([a], [b]) => (a < b ? -1 : 1));
      if (facts.length > 0 || end === undefined) return { facts, isLast: end === undefined };
      // All of them came later.
      from = end;
    }
  }

  /** Puts facts beside the others, that came from elsewhere; null: begins anew. */
  receive(facts: readonly (readonly [string, string])[] | null): void {
    if (facts === null) {
      this.#raw.exec('DELETE FROM facts_coming');
      this.#coming = new FactSum();
      return;
    }
    const put = this.#raw.prepare('INSERT INTO facts_coming (key, value) VALUES (?, ?)');
    for (const [key, value] of facts) {
      put.run(key, value);
      this.#coming.add(key, value);
    }
  }

  /** Of what was received. */
  receivedRoot(): Digest {
    return this.#coming.root();
  }

  received(key: string): string | undefined {
    const row = this.#raw.prepare('SELECT value FROM facts_coming WHERE key = ?').get(key);
    return (row as { value: string } | undefined)?.value;
  }

  /** What was received takes the place of everything. Within a transaction of the caller. */
  replace(): void {
    this.#raw.exec(`
      DELETE FROM facts; DELETE FROM facts_before;
      INSERT INTO facts SELECT key, value FROM facts_coming;
      DELETE FROM facts_coming;
    `);
    this.#raw.prepare('INSERT OR REPLACE INTO fact_sum (id, lanes) VALUES (1, ?)').run(this.#coming.bytes());
  }

  #sum(): FactSum {
    const row = this.#raw.prepare('SELECT lanes FROM fact_sum').get() as { lanes: Uint8Array } | undefined;
    return new FactSum(row?.lanes);
  }
}

/** Changes that one entry makes, seen by its own rules at once and stored together, or not at all. */
export class Draft {
  readonly #facts: Pick<Facts, 'get' | 'list' | 'firstKeys'>;
  readonly #changes = new Map<string, string | null>();

  constructor(facts: Pick<Facts, 'get' | 'list' | 'firstKeys'>) {
    this.#facts = facts;
  }

  get changes(): ReadonlyMap<string, string | null> {
    return this.#changes;
  }

  /** The cast: what is under a key is what this folder put there. */
  get<T>(key: string): T | undefined {
    const text = this.#changes.has(key) ? this.#changes.get(key) : this.#facts.get(key);
    return text == null ? undefined : (JSON.parse(text) as T);
  }

  list<T>(prefix: string): readonly (readonly [string, T])[] {
    const all = new Map<string, string | null>(this.#facts.list(prefix));
    for (const [key, value] of this.#changes) if (key.startsWith(prefix)) all.set(key, value);
    return [...all]
      .filter((fact): fact is [string, string] => fact[1] !== null)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, text]) => [key, JSON.parse(text) as T]);
  }

  /** The first keys with that prefix, before any change of this draft. */
  first(prefix: string, limit: number): readonly string[] {
    return this.#facts.firstKeys(prefix, limit);
  }

  set(key: string, value: Json): void {
    this.#changes.set(key, canonicalJson(value));
  }

  delete(key: string): void {
    this.#changes.set(key, null);
  }
}
