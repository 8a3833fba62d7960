import { existsSync } from 'node:fs';
import { utf8 } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { Assets } from '../../../capabilities/assets.ts';
import type { RunResult, Runtime, RuntimeStatus } from '../../../capabilities/vm.ts';
import { AddedRuntime } from '../added/added-runtime.ts';
import type { AddedImage, ProvisionOptions } from '../added/provision.ts';
import type { ExecutionLimits } from '../limits.ts';
import { logTo, visible } from '../output.ts';
import { Probed } from '../probed.ts';
import type { BoxSpec } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import type { Trees } from '../process/trees.ts';
import { type Performance, perform, resultOf } from '../program.ts';
import { encodeInput, type OpenedRequest, refuseFuel } from '../request.ts';
import { compileModules, interpreterOf, PYTHON } from './image.ts';

const MiB = 2 ** 20;
/** What the interpreter and the programs around the box take for themselves. */
const RUNTIME_BYTES = 24 * MiB;
const PIDS = 64;
const PROBE_MS = 20_000;
/** The one of the machine; a box sees `/usr`. */
const INTERPRETERS = ['/usr/bin/python3', '/usr/local/bin/python3'];

/**
 * Becomes the program. Arguments: its path, the number of its environment variables, these as NAME=value, its own arguments.
 * Descriptor 3 leads to the node, says only that a file is no program, and is closed before the program starts.
 */
const BOOTSTRAP = `
import os, sys, types
path, count, rest = '/package/' + sys.argv[1], int(sys.argv[2]), sys.argv[3:]
try:
    with open(path, 'rb') as file:
        code = compile(file.read(), path, 'exec', dont_inherit=True)
except (SyntaxError, ValueError, OverflowError, RecursionError) as error:
    os.write(3, ('%s: %s' % (type(error).__name__, error)).encode('utf-8', 'replace')[:4000])
    os._exit(0)
os.close(3)
os.environ.clear()
for variable in rest[:count]:
    name, _, value = variable.partition('=')
    os.environ[name] = value
packages = ['/packages/%s/%s' % (scope, name) for scope in sorted(os.listdir('/packages')) for name in sorted(os.listdir('/packages/' + scope))] if os.path.isdir('/packages') else []
sys.path[:0] = list(dict.fromkeys([os.path.dirname(path), '/package'])) + packages
sys.argv = [path] + rest[count:]
main = types.ModuleType('__main__')
main.__file__ = path
sys.modules['__main__'] = main
del os, types, count, rest, file, packages
exec(code, main.__dict__)
`.trim();

type Files = Pick<Assets, 'tree'>;

/** How an interpreter starts. */
interface Start {
  readonly interpreter: string;
  /** As {@link BoxSpec} has it. */
  readonly root: string;
  readonly environment: Readonly<Record<string, string>>;
}

function startOf(image: AddedImage | null): Start | null {
  if (image !== null) return { root: image.root, ...interpreterOf(image) };
  const interpreter = INTERPRETERS.find(existsSync);
  return interpreter === undefined ? null : { interpreter, root: 'host', environment: {} };
}

/** Runs Python programs: each in a box of its own, with the Python of the machine, or one that was added with numpy, and without files of the machine. */
export class PythonRuntime implements Runtime {
  readonly kind = 'python';
  readonly #assets: Files;
  readonly #sandbox: ProcessSandbox;
  readonly #trees: Trees;
  readonly #limits: ExecutionLimits;
  readonly #added: AddedRuntime;
  readonly #probed = new Probed(() => this.#probe());

  constructor(
    lent: { readonly assets: Files; readonly sandbox: ProcessSandbox; readonly trees: Trees },
    /** `images`: a folder inside the one of the sandbox; it need not exist while nothing is added. */
    options: { readonly limits: ExecutionLimits; readonly images: string },
  ) {
    this.#assets = lent.assets;
    this.#sandbox = lent.sandbox;
    this.#trees = lent.trees;
    this.#limits = options.limits;
    this.#added = new AddedRuntime(PYTHON, options.images, () => this.#probed.forget());
  }

  probe(): Promise<RuntimeStatus> {
    return this.#probed.status();
  }

  async run(request: OpenedRequest, options: CallOptions = {}): Promise<RunResult> {
    return this.#added.use((image) => this.#run(startOf(image), request, options));
  }

  async add(options: ProvisionOptions = {}): Promise<RuntimeStatus> {
    await this.#added.add({ ...options, finish: (root) => compileModules(root, this.#sandbox) });
    return this.probe();
  }

