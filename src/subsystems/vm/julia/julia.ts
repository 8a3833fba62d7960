import { readFile } from 'node:fs/promises';
import { utf8 } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import { type Digest, digestHex, digestOf } from '../../../base/digest.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { Assets, TreeEntry } from '../../../capabilities/assets.ts';
import type { JuliaOptions, RunRequest, RunResult, Runtime, RuntimeStatus } from '../../../capabilities/vm.ts';
import { AddedRuntime } from '../added/added-runtime.ts';
import type { AddedImage, ProvisionOptions } from '../added/provision.ts';
import type { ExecutionLimits } from '../limits.ts';
import { OnceEach } from '../once-each.ts';
import { logTo, visible } from '../output.ts';
import { Probed } from '../probed.ts';
import type { AheadBox, BoxLimits, BoxSpec } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import type { Standby } from '../process/standby.ts';
import type { Trees } from '../process/trees.ts';
import { type Performance, perform, resultOf } from '../program.ts';
import { encodeInput, type OpenedRequest, refuseFuel } from '../request.ts';
import { Depots, type HeldDepot, readCompiled } from './depots.ts';
import { JULIA } from './image.ts';

const MiB = 2 ** 20;
/** What Julia takes for itself: its system image, its compiler, and the machine code of a program. */
const RUNTIME_BYTES = 256 * MiB;
const THREADS = 4;
const OPTIMIZATION = 2;
const PIDS = 128;
const PROJECT_BYTES_MAX = 64 * 1024;
const PROBE_MS = 60_000;
const COMPILE_MS = 120_000;
/** Two Julias and what they compile. */
const COMPILE_BYTES = 768 * MiB;
const COMPILED_BYTES_MAX = 256 * MiB;
/** Closures that could not be compiled ahead and are not tried again. */
const FAILED_MAX = 1_000;
/** Where packages lie by the names that Julia knows them by, and what was compiled of them. */
const BY_NAME = '/julia';
const DEPOT = '/depot';
const NO_IMAGE = 'Julia was not added to this node: `hypermesh runtime add julia`.';

type Mount = BoxSpec['mounts'][number];

interface Layer {
  readonly digest: Digest;
  readonly at: string;
  readonly tree: readonly TreeEntry[];
}

/** Runs Julia programs: each in a box of its own, with an image of Julia as its root and the packages that it needs, without a network. */
export class JuliaRuntime implements Runtime {
  readonly kind = 'julia';
  readonly #assets: Pick<Assets, 'tree' | 'readFile'>;
  readonly #sandbox: ProcessSandbox;
  readonly #trees: Trees;
  readonly #limits: ExecutionLimits;
  readonly #added: AddedRuntime;
  readonly #standby: Standby;
  readonly #blas = blasKernel();
  readonly #depotFolder: string;
  readonly #compiling = new OnceEach();
  readonly #failed = new Set<string>();
  #depots: Promise<Depots> | undefined;
  readonly #probed = new Probed(() => this.#probe());

  /** `images`: an existing folder inside the one of the sandbox; so is `depots`, which is made when missing. */
  constructor(
    lent: {
      readonly assets: Pick<Assets, 'tree' | 'readFile'>;
      readonly sandbox: ProcessSandbox;
      readonly trees: Trees;
      readonly standby: Standby;
    },
    options: {
      readonly limits: ExecutionLimits;
      readonly images: string;
      readonly depots: string;
    },
  ) {
    this.#assets = lent.assets;
    this.#sandbox = lent.sandbox;
    this.#trees = lent.trees;
    this.#limits = options.limits;
    this.#added = new AddedRuntime(JULIA, options.images, () => this.#probed.forget());
    this.#depotFolder = options.depots;
    this.#standby = lent.standby;
  }

  probe(): Promise<RuntimeStatus> {
    return this.#probed.status();
  }

