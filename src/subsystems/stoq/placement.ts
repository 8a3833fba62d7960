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
    this.#high = Uint32Array.from(nodes, (node) => mix(Number.parseInt(node.slice(0, 8), 16)));
    this.#low = Uint32Array.from(nodes, (node) => mix(Number.parseInt(node.slice(8, 16), 16)));
  }

  get size(): number {
    return this.#nodes.length;
  }

  /** The `count` nodes that come first for the resource, best first. */
  top(resource: Digest, count: number): NodeId[] {
    const high = Number.parseInt(resource.slice(7, 15), 16);
    const low = Number.parseInt(resource.slice(15, 23), 16);
    const best: { readonly node: NodeId; readonly weight: number }[] = [];
    for (let at = 0; at < this.#nodes.length; at++) {
      const first = mix(high ^ this.#high[at]!);
      const weight = first * 2 ** 21 + (mix(low ^ this.#low[at]! ^ first) >>> 11);
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
