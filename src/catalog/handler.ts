import { isDigest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import type { AssetQuery, AssetRecord } from '../capabilities/assets.ts';
import type {
  AssetCreation,
  AssetExtensionHandler,
  AssetOperation,
  OperationResult,
  PackageSpec,
} from '../capabilities/extension.ts';
import type { AssetId, PackageType } from '../wire/names.ts';
import type { ProofSet } from '../wire/proof.ts';
import type { Catalog, PublishResult } from './api.ts';
import type { Lent } from './context.ts';

/** The key of the words that an update keeps beside content that never changes. */
const NOTES = 'catalog.notes';

type Publisher = Pick<Catalog, 'run' | 'delete'> & { publishPackage(spec: PackageSpec): Promise<PublishResult> };

/** Specification interface 2 for one package type. All five behave alike: what differs is in the manifest. */
export class PackageHandler implements AssetExtensionHandler {
  readonly #type: PackageType;
  readonly #lent: Pick<Lent, 'assets' | 'consensus'>;
  readonly #catalog: Publisher;

  constructor(type: PackageType, lent: Pick<Lent, 'assets' | 'consensus'>, catalog: Publisher) {
    this.#type = type;
    this.#lent = lent;
    this.#catalog = catalog;
  }

  assetType(): PackageType {
    return this.#type;
  }

  /** Publishes: `metadata` holds further keys of `catalog.yaml`. Errors: as `publishPackage`. */
  async createAsset(spec: AssetCreation): Promise<AssetId> {
    if (!isDigest(spec.layer))
      throw new HyperMeshError(
        'usage',
        `Expected the digest of a stored layer, but got "${spec.layer.slice(0, 100)}".`,
      );
    const manifest = {
      ...(spec.metadata as Record<string, Json> | null),
      name: spec.name,
      version: spec.version,
      type: this.#type,
      ...(spec.description === '' ? {} : { description: spec.description }),
      keywords: spec.tags,
      privacy: spec.privacy,
    };
    return (await this.#catalog.publishPackage({ manifestYaml: canonicalJson(manifest), layer: spec.layer })).id;
  }

  /** What was published never changes; an update adds notes beside it. */
  async updateAsset(
    id: AssetId,
    update: { readonly description?: string; readonly metadata?: Json; readonly tags?: readonly string[] },
  ): Promise<void> {
    await this.#lent.assets.annotate((await this.#record(id)).id, NOTES, update as Json);
  }

  async deleteAsset(id: AssetId): Promise<void> {
    await this.#catalog.delete(refOf(await this.#record(id)));
  }

  async queryAssets(query: AssetQuery): Promise<readonly AssetId[]> {
    return (await this.#lent.assets.query({ ...query, type: this.#type })).hits.map((hit) => hit.record.id);
  }

  async getMetadata(id: AssetId): Promise<Json> {
    return (await this.#record(id)).manifest as unknown as Json;
  }

  /** Whether these proofs hold and are about this asset. */
  async validateAsset(id: AssetId, proofs: ProofSet): Promise<boolean> {
    const record = await this.#record(id);
    if (proofs.challenge.operation.subject !== record.digest) return false;
    return (await this.#lent.consensus.verify(proofs)).every((proof) => proof.verdict !== 'invalid');
  }

  async handleOperation(id: AssetId, operation: AssetOperation): Promise<OperationResult> {
    const record = await this.#record(id);
    switch (operation.kind) {
      case 'execute': {
        const limits = operation.timeoutMs === undefined ? {} : { wallMs: operation.timeoutMs };
        const result = await this.#catalog.run(refOf(record), operation.input, { limits });
        return { ok: result.termination === 'exit' && result.exitCode === 0, data: result.output };
      }
      case 'validate': {
        const valid = await this.validateAsset(id, operation.proofs);
        return { ok: valid, data: { valid } };
      }
      case 'deploy':
      case 'transfer':
      case 'share':
      case 'custom':
        throw new HyperMeshError(
          'operation-unsupported',
          `A ${this.#type} does not have the operation ${operation.kind}.`,
          {
            hint: 'Packages can be executed and validated.',
          },
        );
    }
  }

  async #record(id: AssetId): Promise<AssetRecord> {
    const record = await this.#lent.assets.get(id);
    if (record === null || record.type !== this.#type)
      throw new HyperMeshError('asset-not-found', `No ${this.#type} has the id ${id}.`);
    return record;
  }
}

function refOf(record: AssetRecord): string {
  return `${record.name}@${record.version}`;
}
