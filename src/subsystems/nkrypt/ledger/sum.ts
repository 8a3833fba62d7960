import { createHash, hash } from 'node:crypto';
import { utf8 } from '../../../base/bytes.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';

const LANES = 1_024;
/** Of the stored sum. */
export const SUM_BYTES = LANES * 2;

/**
 * A hash of a set of facts that costs the same to update whatever else is in the set (LtHash16 of Bellare and Micciancio, and Lewi et al.: 1,024 lanes of
 * 16 bits, each fact stretched over all of them and added). The order in which facts came and went leaves no trace. Finding two sets with one sum is a
 * short-vector problem in a lattice, at more than 200 bits of work.
 */
export class FactSum {
  readonly #lanes: Uint16Array;

  /** Of nothing, or a sum that {@link bytes} gave. */
  constructor(bytes?: Uint8Array) {
    this.#lanes = new Uint16Array(LANES);
    if (bytes !== undefined) each(bytes, (lane, value) => (this.#lanes[lane] = value));
  }

  add(key: string, value: string): void {
    each(stretched(key, value), (lane, by) => (this.#lanes[lane] = this.#lanes[lane]! + by));
  }

  remove(key: string, value: string): void {
    each(stretched(key, value), (lane, by) => (this.#lanes[lane] = this.#lanes[lane]! - by));
  }

  /** Lane by lane, little-endian. */
  bytes(): Uint8Array {
    const out = new Uint8Array(SUM_BYTES);
    const view = new DataView(out.buffer);
    for (const [lane, value] of this.#lanes.entries()) view.setUint16(lane * 2, value, true);
    return out;
  }

  /** SHA-256 of the lanes. */
  root(): Digest {
    return digestOf(this.bytes());
  }
}

/** Keys hold no NUL, so that no two facts are stretched alike. */
function stretched(key: string, value: string): Uint8Array {
  const fact = hash('sha256', utf8(`hm-fact-v1\0${key}\0${value}`), 'buffer');
  return createHash('shake256', { outputLength: SUM_BYTES }).update(fact).digest();
}

function each(bytes: Uint8Array, use: (lane: number, value: number) => void): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let lane = 0; lane < LANES; lane += 1) use(lane, view.getUint16(lane * 2, true));
}
