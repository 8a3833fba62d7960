import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { CallOptions } from '../base/call.ts';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import type {
  ApproveOptions,
  CommitteeInfo,
  LeftPlace,
  Membership,
  NetworkMember,
  NetworkPlace,
  NewInvite,
  OpenBounds,
  OpenInfo,
  ProposalInfo,
  SeatAsk,
  SequencerInfo,
} from '../capabilities/membership.ts';
import type { PeerInfo } from '../capabilities/transport.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { NetworkAuthority, TrustChain } from '../subsystems/trustchain/index.ts';
import { type ValidatorKeys, validatorKeys } from '../wire/attestation.ts';
import {
  CERTIFICATION_LIMITS,
  type Certification,
  type CommitteeSeat,
  committeeSeat,
  decodeCertification,
  decodeNetworkMove,
  encodeNetworkMove,
  type JoinRequest,
  type NetworkMove,
  openJoinContext,
} from '../wire/certification.ts';
import { COMMITTEE_LIMITS, decodeBody, encodeBody } from '../wire/committee.ts';
import { hex32 } from '../wire/fields.ts';
import { decodeGenesis, quorumOf } from '../wire/genesis.ts';
import {
  checkAddress,
  decodeInvite,
  decodeOpenInvite,
  encodeInvite,
  encodeOpenInvite,
  INVITE_LIMITS,
  type Invite,
  isOpenInvite,
  type OpenInvite,
} from '../wire/invite.ts';
import {
  firstIssue,
  type LogInclusion,
  logInclusion,
  openEnvelope,
  signedTreeHead,
  trustAnchor,
} from '../wire/signature.ts';
import {
  type NetworkTerms,
  type OpenTerms,
  openTerms,
  type SignedTerms,
  TERMS_LIMITS,
  TERMS_TYPE,
  type TermsAnswer,
} from '../wire/terms.ts';
import { firstAnswer } from './first-answer.ts';
import { membersOf, whereItIs } from './membership-methods.ts';
import type { NetworkSide } from './network-side.ts';
import { checkedTerms } from './network-terms.ts';
import { openOr } from './open-door.ts';

const DAY_MS = 86_400_000;
const INVITE_MS_DEFAULT = DAY_MS;
const INVITE_MS_MAX = 30 * DAY_MS;
/** For who comes without an invite, where the founder says nothing else. */
const OPEN_DEFAULTS: OpenTerms = { membersMax: 1_000, joinsPerHour: 60, joinsPerAddressPerHour: 6, workHexDigits: 6 };
const ASK_TIMEOUT_MS = 15_000;
/** How long names and machines from the register of members are waited for where they are a courtesy. */
const REGISTER_PATIENCE_MS = 2_000;
/** Who keeps a log and says nothing for so long is not waited for alone; and comes last for a while. */
const LOG_PATIENCE_MS = 1_000;
const LOG_SHUNNED_MS = 60_000;
/** Certifying takes a busy machine a moment. */
const CERTIFY_LIMITS = { replyBytesMax: CERTIFICATION_LIMITS.answerBytesMax, timeoutMs: 60_000 } as const;
/** How often a member asks what was revoked. */
const NEWS_EVERY_MS = 600_000;
const NEWS_FIRST_MS = 5_000;
/** After a new committee took office. */
const MEET_MS = 20_000;

/** What says that somebody is not there, rather than that he refuses. */
const UNREACHABLE = ['peer-unreachable', 'network-unreachable', 'timeout', 'committee-unreachable'] as const;

const news = z.strictObject({
  anchor: trustAnchor,
  committee: z.array(committeeSeat).max(CERTIFICATION_LIMITS.committeeMax),
  epochs: z.array(z.unknown()).max(1_000),
});
const members = z.strictObject({
  members: z
    .array(
      z.strictObject({
        node: hex32,
        publisher: hex32,
        subject: z.string().max(64),
        isCommittee: z.boolean(),
        joinedAtMs: z.int().nonnegative(),
        leftAtMs: z.int().nonnegative().nullable(),
        wasRemoved: z.boolean(),
        isOpen: z.boolean(),
        origin: z.string().max(64).nullable(),
      }),
    )
    .max(COMMITTEE_LIMITS.membersMax + 1),
});

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

/**
 * A change of network spans databases, so it is written down first and can be done again from the start:
 *
 *   network/move.json.new   crash: nothing happened
 *   network/move.json       the commit point: from here on the change happens, now or at the next start
 *   trust, consensus, index each in one transaction that may be repeated
 *   move.json removed       done
 */
