import { Cursor } from './binary.ts';
import { ProgramInvalid, printable } from './meter.ts';

/**
 * Reads a component (component model, binary format 0x0d) into the list of its definitions, in their order. Types are walked over, not kept:
 * whoever is called by a component knows what it takes and gives.
 */

export type Sort =
  | 'core func'
  | 'core table'
  | 'core memory'
  | 'core global'
  | 'core type'
  | 'core module'
  | 'core instance'
  | 'func'
  | 'value'
  | 'type'
  | 'component'
  | 'instance';

export interface Item {
  readonly sort: Sort;
  readonly index: number;
}
type Named = readonly [name: string, item: Item];

/** Indices of the core memory and of the function that gives a callee room in it. */
export interface CanonOptions {
  readonly memory: number | null;
  readonly realloc: number | null;
  readonly postReturn: number | null;
}

export type Definition =
  | { readonly kind: 'core-module'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'core-instantiate'; readonly module: number; readonly args: readonly Named[] }
  | { readonly kind: 'core-group'; readonly exports: readonly Named[] }
  | { readonly kind: 'component'; readonly component: Component }
  | { readonly kind: 'instantiate'; readonly component: number; readonly args: readonly Named[] }
  | { readonly kind: 'group'; readonly exports: readonly Named[] }
  | { readonly kind: 'alias'; readonly sort: Sort; readonly instance: number; readonly name: string }
  | { readonly kind: 'alias-core'; readonly sort: Sort; readonly instance: number; readonly name: string }
  | { readonly kind: 'alias-outer'; readonly sort: Sort; readonly count: number; readonly index: number }
  | { readonly kind: 'type'; readonly sort: 'type' | 'core type' }
  | { readonly kind: 'lift'; readonly func: number; readonly options: CanonOptions }
  | { readonly kind: 'lower'; readonly func: number; readonly options: CanonOptions }
  | { readonly kind: 'drop'; readonly type: number }
  | { readonly kind: 'import'; readonly name: string; readonly sort: Sort }
  | { readonly kind: 'export'; readonly name: string; readonly item: Item };

export interface Component {
  readonly definitions: readonly Definition[];
}

const NESTING_MAX = 8;
const DEFINITIONS_MAX = 100_000;
const CORE_SORTS = new Map<number, Sort>([
  [0x00, 'core func'],
  [0x01, 'core table'],
  [0x02, 'core memory'],
  [0x03, 'core global'],
  [0x10, 'core type'],
  [0x11, 'core module'],
  [0x12, 'core instance'],
]);
const SORTS = new Map<number, Sort>([
  [0x01, 'func'],
  [0x02, 'value'],
  [0x03, 'type'],
  [0x04, 'component'],
  [0x05, 'instance'],
]);

export function isComponent(bytes: Uint8Array): boolean {
  return bytes.length >= 8 && bytes.subarray(0, 8).every((byte, index) => byte === HEAD[index]);
}
const HEAD = [0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0];

/** Throws {@link ProgramInvalid}. */
export function readComponent(bytes: Uint8Array<ArrayBuffer>): Component {
  try {
    return new Reader({ left: DEFINITIONS_MAX }).component(bytes, 0);
  } catch (error) {
    if (error instanceof RangeError) throw new ProgramInvalid(`the component cannot be read: ${error.message}`);
    throw error;
  }
}

class Reader {
  readonly #budget: { left: number };

  constructor(budget: { left: number }) {
    this.#budget = budget;
  }

  component(bytes: Uint8Array<ArrayBuffer>, depth: number): Component {
    if (!isComponent(bytes)) throw new ProgramInvalid('a component in it is of another version of the format');
    if (depth > NESTING_MAX) throw new ProgramInvalid(`it nests components deeper than ${NESTING_MAX} levels`);
    const definitions: Definition[] = [];
    const sections = new Cursor(bytes, 8);
    while (!sections.done) {
      const id = sections.byte();
      const body = sections.take(sections.u32()) as Uint8Array<ArrayBuffer>;
      if (id === 0) continue;
      if (id === 1) {
        this.#add(definitions, { kind: 'core-module', bytes: body.slice() });
      } else if (id === 4) {
        this.#add(definitions, { kind: 'component', component: this.component(body, depth + 1) });
      } else {
        const read = READERS[id];
        if (read === undefined) throw new ProgramInvalid(`it has a section ${id}, which the sandbox does not offer`);
        const cursor = new Cursor(body);
        for (let left = cursor.u32(); left > 0; left--) this.#add(definitions, read(cursor));
        if (!cursor.done) throw new ProgramInvalid(`its section ${id} is longer than what it says`);
      }
    }
    return { definitions };
  }

