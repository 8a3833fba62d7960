import { createHash } from 'node:crypto';
import { equal, fromBase64, utf8 } from '../base/bytes.ts';
import type { CallOptions } from '../base/call.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { laterTurn } from '../base/turn.ts';
import type { AssetRecord } from '../capabilities/assets.ts';
import type { Consensus, ProofVerdict } from '../capabilities/consensus.ts';
import type { Trust, Verified } from '../capabilities/trust.ts';
import { type Bundle, inclusionLeaf } from '../wire/bundle.ts';
import { epochDigest } from '../wire/epoch.ts';
import { decodeGenesis } from '../wire/genesis.ts';
import { TREE_HEAD_TYPE, treeHeadPayload, verifyInclusion } from '../wire/log.ts';
import { type DecodedPackage, decodePackage } from '../wire/package.ts';
import { admittedAtMs, proofsDigest } from '../wire/proof.ts';
import type { Envelope, TrustAnchor } from '../wire/signature.ts';
import { decodeStatement, STATEMENT_TYPE } from '../wire/statement.ts';
import type { VerifyResult } from './api.ts';
import { readBundle } from './bundle.ts';
import type { CatalogContext } from './context.ts';
import { bringContent } from './share.ts';

/** What checking a bundle needs: judges that work without a disk and without a network. */
export interface Judges {
  readonly trust: Pick<Trust, 'verify'>;
  readonly consensus: Pick<Consensus, 'verify' | 'verifyEndorsement'>;
}

/**
 * Checks a bundle alone. The order is the argument: what was published, in which network, by whom, at what cost, admitted by
 * whom, and logged where. `known.network` pins the network; without it the result names the one that the bundle claims. `known.anchor`
 * is that network's trust as it is today: what was revoked after the bundle was made is revoked; without it the bundle's own is used.
 *
 * Errors: `bundle-invalid`, `network-mismatch`, `signature-invalid`, `certificate-*`, `proof-rejected`, `endorsement-invalid`, `log-invalid`.
 */
export async function verifyBundle(
  given: Bundle,
  judges: Judges,
  known: { readonly network?: Digest; readonly anchor?: TrustAnchor } = {},
): Promise<VerifyResult & { readonly content: DecodedPackage }> {
  const { network, anchor } = known;
  const checks: VerifyResult['checks'][number][] = [];
  const passed = (check: string, says: string) => void checks.push({ check, ok: true, says });

  const content = packageOf(given);
  const ref = `${content.config.manifest.name}@${content.config.manifest.version}`;
  passed('manifest', `${ref} is ${content.digest}`);

  checkNetwork(given, network);
  const bundle = anchor === undefined ? given : { ...given, network: { ...given.network, anchor } };
  passed('network', network === undefined ? `claims network ${bundle.network.id}` : `network ${bundle.network.id}`);

  const signer = await checkSignature(bundle, content, judges);
  passed('signature', `FALCON-1024 and Ed25519 by ${signer.certificate.subject}, chain to the root of the network`);

  const proofs = await checkProofs(bundle, content, signer, judges);
  for (const proof of proofs) passed(proof.kind, proof.says);

  await laterTurn();
  await judges.consensus.verifyEndorsement(bundle.endorsement, bundle.network);
  passed(
    'endorsement',
    `${counted(bundle.endorsement.votes.length, 'vote')} of the committee, ${new Date(admittedAtMs(bundle.endorsement)).toISOString()}`,
  );

  await checkInclusion(bundle, content, judges);
  passed('log', `entry ${bundle.inclusion.index} of a log of ${bundle.inclusion.head.size}`);

  const { subject, keyId, fingerprint } = signer.certificate;
  return {
    ref,
    digest: content.digest,
    offline: true,
    checks,
    publisher: { subject, keyId, fingerprint },
    networkId: bundle.network.id,
    content,
  };
}

/** Checks a package of this catalog: its bundle, pinned to this network, and that its record says what the bundle says. */
export async function verifyRecord(
  { lent }: CatalogContext,
  record: AssetRecord,
  options: CallOptions = {},
): Promise<VerifyResult> {
  options.signal?.throwIfAborted();
  const { content, ...result } = await verifyBundle(await readBundle(lent.assets, record), lent, await knownTo(lent));
  const layers = content.config.layers.map((layer) => layer.digest);
  if (
    content.digest !== record.digest ||
    result.ref !== `${record.name}@${record.version}` ||
    layers.join() !== record.layers.join()
  ) {
    throw new HyperMeshError(
      'bundle-invalid',
      `The bundle of ${record.name}@${record.version} is about ${result.ref} (${content.digest}).`,
    );
  }
  return result;
}

/** {@link verifyRecord}, and every byte of content hashed again from the disk. */
export async function verifyPublished(
  context: CatalogContext,
  record: AssetRecord,
  options: CallOptions = {},
): Promise<VerifyResult> {
  const result = await verifyRecord(context, record, options);
  await bringContent(context, record, { kind: 'install', resources: [record.digest] }, options);
  let done = 0;
  for (const layer of record.layers) {
    const hash = createHash('sha256');
    for await (const piece of context.lent.assets.read(layer, options)) {
      hash.update(piece);
      done += piece.length;
      options.onProgress?.({ step: 'content', done, total: record.size, unit: 'bytes' });
    }
    const found = `sha256:${hash.digest('hex')}`;
    if (found !== layer) {
      throw new HyperMeshError('blob-damaged', `Layer ${layer} of ${result.ref} now hashes to ${found}.`, {
        hint: 'Run `hypermesh gc --scrub` to set damaged content aside, then install or publish it again.',
      });
    }
  }
  const says = `${counted(record.layers.length, 'layer')}, ${record.size.toLocaleString('en-US')} bytes, hashed from disk`;
  return { ...result, offline: false, checks: [...result.checks, { check: 'content', ok: true, says }] };
}

