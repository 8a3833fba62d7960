import assert from 'node:assert/strict';
import { createHash, type Hash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { equal, hex } from '../../../base/bytes.ts';
import { type CallOptions, checkCancelled } from '../../../base/call.ts';
import { type Digest, digestHex } from '../../../base/digest.ts';
import { HyperMeshError, storing } from '../../../base/errors.ts';
import type { BlobInfo } from '../../../capabilities/assets.ts';
import type { BlobDescription, IncomingBlob, ShardRun } from '../../../capabilities/content.ts';
import { bitBytes, decodeShardList, encodeShardList, hasBit, type ShardList, setBit } from '../../../wire/content.ts';
import type { Blake3, Shard } from '../../../wire/shards.ts';
import { DataFile, PAGE, PageBuffers } from './data-file.ts';

/** Bytes of an arriving blob that are written before the disk is asked to keep up: the last sync is then short. */
const SYNC_BYTES = 128 * 2 ** 20;
/** A run that is at most this far ahead of what the hash over the whole reads from the file waits for it, and then feeds it from memory. */
const CATCH_UP_BYTES = 32 * 2 ** 20;
/** The hash over the whole is kept as it was about so many shards ago: copying it for each costs more than reading these again, which is rare. */
const KEPT_SHARDS = 16;
/** At most so often is it noted which shards count: what was not noted is fetched again after a crash. */
const NOTE_MS = 20;
const EMPTY = new Uint8Array(0);
/** Handing work to the threads that write costs as much as the writing when it is little at a time. */
const WRITE_BYTES = 2 ** 20;
/** Buffers of that length for all runs of a blob: two for each is enough, and further ones are made when there are more runs. */
const WRITE_BUFFERS = 8;

/** The three files of an arriving blob, in `incoming/`: `HEX.list`, `HEX.have`, `HEX.data`. */
export function incomingPath(folder: string, digest: Digest, part: 'list' | 'have' | 'data'): string {
  return join(folder, `${digestHex(digest)}.${part}`);
}

export async function removeIncoming(folder: string, digest: Digest): Promise<void> {
  // The list last: while it is there, the others belong to something.
  for (const part of ['have', 'data', 'list'] as const) await rm(incomingPath(folder, digest, part), { force: true });
}

/** The list of a blob that began to arrive, or null. Not checked against any root. */
export async function readIncomingList(folder: string, digest: Digest): Promise<ShardList | null> {
  try {
    return decodeShardList(await readFile(incomingPath(folder, digest, 'list')));
  } catch {
    // Not there, or cut off by a crash: either way it is fetched again.
    return null;
  }
}

export interface IncomingLent {
  /** `incoming/` of the store. */
  readonly folder: string;
  readonly blake3: Blake3;
  /** Bytes of a shard with this hash in some blob of the store, or null; not checked. */
  readonly local: (shard: Shard) => Promise<Uint8Array | null>;
  /** Moves the synced file into the store, under the digest that it was found to have. */
  readonly commit: (path: string, list: ShardList) => Promise<BlobInfo>;
  /** It is not being worked on any more. */
  readonly closed: () => void;
  /** Nothing of it is left in the folder. */
  readonly ended: () => void;
}

/** Opens or creates the files, and checks every shard that a run before this one had. Errors: `storage-*`, `cancelled`. */
export async function openIncoming(
  lent: IncomingLent,
  blob: BlobDescription,
  list: ShardList,
  options: CallOptions,
): Promise<Incoming> {
  const path = (part: 'list' | 'have' | 'data') => incomingPath(lent.folder, blob.digest, part);
  const encoded = encodeShardList(list);
  const before = await readFile(path('list')).catch(() => null);
  if (before === null || !equal(before, encoded)) {
    await storing('starting to receive a blob', async () => {
      await removeIncoming(lent.folder, blob.digest);
      await writeFile(`${path('list')}.new`, encoded, { mode: 0o600 });
      await rename(`${path('list')}.new`, path('list'));
    });
  }
  const flags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0);
  const buffers = new PageBuffers(WRITE_BYTES, WRITE_BUFFERS);
  const data = await storing('starting to receive a blob', () => DataFile.open(path('data'), list.size, buffers));
  try {
    const have = await storing('starting to receive a blob', () => open(path('have'), flags, 0o600));
    try {
      await storing('starting to receive a blob', () => data.truncate(list.size));
      const incoming = new Incoming(lent, blob, list, { data, have });
      await incoming.resume(options);
      return incoming;
    } catch (error) {
      await have.close();
      throw error;
    }
  } catch (error) {
    await data.close();
    throw error;
  }
}

