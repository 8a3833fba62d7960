import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect } from 'node:tls';
import { concat, fromBase64 } from '../../src/base/bytes.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type Digest, digestHex, digestOf, isDigest } from '../../src/base/digest.ts';
import { HyperMeshError } from '../../src/base/errors.ts';
import { makeTransportKey } from '../../src/subsystems/stoq/channel/certificate.ts';
import { Identity } from '../../src/subsystems/stoq/channel/identity.ts';
import { type Method, openChannel } from '../../src/subsystems/stoq/channel/index.ts';
import { IdSet } from '../../src/subsystems/stoq/records/id-set.ts';
import { openTrust } from '../../src/subsystems/trustchain/index.ts';
import { encodeAccess } from '../../src/wire/access.ts';
import { encodeFrame, type Frame, FrameDecoder } from '../../src/wire/channel.ts';
import { decodeHaveAsk, decodeReadAsk, encodeHaveAnswer, encodeShardList } from '../../src/wire/content.ts';
import { NODE_RECORD_TYPE } from '../../src/wire/node-record.ts';
import { encodeMessage } from '../../src/wire/overlay.ts';
import { decodeCompareRequest, encodeCompareAnswer } from '../../src/wire/reconcile.ts';
import { decodeRecordsRequest, encodeRecordsAnswer, encodeRecordsNews } from '../../src/wire/records.ts';
import { averageFor } from '../../src/wire/shards.ts';
import { encodeSigned } from '../../src/wire/signed.ts';
import { STATE_CHANGE_TYPE } from '../../src/wire/state-change.ts';

/**
 * A member of the network that lies as it is told. Its keys and certificates are those of a real home that joined, its channel is the real one; only
 * what it answers is not. Arguments: the home, the port, the network. Orders come from the parent, one at a time, each answered with `{}`.
 */
export type LiarOrder =
  /** How it answers questions about content from now on. */
  | { readonly lie: ContentLie }
  /** Claims to a node that it holds these. */
  | { readonly announce: readonly Digest[]; readonly to: string }
  /** Tells a node of records, base64, and hands them over when it is asked for them. `as`: under other ids than they have. */
  | {
      readonly tell: readonly string[];
      readonly collection: string;
      readonly to: string;
      readonly as?: readonly Digest[];
    }
  /** Answers every comparison of records with these bytes, base64; null: honestly. */
  | { readonly compare: string | null }
  /** Signs a payload as itself and tells a node of it. */
  | { readonly sign: string; readonly kind: 'node-record' | 'state-change'; readonly to: string }
  /** Connects to a node and sends it a frame with a length that no frame has. */
  | { readonly oversize: string };

export type ContentLie =
  | 'wrong-bytes'
  | 'wrong-list'
  | 'malformed'
  | 'endless'
  | 'too-long'
  | 'absent'
  | 'silent'
  | 'slow';

const [home, port, networkId] = process.argv.slice(2) as [string, string, Digest];
const clock = systemClock;
const trust = await openTrust({ directory: join(home, 'trust'), clock });
const { keyId: self } = await trust.identity('node');

let lie: ContentLie = 'absent';
let compare: Uint8Array | null = null;
/** Records by what they are called. */
const records = new Map<string, Uint8Array>();
const EMPTY = new Uint8Array(0);
const never = () => new Promise<never>(() => undefined);
const notHere = () => new HyperMeshError('blob-not-found', 'Not any more.');

async function* bytes(length: number): AsyncGenerator<Uint8Array, void, undefined> {
  if (lie === 'silent') await never();
  for (let left = length; left > 0; ) {
    const piece = randomBytes(Math.min(left, lie === 'slow' ? 512 : 65_536));
    yield piece;
    left -= piece.length;
    if (lie === 'slow') await sleep(200);
  }
}

async function some(into: Uint8Array): Promise<Uint8Array> {
  if (lie === 'silent') await never();
  if (lie === 'slow') await sleep(200);
  return randomBytes(Math.min(into.length, lie === 'slow' ? 512 : 65_536));
}

