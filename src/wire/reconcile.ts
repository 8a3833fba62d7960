import { hash } from 'node:crypto';
import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';
import { decodeJsonMessage, encodeJsonMessage } from './json-message.ts';

/**
 * Range-based set reconciliation over record ids (docs/protocol/reconcile.md). Two nodes find the difference of two sets of
 * uniformly distributed 32-byte ids with bytes proportional to the difference. After Meyer, "Range-Based Set Reconciliation" (2022).
 */
export const RECONCILE_LIMITS = {
  /** Ranges in one question. */
  rangesMax: 512,
  /** A range is the ids that start with these hexadecimal digits; at this length it is listed whatever it holds. */
  prefixDigitsMax: 8,
  /** A range with at most so many ids is listed instead of split. */
  listedMax: 32,
  /** No honest set has more ids with 32 equal leading bits. */
  idsInRangeMax: 255,
  requestBytesMax: 16_384,
} as const;

const WHAT = 'a message of set reconciliation';

/** First bytes of an id, enough to name it among all of a network's. */
export const SHORT_ID_BYTES = 8;
const FINGERPRINT_BYTES = 8;
const WAYS = 16;
const LISTED = 0;
const SPLIT = 1;

/** The name of a collection of records, such as `catalog` or `nodes`. */
export const collectionName = z.string().regex(/^[a-z][a-z0-9-]{0,31}$/, 'expected the name of a collection');

export interface CompareRequest {
  readonly collection: string;
  /** 16 random bytes of this session, hex: fingerprints that collide under one salt do not under the next. */
  readonly salt: string;
  /** Ranges as prefixes in lower-case hexadecimal digits, none inside another; the empty prefix is the whole set. */
  readonly ranges: readonly string[];
}

/** What one range holds: all of its ids in their short form, or the fingerprints of its sixteen parts. */
export type RangeAnswer =
  | { readonly kind: 'listed'; readonly ids: readonly Uint8Array[] }
  | { readonly kind: 'split'; readonly fingerprints: readonly Uint8Array[] };

const compareRequest: z.ZodType<CompareRequest> = z.strictObject({
  collection: collectionName,
  salt: z.string().regex(/^[0-9a-f]{32}$/, 'expected 16 bytes in hexadecimal'),
  ranges: z
    .array(z.string().regex(new RegExp(`^[0-9a-f]{0,${RECONCILE_LIMITS.prefixDigitsMax}}$`), 'expected a prefix'))
    .min(1)
    .max(RECONCILE_LIMITS.rangesMax)
    .refine(areDisjoint, 'expected ranges that do not overlap'),
});

/** So that no question makes a node look at the same ids again and again. */
function areDisjoint(ranges: readonly string[]): boolean {
  const sorted = ranges.toSorted();
  return sorted.every((prefix, at) => at === 0 || !prefix.startsWith(sorted[at - 1]!));
}

/** A fingerprint of a set: of how many ids it has and their sum modulo 2^256 (big-endian), under the session's salt. */
export function fingerprintOf(salt: Uint8Array, count: number, sum: Uint8Array): Uint8Array {
  const input = new Uint8Array(salt.length + 4 + sum.length);
  input.set(salt);
  new DataView(input.buffer).setUint32(salt.length, count);
  input.set(sum, salt.length + 4);
  return new Uint8Array(hash('sha256', input, 'buffer')).subarray(0, FINGERPRINT_BYTES);
}

export function encodeCompareRequest(request: CompareRequest): Uint8Array {
  return encodeJsonMessage(request);
}

/** Errors: `peer-lied`. */
export function decodeCompareRequest(bytes: Uint8Array): CompareRequest {
  return decodeJsonMessage(compareRequest, bytes, RECONCILE_LIMITS.requestBytesMax, WHAT);
}

/** Answers in the order of the ranges that were asked for. */
export function encodeCompareAnswer(answers: readonly RangeAnswer[]): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const answer of answers) {
    if (answer.kind === 'split') parts.push(Uint8Array.of(SPLIT), ...answer.fingerprints);
    else parts.push(Uint8Array.of(LISTED, answer.ids.length), ...answer.ids);
  }
  return new Uint8Array(Buffer.concat(parts));
}

/** The longest answer to a question about so many ranges. */
export function compareAnswerBytesMax(ranges: number): number {
  return ranges * (2 + RECONCILE_LIMITS.idsInRangeMax * SHORT_ID_BYTES);
}

/** `ranges`: those that were asked for; each id that is listed has to lie in its range. Errors: `peer-lied`. */
export function decodeCompareAnswer(bytes: Uint8Array, ranges: readonly string[]): RangeAnswer[] {
  let at = 0;
  const take = (length: number): Uint8Array => {
    if (at + length > bytes.length) throw malformed('the answer was cut short');
    at += length;
    return bytes.subarray(at - length, at);
  };
  const answers = ranges.map((prefix): RangeAnswer => {
    const [kind] = take(1);
    if (kind === SPLIT && prefix.length < RECONCILE_LIMITS.prefixDigitsMax) {
      return { kind: 'split', fingerprints: Array.from({ length: WAYS }, () => take(FINGERPRINT_BYTES)) };
    }
    if (kind !== LISTED) throw malformed('a range is neither listed nor split');
    const [count] = take(1);
    const ids = Array.from({ length: count! }, () => take(SHORT_ID_BYTES));
    for (const [index, id] of ids.entries()) {
      if (!id.toHex().startsWith(prefix)) throw malformed('an id lies outside of its range');
      if (index > 0 && Buffer.compare(ids[index - 1]!, id) > 0) throw malformed('ids are not in order');
    }
    return { kind: 'listed', ids };
  });
  if (at !== bytes.length) throw malformed('bytes follow the answer');
  return answers;
}

function malformed(what: string): HyperMeshError {
  return new HyperMeshError('peer-lied', `Expected ${WHAT}, but ${what}.`);
}
