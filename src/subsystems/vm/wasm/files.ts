import type { BoxMount } from './frames.ts';

/**
 * The files that a program sees: read-only mounts whose bytes come when they are read, and one writable `/tmp` in memory.
 * There is nothing behind it: a path that leads out of it leads nowhere.
 */

export const ERRNO = {
  success: 0,
  tooBig: 1,
  access: 2,
  again: 6,
  badFile: 8,
  exists: 20,
  fault: 21,
  fileTooBig: 22,
  invalid: 28,
  io: 29,
  isDirectory: 31,
  loop: 32,
  tooManyFiles: 33,
  nameTooLong: 37,
  noEntry: 44,
  noSpace: 51,
  noSystem: 52,
  notDirectory: 54,
  notEmpty: 55,
  notSupported: 58,
  notPermitted: 63,
  readOnly: 69,
  seekPipe: 70,
  notCapable: 76,
} as const;

/** A call that fails with an error number of WASI. */
export class Errno extends Error {
  readonly errno: number;
  constructor(errno: number) {
    super(`errno ${errno}`);
    this.errno = errno;
  }
}

/** How a path is opened; the first four as WASI counts them. */
export const OPEN = { create: 1, directory: 2, exclusive: 4, truncate: 8, append: 16 } as const;

interface Base {
  readonly inode: bigint;
  /** Nanoseconds; 0 for what came with a package. */
  readonly modifiedNs: bigint;
}

export interface Directory extends Base {
  readonly kind: 'directory';
  readonly entries: Map<string, FileNode>;
  readonly writable: boolean;
  /** Links inside a mount cannot climb over the top of it. */
  readonly mountTop: boolean;
}
export interface PackageFile extends Base {
  readonly kind: 'package-file';
  readonly size: number;
  readonly mount: number;
  readonly path: string;
}
export interface TmpFile extends Omit<Base, 'modifiedNs'> {
  readonly kind: 'tmp-file';
  modifiedNs: bigint;
  bytes: Uint8Array;
  size: number;
  links: number;
  /** Open descriptors: the bytes count until the last one is closed. */
  opens: number;
}
export interface Link extends Base {
  readonly kind: 'link';
  readonly target: string;
}
export type FileNode = Directory | PackageFile | TmpFile | Link;

/** Where a path leads: the folder that holds the last name, and what stands there, if anything. */
export interface Place {
  readonly parent: Directory;
  readonly name: string;
  readonly node: FileNode | undefined;
}

const PATH_MAX = 4096;
const NAME_MAX = 255;
const LINKS_MAX = 32;
/** What one name in `/tmp` costs of its budget, so that empty files fill it too. */
const ENTRY_COST = 512;
/** Bytes of package files kept in the box. */
const CACHE_MAX = 64 * 2 ** 20;

/** Numbers that tell files apart. */
class Inodes {
  #last: bigint;
  constructor(last = 1n) {
    this.#last = last;
  }
  next(): bigint {
    this.#last += 1n;
    return this.#last;
  }
  fork(): Inodes {
    return new Inodes(this.#last);
  }
}

/** The folders of the mounts, which no program can change: one run sees the same objects as the next. */
export class Mounts {
  readonly entries: ReadonlyMap<string, FileNode>;
  readonly inodes = new Inodes();

  constructor(mounts: readonly BoxMount[]) {
    const root = this.#directory(true);
    for (const [index, mount] of mounts.entries()) {
      const names = mount.at.split('/').filter((name) => name !== '');
      const top = this.#directory(true);
      const parent = this.#ensure(root, names.slice(0, -1));
      parent.entries.set(names.at(-1)!, top);
      for (const entry of mount.entries) {
        const path = entry.path.split('/');
        const folder = this.#ensure(top, path.slice(0, -1));
        const name = path.at(-1)!;
        if (entry.target !== undefined)
          folder.entries.set(name, { kind: 'link', inode: this.inodes.next(), modifiedNs: 0n, target: entry.target });
        else if (entry.size === undefined) this.#ensure(folder, [name]);
        else
          folder.entries.set(name, {
            kind: 'package-file',
            inode: this.inodes.next(),
            modifiedNs: 0n,
            size: entry.size,
            mount: index,
            path: entry.path,
          });
      }
    }
    this.entries = root.entries;
  }

