import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { once } from '../base/streams.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { Capabilities } from '../capabilities/extension.ts';
import { manifestOfJson } from '../wire/manifest.ts';
import { assetId } from '../wire/names.ts';
import { encodePackage } from '../wire/package.ts';
import { encodeStatement, STATEMENT_TYPE } from '../wire/statement.ts';
import type { SignedPackage, StagedPackage } from './api.ts';

/** The two steps before a publish: content and manifest into the store, then the publisher's signature over them. */

export async function stagePackage(
  assets: Pick<Assets, 'put' | 'tree' | 'stat'>,
  manifestYaml: string,
  layer: Digest,
  options: CallOptions = {},
): Promise<StagedPackage> {
  const manifest =
    manifestOfJson(manifestYaml) ?? (await import('../wire/manifest-text.ts')).parseManifest(manifestYaml);
  const info = await assets.stat(layer);
  if (info === null)
    throw new HyperMeshError('blob-not-found', `The content store has no layer ${layer}.`, {
      hint: 'Upload the layer first.',
    });
  const files = new Set(
    (await assets.tree(layer, options)).filter((entry) => entry.kind !== 'directory').map((entry) => entry.path),
  );
  for (const [key, path] of [
    ['entry', manifest.entry],
    ['readme', manifest.readme],
  ] as const) {
    if (path !== undefined && !files.has(path)) {
      throw new HyperMeshError(
        'entry-missing',
        `catalog.yaml says ${key}: ${path}, but the package has no file of that path.`,
        {
          hint: `Add the file, correct \`${key}\`, or check \`exclude\`.`,
          details: { key, path },
        },
      );
    }
  }
  if (manifest.image !== undefined && !files.has(manifest.image) && !files.has(`${manifest.image}/oci-layout`)) {
    throw new HyperMeshError(
      'entry-missing',
      `catalog.yaml says image: ${manifest.image}, but the package has neither an archive nor an OCI layout there.`,
      {
        hint: 'Save the image into the package folder: `podman save --format oci-archive -o image.tar NAME`.',
        details: { key: 'image', path: manifest.image },
      },
    );
  }
  const encoded = encodePackage(manifest, [info]);
  const config = await assets.put(once(encoded.config), { signal: options.signal });
  const { digest } = await assets.put(once(encoded.manifest), { signal: options.signal });
  return {
    ref: `${manifest.name}@${manifest.version}`,
    digest,
    config: config.digest,
    id: assetId(manifest.type, digest),
    manifest,
    layer: info,
  };
}

export async function signPackage(
  lent: Pick<Capabilities, 'trust' | 'consensus'>,
  staged: StagedPackage,
  nowMs: number,
): Promise<SignedPackage> {
  const { networkId } = await lent.consensus.genesis();
  const payload = encodeStatement({
    name: staged.manifest.name,
    version: staged.manifest.version,
    manifest: staged.digest,
    config: staged.config,
    network: networkId,
    signedAtMs: nowMs,
  });
  return { ...staged, envelope: await lent.trust.sign('publisher', STATEMENT_TYPE, payload) };
}
