import { availableParallelism, totalmem } from 'node:os';

const MiB = 2 ** 20;

/** What this node lets one program have, whatever its policy asks for. */
export interface ExecutionLimits {
  readonly memoryBytesMax: number;
  readonly wallMsMax: number;
  readonly cpuCoresMax: number;
  /** Standard output and error together. */
  readonly outputBytesMax: number;
  readonly tmpBytesMax: number;
  /** The input document as JSON. */
  readonly inputBytesMax: number;
  /** The program itself. */
  readonly moduleBytesMax: number;
  /** Files, folders and links of all mounts together. */
  readonly filesMax: number;
  /** One file that a program reads. */
  readonly fileBytesMax: number;
  /** All file reads of one run together. */
  readonly servedBytesMax: number;
  /** The unpacked files of a container image. */
  readonly imageBytesMax: number;
  /** Runs that wait for their turn. */
  readonly waitingMax: number;
  /** Boxes of WebAssembly that wait for another run of their program; 0: every run has a process of its own. */
  readonly keptBoxesMax: number;
}

export const DEFAULT_LIMITS: ExecutionLimits = {
  memoryBytesMax: Math.max(1024 * MiB, Math.floor(totalmem() / 2)),
  wallMsMax: 3_600_000,
  cpuCoresMax: availableParallelism(),
  outputBytesMax: 16 * MiB,
  tmpBytesMax: 512 * MiB,
  inputBytesMax: 16 * MiB,
  moduleBytesMax: 32 * MiB,
  filesMax: 200_000,
  fileBytesMax: 64 * MiB,
  servedBytesMax: 1024 * MiB,
  imageBytesMax: 4096 * MiB,
  waitingMax: 1_000,
  keptBoxesMax: Math.min(2 * availableParallelism(), 16),
};
