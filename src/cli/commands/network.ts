import { HyperMeshError } from '../../base/errors.ts';
import type { NetworkPlace, ProposalInfo, SequencerInfo } from '../../client/index.ts';
import type { Context, Outcome } from '../command.ts';
import { count, date, fields, oneLine, table } from '../terminal.ts';
import { wholeNumber } from './search.ts';
import { hexId } from './trust.ts';

const MEMBERS = '`hypermesh network members` lists the nodes.';

export async function show(context: Context): Promise<Outcome> {
  return shown(await context.withNode((client) => client.networkPlace(context)));
}

export async function create(
  context: Context,
  { open = false, ...options }: { readonly listen?: string; readonly open?: boolean },
): Promise<Outcome> {
  const request = { ...options, ...(open ? { open: {} } : {}) };
  const place = await context.withNode((client) => client.createNetwork(request, context));
  return shown(place, open ? OPENED : 'Others can be invited now: hypermesh network invite');
}

const OPENED = 'Whoever has the open invite can join now, until `hypermesh network close`. Pass it on to everybody.';

export async function open(
  context: Context,
  options: {
    readonly members?: string;
    readonly perHour?: string;
    readonly perAddress?: string;
    readonly work?: string;
  },
): Promise<Outcome> {
  const { members: most, perHour, perAddress, work } = options;
  const bounds = {
    ...(most === undefined ? {} : { membersMax: wholeNumber(most, '--members') }),
    ...(perHour === undefined ? {} : { joinsPerHour: wholeNumber(perHour, '--per-hour') }),
    ...(perAddress === undefined ? {} : { joinsPerAddressPerHour: wholeNumber(perAddress, '--per-address') }),
    ...(work === undefined ? {} : { workHexDigits: wholeNumber(work, '--work') }),
  };
  const place = await context.withNode((client) => client.createNetwork({ open: bounds }, context));
  return shown(place, OPENED);
}

export async function close(context: Context): Promise<Outcome> {
  const place = await context.withNode((client) => client.closeNetwork(context));
  return shown(place, 'Who comes needs an invite again. Who is in stays: hypermesh network members');
}

export async function invite(
  context: Context,
  options: { readonly expires?: string; readonly address?: string[]; readonly tokens?: string },
): Promise<Outcome> {
  const request = {
    ...(options.expires === undefined ? {} : { expiresInMs: time(options.expires) }),
    ...(options.address === undefined ? {} : { addresses: options.address }),
    ...(options.tokens === undefined ? {} : { tokens: wholeNumber(options.tokens, '--tokens') }),
  };
  const made = await context.withNode((client) => client.invite(request, context));
  const about = fields({
    Until: date(made.expiresAtMs),
    Addresses: made.addresses.join(', '),
    Tokens: made.tokens === 0 ? 'none' : `${made.tokens}, locked for who joins`,
  });
  const text = `${made.invite}\n\n${about}\n\nFor one machine. Whoever has this line can join in its place, so pass it on as you would a password.`;
  return { data: made, text };
}

export async function join(
  context: Context,
  text: string,
  options: { readonly listen?: string; readonly forget?: boolean },
): Promise<Outcome> {
  const place = await context.withNode((client) => client.joinNetwork({ invite: text, ...options }, context));
  return shown(place, 'This home is a member now.');
}

export async function members(context: Context): Promise<Outcome> {
  const list = await context.withNode((client) => client.networkMembers(context));
  const rows = list.map(({ subject, node, isCommittee, joinedAtMs, leftAtMs, wasRemoved, isOpen, origin }) => [
    subject,
    node,
    isCommittee ? 'committee' : isOpen ? `no invite${origin === null ? '' : `, ${oneLine(origin)}`}` : '',
    date(joinedAtMs),
    leftAtMs === null ? '' : `${wasRemoved ? 'removed' : 'left'} ${date(leftAtMs)}`,
  ]);
  return { data: { members: list }, text: table([['Name', 'Node', '', 'Joined', ''], ...rows]) };
}

