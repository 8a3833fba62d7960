import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ContentProcess } from '../src/testing/content-process.ts';
import { delayed, libp2pObjects, Nodes } from './content.ts';
import type { Bench, Comparison } from './harness.ts';
import { Reference } from './reference.ts';

const MIB = 2 ** 20;
const LIMIT = 8 * MIB;
const SHARED_BYTES = 32 * MIB;
const RECEIVERS = 5;
const OBJECTS = 10_000;
const OBJECT_BYTES = 16_384;
const IN_FLIGHT = 32;
/** What a download asks of a node that is near: scattered shards of 1 MiB together, twice at a time. */
const IN_REQUEST = 64;
const REQUESTS = 2;
const FAR_BYTES = 16 * MIB;
const ONE_WAY_MS = 25;
const TRANSFERS = 100;
const TRANSFER_BYTES = 2 * MIB;
const LOAD = 8;

export const bench: Bench = {
  name: 'swarm',
  about: 'many receivers, many small objects, a far node, and a machine with too much to do',
  async run() {
    await using nodes = await Nodes.open();
    return [await five(nodes), ...(await objects(nodes)), await far(nodes), await loaded(nodes)];
  },
};

/** All links are as fast as {@link LIMIT}: what five get together can only be more because they give to each other. */
async function five(nodes: Nodes): Promise<Comparison> {
  const seed = await nodes.start({ uploadBytesPerSecond: LIMIT });
  const blob = await seed.seed(SHARED_BYTES, 'shared');
  const alone = await nodes.start();
  const one = await alone.fetch(blob, [seed]);
  await alone.kill();
  const receivers = await Promise.all(
    Array.from({ length: RECEIVERS }, () => nodes.start({ uploadBytesPerSecond: LIMIT })),
  );
  const others = (receiver: ContentProcess) => [seed, ...receivers.filter((other) => other !== receiver)];
  // Who they are is proved before the clock starts.
  const known = await seed.seed(OBJECT_BYTES, 'known');
  for (const receiver of receivers) for (const other of others(receiver)) await receiver.requests(known, other, 0);
  const startedAtMs = performance.now();
  await Promise.all(receivers.map((receiver) => receiver.fetch(blob, others(receiver))));
  const ms = performance.now() - startedAtMs;
  await Promise.all([seed, ...receivers].map((node) => node.kill()));
  return {
    ...{ name: `time per copy for ${RECEIVERS} receivers`, unit: 'ms', reference: 'one receiver', ratioMax: 1 / 2.5 },
    ...{ ours: [ms / RECEIVERS], theirs: [one.ms] },
  };
}

/** Small ones are asked for as a download asks for scattered shards, and, for comparison, each by itself. */
async function objects(nodes: Nodes): Promise<Comparison[]> {
  const [seed, receiver] = [await nodes.start(), await nodes.start()];
  const blob = await seed.seed(OBJECTS * OBJECT_BYTES, 'objects');
  const ours: number[] = [];
  const single: number[] = [];
  const theirs: number[] = [];
  const me = await nodes.certified();
  for (let round = 0; round < 3; round++) {
    const fetch = async (objects: number, inFlight: number) =>
      (await receiver.objects(blob, seed, OBJECT_BYTES, { objects, inFlight })).ms;
    ours.push(await fetch(IN_REQUEST, REQUESTS));
    single.push(await fetch(1, IN_FLIGHT));
    const libp2p = await libp2pObjects(OBJECTS, IN_FLIGHT, me);
    if (libp2p === null) return [];
    theirs.push(libp2p);
  }
  await Promise.all([seed.kill(), receiver.kill()]);
  const reference = 'js-libp2p, a stream for each';
  const name = '10,000 objects of 16 KiB, hashed';
  return [
    { name: `${name}, ${IN_REQUEST} in a request`, unit: 'ms', reference, ratioMax: 1 / 5, ours, theirs },
    { name: `${name}, a request for each`, unit: 'ms', reference, ours: single, theirs },
  ];
}

async function far(nodes: Nodes): Promise<Comparison> {
  const [seed, receiver] = [await nodes.start(), await nodes.start()];
  const blob = await seed.seed(FAR_BYTES, 'far');
  using link = await delayed(seed, ONE_WAY_MS);
  const { ms } = await receiver.fetch(blob, [link]);
  await Promise.all([seed.kill(), receiver.kill()]);
  const file = join(nodes.folder, 'far');
  await writeFile(file, new Uint8Array(FAR_BYTES));
  using server = new Reference('http2');
  using client = new Reference('http2');
  using slow = await delayed({ address: `127.0.0.1:${await server.serve(file)}`, node: '' }, ONE_WAY_MS);
  const port = Number(slow.address.split(':')[1]);
  const theirs = await client.get({ port, bytes: FAR_BYTES, into: join(nodes.folder, 'got') });
  return {
    ...{
      name: '16 MiB at 50 ms round trip',
      unit: 'ms',
      reference: 'node:http2 with its own windows',
      ratioMax: 1 / 10,
    },
    ...{ ours: [ms], theirs: [theirs] },
  };
}

async function loaded(nodes: Nodes): Promise<Comparison> {
  const [seed, receiver] = [await nodes.start(), await nodes.start()];
  const blobs = [];
  for (let i = 0; i < TRANSFERS; i++) blobs.push(await seed.seed(TRANSFER_BYTES + i, `transfer ${i}`));
  const busy = Array.from({ length: LOAD }, () => spawn(process.execPath, ['-e', 'for (;;);']));
  try {
    for (const until = performance.now() + 90_000; loadavg()[0]! < LOAD && performance.now() < until; )
      await sleep(1_000);
    process.stderr.write(`  load ${loadavg()[0]!.toFixed(1)}\n`);
    const results = await Promise.allSettled(blobs.map((blob) => receiver.fetch(blob, [seed])));
    let failed = results.filter(({ status }) => status === 'rejected').length;
    for (const blob of blobs) if (!(await receiver.has(blob))) failed += 1;
    return {
      ...{
        name: `failed of ${TRANSFERS} transfers at once, load ${LOAD}`,
        unit: 'failed',
        reference: 'all',
        oursMax: 0,
      },
      ...{ ours: [failed], theirs: [TRANSFERS] },
    };
  } finally {
    for (const child of busy) child.kill('SIGKILL');
  }
}
