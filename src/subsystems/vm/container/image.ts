import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import path from 'node:path';
import { Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setImmediate as breathe } from 'node:timers/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { utf8 } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../../base/errors.ts';
import { collect, once } from '../../../base/streams.ts';
import type { Assets } from '../../../capabilities/assets.ts';
import {
  decodeImageArchive,
  decodeImageConfig,
  decodeImageIndex,
  decodeImageManifest,
  IMAGE_DOCUMENT_BYTES_MAX,
  type ImageConfig,
  type ImageIndex,
} from '../../../wire/oci-image.ts';
import type { ShownEntry, TreeSource } from '../process/trees.ts';
import { type Content, Merge, type MergedEntry } from './merge.ts';
import { encodeProgram, type ImageProgram, userOf } from './program.ts';
import { invalid, type TarEntry, TarReader } from './tar.ts';

type Files = Pick<Assets, 'tree' | 'readFile'>;

/** One layer: the bytes as they lie in the image, and what they must be. */
interface Layer {
  readonly file: string;
  /** Of the bytes as they lie there; unknown in an archive of `docker save`, where the next one says it all. */
  readonly digest: Digest | null;
  readonly size: number | null;
  /** Of the archive, unpacked. */
  readonly diffId: Digest;
}

/** The name of the program's description and of the folder with its files, in what {@link ImageSource} lists. */
export const PROGRAM_FILE = 'program.json';
export const ROOT_FOLDER = 'root';

const PIECE = 2 ** 20;
/** Of all layers, unpacked; and of the archive that holds them. */
const UNPACKED_BYTES_MAX = 8 * 2 ** 30;
/** Entries between two turns of the event loop. */
const STRETCH = 2_000;
const NESTED_MAX = 3;
/** On average. */
const CHARACTERS_PER_NAME = 256;
const ACCOUNTS_BYTES_MAX = 2 ** 20;
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

/**
 * The files of an image, verified and merged. Layers lie unpacked in temporary files until it is disposed; that is after its files
 * were copied to where programs see them.
 */
export class ImageSource implements TreeSource, AsyncDisposable {
  readonly #merge: Merge;
  readonly #layers: readonly FileHandle[];
  readonly #program: Uint8Array;
  readonly #stack: AsyncDisposableStack;
  readonly #contents = new Map<string, Content>();

  private constructor(merge: Merge, layers: readonly FileHandle[], program: ImageProgram, stack: AsyncDisposableStack) {
    this.#merge = merge;
    this.#layers = layers;
    this.#program = utf8(encodeProgram(program));
    this.#stack = stack;
  }

  /**
   * Opens the image at `entry` of a package tree: the folder of an OCI layout, or an archive of one, or of `docker save`. Every document and layer
   * is checked against its digest before a name in it counts. `directory`: ours, for temporary files, whose names begin with `prefix`. `namesMax`: entries of all
   * archives together.
   * Errors: `entry-missing`, `program-invalid`, `limit-exceeded`, `storage-*`, `cancelled`.
   */
  static async open(
    assets: Files,
    { layer, entry }: { readonly layer: Digest; readonly entry: string },
    {
      directory,
      prefix,
      namesMax,
      ...options
    }: CallOptions & { readonly directory: string; readonly prefix: string; readonly namesMax: number },
  ): Promise<ImageSource> {
    await using stack = new AsyncDisposableStack();
    try {
      const work = await mkdtemp(path.join(directory, prefix));
      stack.defer(() => rm(work, { recursive: true, force: true }));
      const names = new Names(namesMax);
      const files = await openFiles(assets, { layer, entry }, { work, names, stack }, options);
      const { config, layers, digest } = await readImage(files);
      const merge = new Merge();
      const opened: FileHandle[] = [];
      let left = UNPACKED_BYTES_MAX;
      for (const [index, one] of layers.entries()) {
        options.onProgress?.({ step: 'unpack', done: index, total: layers.length, note: `layer ${one.diffId}` });
        const file = stack.use(await open(path.join(work, `layer-${index}`), 'wx+', 0o600));
        const { entries, bytes } = await unpackLayer(files, one, file, { bytesMax: left, names }, options);
        left -= bytes;
        await merge.apply(entries, index);
        opened.push(file);
      }
      const workingDir = path.posix.normalize(`/${config.config.WorkingDir}`);
      merge.make(workingDir);
      const program: ImageProgram = {
        formatVersion: 1,
        image: digest,
        entrypoint: config.config.Entrypoint,
        cmd: config.config.Cmd,
        env: config.config.Env,
        workingDir,
        ...(await accountOf(config, merge, opened)),
      };
      return new ImageSource(merge, opened, program, stack.move());
    } catch (error) {
      if (options.signal?.aborted)
        throw new HyperMeshError('cancelled', 'The caller gave up while the image was unpacked.', { cause: error });
      if (isCoded(error) || error instanceof HyperMeshError) throw error;
      throw storageError(error, 'unpacking an image');
    }
  }

