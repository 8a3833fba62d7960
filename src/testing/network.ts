import { HyperMeshError } from '../base/errors.ts';
import type { NetworkSide } from '../host/network-side.ts';
import type { HostNode } from '../host/node.ts';
import type { Method, RemoteNode } from '../subsystems/stoq/index.ts';

interface Station {
  readonly methods: ReadonlyMap<string, Method>;
  readonly address: string;
  /** Who it is, once it knows. */
  readonly who: () => Promise<{ readonly node: string; readonly publisher: string; readonly networkId: string }>;
  open: boolean;
}

/** What a test does to the cables between the nodes of one process. */
export interface TestNetwork {
  /** The side of one node, as `NodeConfig.networkSide` wants it. `who` tells its keys; a real channel proves them. */
  side(name: string, who: Station['who']): (methods: ReadonlyMap<string, Method>) => NetworkSide;
  /** What a real channel would read from the certificates that a node shows. */
  identityOf(node: Pick<HostNode, 'trust' | 'consensus'>): ReturnType<Station['who']>;
  /** Nobody reaches that node any more, until `mend`. */
  cut(name: string): void;
  mend(name: string): void;
  /** One request from one node (null: from a guest) to another, with whatever body. */
  say(from: string | null, to: string, method: string, body: unknown): Promise<Uint8Array>;
  /** Called before each request reaches its node; may throw, which looks like a lost connection, or replace what is sent. */
  onRequest: (to: string, method: string, body: Uint8Array) => Uint8Array | undefined;
  /** Called with each answer on its way back. */
  onAnswer: (from: string, method: string, body: Uint8Array) => Uint8Array | undefined;
}

/** Nodes of one process that speak to each other without sockets. Addresses are `<name>:9292`. */
export function testNetwork(): TestNetwork {
  const stations = new Map<string, Station>();
  const cuts = new Set<string>();
  const network: TestNetwork = {
    side: (name, who) => (methods) => {
      const own: Station = { methods, who, address: `${name}:9292`, open: false };
      stations.set(name, own);
      const call = async (
        to: [string, Station],
        from: Omit<RemoteNode, 'address'>,
        method: string,
        body: Uint8Array,
      ) => {
        const [target, station] = to;
        if (cuts.has(name) || cuts.has(target) || !station.open) throw unreachable(target);
        const known = station.methods.get(method);
        if (known === undefined || (known.access === 'member' && from.kind === 'guest')) {
          throw new HyperMeshError('not-permitted', `${method} is not for ${from.kind}s.`);
        }
        const sent = network.onRequest(target, method, body) ?? body;
        if (sent.length > known.requestBytesMax) throw new HyperMeshError('limit-exceeded', `${method} is too long.`);
        const answer = await handled(known, sent, { ...from, address: own.address });
        if (cuts.has(name) || cuts.has(target)) throw unreachable(target);
        return network.onAnswer(target, method, answer) ?? answer;
      };
      return {
        async ask(node, method, body) {
          const from = await who();
          for (const to of stations) {
            const other = await to[1].who();
            if (other.node !== node || other.networkId !== from.networkId || !own.open) continue;
            return call(to, { kind: 'member', ...from }, method, body);
          }
          throw unreachable(node);
        },
        async asGuest(networkId, expected, addresses, talk) {
          let failed: unknown = unreachable('nobody');
          for (const address of addresses) {
            const to = [...stations].find(([, station]) => station.address === address);
            try {
              if (to === undefined || cuts.has(to[0]) || cuts.has(name) || !to[1].open) throw unreachable(address);
              const other = await to[1].who();
              if (other.networkId !== networkId)
                throw new HyperMeshError('network-mismatch', `${address} is in another network.`);
              if (other.node !== expected) throw new HyperMeshError('identity-mismatch', `${address} is another node.`);
              return await talk((method, body) =>
                call(to, { kind: 'guest', node: null, publisher: null }, method, body),
              );
            } catch (error) {
              failed = error;
            }
          }
          throw failed;
        },
        get isOpen() {
          return own.open;
        },
        async openNetwork() {
          own.open = true;
        },
        async closeNetwork() {
          own.open = false;
        },
        addressesOf: () => [],
        heardOf() {},
        termsChanged() {},
        nodeOf: () => undefined,
        expel() {},
        addresses: () => (own.open ? [own.address] : []),
      };
    },
    async identityOf({ trust, consensus }) {
      const keys = Object.fromEntries((await trust.certificates()).map((one) => [one.role, one.keyId]));
      const { networkId } = await consensus.genesis();
      return { node: keys['node']!, publisher: keys['publisher']!, networkId };
    },
    say: async (from, to, method, body) => {
      const known = stations.get(to)!.methods.get(method)!;
      if (known.access === 'member' && from === null) {
        throw new HyperMeshError('not-permitted', `${method} is not for guests.`);
      }
      const who = from === null ? { node: null, publisher: null } : await stations.get(from)!.who();
      const kind = from === null ? 'guest' : 'member';
      return handled(known, Buffer.from(JSON.stringify(body)), { kind, ...who, address: `${from ?? 'guest'}:9292` });
    },
    cut: (name) => void cuts.add(name),
    mend: (name) => void cuts.delete(name),
    onRequest: () => undefined,
    onAnswer: () => undefined,
  };
  return network;
}

async function handled(method: Method, body: Uint8Array, from: RemoteNode): Promise<Uint8Array> {
  const answer = await method.handle(body, from, { signal: new AbortController().signal });
  if (!(answer instanceof Uint8Array)) throw new TypeError('a method that streams is not for these cables');
  return answer;
}

function unreachable(what: string): HyperMeshError {
  return new HyperMeshError('peer-unreachable', `${what.slice(0, 100)} does not answer.`);
}
