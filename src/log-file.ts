import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs';
import { storageError } from './base/errors.ts';

const BYTES_MAX = 8 * 2 ** 20;

/** Appends lines to `file`; past 8 MiB the file becomes `file.1` and a new one begins, so a log takes at most 16 MiB. */
export function openLogFile(file: string, bytesMax = BYTES_MAX): Disposable & { write(line: string): void } {
  let fd = openAppend(file);
  let size = fstatSync(fd).size;
  return {
    write(line) {
      // A full disk must not stop the node: what cannot be logged is lost.
      try {
        size += writeSync(fd, line);
        if (size < bytesMax) return;
        renameSync(file, `${file}.1`);
        const next = openAppend(file);
        closeSync(fd);
        fd = next;
        size = 0;
      } catch {}
    },
    [Symbol.dispose]: () => closeSync(fd),
  };
}

function openAppend(file: string): number {
  try {
    return openSync(file, 'a', 0o600);
  } catch (error) {
    throw storageError(error, `opening the log ${file}`);
  }
}
