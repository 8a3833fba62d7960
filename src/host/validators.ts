import type { CallOptions } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { ApproveOptions, CommitteeInfo, NetworkMember, ProposalInfo } from '../capabilities/membership.ts';
import type { PeerInfo } from '../capabilities/transport.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { type ValidatorKeys, validatorKeys } from '../wire/attestation.ts';
import { quorumOf } from '../wire/genesis.ts';
import { type Seats, senseless } from './seats.ts';

interface ValidatorsLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  /** Other nodes, as this one sees them. */
  peers(): Promise<readonly PeerInfo[]>;
}

/** Who sits in the committee, by the names and machines of members, and how that changes. */
export class Validators {
  readonly #lent: ValidatorsLent;
  readonly #seats: Seats;

  constructor(lent: ValidatorsLent, seats: Seats) {
    this.#lent = lent;
    this.#seats = seats;
  }

  async list(): Promise<CommitteeInfo> {
    const { consensus, trust, peers } = this.#lent;
    const [{ networkId }, committee, members, known] = await Promise.all([
      consensus.genesis(),
      consensus.committee(),
      // Names are a courtesy: who sits in the committee is known without asking it.
      this.#seats.membersSoon(),
      peers(),
    ]);
    const { validators, digest: _digest, ...epoch } = committee;
    const own = trust.keyIds();
    const alive = new Set(known.filter(({ state }) => state === 'alive').map(({ node }) => node));
    return {
      networkId,
      ...epoch,
      sinceMs: epoch.sinceMs ?? trust.epochSeenAtMs(epoch.epoch),
      quorum: quorumOf(validators.length),
      validators: validators.map(({ key, account, locked }) => {
        const member = members.find(({ publisher, leftAtMs }) => publisher === account && leftAtMs === null);
        const isSelf = key === own.validator;
        const node = isSelf ? own.node : (member?.node ?? trust.machines().get(account) ?? null);
        const isReachable = isSelf || (node !== null && alive.has(node));
        return { validator: key, account, node, subject: member?.subject ?? null, isSelf, isReachable, locked };
      }),
    };
  }

  async add(nodes: readonly string[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    const { consensus } = this.#lent;
    const members = await this.#seats.members();
    const added = await Promise.all(nodes.map((node) => this.#keysOf(node, members, options)));
    const seats = new Map([...(await consensus.seats()), ...added].map((seat) => [seat.key, seat]));
    return this.#spread(await consensus.proposeCommittee([...seats.values()], options));
  }

  async remove(nodes: readonly string[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    const { consensus } = this.#lent;
    // Known also where the register of members cannot be asked, because it is its machine that is gone.
    const { validators } = await this.list();
    const present = await consensus.seats();
    const removed = nodes.map((node) => {
      const account = validators.find((one) => one.node === node)?.account;
      if (account !== undefined) return account;
      throw new HyperMeshError('usage', `The node ${node.slice(0, 16)}… has no seat in the committee.`, {
        hint: 'See who has: hypermesh network validators',
      });
    });
    const others = present.filter(({ account }) => !removed.includes(account));
    if (others.length === 0) throw new HyperMeshError('usage', 'The last validator cannot be removed.');
    return this.#spread(await consensus.proposeCommittee(others, options));
  }

  async approve(proposal: Digest | undefined, options: ApproveOptions = {}): Promise<ProposalInfo> {
    return this.#spread(await this.#lent.consensus.approveCommittee(proposal, options));
  }

  /** What the committee is to know of the validator of a member. */
  async #keysOf(node: string, members: readonly NetworkMember[], options: CallOptions): Promise<ValidatorKeys> {
    const { trust } = this.#lent;
    const member = members.find((one) => one.node === node && one.leftAtMs === null);
    if (member === undefined) throw notMember(node);
    const keys =
      node === trust.keyIds().node
        ? await trust.validatorKeys()
        : validatorKeys.safeParse(await this.#seats.askNode(node, 'network/keys', {}, options)).data;
    if (keys?.account !== member.publisher) throw senseless();
    return keys;
  }

  /** Tells who gets a seat, that he may take it; who is away learns it with the news of the network. */
  async #spread(proposal: ProposalInfo): Promise<ProposalInfo> {
    const { consensus, trust } = this.#lent;
    const epochs = (await consensus.genesis()).epochs as unknown as Json;
    const members = await this.#seats.membersSoon();
    const own = trust.keyIds().node;
    const nodes = proposal.validators.flatMap(({ account }) => {
      const node = members.find((one) => one.publisher === account)?.node ?? trust.machines().get(account) ?? own;
      return node === own ? [] : [node];
    });
    await Promise.allSettled(nodes.map((node) => this.#seats.askNode(node, 'network/documents', { epochs })));
    return proposal;
  }
}

function notMember(node: string): HyperMeshError {
  return new HyperMeshError('not-a-member', `The node ${node.slice(0, 16)}… is no member of the network.`, {
    hint: 'A validator joins first: hypermesh network invite',
  });
}
