/**
 * The canonical ABI of the component model, as far as the functions of WASI 0.2 need it: parameters come flat, results go flat or, when they
 * are more than one value, into the memory of the caller. Pointers and handles of a program are checked like any input.
 */

/** What a program did that no correct program does; ends it. */
export class Trap extends Error {
  override readonly name = 'Trap';
}

/** Thrown by a host function whose result is a `result`: its error case. */
export class Failure extends Error {
  readonly value: unknown;
  constructor(value: unknown) {
    super('failure');
    this.value = value;
  }
}

type Flat = 'i' | 'I';
type Next = () => number | bigint;

/** A type as a parameter and as a result. */
export interface Type<T> {
  readonly align: number;
  readonly size: number;
  /** The core values that stand for one value: i for i32, I for i64. */
  readonly flat: readonly Flat[];
  lift(caller: Caller, next: Next): T;
  load(caller: Caller, at: number): T;
  store(caller: Caller, at: number, value: T): void;
  /** Only where `flat` is one value. */
  lower(caller: Caller, value: T): number | bigint;
}

export interface HostFunction {
  /** As modules have it, such as `iI:i`; null: of no interest, because it cannot be called with anything that exists. */
  readonly signature: string | null;
  call(caller: Caller, args: readonly (number | bigint)[]): number | bigint | undefined;
}

/** Something that a program holds by a handle. */
export abstract class Resource {
  /** The program dropped its handle. */
  close(): void {}
}

const HANDLES_MAX = 4_096;

/** The resources that a program holds. 0 is no handle. */
export class Handles {
  readonly #held: (Resource | undefined)[] = [undefined];
  readonly #free: number[] = [];

  add(resource: Resource): number {
    const handle = this.#free.pop() ?? this.#held.length;
    if (handle > HANDLES_MAX) throw new Trap(`more than ${HANDLES_MAX} resources are held at a time`);
    this.#held[handle] = resource;
    return handle;
  }

  get<T extends Resource>(handle: number, kind: abstract new (...args: never[]) => T): T {
    const resource = this.#held[handle];
    if (resource instanceof kind) return resource;
    throw new Trap(`${handle} is not the handle of such a resource`);
  }

  drop(handle: number): void {
    const resource = this.#held[handle];
    if (resource === undefined) throw new Trap(`${handle} is not a handle`);
    this.#held[handle] = undefined;
    this.#free.push(handle);
    resource.close();
  }
}

/** The module from which a host function is called, as its `canon lower` says. */
export class Caller {
  readonly handles: Handles;
  readonly #memory: WebAssembly.Memory | null;
  readonly #realloc: ((...args: number[]) => unknown) | null;
  readonly #gate: { isOpen: boolean };

  /** @param gate shut while the program makes room for a result: it may not call out then. */
  constructor(
    handles: Handles,
    gate: { isOpen: boolean },
    memory: WebAssembly.Memory | null,
    realloc: ((...args: number[]) => unknown) | null,
  ) {
    this.handles = handles;
    this.#gate = gate;
    this.#memory = memory;
    this.#realloc = realloc;
  }

  get memoryBytes(): number {
    return this.#buffer.byteLength;
  }

