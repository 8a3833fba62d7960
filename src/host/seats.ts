import { z } from 'zod';
import type { CallOptions } from '../base/call.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { NetworkMember, SeatAsk } from '../capabilities/membership.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import type { CommitteeSeat } from '../wire/certification.ts';
import { COMMITTEE_LIMITS, decodeBody, encodeBody } from '../wire/committee.ts';
import { hex32 } from '../wire/fields.ts';
import { membersOf } from './membership-methods.ts';
import { CERTIFY_LIMITS, type NetworkSide } from './network-side.ts';

const ASK_TIMEOUT_MS = 15_000;
/** How long names and machines from the register of members are waited for where they are a courtesy. */
const REGISTER_PATIENCE_MS = 2_000;

/** What says that somebody is not there, rather than that he refuses. */
const UNREACHABLE = ['peer-unreachable', 'network-unreachable', 'timeout', 'committee-unreachable'] as const;

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

interface SeatsLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly network: NetworkSide;
}

/** How a home reaches the committee of its network, single validators and the register of members. */
export class Seats {
  readonly #lent: SeatsLent;
  #learning: Promise<ReadonlyMap<string, string>> | undefined;
  /** The seat that answered last is asked first. */
  #seat: string | undefined;

  constructor(lent: SeatsLent) {
    this.#lent = lent;
  }

  /** One validator, wherever it is. */
  readonly askSeat: SeatAsk = async (validator, method, body, options = {}) => {
    const seat = this.#lent.trust.membership()?.committee.find((one) => one.validator === validator);
    if (seat === undefined) return this.askValidator(validator, method, body, options);
    try {
      return await this.askNode(seat.node, method, body, options);
    } catch (error) {
      throw await this.#orRemoved(error);
    }
  };

  /** Seats of the committee in turn, until one answers. */
  ask(method: string, body: Json, options: Parameters<SeatAsk>[3] = {}): Promise<unknown> {
    return this.#inTurn(({ node }) => this.askNode(node, method, body, options));
  }

  async askNode(node: string, method: string, body: Json, options: Parameters<SeatAsk>[3] = {}): Promise<unknown> {
    const { replyBytesMax = COMMITTEE_LIMITS.answerBytesMax, timeoutMs = ASK_TIMEOUT_MS, signal } = options;
    const request = encodeBody(body);
    return decodeBody(await this.#lent.network.ask(node, method, request, { replyBytesMax, timeoutMs, signal }));
  }

  /** Another validator, on the machine of the member who answers for it with his tokens. */
  async askValidator(
    validator: string,
    method: string,
    body: Json,
    { signal, timeoutMs = ASK_TIMEOUT_MS }: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number },
  ): Promise<unknown> {
    const node = await this.#machineOf(validator);
    if (node === undefined) {
      throw new HyperMeshError('peer-unreachable', `No node is known for the validator ${validator}.`);
    }
    return this.askNode(node, method, body, { signal, timeoutMs });
  }

  /** The same without saying who asks: for those whose certificates or lists have run out. */
  askAsGuest(method: string, body: (asked: string) => Promise<unknown>): Promise<unknown> {
    const { networkId } = this.#lent.trust.membership()!;
    return this.#inTurn(async ({ node, addresses }) => {
      const request = encodeBody(await body(node));
      return decodeBody(
        await this.#lent.network.asGuest(networkId, node, addresses, (ask) => ask(method, request, CERTIFY_LIMITS)),
      );
    });
  }

  async members(options: CallOptions = {}): Promise<readonly NetworkMember[]> {
    const { trust } = this.#lent;
    if (trust.membership() === null) return membersOf(this.#lent);
    const parsed = members.safeParse(await this.ask('network/members', {}, options));
    if (parsed.success) return parsed.data.members;
    throw senseless();
  }

  /** For what can be done without them: who keeps the register may be gone, or hang. */
  membersSoon(): Promise<readonly NetworkMember[]> {
    return this.members({ signal: AbortSignal.timeout(REGISTER_PATIENCE_MS) }).catch(() => []);
  }

  /** One question at a time, whoever needs the answer. */
  learnMachines(): Promise<ReadonlyMap<string, string>> {
    this.#learning ??= this.#askMachines().finally(() => {
      this.#learning = undefined;
    });
    return this.#learning;
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
    if (connected === undefined) return (await this.learnMachines()).get(account);
    trust.rememberMachines(new Map([...machines, [account, connected]]));
    return connected;
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
}

export function isUnreachable(error: unknown): boolean {
  return isCoded(error, ...UNREACHABLE);
}

export function senseless(): HyperMeshError {
  return new HyperMeshError('certification-invalid', 'The committee gave an answer that makes no sense.', {
    hint: 'Its machine runs another version of HyperMesh, or is not the committee.',
  });
}
