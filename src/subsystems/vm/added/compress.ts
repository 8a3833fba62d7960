import { createZstdCompress } from 'node:zlib';

/**
 * Compresses (zstd). The same pieces give the same bytes whenever they come: left to itself, Node ends the frame together with the last piece or
 * after it, as time has it, and the two differ.
 */
export async function* compress(pieces: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  const zstd = createZstdCompress({ chunkSize: 2 ** 18 });
  const write = (piece: Uint8Array) =>
    new Promise<void>((resolve, reject) => zstd.write(piece, (error) => (error ? reject(error) : resolve())));
  const written = (async () => {
    for await (const piece of pieces) if (piece.length > 0) await write(piece);
    zstd.end();
  })().catch((error: Error) => {
    zstd.destroy(error);
  });
  // A reader that gives up destroys it: the write that waits fails, which ends the source.
  yield* zstd as AsyncIterable<Uint8Array>;
  await written;
}
