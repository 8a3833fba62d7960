import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as connectTcp, createServer, type Socket } from 'node:net';
import { before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls, TLSSocket } from 'node:tls';
import { concat, fromUtf8, utf8 } from '../../../base/bytes.ts';
import { type ErrorCode, HyperMeshError } from '../../../base/errors.ts';
import { CertifiedNetwork, type CertifiedNode } from '../../../testing/certified-network.ts';
import { encodeFrame, encodeRangeAnswer, type Frame, FrameDecoder } from '../../../wire/channel.ts';
import { makeTransportKey } from './certificate.ts';
import { Identity } from './identity.ts';
import { type Channel, type ChannelLimits, type ChannelOptions, type Method, openChannel } from './index.ts';
import { refused, settled } from './test-peers.ts';

const EMPTY = new Uint8Array(0);
const BLOB = `sha256:${'0'.repeat(64)}` as const;

let network: CertifiedNetwork;
let ada: CertifiedNode;
let bob: CertifiedNode;
let mallory: CertifiedNode;

before(async () => {
  network = await CertifiedNetwork.found();
  [ada, bob, mallory] = await Promise.all([network.node(), network.node(), network.node()]);
});

let running = 0;
let runningMost = 0;
const methods = new Map<string, Method>([
  ['test/echo', { access: 'guest', requestBytesMax: 1 << 20, handle: async (body) => body }],
  [
    'test/hang',
    {
      access: 'member',
      requestBytesMax: 0,
      async handle() {
        running += 1;
        runningMost = Math.max(runningMost, running);
        await sleep(50);
        running -= 1;
        return EMPTY;
      },
    },
  ],
  ['test/large', { access: 'member', requestBytesMax: 0, handle: async () => new Uint8Array(4 << 20) }],
]);

/** Who broke the protocol, as it was told. */
const breached: string[] = [];

function open(who: CertifiedNode, options: Partial<ChannelOptions> = {}): Channel {
  const { networkId, clock } = network;
  const onDefect = (error: unknown) => assert.fail(error as Error);
  const onBreach: ChannelOptions['onBreach'] = ({ node }) => void breached.push(node ?? 'a guest');
  const blobs = { open: async () => null };
  return openChannel({ networkId, clock, trust: who.trust, methods, blobs, onDefect, onBreach, ...options });
}

async function listening(limits: Partial<ChannelLimits> = {}) {
  const channel = open(bob, { limits });
  const { port } = await channel.listen('0.0.0.0', 0);
  return { channel, port, address: `127.0.0.1:${port}`, [Symbol.asyncDispose]: () => channel[Symbol.asyncDispose]() };
}

/** One frame as it goes over the wire. */
const wire = (frame: Frame) => concat(...encodeFrame(frame));
const header = (kind: number, length: number, stream: number) =>
  Uint8Array.of(kind, length >> 16, (length >> 8) & 255, length & 255, 0, 0, stream >> 8, stream & 255);
const ask = (stream: number, length = 0, bytes = EMPTY): Frame => ({
  ...{ kind: 'open', stream, method: 'test/echo', length, window: 1_000, bytes },
});

/** Mallory, certified, at a TLS session of its own: proved, and then free to send anything. */
async function malloryAt(port: number): Promise<{ socket: TLSSocket; decoder: FrameDecoder }> {
  const { key, cert, id } = makeTransportKey();
  const socket = connectTls({
    ...{ host: '127.0.0.1', port, key, cert, ALPNProtocols: ['stoq/1'], rejectUnauthorized: false },
    ecdhCurve: 'X25519MLKEM768',
  });
  socket.on('error', () => undefined);
  const { networkId, clock } = network;
  const document = await new Identity({ networkId, clock, trust: mallory.trust }, id).document(false);
  socket.write(wire({ kind: 'hello', document }));
  const decoder = new FrameDecoder(1 << 22);
  for (let isKnown = false; !isKnown; ) {
    const [chunk] = (await once(socket, 'data')) as [Uint8Array];
    for (const frame of decoder.push(chunk)) isKnown ||= frame.kind === 'hello';
  }
  return { socket, decoder };
}