  #add(definitions: Definition[], definition: Definition): void {
    this.#budget.left -= 1;
    if (this.#budget.left < 0) throw new ProgramInvalid(`it has more than ${DEFINITIONS_MAX} definitions`);
    definitions.push(definition);
  }
}

const READERS: Readonly<Record<number, (cursor: Cursor) => Definition>> = {
  2: (cursor) =>
    choose(cursor, 'core instance', {
      0: () => ({ kind: 'core-instantiate', module: cursor.u32(), args: many(cursor, coreArgument) }),
      1: () => ({
        kind: 'core-group',
        exports: many(cursor, () => [cursor.name(), { sort: sortOf(cursor, CORE_SORTS), index: cursor.u32() }]),
      }),
    }),
  3: (cursor) => {
    coreType(cursor);
    return { kind: 'type', sort: 'core type' };
  },
  5: (cursor) =>
    choose(cursor, 'instance', {
      0: () => ({
        kind: 'instantiate',
        component: cursor.u32(),
        args: many(cursor, () => [cursor.name(), anyItem(cursor)]),
      }),
      1: () => ({ kind: 'group', exports: many(cursor, () => [externName(cursor), anyItem(cursor)]) }),
    }),
  6: alias,
  7: (cursor) => {
    type(cursor, 0);
    return { kind: 'type', sort: 'type' };
  },
  8: canon,
  10: (cursor) => ({ kind: 'import', name: externName(cursor), sort: externType(cursor) }),
  11: (cursor) => {
    const name = externName(cursor);
    const item = anyItem(cursor);
    optional(cursor, externType);
    return { kind: 'export', name, item };
  },
};

function alias(cursor: Cursor): Definition {
  const sort = anySort(cursor);
  return choose(cursor, 'alias', {
    0: () => ({ kind: 'alias', sort, instance: cursor.u32(), name: cursor.name() }),
    1: () => ({ kind: 'alias-core', sort, instance: cursor.u32(), name: cursor.name() }),
    2: () => ({ kind: 'alias-outer', sort, count: cursor.u32(), index: cursor.u32() }),
  });
}

function canon(cursor: Cursor): Definition {
  return choose(cursor, 'canonical function', {
    0: () => {
      expectByte(cursor, 0);
      const lifted = { kind: 'lift', func: cursor.u32(), options: canonOptions(cursor) } as const;
      cursor.u32();
      return lifted;
    },
    1: () => {
      expectByte(cursor, 0);
      return { kind: 'lower', func: cursor.u32(), options: canonOptions(cursor) };
    },
    3: () => ({ kind: 'drop', type: cursor.u32() }),
  });
}

function canonOptions(cursor: Cursor): CanonOptions {
  const options = { memory: null as number | null, realloc: null as number | null, postReturn: null as number | null };
  for (let left = cursor.u32(); left > 0; left--) {
    const option = cursor.byte();
    switch (option) {
      case 0x00: // UTF-8
        break;
      case 0x01:
      case 0x02:
        throw new ProgramInvalid('it passes text as UTF-16, and only UTF-8 is offered');
      case 0x03:
        options.memory = cursor.u32();
        break;
      case 0x04:
        options.realloc = cursor.u32();
        break;
      case 0x05:
        options.postReturn = cursor.u32();
        break;
      default:
        throw new ProgramInvalid('it calls asynchronously (WASI 0.3), which the sandbox does not offer');
    }
  }
  return options;
}

function coreArgument(cursor: Cursor): Named {
  const name = cursor.name();
  expectByte(cursor, 0x12);
  return [name, { sort: 'core instance', index: cursor.u32() }];
}

function anyItem(cursor: Cursor): Item {
  return { sort: anySort(cursor), index: cursor.u32() };
}

function anySort(cursor: Cursor): Sort {
  if (cursor.peek() !== 0) return sortOf(cursor, SORTS);
  cursor.byte();
  return sortOf(cursor, CORE_SORTS);
}

function sortOf(cursor: Cursor, sorts: ReadonlyMap<number, Sort>): Sort {
  const byte = cursor.byte();
  const sort = sorts.get(byte);
  if (sort === undefined) throw new ProgramInvalid(`it names a sort ${byte}, which the sandbox does not know`);
  return sort;
}

