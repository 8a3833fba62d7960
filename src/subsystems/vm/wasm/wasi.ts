import {
  type Directory,
  ERRNO,
  Errno,
  existing,
  type FileNode,
  type Files,
  length64,
  OPEN,
  type Place,
  sizeOf,
  type TmpFile,
} from './files.ts';

/** WASI preview 1 over {@link Files}: everything a program can reach is in this file and in that one. */

export const WASI_MODULE = 'wasi_snapshot_preview1';

/** Every function of the interface and its signature (i: i32, I: i64). */
export const WASI_FUNCTIONS: ReadonlyMap<string, string> = new Map(
  Object.entries({
    args_get: 'ii:i',
    args_sizes_get: 'ii:i',
    environ_get: 'ii:i',
    environ_sizes_get: 'ii:i',
    clock_res_get: 'ii:i',
    clock_time_get: 'iIi:i',
    fd_advise: 'iIIi:i',
    fd_allocate: 'iII:i',
    fd_close: 'i:i',
    fd_datasync: 'i:i',
    fd_fdstat_get: 'ii:i',
    fd_fdstat_set_flags: 'ii:i',
    fd_fdstat_set_rights: 'iII:i',
    fd_filestat_get: 'ii:i',
    fd_filestat_set_size: 'iI:i',
    fd_filestat_set_times: 'iIIi:i',
    fd_pread: 'iiiIi:i',
    fd_prestat_get: 'ii:i',
    fd_prestat_dir_name: 'iii:i',
    fd_pwrite: 'iiiIi:i',
    fd_read: 'iiii:i',
    fd_readdir: 'iiiIi:i',
    fd_renumber: 'ii:i',
    fd_seek: 'iIii:i',
    fd_sync: 'i:i',
    fd_tell: 'ii:i',
    fd_write: 'iiii:i',
    path_create_directory: 'iii:i',
    path_filestat_get: 'iiiii:i',
    path_filestat_set_times: 'iiiiIIi:i',
    path_link: 'iiiiiii:i',
    path_open: 'iiiiiIIii:i',
    path_readlink: 'iiiiii:i',
    path_remove_directory: 'iii:i',
    path_rename: 'iiiiii:i',
    path_symlink: 'iiiii:i',
    path_unlink_file: 'iii:i',
    poll_oneoff: 'iiii:i',
    proc_exit: 'i:',
    proc_raise: 'i:i',
    random_get: 'ii:i',
    sched_yield: ':i',
    sock_accept: 'iii:i',
    sock_recv: 'iiiiii:i',
    sock_send: 'iiiii:i',
    sock_shutdown: 'ii:i',
  }),
);

/** Fuel that a call to the host costs. */
export const CALL_COST = 64;

/** Thrown through the program by proc_exit. */
export class Exit extends Error {
  readonly status: number;
  constructor(status: number) {
    super(`exit ${status}`);
    this.status = status;
  }
}

export interface WasiOptions {
  readonly args: readonly string[];
  /** `NAME=value`. */
  readonly environment: readonly string[];
  readonly stdin: Uint8Array;
  readonly files: Files;
  /** Takes what the program wrote; `bytes` is only valid during the call. */
  write(to: 'stdout' | 'stderr', bytes: Uint8Array): void;
  /** Pays fuel for work of the host. Does not return when the program has to stop. */
  charge(units: number): void;
  /** Waits, at most until the program has to stop. */
  sleep(ms: number): void;
  /** Since the start of the run: what came before it is nobody's business. */
  elapsedMs(): number;
  cpuMs(): number;
}

type Open =
  | { readonly kind: 'stdin'; offset: number }
  | { readonly kind: 'stdout' | 'stderr' }
  | {
      readonly kind: 'node';
      readonly node: Exclude<FileNode, { kind: 'link' }>;
      readonly path: string | null;
      readonly readable: boolean;
      readonly writable: boolean;
      append: boolean;
      offset: number;
      /** Snapshot of a folder, taken when it is read from the start. */
      listing: readonly (readonly [string, FileNode])[];
    };
type OpenNode = Extract<Open, { kind: 'node' }>;

