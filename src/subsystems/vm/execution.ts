import { mkdir, realpath, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { z } from 'zod';
import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { Assets } from '../../capabilities/assets.ts';
import type { Execution, RunRequest, RunResult, RuntimeKind, RuntimeStatus } from '../../capabilities/vm.ts';
import { digest } from '../../wire/fields.ts';
import { folderAccess, folderName, type Grant, place } from '../../wire/grants.ts';
import { Grants } from './grants.ts';
import { DEFAULT_LIMITS, type ExecutionLimits } from './limits.ts';
import { openRelays } from './process/relay.ts';
import type { StandbyResources } from './process/standby.ts';
import { sweepBoxes } from './process/sweep.ts';
import type { OpenedRequest } from './request.ts';
import type { AddableRuntime, OpenRuntimes } from './runtimes.ts';

export interface ExecutionOptions {
  /** For what boxes of processes are shown: package trees, images. Without one, only WebAssembly runs. */
  readonly directory?: string;
  /** No program is granted a part of it; the directory alone unless given. */
  readonly home?: string;
  readonly limits?: Partial<ExecutionLimits>;
  /** Programs that run at the same time; the number of processors by default. */
  readonly concurrency?: number;
}

/** What the owner of a node decides: the languages that it has beside those of the machine. */
export interface Languages {
  /**
   * Adds what a language needs to this node, and tries it; what is there already stays as it is.
   * `from`: the layer of a package with its image, which was verified; without it, packages of the distribution.
   * Errors: `usage` on a language that is not added this way, `runtime-unavailable`, `program-invalid`, `limit-exceeded`, `storage-*`,
   * `cancelled`.
   */
  addRuntime(kind: RuntimeKind, options?: CallOptions & { readonly from?: Digest }): Promise<RuntimeStatus>;
  /**
   * What was added, as the canonical tree of a package (docs/protocol/runtime-image.md), in pieces; the same image gives the same bytes.
   * Errors: `usage`, `runtime-unavailable`, `storage-*`, `cancelled`.
   */
  exportRuntime(kind: RuntimeKind, options?: CallOptions): AsyncIterable<Uint8Array>;
  /** Takes it away when the programs in it have ended; whether it was there. Errors: `usage`. */
  removeRuntime(kind: RuntimeKind): Promise<boolean>;
}

/** What the owner of a node lets programs have beyond their box; no extension is lent this. */
export interface GrantKeeper {
  grants(): Promise<readonly Grant[]>;
  /** Adds to what a package has. Errors: `policy-refused` on a folder that is not lent, `file-not-found`, `storage-*`. */
  grant(given: Omit<Grant, 'grantedAtMs'>): Promise<Grant>;
  /** Takes back all that a package has, or one place or folder by name; whether there was any. */
  revoke(subject: Digest, what?: string): Promise<boolean>;
}

export type ExecutionSubsystem = Execution & Languages & GrantKeeper & AsyncDisposable;

/**
 * Starts nothing: the first process comes with the first run or probe, and none stays when nothing was run for a minute.
 * What boxes of a killed node left behind is removed.
 */
export async function openExecution(
  lent: { readonly assets: Pick<Assets, 'tree' | 'readFile'>; readonly resources?: StandbyResources },
  options: ExecutionOptions = {},
): Promise<ExecutionSubsystem> {
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const { directory } = options;
  if (directory !== undefined) {
    await mkdir(directory, { recursive: true });
    await sweepBoxes(await realpath(directory));
  }
  const grants =
    options.directory === undefined
      ? null
      : {
          grants: new Grants({
            file: path.join(options.directory, 'grants.json'),
            home: await realpath(options.home ?? options.directory),
          }),
          relays: path.join(options.directory, 'connect'),
        };
  // Sockets of programs that a killed node ran.
  if (grants !== null) await rm(grants.relays, { recursive: true, force: true });
  const open = async () => (await import('./runtimes.ts')).openRuntimes(lent, directory, limits);
  return new Runner({ ...lent, grants, open }, limits, options.concurrency ?? availableParallelism());
}

const KINDS: readonly RuntimeKind[] = ['wasm', 'julia', 'python', 'container', 'vm'];

/** Where the decisions of the owner are kept, and the sockets of programs that run. */
interface OwnGrants {
  readonly grants: Grants;
  readonly relays: string;
}

/** Kinds whose programs can be given a socket or a folder. */
const GRANTABLE: readonly RuntimeKind[] = ['python', 'julia', 'container'];

class Runner implements ExecutionSubsystem {
  readonly #assets: Pick<Assets, 'tree' | 'readFile'>;
  readonly #grants: OwnGrants | null;
  readonly #open: () => Promise<OpenRuntimes>;
  #opened: Promise<OpenRuntimes> | null = null;
  readonly #limits: ExecutionLimits;
  readonly #turns: Turns;

  constructor(
    lent: {
      readonly assets: Pick<Assets, 'tree' | 'readFile'>;
      readonly grants: OwnGrants | null;
      readonly open: () => Promise<OpenRuntimes>;
    },
    limits: ExecutionLimits,
    concurrency: number,
  ) {
    this.#assets = lent.assets;
    this.#grants = lent.grants;
    this.#open = lent.open;
    this.#limits = limits;
    this.#turns = new Turns(concurrency, limits.waitingMax);
  }

  async runtimes(): Promise<readonly RuntimeStatus[]> {
    const { runtimes } = await this.#loaded();
    return Promise.all(KINDS.map(async (kind) => runtimes.get(kind)?.probe() ?? missing(kind)));
  }

  async run(request: RunRequest, options: CallOptions = {}): Promise<RunResult> {
    const checked = check(request, this.#limits);
    const runtime = (await this.#loaded()).runtimes.get(checked.kind);
    if (runtime === undefined) {
      throw new HyperMeshError('runtime-unavailable', missing(checked.kind).reason ?? '', {
        hint: 'Run `hypermesh doctor` to see what this node can run.',
        details: { runtime: checked.kind },
      });
    }
    const { connect = [], folders = [] } = checked.policy;
    const grants = connect.length + folders.length === 0 ? null : this.#grantsFor(checked);
    const granted = await grants?.grants.of(checked);
    using _turn = await this.#turns.take(options.signal);
    if (grants === null || granted === undefined) return await runtime.run(checked, options);
    await using relays = await openRelays(granted.connect, { directory: grants.relays });
    const opened: OpenedRequest = {
      ...checked,
      openings: {
        sockets: relays.sockets.map(({ source, place }) => ({ source, at: `/connect/${place}` })),
        folders: granted.folders.map(({ name, access, path: source }) => ({
          ...{ source, at: `/folders/${name}`, isWritable: access === 'write' },
        })),
      },
    };
    return await runtime.run(opened, options);
  }

  async grants(): Promise<readonly Grant[]> {
    return (await this.#grants?.grants.list()) ?? [];
  }

  async grant(given: Omit<Grant, 'grantedAtMs'>): Promise<Grant> {
    return this.#grantsFor(null).grants.add(given, Date.now());
  }

  async revoke(subject: Digest, what?: string): Promise<boolean> {
    return (await this.#grants?.grants.revoke(subject, what)) ?? false;
  }

  async addRuntime(
    kind: RuntimeKind,
    { from, ...options }: CallOptions & { readonly from?: Digest } = {},
  ): Promise<RuntimeStatus> {
    return (await this.#addable(kind)).add(
      from === undefined ? options : { ...options, from: { assets: this.#assets, layer: from } },
    );
  }

  async *exportRuntime(kind: RuntimeKind, options: CallOptions = {}): AsyncIterable<Uint8Array> {
    yield* (await this.#addable(kind)).export(options);
  }

  async removeRuntime(kind: RuntimeKind): Promise<boolean> {
    return (await this.#addable(kind)).remove();
  }

  #grantsFor(request: RunRequest | null): OwnGrants {
    if (this.#grants !== null && (request === null || GRANTABLE.includes(request.kind))) return this.#grants;
    throw new HyperMeshError(
      'policy-refused',
      `A ${request?.kind ?? 'program'} cannot be given places on the network or folders: nothing here could hold it to them.`,
      { hint: `Programs of the kinds ${GRANTABLE.join(', ')} can.` },
    );
  }

  /** Code of all languages: a node that runs nothing has none of it in memory. */
  #loaded(): Promise<OpenRuntimes> {
    this.#opened ??= this.#open();
    return this.#opened;
  }

  async #addable(kind: RuntimeKind): Promise<AddableRuntime> {
    const runtime = (await this.#loaded()).addable.get(kind);
    if (runtime !== undefined) return runtime;
    throw new HyperMeshError('usage', `${kind} is not a runtime that is added to a node or removed from it.`, {
      hint: 'julia, python and vm are. `hypermesh runtime list` shows what this node can run, and what is missing for the others.',
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#turns.close();
    await (await this.#opened?.catch(() => null))?.[Symbol.asyncDispose]();
  }
}

function missing(kind: RuntimeKind): RuntimeStatus {
  return { kind, available: false, version: null, reason: `No runtime for ${kind} is part of this version.` };
}

const MOUNT = /^(\/[A-Za-z0-9_@.-]{1,64}){1,8}$/;

const requestSchema = z.object({
  kind: z.enum(KINDS),
  layer: digest,
  entry: z.string().min(1).max(1024),
  args: z.array(z.string().max(65_536)).max(1_024),
  input: z.custom<Json>((value) => value !== undefined, 'expected a JSON value'),
  policy: z.object({
    memoryBytes: z.int().nonnegative(),
    cpuCores: z.number().positive(),
    wallMs: z.number().positive(),
    fuel: z
      .bigint()
      .nonnegative()
      .max(2n ** 62n)
      .optional(),
    outputBytes: z.int().nonnegative(),
    tmpBytes: z.int().nonnegative(),
    network: z.literal('none'),
    environment: z
      .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/), z.string().max(65_536))
      .refine((map) => Object.keys(map).length <= 256, 'at most 256 variables'),
    mounts: z
      .array(
        z.object({
          layer: digest,
          at: z
            .string()
            .regex(MOUNT, 'expected an absolute path such as /packages/ada/words')
            .refine((at) => !at.split('/').some((name) => name === '.' || name === '..'), 'expected no . or ..'),
        }),
      )
      .max(1_024)
      .refine(noOverlap, 'mounts lie inside each other, or inside /package or /tmp'),
    connect: z.array(place).max(16).optional(),
    folders: z
      .array(z.object({ name: folderName, access: folderAccess }))
      .max(8)
      .optional(),
  }),
  julia: z
    .object({
      precompile: z.boolean(),
      optimizationLevel: z.literal([0, 1, 2, 3]),
      threads: z.int().positive().max(1_024),
      example: z.string().min(1).max(1_024),
    })
    .partial()
    .optional(),
  subject: z.object({ package: digest, ref: z.string().min(3).max(400) }).optional(),
});

function noOverlap(mounts: readonly { readonly at: string }[]): boolean {
  const sorted = ['/package', '/tmp', ...mounts.map((mount) => mount.at)].map((path) => `${path}/`).sort();
  return sorted.every((path, index) => index === 0 || !path.startsWith(sorted[index - 1]!));
}

/** Errors: `usage` on a malformed request, `policy-refused`. */
function check(request: RunRequest, limits: ExecutionLimits): RunRequest {
  const parsed = requestSchema.safeParse(request);
  if (!parsed.success)
    throw new HyperMeshError('usage', `The run request is malformed: ${z.prettifyError(parsed.error)}`);
  const { policy } = parsed.data;
  const over = (
    [
      ['memoryBytes', limits.memoryBytesMax],
      ['wallMs', limits.wallMsMax],
      ['cpuCores', limits.cpuCoresMax],
      ['outputBytes', limits.outputBytesMax],
      ['tmpBytes', limits.tmpBytesMax],
    ] as const
  ).filter(([name, max]) => policy[name] > max);
  if (over.length > 0) {
    throw new HyperMeshError(
      'policy-refused',
      `The program asks for more than this node allows: ${over.map(([name, max]) => `${name} ${policy[name]}, at most ${max}`).join('; ')}.`,
      { hint: 'Lower `resources` in catalog.yaml, or ask for less in the request; or run it on a larger machine.' },
    );
  }
  const { fuel, connect, folders, ...rest } = policy;
  const { subject, ...asked } = parsed.data;
  return {
    ...asked,
    ...(subject === undefined ? {} : { subject }),
    policy: {
      ...rest,
      ...(fuel === undefined ? {} : { fuel }),
      ...(connect === undefined ? {} : { connect }),
      ...(folders === undefined ? {} : { folders }),
    },
  };
}

/** A queue for a fixed number of places. */
class Turns {
  readonly #waiting: (() => void)[] = [];
  readonly #waitingMax: number;
  #free: number;
  #closed = false;

  constructor(places: number, waitingMax: number) {
    this.#free = places;
    this.#waitingMax = waitingMax;
  }

  async take(signal: AbortSignal | undefined): Promise<Disposable> {
    if (this.#free > 0 && !this.#closed) this.#free -= 1;
    else await this.#wait(signal);
    if (this.#closed) throw new HyperMeshError('cancelled', 'The node stopped before the program started.');
    return { [Symbol.dispose]: () => this.#giveBack() };
  }

  close(): void {
    this.#closed = true;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async #wait(signal: AbortSignal | undefined): Promise<void> {
    if (this.#closed) return;
    if (this.#waiting.length >= this.#waitingMax)
      throw new HyperMeshError('quota-exceeded', `${this.#waitingMax} programs wait for their turn already.`);
    await new Promise<void>((resolve, reject) => {
      const wake = () => {
        signal?.removeEventListener('abort', leave);
        resolve();
      };
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(wake), 1);
        reject(
          new HyperMeshError('cancelled', 'The caller gave up before the program started.', { cause: signal?.reason }),
        );
      };
      this.#waiting.push(wake);
      signal?.addEventListener('abort', leave, { once: true });
      if (signal?.aborted) leave();
    });
  }

  #giveBack(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }
}
