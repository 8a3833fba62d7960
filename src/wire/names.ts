import semver from 'semver';
import { z } from 'zod';
import { type Digest, digestHex } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';

/** `scope/name`: two lower-case words of letters, digits, `.`, `_`, `-`, each starting with a letter or digit, each at most 64 characters. */
export type PackageName = `${string}/${string}`;

const WORD = '[a-z0-9][a-z0-9._-]{0,63}';
const NAME = new RegExp(`^${WORD}/${WORD}$`);

const name = z.string().regex(NAME, 'expected scope/name in lower case, for example "ada/greeter"');
/** The cast: the expression admits nothing but that shape (`z.custom` could say so itself, but has no JSON Schema). */
export const packageName = name as unknown as z.ZodType<PackageName, PackageName>;

/** A version of Semantic Versioning 2.0.0 in canonical form (no leading `v`), at most 256 characters. */
export const semverVersion = z
  .string()
  .max(256)
  .refine(
    (value) => semver.valid(value) === value.split('+')[0] && !/^[v=\s]/.test(value),
    'expected a semantic version, for example "1.2.3"',
  );

export const semverRange = z
  .string()
  .max(256)
  .refine((value) => semver.validRange(value) !== null, 'expected a semantic version range, for example "^1.2.0"');

/** What a person types: `scope/name`, `scope/name@range`. */
export interface PackageRef {
  readonly name: PackageName;
  /** A semver range or an exact version; `*` when none was given. */
  readonly range: string;
}

/** Errors: `usage`. */
export function parseRef(text: string): PackageRef {
  const at = text.indexOf('@');
  const name = at < 0 ? text : text.slice(0, at);
  const range = at < 0 ? '*' : text.slice(at + 1);
  if (!NAME.test(name) || semver.validRange(range) === null || range === '' || range.length > 256) {
    throw new HyperMeshError('usage', `Expected scope/name or scope/name@range, but got "${text.slice(0, 200)}".`, {
      hint: 'Example: hypermesh install ada/greeter@^1.2.0',
    });
  }
  return { name: name as PackageName, range };
}

/** The kinds of package that `catalog.yaml` can declare. Extensions add asset types of their own beside them. */
export const packageType = z.enum(['library', 'package', 'template', 'container', 'virtual-machine']);
export type PackageType = z.infer<typeof packageType>;

/** A package type, or the name of a type that an extension registered. */
export type AssetType = PackageType | (string & {});

/** `<type>/<64 hex digits>`: the type and the SHA-256 of the OCI manifest. Content-derived; survives a text round trip. */
export type AssetId = `${string}/${string}`;

export function assetId(type: AssetType, manifest: Digest): AssetId {
  return `${type}/${digestHex(manifest)}`;
}

const ASSET_ID = /^([a-z][a-z0-9-]{0,63})\/([0-9a-f]{64})$/;

export function isAssetId(text: unknown): text is AssetId {
  return typeof text === 'string' && ASSET_ID.test(text);
}

/** Errors: `usage`. */
export function parseAssetId(text: string): { type: AssetType; digest: Digest } {
  const match = ASSET_ID.exec(text);
  if (!match)
    throw new HyperMeshError(
      'usage',
      `Expected an asset id like "package/<64 hex digits>", but got "${text.slice(0, 200)}".`,
    );
  return { type: match[1]!, digest: `sha256:${match[2]!}` };
}

/** Who may reach an asset, from nobody outside to everybody (research: privacy ladder). Order matters: lower is more private. */
export const privacyLevel = z.enum(['private', 'private-network', 'p2p', 'public-network', 'full-public']);
export type PrivacyLevel = z.infer<typeof privacyLevel>;