/** Shows the committee; with an action, changes who sits in the next one. */
export async function validators(
  context: Context,
  action?: string,
  what: readonly string[] = [],
  { instead = false }: { readonly instead?: boolean } = {},
): Promise<Outcome> {
  switch (action) {
    case undefined:
      return seated(context);
    case 'proposals': {
      const all = await context.withNode((client) => client.networkProposals(context));
      return { data: all, text: all.length === 0 ? 'Nothing is proposed.' : all.map(proposalText).join('\n\n') };
    }
    case 'approve': {
      const [proposal] = what as readonly `sha256:${string}`[];
      if (what.length <= 1)
        return proposed(context, { action, instead, ...(proposal === undefined ? {} : { proposal }) });
      break;
    }
    case 'add':
    case 'remove':
      if (what.length > 0) {
        return proposed(context, { action, instead, nodes: what.map((node) => hexId(node, 'a node', MEMBERS)) });
      }
  }
  throw new HyperMeshError(
    'usage',
    'Expected add NODE..., remove NODE..., proposals, approve [PROPOSAL], or nothing.',
    {
      hint: MEMBERS,
    },
  );
}

async function proposed(
  context: Context,
  request: Parameters<Parameters<Parameters<Context['withNode']>[0]>[0]['changeValidators']>[0],
): Promise<Outcome> {
  const info = await context.withNode((client) => client.changeValidators(request, context));
  return { data: info, text: proposalText(info) };
}

function proposalText({ digest, epoch: number, validators: seats, approvedBy, needed }: ProposalInfo): string {
  const isDone = approvedBy.length === 0 || approvedBy.length >= needed;
  return fields({
    Proposal: digest,
    Epoch: `${number}, of ${count(seats.length, 'validator')}`,
    State: isDone
      ? 'approved: the committee hands over'
      : `${approvedBy.length} of ${needed} validators approved; on the other machines: hypermesh network validators approve`,
  });
}

async function seated(context: Context): Promise<Outcome> {
  const committee = await context.withNode((client) => client.networkValidators(context));
  const rows = committee.validators.map(({ subject, node, validator, account, isSelf, isReachable, locked }) => [
    oneLine(subject ?? '-'),
    node ?? '-',
    validator,
    account,
    locked === null ? '-' : `${locked}`,
    isSelf ? 'this home' : isReachable ? 'answers' : 'not reached',
  ]);
  return { data: committee, text: table([['Name', 'Node', 'Validator', 'Account', 'Locked', ''], ...rows]) };
}

export async function sequencer(
  context: Context,
  endpoints: readonly string[],
  {
    toEtcd = false,
    toHome,
    recover = false,
  }: { readonly toEtcd?: boolean; readonly toHome?: string | true; readonly recover?: boolean },
): Promise<Outcome> {
  if (toEtcd !== endpoints.length > 0 || (toEtcd && toHome !== undefined)) {
    throw new HyperMeshError('usage', 'Expected --to-etcd with its endpoints, --to-home, or neither.');
  }
  if (recover && !toEtcd && toHome === undefined) {
    throw new HyperMeshError('usage', 'Expected --to-etcd or --to-home beside --recover: where the order goes on.');
  }
  const info = await context.withNode((client) => {
    if (toEtcd) return client.moveSequencer({ kind: 'etcd', endpoints: [...endpoints], recover }, context);
    if (toHome === undefined) return client.networkSequencer(context);
    const validator = toHome === true ? {} : { validator: toHome };
    return client.moveSequencer({ kind: 'embedded', ...validator, recover }, context);
  });
  const approved = info.approved.map(
    ({ to, after, by, needed }) =>
      `${placeOf(to)}${after === null ? '' : `, after entry ${after}`}: ${by.length} of ${needed} validators`,
  );
  const text = fields({
    Network: info.networkId,
    Engine: placeOf(info.engine),
    Moved: count(info.moves, 'time'),
    Entries: `${info.applied} certified${info.waiting === 0 ? '' : `, ${info.waiting} waiting`}${info.floor === 0 ? '' : `, kept from ${info.floor + 1} on`}`,
    Head: info.head,
    ...(approved.length === 0 ? {} : { Approved: approved.join('; ') }),
    ...(info.trouble === null ? {} : { Trouble: oneLine(info.trouble) }),
    ...(info.split.length === 0 ? {} : { Split: `other entries were shown to ${info.split.join(', ')}` }),
  });
  return { data: info, text };
}

