/** Adds the asset type `dataset`: a table as CSV, or JSON with a list of objects, checked and described when it is created. */
import {
  type AssetCreation,
  type AssetExtensionHandler,
  type AssetId,
  type AssetOperation,
  type AssetQuery,
  type AssetRecord,
  type Capabilities,
  canonicalJson,
  defineExtension,
  digestOf,
  type ExtensionRequest,
  type ExtensionResponse,
  type ExtensionSnapshot,
  type ExtensionStatus,
  HyperMeshError,
  type HyperMeshExtension,
  isDigest,
  type Json,
  type OperationResult,
  type ProofSet,
  type ValidationReport,
} from 'hypermesh/extension';
import { readTable, type Table } from './table.ts';

type Lent = Pick<Capabilities, 'assets' | 'monitoring' | 'state'>;

const METADATA = {
  id: 'dataset',
  name: 'Datasets',
  version: '1.0.0',
  description: 'Keeps tables (CSV, JSON) as assets and knows their columns and rows.',
  author: 'HyperMesh examples',
  license: 'Apache-2.0',
  category: 'custom',
  hypermesh: '^0.1.0',
  dependencies: [],
  provides: ['dataset'],
} as const;
const NEEDS = ['assets', 'monitoring', 'state'] as const;
const CONTENT_BYTES_MAX = 16 * 2 ** 20;

/** What is remembered of one dataset; its id is the key. */
interface Description {
  readonly format: Table['format'];
  readonly columns: readonly string[];
  readonly rows: number;
  readonly notes: Json;
}

class DatasetHandler implements AssetExtensionHandler {
  readonly #lent: Lent;

  constructor(lent: Lent) {
    this.#lent = lent;
  }

  assetType(): 'dataset' {
    return 'dataset';
  }

  async createAsset(spec: AssetCreation): Promise<AssetId> {
    const { assets, monitoring, state } = this.#lent;
    if (!isDigest(spec.layer)) throw new HyperMeshError('usage', 'Expected the digest of a stored blob as layer.');
    const table = await this.#read(spec.layer);
    const { name, version, description, tags, privacy, layer } = spec;
    const { format, columns, rows } = table;
    // The identity of a dataset is the digest of what it says about itself; its content is one layer.
    const about = canonicalJson({ name, version, description, tags, layer, format, columns, rows: rows.length });
    const { digest } = await assets.put(once(new TextEncoder().encode(about)));
    const size = (await assets.stat(layer))!.size;
    const record = await assets.create({
      digest,
      type: 'dataset',
      name: name as AssetRecord['name'],
      version,
      owner: 'extension/dataset',
      privacy,
      manifest: manifestOf(spec),
      blobs: [digest],
      layers: [layer],
      // Not signed by a publisher, so there is no bundle: the description stands in its place.
      bundle: digest,
      size,
    });
    const remembered: Description = { format, columns, rows: rows.length, notes: spec.metadata };
    await state.write({ [record.id]: remembered as unknown as Json });
    await monitoring.emit({ type: 'dataset.created', data: { id: record.id, rows: rows.length } });
    return record.id;
  }

  async updateAsset(id: AssetId, update: { readonly metadata?: Json }): Promise<void> {
    const { notes, ...rest } = await this.describe(id);
    await this.#lent.state.write({
      [id]: { ...rest, notes: update.metadata === undefined ? notes : update.metadata } as unknown as Json,
    });
  }

  async deleteAsset(id: AssetId): Promise<void> {
    await this.#lent.assets.delete(id);
    await this.#lent.state.write({ [id]: undefined });
  }

  async queryAssets(query: AssetQuery): Promise<readonly AssetId[]> {
    const page = await this.#lent.assets.query({ ...query, type: 'dataset' });
    return page.hits.map((hit) => hit.record.id);
  }

  async getMetadata(id: AssetId): Promise<Json> {
    return (await this.describe(id)) as unknown as Json;
  }

  /** Whether the proofs are about this dataset and its content still is what was described. */
  async validateAsset(id: AssetId, proofs: ProofSet): Promise<boolean> {
    const record = await this.#record(id);
    if (proofs.challenge.operation.subject !== record.digest) return false;
    const { columns, rows } = await this.describe(id);
    const table = await this.#read(record.layers[0]!);
    return table.rows.length === rows && table.columns.join() === columns.join();
  }

  async handleOperation(id: AssetId, operation: AssetOperation): Promise<OperationResult> {
    if (operation.kind === 'validate') {
      const valid = await this.validateAsset(id, operation.proofs);
      return { ok: valid, data: { valid } };
    }
    const count = operation.kind === 'custom' ? (operation.payload as { head?: unknown } | null)?.head : undefined;
    if (typeof count !== 'number' || !Number.isInteger(count) || count < 1 || count > 1_000) {
      throw new HyperMeshError('usage', 'A dataset can be validated, or show its first rows: {"head": 1 to 1000}.');
    }
    const table = await this.#read((await this.#record(id)).layers[0]!);
    return { ok: true, data: { columns: table.columns, rows: table.rows.slice(0, count) } };
  }

  async describe(id: AssetId): Promise<Description> {
    const found = await this.#lent.state.get(id);
    if (found === undefined) throw new HyperMeshError('asset-not-found', `No dataset has the id ${id}.`);
    return found as unknown as Description;
  }

  async #record(id: AssetId): Promise<AssetRecord> {
    const record = await this.#lent.assets.get(id);
    if (record?.type !== 'dataset') throw new HyperMeshError('asset-not-found', `No dataset has the id ${id}.`);
    return record;
  }

  async #read(layer: AssetRecord['digest']): Promise<Table> {
    const info = await this.#lent.assets.stat(layer);
    if (info === null) throw new HyperMeshError('blob-not-found', `The store has no blob ${layer}.`);
    if (info.size > CONTENT_BYTES_MAX) {
      throw new HyperMeshError(
        'limit-exceeded',
        `A dataset holds at most ${CONTENT_BYTES_MAX} bytes, not ${info.size}.`,
      );
    }
    const pieces: Uint8Array[] = [];
    for await (const piece of this.#lent.assets.read(layer)) pieces.push(piece);
    return readTable(await new Blob(pieces as Uint8Array<ArrayBuffer>[]).text());
  }
}

