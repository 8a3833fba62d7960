import { Caller, Handles, type HostFunction } from './abi.ts';
import type { Component, Definition, Item, Sort } from './component.ts';
import { type MeteredModule, type MeterLimits, meter, ProgramInvalid, printable } from './meter.ts';

/** Puts the modules of a component together, by its definitions in their order, and finds what it exports to be run. */

export interface PreparedModule {
  readonly metered: MeteredModule;
  readonly module: WebAssembly.Module;
}
export type PreparedModules = ReadonlyMap<Definition, PreparedModule>;

const MODULES_MAX = 64;
const MODULE_INSTANCES_MAX = 64;
const INSTANCES_MAX = 1_000;

/** Meters and compiles every module in a component. Throws {@link ProgramInvalid}. */
export function prepareModules(component: Component, limits: MeterLimits): PreparedModules {
  const modules = new Map<Definition, PreparedModule>();
  const walk = ({ definitions }: Component): void => {
    for (const definition of definitions) {
      if (definition.kind === 'component') walk(definition.component);
      if (definition.kind !== 'core-module') continue;
      if (modules.size === MODULES_MAX) throw new ProgramInvalid(`it has more than ${MODULES_MAX} modules`);
      const metered = meter(definition.bytes, { kind: 'part' }, limits);
      modules.set(definition, { metered, module: new WebAssembly.Module(metered.bytes) });
    }
  };
  walk(component);
  return modules;
}

interface CoreFunction {
  readonly call: (...args: (number | bigint)[]) => unknown;
  /** Of a function of the host, whose arguments nobody else checks. */
  readonly signature: string | null;
}

type AnyFunction =
  | { readonly kind: 'host'; readonly name: string; readonly host: HostFunction }
  | { readonly kind: 'lifted'; readonly core: CoreFunction; readonly postReturn: CoreFunction | null };

interface Values {
  'core func': CoreFunction;
  'core table': unknown;
  'core memory': WebAssembly.Memory;
  'core global': unknown;
  'core type': null;
  'core module': PreparedModule;
  'core instance': Exports;
  func: AnyFunction;
  value: never;
  type: null;
  component: { readonly component: Component; readonly outer: Scope };
  instance: Instance;
}
type Entry = { [S in Sort]: { readonly sort: S; readonly value: Values[S] } }[Sort];
type Exports = ReadonlyMap<string, Entry>;
type Instance =
  | { readonly kind: 'host'; readonly name: string; readonly functions: ReadonlyMap<string, HostFunction> }
  | { readonly kind: 'made'; readonly exports: Exports };

/** The index spaces of one component. */
class Scope {
  readonly outer: Scope | null;
  readonly #spaces = new Map<Sort, unknown[]>();

  constructor(outer: Scope | null) {
    this.outer = outer;
  }

  add<S extends Sort>(sort: S, value: Values[S]): void {
    const space = this.#spaces.get(sort);
    if (space === undefined) this.#spaces.set(sort, [value]);
    else space.push(value);
  }

  get<S extends Sort>(sort: S, index: number): Values[S] {
    const space = this.#spaces.get(sort);
    if (space === undefined || index >= space.length) throw new ProgramInvalid(`it has no ${sort} ${index}`);
    // Only `add` puts something in, of this sort.
    return space[index] as Values[S];
  }

  entry({ sort, index }: Item): Entry {
    return { sort, value: this.get(sort, index) } as Entry;
  }
}

export interface Host {
  readonly modules: PreparedModules;
  /** Interface without its version -> functions, by their name there. */
  readonly interfaces: ReadonlyMap<string, ReadonlyMap<string, HostFunction>>;
  /** A function of the host is called. */
  enter(): void;
  /** A module is about to be instantiated; may throw to stop the program. */
  admit(module: PreparedModule): void;
  /** It was instantiated: nothing in it has run. */
  arm(module: PreparedModule, exports: Readonly<Record<string, unknown>>): void;
}

const VERSION = /^(?<name>[a-z][a-z0-9-]*:[a-z0-9/-]+)@0\.2\.\d+$/;
const RUN = 'wasi:cli/run';

