import type { CallOptions } from '../base/call.ts';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type {
  ApproveOptions,
  CommitteeInfo,
  LeftPlace,
  Membership,
  NetworkMember,
  NetworkPlace,
  NewInvite,
  ProposalInfo,
  SequencerInfo,
} from '../capabilities/membership.ts';
import type { PeerInfo } from '../capabilities/transport.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import type { NetworkMove } from '../wire/certification.ts';
import { decodeInvite, decodeOpenInvite, type Invite, isOpenInvite, type OpenInvite } from '../wire/invite.ts';
import { CommitteeAuthority } from './committee-authority.ts';
import { makeInvite } from './inviting.ts';
import { Joining } from './joining.ts';
import { membersOf, whereItIs } from './membership-methods.ts';
import { makeMove } from './network-move.ts';
import type { NetworkSide } from './network-side.ts';
import { boundsOf, openInfo, setTerms } from './opening.ts';
import { Seats } from './seats.ts';
import { Validators } from './validators.ts';

/** How often a member asks what was revoked. */
const NEWS_EVERY_MS = 600_000;
const NEWS_FIRST_MS = 5_000;
/** After a new committee took office. */
const MEET_MS = 20_000;

export interface MembershipLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly assets: { totals(): Promise<{ readonly versions: number }>; forget(): Promise<void> };
  readonly network: NetworkSide;
  /** Other nodes, as this one sees them. */
  peers(): Promise<readonly PeerInfo[]>;
  /** Runs without calls of extensions in between. */
  whilePaused<T>(work: () => Promise<T>): Promise<T>;
}

/** How a home founds a network with others, joins one, and leaves it: each step is a file beside this one. */
export class NetworkMembership implements Membership, AsyncDisposable {
  readonly #lent: MembershipLent & { readonly clock: Clock };
  readonly #directory: string;
  readonly #seats: Seats;
  readonly #authority: CommitteeAuthority;
  readonly #joining: Joining;
  readonly #validators: Validators;
  #changing: Promise<unknown> = Promise.resolve();
  #news: NodeJS.Timeout | undefined;
  #meeting: NodeJS.Timeout | undefined;

  constructor(lent: MembershipLent, options: { readonly directory: string; readonly clock: Clock }) {
    this.#lent = { ...lent, clock: options.clock };
    this.#directory = options.directory;
    this.#seats = new Seats(lent);
    this.#authority = new CommitteeAuthority(this.#lent, this.#seats);
    this.#joining = new Joining(this.#lent);
    this.#validators = new Validators(lent, this.#seats);
  }

  /** Takes up the place that the home has: to be called after the start, and with `anew` after the network may have changed. */
  async enter(options: { readonly anew?: boolean } = {}): Promise<void> {
    const { trust, network } = this.#lent;
    this.#follow();
    await this.#noteEpoch();
    const belongs = trust.membership() !== null || trust.isFounder();
    if (belongs && (options.anew === true || !network.isOpen)) {
      // Without a listener it takes part all the same, and its status says why it does not listen.
      await network.openNetwork().catch((error: unknown) => {
        if (!isCoded(error)) throw error;
      });
    }
    if (!belongs && network.isOpen) await network.closeNetwork();
    network.termsChanged();
  }

  /** Another committee may be in office: where its new validators are is asked while the founder can be. */
  epochsChanged(): void {
    void this.#noteEpoch().catch(() => undefined);
    clearTimeout(this.#meeting);
    // Not everybody at once.
    this.#meeting = setTimeout(() => void this.#meetSeats().catch(() => undefined), MEET_MS * (0.5 + Math.random()));
    this.#meeting.unref();
  }

  /** Documents carry no time: that of the first committee is in the genesis, of later ones this home remembers when it learned of them. */
  async #noteEpoch(): Promise<void> {
    const { epoch, sinceMs } = await this.#lent.consensus.committee();
    if (sinceMs === null) this.#lent.trust.noteEpoch(epoch);
  }

