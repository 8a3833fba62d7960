import type { FileHandle } from 'node:fs/promises';

interface Entry {
  readonly file: Promise<FileHandle>;
  uses: number;
  isKept: boolean;
}

/**
 * Files that are read again and again in small parts stay open between reads: to open and close one costs more than a small read.
 * A file that is in use is never closed; of the others the ones used last are kept.
 */
export class OpenFiles implements AsyncDisposable {
  readonly #open: (path: string) => Promise<FileHandle>;
  readonly #filesMax: number;
  /** By path, the one used last at the end. */
  readonly #entries = new Map<string, Entry>();

  constructor(open: (path: string) => Promise<FileHandle>, filesMax: number) {
    this.#open = open;
    this.#filesMax = filesMax;
  }

  has(path: string): boolean {
    return this.#entries.has(path);
  }

  /** Errors: those of opening it. */
  async use<T>(path: string, work: (file: FileHandle) => Promise<T>): Promise<T> {
    const entry = this.#entries.get(path) ?? { file: this.#open(path), uses: 0, isKept: true };
    entry.uses += 1;
    this.#entries.delete(path);
    this.#entries.set(path, entry);
    try {
      return await work(await entry.file);
    } catch (error) {
      this.#drop(path, entry);
      throw error;
    } finally {
      entry.uses -= 1;
      if (!entry.isKept) this.#close(entry);
      this.#trim();
    }
  }

  /** The file is removed or was replaced: its space must not stay taken. */
  forget(path: string): void {
    const entry = this.#entries.get(path);
    if (entry !== undefined) this.#drop(path, entry);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const entries = [...this.#entries];
    for (const [path, entry] of entries) this.#drop(path, entry);
    await Promise.allSettled(entries.map(([, { file }]) => file));
  }

  #trim(): void {
    for (const [path, entry] of this.#entries) {
      if (this.#entries.size <= this.#filesMax) return;
      if (entry.uses === 0) this.#drop(path, entry);
    }
  }

  #drop(path: string, entry: Entry): void {
    if (this.#entries.get(path) === entry) this.#entries.delete(path);
    entry.isKept = false;
    this.#close(entry);
  }

  #close(entry: Entry): void {
    if (entry.uses > 0) return;
    entry.uses = Number.POSITIVE_INFINITY;
    // It was read only: nothing is lost when closing fails.
    void entry.file.then((file) => file.close()).catch(() => {});
  }
}
