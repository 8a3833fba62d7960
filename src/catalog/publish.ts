import { base64 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { hold } from '../base/lease.ts';
import { collect, once } from '../base/streams.ts';
import type { AssetRecord, BlobInfo } from '../capabilities/assets.ts';
import type { Admission, ProofVerdict } from '../capabilities/consensus.ts';
import type { ResourceRequest } from '../capabilities/resources.ts';
import { type Bundle, encodeBundle, inclusionLeaf } from '../wire/bundle.ts';
import type { PackageManifest } from '../wire/manifest.ts';
import { type AssetId, assetId } from '../wire/names.ts';
import { type DecodedPackage, decodePackage, OCI_MANIFEST_BYTES_MAX } from '../wire/package.ts';
import { admittedAtMs, type Endorsement, type ProofSet, proofSet } from '../wire/proof.ts';
import type { CertificateChain, Envelope } from '../wire/signature.ts';
import type { PublishResult, SignedPackage } from './api.ts';
import { readBundle } from './bundle.ts';
import type { CatalogContext } from './context.ts';
import { type Candidate, resolve, type VersionSource } from './resolve.ts';
import { share } from './share.ts';
import { checkStatement } from './verify.ts';

/**
 * The publish ladder, top to bottom; each step names its error exit.
 *
 * The commit point is `assets.create`. A crash before it leaves blobs that the next collection removes, and the proofs under
 * `publish/<digest>` so that repeating the same publish continues instead of proving again. A crash after it leaves a
 * published package and that same note: the next start tells the network of the package, and removes the note.
 */
export async function publishPackage(
  context: CatalogContext,
  signed: SignedPackage,
  options: CallOptions = {},
): Promise<PublishResult> {
  const publication = await checkSigned(context, signed); // blob-not-found, signature-*, certificate-*, bundle-invalid
  const published = await alreadyPublished(context, publication); // version-exists
  if (published !== null && (await isWhole(context, published))) return againPublished(context, publication, published);
  await checkDependencies(context, publication, options); // dependency-*

  const { lent } = context;
  await using _lease = await hold(lent.resources, leaseRequest(publication.layer.size), options); // quota-exceeded
  const made = await proveOnce(context, publication, options); // stake-insufficient, cancelled
  const { proofs, endorsement, verdicts } = await admit(context, publication, made, options); // proof-*, equivocation
  const bundle = await assemble(context, publication, proofs, endorsement);
  const record = await commit(context, publication, bundle);
  await share(context, record);
  await lent.state.write({ [noteKey(publication.content)]: undefined });
  if (published === null) await announce(context, record);
  return resultOf(publication, record, verdicts, published === null);
}

/** A signed package after it was checked: everything here comes from the store and from what was signed, nothing from the caller. */
interface Publication {
  readonly ref: string;
  readonly id: AssetId;
  readonly manifest: PackageManifest;
  readonly content: DecodedPackage;
  readonly manifestBytes: Uint8Array;
  readonly configBytes: Uint8Array;
  readonly layer: BlobInfo;
  readonly envelope: Envelope;
  readonly chain: CertificateChain;
  /** Key id of the publisher. */
  readonly signer: string;
}

async function checkSigned({ lent }: CatalogContext, signed: SignedPackage): Promise<Publication> {
  const [manifestBytes, configBytes] = await Promise.all(
    [signed.digest, signed.config].map((digest) => collect(lent.assets.read(digest), OCI_MANIFEST_BYTES_MAX)),
  );
  const content = decodePackage(manifestBytes!, configBytes!);
  const { manifest, layers } = content.config;
  const layer = await lent.assets.stat(layers[0]!.digest);
  if (layer === null)
    throw new HyperMeshError('blob-not-found', `The content store has no layer ${layers[0]!.digest}.`);
  const [{ chain }, { networkId }] = await Promise.all([lent.trust.identity('publisher'), lent.consensus.genesis()]);
  const { envelope } = signed;
  const { signer, payload } = await lent.trust.verify(envelope, chain, { role: 'publisher' });
  checkStatement(envelope, payload, content, networkId);
  const ref = `${manifest.name}@${manifest.version}`;
  const id = assetId(manifest.type, content.digest);
  return {
    ref,
    id,
    manifest,
    content,
    manifestBytes: manifestBytes!,
    configBytes: configBytes!,
    layer,
    envelope,
    chain,
    signer,
  };
}

/** Publishing the same bytes again is not an error; other bytes under a published version are. */
async function alreadyPublished(
  { lent }: CatalogContext,
  { ref, manifest, content }: Publication,
): Promise<AssetRecord | null> {
  const { name, version } = manifest;
  const existing = (await lent.assets.versions(name)).find((record) => record.version === version);
  if (existing === undefined) return null;
  if (existing.digest === content.digest) return existing;
  throw new HyperMeshError('version-exists', `${ref} was published before with other content (${existing.digest}).`, {
    hint: 'A published version never changes: raise `version` in catalog.yaml and publish again.',
    details: { published: existing.digest, offered: content.digest },
  });
}

/** Nothing may be listed that could not be installed: the whole graph must resolve, and must not lead back to this package. */
async function checkDependencies(
  { lent }: CatalogContext,
  { id, manifest, content, layer }: Publication,
  options: CallOptions,
): Promise<void> {
  const arriving: Candidate = {
    ...{ id, manifest, digest: content.digest, layers: [layer.digest], state: 'published' },
    name: manifest.name,
    version: manifest.version,
  };
  const source: VersionSource = {
    async versions(name) {
      const known = await lent.assets.versions(name);
      if (name !== arriving.name) return known;
      return [arriving, ...known.filter(({ id: other }) => other !== id)];
    },
  };
  try {
    await resolve({ [manifest.name]: manifest.version }, source, { signal: options.signal });
  } catch (error) {
    if (!isCoded(error, 'dependency-conflict')) throw error;
    throw new HyperMeshError(error.code, error.message, {
      hint: 'Correct the dependencies in catalog.yaml, or publish what is missing first.',
      ...(error.details === undefined ? {} : { details: error.details }),
    });
  }
}

/** Proofs cost seconds, so they are kept until the package is committed: repeating a publish that was cut short continues here. */
async function proveOnce(
  { lent }: CatalogContext,
  { ref, content }: Publication,
  options: CallOptions,
): Promise<ProofSet> {
  const kept = proofSet.safeParse(await lent.state.get(noteKey(content)));
  if (kept.success) return kept.data;
  const challenge = await lent.consensus.challenge('publish', content.digest, ref);
  const proofs = await lent.consensus.prove(challenge, options);
  await lent.state.write({ [noteKey(content)]: proofs as unknown as Json });
  return proofs;
}

/** After these, the same proofs will never be admitted; anything else (cancelled, a full disk) leaves them as good as they were. */
const CONDEMNED = [
  'proof-expired',
  'proof-rejected',
  'proof-replayed',
  'proof-invalid',
  'equivocation',
  'network-mismatch',
] as const;

/** The endorsement, and the proofs that it is about: fresh ones when those that were kept had become too old. */
async function admit(
  context: CatalogContext,
  publication: Publication,
  proofs: ProofSet,
  options: CallOptions,
): Promise<Admission & { readonly proofs: ProofSet }> {
  const { lent } = context;
  options.onProgress?.({ step: 'admit', note: 'the committee checks the proofs' });
  try {
    return { proofs, ...(await lent.consensus.admit(proofs, options)) };
  } catch (error) {
    if (!isCoded(error, ...CONDEMNED)) throw error;
    await lent.state.write({ [noteKey(publication.content)]: undefined });
    // Kept proofs can outlive their window; fresh ones can not, so this repeats once at most.
    if (!isCoded(error, 'proof-expired')) throw error;
    const fresh = await proveOnce(context, publication, options);
    return { proofs: fresh, ...(await lent.consensus.admit(fresh, options)) };
  }
}

async function assemble(
  { lent }: CatalogContext,
  { content, manifestBytes, configBytes, envelope, chain }: Publication,
  proofs: ProofSet,
  endorsement: Endorsement,
): Promise<Bundle> {
  const [anchor, genesis, inclusion] = await Promise.all([
    lent.trust.anchor(),
    lent.consensus.genesis(),
    lent.trust.logAppend(inclusionLeaf(content.digest, endorsement), endorsement as unknown as Json),
  ]);
  return {
    formatVersion: 2,
    manifest: base64(manifestBytes),
    config: base64(configBytes),
    signature: { envelope, chain },
    proofs,
    endorsement,
    inclusion,
    network: {
      ...{ id: genesis.networkId, genesis: genesis.document, anchor },
      ...(genesis.epochs.length === 0 ? {} : { epochs: genesis.epochs }),
    },
  };
}

async function commit(
  { lent }: CatalogContext,
  { manifest, content, layer, signer }: Publication,
  bundle: Bundle,
): Promise<AssetRecord> {
  const stored = await lent.assets.put(once(encodeBundle(bundle)));
  return lent.assets.create({
    digest: content.digest,
    type: manifest.type,
    name: manifest.name,
    version: manifest.version,
    owner: signer,
    privacy: manifest.privacy,
    manifest,
    blobs: [content.digest, content.configDigest, layer.digest, stored.digest],
    layers: [layer.digest],
    bundle: stored.digest,
    size: layer.size,
  });
}

async function announce({ lent }: CatalogContext, record: AssetRecord): Promise<void> {
  await lent.monitoring.emit({
    type: 'catalog.published',
    data: { id: record.id, name: record.name, version: record.version, digest: record.digest, size: record.size },
  });
}

/** Without its bundle a package is a claim: publishing it again makes it whole. */
async function isWhole({ lent }: CatalogContext, record: AssetRecord): Promise<boolean> {
  return (await lent.assets.stat(record.bundle)) !== null;
}

/** The proofs of the earlier publish are judged again: its bundle is all that is left of it. */
async function againPublished(
  { lent }: CatalogContext,
  publication: Publication,
  record: AssetRecord,
): Promise<PublishResult> {
  const { proofs, endorsement } = await readBundle(lent.assets, record);
  const verdicts = await lent.consensus.verify(proofs, { atMs: admittedAtMs(endorsement) });
  return resultOf(publication, record, verdicts, false);
}

function resultOf(
  { layer }: Publication,
  record: AssetRecord,
  proofs: readonly ProofVerdict[],
  created: boolean,
): PublishResult {
  const { id, name, version, digest, bundle, size } = record;
  const shards = { total: layer.shards.count, reused: layer.shardsReused, bytesReused: layer.bytesReused };
  return { id, name, version, digest, bundle, size, shards, proofs, created };
}

function leaseRequest(bytes: number): ResourceRequest {
  return { operation: 'publish', cpuCores: 1, memoryBytes: 256 * 2 ** 20, storageBytes: bytes, priority: 'normal' };
}

/** `publish/<digest>` */
function noteKey({ digest }: { readonly digest: Digest }): string {
  return `publish/${digest}`;
}
