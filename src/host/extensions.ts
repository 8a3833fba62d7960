import semver from 'semver';
import { z } from 'zod';
import type { CallOptions } from '../base/call.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { HyperMeshError, isCoded, toProblem } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import {
  type AssetExtensionHandler,
  CAPABILITY_NAMES,
  type Capabilities,
  type CapabilityName,
  type ExtensionDefinition,
  type ExtensionLimits,
  type ExtensionMetadata,
  type ExtensionRequest,
  type ExtensionResponse,
  type ExtensionSnapshot,
  type ExtensionState,
  type ExtensionStatus,
  type HyperMeshExtension,
} from '../capabilities/extension.ts';
import type { Monitoring } from '../capabilities/monitoring.ts';
import type { Trust } from '../capabilities/trust.ts';
import { assetTypeName, extensionId } from '../wire/extension.ts';
import { type AssetType, type PrivacyLevel, semverRange, semverVersion } from '../wire/names.ts';
import { type Cell, openCell } from './cell.ts';
import { discoverFolders, type ExtensionFolder, importDefinition, readExtensionFolder } from './extension-folder.ts';
import { type Loan, lend, notGranted } from './lend.ts';
import { plainCopy } from './plain.ts';
import type { Snapshots } from './snapshots.ts';

export interface ExtensionsOptions {
  /** At most this many loaded at once. Default 100. */
  readonly extensionsMax?: number;
  /** For one request, handler operation or step of a start. Default 300,000. */
  readonly operationTimeoutMs?: number;
  /** For `shutdown()` of one extension. Default 10,000. */
  readonly shutdownTimeoutMs?: number;
  /** Refuse folders without a signature by one of `trustedPublishers` (key ids). Default false. */
  readonly requireSignature?: boolean;
  readonly trustedPublishers?: readonly string[];
  /** Heap of one cell. Default 256. */
  readonly cellMemoryMiB?: number;
  /** A cell that answers nothing for this long after an operation timed out is killed. Default 5,000. */
  readonly cellAnswerTimeoutMs?: number;
}

/** What the folder of an extension may use when the operator says nothing else. */
const FOLDER_LIMITS: ExtensionLimits = {
  concurrentCalls: 100,
  callsPerSecond: 1_000,
  callTimeoutMs: 300_000,
  assets: 10_000,
  stateBytes: 64 * 2 ** 20,
};

/** The same for a definition handed over as a value: code of the operator's own process, where limits only catch what runs away. */
const DEFINITION_LIMITS: ExtensionLimits = {
  concurrentCalls: 10_000,
  callsPerSecond: 1_000_000,
  callTimeoutMs: 300_000,
  assets: 10_000_000,
  stateBytes: 256 * 2 ** 20,
};

export interface LoadOptions {
  /** What the operator grants. An extension that needs more is refused. */
  readonly grants: readonly CapabilityName[];
  readonly settings?: Json;
  readonly limits?: Partial<ExtensionLimits>;
  readonly privacy?: PrivacyLevel;
  readonly debug?: boolean;
  /** A cell is a process of its own under Node's permission model; only folders run in one. Default `in-process`. */
  readonly mode?: 'in-process' | 'cell';
}

export interface LoadedSummary {
  readonly id: string;
  readonly version: string;
  readonly state: ExtensionState;
  readonly mode: 'in-process' | 'cell';
  readonly granted: readonly CapabilityName[];
  readonly provides: readonly AssetType[];
  /** Key id of the publisher of a signed folder. */
  readonly signer: string | null;
}

/** What a node can lend to one extension, and how to take back what that extension still holds of it. */
export interface Lendable {
  readonly capabilities: Partial<Capabilities>;
  release(): Promise<void>;
}

export interface ExtensionsLent {
  lendable(extension: {
    readonly id: string;
    readonly limits: ExtensionLimits;
    readonly provides: readonly AssetType[];
  }): Lendable;
  /** Checks the signatures of folders. */
  readonly trust?: Pick<Trust, 'verify'>;
  readonly monitoring?: Pick<Monitoring, 'report' | 'emit'>;
}