const OPEN_MAX = 256;
const VECTORS_MAX = 1024;
const RIGHTS_ALL = 0x1fffffffn;
const RIGHT_READ = 1n << 1n;
const RIGHT_WRITE = 1n << 6n;
const FILE_TYPE = { unknown: 0, directory: 3, regular: 4, link: 7 } as const;

export class Wasi {
  readonly #options: WasiOptions;
  readonly #files: Files;
  readonly #open: (Open | undefined)[];
  #memory: WebAssembly.Memory | undefined;

  constructor(options: WasiOptions) {
    this.#options = options;
    this.#files = options.files;
    this.#open = [
      { kind: 'stdin', offset: 0 },
      { kind: 'stdout' },
      { kind: 'stderr' },
      openNode(options.files.root, { path: '/', readable: true, writable: false, append: false }),
    ];
  }

  attach(memory: WebAssembly.Memory): void {
    this.#memory = memory;
  }

  /** What the module imports; each call pays, and fails with an error number instead of an exception. */
  imports(): Record<string, (...args: never[]) => number | undefined> {
    const functions: Record<string, (...args: never[]) => number | undefined> = {};
    for (const [name, call] of Object.entries(this.#calls())) {
      functions[name] = (...args: never[]) => {
        this.#options.charge(CALL_COST);
        try {
          (call as (...args: never[]) => void)(...args);
          return ERRNO.success;
        } catch (error) {
          if (error instanceof Errno) return error.errno;
          throw error;
        }
      };
    }
    for (const name of WASI_FUNCTIONS.keys()) functions[name] ??= () => ERRNO.noSystem;
    return functions;
  }

  #calls() {
    const { args, environment } = this.#options;
    return {
      args_sizes_get: (count: number, size: number) => this.#listSizes(args, count, size),
      args_get: (pointers: number, buffer: number) => this.#list(args, pointers, buffer),
      environ_sizes_get: (count: number, size: number) => this.#listSizes(environment, count, size),
      environ_get: (pointers: number, buffer: number) => this.#list(environment, pointers, buffer),

      clock_res_get: (id: number, out: number) => {
        clock(id, this.#options);
        this.#view(out, 8).setBigUint64(0, 1_000n, true);
      },
      clock_time_get: (id: number, _precision: bigint, out: number) => {
        this.#view(out, 8).setBigUint64(0, clock(id, this.#options), true);
      },
      random_get: (out: number, length: number) => {
        const bytes = this.#bytes(out, length);
        this.#pay(bytes.length * 4);
        for (let at = 0; at < bytes.length; at += 65_536) crypto.getRandomValues(bytes.subarray(at, at + 65_536));
      },
      sched_yield: () => {},
      proc_exit: (status: number) => {
        throw new Exit(status >>> 0);
      },
      proc_raise: () => {
        throw new Errno(ERRNO.notSupported);
      },
      poll_oneoff: (subscriptions: number, events: number, count: number, out: number) =>
        this.#poll(subscriptions >>> 0, events >>> 0, count >>> 0, out),

      fd_prestat_get: (fd: number, out: number) => {
        const open = this.#node(fd);
        if (open.path === null) throw new Errno(ERRNO.badFile);
        const view = this.#view(out, 8);
        view.setUint32(0, 0, true);
        view.setUint32(4, open.path.length, true);
      },
      fd_prestat_dir_name: (fd: number, out: number, length: number) => {
        const open = this.#node(fd);
        if (open.path === null) throw new Errno(ERRNO.badFile);
        if (length >>> 0 < open.path.length) throw new Errno(ERRNO.nameTooLong);
        this.#bytes(out, open.path.length).set(encode(open.path));
      },
      fd_fdstat_get: (fd: number, out: number) => {
        const open = this.#any(fd);
        const view = this.#view(out, 24);
        view.setBigUint64(0, 0n, true);
        view.setUint8(0, open.kind === 'node' ? fileType(open.node) : FILE_TYPE.unknown);
        view.setUint16(2, open.kind === 'node' && open.append ? 1 : 0, true);
        view.setBigUint64(8, rightsOf(open), true);
        view.setBigUint64(16, open.kind === 'node' && open.node.kind === 'directory' ? RIGHTS_ALL : 0n, true);
      },
      fd_fdstat_set_flags: (fd: number, flags: number) => {
        const open = this.#any(fd);
        if (open.kind === 'node') open.append = (flags & 1) !== 0;
      },
      fd_fdstat_set_rights: (fd: number) => void this.#any(fd),
      fd_advise: (fd: number) => void this.#any(fd),
      fd_sync: (fd: number) => void this.#any(fd),
      fd_datasync: (fd: number) => void this.#any(fd),
      fd_close: (fd: number) => {
        const open = this.#any(fd);
        this.#open[fd >>> 0] = undefined;
        if (open.kind === 'node') this.#files.closed(open.node);
      },
      fd_renumber: (from: number, to: number) => {
        const open = this.#any(from);
        const replaced = this.#any(to);
        if (open === replaced) return;
        if (replaced.kind === 'node') this.#files.closed(replaced.node);
        this.#open[to >>> 0] = open;
        this.#open[from >>> 0] = undefined;
      },
      fd_filestat_get: (fd: number, out: number) => {
        const open = this.#any(fd);
        this.#fileStat(out, open.kind === 'node' ? open.node : null);
      },
      fd_filestat_set_size: (fd: number, size: bigint) => this.#resize(this.#tmpFile(fd), length64(size)),
      fd_filestat_set_times: (fd: number) => void this.#tmpFile(fd),
      fd_allocate: (fd: number, offset: bigint, length: bigint) => {
        const file = this.#tmpFile(fd);
        const end = length64(offset + length);
        if (end > file.size) this.#resize(file, end);
      },

      fd_read: (fd: number, vectors: number, count: number, out: number) => {
        const open = this.#any(fd);
        const target = this.#view(out, 4);
        let total = 0;
        for (const [pointer, length] of this.#vectors(vectors, count)) {
          const piece = this.#readFrom(open, length);
          this.#bytes(pointer, length).set(piece);
          total += piece.length;
          if (piece.length < length) break;
        }
        target.setUint32(0, total, true);
      },
      fd_pread: (fd: number, vectors: number, count: number, offset: bigint, out: number) => {
        const open = this.#file(fd);
        if (!open.readable) throw new Errno(ERRNO.notCapable);
        const target = this.#view(out, 4);
        let at = length64(offset);
        const from = at;
        for (const [pointer, length] of this.#vectors(vectors, count)) {
          const piece = this.#files.read(open.node, at, length);
          this.#pay(piece.length);
          this.#bytes(pointer, length).set(piece);
          at += piece.length;
          if (piece.length < length) break;
        }
        target.setUint32(0, at - from, true);
      },
      fd_write: (fd: number, vectors: number, count: number, out: number) => {
        const open = this.#any(fd);
        const target = this.#view(out, 4);
        let total = 0;
        for (const [pointer, length] of this.#vectors(vectors, count)) {
          const bytes = this.#bytes(pointer, length);
          this.#pay(length);
          switch (open.kind) {
            case 'stdin':
              throw new Errno(ERRNO.badFile);
            case 'stdout':
            case 'stderr':
              this.#options.write(open.kind, bytes);
              break;
            case 'node': {
              const file = this.#tmpFile(fd);
              if (open.append) open.offset = file.size;
              const gap = open.offset - file.size;
              this.#files.write(file, open.offset, bytes);
              this.#pay(gap);
              open.offset += length;
            }
          }
          total += length;
        }
        target.setUint32(0, total, true);
      },
      fd_pwrite: (fd: number, vectors: number, count: number, offset: bigint, out: number) => {
        const file = this.#tmpFile(fd);
        const target = this.#view(out, 4);
        let at = length64(offset);
        const from = at;
        for (const [pointer, length] of this.#vectors(vectors, count)) {
          const gap = Math.max(0, at - file.size);
          this.#files.write(file, at, this.#bytes(pointer, length));
          this.#pay(length + gap);
          at += length;
        }
        target.setUint32(0, at - from, true);
      },
      fd_seek: (fd: number, delta: bigint, whence: number, out: number) => {
        const open = this.#any(fd);
        if (open.kind !== 'node') throw new Errno(ERRNO.seekPipe);
        if (open.node.kind === 'directory') throw new Errno(ERRNO.badFile);
        const from = whence === 0 ? 0 : whence === 1 ? open.offset : whence === 2 ? open.node.size : Number.NaN;
        if (Number.isNaN(from)) throw new Errno(ERRNO.invalid);
        const target = this.#view(out, 8);
        open.offset = length64(BigInt(from) + delta);
        target.setBigUint64(0, BigInt(open.offset), true);
      },
      fd_tell: (fd: number, out: number) => {
        const open = this.#any(fd);
        if (open.kind !== 'node') throw new Errno(ERRNO.seekPipe);
        this.#view(out, 8).setBigUint64(0, BigInt(open.offset), true);
      },
      fd_readdir: (fd: number, buffer: number, length: number, cookie: bigint, out: number) =>
        this.#readDirectory(this.#node(fd), buffer, length >>> 0, cookie, out),

      path_open: (
        fd: number,
        lookup: number,
        pointer: number,
        length: number,
        how: number,
        rights: bigint,
        _inheriting: bigint,
        flags: number,
        out: number,
      ) => {
        const target = this.#view(out, 4);
        const place = this.#place(fd, pointer, length, (lookup & 1) !== 0);
        target.setUint32(0, this.#openPath(place, how, rights, flags), true);
      },
      path_filestat_get: (fd: number, lookup: number, pointer: number, length: number, out: number) =>
        this.#fileStat(out, existing(this.#place(fd, pointer, length, (lookup & 1) !== 0))),
      path_filestat_set_times: (fd: number, lookup: number, pointer: number, length: number) => {
        if (existing(this.#place(fd, pointer, length, (lookup & 1) !== 0)).kind !== 'tmp-file')
          throw new Errno(ERRNO.readOnly);
      },
      path_readlink: (fd: number, pointer: number, length: number, buffer: number, size: number, out: number) => {
        const node = existing(this.#place(fd, pointer, length, false));
        if (node.kind !== 'link') throw new Errno(ERRNO.invalid);
        const target = encode(node.target).subarray(0, size >>> 0);
        this.#bytes(buffer, target.length).set(target);
        this.#view(out, 4).setUint32(0, target.length, true);
      },
      path_create_directory: (fd: number, pointer: number, length: number) =>
        this.#files.createDirectory(this.#place(fd, pointer, length, false)),
      path_remove_directory: (fd: number, pointer: number, length: number) =>
        this.#files.removeDirectory(this.#place(fd, pointer, length, false)),
      path_unlink_file: (fd: number, pointer: number, length: number) =>
        this.#files.removeFile(this.#place(fd, pointer, length, false)),
      path_rename: (fd: number, from: number, fromLength: number, toFd: number, to: number, toLength: number) =>
        this.#files.rename(this.#place(fd, from, fromLength, false), this.#place(toFd, to, toLength, false)),
      path_link: () => {
        throw new Errno(ERRNO.notSupported);
      },
      path_symlink: () => {
        throw new Errno(ERRNO.notSupported);
      },
    };
  }

  #openPath(place: Place, how: number, rights: bigint, flags: number): number {
    const append = (flags & 1) !== 0;
    const writable = (rights & RIGHT_WRITE) !== 0n || (how & OPEN.truncate) !== 0 || append;
    const fd = this.#freeDescriptor();
    const node = this.#files.open(place, how | (append ? OPEN.append : 0), writable, (bytes) => this.#pay(bytes));
    this.#open[fd] = openNode(node, { path: null, readable: (rights & RIGHT_READ) !== 0n, writable, append });
    return fd;
  }

  #freeDescriptor(): number {
    let fd = 3;
    while (this.#open[fd] !== undefined) fd += 1;
    if (fd >= OPEN_MAX) throw new Errno(ERRNO.tooManyFiles);
    return fd;
  }

  #readFrom(open: Open, length: number): Uint8Array {
    let piece: Uint8Array;
    switch (open.kind) {
      case 'stdin':
        piece = this.#options.stdin.subarray(open.offset, open.offset + length);
        break;
      case 'stdout':
      case 'stderr':
        throw new Errno(ERRNO.badFile);
      case 'node':
        if (open.node.kind === 'directory') throw new Errno(ERRNO.isDirectory);
        if (!open.readable) throw new Errno(ERRNO.notCapable);
        piece = this.#files.read(open.node, open.offset, length);
    }
    open.offset += piece.length;
    this.#pay(piece.length);
    return piece;
  }

  #readDirectory(open: OpenNode, buffer: number, length: number, cookie: bigint, out: number): void {
    if (open.node.kind !== 'directory') throw new Errno(ERRNO.notDirectory);
    const target = this.#view(out, 4);
    if (cookie === 0n) {
      open.listing = [['.', open.node], ['..', open.node], ...open.node.entries];
      this.#pay(open.listing.length * 8);
    }
    const bytes = this.#bytes(buffer, length);
    let used = 0;
    for (let index = length64(cookie); index < open.listing.length && used < length; index++) {
      const [name, node] = open.listing[index]!;
      const text = encode(name);
      const entry = new Uint8Array(24 + text.length);
      const view = new DataView(entry.buffer);
      view.setBigUint64(0, BigInt(index + 1), true);
      view.setBigUint64(8, node.inode, true);
      view.setUint32(16, text.length, true);
      view.setUint8(20, fileType(node));
      entry.set(text, 24);
      const piece = entry.subarray(0, length - used);
      bytes.set(piece, used);
      used += piece.length;
    }
    this.#pay(used);
    target.setUint32(0, used, true);
  }

  #poll(subscriptions: number, events: number, count: number, out: number): void {
    if (count === 0 || count > VECTORS_MAX) throw new Errno(ERRNO.invalid);
    const wishes = Array.from({ length: count }, (_, index) => {
      const view = this.#view(subscriptions + index * 48, 48);
      const tag = view.getUint8(8);
      if (tag > 2) throw new Errno(ERRNO.invalid);
      let waitMs = 0;
      if (tag === 0) {
        const id = view.getUint32(16, true);
        const timeout = view.getBigUint64(24, true);
        const absolute = (view.getUint16(40, true) & 1) !== 0;
        const now = clock(id, this.#options);
        waitMs = Number(absolute ? (timeout > now ? timeout - now : 0n) : timeout) / 1e6;
      }
      return { userData: view.getBigUint64(0, true), tag, waitMs };
    });
    const shortest = Math.min(...wishes.map((wish) => wish.waitMs));
    if (shortest > 0) this.#options.sleep(shortest);
    const due = wishes.filter((wish) => wish.waitMs <= shortest);
    for (const [index, wish] of due.entries()) {
      const view = this.#view(events + index * 32, 32);
      view.setBigUint64(0, wish.userData, true);
      view.setBigUint64(8, 0n, true);
      view.setUint8(10, wish.tag);
      view.setBigUint64(16, 1n, true);
      view.setBigUint64(24, 0n, true);
    }
    this.#view(out, 4).setUint32(0, due.length, true);
  }

  #fileStat(out: number, node: FileNode | null): void {
    const view = this.#view(out, 64);
    for (let at = 0; at < 64; at += 8) view.setBigUint64(at, 0n, true);
    view.setBigUint64(24, 1n, true);
    if (node === null) return;
    view.setBigUint64(8, node.inode, true);
    view.setUint8(16, fileType(node));
    view.setBigUint64(32, BigInt(sizeOf(node)), true);
    for (const at of [40, 48, 56]) view.setBigUint64(at, node.modifiedNs, true);
  }

  #listSizes(list: readonly string[], count: number, size: number): void {
    this.#view(count, 4).setUint32(0, list.length, true);
    this.#view(size, 4).setUint32(
      0,
      list.reduce((sum, text) => sum + encode(text).length + 1, 0),
      true,
    );
  }

  #list(list: readonly string[], pointers: number, buffer: number): void {
    let at = buffer >>> 0;
    for (const [index, text] of list.entries()) {
      this.#view((pointers >>> 0) + index * 4, 4).setUint32(0, at, true);
      const bytes = encode(`${text}\0`);
      this.#bytes(at, bytes.length).set(bytes);
      at += bytes.length;
    }
  }

  #place(fd: number, pointer: number, length: number, followLast: boolean): Place {
    const open = this.#node(fd);
    if (open.node.kind !== 'directory') throw new Errno(ERRNO.notDirectory);
    if (length >>> 0 > 4096) throw new Errno(ERRNO.nameTooLong);
    const bytes = this.#bytes(pointer, length);
    this.#pay(bytes.length * 8);
    return this.#files.resolve(open.node as Directory, decode(bytes), followLast);
  }

  *#vectors(pointer: number, count: number): Generator<readonly [number, number]> {
    if (count >>> 0 > VECTORS_MAX) throw new Errno(ERRNO.invalid);
    for (let index = 0; index < count >>> 0; index++) {
      const view = this.#view((pointer >>> 0) + index * 8, 8);
      yield [view.getUint32(0, true), view.getUint32(4, true)];
    }
  }

  #any(fd: number): Open {
    const open = this.#open[fd >>> 0];
    if (open === undefined) throw new Errno(ERRNO.badFile);
    return open;
  }

  #node(fd: number): OpenNode {
    const open = this.#any(fd);
    if (open.kind !== 'node') throw new Errno(ERRNO.badFile);
    return open;
  }

  #file(fd: number) {
    const open = this.#node(fd);
    if (open.node.kind === 'directory') throw new Errno(ERRNO.isDirectory);
    return { ...open, node: open.node };
  }

  /** A file that is open for writing. */
  #tmpFile(fd: number) {
    const open = this.#file(fd);
    if (open.node.kind !== 'tmp-file' || !open.writable) throw new Errno(ERRNO.notCapable);
    return open.node;
  }

  #resize(file: TmpFile, size: number): void {
    const moved = Math.abs(size - file.size);
    this.#files.resize(file, size);
    this.#pay(moved);
  }

  #pay(bytes: number): void {
    if (bytes >= 8) this.#options.charge(Math.floor(bytes / 8));
  }

  #bytes(pointer: number, length: number): Uint8Array<ArrayBuffer> {
    const { buffer } = this.#memory!;
    const from = pointer >>> 0;
    const size = length >>> 0;
    if (from + size > buffer.byteLength) throw new Errno(ERRNO.fault);
    return new Uint8Array(buffer, from, size);
  }

  #view(pointer: number, length: number): DataView {
    const { buffer } = this.#memory!;
    const from = pointer >>> 0;
    if (from + length > buffer.byteLength) throw new Errno(ERRNO.fault);
    return new DataView(buffer, from, length);
  }
}

