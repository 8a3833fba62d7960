import { z } from 'zod';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { type EpochDocument, epochDocument } from './epoch.ts';
import { digest } from './fields.ts';
import { GENESIS_BYTES_MAX } from './genesis.ts';
import { type Endorsement, endorsement, type ProofSet, proofSet } from './proof.ts';
import {
  type CertificateChain,
  certificateChain,
  type Envelope,
  envelope,
  type LogInclusion,
  logInclusion,
  type TrustAnchor,
  trustAnchor,
} from './signature.ts';

/** Everything that is needed to check one package offline, given the genesis of its network (docs/protocol/bundle.md). */
export interface Bundle {
  readonly formatVersion: 2;
  /** Exact bytes of the OCI manifest and of the config blob, base64. */
  readonly manifest: string;
  readonly config: string;
  /** DSSE over an in-toto statement whose subject is the manifest digest, by the publisher. */
  readonly signature: { readonly envelope: Envelope; readonly chain: CertificateChain };
  readonly proofs: ProofSet;
  readonly endorsement: Endorsement;
  readonly inclusion: LogInclusion;
  /** The network: its genesis document, and root certificate with revocations as of publishing. */
  readonly network: {
    readonly id: Digest;
    readonly genesis: Json;
    readonly anchor: TrustAnchor;
    /** Those that lead from the genesis to the committee that admitted this; absent for the first one. */
    readonly epochs?: readonly EpochDocument[] | undefined;
  };
}

/** Largest bundle that is read: 8 MiB. One of a committee of four is about 150 KiB. */
export const BUNDLE_BYTES_MAX = 8 * 2 ** 20;

/** Each change of a committee is one; a bundle cannot hold many more. */
const EPOCHS_MAX = 1_000;

const blob = z.base64().max(2 * 2 ** 20);

const bundle: z.ZodType<Bundle> = z.strictObject({
  formatVersion: z.literal(2, 'this version reads format 2'),
  manifest: blob,
  config: blob,
  signature: z.strictObject({ envelope, chain: certificateChain }),
  proofs: proofSet,
  endorsement,
  inclusion: logInclusion,
  network: z.strictObject({
    id: digest,
    genesis: z.custom<Json>(isGenesisSized, `expected a document of at most ${GENESIS_BYTES_MAX} bytes`),
    anchor: trustAnchor,
    epochs: z.array(epochDocument).min(1).max(EPOCHS_MAX).optional(),
  }),
});

/** The document itself is judged with the rest of the bundle; here it may be anything that can be written canonically. */
function isGenesisSized(value: unknown): boolean {
  try {
    return value !== null && typeof value === 'object' && canonicalJson(value).length <= GENESIS_BYTES_MAX;
  } catch {
    // Nested so deep that writing it overflows the stack.
    return false;
  }
}

/** Canonical JSON: equal bundles are equal bytes. */
export function encodeBundle(value: Bundle): Uint8Array {
  return utf8(canonicalJson(value));
}

/** Errors: `bundle-invalid` when the bytes are not a bundle in canonical form. Says nothing about whether it is true. */
export function decodeBundle(bytes: Uint8Array): Bundle {
  if (bytes.length > BUNDLE_BYTES_MAX) {
    throw new HyperMeshError(
      'bundle-invalid',
      `Expected a bundle of at most ${BUNDLE_BYTES_MAX} bytes, but this has ${bytes.length}.`,
    );
  }
  let text: string;
  let value: unknown;
  try {
    text = fromUtf8(bytes);
    value = JSON.parse(text);
  } catch (error) {
    throw new HyperMeshError('bundle-invalid', 'The file is not a bundle: it is not JSON, or it was cut short.', {
      hint: 'Get a fresh copy: hypermesh bundle scope/name FILE',
      cause: error,
    });
  }
  const version = (value as { formatVersion?: unknown } | null)?.formatVersion;
  if (typeof version === 'number' && version > 2) {
    throw new HyperMeshError('bundle-invalid', `The bundle has format ${version}; this version reads 2.`, {
      hint: 'Update HyperMesh.',
    });
  }
  const parsed = bundle.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw new HyperMeshError(
      'bundle-invalid',
      `The bundle is malformed at ${issue.path.join('.') || 'its top'}: ${issue.message}.`,
      version !== undefined && issue.path.at(-1) === 'formatVersion'
        ? { hint: 'It was made by another version of HyperMesh: use that one, or publish the package again.' }
        : {},
    );
  }
  if (canonicalJson(parsed.data) !== text) {
    throw new HyperMeshError('bundle-invalid', 'The bundle is not in canonical form: it was re-encoded.');
  }
  return parsed.data;
}

/** What the transparency log holds for a publish: which manifest, by which endorsement. */
export function inclusionLeaf(manifest: Digest, admitted: Endorsement): Uint8Array {
  return utf8(canonicalJson({ endorsement: digestOf(utf8(canonicalJson(admitted))), manifest }));
}
