import { readSync, writeSync } from 'node:fs';
import { Trap } from './abi.ts';
import { type Component, isComponent, readComponent } from './component.ts';
import { ERRNO, Errno, Files, Mounts } from './files.ts';
import { type BoxEnd, type BoxOrder, type BoxProgram, type FileWish, FRAME, frameHead } from './frames.ts';
import { Fuel } from './fuel.ts';
import { link, type PreparedModule, type PreparedModules, prepareModules } from './link.ts';
import { meter, ProgramInvalid } from './meter.ts';
import { preview2 } from './preview2.ts';
import { CALL_COST, Exit, WASI_FUNCTIONS, WASI_MODULE, Wasi, type WasiOptions } from './wasi.ts';

/**
 * The process in which one program runs, as often as the node says so: the module is compiled once, each run has an instance, files and
 * counters of its own. It is started with an empty environment and no permission beyond reading its own source, speaks {@link FRAME} over
 * its standard input and output, and works synchronously throughout: there is no event loop that a program could get at. It ends when its
 * input ends; while a program runs, it looks after each slice of fuel whether the node is gone.
 */

const OUTPUT_PIECE = 64 * 1024;
/** What a program printed is passed on after this, as long as it is looked at. */
const FLUSH_MS = 50;
const TABLE_ENTRIES_MAX = 100_000;
/** Memory of runs that ended which may wait for the collector. */
const GARBAGE_MAX = 32 * 2 ** 20;
const PARENT = process.ppid;

type Stop = Extract<BoxEnd, { kind: 'ended' }>['termination'];

/** Thrown through the program to stop it; no instruction can catch it. */
class Stopped extends Error {
  readonly termination: Stop;
  constructor(termination: Stop, reason: string) {
    super(reason);
    this.termination = termination;
  }
}

function main(): void {
  send(FRAME.ready, new Uint8Array());
  const program = new Program(JSON.parse(decode(expect(FRAME.program))) as BoxProgram, expect(FRAME.module));
  let garbage = 0;
  for (;;) {
    const order = JSON.parse(decode(expect(FRAME.order))) as BoxOrder;
    const run = new Run(program, order, expect(FRAME.input));
    const end = run.toEnd();
    run.flush();
    send(FRAME.end, encode(JSON.stringify(end)));
    if (end.kind === 'ended') garbage += end.memoryBytes;
    if (garbage < GARBAGE_MAX) continue;
    gc?.();
    garbage = 0;
  }
}

type Prepared =
  | { readonly kind: 'module'; readonly module: PreparedModule }
  | { readonly kind: 'component'; readonly component: Component; readonly modules: PreparedModules }
  | { readonly kind: 'invalid'; readonly message: string };

/** What is the same for every run. */
class Program {
  readonly memoryPagesMax: number;
  readonly mounts: Mounts;
  #source: Uint8Array<ArrayBuffer> | null;
  #prepared: Prepared | undefined;

  constructor(program: BoxProgram, source: Uint8Array<ArrayBuffer>) {
    this.memoryPagesMax = program.memoryPagesMax;
    this.mounts = new Mounts(program.mounts);
    this.#source = source;
  }

  /** Part of the first run, and on its account. */
  prepare(): Prepared {
    if (this.#prepared === undefined) {
      this.#prepared = this.#prepare(this.#source!);
      this.#source = null;
    }
    return this.#prepared;
  }

  #prepare(source: Uint8Array<ArrayBuffer>): Prepared {
    const limits = { memoryPagesMax: this.memoryPagesMax, tableEntriesMax: TABLE_ENTRIES_MAX };
    try {
      if (isComponent(source)) {
        const component = readComponent(source);
        return { kind: 'component', component, modules: prepareModules(component, limits) };
      }
      const role = { kind: 'command', module: WASI_MODULE, functions: WASI_FUNCTIONS } as const;
      const metered = meter(source, role, limits);
      return { kind: 'module', module: { metered, module: new WebAssembly.Module(metered.bytes) } };
    } catch (error) {
      if (error instanceof ProgramInvalid) return { kind: 'invalid', message: error.message };
      return { kind: 'invalid', message: `the program cannot be prepared: ${messageOf(error)}` };
    }
  }
}