const answers: Record<string, (body: Uint8Array) => Promise<Awaited<ReturnType<Method['handle']>>>> = {
  'overlay/ping': async () => EMPTY,
  'overlay/doubt': async () => EMPTY,
  'overlay/reach': async () => encodeMessage({ reached: true }),
  'resources/announce': async () => EMPTY,
  // It claims to hold whatever anybody asks for.
  'resources/holders': async () => (lie === 'silent' ? never() : encodeMessage({ nodes: [self] })),
  'resources/keep': async () => encodeMessage({ state: 'held' }),
  'records/compare': async (body) => {
    const { ranges, salt } = decodeCompareRequest(body);
    const none = new IdSet();
    return compare ?? encodeCompareAnswer(ranges.map((prefix) => none.answer(prefix, Buffer.from(salt, 'hex'))));
  },
  'records/get': async (body) => {
    const { ids } = decodeRecordsRequest(body);
    return encodeRecordsAnswer(ids.map((id) => records.get(id) ?? null));
  },
  'records/news': async () => EMPTY,
  // Nobody has to prove anything to a liar.
  'access/ask': async () => encodeAccess({ challenge: null }),
  'content/have': async (body) => {
    if (lie === 'silent') return never();
    if (lie === 'malformed') return Uint8Array.of(1, 0, 1, 9);
    return encodeHaveAnswer(decodeHaveAsk(body).map(() => ({ kind: 'complete' })));
  },
  'content/shards': async () => {
    if (lie === 'silent') return never();
    if (lie === 'too-long') return new Uint8Array(4 * 2 ** 20);
    if (lie !== 'wrong-list') throw notHere();
    const size = 2 ** 20;
    const averageBytes = averageFor(size);
    const shards = Array.from({ length: size / averageBytes }, (_, at) => {
      return { hash: randomBytes(32), offset: at * averageBytes, length: averageBytes };
    });
    return encodeShardList({ size, averageBytes, shards });
  },
  'content/read': async (body) => {
    if (lie === 'absent') throw notHere();
    const length = decodeReadAsk(body).reduce((sum, range) => sum + range.length, 0);
    return { head: EMPTY, body: bytes(lie === 'endless' ? Number.POSITIVE_INFINITY : length) };
  },
};

const methods = new Map<string, Method>(
  Object.entries(answers).map(([name, handle]) => [name, { access: 'member', requestBytesMax: 2 ** 20, handle }]),
);
const blobs = {
  open: async () => (lie === 'absent' ? null : { size: 2 ** 40, read: (_: number, into: Uint8Array) => some(into) }),
};
const channel = openChannel({ networkId, clock, trust, methods, blobs });
await channel.listen('127.0.0.1', Number(port));

/** The connection that a node opened to this one. */
async function connectionOf(node: string) {
  for (const giveUpAtMs = performance.now() + 300_000; performance.now() < giveUpAtMs; ) {
    const found = channel.connections().find(({ remote }) => remote.node === node);
    if (found !== undefined) return found;
    await sleep(20);
  }
  throw new Error(`${node} never connected`);
}

async function tell(node: string, collection: string, told: ReadonlyMap<Digest, Uint8Array>): Promise<void> {
  for (const [id, record] of told) {
    records.set(digestHex(id), record);
    records.set(digestHex(id).slice(0, 16), record);
  }
  const connection = await connectionOf(node);
  await connection.request('records/news', encodeRecordsNews({ collection, ids: [...told.keys()] }), {
    replyBytesMax: 0,
  });
}

async function oversize(address: string): Promise<void> {
  const { key, cert, id } = makeTransportKey();
  const [host, at] = address.split(':') as [string, string];
  const socket = connect({
    ...{ host, port: Number(at), key, cert, ALPNProtocols: ['stoq/1'], rejectUnauthorized: false },
    ecdhCurve: 'X25519MLKEM768',
  });
  socket.on('error', () => undefined);
  const identity = new Identity({ networkId, clock, trust }, id);
  const hello: Frame = { kind: 'hello', document: await identity.document(false) };
  socket.write(concat(...encodeFrame(hello)));
  const signal = AbortSignal.timeout(60_000);
  const decoder = new FrameDecoder(1 << 22);
  for (let isKnown = false; !isKnown; ) {
    const [chunk] = (await once(socket, 'data', { signal })) as [Uint8Array];
    for (const frame of decoder.push(chunk)) isKnown ||= frame.kind === 'hello';
  }
  // Kind, three bytes of length, stream.
  socket.write(Uint8Array.of(7, 0xff, 0xff, 0xff, 0, 0, 0, 1));
  socket.resume();
  await once(socket, 'close', { signal });
}

async function obey(order: LiarOrder): Promise<void> {
  if ('lie' in order) lie = order.lie;
  else if ('compare' in order) compare = order.compare === null ? null : fromBase64(order.compare);
  else if ('oversize' in order) await oversize(order.oversize);
  else if ('announce' in order) {
    const connection = await connectionOf(order.to);
    await connection.request('resources/announce', encodeMessage({ ids: order.announce.filter(isDigest) }), {
      replyBytesMax: 0,
    });
  } else if ('tell' in order) {
    const told = order.tell.map((text, at) => {
      const record = fromBase64(text);
      return [order.as?.[at] ?? digestOf(record), record] as const;
    });
    await tell(order.to, order.collection, new Map(told));
  } else {
    const isNode = order.kind === 'node-record';
    const role = isNode ? 'node' : 'publisher';
    const { chain } = await trust.identity(role);
    const type = isNode ? NODE_RECORD_TYPE : STATE_CHANGE_TYPE;
    const record = encodeSigned({ envelope: await trust.sign(role, type, Buffer.from(order.sign)), chain });
    await tell(order.to, isNode ? 'nodes' : 'records', new Map([[digestOf(record), record]]));
  }
}

process.on('message', (order: LiarOrder) => {
  void obey(order).then(
    () => process.send?.({}),
    (error: Error) => process.send?.({ error: error.message }),
  );
});
process.on('disconnect', () => process.exit(0));
process.send?.({});
