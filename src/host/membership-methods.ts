import type { CallOptions } from '../base/call.ts';
import type { Clock } from '../base/clock.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { NetworkMember } from '../capabilities/membership.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { Method, RemoteNode } from '../subsystems/stoq/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { inclusionLeaf } from '../wire/bundle.ts';
import { CERTIFICATION_LIMITS, type Certification, type CommitteeSeat } from '../wire/certification.ts';
import {
  COMMITTEE_REQUESTS,
  type CommitteeMethod,
  type CommitteeRequest,
  decodeBody,
  decodeRequest,
  encodeBody,
  requestBytesMax,
} from '../wire/committee.ts';
import { decodeGenesis } from '../wire/genesis.ts';
import { ORDER_BYTES_MAX, ORDER_METHODS } from '../wire/order.ts';
import type { TermsAnswer } from '../wire/terms.ts';
import { OpenDoor } from './open-door.ts';

export interface MethodsLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly clock: Clock;
  /** Where this home is reached. */
  addresses(): readonly string[];
  /** Where another node said last that it is. */
  addressesOf(node: string): readonly string[];
}

/** What a home answers as the committee of its network; a home without a seat refuses all of it with `committee-only`. */
export function membershipMethods(lent: MethodsLent): ReadonlyMap<string, Method> {
  const methods = new Map<string, Method>();
  const door = new OpenDoor(lent.clock);
  methods.set('network/terms', {
    access: 'guest',
    requestBytesMax: 64,
    handle: async () => encodeBody((await termsAnswer(lent, door)) as unknown as Json),
  });
  for (const name of Object.keys(COMMITTEE_REQUESTS) as CommitteeMethod[]) {
    // Who is up to date on revocations, and who is not (any more) able to say who he is, gets the lists all the same: they are signed.
    const access = name === 'network/news' ? 'guest' : 'member';
    methods.set(name, {
      access,
      requestBytesMax: requestBytesMax(name),
      handle: async (body, from, options) => encodeBody(await answer(lent, name, decodeBody(body), from, options)),
    });
  }
  for (const name of ORDER_METHODS) {
    methods.set(name, {
      access: 'member',
      requestBytesMax: ORDER_BYTES_MAX[name],
      handle: async (body, from, options) => {
        const { publisher } = await memberFrom(lent.trust, from);
        return encodeBody(await lent.consensus.order(name, publisher, decodeBody(body), options));
      },
    });
  }
  for (const name of ['network/join', 'network/renew'] as const) {
    methods.set(name, {
      access: 'guest',
      requestBytesMax: CERTIFICATION_LIMITS.requestBytesMax,
      handle: async (body, { address }) => encodeBody(await certify(lent, decodeBody(body), door, address)),
    });
  }
  return methods;
}

/** What anybody may know: a member says what it was told, who certifies also gives a challenge. */
async function termsAnswer(
  { trust, consensus, addresses, addressesOf }: MethodsLent,
  door: OpenDoor,
): Promise<TermsAnswer> {
  const { document, networkId } = await consensus.genesis();
  const membership = trust.membership();
  const kept = trust.terms();
  const signed = kept?.terms.networkId === networkId ? kept : null;
  const isOpen = signed !== null && signed.terms.open !== null;
  return {
    genesis: document,
    signed,
    committee:
      membership === null
        ? await seats({ trust, addresses })
        : membership.committee.map((seat) => whereItIs(seat, addressesOf)),
    challenge: membership === null && isOpen ? door.challenge() : null,
  };
}

/**
 * Joining and renewing are one thing: three keys show that they are held, and an invite, the register or the terms say that they belong here.
 * Tokens are given after the certificates were stored, once for each invite; a crash in between is made up for when the joiner asks again.
 */
async function certify(
  { trust, consensus, addresses, clock }: MethodsLent,
  request: unknown,
  door: OpenDoor,
  address: string,
): Promise<Certification> {
  if (!consensus.isCommittee) throw committeeOnly();
  const { networkId, document } = await consensus.genesis();
  const terms = trust.isFounder() ? (trust.terms()?.terms ?? null) : null;
  const { member, certificates, grant, network, anchor, authorities } = await trust.certify(
    request,
    networkId,
    (opened) => door.enter(terms, opened, address),
  );
  if (grant !== null) await consensus.grant(grant.id, member.publisher, grant.tokens);
  const committee = await seats({ trust, addresses });
  const atMs = clock.nowMs();
  return { formatVersion: 1, genesis: document, network, anchor, certificates, authorities, committee, atMs };
}

