import {
  bool,
  borrow,
  bytes,
  enumeration,
  Failure,
  flags,
  fn,
  type HostFunction,
  list,
  option,
  outcomeOf,
  own,
  Resource,
  result,
  string,
  Trap,
  type Type,
  tuple,
  u8,
  u32,
  u64,
  unreachable,
  variant,
} from './abi.ts';
import {
  type Directory,
  ERRNO,
  Errno,
  existing,
  type FileNode,
  type Files,
  type Link,
  length64,
  OPEN,
  type Place,
  sizeOf,
} from './files.ts';
import { Exit, type WasiOptions } from './wasi.ts';

/** WASI 0.2, world `wasi:cli/command`, over the same {@link Files} as preview 1: everything a component can reach is in this file. */

type Node = Exclude<FileNode, Link>;
/** What a run lends, as to preview 1. */
type Lent = WasiOptions;

/** The most that one read gives. */
const READ_MAX = 64 * 1024;
const PERMIT = 64n * 1024n;
const NS = 1e6;
const FOLLOW = 1;
const DESCRIPTOR = { read: 1, write: 2, mutateDirectory: 32 } as const;

/** Numbers of preview 1 -> cases of wasi:filesystem/types error-code. */
const ERROR_CODES = new Map<number, number>([
  [ERRNO.access, 0],
  [ERRNO.badFile, 3],
  [ERRNO.exists, 7],
  [ERRNO.fileTooBig, 8],
  [ERRNO.invalid, 12],
  [ERRNO.io, 13],
  [ERRNO.isDirectory, 14],
  [ERRNO.loop, 15],
  [ERRNO.nameTooLong, 18],
  [ERRNO.noEntry, 20],
  [ERRNO.noSpace, 23],
  [ERRNO.notDirectory, 24],
  [ERRNO.notEmpty, 25],
  [ERRNO.notSupported, 27],
  [ERRNO.notPermitted, 31],
  [ERRNO.notCapable, 31],
  [ERRNO.readOnly, 33],
]);
const INVALID = 12;
const UNSUPPORTED = 27;
/** wasi:sockets/network error-code access-denied. */
const NO_SOCKETS = 1;
const TYPES: Readonly<Record<FileNode['kind'], number>> = { directory: 3, link: 5, 'package-file': 6, 'tmp-file': 6 };

class IoError extends Resource {
  readonly code: number;
  constructor(code: number) {
    super();
    this.code = code;
  }
}

class Descriptor extends Resource {
  readonly #files: Files;
  readonly node: Node;
  readonly readable: boolean;
  readonly writable: boolean;

  constructor(files: Files, node: Node, how: { readonly readable: boolean; readonly writable: boolean }) {
    super();
    this.#files = files;
    this.node = node;
    this.readable = how.readable;
    this.writable = how.writable;
  }

  folder(): Directory {
    if (this.node.kind !== 'directory') throw new Errno(ERRNO.notDirectory);
    return this.node;
  }

  readableFile() {
    if (this.node.kind === 'directory') throw new Errno(ERRNO.isDirectory);
    if (!this.readable) throw new Errno(ERRNO.badFile);
    return this.node;
  }

  writableFile() {
    if (this.node.kind === 'directory') throw new Errno(ERRNO.isDirectory);
    if (this.node.kind !== 'tmp-file' || !this.writable) throw new Errno(ERRNO.badFile);
    return this.node;
  }

  override close(): void {
    this.#files.closed(this.node);
  }
}

class InputStream extends Resource {
  readonly #read: (at: number, length: number) => Uint8Array;
  readonly #end: () => void;
  #at: number;

  constructor(read: (at: number, length: number) => Uint8Array, at = 0, end: () => void = () => {}) {
    super();
    this.#read = read;
    this.#at = at;
    this.#end = end;
  }

  /** Empty at the end. */
  next(length: bigint): Uint8Array {
    const piece = this.#read(this.#at, length > READ_MAX ? READ_MAX : Number(length));
    this.#at += piece.length;
    return piece;
  }

  override close(): void {
    this.#end();
  }
}

