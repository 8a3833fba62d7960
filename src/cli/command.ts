import type { CallOptions } from '../base/call.ts';
import type { Client } from '../client/index.ts';
import type { Flags, Loaded } from '../config.ts';

/** What a command is given by the command line around it. */
export interface Context extends CallOptions {
  readonly flags: Flags;
  readonly json: boolean;
  /** Ends on Ctrl-C. */
  readonly signal: AbortSignal;
  /** Configuration, read once when first asked for. */
  load(): Promise<Loaded>;
  /** Runs `work` with the node of this home: the one that runs, else one that lives in this process as long as the work. */
  withNode<T>(work: (client: Client) => Promise<T>): Promise<T>;
  /** One line on standard error, for people. */
  note(text: string): void;
}

/** What a command has to say: `data` with --json, else `text`. */
export interface Outcome {
  readonly data: unknown;
  /** Lines for people. What came from outside is passed through `plain` first. */
  readonly text: string;
  /** Exit status; 0 when absent. */
  readonly exit?: number;
}

export interface CommandSpec {
  /** `install`, or `state export` for a command inside a group. */
  readonly name: string;
  /** What `hypermesh --help` and its page say above this command and those after it. */
  readonly heading?: string;
  /** What the group does when no command is named. */
  readonly isDefault?: true;
  readonly summary: string;
  /** In the notation of commander: `<ref> [more...]`. */
  readonly args?: string;
  readonly options?: readonly (readonly [flags: string, description: string])[];
  readonly example: string;
  /** Loads its module only when it runs. Receives the arguments in order, then the options; nothing back: it has printed already. */
  run(context: Context, ...args: never[]): Promise<Outcome | undefined>;
}
