import type { CallOptions } from '../base/call.ts';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { type Certification, decodeCertification, type JoinRequest, openJoinContext } from '../wire/certification.ts';
import { decodeBody, encodeBody } from '../wire/committee.ts';
import { INVITE_LIMITS, type Invite, type OpenInvite } from '../wire/invite.ts';
import { openEnvelope } from '../wire/signature.ts';
import type { SignedTerms, TermsAnswer } from '../wire/terms.ts';
import { CERTIFY_LIMITS, type NetworkSide } from './network-side.ts';
import { checkedTerms } from './network-terms.ts';
import { openOr } from './open-door.ts';
import { isUnreachable, senseless } from './seats.ts';

interface JoiningLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly network: NetworkSide;
  readonly clock: Clock;
}

/** How a home is let into a network that it is not in: it asks the founder, with an invite or at the price that the terms name. */
export class Joining {
  readonly #lent: JoiningLent;

  constructor(lent: JoiningLent) {
    this.#lent = lent;
  }

  /** Nothing of this home has changed when it fails. */
  async letIn(
    invite: Invite | OpenInvite,
    options: CallOptions,
  ): Promise<{ readonly certification: Certification; readonly terms: SignedTerms | null }> {
    try {
      if (!('secret' in invite)) return await this.#certifiedOpenly(invite, options);
      return { certification: await this.#certified(invite, options), terms: null };
    } catch (error) {
      throw orAway(error, invite);
    }
  }

  async #certified(invite: Invite, options: CallOptions): Promise<Certification> {
    const { networkId, inviter: asked, secret, addresses } = invite;
    options.onProgress?.({ step: 'join', note: `asking ${addresses.join(', ')}` });
    const request = await this.#lent.trust.certificationRequest({ networkId, asked, secret });
    return this.#askToJoin({ networkId, asked, addresses }, request, options);
  }

  /** Without an invite: by the terms of the network, at the price that they name. */
  async #certifiedOpenly(
    { networkId, peer, addresses }: OpenInvite,
    options: CallOptions,
  ): Promise<{ readonly certification: Certification; readonly terms: SignedTerms }> {
    const { trust, consensus } = this.#lent;
    for (let attempt = 1; ; attempt++) {
      const first = await this.#termsFrom({ networkId, node: peer, addresses }, options);
      const { founder } = first.signed.terms;
      const seat = first.committee.find(({ node }) => node === founder);
      const at = {
        ...{ networkId, asked: founder },
        addresses: merged(founder === peer ? addresses : [], seat?.addresses ?? []),
      };
      const { signed, challenge } =
        founder === peer
          ? first
          : await this.#termsFrom({ networkId, node: founder, addresses: at.addresses }, options);
      if (challenge === null) throw senseless();
      const request = await trust.certificationRequest({ networkId, asked: founder, secret: null });
      const { payload } = openEnvelope(request.envelopes[0]);
      const { workHexDigits } = openOr(signed.terms);
      const work = await consensus.work(openJoinContext(challenge, payload), workHexDigits, options);
      try {
        const certification = await this.#askToJoin(at, { ...request, open: { challenge, work } }, options);
        return { certification, terms: signed };
      } catch (error) {
        // The work took longer than the challenge was good for.
        if (attempt > 1 || !isCoded(error, 'proof-expired')) throw error;
      }
    }
  }

  /** Errors: `network-closed`, `network-mismatch`, `certification-invalid`, and those of asking. */
  async #termsFrom(
    { networkId, node, addresses }: { networkId: Digest; node: string; addresses: readonly string[] },
    { signal, onProgress }: CallOptions,
  ): Promise<TermsAnswer & { readonly signed: SignedTerms }> {
    onProgress?.({ step: 'join', note: `asking ${addresses.join(', ')}` });
    const reply = await this.#askToEnter({ networkId, node, addresses }, 'network/terms', {}, signal);
    const { signed, ...answer } = await checkedTerms(this.#lent.trust, reply, networkId);
    openOr(signed?.terms ?? null);
    return { ...answer, signed: signed! };
  }

  async #askToJoin(
    {
      networkId,
      asked,
      addresses,
    }: { readonly networkId: Digest; readonly asked: string; readonly addresses: readonly string[] },
    request: JoinRequest,
    { signal }: CallOptions,
  ): Promise<Certification> {
    const reply = await this.#askToEnter({ networkId, node: asked, addresses }, 'network/join', request, signal);
    const answer = await checkedCertification(this.#lent, reply, networkId);
    const committee = answer.committee.map((seat) =>
      seat.node === asked ? { ...seat, addresses: merged(addresses, seat.addresses) } : seat,
    );
    return { ...answer, committee };
  }

  /** A node of a network that this home is not in. */
  async #askToEnter(
    { networkId, node, addresses }: { networkId: Digest; node: string; addresses: readonly string[] },
    method: string,
    body: unknown,
    signal: AbortSignal | undefined,
  ): Promise<unknown> {
    const request = encodeBody(body);
    const limits = { ...CERTIFY_LIMITS, signal };
    const reply = await this.#lent.network
      .asGuest(networkId, node, addresses, (ask) => ask(method, request, limits), { signal })
      .catch((error: unknown) => {
        throw orClock(error);
      });
    return decodeBody(reply);
  }
}

/** What a committee certified. Errors: `certification-invalid`, and those of the check. */
export async function checkedCertification(
  { trust, clock }: { readonly trust: TrustChain; readonly clock: Clock },
  value: unknown,
  expected: Digest,
): Promise<Certification> {
  const { certification, networkId } = decodeCertification(value);
  if (networkId !== expected) {
    throw new HyperMeshError(
      'certification-invalid',
      'The answer is about another network than the one that was asked for.',
    );
  }
  // By the clock of this machine: what is kept for the move must pass the same check later.
  const checked = { ...certification, atMs: clock.nowMs() };
  await trust.checkCertification(checked);
  return checked;
}

/** Only the founder's machine lets others in, and it is not there. */
function orAway(error: unknown, invite: Invite | OpenInvite): unknown {
  if (!isUnreachable(error)) return error;
  const { code, message } = error as HyperMeshError;
  const isGood = 'secret' in invite ? `; the invite is good until ${new Date(invite.expiresAtMs).toISOString()}` : '';
  return new HyperMeshError(code, `The machine that lets others into this network was not reached. ${message}`, {
    hint: `Nothing has changed. See that the founder's node runs and that this machine reaches it, then run the same command again${isGood}. If its address is another one by now, ask for a new line.`,
    cause: error,
  });
}

/** What the other machine shows is not valid by the clock of this one: whose clock is wrong nobody can say. */
function orClock(error: unknown): unknown {
  if (!isCoded(error, 'certificate-expired')) return error;
  return new HyperMeshError(
    'clock-skewed',
    `By the clock of this machine the inviter is not valid now. ${error.message}`,
    {
      hint: 'Set the clock of this machine (or of the founder), then run the same command again; the invite is still good.',
      cause: error,
    },
  );
}

function merged(first: readonly string[], others: readonly string[]): readonly string[] {
  return [...new Set([...first, ...others])].slice(0, INVITE_LIMITS.addressesMax);
}
