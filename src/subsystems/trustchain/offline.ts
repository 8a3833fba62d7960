import { laterTurn } from '../../base/turn.ts';
import type { Verified } from '../../capabilities/trust.ts';
import type { CertificateChain, Envelope, TrustAnchor } from '../../wire/signature.ts';
import type { VerifyOptions } from './verify.ts';

/**
 * Checks an envelope against a root with nothing but these arguments: no disk, no network, no home.
 * Loads the certificate codec and the FALCON module on first use.
 * Errors: `signature-invalid`, `certificate-invalid`, `certificate-expired`, `certificate-revoked`.
 */
export async function verifyEnvelope(
  envelope: Envelope,
  chain: CertificateChain,
  anchor: TrustAnchor,
  options: VerifyOptions,
): Promise<Verified> {
  const [{ checkEnvelope }, { falconReady }] = await Promise.all([import('./verify.ts'), import('./falcon.ts')]);
  await falconReady();
  // Some milliseconds, and loading it took as long the first time. What is checked was given, so nothing changes meanwhile.
  await laterTurn();
  return checkEnvelope(envelope, chain, anchor, options);
}
