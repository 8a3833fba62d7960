import { HyperMeshError } from '../../../base/errors.ts';

/** Idle time is saved up to this long: a short answer after a pause is not slowed. */
const BURST_MS = 250;
/** Longest wait between two pieces at the limit, and bounds of a piece. */
const PIECE_MS = 100;
const PIECE_BYTES_MIN = 16 * 2 ** 10;
const PIECE_BYTES_MAX = 2 ** 20;

interface Party {
  /** Bytes given while it waited, counted from where the others were when it came; of equals, who came first is next. */
  given: number;
  readonly waiting: { readonly bytes: number; readonly start: () => void }[];
}

/**
 * Lets bytes pass at a given rate, shared fairly: of the parties that wait, the one that got the least is next, however many transfers it has.
 * Without a rate everything passes at once.
 */
export class Shaper {
  readonly #bytesPerSecond: number | null;
  readonly #parties = new Map<string, Party>();
  #tokens: number;
  #filledAtMs = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #passed = 0;

  constructor(bytesPerSecond: number | null) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#tokens = ((bytesPerSecond ?? 0) * BURST_MS) / 1_000;
  }

  /** Bytes that passed so far. */
  get passed(): number {
    return this.#passed;
  }

  /** What one {@link pass} should ask for, so that the flow stays even. */
  get pieceBytes(): number {
    if (this.#bytesPerSecond === null) return PIECE_BYTES_MAX;
    return Math.min(PIECE_BYTES_MAX, Math.max(PIECE_BYTES_MIN, Math.floor((this.#bytesPerSecond * PIECE_MS) / 1_000)));
  }

  /** Resolves when `party` may move `bytes`. Errors: `cancelled`. */
  async pass(party: string, bytes: number, signal?: AbortSignal): Promise<void> {
    this.#passed += bytes;
    if (this.#bytesPerSecond === null) return;
    this.#fill();
    if (this.#parties.size === 0 && this.#tokens > 0) {
      this.#tokens -= bytes;
      return;
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const of = this.#party(party);
    const entry = { bytes, start: resolve };
    of.waiting.push(entry);
    const give = () => {
      of.waiting.splice(of.waiting.indexOf(entry), 1);
      if (of.waiting.length === 0) this.#parties.delete(party);
      reject(new HyperMeshError('cancelled', 'The transfer was cancelled.', { cause: signal?.reason }));
    };
    if (signal?.aborted) give();
    else {
      signal?.addEventListener('abort', give, { once: true });
      this.#serve();
    }
    try {
      await promise;
    } finally {
      signal?.removeEventListener('abort', give);
    }
  }

  #party(name: string): Party {
    const known = this.#parties.get(name);
    if (known !== undefined) return known;
    const least = this.#parties.values().reduce((min, { given }) => Math.min(min, given), Number.POSITIVE_INFINITY);
    const party: Party = { given: least === Number.POSITIVE_INFINITY ? 0 : least, waiting: [] };
    this.#parties.set(name, party);
    return party;
  }

  #fill(): void {
    const now = performance.now();
    const rate = this.#bytesPerSecond!;
    this.#tokens = Math.min((rate * BURST_MS) / 1_000, this.#tokens + ((now - this.#filledAtMs) * rate) / 1_000);
    this.#filledAtMs = now;
  }

  #serve(): void {
    if (this.#timer !== undefined) return;
    this.#fill();
    while (this.#parties.size > 0 && this.#tokens > 0) {
      const [name, party] = this.#parties
        .entries()
        .reduce((least, entry) => (entry[1].given < least[1].given ? entry : least));
      const { bytes, start } = party.waiting.shift()!;
      this.#tokens -= bytes;
      party.given += bytes;
      if (party.waiting.length === 0) this.#parties.delete(name);
      start();
    }
    if (this.#parties.size === 0) return;
    const waitMs = Math.max(1, (-this.#tokens * 1_000) / this.#bytesPerSecond!);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#serve();
    }, waitMs);
  }
}