/** All frames until the end of the session. */
async function rest({ socket, decoder }: { socket: TLSSocket; decoder: FrameDecoder }): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const chunk of socket) frames.push(...decoder.push(chunk as Uint8Array));
  return frames;
}

describe('a member that breaks the protocol', () => {
  const breaches: Record<string, readonly Uint8Array[]> = {
    'an unknown kind': [header(99, 0, 1)],
    'an oversized frame': [header(7, 65_537, 1)],
    'the largest length': [header(5, 0xffffff, 1), new Uint8Array(100_000)],
    'a second hello': [wire({ kind: 'hello', document: EMPTY })],
    'a stream of the other parity': [wire(ask(2))],
    'a stream out of turn': [wire(ask(3))],
    'a stream twice': [wire(ask(1)), wire(ask(1))],
    'bytes for a stream that was never opened': [wire({ kind: 'data', stream: 7, bytes: utf8('x') })],
    'more of a body than announced': [
      wire(ask(1, 70_000, new Uint8Array(10))),
      ...[1, 2].map(() => wire({ kind: 'data', stream: 1, bytes: new Uint8Array(40_000) })),
    ],
    'an answer that nobody asked for': [wire({ kind: 'answer', stream: 1, whole: true, length: 0, bytes: EMPTY })],
    'a cancellation of what is not its own': [wire({ kind: 'cancel', stream: 2 })],
    'a pong without a ping': [wire({ kind: 'pong', token: 5n }), wire({ kind: 'pong', token: 6n })],
  };

  it('is told so and loses its connection; others keep theirs', async () => {
    await using server = await listening();
    await using client = open(ada);
    const connection = await client.connect(server.address, { expect: bob.node });
    for (const [what, chunks] of Object.entries(breaches)) {
      const { socket, decoder } = await malloryAt(server.port);
      for (const chunk of chunks) socket.write(chunk);
      const last = (await rest({ socket, decoder })).at(-1);
      assert.equal(last?.kind, 'close', what);
      assert.equal(last.problem?.code, 'peer-lied', what);
      assert.equal(fromUtf8(await connection.request('test/echo', utf8('hi'), { replyBytesMax: 9 })), 'hi');
    }
    await settled(() => server.channel.connections().length === 1);
    assert.deepEqual(
      breached,
      Object.keys(breaches).map(() => mallory.node),
    );
  });

  it('cannot make a node work on more than its share by giving up at once', async () => {
    await using server = await listening({ streamsMax: 8 });
    const { socket } = await malloryAt(server.port);
    socket.resume();
    for (let n = 0; n < 5_000; n++) {
      const stream = 2 * n + 1;
      socket.write(wire({ kind: 'open', stream, method: 'test/hang', length: 0, window: 1, bytes: EMPTY }));
      socket.write(wire({ kind: 'cancel', stream }));
    }
    await settled(() => running > 0);
    await settled(() => running === 0);
    assert.ok(runningMost <= 8, `${runningMost} at once`);
    socket.destroy();
  });

  it('cannot make a node keep answers that it does not take', async () => {
    await using server = await listening();
    const { socket } = await malloryAt(server.port);
    for (let n = 0; n < 128; n++) {
      socket.write(wire({ kind: 'open', stream: 2 * n + 1, method: 'test/large', length: 0, window: 1, bytes: EMPTY }));
    }
    const before = process.memoryUsage().arrayBuffers;
    await sleep(500);
    const grown = process.memoryUsage().arrayBuffers - before;
    assert.ok(grown < 96 * 2 ** 20, `${grown >> 20} MiB of the 512 MiB that were asked for`);
    socket.destroy();
  });

  it('cannot fill the memory with bodies', async () => {
    await using server = await listening({ bodiesBytesMax: 4 << 20 });
    const { socket, decoder } = await malloryAt(server.port);
    const failed: Frame[] = [];
    socket.on('data', (chunk: Uint8Array) => {
      for (const frame of decoder.push(chunk)) if (frame.kind === 'fail') failed.push(frame);
    });
    for (let n = 0; n < 10; n++) socket.write(wire(ask(2 * n + 1, 1 << 20)));
    await settled(() => failed.length === 6);
    assert.ok(failed.every((frame) => frame.kind === 'fail' && frame.problem.code === 'quota-exceeded'));
    // What was taken on is given back with the connection.
    socket.destroy();
    await settled(() => server.channel.connections().length === 0);
    await using client = open(ada);
    const connection = await client.connect(server.address, { expect: bob.node });
    const body = new Uint8Array(1 << 20);
    assert.equal((await connection.request('test/echo', body, { replyBytesMax: 1 << 20 })).length, 1 << 20);
  });
});

