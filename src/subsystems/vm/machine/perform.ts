import type { Readable } from 'node:stream';
import type { RunResult } from '../../../capabilities/vm.ts';
import { parseOutput, visible } from '../output.ts';
import type { Box } from '../process/box.ts';
import { EMULATOR_BYTES_LEAST } from './emulator.ts';
import { encodeStart, type GuestEnd, type GuestStart, readGuest } from './guest.ts';

const LOG_KEPT = 64 * 1024;
/** For the last bytes of a guest that has ended its program: they come on other ports. */
const LAST_MS_MAX = 1_000;
/** For the emulator of a machine that was switched off. */
const OFF_MS_MAX = 2_000;
/** For a guest that is asked to stop. */
const STOP_MS_MAX = 250;

export interface GuestRun {
  readonly start: GuestStart;
  readonly input: Uint8Array;
  /** Memory of the machine. */
  readonly memoryBytes: number;
  /** Limit -> what holds it in the guest, before what holds it around the emulator. */
  readonly enforcedBy: Readonly<Record<string, string>>;
  /** Told what the guest logs, as it comes. */
  readonly log: (bytes: Uint8Array) => void;
  readonly signal?: AbortSignal | undefined;
}

/** Wakes the guest of a box, gives it its input, and follows it until it has answered; then the machine is thrown away. */
export async function performGuest(box: Box, run: GuestRun): Promise<RunResult> {
  const output = new Printed(box.stdout, Number.POSITIVE_INFINITY, () => {});
  const log = new Printed(box.stderr, LOG_KEPT, run.log);
  const stop = () => {
    box.control.write('stop\n');
    setTimeout(() => box.kill(), STOP_MS_MAX).unref();
  };
  run.signal?.addEventListener('abort', stop, { once: true });
  if (run.signal?.aborted === true) stop();
  box.control.write(encodeStart(run.start));
  box.stdin.end(run.input);
  const said = await endOf(box.control);
  const isCancelled = run.signal?.aborted === true;
  if (said.end !== null) await Promise.race([Promise.all([output.whole, log.whole]), timeout(LAST_MS_MAX)]);
  else if (said.fault === null) await Promise.race([box.exit, timeout(OFF_MS_MAX)]);
  run.signal?.removeEventListener('abort', stop);
  box.kill();
  const exit = await box.exit;
  const { wallMs, cpuMs, peakMemoryBytes } = exit.usage;
  return {
    ...judge(said, exit, run.memoryBytes, isCancelled),
    ...parseOutput(output.bytes()),
    stderr: visible(log.bytes().toString('utf8')),
    usage: {
      wallMs,
      cpuMs,
      peakMemoryBytes: Math.min(run.memoryBytes, Math.max(0, peakMemoryBytes - EMULATOR_BYTES_LEAST)),
      peakProcessBytes: peakMemoryBytes,
      fuelUsed: null,
    },
    enforcedBy: both(exit.enforcedBy, run.enforcedBy),
  };
}

interface Said {
  readonly end: GuestEnd | null;
  /** What the guest did wrong. */
  readonly fault: string | null;
}

async function endOf(control: Readable): Promise<Said> {
  try {
    for await (const word of readGuest(control)) {
      if (word.kind === 'ready') throw new Error('it said again that it is ready');
      return { end: word, fault: null };
    }
    return { end: null, fault: null };
  } catch (error) {
    return { end: null, fault: (error as Error).message };
  }
}

function judge(
  { end, fault }: Said,
  exit: Awaited<Box['exit']>,
  memoryBytes: number,
  isCancelled: boolean,
): Pick<RunResult, 'termination' | 'reason' | 'exitCode'> {
  // A box is killed when its guest has answered; what stopped it before is the reason.
  if (exit.termination !== 'cancelled' && exit.termination !== 'exit')
    return { termination: exit.termination, reason: exit.reason, exitCode: null };
  if (isCancelled) return { termination: 'cancelled', reason: 'The run was cancelled.', exitCode: null };
  if (end?.kind === 'exit') return { termination: 'exit', reason: null, exitCode: end.status };
  if (end?.kind === 'memory')
    return {
      termination: 'memory',
      reason: `The program took more than the ${memoryBytes} bytes of its machine.`,
      exitCode: null,
    };
  if (fault !== null)
    return { termination: 'error', reason: `The guest broke its contract: ${fault}.`, exitCode: null };
  if (exit.termination === 'cancelled')
    return { termination: 'cancelled', reason: 'The node stopped.', exitCode: null };
  const why = exit.exitCode === 0 ? 'by itself' : `with status ${exit.exitCode} of the emulator`;
  return { termination: 'error', reason: `The machine ended before it answered, ${why}.`, exitCode: null };
}

/** A guest that breaks out of its machine is still in the box: both hold. */
function both(
  box: Readonly<Record<string, string>>,
  guest: Readonly<Record<string, string>>,
): Readonly<Record<string, string>> {
  const merged: Record<string, string> = { ...box };
  for (const [limit, mechanism] of Object.entries(guest)) {
    const outer = box[limit];
    merged[limit] = outer === undefined || outer === mechanism ? mechanism : `${mechanism}; ${outer}`;
  }
  return merged;
}

/** What comes from a port of the guest. A zero byte ends it. */
class Printed {
  /** Resolves when the zero byte has come, or nothing more can. */
  readonly whole: Promise<void>;
  #pieces: Buffer[] = [];
  #size = 0;
  readonly #sizeMax: number;

  constructor(stream: Readable, sizeMax: number, tell: (bytes: Uint8Array) => void) {
    this.#sizeMax = sizeMax;
    this.whole = new Promise((resolve) => {
      stream.on('data', (piece: Buffer) => {
        this.#add(piece);
        tell(piece.at(-1) === 0 ? piece.subarray(0, -1) : piece);
        if (piece.at(-1) === 0) resolve();
      });
      stream.once('close', resolve);
      stream.once('error', resolve);
    });
  }

  #add(piece: Buffer): void {
    this.#pieces.push(piece);
    this.#size += piece.length;
    if (this.#size <= 4 * this.#sizeMax) return;
    this.#pieces = [this.#last()];
    this.#size = this.#pieces[0]!.length;
  }

  #last(): Buffer {
    const all = Buffer.concat(this.#pieces);
    // One byte more, for the one that ends it.
    return this.#sizeMax === Number.POSITIVE_INFINITY ? all : all.subarray(-this.#sizeMax - 1);
  }

  bytes(): Buffer {
    const all = this.#last();
    return all.at(-1) === 0 ? all.subarray(0, -1) : all;
  }
}

function timeout(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
