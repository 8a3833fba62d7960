import type { Readable } from 'node:stream';
import type { RunResult } from '../../capabilities/vm.ts';
import { parseOutput, visible } from './output.ts';
import type { Box, BoxExit } from './process/box.ts';

const STDERR_KEPT = 64 * 1024;
const CONTROL_BYTES_MAX = 64 * 1024;

/** What a program in a box did. */
export interface Performance {
  readonly exit: BoxExit;
  readonly stdout: Uint8Array;
  /** The last 64 KiB. */
  readonly stderr: Uint8Array;
  /** The first of what came over descriptor 3. */
  readonly control: Uint8Array;
}

/**
 * Gives a program its input and follows it to its end. The box itself bounds what is printed; of what comes over descriptor 3 the
 * first `controlBytesMax` are kept. `log` hears standard error as it comes.
 */
export async function perform(
  box: Box,
  input: Uint8Array,
  controlBytesMax: number = CONTROL_BYTES_MAX,
  log: (bytes: Uint8Array) => void = () => {},
): Promise<Performance> {
  box.stdin.end(input);
  const [stdout, stderr, control, exit] = await Promise.all([
    first(box.stdout, Number.POSITIVE_INFINITY),
    last(box.stderr, STDERR_KEPT, log),
    first(box.control, controlBytesMax),
    box.exit,
  ]);
  return { exit, stdout, stderr, control };
}

/** `runtimeBytes`: what the language takes for itself, beside the memory of the program. */
export function resultOf({ exit, stdout, stderr }: Performance, runtimeBytes: number, memoryBytes: number): RunResult {
  const { wallMs, cpuMs, peakMemoryBytes } = exit.usage;
  return {
    termination: exit.termination,
    reason: exit.reason,
    exitCode: exit.exitCode,
    ...parseOutput(Buffer.from(stdout)),
    stderr: visible(Buffer.from(stderr).toString('utf8')),
    usage: {
      wallMs,
      cpuMs,
      peakMemoryBytes: Math.min(memoryBytes, Math.max(0, peakMemoryBytes - runtimeBytes)),
      peakProcessBytes: peakMemoryBytes,
      fuelUsed: null,
    },
    enforcedBy: exit.enforcedBy,
  };
}

async function first(stream: Readable, sizeMax: number): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of readable(stream)) {
    if (size < sizeMax) pieces.push(piece.subarray(0, sizeMax - size));
    size += piece.length;
  }
  return Buffer.concat(pieces);
}

async function last(stream: Readable, sizeMax: number, hear: (piece: Uint8Array) => void): Promise<Uint8Array> {
  let pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of readable(stream)) {
    hear(piece);
    pieces.push(piece);
    size += piece.length;
    if (size > 4 * sizeMax) {
      pieces = [Buffer.concat(pieces).subarray(-sizeMax)];
      size = sizeMax;
    }
  }
  return Buffer.concat(pieces).subarray(-sizeMax);
}

/** Until the end, or until the box is gone. */
async function* readable(stream: Readable): AsyncIterable<Uint8Array> {
  try {
    yield* stream as AsyncIterable<Uint8Array>;
  } catch {
    // A pipe of a box that was killed may end by an error; `exit` says what happened.
  }
}
