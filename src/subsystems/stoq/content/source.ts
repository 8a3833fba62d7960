import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import {
  type BlobRange,
  decodeHaveAnswer,
  decodeShardList,
  encodeHaveAsk,
  encodeReadAsk,
  type Holding,
  haveAnswerBytesMax,
  SHARD_LIST_BYTES_MAX,
  type ShardList,
} from '../../../wire/content.ts';
import type { Connection, FetchRangeOptions, NodeId } from '../channel/types.ts';

export interface SourceOptions {
  readonly signal?: AbortSignal | undefined;
}

/** A node that content can be asked from. What it sends is not to be believed; `peer-lied` says that it was not even possible. */
export interface Source {
  readonly node: NodeId;
  readonly rttMs: number | null;
  /** One answer for each blob, in order. */
  have(blobs: readonly Digest[], options?: SourceOptions): Promise<readonly Holding[]>;
  shardList(blob: Digest, options?: SourceOptions): Promise<ShardList>;
  /** The bytes of all ranges, one after the other: exactly as many as were asked for. `onBytes` is told what comes, as it comes. */
  read(
    ranges: readonly BlobRange[],
    options?: SourceOptions & { readonly onBytes?: (bytes: number) => Promise<void> | void },
  ): Promise<Uint8Array>;
  /** As {@link Connection.fetchRange}. */
  fetchRange(
    range: BlobRange,
    write: (bytes: Uint8Array) => Promise<void> | void,
    options?: FetchRangeOptions,
  ): Promise<void>;
}

/** Who may have a blob. Asked again while a download goes on, so that nodes which come later help too. */
export interface SourcePool {
  sources(blob: Digest, options: { readonly signal: AbortSignal }): Promise<readonly Source[]>;
}

/** A shard with other bytes, a list of shards that nobody signed for, or an answer that breaks the protocol. */
export type LieKind = 'wrong-bytes' | 'wrong-list' | 'broken-protocol';

/** What an honest node never does. */
export class Lie extends Error {
  override readonly name = 'Lie';
  readonly what: LieKind;

  constructor(what: LieKind, evidence: string) {
    super(evidence);
    this.what = what;
  }
}

/** The lie that this failure of a source shows, or null: everything else can happen to an honest node too. */
export function lieIn(error: unknown): Lie | null {
  if (error instanceof Lie) return error;
  if (isCoded(error, 'shard-mismatch')) return new Lie('wrong-bytes', error.message);
  if (isCoded(error, 'peer-lied')) return new Lie('broken-protocol', error.message);
  return null;
}

const sources = new WeakMap<Connection, Source>();

/** A connected member as a source: always the same one for the same connection. */
export function sourceOf(connection: Connection): Source {
  let source = sources.get(connection);
  if (source === undefined) {
    source = makeSource(connection);
    sources.set(connection, source);
  }
  return source;
}

function makeSource(connection: Connection): Source {
  const { node } = connection.remote;
  if (node === null) throw new TypeError('a guest is no source');
  return {
    node,
    get rttMs() {
      return connection.rttMs;
    },
    async have(blobs, options) {
      const answer = await bounded(
        connection.request('content/have', encodeHaveAsk(blobs), {
          replyBytesMax: haveAnswerBytesMax(blobs.length),
          ...options,
        }),
      );
      const holdings = read(() => decodeHaveAnswer(answer));
      if (holdings.length !== blobs.length) throw lied('an answer about other blobs than were asked about');
      return holdings;
    },
    async shardList(blob, options) {
      const ask = encodeHaveAsk([blob]);
      const answer = await bounded(
        connection.request('content/shards', ask, { replyBytesMax: SHARD_LIST_BYTES_MAX, ...options }),
      );
      return read(() => decodeShardList(answer));
    },
    async read(ranges, { onBytes, ...options } = {}) {
      const { head, body } = await bounded(
        connection.requestStream('content/read', encodeReadAsk(ranges), { replyBytesMax: 0, ...options }),
      );
      const bytes = new Uint8Array(ranges.reduce((sum, { length }) => sum + length, 0));
      if (head.length > 0) throw lied('a head where none belongs');
      let at = 0;
      for await (const piece of body) {
        if (at + piece.length > bytes.length) throw lied('more bytes than were asked for');
        bytes.set(piece, at);
        at += piece.length;
        await onBytes?.(piece.length);
      }
      if (at !== bytes.length) throw lied(`${at} bytes where ${bytes.length} were asked for`);
      return bytes;
    },
    fetchRange: ({ blob, offset, length }, write, options) =>
      connection.fetchRange(blob, { offset, length }, write, options),
  };
}

/** An honest node's answers can be read. */
function read<T>(decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    throw isCoded(error, 'content-invalid') ? lied('an answer that is malformed', error) : error;
  }
}

/** An honest node's answers are not longer than they can be. */
async function bounded<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    throw isCoded(error, 'limit-exceeded') ? lied('an answer that is too long', error) : error;
  }
}

function lied(what: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('peer-lied', `Another node sent ${what}.`, { cause });
}