  export(options: CallOptions = {}): AsyncIterable<Uint8Array> {
    return this.#added.export(
      '/usr/bin/python3',
      () =>
        new HyperMeshError('runtime-unavailable', 'No Python was added to this node.', {
          hint: 'Add it with `hypermesh runtime add python`; the one of the machine is not exported.',
        }),
      options,
    );
  }

  async remove(): Promise<boolean> {
    return this.#added.remove();
  }

  async #run(start: Start | null, request: OpenedRequest, options: CallOptions): Promise<RunResult> {
    if (start === null)
      throw new HyperMeshError('runtime-unavailable', 'This machine has no Python.', {
        hint: 'Install python3, or add one with `hypermesh runtime add python`.',
      });
    const input = encodeInput(request.input, this.#limits);
    const { policy } = request;
    refuseFuel(policy, 'Python');
    const tree = await this.#assets.tree(request.layer, options);
    if (!tree.some(({ path, kind }) => path === request.entry && kind === 'file'))
      throw new HyperMeshError('entry-missing', `The package has no file "${request.entry}" to run.`, {
        hint: 'Set `entry` in catalog.yaml to the path of a Python file.',
      });

    using held = new DisposableStack();
    const mounts: BoxSpec['mounts'][number][] = [];
    for (const { layer, at } of [{ layer: request.layer, at: '/package' }, ...policy.mounts])
      mounts.push({ source: held.use(await this.#trees.hold(layer, options)).path, at });
    const environment = Object.entries(policy.environment).map(([name, value]) => `${name}=${value}`);
    const { memoryBytes, cpuCores, wallMs, outputBytes, tmpBytes } = policy;
    const done = await this.#perform(
      start,
      ['-c', BOOTSTRAP, request.entry, String(environment.length), ...environment, ...request.args],
      mounts,
      { ...{ cpuCores, wallMs, outputBytes, tmpBytes }, memoryBytes: memoryBytes + RUNTIME_BYTES },
      input,
      options,
      request.openings,
    );
    if (done.control.length > 0)
      throw new HyperMeshError(
        'program-invalid',
        `"${visible(request.entry)}" is not a Python program: ${visible(Buffer.from(done.control).toString('utf8')).slice(0, 500)}`,
      );
    const result = resultOf(done, RUNTIME_BYTES, memoryBytes);
    if (result.termination !== 'memory') return result;
    return {
      ...result,
      reason: `The program took more than its ${memoryBytes} bytes beside what Python itself takes.`,
    };
  }

  async #probe(): Promise<RuntimeStatus> {
    const unavailable = (reason: string): RuntimeStatus => ({
      kind: 'python',
      available: false,
      version: null,
      reason,
    });
    try {
      const image = await this.#added.installed();
      const start = startOf(image);
      if (start === null)
        return unavailable(
          `${INTERPRETERS.join(' and ')} are missing. Install python3, or add one with \`hypermesh runtime add python\`.`,
        );
      const sandbox = await this.#sandbox.probe();
      if (!sandbox.available) return unavailable([sandbox.reason, sandbox.remedy].filter(Boolean).join(' '));
      const { exit, stdout, stderr } = await this.#perform(
        start,
        ['-c', 'import json, platform; print(platform.python_version())'],
        [],
        { memoryBytes: 64 * MiB, cpuCores: 1, wallMs: PROBE_MS, outputBytes: 4_096, tmpBytes: 0 },
        utf8(''),
        {},
      );
      if (exit.termination === 'exit' && exit.exitCode === 0) {
        const numpy = image?.packages.find(({ name }) => name === 'python3-numpy')?.version.replace(/^\d+:|-.*$/g, '');
        const version = `Python ${visible(Buffer.from(stdout).toString('utf8').trim())}${numpy === undefined ? '' : `, numpy ${numpy}`}`;
        return { kind: 'python', available: true, version, reason: null, enforces: sandbox.enforces };
      }
      const says = exit.reason ?? visible(Buffer.from(stderr).toString('utf8')).slice(0, 500);
      return unavailable(`A test program ended by ${exit.termination}: ${says}`);
    } catch (error) {
      return unavailable(error instanceof Error ? error.message : String(error));
    }
  }

  async #perform(
    { interpreter, root, environment }: Start,
    args: readonly string[],
    mounts: BoxSpec['mounts'],
    limits: Omit<BoxSpec['limits'], 'pids' | 'fileBytes'>,
    input: Uint8Array,
    options: CallOptions,
    openings: OpenedRequest['openings'] = {},
  ): Promise<Performance> {
    const box = await this.#sandbox.start(
      {
        // Isolated from the variables and folders of a user; no compiled files; UTF-8 whatever the locale.
        command: [interpreter, '-I', '-B', '-X', 'utf8', ...args],
        root,
        ...{ mounts, ...openings },
        // The program gets its own from the bootstrap: nothing in it shall steer the start of the interpreter.
        environment,
        limits: { ...limits, pids: PIDS, fileBytes: Math.max(limits.tmpBytes, 1) },
      },
      options,
    );
    return perform(box, input, undefined, logTo(options.onProgress));
  }
}
