import { HyperMeshError } from '../../../base/errors.ts';

/**
 * Reads tar archives as container tools write them: ustar, GNU long names, pax. Unlike a package tree (docs/protocol/tree.md) nothing about
 * them is canonical, and nothing is trusted: names come out as clean relative paths or not at all.
 */
export interface TarEntry {
  /** Relative, without empty parts, `.` and `..`; never empty. */
  readonly path: string;
  /** `other`: devices, pipes and what else is not made. */
  readonly kind: 'file' | 'directory' | 'symlink' | 'hardlink' | 'other';
  readonly size: number;
  /** Where the bytes of a file start. */
  readonly offset: number;
  readonly executable: boolean;
  /** Of links; of a hard link a path in the archive. */
  readonly target: string;
}

const BLOCK = 512;
const META_BYTES_MAX = 2 ** 20;
const PATH_BYTES_MAX = 4_096;
const NAME_BYTES_MAX = 255;
const DEPTH_MAX = 128;

/** Push parser: holds no content. Errors: `program-invalid`. */
export class TarReader {
  readonly #entry: (entry: TarEntry) => void;
  readonly #block = Buffer.alloc(BLOCK);
  #filled = 0;
  #position = 0;
  /** Of the content that is passed over, padding included. */
  #skip = 0;
  #meta: { readonly flag: string; readonly bytes: Buffer; filled: number; padding: number } | null = null;
  /** What the headers before say of the next entry. */
  #next: { path?: string; target?: string; size?: number } = {};
  #ended = false;

  constructor(entry: (entry: TarEntry) => void) {
    this.#entry = entry;
  }

  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#ended; ) {
      const left = bytes.length - at;
      let take: number;
      if (this.#skip > 0) {
        take = Math.min(left, this.#skip);
        this.#skip -= take;
      } else if (this.#meta !== null) {
        take = this.#fillMeta(bytes, at);
      } else {
        take = Math.min(left, BLOCK - this.#filled);
        this.#block.set(bytes.subarray(at, at + take), this.#filled);
        this.#filled += take;
      }
      at += take;
      this.#position += take;
      if (this.#filled < BLOCK) continue;
      this.#filled = 0;
      this.#header();
    }
  }

  /** Errors: `program-invalid` when it was cut off. */
  end(): void {
    if (!this.#ended && (this.#filled > 0 || this.#skip > 0 || this.#meta !== null))
      throw invalid('an archive in it was cut off');
  }

  #fillMeta(bytes: Uint8Array, at: number): number {
    const meta = this.#meta!;
    const left = bytes.length - at;
    if (meta.filled < meta.bytes.length) {
      const take = Math.min(left, meta.bytes.length - meta.filled);
      meta.bytes.set(bytes.subarray(at, at + take), meta.filled);
      meta.filled += take;
      if (meta.filled === meta.bytes.length && meta.padding === 0) this.#endMeta();
      return take;
    }
    const take = Math.min(left, meta.padding);
    meta.padding -= take;
    if (meta.padding === 0) this.#endMeta();
    return take;
  }

  #endMeta(): void {
    const { flag, bytes } = this.#meta!;
    this.#meta = null;
    if (flag === 'L') this.#next.path = text(bytes);
    else if (flag === 'K') this.#next.target = text(bytes);
    else if (flag === 'x') Object.assign(this.#next, paxRecords(bytes));
  }

  #header(): void {
    const block = this.#block;
    if (block.every((byte) => byte === 0)) {
      this.#ended = true;
      return;
    }
    let sum = 0;
    for (let index = 0; index < BLOCK; index++) sum += index >= 148 && index < 156 ? 0x20 : block[index]!;
    if (number(block.subarray(148, 156)) !== sum) throw invalid('an archive in it has a damaged header');
    const flag = String.fromCharCode(block[156]!);
    const size = number(block.subarray(124, 136));
    if ('LKxg'.includes(flag)) {
      if (size > META_BYTES_MAX) throw invalid('an archive in it has a header without end');
      this.#meta = { flag, bytes: Buffer.alloc(size), filled: 0, padding: padding(size) };
      if (size === 0) this.#endMeta();
      return;
    }
    const { path: longPath, target: longTarget, size: longSize } = this.#next;
    this.#next = {};
    const isUstar = block.toString('latin1', 257, 263) === 'ustar\0';
    const prefix = isUstar ? text(block.subarray(345, 500)) : '';
    const name = text(block.subarray(0, 100));
    const written = longPath ?? (prefix === '' ? name : `${prefix}/${name}`);
    const kind = kindOf(flag, written);
    const content = kind === 'file' || !'123456'.includes(flag) ? (longSize ?? size) : 0;
    this.#skip = content + padding(content);
    const path = cleanPath(written);
    // The folder that holds everything.
    if (path === '') return;
    this.#entry({
      path,
      kind,
      size: kind === 'file' ? content : 0,
      offset: this.#position,
      executable: kind === 'file' && (number(block.subarray(100, 108)) & 0o111) !== 0,
      target: kind === 'hardlink' || kind === 'symlink' ? (longTarget ?? text(block.subarray(157, 257))) : '',
    });
  }
}

