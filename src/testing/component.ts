import { assemble } from './wat.ts';

/** Writes components: the tools that do so for real programs are not needed for small ones, and do not write hostile ones. */

type Piece = number | string | Uint8Array | readonly Piece[];

/** Numbers are bytes, texts have their length before them, lists are what is in them. */
function flat(piece: Piece): number[] {
  if (typeof piece === 'number') return [piece];
  if (typeof piece === 'string') return [...u32(Buffer.byteLength(piece)), ...Buffer.from(piece)];
  if (piece instanceof Uint8Array) return [...piece];
  return piece.flatMap(flat);
}

export function u32(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...u32(value >>> 7)];
}

/** A section with one definition. */
export function definition(id: number, ...pieces: Piece[]): Piece {
  const body = [1, ...flat(pieces)];
  return [id, ...u32(body.length), ...body];
}

export function coreModule(bytes: Uint8Array): Piece {
  return [1, ...u32(bytes.length), bytes];
}

export function component(...definitions: Piece[]): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(flat([[0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0], definitions]));
}

export function nested(bytes: Uint8Array): Piece {
  return [4, ...u32(bytes.length), bytes];
}

export const MEMORY_MODULE = `(module (memory (export "memory") 1)
  (global $next (mut i32) (i32.const 32768))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (global.set $next (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.get $next)
    (global.set $next (i32.add (global.get $next) (local.get 3)))))`;

export interface CommandParts {
  /** Functions of the host, [interface, name], or `drop`: `main` imports them from "host" as "0", "1", …, and "memory" from "env". */
  readonly calls?: readonly (readonly [string, string] | 'drop')[];
  /** Text of the module that exports `run`, without parameters, for an i32: 0 when all went well. */
  readonly main: string;
  /** Text of the module that exports `memory` and `realloc`. */
  readonly memory?: string;
  /** A table that this module exports, too; `main` imports it from "env". */
  readonly shared?: string;
  /** What else is in it, at its end. */
  readonly more?: readonly Piece[];
}

const VERSION = '0.2.3';

/** A component of `wasi:cli/command`. */
export async function assembleCommand({
  calls = [],
  main,
  memory = MEMORY_MODULE,
  shared,
  more = [],
}: CommandParts): Promise<Uint8Array<ArrayBuffer>> {
  const functions = calls.filter((call) => call !== 'drop');
  const interfaces = [...new Set(functions.map(([name]) => name))];
  const lowered = calls.map((call) =>
    call === 'drop'
      ? definition(8, 0x03, 0)
      : definition(8, 0x01, 0x00, functions.indexOf(call), 3, [0x00, 0x03, 0, 0x04, 0]),
  );
  return component(
    definition(7, 0x42, 0), // type 0: an instance of which nothing is said
    interfaces.map((name) => definition(10, 0x00, `${name}@${VERSION}`, 0x05, 0)),
    functions.map(([name, call]) => definition(6, 0x01, 0x00, interfaces.indexOf(name), call)),
    coreModule(await assemble(memory)),
    coreModule(await assemble(main)),
    definition(2, 0x00, 0, 0), // core instance 0: memory
    definition(6, [0x00, 0x02], 0x01, 0, 'memory'),
    definition(6, [0x00, 0x00], 0x01, 0, 'realloc'),
    lowered,
    shared === undefined ? [] : definition(6, [0x00, 0x01], 0x01, 0, shared),
    definition(2, 0x01, shared === undefined ? [1] : [2, shared, 0x01, 0], ['memory', 0x02, 0]), // core instance 1: env
    definition(
      2,
      0x01,
      calls.length,
      calls.map((_, index) => [String(index), 0x00, 1 + index]),
    ), // core instance 2: host
    definition(2, 0x00, 1, 2, ['env', 0x12, 1], ['host', 0x12, 2]), // core instance 3: main
    definition(6, [0x00, 0x00], 0x01, 3, 'run'),
    definition(7, 0x6a, 0, 0), // type 1: result
    definition(7, 0x40, 0, 0x00, 1), // type 2: a function that gives one
    definition(8, 0x00, 0x00, 1 + calls.length, 0, 2), // lift
    definition(5, 0x01, 1, [0x00, 'run', 0x01, functions.length]),
    definition(11, 0x00, `wasi:cli/run@${VERSION}`, [0x05, interfaces.length], 0),
    more,
  );
}
