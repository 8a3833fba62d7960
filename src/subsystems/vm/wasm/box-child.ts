import { readSync, writeSync } from 'node:fs';
import { ERRNO, Errno, Files, Mounts } from './files.ts';
import { type BoxEnd, type BoxOrder, type BoxProgram, type FileWish, FRAME, frameHead } from './frames.ts';
import { type MeteredModule, meter, ProgramInvalid } from './meter.ts';
import { Exit, WASI_FUNCTIONS, WASI_MODULE, Wasi } from './wasi.ts';

/**
 * The process in which one program runs, as often as the node says so: the module is compiled once, each run has an instance, files and
 * counters of its own. It is started with an empty environment and no permission beyond reading its own source, speaks {@link FRAME} over
 * its standard input and output, and works synchronously throughout: there is no event loop that a program could get at. It ends when its
 * input ends; while a program runs, it looks after each slice of fuel whether the node is gone.
 */

/** Fuel between two looks at the clock: some milliseconds of work. */
const SLICE = 10_000_000n;
const OUTPUT_PIECE = 64 * 1024;
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

type Prepared = { readonly metered: MeteredModule; readonly module: WebAssembly.Module } | { readonly invalid: string };

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
    try {
      const metered = meter(
        source,
        { module: WASI_MODULE, functions: WASI_FUNCTIONS },
        { memoryPagesMax: this.memoryPagesMax, tableEntriesMax: TABLE_ENTRIES_MAX },
      );
      return { metered, module: new WebAssembly.Module(metered.bytes) };
    } catch (error) {
      if (error instanceof ProgramInvalid) return { invalid: error.message };
      return { invalid: `the module cannot be prepared: ${messageOf(error)}` };
    }
  }
}

class Run {
  readonly #program: Program;
  readonly #order: BoxOrder;
  readonly #startMs = performance.now();
  readonly #startCpuMs = cpuMs();
  readonly #budget: bigint;
  readonly #wasi: Wasi;
  readonly #files: Files;
  readonly #output = { stdout: new Output(FRAME.stdout), stderr: new Output(FRAME.stderr) };
  readonly #pause = new Int32Array(new SharedArrayBuffer(4));
  #outputBytes = 0;
  /** Fuel handed out so far, the slice in the global included. */
  #granted = 0n;
  /** The global that the module counts down; until it exists, calls pay nothing. */
  #fuel: WebAssembly.Global<'i64'> | undefined;
  #refused: WebAssembly.Global<'i32'> | undefined;
  #memory: WebAssembly.Memory | undefined;

