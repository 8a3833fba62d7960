import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { statfsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { type Duplex, type Readable, Transform, type Writable } from 'node:stream';
import { setTimeout as pause } from 'node:timers/promises';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import type { AheadBox, Box, BoxExit, BoxLimits } from './box.ts';
import { type Cgroup, killQuietly } from './cgroups.ts';
import type { Launcher } from './launcher.ts';
import { measureTree } from './process-tree.ts';
import { watchRoom } from './room.ts';
import { Scratch } from './scratch.ts';

const WATCH_MS = 50;
const STARTING_MS_MAX = 2_000;
const ENDING_MS_MAX = 5_000;
export const SHM_BYTES = 16 * 2 ** 20;
/** A share at which a program that waits for input misses nothing, and one that does not gets nothing done. */
const RESTING_CORES = 0.01;
const STATUS_BYTES_MAX = 4_096;

/** Signals that a shell's status 128+n stands for, as far as programs die of them. */
const DEADLY: Readonly<Record<number, string>> = {
  3: 'SIGQUIT',
  4: 'SIGILL',
  5: 'SIGTRAP',
  6: 'SIGABRT',
  7: 'SIGBUS',
  8: 'SIGFPE',
  9: 'SIGKILL',
  11: 'SIGSEGV',
  24: 'SIGXCPU',
  25: 'SIGXFSZ',
  31: 'SIGSYS',
};

export const WATCHDOG = `watchdog on resident size and scratch files every ${WATCH_MS} ms`;

export class RunningBox implements Box, AheadBox {
  readonly stdin: Writable;
  readonly stdout: Readable;
  readonly stderr: Readable;
  readonly control: Duplex;
  readonly exit: Promise<BoxExit>;
  /** Resolves when the program is about to start, or never will. */
  readonly isSetUp: Promise<void>;
  readonly #child: ChildProcess;
  readonly #limits: BoxLimits;
  readonly #cgroup: Cgroup | null;
  readonly #enforcedBy: Readonly<Record<string, string>>;
  readonly #limit: (limits: BoxLimits, yields: boolean) => Promise<void>;
  readonly #scratch: Scratch;
  readonly #rooms = new DisposableStack();
  #limiting = Promise.resolve();
  #hasBegun = false;
  #startMs = performance.now();
  #wall: NodeJS.Timeout | undefined;
  #stopped: { readonly termination: BoxExit['termination']; readonly reason: string } | undefined;
  #outputBytes = 0;
  #complaint = '';
  /** What bubblewrap says about the box: one JSON object on each line. */
  #report = '';
  #cpuMs = 0;
  /** Used before the run began. */
  #cpuMsAhead = 0;
  #peakBytes = 0;

  /** `limit` sets limits anew; `isAhead`: the run begins later. */
  constructor(
    { child, cgroup, ended }: Launcher,
    limits: BoxLimits,
    options: {
      readonly enforcedBy: Readonly<Record<string, string>>;
      readonly isWatched: boolean;
      readonly isAhead: boolean;
      /** Folders of the owner that the program may write. */
      readonly writable: readonly { readonly source: string; readonly at: string }[];
      readonly limit: (limits: BoxLimits, yields: boolean) => Promise<void>;
    },
  ) {
    this.#child = child;
    this.#limits = limits;
    this.#cgroup = cgroup;
    this.#enforcedBy = options.enforcedBy;
    this.#limit = options.limit;
    this.#scratch = new Scratch(limits.tmpBytes);
    for (const { source, at } of options.writable)
      this.#rooms.use(
        watchRoom(source, (leftBytes) =>
          this.stop('disk', `The disk of ${at} is nearly full: ${leftBytes} bytes are left.`),
        ),
      );
    if (!options.isAhead) this.#startClock();
    const [stdin, stdout, stderr, control, , status] = child.stdio as unknown as Duplex[];
    this.stdin = stdin!;
    this.control = control!;
    this.stdout = this.#counted(stdout!);
    stderr!.on('data', (piece: Buffer) => {
      if (this.#complaint.length < STATUS_BYTES_MAX) this.#complaint += piece.toString('utf8');
    });
    this.stderr = this.#counted(stderr!);
    const setUp = Promise.withResolvers<void>();
    this.isSetUp = setUp.promise;
    this.exit = this.#follow(status!, ended, options.isWatched, setUp.resolve);
  }

  measure(): { readonly residentBytes: number; readonly cpuMs: number } {
    return measureTree(this.#child.pid ?? 0);
  }

  async activity(): Promise<{ readonly cpuMs: number; readonly isAsleep: boolean }> {
    const { cpuMs, isAsleep } = measureTree(this.#child.pid ?? 0);
    return {
      cpuMs: this.#cgroup === null ? cpuMs : (await this.#cgroup.usage()).cpuMs,
      // Before that it waits to become the program.
      isAsleep: isAsleep && this.#init() !== null,
    };
  }

  async rest(): Promise<void> {
    if (this.#hasBegun) return;
    await this.#changeLimits({ ...this.#limits, cpuCores: RESTING_CORES }, true);
  }

  async begin({ signal }: Pick<CallOptions, 'signal'> = {}): Promise<Box> {
    if (signal?.aborted) {
      this.kill();
      throw new HyperMeshError('cancelled', 'The run was cancelled before the program started.', {
        cause: signal.reason,
      });
    }
    this.#hasBegun = true;
    this.stopOn(signal);
    this.#startClock();
    const [{ cpuMs }] = await Promise.all([
      this.activity(),
      this.#changeLimits(this.#limits, false),
      this.#cgroup?.forgetPeak(),
    ]);
    this.#cpuMsAhead = cpuMs;
    this.#peakBytes = 0;
    return this;
  }

  /** One after the other: what was asked for last holds. */
  #changeLimits(limits: BoxLimits, yields: boolean): Promise<void> {
    this.#limiting = this.#limiting.then(() => this.#limit(limits, yields));
    return this.#limiting;
  }

  stopOn(signal: AbortSignal | undefined): void {
    const cancel = () => this.stop('cancelled', 'The run was cancelled.');
    signal?.addEventListener('abort', cancel, { once: true });
    void this.exit.then(() => signal?.removeEventListener('abort', cancel));
  }

  #startClock(): void {
    this.#startMs = performance.now();
    this.#scratch.follow(() => this.#init());
    this.#wall = setTimeout(
      () => this.stop('timeout', `The program ran longer than its ${this.#limits.wallMs} ms.`),
      this.#limits.wallMs,
    );
  }

  kill(): void {
    this.stop('cancelled', 'The run was cancelled.');
  }

  stop(termination: BoxExit['termination'], reason: string): void {
    if (this.#stopped !== undefined) return;
    this.#stopped = { termination, reason };
    // Killed while it sets the box up, it would leave half of it behind; that takes milliseconds.
    if (this.#init() === null) setTimeout(() => this.#child.kill('SIGKILL'), STARTING_MS_MAX).unref();
    else this.#child.kill('SIGKILL');
  }

  /** The first process of the box, as soon as it is there. The kernel ends everything in the box with it, and it ends with its parent. */
  #init(): number | null {
    const pid = /"child-pid": (\d+)/.exec(this.#report)?.[1];
    return pid === undefined ? null : Number(pid);
  }

  #counted(source: Readable): Readable {
    const counter = new Transform({
      transform: (piece: Buffer, _encoding, done) => {
        const free = this.#limits.outputBytes - this.#outputBytes;
        this.#outputBytes += piece.length;
        if (piece.length > free) this.stop('output', `The program wrote more than ${this.#limits.outputBytes} bytes.`);
        done(null, free <= 0 ? undefined : piece.subarray(0, free));
      },
    });
    source.on('error', () => counter.end());
    return source.pipe(counter);
  }

  async #follow(
    status: Readable,
    ended: Promise<Error | null>,
    isWatched: boolean,
    isSetUp: () => void,
  ): Promise<BoxExit> {
    const watch = isWatched ? setInterval(() => this.#watch(), WATCH_MS) : undefined;
    status.on('data', (piece: Buffer) => {
      if (this.#report.length < STATUS_BYTES_MAX) this.#report += piece.toString('latin1');
      if (this.#init() !== null) isSetUp();
      // A short program ends before the first turn of the watch.
      if (isWatched) this.#watch();
      if (this.#stopped !== undefined && this.#init() !== null) this.#child.kill('SIGKILL');
    });
    status.on('error', () => {});
    const failure = await ended;
    this.#rooms.dispose();
    using scratch = this.#scratch;
    const wasFull = scratch.wasFull();
    isSetUp();
    clearTimeout(this.#wall);
    clearInterval(watch);
    const wallMs = Math.round(performance.now() - this.#startMs);
    if (!status.readableEnded && failure === null) await once(status, 'close').catch(() => {});
    await emptied(this.#init());
    const kernel = await this.#cgroup?.usage();
    // What the program said last may still be unread; where nobody listens, nobody will.
    if (this.control.readableFlowing === null && this.control.listenerCount('readable') === 0) this.control.resume();
    this.control.end();
    return {
      ...this.#judge(failure, kernel?.oomKills ?? 0, wasFull),
      usage: {
        wallMs,
        cpuMs: Math.max(0, (kernel?.cpuMs ?? this.#cpuMs) - this.#cpuMsAhead),
        peakMemoryBytes: kernel?.peakMemoryBytes ?? this.#peakBytes,
      },
      enforcedBy: this.#enforcedBy,
    };
  }

  #judge(failure: Error | null, oomKills: number, wasFull: boolean): Omit<BoxExit, 'usage' | 'enforcedBy'> {
    const none = { exitCode: null, signal: null };
    if (this.#stopped !== undefined) return { ...this.#stopped, ...none };
    const code = /"exit-code": (\d+)/.exec(this.#report)?.[1];
    const exitCode = code === undefined ? null : Number(code);
    const signal = exitCode === null || exitCode <= 128 ? null : (DEADLY[exitCode - 128] ?? null);
    if (oomKills > 0 && (exitCode === null || signal === 'SIGKILL'))
      return {
        termination: 'memory',
        reason: `The program took more than its ${this.#limits.memoryBytes} bytes of memory.`,
        ...none,
        signal: 'SIGKILL',
      };
    if (exitCode === null) {
      const why = failure?.message ?? (this.#complaint.trim().slice(0, 500) || 'it ended at once');
      return { termination: 'sandbox', reason: `The box could not be set up: ${why}`, ...none };
    }
    if (wasFull && exitCode !== 0)
      return {
        termination: 'disk',
        reason: `The program failed after it filled the ${this.#limits.tmpBytes} bytes of /tmp.`,
        ...(signal === null ? { exitCode, signal } : { exitCode: null, signal }),
      };
    if (signal === null) return { termination: 'exit', reason: null, exitCode, signal: null };
    if (signal === 'SIGXFSZ')
      return {
        termination: 'disk',
        reason: `The program made a file larger than ${this.#limits.fileBytes} bytes.`,
        exitCode: null,
        signal,
      };
    return { termination: 'error', reason: reasonFor(signal), exitCode: null, signal };
  }

  #watch(): void {
    if (this.#child.pid === undefined) return;
    const { residentBytes: processBytes, cpuMs } = measureTree(this.#child.pid);
    const residentBytes = processBytes + scratchBytes(this.#init(), this.#limits.tmpBytes);
    this.#cpuMs = Math.max(this.#cpuMs, cpuMs);
    this.#peakBytes = Math.max(this.#peakBytes, residentBytes);
    if (residentBytes > this.#limits.memoryBytes)
      this.stop('memory', `The program took more than its ${this.#limits.memoryBytes} bytes of memory.`);
  }
}

/**
 * Waits for the first process of the box. The kernel counts it as ended only when everything else in its namespace has: who
 * sees it gone, or waiting to be reaped, sees an empty box.
 */
async function emptied(init: number | null): Promise<void> {
  if (init === null) return;
  const deadline = performance.now() + ENDING_MS_MAX;
  for (let waitMs = 1; performance.now() < deadline; waitMs = Math.min(2 * waitMs, WATCH_MS)) {
    const status = await readFile(`/proc/${init}/status`, 'latin1').catch(() => '');
    if (!/^State:\t[^ZX]/m.test(status)) return;
    // It dies with its parent, but for a moment at its start. First in a namespace below ours: it is no other's process.
    if (/^NSpid:.*\t1$/m.test(status)) killQuietly(init);
    await pause(waitMs);
  }
}

/** A file without content takes about this much of the kernel's memory. */
const INODE_BYTES = 1_024;

/** Memory behind the files of a box. */
function scratchBytes(init: number | null, tmpBytes: number): number {
  let sum = 0;
  for (const [folder, size] of [
    ['tmp', tmpBytes],
    ['dev/shm', SHM_BYTES],
  ] as const) {
    try {
      const { blocks, bfree, bsize, files, ffree } = statfsSync(`/proc/${init}/root/${folder}`);
      // Before it has entered its root, the box sees that of the host.
      if (blocks * bsize <= size + bsize) sum += (blocks - bfree) * bsize + (files - ffree) * INODE_BYTES;
    } catch {
      // not there yet, or not any more
    }
  }
  return sum;
}

function reasonFor(signal: string): string {
  if (signal === 'SIGXCPU') return 'The program used up its processor time.';
  return `The program was ended by ${signal}.`;
}