class OutputStream extends Resource {
  readonly write: (contents: Uint8Array) => void;
  readonly #end: () => void;

  constructor(write: (contents: Uint8Array) => void, end: () => void = () => {}) {
    super();
    this.write = write;
    this.#end = end;
  }

  override close(): void {
    this.#end();
  }
}

/** Due from a moment of the run on. */
class Pollable extends Resource {
  readonly fromMs: number;
  constructor(fromMs: number) {
    super();
    this.fromMs = fromMs;
  }
}

class Entries extends Resource {
  readonly left: (readonly [string, FileNode])[];
  constructor(left: (readonly [string, FileNode])[]) {
    super();
    this.left = left;
  }
}

class Network extends Resource {
  readonly kind = 'network';
}

const streamError = variant(own, null);
const CLOSED = { index: 1, value: undefined };
const errorCode = enumeration(37);
const datetime = tuple<[bigint, number]>(u64, u32);
const stat = tuple<[number, bigint, bigint, Time, Time, Time]>(
  enumeration(8),
  u64,
  u64,
  option(datetime),
  option(datetime),
  option(datetime),
);
type Time = readonly [bigint, number] | null;
const newTime = variant(null, null, datetime);
const descriptorFlags = flags(6);
const pathFlags = flags(1);
const hash = tuple<[bigint, bigint]>(u64, u64);

type Interfaces = Readonly<Record<string, Readonly<Record<string, HostFunction>> | null>>;

/** Version 0.2 of the interfaces of `wasi:cli/command`: name without version -> its functions. `wasi:sockets` is there, and refuses. */
export function preview2(lent: Lent): ReadonlyMap<string, ReadonlyMap<string, HostFunction>> {
  const all: Interfaces = {
    ...cli(lent),
    ...io(lent),
    ...clocks(lent),
    ...random(lent),
    ...filesystem(lent),
    ...SOCKETS,
  };
  return new Map(
    Object.entries(all).map(([name, functions]) => [
      name,
      functions === null ? EVERYTHING : new Map(Object.entries(functions)),
    ]),
  );
}

const ready = () => new Pollable(0);
const none = <T>(type: Type<T>) => fn([], option(type), () => null);
const inMs = (ns: bigint) => Number(ns) / NS;

/** What moves bytes costs fuel. */
const payTo = (lent: Lent) => (moved: number) => {
  if (moved >= 8) lent.charge(Math.floor(moved / 8));
};

/** Errors of files become the error case that `toCase` makes of their code. */
function guarded<T>(work: () => T, toCase: (code: number) => unknown) {
  return outcomeOf(() => {
    try {
      return work();
    } catch (error) {
      if (error instanceof Errno) throw new Failure(toCase(ERROR_CODES.get(error.errno) ?? UNSUPPORTED));
      throw error;
    }
  });
}
const tried = <T>(work: () => T) => guarded(work, (code) => code);
const streamed = <T>(work: () => T) => guarded(work, (code) => ({ index: 0, value: new IoError(code) }));

const statOf = (node: FileNode): readonly [number, bigint, bigint, Time, Time, Time] => {
  const time: Time = [node.modifiedNs / 1_000_000_000n, Number(node.modifiedNs % 1_000_000_000n)];
  return [TYPES[node.kind], 1n, BigInt(sizeOf(node)), time, time, time];
};
const hashOf = (node: FileNode): readonly [bigint, bigint] => [node.inode, node.modifiedNs];

