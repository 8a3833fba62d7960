import { HyperMeshError } from '../../../base/errors.ts';
import type { RangeRequest } from '../../../wire/channel.ts';
import type { BulkSource, RemoteNode } from './types.ts';

/** The bytes of a range, exactly as many as were asked for. Errors: `blob-not-found`, `usage`, and those of the source. */
export async function openRange(
  source: BulkSource,
  { blob, offset, length }: RangeRequest,
  remote: RemoteNode,
): Promise<AsyncIterable<Uint8Array>> {
  const served = await source.open(blob, remote);
  if (served === null) throw new HyperMeshError('blob-not-found', `This node serves no ${blob}.`);
  if (offset + length > served.size) {
    throw new HyperMeshError(
      'usage',
      `The blob has ${served.size} bytes, so it has no range of ${length} at ${offset}.`,
    );
  }
  return exactly(served.read(offset, length), length);
}

async function* exactly(
  pieces: AsyncIterable<Uint8Array>,
  length: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  let left = length;
  for await (const piece of pieces) {
    left -= piece.length;
    if (left < 0) break;
    yield piece;
  }
  if (left !== 0) throw new HyperMeshError('storage-failed', `A blob gave other than the ${length} bytes that it has.`);
}
