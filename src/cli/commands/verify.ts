import { stat } from 'node:fs/promises';
import path from 'node:path';
import { isDigest } from '../../base/digest.ts';
import { ERRORS, EXIT, HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { VerifyResult } from '../../client/index.ts';
import { BUNDLE_BYTES_MAX, decodeBundle } from '../../wire/bundle.ts';
import type { Context, Outcome } from '../command.ts';
import { readFileBounded, writeWhole } from '../files.ts';
import { bytes, fields, shellWord, table } from '../terminal.ts';

export async function verify(
  context: Context,
  target: string,
  options: { readonly offline?: boolean; readonly genesis?: string },
): Promise<Outcome> {
  const offline = options.offline === true;
  const { genesis } = options;
  if (genesis !== undefined && !isDigest(genesis))
    throw new HyperMeshError(
      'usage',
      `Expected "sha256:" and 64 hexadecimal digits after --genesis, but got "${genesis.slice(0, 100)}".`,
    );
  const isFile = !isDigest(target) && (await stat(target).catch(() => null))?.isFile() === true;
  const looksLikeFile = /^[./~]|\.json$/.test(target);
  if (!isFile && !looksLikeFile) {
    if (!isDigest(target) && !/^[^/]+\/[^/]+$/.test(target))
      throw new HyperMeshError(
        'usage',
        `Expected a bundle file, scope/name[@range] or a digest, but got "${target.slice(0, 200)}", and there is no such file.`,
        { hint: 'Write a bundle with `hypermesh bundle scope/name FILE`.' },
      );
    const request = isDigest(target) ? { digest: target, offline } : { ref: target, offline };
    return describe(pinned(await context.withNode((client) => client.verify(request, context)), genesis));
  }
  const content = await readFileBounded(target, BUNDLE_BYTES_MAX);
  try {
    const bundle = decodeBundle(content);
    if (offline) {
      const { verifyOffline } = await import('../../main.ts');
      return describe(await verifyOffline(bundle, genesis));
    }
    // A bundle is plain JSON data; its type only promises more.
    const request = { bundle: bundle as unknown as Json };
    return describe(pinned(await context.withNode((client) => client.verify(request, context)), genesis));
  } catch (error) {
    throw isCoded(error) && error.hint === undefined && ERRORS[error.code].exit === EXIT.integrity
      ? new HyperMeshError(error.code, error.message, {
          hint: 'The file was altered or damaged. Get a fresh copy: hypermesh bundle scope/name FILE',
          cause: error,
        })
      : error;
  }
}

function pinned(result: VerifyResult, genesis: string | undefined): VerifyResult {
  if (genesis === undefined || genesis === result.networkId) return result;
  throw new HyperMeshError(
    'network-mismatch',
    `Expected a package of network ${genesis}, but it was published in ${result.networkId}.`,
  );
}

function describe(result: VerifyResult): Outcome {
  const { ref, digest, checks, publisher, networkId } = result;
  const rows = checks.map(({ check, says }) => ['ok', check, says]);
  const head = fields({
    Verified: ref,
    Digest: digest,
    Publisher: `${publisher.subject}, key ${publisher.keyId}`,
    Network: networkId,
  });
  return { data: { verified: true, ...result }, text: `${table(rows)}\n\n${head}` };
}

export async function bundle(context: Context, ref: string, file?: string): Promise<Outcome> {
  const content = canonicalJson(await context.withNode((client) => client.bundle(ref, context)));
  // The exact bytes matter: a bundle with a line feed at its end is another file.
  if (file === undefined) return { data: JSON.parse(content), text: content };
  const size = await writeWhole(path.resolve(file), content);
  return {
    data: { ref, file: path.resolve(file), bytes: size },
    text: `Wrote ${bytes(size)} to ${file}. Check it anywhere: hypermesh verify ${shellWord(file)} --offline`,
  };
}
