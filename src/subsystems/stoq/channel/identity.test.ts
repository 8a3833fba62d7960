import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:net';
import { before, describe, it } from 'node:test';
import { type ConnectionOptions, connect as connectTls, type TLSSocket, TLSSocket as Tls } from 'node:tls';
import { concat } from '../../../base/bytes.ts';
import type { Clock } from '../../../base/clock.ts';
import type { ErrorCode } from '../../../base/errors.ts';
import { CertifiedNetwork, type CertifiedNode } from '../../../testing/certified-network.ts';
import { encodeFrame, type Frame, FrameDecoder } from '../../../wire/channel.ts';
import { decodeHelloDocument, encodeHelloDocument } from '../../../wire/hello.ts';
import { makeTransportKey } from './certificate.ts';
import { Identity } from './identity.ts';
import { type Channel, type ChannelOptions, openChannel } from './index.ts';
import { refused, settled } from './test-peers.ts';

const HOUR_MS = 3_600_000;

let network: CertifiedNetwork;
let ada: CertifiedNode;
let bob: CertifiedNode;

before(async () => {
  network = await CertifiedNetwork.found();
  [ada, bob] = await Promise.all([network.node(), network.node()]);
});

function open(who: CertifiedNode, options: Partial<ChannelOptions> = {}): Channel {
  const { networkId, clock } = network;
  const blobs = { open: async () => null };
  return openChannel({ networkId, clock, trust: who.trust, methods: new Map(), blobs, ...options });
}

async function listening(who: CertifiedNode, options: Partial<ChannelOptions> = {}) {
  const channel = open(who, options);
  const { port } = await channel.listen('127.0.0.1', 0);
  return { channel, port, address: `127.0.0.1:${port}`, [Symbol.asyncDispose]: () => channel[Symbol.asyncDispose]() };
}

/** TLS as the channel wants it, with a key of one's own. */
function tls(port: number, options: ConnectionOptions = {}): TLSSocket {
  const { key, cert } = makeTransportKey();
  const shape = { minVersion: 'TLSv1.3', ecdhCurve: 'X25519MLKEM768', ALPNProtocols: ['stoq/1'] } as const;
  const socket = connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false, key, cert, ...shape, ...options });
  return socket.on('error', () => undefined);
}

/** What the other end says to that document, sent in a session of its own: its hello, or why it closes. */
async function greeted(port: number, document: Uint8Array): Promise<Frame | null> {
  const socket = tls(port);
  socket.write(concat(...encodeFrame({ kind: 'hello', document })));
  const decoder = new FrameDecoder(1 << 22);
  for await (const chunk of socket) {
    for (const frame of decoder.push(chunk as Uint8Array)) {
      socket.destroy();
      return frame;
    }
  }
  return null;
}

/** The document that a node sends for a TLS key. */
function documentOf(who: CertifiedNode, transport: string, clock: Clock = network.clock): Promise<Uint8Array> {
  return new Identity({ networkId: network.networkId, clock, trust: who.trust }, transport).document(false);
}

function closedWith(frame: Frame | null, code: ErrorCode): void {
  assert.equal(frame?.kind, 'close');
  assert.equal(frame.problem?.code, code);
}

describe('the identity of a connection', () => {
  it('has to be the one that was expected, certified or not', async () => {
    await using server = await listening(bob);
    await using client = open(ada);
    const carol = await network.node();
    await refused(client.connect(server.address, { expect: carol.node }), 'identity-mismatch');
    await refused(client.connect(server.address, { expect: '0'.repeat(64) }), 'identity-mismatch');
    assert.deepEqual(client.connections(), []);
    await settled(() => server.channel.connections().length === 0);
    await refused(client.connect(server.address, { expect: ada.node }), 'usage');
  });

  it('is worth nothing in the session of somebody else', async () => {
    await using server = await listening(bob);
    const mine = makeTransportKey();
    const document = await documentOf(ada, mine.id);
    closedWith(await greeted(server.port, document), 'identity-mismatch');

    // A stranger in between shows what bob's node has said to somebody.
    await using client = open(ada);
    const replay = await fakeServer(await documentOf(bob, mine.id));
    await refused(client.connect(replay.address, { expect: bob.node }), 'identity-mismatch');
    replay.close();
  });

  it('is of one network', async () => {
    const other = `sha256:${'1'.repeat(64)}` as const;
    await using server = await listening(bob, { networkId: other });
    await using client = open(ada);
    await refused(client.connect(server.address, { expect: bob.node }), 'network-mismatch');
  });

  it('needs a voucher by the publisher it names', async () => {
    await using server = await listening(bob);
    const carol = await network.node();
    const { key, cert, id } = makeTransportKey();
    const [ours, theirs] = await Promise.all([documentOf(ada, id), documentOf(carol, id)]);
    const mixed = { hello: decodeHelloDocument(ours).hello, voucher: decodeHelloDocument(theirs).voucher };
    const socket = tls(server.port, { key, cert });
    socket.write(concat(...encodeFrame({ kind: 'hello', document: encodeHelloDocument(mixed) })));
    const [chunk] = (await once(socket, 'data')) as [Uint8Array];
    closedWith(new FrameDecoder().push(chunk).next().value as Frame, 'identity-mismatch');
    // The roles cannot be swapped either.
    const swapped = { hello: decodeHelloDocument(ours).voucher, voucher: decodeHelloDocument(ours).hello };
    closedWith(await greeted(server.port, encodeHelloDocument(swapped)), 'identity-mismatch');
  });

  it('ends when its certificate is revoked', async () => {
    const carol = await network.node();
    await using server = await listening(bob);
    await using hers = await listening(carol);
    await network.revoke(carol);
    await refused(hers.channel.connect(server.address, { expect: bob.node }), 'certificate-revoked');
    await using client = open(ada);
    await refused(client.connect(hers.address, { expect: carol.node }), 'certificate-revoked');
  });

  it('survives clocks that are an hour apart, and not a day', async () => {
    for (const [aheadMs, passes] of [
      [HOUR_MS - 1_000, true],
      [-HOUR_MS, true],
      [24 * HOUR_MS, false],
      [-24 * HOUR_MS, false],
    ] as const) {
      const clock = { nowMs: () => network.clock.nowMs() + aheadMs };
      const dora = await network.node(clock);
      await using server = await listening(dora, { clock });
      await using client = open(ada);
      const connecting = client.connect(server.address, { expect: dora.node });
      if (passes) assert.equal((await connecting).remote.node, dora.node);
      else await assert.rejects(connecting, `${aheadMs} ms`);
    }
  });

  it('is signed anew before half of its life, and a connection ends with it', async () => {
    let aheadMs = 0;
    const clock = { nowMs: () => network.clock.nowMs() + aheadMs };
    await using server = await listening(bob, { clock, limits: { silenceMsMax: 40 } });
    await using client = open(ada, { clock, limits: { silenceMsMax: 40 } });
    const first = await client.connect(server.address, { expect: bob.node });
    aheadMs = 23 * HOUR_MS;
    await first.closed;
    const second = await client.connect(server.address, { expect: bob.node });
    assert.notEqual(second, first);
  });

  it('may be refused, also later', async () => {
    let isBanned = true;
    const permits = (remote: { readonly node: string | null }) => !(isBanned && remote.node === ada.node);
    await using server = await listening(bob, { permits, limits: { silenceMsMax: 40 } });
    await using client = open(ada);
    await refused(client.connect(server.address, { expect: bob.node }), 'not-permitted');
    isBanned = false;
    const connection = await client.connect(server.address, { expect: bob.node });
    isBanned = true;
    await connection.closed;
  });
});