/** The only moves between states; `error` can come from any of them and ends with the unloading. */
const MOVES: Readonly<Record<ExtensionState, readonly ExtensionState[]>> = {
  initializing: ['running', 'error'],
  running: ['paused', 'shutting-down', 'error'],
  paused: ['running', 'shutting-down', 'error'],
  'shutting-down': ['stopped', 'error'],
  stopped: ['error'],
  error: [],
};

const METHODS = [
  'metadata',
  'initialize',
  'registerAssets',
  'extendManager',
  'handleRequest',
  'status',
  'validate',
  'exportState',
  'importState',
  'shutdown',
] as const satisfies readonly (keyof HyperMeshExtension)[];

/** The host's to call, nobody else's. */
const LIFECYCLE: ReadonlySet<PropertyKey> = new Set(['initialize', 'registerAssets', 'extendManager', 'shutdown']);
/** The methods that answer at once instead of by a promise. */
const IMMEDIATE: ReadonlySet<PropertyKey> = new Set(['metadata', 'assetType']);
/** Answered while paused too. */
const ABOUT_ITSELF: ReadonlySet<PropertyKey> = new Set(['metadata', 'assetType', 'status', 'validate']);

const metadataSchema = z.strictObject({
  id: extensionId,
  name: z.string().min(1).max(200),
  version: semverVersion,
  description: z.string().max(2_000),
  author: z.string().max(200),
  license: z.string().max(100),
  category: z.enum([
    'asset-library',
    'compute-engine',
    'storage-provider',
    'network-protocol',
    'security',
    'monitoring',
    'developer-tools',
    'machine-learning',
    'custom',
  ]),
  hypermesh: semverRange,
  dependencies: z.array(z.strictObject({ id: extensionId, range: semverRange, optional: z.boolean() })).max(64),
  needs: z.array(z.enum(CAPABILITY_NAMES)).max(CAPABILITY_NAMES.length),
  provides: z.array(assetTypeName).max(64),
});

const requestSchema = z.looseObject({
  id: z.string().min(1).max(128),
  method: z.string().min(1).max(128),
});

const responseSchema = z.discriminatedUnion('ok', [
  z.object({ requestId: z.string(), ok: z.literal(true), data: z.unknown() }),
  z.object({
    requestId: z.string(),
    ok: z.literal(false),
    error: z.looseObject({ code: z.string().max(64), message: z.string().max(10_000) }),
  }),
]);

type Source<E extends HyperMeshExtension> =
  // biome-ignore lint/suspicious/noExplicitAny: a definition may need any set of capabilities
  ExtensionDefinition<any, E> | { readonly folder: string };

/** What is checked before any code of an extension runs, and held against what the code says. */
type Claimed = Pick<ExtensionMetadata, 'id' | 'version' | 'needs' | 'provides' | 'hypermesh' | 'dependencies'>;

/** One extension that is loaded, and everything that ends with it. */
interface Loaded {
  readonly metadata: Claimed;
  readonly mode: 'in-process' | 'cell';
  readonly signer: string | null;
  readonly limits: ExtensionLimits;
  readonly startedAtMs: number;
  state: ExtensionState;
  /** Why it is in the state `error`. */
  why: string | null;
  loan: Loan | null;
  lendable: Lendable | null;
  cell: Cell | null;
  extension: HyperMeshExtension | null;
  handlers: ReadonlyMap<AssetType, AssetExtensionHandler>;
  active: number;
  requests: number;
  errors: number;
  /** Ends each call under way. */
  readonly enders: Set<(error: HyperMeshError) => void>;
}

/**
 * The Extension Manager: checks, grants, starts, routes to, pauses and ends extensions.
 * Nothing of an extension answers after it was unloaded, and nothing that was lent to it works.
 */
export class Extensions implements AsyncDisposable {
  readonly #lent: ExtensionsLent;
  readonly #options: Required<ExtensionsOptions>;
  readonly #version: string;
  readonly #clock: Clock;
  readonly #snapshots: Snapshots | null;
  /** In the order of loading. */
  readonly #loaded = new Map<string, Loaded>();

