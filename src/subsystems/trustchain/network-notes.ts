import type { DatabaseSync } from 'node:sqlite';
import type { Digest } from '../../base/digest.ts';
import type { CommitteeSeat } from '../../wire/certification.ts';
import { type SignedTerms, signedTerms } from '../../wire/terms.ts';

/** Of a home that is a member of a network which another home founded. */
export interface StoredMembership {
  readonly networkId: Digest;
  readonly committee: readonly CommitteeSeat[];
  readonly joinedAtMs: number;
}

/** What a home keeps of the network that it is in, in `trust.db`. Each change is durable when it returns. */
export class NetworkNotes {
  readonly #raw: DatabaseSync;
  readonly #nowMs: () => number;

  constructor(raw: DatabaseSync, nowMs: () => number) {
    this.#raw = raw;
    this.#nowMs = nowMs;
  }

  /** Null in a network of its own. */
  membership(): StoredMembership | null {
    const row = this.#raw.prepare('SELECT json FROM membership').get();
    return row === undefined ? null : (JSON.parse(row['json'] as string) as StoredMembership);
  }

  /** Whether this home opened its own network to others. */
  isFounder(): boolean {
    return this.#setting('founder') !== undefined;
  }

  setFounder(isFounder: boolean): void {
    if (isFounder) this.#set('founder', 'yes');
    else this.#raw.exec("DELETE FROM setting WHERE name = 'founder'");
  }

  /** On which nodes the publishers with seats are, by key id, as far as this home was told once. */
  machines(): ReadonlyMap<string, string> {
    const value = this.#setting('machines');
    return new Map(value === undefined ? [] : Object.entries(JSON.parse(value) as object));
  }

  /** In the place of those that were known. */
  rememberMachines(machines: ReadonlyMap<string, string>): void {
    this.#set('machines', JSON.stringify(Object.fromEntries(machines)));
  }

  /** When this home learned that the epoch began, by its own clock; null for any but the last one that it noted. */
  epochSeenAtMs(epoch: number): number | null {
    const value = this.#setting('epoch');
    const seen = value === undefined ? null : (JSON.parse(value) as { epoch: number; atMs: number });
    return seen?.epoch === epoch ? seen.atMs : null;
  }

  /** From now on it is known. Safe to repeat. */
  noteEpoch(epoch: number): void {
    if (this.epochSeenAtMs(epoch) !== null) return;
    this.#set('epoch', JSON.stringify({ epoch, atMs: this.#nowMs() }));
  }

  /** What the founder said last of who may come without an invite. */
  terms(): SignedTerms | null {
    const value = this.#setting('terms');
    return value === undefined ? null : signedTerms.parse(JSON.parse(value));
  }

  /** In the place of those that were known. */
  keepTerms(signed: SignedTerms): void {
    this.#set('terms', JSON.stringify(signed));
  }

  #setting(name: string): string | undefined {
    return this.#raw.prepare('SELECT value FROM setting WHERE name = ?').get(name)?.['value'] as string | undefined;
  }

  #set(name: string, value: string): void {
    this.#raw.prepare('INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)').run(name, value);
  }
}
