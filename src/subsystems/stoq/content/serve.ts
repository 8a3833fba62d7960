import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { mapBounded } from '../../../base/streams.ts';
import type { ContentExchange } from '../../../capabilities/content.ts';
import {
  type BlobRange,
  decodeHaveAsk,
  decodeReadAsk,
  encodeHaveAnswer,
  encodeShardList,
  HAVE_ASK_BYTES_MAX,
  type Holding,
  READ_ASK_BYTES_MAX,
} from '../../../wire/content.ts';
import type { BulkSource, Method, RemoteNode } from '../channel/types.ts';
import type { Outgoing } from './outgoing.ts';
import type { Shaper } from './shaper.ts';

/** What a node needs to give its content to others. */
export interface ContentServing {
  readonly store: Pick<ContentExchange, 'holding' | 'shardList' | 'readHeld' | 'stat'>;
  /** Whether that node may have the blob: it belongs to something that was announced. */
  readonly served: (blob: Digest, to: RemoteNode) => boolean | Promise<boolean>;
  /** Of a blob that is served, its list of shards and its bytes only to whom this lets have them. Errors: `access-needed`. */
  readonly admit: (blob: Digest, to: RemoteNode) => void;
  /** The limit for everything that leaves; one for the whole node. */
  readonly uploads: Shaper;
  readonly outgoing: Outgoing;
}

/** Of a piece: a small range is sent together with its neighbours. */
const GATHER_BYTES = 64 * 2 ** 10;
/** Of one answer at a time: to wait for each by itself takes longer than to read it, but each may be of another file, which is open meanwhile. */
const READS_MAX = 4;

/** `content/have`, `content/shards`, `content/read` (docs/protocol/content.md). */
export function contentMethods(serving: ContentServing): Map<string, Method> {
  const method = (requestBytesMax: number, handle: Method['handle']): Method => ({
    access: 'member',
    requestBytesMax,
    handle,
  });
  return new Map([
    ['content/have', method(HAVE_ASK_BYTES_MAX, (body, from) => have(serving, body, from))],
    ['content/shards', method(HAVE_ASK_BYTES_MAX, (body, from) => shards(serving, body, from))],
    [
      'content/read',
      method(READ_ASK_BYTES_MAX, async (body, from, { signal }) => {
        const ranges = decodeReadAsk(body);
        for (const blob of new Set(ranges.map((range) => range.blob))) await mayHave(serving, blob, from);
        return { head: new Uint8Array(), body: read(serving, ranges, from, signal) };
      }),
    ],
  ]);
}

/** Large ranges, for the bulk connections of a channel. */
export function bulkSource(serving: ContentServing): BulkSource {
  return {
    async open(blob, from) {
      if (!(await serving.served(blob, from))) return null;
      serving.admit(blob, from);
      const size = (await serving.store.stat(blob))?.size ?? (await serving.store.shardList(blob))?.size;
      if (size === undefined) return null;
      let giving: ReturnType<Outgoing['begin']> | undefined;
      return {
        size,
        end: () => giving?.end(),
        async read(offset, into) {
          giving ??= serving.outgoing.begin(blob, from);
          const piece = into.subarray(0, serving.uploads.pieceBytes);
          await serving.uploads.pass(from.node ?? from.address, piece.length);
          await serving.store.readHeld(blob, offset, piece);
          giving.gave(piece.length);
          return piece;
        },
      };
    },
  };
}

async function have(serving: ContentServing, body: Uint8Array, from: RemoteNode): Promise<Uint8Array> {
  const holdings: Holding[] = [];
  for (const blob of decodeHaveAsk(body)) {
    holdings.push((await serving.served(blob, from)) ? await serving.store.holding(blob) : { kind: 'none' });
  }
  return encodeHaveAnswer(holdings);
}

async function shards(serving: ContentServing, body: Uint8Array, from: RemoteNode): Promise<Uint8Array> {
  const [blob, ...more] = decodeHaveAsk(body);
  if (blob === undefined || more.length > 0)
    throw new HyperMeshError('content-invalid', 'A list of shards is asked for one blob at a time.');
  await mayHave(serving, blob, from);
  const list = await serving.store.shardList(blob);
  if (list === null) throw notHere(blob);
  return encodeShardList(list);
}

/** The ranges one after the other, small ones gathered. A piece is done with when the next one is asked for: all are made in one buffer. */
async function* read(
  { store, uploads, outgoing }: ContentServing,
  ranges: readonly BlobRange[],
  from: RemoteNode,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const blobs = new Set(ranges.map(({ blob }) => blob));
  const giving = new Map([...blobs].map((blob) => [blob, outgoing.begin(blob, from)]));
  const pieceBytes = Math.min(GATHER_BYTES, uploads.pieceBytes);
  const total = ranges.reduce((sum, { length }) => sum + length, 0);
  const buffer = new Uint8Array(Math.min(pieceBytes, total));
  try {
    for (const parts of gathered(ranges, pieceBytes)) {
      let filled = 0;
      const reads = parts.map(({ blob, offset, length }) => {
        filled += length;
        return { blob, offset, into: buffer.subarray(filled - length, filled) };
      });
      await mapBounded(reads, READS_MAX, ({ blob, offset, into }) => store.readHeld(blob, offset, into));
      for (const { blob, length } of parts) giving.get(blob)!.gave(length);
      await uploads.pass(from.node ?? from.address, filled, signal);
      yield buffer.subarray(0, filled);
    }
  } finally {
    for (const each of giving.values()) each.end();
  }
}

/** Cuts and gathers ranges into pieces of so many bytes, the last one of what is left. */
function* gathered(ranges: readonly BlobRange[], bytes: number): Generator<readonly BlobRange[]> {
  let parts: BlobRange[] = [];
  let room = bytes;
  for (const { blob, offset, length } of ranges) {
    for (let at = 0; at < length; ) {
      const part = Math.min(room, length - at);
      parts.push({ blob, offset: offset + at, length: part });
      at += part;
      room -= part;
      if (room > 0) continue;
      yield parts;
      parts = [];
      room = bytes;
    }
  }
  if (parts.length > 0) yield parts;
}

async function mayHave(serving: ContentServing, blob: Digest, from: RemoteNode): Promise<void> {
  if (!(await serving.served(blob, from))) throw notHere(blob);
  serving.admit(blob, from);
}

function notHere(blob: Digest): HyperMeshError {
  return new HyperMeshError('blob-not-found', `This node does not give ${blob}.`);
}
