import { readFileSync } from 'node:fs';
import { fromUtf8, utf8 } from '../src/base/bytes.ts';
import type { Digest } from '../src/base/digest.ts';
import { canonicalJson, type Json } from '../src/base/json.ts';
import { type Bundle, encodeBundle } from '../src/wire/bundle.ts';

/** The forms of test/vectors/bundle/ (docs/protocol/bundle.md); `node scripts/make-bundle-vectors.ts` makes them. */
export interface ValidBundle {
  readonly name: string;
  readonly why: string;
  readonly bundle: Bundle;
  /** What a verification establishes. */
  readonly ref: string;
  readonly digest: string;
  readonly publisher: string;
  readonly checks: readonly string[];
}

export interface InvalidBundle {
  readonly name: string;
  readonly why: string;
  /** Name of the valid bundle that is changed. */
  readonly base: string;
  /** Changes to its value, one after the other; the result is written canonically. */
  readonly changes?: readonly Change[];
  /** A change to its bytes instead: `remove` bytes from `at` on (from the end when negative), then `insert` there. */
  readonly edit?: { readonly at: number; readonly remove: number; readonly insert: string };
  /** The valid bundle whose network it must belong to; absent: `base`; null: any network. */
  readonly pinned?: string | null;
  readonly code: string;
}

/** `path` is a JSON pointer. It gets `value`, or what stands at `from` (or the same path) of the valid bundle `of`, or goes away. */
export type Change =
  | { readonly path: string; readonly value: Json }
  | { readonly path: string; readonly of: string; readonly from?: string }
  | { readonly path: string; readonly remove: true };

type Tree = Record<string, unknown>;

export function readVectors<T>(name: 'valid' | 'invalid'): readonly T[] {
  return JSON.parse(readFileSync(new URL(`vectors/bundle/${name}.json`, import.meta.url), 'utf8')) as T[];
}

/** The bytes that an invalid vector stands for. */
export function bytesOf({ base, changes = [], edit }: InvalidBundle, valid: readonly ValidBundle[]): Uint8Array {
  const named = (name: string) => valid.find((vector) => vector.name === name)!.bundle;
  if (edit !== undefined) {
    const text = fromUtf8(encodeBundle(named(base)));
    const at = edit.at < 0 ? text.length + edit.at : edit.at;
    return utf8(text.slice(0, at) + edit.insert + text.slice(at + edit.remove));
  }
  const value = structuredClone(named(base)) as unknown as Tree;
  for (const change of changes) {
    const keys = keysOf(change.path);
    const parent = valueAt(value, keys.slice(0, -1)) as Tree;
    const key = keys.at(-1)!;
    if ('value' in change) parent[key] = change.value;
    else if ('of' in change) parent[key] = valueAt(named(change.of), keysOf(change.from ?? change.path));
    else if (Array.isArray(parent)) parent.splice(Number(key), 1);
    else delete parent[key];
  }
  return utf8(canonicalJson(value));
}

/** The network that the bundle of an invalid vector must belong to. */
export function pinOf({ base, pinned = base }: InvalidBundle, valid: readonly ValidBundle[]): { network?: Digest } {
  return pinned === null ? {} : { network: valid.find(({ name }) => name === pinned)!.bundle.network.id };
}

export function valueAt(root: unknown, keys: readonly string[]): unknown {
  return keys.reduce<unknown>((node, key) => (node as Tree)[key], root);
}

export function keysOf(pointer: string): string[] {
  return pointer.split('/').slice(1);
}
