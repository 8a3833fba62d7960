import { createHash } from 'node:crypto';
import { checkCancelled } from '../../../base/call.ts';
import type { Digest } from '../../../base/digest.ts';
import type { ContentExchange } from '../../../capabilities/content.ts';
import { type Coding, type CodingShape, fragmentOf, fragmentSize } from '../../../wire/coding.ts';
import { coefficientsOf, combined } from '../../../wire/erasure.ts';
import { averageFor, loadBlake3, ShardCutter } from '../../../wire/shards.ts';

type Readable = Pick<ContentExchange, 'readHeld'>;
type Coded = CodingShape & Pick<Coding, 'blob'>;

/** K different fragments whose bytes are here, from which each of the others can be computed. */
export interface Material {
  readonly have: readonly number[];
  /** Fills `into` with bytes of the fragment at that place of `have`. */
  read(place: number, offset: number, into: Uint8Array): Promise<void>;
}

/** The whole as its own first fragments; the last of them ends in zeros. */
export function materialOfWhole(content: Readable, { blob, k }: Coded): Material {
  const size = fragmentSize(blob, { k, m: 0 });
  return {
    have: Array.from({ length: k }, (_, index) => index),
    async read(index, offset, into) {
      const at = index * size + offset;
      const length = Math.max(0, Math.min(into.length, blob.size - at));
      if (length > 0) await content.readHeld(blob.digest, at, into.subarray(0, length));
      into.fill(0, length);
    },
  };
}

export function materialOfFragments(content: Readable, coding: Coding, have: readonly number[]): Material {
  return {
    have,
    read: (place, offset, into) => content.readHeld(fragmentOf(coding, have[place]!).digest, offset, into),
  };
}

/** Each piece is valid until the next is asked for. */
export function fragmentBytes(
  { have, read }: Material,
  index: number,
  offset: number,
  length: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  return combined(coefficientsOf(index, have), offset, length, read);
}

export async function* wholeBytes(material: Material, { blob, k }: Coded): AsyncGenerator<Uint8Array, void, undefined> {
  const size = fragmentSize(blob, { k, m: 0 });
  for (let index = 0; index < k; index++) {
    yield* fragmentBytes(material, index, 0, Math.max(0, Math.min(size, blob.size - index * size)));
  }
}

export async function digestOfWhole(material: Material, coded: Coded, signal: AbortSignal): Promise<Digest> {
  const hash = createHash('sha256');
  for await (const piece of wholeBytes(material, coded)) {
    checkCancelled(signal);
    hash.update(piece);
  }
  return `sha256:${hash.digest('hex')}`;
}

/** What a coding says of a fragment, computed from its bytes. */
export async function describe(
  material: Material,
  index: number,
  size: number,
  signal: AbortSignal,
): Promise<Coding['fragments'][number]> {
  const hash = createHash('sha256');
  const cutter = new ShardCutter(await loadBlake3(), averageFor(size));
  for await (const piece of fragmentBytes(material, index, 0, size)) {
    checkCancelled(signal);
    hash.update(piece);
    cutter.push(piece);
  }
  const { count, root } = cutter.finish();
  return { digest: `sha256:${hash.digest('hex')}`, count, root };
}