/**
 * A blob on its way in. Bytes go to their place in the data file as they come; a shard counts once all its bytes are written and have its
 * hash. What counts is noted in the `have` file without a sync: after a crash each noted shard is read and checked before it counts again.
 *
 * The SHA-256 over the whole is fed in order: from memory when shards come in order, from the file otherwise.
 *
 * Only one party writes a shard that does not count yet: the run that came to it first, until {@link put} brings that shard complete.
 */
export class Incoming implements IncomingBlob {
  readonly list: ShardList;
  readonly #lent: IncomingLent;
  readonly #blob: BlobDescription;
  readonly #data: DataFile;
  readonly #haveFile: FileHandle;
  readonly #have: Uint8Array;
  /** A shard that occurred before -> where it did first. */
  readonly #firstOf = new Map<number, number>();
  readonly #owners = new Map<number, Run>();
  #bytes = 0;
  #sha: Hash = createHash('sha256');
  /** The first shard that is not in `#sha`. */
  #shaNext = 0;
  /** The hash as it was before shard `next`, not after `#shaNext`. */
  #kept = { hash: createHash('sha256'), next: 0 };
  /** The run that feeds shard `#shaNext` to `#sha` now. */
  #live: Run | null = null;
  #catchingUp: Promise<void> | null = null;
  #noting: Promise<void> | null = null;
  #noteAgain = false;
  #notedAtMs = Number.NEGATIVE_INFINITY;
  #isNoted = true;
  #unsynced = 0;
  #syncing: Promise<unknown> = Promise.resolve();
  #failure: unknown = null;
  #closed = false;

