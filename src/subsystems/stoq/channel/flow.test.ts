import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { CertifiedNetwork, type CertifiedNode } from '../../../testing/certified-network.ts';
import {
  type BulkSource,
  type Channel,
  type ChannelLimits,
  type Connection,
  type Method,
  openChannel,
} from './index.ts';
import { refused, settled } from './test-peers.ts';

const EMPTY = new Uint8Array(0);
/** What a busy machine takes is no failure. */
const MINUTES = 300_000;
const PIECE = new Uint8Array(100_000).fill(7);
const BLOB = `sha256:${'0'.repeat(64)}` as const;

let network: CertifiedNetwork;
let ada: CertifiedNode;
let bob: CertifiedNode;

before(async () => {
  network = await CertifiedNetwork.found();
  [ada, bob] = await Promise.all([network.node(), network.node()]);
});

/** What the serving side has done. */
class Served {
  pieces = 0;
  /** Of ranges, among the pieces. */
  ranged = 0;
  /** Requests that came and are not answered. */
  waiting = 0;
  ended = 0;
  aborted = 0;
  mostAtOnce = 0;
  #atOnce = 0;

  async *endless(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      for (;;) {
        this.pieces += 1;
        yield PIECE;
      }
    } finally {
      this.ended += 1;
    }
  }

  readonly methods = new Map<string, Method>([
    ['test/echo', { access: 'member', requestBytesMax: 1 << 20, handle: async (body) => body }],
    [
      'test/endless',
      { access: 'member', requestBytesMax: 0, handle: async () => ({ head: EMPTY, body: this.endless() }) },
    ],
    [
      'test/wait',
      {
        access: 'member',
        requestBytesMax: 0,
        handle: async (_, __, { signal }) => {
          this.waiting += 1;
          await sleep(600_000, undefined, { signal }).catch(() => {
            this.aborted += 1;
          });
          this.waiting -= 1;
          return EMPTY;
        },
      },
    ],
    [
      'test/count',
      {
        access: 'member',
        requestBytesMax: 0,
        handle: async () => {
          this.#atOnce += 1;
          this.mostAtOnce = Math.max(this.mostAtOnce, this.#atOnce);
          await sleep(1);
          this.#atOnce -= 1;
          return EMPTY;
        },
      },
    ],
  ]);

  /** What the third piece of a range is from now on. */
  fault: 'error' | 'nothing' | null = null;

  readonly blobs: BulkSource = {
    open: async () => {
      let read = 0;
      return {
        size: 2 ** 40,
        read: async (_, into) => {
          this.pieces += 1;
          this.ranged += 1;
          read += 1;
          if (this.fault === 'error' && read === 3) throw new Error('the disk is on fire');
          if (this.fault === 'nothing' && read === 3) return EMPTY;
          return PIECE.subarray(0, into.length);
        },
      };
    },
  };

  /** Resolves when nobody reads a range any more. */
  async rest(): Promise<void> {
    for (let before = -1; before !== this.pieces; await sleep(50)) before = this.pieces;
  }
}

async function pair(limits: Partial<ChannelLimits> = {}) {
  const { networkId, clock } = network;
  const served = new Served();
  const defects: unknown[] = [];
  const make = (who: CertifiedNode): Channel =>
    openChannel({
      ...{ networkId, clock, trust: who.trust, limits: { handshakeTimeoutMs: MINUTES, ...limits } },
      ...{ methods: served.methods, blobs: served.blobs, onDefect: (error: unknown) => defects.push(error) },
    });
  const server = make(bob);
  const client = make(ada);
  await using stack = new AsyncDisposableStack();
  stack.use(server);
  stack.use(client);
  const { port } = await server.listen('127.0.0.1', 0);
  const connection: Connection = await client.connect(`127.0.0.1:${port}`, { expect: bob.node });
  const open = stack.move();
  return {
    ...{ server, client, connection, served, defects, port },
    another: (who: CertifiedNode) => open.use(make(who)),
    [Symbol.asyncDispose]: () => open[Symbol.asyncDispose](),
  };
}

const ANY = { replyBytesMax: 1_000, timeoutMs: MINUTES };

