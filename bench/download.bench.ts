import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Nodes } from './content.ts';
import { type Bench, quantile } from './harness.ts';
import { Reference } from './reference.ts';

const GIB = 2 ** 30;
const ROUNDS = 3;
const RECEIVERS = 5;
const FIVE_BYTES = 128 * 2 ** 20;
const WINDOW = 8 * 2 ** 20;

export const bench: Bench = {
  name: 'download',
  about:
    '1 GiB from node to node, each shard verified, the whole durable on disk; beside it node:http2 over TLS, which verifies nothing',
  async run() {
    await using nodes = await Nodes.open();
    const file = join(nodes.folder, 'file');
    const wall = { ours: [] as number[], file: [] as number[], away: [] as number[] };
    const cpu = { ours: [] as number[], file: [] as number[], bare: [] as number[] };
    const requests = { idle: [] as number[], busy: [] as number[] };
    const memory = { before: [] as number[], after: [] as number[] };

    const made = await nodes.start({ name: 'seed' });
    const blob = await made.seed(GIB, 'download');
    const small = await made.seed(FIVE_BYTES, 'memory');
    await made[Symbol.asyncDispose]();
    // The process that made it has it all in its memory; the one that gives it begins anew.
    const seed = await nodes.start({ name: 'seed' });
    const digits = blob.digest.slice(7);
    const bytes = join(nodes.folder, 'seed', 'content', 'sha256', digits.slice(0, 2), digits.slice(2));

    memory.before.push((await seed.usage()).rssBytes / 2 ** 20);
    const receivers = await Promise.all(Array.from({ length: RECEIVERS }, () => nodes.start()));
    await Promise.all(receivers.map((receiver) => receiver.fetch(small, [seed])));
    memory.after.push((await seed.usage()).maxRssBytes / 2 ** 20);
    await Promise.all(receivers.map((receiver) => receiver[Symbol.asyncDispose]()));

    for (let round = 0; round <= ROUNDS; round++) {
      const receiver = await nodes.start({ name: `round-${round}` });
      // Who both are is proved before the clock starts, as the session of the reference is there before its request.
      requests.idle.push(...(await receiver.requests(small, seed, 500)));
      await warm(nodes.folder);
      const before = (await seed.usage()).cpuMs + (await receiver.usage()).cpuMs;
      const { ms } = await receiver.fetch(blob, [seed]);
      const after = (await seed.usage()).cpuMs + (await receiver.usage()).cpuMs;
      if (!(await receiver.has(blob))) throw new Error('what came is not what was sent');
      await receiver[Symbol.asyncDispose]();
      await rm(join(nodes.folder, `round-${round}`), { recursive: true });

      await warm(nodes.folder);
      const theirs = await reference('http2', bytes, file);
      const away = await reference('http2', bytes, null);
      await rm(file);
      await warm(nodes.folder);
      const bare = await reference('tls', bytes, file);
      await rm(file);
      // The first round is not counted.
      if (round === 0) continue;
      wall.ours.push(ms);
      cpu.ours.push(after - before);
      wall.file.push(theirs.ms);
      cpu.file.push(theirs.cpuMs);
      cpu.bare.push(bare.cpuMs);
      wall.away.push(away.ms);
    }

    const busy = await nodes.start();
    const moving = busy.fetch(blob, [seed]).then(() => false);
    while (await Promise.race([moving, busy.requests(small, seed, 300).then((took) => requests.busy.push(...took))]));

    const http2 = { unit: 'ms', reference: 'node:http2 over TLS into a file' } as const;
    const processor = 'processor time of both ends';
    return [
      { name: '1 GiB', ...http2, ratioMax: 1 / 0.6, ours: wall.ours, theirs: wall.file },
      { name: '1 GiB', unit: 'ms', reference: 'the same, thrown away', ours: wall.ours, theirs: wall.away },
      { name: processor, ...http2, oursMax: 2_000, ours: cpu.ours, theirs: cpu.file },
      {
        ...{ name: processor, unit: 'ms', reference: 'one bare TLS socket, the same two hashes, a synced file' },
        ...{ ratioMax: 1.3, ours: cpu.ours, theirs: cpu.bare },
      },
      {
        ...{ name: 'memory of a seed with five receivers', unit: 'MiB', reference: 'the same before', oursMax: 150 },
        ...{ ours: memory.after, theirs: memory.before },
      },
      {
        ...{ name: 'p99 of a request while 1 GiB moves', unit: 'ms', reference: 'p99 with nothing else', oursMax: 15 },
        ...{ ours: [quantile(requests.busy, 0.99)], theirs: [quantile(requests.idle, 0.99)] },
      },
    ];
  },
};

/** A virtual machine has to find memory for a file first, which costs more than writing it: what was just freed is at hand. */
async function warm(folder: string): Promise<void> {
  const path = join(folder, 'warm');
  const bytes = new Uint8Array(2 ** 20);
  await writeFile(
    path,
    (function* () {
      for (let at = 0; at < GIB; at += bytes.length) yield bytes;
    })(),
  );
  await rm(path);
}

async function reference(
  of: 'http2' | 'tls',
  from: string,
  into: string | null,
): Promise<{ ms: number; cpuMs: number }> {
  using server = new Reference(of);
  using client = new Reference(of);
  const port = await server.serve(from);
  const before = (await server.usage()) + (await client.usage());
  const ms = await client.get({ port, window: WINDOW, bytes: GIB, into });
  return { ms, cpuMs: (await server.usage()) + (await client.usage()) - before };
}
