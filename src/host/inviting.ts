import type { Clock } from '../base/clock.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Membership, NetworkPlace, NewInvite } from '../capabilities/membership.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { decodeGenesis } from '../wire/genesis.ts';
import { checkAddress, encodeInvite, INVITE_LIMITS } from '../wire/invite.ts';
import type { NetworkSide } from './network-side.ts';

const DAY_MS = 86_400_000;
const INVITE_MS_DEFAULT = DAY_MS;
const INVITE_MS_MAX = 30 * DAY_MS;

interface InvitingLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly network: Pick<NetworkSide, 'addresses'>;
  readonly clock: Clock;
}

/** An invite, where `place` is that of the founder. Errors: those of {@link Membership.invite}. */
export async function makeInvite(
  { trust, consensus, network, clock }: InvitingLent,
  place: NetworkPlace,
  options: NonNullable<Parameters<Membership['invite']>[0]>,
): Promise<NewInvite> {
  const { networkId, node, role, committee, open } = place;
  if (role === 'alone') {
    throw new HyperMeshError('network-state', 'This home keeps its network to itself.', {
      hint: 'Open it to others first: hypermesh network create',
    });
  }
  if (role === 'member') {
    const [where] = committee.flatMap(({ addresses }) => addresses);
    throw new HyperMeshError(
      'committee-only',
      'Only the founder of a network invites. This home is a member, which a seat in the committee does not change.',
      {
        hint:
          open?.invite == null
            ? `On the machine of the founder${where === undefined ? '' : `, which is reached at ${where}`}: hypermesh network invite. While that machine is away nobody joins; publishing and all else goes on.`
            : `The founder opened this network to everybody; pass on its line: ${open.invite}`,
      },
    );
  }
  const { expiresInMs = INVITE_MS_DEFAULT } = options;
  if (!Number.isSafeInteger(expiresInMs) || expiresInMs < 1_000 || expiresInMs > INVITE_MS_MAX) {
    throw new HyperMeshError('usage', 'An invite is good for 1 second to 30 days.');
  }
  const addresses = (options.addresses ?? network.addresses()).slice(0, INVITE_LIMITS.addressesMax);
  addresses.forEach(checkAddress);
  if (addresses.length === 0) {
    throw new HyperMeshError('usage', 'This node does not listen anywhere where another machine could reach it.', {
      hint: 'Name its address: hypermesh network invite --address 192.0.2.7:9292',
    });
  }
  const tokens = options.tokens ?? (await tokensToLock(consensus));
  const { balance, locked } = await consensus.stake();
  if (!Number.isSafeInteger(tokens) || tokens < 0)
    throw new HyperMeshError('usage', 'Expected a whole number of tokens.');
  if (tokens > balance - locked) {
    throw new HyperMeshError(
      'stake-insufficient',
      `${tokens} tokens go with the invite, but only ${balance - locked} are free.`,
      {
        hint: 'Unlock some, or give fewer with --tokens.',
      },
    );
  }
  const expiresAtMs = Math.ceil((clock.nowMs() + expiresInMs) / 1_000) * 1_000;
  const secret = await trust.invite({ expiresAtMs, tokens });
  return {
    invite: encodeInvite({ networkId, inviter: node, secret, expiresAtMs, addresses }),
    expiresAtMs,
    addresses,
    tokens,
  };
}

/** What a member needs to have locked to do everything that the network knows. */
async function tokensToLock(consensus: NKrypt): Promise<number> {
  const { genesis } = decodeGenesis((await consensus.genesis()).document);
  return Math.max(...Object.values(genesis.requirements).map((row) => row.stake?.amountMin ?? 0));
}
