import { z } from 'zod';
import { fromUtf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import { digest } from './fields.ts';

/**
 * The documents of a container image that the `container` runtime reads (docs/protocol/image.md): those of the OCI image specification 1.1,
 * and the `manifest.json` of `docker save`. Members that are not used are passed over, as these formats ask for.
 */

/** Largest document. */
export const IMAGE_DOCUMENT_BYTES_MAX = 4 * 2 ** 20;
const LAYERS_MAX = 128;
const WORDS_MAX = 1_024;

const descriptor = z.object({
  mediaType: z.string().max(255).default(''),
  digest,
  size: z.int().nonnegative(),
});
/** Null and absent are the same. */
const words = z
  .array(z.string().max(65_536))
  .max(WORDS_MAX)
  .nullish()
  .transform((list) => list ?? []);
const line = z
  .string()
  .max(4_096)
  .nullish()
  .transform((text) => text ?? '');

const index = z.object({
  manifests: z
    .array(
      descriptor.extend({
        platform: z.object({ architecture: z.string(), os: z.string(), variant: z.string().optional() }).optional(),
      }),
    )
    .max(256),
});
const manifest = z.object({ config: descriptor, layers: z.array(descriptor).min(1).max(LAYERS_MAX) });
const config = z.object({
  architecture: z.string().max(64).default(''),
  os: z.string().max(64).default('linux'),
  config: z
    .object({
      Entrypoint: words,
      Cmd: words,
      Env: words.refine((list) => list.every((one) => /^[^=\0]+=[^\0]*$/.test(one)), 'expected NAME=value'),
      WorkingDir: line,
      User: line,
    })
    .nullish()
    .transform((given) => given ?? { Entrypoint: [], Cmd: [], Env: [], WorkingDir: '', User: '' }),
  rootfs: z.object({ diff_ids: z.array(digest).min(1).max(LAYERS_MAX) }),
});
const archive = z
  .array(
    z.object({
      Config: z.string().min(1).max(1_024),
      Layers: z.array(z.string().min(1).max(1_024)).min(1).max(LAYERS_MAX),
    }),
  )
  .length(1, 'expected one image; save only one');

export type ImageIndex = z.infer<typeof index>;
export type ImageManifest = z.infer<typeof manifest>;
export type ImageConfig = z.infer<typeof config>;
export type ImageArchive = z.infer<typeof archive>[number];

/** All errors: `program-invalid`. */
export function decodeImageIndex(bytes: Uint8Array): ImageIndex {
  return decode(index, bytes, 'index');
}

export function decodeImageManifest(bytes: Uint8Array): ImageManifest {
  return decode(manifest, bytes, 'manifest');
}

export function decodeImageConfig(bytes: Uint8Array): ImageConfig {
  return decode(config, bytes, 'config');
}

/** The `manifest.json` of `docker save`. */
export function decodeImageArchive(bytes: Uint8Array): ImageArchive {
  return decode(archive, bytes, 'manifest.json')[0]!;
}

function decode<S extends z.ZodType>(schema: S, bytes: Uint8Array, what: string): z.infer<S> {
  const parsed = schema.safeParse(parseJson(bytes));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  throw new HyperMeshError(
    'program-invalid',
    `The ${what} of the image is malformed: ${issue.path.join('.') || 'content'}: ${issue.message}.`,
    { hint: 'Make the image again; docs/protocol/image.md says what is read of it.' },
  );
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(fromUtf8(bytes));
  } catch {
    return undefined;
  }
}
