import { setTimeout } from 'node:timers/promises';
import { utf8 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import type { Clock } from '../base/clock.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError, toProblem } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import type {
  AssetPage,
  AssetQuery,
  AssetRecord,
  AssetState,
  Assets,
  BlobInfo,
  InstalledPackage,
} from '../capabilities/assets.ts';
import {
  type AssetExtensionHandler,
  type AssetLibraryExtension,
  defineExtension,
  type ExtensionConfig,
  type ExtensionMetadata,
  type ExtensionRequest,
  type ExtensionResponse,
  type ExtensionSnapshot,
  type ExtensionStatus,
  type PackageSpec,
  type ValidationReport,
} from '../capabilities/extension.ts';
import type { Code, Distribution, SyncSummary } from '../capabilities/transport.ts';
import type { Bundle } from '../wire/bundle.ts';
import type { Lock } from '../wire/lock.ts';
import { type AssetId, type AssetType, type PackageName, packageType } from '../wire/names.ts';
import { proofSet } from '../wire/proof.ts';
import { acceptArrival } from './accept.ts';
import type {
  Catalog,
  CatalogRun,
  InstallResult,
  PublishResult,
  SignedPackage,
  StagedPackage,
  VerifyResult,
} from './api.ts';
import { readBundle } from './bundle.ts';
import { type CatalogContext, catalogSettings, type Lent, NEEDS } from './context.ts';
import { PackageHandler } from './handler.ts';
import { install, installed, rollback, uninstall, update } from './install.ts';
import { openPackage } from './open.ts';
import { publishPackage } from './publish.ts';
import { answer } from './requests.ts';
import { concludeAll, deleteVersion, setState } from './retire.ts';
import { type RunOptions, run } from './run.ts';
import { distribute, share } from './share.ts';
import { signPackage, stagePackage } from './stage.ts';
import { knownTo, verifyBundle, verifyPublished } from './verify.ts';
import { newestInRange } from './versions.ts';

const METADATA: Omit<ExtensionMetadata, 'needs'> = {
  id: 'catalog',
  name: 'HyperMesh Catalog',
  version: '0.1.0',
  description: 'Publish, find, install, verify and run packages.',
  author: 'HyperMesh',
  license: 'Apache-2.0',
  category: 'asset-library',
  hypermesh: '^0.1.0',
  dependencies: [],
  provides: packageType.options,
};

const SNAPSHOT_VERSION = 1;

type Counted = 'publish' | 'distribute' | 'search' | 'install' | 'run' | 'verify';

/** The extension: a thin face over the ladders in this folder, each of which is one file. */
export class CatalogExtension implements Catalog, AssetLibraryExtension {
  readonly #lent: Lent;
  readonly #clock: Clock;
  readonly #startedAtMs: number;
  #context: CatalogContext | null = null;
  /** Ends the judging of what other nodes bring. */
  #accepting: AbortController | null = null;
  #active = 0;
  #requests = 0;
  #errors = 0;

  constructor(lent: Lent, clock: Clock) {
    this.#lent = lent;
    this.#clock = clock;
    this.#startedAtMs = clock.nowMs();
  }

  // Specification interface 1: HyperMeshExtension

  metadata(): ExtensionMetadata {
    return { ...METADATA, needs: NEEDS };
  }