function externName(cursor: Cursor): string {
  const form = cursor.byte();
  if (form > 1) throw new ProgramInvalid('it has a name with a version suffix, which the sandbox does not know');
  return cursor.name();
}

/** What an import is, or an export is said to be. */
function externType(cursor: Cursor): Sort {
  const sort = anySort(cursor);
  switch (sort) {
    case 'core module':
    case 'func':
    case 'component':
    case 'instance':
      cursor.u32();
      return sort;
    case 'type':
      if (cursor.byte() === 0) cursor.u32();
      return sort;
    default:
      throw new ProgramInvalid(`it imports or exports a ${sort}, which the sandbox does not offer`);
  }
}

// Types: walked over.

const TYPE_NESTING_MAX = 100;

function type(cursor: Cursor, depth: number): void {
  if (depth > TYPE_NESTING_MAX) throw new ProgramInvalid('its types nest too deep');
  switch (cursor.peek()) {
    case 0x3f: // resource
      cursor.byte();
      expectByte(cursor, 0x7f);
      optional(cursor, (inner) => inner.u32());
      return;
    case 0x40: // function
      cursor.byte();
      many(cursor, labelled);
      if (cursor.byte() === 0) valueType(cursor);
      else expectByte(cursor, 0);
      return;
    case 0x41: // component
    case 0x42: // instance
      cursor.byte();
      many(cursor, () => declaration(cursor, depth + 1));
      return;
    case 0x43:
    case 0x3e:
      throw new ProgramInvalid('it has an asynchronous type (WASI 0.3), which the sandbox does not offer');
    default:
      definedType(cursor);
  }
}

function definedType(cursor: Cursor): void {
  const form = cursor.byte();
  switch (form) {
    case 0x72: // record
      many(cursor, labelled);
      return;
    case 0x71: // variant
      many(cursor, () => {
        cursor.name();
        optional(cursor, valueType);
        expectByte(cursor, 0);
      });
      return;
    case 0x70: // list
    case 0x6b: // option
      valueType(cursor);
      return;
    case 0x6f: // tuple
      many(cursor, valueType);
      return;
    case 0x6e: // flags
    case 0x6d: // enum
      many(cursor, (inner) => inner.name());
      return;
    case 0x6a: // result
      optional(cursor, valueType);
      optional(cursor, valueType);
      return;
    case 0x69: // own
    case 0x68: // borrow
      cursor.u32();
      return;
    default:
      if (form < 0x73 || form > 0x7f)
        throw new ProgramInvalid(`it has a type 0x${form.toString(16)}, which the sandbox does not offer`);
  }
}

function declaration(cursor: Cursor, depth: number): void {
  switch (cursor.byte()) {
    case 0x00:
      coreType(cursor);
      return;
    case 0x01:
      type(cursor, depth);
      return;
    case 0x02:
      alias(cursor);
      return;
    case 0x03: // import
    case 0x04: // export
      externName(cursor);
      externType(cursor);
      return;
    default:
      throw new ProgramInvalid('it has a declaration that the sandbox does not know');
  }
}

function coreType(cursor: Cursor): void {
  if (cursor.byte() !== 0x60)
    throw new ProgramInvalid('it describes core modules by their type, which the sandbox does not offer');
  many(cursor, (inner) => inner.byte());
  many(cursor, (inner) => inner.byte());
}

function labelled(cursor: Cursor): void {
  cursor.name();
  valueType(cursor);
}

/** An index, or a negative number that stands for a primitive type. */
function valueType(cursor: Cursor): void {
  cursor.skipLeb();
}

function many<T>(cursor: Cursor, read: (cursor: Cursor) => T): T[] {
  const list: T[] = [];
  for (let left = cursor.u32(); left > 0; left--) list.push(read(cursor));
  return list;
}

function optional(cursor: Cursor, read: (cursor: Cursor) => unknown): void {
  if (cursor.byte() !== 0) read(cursor);
}

function choose(cursor: Cursor, what: string, forms: Readonly<Record<number, () => Definition>>): Definition {
  const form = cursor.byte();
  const read = forms[form];
  if (read === undefined)
    throw new ProgramInvalid(`it has a ${what} of the form ${form}, which the sandbox does not offer`);
  return read();
}

function expectByte(cursor: Cursor, expected: number): void {
  const byte = cursor.byte();
  if (byte !== expected)
    throw new ProgramInvalid(`it has the byte ${printable(String(byte))} where ${expected} is expected`);
}
