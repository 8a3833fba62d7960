import { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { SHARDS_MAX } from './content.ts';
import { digest, hex32, timeMs } from './fields.ts';
import type { ShardSummary } from './package.ts';
import { averageFor } from './shards.ts';
import type { CertificateChain, Envelope } from './signature.ts';
import { decodeSigned, decodeSignedPayload } from './signed.ts';

/** Which fragments restore a blob (docs/protocol/coding.md). Signed by the node that made them; a lie shows when they are put together. */

/** DSSE payload type. */
export const CODING_TYPE = 'application/vnd.hypermesh.coding.v1+json';

export const CODING_LIMITS = {
  recordBytesMax: 64 * 2 ** 10,
  /** k + m. */
  fragmentsMax: 32,
  /** Copies serve what is smaller. */
  blobBytesMin: 2 ** 20,
} as const;

/** Any `k` of `k + m` fragments restore the content. */
export interface CodingShape {
  readonly k: number;
  readonly m: number;
}

export interface Coding extends CodingShape {
  readonly formatVersion: 1;
  readonly network: Digest;
  /** What the network knows the content by, for a package its OCI manifest, and the blob of it that this is about. */
  readonly resource: Digest;
  readonly blob: { readonly digest: Digest; readonly size: number };
  /** In order: how each is named and cut. Their size follows from that of the blob. */
  readonly fragments: readonly { readonly digest: Digest; readonly count: number; readonly root: string }[];
  readonly codedAtMs: number;
}

/** A fragment as a blob among others. */
export interface Fragment {
  readonly digest: Digest;
  readonly size: number;
  readonly shards: ShardSummary;
}

const coding: z.ZodType<Coding> = z
  .strictObject({
    formatVersion: z.literal(1),
    network: digest,
    resource: digest,
    blob: z.strictObject({ digest, size: z.int().min(CODING_LIMITS.blobBytesMin) }),
    k: z.int().min(2),
    m: z.int().min(1),
    fragments: z
      .array(z.strictObject({ digest, count: z.int().min(1).max(SHARDS_MAX), root: hex32 }))
      .max(CODING_LIMITS.fragmentsMax),
    codedAtMs: timeMs,
  })
  .refine(({ k, m, fragments }) => fragments.length === k + m, 'expected k + m fragments')
  .refine(
    ({ fragments, blob }) =>
      new Set([blob.digest, ...fragments.map((fragment) => fragment.digest)]).size === fragments.length + 1,
    'expected different fragments',
  );

/** Errors: `usage` when nobody can code so. */
export function checkShape({ k, m }: CodingShape): void {
  if (Number.isInteger(k) && Number.isInteger(m) && k >= 2 && m >= 1 && k + m <= CODING_LIMITS.fragmentsMax) return;
  throw new HyperMeshError(
    'usage',
    `Expected a code k+m like 4+2, with k from 2, m from 1 and at most ${CODING_LIMITS.fragmentsMax} together.`,
  );
}

export function fragmentSize({ size }: Coding['blob'], { k }: CodingShape): number {
  return Math.ceil(size / k);
}

export function fragmentOf(coding: Coding, index: number): Fragment {
  const { digest: named, count, root } = coding.fragments[index]!;
  const size = fragmentSize(coding.blob, coding);
  return { digest: named, size, shards: { algorithm: 'fastcdc-v1', averageBytes: averageFor(size), count, root } };
}

/** What the network knows a fragment by: all that is said of it, so that a false word about the same bytes is another fragment. */
export function fragmentId({ digest: named, size, shards }: Fragment): Digest {
  const { algorithm, averageBytes, count, root } = shards;
  return digestOf(
    utf8(canonicalJson({ fragment: { digest: named, size, shards: { algorithm, averageBytes, count, root } } })),
  );
}

export function encodeCoding(value: Coding): Uint8Array {
  return utf8(canonicalJson(value));
}

/** Errors: `record-invalid`. */
export function decodeSignedCoding(bytes: Uint8Array): {
  readonly coding: Coding;
  /** Key id of the node that signed. */
  readonly coder: string;
  readonly envelope: Envelope;
  readonly chain: CertificateChain;
} {
  const { envelope, chain } = decodeSigned(bytes, CODING_TYPE, CODING_LIMITS.recordBytesMax);
  return { coding: decodeSignedPayload(coding, envelope), coder: envelope.signatures[0]!.keyid, envelope, chain };
}
