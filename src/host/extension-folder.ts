import { createHash } from 'node:crypto';
import { lstat, readdir, readFile, realpath } from 'node:fs/promises';
import { registerHooks } from 'node:module';
import { join, sep } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { equal, utf8 } from '../base/bytes.ts';
import { digestHex, digestOf } from '../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { siblingModule } from '../base/module.ts';
import { CAPABILITY_NAMES, type CapabilityName, type ExtensionDefinition } from '../capabilities/extension.ts';
import type { Trust } from '../capabilities/trust.ts';
import {
  decodeExtensionManifest,
  decodeExtensionSignature,
  EXTENSION_FILES_MAX,
  EXTENSION_PAYLOAD_TYPE,
  type ExtensionManifest,
} from '../wire/extension.ts';

/** Of all files of a folder; an extension is a program, not a data set. */
const BYTES_MAX = 16 * 2 ** 20;
const MANIFEST = 'extension.json';
const SIGNATURE = 'extension.sig.json';
/** `extension.json`, with the needs that this host knows. */
export type CheckedManifest = Omit<ExtensionManifest, 'needs'> & { readonly needs: readonly CapabilityName[] };

/** A folder whose every file is the one that its manifest names. */
export interface ExtensionFolder {
  /** Absolute, without links. */
  readonly path: string;
  readonly manifest: CheckedManifest;
  /** Key id of the publisher; null when the folder is not signed. */
  readonly signer: string | null;
}

export interface SignaturePolicy {
  readonly requireSignature: boolean;
  /** Key ids of the publishers whose word counts. */
  readonly trustedPublishers: readonly string[];
}

/**
 * Reads and checks the folder of an extension without running anything of it.
 * Errors: `extension-not-found`, `extension-invalid`, `limit-exceeded`, those of `trust.verify`.
 */
export async function readExtensionFolder(
  path: string,
  policy: SignaturePolicy,
  trust: Pick<Trust, 'verify'> | undefined,
): Promise<ExtensionFolder> {
  const folder = await realpath(path).catch(() => {
    throw new HyperMeshError('extension-not-found', `There is no extension folder at ${path}.`);
  });
  try {
    const bytes = await readLimited(join(folder, MANIFEST));
    if (bytes === null) {
      throw new HyperMeshError('extension-not-found', `${folder} has no ${MANIFEST}, so it is not an extension.`);
    }
    const manifest = withKnownNeeds(decodeExtensionManifest(bytes));
    await checkFiles(folder, manifest);
    return { path: folder, manifest, signer: await checkSignature(folder, manifest, bytes, policy, trust) };
  } catch (error) {
    throw storageError(error, `reading the extension in ${folder}`);
  }
}

/** The extension folders right below each of `directories`; folders without a manifest are passed over. */
export async function discoverFolders(directories: readonly string[]): Promise<readonly string[]> {
  const found: string[] = [];
  for (const directory of directories) {
    const entries = await readdir(directory, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return [];
      throw storageError(error, `looking for extensions in ${directory}`);
    });
    for (const entry of entries.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
      if (!entry.isDirectory()) continue;
      const manifest = await lstat(join(directory, entry.name, MANIFEST)).catch(() => null);
      if (manifest !== null) found.push(join(directory, entry.name));
    }
  }
  return found;
}

/** Folders whose code was imported, by the mark that the URL of each of their modules carries. */
const admitted = new Map<string, ExtensionFolder>();
const MARK = '?extension=';

/**
 * Imports the entry into this process and returns its definition. Each module of it is held against its hash once more as it is loaded, and
 * may import only files of the folder, Node's own modules and `hypermesh/extension`. Errors: `extension-invalid`.
 */
export async function importDefinition(folder: ExtensionFolder): Promise<ExtensionDefinition> {
  if (admitted.size === 0) hookImports();
  const { id, entry, files } = folder.manifest;
  // Other files give another mark, so a folder that changed is not answered from the cache of modules.
  const mark = digestHex(digestOf(utf8(canonicalJson([folder.path, files]))));
  admitted.set(mark, folder);
  let module: { extension?: unknown };
  try {
    module = (await import(pathToFileURL(join(folder.path, entry)).href + MARK + mark)) as { extension?: unknown };
  } catch (error) {
    if (isCoded(error)) throw error;
    throw new HyperMeshError('extension-invalid', `The entry ${entry} of ${id} cannot be loaded.`, { cause: error });
  }
  const definition = module.extension as ExtensionDefinition | undefined;
  if (typeof definition?.create !== 'function' || typeof definition.metadata !== 'object') {
    throw invalid(id, `its entry ${entry} does not export \`extension\`, made by defineExtension()`);
  }
  return definition;
}

