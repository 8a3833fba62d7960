import { once } from 'node:events';
import { connect as connectH2, createSecureServer, type ServerHttp2Stream } from 'node:http2';
import { systemClock } from '../src/base/clock.ts';
import type { Digest } from '../src/base/digest.ts';
import { makeTransportKey } from '../src/subsystems/stoq/channel/certificate.ts';
import { type Method, openChannel } from '../src/subsystems/stoq/channel/index.ts';
import { certifiedNode, type NodeSecrets } from '../src/testing/certified-network.ts';
import { peer } from './peers.ts';

/** What moves between two processes, the same for every transport. */
export const OBJECT_BYTES = 16_384;
export const PIECE_BYTES = 262_144;
const OBJECT = new Uint8Array(OBJECT_BYTES).fill(1);
const PIECES = [0, 1].map((n) => new Uint8Array(PIECE_BYTES).fill(n));
const ANY: Digest = `sha256:${'0'.repeat(64)}`;
const EMPTY = new Uint8Array(0);

export type Transport = 'stoq' | 'h2' | 'h2-defaults' | 'libp2p';

/** One node, certified, as plain data. */
export interface Certified {
  readonly networkId: Digest;
  readonly secrets: NodeSecrets;
  /** Node id of the other end. */
  readonly expect: string;
}

/** The asking end. Each resolves when all has arrived. */
export interface Asking extends AsyncDisposable {
  bulk(bytes: number): Promise<void>;
  object(): Promise<void>;
  echo(bytes: Uint8Array): Promise<void>;
}

/** Listens on loopback and answers for as long as the process lives; what it returns is for {@link connect}. */
export async function serve(transport: Transport, me: Certified): Promise<string> {
  if (transport === 'stoq') return serveStoq(me);
  if (transport === 'libp2p') return serveLibp2p();
  return serveH2(transport);
}

export function connect(transport: Transport, at: string, me: Certified): Promise<Asking> {
  if (transport === 'stoq') return connectStoq(at, me);
  if (transport === 'libp2p') return connectLibp2p(at);
  return connectToH2(transport, at);
}

async function* pieces(bytes: number): AsyncGenerator<Uint8Array, void, undefined> {
  for (let left = bytes, n = 0; left > 0; left -= PIECE_BYTES, n++) yield PIECES[n % 2]!.subarray(0, left);
}

// --- ours

async function serveStoq({ networkId, secrets }: Certified): Promise<string> {
  const { trust } = certifiedNode(secrets);
  const channel = openChannel({
    ...{ networkId, clock: systemClock, trust },
    methods: new Map<string, Method>([
      ['bench/object', { access: 'member', requestBytesMax: 0, handle: async () => OBJECT }],
      ['bench/echo', { access: 'member', requestBytesMax: 1 << 20, handle: async (body: Uint8Array) => body }],
    ]),
    blobs: { open: async () => ({ size: Number.MAX_SAFE_INTEGER, read: async (_, into) => into }) },
  });
  const { port } = await channel.listen('127.0.0.1', 0);
  return `127.0.0.1:${port}`;
}

async function connectStoq(at: string, { networkId, secrets, expect }: Certified): Promise<Asking> {
  const { trust } = certifiedNode(secrets);
  const blobs = { open: async () => null };
  const channel = openChannel({ networkId, clock: systemClock, trust, methods: new Map(), blobs });
  const connection = await channel.connect(at, { expect });
  return {
    async bulk(bytes) {
      let left = bytes;
      await connection.fetchRange(ANY, { offset: 0, length: bytes }, (piece) => {
        left -= piece.length;
      });
      if (left !== 0) throw new Error('not all came');
    },
    async object() {
      await connection.request('bench/object', EMPTY, { replyBytesMax: OBJECT_BYTES });
    },
    async echo(bytes) {
      await connection.request('bench/echo', bytes, { replyBytesMax: bytes.length });
    },
    [Symbol.asyncDispose]: () => channel[Symbol.asyncDispose](),
  };
}

// --- HTTP/2 over TLS, in Node

/** Of `h2`; `h2-defaults` leaves them as Node has them. */
const H2_WINDOW = 8 << 20;

