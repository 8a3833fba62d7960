import { BinaryWriter, Cursor } from './binary.ts';

/**
 * Rewrites a WebAssembly module so that it cannot use more than it was given (docs/protocol/run.md, "The fuel rule"):
 *
 * - every function entry and every loop header pays for the instructions of its region before they run; bulk operations pay for their length;
 * - when the slice of fuel in a global falls below zero, the module calls back through a table and the host refills or stops it;
 * - memory and tables have their maximum clamped; the start function becomes an export, so that it too runs under the meter.
 *
 * The global, the table and the type are appended, so no index of the module moves. The original must have passed
 * `WebAssembly.validate` before: a module that names the appended indices itself is invalid and never gets here.
 */

/** The module is not one that the sandbox runs; the message says what it asks for. */
export class ProgramInvalid extends Error {
  override readonly name = 'ProgramInvalid';
}

export interface MeterLimits {
  /** Pages of 64 KiB. */
  readonly memoryPagesMax: number;
  /** Entries of one table. */
  readonly tableEntriesMax: number;
}

export interface MeteredModule {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Pages that the module wants before it runs; may be more than the limit, then `bytes` must not be instantiated. */
  readonly memoryPagesMin: number;
  /** Memories that the module makes, 0 or 1. */
  readonly memories: number;
  readonly imports: readonly ModuleImport[];
  /** What the module itself exports; whoever links it to others hands on nothing else. */
  readonly exported: ReadonlySet<string>;
  /** Names of the added exports; they collide with none of the module's own. */
  readonly exports: {
    readonly fuel: string;
    readonly refused: string;
    readonly refill: string;
    readonly start: string | null;
    readonly memory: string | null;
  };
}

export interface ModuleImport {
  readonly module: string;
  readonly name: string;
  readonly kind: 'function' | 'table' | 'memory' | 'global';
  /** Of a function, such as `iiI:i` (i32, i32, i64 to i32). */
  readonly signature: string | null;
}

/** A program by itself, or one of the modules that a component links to each other. */
export type ModuleRole =
  | { readonly kind: 'command'; readonly module: string; readonly functions: ReadonlyMap<string, string> }
  | { readonly kind: 'part' };

const SECTION = {
  type: 1,
  import: 2,
  function: 3,
  table: 4,
  memory: 5,
  tag: 13,
  global: 6,
  export: 7,
  start: 8,
  element: 9,
  dataCount: 12,
  code: 10,
  data: 11,
} as const;
/** The order in which sections must stand; their numbers do not follow it. */
const ORDER = [1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11] as const;

const TABLES_MAX = 16;
const VALUE = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b, funcref: 0x70, externref: 0x6f } as const;
const LETTERS = new Map<number, string>([
  [VALUE.i32, 'i'],
  [VALUE.i64, 'I'],
  [VALUE.f32, 'f'],
  [VALUE.f64, 'F'],
  [VALUE.v128, 'v'],
  [VALUE.funcref, 'r'],
  [VALUE.externref, 'x'],
]);