function kindOf(flag: string, path: string): TarEntry['kind'] {
  switch (flag) {
    case '0':
    case '7':
    case '\0':
      return path.endsWith('/') ? 'directory' : 'file';
    case '1':
      return 'hardlink';
    case '2':
      return 'symlink';
    case '5':
      return 'directory';
    case 'S':
      throw invalid('an archive in it has a sparse file, which is not supported');
    default:
      return 'other';
  }
}

/** Errors: `program-invalid` on a name that leads out, or that no file can have. */
export function cleanPath(written: string): string {
  const parts = written.split('/').filter((part) => part !== '' && part !== '.');
  const isNamed = (part: string) => part !== '..' && Buffer.byteLength(part) <= NAME_BYTES_MAX;
  if (parts.length > DEPTH_MAX || Buffer.byteLength(written) > PATH_BYTES_MAX || !parts.every(isNamed))
    throw invalid(`an archive in it has the impossible name ${JSON.stringify(written.slice(0, 200))}`);
  return parts.join('/');
}

function paxRecords(bytes: Buffer): { path?: string; target?: string; size?: number } {
  const found: { path?: string; target?: string; size?: number } = {};
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 ? Number.NaN : Number(bytes.toString('latin1', at, space));
    const equals = bytes.indexOf(0x3d, space);
    const end = at + length;
    if (!Number.isInteger(length) || length < 5 || end > bytes.length || equals < 0 || equals >= end)
      throw invalid('an archive in it has a damaged extended header');
    const key = bytes.toString('latin1', space + 1, equals);
    const value = bytes.subarray(equals + 1, end - 1);
    if (key === 'path') found.path = text(value);
    else if (key === 'linkpath') found.target = text(value);
    else if (key === 'size') found.size = decimal(value.toString('latin1'));
    else if (key.startsWith('GNU.sparse')) throw invalid('an archive in it has a sparse file, which is not supported');
    at = end;
  }
  return found;
}

function decimal(digits: string): number {
  const value = /^\d{1,16}$/.test(digits) ? Number(digits) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw invalid('an archive in it has a file of an impossible size');
  return value;
}

/** Octal digits, or the base 256 of GNU. */
function number(field: Buffer): number {
  let value = 0;
  if ((field[0]! & 0x80) !== 0) {
    for (const [index, byte] of field.entries()) value = value * 256 + (index === 0 ? byte & 0x7f : byte);
  } else {
    const digits = /^[ \0]*([0-7]*)[ \0]*$/.exec(field.toString('latin1'))?.[1];
    value = digits === undefined ? Number.NaN : Number.parseInt(digits || '0', 8);
  }
  if (!Number.isSafeInteger(value)) throw invalid('an archive in it has a damaged header');
  return value;
}

const UTF8 = new TextDecoder('utf-8', { fatal: true });

/** Up to the first zero byte. */
function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  try {
    return UTF8.decode(end < 0 ? bytes : bytes.subarray(0, end));
  } catch (cause) {
    throw invalid('an archive in it has a name that is not UTF-8', cause);
  }
}

function padding(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

/** What is wrong with an image. */
export function invalid(problem: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('program-invalid', `The image of the package cannot be run: ${problem}.`, {
    hint: 'Make it again, for example with `docker save`, `podman save --format oci-archive` or `skopeo copy … oci:image`.',
    ...(cause === undefined ? {} : { cause }),
  });
}
