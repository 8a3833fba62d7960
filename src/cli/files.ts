import { randomBytes } from 'node:crypto';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { concat, fromUtf8, utf8 } from '../base/bytes.ts';
import { HyperMeshError, storageError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';

/** A whole file of at most `bytesMax` bytes. Errors: those of {@link openFile}, `limit-exceeded`. */
export async function readFileBounded(file: string, bytesMax: number): Promise<Uint8Array> {
  await using handle = await openFile(file);
  try {
    // Read to the limit and not to the end: a device or a pipe has no size.
    const pieces: Uint8Array[] = [];
    let size = 0;
    for await (const piece of handle.createReadStream({ autoClose: false })) {
      pieces.push(piece);
      size += piece.length;
      if (size > bytesMax)
        throw new HyperMeshError('limit-exceeded', `Expected at most ${bytesMax} bytes, but ${file} has more.`);
    }
    return concat(...pieces);
  } catch (error) {
    throw storageError(error, `reading ${file}`);
  }
}

/** A file to read. Errors: `file-not-found`, `usage` when it is a folder, `storage-*`. */
export async function openFile(file: string): Promise<FileHandle> {
  const handle = await open(file, 'r').catch((error: unknown) => {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR')
      throw new HyperMeshError('file-not-found', `There is no file ${file}.`);
    throw storageError(error, `opening ${file}`);
  });
  if (!(await handle.stat()).isDirectory()) return handle;
  await handle.close();
  throw new HyperMeshError('usage', `Expected a file, but ${file} is a folder.`);
}

/** Errors: as {@link readFileBounded}, and `usage` when it is not UTF-8. */
export async function readTextFile(file: string, bytesMax: number): Promise<string> {
  const bytes = await readFileBounded(file, bytesMax);
  try {
    return fromUtf8(bytes);
  } catch {
    throw new HyperMeshError('usage', `Expected text in UTF-8, but ${file} is something else.`);
  }
}

/** Errors: `usage`, saying where the text stops being JSON. */
export function parseJson(text: string, what: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch (error) {
    throw new HyperMeshError('usage', `Expected JSON ${what}: ${(error as Error).message.slice(0, 200)}.`);
  }
}

/** Writes beside `file` and renames: the file has its old content or all of the new. Answers the number of bytes. */
export async function writeWhole(
  file: string,
  content: Uint8Array | string | AsyncIterable<Uint8Array>,
  mode = 0o644,
): Promise<number> {
  const temporary = path.join(path.dirname(file), `.${path.basename(file)}.${randomBytes(6).toString('hex')}.tmp`);
  const pieces = typeof content === 'string' ? [utf8(content)] : content instanceof Uint8Array ? [content] : content;
  let size = 0;
  try {
    {
      await using handle = await open(temporary, 'wx', mode);
      for await (const piece of pieces) {
        await handle.writeFile(piece);
        size += piece.length;
      }
      await handle.sync();
    }
    await rename(temporary, file);
    return size;
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw (error as NodeJS.ErrnoException).syscall === undefined ? error : storageError(error, `writing ${file}`);
  }
}