describe('TLS', () => {
  it('takes no other key exchange, version or protocol, and nobody without a certificate', async () => {
    await using server = await listening(bob);
    const cases: readonly (readonly [string, ConnectionOptions])[] = [
      ['X25519 alone', { ecdhCurve: 'X25519' }],
      ['a curve of NIST', { ecdhCurve: 'P-256' }],
      ['TLS 1.2', { minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2', ecdhCurve: 'auto' }],
      ['another protocol', { ALPNProtocols: ['h2'] }],
      ['no protocol', { ALPNProtocols: [] }],
      ['no certificate', { key: '', cert: '' }],
    ];
    for (const [why, options] of cases) {
      const socket = tls(server.port, options);
      socket.write(concat(...encodeFrame({ kind: 'hello', document: new Uint8Array(0) })));
      const answered = await new Promise((resolve) => {
        socket.once('data', () => resolve(true)).once('close', () => resolve(false));
      });
      assert.equal(answered, false, why);
    }
    assert.deepEqual(server.channel.connections(), []);
    // With the right ones somebody answers.
    assert.equal((await greeted(server.port, new Uint8Array(0)))?.kind, 'hello');
  });

  it('is not downgraded by the other end either', async () => {
    await using client = open(ada);
    for (const ecdhCurve of ['X25519', 'P-256']) {
      const fake = await fakeServer(new Uint8Array(0), { ecdhCurve });
      await refused(client.connect(fake.address, { expect: bob.node }), 'peer-unreachable');
      fake.close();
    }
  });

  it('takes no session up again', async () => {
    await using server = await listening(bob);
    const sessions: Buffer[] = [];
    const first = tls(server.port);
    first.on('session', (session: Buffer) => sessions.push(session));
    first.write(concat(...encodeFrame({ kind: 'hello', document: new Uint8Array(0) })));
    await once(first, 'data');
    first.destroy();
    const again = tls(server.port, sessions[0] === undefined ? {} : { session: sessions[0] });
    again.write(concat(...encodeFrame({ kind: 'hello', document: new Uint8Array(0) })));
    await Promise.race([once(again, 'data'), once(again, 'close')]);
    assert.equal(again.isSessionReused() && !again.destroyed, false);
    again.destroy();
  });

  it('gives no bulk socket to whoever has no connection', async () => {
    await using server = await listening(bob);
    const socket = tls(server.port, { ALPNProtocols: ['stoq-bulk/1'] });
    await once(socket, 'close');
  });
});

/** Says that document to everybody, over TLS of its own. */
async function fakeServer(document: Uint8Array, options: { ecdhCurve?: string } = {}) {
  const { key, cert } = makeTransportKey();
  const server: Server = createServer((raw) => {
    const shape = { ecdhCurve: 'X25519MLKEM768', ...options };
    const socket = new Tls(raw, {
      ...{ isServer: true, key, cert, ...shape, requestCert: true, rejectUnauthorized: false },
      ALPNProtocols: ['stoq/1'],
    });
    socket.on('error', () => undefined);
    raw.on('error', () => undefined);
    socket.on('secure', () => socket.write(concat(...encodeFrame({ kind: 'hello', document }))));
  });
  server.listen(0, '127.0.0.1');
  server.unref();
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  return { address: `127.0.0.1:${port}`, close: () => server.close() };
}
