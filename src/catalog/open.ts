import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { AssetId } from '../wire/names.ts';
import type { CatalogContext } from './context.ts';
import { bringContent } from './share.ts';
import { verifyRecord } from './verify.ts';
import { newestInRange } from './versions.ts';

/** Hands out the layer of a package to who unpacks it on this machine, as `install` would: first verified, then access to it proved. */
export async function openPackage(
  context: CatalogContext,
  ref: string,
  options: CallOptions = {},
): Promise<{ readonly ref: string; readonly id: AssetId; readonly layer: Digest }> {
  const { lent } = context;
  const record = await newestInRange(lent.assets, ref); // package-not-found, version-not-found
  await verifyRecord(context, record, options); // signature-*, certificate-*, endorsement-invalid, log-invalid
  const challenge = await lent.consensus.challenge('install', record.digest, `${record.name}@${record.version}`);
  await lent.consensus.admit(await lent.consensus.prove(challenge, options), options); // proof-*
  await bringContent(context, record, { kind: 'install', resources: [record.digest] }, options); // content-unavailable
  return { ref: `${record.name}@${record.version}`, id: record.id, layer: record.layers[0]! };
}
