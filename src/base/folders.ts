import { closeSync, mkdirSync, openSync, statSync } from 'node:fs';
import { dirname } from 'node:path';

/**
 * Makes a folder and what is missing above it; one that is there already is left as it is.
 * Folder by folder, because the recursive `mkdir` of Node never returns where a parent exists in which nothing can be made (/proc).
 * Errors: those of `mkdir`.
 */
export function makeFolders(path: string, mode = 0o777): void {
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return;
    const parent = dirname(path);
    if (code !== 'ENOENT' || parent === path || statSync(parent, { throwIfNoEntry: false }) !== undefined) throw error;
    makeFolders(parent, mode);
    mkdirSync(path, { mode });
  }
}

/** Makes an empty file that only its owner can read and write; one that is there already is left as it is. Errors: those of `open`. */
export function makeOwnFile(path: string): void {
  closeSync(openSync(path, 'a', 0o600));
}
