import { fork } from 'node:child_process';
import { once } from 'node:events';
import { connect as connectTcp, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { CertifiedNetwork } from '../src/testing/certified-network.ts';
import { type Bench, type Comparison, inTurn, quantile, timed } from './harness.ts';
import { type Asking, type Certified, connect, hasLibp2p, type Transport } from './transports.ts';

const GIB = 2 ** 30;
const ROUNDS = 3;
const AT_ONCE = 64;
const OBJECTS = 10_000;
/** js-libp2p is slow enough to be measured with fewer. */
const OBJECTS_LIBP2P = 2_000;
const ONE_WAY_MS = 25;

/** Both ends of one transport, the serving one in a process of its own. */
interface Pair extends AsyncDisposable {
  readonly asking: Asking;
  /** CPU time of both processes so far. */
  cpuMs(): Promise<number>;
}

export const bench: Bench = {
  name: 'channel',
  about:
    'two processes over loopback: ranges of blobs and requests over the direct channel, against node:http2 over TLS and js-libp2p',
  async run() {
    const network = await CertifiedNetwork.found();
    const [here, there] = [await network.node(), await network.node()];
    const about = (secrets: Certified['secrets']): Certified => ({
      networkId: network.networkId,
      secrets,
      expect: there.node,
    });
    const pair = (transport: Transport, isFar = false) =>
      open(transport, about(here.secrets), about(there.secrets), isFar);
    const results: Comparison[] = [];
    {
      await using ours = await pair('stoq');
      await using theirs = await pair('h2');
      const shared = { reference: 'node:http2 over TLS, windows of 8 MiB' };
      results.push(...(await bulk(ours, theirs)).map((figures) => ({ ...shared, ...figures })));
      const echo = new Uint8Array(1_024);
      results.push({
        ...{ name: '1 KiB request, one after the other', unit: 'µs', ...shared },
        ...(await inTurn(
          ROUNDS,
          () => each(2_000, 1, () => ours.asking.echo(echo)),
          () => each(2_000, 1, () => theirs.asking.echo(echo)),
        )),
      });
      results.push({
        ...{ name: '16 KiB object, 64 at once', unit: 'µs', ...shared },
        ...(await inTurn(
          ROUNDS,
          () => each(OBJECTS, AT_ONCE, () => ours.asking.object()),
          () => each(OBJECTS, AT_ONCE, () => theirs.asking.object()),
        )),
      });
      results.push({
        ...{ name: '99th percentile of a 1 KiB request while 1 GiB moves', unit: 'ms', ...shared, oursMax: 15 },
        ...(await inTurn(
          3,
          () => besides(ours.asking, echo),
          () => besides(theirs.asking, echo),
        )),
      });
      if (await hasLibp2p()) {
        await using libp2p = await pair('libp2p');
        results.push({
          ...{
            name: '16 KiB object, 64 at once',
            unit: 'µs',
            reference: 'js-libp2p (TCP, noise, yamux), a stream for each',
            ratioMax: 0.2,
          },
          ...(await inTurn(
            3,
            () => each(OBJECTS, AT_ONCE, () => ours.asking.object()),
            () => each(OBJECTS_LIBP2P, AT_ONCE, () => libp2p.asking.object()),
          )),
        });
      }
    }
    results.push(await afar(pair));
    return results;
  },
};

async function bulk(ours: Pair, theirs: Pair): Promise<Omit<Comparison, 'reference'>[]> {
  const cpu = { ours: [] as number[], theirs: [] as number[] };
  const move = async (pair: Pair, into: number[]) => {
    const before = await pair.cpuMs();
    const ms = await timed(() => pair.asking.bulk(GIB));
    into.push((await pair.cpuMs()) - before);
    return ms;
  };
  const wall = await inTurn(
    ROUNDS,
    () => move(ours, cpu.ours),
    () => move(theirs, cpu.theirs),
  );
  // The first of each is that of the round that is not counted.
  return [
    { name: '1 GiB', unit: 'ms', ratioMax: 1, ...wall },
    {
      name: '1 GiB, CPU time of both ends',
      unit: 'ms',
      ratioMax: 1,
      ours: cpu.ours.slice(1),
      theirs: cpu.theirs.slice(1),
    },
  ];
}

/** Microseconds for each of `count` that run `atOnce` at a time. */
async function each(count: number, atOnce: number, work: () => Promise<void>): Promise<number> {
  let left = count;
  const lane = async () => {
    while (left-- > 0) await work();
  };
  return ((await timed(() => Promise.all(Array.from({ length: atOnce }, lane)))) * 1_000) / count;
}

async function besides(asking: Asking, echo: Uint8Array): Promise<number> {
  const latencies: number[] = [];
  let isMoving = true;
  const moving = asking.bulk(GIB).finally(() => {
    isMoving = false;
  });
  while (isMoving) latencies.push(await timed(() => asking.echo(echo)));
  await moving;
  return quantile(latencies, 0.99);
}

/** One connection each, through a proxy that lets everything take 25 ms each way. */
async function afar(pair: (transport: Transport, isFar: boolean) => Promise<Pair>): Promise<Comparison> {
  await using ours = await pair('stoq', true);
  await using theirs = await pair('h2-defaults', true);
  const [mine, its] = [64, 2];
  const figures = await inTurn(
    3,
    async () => (await timed(() => ours.asking.bulk(mine * 2 ** 20))) / mine,
    async () => (await timed(() => theirs.asking.bulk(its * 2 ** 20))) / its,
  );
  const reference = 'node:http2 over TLS, windows of its own';
  return { name: '1 MiB at a round trip of 50 ms', unit: 'ms', reference, ratioMax: 0.1, ...figures };
}

/** The same address, through a proxy. */
async function farAway(at: string): Promise<string> {
  const [before, port] = at.split(/:(?=\d+$)/);
  return `${before}:${await delayed(Number(port))}`;
}

/** A proxy in front of a port; what passes through comes out 25 ms later. */
async function delayed(port: number): Promise<number> {
  const server = createServer((near) => {
    const far = connectTcp({ port, host: '127.0.0.1', noDelay: true });
    late(near, far);
    late(far, near);
  });
  server.listen(0, '127.0.0.1').unref();
  await once(server, 'listening');
  return (server.address() as { port: number }).port;
}

function late(from: Socket, to: Socket): void {
  from.setNoDelay(true);
  from.on('error', () => to.destroy());
  from.on('data', (chunk) => setTimeout(() => to.write(chunk), ONE_WAY_MS));
  from.on('close', () => setTimeout(() => to.destroy(), ONE_WAY_MS));
}

async function open(transport: Transport, me: Certified, them: Certified, isFar: boolean): Promise<Pair> {
  const child = fork(join(import.meta.dirname, 'transport-child.ts'));
  child.send({ transport, me: them });
  const [{ at }] = (await once(child, 'message')) as [{ at: string }];
  const asking = await connect(transport, isFar ? await farAway(at) : at, me);
  return {
    asking,
    async cpuMs() {
      child.send({});
      const [{ cpuMs }] = (await once(child, 'message')) as [{ cpuMs: number }];
      const { user, system } = process.cpuUsage();
      return cpuMs + (user + system) / 1_000;
    },
    async [Symbol.asyncDispose]() {
      await asking[Symbol.asyncDispose]();
      child.disconnect();
      await once(child, 'exit');
    },
  };
}
