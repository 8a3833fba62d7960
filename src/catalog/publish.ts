import { base64 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { hold } from '../base/lease.ts';
import { collect, once } from '../base/streams.ts';
import type { AssetRecord } from '../capabilities/assets.ts';
import type { ResourceRequest } from '../capabilities/resources.ts';
import { type Bundle, encodeBundle, inclusionLeaf } from '../wire/bundle.ts';
import { OCI_MANIFEST_BYTES_MAX } from '../wire/package.ts';
import { type Endorsement, type ProofSet, proofSet } from '../wire/proof.ts';
import type { PublishResult, SignedPackage } from './api.ts';
import { readBundle } from './bundle.ts';
import type { CatalogContext } from './context.ts';
import { type Candidate, resolve, type VersionSource } from './resolve.ts';

/**
 * The publish ladder, top to bottom; each step names its error exit.
 *
 * The commit point is `assets.create`. A crash before it leaves blobs that the next collection removes, and the proofs under
 * `publish/<digest>` so that repeating the same publish continues instead of proving again. A crash after it leaves a
 * published package and that same note, which the next start removes.
 */
export async function publishPackage(
  context: CatalogContext,
  signed: SignedPackage,
  options: CallOptions = {},
): Promise<PublishResult> {
  const { lent } = context;
  const published = await alreadyPublished(context, signed); // version-exists
  if (published !== null) return resultOf(context, signed, published, false);
  const signer = await checkSignature(context, signed); // signature-*, certificate-*
  await checkDependencies(context, signed, options); // dependency-*, package-not-found

  await using _lease = await hold(lent.resources, leaseRequest(signed.layer.size), options); // quota-exceeded
  const proofs = await proveOnce(context, signed, options); // stake-insufficient, cancelled
  const endorsement = await admit(context, signed, proofs, options); // proof-*, equivocation
  const bundle = await assemble(context, signed, proofs, endorsement);
  const record = await commit(context, signed, signer, bundle);
  await announce(context, record);
  return resultOf(context, signed, record, true);
}

/** Publishing the same bytes again is not an error; other bytes under a published version are. */
async function alreadyPublished({ lent }: CatalogContext, signed: SignedPackage): Promise<AssetRecord | null> {
  const { name, version } = signed.manifest;
  const existing = (await lent.assets.versions(name)).find((record) => record.version === version);
  if (existing === undefined) return null;
  if (existing.digest === signed.digest) return existing;
  throw new HyperMeshError(
    'version-exists',
    `${signed.ref} was published before with other content (${existing.digest}).`,
    {
      hint: 'A published version never changes: raise `version` in catalog.yaml and publish again.',
      details: { published: existing.digest, offered: signed.digest },
    },
  );
}

async function checkSignature({ lent, clock }: CatalogContext, signed: SignedPackage): Promise<string> {
  const { chain } = await lent.trust.identity('publisher');
  const verified = await lent.trust.verify(signed.envelope, chain, { role: 'publisher', atMs: clock.nowMs() });
  return verified.signer;
}

/** Nothing may be listed that could not be installed: the whole graph must resolve, and must not lead back to this package. */
async function checkDependencies({ lent }: CatalogContext, signed: SignedPackage, options: CallOptions): Promise<void> {
  const { manifest, layer, ...rest } = signed;
  const arriving: Candidate = {
    ...rest,
    name: manifest.name,
    version: manifest.version,
    layers: [layer.digest],
    state: 'published',
    manifest,
  };
  const source: VersionSource = {
    async versions(name) {
      const known = await lent.assets.versions(name);
      return name === arriving.name ? [arriving, ...known] : known;
    },
  };
  await resolve({ [manifest.name]: manifest.version }, source, { signal: options.signal });
}

/** Proofs cost seconds, so they are kept until the package is committed: repeating a publish that was cut short continues here. */
async function proveOnce({ lent }: CatalogContext, signed: SignedPackage, options: CallOptions): Promise<ProofSet> {
  const kept = proofSet.safeParse(await lent.state.get(noteKey(signed)));
  if (kept.success) return kept.data;
  const challenge = await lent.consensus.challenge('publish', signed.digest, signed.ref);
  const proofs = await lent.consensus.prove(challenge, options);
  await lent.state.write({ [noteKey(signed)]: proofs as unknown as Json });
  return proofs;
}

async function admit(
  context: CatalogContext,
  signed: SignedPackage,
  proofs: ProofSet,
  options: CallOptions,
): Promise<Endorsement> {
  const { lent } = context;
  options.onProgress?.({ step: 'admit', note: 'the committee checks the proofs' });
  try {
    return await lent.consensus.admit(proofs, options);
  } catch (error) {
    await lent.state.write({ [noteKey(signed)]: undefined });
    // Kept proofs can outlive their window; fresh ones can not, so this repeats once at most.
    if (isCoded(error, 'proof-expired'))
      return lent.consensus.admit(await proveOnce(context, signed, options), options);
    throw error;
  }
}

async function assemble(
  { lent }: CatalogContext,
  signed: SignedPackage,
  proofs: ProofSet,
  endorsement: Endorsement,
): Promise<Bundle> {
  const [{ chain }, anchor, genesis, inclusion] = await Promise.all([
    lent.trust.identity('publisher'),
    lent.trust.anchor(),
    lent.consensus.genesis(),
    lent.trust.logAppend(inclusionLeaf(signed.digest, endorsement)),
  ]);
  return {
    formatVersion: 1,
    manifest: base64(await collect(lent.assets.read(signed.digest), OCI_MANIFEST_BYTES_MAX)),
    config: base64(await collect(lent.assets.read(signed.config), OCI_MANIFEST_BYTES_MAX)),
    signature: { envelope: signed.envelope, chain },
    proofs,
    endorsement,
    inclusion,
    network: { id: genesis.networkId, genesis: genesis.document, anchor },
  };
}

async function commit(
  { lent }: CatalogContext,
  signed: SignedPackage,
  owner: string,
  bundle: Bundle,
): Promise<AssetRecord> {
  const { manifest, layer } = signed;
  const stored = await lent.assets.put(once(encodeBundle(bundle)));
  const record = await lent.assets.create({
    digest: signed.digest,
    type: manifest.type,
    name: manifest.name,
    version: manifest.version,
    owner,
    privacy: manifest.privacy,
    manifest,
    blobs: [signed.digest, signed.config, layer.digest, stored.digest],
    layers: [layer.digest],
    bundle: stored.digest,
    size: layer.size,
  });
  await lent.state.write({ [noteKey(signed)]: undefined });
  return record;
}

async function announce({ lent }: CatalogContext, record: AssetRecord): Promise<void> {
  await lent.monitoring.emit({
    type: 'catalog.published',
    data: { id: record.id, name: record.name, version: record.version, digest: record.digest, size: record.size },
  });
}

async function resultOf(
  { lent }: CatalogContext,
  signed: SignedPackage,
  record: AssetRecord,
  created: boolean,
): Promise<PublishResult> {
  const bundle = await readBundle(lent.assets, record);
  return {
    id: record.id,
    name: record.name,
    version: record.version,
    digest: record.digest,
    bundle: record.bundle,
    size: record.size,
    shards: {
      total: signed.layer.shards.count,
      reused: signed.layer.shardsReused,
      bytesReused: signed.layer.bytesReused,
    },
    proofs: await lent.consensus.verify(bundle.proofs, { atMs: bundle.endorsement.admittedAtMs }),
    created,
  };
}

function leaseRequest(bytes: number): ResourceRequest {
  return { operation: 'publish', cpuCores: 1, memoryBytes: 256 * 2 ** 20, storageBytes: bytes, priority: 'normal' };
}

function noteKey(signed: SignedPackage): string {
  return `publish/${signed.digest}`;
}