function cli(lent: Lent): Interfaces {
  const { stdin } = lent;
  const printing = (to: 'stdout' | 'stderr') =>
    fn([], own, () => new OutputStream((contents) => lent.write(to, contents)));
  return {
    'wasi:cli/environment': {
      'get-arguments': fn([], list(string), () => lent.args),
      'get-environment': fn([], list(tuple<[string, string]>(string, string)), () =>
        lent.environment.map((pair): [string, string] => {
          const split = pair.indexOf('=');
          return [pair.slice(0, split), pair.slice(split + 1)];
        }),
      ),
      'initial-cwd': none(string),
    },
    'wasi:cli/exit': {
      exit: fn([result(null, null)], null, (status) => {
        throw new Exit('ok' in status ? 0 : 1);
      }),
      'exit-with-code': fn([u8], null, (status) => {
        throw new Exit(status);
      }),
    },
    'wasi:cli/run': {},
    'wasi:cli/stdin': {
      'get-stdin': fn([], own, () => new InputStream((at, length) => stdin.subarray(at, at + length))),
    },
    'wasi:cli/stdout': { 'get-stdout': printing('stdout') },
    'wasi:cli/stderr': { 'get-stderr': printing('stderr') },
    'wasi:cli/terminal-input': {},
    'wasi:cli/terminal-output': {},
    'wasi:cli/terminal-stdin': { 'get-terminal-stdin': none(own) },
    'wasi:cli/terminal-stdout': { 'get-terminal-stdout': none(own) },
    'wasi:cli/terminal-stderr': { 'get-terminal-stderr': none(own) },
  };
}

function io(lent: Lent): Interfaces {
  const pay = payTo(lent);
  const read = (stream: InputStream, length: bigint): Uint8Array => {
    const piece = stream.next(length);
    if (piece.length === 0 && length > 0n) throw new Failure(CLOSED);
    pay(piece.length);
    return piece;
  };
  const write = (stream: OutputStream, contents: Uint8Array): undefined => {
    pay(contents.length);
    stream.write(contents);
  };
  const zeroes = (stream: OutputStream, length: bigint) => {
    if (length > PERMIT) throw new Trap('it wrote more than it was permitted');
    write(stream, new Uint8Array(Number(length)));
  };
  const splice = (to: OutputStream, from: InputStream, length: bigint): bigint => {
    const piece = read(from, length);
    write(to, piece);
    return BigInt(piece.length);
  };
  const writing = fn([borrow(OutputStream), bytes], result(null, streamError), (stream, contents) =>
    streamed(() => write(stream, contents)),
  );
  const reading = fn([borrow(InputStream), u64], result(bytes, streamError), (stream, length) =>
    streamed(() => read(stream, length)),
  );
  const skipping = fn([borrow(InputStream), u64], result(u64, streamError), (stream, length) =>
    streamed(() => BigInt(read(stream, length).length)),
  );
  const flushing = fn([borrow(OutputStream)], result(null, streamError), () => ({ ok: undefined }) as never);
  const zeroing = fn(
    [borrow(OutputStream), u64],
    result(null, streamError),
    (stream, length) => streamed(() => zeroes(stream, length)) as never,
  );
  const splicing = fn([borrow(OutputStream), borrow(InputStream), u64], result(u64, streamError), (to, from, length) =>
    streamed(() => splice(to, from, length)),
  );
  const due = (pollable: Pollable) => pollable.fromMs <= lent.elapsedMs();
  const wait = (pollables: readonly Pollable[]) => {
    if (pollables.length === 0) throw new Trap('it waits for nothing');
    const first = Math.min(...pollables.map((pollable) => pollable.fromMs));
    for (let leftMs = first - lent.elapsedMs(); leftMs > 0; leftMs = first - lent.elapsedMs()) lent.sleep(leftMs);
  };
  return {
    'wasi:io/error': {
      '[method]error.to-debug-string': fn([borrow(IoError)], string, ({ code }) => `error-code ${code}`),
    },
    'wasi:io/poll': {
      '[method]pollable.ready': fn([borrow(Pollable)], bool, (pollable) => due(pollable)),
      '[method]pollable.block': fn([borrow(Pollable)], null, (pollable) => wait([pollable])),
      poll: fn([list(borrow(Pollable))], list(u32), (pollables) => {
        wait(pollables);
        return pollables.flatMap((pollable, index) => (due(pollable) ? [index] : []));
      }),
    },
    'wasi:io/streams': {
      '[method]input-stream.read': reading,
      '[method]input-stream.blocking-read': reading,
      '[method]input-stream.skip': skipping,
      '[method]input-stream.blocking-skip': skipping,
      '[method]input-stream.subscribe': fn([borrow(InputStream)], own, ready),
      '[method]output-stream.check-write': fn([borrow(OutputStream)], result(u64, streamError), () => ({ ok: PERMIT })),
      '[method]output-stream.write': writing,
      '[method]output-stream.blocking-write-and-flush': writing,
      '[method]output-stream.flush': flushing,
      '[method]output-stream.blocking-flush': flushing,
      '[method]output-stream.subscribe': fn([borrow(OutputStream)], own, ready),
      '[method]output-stream.write-zeroes': zeroing,
      '[method]output-stream.blocking-write-zeroes-and-flush': zeroing,
      '[method]output-stream.splice': splicing,
      '[method]output-stream.blocking-splice': splicing,
    },
  };
}