  async tree(): Promise<readonly ShownEntry[]> {
    const file = (entryPath: string, size: number, executable: boolean, sameAs?: string): ShownEntry => ({
      ...{ path: entryPath, kind: 'file', size, executable },
      ...(sameAs === undefined ? {} : { sameAs }),
    });
    const folder = (entryPath: string): ShownEntry => ({
      path: entryPath,
      kind: 'directory',
      size: 0,
      executable: false,
    });
    const found: ShownEntry[] = [file(PROGRAM_FILE, this.#program.length, false), folder(ROOT_FOLDER)];
    const names = new Map<Content, string>();
    for (const entry of this.#merge.entries()) {
      if (found.length % STRETCH === 0) await breathe();
      const at = `${ROOT_FOLDER}/${entry.path}`;
      const { content } = entry;
      if (content === undefined) {
        found.push(entry.kind === 'symlink' ? linkTo(at, entry) : folder(at));
        continue;
      }
      const first = names.get(content);
      found.push(file(at, first === undefined ? content.size : 0, content.executable, first));
      if (first !== undefined) continue;
      names.set(content, at);
      this.#contents.set(at, content);
    }
    return found;
  }

  async *readFile(name: string): AsyncIterable<Uint8Array> {
    if (name === PROGRAM_FILE) {
      yield* once(this.#program);
      return;
    }
    const content = this.#contents.get(name);
    if (content !== undefined) yield* readRange(this.#layers[content.layer]!, content.offset, content.size);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/**
 * What names an image before it is read: the digest in the index of an OCI layout, or where the archive lies. Equal names, equal images.
 * Errors: as {@link ImageSource.open}.
 */
export async function identify(
  assets: Files,
  { layer, entry }: { readonly layer: Digest; readonly entry: string },
  options: CallOptions,
): Promise<string> {
  const sizes = await sizesOf(assets, layer, options);
  if (!sizes.has(`${entry}/oci-layout`) || !sizes.has(`${entry}/index.json`)) return `${layer}\0${entry}`;
  const index = await collect(assets.readFile(layer, `${entry}/index.json`, options), IMAGE_DOCUMENT_BYTES_MAX);
  return chosen(decodeImageIndex(index)).digest;
}

function linkTo(at: string, { target }: MergedEntry): ShownEntry {
  return { path: at, kind: 'symlink', size: 0, executable: false, target: target ?? '' };
}

/** The files that make up an image. */
interface ImageFiles {
  /** Bytes of a file, or null. */
  size(name: string): number | null;
  read(name: string): AsyncIterable<Uint8Array>;
}

/** Counts what archives name: a name repeated a million times is small, packed. */
class Names {
  #left: number;
  #charactersLeft: number;
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
    this.#left = max;
    this.#charactersLeft = max * CHARACTERS_PER_NAME;
  }

  /** Errors: `limit-exceeded`. */
  count({ path: name, target }: TarEntry): void {
    this.#left -= 1;
    this.#charactersLeft -= name.length + target.length;
    if (this.#left < 0 || this.#charactersLeft < 0)
      throw new HyperMeshError(
        'limit-exceeded',
        `The archives of an image may name at most ${this.#max} files, by ${this.#max * CHARACTERS_PER_NAME} characters, all layers together.`,
      );
  }
}

async function openFiles(
  assets: Files,
  { layer, entry }: { readonly layer: Digest; readonly entry: string },
  { work, names, stack }: { readonly work: string; readonly names: Names; readonly stack: AsyncDisposableStack },
  options: CallOptions,
): Promise<ImageFiles> {
  const sizes = await sizesOf(assets, layer, options);
  if (sizes.has(`${entry}/oci-layout`)) {
    return {
      size: (name) => sizes.get(`${entry}/${name}`) ?? null,
      read: (name) => assets.readFile(layer, `${entry}/${name}`, options),
    };
  }
  if (!sizes.has(entry)) {
    throw new HyperMeshError('entry-missing', `The package has no image "${entry}".`, {
      hint: 'Set `image` in catalog.yaml to an archive in the package, or to the folder of an OCI layout.',
    });
  }
  const archive = stack.use(await open(path.join(work, 'archive'), 'wx+', 0o600));
  const entries = new Map<string, TarEntry>();
  const reader = new TarReader((one) => {
    names.count(one);
    entries.set(one.path, one);
  });
  let done = 0;
  for await (const piece of assets.readFile(layer, entry, options)) {
    done += piece.length;
    if (done > UNPACKED_BYTES_MAX) throw tooLarge();
    reader.push(piece);
    await archive.writeFile(piece);
    options.onProgress?.({ step: 'read image', done, total: sizes.get(entry)!, unit: 'bytes' });
  }
  reader.end();
  const find = (name: string) => {
    let found = entries.get(name);
    // Older archives name a layer twice, by a link from one to the other.
    if (found?.kind === 'symlink') found = entries.get(path.posix.join(path.posix.dirname(name), found.target));
    return found?.kind === 'file' ? found : null;
  };
  return {
    size: (name) => find(name)?.size ?? null,
    read: (name) => readRange(archive, find(name)!.offset, find(name)!.size),
  };
}

async function sizesOf(assets: Files, layer: Digest, options: CallOptions): Promise<ReadonlyMap<string, number>> {
  const tree = await assets.tree(layer, options);
  return new Map(tree.flatMap(({ path: name, kind, size }) => (kind === 'file' ? [[name, size]] : [])));
}

interface Image {
  readonly config: ImageConfig;
  readonly layers: readonly Layer[];
  /** What names it: its manifest, or its config in an archive of `docker save`. */
  readonly digest: Digest;
}

async function readImage(files: ImageFiles): Promise<Image> {
  const document = async (name: string) => {
    if (files.size(name) === null) throw invalid(`it lacks its file ${JSON.stringify(name.slice(0, 100))}`);
    return collect(files.read(name), IMAGE_DOCUMENT_BYTES_MAX);
  };
  const blob = async (digest: Digest) => {
    const bytes = await document(blobName(digest));
    if (digestOf(bytes) !== digest) throw invalid(`its document ${digest} has the digest ${digestOf(bytes)}`);
    return bytes;
  };
  if (files.size('index.json') !== null && files.size('oci-layout') !== null) {
    let index = decodeImageIndex(await document('index.json'));
    for (let depth = 0; depth < NESTED_MAX; depth++) {
      const { digest, mediaType } = chosen(index);
      const bytes = await blob(digest);
      if (/index\.v1\+json|manifest\.list/.test(mediaType)) {
        index = decodeImageIndex(bytes);
        continue;
      }
      const manifest = decodeImageManifest(bytes);
      const config = decodeImageConfig(await blob(manifest.config.digest));
      return {
        config: checkPlatform(config),
        digest,
        layers: pair(manifest.layers, config, (one, diffId) => ({ ...one, file: blobName(one.digest), diffId })),
      };
    }
    throw invalid('its index is nested too deeply');
  }
  if (files.size('manifest.json') !== null) {
    const archive = decodeImageArchive(await document('manifest.json'));
    const bytes = await document(archive.Config);
    const digest = digestOf(bytes);
    // That is how the file is named, by all programs that write such archives.
    if (!archive.Config.includes(digestHex(digest))) throw invalid(`its config has the digest ${digest}`);
    const config = decodeImageConfig(bytes);
    return {
      config: checkPlatform(config),
      digest,
      layers: pair(archive.Layers, config, (file, diffId) => ({ file, digest: null, size: null, diffId })),
    };
  }
  throw invalid('it is neither an OCI layout nor an archive of one or of `docker save`');
}

function blobName(digest: Digest): string {
  return `blobs/sha256/${digestHex(digest)}`;
}

/** The one for this machine. */
function chosen({ manifests }: ImageIndex): ImageIndex['manifests'][number] {
  const architecture = ARCHITECTURES[process.arch];
  const fitting = manifests.filter(
    ({ platform }) => platform === undefined || (platform.os === 'linux' && platform.architecture === architecture),
  );
  const [one] = fitting.toSorted((a, b) => Number(a.platform === undefined) - Number(b.platform === undefined));
  if (one !== undefined) return one;
  throw invalid(`it is not for linux on ${architecture ?? process.arch}`);
}

function checkPlatform(config: ImageConfig): ImageConfig {
  const architecture = ARCHITECTURES[process.arch];
  if (config.os === 'linux' && (config.architecture === '' || config.architecture === architecture)) return config;
  throw invalid(`it is for ${config.os} on ${config.architecture}, not for linux on ${architecture ?? process.arch}`);
}

function pair<T>(layers: readonly T[], config: ImageConfig, make: (one: T, diffId: Digest) => Layer): Layer[] {
  const ids = config.rootfs.diff_ids;
  if (ids.length !== layers.length) throw invalid(`it has ${layers.length} layers, and digests for ${ids.length}`);
  return layers.map((one, index) => make(one, ids[index]!));
}

/** Checks a layer, unpacks it into `to`, and lists it. */
async function unpackLayer(
  files: ImageFiles,
  layer: Layer,
  to: FileHandle,
  { bytesMax, names }: { readonly bytesMax: number; readonly names: Names },
  { signal }: CallOptions,
): Promise<{ readonly entries: readonly TarEntry[]; readonly bytes: number }> {
  const size = files.size(layer.file);
  if (size === null) throw invalid(`it lacks its layer ${layer.digest ?? layer.file}`);
  if (layer.size !== null && layer.size !== size)
    throw invalid(`its layer ${layer.digest} has ${size} bytes, not ${layer.size}`);
  const entries: TarEntry[] = [];
  const reader = new TarReader((entry) => {
    names.count(entry);
    entries.push(entry);
  });
  const packed = createHash('sha256');
  const unpacked = createHash('sha256');
  let bytes = 0;
  const form = await formOf(files.read(layer.file));
  const write = new Transform({
    writableHighWaterMark: PIECE,
    transform(piece: Buffer, _encoding, done) {
      bytes += piece.length;
      if (bytes > bytesMax) {
        done(tooLarge());
        return;
      }
      try {
        unpacked.update(piece);
        reader.push(piece);
      } catch (error) {
        done(error as Error);
        return;
      }
      to.writeFile(piece).then(() => done(), done);
    },
  });
  const drain = async (rest: AsyncIterable<unknown>) => {
    for await (const _ of rest);
  };
  try {
    await pipeline(
      [Readable.from(hashed(files.read(layer.file), packed)), ...(form === null ? [] : [form]), write, drain],
      { signal },
    );
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code?.startsWith('Z_') || code?.startsWith('ZSTD_') || code === 'ERR_ZSTD_DECOMPRESSION_FAILED')
      throw invalid(`its layer ${layer.digest ?? layer.file} cannot be decompressed`, error);
    throw error;
  }
  reader.end();
  const found: Digest = `sha256:${packed.digest('hex')}`;
  if (layer.digest !== null && found !== layer.digest)
    throw invalid(`its layer ${layer.digest} has the digest ${found}`);
  const diffId: Digest = `sha256:${unpacked.digest('hex')}`;
  if (diffId !== layer.diffId) throw invalid(`its layer ${layer.diffId} unpacks to ${diffId}`);
  return { entries, bytes };
}

/** By its first bytes, whatever its media type says. */
async function formOf(bytes: AsyncIterable<Uint8Array>): Promise<Transform | null> {
  for await (const piece of bytes) {
    if (piece.length < 4) break;
    const start = Buffer.from(piece.subarray(0, 4)).toString('hex');
    if (start.startsWith('1f8b')) return createGunzip({ chunkSize: PIECE });
    if (start === '28b52ffd') return createZstdDecompress({ chunkSize: PIECE });
    break;
  }
  return null;
}

async function* hashed(bytes: AsyncIterable<Uint8Array>, hash: Hash): AsyncIterable<Uint8Array> {
  for await (const piece of bytes) {
    hash.update(piece);
    yield piece;
  }
}

async function* readRange(file: FileHandle, offset: number, size: number): AsyncIterable<Uint8Array> {
  for (let at = 0; at < size; ) {
    const buffer = new Uint8Array(Math.min(PIECE, size - at));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, offset + at);
    if (bytesRead === 0) throw invalid('an archive in it was cut off');
    at += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

/** The user of the image by number, as its own tables name it. */
async function accountOf(
  { config: { User } }: ImageConfig,
  merge: Merge,
  layers: readonly FileHandle[],
): Promise<{ readonly uid: number; readonly gid: number }> {
  const table = async (name: string) => {
    const content = merge.find(name);
    if (content === null || content.size > ACCOUNTS_BYTES_MAX) return '';
    const bytes = await collect(readRange(layers[content.layer]!, content.offset, content.size), ACCOUNTS_BYTES_MAX);
    return Buffer.from(bytes).toString('utf8');
  };
  return userOf(User, await table('etc/passwd'), await table('etc/group'));
}

function tooLarge(): HyperMeshError {
  return new HyperMeshError('limit-exceeded', `An image may have at most ${UNPACKED_BYTES_MAX} bytes, unpacked.`);
}