class Run {
  readonly #program: Program;
  readonly #order: BoxOrder;
  readonly #startMs = performance.now();
  readonly #startCpuMs = cpuMs();
  readonly #fuel: Fuel;
  readonly #lent: WasiOptions;
  readonly #files: Files;
  readonly #output = { stdout: new Output(FRAME.stdout), stderr: new Output(FRAME.stderr) };
  readonly #pause = new Int32Array(new SharedArrayBuffer(4));
  #outputBytes = 0;
  #flushedMs = 0;
  #memory: WebAssembly.Memory | undefined;

  constructor(program: Program, order: BoxOrder, input: Uint8Array) {
    this.#program = program;
    this.#order = order;
    const budget = order.fuel === null ? 2n ** 62n : BigInt(order.fuel);
    this.#fuel = new Fuel(
      budget,
      () => this.#look(),
      () => {
        throw new Stopped('fuel', `The program used up its fuel of ${budget} units.`);
      },
    );
    this.#files = new Files(program.mounts, order.tmpBytes, (mount, path) => fetchFile(mount, path));
    this.#lent = {
      args: order.args,
      environment: order.environment,
      stdin: input,
      files: this.#files,
      write: (to, bytes) => this.#write(to, bytes),
      charge: (units) => this.#fuel.charge(units),
      sleep: (ms) => this.#sleep(ms),
      elapsedMs: () => performance.now() - this.#startMs,
      cpuMs: () => cpuMs() - this.#startCpuMs,
    };
  }

  toEnd(): BoxEnd {
    const prepared = this.#program.prepare();
    try {
      switch (prepared.kind) {
        case 'invalid':
          return prepared;
        case 'module':
          this.#module(prepared.module);
          return this.#exited(0);
        case 'component':
          return this.#exited(this.#component(prepared) ? 0 : 1);
      }
    } catch (error) {
      return this.#endedBy(error);
    }
  }

  flush(): void {
    this.#output.stdout.flush();
    this.#output.stderr.flush();
  }

  #module(prepared: PreparedModule): void {
    this.#admit(prepared);
    const wasi = new Wasi(this.#lent);
    const { exports } = new WebAssembly.Instance(prepared.module, { [WASI_MODULE]: wasi.imports() });
    this.#arm(prepared, exports);
    wasi.attach(this.#memory!);
    const { start } = prepared.metered.exports;
    if (start !== null) (exports[start] as () => void)();
    (exports['_start'] as () => void)();
  }

  /** Whether it says that all went well. */
  #component({ component, modules }: Extract<Prepared, { kind: 'component' }>): boolean {
    const run = link(component, {
      modules,
      interfaces: preview2(this.#lent),
      enter: () => this.#fuel.charge(CALL_COST),
      admit: (module) => this.#admit(module),
      arm: (module, exports) => this.#arm(module, exports),
    });
    return run();
  }

  #admit({ metered }: PreparedModule): void {
    this.#look();
    const { memoryPagesMax } = this.#program;
    if (metered.memoryPagesMin > memoryPagesMax)
      throw new Stopped(
        'memory',
        `The program needs ${metered.memoryPagesMin * 64} KiB of memory to start; the policy gives ${memoryPagesMax * 64}.`,
      );
  }

  /** Connects meter and host. Nothing of the module has run before: its start function became an export. */
  #arm({ metered }: PreparedModule, exports: Readonly<Record<string, unknown>>): void {
    const { memory } = metered.exports;
    if (memory !== null) this.#memory = exports[memory] as WebAssembly.Memory;
    this.#fuel.arm(metered, exports);
  }

  #endedBy(error: unknown): BoxEnd {
    if (error instanceof ProgramInvalid) return { kind: 'invalid', message: error.message };
    if (error instanceof WebAssembly.LinkError)
      return { kind: 'invalid', message: `its parts do not fit together: ${messageOf(error)}` };
    if (error instanceof Exit) return this.#exited(error.status);
    if (error instanceof Stopped) return this.#ended(error.termination, error.message);
    if (error instanceof WebAssembly.RuntimeError && this.#fuel.isMemoryRefused)
      return this.#ended('memory', `The program trapped after it was refused more memory: ${messageOf(error)}.`);
    const isTrap = error instanceof WebAssembly.RuntimeError || error instanceof Trap;
    if (isTrap && this.#files.wasFull)
      return this.#ended('disk', `The program trapped after it found no place in /tmp: ${messageOf(error)}.`);
    if (isTrap) return this.#ended('error', `The program trapped: ${messageOf(error)}.`);
    if (error instanceof RangeError && /stack/i.test(error.message))
      return this.#ended('error', 'The program nested its calls too deep: its stack is full.');
    if (error instanceof RangeError) return this.#ended('memory', `The program got no memory: ${messageOf(error)}.`);
    return this.#ended('error', `The program could not run: ${messageOf(error)}.`);
  }

  #exited(status: number): BoxEnd {
    if (status === 0 || !this.#files.wasFull) return this.#ended('exit', null, status);
    return this.#ended('disk', `The program failed after it filled the ${this.#order.tmpBytes} bytes of /tmp.`, status);
  }

  #ended(termination: Stop, reason: string | null, exitCode: number | null = null): BoxEnd {
    const { maxRSS } = process.resourceUsage();
    return {
      kind: 'ended',
      termination,
      exitCode,
      reason,
      cpuMs: cpuMs() - this.#startCpuMs,
      memoryBytes: (this.#memory?.buffer.byteLength ?? 0) + this.#files.tmpPeak,
      processBytes: maxRSS * 1024,
      fuelUsed: String(this.#fuel.used),
    };
  }

  /** Ends the program when its time is up, the whole box when the node is gone; holds it back to its share of a processor. */
  #look(): void {
    if (process.ppid !== PARENT) process.exit(1);
    const wallMs = performance.now() - this.#startMs;
    if (wallMs >= this.#order.wallMs)
      throw new Stopped('timeout', `The program ran longer than its ${this.#order.wallMs} ms.`);
    if (wallMs - this.#flushedMs > FLUSH_MS) {
      this.#flushedMs = wallMs;
      this.flush();
    }
    const { cpuCores } = this.#order;
    if (cpuCores < 1) {
      const ahead = (cpuMs() - this.#startCpuMs) / cpuCores - wallMs;
      if (ahead > 1) Atomics.wait(this.#pause, 0, 0, Math.min(ahead, this.#order.wallMs - wallMs));
    }
  }

  #sleep(ms: number): void {
    this.flush();
    const until = performance.now() + ms;
    for (let left = ms; left > 0; left = until - performance.now()) {
      this.#look();
      Atomics.wait(this.#pause, 0, 0, Math.min(left, 50));
    }
  }

  #write(to: 'stdout' | 'stderr', bytes: Uint8Array): void {
    this.#outputBytes += bytes.length;
    if (this.#outputBytes > this.#order.outputBytes)
      throw new Stopped('output', `The program wrote more than ${this.#order.outputBytes} bytes.`);
    this.#output[to].write(bytes);
  }
}

/** Gathers small writes into frames. */
class Output {
  readonly #kind: number;
  readonly #buffer = new Uint8Array(OUTPUT_PIECE);
  #length = 0;

  constructor(kind: number) {
    this.#kind = kind;
  }

  write(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const piece = bytes.subarray(at, at + OUTPUT_PIECE - this.#length);
      this.#buffer.set(piece, this.#length);
      this.#length += piece.length;
      at += piece.length;
      if (this.#length === OUTPUT_PIECE) this.flush();
    }
  }

  flush(): void {
    if (this.#length > 0) send(this.#kind, this.#buffer.subarray(0, this.#length));
    this.#length = 0;
  }
}

function fetchFile(mount: number, path: string): Uint8Array {
  const wish: FileWish = { mount, path };
  send(FRAME.wish, encode(JSON.stringify(wish)));
  const { kind, body } = receive();
  if (kind !== FRAME.file) throw new Errno(ERRNO.io);
  return body;
}

function expect(kind: number): Uint8Array<ArrayBuffer> {
  const frame = receive();
  if (frame.kind !== kind) throw new Error(`expected frame ${kind}, but got ${frame.kind}`);
  return frame.body;
}

function receive(): { kind: number; body: Uint8Array<ArrayBuffer> } {
  const head = readFully(5);
  return { kind: head[4]!, body: readFully(new DataView(head.buffer).getUint32(0, true) - 1) };
}

function readFully(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const got = readSync(0, bytes, at, length - at, null);
    if (got === 0) process.exit(0);
    at += got;
  }
  return bytes;
}

function send(kind: number, body: Uint8Array): void {
  writeFully(frameHead(kind, body.length));
  writeFully(body);
}

function writeFully(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);
}

function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

main();
