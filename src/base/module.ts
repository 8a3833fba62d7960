/**
 * The URL of a module beside the calling one, with the caller's own extension: `.ts` from source, `.js` in a built package.
 * Workers and child processes are started from it: `new Worker(siblingModule(import.meta.url, './solve-worker'))`.
 */
export function siblingModule(from: string, path: string): URL {
  return new URL(path + from.slice(from.lastIndexOf('.')), from);
}
