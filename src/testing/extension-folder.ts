import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

export interface ExtensionSource {
  readonly id: string;
  readonly version?: string;
  readonly hypermesh?: string;
  readonly needs?: readonly string[];
  readonly provides?: readonly string[];
  readonly dependencies?: readonly { readonly id: string; readonly range: string; readonly optional: boolean }[];
  /** Members of the extension beyond the smallest that loads, as JavaScript: `async handleRequest(request) { … }`. `lent` is in scope. */
  readonly members?: string;
  /** Statements before the definition. */
  readonly before?: string;
}

/** Writes the folder of a small extension below `directory`, with its `extension.json`, and returns its path. */
export async function writeExtension(directory: string, source: ExtensionSource): Promise<string> {
  const { id, version = '1.0.0', hypermesh = '*', needs = [], provides = [], dependencies = [] } = source;
  const metadata = {
    id,
    name: id,
    version,
    description: '',
    author: '',
    license: 'Apache-2.0',
    category: 'custom',
    hypermesh,
    dependencies,
    provides,
  };
  const code = `import { defineExtension, HyperMeshError } from 'hypermesh/extension';
${source.before ?? ''}
const metadata = ${JSON.stringify(metadata)};
const needs = ${JSON.stringify(needs)};
export const extension = defineExtension({
  metadata,
  needs,
  create: (lent) => ({
    metadata: () => ({ ...metadata, needs }),
    async initialize() {},
    async registerAssets() { return new Map(); },
    async extendManager() {},
    async handleRequest(request) { return { requestId: request.id, ok: true, data: request.params }; },
    async status() {
      return { state: 'running', health: { kind: 'healthy' }, activeOperations: 0, totalRequests: 0, errors: 0, uptimeMs: 0 };
    },
    async validate() { return { valid: true, errors: [], warnings: [] }; },
    async exportState() { return { version: 1, extension: metadata.id, data: null, checksum: '', exportedAtMs: 0 }; },
    async importState() {},
    async shutdown() {},
    ${source.members ?? ''}
  }),
});
`;
  const folder = join(directory, id);
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, 'index.mjs'), code);
  await writeManifest(folder, { id, version, hypermesh, needs, provides, dependencies }, { 'index.mjs': code });
  return folder;
}

/** Writes `extension.json` for these files, the first of them the entry. */
async function writeManifest(folder: string, about: object, files: Readonly<Record<string, string>>): Promise<void> {
  const hashes = Object.entries(files).map(([name, text]) => [name, createHash('sha256').update(text).digest('hex')]);
  const manifest = { formatVersion: 1, ...about, entry: Object.keys(files)[0], files: Object.fromEntries(hashes) };
  await writeFile(join(folder, 'extension.json'), JSON.stringify(manifest, null, 2));
}
