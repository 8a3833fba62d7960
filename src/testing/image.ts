import { lstatSync, readdirSync, readFileSync, readlinkSync, realpathSync } from 'node:fs';
import path from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { type Digest, digestHex, digestOf } from '../base/digest.ts';

/** One entry of a layer, as hostile as a test wants it. */
export interface LayerEntry {
  readonly path: string;
  /** Flag of the tar header: `0` file, `1` hard link, `2` symlink, `3` device, `5` folder. */
  readonly flag?: string;
  readonly content?: Uint8Array;
  readonly mode?: number;
  readonly target?: string;
}

export interface ImageParts {
  /** Entries, or an archive as it is. */
  readonly layers: readonly {
    readonly entries: readonly LayerEntry[] | Uint8Array;
    readonly compress?: 'gzip' | 'zstd';
  }[];
  readonly config?: Readonly<Record<string, unknown>>;
  /** As Go calls it; of this machine unless given. */
  readonly architecture?: string;
}

/** A tar that does what it is told. Long names get a header of GNU. */
export function tarOf(entries: readonly LayerEntry[]): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (const { path: name, flag = '0', content = Buffer.alloc(0), mode = 0o755, target = '' } of entries) {
    for (const [long, kind] of [
      [name, 'L'],
      [target, 'K'],
    ] as const)
      if (Buffer.byteLength(long) > 100) blocks.push(...block('././@LongLink', kind, Buffer.from(`${long}\0`), 0, ''));
    blocks.push(...block(name, flag, content, mode, target));
  }
  blocks.push(Buffer.alloc(1024));
  return Buffer.concat(blocks);
}

function block(name: string, flag: string, content: Uint8Array, mode: number, target: string): Uint8Array[] {
  const header = Buffer.alloc(512);
  header.set(Buffer.from(name).subarray(0, 100), 0);
  header.write(`${mode.toString(8).padStart(7, '0')}\0`, 100, 'latin1');
  header.write('0000000\x000000000\0', 108, 'latin1');
  header.write(`${content.length.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
  header.write('00000000000\0        ', 136, 'latin1');
  header.write(flag, 156, 'latin1');
  header.set(Buffer.from(target).subarray(0, 100), 157);
  header.write('ustar\x0000', 257, 'latin1');
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return [header, content, Buffer.alloc((512 - (content.length % 512)) % 512)];
}

/** The files of an OCI layout with one image for this machine. */
export function layoutOf({ layers, config = {}, ...parts }: ImageParts): Record<string, Uint8Array> {
  const blobs: Record<string, Uint8Array> = {};
  const add = (bytes: Uint8Array): { digest: Digest; size: number } => {
    const digest = digestOf(bytes);
    blobs[`blobs/sha256/${digestHex(digest)}`] = bytes;
    return { digest, size: bytes.length };
  };
  const json = (value: unknown) => Buffer.from(JSON.stringify(value));
  const diffIds: Digest[] = [];
  const descriptors = layers.map(({ entries, compress }) => {
    const tar = entries instanceof Uint8Array ? entries : tarOf(entries);
    diffIds.push(digestOf(tar));
    const bytes = compress === 'gzip' ? gzipSync(tar) : compress === 'zstd' ? zstdCompressSync(tar) : tar;
    const form = compress === undefined ? '' : `+${compress}`;
    return { mediaType: `application/vnd.oci.image.layer.v1.tar${form}`, ...add(bytes) };
  });
  const architecture = parts.architecture ?? (process.arch === 'x64' ? 'amd64' : process.arch);
  const configBlob = add(
    json({ architecture, os: 'linux', config, rootfs: { type: 'layers', diff_ids: diffIds }, history: [] }),
  );
  const manifest = add(
    json({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...configBlob },
      layers: descriptors,
    }),
  );
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  return {
    'oci-layout': json({ imageLayoutVersion: '1.0.0' }),
    'index.json': json({
      schemaVersion: 2,
      manifests: [{ mediaType, ...manifest, platform: { architecture, os: 'linux' } }],
    }),
    ...blobs,
  };
}

/** `layoutOf` beneath a folder of a package. */
export function layoutIn(folder: string, parts: ImageParts): Record<string, Uint8Array> {
  return Object.fromEntries(Object.entries(layoutOf(parts)).map(([name, bytes]) => [`${folder}/${name}`, bytes]));
}

/** Entries of files of this machine, at the paths where they lie; links are followed. Folders come with all they hold, but what `leave` names. */
export function entriesFrom(files: readonly string[], leave: readonly string[] = []): LayerEntry[] {
  return files.flatMap((file): LayerEntry[] => {
    const real = realpathSync(file);
    const info = lstatSync(real);
    if (!info.isDirectory()) return [{ path: file.slice(1), content: readFileSync(real), mode: info.mode & 0o777 }];
    return readdirSync(real, { recursive: true, withFileTypes: true }).flatMap((entry): LayerEntry[] => {
      const at = path.join(entry.parentPath, entry.name);
      const name = path.join(file, path.relative(real, at)).slice(1);
      if (leave.some((one) => name.split('/').includes(one))) return [];
      if (entry.isSymbolicLink()) return [{ path: name, flag: '2', target: readlinkSync(at) }];
      return entry.isFile() ? [{ path: name, content: readFileSync(at), mode: lstatSync(at).mode & 0o777 }] : [];
    });
  });
}
