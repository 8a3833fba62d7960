import { z } from 'zod';
import { equal, utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { canonicalJson } from '../base/json.ts';
import { digest } from './fields.ts';
import { type AssetId, isAssetId } from './names.ts';
import type { CertificateChain, Envelope } from './signature.ts';
import { decodeSigned, decodeSignedPayload } from './signed.ts';

/** DSSE payload type of a state change. */
export const STATE_CHANGE_TYPE = 'application/vnd.hypermesh.state-change.v1+json';

export const STATE_CHANGE_LIMITS = { recordBytesMax: 64 * 2 ** 10, reasonLengthMax: 1_000 } as const;

/** What a publisher says about a version after it was published (docs/protocol/state-change.md). */
export interface StateChange {
  readonly formatVersion: 1;
  readonly network: Digest;
  /** The version. */
  readonly asset: AssetId;
  /** Its bundle: the record that this one is about. */
  readonly bundle: Digest;
  readonly state: 'published' | 'deprecated' | 'yanked' | 'deleted';
  readonly reason: string | null;
  /** 1 for the first change of a version, and one more for each that follows; the highest counts, `deleted` for ever. */
  readonly sequence: number;
  readonly changedAtMs: number;
}

const BEGINNING = utf8('{"chain":[');

const stateChange: z.ZodType<StateChange> = z.strictObject({
  formatVersion: z.literal(1),
  network: digest,
  asset: z.custom<AssetId>(isAssetId, 'expected the id of an asset'),
  bundle: digest,
  state: z.enum(['published', 'deprecated', 'yanked', 'deleted']),
  reason: z.string().max(STATE_CHANGE_LIMITS.reasonLengthMax).nullable(),
  sequence: z.int().positive(),
  changedAtMs: z.int().nonnegative(),
});

/** Whether these bytes can be one: all of them begin alike, being canonical JSON. */
export function looksLikeStateChange(bytes: Uint8Array): boolean {
  return equal(bytes.subarray(0, BEGINNING.length), BEGINNING);
}

export function encodeStateChange(change: StateChange): Uint8Array {
  return utf8(canonicalJson(change));
}

/** Errors: `record-invalid`. */
export function decodeSignedStateChange(bytes: Uint8Array): {
  readonly change: StateChange;
  readonly envelope: Envelope;
  readonly chain: CertificateChain;
} {
  const { envelope, chain } = decodeSigned(bytes, STATE_CHANGE_TYPE, STATE_CHANGE_LIMITS.recordBytesMax);
  return { change: decodeSignedPayload(stateChange, envelope), envelope, chain };
}