/** @param role of a command: the functions that it may import, name -> signature. Throws {@link ProgramInvalid}. */
export function meter(module: Uint8Array<ArrayBuffer>, role: ModuleRole, limits: MeterLimits): MeteredModule {
  if (!WebAssembly.validate(module)) throw new ProgramInvalid(`the module does not validate: ${whyInvalid(module)}`);
  const sections = splitSections(module);
  if (sections.has(SECTION.tag))
    throw new ProgramInvalid('the module uses exceptions, which the sandbox does not offer');

  const types = readTypes(sections.get(SECTION.type));
  const imports = readImports(sections.get(SECTION.import), types);
  const imported = (kind: ModuleImport['kind']) => imports.filter((one) => one.kind === kind).length;
  const functions = readFunctions(sections.get(SECTION.function));
  const tables = clampTables(sections.get(SECTION.table), limits.tableEntriesMax);
  const memory = clampMemory(sections.get(SECTION.memory), limits.memoryPagesMax);
  if (imported('memory') + memory.count > 1)
    throw new ProgramInvalid(`the module has ${imported('memory') + memory.count} memories; one is offered`);
  const globalCount = imported('global') + count(sections.get(SECTION.global));
  const added = {
    type: types.length,
    table: imported('table') + tables.count,
    fuel: globalCount,
    refused: globalCount + 1,
  };
  const names = new Set<string>();
  const exports = readExports(sections.get(SECTION.export), names);
  if (role.kind === 'command') {
    checkImports(imports, role);
    checkEntry(exports, imported('function'), functions, types);
  }
  const fresh = (base: string): string => {
    let name = `hypermesh:${base}`;
    while (names.has(name)) name += '_';
    return name;
  };

  const started = sections.get(SECTION.start);
  const addedNames = {
    fuel: fresh('fuel'),
    refused: fresh('refused'),
    refill: fresh('refill'),
    start: started === undefined ? null : fresh('start'),
    memory: memory.count === 0 ? null : fresh('memory'),
  };
  const exportEntries: (readonly [string, number, number])[] = [
    [addedNames.fuel, 3, added.fuel],
    [addedNames.refused, 3, added.refused],
    [addedNames.refill, 1, added.table],
  ];
  if (addedNames.memory !== null) exportEntries.push([addedNames.memory, 2, 0]);
  if (started !== undefined && addedNames.start !== null)
    exportEntries.push([addedNames.start, 0, new Cursor(started).u32()]);

  const code = sections.get(SECTION.code);
  const out = new BinaryWriter(module.length + (module.length >> 1) + 256);
  out.bytes(module.subarray(0, 8));
  for (const id of ORDER) {
    let payload = sections.get(id);
    switch (id as number) {
      case SECTION.type:
        payload = append(payload, 1, (w) => w.byte(0x60).u32(0).u32(0));
        break;
      case SECTION.table:
        payload = appendTo(tables.payload, tables.count, 1, (w) => w.byte(VALUE.funcref).byte(1).u32(1).u32(1));
        break;
      case SECTION.memory:
        payload = memory.payload;
        break;
      case SECTION.global:
        payload = append(payload, 2, (w) =>
          w.byte(VALUE.i64).byte(1).byte(0x42).byte(0).byte(0x0b).byte(VALUE.i32).byte(1).byte(0x41).byte(0).byte(0x0b),
        );
        break;
      case SECTION.export:
        payload = append(payload, exportEntries.length, (w) => {
          for (const [name, kind, index] of exportEntries) w.name(name).byte(kind).u32(index);
        });
        break;
      case SECTION.start:
        payload = undefined;
        break;
      case SECTION.code:
        if (code !== undefined) {
          const metered = meterCode(code, functions, types, added, imported('function'));
          out.byte(0).u32(metered.hints.length).bytes(metered.hints);
          payload = metered.code;
        }
        break;
      default:
        break;
    }
    if (payload !== undefined) out.byte(id).u32(payload.length).bytes(payload);
  }
  return {
    bytes: out.finish(),
    memoryPagesMin: memory.min,
    memories: memory.count,
    imports,
    exported: names,
    exports: addedNames,
  };
}

function whyInvalid(module: Uint8Array<ArrayBuffer>): string {
  try {
    new WebAssembly.Module(module);
    return 'no reason given';
  } catch (error) {
    return error instanceof Error ? error.message.replace(/^WebAssembly\.Module\(\): /, '').slice(0, 300) : 'unknown';
  }
}

/** Custom sections are dropped: names and debug data do nothing here. */
function splitSections(module: Uint8Array): Map<number, Uint8Array> {
  const cursor = new Cursor(module, 8);
  const sections = new Map<number, Uint8Array>();
  while (!cursor.done) {
    const id = cursor.byte();
    const payload = cursor.take(cursor.u32());
    if (id === 0) continue;
    if (!ORDER.includes(id as (typeof ORDER)[number]))
      throw new ProgramInvalid(`the module has a section ${id}, which the sandbox does not know`);
    sections.set(id, payload);
  }
  return sections;
}

interface FunctionType {
  readonly signature: string;
  readonly parameters: number;
}