  constructor(
    lent: ExtensionsLent,
    options: ExtensionsOptions & {
      /** Of the host: what the `hypermesh` range of an extension must admit. */
      readonly version: string;
      readonly clock?: Clock;
      /** Where imported snapshots wait for their extensions. */
      readonly snapshots?: Snapshots;
    },
  ) {
    this.#lent = lent;
    this.#version = options.version;
    this.#clock = options.clock ?? systemClock;
    this.#snapshots = options.snapshots ?? null;
    this.#options = {
      extensionsMax: options.extensionsMax ?? 100,
      operationTimeoutMs: options.operationTimeoutMs ?? 300_000,
      shutdownTimeoutMs: options.shutdownTimeoutMs ?? 10_000,
      requireSignature: options.requireSignature ?? false,
      trustedPublishers: options.trustedPublishers ?? [],
      cellMemoryMiB: options.cellMemoryMiB ?? 256,
      cellAnswerTimeoutMs: options.cellAnswerTimeoutMs ?? 5_000,
    };
  }

  /**
   * Loads a definition, or the folder of an extension, and resolves when it runs. What comes back answers like the extension itself
   * while it runs, and refuses with `extension-state` when it is paused or gone.
   * Errors: `extension-*`, `capability-not-granted`, `limit-exceeded`, and coded ones of the extension's own start.
   */
  async load<E extends HyperMeshExtension>(source: Source<E>, options: LoadOptions): Promise<E> {
    const mode = options.mode ?? 'in-process';
    const folder = 'folder' in source ? await this.#readFolder(source.folder) : null;
    const definition = 'folder' in source ? null : (source as unknown as ExtensionDefinition);
    if (folder === null && mode === 'cell') {
      throw new HyperMeshError('usage', 'Only the folder of an extension can be loaded into a cell.');
    }
    const claimed = folder?.manifest ?? parseMetadata({ ...definition?.metadata, needs: definition?.needs });
    // Before any code of the extension runs.
    this.#checkRoom(claimed.id);
    this.#checkCompatible(claimed);
    this.#checkDependencies(claimed);
    this.#checkTypes(claimed);
    this.#checkGrants(claimed, options.grants);

    const limits = { ...(folder === null ? DEFINITION_LIMITS : FOLDER_LIMITS), ...options.limits };
    const loaded = this.#enroll(claimed, mode, folder?.signer ?? null, limits);
    try {
      await this.#start(loaded, folder, definition, options);
    } catch (error) {
      await this.#drop(loaded, `it could not start`);
      const coded = attribute(error, loaded.metadata.id, 'start');
      this.#tell('extension.failed', 'error', loaded, { problem: toProblem(coded) as unknown as Json });
      throw coded;
    }
    this.#tell('extension.loaded', 'info', loaded, { mode, granted: [...loaded.metadata.needs] });
    return this.#guard(loaded, loaded.extension as E);
  }

  /** Loads every extension folder below `directories`, dependencies first. Errors: as `load`, and `extension-dependency` for a cycle. */
  async discover(
    directories: readonly string[],
    optionsFor: (manifest: { readonly id: string; readonly needs: readonly CapabilityName[] }) => LoadOptions | null,
  ): Promise<readonly LoadedSummary[]> {
    const folders: ExtensionFolder[] = [];
    for (const path of await discoverFolders(directories)) folders.push(await this.#readFolder(path));
    for (const { path, manifest } of dependenciesFirst(folders)) {
      const options = optionsFor(manifest);
      if (options !== null) await this.load({ folder: path }, options);
    }
    return this.list();
  }

  /** Requests are refused until `resume`; calls under way go on. */
  async pause(id: string): Promise<void> {
    this.#move(this.#find(id), 'paused');
  }

  async resume(id: string): Promise<void> {
    const loaded = this.#find(id);
    if (loaded.state !== 'paused') throw this.#wrongMove(loaded, 'running');
    this.#move(loaded, 'running');
  }

  /** Ends an extension: `shutdown()` within its deadline, then everything that was lent is taken back and nothing of it answers. */
  async unload(id: string): Promise<void> {
    const loaded = this.#find(id);
    const dependent = this.#loaded
      .values()
      .find((other) => other.metadata.dependencies.some((d) => d.id === id && !d.optional));
    if (dependent !== undefined) {
      throw new HyperMeshError('extension-dependency', `${dependent.metadata.id} depends on ${id}.`, {
        hint: `Unload ${dependent.metadata.id} first.`,
      });
    }
    let problem: HyperMeshError | null = null;
    if (loaded.state !== 'error') {
      this.#move(loaded, 'shutting-down');
      const { shutdownTimeoutMs } = this.#options;
      try {
        await this.#perform(loaded, 'shutdown', () => loaded.extension!.shutdown(), shutdownTimeoutMs);
      } catch (error) {
        problem = attribute(error, id, 'shutdown');
      }
    }
    await this.#drop(loaded, 'it was unloaded');
    this.#tell('extension.stopped', problem === null ? 'info' : 'warning', loaded, {
      problem: problem === null ? null : (toProblem(problem) as unknown as Json),
    });
  }

  /** Hands a request to an extension. Errors: `extension-not-found`, `extension-state`, `timeout`, `extension-failed`. */
  async route(id: string, request: ExtensionRequest, options: CallOptions = {}): Promise<ExtensionResponse> {
    const loaded = this.#find(id);
    const parsed = requestSchema.safeParse(request);
    if (!parsed.success) {
      throw new HyperMeshError('usage', `The request to ${id} is not valid: ${parsed.error.issues[0]!.message}.`);
    }
    const crossed = plainCopy(request, `request to ${id}`) as ExtensionRequest;
    this.#checkAnswers(loaded, 'handleRequest');
    const answer = await this.#perform(
      loaded,
      'handleRequest',
      () => loaded.extension!.handleRequest(crossed, options),
      this.#options.operationTimeoutMs,
    );
    const response = responseSchema.safeParse(plainCopy(answer, `answer of ${id}`));
    if (!response.success || response.data.requestId !== request.id) {
      throw new HyperMeshError('extension-failed', `${id} answered a request with something that is no answer to it.`);
    }
    return response.data as ExtensionResponse;
  }

  /** Who looks after assets of a type; null when nobody does. */
  handlerFor(type: AssetType): AssetExtensionHandler | null {
    for (const loaded of this.#loaded.values()) {
      const handler = loaded.handlers.get(type);
      if (handler !== undefined) return handler;
    }
    return null;
  }

  list(): readonly LoadedSummary[] {
    return [...this.#loaded.values()].map(({ metadata, state, mode, signer }) => ({
      id: metadata.id,
      version: metadata.version,
      state,
      mode,
      granted: metadata.needs,
      provides: metadata.provides,
      signer,
    }));
  }

  /** State and counts are the host's own; only the health is the extension's word. */
  async status(id: string): Promise<ExtensionStatus> {
    const loaded = this.#find(id);
    return {
      state: loaded.state,
      health: await this.#health(loaded),
      activeOperations: loaded.active,
      totalRequests: loaded.requests,
      errors: loaded.errors,
      uptimeMs: this.#clock.nowMs() - loaded.startedAtMs,
    };
  }

  /** Of all that run. Errors: those of the extensions. */
  async exportSnapshots(): Promise<readonly ExtensionSnapshot[]> {
    const snapshots: ExtensionSnapshot[] = [];
    for (const loaded of this.#loaded.values()) {
      if (loaded.state !== 'running' && loaded.state !== 'paused') continue;
      const work = () => loaded.extension!.exportState();
      const snapshot = await this.#perform(loaded, 'exportState', work, this.#options.operationTimeoutMs);
      snapshots.push(plainCopy(snapshot, `snapshot of ${loaded.metadata.id}`) as ExtensionSnapshot);
    }
    return snapshots;
  }

  async applySnapshots(): Promise<void> {
    for (const loaded of this.#loaded.values()) await this.#applySnapshot(loaded);
  }

  /** Runs `work` while no extension answers requests; those that ran before run again afterwards. */
  async whilePaused<T>(work: () => Promise<T>): Promise<T> {
    const running = [...this.#loaded.values()].filter((loaded) => loaded.state === 'running');
    for (const loaded of running) this.#move(loaded, 'paused');
    try {
      return await work();
    } finally {
      for (const loaded of running) if (loaded.state === 'paused') this.#move(loaded, 'running');
    }
  }

  /** In the reverse order of loading. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const id of [...this.#loaded.keys()].reverse()) {
      const loaded = this.#loaded.get(id);
      if (loaded?.state === 'initializing') await this.#drop(loaded, 'the node stopped');
      else if (loaded !== undefined && loaded.state !== 'shutting-down') await this.unload(id);
    }
  }

  // Start

  #readFolder(path: string): Promise<ExtensionFolder> {
    return readExtensionFolder(path, this.#options, this.#lent.trust);
  }

  #checkRoom(id: string): void {
    if (this.#loaded.has(id)) throw new HyperMeshError('extension-already-loaded', `${id} is loaded already.`);
    const { extensionsMax } = this.#options;
    if (this.#loaded.size >= extensionsMax) {
      throw new HyperMeshError('limit-exceeded', `This node loads at most ${extensionsMax} extensions.`);
    }
  }

  #checkCompatible({ id, hypermesh }: Pick<ExtensionMetadata, 'id' | 'hypermesh'>): void {
    if (semver.satisfies(this.#version, hypermesh, { includePrerelease: true })) return;
    throw new HyperMeshError(
      'extension-incompatible',
      `${id} works with HyperMesh ${hypermesh}; this is ${this.#version}.`,
      {
        hint: 'Update HyperMesh or the extension.',
      },
    );
  }

  #checkDependencies({ id, dependencies }: Pick<ExtensionMetadata, 'id' | 'dependencies'>): void {
    for (const wanted of dependencies) {
      const found = this.#loaded.get(wanted.id);
      if (found === undefined && wanted.optional) continue;
      const problem =
        found === undefined || found.state === 'initializing'
          ? 'which is not loaded'
          : found.state === 'error' || found.state === 'shutting-down'
            ? `which is in the state ${found.state}`
            : !semver.satisfies(found.metadata.version, wanted.range)
              ? `but ${found.metadata.version} is loaded`
              : null;
      if (problem === null) continue;
      throw new HyperMeshError('extension-dependency', `${id} depends on ${wanted.id} ${wanted.range}, ${problem}.`, {
        hint: `Load a version of ${wanted.id} in that range first.`,
      });
    }
  }

  #checkTypes({ id, provides }: Pick<ExtensionMetadata, 'id' | 'provides'>): void {
    for (const other of this.#loaded.values()) {
      const type = other.metadata.provides.find((type) => provides.includes(type));
      if (type === undefined) continue;
      throw new HyperMeshError(
        'extension-invalid',
        `${id} provides the asset type ${type}, which ${other.metadata.id} looks after already.`,
      );
    }
  }

  #checkGrants({ id, needs }: Pick<ExtensionMetadata, 'id' | 'needs'>, grants: readonly CapabilityName[]): void {
    const missing = needs.find((name) => !grants.includes(name));
    if (missing !== undefined) throw notGranted(id, missing);
  }

  #enroll(claimed: Claimed, mode: Loaded['mode'], signer: string | null, limits: ExtensionLimits): Loaded {
    const { id, version, needs, provides, hypermesh, dependencies } = claimed;
    const loaded: Loaded = {
      metadata: { id, version, needs, provides, hypermesh, dependencies },
      mode,
      signer,
      limits,
      startedAtMs: this.#clock.nowMs(),
      state: 'initializing',
      why: null,
      loan: null,
      lendable: null,
      cell: null,
      extension: null,
      handlers: new Map(),
      active: 0,
      requests: 0,
      errors: 0,
      enders: new Set(),
    };
    this.#loaded.set(id, loaded);
    return loaded;
  }

  async #start(
    loaded: Loaded,
    folder: ExtensionFolder | null,
    definition: ExtensionDefinition | null,
    options: LoadOptions,
  ): Promise<void> {
    const { id, needs, provides } = loaded.metadata;
    loaded.lendable = this.#lent.lendable({ id, limits: loaded.limits, provides });
    const { capabilities } = loaded.lendable;
    for (const name of needs) if (capabilities[name] === undefined) throw notGranted(id, name);
    loaded.loan = lend(capabilities, needs, {
      extension: id,
      limits: loaded.limits,
      clock: this.#clock,
      ...(this.#lent.monitoring === undefined ? {} : { monitoring: this.#lent.monitoring }),
    });

    const { operationTimeoutMs } = this.#options;
    const step = <T>(what: string, work: () => Promise<T>) => this.#perform(loaded, what, work, operationTimeoutMs);
    const extension = await step('create', () => this.#create(loaded, folder, definition));
    loaded.extension = extension;

    await step('initialize', () =>
      extension.initialize({
        settings: plainCopy(options.settings ?? {}, `settings of ${id}`) as Json,
        limits: loaded.limits,
        granted: needs,
        privacy: options.privacy ?? 'private',
        debug: options.debug ?? false,
      }),
    );
    const handlers = await step('registerAssets', () => extension.registerAssets());
    this.#register(loaded, handlers);
    const { lent } = loaded.loan;
    if (needs.includes('assets')) await step('extendManager', () => extension.extendManager(lent.assets));
    await this.#applySnapshot(loaded);
    this.#move(loaded, 'running');
  }

  async #create(
    loaded: Loaded,
    folder: ExtensionFolder | null,
    definition: ExtensionDefinition | null,
  ): Promise<HyperMeshExtension> {
    const { lent } = loaded.loan!;
    if (folder !== null && loaded.mode === 'cell') {
      loaded.cell = await openCell(folder, {
        memoryMiB: this.#options.cellMemoryMiB,
        answerTimeoutMs: this.#options.cellAnswerTimeoutMs,
        onEnd: (why) => this.#fail(loaded, why),
      });
      const metadata = parseMetadata(await loaded.cell.describe());
      this.#checkSame(loaded.metadata, metadata);
      return withAllMethods(await loaded.cell.create(lent, metadata), metadata.id);
    }
    const found = definition ?? (await importDefinition(folder!));
    const metadata = parseMetadata({ ...found.metadata, needs: found.needs });
    this.#checkSame(loaded.metadata, metadata);
    return withAllMethods(found.create(lent), metadata.id);
  }

  /** What was checked before any code ran is what the code says too. */
  #checkSame(claimed: Claimed, actual: ExtensionMetadata): void {
    const fields = ['id', 'version', 'hypermesh', 'needs', 'provides', 'dependencies'] as const;
    const other = fields.find((field) => JSON.stringify(claimed[field]) !== JSON.stringify(actual[field]));
    if (other === undefined) return;
    throw new HyperMeshError(
      'extension-invalid',
      `${claimed.id} states ${JSON.stringify(claimed[other])} as its ${other}, but its code states ${JSON.stringify(actual[other])}.`,
    );
  }

  #register(loaded: Loaded, handlers: ReadonlyMap<AssetType, AssetExtensionHandler>): void {
    const { id, provides } = loaded.metadata;
    const types = handlers instanceof Map ? [...(handlers.keys() as Iterable<AssetType>)] : [];
    if (types.toSorted().join() !== provides.toSorted().join()) {
      throw new HyperMeshError(
        'extension-invalid',
        `${id} provides ${provides.join(', ') || 'no asset type'}, but registered handlers for ${types.join(', ') || 'none'}.`,
      );
    }
    loaded.handlers = new Map([...handlers].map(([type, handler]) => [type, this.#guard(loaded, handler)]));
  }

  async #applySnapshot(loaded: Loaded): Promise<void> {
    const { id } = loaded.metadata;
    const snapshot = (await this.#snapshots?.waiting(id)) ?? null;
    if (snapshot === null || loaded.extension === null) return;
    const work = () => loaded.extension!.importState(snapshot);
    await this.#perform(loaded, 'importState', work, this.#options.operationTimeoutMs);
    await this.#snapshots!.taken(id);
  }

  // Run

  #find(id: string): Loaded {
    const loaded = this.#loaded.get(id);
    if (loaded !== undefined) return loaded;
    throw new HyperMeshError('extension-not-found', `No extension ${JSON.stringify(id.slice(0, 64))} is loaded.`, {
      hint: `Loaded are: ${[...this.#loaded.keys()].join(', ') || 'none'}.`,
    });
  }

  #move(loaded: Loaded, to: ExtensionState): void {
    if (!MOVES[loaded.state].includes(to)) throw this.#wrongMove(loaded, to);
    loaded.state = to;
  }

  #wrongMove(loaded: Loaded, to: ExtensionState): HyperMeshError {
    return new HyperMeshError('extension-state', `${loaded.metadata.id} is ${loaded.state} and cannot become ${to}.`, {
      details: { state: loaded.state },
    });
  }

  #checkAnswers(loaded: Loaded, method: PropertyKey): void {
    const { metadata, state, why } = loaded;
    if (this.#loaded.get(metadata.id) !== loaded) {
      throw new HyperMeshError('extension-state', `${metadata.id} was unloaded.`, { details: { state: 'stopped' } });
    }
    if (state === 'error')
      throw new HyperMeshError('extension-failed', `${metadata.id} failed: ${why}.`, { details: { state } });
    if (state === 'running' || (state === 'paused' && ABOUT_ITSELF.has(method))) return;
    throw new HyperMeshError('extension-state', `${metadata.id} is ${state} and does not answer.`, {
      hint: state === 'paused' ? 'Resume it first.' : 'Try again when it runs.',
      details: { state },
    });
  }

  /** One call into an extension: counted, ended by its deadline, by unloading and by the end of its process. */
  async #perform<T>(loaded: Loaded, what: string, work: () => Promise<T>, timeoutMs: number | null): Promise<T> {
    const { promise: ended, reject } = Promise.withResolvers<never>();
    const { id } = loaded.metadata;
    const timer =
      timeoutMs === null
        ? undefined
        : setTimeout(() => {
            reject(new HyperMeshError('timeout', `${id} took longer than ${timeoutMs} ms for ${what}.`));
            loaded.cell?.checkAlive();
          }, timeoutMs);
    loaded.enders.add(reject);
    loaded.active += 1;
    loaded.requests += 1;
    try {
      return await Promise.race([work(), ended]);
    } catch (error) {
      loaded.errors += 1;
      throw attribute(error, id, what);
    } finally {
      loaded.active -= 1;
      loaded.enders.delete(reject);
      clearTimeout(timer);
    }
  }

  /** The face of an extension or a handler that the host gives out. */
  #guard<T extends object>(loaded: Loaded, real: T): T {
    const cache = new Map<PropertyKey, unknown>();
    const wrap = (key: PropertyKey, method: (...args: unknown[]) => unknown) => {
      if (IMMEDIATE.has(key)) {
        return () => {
          this.#checkAnswers(loaded, key);
          return method.call(real);
        };
      }
      // Requests and handlers have the deadline of an operation; methods of the extension's own are long ones and take a signal.
      const timed = key === 'handleRequest' || typeof (real as { assetType?: unknown }).assetType === 'function';
      const timeoutMs = timed ? this.#options.operationTimeoutMs : null;
      return async (...args: unknown[]) => {
        if (LIFECYCLE.has(key)) {
          throw new HyperMeshError('extension-state', `Only the host calls ${String(key)} of ${loaded.metadata.id}.`);
        }
        this.#checkAnswers(loaded, key);
        return this.#perform(loaded, String(key), async () => method.apply(real, args), timeoutMs);
      };
    };
    return new Proxy({} as T, {
      get: (_target, key) => {
        const value: unknown = Reflect.get(real, key, real);
        if (typeof value !== 'function') return value;
        if (!cache.has(key)) cache.set(key, wrap(key, value as (...args: unknown[]) => unknown));
        return cache.get(key);
      },
      has: (_target, key) => Reflect.has(real, key),
      set: () => false,
      defineProperty: () => false,
    });
  }

  async #health(loaded: Loaded): Promise<ExtensionStatus['health']> {
    if (loaded.state === 'error') return { kind: 'unhealthy', why: loaded.why ?? 'it failed' };
    if (loaded.extension === null) return { kind: 'degraded', why: 'it is starting' };
    try {
      return (await this.#perform(loaded, 'status', () => loaded.extension!.status(), 5_000)).health;
    } catch (error) {
      return { kind: 'unhealthy', why: (error as Error).message };
    }
  }

  // End

  /** Its process ended by itself: the host lives, calls under way fail, the extension stays listed with what happened. */
  #fail(loaded: Loaded, why: string): void {
    if (this.#loaded.get(loaded.metadata.id) !== loaded || loaded.state === 'error') return;
    this.#end(loaded, 'extension-failed', why);
    // Whoever waits for its start or its end takes the pieces away.
    if (loaded.state !== 'running' && loaded.state !== 'paused') return;
    this.#move(loaded, 'error');
    loaded.why = why;
    loaded.loan?.revoke(why);
    loaded.handlers = new Map();
    this.#tell('extension.failed', 'error', loaded, { why });
  }

  #end(loaded: Loaded, code: 'extension-failed' | 'extension-state', why: string): void {
    const error = new HyperMeshError(code, `${loaded.metadata.id} does not answer any more: ${why}.`);
    for (const end of [...loaded.enders]) end(error);
  }

  /** Takes everything back, in the order in which it stops mattering. */
  async #drop(loaded: Loaded, why: string): Promise<void> {
    this.#loaded.delete(loaded.metadata.id);
    loaded.handlers = new Map();
    loaded.loan?.revoke(why);
    this.#end(loaded, 'extension-state', why);
    if (loaded.state === 'shutting-down') loaded.state = 'stopped';
    await loaded.cell?.[Symbol.asyncDispose]();
    await loaded.lendable?.release();
  }

  #tell(type: string, severity: 'info' | 'warning' | 'error', loaded: Loaded, data: Record<string, Json>): void {
    const { id, version } = loaded.metadata;
    this.#lent.monitoring?.emit({ type, severity, data: { extension: id, version, ...data } }).catch(() => {});
  }
}