function placeOf(place: SequencerInfo['engine']): string {
  return place.kind === 'etcd' ? `etcd, ${place.endpoints.join(', ')}` : `in the home of validator ${place.validator}`;
}

export async function epoch(context: Context): Promise<Outcome> {
  const committee = await context.withNode((client) => client.networkValidators(context));
  const { networkId, epoch: number, sinceMs, quorum, documents, validators: seats } = committee;
  const text = fields({
    Network: networkId,
    Epoch: `${number}${sinceMs === null ? '' : `, ${documents === 1 ? '' : 'known here '}since ${date(sinceMs)}`}`,
    Committee: `${count(seats.length, 'validator')}, of whom ${quorum} must agree`,
    Verified: `${count(documents, 'document')}, from the genesis on`,
  });
  return { data: { ...committee, validators: seats.map(({ validator }) => validator) }, text };
}

export async function leave(context: Context, options: { readonly forget?: boolean }): Promise<Outcome> {
  const place = await context.withNode((client) => client.leaveNetwork(options, context));
  const untold = place.isFounderTold
    ? ''
    : `\nThe founder does not answer, so its list of members still has this home. Ask there: hypermesh network remove ${place.node}`;
  return shown(place, `This home is in a network of its own again.${untold}`);
}

export async function remove(
  context: Context,
  node: string,
  options: { readonly compromised?: boolean },
): Promise<Outcome> {
  hexId(node, 'a node', MEMBERS);
  const member = await context.withNode((client) => client.removeMember({ node, ...options }, context));
  return { data: member, text: `Removed ${oneLine(member.subject)}, node ${member.node}.` };
}

const ROLES = { alone: 'in a network of its own', founder: 'founder of the network', member: 'member' } as const;

function shown(place: NetworkPlace, then?: string): Outcome {
  const { role, networkId, node, committee, open: anybody } = place;
  const seats = committee.map(
    (seat) => `${seat.node.slice(0, 16)} at ${seat.addresses.join(', ') || 'no known address'}`,
  );
  const text = fields({
    Place: ROLES[role],
    Network: networkId,
    Node: node,
    ...(seats.length === 0 ? {} : { Committee: `${count(seats.length, 'seat')}: ${seats.join('; ')}` }),
    ...(anybody === null
      ? {}
      : {
          Open: `${count(anybody.membersMax, 'member')} without an invite at most, ${anybody.joinsPerHour} an hour, ${anybody.joinsPerAddressPerHour} from one address, for ${count(anybody.workHexDigits, 'digit')} of work`,
          'Can publish': anybody.mayPublish ? 'everybody' : 'who has tokens, which come with an invite or from others',
          'Open invite': anybody.invite ?? 'none, since this node listens nowhere',
        }),
  });
  return { data: place, text: then === undefined ? text : `${text}\n\n${then}` };
}

/** `90s`, `30m`, `24h`, `7d`. */
function time(text: string): number {
  const [, digits, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  if (digits === undefined) {
    throw new HyperMeshError('usage', `Expected a time such as 30m, 24h or 7d, but got "${text.slice(0, 50)}".`);
  }
  return Number(digits) * { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }[unit as 's' | 'm' | 'h' | 'd'];
}
