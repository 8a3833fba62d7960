import { base64, utf8 } from '../../src/base/bytes.ts';
import type { Digest } from '../../src/base/digest.ts';
import { HyperMeshError, isCoded } from '../../src/base/errors.ts';
import type { Json } from '../../src/base/json.ts';
import type { SeatAsk } from '../../src/capabilities/membership.ts';
import type { NetworkSide } from '../../src/host/network-side.ts';
import { HyperMesh } from '../../src/hypermesh.ts';
import type { Method } from '../../src/subsystems/stoq/index.ts';
import { decodeBody, encodeBody } from '../../src/wire/committee.ts';
import { ORDER_METHODS } from '../../src/wire/order.ts';
import { SMALL_NETWORK } from '../system/support.ts';
import { type Behaviour, Liar, type Submission } from './lies.ts';
import { QUICK_PACE } from './mesh.ts';

/**
 * The node of a validator that was taken over: its home joined honestly and got its seat by the committee; from now on it answers as it is told, over the
 * real channel. Argument: the home. Orders come from the parent, each answered in its turn.
 */
export type LiarOrder =
  | { readonly behave: Behaviour }
  | { readonly equivocate: { readonly subjects: readonly Digest[]; readonly refs: readonly string[] } }
  | { readonly submit: Submission; readonly to: string }
  /** Puts nonsense into the engine in the home of that validator, until it is refused. */
  | { readonly flood: string };

export interface Flood {
  readonly taken: number;
  /** How the last of it was refused. */
  readonly refusal: { readonly code: string; readonly details?: Readonly<Record<string, unknown>> | undefined };
}

const ASK_MS = 60_000;
const FLOODS_AT_ONCE = 16;
const [home] = process.argv.slice(2) as [string];
const liar = new Liar();
let methods = new Map<string, Method>();

const hypermesh = await HyperMesh.create({
  ...{ home, network: SMALL_NETWORK, threads: 1, clock: liar.clock },
  peers: { pace: QUICK_PACE },
  networkSide: (all) => {
    // The cast: it is the map that the node answers by, and this test lies by it.
    methods = all as Map<string, Method>;
    for (const [name, method] of all) {
      if (!name.startsWith('committee/') && !(ORDER_METHODS as readonly string[]).includes(name)) continue;
      const handle: Method['handle'] = async (body, from, options) => {
        const honestly = async () => decodeBody((await method.handle(body, from, options)) as Uint8Array) as Json;
        return encodeBody(await liar.answer(name, decodeBody(body) as Json, `${from.node}`, honestly));
      };
      methods.set(name, { ...method, handle });
    }
    // The cast: nothing stands in the place of the real network.
    return undefined as unknown as NetworkSide;
  },
});
const { node } = hypermesh;
liar.take(node);
await hypermesh.loadExtension('catalog');

const ask: SeatAsk = async (validator, method, body, { signal, timeoutMs = ASK_MS } = {}) => {
  const seats = (await node.membership.validators()).validators;
  const seat = seats.find((one) => one.validator === validator);
  const request = encodeBody(body);
  if (seat?.isSelf === true) {
    const from = { kind: 'member', node: seat.node, publisher: seat.account, address: 'itself' } as const;
    const options = { signal: signal ?? new AbortController().signal };
    return decodeBody((await methods.get(method)!.handle(request, from, options)) as Uint8Array);
  }
  if (seat?.node == null) throw new HyperMeshError('peer-unreachable', 'Nobody knows where that validator is.');
  // The cast: what is lent to extensions has no `ask`.
  const transport = node.transport as unknown as Pick<NetworkSide, 'ask'>;
  return decodeBody(await transport.ask(seat.node, method, request, { replyBytesMax: 2 ** 22, timeoutMs, signal }));
};

async function flood(host: string): Promise<Flood> {
  const { networkId } = await node.consensus.genesis();
  let taken = 0;
  for (let round = 0; ; round += 1) {
    const entries = Array.from({ length: FLOODS_AT_ONCE }, (_, at) =>
      base64(utf8(JSON.stringify([process.pid, round, at]))),
    );
    const asked = await Promise.allSettled(
      entries.map((entry) => ask(host, 'sequence/append', { log: `${networkId.slice(7)}-0`, entry })),
    );
    taken += asked.filter(({ status }) => status === 'fulfilled').length;
    for (const one of asked) {
      if (one.status === 'fulfilled') continue;
      if (!isCoded(one.reason, 'quota-exceeded')) throw one.reason;
      return { taken, refusal: { code: one.reason.code, details: one.reason.details } };
    }
  }
}

async function obey(order: LiarOrder): Promise<unknown> {
  if ('behave' in order) {
    liar.behaviour = order.behave;
    return null;
  }
  if ('equivocate' in order) return liar.equivocate(order.equivocate.subjects, order.equivocate.refs, ask);
  if ('flood' in order) return flood(order.flood);
  const { proofs, order: signed } = order.submit;
  return ask(order.to, 'committee/vote', { proofs, order: signed, fast: false } as unknown as Json);
}

process.on('message', ({ id, order }: { readonly id: number; readonly order: LiarOrder }) => {
  void obey(order).then(
    (value) => process.send?.({ id, value }),
    (error: Error) =>
      process.send?.({ id, problem: { code: isCoded(error) ? error.code : 'internal', message: error.message } }),
  );
});
process.on('disconnect', () => void hypermesh.close().finally(() => process.exit(0)));
process.send?.({ id: 0 });
