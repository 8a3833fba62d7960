import { z } from 'zod';
import { type Digest, digestHex } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { hex32 } from './fields.ts';
import { decodeJsonMessage, encodeJsonMessage } from './json-message.ts';
import { collectionName } from './reconcile.ts';

/** Messages by which nodes hand each other records (docs/protocol/records.md). */
export const RECORDS_LIMITS = {
  idsMax: 256,
  requestBytesMax: 32_768,
  /** Largest record. */
  recordBytesMax: 8 * 2 ** 20,
  /** An answer ends after the record that goes past this. */
  answerBytes: 4 * 2 ** 20,
} as const;

export const RECORDS_ANSWER_BYTES_MAX =
  RECORDS_LIMITS.answerBytes + RECORDS_LIMITS.recordBytesMax + 4 * RECORDS_LIMITS.idsMax;

const WHAT = 'a message about records';

/** In the place of a length: the record is not here. */
const ABSENT = 0xffff_ffff;

export interface RecordsRequest {
  readonly collection: string;
  /** Ids or their first 8 bytes, lower-case hexadecimal. */
  readonly ids: readonly string[];
}

const request: z.ZodType<RecordsRequest> = z.strictObject({
  collection: collectionName,
  ids: z
    .array(z.string().regex(/^(?:[0-9a-f]{16}|[0-9a-f]{64})$/, 'expected a record id'))
    .min(1)
    .max(RECORDS_LIMITS.idsMax),
});

export interface RecordsNews {
  readonly collection: string;
  readonly ids: readonly Digest[];
}

const news: z.ZodType<{ readonly collection: string; readonly ids: readonly string[] }> = z.strictObject({
  collection: collectionName,
  ids: z.array(hex32).min(1).max(RECORDS_LIMITS.idsMax),
});

export function encodeRecordsRequest(value: RecordsRequest): Uint8Array {
  return encodeJsonMessage(value);
}

/** Errors: `peer-lied`. */
export function decodeRecordsRequest(bytes: Uint8Array): RecordsRequest {
  return parse(request, bytes);
}

export function encodeRecordsNews({ collection, ids }: RecordsNews): Uint8Array {
  return encodeJsonMessage({ collection, ids: ids.map(digestHex) });
}

/** Errors: `peer-lied`. */
export function decodeRecordsNews(bytes: Uint8Array): RecordsNews {
  const { collection, ids } = parse(news, bytes);
  return { collection, ids: ids.map((id): Digest => `sha256:${id}`) };
}

/** One entry for each id that was asked for, in that order; perhaps not all of them. Null: not here. */
export function encodeRecordsAnswer(records: readonly (Uint8Array | null)[]): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const record of records) {
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, record?.length ?? ABSENT);
    parts.push(length);
    if (record !== null) parts.push(record);
  }
  return new Uint8Array(Buffer.concat(parts));
}

/** Errors: `peer-lied`. */
export function decodeRecordsAnswer(bytes: Uint8Array, asked: number): (Uint8Array | null)[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const records: (Uint8Array | null)[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (records.length === asked) throw malformed('it has more records than were asked for');
    if (at + 4 > bytes.length) throw malformed('it was cut short');
    const length = view.getUint32(at);
    at += 4;
    if (length === ABSENT) {
      records.push(null);
      continue;
    }
    if (length > RECORDS_LIMITS.recordBytesMax) throw malformed('a record is too long');
    if (at + length > bytes.length) throw malformed('it was cut short');
    records.push(bytes.subarray(at, at + length));
    at += length;
  }
  if (records.length === 0) throw malformed('it is empty');
  return records;
}

function parse<T>(schema: z.ZodType<T>, bytes: Uint8Array): T {
  return decodeJsonMessage(schema, bytes, RECORDS_LIMITS.requestBytesMax, WHAT);
}

function malformed(what: string): HyperMeshError {
  return new HyperMeshError('peer-lied', `Expected ${WHAT}, but ${what}.`);
}