function clocks(lent: Lent): Interfaces {
  const nowNs = () => BigInt(Math.round(lent.elapsedMs() * NS));
  return {
    'wasi:clocks/monotonic-clock': {
      now: fn([], u64, nowNs),
      resolution: fn([], u64, () => 1_000n),
      'subscribe-instant': fn([u64], own, (when) => new Pollable(inMs(when))),
      'subscribe-duration': fn([u64], own, (ns) => new Pollable(lent.elapsedMs() + inMs(ns))),
    },
    'wasi:clocks/wall-clock': {
      now: fn([], datetime, () => {
        const ms = Date.now();
        return [BigInt(Math.floor(ms / 1000)), (ms % 1000) * NS] as const;
      }),
      resolution: fn([], datetime, () => [0n, NS] as const),
    },
  };
}

function random(lent: Lent): Interfaces {
  const pay = payTo(lent);
  const draw = (length: number): Uint8Array => {
    const random = new Uint8Array(length);
    pay(length * 4);
    for (let at = 0; at < length; at += 65_536) crypto.getRandomValues(random.subarray(at, at + 65_536));
    return random;
  };
  const randomWord = () => new DataView(draw(8).buffer).getBigUint64(0, true);
  const functions = {
    bytes: fn([u64], bytes, (length, caller) => {
      if (length > BigInt(caller.memoryBytes)) throw new Trap('it asked for more random bytes than it has memory');
      return draw(Number(length));
    }),
    word: fn([], u64, randomWord),
  };
  return {
    'wasi:random/random': { 'get-random-bytes': functions.bytes, 'get-random-u64': functions.word },
    'wasi:random/insecure': {
      'get-insecure-random-bytes': functions.bytes,
      'get-insecure-random-u64': functions.word,
    },
    'wasi:random/insecure-seed': { 'insecure-seed': fn([], hash, () => [randomWord(), randomWord()] as const) },
  };
}

