/** The process of one extension. It holds nothing but this border: environment, files, network and processes are closed to it. */
import { registerHooks, syncBuiltinESMExports } from 'node:module';
import { Socket } from 'node:net';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { siblingModule } from '../base/module.ts';
import type { AssetExtensionHandler, ExtensionDefinition, HyperMeshExtension } from '../capabilities/extension.ts';
import { Border } from './border.ts';

/** For each granted capability: its methods, and whether one gives a stream. */
type Lent = Readonly<Record<string, Readonly<Record<string, 'call' | 'stream'>>>>;
type Method = (...args: unknown[]) => unknown;

const [entry] = process.argv.slice(2);
const face = siblingModule(import.meta.url, '../capabilities/index').href;
registerHooks({
  resolve: (specifier, context, next) =>
    specifier === 'hypermesh/extension' ? { url: face, shortCircuit: true } : next(specifier, context),
});

// The permission model leaves signals to other processes open; a cell has nobody to signal.
for (const name of ['kill', '_kill', '_debugProcess']) {
  const refuse = () => {
    throw new HyperMeshError('capability-not-granted', `An extension cannot use process.${name}().`);
  };
  Object.defineProperty(process, name, { value: refuse, configurable: false, writable: false });
}
syncBuiltinESMExports();

let definition: ExtensionDefinition | undefined;
let extension: HyperMeshExtension | undefined;
let lent: Record<string, unknown> = {};
let handlers: ReadonlyMap<string, AssetExtensionHandler> = new Map();

// The host went away, in whatever way: so does the cell.
const border = new Border(new Socket({ fd: 3 }), answer, () => process.exit(0));

async function answer(target: string, method: string, args: unknown[]): Promise<unknown> {
  try {
    if (target === 'cell') return await ownMethods[method]!(...(args as never[]));
    const object = target === 'extension' ? extension : handlers.get(target);
    return await (object as unknown as Record<string, Method>)[method]!(...args);
  } catch (error) {
    if (isCoded(error)) throw error;
    process.stderr.write(`${(error as Error)?.stack ?? String(error)}\n`);
    throw new HyperMeshError('extension-failed', `The extension failed in ${method}; the log has the details.`);
  }
}

const ownMethods: Readonly<Record<string, (...args: never[]) => Promise<unknown>>> = {
  /** Loads the entry and tells what it states about itself. */
  async describe() {
    const module = (await import(entry!)) as { extension?: ExtensionDefinition };
    definition = module.extension;
    if (typeof definition?.create !== 'function' || typeof definition.metadata !== 'object') {
      throw new HyperMeshError(
        'extension-invalid',
        'The entry does not export `extension`, made by defineExtension().',
      );
    }
    return { ...definition.metadata, needs: definition.needs };
  },
  /** Makes the extension and tells which methods it has. */
  async create(granted: Lent, names: readonly string[]) {
    lent = borrow(granted, names);
    extension = definition!.create(lent as never);
    return methodsOf(extension);
  },
  async registerAssets() {
    handlers = await extension!.registerAssets();
    return [...handlers].map(([type, handler]) => ({ type, methods: methodsOf(handler) }));
  },
  async extendManager() {
    await extension!.extendManager(lent['assets'] as never);
  },
  async ping() {
    return 'pong';
  },
};

/** The counterpart of what `lend` gives out in process: the enforcement is on the host's side, here are only messages. */
function borrow(granted: Lent, names: readonly string[]): Record<string, unknown> {
  const all: object = Object.create(null);
  for (const name of names) {
    const methods = granted[name];
    if (methods === undefined) {
      Object.defineProperty(all, name, {
        enumerable: false,
        get() {
          throw new HyperMeshError(
            'capability-not-granted',
            `The extension uses ${name}, which this node does not grant it.`,
          );
        },
      });
      continue;
    }
    const member: Record<string, Method> = Object.create(null);
    for (const [method, kind] of Object.entries(methods)) {
      const call = (...args: unknown[]) => border.call(name, method, args);
      member[method] =
        kind === 'call'
          ? call
          : (...args: unknown[]) => ({
              async *[Symbol.asyncIterator]() {
                yield* (await call(...args)) as AsyncIterable<unknown>;
              },
            });
    }
    Object.defineProperty(all, name, { enumerable: true, value: Object.freeze(member) });
  }
  return Object.freeze(all) as Record<string, unknown>;
}

/** Own and inherited, as a call by name would find them. */
function methodsOf(object: object): string[] {
  const names = new Set<string>();
  for (
    let at: object | null = object;
    at !== null && at !== Object.prototype;
    at = Object.getPrototypeOf(at) as object | null
  ) {
    for (const name of Object.getOwnPropertyNames(at)) {
      const value: unknown = Object.getOwnPropertyDescriptor(at, name)?.value;
      if (name !== 'constructor' && typeof value === 'function') names.add(name);
    }
  }
  return [...names];
}
