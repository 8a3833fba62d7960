import { z } from 'zod';
import { fromUtf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import { hex32 } from './fields.ts';
import { semverRange, semverVersion } from './names.ts';
import { certificateChain, envelope } from './signature.ts';

/** DSSE payload type of a detached signature over the exact bytes of `extension.json`. */
export const EXTENSION_PAYLOAD_TYPE = 'application/vnd.hypermesh.extension.v1+json';

/** Of one document. */
const DOCUMENT_BYTES_MAX = 2 ** 20;
/** Of one extension. */
export const EXTENSION_FILES_MAX = 1_000;

/** Lower-case words joined by `-` or `.`, at most 64 characters. */
export const extensionId = z
  .string()
  .regex(/^[a-z][a-z0-9]*([.-][a-z0-9]+)*$/, 'expected lower-case words joined by "-" or "."')
  .max(64);

export const assetTypeName = z.string().regex(/^[a-z][a-z0-9-]{0,63}$/, 'expected a lower-case word');

const relativeFile = z
  .string()
  .max(512)
  .regex(/^(?!.*(^|\/)\.\.?(\/|$))[^/\\\0][^\\\0]*$/, 'expected a relative path inside the folder');

const manifestSchema = z
  .strictObject({
    formatVersion: z.literal(1),
    id: extensionId,
    version: semverVersion,
    /** The module that exports `extension`. One of `files`. */
    entry: relativeFile,
    /** Versions of HyperMesh that it works with. */
    hypermesh: semverRange,
    dependencies: z
      .array(z.strictObject({ id: extensionId, range: semverRange, optional: z.boolean().default(false) }))
      .max(64)
      .default([]),
    /** Names of capabilities. Which there are is the host's to know. */
    needs: z.array(z.string().regex(/^[a-z]{1,32}$/)).max(32),
    /** Asset types that it looks after. */
    provides: z.array(assetTypeName).max(64),
    /** Every file of the folder but this one and the signature, with its SHA-256 in hexadecimal. */
    files: z
      .record(relativeFile, hex32)
      .refine((files) => Object.keys(files).length <= EXTENSION_FILES_MAX, `at most ${EXTENSION_FILES_MAX} files`),
  })
  .refine(({ entry, files }) => Object.hasOwn(files, entry), {
    path: ['entry'],
    message: 'the entry is not among the files',
  })
  .refine(({ needs }) => new Set(needs).size === needs.length, { path: ['needs'], message: 'a need is listed twice' });

/** `extension.json` (docs/protocol/extension.md). */
export type ExtensionManifest = z.infer<typeof manifestSchema>;

const signatureSchema = z.strictObject({ envelope, chain: certificateChain });

/** `extension.sig.json`: a detached signature over `extension.json`. */
export type ExtensionSignature = z.infer<typeof signatureSchema>;

/** Errors: `extension-invalid`. */
export function decodeExtensionManifest(bytes: Uint8Array): ExtensionManifest {
  return decode(manifestSchema, bytes, 'extension.json');
}

/** Errors: `extension-invalid`. */
export function decodeExtensionSignature(bytes: Uint8Array): ExtensionSignature {
  return decode(signatureSchema, bytes, 'extension.sig.json');
}

function decode<T>(schema: z.ZodType<T>, bytes: Uint8Array, file: string): T {
  if (bytes.length > DOCUMENT_BYTES_MAX) {
    throw new HyperMeshError(
      'extension-invalid',
      `${file} has ${bytes.length} bytes; at most ${DOCUMENT_BYTES_MAX} are read.`,
    );
  }
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
    {
      hint: 'See docs/protocol/extension.md for the layout.',
    },
  );
}