function openNode(
  node: OpenNode['node'],
  how: {
    readonly path: string | null;
    readonly readable: boolean;
    readonly writable: boolean;
    readonly append: boolean;
  },
): OpenNode {
  return { kind: 'node', node, offset: 0, listing: [], ...how };
}

function rightsOf(open: Open): bigint {
  switch (open.kind) {
    case 'stdin':
      return RIGHT_READ;
    case 'stdout':
    case 'stderr':
      return RIGHT_WRITE;
    case 'node':
      if (open.node.kind === 'directory') return RIGHTS_ALL;
      return RIGHTS_ALL & ~(open.readable ? 0n : RIGHT_READ) & ~(open.writable ? 0n : RIGHT_WRITE);
  }
}

function fileType(node: FileNode): number {
  switch (node.kind) {
    case 'directory':
      return FILE_TYPE.directory;
    case 'link':
      return FILE_TYPE.link;
    case 'package-file':
    case 'tmp-file':
      return FILE_TYPE.regular;
  }
}

/** Nanoseconds of a clock of WASI. */
function clock(id: number, now: Pick<WasiOptions, 'elapsedMs' | 'cpuMs'>): bigint {
  switch (id) {
    case 0:
      return BigInt(Date.now()) * 1_000_000n;
    case 1:
      return BigInt(Math.round(now.elapsedMs() * 1e6));
    case 2:
    case 3:
      return BigInt(Math.round(now.cpuMs() * 1e6));
    default:
      throw new Errno(ERRNO.invalid);
  }
}

const encoder = new TextEncoder();
function encode(text: string): Uint8Array {
  return encoder.encode(text);
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
function decode(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    throw new Errno(ERRNO.invalid);
  }
}
