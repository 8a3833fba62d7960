import type { Digest } from '../base/digest.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { Transfer, TransportStatus } from '../capabilities/transport.ts';
import { assetId, packageType } from '../wire/names.ts';

/** What moves, by the names that people know it by. */
export interface NamedStatus extends Omit<TransportStatus, 'transfers'> {
  /** `packages`: `scope/name@version` of those resources that this node has a record of. */
  readonly transfers: readonly (Transfer & { readonly packages: readonly string[] })[];
}

export async function withPackages(status: TransportStatus, assets: Pick<Assets, 'get'>): Promise<NamedStatus> {
  const names = new Map<Digest, string | undefined>();
  for (const resource of new Set(status.transfers.flatMap(({ resources }) => resources))) {
    names.set(resource, await nameOf(resource, assets));
  }
  const transfers = status.transfers.map((transfer) => {
    return { ...transfer, packages: transfer.resources.flatMap((resource) => names.get(resource) ?? []) };
  });
  return { ...status, transfers };
}

/** The resource of a package is its manifest; which type it is of is not said. */
async function nameOf(resource: Digest, assets: Pick<Assets, 'get'>): Promise<string | undefined> {
  for (const type of packageType.options) {
    const record = await assets.get(assetId(type, resource));
    if (record !== null) return `${record.name}@${record.version}`;
  }
  return undefined;
}
