import { createHash } from 'node:crypto';
import { coefficientsOf, combined } from '../src/wire/erasure.ts';
import { type Bench, type Comparison, timed } from './harness.ts';

const MIB = 2 ** 20;
const BYTES = 256 * MIB;
const ROUNDS = 5;
/** k and m: bytes kept, in terms of the content, are (k + m) / k where copies take three. */
const CODES = [
  [2, 3],
  [4, 2],
  [8, 4],
] as const;
const COPIES = 3;

export const bench: Bench = {
  name: 'erasure',
  about: 'fragments of 256 MiB of content, computed in memory, against hashing the same bytes; and what is kept of it',
  async run() {
    const content = new Uint8Array(BYTES);
    for (let at = 0; at < BYTES; at += 4) content[at] = at >> 12;
    const comparisons: Comparison[] = [];
    for (const [k, m] of CODES) {
      const size = BYTES / k;
      const of = (part: number, offset: number, into: Uint8Array) =>
        into.set(content.subarray(part * size + offset, part * size + offset + into.length));
      const have = Array.from({ length: k }, (_, part) => part);
      const ours: number[] = [];
      const theirs: number[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        theirs.push(await timed(() => createHash('sha256').update(content).digest()));
        ours.push(await timed(() => compute(size, coefficientsOf(k + (round % m), have), of)));
      }
      comparisons.push({
        ...{ name: `${k}+${m}, one fragment of parity`, unit: 'ms', reference: 'SHA-256 of the content' },
        ...{ ratioMax: 1, ours, theirs },
      });
      comparisons.push({
        ...{ name: `${k}+${m}, kept of it`, unit: 'MiB', reference: `${COPIES} copies`, ratioMax: 1 },
        ...{ ours: [((k + m) * size) / MIB], theirs: [(COPIES * BYTES) / MIB] },
      });
    }
    return comparisons;
  },
};

async function compute(
  size: number,
  coefficients: Uint8Array,
  of: (part: number, offset: number, into: Uint8Array) => void,
): Promise<number> {
  let bytes = 0;
  const read = async (part: number, offset: number, into: Uint8Array) => of(part, offset, into);
  for await (const piece of combined(coefficients, 0, size, read)) bytes += piece.length;
  return bytes;
}
