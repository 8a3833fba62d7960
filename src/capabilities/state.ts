import type { CallOptions } from '../base/call.ts';
import type { Json } from '../base/json.ts';

/** A durable key-value space of the extension's own. Keys: 1 to 256 characters; values: at most 1 MiB of JSON. */
export interface State {
  get(key: string): Promise<Json | undefined>;
  /** All or nothing, durable when it returns. A value of `undefined` deletes. `expect` refuses with `state-conflict` when a key's version moved. */
  write(changes: Readonly<Record<string, Json | undefined>>): Promise<void>;
  /** In key order. */
  list(
    prefix: string,
    options?: { readonly limit?: number; readonly after?: string },
  ): Promise<readonly { readonly key: string; readonly value: Json }[]>;
}

/** A part of the node that travels in a state export. */
export interface StateSection {
  readonly name: string;
  readonly version: number;
  /** A consistent snapshot, in pieces of at most 1 MiB. */
  export(options?: CallOptions): AsyncIterable<Uint8Array>;
  /** Called after the whole export was verified. Reads the pieces into a staged copy; the returned `commit` switches to it, `abandon` drops it. */
  import(
    version: number,
    pieces: AsyncIterable<Uint8Array>,
    options?: CallOptions,
  ): Promise<{ commit(): Promise<void>; abandon(): Promise<void> }>;
}