const MOVE = 'move.json';

/** To be called once at every start, after the parts were opened and before anything else uses them: finishes a change that a crash interrupted. */
export async function finishMove(
  { trust, consensus, assets }: Pick<MembershipLent, 'trust' | 'consensus' | 'assets'>,
  directory: string,
): Promise<void> {
  await rm(join(directory, `${MOVE}.new`), { force: true });
  const text = await readFile(join(directory, MOVE), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw storageError(error, 'reading the move to another network');
  });
  if (text === null) return;
  const move = decodeNetworkMove(text);
  switch (move.kind) {
    case 'join': {
      const { certification } = move;
      const { networkId } = decodeGenesis(certification.genesis);
      await trust.adopt(certification, {
        networkId,
        committee: certification.committee,
        joinedAtMs: certification.atMs,
      });
      await consensus.adopt(certification.genesis);
      break;
    }
    case 'leave':
      await trust.abandon();
      await consensus.abandon();
      break;
  }
  if (move.forget) await assets.forget();
  await rm(join(directory, MOVE), { force: true });
}

/** How a home founds a network with others, joins one, and leaves it. */
export class NetworkMembership implements Membership, AsyncDisposable {
  readonly #lent: MembershipLent;
  readonly #directory: string;
  readonly #clock: Clock;
  #changing: Promise<unknown> = Promise.resolve();
  #news: NodeJS.Timeout | undefined;
  #meeting: NodeJS.Timeout | undefined;
  #learning: Promise<ReadonlyMap<string, string>> | undefined;
  /** Whose log is asked last until then. */
  #founderShunnedUntilMs = 0;
  /** The seat that answered last is asked first. */
  #seat: string | undefined;

  constructor(lent: MembershipLent, options: { readonly directory: string; readonly clock: Clock }) {
    this.#lent = lent;
    this.#directory = options.directory;
    this.#clock = options.clock;
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
    if ((await consensus.seats()).some(({ account }) => !machines.has(account))) await this.#learnMachines();
  }

  /** A member asks its committee, and goes on asking what was revoked. */
  #follow(): void {
    const { trust, consensus } = this.#lent;
    const isMember = trust.membership() !== null;
    clearTimeout(this.#news);
    trust.follow(isMember ? this.#authority() : undefined);
    consensus.follow(isMember || trust.isFounder() ? this.#askSeat : undefined);
    consensus.meet((...question) => this.#askValidator(...question));
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
      const open = options.open === undefined ? undefined : this.#bounds(options.open);
      trust.setFounder(true);
      this.#follow();
      await this.#lent.network.openNetwork(options.listen);
      if (open !== undefined) await this.#setTerms(open);
      return this.place();
    });
  }

  /** What is not said stays as it is. Errors: `usage`. */
  #bounds(given: OpenBounds): OpenTerms {
    const { membersMax, joinsPerHour, joinsPerAddressPerHour, workHexDigits } =
      this.#lent.trust.terms()?.terms.open ?? OPEN_DEFAULTS;
    const bounds = openTerms.safeParse({
      membersMax: given.membersMax ?? membersMax,
      joinsPerHour: given.joinsPerHour ?? joinsPerHour,
      joinsPerAddressPerHour: given.joinsPerAddressPerHour ?? joinsPerAddressPerHour,
      workHexDigits: given.workHexDigits ?? workHexDigits,
    });
    if (bounds.success) return bounds.data;
    const { membersMax: most, workHexDigitsMax } = TERMS_LIMITS;
    throw new HyperMeshError(
      'usage',
      `Who comes without an invite cannot be bounded so: ${firstIssue(bounds.error)}.`,
      {
        hint: `Each bound is 1 to ${most}, the digits of work are 1 to ${workHexDigitsMax}.`,
      },
    );
  }

