import semver from 'semver';
import { HyperMeshError } from '../base/errors.ts';
import type { AssetRecord, Assets } from '../capabilities/assets.ts';
import { parseRef } from '../wire/names.ts';

/** The newest version in the range that is not yanked; an exact version may be yanked. Errors: `package-not-found`, `version-not-found`. */
export async function newestInRange(assets: Pick<Assets, 'versions' | 'query'>, ref: string): Promise<AssetRecord> {
  const { name, range } = parseRef(ref);
  const records = await assets.versions(name);
  if (records.length === 0)
    throw new HyperMeshError('package-not-found', `No package is called ${name}.`, {
      hint: await nearest(assets, name),
    });
  const exact = semver.valid(range);
  const usable = records.filter((record) => record.state !== 'yanked' || record.version === exact);
  const found =
    usable.find((record) => semver.satisfies(record.version, range)) ??
    // A package that only has pre-releases is still found by its bare name.
    (range === '*' ? usable[0] : undefined);
  if (found !== undefined) return found;
  throw new HyperMeshError('version-not-found', `No version of ${name} satisfies ${range}.`, {
    hint: `There is: ${records
      .slice(0, 5)
      .map((record) => `${record.version}${record.state === 'yanked' ? ' (yanked)' : ''}`)
      .join(', ')}`,
  });
}

/** A hint for who mistyped a name: what a search, which forgives small errors, finds for it. */
export async function nearest(assets: Pick<Assets, 'query'>, name: string): Promise<string> {
  const { hits } = await assets.query({ text: name.slice(name.indexOf('/') + 1), limit: 3 });
  if (hits.length === 0) return 'Check the spelling with `hypermesh search`.';
  return `Did you mean ${hits.map(({ record }) => record.name).join(' or ')}?`;
}