describe('a stranger', () => {
  it('that says nothing, or says it slowly, or in garbage, is gone in time', async () => {
    await using server = await listening({ handshakeTimeoutMs: 400 });
    const { key, cert } = makeTransportKey();
    const secured = () =>
      connectTls({
        ...{ host: '127.0.0.1', port: server.port, key, cert, ALPNProtocols: ['stoq/1'], rejectUnauthorized: false },
        ecdhCurve: 'X25519MLKEM768',
      });
    const plain = () => connectTcp(server.port, '127.0.0.1');
    const cases: Record<string, () => Socket> = {
      'says nothing': plain,
      'says nothing after TLS': secured,
      'sends garbage': () => plain().end(Buffer.alloc(100_000, 0x41)),
      'sends garbage after TLS': () =>
        secured().on('secure', function (this: TLSSocket) {
          this.write(Buffer.alloc(100_000, 0x41));
        }),
      'closes half': () => plain().end(),
      'closes half after TLS': () =>
        secured().on('secure', function (this: TLSSocket) {
          this.end();
        }),
      'sends a byte now and then': () => {
        const socket = secured();
        const hello = wire({ kind: 'hello', document: new Uint8Array(1_000) });
        let at = 0;
        const timer = setInterval(() => socket.write(hello.subarray(at, ++at)), 20);
        return socket.on('close', () => clearInterval(timer));
      },
      'announces a hello of 16 MiB': () =>
        secured().on('secure', function (this: TLSSocket) {
          this.write(header(1, 0xffffff, 0));
        }),
    };
    for (const [what, make] of Object.entries(cases)) {
      const startedAt = performance.now();
      const socket = make().on('error', () => undefined);
      socket.resume();
      await new Promise((resolve) => socket.once('close', resolve));
      assert.ok(performance.now() - startedAt < 300_000, what);
    }
    assert.deepEqual(server.channel.connections(), []);
  });

  it('in great number does not keep others out', async () => {
    await using server = await listening({ handshakeTimeoutMs: 600_000, handshakesPerAddressMax: 4 });
    const flood = Array.from({ length: 200 }, () => connectTcp({ port: server.port, host: '127.0.0.1' }));
    let gone = 0;
    for (const socket of flood)
      socket
        .on('error', () => undefined)
        .on('close', () => gone++)
        .resume();
    await settled(() => gone === 196);
    // Somebody from another address is served meanwhile.
    await using client = open(ada);
    const raw = connectTcp({ port: server.port, host: '127.0.0.1', localAddress: '127.0.0.2' });
    await once(raw, 'connect');
    const connection = await client.connectOver(raw, { expect: bob.node });
    assert.equal(fromUtf8(await connection.request('test/echo', utf8('hi'), { replyBytesMax: 9 })), 'hi');
    for (const socket of flood) socket.destroy();
  });

  it('gets no more connections than there are', async () => {
    await using server = await listening({ connectionsPerAddressMax: 3, guestsMax: 2, connectionsPerNodeMax: 2 });
    await using client = open(ada, { networkId: network.networkId });
    const guest = () => client.connect(server.address, { expect: bob.node, guest: true });
    const guests = await Promise.all([guest(), guest()]);
    await refused(guest(), 'quota-exceeded');
    await client.connect(server.address, { expect: bob.node });
    await using other = open(mallory);
    await refused(other.connect(server.address, { expect: bob.node }), 'quota-exceeded');
    await guests[0]![Symbol.asyncDispose]();
    await settled(() => server.channel.connections().length === 2);
    const raw = async () => {
      const socket = connectTcp(server.port, '127.0.0.1');
      await once(socket, 'connect');
      return other.connectOver(socket, { expect: bob.node });
    };
    const first = await raw();
    await guests[1]![Symbol.asyncDispose]();
    await settled(() => server.channel.connections().length === 2);
    await raw();
    // Of one node the newest stay.
    await client.connect(server.address, { expect: bob.node });
    assert.equal(server.channel.connections().filter(({ remote }) => remote.node === mallory.node).length, 2);
    await first[Symbol.asyncDispose]();
  });
});