function readTypes(payload: Uint8Array | undefined): FunctionType[] {
  if (payload === undefined) return [];
  const cursor = new Cursor(payload);
  return Array.from({ length: cursor.u32() }, () => {
    if (cursor.byte() !== 0x60)
      throw new ProgramInvalid(
        'the module uses types of the garbage-collection proposal, which the sandbox does not offer',
      );
    const values = () => {
      const count = cursor.u32();
      let text = '';
      for (let i = 0; i < count; i++) text += LETTERS.get(valueType(cursor)) ?? '?';
      return text;
    };
    const parameters = values();
    return { signature: `${parameters}:${values()}`, parameters: parameters.length };
  });
}

function valueType(cursor: Cursor): number {
  const byte = cursor.byte();
  if (!LETTERS.has(byte))
    throw new ProgramInvalid(`the module uses the value type 0x${byte.toString(16)}, which the sandbox does not offer`);
  return byte;
}

function readImports(payload: Uint8Array | undefined, types: readonly FunctionType[]): ModuleImport[] {
  if (payload === undefined) return [];
  const cursor = new Cursor(payload);
  return Array.from({ length: cursor.u32() }, () => {
    const [module, name] = [cursor.name(), cursor.name()];
    switch (cursor.byte()) {
      case 0:
        return { module, name, kind: 'function', signature: types[cursor.u32()]?.signature ?? null };
      case 1:
        tableType(cursor);
        sizeLimits(cursor, 'table');
        return { module, name, kind: 'table', signature: null };
      case 2:
        sizeLimits(cursor, 'memory');
        return { module, name, kind: 'memory', signature: null };
      case 3:
        valueType(cursor);
        cursor.byte();
        return { module, name, kind: 'global', signature: null };
      default:
        throw new ProgramInvalid('the module imports an exception tag, which the sandbox does not offer');
    }
  });
}

function checkImports(imports: readonly ModuleImport[], offered: Extract<ModuleRole, { kind: 'command' }>): void {
  for (const { module, name, kind, signature } of imports) {
    const shown = `"${printable(module)}"."${printable(name)}"`;
    if (kind !== 'function' || module !== offered.module)
      throw new ProgramInvalid(`the module imports ${shown}; only functions of "${offered.module}" are offered`);
    const expected = offered.functions.get(name);
    if (expected === undefined)
      throw new ProgramInvalid(`the module imports ${shown}, a function that "${offered.module}" does not have`);
    if (signature !== expected)
      throw new ProgramInvalid(`the module imports ${shown} with the signature ${signature}, but it is ${expected}`);
  }
}

function readFunctions(payload: Uint8Array | undefined): number[] {
  if (payload === undefined) return [];
  const cursor = new Cursor(payload);
  return Array.from({ length: cursor.u32() }, () => cursor.u32());
}

interface SizeLimits {
  readonly min: number;
  readonly max: number | null;
}

function sizeLimits(cursor: Cursor, what: string): SizeLimits {
  const flags = cursor.byte();
  if (flags > 1)
    throw new ProgramInvalid(
      `the module has a ${flags & 2 ? 'shared' : '64-bit or otherwise special'} ${what}, which the sandbox does not offer`,
    );
  const min = cursor.u32();
  return { min, max: flags === 1 ? cursor.u32() : null };
}

function clampTables(payload: Uint8Array | undefined, entriesMax: number): { payload: Uint8Array; count: number } {
  const out = new BinaryWriter(64);
  if (payload === undefined) return { payload: out.finish(), count: 0 };
  const cursor = new Cursor(payload);
  const count = cursor.u32();
  if (count > TABLES_MAX) throw new ProgramInvalid(`the module has ${count} tables; at most ${TABLES_MAX} are offered`);
  for (let i = 0; i < count; i++) {
    const type = tableType(cursor);
    const limits = sizeLimits(cursor, 'table');
    if (limits.min > entriesMax)
      throw new ProgramInvalid(`the module has a table of ${limits.min} entries; at most ${entriesMax} are offered`);
    out
      .byte(type)
      .byte(1)
      .u32(limits.min)
      .u32(Math.min(limits.max ?? entriesMax, entriesMax));
  }
  return { payload: out.finish(), count };
}

function tableType(cursor: Cursor): number {
  const type = cursor.byte();
  if (type === VALUE.funcref || type === VALUE.externref) return type;
  throw new ProgramInvalid('the module has a table of typed references, which the sandbox does not offer');
}