function filesystem(lent: Lent): Interfaces {
  const { files } = lent;
  const pay = payTo(lent);
  const place = (descriptor: Descriptor, follow: number, path: string): Place => {
    pay(path.length * 8);
    return files.resolve(descriptor.folder(), path, (follow & FOLLOW) !== 0);
  };
  const at = <T>(result_: Type<T>, work: (place: Place) => T) =>
    fn([borrow(Descriptor), string], result(result_, errorCode), (descriptor, path) =>
      tried(() => work(place(descriptor, 0, path))),
    );
  const nothingAt = (work: (place: Place) => void) =>
    fn([borrow(Descriptor), string], result<undefined>(null, errorCode), (descriptor, path) =>
      tried(() => void work(place(descriptor, 0, path))),
    );
  const on = <T>(result_: Type<T> | null, work: (descriptor: Descriptor) => T) =>
    fn([borrow(Descriptor)], result<T>(result_, errorCode), (descriptor) => tried(() => work(descriptor)));
  const resize = (descriptor: Descriptor, size: bigint) => {
    const file = descriptor.writableFile();
    const moved = Math.abs(length64(size) - file.size);
    files.resize(file, length64(size));
    pay(moved);
  };
  /** Writes as files do, the gap before `at` included. */
  const put = (descriptor: Descriptor, at: number, contents: Uint8Array): void => {
    const file = descriptor.writableFile();
    const gap = Math.max(0, at - file.size);
    files.write(file, at, contents);
    pay(gap);
  };
  const outputTo = (descriptor: Descriptor, from: number | 'end'): OutputStream => {
    const file = descriptor.writableFile();
    files.opened(file);
    let next = from === 'end' ? 0 : from;
    return new OutputStream(
      (contents) => {
        if (from === 'end') next = file.size;
        put(descriptor, next, contents);
        next += contents.length;
      },
      () => files.closed(file),
    );
  };
  return {
    'wasi:filesystem/preopens': {
      'get-directories': fn([], list(tuple<[Resource, string]>(own, string)), () => [
        [new Descriptor(files, files.root, { readable: true, writable: false }), '/'] as const,
      ]),
    },
    'wasi:filesystem/types': {
      '[method]descriptor.read-via-stream': fn(
        [borrow(Descriptor), u64],
        result(own, errorCode),
        (descriptor, offset) =>
          tried(() => {
            const file = descriptor.readableFile();
            files.opened(file);
            return new InputStream(
              (from, length) => files.read(file, from, length),
              length64(offset),
              () => files.closed(file),
            );
          }),
      ),
      '[method]descriptor.write-via-stream': fn(
        [borrow(Descriptor), u64],
        result(own, errorCode),
        (descriptor, offset) => tried(() => outputTo(descriptor, length64(offset))),
      ),
      '[method]descriptor.append-via-stream': on(own, (descriptor) => outputTo(descriptor, 'end')),
      '[method]descriptor.advise': fn(
        [borrow(Descriptor), u64, u64, enumeration(6)],
        result<undefined>(null, errorCode),
        () => ({ ok: undefined }),
      ),
      '[method]descriptor.sync': on(null, () => undefined),
      '[method]descriptor.sync-data': on(null, () => undefined),
      '[method]descriptor.get-flags': on(descriptorFlags, ({ node, readable, writable }) => {
        const mutates = node.kind === 'directory' && writable;
        return (
          (readable ? DESCRIPTOR.read : 0) |
          (writable ? DESCRIPTOR.write : 0) |
          (mutates ? DESCRIPTOR.mutateDirectory : 0)
        );
      }),
      '[method]descriptor.get-type': on(enumeration(8), ({ node }) => TYPES[node.kind]),
      '[method]descriptor.set-size': fn(
        [borrow(Descriptor), u64],
        result<undefined>(null, errorCode),
        (descriptor, size) => tried(() => void resize(descriptor, size)),
      ),
      '[method]descriptor.set-times': fn(
        [borrow(Descriptor), newTime, newTime],
        result<undefined>(null, errorCode),
        (descriptor) => tried(() => void descriptor.writableFile()),
      ),
      '[method]descriptor.read': fn(
        [borrow(Descriptor), u64, u64],
        result(tuple<[Uint8Array, boolean]>(bytes, bool), errorCode),
        (descriptor, length, offset) =>
          tried(() => {
            const most = length > READ_MAX ? READ_MAX : Number(length);
            const file = descriptor.readableFile();
            const piece = files.read(file, length64(offset), most);
            pay(piece.length);
            return [piece, length64(offset) + piece.length >= sizeOf(file)] as const;
          }),
      ),
      '[method]descriptor.write': fn(
        [borrow(Descriptor), bytes, u64],
        result(u64, errorCode),
        (descriptor, contents, offset) =>
          tried(() => {
            pay(contents.length);
            put(descriptor, length64(offset), contents);
            return BigInt(contents.length);
          }),
      ),
      '[method]descriptor.read-directory': on(own, (descriptor) => {
        const { entries } = descriptor.folder();
        pay(entries.size * 8);
        return new Entries([...entries].reverse());
      }),
      '[method]descriptor.create-directory-at': nothingAt((found) => files.createDirectory(found)),
      '[method]descriptor.stat': on(stat, ({ node }) => statOf(node)),
      '[method]descriptor.stat-at': fn(
        [borrow(Descriptor), pathFlags, string],
        result(stat, errorCode),
        (descriptor, follow, path) => tried(() => statOf(existing(place(descriptor, follow, path)))),
      ),
      '[method]descriptor.set-times-at': fn(
        [borrow(Descriptor), pathFlags, string, newTime, newTime],
        result<undefined>(null, errorCode),
        (descriptor, follow, path) =>
          tried(() => {
            if (existing(place(descriptor, follow, path)).kind !== 'tmp-file') throw new Errno(ERRNO.readOnly);
            return undefined;
          }),
      ),
      '[method]descriptor.link-at': fn(
        [borrow(Descriptor), pathFlags, string, borrow(Descriptor), string],
        result<undefined>(null, errorCode),
        () => ({ error: UNSUPPORTED }),
      ),
      '[method]descriptor.open-at': fn(
        [borrow(Descriptor), pathFlags, string, flags(4), descriptorFlags],
        result(own, errorCode),
        (descriptor, follow, path, how, wanted) =>
          tried(() => {
            const writable = (wanted & DESCRIPTOR.write) !== 0 || (how & OPEN.truncate) !== 0;
            const found = place(descriptor, follow, path);
            const node = files.open(found, how, writable, pay);
            return new Descriptor(files, node, { readable: (wanted & DESCRIPTOR.read) !== 0, writable });
          }),
      ),
      '[method]descriptor.readlink-at': at(string, (found) => {
        const node = existing(found);
        if (node.kind !== 'link') throw new Failure(INVALID);
        return node.target;
      }),
      '[method]descriptor.remove-directory-at': nothingAt((found) => files.removeDirectory(found)),
      '[method]descriptor.rename-at': fn(
        [borrow(Descriptor), string, borrow(Descriptor), string],
        result<undefined>(null, errorCode),
        (from, oldPath, to, newPath) => tried(() => void files.rename(place(from, 0, oldPath), place(to, 0, newPath))),
      ),
      '[method]descriptor.symlink-at': fn(
        [borrow(Descriptor), string, string],
        result<undefined>(null, errorCode),
        () => ({ error: UNSUPPORTED }),
      ),
      '[method]descriptor.unlink-file-at': nothingAt((found) => files.removeFile(found)),
      '[method]descriptor.is-same-object': fn(
        [borrow(Descriptor), borrow(Descriptor)],
        bool,
        (one, other) => one.node === other.node,
      ),
      '[method]descriptor.metadata-hash': on(hash, ({ node }) => hashOf(node)),
      '[method]descriptor.metadata-hash-at': fn(
        [borrow(Descriptor), pathFlags, string],
        result(hash, errorCode),
        (descriptor, follow, path) => tried(() => hashOf(existing(place(descriptor, follow, path)))),
      ),
      '[method]directory-entry-stream.read-directory-entry': fn(
        [borrow(Entries)],
        result(option(tuple<[number, string]>(enumeration(8), string)), errorCode),
        ({ left }) =>
          tried(() => {
            const next = left.pop();
            if (next === undefined) return null;
            pay(next[0].length);
            return [TYPES[next[1].kind], next[0]] as const;
          }),
      ),
      'filesystem-error-code': fn([borrow(IoError)], option(errorCode), ({ code }) => code),
    },
  };
}

const noSocket = fn([enumeration(2)], result(own, enumeration(21)), () => ({ error: NO_SOCKETS }));

/** null: an interface of resources of which there are none, so that no function of it can be called. */
const SOCKETS: Interfaces = {
  'wasi:sockets/network': null,
  'wasi:sockets/tcp': null,
  'wasi:sockets/udp': null,
  'wasi:sockets/instance-network': { 'instance-network': fn([], own, () => new Network()) },
  'wasi:sockets/tcp-create-socket': { 'create-tcp-socket': noSocket },
  'wasi:sockets/udp-create-socket': { 'create-udp-socket': noSocket },
  'wasi:sockets/ip-name-lookup': {
    'resolve-addresses': fn([borrow(Network), string], result(own, enumeration(21)), () => ({
      error: NO_SOCKETS,
    })),
    '[method]resolve-address-stream.resolve-next-address': unreachable,
    '[method]resolve-address-stream.subscribe': unreachable,
  },
};

class Unreachable extends Map<string, HostFunction> {
  override get(): HostFunction {
    return unreachable;
  }
}
const EVERYTHING = new Unreachable();
