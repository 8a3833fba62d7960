/**
 * The private protocol between the node and a box, over the standard input and output of the box. Both ends are always of the same
 * version. A frame is: length of what follows (u32 little-endian), kind (u8), body.
 */
export const FRAME = {
  /** To the box, its first: {@link BoxProgram} as JSON. */
  program: 0,
  /** To the box, its second: the bytes of the module. */
  module: 2,
  /** To the box, for each run: {@link BoxOrder} as JSON. */
  order: 1,
  /** To the box: standard input of the program. */
  input: 3,
  /** To the box: the file that it asked for. */
  file: 4,
  /** To the box: the file that it asked for cannot be had. */
  noFile: 5,
  /** From the box: it waits for an order. */
  ready: 10,
  /** From the box: bytes that the program wrote. */
  stdout: 11,
  stderr: 12,
  /** From the box: {@link FileWish} as JSON; it waits for `file` or `noFile`. */
  wish: 13,
  /** From the box, the last of a run: {@link BoxEnd} as JSON. */
  end: 14,
} as const;

/** The largest frame that a box may send: it is the side that is not trusted. */
export const BOX_FRAME_MAX = 64 * 1024 + 16;

/** What all runs in a box have in common. */
export interface BoxProgram {
  readonly memoryPagesMax: number;
  readonly mounts: readonly BoxMount[];
}

export interface BoxOrder {
  readonly args: readonly string[];
  readonly environment: readonly string[];
  readonly wallMs: number;
  readonly cpuCores: number;
  /** Decimal; null: no budget. */
  readonly fuel: string | null;
  readonly outputBytes: number;
  readonly tmpBytes: number;
}

export interface BoxMount {
  readonly at: string;
  readonly entries: readonly BoxEntry[];
}

/** `size` of a file; `target` of a symlink; neither of a directory. */
export interface BoxEntry {
  readonly path: string;
  readonly size?: number;
  readonly target?: string;
}

export interface FileWish {
  readonly mount: number;
  readonly path: string;
}

export type BoxEnd =
  | { readonly kind: 'invalid'; readonly message: string }
  | ({
      readonly kind: 'ended';
      readonly termination: 'exit' | 'error' | 'timeout' | 'memory' | 'disk' | 'fuel' | 'output';
      readonly exitCode: number | null;
      readonly reason: string | null;
    } & BoxUsage);

export interface BoxUsage {
  readonly cpuMs: number;
  readonly memoryBytes: number;
  readonly processBytes: number;
  /** Decimal. */
  readonly fuelUsed: string;
}

export function frameHead(kind: number, length: number): Uint8Array {
  const head = new Uint8Array(5);
  new DataView(head.buffer).setUint32(0, length + 1, true);
  head[4] = kind;
  return head;
}
