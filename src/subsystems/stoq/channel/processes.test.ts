import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { CertifiedNetwork, type CertifiedNode } from '../../../testing/certified-network.ts';
import { type Channel, openChannel } from './index.ts';
import { ENDLESS, type Order, refused } from './test-peers.ts';

const EMPTY = new Uint8Array(0);
const ANY = { replyBytesMax: 1_000 };

interface Peer {
  readonly child: ChildProcess;
  readonly node: string;
  readonly address: string;
}

let network: CertifiedNetwork;
let me: Channel;
/** Another node, quick to take silence for death. */
let impatient: Channel;
const children: ChildProcess[] = [];

before(async () => {
  network = await CertifiedNetwork.found();
  const { networkId, clock } = network;
  const { trust } = await network.node();
  const blobs = { open: async () => null };
  me = openChannel({ networkId, clock, trust, methods: new Map(), blobs });
  const limits = { silenceMsMax: 300, deadAfterMs: 4_000 };
  impatient = openChannel({ networkId, clock, trust: (await network.node()).trust, methods: new Map(), blobs, limits });
});
after(async () => {
  await me[Symbol.asyncDispose]();
  await impatient[Symbol.asyncDispose]();
  for (const child of children) child.kill('SIGKILL');
});

async function peer(who?: CertifiedNode): Promise<Peer> {
  const { node, secrets } = who ?? (await network.node());
  const child = fork(fileURLToPath(new URL('./test-peer-child.ts', import.meta.url)));
  children.push(child);
  child.send({ secrets, networkId: network.networkId } satisfies Order);
  const [{ port }] = (await once(child, 'message')) as [{ port: number }];
  return { child, node, address: `127.0.0.1:${port}` };
}

/** One request, one stream and one transfer that would go on for ever, and what becomes of them. */
async function underWay(from: Channel, { address, node }: Peer) {
  const connection = await from.connect(address, { expect: node });
  const { body } = await connection.requestStream('test/endless', EMPTY, ANY);
  const reading = (async () => {
    for await (const _ of body);
  })();
  const request = connection.request('test/wait', EMPTY, ANY);
  const transfer = connection.fetchRange(ENDLESS, { offset: 0, length: 2 ** 39 }, () => undefined);
  const fail = Promise.all([reading, request, transfer].map((one) => refused(one, 'peer-unreachable')));
  return { connection, fail };
}

describe('processes', () => {
  it('speak to each other in every direction at once', async () => {
    const peers = await Promise.all([peer(), peer(), peer()]);
    const length = 20 << 20;
    const answers = peers.map(async ({ child }, at) => {
      const { address, node } = peers[(at + 1) % peers.length]!;
      child.send({ address, expect: node, length } satisfies Order);
      const [answer] = (await once(child, 'message')) as [unknown];
      assert.deepEqual(answer, { bytes: length });
    });
    const mine = peers.map(async ({ address, node }) => {
      const connection = await me.connect(address, { expect: node });
      for (let n = 0; n < 50; n++) {
        assert.equal((await connection.request('test/echo', new Uint8Array(500), ANY)).length, 500);
      }
    });
    await Promise.all([...answers, ...mine]);
    for (const { child } of peers) child.kill();
  });

  it('notice that the other was killed', async () => {
    const bob = await network.node();
    const first = await peer(bob);
    const { connection, fail } = await underWay(me, first);
    await sleep(100);
    first.child.kill('SIGKILL');
    await connection.closed;
    await fail;
    // It comes back with another key for TLS, and is the same node.
    const second = await peer(bob);
    const again = await me.connect(second.address, { expect: bob.node });
    await again.request('test/echo', EMPTY, ANY);
    second.child.kill();
  });

  it('notice that the other has stopped without a word', async () => {
    const stopped = await peer();
    const { connection, fail } = await underWay(impatient, stopped);
    await sleep(100);
    stopped.child.kill('SIGSTOP');
    await connection.closed;
    await fail;
    stopped.child.kill('SIGCONT');
    const again = await me.connect(stopped.address, { expect: stopped.node });
    await again.request('test/echo', EMPTY, ANY);
    stopped.child.kill();
  });
});
