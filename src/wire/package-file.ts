/**
 * A package in one file: an OCI image layout as a tar (docs/protocol/package.md). The layers come first, because their digests are
 * known last; then config, OCI manifest, `index.json` and `oci-layout`. Pure: no file system.
 */
import { createHash, type Hash } from 'node:crypto';
import { concat, equal, utf8 } from '../base/bytes.ts';
import { type Digest, digestHex, digestOf, isDigest } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { type DecodedPackage, decodePackage, type EncodedPackage, MEDIA, OCI_MANIFEST_BYTES_MAX } from './package.ts';
import { checkEntry, encodeHeader, type TreeEntry, TreeScanner } from './tree.ts';

const BLOCK = 512;
/** Layers, and four more files, and two folders. */
const ENTRIES_MAX = 128 + 6;
const FOLDERS = ['blobs', 'blobs/sha256'];
const LAYOUT = utf8(canonicalJson({ imageLayoutVersion: '1.0.0' }));
/** Stands in for a digest until it is known: every header of a blob of one size is equally long. */
export const DIGEST_UNKNOWN: Digest = `sha256:${'0'.repeat(64)}`;

/** What stands before the first blob. */
export function packageFileStart(): Uint8Array {
  return concat(...FOLDERS.map((path) => encodeHeader({ path, kind: 'directory', size: 0, executable: false })));
}

/** What stands before the bytes of a blob. */
export function blobHeader(digest: Digest, size: number): Uint8Array {
  return encodeHeader(file(`blobs/sha256/${digestHex(digest)}`, size));
}

/** What stands after the bytes of a blob. */
export function blobPadding(size: number): Uint8Array {
  return new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);
}

/** What stands after the padding of the last layer: the rest of the file. */
export function packageFileEnd(encoded: EncodedPackage): Uint8Array {
  const whole = (header: Uint8Array, bytes: Uint8Array) => concat(header, bytes, blobPadding(bytes.length));
  const index = encodeIndex(encoded.digest, encoded.manifest.length);
  return concat(
    whole(blobHeader(encoded.configDigest, encoded.config.length), encoded.config),
    whole(blobHeader(encoded.digest, encoded.manifest.length), encoded.manifest),
    whole(encodeHeader(file('index.json', index.length)), index),
    whole(encodeHeader(file('oci-layout', LAYOUT.length)), LAYOUT),
    new Uint8Array(2 * BLOCK),
  );
}

function file(path: string, size: number): TreeEntry {
  return { path, kind: 'file', size, executable: false };
}

function encodeIndex(digest: Digest, size: number): Uint8Array {
  return utf8(
    canonicalJson({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.index.v1+json',
      manifests: [{ mediaType: MEDIA.manifest, artifactType: MEDIA.artifact, digest, size }],
    }),
  );
}

/** A package file that was read in full and found sound. */
export interface CheckedPackageFile extends DecodedPackage {
  readonly manifestBytes: Uint8Array;
  readonly configBytes: Uint8Array;
  /** Where the bytes of the tree (the first layer) stand in the file. */
  readonly tree: { readonly offset: number; readonly size: number };
  /** Files and links in the tree. */
  readonly files: number;
}

/**
 * Checks a package file as its bytes arrive: every header, digest and size, the tree, and that nothing is missing or left over.
 * Errors: `package-file-invalid`, `tree-invalid`, `limit-exceeded`.
 */
export class PackageFileScanner {
  readonly #entries: { readonly entry: TreeEntry; readonly offset: number; readonly hash: Hash }[] = [];
  /** The bytes of entries that may be config, manifest or index. */
  readonly #small = new Map<string, Uint8Array[]>();
  readonly #scanner: TreeScanner;
  readonly #tree: TreeScanner;
  #files = 0;