  async run(request: OpenedRequest, options: CallOptions = {}): Promise<RunResult> {
    return this.#added.use((image) => {
      if (image === null) throw notAdded();
      return this.#run(image, request, options);
    });
  }

  async add(options: ProvisionOptions = {}): Promise<RuntimeStatus> {
    await this.#added.add(options);
    return this.probe();
  }

  export(options: CallOptions = {}): AsyncIterable<Uint8Array> {
    return this.#added.export('/usr/bin/julia', notAdded, options);
  }

  async remove(): Promise<boolean> {
    return this.#added.remove(async () => {
      await this.#standby.clear();
      await (await this.#openDepots()).clear();
    });
  }

  async #probe(): Promise<RuntimeStatus> {
    const unavailable = (reason: string): RuntimeStatus => ({ kind: 'julia', available: false, version: null, reason });
    try {
      const image = await this.#added.installed();
      if (image === null) return unavailable(NO_IMAGE);
      const sandbox = await this.#sandbox.probe();
      if (!sandbox.available) return unavailable([sandbox.reason, sandbox.remedy].filter(Boolean).join(' '));
      const limits = boxLimits({ memoryBytes: 0, cpuCores: 1, wallMs: PROBE_MS, outputBytes: 4096, tmpBytes: 0 });
      const box = await this.#sandbox.start(await this.#spec(image, 'print(VERSION)', [], [], limits));
      const { exit, stdout, stderr } = await perform(box, utf8(''));
      if (exit.termination === 'exit' && exit.exitCode === 0)
        return {
          kind: 'julia',
          available: true,
          version: `Julia ${visible(Buffer.from(stdout).toString())}`,
          reason: null,
          enforces: sandbox.enforces,
        };
      return unavailable(
        `A test program ended by ${exit.termination}: ${exit.reason ?? visible(Buffer.from(stderr).toString()).slice(0, 500)}`,
      );
    } catch (error) {
      return unavailable(error instanceof Error ? error.message : String(error));
    }
  }

  async #run(image: AddedImage, request: OpenedRequest, options: CallOptions): Promise<RunResult> {
    const input = encodeInput(request.input, this.#limits);
    const { policy } = request;
    refuseFuel(policy, 'Julia');
    const key = keyOf(image, request);
    // What was granted is opened for this run alone: no box that waits can have it.
    const mayWait = request.openings === undefined;
    const done =
      (mayWait ? await this.#performAhead(key, input, options) : null) ??
      (await this.#performNow(image, request, input, options));
    refuseInvalid(done, request.entry);
    if (mayWait && done.exit.termination === 'exit' && done.exit.exitCode === 0)
      this.#standby.prepare(key, boxLimits(policy).memoryBytes, () => this.#startAhead(image, request));
    const result = resultOf(done, RUNTIME_BYTES, policy.memoryBytes);
    if (result.termination !== 'memory') return result;
    return {
      ...result,
      reason: `The program took more than its ${policy.memoryBytes} bytes beside what Julia itself takes.`,
    };
  }

  /** In the box that waits for exactly this, if one does. */
  async #performAhead(key: string, input: Uint8Array, options: CallOptions): Promise<Performance | null> {
    const waiting = this.#standby.take(key);
    return waiting === null
      ? null
      : perform(await waiting.box.begin(options), input, undefined, logTo(options.onProgress));
  }

  async #performNow(
    image: AddedImage,
    request: OpenedRequest,
    input: Uint8Array,
    options: CallOptions,
  ): Promise<Performance> {
    using held = new DisposableStack();
    const spec = await this.#prepare(image, request, 'now', held, options);
    // Awaited here: what is mounted is held until the end.
    return await perform(await this.#sandbox.start(spec, options), input, undefined, logTo(options.onProgress));
  }

  async #startAhead(image: AddedImage, request: RunRequest): Promise<{ box: AheadBox; held: Disposable }> {
    using held = new DisposableStack();
    const box = await this.#sandbox.startAhead(await this.#prepare(image, request, 'ahead', held, {}));
    return { box, held: held.move() };
  }

  async #prepare(
    image: AddedImage,
    request: OpenedRequest,
    when: 'now' | 'ahead',
    held: DisposableStack,
    options: CallOptions,
  ): Promise<BoxSpec> {
    const { policy, julia = {} } = request;
    const layers = await this.#layers(request, options);
    checkEntry(layers[0]!, request.entry);
    const named = await this.#named(layers, options);
    const mounts: Mount[] = [];
    for (const { digest, at } of layers) {
      const { path } = held.use(await this.#trees.hold(digest, options));
      mounts.push({ source: path, at });
      const name = named.get(at);
      if (name !== undefined) mounts.push({ source: path, at: `${BY_NAME}/${name}` });
    }
    const isCompiled = (julia.precompile ?? true) && named.size > 0;
    const depot = isCompiled ? await this.#depot(image, layers, named, mounts, options) : null;
    if (depot !== null) mounts.push({ source: held.use(depot).path, at: DEPOT });
    const environment = Object.entries(policy.environment).map(([name, value]) => `${name}=${value}`);
    const example = julia.example === undefined ? '' : `/package/${julia.example}`;
    const args = [request.entry, when, example, String(environment.length), ...environment, ...request.args];
    const spec = await this.#spec(image, await source('json.jl', 'worker.jl'), args, mounts, boxLimits(policy), julia);
    return { ...spec, ...request.openings };
  }

  /** What was compiled of these packages, now if never before; null when they cannot be compiled ahead. */
  async #depot(
    image: AddedImage,
    layers: readonly Layer[],
    named: ReadonlyMap<string, string>,
    mounts: readonly Mount[],
    { signal }: CallOptions,
  ): Promise<HeldDepot | null> {
    const packages = layers.filter(({ at }) => named.has(at)).map(({ at, digest }) => `${named.get(at)} ${digest}`);
    const key = digestHex(digestOf(utf8([image.digest, ...packages.sort()].join('\n'))));
    const depots = await this.#openDepots();
    for (;;) {
      const there = await depots.hold(key);
      if (there !== null || this.#failed.has(key) || signal?.aborted === true) return there;
      const compile = () => this.#compile(key, image, [...named.values()], mounts, signal);
      await this.#compiling.make(key, compile, signal);
    }
  }

  async #compile(
    key: string,
    image: AddedImage,
    names: readonly string[],
    mounts: readonly Mount[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    // The same for everybody who runs these packages, whatever the policy of the one who came first.
    const limits = boxLimits({
      memoryBytes: COMPILE_BYTES,
      cpuCores: 1,
      wallMs: COMPILE_MS,
      outputBytes: MiB,
      tmpBytes: COMPILED_BYTES_MAX,
    });
    const program = await source('precompile.jl');
    const box = await this.#sandbox.start(
      await this.#spec(image, program, names, mounts, limits, { isCompiling: true }),
      { signal },
    );
    const { exit, control } = await perform(box, utf8(''), COMPILED_BYTES_MAX);
    const files = exit.termination === 'exit' && exit.exitCode === 0 ? readCompiled(control) : null;
    if (files !== null && files.length > 0) return (await this.#openDepots()).add(key, files);
    if (exit.termination === 'cancelled') return;
    if (this.#failed.size >= FAILED_MAX) this.#failed.clear();
    this.#failed.add(key);
  }

  #openDepots(): Promise<Depots> {
    this.#depots ??= Depots.open(this.#depotFolder);
    return this.#depots;
  }

  async #spec(
    image: AddedImage,
    program: string,
    args: readonly string[],
    mounts: readonly Mount[],
    limits: BoxLimits,
    {
      isCompiling = false,
      threads = THREADS,
      optimizationLevel = OPTIMIZATION,
    }: JuliaOptions & { isCompiling?: boolean } = {},
  ): Promise<BoxSpec> {
    const threadsGiven = String(Math.min(threads, Math.ceil(limits.cpuCores)));
    // Without a depot nothing would be kept of what Julia compiles of whole packages, so it compiles what is called.
    const usesCompiled = isCompiling || mounts.some(({ at }) => at === DEPOT);
    const blas = await this.#blas;
    return {
      command: [
        '/usr/bin/julia',
        ...['--startup-file=no', '--history-file=no', '--color=no', `--threads=${threadsGiven}`],
        `--optimize=${optimizationLevel}`,
        `--compiled-modules=${usesCompiled ? 'yes' : 'no'}`,
        ...['-e', program, '--', ...args],
      ],
      root: image.root,
      mounts,
      // For the start of Julia alone: the worker then sets what the policy names.
      environment: {
        PATH: '/usr/bin',
        HOME: '/tmp',
        LANG: 'C.UTF-8',
        JULIA_DEPOT_PATH: `/tmp/depot:${DEPOT}:/usr/share/julia`,
        JULIA_LOAD_PATH: `${BY_NAME}:@stdlib`,
        OPENBLAS_NUM_THREADS: threadsGiven,
        ...(blas === null ? {} : { OPENBLAS_CORETYPE: blas }),
      },
      limits,
    };
  }

  async #layers(request: RunRequest, options: CallOptions): Promise<Layer[]> {
    const layers: Layer[] = [];
    let count = 0;
    for (const { layer, at } of [{ layer: request.layer, at: '/package' }, ...request.policy.mounts]) {
      const tree = await this.#assets.tree(layer, options);
      count += tree.length;
      if (count > this.#limits.filesMax)
        throw new HyperMeshError(
          'limit-exceeded',
          `The package and its dependencies have more than ${this.#limits.filesMax} files; a program cannot be shown so many.`,
        );
      layers.push({ digest: layer, at, tree });
    }
    return layers;
  }

  /** Path of a package in the box -> the name that its `Project.toml` gives it. */
  async #named(layers: readonly Layer[], options: CallOptions): Promise<ReadonlyMap<string, string>> {
    const named = new Map<string, string>();
    for (const { digest, at, tree } of layers) {
      const project = tree.find(({ path, kind }) => path === 'Project.toml' && kind === 'file');
      if (project === undefined || project.size > PROJECT_BYTES_MAX) continue;
      const pieces: Uint8Array[] = [];
      for await (const piece of this.#assets.readFile(digest, project.path, options)) pieces.push(piece);
      const name = projectName(Buffer.concat(pieces).toString('utf8'));
      if (name === null || !tree.some(({ path, kind }) => path === `src/${name}.jl` && kind === 'file')) continue;
      const other = [...named].find(([, taken]) => taken === name);
      if (other !== undefined)
        throw new HyperMeshError('program-invalid', `${other[0]} and ${at} both hold a Julia package named ${name}.`, {
          hint: 'Julia finds packages by the name in their Project.toml: a program can use one of that name.',
        });
      named.set(at, name);
    }
    return named;
  }
}

