import { z } from 'zod';
import { fromUtf8, utf8 } from '../../../base/bytes.ts';
import type { CallOptions } from '../../../base/call.ts';
import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import type { Assets, TreeEntry } from '../../../capabilities/assets.ts';
import type { RunRequest, RunResult, Runtime, RuntimeStatus, Termination } from '../../../capabilities/vm.ts';
import type { ExecutionLimits } from '../limits.ts';
import { logTo, parseOutput, visible } from '../output.ts';
import { Probed } from '../probed.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import { encodeInput } from '../request.ts';
import { type BoxEnd, type BoxEntry, type BoxOrder, type BoxProgram, type FileWish, FRAME } from './frames.ts';
import { type BoxEvent, BoxPool, type BoxProcess, type Starter, startIn, startPlain } from './process.ts';

const PAGE = 65_536;
/** What a WebAssembly memory of 32 bits can have. */
const PAGES_MAX = 65_536;
/** After this the box is killed, should it not have stopped the program itself. */
const GRACE_MS = 250;
const WATCH_MS = 100;
/** Resident memory of a box beside what the program was given: Node, the module and its machine code. */
const OVERHEAD_BYTES = 512 * 2 ** 20;
const STDERR_KEPT = 64 * 1024;
/** Runs in one box, one after the other. */
const RUNS_MAX = 1_000;
/** Resident memory of a box beside its code with which it may wait for the next run. */
const KEPT_BYTES_MAX = 256 * 2 ** 20;
const PROBE_MS = 10_000;
/** Key of the program that only tries. */
const PROBE = 'probe';

/** (module (memory (export "memory") 1) (func (export "_start"))) */
const PROBE_MODULE = Uint8Array.of(
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...[1, 4, 1, 0x60, 0, 0],
  ...[3, 2, 1, 0],
  ...[5, 3, 1, 0, 1],
  ...[7, 19, 2, 6, 0x6d, 0x65, 0x6d, 0x6f, 0x72, 0x79, 2, 0, 6, 0x5f, 0x73, 0x74, 0x61, 0x72, 0x74, 0, 0],
  ...[10, 4, 1, 2, 0, 0x0b],
);

/** A box is not trusted: what it says is checked like any input. */
const fileWish: z.ZodType<FileWish> = z.object({ mount: z.int(), path: z.string() });
const amount = z.number().nonnegative();
const boxEnd: z.ZodType<BoxEnd> = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('invalid'), message: z.string() }),
  z.object({
    kind: z.literal('ended'),
    termination: z.enum(['exit', 'error', 'timeout', 'memory', 'disk', 'fuel', 'output']),
    exitCode: z.int().nullable(),
    reason: z.string().nullable(),
    cpuMs: amount,
    memoryBytes: amount,
    processBytes: amount,
    fuelUsed: z.string().regex(/^\d{1,20}$/),
  }),
]);

interface Tree {
  readonly layer: Digest;
  readonly at: string;
  readonly entries: readonly BoxEntry[];
}

/** What a box is given once. */
interface Program {
  readonly entry: string;
  readonly trees: readonly Tree[];
  /** Files that the box may ask for: they are in the trees that it was given. */
  readonly sizes: readonly ReadonlyMap<string, number>[];
  readonly memoryPagesMax: number;
}

/** What it is given for each run. */
interface Job {
  readonly input: Uint8Array;
  readonly args: readonly string[];
  readonly policy: RunRequest['policy'];
  /** Hears standard error as it comes. */
  readonly log: (bytes: Uint8Array) => void;
}

/** What holds the process, beside itself. */
interface Held extends Job {
  readonly around: Readonly<Record<string, string>> | null;
  /** What the process had spent when the run began. */
  readonly startCpuMs: number;
}

/** A program in its box. */
interface Loaded {
  readonly key: string;
  readonly box: BoxProcess;
  readonly program: Program;
  runs: number;
  /** What the process had spent after its last run; null before the first. */
  cpuMs: number | null;
}

/**
 * Runs WASI commands: metered, with the files of their package and nothing else, each run with an instance of its own. A process belongs to
 * one program, and is kept for its next run when this one ended well.
 */