async function serveH2(transport: Transport): Promise<string> {
  const settings = transport === 'h2' ? { initialWindowSize: H2_WINDOW } : {};
  const server = createSecureServer({ ...makeTransportKey(), settings });
  server.on('session', (session) => {
    if (transport === 'h2') session.setLocalWindowSize(H2_WINDOW);
  });
  server.on('stream', (stream: ServerHttp2Stream, headers) => {
    stream.on('error', () => undefined);
    stream.respond({ ':status': 200 });
    const [, what, bytes] = headers[':path']!.split('/');
    if (what === 'object') stream.end(OBJECT);
    else if (what === 'echo') stream.pipe(stream);
    else void send(stream, Number(bytes));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `https://127.0.0.1:${(server.address() as { port: number }).port}`;
}

async function send(stream: ServerHttp2Stream, bytes: number): Promise<void> {
  for await (const piece of pieces(bytes)) if (!stream.write(piece)) await once(stream, 'drain');
  stream.end();
}

async function connectToH2(transport: Transport, at: string): Promise<Asking> {
  const settings = transport === 'h2' ? { initialWindowSize: H2_WINDOW } : {};
  const session = connectH2(at, { rejectUnauthorized: false, settings });
  await once(session, 'connect');
  if (transport === 'h2') session.setLocalWindowSize(H2_WINDOW);
  async function get(path: string, bytes: number, body?: Uint8Array): Promise<void> {
    const stream = session.request({ ':path': path, ':method': body === undefined ? 'GET' : 'POST' });
    let left = bytes;
    stream.on('data', (chunk: Uint8Array) => {
      left -= chunk.length;
    });
    stream.end(body);
    await once(stream, 'end');
    if (left !== 0) throw new Error('not all came');
  }
  return {
    bulk: (bytes) => get(`/bulk/${bytes}`, bytes),
    object: () => get('/object', OBJECT_BYTES),
    echo: (bytes) => get('/echo', bytes.length, bytes),
    async [Symbol.asyncDispose]() {
      session.destroy();
    },
  };
}

// --- js-libp2p: TCP, noise, yamux, a stream for each object

interface Libp2pStream extends AsyncIterable<{ readonly byteLength: number }> {
  send(data: Uint8Array): boolean;
  close(): Promise<void>;
}
interface Libp2p {
  handle(protocol: string, handler: (stream: Libp2pStream) => void, options: object): Promise<void>;
  dial(address: unknown): Promise<{ newStream(protocol: string, options: object): Promise<Libp2pStream> }>;
  getMultiaddrs(): readonly { toString(): string }[];
  stop(): Promise<void>;
}

const PROTOCOL = '/bench/object/1.0.0';

/** Null when it cannot be installed here. */
async function libp2p(listen: readonly string[]): Promise<Libp2p | null> {
  const load = async (name: string): Promise<Record<string, (...options: unknown[]) => unknown>> => {
    const entry = await peer(name, `${name}/dist/src/index.js`);
    return entry === null ? {} : ((await import(entry)) as Record<string, () => unknown>);
  };
  const { createLibp2p } = await load('libp2p');
  if (createLibp2p === undefined) return null;
  const [{ tcp }, { noise }, { yamux }] = await Promise.all([
    load('@libp2p/tcp'),
    load('@libp2p/noise'),
    load('@libp2p/yamux'),
  ]);
  return createLibp2p({
    addresses: { listen },
    transports: [tcp!()],
    connectionEncrypters: [noise!()],
    streamMuxers: [yamux!()],
  }) as Promise<Libp2p>;
}

export async function hasLibp2p(): Promise<boolean> {
  return (await peer('libp2p', 'libp2p/dist/src/index.js')) !== null;
}

async function serveLibp2p(): Promise<string> {
  const node = await libp2p(['/ip4/127.0.0.1/tcp/0']);
  if (node === null) throw new Error('libp2p is not installed');
  await node.handle(
    PROTOCOL,
    (stream) => {
      stream.send(OBJECT);
      void stream.close();
    },
    { maxInboundStreams: 10_000 },
  );
  return String(node.getMultiaddrs()[0]);
}

async function connectLibp2p(at: string): Promise<Asking> {
  const node = await libp2p([]);
  const entry = await peer('multiaddr', '@multiformats/multiaddr/dist/src/index.js');
  if (node === null || entry === null) throw new Error('libp2p is not installed');
  const { multiaddr } = (await import(entry)) as { multiaddr(text: string): unknown };
  const connection = await node.dial(multiaddr(at));
  const unused = () => Promise.reject(new Error('not measured'));
  return {
    async object() {
      const stream = await connection.newStream(PROTOCOL, { maxOutboundStreams: 10_000 });
      let left = OBJECT_BYTES;
      for await (const chunk of stream) {
        left -= chunk.byteLength;
        // The end of the other side arrives only after the end of this one.
        if (left === 0) break;
      }
      await stream.close();
      if (left !== 0) throw new Error('not all came');
    },
    bulk: unused,
    echo: unused,
    [Symbol.asyncDispose]: () => node.stop(),
  };
}
