import type { Clock } from '../base/clock.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import type { OpenBounds, OpenInfo } from '../capabilities/membership.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { decodeGenesis } from '../wire/genesis.ts';
import { encodeOpenInvite, type OpenInvite } from '../wire/invite.ts';
import { firstIssue } from '../wire/signature.ts';
import {
  type NetworkTerms,
  type OpenTerms,
  openTerms,
  type SignedTerms,
  TERMS_LIMITS,
  TERMS_TYPE,
} from '../wire/terms.ts';
import type { NetworkSide } from './network-side.ts';

/** For who comes without an invite, where the founder says nothing else. */
const OPEN_DEFAULTS: OpenTerms = { membersMax: 1_000, joinsPerHour: 60, joinsPerAddressPerHour: 6, workHexDigits: 6 };

interface OpeningLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly network: Pick<NetworkSide, 'termsChanged'>;
  readonly clock: Clock;
}

/** What is not said stays as it is. Errors: `usage`. */
export function boundsOf(given: OpenBounds, terms: NetworkTerms | undefined): OpenTerms {
  const { membersMax, joinsPerHour, joinsPerAddressPerHour, workHexDigits } = terms?.open ?? OPEN_DEFAULTS;
  const bounds = openTerms.safeParse({
    membersMax: given.membersMax ?? membersMax,
    joinsPerHour: given.joinsPerHour ?? joinsPerHour,
    joinsPerAddressPerHour: given.joinsPerAddressPerHour ?? joinsPerAddressPerHour,
    workHexDigits: given.workHexDigits ?? workHexDigits,
  });
  if (bounds.success) return bounds.data;
  const { membersMax: most, workHexDigitsMax } = TERMS_LIMITS;
  throw new HyperMeshError('usage', `Who comes without an invite cannot be bounded so: ${firstIssue(bounds.error)}.`, {
    hint: `Each bound is 1 to ${most}, the digits of work are 1 to ${workHexDigitsMax}.`,
  });
}

/** Signed, under the next version; what is the same already stays as it is. */
export async function setTerms(
  { trust, consensus, network, clock }: OpeningLent,
  open: OpenTerms | null,
): Promise<void> {
  const { networkId } = await consensus.genesis();
  const before = trust.terms()?.terms;
  if (canonicalJson(before?.open ?? null) === canonicalJson(open)) return;
  const terms: NetworkTerms = {
    formatVersion: 1,
    networkId,
    version: (before?.version ?? 0) + 1,
    madeAtMs: clock.nowMs(),
    founder: trust.keyIds().node,
    open,
  };
  trust.keepTerms({ terms, attestation: await trust.attest(TERMS_TYPE, terms) });
  network.termsChanged();
}

/** What the terms of this network say to who looks at them. */
export function openInfo(signed: SignedTerms | null, genesis: Json, at: OpenInvite): OpenInfo | null {
  const terms = signed?.terms;
  if (terms === undefined || terms.open === null || terms.networkId !== at.networkId) return null;
  return {
    ...terms.open,
    invite: at.addresses.length === 0 ? null : encodeOpenInvite(at),
    version: terms.version,
    mayPublish: decodeGenesis(genesis).genesis.requirements.publish.stake === null,
  };
}