  constructor() {
    this.#tree = new TreeScanner({ entry: (entry) => (this.#files += entry.kind === 'directory' ? 0 : 1) });
    const paths = new Set<string>();
    this.#scanner = new TreeScanner(
      {
        entry: (entry, offset) => this.#entries.push({ entry, offset, hash: createHash('sha256') }),
        content: (bytes) => this.#content(bytes),
      },
      {
        rules: {
          admit(entry) {
            checkEntry(entry);
            if (paths.has(entry.path) || paths.size >= ENTRIES_MAX)
              throw fileInvalid(`it has ${entry.path} twice, or too many entries`);
            paths.add(entry.path);
          },
        },
      },
    );
  }

  push(bytes: Uint8Array): void {
    asPackageFile(() => this.#scanner.push(bytes));
  }

  end(): CheckedPackageFile {
    asPackageFile(() => this.#scanner.end());
    this.#tree.end();
    const entries = this.#entries.map(({ entry, offset, hash }) => ({
      ...entry,
      offset,
      digest: `sha256:${hash.digest('hex')}` as Digest,
    }));
    const paths = entries.map((entry) => entry.path);
    const blobs = entries.slice(FOLDERS.length, -2);
    if (
      paths.slice(0, 2).join() !== FOLDERS.join() ||
      paths.slice(-2).join() !== 'index.json,oci-layout' ||
      blobs.length < 3
    )
      throw fileInvalid('it is not laid out as one');
    for (const blob of blobs) {
      const name = `sha256:${blob.path.replace('blobs/sha256/', '')}`;
      if (!isDigest(name) || blob.kind !== 'file')
        throw fileInvalid(`it has the foreign entry ${JSON.stringify(blob.path.slice(0, 200))}`);
      if (blob.digest !== name) throw fileInvalid(`its blob ${name} has the digest ${blob.digest}`);
    }
    const [config, manifest] = blobs.slice(-2) as [(typeof blobs)[number], (typeof blobs)[number]];
    const layers = blobs.slice(0, -2);
    const [configBytes, manifestBytes] = [this.#bytes(config.path), this.#bytes(manifest.path)];
    const decoded = decodePackage(manifestBytes, configBytes);
    const says = decoded.config.layers.map(({ digest, size }) => `${digest} ${size}`).join();
    if (layers.map(({ digest, size }) => `${digest} ${size}`).join() !== says)
      throw fileInvalid('its layers are not those of its manifest');
    if (!equal(this.#bytes('index.json'), encodeIndex(digestOf(manifestBytes), manifestBytes.length)))
      throw fileInvalid('its index.json does not name its manifest');
    if (!equal(this.#bytes('oci-layout'), LAYOUT)) throw fileInvalid('its oci-layout is not of version 1.0.0');
    const { offset, size } = layers[0]!;
    return { ...decoded, manifestBytes, configBytes, tree: { offset, size }, files: this.#files };
  }

  #content(bytes: Uint8Array): void {
    const { entry, hash } = this.#entries.at(-1)!;
    hash.update(bytes);
    // The first blob is the tree; the others are kept while they may be config or manifest.
    if (this.#entries.length === FOLDERS.length + 1) asTree(() => this.#tree.push(bytes));
    else if (entry.size <= OCI_MANIFEST_BYTES_MAX) this.#keep(entry.path, bytes);
  }

  /** At most a few are kept: config, manifest, index and layout are the last four. */
  #keep(path: string, bytes: Uint8Array): void {
    const parts = this.#small.get(path);
    if (parts !== undefined) parts.push(bytes.slice());
    else this.#small.set(path, [bytes.slice()]);
    if (this.#small.size > 4) this.#small.delete(this.#small.keys().next().value!);
  }

  #bytes(path: string): Uint8Array {
    return concat(...(this.#small.get(path) ?? []));
  }
}

/** Errors of the tree inside stay what they are; those of the tar around it say that the package file is wrong. */
class InnerTreeError extends Error {
  readonly inner: unknown;
  constructor(inner: unknown) {
    super();
    this.inner = inner;
  }
}

function asTree(work: () => void): void {
  try {
    work();
  } catch (error) {
    throw new InnerTreeError(error);
  }
}

function asPackageFile(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (error instanceof InnerTreeError) throw error.inner;
    if (isCoded(error, 'tree-invalid', 'limit-exceeded')) throw fileInvalid(error.message, error);
    throw error;
  }
}

function fileInvalid(problem: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('package-file-invalid', `Expected a package file, but: ${problem.replace(/\.$/, '')}.`, {
    hint: 'It was altered, cut off, or made by another program; fetch or pack it again.',
    cause,
  });
}

/** The text of a config's manifest: JSON is YAML, and parses to the same manifest. */
export function manifestText(config: DecodedPackage['config']): string {
  return canonicalJson(config.manifest);
}