  constructor(
    lent: IncomingLent,
    blob: BlobDescription,
    list: ShardList,
    files: { readonly data: DataFile; readonly have: FileHandle },
  ) {
    this.#lent = lent;
    this.#blob = blob;
    this.list = list;
    this.#data = files.data;
    this.#haveFile = files.have;
    this.#have = new Uint8Array(bitBytes(list.shards.length));
    const first = new Map<string, number>();
    for (const [index, shard] of list.shards.entries()) {
      const key = hex(shard.hash);
      const at = first.get(key);
      if (at === undefined) first.set(key, index);
      else this.#firstOf.set(index, at);
    }
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** One bit for each shard that counts. */
  get bits(): Uint8Array {
    return this.#have.slice();
  }

  has(index: number): boolean {
    return hasBit(this.#have, index);
  }

  wanted(): readonly number[] {
    const wanted: number[] = [];
    for (let i = 0; i < this.list.shards.length; i++) if (!this.has(i) && !this.#firstOf.has(i)) wanted.push(i);
    return wanted;
  }

  /** Whether every byte of a range belongs to a shard that counts. */
  covers(offset: number, length: number): boolean {
    const { shards } = this.list;
    if (length <= 0 || offset + length > this.list.size) return false;
    let low = 0;
    for (let high = shards.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1;
      if (shards[middle]!.offset <= offset) low = middle;
      else high = middle - 1;
    }
    for (let i = low; i < shards.length && shards[i]!.offset < offset + length; i++) if (!this.has(i)) return false;
    return true;
  }

  /** Reads what counts: a range that {@link covers} says is here. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    const { length } = await this.#readAt(offset, into);
    if (length < into.length)
      throw new HyperMeshError('storage-failed', `The disk does not have what came of ${this.#blob.digest}.`);
  }

  /** Once, before anything else: what was noted before counts again when it has its hash. */
  async resume(options: CallOptions): Promise<void> {
    const noted = new Uint8Array(this.#have.length);
    await storing('looking at what came before', () => this.#haveFile.read(noted, 0, noted.length, 0));
    await this.#check((index) => hasBit(noted, index), options);
  }

  async reuse(options: CallOptions = {}): Promise<number> {
    const before = this.#bytes;
    for (const index of this.wanted()) {
      checkCancelled(options.signal);
      const shard = this.list.shards[index]!;
      const bytes = await this.#lent.local(shard);
      if (bytes === null || !(await this.put(index, bytes))) continue;
      options.onProgress?.({ step: 'reuse', done: this.#bytes, total: this.list.size, unit: 'bytes' });
    }
    return this.#bytes - before;
  }

  run(from: number, to: number): ShardRun {
    return new Run(this, from, to);
  }

  async put(index: number, bytes: Uint8Array): Promise<boolean> {
    this.#checkUsable();
    const shard = this.list.shards[index]!;
    if (bytes.length !== shard.length || !equal(this.#lent.blake3.hash(bytes), shard.hash)) return false;
    if (this.has(index)) return true;
    const owner = this.#owners.get(index);
    if (owner !== undefined) {
      // From here on the run leaves this shard alone; what it wrote is overwritten once its last write has ended.
      this.#owners.delete(index);
      this.#revert(owner);
      await owner.settled();
    }
    await this.write(bytes, shard.offset);
    if (this.#shaNext === index && this.#live === null && this.#catchingUp === null) {
      this.#sha.update(bytes);
      this.#shaNext += 1;
    }
    this.mark([index]);
    return true;
  }

  async complete(options: CallOptions = {}): Promise<BlobInfo | null> {
    this.#checkUsable();
    await this.#fillTwins();
    if (this.wanted().length > 0) return null;
    assert(this.#live === null, 'a run is under way');
    while (this.#shaNext < this.list.shards.length) {
      checkCancelled(options.signal);
      this.#catchUp();
      await this.#catchingUp;
      this.#checkUsable();
    }
    if (`sha256:${this.#sha.copy().digest('hex')}` !== this.#blob.digest) return this.#recheck(options);
    await this.#syncing;
    await storing('storing a blob', () => this.#data.sync());
    const path = incomingPath(this.#lent.folder, this.#blob.digest, 'data');
    const info = await this.#lent.commit(path, this.list);
    // A crash before this leaves a list without data: the next sweep removes it.
    await this.#end();
    return info;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await Promise.allSettled([...this.#owners.values()].map((run) => run.settled()));
    if (!this.#isNoted) this.#note();
    await Promise.allSettled([this.#catchingUp, this.#syncing, this.#noting]);
    await Promise.allSettled([this.#data.close(), this.#haveFile.close()]);
    this.#lent.closed();
  }

  async #end(): Promise<void> {
    // What cannot be removed now is removed by the next sweep.
    await removeIncoming(this.#lent.folder, this.#blob.digest).catch(() => {});
    this.#isNoted = true;
    this.#lent.ended();
    await this[Symbol.asyncDispose]();
  }

  // For runs.

  get buffers(): PageBuffers {
    return this.#data.buffers;
  }

  get blake3(): Blake3 {
    return this.#lent.blake3;
  }

  /** Makes `run` the one that writes this shard, unless it counts already or is another's. */
  async claim(index: number, run: Run): Promise<void> {
    this.#checkUsable();
    if (this.has(index) || this.#owners.has(index)) return;
    const { shards } = this.list;
    if (this.#catchingUp !== null && shards[index]!.offset - shards[this.#shaNext]!.offset <= CATCH_UP_BYTES)
      await this.#catchingUp;
    if (this.has(index) || this.#owners.has(index)) return;
    this.#owners.set(index, run);
    if (this.#shaNext !== index || this.#live !== null || this.#catchingUp !== null) return;
    if (index - this.#kept.next >= KEPT_SHARDS) this.#kept = { hash: this.#sha.copy(), next: index };
    this.#live = run;
  }

  owns(index: number, run: Run): boolean {
    return this.#owners.get(index) === run;
  }

  /** Bytes of the shard that `run` works on, seen in memory. */
  see(run: Run, bytes: Uint8Array): void {
    if (this.#live === run) this.#sha.update(bytes);
  }

  /** All bytes of the shard were seen and have its hash. */
  seen(run: Run): void {
    if (this.#live !== run) return;
    this.#live = null;
    this.#shaNext += 1;
  }

  /** The run gives up the shard that it works on. */
  giveUp(index: number, run: Run): void {
    if (this.owns(index, run)) this.#owners.delete(index);
    this.#revert(run);
  }

  async write(bytes: Uint8Array, offset: number): Promise<void> {
    await storing('writing a blob', () => this.#data.write(bytes, offset));
    this.#unsynced += bytes.length;
    if (this.#unsynced < SYNC_BYTES) return;
    this.#unsynced = 0;
    this.#syncing = this.#syncing
      .then(() => this.#data.datasync())
      .catch((error: unknown) => {
        this.#failure ??= error;
      });
  }

  /** They count from now on. */
  mark(indices: readonly number[]): void {
    for (const index of indices) {
      if (this.has(index)) continue;
      setBit(this.#have, index);
      this.#owners.delete(index);
      this.#bytes += this.list.shards[index]!.length;
    }
    this.#isNoted = false;
    if (performance.now() - this.#notedAtMs >= NOTE_MS) this.#note();
    this.#catchUp();
  }

  /** What occurs more than once came once. */
  async #fillTwins(): Promise<void> {
    for (const [twin, first] of this.#firstOf) {
      if (this.has(twin)) continue;
      const { offset, length } = this.list.shards[first]!;
      await this.put(twin, await this.#readAt(offset, new Uint8Array(length)));
    }
  }

  #revert(run: Run): void {
    if (this.#live !== run) return;
    this.#live = null;
    this.#sha = this.#kept.hash.copy();
    this.#shaNext = this.#kept.next;
    this.#catchUp();
  }

  /** Shards that are wrong on disk are wanted again; when none is, the description was a lie and the arrival is over. */
  async #recheck(options: CallOptions): Promise<null> {
    const had = this.#have.slice();
    this.#have.fill(0);
    this.#bytes = 0;
    this.#sha = createHash('sha256');
    this.#shaNext = 0;
    this.#kept = { hash: createHash('sha256'), next: 0 };
    await this.#check((index) => hasBit(had, index), options);
    if (this.wanted().length > 0) {
      this.#note();
      return null;
    }
    await this.#end();
    throw new HyperMeshError(
      'blob-mismatch',
      `Every shard of ${this.#blob.digest} is as its package says, but together they are another blob.`,
      { hint: 'The package that names this blob was made to mislead; do not install it.' },
    );
  }

  /** Reads the shards that `claimed` says are there: those that have their hash count. */
  async #check(claimed: (index: number) => boolean, options: CallOptions): Promise<void> {
    let buffer = new Uint8Array(this.list.averageBytes);
    for (const [index, { offset, length, hash }] of this.list.shards.entries()) {
      if (!claimed(index)) continue;
      checkCancelled(options.signal);
      if (buffer.length < length) buffer = new Uint8Array(length);
      const bytes = await this.#readAt(offset, buffer.subarray(0, length));
      if (bytes.length !== length || !equal(this.#lent.blake3.hash(bytes), hash)) continue;
      setBit(this.#have, index);
      this.#bytes += length;
      if (index === this.#shaNext) {
        this.#sha.update(bytes);
        this.#shaNext += 1;
      }
      options.onProgress?.({ step: 'resume', done: this.#bytes, total: this.list.size, unit: 'bytes' });
    }
  }

  /** Feeds the hash over the whole with what counts and was not seen in memory, in the background. */
  #catchUp(): void {
    if (this.#catchingUp !== null || this.#live !== null || this.#closed) return;
    const { shards } = this.list;
    if (this.#shaNext >= shards.length || !this.has(this.#shaNext)) return;
    const work = async () => {
      while (this.#shaNext < shards.length && this.has(this.#shaNext) && !this.#closed) {
        const { offset } = shards[this.#shaNext]!;
        let length = 0;
        let to = this.#shaNext;
        for (; to < shards.length && this.has(to) && length < WRITE_BYTES; to++) length += shards[to]!.length;
        await storing('reading what came', () =>
          this.#data.look(offset, length, (bytes) => void this.#sha.update(bytes)),
        );
        this.#shaNext = to;
      }
    };
    this.#catchingUp = work()
      .catch((error: unknown) => {
        this.#failure ??= error;
      })
      .finally(() => {
        this.#catchingUp = null;
      });
  }

  /** Notes in the file what counts, at most one write at a time. */
  #note(): void {
    this.#isNoted = true;
    this.#notedAtMs = performance.now();
    if (this.#noting !== null) {
      this.#noteAgain = true;
      return;
    }
    const work = async () => {
      do {
        this.#noteAgain = false;
        await storing('noting what came', () => this.#haveFile.write(this.#have.slice(), 0, this.#have.length, 0));
      } while (this.#noteAgain);
    };
    this.#noting = work()
      .catch((error: unknown) => {
        this.#failure ??= error;
      })
      .finally(() => {
        this.#noting = null;
      });
  }

  #readAt(offset: number, into: Uint8Array): Promise<Uint8Array> {
    return storing('reading what came', () => this.#data.read(into, offset));
  }

  #checkUsable(): void {
    if (this.#closed) throw new HyperMeshError('cancelled', 'The arrival of this blob was ended.');
    if (this.#failure !== null) throw this.#failure;
  }
}

/** Consecutive shards whose bytes come in order. They are gathered into large writes; the next is filled while one is under way. */
class Run implements ShardRun {
  readonly #incoming: Incoming;
  readonly #to: number;
  #next: number;
  /** Bytes of shard `#next` that came. */
  #within = 0;
  #hasher: ReturnType<Blake3['hasher']> | null = null;
  /** What is not on its way to the file yet, and where it belongs. */
  #buffer: Uint8Array | null = null;
  #spare: Uint8Array | null = null;
  #filled = 0;
  #offset = 0;
  /** Where in the buffer its first byte is: as far from a page as in the file. */
  #start = 0;
  /** The shards in the buffer, in order, and how many of its bytes are theirs. */
  #parts: { readonly index: number; length: number }[] = [];
  /** Verified, but not all of it written. */
  #whole: number[] = [];
  #writing: Promise<void> = Promise.resolve();
  #pushing: Promise<void> = Promise.resolve();

  constructor(incoming: Incoming, from: number, to: number) {
    this.#incoming = incoming;
    this.#next = from;
    this.#to = to;
  }

  get next(): number {
    return this.#next;
  }

  push(bytes: Uint8Array): Promise<void> {
    const work = this.#push(bytes);
    this.#pushing = work.catch(() => {});
    return work;
  }

  /** Settles when no write of this run is under way. */
  async settled(): Promise<void> {
    await this.#pushing;
    await this.#writing.catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pushing;
    // What cannot be written does not count; whoever completes the blob sees it.
    if (this.#next < this.#to) this.#incoming.giveUp(this.#next, this);
    await this.#finish().catch(() => {});
    for (const buffer of [this.#buffer, this.#spare]) if (buffer !== null) this.#incoming.buffers.give(buffer);
    this.#buffer = null;
    this.#spare = null;
  }

  async #push(bytes: Uint8Array): Promise<void> {
    const incoming = this.#incoming;
    const { shards } = incoming.list;
    for (let at = 0; at < bytes.length; ) {
      if (this.#next >= this.#to) throw new RangeError('more bytes than the run has shards for');
      const shard = shards[this.#next]!;
      const part = bytes.subarray(at, at + Math.min(shard.length - this.#within, bytes.length - at));
      if (this.#within === 0) {
        await incoming.claim(this.#next, this);
        if (part.length < shard.length) this.#hasher = incoming.blake3.hasher();
      }
      this.#hasher?.update(part);
      incoming.see(this, part);
      if (incoming.owns(this.#next, this)) await this.#gather(part, shard.offset + this.#within);
      this.#within += part.length;
      at += part.length;
      if (this.#within < shard.length) continue;
      if (!equal(this.#hasher?.digest() ?? incoming.blake3.hash(part), shard.hash)) {
        const wrong = this.#next;
        incoming.giveUp(wrong, this);
        await this.#finish();
        throw new HyperMeshError(
          'shard-mismatch',
          `The bytes that came are not shard ${wrong} of what was asked for.`,
          {
            details: { shard: wrong },
          },
        );
      }
      incoming.seen(this);
      this.#whole.push(this.#next);
      this.#hasher = null;
      this.#within = 0;
      this.#next += 1;
    }
    if (this.#next === this.#to) await this.#finish();
  }

  async #gather(bytes: Uint8Array, offset: number): Promise<void> {
    if (this.#filled > 0 && offset !== this.#offset + this.#filled) await this.#flush();
    for (let at = 0; at < bytes.length; ) {
      this.#buffer ??= this.#incoming.buffers.take();
      if (this.#filled === 0) {
        this.#offset = offset + at;
        this.#start = this.#offset % PAGE;
      }
      const free = WRITE_BYTES - this.#start - this.#filled;
      const part = bytes.subarray(at, at + free);
      this.#buffer.set(part, this.#start + this.#filled);
      this.#filled += part.length;
      at += part.length;
      const last = this.#parts.at(-1);
      if (last?.index === this.#next) last.length += part.length;
      else this.#parts.push({ index: this.#next, length: part.length });
      if (part.length === free) await this.#flush();
    }
  }

  /** Starts to write what was gathered, after what is being written. */
  async #flush(): Promise<void> {
    await this.#writing;
    const [parts, offset, whole] = [this.#parts, this.#offset, this.#whole];
    const buffer = this.#buffer;
    const bytes = buffer?.subarray(this.#start) ?? EMPTY;
    this.#buffer = this.#spare;
    this.#spare = buffer;
    this.#filled = 0;
    this.#parts = [];
    this.#whole = [];
    this.#writing = this.#write(bytes, parts, offset).then(() => {
      this.#incoming.mark(whole.filter((index) => this.#incoming.owns(index, this)));
    });
    // The next flush learns of a failure.
    this.#writing.catch(() => {});
  }

  async #finish(): Promise<void> {
    await this.#flush();
    await this.#writing;
  }

  /** Leaves out the shards that are not this run's any more. */
  async #write(
    bytes: Uint8Array,
    parts: readonly { readonly index: number; readonly length: number }[],
    offset: number,
  ): Promise<void> {
    const writes: Promise<void>[] = [];
    let from = 0;
    let to = 0;
    const write = () => {
      if (from < to) writes.push(this.#incoming.write(bytes.subarray(from, to), offset + from));
      from = to;
    };
    for (const { index, length } of parts) {
      if (this.#incoming.owns(index, this)) to += length;
      else {
        write();
        to += length;
        from = to;
      }
    }
    write();
    await Promise.all(writes);
  }
}