function clampMemory(
  payload: Uint8Array | undefined,
  pagesMax: number,
): { payload: Uint8Array | undefined; min: number; count: number } {
  if (payload === undefined) return { payload: undefined, min: 0, count: 0 };
  const cursor = new Cursor(payload);
  const count = cursor.u32();
  if (count > 1) throw new ProgramInvalid(`the module has ${count} memories; one is offered`);
  if (count === 0) return { payload, min: 0, count };
  const limits = sizeLimits(cursor, 'memory');
  const max = Math.max(limits.min, Math.min(limits.max ?? pagesMax, pagesMax));
  return { payload: new BinaryWriter(16).u32(1).byte(1).u32(limits.min).u32(max).finish(), min: limits.min, count };
}

function readExports(
  payload: Uint8Array | undefined,
  names: Set<string>,
): Map<string, { kind: number; index: number }> {
  const exports = new Map<string, { kind: number; index: number }>();
  if (payload === undefined) return exports;
  const cursor = new Cursor(payload);
  for (let left = cursor.u32(); left > 0; left--) {
    const name = cursor.name();
    names.add(name);
    exports.set(name, { kind: cursor.byte(), index: cursor.u32() });
  }
  return exports;
}

function checkEntry(
  exports: ReadonlyMap<string, { kind: number; index: number }>,
  imported: number,
  functions: readonly number[],
  types: readonly FunctionType[],
): void {
  const entry = exports.get('_start');
  if (entry === undefined || entry.kind !== 0)
    throw new ProgramInvalid('the module exports no function "_start"; the sandbox runs WASI commands');
  const type = types[functions[entry.index - imported] ?? -1];
  if (type?.signature !== ':')
    throw new ProgramInvalid('the module exports a "_start" that takes or returns values, or is imported');
  if (exports.get('memory')?.kind !== 2) throw new ProgramInvalid('the module exports no memory named "memory"');
}

function count(payload: Uint8Array | undefined): number {
  return payload === undefined ? 0 : new Cursor(payload).u32();
}

/** A vector section with `more` entries behind those it has. */
function append(payload: Uint8Array | undefined, more: number, write: (writer: BinaryWriter) => unknown): Uint8Array {
  if (payload === undefined) return appendTo(new Uint8Array(), 0, more, write);
  const cursor = new Cursor(payload);
  const had = cursor.u32();
  return appendTo(cursor.rest(), had, more, write);
}

function appendTo(
  entries: Uint8Array,
  had: number,
  more: number,
  write: (writer: BinaryWriter) => unknown,
): Uint8Array {
  const writer = new BinaryWriter(entries.length + 64).u32(had + more).bytes(entries);
  write(writer);
  return writer.finish();
}

interface Added {
  readonly type: number;
  readonly table: number;
  readonly fuel: number;
  readonly refused: number;
}

/**
 * The code section, and a custom section of branch hints (`metadata.code.branch_hint`): that a check calls the host is unlikely.
 * Without them the engine keeps registers free for that call, and small loops are half as fast.
 */
function meterCode(
  payload: Uint8Array,
  functions: readonly number[],
  types: readonly FunctionType[],
  added: Added,
  imported: number,
): { code: Uint8Array; hints: Uint8Array } {
  const cursor = new Cursor(payload);
  const out = new BinaryWriter(payload.length + (payload.length >> 1) + 64);
  const total = cursor.u32();
  const hints = new BinaryWriter(total * 8 + 64).name('metadata.code.branch_hint').u32(total);
  out.u32(total);
  for (let i = 0; i < total; i++) {
    const body = cursor.take(cursor.u32());
    const metered = meterFunction(body, types[functions[i] ?? -1]?.parameters ?? 0, added);
    out.u32(metered.body.length).bytes(metered.body);
    hints.u32(imported + i).u32(metered.checks.length);
    for (const at of metered.checks) hints.u32(at).byte(1).byte(0);
  }
  return { code: out.finish(), hints: hints.finish() };
}

/** A place in the original body where code goes in. */
type Insertion =
  | { readonly at: number; readonly kind: 'charge'; readonly region: { cost: number } }
  /** The length of a bulk operation is on top of the stack. */
  | { readonly at: number; readonly kind: 'length' }
  /** The result of memory.grow is on top of the stack. */
  | { readonly at: number; readonly kind: 'grown' };