  /** Errors: `config-invalid`. */
  async initialize(config: ExtensionConfig): Promise<void> {
    const settings = catalogSettings.safeParse(config.settings);
    if (!settings.success) {
      throw new HyperMeshError(
        'config-invalid',
        `The settings of the catalog are not valid: ${settings.error.issues[0]!.message}.`,
      );
    }
    const context = { lent: this.#lent, settings: settings.data, clock: this.#clock };
    this.#context = context;
    await this.#settleNotes(context);
    await this.#reportTotals();
    this.#accepting = new AbortController();
    void this.#accept(context, this.#accepting.signal);
  }

  async registerAssets(): Promise<ReadonlyMap<AssetType, AssetExtensionHandler>> {
    return new Map(packageType.options.map((type) => [type, new PackageHandler(type, this.#lent, this)]));
  }

  async extendManager(_assets: Assets): Promise<void> {
    // The catalog adds behaviour through its handlers only.
  }

  async handleRequest(request: ExtensionRequest, options?: CallOptions): Promise<ExtensionResponse> {
    try {
      return { requestId: request.id, ok: true, data: await answer(this, request, options) };
    } catch (error) {
      return { requestId: request.id, ok: false, error: toProblem(error) };
    }
  }

  async status(): Promise<ExtensionStatus> {
    return {
      state: this.#context === null ? 'initializing' : 'running',
      health: { kind: 'healthy' },
      activeOperations: this.#active,
      totalRequests: this.#requests,
      errors: this.#errors,
      uptimeMs: this.#clock.nowMs() - this.#startedAtMs,
    };
  }

  async validate(): Promise<ValidationReport> {
    const runtimes = await this.#lent.vm.runtimes();
    const missing = runtimes.filter((runtime) => !runtime.available);
    return {
      valid: true,
      errors: [],
      warnings: missing.map((runtime) => ({
        code: 'runtime-unavailable',
        message: `${runtime.kind}: ${runtime.reason}`,
      })),
    };
  }

  /** What the catalog itself keeps is small: notes of unfinished publishes. Records and content are the host's to export. */
  async exportState(): Promise<ExtensionSnapshot> {
    const data = Object.fromEntries((await this.#lent.state.list('')).map(({ key, value }) => [key, value]));
    return {
      version: SNAPSHOT_VERSION,
      extension: METADATA.id,
      data,
      checksum: digestOf(utf8(canonicalJson(data))),
      exportedAtMs: this.#clock.nowMs(),
    };
  }

  async importState(snapshot: ExtensionSnapshot): Promise<void> {
    if (snapshot.version > SNAPSHOT_VERSION) {
      throw new HyperMeshError(
        'state-too-new',
        `The snapshot has version ${snapshot.version}; this catalog knows ${SNAPSHOT_VERSION}.`,
      );
    }
    const { data } = snapshot;
    const sound = data !== null && typeof data === 'object' && !Array.isArray(data);
    if (!sound || snapshot.extension !== METADATA.id || snapshot.checksum !== digestOf(utf8(canonicalJson(data)))) {
      throw new HyperMeshError('state-invalid', 'The snapshot of the catalog does not have the checksum it states.');
    }
    const stale = Object.fromEntries((await this.#lent.state.list('')).map(({ key }) => [key, undefined]));
    await this.#lent.state.write({ ...stale, ...(data as Record<string, Json>) });
  }

  async shutdown(): Promise<void> {
    this.#accepting?.abort();
    this.#context = null;
  }

  // Publish

  stageLayer(tree: AsyncIterable<Uint8Array>, options: CallOptions = {}): Promise<BlobInfo> {
    return this.#lent.assets.putTree(tree, { ...options, sizeMax: this.#ready.settings.packageSizeMax });
  }

  stagePackage(manifestYaml: string, layer: Digest, options: CallOptions = {}): Promise<StagedPackage> {
    return stagePackage(this.#lent.assets, manifestYaml, layer, options);
  }

  signPackage(staged: StagedPackage): Promise<SignedPackage> {
    return signPackage(this.#lent, staged, this.#clock.nowMs());
  }

  /** Publishes what was signed, or stages and signs first what is only specified. */
  publishPackage(what: SignedPackage | PackageSpec, options: CallOptions = {}): Promise<PublishResult> {
    return this.#counted('publish', async () => {
      const signed =
        'envelope' in what
          ? what
          : await this.signPackage(await this.stagePackage(what.manifestYaml, what.layer, options));
      const result = await publishPackage(this.#ready, signed, options);
      await this.#reportTotals();
      return result;
    });
  }

  setState(ref: string, state: AssetState, reason: string | null): Promise<AssetRecord> {
    return setState(this.#ready, ref, state, reason);
  }

  async delete(ref: string): Promise<AssetRecord> {
    const record = await deleteVersion(this.#ready, ref);
    await this.#reportTotals();
    return record;
  }

  // Find

  search(query: AssetQuery): Promise<AssetPage> {
    return this.#counted('search', () => this.#lent.assets.query(query));
  }

  resolve(ref: string): Promise<AssetRecord> {
    return newestInRange(this.#lent.assets, ref);
  }

  async info(ref: string): ReturnType<Catalog['info']> {
    const record = await this.resolve(ref);
    const [versions, dependents] = await Promise.all([
      this.#lent.assets.versions(record.name),
      this.#lent.assets.dependents(record.id),
    ]);
    return { record, versions, dependents };
  }

  // The network

  async sync(options: CallOptions = {}): Promise<SyncSummary> {
    const { transport } = this.#lent;
    const summary = await transport.sync(options);
    // What came counts when it was judged. What has to wait for something else is not waited for.
    let { arrivals: left } = await transport.status();
    for (let looks = 0; left > 0 && looks < 5; looks++) {
      await setTimeout(200, undefined, options.signal === undefined ? {} : { signal: options.signal });
      const { arrivals } = await transport.status();
      if (arrivals < left) looks = 0;
      left = arrivals;
    }
    return summary;
  }

  async distribute(ref: string, options: CallOptions & { readonly code?: Code } = {}): Promise<Distribution> {
    return this.#counted('distribute', async () => distribute(this.#ready, await this.resolve(ref), options));
  }

  /** The specification's name for {@link distribute}. */
  distributePackage(ref: string, options: CallOptions & { readonly code?: Code } = {}): Promise<Distribution> {
    return this.distribute(ref, options);
  }

  // Install

  install(
    refs: readonly string[],
    options: CallOptions & { readonly root?: string; readonly locked?: boolean; readonly lock?: Lock } = {},
  ): Promise<InstallResult> {
    return this.#counted('install', () => install(this.#ready, refs, this.#rooted(options)));
  }

  uninstall(
    names: readonly PackageName[],
    options: CallOptions & { readonly root?: string } = {},
  ): Promise<InstallResult> {
    return this.#counted('install', () => uninstall(this.#ready, names, this.#rooted(options)));
  }

  update(
    names: readonly PackageName[],
    options: CallOptions & { readonly root?: string } = {},
  ): Promise<InstallResult> {
    return this.#counted('install', () => update(this.#ready, names, this.#rooted(options)));
  }

  rollback(options: CallOptions & { readonly root?: string } = {}): Promise<InstallResult> {
    return this.#counted('install', () => rollback(this.#ready, this.#rooted(options)));
  }

  installed(root?: string): Promise<readonly InstalledPackage[]> {
    return installed(this.#ready, root ?? this.#ready.settings.installRoot);
  }

  // Run and verify

  run(ref: string, input: Json, options: RunOptions = {}): Promise<CatalogRun> {
    return this.#counted('run', () => run(this.#ready, ref, input, options));
  }

  /** The specification's name for {@link run}. */
  executePackage(ref: string, input: Json, options: RunOptions = {}): Promise<CatalogRun> {
    return this.run(ref, input, options);
  }

  /** The same for a package in Julia, and for no other. Errors: also `not-runnable`. */
  async executeJuliaPackage(ref: string, input: Json, options: RunOptions = {}): Promise<CatalogRun> {
    const { name, version, manifest } = await this.resolve(ref);
    if (manifest.language !== 'julia') {
      throw new HyperMeshError('not-runnable', `${name}@${version} is not a package in Julia.`, {
        hint: 'executePackage runs packages in any language.',
      });
    }
    return this.run(`${name}@${version}`, input, options);
  }

  open(ref: string, options: CallOptions = {}): ReturnType<Catalog['open']> {
    return openPackage(this.#ready, ref, options);
  }

  async bundle(ref: string): Promise<Bundle> {
    return readBundle(this.#lent.assets, await this.resolve(ref));
  }

  verify(
    target: { readonly ref: string } | { readonly bundle: Bundle },
    options: CallOptions & { readonly offline?: boolean } = {},
  ): Promise<VerifyResult> {
    return this.#counted('verify', async () => {
      if ('ref' in target) return verifyPublished(this.#ready, await this.resolve(target.ref), options);
      const { content: _content, ...result } = await verifyBundle(target.bundle, this.#lent, await knownTo(this.#lent));
      return result;
    });
  }

  // Specification interface 3: AssetLibraryExtension

  async listPackages(filter: AssetQuery): Promise<readonly AssetId[]> {
    return (await this.#lent.assets.query(filter)).hits.map((hit) => hit.record.id);
  }

  async getPackage(id: AssetId): Promise<Json> {
    return (await this.#recordOf(id)) as unknown as Json;
  }

  async installPackage(id: AssetId, options: { readonly root: string }): Promise<Json> {
    return (await this.install([await this.#refOf(id)], options)) as unknown as Json;
  }

  async uninstallPackage(id: AssetId, options: { readonly root: string }): Promise<void> {
    await this.uninstall([(await this.#recordOf(id)).name], options);
  }

  async updatePackage(id: AssetId, range: string, options: { readonly root: string }): Promise<Json> {
    return (await this.install([`${(await this.#recordOf(id)).name}@${range}`], options)) as unknown as Json;
  }

  searchPackages(query: string, options: AssetQuery): Promise<readonly AssetId[]> {
    return this.listPackages({ ...options, text: query });
  }

  async verifyPackage(id: AssetId): Promise<Json> {
    return (await verifyPublished(this.#ready, await this.#recordOf(id))) as unknown as Json;
  }

  async #recordOf(id: AssetId): Promise<AssetRecord> {
    const record = await this.#lent.assets.get(id);
    if (record === null) throw new HyperMeshError('asset-not-found', `No asset has the id ${id}.`);
    return record;
  }

  async #refOf(id: AssetId): Promise<string> {
    const { name, version } = await this.#recordOf(id);
    return `${name}@${version}`;
  }

  get #ready(): CatalogContext {
    if (this.#context === null) throw new HyperMeshError('extension-state', 'The catalog is not running.');
    return this.#context;
  }

  #rooted<T extends { readonly root?: string }>(options: T): T & { readonly root: string } {
    return { ...options, root: options.root ?? this.#ready.settings.installRoot };
  }

  /** Counts an operation and how long it took, under the names of the specification. */
  async #counted<T>(operation: Counted, work: () => Promise<T>): Promise<T> {
    const startedAt = performance.now();
    this.#requests++;
    this.#active++;
    let outcome = 'ok';
    try {
      return await work();
    } catch (error) {
      this.#errors++;
      outcome = error instanceof HyperMeshError ? error.code : 'internal';
      throw error;
    } finally {
      this.#active--;
      const tags = { outcome };
      await this.#lent.monitoring.report({ name: `catalog.operations.${operation}`, kind: 'counter', value: 1, tags });
      const value = performance.now() - startedAt;
      await this.#lent.monitoring.report({
        name: `catalog.duration.${operation}`,
        kind: 'histogram',
        unit: 'ms',
        value,
        tags,
      });
    }
  }

  async #reportTotals(): Promise<void> {
    const { packages, versions, bytes } = await this.#lent.assets.totals();
    const { monitoring } = this.#lent;
    await monitoring.report({ name: 'catalog.packages.total', kind: 'gauge', value: packages });
    await monitoring.report({ name: 'catalog.versions.total', kind: 'gauge', value: versions });
    await monitoring.report({ name: 'catalog.storage.bytes', kind: 'gauge', unit: 'bytes', value: bytes });
  }

  /**
   * Notes of what a crash cut short. A publish that was committed is told to the network; proofs that nobody used expire; what was said
   * about a version and took effect is told too.
   */
  async #settleNotes(context: CatalogContext): Promise<void> {
    for (const { key, value } of await this.#lent.state.list('publish/')) {
      const kept = proofSet.safeParse(value);
      const { operation, anchor, requirements } = kept.data?.challenge ?? {};
      const usable =
        anchor !== undefined && anchor.issuedAtMs + (requirements?.time?.windowMs ?? 0) > this.#clock.nowMs();
      const versions = operation && (await this.#lent.assets.versions(operation.ref.split('@')[0] as PackageName));
      const published = versions?.find(({ digest }) => digest === operation?.subject);
      if (published !== undefined) await share(context, published);
      if (!usable || published !== undefined) await this.#lent.state.write({ [key]: undefined });
    }
    await concludeAll(context);
  }

  /** Judges what other nodes bring, as long as the extension runs. */
  async #accept(context: CatalogContext, signal: AbortSignal): Promise<void> {
    const { transport, monitoring } = this.#lent;
    while (!signal.aborted) {
      try {
        for await (const arrival of transport.arrivals({ signal })) {
          const verdict = await acceptArrival(context, arrival);
          await transport.judge(arrival.id, verdict);
          await monitoring.report({ name: 'catalog.arrivals', kind: 'counter', value: 1, tags: { verdict } });
          if (verdict === 'accepted') await this.#reportTotals();
        }
      } catch {
        // A full disk, a quota, or a host that is pausing: what could not be judged comes again.
        await setTimeout(1_000, undefined, { ref: false });
      }
    }
  }
}

/** The definition that a host loads; `clock` is the one that the host itself goes by. */
export function catalogExtension(clock: Clock) {
  return defineExtension({ metadata: METADATA, needs: NEEDS, create: (lent) => new CatalogExtension(lent, clock) });
}
