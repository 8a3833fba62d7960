import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';

export type RuntimeKind = 'wasm' | 'julia' | 'python' | 'container' | 'vm';

/** Everything a run may use; nothing that is not named here is open. A backend enforces all of it or refuses. */
export interface SandboxPolicy {
  readonly memoryBytes: number;
  readonly cpuCores: number;
  readonly wallMs: number;
  /** Deterministic instruction budget (docs/protocol/run.md), where the runtime can count (WASM). */
  readonly fuel?: bigint;
  readonly outputBytes: number;
  /** Private scratch space. */
  readonly tmpBytes: number;
  /** The program has no network of its own, whatever it was granted. */
  readonly network: 'none';
  /**
   * Places `host:port` that the program asks for: each is a socket file `/connect/<host:port>` in the box. It gets them only when the owner of the
   * machine granted them to what runs ({@link RunRequest.subject}).
   */
  readonly connect?: readonly string[];
  /** Folders of the owner that it asks for, by the names that it calls them: `/folders/<name>`. Which folders they are, the owner decides. */
  readonly folders?: readonly { readonly name: string; readonly access: 'read' | 'write' }[];
  readonly environment: Readonly<Record<string, string>>;
  /** Content-store trees only, never host paths; always read-only. `at` is an absolute path such as `/packages/ada/words`. */
  readonly mounts: readonly { readonly layer: Digest; readonly at: string }[];
}

/** How a Julia program is compiled and run. */
export interface JuliaOptions {
  /** Whether packages are compiled once, before their first run; true by default. */
  readonly precompile?: boolean | undefined;
  /** 0 to 3; 2 by default. */
  readonly optimizationLevel?: 0 | 1 | 2 | 3 | undefined;
  /** 4 by default; never more than the policy gives processors, rounded up. */
  readonly threads?: number | undefined;
  /**
   * A file of the layer with an input for which `main` may be called at any time, and whose call leaves nothing behind that a later one
   * notices: what it takes to answer is compiled ahead of the next run.
   */
  readonly example?: string | undefined;
}

export interface RunRequest {
  readonly kind: RuntimeKind;
  /** The layer that holds the program, mounted read-only at `/package`, and the file in it that starts. */
  readonly layer: Digest;
  readonly entry: string;
  readonly args: readonly string[];
  /** Given to the program as one JSON document on standard input. */
  readonly input: Json;
  readonly policy: SandboxPolicy;
  /** For kind `julia`. */
  readonly julia?: JuliaOptions | undefined;
  /** What runs, as grants name it: the digest of the package, and `scope/name@version` for people. */
  readonly subject?: { readonly package: Digest; readonly ref: string };
}

/**
 * How a run ended: `exit` by itself (also with a status other than 0), `error` by a trap or a stack overflow; `disk` when it failed after
 * `/tmp` was full, with a status when it ended by itself; the others name the limit that stopped it, `cancelled` the caller's signal, `sandbox` a failure of the box itself.
 */
export type Termination =
  | 'exit'
  | 'error'
  | 'timeout'
  | 'memory'
  | 'disk'
  | 'fuel'
  | 'output'
  | 'cancelled'
  | 'sandbox';

export interface RunResult {
  readonly termination: Termination;
  /** One sentence on why the program was stopped, or failed; null after `exit`. */
  readonly reason: string | null;
  /** Exit status of the program; null when it was stopped. */
  readonly exitCode: number | null;
  /** What the program printed on standard output, parsed as JSON; null when it printed nothing. */
  readonly output: Json;
  /** Standard output when it was not JSON. */
  readonly text: string | null;
  /** The last 64 KiB of standard error, with terminal control characters made visible. */
  readonly stderr: string;
  readonly usage: {
    readonly wallMs: number;
    /** Preparing the program included, starting its box not. */
    readonly cpuMs: number;
    /** The program's own memory and scratch files at their largest; 0 when it was killed before the box could tell. */
    readonly peakMemoryBytes: number;
    /** Resident memory of the box at its largest, the language runtime included. */
    readonly peakProcessBytes: number;
    /** Decimal; null where the runtime cannot count, or the program was killed. */
    readonly fuelUsed: string | null;
  };
  /** Limit -> the mechanism that enforced it. */
  readonly enforcedBy: Readonly<Record<string, string>>;
}

export interface RuntimeStatus {
  readonly kind: RuntimeKind;
  readonly available: boolean;
  readonly version: string | null;
  /** Why not, and what to do about it. */
  readonly reason: string | null;
  /** Limit -> the mechanism that holds it on this machine, where that differs between machines. */
  readonly enforces?: Readonly<Record<string, string>>;
}

/** One language or machine kind. Implementations run the shared conformance suite `testRuntime`. */
export interface Runtime {
  readonly kind: RuntimeKind;
  /** A real tiny run with a deadline, cached. */
  probe(): Promise<RuntimeStatus>;
  /**
   * Errors: `runtime-unavailable`, `program-invalid`, `entry-missing`, `limit-exceeded`, and `cancelled` when the signal came before
   * the program started. A program that fails, or is stopped once it runs, is a result, not an error.
   */
  run(request: RunRequest, options?: CallOptions): Promise<RunResult>;
}

export interface Execution {
  runtimes(): Promise<readonly RuntimeStatus[]>;
  /**
   * Waits its turn when the node runs its limit of programs. Errors: as {@link Runtime.run}, `policy-refused` when the policy asks for more
   * than this node allows, `grant-needed` when it asks for what the owner has not granted, and `quota-exceeded` when too many runs wait.
   */
  run(request: RunRequest, options?: CallOptions): Promise<RunResult>;
}
