import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Ask, AskOptions } from './ask.ts';
import type { Bans } from './bans.ts';
import type { Channel, Connection, NodeId } from './channel/index.ts';

const CONNECT_TIMEOUT_MS = 8_000;
/** An address that did not work is not tried again for so long. */
const ADDRESS_REST_MS = 2_000;
const RESTING_MAX = 10_000;

export interface ReachOptions {
  readonly clock: Clock;
  readonly bans: Bans;
  /** Where a node may be found, most likely first. */
  readonly addressesOf: (node: NodeId) => readonly string[];
  /** It answered. */
  readonly heard: (node: NodeId) => void;
}

/** The way to other nodes by their id: a connection that is open, or one to the first of their addresses that works. */
export class Reach {
  readonly #channel: Channel;
  readonly #options: ReachOptions;
  /** Addresses that did not work a moment ago, and why. */
  readonly #resting = new Map<string, { readonly untilMs: number; readonly error: unknown }>();

  constructor(channel: Channel, options: ReachOptions) {
    this.#channel = channel;
    this.#options = options;
  }

  readonly ask: Ask = async (to, method, body, options) => {
    const open = this.#openTo(to);
    const answer = await this.#request(to, method, body, options).catch((error: unknown) => {
      // It was about to end, or the other side closed it: what counts is whether a new one can be had. Every method can be asked twice.
      if (open === undefined || !isCoded(error, 'peer-unreachable') || options.signal?.aborted) throw error;
      return this.#request(to, method, body, options);
    });
    this.#options.heard(to);
    return answer;
  };

  /** Errors: `peer-unreachable`, and those of the last address. */
  async connected(to: NodeId, { signal }: Pick<AskOptions, 'signal'>): Promise<Connection> {
    const { bans, clock, addressesOf } = this.#options;
    if (bans.has(to)) {
      throw new HyperMeshError('peer-unreachable', `${to.slice(0, 12)} is banned: ${bans.get(to)?.reason}.`, {
        hint: `Let it in again, if that was a mistake: hypermesh peers forgive ${to}`,
      });
    }
    const open = this.#openTo(to);
    if (open !== undefined) return open;
    const nowMs = clock.nowMs();
    return firstWorking([...new Set(addressesOf(to))], async (address) => {
      const resting = this.#resting.get(`${to} ${address}`);
      if (resting !== undefined && resting.untilMs > nowMs) throw resting.error;
      try {
        return await patiently(signal, (within) => this.#channel.connect(address, { expect: to, signal: within }));
      } catch (error) {
        // That somebody gave up says nothing about the address.
        if (isCoded(error, 'cancelled')) throw error;
        if (this.#resting.size > RESTING_MAX) this.#resting.clear();
        this.#resting.set(`${to} ${address}`, { untilMs: nowMs + ADDRESS_REST_MS, error });
        throw error;
      }
    });
  }

  /** Ends every connection with that node. */
  disconnect(node: NodeId): void {
    for (const connection of this.#channel.connections()) {
      if (connection.remote.node === node) void connection[Symbol.asyncDispose]();
    }
  }

  async #request(...[to, method, body, options]: Parameters<Ask>): Promise<Uint8Array> {
    return (await this.connected(to, options)).request(method, body, options);
  }

  #openTo(to: NodeId): Connection | undefined {
    return this.#channel.connections().find(({ remote }) => remote.node === to);
  }
}

/** Gives an attempt up after a while. That is a failure of the other side, and not `cancelled`, which is what the caller wants. */
export async function patiently<T>(
  signal: AbortSignal | undefined,
  attempt: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const patience = AbortSignal.timeout(CONNECT_TIMEOUT_MS);
  try {
    return await attempt(signal === undefined ? patience : AbortSignal.any([patience, signal]));
  } catch (error) {
    if (!isCoded(error, 'cancelled') || !patience.aborted || signal?.aborted === true) throw error;
    throw new HyperMeshError('peer-unreachable', `A node did not answer within ${CONNECT_TIMEOUT_MS / 1_000} s.`, {
      cause: error,
    });
  }
}

/** Tries one after the other. When none works: that somebody else is at one of them, else the error of the last. */
export async function firstWorking<T>(
  addresses: readonly string[],
  attempt: (address: string) => Promise<T>,
): Promise<T> {
  let failure: unknown = new HyperMeshError('peer-unreachable', 'No address of the node is known.');
  for (const address of addresses) {
    try {
      return await attempt(address);
    } catch (error) {
      if (!isCoded(error) || isCoded(error, 'cancelled')) throw error;
      // Another node may live by now where this one was.
      if (!isCoded(failure, 'identity-mismatch')) failure = error;
    }
  }
  throw failure;
}
