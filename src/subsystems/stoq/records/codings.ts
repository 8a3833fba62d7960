import { fromHex } from '../../../base/bytes.ts';
import type { Clock } from '../../../base/clock.ts';
import { type Digest, digestHex } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import type { Trust } from '../../../capabilities/trust.ts';
import { decodeSignedCoding, fragmentId, fragmentOf } from '../../../wire/coding.ts';
import type { Book } from '../book.ts';
import type { NodeId } from '../channel/index.ts';
import type { Collection, Reception } from './exchange.ts';
import { IdSet } from './id-set.ts';
import { Passed } from './passed.ts';

export interface CodingsLent {
  readonly book: Book;
  readonly clock: Clock;
  readonly networkId: Digest;
  readonly trust: Pick<Trust, 'verify'>;
  readonly isBanned: (node: NodeId) => boolean;
}

const CODINGS_MAX = 100_000;
/** One node describes at most so many, and one blob has at most so many. */
const BY_ONE_MAX = 10_000;
const OF_ONE_MAX = 8;
/** Records that are not taken again. */
const PASSED_MAX = 1_000;
/** What is coded was not heard of yet: it is taken when it is brought again after this. */
const EARLY_MS = 10_000;

/**
 * Codings (docs/protocol/coding.md), spread as other records are. Taking one means nothing but knowing of it: nobody relies on what it says before
 * fragments were put together, or made of the content once more.
 */
export class CodingCollection implements Collection {
  readonly name = 'codings';
  readonly isRare = true;
  readonly ids: IdSet;
  readonly #lent: CodingsLent;
  readonly #passed = new Passed(PASSED_MAX);
  readonly #early = new Map<Digest, number>();

  constructor(lent: CodingsLent) {
    this.#lent = lent;
    this.ids = new IdSet(lent.book.codingIds('all').map((id) => fromHex(digestHex(id))));
  }

  knows(id: Digest): boolean {
    return this.ids.has(id) || this.#passed.has(id) || (this.#early.get(id) ?? 0) > this.#lent.clock.nowMs();
  }

  hasRoom(): boolean {
    return this.ids.size < CODINGS_MAX;
  }

  async read(id: Digest): Promise<Uint8Array | null> {
    return this.#lent.book.coding(id)?.bytes ?? null;
  }

  async receive(id: Digest, bytes: Uint8Array): Promise<Reception> {
    const reception = await this.#judge(id, bytes);
    if (reception !== 'accepted' && !this.#early.has(id)) this.#passed.add(id);
    return reception;
  }

  /** It is not handed on any more, nor taken again. */
  forget(id: Digest): void {
    this.ids.delete(id);
    this.#passed.add(id);
  }

  async #judge(id: Digest, bytes: Uint8Array): Promise<Reception> {
    const { book, networkId, trust, isBanned, clock } = this.#lent;
    let read: ReturnType<typeof decodeSignedCoding>;
    try {
      read = decodeSignedCoding(bytes);
      await trust.verify(read.envelope, read.chain, { role: 'node', atMs: read.coding.codedAtMs });
    } catch (error) {
      // Certificates run out: nothing to hold against whoever still hands it on.
      if (isCoded(error, 'certificate-expired', 'certificate-revoked')) return 'aside';
      if (isCoded(error, 'record-invalid', 'signature-invalid', 'certificate-invalid')) return 'refused';
      throw error;
    }
    const { coding, coder } = read;
    if (coding.network !== networkId) return 'refused';
    const blob = book.get(coding.resource)?.blobs.find(({ digest }) => digest === coding.blob.digest);
    if (blob === undefined) {
      const nowMs = clock.nowMs();
      for (const [early, untilMs] of this.#early) if (untilMs < nowMs) this.#early.delete(early);
      if (this.#early.size < PASSED_MAX) this.#early.set(id, nowMs + EARLY_MS);
      return 'aside';
    }
    this.#early.delete(id);
    const fragments = coding.fragments.map((_, index) => fragmentId(fragmentOf(coding, index)));
    const counts =
      blob.size === coding.blob.size &&
      !isBanned(coder) &&
      book.codingCount({ coder }) < BY_ONE_MAX &&
      book.codingCount({ blob: blob.digest }) < OF_ONE_MAX &&
      !book.isFragmentOfAnother(fragments, blob.digest);
    if (!counts) return 'aside';
    book.keepCoding({ id, coding, coder, bytes }, false);
    return 'accepted';
  }
}
