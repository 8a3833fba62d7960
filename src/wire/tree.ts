/**
 * The canonical tree: files, folders and links of a package as one uncompressed tar (docs/protocol/tree.md).
 * Equal folders give equal bytes, and bytes that are not exactly what this encoder writes are refused, so a tree has one digest.
 * Pure: no file system. The same rules guard both directions.
 */
import { equal, fromUtf8, utf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';

/** One file, folder or link of a package tree. */
export interface TreeEntry {
  /** Relative, `/` between parts, no part empty, `.` or `..`. */
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'symlink';
  /** Bytes of a file; 0 for the others. */
  readonly size: number;
  /** Files only: mode 0755 instead of 0644. */
  readonly executable: boolean;
  /** Of a symlink: relative, and inside the tree. */
  readonly target?: string;
}

/** An entry and where its bytes start in the tar. */
export interface TreeFile extends TreeEntry {
  readonly offset: number;
}

/** An entry to encode; `content` belongs to files and has exactly `size` bytes. */
export interface TreeSource {
  readonly entry: TreeEntry;
  readonly content?: AsyncIterable<Uint8Array> | Uint8Array;
}

export const TREE_LIMITS = {
  entriesMax: 1_000_000,
  pathBytesMax: 1_024,
  nameBytesMax: 255,
  targetBytesMax: 1_024,
  /** Largest file: what JavaScript counts exactly. Stores set far lower limits of their own. */
  fileBytesMax: Number.MAX_SAFE_INTEGER,
} as const;

const BLOCK = 512;
const PIECE = 2 ** 20;
/** What the octal size field of ustar can say. */
const USTAR_SIZE_MAX = 8 ** 11 - 1;
const PAX_BYTES_MAX = 4_096;
const PAX_NAME = '././@PaxHeader';
const FLAG = { file: '0', symlink: '2', directory: '5', pax: 'x' } as const;
/** Control characters, DEL and C1, and the backslash that some systems take for a separator. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const FORBIDDEN = /[\u0000-\u001f\u007f-\u009f\\]/;
// biome-ignore lint/suspicious/noControlCharactersInRegex: the range of ASCII
const ASCII = /^[\u0000-\u007f]*$/;

/** Orders paths by their UTF-8 bytes, which is the order of entries in a tree. */
export function comparePaths(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x === y) continue;
    // UTF-16 puts surrogates (code points from U+10000) below U+E000..U+FFFF; UTF-8 puts them above.
    const xHigh = x >= 0xd800 && x <= 0xdfff;
    const yHigh = y >= 0xd800 && y <= 0xdfff;
    return xHigh === yHigh ? x - y : xHigh ? 1 : -1;
  }
  return a.length - b.length;
}

/** Equal for names that some file system takes for the same: canonical composition and full case folding. */
function foldPath(path: string): string {
  if (ASCII.test(path)) return path.toLowerCase();
  return path.normalize('NFC').toUpperCase().toLowerCase().normalize('NFC');
}

/** A folder that may still get entries, and those that it has, as they are folded. `null` stands for "as folded", so that the common case holds one string. */
interface OpenFolder {
  readonly path: string;
  readonly folded: Map<string, string | null>;
}

/**
 * The rules for a sequence of entries, shared by packing, encoding and decoding. Of what came it remembers the folders that may still get
 * entries, with the names in them, and nothing of those that are complete.
 * Errors: `tree-invalid`, `limit-exceeded`.
 */
export class TreeRules {
  readonly #entriesMax: number;
  /** Each path begins with the one before it, because whatever comes after a path that does not begin with that of a folder is not in that folder. */
  readonly #open: OpenFolder[] = [{ path: '', folded: new Map() }];
  #last = '';
  #count = 0;

  constructor(entriesMax: number = TREE_LIMITS.entriesMax) {
    this.#entriesMax = entriesMax;
  }

  get count(): number {
    return this.#count;
  }

