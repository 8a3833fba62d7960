import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { connect as connectTcp, createServer as createTcpServer } from 'node:net';
import { before, describe, it } from 'node:test';
import { concat, fromUtf8, utf8 } from '../../../base/bytes.ts';
import { digestOf } from '../../../base/digest.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../../../base/errors.ts';
import { collect } from '../../../base/streams.ts';
import { CertifiedNetwork, type CertifiedNode } from '../../../testing/certified-network.ts';
import { type BulkSource, type Channel, type ChannelOptions, type Method, openChannel } from './index.ts';

const BLOB = new Uint8Array(randomBytes(3_000_001));
const DIGEST = digestOf(BLOB);

const blobs: BulkSource = {
  async open(blob) {
    if (blob !== DIGEST) return null;
    return {
      size: BLOB.length,
      read: async (offset, into) => BLOB.subarray(offset, offset + Math.min(into.length, 100_000)),
    };
  },
};

const methods = new Map<string, Method>([
  ['test/echo', { access: 'guest', requestBytesMax: 8 << 20, handle: async (body) => body }],
  [
    'test/whoami',
    {
      access: 'guest',
      requestBytesMax: 0,
      handle: async (_, from) => utf8(`${from.kind} ${from.node} ${from.publisher}`),
    },
  ],
  [
    'test/refuse',
    {
      access: 'member',
      requestBytesMax: 0,
      handle: async () => {
        throw new HyperMeshError('asset-not-found', 'No such \u001b[31mthing.', {
          hint: 'Look elsewhere.',
          details: { n: 1 },
        });
      },
    },
  ],
  [
    'test/count',
    {
      access: 'member',
      requestBytesMax: 8,
      handle: async (body) => ({
        head: utf8('numbers'),
        body: (async function* () {
          for (let n = 0; n < Number(fromUtf8(body)); n++) yield utf8(`${n},`);
        })(),
      }),
    },
  ],
]);

function refused(promise: Promise<unknown>, ...codes: ErrorCode[]): Promise<void> {
  return assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, ...codes), `expected ${codes.join()}, got ${error}`);
    return true;
  });
}

let network: CertifiedNetwork;
let ada: CertifiedNode;
let bob: CertifiedNode;

function open(who: CertifiedNode, options: Partial<ChannelOptions> = {}): Channel {
  const { networkId, clock } = network;
  return openChannel({ networkId, clock, trust: who.trust, methods, blobs, ...options });
}

async function listening(who: CertifiedNode, options: Partial<ChannelOptions> = {}) {
  const channel = open(who, options);
  const { port } = await channel.listen('127.0.0.1', 0);
  return { channel, port, address: `127.0.0.1:${port}`, [Symbol.asyncDispose]: () => channel[Symbol.asyncDispose]() };
}

before(async () => {
  network = await CertifiedNetwork.found();
  [ada, bob] = await Promise.all([network.node(), network.node()]);
});

