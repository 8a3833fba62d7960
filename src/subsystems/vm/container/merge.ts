import { setImmediate as breathe } from 'node:timers/promises';
import { comparePaths } from '../../../wire/tree.ts';
import { cleanPath, invalid, type TarEntry } from './tar.ts';

/** Where the bytes of a file lie: in which layer, and where in its archive. Two names of one file share the object. */
export interface Content {
  readonly layer: number;
  readonly offset: number;
  readonly size: number;
  readonly executable: boolean;
}

type Node =
  | Folder
  | { readonly kind: 'file'; readonly content: Content }
  | { readonly kind: 'symlink'; readonly target: string };

interface Folder {
  readonly kind: 'directory';
  readonly children: Map<string, Node>;
}

export interface MergedEntry {
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'symlink';
  readonly content?: Content;
  readonly target?: string;
}

/** Entries of all layers together, also those that a later layer takes away. */
const ENTRIES_MAX = 500_000;
/** Entries between two turns of the event loop; a few milliseconds. */
const STRETCH = 500;
const LINKS_MAX = 40;
const TARGET_BYTES_MAX = 4_096;
const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';

/**
 * The layers of an image laid over each other, as names only: nothing is written before the last one is merged, so no layer writes through a link
 * that another made. Links on the way to a name lead where they would lead inside the image, never out of it. Errors: `program-invalid`.
 */
export class Merge {
  readonly #root: Folder = { kind: 'directory', children: new Map() };
  #count = 0;

  /** Lets others have their turn in between: a layer may have very many entries. */
  async apply(entries: readonly TarEntry[], layer: number): Promise<void> {
    this.#count += entries.length;
    if (this.#count > ENTRIES_MAX) throw invalid(`it has more than ${ENTRIES_MAX} entries`);
    const inTurns = async (work: (entry: TarEntry) => void) => {
      for (const [index, entry] of entries.entries()) {
        work(entry);
        if (index % STRETCH === STRETCH - 1) await breathe();
      }
    };
    // They take away what lies below, never what the same layer brings.
    await inTurns(({ path }) => this.#whiteOut(path));
    await inTurns((entry) => this.#add(entry, layer));
  }

  /** The folder at a path, made when missing. */
  make(path: string): void {
    this.#folder(cleanPath(path).split('/').filter(Boolean), true);
  }

  /** The file that a path leads to, links followed inside the image. */
  find(path: string): Content | null {
    const parts = path.split('/').filter(Boolean);
    for (let links = 0; links <= LINKS_MAX; links++) {
      const name = parts.at(-1) ?? '';
      const folder = this.#folder(parts.slice(0, -1), false);
      const node = folder?.node.children.get(name);
      if (folder === null || node === undefined || node.kind === 'directory') return null;
      if (node.kind === 'file') return node.content;
      const from = node.target.startsWith('/') ? [] : folder.parts;
      parts.splice(0, parts.length, ...from, ...node.target.split('/').filter((part) => part !== '' && part !== '.'));
    }
    return null;
  }

  /** Everything, each folder before what lies in it. */
  *entries(): Generator<MergedEntry> {
    const waiting: { readonly path: string; readonly node: Node }[] = [{ path: '', node: this.#root }];
    for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
      const { path, node } = at;
      if (path !== '') {
        if (node.kind === 'file') yield { path, kind: 'file', content: node.content };
        else if (node.kind === 'symlink') yield { path, kind: 'symlink', target: node.target };
        else yield { path, kind: 'directory' };
      }
      if (node.kind !== 'directory') continue;
      for (const [name, child] of [...node.children].sort(([a], [b]) => comparePaths(b, a)))
        waiting.push({ path: path === '' ? name : `${path}/${name}`, node: child });
    }
  }

  #whiteOut(path: string): void {
    const parts = path.split('/');
    const name = parts.pop()!;
    if (!name.startsWith(WHITEOUT)) return;
    const folder = this.#folder(parts, false)?.node;
    if (name === OPAQUE) folder?.children.clear();
    // Names that begin so twice are notes of a file system, not whiteouts.
    else if (!name.startsWith(`${WHITEOUT}${WHITEOUT}`)) folder?.children.delete(name.slice(WHITEOUT.length));
  }

  #add({ path, kind, offset, size, executable, target }: TarEntry, layer: number): void {
    const parts = path.split('/');
    const name = parts.pop()!;
    if (name.startsWith(WHITEOUT) || kind === 'other') return;
    const { children } = this.#folder(parts, true)!.node;
    if (kind === 'directory') {
      if (children.get(name)?.kind !== 'directory') children.set(name, { kind, children: new Map() });
    } else if (kind === 'symlink') {
      if (target === '' || Buffer.byteLength(target) > TARGET_BYTES_MAX)
        throw invalid(`its link ${JSON.stringify(path.slice(0, 200))} leads nowhere`);
      children.set(name, { kind, target });
    } else if (kind === 'file') {
      children.set(name, { kind, content: { layer, offset, size, executable } });
    } else {
      children.set(name, { kind: 'file', content: this.#linked(path, target) });
    }
  }

  /** The file that a hard link is another name of. */
  #linked(path: string, target: string): Content {
    const parts = cleanPath(target).split('/');
    const name = parts.pop()!;
    const node = this.#folder(parts, false)?.node.children.get(name);
    if (node?.kind === 'file') return node.content;
    throw invalid(`its hard link ${JSON.stringify(path.slice(0, 200))} is to no file`);
  }

  /** The folder at a path, and its path without links. */
  #folder(path: readonly string[], make: boolean): { readonly node: Folder; readonly parts: readonly string[] } | null {
    const above: { readonly name: string; readonly node: Folder }[] = [];
    const rest = path.toReversed();
    let links = 0;
    for (let part = rest.pop(); part !== undefined; part = rest.pop()) {
      if (part === '..') {
        above.pop();
        continue;
      }
      const { children } = above.at(-1)?.node ?? this.#root;
      let child = children.get(part);
      if (child === undefined && make) {
        child = { kind: 'directory', children: new Map() };
        children.set(part, child);
      }
      if (child === undefined) return null;
      if (child.kind === 'directory') {
        above.push({ name: part, node: child });
      } else if (child.kind === 'symlink') {
        if (++links > LINKS_MAX) throw invalid(`links in it lead in circles at ${JSON.stringify(part)}`);
        if (child.target.startsWith('/')) above.length = 0;
        rest.push(
          ...child.target
            .split('/')
            .filter((one) => one !== '' && one !== '.')
            .reverse(),
        );
      } else if (make) {
        throw invalid(`a file lies where its folder ${JSON.stringify(path.join('/').slice(0, 200))} should be`);
      } else {
        return null;
      }
    }
    return { node: above.at(-1)?.node ?? this.#root, parts: above.map(({ name }) => name) };
  }
}