/** Returns the function `run` of `wasi:cli/run`: whether all went well. Throws {@link ProgramInvalid}, and what a program may throw at its start. */
export function link(component: Component, host: Host): () => boolean {
  const exports = new Linker(host).instantiate(component, new Scope(null), new Map());
  const [, found] = [...exports].find(([name]) => VERSION.exec(name)?.groups?.['name'] === RUN) ?? [];
  if (found?.sort !== 'instance')
    throw new ProgramInvalid('it does not export wasi:cli/run of version 0.2; the sandbox runs commands');
  const run = member(found.value, 'func', 'run');
  if (run.kind !== 'lifted') throw new ProgramInvalid('its wasi:cli/run is not its own');
  return () => {
    const outcome = run.core.call();
    run.postReturn?.call(Number(outcome));
    return Number(outcome) === 0;
  };
}

class Linker {
  readonly #host: Host;
  readonly #handles = new Handles();
  readonly #gate = { isOpen: true };
  #moduleInstances = 0;
  #instances = 0;
  #memories = 0;

  constructor(host: Host) {
    this.#host = host;
  }

  instantiate(component: Component, scope: Scope, args: Exports): Exports {
    this.#instances += 1;
    if (this.#instances > INSTANCES_MAX) throw new ProgramInvalid(`it makes more than ${INSTANCES_MAX} instances`);
    const exports = new Map<string, Entry>();
    for (const definition of component.definitions) this.#define(definition, scope, args, exports);
    return exports;
  }

  #define(definition: Definition, scope: Scope, args: Exports, exports: Map<string, Entry>): void {
    switch (definition.kind) {
      case 'core-module':
        scope.add('core module', this.#host.modules.get(definition)!);
        break;
      case 'core-instantiate':
        scope.add(
          'core instance',
          this.#module(scope.get('core module', definition.module), named(definition.args, scope)),
        );
        break;
      case 'core-group':
        scope.add('core instance', named(definition.exports, scope));
        break;
      case 'component':
        scope.add('component', { component: definition.component, outer: scope });
        break;
      case 'instantiate': {
        const { component, outer } = scope.get('component', definition.component);
        const made = this.instantiate(component, new Scope(outer), named(definition.args, scope));
        scope.add('instance', { kind: 'made', exports: made });
        break;
      }
      case 'group':
        scope.add('instance', { kind: 'made', exports: named(definition.exports, scope) });
        break;
      case 'alias':
        add(scope, alias(scope.get('instance', definition.instance), definition.sort, definition.name));
        break;
      case 'alias-core': {
        const entry = scope.get('core instance', definition.instance).get(definition.name);
        if (entry?.sort !== definition.sort)
          throw new ProgramInvalid(
            `it has no ${definition.sort} "${printable(definition.name)}" where it looks for it`,
          );
        add(scope, entry);
        break;
      }
      case 'alias-outer': {
        let from: Scope | null = scope;
        for (let left = definition.count; left > 0 && from !== null; left--) from = from.outer;
        if (from === null) throw new ProgramInvalid('it looks for something outside of itself');
        if (!['type', 'core type', 'core module', 'component'].includes(definition.sort))
          throw new ProgramInvalid(`it takes a ${definition.sort} from the component around it`);
        add(scope, from.entry(definition));
        break;
      }
      case 'type':
        scope.add(definition.sort, null);
        break;
      case 'lift': {
        const { postReturn } = definition.options;
        scope.add('func', {
          kind: 'lifted',
          core: scope.get('core func', definition.func),
          postReturn: postReturn === null ? null : scope.get('core func', postReturn),
        });
        break;
      }
      case 'lower':
        scope.add('core func', this.#lowered(definition, scope));
        break;
      case 'drop':
        scope.add('core func', { signature: 'i:', call: (handle) => this.#handles.drop(Number(handle) >>> 0) });
        break;
      case 'import':
        add(scope, args.get(definition.name) ?? this.#import(definition.name, definition.sort));
        break;
      case 'export': {
        const entry = scope.entry(definition.item);
        add(scope, entry);
        exports.set(definition.name, entry);
        break;
      }
    }
  }

  #import(name: string, sort: Sort): Entry {
    if (sort === 'type') return { sort, value: null };
    const shown = `"${printable(name)}"`;
    const plain = VERSION.exec(name)?.groups?.['name'];
    const functions = plain === undefined ? undefined : this.#host.interfaces.get(plain);
    if (sort !== 'instance' || functions === undefined)
      throw new ProgramInvalid(`it imports ${shown}; offered are the interfaces of wasi:cli/command, version 0.2`);
    return { sort, value: { kind: 'host', name, functions } };
  }

  #lowered({ func, options }: Extract<Definition, { kind: 'lower' }>, scope: Scope): CoreFunction {
    const target = scope.get('func', func);
    if (target.kind === 'lifted')
      throw new ProgramInvalid(
        'one component in it calls another one; only components of a single program are offered: link them into one module',
      );
    const memory = options.memory === null ? null : scope.get('core memory', options.memory);
    const realloc = options.realloc === null ? null : scope.get('core func', options.realloc).call;
    const caller = new Caller(this.#handles, this.#gate, memory, realloc);
    const { host } = target;
    return {
      signature: host.signature,
      call: (...args) => {
        caller.enter();
        this.#host.enter();
        return host.call(caller, args);
      },
    };
  }

  #module(prepared: PreparedModule, args: Exports): Exports {
    this.#moduleInstances += 1;
    this.#memories += prepared.metered.memories;
    if (this.#moduleInstances > MODULE_INSTANCES_MAX)
      throw new ProgramInvalid(`it instantiates more than ${MODULE_INSTANCES_MAX} modules`);
    if (this.#memories > 1) throw new ProgramInvalid('it has more than one memory; one is offered');
    this.#host.admit(prepared);
    const { exports } = new WebAssembly.Instance(prepared.module, importsOf(prepared.metered, args));
    this.#host.arm(prepared, exports);
    const { start } = prepared.metered.exports;
    if (start !== null) (exports[start] as () => void)();
    // What the meter added is nobody's to take.
    return new Map([...prepared.metered.exported].map((name) => [name, coreEntry(exports[name])]));
  }
}

function importsOf({ imports }: MeteredModule, args: Exports): Record<string, Record<string, unknown>> {
  const given: Record<string, Record<string, unknown>> = Object.create(null) as typeof given;
  for (const { module, name, kind, signature } of imports) {
    const shown = `"${printable(module)}"."${printable(name)}"`;
    const from = args.get(module);
    const entry = from?.sort === 'core instance' ? from.value.get(name) : undefined;
    if (entry?.sort !== CORE_SORTS[kind])
      throw new ProgramInvalid(`a module in it imports ${shown}, which nothing gives`);
    if (entry.sort === 'core func' && entry.value.signature !== null && entry.value.signature !== signature)
      throw new ProgramInvalid(
        `a module in it imports ${shown} with the signature ${signature}, but it is ${entry.value.signature}`,
      );
    given[module] ??= Object.create(null) as Record<string, unknown>;
    given[module][name] = entry.sort === 'core func' ? entry.value.call : entry.value;
  }
  return given;
}

const CORE_SORTS = {
  function: 'core func',
  table: 'core table',
  memory: 'core memory',
  global: 'core global',
} as const;

function coreEntry(value: unknown): Entry {
  if (typeof value === 'function')
    return { sort: 'core func', value: { call: value as CoreFunction['call'], signature: null } };
  if (value instanceof WebAssembly.Memory) return { sort: 'core memory', value };
  if (value instanceof WebAssembly.Table) return { sort: 'core table', value };
  return { sort: 'core global', value };
}

function named(list: readonly (readonly [string, Item])[], scope: Scope): Exports {
  return new Map(list.map(([name, item]) => [name, scope.entry(item)]));
}

function alias(instance: Instance, sort: Sort, name: string): Entry {
  switch (sort) {
    case 'type':
      return { sort, value: null };
    case 'func':
      return { sort, value: member(instance, sort, name) };
    default:
      if (instance.kind === 'made') {
        const entry = instance.exports.get(name);
        if (entry?.sort === sort) return entry;
      }
      throw new ProgramInvalid(`it has no ${sort} "${printable(name)}" where it looks for it`);
  }
}

function member(instance: Instance, sort: 'func', name: string): AnyFunction {
  if (instance.kind === 'host') {
    const host = instance.functions.get(name);
    if (host !== undefined) return { kind: 'host', name, host };
  } else {
    const entry = instance.exports.get(name);
    if (entry?.sort === sort) return entry.value;
  }
  const where = instance.kind === 'host' ? ` of ${printable(instance.name)}` : '';
  throw new ProgramInvalid(`it uses a function "${printable(name)}"${where}, which is not there`);
}

function add(scope: Scope, { sort, value }: Entry): void {
  // The value of an entry is of its sort.
  scope.add(sort, value as never);
}
