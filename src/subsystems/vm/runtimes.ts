import path from 'node:path';
import type { Assets } from '../../capabilities/assets.ts';
import type { Runtime, RuntimeKind } from '../../capabilities/vm.ts';
import { removeUnfinished } from './added/provision.ts';
import { ContainerRuntime } from './container/container.ts';
import { JuliaRuntime } from './julia/julia.ts';
import type { ExecutionLimits } from './limits.ts';
import { MachineRuntime } from './machine/runtime.ts';
import { openProcessSandbox } from './process/sandbox.ts';
import { Standby, type StandbyResources } from './process/standby.ts';
import { Trees } from './process/trees.ts';
import { PythonRuntime } from './python/python.ts';
import { WasmRuntime } from './wasm/runtime.ts';

/** A runtime whose language or emulator is added to a node, or removed from it. */
export type AddableRuntime = JuliaRuntime | PythonRuntime | MachineRuntime;

/** Every runtime that this version has. */
export interface OpenRuntimes extends AsyncDisposable {
  readonly runtimes: ReadonlyMap<RuntimeKind, Runtime>;
  readonly addable: ReadonlyMap<RuntimeKind, AddableRuntime>;
}

/** Without a directory, WebAssembly alone. Errors: `storage-*`. */
export async function openRuntimes(
  {
    resources,
    ...lent
  }: { readonly assets: Pick<Assets, 'tree' | 'readFile'>; readonly resources?: StandbyResources | null },
  directory: string | undefined,
  limits: ExecutionLimits,
): Promise<OpenRuntimes> {
  await using stack = new AsyncDisposableStack();
  if (directory === undefined) return opened([stack.use(new WasmRuntime(lent, { limits }))], [], stack);
  const sandbox = stack.use(await openProcessSandbox({ directory }));
  const trees = await Trees.open(lent, {
    directory: path.join(directory, 'trees'),
    treeBytesMax: limits.servedBytesMax,
    filesMax: limits.filesMax,
  });
  const images = path.join(directory, 'images');
  const emulators = path.join(directory, 'emulators');
  for (const folder of [images, emulators]) await removeUnfinished(folder);
  const standby = new Standby({}, resources ?? null);
  const roots = await Trees.open(lent, {
    directory: path.join(directory, 'containers'),
    treeBytesMax: limits.imageBytesMax,
    filesMax: limits.filesMax,
    keptBytesMax: 2 * limits.imageBytesMax,
  });
  const addable = [
    new PythonRuntime({ ...lent, sandbox, trees }, { limits, images }),
    new JuliaRuntime({ ...lent, sandbox, trees, standby }, { limits, images, depots: path.join(directory, 'depots') }),
    new MachineRuntime(
      { ...lent, sandbox, trees, standby },
      { limits, directory: path.join(directory, 'machines'), images: emulators },
    ),
  ];
  const others = [
    stack.use(new WasmRuntime({ ...lent, sandbox }, { limits })),
    new ContainerRuntime({ ...lent, sandbox, trees, roots }, { limits }),
  ];
  return opened([...others, ...addable], addable, stack);
}

function opened(
  runtimes: readonly Runtime[],
  addable: readonly AddableRuntime[],
  stack: AsyncDisposableStack,
): OpenRuntimes {
  const owned = stack.move();
  return {
    runtimes: new Map(runtimes.map((runtime) => [runtime.kind, runtime])),
    addable: new Map(addable.map((runtime) => [runtime.kind, runtime])),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
