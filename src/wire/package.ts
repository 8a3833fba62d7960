import { z } from 'zod';
import { equal, fromUtf8, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { digest, hex32 } from './fields.ts';
import { type PackageManifest, packageManifest } from './manifest.ts';

/** OCI 1.1 media types of a package (docs/protocol/package.md). */
export const MEDIA = {
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  artifact: 'application/vnd.hypermesh.package.v1+json',
  config: 'application/vnd.hypermesh.package.config.v1+json',
  tree: 'application/vnd.hypermesh.package.tree.v1.tar',
  /** Layers after the first: bytes that the package names itself. */
  blob: 'application/octet-stream',
} as const;

/** How a blob is cut for transfer: FastCDC boundaries, BLAKE3 per shard, a Merkle root over the list. */
export interface ShardSummary {
  readonly algorithm: 'fastcdc-v1';
  readonly averageBytes: number;
  readonly count: number;
  /** BLAKE3 Merkle root over the shard hashes, 64 hex digits. */
  readonly root: string;
}

/** The config blob: the parsed `catalog.yaml` and how each layer is cut. */
export interface PackageConfig {
  readonly formatVersion: 1;
  readonly manifest: PackageManifest;
  readonly layers: readonly { readonly digest: Digest; readonly size: number; readonly shards: ShardSummary }[];
}

/** Bytes of an OCI manifest, and of a config blob. */
export const OCI_MANIFEST_BYTES_MAX = 2 ** 20;
export const LAYERS_MAX = 128;

const size = z.int().nonnegative();
const shardSummary = z.strictObject({
  algorithm: z.literal('fastcdc-v1'),
  averageBytes: z
    .int()
    .min(256)
    .max(2 ** 24),
  count: size,
  root: hex32,
});
const packageConfig = z.strictObject({
  formatVersion: z.literal(1),
  layers: z
    .array(z.strictObject({ digest, size, shards: shardSummary }))
    .min(1)
    .max(LAYERS_MAX),
  manifest: packageManifest,
});

/** A package as two blobs, ready to be stored. */
export interface EncodedPackage {
  /** The OCI manifest; its digest is the identity of the package. */
  readonly manifest: Uint8Array;
  readonly config: Uint8Array;
  readonly digest: Digest;
  readonly configDigest: Digest;
}

/** Equal manifests over equal layers give equal bytes. The first layer is the tree. Errors: `limit-exceeded`. */
export function encodePackage(
  manifest: PackageManifest,
  layers: readonly { readonly digest: Digest; readonly size: number; readonly shards: ShardSummary }[],
): EncodedPackage {
  const content: PackageConfig = {
    formatVersion: 1,
    manifest,
    layers: layers.map(({ digest, size, shards: { algorithm, averageBytes, count, root } }) => ({
      digest,
      size,
      shards: { algorithm, averageBytes, count, root },
    })),
  };
  const config = utf8(canonicalJson(content));
  const configDigest = digestOf(config);
  const bytes = utf8(
    canonicalJson({
      schemaVersion: 2,
      mediaType: MEDIA.manifest,
      artifactType: MEDIA.artifact,
      config: { mediaType: MEDIA.config, digest: configDigest, size: config.length },
      layers: layers.map(({ digest, size }, i) => ({ mediaType: i === 0 ? MEDIA.tree : MEDIA.blob, digest, size })),
      annotations: {
        'org.opencontainers.image.title': manifest.name,
        'org.opencontainers.image.version': manifest.version,
      },
    }),
  );
  for (const part of [bytes, config]) {
    if (part.length > OCI_MANIFEST_BYTES_MAX || layers.length > LAYERS_MAX) {
      throw new HyperMeshError(
        'limit-exceeded',
        `Expected a package of at most ${LAYERS_MAX} layers and ${OCI_MANIFEST_BYTES_MAX} bytes of manifest, but it has more.`,
      );
    }
  }
  return { manifest: bytes, config, digest: digestOf(bytes), configDigest };
}

export interface DecodedPackage {
  /** SHA-256 of the OCI manifest: the identity of the package. */
  readonly digest: Digest;
  readonly configDigest: Digest;
  readonly config: PackageConfig;
}

/**
 * Reads a package and checks that its parts belong together: digests, sizes and media types agree, and the bytes are exactly those
 * that `encodePackage` gives for what they say. The layers are not looked at.
 * Errors: `package-file-invalid`.
 */
export function decodePackage(manifestBytes: Uint8Array, configBytes: Uint8Array): DecodedPackage {
  const parsed = packageConfig.safeParse(parseJson(configBytes, 'config'));
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0]!;
    throw packageInvalid(`its config is wrong at ${path.join('.') || 'the top'}: ${message}`);
  }
  const config: PackageConfig = parsed.data;
  const encoded = encodePackage(config.manifest, config.layers);
  if (!equal(encoded.config, configBytes)) throw packageInvalid('its config is not canonical JSON of what it says');
  if (!equal(encoded.manifest, manifestBytes)) {
    throw packageInvalid(
      'its OCI manifest does not belong to its config: a digest, size, media type or annotation differs',
    );
  }
  return { digest: encoded.digest, configDigest: encoded.configDigest, config };
}

function parseJson(bytes: Uint8Array, what: string): unknown {
  if (bytes.length > OCI_MANIFEST_BYTES_MAX)
    throw packageInvalid(`its ${what} has ${bytes.length} bytes, at most ${OCI_MANIFEST_BYTES_MAX} were expected`);
  try {
    return JSON.parse(fromUtf8(bytes));
  } catch (cause) {
    throw packageInvalid(`its ${what} is not JSON`, cause);
  }
}

function packageInvalid(problem: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('package-file-invalid', `Expected a package, but ${problem}.`, {
    hint: 'It was altered, cut off, or made by another program; fetch or pack it again.',
    cause,
  });
}
