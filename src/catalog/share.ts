import { fromBase64 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { collect } from '../base/streams.ts';
import { laterTurn } from '../base/turn.ts';
import type { AssetRecord } from '../capabilities/assets.ts';
import type { BlobDescription } from '../capabilities/content.ts';
import type { Code, ContentUse, Distribution } from '../capabilities/transport.ts';
import { BUNDLE_BYTES_MAX, type Bundle, decodeBundle } from '../wire/bundle.ts';
import { decodePackage } from '../wire/package.ts';
import { readBundle } from './bundle.ts';
import type { CatalogContext } from './context.ts';

/** Nodes that hold the content of a package, unless the network is smaller. */
const REPLICATION = 3;

/** Tells the network of a package: its bundle becomes everybody's, its content that of some. Private ones stay here. Safe to repeat. */
export async function share(context: CatalogContext, record: AssetRecord, pinned = true): Promise<void> {
  if (record.privacy === 'private') return;
  const { assets, transport } = context.lent;
  const bytes = await collect(assets.read(record.bundle), BUNDLE_BYTES_MAX);
  const blobs = layersIn(decodeBundle(bytes));
  await laterTurn();
  await context.lent.transport.announce({ id: record.digest, blobs, replication: REPLICATION, pinned });
  await transport.broadcast(bytes);
}

/** Some nodes are to hold these layers. */
export async function hostContent(
  { lent }: CatalogContext,
  manifest: Digest,
  layers: readonly BlobDescription[],
): Promise<void> {
  await lent.transport.announce({ id: manifest, blobs: layers, replication: REPLICATION });
}

/**
 * Brings the layers of a package here that are not; each node that gives them is shown that they may be used, together with everything else of `use`.
 * Errors: `content-unavailable`, `proof-*`, `space-unavailable`, `committee-unreachable`, `cancelled`, `storage-*`.
 */
export async function bringContent(
  context: CatalogContext,
  record: AssetRecord,
  use: ContentUse,
  options: CallOptions = {},
): Promise<void> {
  const here = await Promise.all(record.layers.map((layer) => context.lent.assets.stat(layer)));
  if (here.every((blob) => blob !== null)) return;
  for (const layer of layersIn(await readBundle(context.lent.assets, record))) {
    try {
      await context.lent.transport.fetch(record.digest, layer, { ...options, use });
    } catch (error) {
      throw isCoded(error, 'content-unavailable') ? unavailable(record, error) : error;
    }
  }
}

/**
 * The specification's distributePackage: waits until as many nodes as the package asks for hold it. With `code`, fragments of it are placed, and this
 * node keeps the whole for no other reason than it had before.
 */
export async function distribute(
  context: CatalogContext,
  record: AssetRecord,
  options: CallOptions & { readonly code?: Code } = {},
): Promise<Distribution> {
  await share(context, record, options.code === undefined);
  return context.lent.transport.distribute(record.digest, options);
}

/** A person knows the package, not its blobs. */
function unavailable({ name, version }: AssetRecord, cause: HyperMeshError): HyperMeshError {
  const hint = cause.hint === undefined ? {} : { hint: cause.hint };
  const message = `The content of ${name}@${version} did not come: ${cause.message}`;
  return new HyperMeshError('content-unavailable', message, { ...hint, cause });
}

function layersIn(bundle: Bundle): readonly BlobDescription[] {
  return decodePackage(fromBase64(bundle.manifest), fromBase64(bundle.config)).config.layers;
}
