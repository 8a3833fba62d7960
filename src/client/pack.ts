import { createHash, randomBytes } from 'node:crypto';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../base/errors.ts';
import { parseManifest } from '../wire/manifest-text.ts';
import { encodePackage } from '../wire/package.ts';
import {
  blobHeader,
  blobPadding,
  type CheckedPackageFile,
  DIGEST_UNKNOWN,
  manifestText,
  PackageFileScanner,
  packageFileEnd,
  packageFileStart,
} from '../wire/package-file.ts';
import { averageFor, loadBlake3, ShardCutter } from '../wire/shards.ts';
import { TreeScanner } from '../wire/tree.ts';
import { type FolderOptions, type PackedFolder, packFolder } from './folder.ts';

/** What was written. */
export interface PackageFileInfo {
  /** Absolute path of the file. */
  readonly file: string;
  readonly name: string;
  readonly version: string;
  /** The identity that the package will have when it is published. */
  readonly digest: Digest;
  readonly files: number;
  /** Bytes of the package file. */
  readonly bytes: number;
}

const PIECE = 2 ** 20;

/**
 * Packs a folder into one file, in one pass over its content. The file appears whole or not at all: a crash leaves at most
 * a hidden temporary file beside it. An existing file is replaced.
 * Errors: as {@link packFolder}.
 */
export async function writePackageFile(
  folder: string,
  file: string,
  options: Omit<FolderOptions, 'leaveOut' | 'reuse'> = {},
): Promise<PackageFileInfo> {
  const target = resolve(file);
  return writePacked(await packFolder(folder, { ...options, leaveOut: target, reuse: true }), target);
}

/**
 * Writes a package whose tree comes as a stream, `catalog.yaml` included, to a file; as {@link writePackageFile} does.
 * Errors: `tree-invalid`, `manifest-*`, `storage-*`, and those of the stream.
 */
export async function writePackageTree(tree: AsyncIterable<Uint8Array>, file: string): Promise<PackageFileInfo> {
  const target = resolve(file);
  const spool = join(dirname(target), `.${basename(target)}.${randomBytes(6).toString('hex')}.tree.tmp`);
  let files = 0;
  let current = '';
  const yaml: Uint8Array[] = [];
  const scanner = new TreeScanner({
    entry(entry) {
      current = entry.path;
      files += entry.kind === 'directory' ? 0 : 1;
    },
    content(bytes) {
      if (current === 'catalog.yaml') yaml.push(bytes.slice());
    },
  });
  try {
    await using output = await open(spool, 'wx', 0o600);
    let bytes = 0;
    for await (const piece of tree) {
      scanner.push(piece);
      await writeAt(output, piece, bytes);
      bytes += piece.length;
    }
    scanner.end();
    const manifestYaml = Buffer.concat(yaml).toString('utf8');
    const manifest = parseManifest(manifestYaml);
    return await writePacked({ manifestYaml, manifest, files, bytes, tree: readPieces(spool, 0, bytes, {}) }, target);
  } catch (error) {
    throw isCoded(error) ? error : storageError(error, `writing the package file ${target}`);
  } finally {
    await rm(spool, { force: true });
  }
}

async function writePacked(packed: PackedFolder, target: string): Promise<PackageFileInfo> {
  const temporary = join(dirname(target), `.${basename(target)}.${randomBytes(6).toString('hex')}.tmp`);
  try {
    const output = await open(temporary, 'wx', 0o644);
    let written: { digest: Digest; bytes: number };
    try {
      written = await writeContent(output, packed);
      await output.sync();
    } finally {
      await output.close();
    }
    // The commit point. Before: the old file or none, and a temporary one. After: the new file.
    await rename(temporary, target);
    const { name, version } = packed.manifest;
    return { file: target, name, version, files: packed.files, ...written };
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw storageError(error, `writing the package file ${target}`);
  }
}

async function writeContent(output: FileHandle, packed: PackedFolder): Promise<{ digest: Digest; bytes: number }> {
  const size = packed.bytes;
  const start = packageFileStart();
  const hash = createHash('sha256');
  const cutter = new ShardCutter(await loadBlake3(), averageFor(size));
  let at = start.length + blobHeader(DIGEST_UNKNOWN, size).length;
  const append = async (bytes: Uint8Array) => {
    await writeAt(output, bytes, at);
    at += bytes.length;
  };
  // One write is under way while the next piece is read and hashed; `reuse` leaves its bytes alone that long.
  let writing: Promise<void> = Promise.resolve();
  try {
    for await (const piece of packed.tree) {
      hash.update(piece);
      cutter.push(piece);
      await writing;
      writing = append(piece);
      // Reported where it is awaited, not as unhandled meanwhile.
      writing.catch(() => {});
    }
  } finally {
    await writing;
  }
  const shards = cutter.finish();
  const digest: Digest = `sha256:${hash.digest('hex')}`;
  const encoded = encodePackage(packed.manifest, [{ digest, size, shards }]);
  await append(blobPadding(size));
  await append(packageFileEnd(encoded));
  // The digest of the layer, and so its name, is known only now.
  await writeAt(output, start, 0);
  await writeAt(output, blobHeader(digest, size), start.length);
  return { digest: encoded.digest, bytes: at };
}

async function writeAt(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; )
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
}

/** A package file, checked from the first byte to the last, in the form in which a folder is published. */
export interface PackageFile extends PackedFolder, Pick<CheckedPackageFile, 'digest' | 'configDigest' | 'config'> {}

/** Reads and checks a package file. Errors: `package-file-invalid`, `tree-invalid`, `file-not-found`, `storage-*`, `cancelled`. */
export async function readPackageFile(file: string, options: CallOptions = {}): Promise<PackageFile> {
  const path = resolve(file);
  const scanner = new PackageFileScanner();
  let done = 0;
  for await (const piece of readPieces(path, 0, Number.MAX_SAFE_INTEGER, { ...options, reuse: true })) {
    scanner.push(piece);
    done += piece.length;
    options.onProgress?.({ step: 'check', done, unit: 'bytes' });
  }
  const { tree, files, digest, configDigest, config } = scanner.end();
  return {
    digest,
    configDigest,
    config,
    files,
    manifest: config.manifest,
    manifestYaml: manifestText(config),
    bytes: tree.size,
    tree: readPieces(path, tree.offset, tree.offset + tree.size, { signal: options.signal }),
  };
}

/** With `reuse` a piece is only valid until the next. */
async function* readPieces(
  path: string,
  from: number,
  to: number,
  options: { readonly signal?: AbortSignal | undefined; readonly reuse?: boolean },
): AsyncGenerator<Uint8Array, void, undefined> {
  let file: FileHandle | undefined;
  try {
    file = await open(path, 'r');
    let buffer = new Uint8Array(Math.min(PIECE, to - from));
    for (let at = from; at < to; ) {
      if (options.signal?.aborted)
        throw new HyperMeshError('cancelled', 'Reading was cancelled.', { cause: options.signal.reason });
      const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, to - at), at);
      if (bytesRead === 0) break;
      at += bytesRead;
      yield buffer.subarray(0, bytesRead);
      if (options.reuse !== true && at < to) buffer = new Uint8Array(Math.min(PIECE, to - at));
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new HyperMeshError('file-not-found', `Expected a package file at ${path}, but there is none.`, {
        cause: error,
      });
    throw storageError(error, `reading ${path}`);
  } finally {
    await file?.close();
  }
}