/** A certified node whose answers are those of `mux` and `bulk`. */
async function malloryServes(answers: {
  mux?(socket: TLSSocket, frame: Frame): void;
  bulk?(socket: TLSSocket, request: Uint8Array): void;
}) {
  const { key, cert, id } = makeTransportKey();
  const { networkId, clock } = network;
  const document = await new Identity({ networkId, clock, trust: mallory.trust }, id).document(false);
  const server = createServer((raw) => {
    raw.on('error', () => undefined);
    const socket = new TLSSocket(raw, {
      ...{ isServer: true, key, cert, ecdhCurve: 'X25519MLKEM768', requestCert: true, rejectUnauthorized: false },
      ALPNProtocols: ['stoq/1', 'stoq-bulk/1'],
    });
    socket.on('error', () => undefined);
    const decoder = new FrameDecoder(1 << 22);
    socket.on('data', (chunk: Uint8Array) => {
      if (socket.alpnProtocol === 'stoq-bulk/1') {
        answers.bulk?.(socket, chunk);
        return;
      }
      for (const frame of decoder.push(chunk)) {
        if (frame.kind === 'hello') socket.write(wire({ kind: 'hello', document }));
        else if (frame.kind === 'ping') socket.write(wire({ kind: 'pong', token: frame.token }));
        else answers.mux?.(socket, frame);
      }
    });
  });
  server.listen(0, '127.0.0.1');
  server.unref();
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  return { address: `127.0.0.1:${port}`, [Symbol.asyncDispose]: async () => void server.close() };
}

