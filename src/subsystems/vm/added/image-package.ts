import { createHash, type Hash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { lstat, mkdir, mkdtemp, readdir, readlink, rm } from 'node:fs/promises';
import path from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fromUtf8, utf8 } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../../base/errors.ts';
import { canonicalJson } from '../../../base/json.ts';
import { collect } from '../../../base/streams.ts';
import type { Assets } from '../../../capabilities/assets.ts';
import { decodeRuntimeImage, encodeRuntimeImage, type RuntimeImage } from '../../../wire/runtime-image.ts';
import { comparePaths, encodeHeader, encodeTree, type TreeEntry, type TreeSource } from '../../../wire/tree.ts';
import { ImageSource, ROOT_FOLDER } from '../container/image.ts';
import { fill, type ShownEntry } from '../process/trees.ts';
import { compress } from './compress.ts';

/**
 * The image of a language as a package of type `container`, so that it travels like any other: published, signed, verified
 * (docs/protocol/runtime-image.md).
 */

const RECORD = 'runtime.json';
const NAMES_MAX = 500_000;
const IMAGE = 'image';
const RECORD_BYTES_MAX = 2 ** 20;
const ZEROS = new Uint8Array(1024);

/** Where an image is unpacked in the package: its files, and what says what they are. */
export interface ImageOnDisk extends RuntimeImage {
  /** The folder that programs get as `/`. */
  readonly root: string;
}

/**
 * The tree of a package with the image, canonical: the same image gives the same bytes. `program`: what starts when the package is run.
 * `work`: ours, for temporary files, which are gone when the tree was read or given up. Progress: `compress`.
 * Errors: `storage-*`, `cancelled`.
 */