  enter(): void {
    if (!this.#gate.isOpen) throw new Trap('it called out while it made room for a result');
  }

  bytes(at: number, length: number): Uint8Array<ArrayBuffer> {
    if (at + length > this.#buffer.byteLength) throw new Trap('a pointer leads out of the memory');
    return new Uint8Array(this.#buffer, at, length);
  }

  view(at: number, length: number): DataView {
    if (at + length > this.#buffer.byteLength) throw new Trap('a pointer leads out of the memory');
    return new DataView(this.#buffer, at, length);
  }

  /** New memory of the program. */
  room(align: number, size: number): number {
    if (this.#realloc === null) throw new Trap('it lowered a function without realloc that returns a list');
    this.#gate.isOpen = false;
    const at = Number(this.#realloc(0, 0, align, size)) >>> 0;
    this.#gate.isOpen = true;
    if (at % align !== 0) throw new Trap('its realloc returned a pointer that is not aligned');
    this.view(at, size);
    return at;
  }

  get #buffer(): ArrayBuffer {
    if (this.#memory === null) throw new Trap('it lowered a function without memory that needs one');
    return this.#memory.buffer;
  }
}

export function fn<P extends readonly unknown[], R>(
  params: { readonly [K in keyof P]: Type<P[K]> },
  result: Type<R> | null,
  work: (...args: [...P, Caller]) => R,
): HostFunction {
  const types = params as readonly Type<unknown>[];
  const byPointer = result !== null && result.flat.length > 1;
  const flat = types.flatMap((type) => type.flat);
  return {
    signature: `${flat.join('')}${byPointer ? 'i' : ''}:${byPointer ? '' : (result?.flat.join('') ?? '')}`,
    call(caller, args) {
      let at = 0;
      const next = () => args[at++]!;
      const values = types.map((type) => type.lift(caller, next));
      const value = work(...(values as unknown as P), caller);
      if (result === null || result.flat.length === 0) return undefined;
      if (!byPointer) return result.lower(caller, value);
      result.store(caller, Number(next()) >>> 0, value);
      return undefined;
    },
  };
}

/** Functions of resources that do not exist here. */
export const unreachable: HostFunction = {
  signature: null,
  call() {
    throw new Trap('there is no such resource');
  },
};

interface Scalar<T> {
  readonly size: number;
  readonly flat: Flat;
  fromCore(value: number | bigint, caller: Caller): T;
  toCore(value: T, caller: Caller): number | bigint;
}

function scalar<T>({ size, flat, fromCore, toCore }: Scalar<T>): Type<T> {
  return {
    align: size,
    size,
    flat: [flat],
    lift: (caller, next) => fromCore(next(), caller),
    load(caller, at) {
      const view = caller.view(at, size);
      if (size === 8) return fromCore(view.getBigUint64(0, true), caller);
      return fromCore(size === 4 ? view.getUint32(0, true) : view.getUint8(0), caller);
    },
    store(caller, at, value) {
      const view = caller.view(at, size);
      const core = toCore(value, caller);
      if (size === 8) view.setBigUint64(0, BigInt(core), true);
      else if (size === 4) view.setUint32(0, Number(core), true);
      else view.setUint8(0, Number(core));
    },
    lower: (caller, value) => toCore(value, caller),
  };
}

const small = (size: number) =>
  scalar<number>({
    size,
    flat: 'i',
    fromCore: (value) => (size === 1 ? Number(value) & 0xff : Number(value) >>> 0),
    toCore: (value) => value,
  });
export const u8 = small(1);
export const u32 = small(4);
export const u64 = scalar<bigint>({
  size: 8,
  flat: 'I',
  fromCore: (value) => BigInt.asUintN(64, BigInt(value)),
  toCore: (value) => value,
});
export const bool = scalar<boolean>({
  size: 1,
  flat: 'i',
  fromCore: (value) => Number(value) !== 0,
  toCore: (value) => (value ? 1 : 0),
});

/** One of the first `count` numbers. */
export function enumeration(count: number): Type<number> {
  return scalar({
    size: 1,
    flat: 'i',
    fromCore(value) {
      const index = Number(value) >>> 0;
      if (index >= count) throw new Trap(`${index} is not one of ${count} cases`);
      return index;
    },
    toCore: (value) => value,
  });
}

/** At most 8 flags, as bits; unknown ones are dropped. */
export function flags(count: number): Type<number> {
  return scalar({
    size: 1,
    flat: 'i',
    fromCore: (value) => Number(value) & ((1 << count) - 1),
    toCore: (value) => value,
  });
}

/** A resource that stays with its owner. */
export function borrow<T extends Resource>(kind: abstract new (...args: never[]) => T): Type<T> {
  return scalar<T>({
    size: 4,
    flat: 'i',
    fromCore: (value, caller) => caller.handles.get(Number(value) >>> 0, kind),
    toCore: (value, caller) => caller.handles.add(value),
  });
}

/** A resource that becomes the program's; only as a result. */
export const own: Type<Resource> = scalar<Resource>({
  size: 4,
  flat: 'i',
  fromCore() {
    throw new Trap('no function takes a resource away');
  },
  toCore: (value, caller) => caller.handles.add(value),
});

/** Two words: where, and how many. */
function pointed<T>(
  read: (caller: Caller, at: number, count: number) => T,
  write: (caller: Caller, value: T) => readonly [at: number, count: number],
): Type<T> {
  return {
    align: 4,
    size: 8,
    flat: ['i', 'i'],
    lift: (caller, next) => read(caller, Number(next()) >>> 0, Number(next()) >>> 0),
    load(caller, from) {
      const view = caller.view(from, 8);
      return read(caller, view.getUint32(0, true), view.getUint32(4, true));
    },
    store(caller, to, value) {
      const [at, count] = write(caller, value);
      const view = caller.view(to, 8);
      view.setUint32(0, at, true);
      view.setUint32(4, count, true);
    },
    lower: notOne,
  };
}

/** list<u8>: valid during the call. */
export const bytes: Type<Uint8Array> = pointed<Uint8Array>(
  (caller, at, count) => caller.bytes(at, count),
  (caller, value) => {
    const at = caller.room(1, value.length);
    caller.bytes(at, value.length).set(value);
    return [at, value.length];
  },
);

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

export const string: Type<string> = pointed<string>(
  (caller, at, count) => {
    try {
      return decoder.decode(caller.bytes(at, count));
    } catch (error) {
      throw error instanceof Trap ? error : new Trap('a text is not UTF-8');
    }
  },
  (caller, value) => {
    const text = encoder.encode(value);
    const at = caller.room(1, text.length);
    caller.bytes(at, text.length).set(text);
    return [at, text.length];
  },
);

const LIST_MAX = 1_024;

export function list<T>(type: Type<T>): Type<readonly T[]> {
  return pointed<readonly T[]>(
    (caller, at, count) => {
      if (count > LIST_MAX) throw new Trap(`a list has more than ${LIST_MAX} entries`);
      return Array.from({ length: count }, (_, index) => type.load(caller, at + index * type.size));
    },
    (caller, values) => {
      const at = caller.room(type.align, type.size * values.length);
      for (const [index, value] of values.entries()) type.store(caller, at + index * type.size, value);
      return [at, values.length];
    },
  );
}

export function tuple<P extends readonly unknown[]>(
  ...types: { readonly [K in keyof P]: Type<P[K]> }
): Type<Readonly<P>> {
  const fields = types as readonly Type<unknown>[];
  const offsets: number[] = [];
  let end = 0;
  for (const type of fields) {
    offsets.push(aligned(end, type.align));
    end = offsets.at(-1)! + type.size;
  }
  const align = Math.max(1, ...fields.map((type) => type.align));
  return {
    align,
    size: aligned(end, align),
    flat: fields.flatMap((type) => type.flat),
    lift: (caller, next) => fields.map((type) => type.lift(caller, next)) as unknown as Readonly<P>,
    load: (caller, at) =>
      fields.map((type, index) => type.load(caller, at + offsets[index]!)) as unknown as Readonly<P>,
    store(caller, at, values) {
      for (const [index, type] of fields.entries()) type.store(caller, at + offsets[index]!, values[index]);
    },
    lower: notOne,
  };
}

export interface Case {
  readonly index: number;
  readonly value: unknown;
}

/** The cases with what each carries; at most one of them may carry more than the first words of another. */
export function variant(...cases: readonly (Type<unknown> | null)[]): Type<Case> {
  const types = cases;
  const align = Math.max(1, ...types.map((type) => type?.align ?? 1));
  const offset = aligned(1, align);
  const longest = types.reduce<readonly Flat[]>((most, type) => {
    const flat = type?.flat ?? [];
    return flat.length > most.length ? flat : most;
  }, []);
  return {
    align,
    size: aligned(offset + Math.max(0, ...types.map((type) => type?.size ?? 0)), align),
    flat: ['i', ...longest],
    lift(caller, next) {
      const index = Number(next()) >>> 0;
      if (index >= types.length) throw new Trap(`${index} is not one of ${types.length} cases`);
      const payload = longest.map(() => next());
      let at = 0;
      return { index, value: types[index]?.lift(caller, () => payload[at++]!) };
    },
    load() {
      throw new Trap('no function takes a list of variants');
    },
    store(caller, at, { index, value }) {
      types[index]?.store(caller, at + offset, value);
      caller.view(at, 1).setUint8(0, index);
    },
    lower: (_caller, { index }) => index,
  };
}

export function option<T>(type: Type<T>): Type<T | null> {
  const cases = variant(null, type);
  return mapped(
    cases,
    ({ index, value }) => (index === 0 ? null : (value as T)),
    (value) => ({ index: value === null ? 0 : 1, value }),
  );
}

export type Outcome<T> = { readonly ok: T } | { readonly error: unknown };

export function result<T>(ok: Type<T> | null, error: Type<unknown> | null): Type<Outcome<T>> {
  const cases = variant(ok, error);
  return mapped(
    cases,
    ({ index, value }) => (index === 0 ? { ok: value as T } : { error: value }),
    (outcome) => ('ok' in outcome ? { index: 0, value: outcome.ok } : { index: 1, value: outcome.error }),
  );
}

/** `work` with what it returns as the good case and a {@link Failure} as the other. */
export function outcomeOf<T>(work: () => T): Outcome<T> {
  try {
    return { ok: work() };
  } catch (error) {
    if (error instanceof Failure) return { error: error.value };
    throw error;
  }
}

function mapped<A, B>(type: Type<A>, up: (value: A) => B, down: (value: B) => A): Type<B> {
  return {
    ...type,
    lift: (caller, next) => up(type.lift(caller, next)),
    load: (caller, at) => up(type.load(caller, at)),
    store: (caller, at, value) => type.store(caller, at, down(value)),
    lower: (caller, value) => type.lower(caller, down(value)),
  };
}

function aligned(at: number, align: number): number {
  return Math.ceil(at / align) * align;
}

function notOne(): never {
  throw new Error('such a value is more than one word');
}
