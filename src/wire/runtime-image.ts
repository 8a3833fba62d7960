import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';
import { digest } from './fields.ts';

/**
 * `image.json` beside the files of a language that was added to a node (docs/protocol/runtime-image.md): what they are, and the packages
 * of the distribution that they came from, by digest.
 */
const word = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,127}$/);
const runtimeImage = z.strictObject({
  formatVersion: z.literal(1),
  runtime: z.enum(['julia', 'python', 'vm']),
  /** As the distribution names it, for example `1.5.3+dfsg-3`. */
  version: word,
  architecture: word,
  /** Release of the distribution, for example `bullseye`. */
  suite: word,
  /** Of paths, modes and contents of all files: the same packages give the same digest on every machine. */
  digest,
  files: z.int().positive(),
  bytes: z.int().positive(),
  packages: z
    .array(z.strictObject({ name: word, version: word, architecture: word, digest }))
    .min(1)
    .max(1_000),
  addedAtMs: z.int().nonnegative(),
});

export type RuntimeImage = z.infer<typeof runtimeImage>;

const CHARACTERS_MAX = 512 * 1024;

export function encodeRuntimeImage(image: RuntimeImage): string {
  return `${JSON.stringify(runtimeImage.parse(image), null, 2)}\n`;
}

/** Errors: `config-invalid`. */
export function decodeRuntimeImage(text: string): RuntimeImage {
  const parsed = text.length > CHARACTERS_MAX ? undefined : runtimeImage.safeParse(parseJson(text));
  if (parsed?.success === true) return parsed.data;
  const issue = parsed?.error.issues[0];
  const why = issue === undefined ? 'it is too long' : `${issue.path.join('.') || 'content'}: ${issue.message}`;
  throw new HyperMeshError('config-invalid', `The image.json of a runtime is damaged: ${why}.`, {
    hint: 'Remove the runtime and add it again: for Julia `hypermesh runtime remove julia`, `hypermesh runtime add julia`.',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