  /** Accepts the next entry or throws. */
  admit(entry: TreeEntry): void {
    checkEntry(entry);
    this.#count += 1;
    if (this.#count > this.#entriesMax) throw tooManyEntries(this.#entriesMax);
    const { path } = entry;
    const order = this.#count === 1 ? 1 : comparePaths(path, this.#last);
    if (order === 0) throw invalid(path, 'appears twice');
    if (order < 0)
      throw invalid(path, `comes after ${show(this.#last)}; entries must be in the order of their UTF-8 bytes`);
    while (!path.startsWith(this.#open.at(-1)!.path)) this.#open.pop();
    const slash = path.lastIndexOf('/');
    const folder = this.#open.findLast((one) => one.path.length === Math.max(0, slash));
    if (folder === undefined) {
      throw invalid(path, `needs the folder ${show(path.slice(0, slash))} as an entry before it`, {
        hint: 'A path never leads through a link or a file; every folder has its own entry.',
      });
    }
    // Names in different folders clash where those do.
    const folded = foldPath(path);
    const clash = folder.folded.get(folded);
    if (clash !== undefined) {
      throw invalid(
        path,
        `clashes with ${show(clash ?? folded)}: the names differ only by upper and lower case or by Unicode form`,
        { hint: 'Rename one of the two; on some systems they are the same file.' },
      );
    }
    folder.folded.set(folded, folded === path ? null : path);
    if (entry.kind === 'directory') this.#open.push({ path, folded: new Map() });
    this.#last = path;
  }
}

export function tooManyEntries(entriesMax: number): HyperMeshError {
  return new HyperMeshError('limit-exceeded', `Expected a tree of at most ${entriesMax} entries, but it has more.`, {
    hint: 'Leave files out with `exclude` in catalog.yaml, or pack many small files into one archive.',
  });
}

/** What can be said of one entry alone. Errors: `tree-invalid`. */
export function checkEntry(entry: TreeEntry): void {
  const { path, kind, size, executable, target } = entry;
  checkPath(path);
  if (kind === 'file') {
    if (!Number.isSafeInteger(size) || size < 0) throw invalid(path, `has the impossible size ${size}`);
  } else if (size !== 0 || executable) {
    throw invalid(path, `is a ${kind} and cannot have a size or be executable`);
  }
  if (kind !== 'symlink') {
    if (target !== undefined) throw invalid(path, `is a ${kind} and cannot have a link target`);
    return;
  }
  checkTarget(path, target ?? '');
}

function checkPath(path: string): void {
  if (path === '') throw invalid(path, 'is empty');
  if (!path.isWellFormed()) throw invalid(path, 'is not valid Unicode');
  if (path.startsWith('/')) throw invalid(path, 'is absolute; paths are relative to the package');
  if (FORBIDDEN.test(path)) throw invalid(path, 'contains a backslash or a control character', { hint: 'Rename it.' });
  if (utf8Length(path) > TREE_LIMITS.pathBytesMax)
    throw invalid(path, `is longer than ${TREE_LIMITS.pathBytesMax} bytes`);
  for (const part of path.split('/')) {
    if (part === '' || part === '.' || part === '..')
      throw invalid(path, `has the part ${show(part)}; parts must be names`);
    if (utf8Length(part) > TREE_LIMITS.nameBytesMax)
      throw invalid(path, `has a name longer than ${TREE_LIMITS.nameBytesMax} bytes`);
  }
}

/**
 * A target may climb only at its start, and not above the root: folders on the way are real (no links), so climbing there is exact.
 * A `..` after a name could pass through another link and come out elsewhere.
 */
function checkTarget(path: string, target: string): void {
  const hint = 'Links must be relative and stay inside the package: replace the link by the file itself.';
  if (target === '') throw invalid(path, 'is a link without a target');
  if (!target.isWellFormed() || FORBIDDEN.test(target))
    throw invalid(path, 'links to a target with a backslash, a control character or invalid Unicode');
  if (utf8Length(target) > TREE_LIMITS.targetBytesMax)
    throw invalid(path, `links to a target longer than ${TREE_LIMITS.targetBytesMax} bytes`);
  if (target.startsWith('/')) throw invalid(path, `links to the absolute path ${show(target)}`, { hint });
  let depth = path.split('/').length - 1;
  let named = false;
  for (const part of target.split('/')) {
    if (part === '') throw invalid(path, `links to ${show(target)}, which has an empty part`, { hint });
    if (part === '.') continue;
    if (part !== '..') {
      named = true;
      continue;
    }
    depth -= 1;
    if (named) throw invalid(path, `links to ${show(target)}, which climbs with ".." after a name`, { hint });
    if (depth < 0) throw invalid(path, `links to ${show(target)}, which is outside of the package`, { hint });
  }
}

/** The header blocks of an entry: one ustar block, after a pax header where ustar has no room. The content follows, padded to 512 bytes. */
export function encodeHeader(entry: TreeEntry): Uint8Array {
  const name = utf8(entry.kind === 'directory' ? `${entry.path}/` : entry.path);
  const target = entry.target === undefined ? NOTHING : utf8(entry.target);
  const records = [
    name.length > 100 ? paxRecord('path', name) : null,
    target.length > 100 ? paxRecord('linkpath', target) : null,
    entry.size > USTAR_SIZE_MAX ? paxRecord('size', utf8(String(entry.size))) : null,
  ].filter((record) => record !== null);
  const mode = entry.kind === 'symlink' ? 0o777 : entry.kind === 'directory' || entry.executable ? 0o755 : 0o644;
  const size = entry.size > USTAR_SIZE_MAX ? 0 : entry.size;
  if (records.length === 0) {
    const out = new Uint8Array(BLOCK);
    writeHeader(out, { name, target, mode, size, flag: FLAG[entry.kind] });
    return out;
  }
  const body = records.reduce((sum, record) => sum + record.length, 0);
  const out = new Uint8Array(BLOCK + padded(body) + BLOCK);
  writeHeader(out.subarray(0, BLOCK), {
    name: utf8(PAX_NAME),
    target: NOTHING,
    mode: 0o644,
    size: body,
    flag: FLAG.pax,
  });
  let at = BLOCK;
  for (const record of records) {
    out.set(record, at);
    at += record.length;
  }
  writeHeader(out.subarray(out.length - BLOCK), { name, target, mode, size, flag: FLAG[entry.kind] });
  return out;
}

/** The fields that are the same in every header: owner, date, magic, device numbers, and spaces for the checksum. */
const HEADER = new Uint8Array(BLOCK);
for (const at of [108, 116, 329, 337]) writeOctal(HEADER, at, 7, 0);
writeOctal(HEADER, 136, 11, 0);
HEADER.fill(0x20, 148, 156);
HEADER.set(utf8('ustar\u000000'), 257);

function writeHeader(
  block: Uint8Array,
  header: { name: Uint8Array; target: Uint8Array; mode: number; size: number; flag: string },
): void {
  block.set(HEADER);
  block.set(header.name.subarray(0, 100), 0);
  writeOctal(block, 100, 7, header.mode);
  writeOctal(block, 124, 11, header.size);
  block[156] = header.flag.charCodeAt(0);
  block.set(header.target.subarray(0, 100), 157);
  let sum = 0;
  for (let i = 0; i < BLOCK; i++) sum += block[i]!;
  writeOctal(block, 148, 6, sum);
  block[154] = 0;
}

/** As many digits as there is room for; the NUL after them is there already. */
function writeOctal(block: Uint8Array, at: number, digits: number, value: number): void {
  let rest = value;
  for (let i = at + digits - 1; i >= at; i--) {
    block[i] = 0x30 + (rest % 8);
    rest = Math.floor(rest / 8);
  }
}

/** `<length> <key>=<value>\n`, where the length counts its own digits. */
function paxRecord(key: string, value: Uint8Array): Uint8Array {
  const rest = key.length + value.length + 3;
  let length = rest + String(rest).length;
  length = rest + String(length).length;
  const out = new Uint8Array(length);
  out.set(utf8(`${length} ${key}=`));
  out.set(value, length - value.length - 1);
  out[length - 1] = 0x0a;
  return out;
}

/** Bytes that `encodeTree` will give for these entries. */
export function encodedSize(entries: Iterable<TreeEntry>): number {
  let size = 2 * BLOCK;
  for (const entry of entries) {
    const plain = entry.path.length <= 33 && (entry.target?.length ?? 0) <= 33 && entry.size <= USTAR_SIZE_MAX;
    size += (plain ? BLOCK : encodeHeader(entry).length) + padded(entry.size);
  }
  return size;
}

export interface EncodeOptions {
  readonly entriesMax?: number;
  /** Pieces share memory: one is only valid until the second after it is asked for. For large trees in little memory. */
  readonly reuse?: boolean;
}

/**
 * Encodes entries, which must come in canonical order, into pieces of at most 1 MiB.
 * Errors: `tree-invalid` (also when a content is longer or shorter than announced), `limit-exceeded`.
 */
export async function* encodeTree(
  sources: AsyncIterable<TreeSource> | Iterable<TreeSource>,
  options: EncodeOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const rules = new TreeRules(options.entriesMax);
  const ring: Uint8Array<ArrayBuffer>[] = [];
  let piece = new Uint8Array(PIECE);
  let filled = 0;
  const add = function* (bytes: Uint8Array): Generator<Uint8Array> {
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(bytes.length - at, PIECE - filled);
      piece.set(bytes.subarray(at, at + take), filled);
      at += take;
      filled += take;
      if (filled < PIECE) continue;
      yield piece;
      if (options.reuse) ring.push(piece);
      piece = (ring.length > 2 ? ring.shift() : undefined) ?? new Uint8Array(PIECE);
      filled = 0;
    }
  };
  for await (const { entry, content } of sources) {
    rules.admit(entry);
    yield* add(encodeHeader(entry));
    let left = entry.size;
    if (content instanceof Uint8Array) {
      left -= content.length;
      if (left === 0) yield* add(content);
    } else if (content !== undefined) {
      for await (const part of content) {
        left -= part.length;
        if (left < 0) break;
        yield* add(part);
      }
    }
    if (left !== 0) {
      throw invalid(entry.path, `has ${left < 0 ? 'more' : 'fewer'} bytes than the ${entry.size} announced`, {
        hint: 'The file changed while it was read; try again when nothing writes to it.',
      });
    }
    yield* add(ZEROS.subarray(0, padded(entry.size) - entry.size));
  }
  yield* add(ZEROS);
  if (filled > 0) yield piece.subarray(0, filled);
}

const ZEROS = new Uint8Array(2 * BLOCK);
const NOTHING = new Uint8Array();

/** Called while a tree is scanned, in its order. What is thrown here stops the scan. */
export interface TreeVisitor {
  /** `offset`: where the content of the entry starts in the tar. */
  entry?(entry: TreeEntry, offset: number): void;
  /** The bytes of the last entry, in as many parts as they came; only valid during the call. */
  content?(bytes: Uint8Array): void;
}

/**
 * Reads a tree as its bytes arrive, and refuses all that is not canonical: every header is encoded again and compared.
 * Synchronous, and holds no content: a megabyte with a few files takes microseconds. Call `end` after the last bytes.
 * Errors: `tree-invalid`, `limit-exceeded`.
 */
export class TreeScanner {
  readonly #visitor: TreeVisitor;
  readonly #rules: Pick<TreeRules, 'admit'>;
  readonly #block = new Uint8Array(BLOCK);
  #filled = 0;
  #position = 0;
  #contentLeft = 0;
  #paddingLeft = 0;
  #zeroBlocks = 0;
  /** A pax header: its block, its body so far, and how many bytes of the body (with padding) are to come. */
  #pax: { readonly bytes: Uint8Array; filled: number } | null = null;

  /** `rules`: what is asked of the sequence of entries; those of a tree when absent. */
  constructor(
    visitor: TreeVisitor = {},
    options: { readonly entriesMax?: number; readonly rules?: Pick<TreeRules, 'admit'> } = {},
  ) {
    this.#visitor = visitor;
    this.#rules = options.rules ?? new TreeRules(options.entriesMax);
  }

  /** How many of the next bytes are content that `skip` may pass over. */
  get skippable(): number {
    return this.#contentLeft + this.#paddingLeft;
  }

  /** Passes over content unseen; only for a tree that was scanned in full before. */
  skip(): number {
    const skipped = this.skippable;
    this.#position += skipped;
    this.#contentLeft = 0;
    this.#paddingLeft = 0;
    return skipped;
  }

  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const rest = bytes.length - at;
      let take: number;
      if (this.#contentLeft > 0) {
        take = Math.min(rest, this.#contentLeft);
        this.#contentLeft -= take;
        this.#visitor.content?.(bytes.subarray(at, at + take));
      } else if (this.#paddingLeft > 0) {
        take = Math.min(rest, this.#paddingLeft);
        this.#paddingLeft -= take;
        if (!isZero(bytes.subarray(at, at + take))) throw broken(this.#position, 'bytes other than zero as padding');
      } else {
        take = Math.min(rest, BLOCK - this.#filled);
        this.#block.set(bytes.subarray(at, at + take), this.#filled);
        this.#filled += take;
      }
      at += take;
      this.#position += take;
      if (this.#filled === BLOCK) {
        this.#filled = 0;
        this.#take(this.#block);
      }
    }
  }

  /** Says that no more bytes come. */
  end(): void {
    if (this.#zeroBlocks < 2 || this.#filled > 0)
      throw new HyperMeshError('tree-invalid', `The tree ends early, after ${this.#position} bytes.`, {
        hint: 'The transfer or the file was cut off; fetch or pack it again.',
      });
  }

  #take(block: Uint8Array): void {
    const start = this.#position - BLOCK;
    if (this.#zeroBlocks === 2) throw broken(start, 'bytes after its end');
    if (this.#pax !== null && this.#pax.filled < this.#pax.bytes.length - BLOCK) {
      this.#pax.bytes.set(block, this.#pax.filled);
      this.#pax.filled += BLOCK;
      return;
    }
    if (isZero(block)) {
      if (this.#pax !== null) throw broken(start, 'an extended header without an entry');
      this.#zeroBlocks += 1;
      return;
    }
    if (this.#zeroBlocks > 0) throw broken(start, 'an entry after the end marker');
    if (block[156] === FLAG.pax.charCodeAt(0)) {
      const size = readOctal(block, 124, 11);
      if (this.#pax !== null || size === null || size === 0 || size > PAX_BYTES_MAX)
        throw broken(start, 'an extended header of a kind that is not allowed');
      this.#pax = { bytes: new Uint8Array(BLOCK + padded(size) + BLOCK), filled: BLOCK };
      this.#pax.bytes.set(block);
      return;
    }
    const came = this.#pax?.bytes ?? block;
    if (this.#pax !== null) came.set(block, came.length - BLOCK);
    const entry = parseEntry(came, start);
    this.#pax = null;
    this.#rules.admit(entry);
    if (!equal(encodeHeader(entry), came)) {
      throw invalid(
        entry.path,
        'has a header that is not in canonical form (owner, date, mode, or a field ustar does not need)',
        { hint: 'Build the tree with `hypermesh pack`, not with another tar.' },
      );
    }
    this.#contentLeft = entry.size;
    this.#paddingLeft = padded(entry.size) - entry.size;
    this.#visitor.entry?.(entry, this.#position);
  }
}

/** A part of a decoded tree: an entry, then its bytes (if it is a file) in order. */
export type TreePart =
  | { readonly kind: 'entry'; readonly entry: TreeEntry; readonly offset: number }
  | { readonly kind: 'content'; readonly bytes: Uint8Array };

/** The scanner as a stream. Errors: `tree-invalid`, `limit-exceeded`. */
export async function* decodeTree(
  pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: { readonly entriesMax?: number } = {},
): AsyncGenerator<TreePart, void, undefined> {
  let parts: TreePart[] = [];
  const scanner = new TreeScanner(
    {
      entry: (entry, offset) => parts.push({ kind: 'entry', entry, offset }),
      content: (bytes) => parts.push({ kind: 'content', bytes }),
    },
    options,
  );
  for await (const piece of pieces) {
    scanner.push(piece);
    yield* parts;
    parts = [];
  }
  scanner.end();
}

/** Reads the fields that may vary; everything else is compared with the canonical header afterwards. */
function parseEntry(came: Uint8Array, at: number): TreeEntry {
  const block = came.subarray(came.length - BLOCK);
  const pax = came.length > BLOCK ? parsePax(came, at) : {};
  const flag = String.fromCharCode(block[156]!);
  const size = pax.size ?? readOctal(block, 124, 11);
  if (size === null) throw broken(at, 'a size that is not octal');
  let path = pax.path ?? readText(block, 0, 100, at);
  const target = pax.linkpath ?? readText(block, 157, 100, at);
  const mode = readOctal(block, 100, 7);
  switch (flag) {
    case FLAG.file:
      return { path, kind: 'file', size, executable: mode === 0o755 };
    case FLAG.directory:
      if (!path.endsWith('/')) throw invalid(path, 'is a folder, but its name does not end in "/"');
      path = path.slice(0, -1);
      return { path, kind: 'directory', size, executable: false };
    case FLAG.symlink:
      return { path, kind: 'symlink', size, executable: false, target };
    default:
      throw invalid(path, `is of tar type ${show(flag)}; only files, folders and symbolic links are allowed`, {
        hint: 'Devices, sockets, pipes and hard links cannot be part of a package.',
      });
  }
}

function parsePax(came: Uint8Array, at: number): { path?: string; linkpath?: string; size?: number } {
  const size = readOctal(came, 124, 11)!;
  const body = came.subarray(BLOCK, BLOCK + size);
  const found: { path?: string; linkpath?: string; size?: number } = {};
  for (let from = 0; from < body.length; ) {
    const space = body.indexOf(0x20, from);
    const length = space < 0 || space - from > 5 ? Number.NaN : Number(text(body.subarray(from, space), at));
    if (!Number.isInteger(length) || length < 5 || from + length > body.length)
      throw broken(at, 'a damaged extended header');
    const record = text(body.subarray(space + 1, from + length - 1), at);
    from += length;
    const [key, value] = [record.slice(0, record.indexOf('=')), record.slice(record.indexOf('=') + 1)];
    if (key === 'path' || key === 'linkpath') found[key] = value;
    else if (key === 'size' && /^\d{1,16}$/.test(value)) found.size = Number(value);
    else throw broken(at, `the extended header ${show(key)}, which is not allowed`);
  }
  return found;
}

function readOctal(block: Uint8Array, at: number, digits: number): number | null {
  let value = 0;
  for (let i = at; i < at + digits; i++) {
    const digit = block[i]! - 0x30;
    if (digit < 0 || digit > 7) return null;
    value = value * 8 + digit;
  }
  return value;
}

function readText(block: Uint8Array, at: number, length: number, position: number): string {
  const field = block.subarray(at, at + length);
  const end = field.indexOf(0);
  return text(end < 0 ? field : field.subarray(0, end), position);
}

function text(bytes: Uint8Array, at: number): string {
  try {
    return fromUtf8(bytes);
  } catch (cause) {
    throw new HyperMeshError('tree-invalid', `The tree has a name that is not UTF-8 at byte ${at}.`, { cause });
  }
}

function padded(size: number): number {
  return Math.ceil(size / BLOCK) * BLOCK;
}

/** Of at most two blocks. */
function isZero(bytes: Uint8Array): boolean {
  return equal(bytes, ZEROS.subarray(0, bytes.length));
}

function utf8Length(value: string): number {
  return value.length * 3 <= TREE_LIMITS.nameBytesMax ? value.length : utf8(value).length;
}

function show(value: string): string {
  return JSON.stringify(value.length > 200 ? `${value.slice(0, 200)}…` : value);
}

function invalid(path: string, problem: string, options: { hint?: string } = {}): HyperMeshError {
  return new HyperMeshError('tree-invalid', `The tree entry ${show(path)} ${problem}.`, {
    ...options,
    details: { path: path.slice(0, 1_024) },
  });
}

function broken(at: number, problem: string): HyperMeshError {
  return new HyperMeshError('tree-invalid', `The tree has ${problem}, at byte ${at}.`, {
    hint: 'Build the tree with `hypermesh pack`, not with another tar.',
  });
}