export class WasmRuntime implements Runtime, AsyncDisposable {
  readonly kind = 'wasm';
  readonly #assets: Pick<Assets, 'tree' | 'readFile'>;
  readonly #limits: ExecutionLimits;
  readonly #sandbox: Pick<ProcessSandbox, 'probe' | 'start'> | undefined;
  readonly #pool: BoxPool<Loaded>;
  /** The box around each process, as what it enforces; null: there is none. */
  #around: Promise<Readonly<Record<string, string>> | null> | undefined;
  readonly #running = new Set<Conversation>();
  readonly #probed = new Probed(() => this.#probe());
  #closed = false;

  constructor(
    /** `sandbox`: a second wall, where the machine has one. */
    lent: {
      readonly assets: Pick<Assets, 'tree' | 'readFile'>;
      readonly sandbox?: Pick<ProcessSandbox, 'probe' | 'start'>;
    },
    options: { readonly limits: ExecutionLimits },
  ) {
    this.#assets = lent.assets;
    this.#limits = options.limits;
    this.#sandbox = lent.sandbox;
    const { memoryBytesMax, tmpBytesMax, keptBoxesMax } = options.limits;
    const memoryBytes = Math.min(memoryBytesMax, PAGES_MAX * PAGE) + 2 * tmpBytesMax + OVERHEAD_BYTES;
    this.#pool = new BoxPool(keptBoxesMax, () => this.#startProcess(memoryBytes));
  }

  probe(): Promise<RuntimeStatus> {
    return this.#probed.status();
  }

