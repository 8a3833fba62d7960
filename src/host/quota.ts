import { HyperMeshError } from '../base/errors.ts';
import type { AssetDraft, Assets } from '../capabilities/assets.ts';
import type { Capabilities, CapabilityName } from '../capabilities/extension.ts';
import type { Resources } from '../capabilities/resources.ts';
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
  // Counted when first needed, then kept; nobody else creates assets of these types.
  let held: Promise<number> | null = null;
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
    ...bound('assets', assets),
    async create(draft: AssetDraft) {
      own(draft.type);
      const isNew = (await assets.versions(draft.name)).length === 0;
      if (!isNew) return assets.create(draft);
      held ??= count().catch((error: unknown) => {
        held = null;
        throw error;
      });
      const before = await held;
      if (before >= assetsMax) {
        throw new HyperMeshError('quota-exceeded', `${extension} holds ${before} assets and may hold ${assetsMax}.`, {
          hint: 'Delete some, or raise the limit of the extension.',
          details: { extension },
        });
      }
      const record = await assets.create(draft);
      held = Promise.resolve((await held) + 1);
      return record;
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
      held = null;
    },
  };
}

/** Leases are released by who took them, and by `releaseAll` when the borrower goes. */
export function ownLeases(resources: Resources): { readonly resources: Resources; releaseAll(): Promise<void> } {
  /** Lease id -> when it ends by itself. */
  const held = new Map<string, number>();
  return {
    resources: {
      ...bound('resources', resources),
      async allocate(request, options) {
        const lease = await resources.allocate(request, options);
        for (const [id, expiresAtMs] of held) if (expiresAtMs < lease.grantedAtMs) held.delete(id);
        held.set(lease.id, lease.expiresAtMs);
        return lease;
      },
      /** Of a lease that is not its own an extension learns nothing, and nothing happens to it. */
      async release(id) {
        if (!held.has(id)) return;
        await resources.release(id);
        held.delete(id);
      },
    },
    async releaseAll() {
      await Promise.all(held.keys().map((id) => resources.release(id)));
      held.clear();
    },
  };
}

/** The methods of a capability as own members of a plain object, so that some can be replaced. */
function bound<Name extends CapabilityName>(name: Name, capability: Capabilities[Name]): Capabilities[Name] {
  const methods = capability as unknown as Record<string, (...args: unknown[]) => unknown>;
  const copy = [...crossingsOf(name).keys()].map((method) => [method, methods[method]!.bind(capability)]);
  return Object.fromEntries(copy) as Capabilities[Name];
}
