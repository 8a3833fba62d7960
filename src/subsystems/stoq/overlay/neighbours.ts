import { isIPv4 } from 'node:net';
import type { Digest } from '../../../base/digest.ts';
import { every, type Surroundings } from '../ask.ts';
import type { NodeId } from '../channel/index.ts';

/** Nodes of the same network on the same link find each other by multicast DNS (RFC 6762) as a service (RFC 6763), docs/protocol/overlay.md. */
const SERVICE = '_hypermesh._tcp.local';
const QUERY_MS = 60_000;
const SOON_MS = 500;
/** Answers are not authenticated: more than this many in one period is a flood. */
const HEARD_MAX = 64;
const TTL_S = 120;
/** One answer is heard by everybody on the link: whoever asks more often than this gets none. */
const ANSWER_REST_MS = 1_000;

export interface NeighboursOptions {
  readonly self: NodeId;
  readonly networkId: Digest;
  /** Where this node listens; null: it only looks. */
  readonly port: () => number | null;
  /** Somebody says that this node is there. The channel proves it, or does not. */
  readonly heard: (node: NodeId, address: string) => void;
  /** Multicast is not to be had here, or stopped working. */
  readonly failed: (error: unknown) => void;
}

interface Answer {
  readonly type: string;
  readonly name: string;
  readonly data?: unknown;
}

/** Looks for neighbours, and answers those who look, until it is disposed of. */
export async function findNeighbours(
  around: Pick<Surroundings, 'timers' | 'random'>,
  options: NeighboursOptions,
): Promise<Disposable> {
  const { default: multicastDns } = await import('multicast-dns');
  const mdns = multicastDns({ reuseAddr: true });
  const instance = `${options.self.slice(0, 32)}.${SERVICE}`;
  const network = options.networkId.slice(7, 23);
  let left = HEARD_MAX;
  let isResting = false;

  mdns.on('error', options.failed);
  mdns.on('warning', () => undefined);
  mdns.on('query', ({ questions }) => {
    const port = options.port();
    if (isResting || port === null) return;
    if (questions?.some(({ name, type }) => name === SERVICE && type === 'PTR') !== true) return;
    isResting = true;
    around.timers.after(ANSWER_REST_MS, () => {
      isResting = false;
    });
    mdns.respond({
      answers: [{ name: SERVICE, type: 'PTR', ttl: TTL_S, data: instance }],
      additionals: [
        { name: instance, type: 'SRV', ttl: TTL_S, data: { port, target: `${options.self.slice(0, 32)}.local` } },
        { name: instance, type: 'TXT', ttl: TTL_S, data: [`network=${network}`, `node=${options.self}`] },
      ],
    });
  });
  mdns.on('response', ({ answers, additionals }, { address }) => {
    const found = neighbourIn([...(answers ?? []), ...(additionals ?? [])], network);
    if (found === null || found.node === options.self || !isIPv4(address) || left === 0) return;
    left -= 1;
    options.heard(found.node, `${address}:${found.port}`);
  });

  const look = async (): Promise<void> => {
    left = HEARD_MAX;
    mdns.query([{ name: SERVICE, type: 'PTR' }]);
  };
  const cancel = around.timers.after(SOON_MS, () => void look());
  const stop = every(around, QUERY_MS, look);
  return {
    [Symbol.dispose]() {
      cancel();
      stop();
      mdns.destroy();
    },
  };
}

/** Who answers, when it is a node of this network; anything else on the link is none of our business. */
function neighbourIn(
  records: readonly Answer[],
  network: string,
): { readonly node: NodeId; readonly port: number } | null {
  const named = (record: Answer) => record.name.endsWith(`.${SERVICE}`);
  const port = (
    records.find((record) => record.type === 'SRV' && named(record))?.data as { port?: unknown } | undefined
  )?.port;
  const txt = records.find((record) => record.type === 'TXT' && named(record))?.data;
  const texts = (Array.isArray(txt) ? txt : [txt]).map((text) => String(text).slice(0, 100));
  const node = texts.find((text) => /^node=[0-9a-f]{64}$/.test(text))?.slice(5);
  if (!Number.isInteger(port) || node === undefined || !texts.includes(`network=${network}`)) return null;
  return { node, port: port as number };
}
