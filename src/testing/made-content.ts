import { createHash } from 'node:crypto';
import { digestOf } from '../base/digest.ts';
import type { BlobDescription } from '../capabilities/content.ts';
import type { ShardList } from '../wire/content.ts';
import { averageFor, loadBlake3, ShardCutter } from '../wire/shards.ts';

/** Bytes that look random, the same for the same seed. */
export function noise(length: number, seed: string): Uint8Array {
  return new Uint8Array(createHash('shake256', { outputLength: length }).update(seed).digest());
}

/** What a publisher says about bytes. */
export interface MadeContent {
  readonly bytes: Uint8Array;
  readonly blob: BlobDescription;
  readonly list: ShardList;
}

const blake3 = await loadBlake3();

export function cut(bytes: Uint8Array): MadeContent {
  const cutter = new ShardCutter(blake3, averageFor(bytes.length));
  cutter.push(bytes);
  const shards = cutter.finish();
  return {
    bytes,
    blob: { digest: digestOf(bytes), size: bytes.length, shards },
    list: { size: bytes.length, averageBytes: cutter.average, shards: cutter.shards },
  };
}
