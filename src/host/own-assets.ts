import { HyperMeshError } from '../base/errors.ts';
import type { AssetDraft, Assets } from '../capabilities/assets.ts';
import { type AssetId, type AssetType, parseAssetId } from '../wire/names.ts';
import { crossingsOf } from './crossings.ts';

/**
 * The asset manager as one extension may use it: it reads everything, but changes only assets of the types it provides,
 * and holds at most `assetsMax` packages of those types.
 */
export function ownAssets(
  assets: Assets,
  {
    extension,
    provides,
    assetsMax,
  }: { readonly extension: string; readonly provides: readonly AssetType[]; readonly assetsMax: number },
): Assets {
  // At least as many as there are: each creation adds one, whether it made a new package or a version. Counted exactly when it matters.
  let heldMost: number | null = null;
  const count = async () => {
    const pages = await Promise.all(provides.map((type) => assets.query({ type, includeYanked: true, limit: 1 })));
    return pages.reduce((sum, page) => sum + page.total, 0);
  };
  const own = (type: AssetType) => {
    if (provides.includes(type)) return;
    throw new HyperMeshError(
      'capability-not-granted',
      `${extension} may change assets of the types that it provides (${provides.join(', ') || 'none'}), not ${type}.`,
      { hint: 'List the type in the provides of the extension.', details: { extension, type } },
    );
  };
  const ownId = (id: AssetId) => own(parseAssetId(id).type);
  return {
    ...bound(assets),
    async create(draft: AssetDraft, options) {
      own(draft.type);
      heldMost ??= await count();
      if (heldMost >= assetsMax) {
        heldMost = await count();
        const isNew = (await assets.versions(draft.name)).length === 0;
        if (isNew && heldMost >= assetsMax) {
          throw new HyperMeshError(
            'quota-exceeded',
            `${extension} holds ${heldMost} packages and may hold ${assetsMax}.`,
            {
              hint: 'Delete some, or raise the limit of the extension.',
              details: { extension },
            },
          );
        }
      }
      heldMost += 1;
      return assets.create(draft, options);
    },
    async setState(id, state, reason) {
      ownId(id);
      return assets.setState(id, state, reason);
    },
    async annotate(id, key, value) {
      ownId(id);
      return assets.annotate(id, key, value);
    },
    async delete(id) {
      ownId(id);
      await assets.delete(id);
    },
  };
}

/** The methods as own members of a plain object, so that some can be replaced. */
function bound(assets: Assets): Assets {
  const methods = assets as unknown as Record<string, (...args: unknown[]) => unknown>;
  const copy = [...crossingsOf('assets').keys()].map((method) => [method, methods[method]!.bind(assets)]);
  return Object.fromEntries(copy) as Assets;
}
