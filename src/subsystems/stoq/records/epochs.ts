import { type Digest, digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import type { Collection, Reception } from './exchange.ts';
import { IdSet } from './id-set.ts';
import { Passed } from './passed.ts';

/** The documents by which one committee follows another; who judges and keeps them is another part of the home. */
export interface EpochRecords {
  /** Those that are in force: what this node vouches for. */
  numbers(): readonly number[];
  read(epoch: number): Uint8Array | null;
  /** `known`: another one counts in its place. `later`: it cannot be judged yet. Errors: `epoch-invalid`, `network-mismatch` when it does not hold. */
  take(bytes: Uint8Array): Promise<'accepted' | 'known' | 'later'>;
}

/** Records that are not taken again, and those that wait for the ones before them. */
const PASSED_MAX = 1_000;
const WAITING_MAX = 16;

/** Epoch documents, spread as other records are: whoever takes part in the network learns within seconds that another committee votes. */
export class EpochCollection implements Collection {
  readonly name = 'epochs';
  readonly ids = new IdSet();
  readonly #records: EpochRecords;
  readonly #epochs = new Map<Digest, number>();
  readonly #passed = new Passed(PASSED_MAX);
  /** Brought before the document that they follow. */
  readonly #waiting = new Map<Digest, Uint8Array>();
  /** Of those that were looked at. */
  #newest = 0;

  constructor(records: EpochRecords) {
    this.#records = records;
    for (const id of this.refresh()) this.ids.add(id);
  }

  /** What came into force since the last look; the caller hands it on, and so adds it to `ids`. */
  refresh(): readonly Digest[] {
    const found: Digest[] = [];
    for (const epoch of this.#records.numbers()) {
      if (epoch <= this.#newest) continue;
      const bytes = this.#records.read(epoch);
      if (bytes === null) break;
      const id = digestOf(bytes);
      this.#epochs.set(id, epoch);
      this.#newest = epoch;
      found.push(id);
    }
    // What waited may count now: it is fetched again if nobody looks at it before.
    if (found.length > 0) this.#waiting.clear();
    return found;
  }

  knows(id: Digest): boolean {
    return this.#epochs.has(id) || this.#passed.has(id) || this.#waiting.has(id);
  }

  hasRoom(): boolean {
    return true;
  }

  async read(id: Digest): Promise<Uint8Array | null> {
    const epoch = this.#epochs.get(id);
    return epoch === undefined ? null : this.#records.read(epoch);
  }

  async receive(id: Digest, bytes: Uint8Array): Promise<Reception> {
    const waiting = [...this.#waiting];
    const reception = await this.#judge(id, bytes);
    // What waited for this one. Whoever brought it is not at hand any more, so nobody is blamed for it.
    for (const [next, brought] of reception === 'accepted' ? waiting : []) {
      this.#waiting.delete(next);
      await this.#judge(next, brought);
    }
    return reception;
  }

  async #judge(id: Digest, bytes: Uint8Array): Promise<Reception> {
    try {
      const verdict = await this.#records.take(bytes);
      if (verdict === 'accepted') return 'accepted';
      if (verdict === 'known') this.#passed.add(id);
      else if (this.#waiting.size < WAITING_MAX) this.#waiting.set(id, bytes);
      return 'aside';
    } catch (error) {
      if (!isCoded(error, 'epoch-invalid', 'network-mismatch')) throw error;
      this.#passed.add(id);
      return 'refused';
    }
  }
}
