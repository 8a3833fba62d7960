import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';
import { digest } from './fields.ts';

/**
 * What programs were granted on this machine beyond their box (docs/protocol/grants.md): places on the network, folders of the owner.
 */

/** `host:port`: a name in lower case, an IPv4 address, or an IPv6 address in brackets; and a number. */
export const place = z
  .string()
  .max(270)
  .regex(
    /^(\[[0-9a-f:.]{2,45}\]|(?=[a-z0-9.-]{1,253}:)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9][a-z0-9-]{0,62})*):[1-9]\d{0,4}$/,
    'expected a place such as api.example.org:443',
  )
  .refine((text) => Number(text.slice(text.lastIndexOf(':') + 1)) <= 65_535, 'expected a port up to 65535');

/** Name of a folder inside the box: `/folders/<name>`. */
export const folderName = z.string().regex(/^[a-z][a-z0-9-]{0,31}$/, 'expected a word such as data');
export const folderAccess = z.enum(['read', 'write']);

const absolute = z
  .string()
  .max(4_096)
  .refine((path) => path.startsWith('/') && !path.includes('\0'), 'expected an absolute path');

export const grant = z.strictObject({
  /** The package that it is given to: the digest of its manifest, so one version of it. */
  package: digest,
  /** What runs: the package's layer alone, or with those of its dependencies (docs/protocol/grants.md). */
  program: digest,
  /** For people: `scope/name@version`. */
  ref: z.string().min(3).max(400),
  connect: z.array(place).max(16),
  folders: z
    .array(z.strictObject({ name: folderName, access: folderAccess, path: absolute }))
    .max(8)
    .refine((list) => new Set(list.map(({ name }) => name)).size === list.length, 'expected each name once'),
  grantedAtMs: z.int().nonnegative(),
});
const grantsFile = z.strictObject({ formatVersion: z.literal(1), grants: z.array(grant).max(1_000) });

/** What is missing, as the details of `grant-needed` say it. */
export const neededGrant = z.object({
  package: digest,
  program: digest,
  ref: z.string().min(3).max(400),
  connect: z.array(place).max(16),
  folders: z.array(z.strictObject({ name: folderName, access: folderAccess })).max(8),
});
export type NeededGrant = z.infer<typeof neededGrant>;

export type Grant = z.infer<typeof grant>;

const CHARACTERS_MAX = 8 * 2 ** 20;

export function encodeGrants(grants: readonly Grant[]): string {
  return `${JSON.stringify(grantsFile.parse({ formatVersion: 1, grants }), null, 2)}\n`;
}

/** Errors: `config-invalid`. */
export function decodeGrants(text: string): readonly Grant[] {
  const parsed = text.length > CHARACTERS_MAX ? undefined : grantsFile.safeParse(parseJson(text));
  if (parsed?.success === true) return parsed.data.grants;
  const issue = parsed?.error.issues[0];
  const why = issue === undefined ? 'it is too long' : `${issue.path.join('.') || 'content'}: ${issue.message}`;
  throw new HyperMeshError('config-invalid', `The grants of this home are damaged: ${why}.`, {
    hint: 'Remove HOME/vm/grants.json; packages then ask again.',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
