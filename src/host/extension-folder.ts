import { createHash } from 'node:crypto';
import { lstat, readdir, readFile, realpath } from 'node:fs/promises';
import { registerHooks } from 'node:module';
import { join, sep } from 'node:path';
import { pathToFileURL } from 'node:url';
import { z } from 'zod';
import { equal, fromUtf8 } from '../base/bytes.ts';
import { HyperMeshError, isCoded, storageError } from '../base/errors.ts';
import { siblingModule } from '../base/module.ts';
import { CAPABILITY_NAMES, type ExtensionDefinition } from '../capabilities/extension.ts';
import type { Trust } from '../capabilities/trust.ts';
import { semverRange, semverVersion } from '../wire/names.ts';

/** Limits of a folder; an extension is a program, not a data set. */
const FILES_MAX = 1_000;
const BYTES_MAX = 16 * 2 ** 20;
const MANIFEST = 'extension.json';
const SIGNATURE = 'extension.sig.json';
/** DSSE payload type of a detached signature over the exact bytes of `extension.json`. */
export const EXTENSION_PAYLOAD_TYPE = 'application/vnd.hypermesh.extension.v1+json';

export const extensionId = z
  .string()
  .regex(/^[a-z][a-z0-9]*([.-][a-z0-9]+)*$/, 'expected lower-case words joined by "-" or "."')
  .max(64);
const relativeFile = z
  .string()
  .max(512)
  .regex(/^(?!.*(^|\/)\.\.?(\/|$))[^/\\\0][^\\\0]*$/, 'expected a relative path inside the folder');

/** `extension.json` (docs/protocol/extension.md). */
const manifestSchema = z.strictObject({
  formatVersion: z.literal(1),
  id: extensionId,
  version: semverVersion,
  /** The module that exports `extension`, an ExtensionDefinition. */
  entry: relativeFile,
  hypermesh: semverRange,
  dependencies: z
    .array(z.strictObject({ id: extensionId, range: semverRange, optional: z.boolean().default(false) }))
    .max(64)
    .default([]),
  needs: z.array(z.enum(CAPABILITY_NAMES)).max(CAPABILITY_NAMES.length),
  provides: z.array(z.string().regex(/^[a-z][a-z0-9-]{0,63}$/)).max(64),
  /** Every file of the folder but this one and the signature, with its SHA-256 in hexadecimal. */
  files: z.record(relativeFile, z.string().regex(/^[0-9a-f]{64}$/)),
});

const signatureSchema = z.strictObject({
  envelope: z.strictObject({
    payloadType: z.literal(EXTENSION_PAYLOAD_TYPE),
    payload: z.base64().max(2 ** 20),
    signatures: z
      .array(
        z.strictObject({
          keyid: z.string().max(128),
          alg: z.enum(['falcon1024-r3-padded', 'ed25519']),
          sig: z.base64().max(4_096),
        }),
      )
      .length(2),
  }),
  chain: z.array(z.base64().max(65_536)).min(1).max(8),
});

export type ExtensionManifest = z.infer<typeof manifestSchema>;

/** A folder whose every file is the one that its manifest names. */
export interface ExtensionFolder {
  /** Absolute, without links. */
  readonly path: string;
  readonly manifest: ExtensionManifest;
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
 * Who can write the folder afterwards can still change it: keep it writable for the operator only.
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
    const manifest = parse(manifestSchema, bytes, MANIFEST);
    if (!(manifest.entry in manifest.files))
      throw invalid(manifest.id, `its entry ${manifest.entry} is not among its files`);
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

let hooked = false;

/** Imports the entry into this process and returns its definition. The module may import nothing but its own files and `hypermesh/extension`. */
export async function importDefinition(folder: ExtensionFolder): Promise<ExtensionDefinition> {
  if (!hooked) {
    const face = siblingModule(import.meta.url, '../capabilities/index').href;
    registerHooks({
      resolve: (specifier, context, next) =>
        specifier === 'hypermesh/extension' ? { url: face, shortCircuit: true } : next(specifier, context),
    });
    hooked = true;
  }
  const { id, entry } = folder.manifest;
  let module: { extension?: unknown };
  try {
    module = (await import(pathToFileURL(join(folder.path, entry)).href)) as { extension?: unknown };
  } catch (error) {
    if (isCoded(error)) throw error;
    throw new HyperMeshError(
      'extension-invalid',
      `The entry ${entry} of ${id} cannot be loaded: ${(error as Error).message}`,
      {
        cause: error,
      },
    );
  }
  const definition = module.extension as ExtensionDefinition | undefined;
  if (typeof definition?.create !== 'function' || typeof definition.metadata !== 'object') {
    throw invalid(id, `its entry ${entry} does not export \`extension\`, made by defineExtension()`);
  }
  return definition;
}

async function checkFiles(folder: string, manifest: ExtensionManifest): Promise<void> {
  const missing = new Set(Object.keys(manifest.files));
  let bytesLeft = BYTES_MAX;
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  if (entries.length > FILES_MAX) {
    throw new HyperMeshError('limit-exceeded', `${manifest.id} has more than ${FILES_MAX} files.`);
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
  manifest: ExtensionManifest,
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
  const { envelope, chain } = parse(signatureSchema, document, SIGNATURE);
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

function parse<T>(schema: z.ZodType<T>, bytes: Uint8Array, file: string): T {
  let value: unknown;
  try {
    value = JSON.parse(fromUtf8(bytes));
  } catch (error) {
    throw new HyperMeshError('extension-invalid', `${file} is not JSON: ${(error as Error).message}`, { cause: error });
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  throw new HyperMeshError(
    'extension-invalid',
    `${file}: ${issue.path.join('.') || 'the document'}: ${issue.message}.`,
  );
}

function invalid(id: string, why: string): HyperMeshError {
  return new HyperMeshError('extension-invalid', `${id} is not acceptable: ${why}.`);
}
