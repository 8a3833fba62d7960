import { fromBase64 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { once } from '../base/streams.ts';
import type { AssetRecord } from '../capabilities/assets.ts';
import type { Arrival, Verdict } from '../capabilities/transport.ts';
import { decodeBundle } from '../wire/bundle.ts';
import { type AssetId, assetId, parseAssetId } from '../wire/names.ts';
import type { DecodedPackage } from '../wire/package.ts';
import type { LogInclusion } from '../wire/signature.ts';
import { decodeSignedStateChange, looksLikeStateChange, type StateChange } from '../wire/state-change.ts';
import { readBundle } from './bundle.ts';
import type { CatalogContext } from './context.ts';
import { hostContent } from './share.ts';
import { knownTo, verifyBundle } from './verify.ts';

/** Key in the catalog's state of what is known of a version beside its record: `version/<asset id>`. */
const versionKey = (asset: AssetId) => `version/${asset}`;

/** The last change of a version that counts here. */
interface LastChange {
  readonly sequence: number;
  readonly deleted: boolean;
}

/** These say that the bytes are not what they claim to be, whenever and by whomever they are judged. */
const BROKEN = [
  'bundle-invalid',
  'record-invalid',
  'signature-invalid',
  'endorsement-invalid',
  'log-invalid',
  'proof-rejected',
  'proof-invalid',
  'network-mismatch',
  'package-file-invalid',
] as const;

/**
 * Judges a record that another node brought: the bundle of a package, or what its publisher said about it later. An accepted one counts here
 * from then on. No clock decides: of two packages with one name and version the one that was logged first counts, of two changes the one
 * with the higher sequence.
 */
export async function acceptArrival(context: CatalogContext, arrival: Arrival): Promise<Verdict> {
  try {
    return looksLikeStateChange(arrival.bytes)
      ? await acceptChange(context, arrival)
      : await acceptBundle(context, arrival);
  } catch (error) {
    if (isCoded(error, ...BROKEN)) return 'refused';
    // Expired or revoked meanwhile: nothing to hold against whoever still hands it on.
    if (isCoded(error, 'certificate-invalid', 'certificate-expired', 'certificate-revoked')) return 'unwanted';
    // The same version but for its build metadata, or one more than a package may have here: that will not change.
    if (isCoded(error, 'version-exists', 'limit-exceeded')) return 'unwanted';
    throw error;
  }
}

async function acceptBundle(context: CatalogContext, { id, bytes }: Arrival): Promise<Verdict> {
  const { lent } = context;
  const bundle = decodeBundle(bytes);
  const { content, publisher } = await verifyBundle(bundle, lent, await knownTo(lent));
  const { manifest, layers } = content.config;
  if (manifest.privacy === 'private') return 'refused';
  if ((await lastChange(context, assetId(manifest.type, content.digest)))?.deleted === true) {
    await lent.transport.retire(id);
    return 'unwanted';
  }
  if (!(await givesWay(context, content, bundle.inclusion))) return 'unwanted';

  await lent.assets.put(once(fromBase64(bundle.manifest)), { expect: content.digest });
  await lent.assets.put(once(fromBase64(bundle.config)), { expect: content.configDigest });
  await lent.assets.put(once(bytes), { expect: id });
  const record = await lent.assets.create(
    {
      digest: content.digest,
      type: manifest.type,
      name: manifest.name,
      version: manifest.version,
      owner: publisher.keyId,
      privacy: manifest.privacy,
      manifest,
      blobs: [content.digest, content.configDigest, ...layers.map(({ digest }) => digest), id],
      layers: layers.map(({ digest }) => digest),
      bundle: id,
      size: layers.reduce((sum, { size }) => sum + size, 0),
    },
    { layersLater: true },
  );
  await hostContent(context, content.digest, layers);
  await lent.monitoring.emit({
    type: 'catalog.arrived',
    data: { id: record.id, name: record.name, version: record.version, digest: record.digest, size: record.size },
  });
  return 'accepted';
}

/** Whether nothing here stands in the way of this package, after a later one of the same name and version was put aside. */
async function givesWay(
  { lent }: CatalogContext,
  { digest, config }: DecodedPackage,
  logged: LogInclusion,
): Promise<boolean> {
  const { name, version } = config.manifest;
  const rival = (await lent.assets.versions(name)).find((record) => record.version === version);
  if (rival === undefined || rival.digest === digest) return true;
  const wins = isEarlier(logged, (await readBundle(lent.assets, rival)).inclusion);
  await lent.monitoring.emit({
    type: 'catalog.conflict',
    severity: 'error',
    data: { ref: `${name}@${version}`, kept: wins ? digest : rival.digest, refused: wins ? rival.digest : digest },
  });
  if (wins) {
    await lent.transport.retire(rival.bundle);
    await lent.transport.withdraw(rival.digest);
    await lent.assets.delete(rival.id);
  }
  return wins;
}

/** Alike for everybody, also between the logs of two validators. */
function isEarlier(one: LogInclusion, other: LogInclusion): boolean {
  return one.index === other.index ? one.head.origin < other.head.origin : one.index < other.index;
}

async function acceptChange(context: CatalogContext, { bytes }: Arrival): Promise<Verdict> {
  const { lent } = context;
  const { change, envelope, chain } = decodeSignedStateChange(bytes);
  const { networkId } = await lent.consensus.genesis();
  if (change.network !== networkId) return 'refused';
  const { signer } = await lent.trust.verify(envelope, chain, { role: 'publisher', atMs: change.changedAtMs });
  const last = await lastChange(context, change.asset);
  if (last !== null && (last.deleted || last.sequence >= change.sequence)) return 'unwanted';
  const record = await lent.assets.get(change.asset);
  if (record === null) return 'later';
  if (record.owner !== signer || record.bundle !== change.bundle) return 'refused';
  await applyChange(context, record, change);
  return 'accepted';
}

/** What a publisher said about a version counts from now on. Safe to repeat; a crash in between is healed when the record is judged again. */
async function applyChange(context: CatalogContext, record: AssetRecord, change: StateChange): Promise<void> {
  const { assets } = context.lent;
  if (change.state !== 'deleted') await assets.setState(record.id, change.state, change.reason);
  else {
    try {
      await assets.delete(record.id);
    } catch (error) {
      // Something here depends on it: it stays for that, and cannot be chosen any more.
      if (!isCoded(error, 'has-dependents')) throw error;
      await assets.setState(record.id, 'yanked', 'deleted by its publisher');
    }
  }
  await remember(context, change);
}

/** After a change took effect: the sequence that the next one has to exceed, and an event. */
export async function remember({ lent }: CatalogContext, change: StateChange): Promise<void> {
  const deleted = change.state === 'deleted';
  if (deleted) {
    await lent.transport.withdraw(parseAssetId(change.asset).digest);
    await lent.transport.retire(change.bundle);
  }
  await lent.state.write({ [versionKey(change.asset)]: { sequence: change.sequence, deleted } });
  await lent.monitoring.emit({ type: `catalog.${change.state}`, data: { id: change.asset, reason: change.reason } });
}

export async function nextSequence(context: CatalogContext, asset: AssetId): Promise<number> {
  return ((await lastChange(context, asset))?.sequence ?? 0) + 1;
}

async function lastChange({ lent }: CatalogContext, asset: AssetId): Promise<LastChange | null> {
  const value = (await lent.state.get(versionKey(asset))) as unknown as LastChange | undefined;
  return value ?? null;
}
