import type { Digest } from '../../base/digest.ts';
import type { NodeId } from './channel/index.ts';

/**
 * The nodes that resources belong on: rendezvous (highest random weight) hashing, Thaler and Ravishankar 1998. Everybody who knows the same nodes computes
 * the same order, and a node that comes or goes moves only what is its own. Ids are hashes already, so their first 8 bytes are mixed
 * (docs/protocol/overlay.md); a thousand nodes take some microseconds for each resource.
 */
export class Placement {
  readonly #nodes: readonly NodeId[];
  readonly #high: Uint32Array;
  readonly #low: Uint32Array;

  constructor(nodes: readonly NodeId[]) {
    this.#nodes = nodes;
    this.#high = new Uint32Array(nodes.length);
    this.#low = new Uint32Array(nodes.length);
    for (let at = 0; at < nodes.length; at++) {
      const [high, low] = wordsOf(nodes[at]!);
      this.#high[at] = high;
      this.#low[at] = low;
    }
  }

  get size(): number {
    return this.#nodes.length;
  }

  /** The `count` nodes that come first for the resource, best first. */
  top(resource: Digest, count: number): NodeId[] {
    const high = Number.parseInt(resource.slice(7, 15), 16);
    const low = Number.parseInt(resource.slice(15, 23), 16);
    if (count === 0) return [];
    const best: { readonly node: NodeId; readonly weight: number }[] = [];
    for (let at = 0; at < this.#nodes.length; at++) {
      const first = mix(high ^ this.#high[at]!);
      const weight = first * 2 ** 21 + (mix(low ^ this.#low[at]! ^ first) >>> 11);
      // Most nodes: far from the first ones.
      if (best.length === count && weight < best.at(-1)!.weight) continue;
      const node = this.#nodes[at]!;
      let place = best.length;
      while (place > 0 && isBefore(weight, node, best[place - 1]!)) place -= 1;
      if (place >= count) continue;
      best.splice(place, 0, { node, weight });
      if (best.length > count) best.pop();
    }
    return best.map(({ node }) => node);
  }
}

type Words = readonly [high: number, low: number];

/** Of nodes whose ids were read before: places are computed anew whenever one comes or goes, and the others are the same. */
const known = new Map<NodeId, Words>();
const KNOWN_MAX = 20_000;

function wordsOf(node: NodeId): Words {
  let words = known.get(node);
  if (words === undefined) {
    words = [mix(Number.parseInt(node.slice(0, 8), 16)), mix(Number.parseInt(node.slice(8, 16), 16))];
    if (known.size >= KNOWN_MAX) known.clear();
    known.set(node, words);
  }
  return words;
}

function isBefore(weight: number, node: NodeId, other: { readonly node: NodeId; readonly weight: number }): boolean {
  return weight > other.weight || (weight === other.weight && node < other.node);
}

/** The finalizer of MurmurHash3 (32 bits): every bit of the input changes each bit of the output with probability one half. */
function mix(value: number): number {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