/** Whatever a run depends on but its input. */
function keyOf(image: AddedImage, { input: _, ...request }: RunRequest): string {
  return digestHex(digestOf(utf8(JSON.stringify([image.digest, request]))));
}

/** The name in a `Project.toml`, which stands before the first table. */
export function projectName(toml: string): string | null {
  const top = toml.split(/^\s*\[/m, 1)[0]!;
  return /^\s*name\s*=\s*"([A-Za-z_][A-Za-z0-9_]{0,127})"\s*(?:#.*)?$/m.exec(top)?.[1] ?? null;
}

function boxLimits(policy: Omit<BoxLimits, 'pids' | 'fileBytes'>): BoxLimits {
  const { memoryBytes, cpuCores, wallMs, outputBytes, tmpBytes } = policy;
  return {
    memoryBytes: memoryBytes + RUNTIME_BYTES,
    ...{ cpuCores, wallMs, outputBytes, tmpBytes },
    pids: PIDS,
    fileBytes: Math.max(tmpBytes, 1),
  };
}

function checkEntry({ tree }: Layer, entry: string): void {
  if (tree.some(({ path, kind }) => path === entry && kind === 'file')) return;
  throw new HyperMeshError('entry-missing', `The package has no file "${entry}" to run.`, {
    hint: 'Set `entry` in catalog.yaml to the path of a Julia file.',
  });
}

/** The worker says over its own channel that a file is no Julia, before a line of it runs. What it says is checked like any input. */
function refuseInvalid({ control }: Performance, entry: string): void {
  if (control.length === 0) return;
  let says: unknown;
  try {
    says = (JSON.parse(Buffer.from(control).toString('utf8')) as { invalid?: unknown }).invalid;
  } catch {
    says = undefined;
  }
  throw new HyperMeshError(
    'program-invalid',
    `"${entry}" is not a Julia program: ${visible(typeof says === 'string' ? says : 'it cannot be read').slice(0, 500)}`,
  );
}

/** Programs in Julia of our own, which are given to it on its command line. */
async function source(...names: readonly string[]): Promise<string> {
  return (await Promise.all(names.map((name) => readFile(new URL(name, import.meta.url), 'utf8')))).join('\n');
}

/** The kernels that OpenBLAS shall use: the one of an old release does not know new processors, and takes its slowest. */
async function blasKernel(): Promise<string | null> {
  const cpu = await readFile('/proc/cpuinfo', 'utf8').catch(() => '');
  const flags = new Set(/^flags\s*:(.*)$/m.exec(cpu)?.[1]?.split(' ') ?? []);
  const has = (...names: string[]) => names.every((name) => flags.has(name));
  if (has('avx512f', 'avx512dq', 'avx512bw', 'avx512vl', 'avx512cd')) return 'SkylakeX';
  return has('avx2', 'fma') ? 'Haswell' : null;
}

function notAdded(): HyperMeshError {
  return new HyperMeshError('runtime-unavailable', 'This node has no Julia.', {
    hint: 'Add it with `hypermesh runtime add julia`.',
  });
}