  async #meetSeats(): Promise<void> {
    const { consensus, trust } = this.#lent;
    if (trust.membership() === null) return;
    const machines = trust.machines();
    if ((await consensus.seats()).some(({ account }) => !machines.has(account))) await this.#seats.learnMachines();
  }

  /** A member asks its committee, and goes on asking what was revoked. */
  #follow(): void {
    const { trust, consensus } = this.#lent;
    const isMember = trust.membership() !== null;
    clearTimeout(this.#news);
    trust.follow(isMember ? this.#authority : undefined);
    consensus.follow(isMember || trust.isFounder() ? this.#seats.askSeat : undefined);
    consensus.meet((...question) => this.#seats.askValidator(...question));
    if (!isMember) return;
    // The first time soon after the start, which a node that ends with its one command does not live to see.
    const ask = (afterMs: number): void => {
      this.#news = setTimeout(() => {
        void trust
          .refreshAnchor()
          .then(() => this.#meetSeats())
          .catch(() => undefined);
        ask(NEWS_EVERY_MS);
      }, afterMs);
      this.#news.unref();
    };
    ask(NEWS_FIRST_MS);
  }

  async place(): Promise<NetworkPlace> {
    const { trust, consensus, network } = this.#lent;
    const { networkId, document } = await consensus.genesis();
    const { node } = trust.keyIds();
    const membership = trust.membership();
    const addresses = network.addresses();
    const about = { networkId, node, open: openInfo(trust.terms(), document, { networkId, peer: node, addresses }) };
    if (membership !== null) {
      const committee = membership.committee.map((seat) => whereItIs(seat, (of) => network.addressesOf(of)));
      return { role: 'member', ...about, committee };
    }
    if (!trust.isFounder()) return { role: 'alone', ...about, committee: [], open: null };
    return { role: 'founder', ...about, committee: [{ node, addresses }] };
  }

  create(options: Parameters<Membership['create']>[0] = {}): Promise<NetworkPlace> {
    return this.#exclusive(async () => {
      const { trust } = this.#lent;
      if (trust.membership() !== null) throw options.open === undefined ? alreadyMember() : founderOnly('open');
      const open = options.open === undefined ? undefined : boundsOf(options.open, trust.terms()?.terms);
      trust.setFounder(true);
      this.#follow();
      await this.#lent.network.openNetwork(options.listen);
      if (open !== undefined) await setTerms(this.#lent, open);
      return this.place();
    });
  }

  close(): Promise<NetworkPlace> {
    return this.#exclusive(async () => {
      if (this.#lent.trust.membership() !== null) throw founderOnly('close');
      await setTerms(this.#lent, null);
      return this.place();
    });
  }

  /** A node of this network broke the rules, seen by this one: if it came without an invite it loses its place for that. */
  async misbehaved(node: string): Promise<void> {
    const { trust } = this.#lent;
    if (trust.membership() !== null || !trust.isFounder()) return;
    const row = await trust.member(node);
    if (row === undefined || row.origin === null || row.left_at_ms !== null) return;
    await this.remove(node);
  }

  async invite(options: Parameters<Membership['invite']>[0] = {}): Promise<NewInvite> {
    return makeInvite(this.#lent, await this.place(), options);
  }

  join(
    text: string,
    options: CallOptions & { readonly listen?: string | undefined; readonly forget?: boolean | undefined } = {},
  ): Promise<NetworkPlace> {
    return this.#exclusive(async () => {
      const { trust } = this.#lent;
      const invite = isOpenInvite(text) ? decodeOpenInvite(text) : decodeInvite(text);
      const membership = trust.membership();
      if (membership !== null && membership.networkId !== invite.networkId) throw alreadyMember();
      if (membership === null) {
        await this.#checkFree(invite);
        await this.#checkEmpty('join another network', options.forget);
        const { certification, terms } = await this.#joining.letIn(invite, options);
        await this.#move({ formatVersion: 1, kind: 'join', certification, forget: options.forget ?? false });
        if (terms !== null) trust.keepTerms(terms);
      }
      this.#follow();
      try {
        await this.#lent.network.openNetwork(options.listen);
      } catch (error) {
        if (!isCoded(error)) throw error;
        throw new HyperMeshError(
          error.code,
          `This home is a member now, but does not listen to others. ${error.message}`,
          {
            hint: 'Repeat the command with another --listen; for this home the invite stays good.',
            cause: error,
          },
        );
      }
      // Of use to a member, too, when everybody's address is another one than it knows.
      this.#lent.network.heardOf('peer' in invite ? invite.peer : invite.inviter, invite.addresses);
      return this.place();
    });
  }

  proposals(): Promise<readonly ProposalInfo[]> {
    return this.#lent.consensus.proposals();
  }

  addValidators(nodes: readonly string[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    return this.#validators.add(nodes, options);
  }

  removeValidators(nodes: readonly string[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    return this.#validators.remove(nodes, options);
  }

  approveValidators(proposal: Digest | undefined, options: ApproveOptions = {}): Promise<ProposalInfo> {
    return this.#validators.approve(proposal, options);
  }

  sequencer(): Promise<SequencerInfo> {
    return this.#lent.consensus.sequencer();
  }

  moveSequencer(...[to, options]: Parameters<Membership['moveSequencer']>): Promise<SequencerInfo> {
    const { trust, consensus } = this.#lent;
    return consensus.moveSequencer(
      to.kind === 'etcd' ? to : { kind: 'embedded', validator: to.validator ?? trust.keyIds().validator },
      options,
    );
  }

  validators(): Promise<CommitteeInfo> {
    return this.#validators.list();
  }

  members(): Promise<readonly NetworkMember[]> {
    return this.#seats.members();
  }

  leave(options: CallOptions & { readonly forget?: boolean | undefined } = {}): Promise<LeftPlace> {
    return this.#exclusive(async () => {
      const { trust, network } = this.#lent;
      const { role } = await this.place();
      if (role === 'alone') throw new HyperMeshError('network-state', 'This home is in a network of its own already.');
      if (role === 'founder') {
        if ((await trust.members()).some((row) => row.left_at_ms === null)) {
          throw new HyperMeshError(
            'network-state',
            'Others are members of the network that this home founded, and need it.',
            {
              hint: 'Remove them first: hypermesh network members',
            },
          );
        }
        await setTerms(this.#lent, null);
        trust.setFounder(false);
        await network.closeNetwork();
        return { ...(await this.place()), isFounderTold: true };
      }
      await this.#checkEmpty('leave its network', options.forget);
      await trust.checkAbandon();
      // A courtesy: a committee that cannot be reached keeps nobody, and the certificates end by themselves.
      const isFounderTold = await this.#seats.ask('network/leave', {}, options).then(
        () => true,
        () => false,
      );
      await network.closeNetwork();
      await this.#move({ formatVersion: 1, kind: 'leave', forget: options.forget ?? false });
      await this.enter();
      return { ...(await this.place()), isFounderTold };
    });
  }

  async remove(node: string, options: { readonly compromised?: boolean | undefined } = {}): Promise<NetworkMember> {
    const { trust, network } = this.#lent;
    if (trust.membership() === null && node === trust.keyIds().node) {
      throw new HyperMeshError('usage', 'The founder cannot be removed from its own network.');
    }
    await trust.removeMember(node, options.compromised === true ? 'key-compromise' : 'cessation-of-operation');
    network.expel(node);
    return (await membersOf(this.#lent)).find((member) => member.node === node)!;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#news);
    clearTimeout(this.#meeting);
    await this.#changing.catch(() => undefined);
  }

  async #checkFree(invite: Invite | OpenInvite): Promise<void> {
    const { networkId, node, role } = await this.place();
    if (invite.networkId === networkId || ('inviter' in invite && invite.inviter === node)) {
      throw new HyperMeshError('network-state', 'This home issued the invite itself.', {
        hint: 'Use it on another machine, or with another --home.',
      });
    }
    if (role === 'founder' && (await this.#lent.trust.members()).some((row) => row.left_at_ms === null)) {
      throw new HyperMeshError(
        'network-state',
        'Others are members of the network that this home founded, and need it.',
        {
          hint: 'Join with another home: hypermesh --home DIR network join INVITE',
        },
      );
    }
  }

  async #checkEmpty(what: string, forget = false): Promise<void> {
    const { versions } = await this.#lent.assets.totals();
    if (versions === 0 || forget) return;
    throw new HyperMeshError(
      'home-not-empty',
      `This home holds ${versions} package version${versions === 1 ? '' : 's'} of its present network; it cannot ${what} with them.`,
      {
        hint: 'Use a new home (--home DIR), or repeat with --forget: it drops them from this home, and publish your own again afterwards.',
      },
    );
  }

  async #move(move: NetworkMove): Promise<void> {
    const { whilePaused, trust, consensus } = this.#lent;
    await whilePaused(async () => {
      await this.#checkEmpty('change its network', move.forget);
      trust.follow(undefined);
      consensus.follow(undefined);
      await makeMove(this.#lent, this.#directory, move);
    });
  }

  #exclusive<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(change, change);
    this.#changing = result.catch(() => undefined);
    return result;
  }
}

function founderOnly(what: string): HyperMeshError {
  return new HyperMeshError('committee-only', `Only the founder can ${what} a network.`, {
    hint: 'Run the command on the machine of the founder.',
  });
}

function alreadyMember(): HyperMeshError {
  return new HyperMeshError('network-state', 'This home is a member of a network already.', {
    hint: 'Use another --home, or leave it first: hypermesh network leave',
  });
}
