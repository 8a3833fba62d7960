import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

/** A file as long as this is not expected to be read again at once: it does not push out what is. */
const DIRECT_BYTES_MIN = 64 * 2 ** 20;
/** What every file system that has direct writes takes as their unit. */
export const PAGE = 4_096;
/** Less at once is not worth a write of its own. */
const DIRECT_WRITE_MIN = 16 * PAGE;

/** The types of Node know it without its arguments. */
const Memory = WebAssembly.Memory as unknown as new (options: {
  readonly initial: number;
}) => {
  readonly buffer: ArrayBuffer;
};

/** Buffers of one length that begin at a page of memory, as direct writes need them, and go around. When all are taken, ordinary ones are made. */
export class PageBuffers {
  readonly #length: number;
  readonly #memory: ArrayBuffer;
  readonly #free: Uint8Array[];

  constructor(length: number, count: number) {
    this.#length = length;
    // The only memory in Node that is known to begin at a page. What is not touched costs nothing.
    this.#memory = new Memory({ initial: Math.ceil((length * count) / 65_536) }).buffer;
    this.#free = Array.from({ length: count }, (_, at) => new Uint8Array(this.#memory, at * length, length));
  }

  take(): Uint8Array {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.#length);
  }

  give(buffer: Uint8Array): void {
    if (this.owns(buffer)) this.#free.push(buffer);
  }

  owns(bytes: Uint8Array): boolean {
    return bytes.buffer === this.#memory;
  }
}

/**
 * The data of a blob on its way in. Whole pages of a large one go straight to the disk, if the file system can do that: copying a stream
 * into the page cache costs more processor time than receiving and checking it, and pushes out what is in use. What does not fill a page, and everything
 * that comes in ordinary buffers, goes the usual way; the system keeps both views of the file the same.
 */
export class DataFile {
  /** Its buffers begin at a page; a write is direct when its place in the file does too, up to the same remainder. */
  readonly buffers: PageBuffers;
  readonly #file: FileHandle;
  #direct: FileHandle | null;

  /** Errors: those of opening it. */
  static async open(path: string, size: number, buffers: PageBuffers): Promise<DataFile> {
    const flags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0);
    const file = await open(path, flags, 0o600);
    const { O_DIRECT } = constants;
    const isDirect = O_DIRECT !== undefined && size >= DIRECT_BYTES_MIN;
    // Not every file system has it.
    const direct = isDirect ? await open(path, flags | O_DIRECT, 0o600).catch(() => null) : null;
    return new DataFile(file, direct, buffers);
  }

  private constructor(file: FileHandle, direct: FileHandle | null, buffers: PageBuffers) {
    this.#file = file;
    this.#direct = direct;
    this.buffers = buffers;
  }

  truncate(size: number): Promise<void> {
    return this.#file.truncate(size);
  }

  /** Returns what is there, at most as much as fits. */
  async read(into: Uint8Array, offset: number): Promise<Uint8Array> {
    let at = 0;
    while (at < into.length) {
      const { bytesRead } = await this.#file.read(into, at, into.length - at, offset + at);
      if (bytesRead === 0) break;
      at += bytesRead;
    }
    return into.subarray(0, at);
  }

  /** What is read once to be looked at, in order; less where the file ends. As writes, it leaves the page cache alone when it can. */
  async look(offset: number, length: number, at: (bytes: Uint8Array) => void): Promise<void> {
    const buffer = this.buffers.take();
    try {
      for (let done = 0; done < length; ) {
        const start = (offset + done) % PAGE;
        const end = Math.min(buffer.length, start + length - done);
        const pages = Math.min(buffer.length, Math.ceil(end / PAGE) * PAGE);
        const bytesRead = await this.#readPages(buffer.subarray(0, pages), offset + done - start);
        if (bytesRead <= start) return;
        const bytes = buffer.subarray(start, Math.min(end, bytesRead));
        at(bytes);
        done += bytes.length;
      }
    } finally {
      this.buffers.give(buffer);
    }
  }

  async #readPages(into: Uint8Array, offset: number): Promise<number> {
    if (this.#direct !== null && this.buffers.owns(into)) {
      try {
        return (await this.#direct.read(into, 0, into.length, offset)).bytesRead;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
        await this.#endDirect();
      }
    }
    return (await this.#file.read(into, 0, into.length, offset)).bytesRead;
  }

  async write(bytes: Uint8Array, offset: number): Promise<void> {
    const before = -offset & (PAGE - 1);
    const length = (bytes.length - before) & ~(PAGE - 1);
    const isAligned = this.buffers.owns(bytes) && ((bytes.byteOffset + before) & (PAGE - 1)) === 0;
    if (this.#direct === null || !isAligned || length < DIRECT_WRITE_MIN) return writeAll(this.#file, bytes, offset);
    const after = before + length;
    await writeAll(this.#file, bytes.subarray(0, before), offset);
    try {
      await writeAll(this.#direct, bytes.subarray(before, after), offset + before);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      // This device wants something else; nothing is lost.
      await this.#endDirect();
      await writeAll(this.#file, bytes.subarray(before, after), offset + before);
    }
    await writeAll(this.#file, bytes.subarray(after), offset + after);
  }

  datasync(): Promise<void> {
    return this.#file.datasync();
  }

  sync(): Promise<void> {
    return this.#file.sync();
  }

  async close(): Promise<void> {
    await Promise.allSettled([this.#file.close(), this.#endDirect()]);
  }

  async #endDirect(): Promise<void> {
    const direct = this.#direct;
    this.#direct = null;
    await direct?.close();
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await file.write(bytes, at, bytes.length - at, offset + at)).bytesWritten;
  }
}