describe('a connection', () => {
  it('proves who both ends are, and carries requests, streams and ranges', async () => {
    await using server = await listening(bob);
    await using client = open(ada);
    const connection = await client.connect(server.address, { expect: bob.node });
    assert.deepEqual(
      { ...connection.remote },
      { kind: 'member', node: bob.node, publisher: bob.publisher, address: server.address },
    );
    const me = await connection.request('test/whoami', new Uint8Array(0), { replyBytesMax: 1_000 });
    assert.equal(fromUtf8(me), `member ${ada.node} ${ada.publisher}`);

    for (const size of [0, 1, 65_000, 65_536, 70_000, 1 << 20, 5 << 20]) {
      const body = new Uint8Array(randomBytes(size));
      assert.deepEqual(
        new Uint8Array(await connection.request('test/echo', body, { replyBytesMax: size })),
        body,
        `${size} bytes`,
      );
    }

    const { head, body } = await connection.requestStream('test/count', utf8('20000'), { replyBytesMax: 100 });
    assert.equal(fromUtf8(head), 'numbers');
    const numbers = fromUtf8(await collect(body, 1 << 20)).split(',');
    assert.equal(numbers.length, 20_001);
    assert.equal(numbers[19_999], '19999');

    for (const [offset, length] of [
      [0, BLOB.length],
      [1, 1],
      [262_143, 262_146],
      [BLOB.length - 5, 5],
      [7, 0],
    ] as const) {
      const pieces: Uint8Array<ArrayBuffer>[] = [];
      await connection.fetchRange(DIGEST, { offset, length }, (bytes) => void pieces.push(new Uint8Array(bytes)));
      assert.deepEqual(concat(...pieces), BLOB.slice(offset, offset + length), `${length} bytes at ${offset}`);
    }
    assert.ok(connection.bytesIn > BLOB.length && connection.bytesOut > 5 << 20);
    assert.ok(connection.rttMs! > 0);
  });

  it('brings refusals over with code, message, hint and details', async () => {
    await using server = await listening(bob);
    await using client = open(ada);
    const connection = await client.connect(server.address, { expect: bob.node });
    const ask = (method: string, body: Uint8Array = new Uint8Array(0), replyBytesMax = 0) =>
      connection.request(method, body, { replyBytesMax });
    await assert.rejects(ask('test/refuse'), {
      code: 'asset-not-found',
      message: 'No such  [31mthing.',
      hint: 'Look elsewhere.',
      details: { n: 1 },
    });
    await refused(ask('test/nothing'), 'operation-unsupported');
    await refused(ask('test/count', new Uint8Array(9)), 'limit-exceeded');
    await refused(ask('test/echo', new Uint8Array(100), 99), 'limit-exceeded');
    const write = () => undefined;
    await refused(connection.fetchRange(`sha256:${'0'.repeat(64)}`, { offset: 0, length: 1 }, write), 'blob-not-found');
    await refused(connection.fetchRange(DIGEST, { offset: BLOB.length, length: 1 }, write), 'usage');
    // None of this costs the connection.
    assert.equal(fromUtf8(await ask('test/echo', utf8('still there'), 100)), 'still there');
  });

  it('is shared in both directions', async () => {
    await using server = await listening(bob);
    await using client = open(ada);
    const [one, two] = await Promise.all([1, 2].map(() => client.connect(server.address, { expect: bob.node })));
    assert.equal(one, two);
    assert.equal(await client.connect(server.address, { expect: bob.node }), one);
    const back = await server.channel.connect('127.0.0.1:9', { expect: ada.node });
    assert.equal(
      fromUtf8(await back.request('test/whoami', new Uint8Array(0), { replyBytesMax: 1_000 })),
      `member ${bob.node} ${bob.publisher}`,
    );
    // No bulk socket can be opened to it, so the connection carries the range.
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    await back.fetchRange(DIGEST, { offset: 5, length: 2_000_000 }, (bytes) => void pieces.push(new Uint8Array(bytes)));
    assert.deepEqual(concat(...pieces), BLOB.slice(5, 2_000_005));
  });

  it('goes over a socket that is handed in', async () => {
    await using server = open(bob);
    await using client = open(ada);
    const relay = createTcpServer((socket) => server.accept(socket)).listen(0, '127.0.0.1');
    await new Promise((resolve) => relay.once('listening', resolve));
    const raw = connectTcp((relay.address() as { port: number }).port, '127.0.0.1');
    const connection = await client.connectOver(raw, { expect: bob.node });
    relay.close();
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    await connection.fetchRange(
      DIGEST,
      { offset: 0, length: BLOB.length },
      (bytes) => void pieces.push(new Uint8Array(bytes)),
    );
    assert.deepEqual(concat(...pieces), BLOB);
  });

  it('lets a guest ask what guests may, and no more', async () => {
    await using server = await listening(bob);
    const elsewhere = await CertifiedNetwork.found();
    const stranger = await elsewhere.node();
    await using client = open(stranger, { networkId: elsewhere.networkId });
    const { networkId } = network;
    const connection = await client.connect(server.address, { expect: bob.node, guest: true, networkId });
    const ask = (method: string) => connection.request(method, new Uint8Array(0), { replyBytesMax: 1_000 });
    assert.equal(fromUtf8(await ask('test/whoami')), 'guest null null');
    await refused(ask('test/refuse'), 'not-permitted');
    await refused(
      connection.fetchRange(DIGEST, { offset: 0, length: 1 }, () => undefined),
      'not-permitted',
    );
    await refused(client.connect(server.address, { expect: ada.node, guest: true, networkId }), 'identity-mismatch');
    await refused(client.connect(server.address, { expect: bob.node, guest: true }), 'network-mismatch');
    await refused(client.connect(server.address, { expect: bob.node }), 'network-mismatch');
  });
});
