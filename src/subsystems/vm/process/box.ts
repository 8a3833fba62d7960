import type { Duplex, Readable, Writable } from 'node:stream';
import type { CallOptions } from '../../../base/call.ts';
import type { Termination } from '../../../capabilities/vm.ts';

/** What a box may have. All are held for the whole box, not for each process, except `fileBytes`: the largest size of one file. */
export interface BoxLimits {
  /** Memory of all processes together; what lies in `/tmp` counts, too. */
  readonly memoryBytes: number;
  readonly cpuCores: number;
  readonly wallMs: number;
  /** Processes and threads at the same time. */
  readonly pids: number;
  readonly tmpBytes: number;
  readonly fileBytes: number;
  /** Standard output and error together. */
  readonly outputBytes: number;
}

export interface BoxSpec {
  /** Absolute path inside the box, and arguments. */
  readonly command: readonly string[];
  /** A folder whose entries are seen under `/`, read-only; `host`: `/usr`, the libraries and the linker's cache of this machine. */
  readonly root: string;
  /** Seen read-only in the box. Sources lie in the folder of the sandbox, and were made by the node. */
  readonly mounts: readonly { readonly source: string; readonly at: string }[];
  readonly environment: Readonly<Record<string, string>>;
  /** Devices of the machine, such as `/dev/kvm`, that are there too, for who may open them: a group that owns one is joined. */
  readonly devices?: readonly string[];
  readonly limits: BoxLimits;
  /** The folder that the program starts in; `/` unless given. */
  readonly workingFolder?: string;
  /** How the user of the box is called inside it; nobody unless given. Never 0. */
  readonly user?: { readonly uid: number; readonly gid: number };
  /** Folders of the owner, by their real paths. */
  readonly folders?: readonly { readonly source: string; readonly at: string; readonly isWritable: boolean }[];
  /** Socket files in the folder of the sandbox, for the user of this box alone. */
  readonly sockets?: readonly { readonly source: string; readonly at: string }[];
  /** `false`: the program gets no descriptor 3. */
  readonly hasControl?: boolean;
}

export interface BoxExit {
  readonly termination: Exclude<Termination, 'fuel'>;
  /** Why it was stopped; null after `exit`. */
  readonly reason: string | null;
  readonly exitCode: number | null;
  /** Name of the signal that ended the program, such as `SIGSEGV`. */
  readonly signal: string | null;
  readonly usage: { readonly wallMs: number; readonly cpuMs: number; readonly peakMemoryBytes: number };
  readonly enforcedBy: Readonly<Record<string, string>>;
}

/** One program that runs. The streams end with the box. */
export interface Box {
  readonly stdin: Writable;
  /** Both must be read to their end: a box whose output is not read waits, like any program with a full pipe. */
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** Descriptor 3 of the program; a socket pair. */
  readonly control: Duplex;
  /** Never rejects. When it resolves, no process of the box is left. */
  readonly exit: Promise<BoxExit>;
  /** Of all its processes, until now. */
  measure(): { readonly residentBytes: number; readonly cpuMs: number };
  /** Ends the box with everything in it: `exit` says `cancelled`. */
  kill(): void;
}

export interface SandboxStatus {
  readonly available: boolean;
  readonly reason: string | null;
  readonly remedy: string | null;
  /** Limit -> the mechanism that holds it on this machine. */
  readonly enforces: Readonly<Record<string, string>>;
}

/** A box that was started ahead of its run: the program is there, and waits for its standard input. It serves one run. */
export interface AheadBox {
  /** Of the box, however it ends; never rejects. */
  readonly exit: Promise<BoxExit>;
  /** Processor time of all its processes until now, and whether each of them waits for something. */
  activity(): Promise<{ readonly cpuMs: number; readonly isAsleep: boolean }>;
  /** From now on it can hardly work. Where the kernel holds no share of processors, nothing happens. */
  rest(): Promise<void>;
  /** Its run begins: time and processor time count from now, and the signal ends it. Errors: `cancelled`. Not called twice. */
  begin(options?: Pick<CallOptions, 'signal'>): Promise<Box>;
  kill(): void;
}
