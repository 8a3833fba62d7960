import type { Digest } from '../base/digest.ts';
import type { PackageManifest } from './manifest.ts';

/** OCI 1.1 media types of a package (docs/protocol/package.md). */
export const MEDIA = {
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  artifact: 'application/vnd.hypermesh.package.v1+json',
  config: 'application/vnd.hypermesh.package.config.v1+json',
  tree: 'application/vnd.hypermesh.package.tree.v1.tar',
} as const;

/** An OCI content descriptor. */
export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  /** Bytes. */
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
}

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