  close(): Promise<NetworkPlace> {
    return this.#exclusive(async () => {
      if (this.#lent.trust.membership() !== null) throw founderOnly('close');
      await this.#setTerms(null);
      return this.place();
    });
  }

  /** Signed, under the next version; what is the same already stays as it is. */
  async #setTerms(open: OpenTerms | null): Promise<void> {
    const { trust, consensus, network } = this.#lent;
    const { networkId } = await consensus.genesis();
    const before = trust.terms()?.terms;
    if (canonicalJson(before?.open ?? null) === canonicalJson(open)) return;
    const terms: NetworkTerms = {
      formatVersion: 1,
      networkId,
      version: (before?.version ?? 0) + 1,
      madeAtMs: this.#clock.nowMs(),
      founder: trust.keyIds().node,
      open,
    };
    trust.keepTerms({ terms, attestation: await trust.attest(TERMS_TYPE, terms) });
    network.termsChanged();
  }

  /** A node of this network broke the rules, seen by this one: if it came without an invite it loses its place for that. */
  async misbehaved(node: string): Promise<void> {
    const { trust } = this.#lent;
    if (trust.membership() !== null || !trust.isFounder()) return;
    const row = await trust.member(node);
    if (row === undefined || row.origin === null || row.left_at_ms !== null) return;
    await this.remove(node);
  }

  async invite(
    options: {
      readonly expiresInMs?: number | undefined;
      readonly addresses?: readonly string[] | undefined;
      readonly tokens?: number | undefined;
    } = {},
  ): Promise<NewInvite> {
    const { trust, consensus, network } = this.#lent;
    const { networkId, node, role, committee, open } = await this.place();
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
    const tokens = options.tokens ?? (await this.#tokensToLock());
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
    const expiresAtMs = Math.ceil((this.#clock.nowMs() + expiresInMs) / 1_000) * 1_000;
    const secret = await trust.invite({ expiresAtMs, tokens });
    return {
      invite: encodeInvite({ networkId, inviter: node, secret, expiresAtMs, addresses }),
      expiresAtMs,
      addresses,
      tokens,
    };
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
        const { certification, terms } = await this.#letIn(invite, options).catch((error: unknown) => {
          throw orAway(error, invite);
        });
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

  async addValidators(nodes: readonly string[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    const { consensus } = this.#lent;
    const members = await this.members();
    const added = await Promise.all(nodes.map((node) => this.#keysOf(node, members, options)));
    const seats = new Map([...(await consensus.seats()), ...added].map((seat) => [seat.key, seat]));
    return this.#spread(await consensus.proposeCommittee([...seats.values()], options));
  }

  /** What the committee is to know of the validator of a member. */
  async #keysOf(node: string, members: readonly NetworkMember[], options: CallOptions): Promise<ValidatorKeys> {
    const { trust } = this.#lent;
    const member = members.find((one) => one.node === node && one.leftAtMs === null);
    if (member === undefined) throw notMember(node);
    const keys =
      node === trust.keyIds().node
        ? await trust.validatorKeys()
        : validatorKeys.safeParse(await this.#askNode(node, 'network/keys', {}, options)).data;
    if (keys?.account !== member.publisher) throw senseless();
    return keys;
  }

  async removeValidators(nodes: readonly string[], options: ApproveOptions = {}): Promise<ProposalInfo> {
    const { consensus } = this.#lent;
    // Known also where the register of members cannot be asked, because it is its machine that is gone.
    const { validators } = await this.validators();
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

  async approveValidators(proposal: Digest | undefined, options: ApproveOptions = {}): Promise<ProposalInfo> {
    return this.#spread(await this.#lent.consensus.approveCommittee(proposal, options));
  }

  /** Tells who gets a seat, that he may take it; who is away learns it with the news of the network. */
  async #spread(proposal: ProposalInfo): Promise<ProposalInfo> {
    const { consensus, trust } = this.#lent;
    const epochs = (await consensus.genesis()).epochs as unknown as Json;
    const members = await this.#membersSoon();
    const own = trust.keyIds().node;
    const nodes = proposal.validators.flatMap(({ account }) => {
      const node = members.find((one) => one.publisher === account)?.node ?? trust.machines().get(account) ?? own;
      return node === own ? [] : [node];
    });
    await Promise.allSettled(nodes.map((node) => this.#askNode(node, 'network/documents', { epochs })));
    return proposal;
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

  async validators(): Promise<CommitteeInfo> {
    const { consensus, trust, peers } = this.#lent;
    const [{ networkId }, committee, members, known] = await Promise.all([
      consensus.genesis(),
      consensus.committee(),
      // Names are a courtesy: who sits in the committee is known without asking it.
      this.#membersSoon(),
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

  members(): Promise<readonly NetworkMember[]> {
    return this.#members({});
  }

  async #members(options: CallOptions): Promise<readonly NetworkMember[]> {
    const { trust } = this.#lent;
    if (trust.membership() === null) return membersOf(this.#lent);
    const parsed = members.safeParse(await this.#ask('network/members', {}, options));
    if (parsed.success) return parsed.data.members;
    throw senseless();
  }

  /** For what can be done without them: who keeps the register may be gone, or hang. */
  #membersSoon(): Promise<readonly NetworkMember[]> {
    return this.#members({ signal: AbortSignal.timeout(REGISTER_PATIENCE_MS) }).catch(() => []);
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
        await this.#setTerms(null);
        trust.setFounder(false);
        await network.closeNetwork();
        return { ...(await this.place()), isFounderTold: true };
      }
      await this.#checkEmpty('leave its network', options.forget);
      await trust.checkAbandon();
      // A courtesy: a committee that cannot be reached keeps nobody, and the certificates end by themselves.
      const isFounderTold = await this.#ask('network/leave', {}, options).then(
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

  /** What a member needs to have locked to do everything that the network knows. */
  async #tokensToLock(): Promise<number> {
    const { genesis } = decodeGenesis((await this.#lent.consensus.genesis()).document);
    return Math.max(...Object.values(genesis.requirements).map((row) => row.stake?.amountMin ?? 0));
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

  async #letIn(
    invite: Invite | OpenInvite,
    options: CallOptions,
  ): Promise<{ readonly certification: Certification; readonly terms: SignedTerms | null }> {
    if (!('secret' in invite)) return this.#certifiedOpenly(invite, options);
    return { certification: await this.#certified(invite, options), terms: null };
  }

  /** Nothing of this home has changed when it fails. */
  async #certified(invite: Invite, options: CallOptions): Promise<Certification> {
    const { networkId, inviter: asked, secret, addresses } = invite;
    options.onProgress?.({ step: 'join', note: `asking ${addresses.join(', ')}` });
    const request = await this.#lent.trust.certificationRequest({ networkId, asked, secret });
    return this.#askToJoin({ networkId, asked, addresses }, request, options);
  }

  /** Without an invite: by the terms of the network, at the price that they name. Nothing of this home has changed when it fails. */
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
    const answer = await this.#checkAnswer(reply, networkId);
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

  async #checkAnswer(value: unknown, expected: Digest): Promise<Certification> {
    const { certification, networkId } = decodeCertification(value);
    if (networkId !== expected) {
      throw new HyperMeshError(
        'certification-invalid',
        'The answer is about another network than the one that was asked for.',
      );
    }
    // By the clock of this machine: what is kept for the move must pass the same check later.
    const checked = { ...certification, atMs: this.#clock.nowMs() };
    await this.#lent.trust.checkCertification(checked);
    return checked;
  }

  async #move(move: NetworkMove): Promise<void> {
    const { whilePaused, trust, consensus } = this.#lent;
    await whilePaused(async () => {
      await this.#checkEmpty('change its network', move.forget);
      trust.follow(undefined);
      consensus.follow(undefined);
      // The commit point.
      await writeWhole(this.#directory, encodeNetworkMove(move));
      await finishMove(this.#lent, this.#directory);
    });
  }

  #authority(): NetworkAuthority {
    const checked = async <T>(schema: z.ZodType<T>, method: string, body: Json): Promise<T> => {
      const parsed = schema.safeParse(await this.#ask(method, body));
      if (parsed.success) return parsed.data;
      throw senseless();
    };
    return {
      news: async () => {
        const parsed = news.safeParse(await this.#askAsGuest('network/news', async () => ({})));
        if (!parsed.success) throw senseless();
        await this.#lent.consensus.learnEpochs(parsed.data.epochs);
        return parsed.data;
      },
      renew: async (request) => {
        const answer = await this.#askAsGuest('network/renew', (asked) => request(asked));
        return this.#checkAnswer(answer, this.#lent.trust.membership()!.networkId);
      },
      logAppend: (leaf, certificate) => this.#logAppend(leaf, certificate),
      logHead: () => checked(signedTreeHead, 'committee/log-head', {}),
      logConsistency: async (from, to) =>
        (await checked(z.strictObject({ path: z.array(hex32).max(64) }), 'committee/log-consistency', { from, to }))
          .path,
    };
  }

  /**
   * In the log of the founder; while that is away, or says nothing, in that of another validator of the committee that admitted it: of this home if it has a
   * seat. Who hangs is there for the network, so nobody waits until it is known to be gone.
   */
  async #logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion> {
    const { consensus, trust } = this.#lent;
    const { digest, validators } = await consensus.committee();
    const own = trust.keyIds().validator;
    const read = (answer: unknown) => {
      const parsed = logInclusion.safeParse(answer);
      if (parsed.success) return parsed.data;
      throw senseless();
    };
    let refusal: unknown;
    const founders = async (signal: AbortSignal) => {
      const beganMs = performance.now();
      try {
        return read(await this.#ask('committee/log', { certificate }, { signal }));
      } catch (error) {
        if (!isUnreachable(error)) refusal = error;
        throw error;
      } finally {
        if (performance.now() - beganMs > LOG_PATIENCE_MS)
          this.#founderShunnedUntilMs = performance.now() + LOG_SHUNNED_MS;
      }
    };
    const isOfOthers = (certificate as { committee?: unknown }).committee !== digest;
    const known = new Set(trust.membership()?.committee.map(({ validator }) => validator));
    const others = validators
      .filter(({ key }) => !isOfOthers && !known.has(key))
      .sort((a, b) => Number(b.key === own) - Number(a.key === own))
      .map(({ key }) => async (signal: AbortSignal) => {
        if (key === own) return trust.logHere(leaf);
        return read(await this.#askSeat(key, 'committee/log', { certificate }, { signal }));
      });
    const isShunned = performance.now() < this.#founderShunnedUntilMs;
    return firstAnswer(isShunned ? [...others, founders] : [founders, ...others], {
      patienceMs: LOG_PATIENCE_MS,
      isFinal: (error) => error === refusal || !isCoded(error),
    });
  }

  /** One validator, wherever it is. */
  readonly #askSeat: SeatAsk = async (validator, method, body, options = {}) => {
    const seat = this.#lent.trust.membership()?.committee.find((one) => one.validator === validator);
    if (seat === undefined) return this.#askValidator(validator, method, body, options);
    try {
      return await this.#askNode(seat.node, method, body, options);
    } catch (error) {
      throw await this.#orRemoved(error);
    }
  };

  /** Seats of the committee in turn, until one answers. */
  #ask(method: string, body: Json, options: Parameters<SeatAsk>[3] = {}): Promise<unknown> {
    return this.#inTurn(({ node }) => this.#askNode(node, method, body, options));
  }

  async #askNode(node: string, method: string, body: Json, options: Parameters<SeatAsk>[3] = {}): Promise<unknown> {
    const { replyBytesMax = COMMITTEE_LIMITS.answerBytesMax, timeoutMs = ASK_TIMEOUT_MS, signal } = options;
    const request = encodeBody(body);
    return decodeBody(await this.#lent.network.ask(node, method, request, { replyBytesMax, timeoutMs, signal }));
  }

  /** Another validator, on the machine of the member who answers for it with his tokens. */
  async #askValidator(
    validator: string,
    method: string,
    body: Json,
    { signal, timeoutMs = ASK_TIMEOUT_MS }: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number },
  ): Promise<unknown> {
    const node = await this.#machineOf(validator);
    if (node === undefined) {
      throw new HyperMeshError('peer-unreachable', `No node is known for the validator ${validator}.`);
    }
    return this.#askNode(node, method, body, { signal, timeoutMs });
  }

  /**
   * The register of members is asked once for each committee: the validators are found also while the founder is away. Who is connected has shown it by itself, also when
   * the founder went before it was asked.
   */
  async #machineOf(validator: string): Promise<string | undefined> {
    const { consensus, trust, network } = this.#lent;
    const isIt = ({ key }: { readonly key: string }) => key === validator;
    let seat = (await consensus.seats()).find(isIt);
    // Also of the committees before and after: who is behind learns from them how it went on. All documents are read for that.
    seat ??= (await consensus.genesis()).epochs
      .toReversed()
      .flatMap(({ validators }) => validators)
      .find(isIt);
    const account = seat?.account;
    if (account === undefined) return undefined;
    const machines = trust.machines();
    const known = machines.get(account);
    if (known !== undefined) return known;
    const connected = network.nodeOf(account);
    if (connected === undefined) return (await this.#learnMachines()).get(account);
    trust.rememberMachines(new Map([...machines, [account, connected]]));
    return connected;
  }

  /** One question at a time, whoever needs the answer. */
  #learnMachines(): Promise<ReadonlyMap<string, string>> {
    this.#learning ??= this.#askMachines().finally(() => {
      this.#learning = undefined;
    });
    return this.#learning;
  }

  async #askMachines(): Promise<ReadonlyMap<string, string>> {
    const [seats, members] = await Promise.all([this.#lent.consensus.seats(), this.members()]);
    const nodes = new Map(members.filter(({ leftAtMs }) => leftAtMs === null).map((one) => [one.publisher, one.node]));
    const machines = new Map(
      seats.flatMap(({ account }) => {
        const node = nodes.get(account);
        return node === undefined ? [] : [[account, node] as const];
      }),
    );
    this.#lent.trust.rememberMachines(machines);
    return machines;
  }

  /** The same without saying who asks: for those whose certificates or lists have run out. */
  #askAsGuest(method: string, body: (asked: string) => Promise<unknown>): Promise<unknown> {
    const { networkId } = this.#lent.trust.membership()!;
    return this.#inTurn(async ({ node, addresses }) => {
      const request = encodeBody(await body(node));
      return decodeBody(
        await this.#lent.network.asGuest(networkId, node, addresses, (ask) => ask(method, request, CERTIFY_LIMITS)),
      );
    });
  }

  async #inTurn<T>(ask: (seat: CommitteeSeat) => Promise<T>): Promise<T> {
    const seats = this.#lent.trust.membership()?.committee ?? [];
    const turn = [...seats].sort((a, b) => Number(b.node === this.#seat) - Number(a.node === this.#seat));
    let unreachable: unknown;
    for (const seat of turn) {
      try {
        const answer = await ask(seat);
        this.#seat = seat.node;
        return answer;
      } catch (error) {
        if (!isUnreachable(error)) throw await this.#orRemoved(error);
        unreachable = error;
      }
    }
    throw new HyperMeshError('committee-unreachable', 'The committee of the network does not answer.', {
      hint: 'Nothing was lost: run the same command again when the machine of the founder can be reached.',
      ...(unreachable === undefined ? {} : { cause: unreachable }),
    });
  }

  /** A refused handshake speaks of a revoked certificate; when it is this home's own, that has a plainer name. */
  async #orRemoved(error: unknown): Promise<unknown> {
    if (!isCoded(error, 'certificate-revoked')) return error;
    const own = await this.#lent.trust.certificates();
    if (!own.some(({ fingerprint }) => fingerprint === error.details?.['fingerprint'])) return error;
    return new HyperMeshError('not-a-member', 'This home was removed from its network.', {
      hint: 'Ask the founder for a new invite, or go on alone: hypermesh network leave --forget',
      cause: error,
    });
  }

  #exclusive<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(change, change);
    this.#changing = result.catch(() => undefined);
    return result;
  }
}

function isUnreachable(error: unknown): boolean {
  return isCoded(error, ...UNREACHABLE);
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

/** Durable and all or nothing. */
async function writeWhole(directory: string, text: string): Promise<void> {
  const path = join(directory, MOVE);
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    {
      await using file = await open(`${path}.new`, 'w', 0o600);
      await file.writeFile(text);
      await file.sync();
    }
    await rename(`${path}.new`, path);
    await using folder = await open(directory);
    await folder.sync();
  } catch (error) {
    throw storageError(error, `writing ${path}`);
  }
}

/** What the terms of this network say to who looks at them. */
function openInfo(signed: SignedTerms | null, genesis: Json, at: OpenInvite): OpenInfo | null {
  const terms = signed?.terms;
  if (terms === undefined || terms.open === null || terms.networkId !== at.networkId) return null;
  return {
    ...terms.open,
    invite: at.addresses.length === 0 ? null : encodeOpenInvite(at),
    version: terms.version,
    mayPublish: decodeGenesis(genesis).genesis.requirements.publish.stake === null,
  };
}

function founderOnly(what: string): HyperMeshError {
  return new HyperMeshError('committee-only', `Only the founder can ${what} a network.`, {
    hint: 'Run the command on the machine of the founder.',
  });
}

function notMember(node: string): HyperMeshError {
  return new HyperMeshError('not-a-member', `The node ${node.slice(0, 16)}… is no member of the network.`, {
    hint: 'A validator joins first: hypermesh network invite',
  });
}

function alreadyMember(): HyperMeshError {
  return new HyperMeshError('network-state', 'This home is a member of a network already.', {
    hint: 'Use another --home, or leave it first: hypermesh network leave',
  });
}

function senseless(): HyperMeshError {
  return new HyperMeshError('certification-invalid', 'The committee gave an answer that makes no sense.', {
    hint: 'Its machine runs another version of HyperMesh, or is not the committee.',
  });
}