/** A seat where its node said last that it is: news of the committee come minutes later. */
export function whereItIs(seat: CommitteeSeat, addressesOf: MethodsLent['addressesOf']): CommitteeSeat {
  const addresses = addressesOf(seat.node);
  return addresses.length === 0 ? seat : { ...seat, addresses };
}

async function seats({
  trust,
  addresses,
}: Pick<MethodsLent, 'trust' | 'addresses'>): Promise<readonly CommitteeSeat[]> {
  const { node, validator } = trust.keyIds();
  return [{ node, validator, addresses: addresses() }];
}

async function answer(
  lent: MethodsLent,
  name: CommitteeMethod,
  body: unknown,
  from: RemoteNode,
  options: CallOptions,
): Promise<Json> {
  const { trust, consensus } = lent;
  if (name === 'network/keys') {
    decodeRequest(name, body);
    await memberFrom(trust, from);
    return (await trust.validatorKeys()) as unknown as Json;
  }
  if (name === 'network/documents') {
    await memberFrom(trust, from);
    // They say themselves whether they are true.
    await consensus.learnEpochs(decodeRequest(name, body).epochs);
    return {};
  }
  if (!consensus.isCommittee) throw committeeOnly();
  if (name === 'network/news') {
    decodeRequest(name, body);
    const { epochs } = await consensus.genesis();
    return { anchor: await trust.anchor(), committee: await seats(lent), epochs } as unknown as Json;
  }
  const { node, publisher } = await memberFrom(trust, from);
  switch (name) {
    case 'committee/log': {
      const certificate = await consensus.certified(decodeRequest(name, body).certificate);
      const { kind, subject } = certificate.operation;
      if (kind !== 'publish') throw new HyperMeshError('not-permitted', 'The log takes what was published.');
      const leaf = inclusionLeaf(subject, certificate);
      return (await trust.logHere(leaf)) as unknown as Json;
    }
    case 'committee/log-head':
      decodeRequest(name, body);
      return (await trust.logHead()) as unknown as Json;
    case 'committee/log-consistency': {
      const { from: first, to }: CommitteeRequest<typeof name> = decodeRequest(name, body);
      return { path: await trust.logConsistency(first, to) };
    }
    case 'network/epochs':
      return consensus.answerEpochs(publisher, decodeRequest(name, body));
    case 'network/members':
      decodeRequest(name, body);
      // Where somebody came from is the founder's to know.
      return { members: (await membersOf(lent)).map((one) => ({ ...one, origin: null })) } as unknown as Json;
    case 'network/leave':
      decodeRequest(name, body);
      await trust.removeMember(node, 'cessation-of-operation', { left: true });
      return {};
    default:
      consensus.seen(publisher, node);
      return consensus.desk(name, publisher, body, options);
  }
}

/** Asked for every request: who was removed a moment ago is refused on a connection that is still open. Errors: `not-a-member`. */
async function memberFrom(
  trust: TrustChain,
  from: RemoteNode,
): Promise<{ readonly node: string; readonly publisher: string }> {
  // The register is the founder's; anybody else has what the channel proved, by certificates and lists of the founder.
  if (trust.membership() !== null && from.node !== null && from.publisher !== null) {
    return { node: from.node, publisher: from.publisher };
  }
  const row = from.node === null ? undefined : await trust.member(from.node);
  if (row === undefined || row.left_at_ms !== null || row.publisher !== from.publisher) {
    throw new HyperMeshError(
      'not-a-member',
      'The machine that asks is not, or not any more, a member of this network.',
      {
        hint: 'Ask the founder for an invite: `hypermesh network invite`',
      },
    );
  }
  return { node: row.node, publisher: row.publisher };
}

/** The founder first. */
export async function membersOf({
  trust,
  consensus,
}: Pick<MethodsLent, 'trust' | 'consensus'>): Promise<readonly NetworkMember[]> {
  const { publisher, node } = trust.keyIds();
  const { genesis } = decodeGenesis((await consensus.genesis()).document);
  const founder = {
    node,
    publisher,
    subject: trust.subject(),
    isCommittee: true,
    joinedAtMs: genesis.createdAtMs,
    leftAtMs: null,
    wasRemoved: false,
    isOpen: false,
    origin: null,
  };
  const rows = await trust.members();
  return [
    founder,
    ...rows.map((row) => ({
      node: row.node,
      publisher: row.publisher,
      subject: row.subject,
      isCommittee: false,
      joinedAtMs: row.joined_at_ms,
      leftAtMs: row.left_at_ms,
      wasRemoved: row.removed === 1,
      isOpen: row.origin !== null,
      origin: row.origin,
    })),
  ];
}

function committeeOnly(): HyperMeshError {
  return new HyperMeshError('committee-only', 'This home does not sit in the committee of its network.', {
    hint: 'Ask the machine of the founder.',
  });
}
