import { type Digest, digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import type { Collection, Reception } from './exchange.ts';
import { IdSet } from './id-set.ts';
import { Passed } from './passed.ts';

/** The terms of the network (docs/protocol/terms.md); who judges and keeps them is another part of the home. */
export interface TermsRecord {
  /** Those that count; null as long as the network was never open. */
  read(): Uint8Array | null;
  /** Keeps them in the place of those before, if they count. Errors: `certification-invalid`, `network-mismatch` when they do not hold. */
  take(bytes: Uint8Array): Promise<void>;
}

/** Records that are not taken again. */
const PASSED_MAX = 1_000;

/** One document, spread as other records are: every member knows within seconds whether the network takes in machines without an invite. */
export class TermsCollection implements Collection {
  readonly name = 'terms';
  readonly ids = new IdSet();
  readonly #record: TermsRecord;
  readonly #passed = new Passed(PASSED_MAX);
  #current: { readonly id: Digest; readonly bytes: Uint8Array } | null = null;

  constructor(record: TermsRecord) {
    this.#record = record;
    const id = this.refresh();
    if (id !== null) this.ids.add(id);
  }

  /** What counts since the last look; the caller hands it on, and so adds it to `ids`. */
  refresh(): Digest | null {
    const bytes = this.#record.read();
    const id = bytes === null ? null : digestOf(bytes);
    if (id === (this.#current?.id ?? null)) return null;
    if (this.#current !== null) this.ids.delete(this.#current.id);
    this.#current = id === null ? null : { id, bytes: bytes! };
    return id;
  }

  knows(id: Digest): boolean {
    return this.#current?.id === id || this.#passed.has(id);
  }

  hasRoom(): boolean {
    return true;
  }

  async read(id: Digest): Promise<Uint8Array | null> {
    return this.#current?.id === id ? this.#current.bytes : null;
  }

  async receive(id: Digest, bytes: Uint8Array): Promise<Reception> {
    try {
      await this.#record.take(bytes);
    } catch (error) {
      if (!isCoded(error, 'certification-invalid', 'network-mismatch')) throw error;
      this.#passed.add(id);
      return 'refused';
    }
    this.refresh();
    if (this.#current?.id === id) return 'accepted';
    this.#passed.add(id);
    return 'aside';
  }
}