describe('backpressure', () => {
  it('holds a stream that nobody reads, and nothing else', async () => {
    await using it = await pair();
    const { body } = await it.connection.requestStream('test/endless', EMPTY, ANY);
    await settled(() => it.served.pieces > 0);
    await it.served.rest();
    const before = it.served.pieces;
    assert.ok(before * PIECE.length < 4 << 20, `${before} pieces were taken from the source`);
    assert.equal(
      (await it.connection.request('test/echo', PIECE, { replyBytesMax: PIECE.length })).length,
      PIECE.length,
    );
    let bytes = 0;
    for await (const piece of body) {
      bytes += piece.length;
      if (bytes > 20 << 20) break;
    }
    assert.ok(it.served.pieces > before);
    await settled(() => it.served.ended === 1);
  });

  it('holds a transfer whose receiver is slow, which loses nothing', async () => {
    await using it = await pair();
    const length = 60 << 20;
    let received = 0;
    const { promise: isAwake, resolve: wake } = Promise.withResolvers<void>();
    const transfer = it.connection.fetchRange(BLOB, { offset: 0, length }, async (bytes) => {
      await isAwake;
      for (const byte of [bytes[0], bytes.at(-1)]) assert.equal(byte, 7);
      received += bytes.length;
    });
    await settled(() => it.served.pieces > 0);
    await it.served.rest();
    // What the kernel keeps on the way is not ours to bound.
    assert.ok(it.served.pieces * PIECE.length < 40 << 20, `${it.served.pieces} pieces were taken from the source`);
    wake();
    await transfer;
    assert.equal(received, length);
  });

  it('shares a connection among more requests than it takes at once', async () => {
    await using it = await pair({ streamsMax: 10 });
    await Promise.all(Array.from({ length: 500 }, () => it.connection.request('test/count', EMPTY, ANY)));
    assert.ok(it.served.mostAtOnce <= 10 && it.served.mostAtOnce > 1);
  });

  it('gives transfers that are more than the bulk sockets their turn', async () => {
    await using it = await pair({ bulkSocketsMax: 2 });
    let received = 0;
    let waited = 0;
    let waiting = 0;
    const onWait = (isWaiting: boolean) => {
      waited += isWaiting ? 1 : 0;
      waiting += isWaiting ? 1 : -1;
    };
    const take = (bytes: Uint8Array) => {
      received += bytes.length;
    };
    await Promise.all(
      Array.from({ length: 12 }, (_, at) =>
        it.connection.fetchRange(BLOB, { offset: at, length: 300_000 }, take, { onWait }),
      ),
    );
    assert.equal(received, 12 * 300_000);
    assert.ok(waited >= 10, 'who waits is told so');
    assert.equal(waiting, 0);
  });
});