/** Also returns where in the new body the branches of the checks are. */
function meterFunction(
  body: Uint8Array,
  parameters: number,
  added: Added,
): { body: Uint8Array; checks: readonly number[] } {
  const cursor = new Cursor(body);
  const groups = cursor.u32();
  const groupsAt = cursor.at;
  let locals = 0;
  for (let i = 0; i < groups; i++) {
    locals += cursor.u32();
    valueType(cursor);
  }
  const codeAt = cursor.at;
  const insertions = scan(cursor, codeAt);

  const scratch = parameters + locals;
  const needsScratch = insertions.some((insertion) => insertion.kind !== 'charge');
  const out = new BinaryWriter(body.length + insertions.length * 24 + 16);
  out.u32(groups + (needsScratch ? 1 : 0)).bytes(body.subarray(groupsAt, codeAt));
  if (needsScratch) out.u32(1).byte(VALUE.i32);
  const checks: number[] = [];
  let copied = codeAt;
  for (const insertion of insertions) {
    out.bytes(body.subarray(copied, insertion.at));
    copied = insertion.at;
    switch (insertion.kind) {
      case 'charge':
        // fuel -= cost
        out
          .byte(0x23)
          .u32(added.fuel)
          .byte(0x42)
          .i64(BigInt(insertion.region.cost))
          .byte(0x7d)
          .byte(0x24)
          .u32(added.fuel);
        checks.push(writeCheck(out, added));
        break;
      case 'length':
        // fuel -= length >> 3, with the length left where it was
        out.byte(0x22).u32(scratch).byte(0x23).u32(added.fuel).byte(0x20).u32(scratch);
        out.byte(0xad).byte(0x42).byte(3).byte(0x88).byte(0x7d).byte(0x24).u32(added.fuel);
        checks.push(writeCheck(out, added));
        break;
      case 'grown':
        // if result == -1: refused = 1, with the result left where it was
        out.byte(0x22).u32(scratch).byte(0x20).u32(scratch).byte(0x41).byte(0x7f).byte(0x46);
        out.byte(0x04).byte(0x40).byte(0x41).byte(1).byte(0x24).u32(added.refused).byte(0x0b);
        break;
    }
  }
  return { body: out.bytes(body.subarray(copied)).finish(), checks };
}

/** if fuel < 0: call the host through the added table, which refills or does not return. Returns where the `if` is. */
function writeCheck(out: BinaryWriter, added: Added): number {
  out.byte(0x23).u32(added.fuel).byte(0x42).byte(0).byte(0x53);
  const at = out.length;
  out.byte(0x04).byte(0x40).byte(0x41).byte(0).byte(0x11).u32(added.type).u32(added.table).byte(0x0b);
  return at;
}

/** Walks the instructions of one function: counts each region and finds where code goes in. */
function scan(cursor: Cursor, codeAt: number): Insertion[] {
  let region = { cost: 0 };
  const insertions: Insertion[] = [{ at: codeAt, kind: 'charge', region }];
  /** The region to return to at the `end` of each open block. */
  const open: { cost: number }[] = [];
  while (!cursor.done) {
    const at = cursor.at;
    const opcode = cursor.byte();
    region.cost += 1;
    switch (opcode) {
      case 0x02: // block
      case 0x04: // if
        blockType(cursor);
        open.push(region);
        break;
      case 0x03: // loop
        blockType(cursor);
        open.push(region);
        region = { cost: 0 };
        insertions.push({ at: cursor.at, kind: 'charge', region });
        break;
      case 0x0b: // end, of a block or of the function
        region = open.pop() ?? region;
        break;
      case 0x0c: // br
      case 0x0d: // br_if
      case 0x10: // call
      case 0x12: // return_call
      case 0x20: // local.get, local.set, local.tee
      case 0x21:
      case 0x22:
      case 0x23: // global.get, global.set
      case 0x24:
      case 0x25: // table.get, table.set
      case 0x26:
      case 0xd2: // ref.func
        cursor.u32();
        break;
      case 0x0e: // br_table
        for (let left = cursor.u32() + 1; left > 0; left--) cursor.u32();
        break;
      case 0x11: // call_indirect
      case 0x13: // return_call_indirect
        cursor.u32();
        cursor.u32();
        break;
      case 0x1c: // select with types
        for (let left = cursor.u32(); left > 0; left--) valueType(cursor);
        break;
      case 0x3f: // memory.size
        cursor.byte();
        break;
      case 0x40: // memory.grow
        cursor.byte();
        insertions.push({ at: cursor.at, kind: 'grown' });
        break;
      case 0x41: // i32.const
      case 0x42: // i64.const
        cursor.skipLeb();
        break;
      case 0x43: // f32.const
        cursor.take(4);
        break;
      case 0x44: // f64.const
        cursor.take(8);
        break;
      case 0xd0: // ref.null
        valueType(cursor);
        break;
      case 0xfc:
        if (prefixedFc(cursor)) insertions.push({ at, kind: 'length' });
        break;
      case 0xfd:
        simd(cursor);
        break;
      default:
        if (opcode >= 0x28 && opcode <= 0x3e) {
          memoryArgument(cursor); // loads and stores
        } else if (!isPlain(opcode)) {
          throw new ProgramInvalid(
            `the module uses the instruction 0x${opcode.toString(16)} (${proposalOf(opcode)}), which the sandbox does not offer`,
          );
        }
    }
  }
  return insertions;
}

