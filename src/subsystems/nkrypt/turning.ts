import { equal, utf8 } from '../../base/bytes.ts';
import { canonicalJson } from '../../base/json.ts';
import { decodeEpochDocument, type EpochDocument, epochDigest, readEpochDocument } from '../../wire/epoch.ts';
import type { LentTrust, Membership } from './entering.ts';
import { type LawBook, successor } from './epoch-law.ts';
import type { NKrypt } from './nkrypt.ts';
import type { Store } from './store.ts';

/** After a handover that did not get through. */
const TURN_AGAIN_MS = 1_000;

export interface TurningLent {
  readonly trust: LentTrust;
  readonly laws: LawBook;
  readonly store: Store;
  member(): Membership;
  /** Enters the network anew, with the committee that is in office now. */
  enterAnew(): Promise<void>;
}

/** How this home goes from one committee to the next: told by the order where it has a seat, by the documents of epochs elsewhere. */
export class Turning implements Disposable {
  readonly #lent: TurningLent;
  #turning: Promise<void> = Promise.resolve();
  #isClosed = false;
  #changed: () => void = () => undefined;

  constructor(lent: TurningLent) {
    this.#lent = lent;
  }

  /** From here on it is said when another committee may be in office. */
  watch(changed: () => void): void {
    this.#changed = changed;
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
  }

  /** The same in the background: what does not succeed now, because others are away, is tried again. */
  soon(): void {
    this.turned().catch(() => setTimeout(() => this.soon(), TURN_AGAIN_MS).unref());
  }

  /** The order has ended an epoch, or opened the next one. Safe to repeat. */
  async turned(): Promise<void> {
    const result = this.#turning.then(async () => {
      if (this.#isClosed) return;
      await this.#member.epochs?.handOver();
      const { ledger, validator, committee } = this.#member;
      if (ledger.latest(validator).digest !== committee.digest) await this.#lent.enterAnew();
      this.#changed();
    });
    this.#turning = result.catch(() => undefined);
    await result;
  }

  async learn(documents: readonly unknown[]): Promise<void> {
    const { document, ledger, order } = this.#member;
    if (documents.length <= ledger.epochDocuments().length) return;
    const decoded = documents.map(decodeEpochDocument);
    if (order !== undefined) return this.#hear(decoded);
    await this.#lent.laws.of(document, documents, epochDigest(decoded.at(-1)!));
    this.#lent.store.transact(() => ledger.announce(decoded));
    await this.turned();
  }

  /** Who has a seat learns from the order who is in office, and from the documents whom else it can ask for the order. */
  async #hear(documents: readonly EpochDocument[]): Promise<void> {
    const { ledger } = this.#member;
    const { epoch } = ledger.present();
    const later = documents.filter((one) => one.epoch > epoch);
    this.#lent.store.transact(() => ledger.learn(later));
    await this.turned();
  }

  readonly records: NKrypt['epochRecords'] = {
    numbers: () => {
      const { ledger, validator } = this.#member;
      // Who follows the order knows of a committee before that takes over.
      const { epoch: present } = ledger.latest(validator);
      return ledger.epochDocuments().flatMap(({ epoch }) => (epoch <= present ? [epoch] : []));
    },
    read: (epoch) => {
      const document = this.#member.ledger.epochDocument(epoch);
      return document === undefined ? null : utf8(canonicalJson(document));
    },
    take: async (bytes) => {
      const document = readEpochDocument(bytes);
      const { ledger, order, networkId, validator } = this.#member;
      const latest = ledger.latest(validator);
      if (document.epoch <= latest.epoch) {
        const known = this.records.read(document.epoch);
        return known !== null && equal(known, bytes) ? 'accepted' : 'known';
      }
      if (order !== undefined) {
        if (ledger.committeeOf(document.previous) !== undefined) await this.#hear([document]);
        return 'later';
      }
      if (document.epoch > latest.epoch + 1) return 'later';
      await successor(this.#lent.trust, latest, document, networkId);
      this.#lent.store.transact(() => ledger.announce([document]));
      await this.turned();
      return 'accepted';
    },
  };

  get #member(): Membership {
    return this.#lent.member();
  }
}
