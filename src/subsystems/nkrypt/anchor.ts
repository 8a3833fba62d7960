import type { Digest } from '../../base/digest.ts';
import { canonicalJson } from '../../base/json.ts';
import {
  type AnchorShare,
  AUDITS,
  type Challenge,
  contextOf,
  hashedTimes,
  medianOf,
  type Operation,
  operationDigest,
  type Requirements,
  type ShareStatement,
} from '../../wire/proof.ts';
import type { Law } from './epoch-law.ts';

/** What all shares of an anchor are about. */
export interface AnchorTerms {
  readonly operation: Operation;
  readonly requirements: Requirements;
  readonly networkId: Digest;
  readonly committee: Digest;
  readonly previous: Digest;
}

/** The statement that a validator signed to give a share. */
export function shareStatement(
  { networkId, committee, operation, previous }: Omit<AnchorTerms, 'requirements'>,
  own: Pick<AnchorShare, 'nonce' | 'issuedAtMs' | 'hexDigits'>,
): ShareStatement {
  const { nonce, issuedAtMs, hexDigits } = own;
  return { networkId, committee, operation: operationDigest(operation), nonce, issuedAtMs, previous, hexDigits };
}

/** The one challenge that those shares of a quorum make. */
export function challengeOf({ previous, ...terms }: AnchorTerms, shares: readonly AnchorShare[]): Challenge {
  const unsealed = {
    ...terms,
    anchor: {
      issuedAtMs: medianOf(shares.map(({ issuedAtMs }) => issuedAtMs)),
      hexDigits: medianOf(shares.map(({ hexDigits }) => hexDigits)),
      previous,
      shares: [...shares].sort(byValidator),
    },
  };
  return { ...unsealed, context: contextOf(unsealed) };
}

/** By ascending key id, as all lists of words are written. */
export function byValidator(
  a: { readonly attestation: { readonly validator: string } },
  b: { readonly attestation: { readonly validator: string } },
): number {
  return a.attestation.validator < b.attestation.validator ? -1 : 1;
}

/** Whether a challenge is what its shares make it. A sentence says what does not belong together. Who signed them is checked apart. */
export function objectionToChallenge(
  challenge: Challenge,
  law: Pick<Law, 'genesis' | 'networkId' | 'committee'>,
): string | undefined {
  const { operation, requirements, networkId, committee, anchor } = challenge;
  if (networkId !== law.networkId) return 'The challenge belongs to another network.';
  if (committee !== law.committee.digest) return 'The challenge was issued by another committee.';
  if (canonicalJson(requirements) !== canonicalJson(law.genesis.requirements[operation.kind]))
    return 'The challenge asks for something else than the network does.';
  const made = challengeOf({ operation, requirements, networkId, committee, previous: anchor.previous }, anchor.shares);
  if (anchor.issuedAtMs !== made.anchor.issuedAtMs || anchor.hexDigits !== made.anchor.hexDigits)
    return 'The anchor does not say the median of its shares.';
  if (challenge.context !== made.context) return 'The context is not that of the operation and anchor.';
  return undefined;
}

/** Leading zeros that the work proof of a challenge has: by the table, and at busy times by the committee. */
export function hexDigitsOf({ requirements, anchor }: Challenge): number {
  return Math.max(requirements.work?.hexDigits ?? 0, anchor.hexDigits);
}

/** Whether `revealed` is what each share of the anchor was committed to for that audit. */
export function isRevealed(shares: readonly AnchorShare[], attempt: number, revealed: readonly string[]): boolean {
  return (
    revealed.length === shares.length && shares.every(({ nonce }, i) => hashedTimes(revealed[i]!, attempt) === nonce)
  );
}

/** What the holder of a seed reveals for an audit. */
export function revealedOf(seed: string, attempt: number): string {
  return hashedTimes(seed, AUDITS + 1 - attempt);
}
