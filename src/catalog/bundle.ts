import { collect } from '../base/streams.ts';
import type { AssetRecord, Assets } from '../capabilities/assets.ts';
import { BUNDLE_BYTES_MAX, type Bundle, decodeBundle } from '../wire/bundle.ts';

export async function readBundle(assets: Pick<Assets, 'read'>, record: AssetRecord): Promise<Bundle> {
  return decodeBundle(await collect(assets.read(record.bundle), BUNDLE_BYTES_MAX));
}
