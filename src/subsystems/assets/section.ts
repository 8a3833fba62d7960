import { randomBytes } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { z } from 'zod';
import { concat, fromUtf8, utf8 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { StateSection } from '../../capabilities/state.ts';
import { digest } from '../../wire/fields.ts';
import type { AssetId } from '../../wire/names.ts';
import type { ContentStore } from './content/store.ts';
import { blobsOf, Records, RecordsSnapshot, recordShape, type StoredRecord } from './records.ts';

/** The first byte of a piece (docs/protocol/index.md). */
const KIND = { blob: 1, bytes: 2, record: 3, annotation: 4, end: 5 } as const;

const BYTES_MAX = 2 ** 20 - 1;
/** Records that are restored in one transaction, during which nothing else happens in this process. */
const RECORDS_AT_ONCE = 16;

const blobShape = z.strictObject({
  digest,
  size: z.int().nonnegative(),
});
const annotationShape = z.strictObject({ id: z.string(), key: z.string(), value: z.json() });
const endShape = z.strictObject({ blobs: z.int().nonnegative(), records: z.int().nonnegative() });

export interface SectionParts {
  readonly content: ContentStore;
  readonly clock: Clock;
  /** File of the records in use. */
  readonly path: string;
  /** Puts a finished file of records in the place of the one in use, and closes both. */
  replace(staged: Records): void;
}

/** All records with their content: after an import, an empty machine serves everything that this one did. */
export class AssetSection implements StateSection {
  readonly name = 'assets';
  readonly version = 1;
  readonly #parts: SectionParts;
  readonly #exports = new Set<RecordsSnapshot>();

  constructor(parts: SectionParts) {
    this.#parts = parts;
  }

  /** Blobs first, then the records that refer to them. An import that takes effect meanwhile ends it with `state-conflict`. */
  async *export(options: CallOptions = {}): AsyncGenerator<Uint8Array> {
    using snapshot = new RecordsSnapshot(this.#parts.path);
    this.#exports.add(snapshot);
    try {
      yield* this.#pieces(snapshot, options);
    } catch (error) {
      if (snapshot.isOpen) throw error;
      throw new HyperMeshError('state-conflict', 'The state was replaced by an import while it was exported.', {
        hint: 'Export again.',
      });
    } finally {
      this.#exports.delete(snapshot);
    }
  }

  async import(
    version: number,
    pieces: AsyncIterable<Uint8Array>,
    options: CallOptions = {},
  ): Promise<{ commit(): Promise<void>; abandon(): Promise<void> }> {
    if (version !== this.version) throw invalid(`version ${version} of it is not known`);
    const { content, clock, path, replace } = this.#parts;
    const staged = new Records(`${path}.${randomBytes(8).toString('hex')}${STAGED}`, clock);
    try {
      const referenced = await restore(content, staged, pieces, options);
      return {
        commit: async () => {
          // Leased for an hour when they arrived; a slow import may have taken longer.
          const missing = await content.hold(referenced);
          if (missing.length > 0) throw invalid(`the blob ${missing[0]} was removed meanwhile`);
          for (const snapshot of this.#exports) snapshot[Symbol.dispose]();
          replace(staged);
        },
        abandon: async () => staged.discard(),
      };
    } catch (error) {
      staged.discard();
      throw error;
    }
  }

  async *#pieces(snapshot: RecordsSnapshot, options: CallOptions): AsyncGenerator<Uint8Array> {
    const { content } = this.#parts;
    let [blobs, records] = [0, 0];
    for (const digest of snapshot.blobs()) {
      const info = await content.stat(digest);
      if (info === null) {
        // A layer may be on other nodes of the network; whoever imports the record fetches it from them too.
        if (snapshot.isOnlyLayer(digest)) continue;
        throw new HyperMeshError(
          'blob-not-found',
          `The blob ${digest}, which a record refers to, is not in the store.`,
        );
      }
      yield piece(KIND.blob, { digest, size: info.size });
      for await (const bytes of content.read(digest, options)) {
        for (let at = 0; at < bytes.length; at += BYTES_MAX) {
          yield concat(Uint8Array.of(KIND.bytes), bytes.subarray(at, at + BYTES_MAX));
        }
      }
      blobs += 1;
      options.onProgress?.({ step: 'export', done: blobs, note: `${blobs} blobs` });
    }
    for (const record of snapshot.records()) {
      yield piece(KIND.record, record);
      records += 1;
      options.onProgress?.({ step: 'export', done: records, note: `${records} records` });
    }
    for (const { id, key, value } of snapshot.annotations()) {
      yield piece(KIND.annotation, { id, key, value: JSON.parse(value) as Json });
    }
    yield piece(KIND.end, { blobs, records });
  }
}

/** How the name of a staged file of records ends: whatever has it at the next start is left over. */
export const STAGED = '.import';

/** Reads an export into the content store and `staged`; returns the blobs that its records refer to. Errors: `state-invalid`. */
async function restore(
  content: ContentStore,
  staged: Records,
  pieces: AsyncIterable<Uint8Array>,
  options: CallOptions,
): Promise<ReadonlySet<Digest>> {
  const iterator = pieces[Symbol.asyncIterator]();
  const next = async (): Promise<Uint8Array> => {
    const { done, value } = await iterator.next();
    if (done === true) throw invalid('it ends before its end mark');
    if (value.length === 0 || value.length > BYTES_MAX + 1) throw invalid(`a piece has ${value.length} bytes`);
    return value;
  };
  const bytesOf = async function* (size: number): AsyncGenerator<Uint8Array> {
    for (let left = size; left > 0; ) {
      const bytes = await next();
      if (bytes[0] !== KIND.bytes || bytes.length === 1) throw invalid(`a blob ends ${left} bytes too early`);
      left -= bytes.length - 1;
      if (left < 0) throw invalid('a blob is longer than announced');
      yield bytes.subarray(1);
    }
  };
  const arrived = new Set<Digest>();
  const batch: StoredRecord[] = [];
  let records = 0;
  const flush = () => staged.restore(batch.splice(0));
  try {
    for (;;) {
      const one = await next();
      switch (one[0]!) {
        case KIND.blob: {
          const { digest, size } = parse(one, blobShape);
          await content.put(bytesOf(size), { ...options, expect: digest });
          arrived.add(digest);
          options.onProgress?.({ step: 'import', done: arrived.size, note: `${arrived.size} blobs` });
          break;
        }
        case KIND.record: {
          const record = parse(one, recordShape);
          const absent = blobsOf(record).find((digest) => !arrived.has(digest) && !record.layers.includes(digest));
          if (absent) throw invalid(`${record.name}@${record.version} refers to ${absent}, which it does not contain`);
          batch.push(record);
          records += 1;
          if (batch.length >= RECORDS_AT_ONCE) {
            flush();
            options.onProgress?.({ step: 'import', done: records, note: `${records} records` });
            await setImmediate();
          }
          break;
        }
        case KIND.annotation: {
          flush();
          const { id, key, value } = parse(one, annotationShape);
          staged.annotate(id as AssetId, key, value);
          break;
        }
        case KIND.end: {
          flush();
          const counted = parse(one, endShape);
          if (counted.blobs !== arrived.size || counted.records !== records) {
            throw invalid(
              `it announces ${counted.blobs} blobs and ${counted.records} records, but has ${arrived.size} and ${records}`,
            );
          }
          if ((await iterator.next()).done !== true) throw invalid('something follows its end mark');
          return arrived;
        }
        default:
          throw invalid(`a piece of kind ${one[0]} is out of place`);
      }
    }
  } catch (error) {
    // What the index or the store refuses for its content is a bad export; a full disk or a cancelled call stays what it is.
    if (isCoded(error, 'version-exists', 'asset-not-found', 'usage', 'limit-exceeded', 'blob-mismatch')) {
      throw invalid(error.message, error);
    }
    throw error;
  }
}

function piece(kind: number, value: unknown): Uint8Array {
  return concat(Uint8Array.of(kind), utf8(canonicalJson(value)));
}

function parse<T>(bytes: Uint8Array, shape: z.ZodType<T>): T {
  let value: unknown;
  try {
    value = JSON.parse(fromUtf8(bytes.subarray(1)));
  } catch (error) {
    throw invalid('a piece is not JSON', error);
  }
  const parsed = shape.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw invalid(`${issue?.path.join('.') || 'a piece'}: ${issue?.message}`);
}

function invalid(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('state-invalid', `The assets section of the export is damaged: ${why}.`, {
    hint: 'Nothing was imported. Make the export again.',
    cause,
  });
}
