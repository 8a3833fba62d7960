import { HyperMeshError } from '../../../base/errors.ts';
import type { RangeRequest } from '../../../wire/channel.ts';
import type { BulkSource, RemoteNode, ServedBlob } from './types.ts';

/** Of a piece, which is kept for as long as a window is closed. */
const PIECE_BYTES = 65_536;

/** The blob of a range that it has. Errors: `blob-not-found`, `usage`, and those of the source. */
export async function openRange(
  source: BulkSource,
  { blob, offset, length }: RangeRequest,
  remote: RemoteNode,
): Promise<ServedBlob> {
  const served = await source.open(blob, remote);
  if (served === null) throw new HyperMeshError('blob-not-found', `This node serves no ${blob}.`);
  if (offset + length > served.size) {
    throw new HyperMeshError(
      'usage',
      `The blob has ${served.size} bytes, so it has no range of ${length} at ${offset}.`,
    );
  }
  return served;
}

/** The bytes of a range, exactly as many as were asked for. A piece is good until the next one is asked for. */
export async function* pieces(
  served: ServedBlob,
  { offset, length }: RangeRequest,
): AsyncGenerator<Uint8Array, void, undefined> {
  const buffer = new Uint8Array(Math.min(PIECE_BYTES, length));
  try {
    for (let at = 0; at < length; ) {
      const piece = await readPiece(served, offset + at, buffer.subarray(0, length - at));
      yield piece;
      at += piece.length;
    }
  } finally {
    served.end?.();
  }
}

/** Errors: `storage-failed`. */
export async function readPiece(served: ServedBlob, offset: number, into: Uint8Array): Promise<Uint8Array> {
  const piece = await served.read(offset, into);
  if (piece.length === 0 || piece.length > into.length)
    throw new HyperMeshError('storage-failed', 'A blob gave other than the bytes that it has.');
  return piece;
}