function withAllMethods(extension: HyperMeshExtension, id: string): HyperMeshExtension {
  const missing = METHODS.find((method) => typeof extension?.[method] !== 'function');
  if (missing === undefined) return extension;
  throw new HyperMeshError('extension-invalid', `${id} has no method ${missing}().`);
}

function parseMetadata(value: unknown): ExtensionMetadata {
  const parsed = metadataSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  throw new HyperMeshError(
    'extension-invalid',
    `The metadata of an extension is not valid: ${issue.path.join('.') || 'the whole'}: ${issue.message}.`,
  );
}

/** A coded error is an answer; anything else is a defect of the extension and is named as such, without its text. */
function attribute(error: unknown, id: string, what: string): HyperMeshError {
  if (isCoded(error)) return error;
  if ((error as Error | null)?.name === 'AbortError') {
    return new HyperMeshError('cancelled', `${what} of ${id} was cancelled.`, { cause: error });
  }
  return new HyperMeshError('extension-failed', `${id} failed in ${what}; the log has the details.`, { cause: error });
}

/** Errors: `extension-dependency` for a cycle. A dependency that is not among them is left for `load` to judge. */
function dependenciesFirst(folders: readonly ExtensionFolder[]): readonly ExtensionFolder[] {
  const byId = new Map(folders.map((folder) => [folder.manifest.id, folder]));
  const sorted = new Set<ExtensionFolder>();
  const visit = (folder: ExtensionFolder, path: readonly string[]): void => {
    const { id, dependencies } = folder.manifest;
    if (sorted.has(folder)) return;
    if (path.includes(id)) {
      throw new HyperMeshError(
        'extension-dependency',
        `Extensions depend on each other in a circle: ${[...path, id].join(' -> ')}.`,
      );
    }
    for (const wanted of dependencies) {
      const found = byId.get(wanted.id);
      if (found !== undefined) visit(found, [...path, id]);
    }
    sorted.add(folder);
  };
  for (const folder of folders) visit(folder, []);
  return [...sorted];
}