/** What this node knows of its network. */
export async function knownTo(
  lent: Pick<CatalogContext['lent'], 'consensus' | 'trust'>,
): Promise<{ readonly network: Digest; readonly anchor: TrustAnchor }> {
  const [{ networkId }, anchor] = await Promise.all([lent.consensus.genesis(), lent.trust.anchor()]);
  return { network: networkId, anchor };
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

function packageOf(bundle: Bundle): DecodedPackage {
  try {
    return decodePackage(fromBase64(bundle.manifest), fromBase64(bundle.config));
  } catch (error) {
    if (!isCoded(error)) throw error;
    throw new HyperMeshError('bundle-invalid', `The package in the bundle is not whole. ${error.message}`, {
      cause: error,
    });
  }
}

function checkNetwork(bundle: Bundle, pinned: Digest | undefined): void {
  const { id, genesis } = bundle.network;
  const found = digestOf(utf8(canonicalJson(genesis)));
  if (found !== id)
    throw new HyperMeshError('bundle-invalid', `The genesis document in the bundle hashes to ${found}, not to ${id}.`);
  if (pinned !== undefined && pinned !== id) {
    throw new HyperMeshError(
      'network-mismatch',
      `Expected a package of network ${pinned}, but it was published in ${id}.`,
      {
        hint: 'Check it against its own network with --genesis, if you trust that network.',
      },
    );
  }
}

async function checkSignature(bundle: Bundle, content: DecodedPackage, { trust }: Judges): Promise<Verified> {
  const { envelope, chain } = bundle.signature;
  const signer = await trust.verify(envelope, chain, {
    role: 'publisher',
    atMs: admittedAtMs(bundle.endorsement),
    anchor: bundle.network.anchor,
  });
  checkStatement(envelope, signer.payload, content, bundle.network.id);
  return signer;
}

/** What was signed is a statement about exactly this package in this network. Errors: `signature-invalid`, `bundle-invalid`. */
export function checkStatement(
  envelope: Envelope,
  payload: Uint8Array,
  content: DecodedPackage,
  network: Digest,
): void {
  if (envelope.payloadType !== STATEMENT_TYPE) {
    throw new HyperMeshError(
      'signature-invalid',
      `Expected a signed ${STATEMENT_TYPE}, but it is ${envelope.payloadType.slice(0, 100)}.`,
    );
  }
  const says = decodeStatement(payload);
  const { name, version } = content.config.manifest;
  if (
    says.manifest !== content.digest ||
    says.config !== content.configDigest ||
    says.name !== name ||
    says.version !== version ||
    says.network !== network
  ) {
    throw new HyperMeshError(
      'bundle-invalid',
      `The signature is about ${says.name}@${says.version} (${says.manifest}), not about this package.`,
    );
  }
}

async function checkProofs(
  bundle: Bundle,
  content: DecodedPackage,
  signer: Verified,
  { consensus }: Judges,
): Promise<readonly ProofVerdict[]> {
  const { proofs, endorsement, network } = bundle;
  const { operation } = proofs.challenge;
  const { name, version } = content.config.manifest;
  if (
    proofsDigest(proofs) !== endorsement.proofs ||
    canonicalJson(operation) !== canonicalJson(endorsement.operation) ||
    operation.kind !== 'publish' ||
    operation.subject !== content.digest ||
    operation.ref !== `${name}@${version}` ||
    operation.identity !== signer.signer ||
    endorsement.networkId !== network.id ||
    proofs.challenge.networkId !== network.id
  ) {
    throw new HyperMeshError(
      'bundle-invalid',
      'The proofs, the endorsement and the signature are not about the same publish.',
    );
  }
  const verdicts = await consensus.verify(proofs, {
    atMs: admittedAtMs(endorsement),
    genesis: network.genesis,
    epochs: network.epochs,
  });
  const bad = verdicts.find((verdict) => verdict.verdict === 'invalid');
  if (bad !== undefined)
    throw new HyperMeshError('proof-rejected', `The proof of ${bad.kind} does not hold: ${bad.says}`);
  return verdicts.filter((verdict) => verdict.verdict === 'valid');
}

/** The leaf is in the tree of the head, and a member of the committee signed exactly that head. */
async function checkInclusion(bundle: Bundle, content: DecodedPackage, { trust }: Judges): Promise<void> {
  const { inclusion, endorsement, network } = bundle;
  const { head } = inclusion;
  verifyInclusion(inclusionLeaf(content.digest, endorsement), inclusion);
  const signer = await trust.verify(head.envelope, head.chain, {
    role: 'validator',
    atMs: head.timestampMs,
    anchor: network.anchor,
  });
  // Of the network's first committee, or of the one that admitted the package; that its document holds was checked with the endorsement.
  const admitting =
    network.epochs?.find((document) => epochDigest(document) === endorsement.committee)?.validators ?? [];
  const first = decodeGenesis(network.genesis).genesis.committee.validators;
  const sits = [...first, ...admitting].some(({ key }) => key === signer.signer);
  if (!sits || head.envelope.payloadType !== TREE_HEAD_TYPE || !equal(signer.payload, treeHeadPayload(head))) {
    throw new HyperMeshError(
      'log-invalid',
      'The head of the transparency log is not signed by a member of the committee.',
    );
  }
}