function hookImports(): void {
  const face = siblingModule(import.meta.url, '../capabilities/index').href;
  const markOf = (url: string | undefined) => url?.split(MARK)[1];
  registerHooks({
    resolve(specifier, context, next) {
      if (specifier === 'hypermesh/extension') return { url: face, shortCircuit: true };
      const resolved = next(specifier, context);
      const mark = markOf(context.parentURL);
      if (mark === undefined || resolved.url.startsWith('node:')) return resolved;
      return { ...resolved, url: resolved.url + MARK + mark };
    },
    load(url, context, next) {
      const folder = admitted.get(markOf(url) ?? '');
      if (folder === undefined) return next(url, context);
      const path = fileURLToPath(url.split(MARK)[0]!);
      const name = path.slice(folder.path.length + 1).replaceAll(sep, '/');
      const expected = path.startsWith(folder.path + sep) ? folder.manifest.files[name] : undefined;
      const { id } = folder.manifest;
      if (expected === undefined) throw invalid(id, `it imports ${path}, which is none of its files`);
      const loaded = next(url, context);
      const { source } = loaded;
      if (source === undefined || source === null)
        throw invalid(id, `${name} is no module of JavaScript or TypeScript`);
      const bytes = typeof source === 'string' ? utf8(source) : new Uint8Array(source as Uint8Array);
      if (digestHex(digestOf(bytes)) !== expected) throw invalid(id, `${name} was changed after it was checked`);
      return loaded;
    },
  });
}

async function checkFiles(folder: string, manifest: CheckedManifest): Promise<void> {
  const missing = new Set(Object.keys(manifest.files));
  let bytesLeft = BYTES_MAX;
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  if (entries.length > EXTENSION_FILES_MAX) {
    throw new HyperMeshError('limit-exceeded', `${manifest.id} has more than ${EXTENSION_FILES_MAX} files.`);
  }
  for (const entry of entries) {
    if (entry.isDirectory()) continue;
    const name = join(entry.parentPath, entry.name)
      .slice(folder.length + 1)
      .replaceAll(sep, '/');
    if (name === MANIFEST || name === SIGNATURE) continue;
    if (!entry.isFile()) throw invalid(manifest.id, `${name} is a link or a device`);
    const expected = manifest.files[name];
    if (expected === undefined) throw invalid(manifest.id, `the file ${name} is not listed in ${MANIFEST}`);
    const content = await readLimited(join(folder, name));
    bytesLeft -= content?.length ?? 0;
    if (bytesLeft < 0) throw new HyperMeshError('limit-exceeded', `${manifest.id} is larger than ${BYTES_MAX} bytes.`);
    const actual = createHash('sha256')
      .update(content ?? '')
      .digest('hex');
    if (actual !== expected)
      throw invalid(manifest.id, `${name} has SHA-256 ${actual}, but ${MANIFEST} says ${expected}`);
    missing.delete(name);
  }
  if (missing.size > 0) throw invalid(manifest.id, `the file ${[...missing][0]} is listed but not there`);
}

async function checkSignature(
  folder: string,
  manifest: CheckedManifest,
  bytes: Uint8Array,
  policy: SignaturePolicy,
  trust: Pick<Trust, 'verify'> | undefined,
): Promise<string | null> {
  const document = await readLimited(join(folder, SIGNATURE));
  if (document === null) {
    if (!policy.requireSignature) return null;
    throw new HyperMeshError(
      'extension-invalid',
      `${manifest.id} is not signed, and this node loads signed extensions only.`,
      {
        hint: `Ask its publisher for ${SIGNATURE}, or allow unsigned extensions in the configuration.`,
      },
    );
  }
  const { envelope, chain } = decodeExtensionSignature(document);
  if (envelope.payloadType !== EXTENSION_PAYLOAD_TYPE) throw invalid(manifest.id, `${SIGNATURE} signs something else`);
  if (trust === undefined) throw invalid(manifest.id, 'this node cannot check signatures');
  const verified = await trust.verify(envelope, chain, { role: 'publisher' });
  if (!equal(verified.payload, bytes)) throw invalid(manifest.id, `${SIGNATURE} signs another ${MANIFEST}`);
  if (policy.requireSignature && !policy.trustedPublishers.includes(verified.signer)) {
    throw new HyperMeshError(
      'extension-invalid',
      `${manifest.id} is signed by ${verified.signer}, who is not among the trusted publishers.`,
      {
        hint: 'Add that key id to the trusted publishers if you know whose it is.',
      },
    );
  }
  return verified.signer;
}

/** Null when there is no such file. */
async function readLimited(path: string): Promise<Uint8Array | null> {
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (found === null) return null;
  if (!found.isFile() || found.size > BYTES_MAX) {
    throw new HyperMeshError('extension-invalid', `${path} must be a file of at most ${BYTES_MAX} bytes.`);
  }
  return new Uint8Array(await readFile(path));
}

function withKnownNeeds(manifest: ExtensionManifest): CheckedManifest {
  const needs = manifest.needs.map((need) => {
    const known = CAPABILITY_NAMES.find((name) => name === need);
    if (known === undefined)
      throw invalid(manifest.id, `it needs ${need}, and there are ${CAPABILITY_NAMES.join(', ')}`);
    return known;
  });
  return { ...manifest, needs };
}

function invalid(id: string, why: string): HyperMeshError {
  return new HyperMeshError('extension-invalid', `${id} is not acceptable: ${why}.`);
}