  #ensure(from: Directory, names: readonly string[]): Directory {
    let at = from;
    for (const name of names) {
      let next = at.entries.get(name);
      if (next?.kind !== 'directory') {
        next = this.#directory(false);
        at.entries.set(name, next);
      }
      at = next;
    }
    return at;
  }

  #directory(mountTop: boolean): Directory {
    return directory(this.inodes, { writable: false, mountTop });
  }
}

/** The files of one run. */
export class Files {
  readonly root: Directory;
  readonly #tmpMax: number;
  readonly #fetch: (mount: number, path: string) => Uint8Array;
  readonly #cache = new Map<PackageFile, Uint8Array>();
  readonly #inodes: Inodes;
  #cached = 0;
  #tmpUsed = 0;
  #tmpPeak = 0;
  #wasFull = false;

  /** @param fetch reads a whole file of a mount from the node; throws {@link Errno}. */
  constructor(mounts: Mounts, tmpMax: number, fetch: (mount: number, path: string) => Uint8Array) {
    this.#tmpMax = tmpMax;
    this.#fetch = fetch;
    this.#inodes = mounts.inodes.fork();
    this.root = directory(this.#inodes, { writable: false, mountTop: true });
    for (const [name, node] of mounts.entries) this.root.entries.set(name, node);
    this.root.entries.set('tmp', directory(this.#inodes, { writable: true, mountTop: true }));
  }

  /** Whether something found no place in `/tmp`. */
  get wasFull(): boolean {
    return this.#wasFull;
  }

  /** The most bytes that `/tmp` held. */
  get tmpPeak(): number {
    return this.#tmpPeak;
  }

  /**
   * Walks `path` from a folder that the program has open. It may not climb over that folder, start at the root, or follow a link
   * out of the mount that holds the link. Throws {@link Errno}.
   */
  resolve(base: Directory, path: string, followLast: boolean): Place {
    if (path.length > PATH_MAX) throw new Errno(ERRNO.nameTooLong);
    if (path === '') throw new Errno(ERRNO.noEntry);
    if (path.startsWith('/') || path.includes('\0')) throw new Errno(ERRNO.notCapable);
    const stack: Directory[] = [base];
    /** Names still to walk, last first, each with the depth under which it may not climb. */
    const names = path
      .split('/')
      .reverse()
      .map((name) => ({ name, floor: 1 }));
    let links = 0;
    let last: Place = { parent: base, name: '.', node: base };
    for (let next = names.pop(); next !== undefined; next = names.pop()) {
      const { name, floor } = next;
      if (name.length > NAME_MAX) throw new Errno(ERRNO.nameTooLong);
      if (last.node?.kind !== 'directory')
        throw new Errno(last.node === undefined ? ERRNO.noEntry : ERRNO.notDirectory);
      if (name === '' || name === '.') continue;
      if (name === '..') {
        if (stack.length <= floor) throw new Errno(ERRNO.notCapable);
        stack.pop();
        last = { parent: stack.at(-1)!, name: '.', node: stack.at(-1)! };
        continue;
      }
      const parent = stack.at(-1)!;
      const node = parent.entries.get(name);
      if (node?.kind === 'link' && (names.length > 0 || followLast)) {
        links += 1;
        if (links > LINKS_MAX) throw new Errno(ERRNO.loop);
        if (node.target.startsWith('/')) throw new Errno(ERRNO.notCapable);
        const top = stack.findLastIndex((folder) => folder.mountTop);
        const inner = Math.max(floor, top + 1);
        for (const part of node.target.split('/').reverse()) names.push({ name: part, floor: inner });
        if (names.length > PATH_MAX) throw new Errno(ERRNO.nameTooLong);
        last = { parent, name: '.', node: parent };
        continue;
      }
      last = { parent, name, node };
      if (node?.kind === 'directory') stack.push(node);
    }
    return last;
  }

  read(file: PackageFile | TmpFile, at: number, length: number): Uint8Array {
    const bytes = file.kind === 'tmp-file' ? file.bytes.subarray(0, file.size) : this.#content(file);
    return bytes.subarray(Math.min(at, bytes.length), Math.min(at + length, bytes.length));
  }

  write(file: TmpFile, at: number, bytes: Uint8Array): void {
    const end = at + bytes.length;
    if (end > file.size) this.resize(file, end);
    file.bytes.set(bytes, at);
    file.modifiedNs = nowNs();
  }

  resize(file: TmpFile, size: number): void {
    this.#charge(size - file.size);
    if (size > file.bytes.length) {
      const grown = new Uint8Array(Math.min(Math.max(size, file.bytes.length * 2), Math.max(size, this.#tmpMax)));
      grown.set(file.bytes.subarray(0, file.size));
      file.bytes = grown;
    } else if (size < file.size) {
      file.bytes = file.bytes.slice(0, size);
    }
    file.size = size;
    file.modifiedNs = nowNs();
  }

  createFile(place: Place): TmpFile {
    this.#claim(place, place.name);
    const file: TmpFile = {
      kind: 'tmp-file',
      inode: this.#inodes.next(),
      modifiedNs: nowNs(),
      bytes: new Uint8Array(),
      size: 0,
      links: 1,
      opens: 0,
    };
    place.parent.entries.set(place.name, file);
    return file;
  }

  createDirectory(place: Place): void {
    this.#claim(place, place.name);
    place.parent.entries.set(place.name, directory(this.#inodes, { writable: true, mountTop: false }));
  }

  removeFile(place: Place): void {
    const file = writable(place);
    if (file.kind === 'directory') throw new Errno(ERRNO.isDirectory);
    place.parent.entries.delete(place.name);
    this.#charge(-ENTRY_COST);
    this.#unlink(file);
  }

  removeDirectory(place: Place): void {
    const folder = writable(place);
    if (folder.kind !== 'directory') throw new Errno(ERRNO.notDirectory);
    if (folder.mountTop) throw new Errno(ERRNO.notPermitted);
    if (folder.entries.size > 0) throw new Errno(ERRNO.notEmpty);
    place.parent.entries.delete(place.name);
    this.#charge(-ENTRY_COST);
  }

  rename(from: Place, to: Place): void {
    const node = writable(from);
    if (!to.parent.writable) throw new Errno(ERRNO.readOnly);
    if (to.node === node) return;
    if (node.kind === 'directory') {
      if (node.mountTop || holds(node, to.parent)) throw new Errno(ERRNO.invalid);
      if (to.node !== undefined) this.removeDirectory(to);
    } else if (to.node !== undefined) {
      this.removeFile(to);
    }
    if (to.name === '.' || from.name === '.') throw new Errno(ERRNO.invalid);
    from.parent.entries.delete(from.name);
    to.parent.entries.set(to.name, node);
  }

  /** What stands at a place, or a new file there; open until {@link closed}. `pay`: bytes that it cuts off. */
  open(place: Place, how: number, isWritten: boolean, pay: (bytes: number) => void): Exclude<FileNode, Link> {
    const has = (flag: number) => (how & flag) !== 0;
    let { node } = place;
    if (node !== undefined && has(OPEN.create) && has(OPEN.exclusive)) throw new Errno(ERRNO.exists);
    if (node === undefined) {
      if (!has(OPEN.create)) throw new Errno(ERRNO.noEntry);
      if (has(OPEN.directory)) throw new Errno(ERRNO.invalid);
      node = this.createFile(place);
    }
    switch (node.kind) {
      case 'link':
        throw new Errno(ERRNO.loop);
      case 'directory':
        if (has(OPEN.truncate) || has(OPEN.append)) throw new Errno(ERRNO.isDirectory);
        break;
      case 'package-file':
        if (has(OPEN.directory)) throw new Errno(ERRNO.notDirectory);
        if (isWritten) throw new Errno(ERRNO.readOnly);
        break;
      case 'tmp-file':
        if (has(OPEN.directory)) throw new Errno(ERRNO.notDirectory);
        if (has(OPEN.truncate)) {
          const cut = node.size;
          this.resize(node, 0);
          pay(cut);
        }
        break;
    }
    this.opened(node);
    return node;
  }

  opened(file: FileNode): void {
    if (file.kind === 'tmp-file') file.opens += 1;
  }

  closed(file: FileNode): void {
    if (file.kind !== 'tmp-file') return;
    file.opens -= 1;
    this.#free(file);
  }

  #unlink(file: FileNode): void {
    if (file.kind !== 'tmp-file') return;
    file.links -= 1;
    this.#free(file);
  }

  #free(file: TmpFile): void {
    if (file.links === 0 && file.opens === 0) this.#charge(-file.size);
  }

  #claim(place: Place, name: string): void {
    if (!place.parent.writable) throw new Errno(ERRNO.readOnly);
    if (place.node !== undefined || name === '.') throw new Errno(ERRNO.exists);
    this.#charge(ENTRY_COST);
  }

  #charge(bytes: number): void {
    if (bytes > 0 && this.#tmpUsed + bytes > this.#tmpMax) {
      this.#wasFull = true;
      throw new Errno(ERRNO.noSpace);
    }
    this.#tmpUsed += bytes;
    this.#tmpPeak = Math.max(this.#tmpPeak, this.#tmpUsed);
  }

  #content(file: PackageFile): Uint8Array {
    const known = this.#cache.get(file);
    if (known !== undefined) return known;
    const bytes = this.#fetch(file.mount, file.path);
    for (const [old, content] of this.#cache) {
      if (this.#cached + bytes.length <= CACHE_MAX) break;
      this.#cache.delete(old);
      this.#cached -= content.length;
    }
    this.#cache.set(file, bytes);
    this.#cached += bytes.length;
    return bytes;
  }
}

function directory(inodes: Inodes, how: Pick<Directory, 'writable' | 'mountTop'>): Directory {
  return { kind: 'directory', inode: inodes.next(), modifiedNs: 0n, entries: new Map(), ...how };
}

/** A size or an offset; what no file can reach is refused. */
export function length64(value: bigint): number {
  if (value < 0n) throw new Errno(ERRNO.invalid);
  if (value > 2n ** 40n) throw new Errno(ERRNO.fileTooBig);
  return Number(value);
}

export function existing(place: Place): FileNode {
  if (place.node === undefined) throw new Errno(ERRNO.noEntry);
  return place.node;
}

export function sizeOf(node: FileNode): number {
  switch (node.kind) {
    case 'directory':
      return 0;
    case 'link':
      return new TextEncoder().encode(node.target).length;
    case 'package-file':
    case 'tmp-file':
      return node.size;
  }
}

function writable(place: Place): FileNode {
  if (place.node === undefined) throw new Errno(ERRNO.noEntry);
  if (!place.parent.writable || place.name === '.') throw new Errno(ERRNO.readOnly);
  return place.node;
}

function holds(folder: Directory, wanted: Directory): boolean {
  if (folder === wanted) return true;
  for (const entry of folder.entries.values()) if (entry.kind === 'directory' && holds(entry, wanted)) return true;
  return false;
}

function nowNs(): bigint {
  return BigInt(Date.now()) * 1_000_000n;
}
