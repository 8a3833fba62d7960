import { join, resolve } from 'node:path';
import type { Auditor } from './audit/auditor.ts';
import type { CallOptions } from './base/call.ts';
import { type Clock, systemClock } from './base/clock.ts';
import type { Digest } from './base/digest.ts';
import type { HyperMeshExtension } from './capabilities/extension.ts';
import type { MetricSample } from './capabilities/monitoring.ts';
import type { Catalog, StagedPackage, VerifyResult } from './catalog/api.ts';
import { NEEDS } from './catalog/context.ts';
import { type CatalogExtension, catalogExtension } from './catalog/extension.ts';
import { verifyBundle } from './catalog/verify.ts';
import { packFolder } from './client/folder.ts';
import type { LoadOptions } from './host/extensions.ts';
import { type HostNode, type NodeConfig, openNode } from './host/node.ts';
import { type OfflineJudges, offlineJudges, signatureCheck } from './host/offline.ts';
import type { Bundle } from './wire/bundle.ts';

export interface HyperMeshConfig extends NodeConfig {
  /** Where `install` without a folder puts packages. Default: `installed` in the home. */
  readonly installRoot?: string;
}

/**
 * The programmatic face: a node and what is loaded into it.
 *
 *     await using hypermesh = await HyperMesh.create({ home: '/srv/hypermesh' });
 *     const catalog = await hypermesh.loadExtension('catalog');
 *     const staged = await hypermesh.stageFolder('./my-package');
 *     const published = await catalog.publishPackage(await catalog.signPackage(staged));
 */
export class HyperMesh implements AsyncDisposable {
  readonly node: HostNode;
  readonly #installRoot: string;
  readonly #clock: Clock;
  #catalog: Promise<CatalogExtension> | null = null;

  private constructor(node: HostNode, installRoot: string, clock: Clock) {
    this.node = node;
    this.#installRoot = installRoot;
    this.#clock = clock;
  }

  /** Opens the home (and founds a network in a new one). Errors: `home-in-use`, `home-too-new`, `key-locked`, `storage-*`. */
  static async create(config: HyperMeshConfig): Promise<HyperMesh> {
    const { installRoot, ...nodeConfig } = config;
    const home = resolve(config.home);
    const node = await openNode({ ...nodeConfig, home });
    return new HyperMesh(node, resolve(installRoot ?? join(home, 'installed')), config.clock ?? systemClock);
  }

  /** Loads the catalog (once), or a third party's extension from its folder with exactly the capabilities that are granted. */
  loadExtension(id: 'catalog'): Promise<CatalogExtension>;
  loadExtension(source: { readonly folder: string }, options: LoadOptions): Promise<HyperMeshExtension>;
  loadExtension(source: 'catalog' | { readonly folder: string }, options?: LoadOptions): Promise<HyperMeshExtension> {
    if (source !== 'catalog') return this.node.extensions.load(source, options!);
    this.#catalog ??= this.node.extensions.load(catalogExtension(this.#clock), {
      grants: NEEDS,
      settings: { installRoot: this.#installRoot },
    });
    return this.#catalog;
  }

  /** Packs a folder into the content store and checks its `catalog.yaml` (or the one given). Errors: `manifest-*`, `tree-invalid`. */
  async stageFolder(
    folder: string,
    options: CallOptions & { readonly manifestFile?: string } = {},
  ): Promise<StagedPackage> {
    const catalog: Catalog = await this.loadExtension('catalog');
    const packed = await packFolder(folder, options);
    const layer = await catalog.stageLayer(packed.tree, options);
    return catalog.stagePackage(packed.manifestYaml, layer.digest, options);
  }

  getMetrics(pattern: string): Promise<readonly MetricSample[]> {
    return this.node.getMetrics(pattern);
  }

  exportState(options: CallOptions = {}): AsyncIterable<Uint8Array> {
    return this.node.exportState(options);
  }

  importState(stream: AsyncIterable<Uint8Array>, options: CallOptions = {}): Promise<void> {
    return this.node.importState(stream, options);
  }

  close(): Promise<void> {
    return Promise.resolve(this.node[Symbol.asyncDispose]());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Checks a bundle with nothing but itself: no home, no node, no network. `network` pins the network it must belong to; without it the
 * result names the one that the bundle claims. Pass the same `judges` again to have known certificate chains and committees remembered.
 * Errors: `bundle-invalid`, `network-mismatch`, `signature-invalid`, `certificate-*`, `proof-rejected`, `endorsement-invalid`, `log-invalid`.
 */
export async function verifyBundleOffline(
  bundle: Bundle,
  options: { readonly network?: Digest; readonly judges?: OfflineJudges } = {},
): Promise<VerifyResult> {
  const { content: _content, ...result } = await verifyBundle(bundle, options.judges ?? offlineJudges(), options);
  return result;
}

/** Judges what became of a network by signed statements alone; `network`: that one only. */
export async function openAuditor(network?: Digest): Promise<Auditor> {
  const { Auditor } = await import('./audit/auditor.ts');
  return new Auditor(signatureCheck, network === undefined ? {} : { network });
}

export { changePassphraseOf } from './host/passphrase.ts';