/** Instructions without immediates: unreachable, nop, else, return, drop, select, arithmetic, sign extension, ref.is_null. */
function isPlain(opcode: number): boolean {
  return (
    opcode <= 0x01 ||
    opcode === 0x05 ||
    opcode === 0x0f ||
    opcode === 0x1a ||
    opcode === 0x1b ||
    (opcode >= 0x45 && opcode <= 0xc4) ||
    opcode === 0xd1
  );
}

function proposalOf(opcode: number): string {
  if (opcode === 0xfe) return 'threads';
  if (opcode === 0xfb) return 'garbage collection';
  if ((opcode >= 0x06 && opcode <= 0x0a) || opcode === 0x18 || opcode === 0x19 || opcode === 0x1f) return 'exceptions';
  return 'typed references or later';
}

function blockType(cursor: Cursor): void {
  const byte = cursor.peek();
  if (byte === 0x40 || LETTERS.has(byte)) cursor.byte();
  else if ((byte & 0xc0) === 0x40) valueType(cursor);
  else cursor.skipLeb();
}

function memoryArgument(cursor: Cursor): void {
  if (cursor.u32() >= 64)
    throw new ProgramInvalid('the module names a memory by index, which the sandbox does not offer');
  cursor.skipLeb();
}

/** Returns whether the length of a bulk operation is on top of the stack before it. */
function prefixedFc(cursor: Cursor): boolean {
  const opcode = cursor.u32();
  switch (opcode) {
    case 8: // memory.init
    case 10: // memory.copy
    case 12: // table.init
    case 14: // table.copy
      cursor.u32();
      cursor.u32();
      return true;
    case 11: // memory.fill
    case 15: // table.grow
    case 17: // table.fill
      cursor.u32();
      return true;
    case 9: // data.drop
    case 13: // elem.drop
    case 16: // table.size
      cursor.u32();
      return false;
    default:
      if (opcode <= 7) return false; // saturating truncation
      throw new ProgramInvalid(`the module uses the instruction 0xfc ${opcode}, which the sandbox does not offer`);
  }
}

function simd(cursor: Cursor): void {
  const opcode = cursor.u32();
  if (opcode <= 11 || opcode === 92 || opcode === 93) {
    memoryArgument(cursor);
  } else if (opcode === 12 || opcode === 13) {
    cursor.take(16); // v128.const, i8x16.shuffle
  } else if (opcode >= 21 && opcode <= 34) {
    cursor.byte(); // extract and replace lane
  } else if (opcode >= 84 && opcode <= 91) {
    memoryArgument(cursor); // load and store lane
    cursor.byte();
  } else if (opcode > 255) {
    throw new ProgramInvalid('the module uses relaxed SIMD, whose results differ between machines');
  }
}

export function printable(text: string): string {
  return JSON.stringify(text.slice(0, 80)).slice(1, -1);
}
