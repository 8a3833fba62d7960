import { HyperMeshError } from '../base/errors.ts';
import type { AssetRecord, AssetState } from '../capabilities/assets.ts';
import type { CatalogContext } from './context.ts';
import { newestInRange } from './versions.ts';

/** Yank, deprecate, restore and delete: only the publisher may, and every change leaves an event. */

export async function setState(
  context: CatalogContext,
  ref: string,
  state: AssetState,
  reason: string | null,
): Promise<AssetRecord> {
  const record = await owned(context, ref);
  const changed = await context.lent.assets.setState(record.id, state, reason);
  await context.lent.monitoring.emit({
    type: `catalog.${state}`,
    data: { id: record.id, ref: `${record.name}@${record.version}`, reason },
  });
  return changed;
}

/** Errors: `has-dependents` with the list. */
export async function deleteVersion(context: CatalogContext, ref: string): Promise<AssetRecord> {
  const record = await owned(context, ref);
  await context.lent.assets.delete(record.id);
  await context.lent.monitoring.emit({
    type: 'catalog.deleted',
    data: { id: record.id, ref: `${record.name}@${record.version}` },
  });
  return record;
}

async function owned({ lent }: CatalogContext, ref: string): Promise<AssetRecord> {
  const record = await newestInRange(lent.assets, ref);
  const { keyId } = await lent.trust.identity('publisher');
  if (record.owner === keyId) return record;
  throw new HyperMeshError(
    'not-owner',
    `${record.name}@${record.version} was published by ${record.owner}, not by ${keyId}.`,
    {
      hint: 'Ask its publisher, or uninstall it here.',
    },
  );
}