describe('giving up', () => {
  it('reaches the other side: requests, streams and transfers end there', async () => {
    await using it = await pair();
    const abort = new AbortController();
    const { signal } = abort;
    const request = it.connection.request('test/wait', EMPTY, { ...ANY, signal });
    const { body } = await it.connection.requestStream('test/endless', EMPTY, { ...ANY, signal });
    const reading = (async () => {
      for await (const _ of body);
    })();
    const transfer = it.connection.fetchRange(BLOB, { offset: 0, length: 2 ** 39 }, () => undefined, { signal });
    await settled(() => it.served.waiting === 1 && it.served.pieces > it.served.ranged && it.served.ranged > 0);
    abort.abort();
    await Promise.all([request, reading, transfer].map((one) => refused(one, 'cancelled')));
    await settled(() => it.served.aborted === 1 && it.served.ended === 1);
    await it.served.rest();
    await refused(it.connection.request('test/echo', EMPTY, { ...ANY, signal }), 'cancelled');
    await refused(it.connection.request('test/wait', EMPTY, { ...ANY, timeoutMs: 30 }), 'timeout');
    await settled(() => it.served.aborted === 2);
    // The connection is as good as before.
    await it.connection.fetchRange(BLOB, { offset: 0, length: 5 }, () => undefined);
    await it.connection.request('test/echo', EMPTY, ANY);
  });

  it('of the receiver ends its transfer only', async () => {
    await using it = await pair();
    const full = new Error('the disk is full');
    const write = () => Promise.reject(full);
    await assert.rejects(it.connection.fetchRange(BLOB, { offset: 0, length: 1 << 20 }, write), full);
    await it.connection.fetchRange(BLOB, { offset: 0, length: 5 }, () => undefined);
  });

  it('of the source ends the transfer, and the node that served it knows why', async () => {
    await using it = await pair();
    for (const fault of ['error', 'nothing'] as const) {
      it.served.fault = fault;
      await refused(
        it.connection.fetchRange(BLOB, { offset: 0, length: 1 << 20 }, () => undefined),
        'peer-unreachable',
      );
    }
    it.served.fault = null;
    assert.equal((it.defects[0] as Error).message, 'the disk is on fire');
    await it.connection.fetchRange(BLOB, { offset: 0, length: 5 }, () => undefined);
  });

  it('by closing lets both ends know, and fails what is under way', async () => {
    await using it = await pair();
    const request = it.connection.request('test/wait', EMPTY, ANY);
    const transfer = it.connection.fetchRange(BLOB, { offset: 0, length: 2 ** 39 }, () => undefined);
    await settled(() => it.served.waiting === 1 && it.served.ranged > 0);
    const [theirs] = it.server.connections();
    const failing = Promise.all([request, transfer].map((one) => refused(one, 'peer-unreachable')));
    await theirs![Symbol.asyncDispose]();
    await failing;
    await it.connection.closed;
    await settled(() => it.served.aborted === 1);
    await it.served.rest();
    await refused(it.connection.request('test/echo', EMPTY, ANY), 'peer-unreachable');
    assert.deepEqual(it.client.connections(), []);
    // The next one is a new one.
    const again = await it.client.connect(`127.0.0.1:${it.port}`, { expect: bob.node });
    await again.request('test/echo', EMPTY, ANY);
  });
});

describe('a channel', () => {
  it('closes connections that nobody uses, and no others', async () => {
    await using it = await pair({ idleMsMax: 3_000 });
    const failing = refused(it.connection.request('test/wait', EMPTY, ANY), 'peer-unreachable');
    await settled(() => it.served.waiting === 1);
    // What was used last before this one was opened would be closed before it.
    const idle = await it.another(await network.node()).connect(`127.0.0.1:${it.port}`, { expect: bob.node });
    await idle.closed;
    assert.equal(it.client.connections().length, 1);
    assert.equal(it.served.waiting, 1);
    await it.connection[Symbol.asyncDispose]();
    await failing;
  });

  it('says what is wrong with an address', async () => {
    await using it = await pair();
    await refused(it.client.listen('127.0.0.1', it.port), 'address-taken');
    await refused(it.client.listen('192.0.2.1', 0), 'network-unreachable');
    const expect = network.networkId.slice(7);
    for (const address of ['', 'host', 'host:0', 'host:70000', '::1:4400', 'a b:1', '[::1]']) {
      await refused(it.client.connect(address, { expect }), 'usage');
    }
    const free = createServer().listen(0, '127.0.0.1');
    await once(free, 'listening');
    const { port } = free.address() as { port: number };
    await new Promise((resolve) => free.close(resolve));
    await refused(it.client.connect(`127.0.0.1:${port}`, { expect }), 'peer-unreachable');
    await refused(it.client.connect(`127.0.0.1:${port}`, { expect, signal: AbortSignal.abort() }), 'cancelled');
  });

  it('gives up on an address that takes connections and never answers', async () => {
    const { networkId, clock } = network;
    const limits = { handshakeTimeoutMs: 200 };
    const blobs = { open: async () => null };
    await using client = openChannel({ networkId, clock, trust: ada.trust, methods: new Map(), blobs, limits });
    const silent = createServer((socket) => socket.on('error', () => undefined)).listen(0, '127.0.0.1');
    silent.unref();
    await once(silent, 'listening');
    const { port } = silent.address() as { port: number };
    const expect = network.networkId.slice(7);
    await refused(client.connect(`127.0.0.1:${port}`, { expect }), 'timeout');
    const abort = new AbortController();
    const connecting = client.connect(`127.0.0.1:${port}`, { expect, signal: abort.signal });
    setTimeout(() => abort.abort(), 20);
    await refused(connecting, 'cancelled');
    silent.close();
  });
});
