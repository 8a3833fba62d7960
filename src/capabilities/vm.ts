import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { Json } from '../base/json.ts';

export type RuntimeKind = 'wasm' | 'julia' | 'python' | 'container' | 'vm';

/** Everything a run may use; nothing that is not named here is open. A backend enforces all of it or refuses. */
export interface SandboxPolicy {
  readonly memoryBytes: number;
  readonly cpuCores: number;
  readonly wallMs: number;
  /** Deterministic instruction budget, where the runtime can count (WASM). */
  readonly fuel?: bigint;
  readonly outputBytes: number;
  /** Private scratch space. */
  readonly tmpBytes: number;
  readonly network: 'none';
  readonly environment: Readonly<Record<string, string>>;
  /** Content-store trees only, never host paths; always read-only. */
  readonly mounts: readonly { readonly layer: Digest; readonly at: string }[];
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
}

export type Termination = 'exit' | 'error' | 'timeout' | 'memory' | 'fuel' | 'output' | 'cancelled' | 'sandbox';

export interface RunResult {
  readonly termination: Termination;
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
    readonly cpuMs: number;
    readonly peakMemoryBytes: number;
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
}

/** One language or machine kind. Implementations run the shared conformance suite `testRuntime`. */
export interface Runtime {
  readonly kind: RuntimeKind;
  /** A real tiny run with a deadline, cached. */
  probe(): Promise<RuntimeStatus>;
  /** Errors: `runtime-unavailable`, `program-invalid`. A program that fails is a result, not an error. */
  run(request: RunRequest, options?: CallOptions): Promise<RunResult>;
}

export interface Execution {
  runtimes(): Promise<readonly RuntimeStatus[]>;
  /** Errors: as {@link Runtime.run}, and `policy-refused` when the policy asks for more than this node allows. */
  run(request: RunRequest, options?: CallOptions): Promise<RunResult>;
}