class DatasetExtension implements HyperMeshExtension {
  readonly #lent: Lent;
  readonly #handler: DatasetHandler;

  constructor(lent: Lent) {
    this.#lent = lent;
    this.#handler = new DatasetHandler(lent);
  }

  metadata() {
    return { ...METADATA, needs: NEEDS };
  }

  async initialize(): Promise<void> {}

  async registerAssets() {
    return new Map([['dataset', this.#handler]]);
  }

  async extendManager(): Promise<void> {}

  async handleRequest(request: ExtensionRequest): Promise<ExtensionResponse> {
    if (request.method !== 'describe') {
      const error = { code: 'usage', message: 'The dataset extension knows the method describe.' };
      return { requestId: request.id, ok: false, error };
    }
    const { id } = request.params as { readonly id: AssetId };
    return { requestId: request.id, ok: true, data: await this.#handler.getMetadata(id) };
  }

  async status(): Promise<ExtensionStatus> {
    const health = { kind: 'healthy' } as const;
    return { state: 'running', health, activeOperations: 0, totalRequests: 0, errors: 0, uptimeMs: 0 };
  }

  async validate(): Promise<ValidationReport> {
    return { valid: true, errors: [], warnings: [] };
  }

  async exportState(): Promise<ExtensionSnapshot> {
    const data = Object.fromEntries((await this.#all()).map(({ key, value }) => [key, value]));
    const checksum = digestOf(new TextEncoder().encode(canonicalJson(data)));
    return { version: 1, extension: METADATA.id, data, checksum, exportedAtMs: Date.now() };
  }

  async importState({ version, extension, data, checksum }: ExtensionSnapshot): Promise<void> {
    if (version > 1) throw new HyperMeshError('state-too-new', `Snapshot version ${version}; this extension knows 1.`);
    if (extension !== METADATA.id || checksum !== digestOf(new TextEncoder().encode(canonicalJson(data)))) {
      throw new HyperMeshError('state-invalid', 'The snapshot does not have the checksum that it states.');
    }
    const stale = Object.fromEntries((await this.#all()).map(({ key }) => [key, undefined]));
    await this.#lent.state.write({ ...stale, ...(data as Record<string, Json>) });
  }

  async shutdown(): Promise<void> {}

  async #all() {
    const all: { readonly key: string; readonly value: Json }[] = [];
    for (let page = await this.#lent.state.list('dataset/'); page.length > 0; ) {
      all.push(...page);
      page = await this.#lent.state.list('dataset/', { after: page.at(-1)!.key });
    }
    return all;
  }
}

function manifestOf({ name, version, description, tags, privacy }: AssetCreation): AssetRecord['manifest'] {
  return {
    name: name as AssetRecord['name'],
    version,
    type: 'package',
    ...(description === '' ? {} : { description }),
    keywords: [...tags],
    authors: [],
    dependencies: {},
    optionalDependencies: {},
    peerDependencies: {},
    devDependencies: {},
    resources: {},
    sandbox: { network: 'none', environment: [] },
    privacy,
    exclude: [],
  };
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array, void> {
  yield bytes;
}

export const extension = defineExtension({
  metadata: METADATA,
  needs: NEEDS,
  create: (lent) => new DatasetExtension(lent),
});
