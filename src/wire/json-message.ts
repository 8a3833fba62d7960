import type { z } from 'zod';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { firstIssue } from './signature.ts';

/** A small message between nodes: canonical JSON. */
export function encodeJsonMessage(value: unknown): Uint8Array {
  return utf8(canonicalJson(value));
}

/** `what` it should be, as in "Expected a message of the overlay, but …". Errors: `peer-lied`. */
export function decodeJsonMessage<T>(schema: z.ZodType<T>, bytes: Uint8Array, bytesMax: number, what: string): T {
  const malformed = (why: string) => new HyperMeshError('peer-lied', `Expected ${what}, but ${why}.`);
  if (bytes.length > bytesMax) throw malformed('it is too long');
  let value: unknown;
  try {
    value = JSON.parse(fromUtf8(bytes));
  } catch {
    throw malformed('it is not JSON');
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw malformed(firstIssue(parsed.error));
  return parsed.data;
}

/** What bytes that were hashed or signed say: its canonical JSON and no other spelling of it. Throws what `invalid` makes of the reason. */
export function decodeCanonical<T>(
  schema: z.ZodType<T>,
  bytes: Uint8Array,
  invalid: (why: string, cause?: unknown) => HyperMeshError,
): T {
  let text: string;
  let value: unknown;
  try {
    text = fromUtf8(bytes);
    value = JSON.parse(text);
  } catch (error) {
    throw invalid('it is not JSON', error);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw invalid(firstIssue(parsed.error));
  if (canonicalJson(parsed.data) !== text) throw invalid('it is not in canonical form');
  return parsed.data;
}
