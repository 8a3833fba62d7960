import { hasBit, READ_RANGES_MAX, type ShardList } from '../../../wire/content.ts';

/** What one source is asked for at once. */
export type Job =
  /** Consecutive shards in one stream. */
  | { readonly kind: 'run'; readonly from: number; readonly to: number }
  /** Scattered shards in one answer. */
  | { readonly kind: 'batch'; readonly shards: readonly number[] };

/** A shorter run is not worth a stream of its own. */
const RUN_BYTES_MIN = 512 * 2 ** 10;
/** Of one batch. A single shard may be longer. */
const BATCH_BYTES = 2 ** 20;

/**
 * Which shards are still to be asked for, and what is best asked for next.
 *
 * Rarest first: the shard that the fewest sources have, and from there on while neighbours are as rare. When all known sources have everything, in order:
 * then the hash over the whole is fed as the bytes come. Otherwise at random, so that those who fetch the same blob get different parts and can
 * give them to each other.
 */
export class Plan {
  readonly #list: ShardList;
  readonly #random: () => number;
  /** 1: to be asked for. */
  readonly #open: Uint8Array;
  #openBytes = 0;
  /** How many of the sources that do not have everything have it. */
  readonly #holders: Uint16Array;
  #partial = 0;

  constructor(list: ShardList, wanted: readonly number[], random: () => number) {
    this.#list = list;
    this.#random = random;
    this.#open = new Uint8Array(list.shards.length);
    this.#holders = new Uint16Array(list.shards.length);
    for (const index of wanted) this.reopen(index);
  }

  /** Bytes that nobody was asked for. */
  get openBytes(): number {
    return this.#openBytes;
  }

  /** Of those, bytes that only sources with everything have. */
  get rareBytes(): number {
    if (this.#partial === 0) return this.#openBytes;
    let bytes = 0;
    for (const [index, { length }] of this.#list.shards.entries())
      if (this.#open[index] === 1 && this.#holders[index] === 0) bytes += length;
    return bytes;
  }

  reopen(index: number): void {
    if (this.#open[index] === 1) return;
    this.#open[index] = 1;
    this.#openBytes += this.#list.shards[index]!.length;
  }

  close(index: number): void {
    if (this.#open[index] === 0) return;
    this.#open[index] = 0;
    this.#openBytes -= this.#list.shards[index]!.length;
  }

  /** A source that has only these shards came, or goes (`by` -1). */
  count(bits: Uint8Array, by: 1 | -1): void {
    this.#partial += by;
    for (let i = 0; i < this.#holders.length; i++) if (hasBit(bits, i)) this.#holders[i]! += by;
  }

  /** Takes out what a source with these shards (null: all) should be asked for next, about `bytes` of it; null when it has nothing that is open. */
  take(bits: Uint8Array | null, bytes: number): Job | null {
    const has = (index: number) => this.#open[index] === 1 && (bits === null || hasBit(bits, index));
    const first = this.#rarest(has);
    if (first === null) return null;
    const { shards } = this.#list;
    const rarity = this.#holders[first]!;
    let to = first;
    let length = 0;
    for (; to < shards.length && has(to) && this.#holders[to]! <= rarity; to++) {
      const more = shards[to]!.length;
      if (length > 0 && length + more > bytes) break;
      length += more;
    }
    if (length >= Math.min(bytes, RUN_BYTES_MIN)) {
      for (let i = first; i < to; i++) this.close(i);
      return { kind: 'run', from: first, to };
    }
    const batch: number[] = [];
    length = 0;
    for (let step = 0; step < shards.length && batch.length < READ_RANGES_MAX; step++) {
      const index = (first + step) % shards.length;
      if (!has(index)) continue;
      if (batch.length > 0 && length + shards[index]!.length > BATCH_BYTES) break;
      length += shards[index]!.length;
      batch.push(index);
    }
    for (const index of batch) this.close(index);
    return { kind: 'batch', shards: batch };
  }

  #rarest(has: (index: number) => boolean): number | null {
    const count = this.#holders.length;
    const start = this.#partial === 0 ? 0 : Math.floor(this.#random() * count);
    let best: number | null = null;
    for (let step = 0; step < count; step++) {
      const index = (start + step) % count;
      if (!has(index)) continue;
      if (best === null || this.#holders[index]! < this.#holders[best]!) best = index;
      if (this.#holders[best] === 0) break;
    }
    return best;
  }
}
