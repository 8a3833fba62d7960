import semver from 'semver';
import { z } from 'zod';
import { type Digest, digestHex } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { digest } from './fields.ts';
import { type AssetId, type PackageName, packageName, semverRange, semverVersion } from './names.ts';
import { LAYERS_MAX } from './package.ts';

/** Limits of a lock file (docs/protocol/lock.md). */
export const LOCK_LIMITS = { bytesMax: 16 * 2 ** 20, packagesMax: 10_000, requestedMax: 1_000 } as const;

/** One package of an installation, as the lock file lists it. */
export interface LockedPackage {
  readonly name: PackageName;
  readonly version: string;
  readonly id: AssetId;
  readonly digest: Digest;
  readonly layers: readonly Digest[];
  /** Names of the packages it depends on (required, chosen optional, peer), all of them in the same lock. Sorted. */
  readonly dependencies: readonly PackageName[];
}

/** The content of `hypermesh.lock` (docs/protocol/lock.md). */
export interface Lock {
  readonly formatVersion: 1;
  /** What the user asked for: name -> range. */
  readonly requested: Readonly<Record<string, string>>;
  /** Sorted by name; one version of each name. */
  readonly packages: readonly LockedPackage[];
}

const lockedPackage = z.strictObject({
  name: packageName,
  version: semverVersion,
  id: z.custom<AssetId>(
    (value) => typeof value === 'string' && /^[a-z][a-z0-9-]{0,63}\/[0-9a-f]{64}$/.test(value),
    'expected an asset id like "package/<64 hex digits>"',
  ),
  digest,
  layers: z.array(digest).min(1).max(LAYERS_MAX),
  dependencies: z.array(packageName).max(2_048),
});

const lock = z
  .strictObject({
    formatVersion: z.literal(1),
    requested: z.record(packageName, semverRange),
    packages: z.array(lockedPackage).max(LOCK_LIMITS.packagesMax),
  })
  .superRefine((value, context) => {
    const issue = (path: (string | number)[], message: string) => context.addIssue({ code: 'custom', path, message });
    if (Object.keys(value.requested).length > LOCK_LIMITS.requestedMax) {
      issue(['requested'], `at most ${LOCK_LIMITS.requestedMax} requested packages`);
      return;
    }
    const byName = new Map<string, LockedPackage>();
    for (const [index, entry] of value.packages.entries()) {
      if (byName.has(entry.name)) issue(['packages', index, 'name'], `${entry.name} is listed twice`);
      if (!entry.id.endsWith(`/${digestHex(entry.digest)}`))
        issue(['packages', index, 'id'], `the id of ${entry.name} does not end in its digest`);
      byName.set(entry.name, entry);
    }
    for (const [index, entry] of value.packages.entries()) {
      for (const name of entry.dependencies) {
        if (!byName.has(name))
          issue(['packages', index, 'dependencies'], `${entry.name} depends on ${name}, which is not in the lock`);
      }
      if (new Set(entry.dependencies).size < entry.dependencies.length)
        issue(['packages', index, 'dependencies'], `${entry.name} lists a dependency twice`);
    }
    for (const [name, range] of Object.entries(value.requested)) {
      const chosen = byName.get(name);
      if (chosen === undefined) issue(['requested', name], `${name} is requested but not among the packages`);
      else if (!semver.satisfies(chosen.version, range))
        issue(['requested', name], `${name}@${chosen.version} does not satisfy the requested range ${range}`);
    }
  });

/**
 * The lock as text: keys and packages sorted, two spaces of indentation, one newline at the end. Equal locks give equal bytes.
 * Errors: `lock-invalid`.
 */
export function encodeLock(value: Lock): string {
  const checked = checkLock(value);
  return `${JSON.stringify(JSON.parse(canonicalJson(checked)), null, 2)}\n`;
}

/** Accepts any white space and order; what is inside must hold together. Errors: `lock-invalid`. */
export function decodeLock(text: string): Lock {
  if (text.length > LOCK_LIMITS.bytesMax) {
    throw refusal(`it has more than ${LOCK_LIMITS.bytesMax / 2 ** 20} MiB`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refusal(`it is not JSON: ${(error as SyntaxError).message.slice(0, 200)}`);
  }
  const version = (value as { formatVersion?: unknown } | null)?.formatVersion;
  if (typeof version === 'number' && version > 1) {
    throw refusal(`it has format version ${version}, this version of HyperMesh reads 1`);
  }
  return checkLock(value);
}

/** The same checks on a value that is already parsed; packages and dependencies come back sorted. Errors: `lock-invalid`. */
export function checkLock(value: unknown): Lock {
  const parsed = lock.safeParse(value);
  if (!parsed.success) {
    const problems = parsed.error.issues.slice(0, 8).map(({ path, message }) => {
      return `${path.join('.') || 'the document'}: ${message}`;
    });
    throw refusal(problems.join('; '), problems);
  }
  return {
    formatVersion: 1,
    requested: parsed.data.requested,
    packages: parsed.data.packages
      .map((entry) => ({ ...entry, dependencies: entry.dependencies.toSorted() }))
      .sort((a, b) => (a.name < b.name ? -1 : 1)),
  };
}

function refusal(why: string, problems: readonly string[] = [why]): HyperMeshError {
  return new HyperMeshError('lock-invalid', `Expected a lock file of version 1, but ${why}.`, {
    hint: 'Restore hypermesh.lock from version control, or delete it and install again.',
    details: { problems },
  });
}