describe('a lying server', () => {
  const whole = (length: number, bytes = EMPTY): Frame => ({ kind: 'answer', stream: 1, whole: true, length, bytes });
  const head = (): Frame => ({ kind: 'answer', stream: 1, whole: false, length: 0, bytes: EMPTY });
  const data = (bytes: number): Frame => ({ kind: 'data', stream: 1, bytes: new Uint8Array(bytes) });

  const lies: readonly (readonly [string, readonly (Frame | null)[], ErrorCode])[] = [
    ['an answer longer than it said', [whole(5, new Uint8Array(5)), whole(5)], 'peer-unreachable'],
    ['more bytes than the answer has', [whole(5), data(6)], 'peer-lied'],
    ['bytes before the answer', [data(6)], 'peer-lied'],
    ['two answers', [whole(5), whole(5)], 'peer-lied'],
    ['an answer that is too long for the caller', [whole(1_001)], 'limit-exceeded'],
    ['a stream where an answer is due', [head()], 'peer-lied'],
    ['the end of a stream that never began', [{ kind: 'end', stream: 1, length: 0 }], 'peer-lied'],
    ['half an answer and then a clean end', [whole(500, new Uint8Array(5)), null], 'peer-unreachable'],
    [
      'a code that nobody knows',
      [{ kind: 'fail', stream: 1, problem: new HyperMeshError('nonsense' as ErrorCode, 'x') }],
      'internal',
    ],
    [
      'that its caller gave up',
      [{ kind: 'fail', stream: 1, problem: new HyperMeshError('cancelled', 'x') }],
      'peer-unreachable',
    ],
    [
      'that its caller gave up, and the end',
      [{ kind: 'close', problem: new HyperMeshError('cancelled', 'x') }],
      'peer-unreachable',
    ],
    ['silence', [], 'timeout'],
  ];

  it('has its request fail with a code, whatever it answers', async () => {
    for (const [what, frames, code] of lies.slice(1)) {
      await using server = await malloryServes({
        mux(socket, frame) {
          if (frame.kind !== 'open') return;
          for (const answer of frames) answer === null ? socket.end() : socket.write(wire(answer));
        },
      });
      await using client = open(ada);
      const connection = await client.connect(server.address, { expect: mallory.node });
      const timeoutMs = code === 'timeout' ? 300 : 60_000;
      const asking = connection.request('test/any', EMPTY, { replyBytesMax: 1_000, timeoutMs });
      await assert.rejects(asking, (error: HyperMeshError) => {
        assert.equal(error.code, code, what);
        return true;
      });
    }
  });

  it('cannot end a stream early, or stretch it beyond what was read', async () => {
    const streams: readonly (readonly [string, readonly (Frame | null)[], ErrorCode])[] = [
      ['a clean end', [head(), data(10), null], 'peer-unreachable'],
      ['a wrong length', [head(), data(10), { kind: 'end', stream: 1, length: 11 }], 'peer-lied'],
      [
        'a failure',
        [head(), data(10), { kind: 'fail', stream: 1, problem: new HyperMeshError('storage-failed', 'x') }],
        'storage-failed',
      ],
      ['bytes beyond credit', [head(), ...Array.from({ length: 20 }, () => data(65_536))], 'peer-lied'],
    ];
    for (const [what, frames, code] of streams) {
      await using server = await malloryServes({
        mux(socket, frame) {
          if (frame.kind !== 'open') return;
          for (const answer of frames) answer === null ? socket.end() : socket.write(wire(answer));
        },
      });
      await using client = open(ada);
      const connection = await client.connect(server.address, { expect: mallory.node });
      const { body } = await connection.requestStream('test/any', EMPTY, { replyBytesMax: 0 });
      const reading = (async () => {
        // Not read at all at first: the sender has to wait.
        await sleep(100);
        for await (const _ of body);
      })();
      await assert.rejects(reading, (error: HyperMeshError) => {
        assert.equal(error.code, code, what);
        return true;
      });
    }
  });

  it('has a transfer fail unless exactly the bytes come that were asked for', async () => {
    const ok = (length: number) => encodeRangeAnswer({ kind: 'bytes', length });
    const transfers: readonly (readonly [string, (socket: TLSSocket) => void, ErrorCode])[] = [
      ['less', (socket) => socket.end(concat(ok(1_000), new Uint8Array(999))), 'peer-unreachable'],
      ['another length', (socket) => socket.write(concat(ok(999), new Uint8Array(999))), 'peer-lied'],
      ['garbage', (socket) => socket.write(new Uint8Array(2_000).fill(7)), 'peer-lied'],
      [
        'a problem that is none',
        (socket) => socket.write(concat(encodeRangeAnswer({ kind: 'problem', length: 9 }), utf8('{"code":1'))),
        'peer-lied',
      ],
      ['silence', () => undefined, 'timeout'],
    ];
    for (const [what, bulk, code] of transfers) {
      await using server = await malloryServes({ bulk });
      await using client = open(ada, { limits: code === 'timeout' ? { silenceMsMax: 80, bulkStallMsMax: 200 } : {} });
      const connection = await client.connect(server.address, { expect: mallory.node });
      await assert.rejects(
        connection.fetchRange(BLOB, { offset: 0, length: 1_000 }, () => undefined),
        (error: HyperMeshError) => {
          assert.equal(error.code, code, what);
          return true;
        },
      );
    }
    // More than was asked for is not read as the answer to anything.
    await using server = await malloryServes({
      bulk: (socket) => void socket.write(concat(ok(10), new Uint8Array(500))),
    });
    await using client = open(ada);
    const connection = await client.connect(server.address, { expect: mallory.node });
    let bytes = 0;
    await connection.fetchRange(BLOB, { offset: 0, length: 10 }, (piece) => {
      bytes += piece.length;
    });
    assert.equal(bytes, 10);
  });
});