export async function* packImage(
  { root, ...image }: ImageOnDisk,
  { program, work, prefix, ...options }: CallOptions & { program: string; work: string; prefix: string },
): AsyncIterable<Uint8Array> {
  const folder = await mkdtemp(path.join(work, prefix));
  try {
    const layer = path.join(folder, 'layer');
    const { diffId, digest, size } = await writeLayer(root, layer, image, options);
    const config = json({
      architecture: image.architecture,
      os: 'linux',
      config: { Entrypoint: [program], Env: ['HOME=/tmp'] },
      rootfs: { type: 'layers', diff_ids: [diffId] },
    });
    const describe = (kind: string, bytes: Uint8Array) => ({
      mediaType: `application/vnd.oci.image.${kind}`,
      digest: digestOf(bytes),
      size: bytes.length,
    });
    const manifest = json({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: describe('config.v1+json', config),
      layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd', digest, size }],
    });
    const platform = { architecture: image.architecture, os: 'linux' };
    const index = json({ schemaVersion: 2, manifests: [{ ...describe('manifest.v1+json', manifest), platform }] });
    const { addedAtMs: _, ...record } = image;
    const files: Record<string, Uint8Array | { readonly file: string; readonly size: number }> = {
      'catalog.yaml': utf8(catalogYaml(image)),
      [RECORD]: utf8(encodeRuntimeImage({ ...record, addedAtMs: 0 })),
      [`${IMAGE}/oci-layout`]: json({ imageLayoutVersion: '1.0.0' }),
      [`${IMAGE}/index.json`]: index,
      [blobPath(digestOf(config))]: config,
      [blobPath(digestOf(manifest))]: manifest,
      [blobPath(digest)]: { file: layer, size },
    };
    yield* encodeTree(sourcesOf(files));
  } catch (error) {
    throw isCoded(error) ? error : storageError(error, 'exporting a runtime');
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * Unpacks the image in a package layer into the new folder `to`, every digest checked, and says what it is. Whether the files are those that the record says is left
 * to whoever seals them. Errors: `program-invalid`, `limit-exceeded`, `storage-*`, `cancelled`.
 */
export async function unpackImage(
  assets: Pick<Assets, 'tree' | 'readFile'>,
  layer: Digest,
  { to, work, prefix, ...options }: CallOptions & { to: string; work: string; prefix: string },
): Promise<RuntimeImage> {
  const tree = await assets.tree(layer, options);
  if (!tree.some((entry) => entry.path === RECORD && entry.kind === 'file')) {
    throw new HyperMeshError('program-invalid', `The package has no ${RECORD}: it is not the image of a language.`, {
      hint: 'Name a package that `hypermesh runtime export` made.',
    });
  }
  const record = decode(await collect(assets.readFile(layer, RECORD, options), RECORD_BYTES_MAX));
  const opening = { ...options, directory: work, prefix, namesMax: NAMES_MAX };
  await using source = await ImageSource.open(assets, { layer, entry: IMAGE }, opening);
  const inRoot = (name: string) => name.slice(ROOT_FOLDER.length + 1);
  const entries = (await source.tree())
    .filter((entry) => entry.path.startsWith(`${ROOT_FOLDER}/`))
    .map(({ sameAs, ...entry }): ShownEntry => {
      const shown = { ...entry, path: inRoot(entry.path) };
      return sameAs === undefined ? shown : { ...shown, sameAs: inRoot(sameAs) };
    });
  const files = { tree: async () => entries, readFile: (name: string) => source.readFile(`${ROOT_FOLDER}/${name}`) };
  await fill(to, files, entries, options);
  return record;
}

function decode(bytes: Uint8Array): RuntimeImage {
  try {
    return decodeRuntimeImage(fromUtf8(bytes));
  } catch (cause) {
    throw new HyperMeshError('program-invalid', `The ${RECORD} of the package is damaged.`, { cause });
  }
}

function catalogYaml({ runtime, version, suite, digest, architecture }: RuntimeImage): string {
  return `${[
    `name: runtimes/${runtime}-${architecture}`,
    `version: ${/^(\d+:)?(\d+\.\d+\.\d+)/.exec(version)?.[2] ?? '0.0.0'}`,
    'type: container',
    `image: ${IMAGE}`,
    `description: ${runtime} ${version} for Linux on ${architecture}, from packages of ${suite}; image ${digest}.`,
    `keywords: [runtime, ${runtime}]`,
  ].join('\n')}\n`;
}

function json(value: unknown): Uint8Array {
  return utf8(canonicalJson(value as never));
}

function blobPath(digest: Digest): string {
  return `${IMAGE}/blobs/sha256/${digestHex(digest)}`;
}

/** Entries in canonical order, folders included. */
function* sourcesOf(
  files: Readonly<Record<string, Uint8Array | { readonly file: string; readonly size: number }>>,
): Iterable<TreeSource> {
  const folders = new Set<string>();
  for (const name of Object.keys(files))
    for (let at = path.posix.dirname(name); at !== '.'; at = path.posix.dirname(at)) folders.add(at);
  for (const name of [...folders, ...Object.keys(files)].sort(comparePaths)) {
    const content = files[name];
    if (content === undefined) {
      yield { entry: { path: name, kind: 'directory', size: 0, executable: false } };
    } else if (content instanceof Uint8Array) {
      yield { entry: { path: name, kind: 'file', size: content.length, executable: false }, content };
    } else {
      const entry: TreeEntry = { path: name, kind: 'file', size: content.size, executable: false };
      yield { entry, content: createReadStream(content.file, { highWaterMark: 2 ** 20 }) };
    }
  }
}

/** The files of `root` as one compressed archive. */
async function writeLayer(
  root: string,
  to: string,
  { files }: Pick<RuntimeImage, 'files'>,
  { signal, onProgress }: CallOptions,
): Promise<{ readonly diffId: Digest; readonly digest: Digest; readonly size: number }> {
  const plain = createHash('sha256');
  const packed = createHash('sha256');
  let size = 0;
  let done = 0;
  const archive = async function* () {
    for await (const entry of walk(root, '')) {
      done += 1;
      onProgress?.({ step: 'compress', done, total: files, unit: 'files' });
      yield encodeHeader(entry);
      if (entry.kind === 'file') {
        yield* createReadStream(path.join(root, entry.path), { highWaterMark: 2 ** 20 }) as AsyncIterable<Uint8Array>;
        yield ZEROS.subarray(0, (512 - (entry.size % 512)) % 512);
      }
    }
    yield ZEROS;
  };
  await mkdir(path.dirname(to), { recursive: true });
  await pipeline(
    archive,
    hashing(plain, () => {}),
    compress,
    hashing(packed, (bytes) => {
      size += bytes;
    }),
    createWriteStream(to, { flags: 'wx', mode: 0o600 }),
    { signal },
  );
  return { diffId: `sha256:${plain.digest('hex')}`, digest: `sha256:${packed.digest('hex')}`, size };
}

function hashing(hash: Hash, count: (bytes: number) => void): Transform {
  return new Transform({
    transform(piece: Buffer, _encoding, done) {
      hash.update(piece);
      count(piece.length);
      done(null, piece);
    },
  });
}

async function* walk(root: string, folder: string): AsyncIterable<TreeEntry> {
  const names = await readdir(path.join(root, folder));
  for (const name of names.sort(comparePaths)) {
    const at = folder === '' ? name : `${folder}/${name}`;
    const info = await lstat(path.join(root, at));
    if (info.isSymbolicLink()) {
      yield { path: at, kind: 'symlink', size: 0, executable: false, target: await readlink(path.join(root, at)) };
    } else if (info.isDirectory()) {
      yield { path: at, kind: 'directory', size: 0, executable: false };
      yield* walk(root, at);
    } else if (info.isFile()) {
      yield { path: at, kind: 'file', size: info.size, executable: (info.mode & 0o100) !== 0 };
    }
  }
}
