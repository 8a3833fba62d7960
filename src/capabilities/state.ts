import type { CallOptions } from '../base/call.ts';
import type { Json } from '../base/json.ts';

/**
 * A durable key-value space of the extension's own.
 * Keys: 1 to 256 characters without control characters; values: at most 1 MiB of JSON text.
 */
export interface State {
  get(key: string): Promise<Json | undefined>;
  /**
   * All or nothing, durable when it returns; at most 1,000 keys. A value of `undefined` deletes.
   * `expect` names the values that must still stand (`undefined`: absent), else nothing is written.
   * Errors: `state-conflict`, `quota-exceeded` (bytes or keys of the space), `limit-exceeded`, `usage`, `storage-*`.
   */
  write(
    changes: Readonly<Record<string, Json | undefined>>,
    options?: { readonly expect?: Readonly<Record<string, Json | undefined>> },
  ): Promise<void>;
  /**
   * In key order (by code point). `limit` is 1 to 1,000, default 100; a page ends early at 4 MiB of values,
   * so go on with `after` until a page is empty.
   */
  list(
    prefix: string,
    options?: { readonly limit?: number; readonly after?: string },
  ): Promise<readonly { readonly key: string; readonly value: Json }[]>;
}

/** What a section has ready after it read an import. */
export interface StagedSection {
  /** Switches to the staged copy, atomically and durably: a crash leaves the section before or after, never between. */
  commit(): Promise<void>;
  /** Drops the staged copy. */
  abandon(): Promise<void>;
}

/**
 * A part of the node that travels in a state export (docs/protocol/state-export.md).
 *
 * What makes an import of several sections survive a crash is that it can be done again from the start, so each section promises:
 * an import *replaces* the section; the same import done twice leaves the same state; nothing is visible before `commit`;
 * and a staged copy that a crash left behind is dropped when the section is opened next.
 */
export interface StateSection {
  /** Lower-case words, at most 64 characters, for example `trust` or `assets`. */
  readonly name: string;
  /** Of the section's own format. An import may bring this version or an older one, never a newer one. */
  readonly version: number;
  /** A consistent snapshot, in pieces of 1 byte to 1 MiB. */
  export(options?: CallOptions): AsyncIterable<Uint8Array>;
  /**
   * Called after the whole export was verified; reads the pieces, cut as `export` gave them, into a staged copy.
   * Errors: `state-invalid` when the content makes no sense to the section.
   */
  import(version: number, pieces: AsyncIterable<Uint8Array>, options?: CallOptions): Promise<StagedSection>;
}