  async run(request: RunRequest, options: CallOptions = {}): Promise<RunResult> {
    const input = encodeInput(request.input, this.#limits);
    refuseCancelled(options.signal);
    const loaded = await this.#load(request, options);
    const job = {
      input,
      args: [request.entry, ...request.args],
      policy: request.policy,
      log: logTo(options.onProgress),
    };
    return this.#execute(loaded, job, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#pool[Symbol.dispose]();
    await Promise.all([...this.#running].map((conversation) => conversation.cancel('The node stopped.')));
  }

  async #probe(): Promise<RuntimeStatus> {
    const version = `WASI preview 1 and 0.2 on V8 ${process.versions.v8}`;
    const policy: RunRequest['policy'] = {
      memoryBytes: PAGE,
      cpuCores: 1,
      wallMs: PROBE_MS,
      fuel: 1_000n,
      outputBytes: 0,
      tmpBytes: 0,
      network: 'none',
      environment: {},
      mounts: [],
    };
    const program: Program = { entry: 'probe', trees: [], sizes: [], memoryPagesMax: 1 };
    const reason = await this.#start(PROBE, program, PROBE_MODULE, {})
      .then((loaded) => this.#execute(loaded, { input: utf8('null'), args: ['probe'], policy, log: () => {} }, {}))
      .then(
        (result) =>
          result.termination === 'exit' ? null : `A test program ended by ${result.termination}: ${result.reason}`,
        (error: unknown) => (error instanceof Error ? error.message : String(error)),
      );
    return {
      kind: 'wasm',
      available: reason === null,
      version: reason === null ? version : null,
      reason,
      ...(reason === null ? { enforces: enforcedBy(policy, await this.#enforcesAround()) } : {}),
    };
  }

  /** The box in which this program ran last, or another one that is given the program. */
  async #load(request: RunRequest, options: CallOptions): Promise<Loaded> {
    const { layer, entry, policy } = request;
    const memoryPagesMax = Math.min(Math.floor(policy.memoryBytes / PAGE), PAGES_MAX);
    const key = JSON.stringify([layer, entry, memoryPagesMax, policy.mounts.map((mount) => [mount.layer, mount.at])]);
    const kept = this.#pool.takeKept(key);
    if (kept !== null) return kept;
    const trees = await this.#trees(request, options);
    const module = await this.#module(request, trees[0]!, options);
    const sizes = trees.map(
      ({ entries }) =>
        new Map(entries.flatMap((one) => (one.size === undefined ? [] : [[one.path, one.size] as const]))),
    );
    return this.#start(key, { entry, trees, sizes, memoryPagesMax }, module, options);
  }

  async #start(key: string, program: Program, module: Uint8Array, options: CallOptions): Promise<Loaded> {
    refuseCancelled(options.signal);
    let box: BoxProcess;
    try {
      box = await this.#pool.takeBlank();
    } catch (error) {
      throw new HyperMeshError(
        'runtime-unavailable',
        `No process to run WebAssembly could be started: ${(error as Error).message}`,
        {
          hint: 'Run `hypermesh doctor`.',
          cause: error,
        },
      );
    }
    const { memoryPagesMax, trees } = program;
    const given: BoxProgram = { memoryPagesMax, mounts: trees.map(({ at, entries }) => ({ at, entries })) };
    box.send(FRAME.program, utf8(JSON.stringify(given)));
    box.send(FRAME.module, module);
    return { key, box, program, runs: 0, cpuMs: null };
  }

  async #startProcess(memoryBytes: number): ReturnType<Starter> {
    if (this.#sandbox === undefined || (await this.#enforcesAround()) === null) return startPlain();
    try {
      return await startIn(this.#sandbox, memoryBytes);
    } catch (error) {
      // Node.js lies where users of boxes may not read.
      if (!isCoded(error, 'policy-refused')) throw error;
      this.#around = Promise.resolve(null);
      return startPlain();
    }
  }

  /** Where the machine has no boxes, the permission model of Node.js is the only wall around the engine. */
  #enforcesAround(): Promise<Readonly<Record<string, string>> | null> {
    this.#around ??= (async () => {
      const status = await this.#sandbox?.probe();
      return status?.available === true ? status.enforces : null;
    })();
    return this.#around;
  }

  async #execute(loaded: Loaded, job: Job, options: CallOptions): Promise<RunResult> {
    const { box } = loaded;
    if (this.#closed || options.signal?.aborted) {
      box.kill();
      refuseCancelled(options.signal);
      throw new HyperMeshError('cancelled', 'The node stopped before the program started.');
    }
    const around = await this.#enforcesAround();
    // What waited meanwhile spent nothing.
    const startCpuMs = loaded.cpuMs ?? box.measure()?.cpuMs ?? 0;
    const conversation = new Conversation(
      box,
      loaded.program,
      { ...job, around, startCpuMs },
      this.#assets,
      this.#limits,
    );
    const cancel = () => void conversation.cancel('The caller gave up.');
    this.#running.add(conversation);
    options.signal?.addEventListener('abort', cancel, { once: true });
    try {
      const result = await conversation.result;
      loaded.runs += 1;
      const isClean = result.termination === 'exit' && loaded.runs < RUNS_MAX && loaded.key !== PROBE;
      const measured = isClean ? box.measure() : null;
      loaded.cpuMs = measured?.cpuMs ?? null;
      if (isClean && (measured?.residentBytes ?? 0) < KEPT_BYTES_MAX) this.#pool.keep(loaded);
      else box.kill();
      return result;
    } catch (error) {
      box.kill();
      throw error;
    } finally {
      options.signal?.removeEventListener('abort', cancel);
      this.#running.delete(conversation);
      this.#pool.refill();
    }
  }

  async #trees(request: RunRequest, options: CallOptions): Promise<Tree[]> {
    const wanted = [{ layer: request.layer, at: '/package' }, ...request.policy.mounts];
    const trees: Tree[] = [];
    let count = 0;
    for (const { layer, at } of wanted) {
      const tree = await this.#assets.tree(layer, options);
      count += tree.length;
      if (count > this.#limits.filesMax)
        throw new HyperMeshError(
          'limit-exceeded',
          `The package and its dependencies have more than ${this.#limits.filesMax} files; a program cannot be shown so many.`,
        );
      trees.push({ layer, at, entries: tree.map(boxEntry) });
    }
    return trees;
  }

  async #module(request: RunRequest, tree: Tree, options: CallOptions): Promise<Uint8Array> {
    const entry = tree.entries.find((one) => one.path === request.entry);
    if (entry?.size === undefined)
      throw new HyperMeshError('entry-missing', `The package has no file "${request.entry}" to run.`, {
        hint: 'Set `entry` in catalog.yaml to the path of the .wasm file.',
      });
    if (entry.size > this.#limits.moduleBytesMax)
      throw new HyperMeshError(
        'program-invalid',
        `"${request.entry}" has ${entry.size} bytes; a program has at most ${this.#limits.moduleBytesMax}.`,
      );
    return readWhole(this.#assets.readFile(request.layer, request.entry, options), this.#limits.moduleBytesMax);
  }
}

/** One run in a box, from the order to the end. */
class Conversation {
  readonly result: Promise<RunResult>;
  readonly #box: BoxProcess;
  readonly #program: Program;
  readonly #job: Held;
  readonly #assets: Pick<Assets, 'readFile'>;
  readonly #limits: ExecutionLimits;
  readonly #startMs = performance.now();
  readonly #stdout: Uint8Array[] = [];
  readonly #timers: NodeJS.Timeout[];
  #stderr: Uint8Array[] = [];
  #stderrBytes = 0;
  #outputBytes = 0;
  #servedBytes = 0;
  #serving = false;
  #measured: ReturnType<BoxProcess['measure']> = null;
  #settle!: { resolve(result: RunResult): void; reject(error: Error): void };
  #settled = false;

  constructor(box: BoxProcess, program: Program, job: Held, assets: Pick<Assets, 'readFile'>, limits: ExecutionLimits) {
    this.#box = box;
    this.#program = program;
    this.#job = job;
    this.#assets = assets;
    this.#limits = limits;
    box.forgetPeak();
    this.result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    const { policy } = job;
    this.#timers = [
      setTimeout(
        () => this.#stop('timeout', `The program ran longer than its ${policy.wallMs} ms.`),
        policy.wallMs + GRACE_MS,
      ),
      setInterval(() => this.#watch(), WATCH_MS).unref(),
    ];
    box.listen((event) => this.#hear(event));
    const order: BoxOrder = {
      args: job.args,
      environment: Object.entries(policy.environment).map(([name, value]) => `${name}=${value}`),
      wallMs: policy.wallMs,
      cpuCores: policy.cpuCores,
      fuel: policy.fuel === undefined ? null : String(policy.fuel),
      outputBytes: policy.outputBytes,
      tmpBytes: policy.tmpBytes,
    };
    box.send(FRAME.order, utf8(JSON.stringify(order)));
    box.send(FRAME.input, job.input);
  }

  async cancel(reason: string): Promise<void> {
    this.#stop('cancelled', reason);
    await this.result.catch(() => {});
  }

  #hear(event: BoxEvent): void {
    if (this.#settled) {
      // Nothing is left to say after the end of a run.
      this.#box.kill();
      return;
    }
    if (event.kind === 'gone') {
      const outOfMemory = /out of memory|allocation failed/i.test(event.text);
      if (outOfMemory) this.#stop('memory', 'The program, or preparing it, took more memory than the box has.');
      else this.#stop('sandbox', `The process of the program ended unexpectedly (${event.signal ?? 'no signal'}).`);
      return;
    }
    switch (event.type) {
      case FRAME.stdout:
      case FRAME.stderr:
        this.#print(event.type, event.body);
        break;
      case FRAME.wish:
        this.#serve(event.body).catch(() => this.#breach());
        break;
      case FRAME.end:
        this.#finish(event.body);
        break;
      default:
        this.#breach();
    }
  }

  #print(type: number, body: Uint8Array): void {
    this.#outputBytes += body.length;
    const max = this.#job.policy.outputBytes;
    if (this.#outputBytes > max) {
      this.#stop('output', `The program wrote more than ${max} bytes.`);
    } else if (type === FRAME.stdout) {
      this.#stdout.push(body);
    } else {
      this.#job.log(body);
      this.#stderr.push(body);
      this.#stderrBytes += body.length;
      if (this.#stderrBytes > 4 * STDERR_KEPT) {
        this.#stderr = [Buffer.concat(this.#stderr).subarray(-STDERR_KEPT)];
        this.#stderrBytes = STDERR_KEPT;
      }
    }
  }

  /** Answers the box, which waits meanwhile. */
  async #serve(body: Uint8Array): Promise<void> {
    if (this.#serving) throw new Error('one wish at a time');
    this.#serving = true;
    const wish = fileWish.parse(JSON.parse(fromUtf8(body)));
    const size = this.#program.sizes[wish.mount]?.get(wish.path);
    if (size === undefined) throw new Error('a wish for a file that was not offered');
    this.#servedBytes += size;
    let bytes: Uint8Array | null = null;
    if (size <= this.#limits.fileBytesMax && this.#servedBytes <= this.#limits.servedBytesMax) {
      // A file that cannot be read (damaged, collected meanwhile) is an input/output error of the program, as on any machine.
      bytes = await readWhole(this.#assets.readFile(this.#program.trees[wish.mount]!.layer, wish.path), size).catch(
        () => null,
      );
    }
    this.#serving = false;
    if (this.#settled) return;
    if (bytes === null) this.#box.send(FRAME.noFile, new Uint8Array());
    else this.#box.send(FRAME.file, bytes);
  }

  #breach(): void {
    this.#stop('sandbox', 'The process of the program broke its protocol.');
  }

  #finish(body: Uint8Array): void {
    let end: BoxEnd;
    try {
      end = boxEnd.parse(JSON.parse(fromUtf8(body)));
    } catch {
      this.#breach();
      return;
    }
    if (end.kind === 'invalid') {
      this.#close(false);
      this.#settle.reject(
        new HyperMeshError(
          'program-invalid',
          `"${visible(this.#program.entry)}" cannot be run: ${visible(end.message)}.`,
          {
            hint: 'Programs are WASI preview 1 commands (a memory exported as "memory", a function "_start") or components of wasi:cli/command 0.2 (docs/protocol/run.md).',
          },
        ),
      );
      return;
    }
    this.#end(end.termination, end.reason === null ? null : visible(end.reason), end.exitCode, {
      cpuMs: Math.round(end.cpuMs),
      peakMemoryBytes: end.memoryBytes,
      peakProcessBytes: end.processBytes,
      fuelUsed: end.fuelUsed,
    });
  }

  #stop(termination: Termination, reason: string): void {
    if (this.#settled) return;
    this.#measured = this.#box.measure() ?? this.#measured;
    const elapsed = performance.now() - this.#startMs;
    this.#end(termination, reason, null, {
      // One thread: where the kernel does not say, the elapsed time is the upper bound.
      cpuMs: this.#measured === null ? Math.round(elapsed) : Math.max(0, this.#measured.cpuMs - this.#job.startCpuMs),
      peakMemoryBytes: 0,
      peakProcessBytes: this.#measured?.peakBytes ?? 0,
      fuelUsed: null,
    });
  }

  #end(
    termination: Termination,
    reason: string | null,
    exitCode: number | null,
    usage: Omit<RunResult['usage'], 'wallMs'>,
  ): void {
    this.#close(termination === 'exit');
    this.#settle.resolve({
      termination,
      reason,
      exitCode,
      ...parseOutput(Buffer.concat(this.#stdout)),
      stderr: visible(Buffer.concat(this.#stderr).subarray(-STDERR_KEPT).toString('utf8')),
      usage: { wallMs: Math.round(performance.now() - this.#startMs), ...usage },
      enforcedBy: enforcedBy(this.#job.policy, this.#job.around),
    });
  }

  /** `isOver`: the box says that the run ended, and waits for the next. */
  #close(isOver: boolean): void {
    this.#settled = true;
    for (const timer of this.#timers) clearTimeout(timer);
    if (!isOver) this.#box.kill();
  }

  #watch(): void {
    this.#measured = this.#box.measure() ?? this.#measured;
    const { memoryBytes, tmpBytes } = this.#job.policy;
    if (this.#measured !== null && this.#measured.residentBytes > memoryBytes + 2 * tmpBytes + OVERHEAD_BYTES)
      this.#stop('memory', 'The process of the program grew far beyond the memory of its policy.');
  }
}

function enforcedBy(
  policy: RunRequest['policy'],
  around: Readonly<Record<string, string>> | null,
): Record<string, string> {
  return {
    isolation: `WebAssembly, in a process of its own under the permission model of Node.js${around === null ? '' : `, in ${around['isolation']}`}`,
    ...(around?.['syscalls'] === undefined ? {} : { syscalls: around['syscalls'] }),
    memory: `clamped WebAssembly memory${process.platform === 'linux' ? ', resident-size watchdog' : ''}`,
    cpu: policy.cpuCores < 1 ? 'one thread, held back at fuel checks' : 'one thread',
    wall: 'fuel checks, then SIGKILL',
    ...(policy.fuel === undefined ? {} : { fuel: 'metered instructions' }),
    output: 'counted in the box and by the node',
    tmp: 'files in memory, counted',
    files: 'no host files exist in the box; package files are handed over one by one',
    network: 'no socket functions exist in the box; refused by the permission model',
  };
}

function boxEntry(entry: TreeEntry): BoxEntry {
  switch (entry.kind) {
    case 'file':
      return { path: entry.path, size: entry.size };
    case 'directory':
      return { path: entry.path };
    case 'symlink':
      return { path: entry.path, target: entry.target ?? '' };
  }
}

function refuseCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new HyperMeshError('cancelled', 'The caller gave up before the program started.', { cause: signal.reason });
}

async function readWhole(pieces: AsyncIterable<Uint8Array>, sizeMax: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const piece of pieces) {
    size += piece.length;
    if (size > sizeMax)
      throw new HyperMeshError('limit-exceeded', `A file has more than the expected ${sizeMax} bytes.`);
    parts.push(piece);
  }
  return Buffer.concat(parts);
}