  constructor(program: Program, order: BoxOrder, input: Uint8Array) {
    this.#program = program;
    this.#order = order;
    this.#budget = order.fuel === null ? 2n ** 62n : BigInt(order.fuel);
    this.#files = new Files(program.mounts, order.tmpBytes, (mount, path) => fetchFile(mount, path));
    this.#wasi = new Wasi({
      args: order.args,
      environment: order.environment,
      stdin: input,
      files: this.#files,
      write: (to, bytes) => this.#write(to, bytes),
      charge: (units) => this.#charge(units),
      sleep: (ms) => this.#sleep(ms),
      elapsedMs: () => performance.now() - this.#startMs,
      cpuMs: () => cpuMs() - this.#startCpuMs,
    });
  }

  toEnd(): BoxEnd {
    const prepared = this.#program.prepare();
    if ('invalid' in prepared) return { kind: 'invalid', message: prepared.invalid };
    const { metered, module } = prepared;
    const { memoryPagesMax } = this.#program;
    if (metered.memoryPagesMin > memoryPagesMax) {
      return this.#ended(
        'memory',
        `The program needs ${metered.memoryPagesMin} pages of memory to start; the policy gives ${memoryPagesMax}.`,
      );
    }
    try {
      const instance = new WebAssembly.Instance(module, { [WASI_MODULE]: this.#wasi.imports() });
      const exports = instance.exports as Record<string, unknown>;
      this.#arm(metered, exports);
      if (metered.exports.start !== null) (exports[metered.exports.start] as () => void)();
      (exports['_start'] as () => void)();
      return this.#ended('exit', null, 0);
    } catch (error) {
      return this.#endedBy(error);
    }
  }

  flush(): void {
    this.#output.stdout.flush();
    this.#output.stderr.flush();
  }

  /** Connects meter and host. Nothing of the program has run before: its start function became an export. */
  #arm(metered: MeteredModule, exports: Record<string, unknown>): void {
    this.#memory = exports['memory'] as WebAssembly.Memory;
    this.#fuel = exports[metered.exports.fuel] as WebAssembly.Global<'i64'>;
    this.#refused = exports[metered.exports.refused] as WebAssembly.Global<'i32'>;
    this.#wasi.attach(this.#memory);
    (exports[metered.exports.refill] as WebAssembly.Table).set(
      0,
      asFunction(() => this.#refill()),
    );
    this.#grant();
  }

  #endedBy(error: unknown): BoxEnd {
    if (error instanceof Exit) return this.#ended('exit', null, error.status);
    if (error instanceof Stopped) return this.#ended(error.termination, error.message);
    if (error instanceof WebAssembly.RuntimeError && this.#refused?.value === 1)
      return this.#ended('memory', `The program trapped after it was refused more memory: ${messageOf(error)}.`);
    if (error instanceof WebAssembly.RuntimeError)
      return this.#ended('error', `The program trapped: ${messageOf(error)}.`);
    if (error instanceof RangeError && /stack/i.test(error.message))
      return this.#ended('error', 'The program nested its calls too deep: its stack is full.');
    if (error instanceof RangeError) return this.#ended('memory', `The program got no memory: ${messageOf(error)}.`);
    return this.#ended('error', `The program could not run: ${messageOf(error)}.`);
  }

  #ended(termination: Stop, reason: string | null, exitCode: number | null = null): BoxEnd {
    const left = this.#fuel?.value ?? 0n;
    const used = this.#granted - left;
    const { maxRSS } = process.resourceUsage();
    return {
      kind: 'ended',
      termination,
      exitCode,
      reason,
      cpuMs: cpuMs() - this.#startCpuMs,
      memoryBytes: (this.#memory?.buffer.byteLength ?? 0) + this.#files.tmpPeak,
      processBytes: maxRSS * 1024,
      fuelUsed: String(used > this.#budget ? this.#budget : used),
    };
  }

  /** The global fell below zero: stops the program or gives it the next slice. */
  #refill(): void {
    while (this.#fuel!.value < 0n) {
      this.#look();
      if (this.#granted >= this.#budget)
        throw new Stopped('fuel', `The program used up its fuel of ${this.#budget} units.`);
      this.#grant();
    }
  }

  #grant(): void {
    const rest = this.#budget - this.#granted;
    const slice = rest < SLICE ? rest : SLICE;
    this.#granted += slice;
    this.#fuel!.value += slice;
  }

  #charge(units: number): void {
    if (this.#fuel === undefined) return;
    this.#fuel.value -= BigInt(units);
    if (this.#fuel.value < 0n) this.#refill();
  }

  /** Ends the program when its time is up, the whole box when the node is gone; holds it back to its share of a processor. */
  #look(): void {
    if (process.ppid !== PARENT) process.exit(1);
    const wallMs = performance.now() - this.#startMs;
    if (wallMs >= this.#order.wallMs)
      throw new Stopped('timeout', `The program ran longer than its ${this.#order.wallMs} ms.`);
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

// (module (import "h" "f" (func)) (export "f" (func 0)))
const WRAPPER = new WebAssembly.Module(
  Uint8Array.of(
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...[1, 4, 1, 0x60, 0, 0],
    ...[2, 7, 1, 1, 0x68, 1, 0x66, 0, 0],
    ...[7, 5, 1, 1, 0x66, 0, 0],
  ),
);

/** A table takes only functions of WebAssembly: `call` behind the smallest module that has one. */
function asFunction(call: () => void): unknown {
  return new WebAssembly.Instance(WRAPPER, { h: { f: call } }).exports['f'];
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
