import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, type TestContext, test } from 'node:test';
import { CertifiedNetwork } from '../../../testing/certified-network.ts';
import { type ChildOptions, ContentProcess, type Fetched } from '../../../testing/content-process.ts';
import { until } from '../../../testing/until.ts';

/** Nodes as processes of their own, which are killed. */

const BYTES = 12_000_000;
/** All of it takes seconds, so that there is time for the kill. */
const SLOW = 2_000_000;
let network: CertifiedNetwork;
before(async () => {
  network = await CertifiedNetwork.found();
});

async function home(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'hm-processes-'));
  const nodes: ContentProcess[] = [];
  t.after(async () => {
    await Promise.all(nodes.map((node) => node.kill()));
    await rm(folder, { recursive: true, force: true });
  });
  return async (name: string, options: Partial<ChildOptions> = {}) => {
    const directory = join(folder, name);
    await mkdir(directory, { recursive: true });
    const { secrets } = await network.node();
    const node = await ContentProcess.start({ networkId: network.networkId, secrets, directory, ...options });
    nodes.push(node);
    return node;
  };
}

function reaching(node: ContentProcess, bytes: number): Promise<void> {
  return new Promise((resolve) => {
    node.onProgress = (done) => {
      if (done >= bytes) resolve();
    };
  });
}

const sum = (from: Readonly<Record<string, number>>) => Object.values(from).reduce((total, bytes) => total + bytes, 0);

test('a receiver that is killed in the middle goes on where it was, again and again', async (t) => {
  const start = await home(t);
  const seed = await start('seed', { uploadBytesPerSecond: SLOW });
  const blob = await seed.seed(BYTES, 'receiver');
  let before = 0;
  for (const bytes of [2_000_000, 6_000_000]) {
    const receiver = await start('receiver');
    const reached = reaching(receiver, bytes);
    const cut = assert.rejects(receiver.fetch(blob, [seed]));
    await reached;
    await receiver.kill();
    await cut;
  }
  const receiver = await start('receiver');
  const report = await receiver.fetch(blob, [seed]);
  before = report.resumed;
  assert.ok(before > 4_000_000, `${before} bytes were still there`);
  assert.equal(before + sum(report.from), BYTES);
  assert.ok(await receiver.has(blob));
});

test('a seed that is killed in the middle costs nothing while another has the blob, nor when it comes back', async (t) => {
  const start = await home(t);
  const [first, second] = [await start('first', { uploadBytesPerSecond: SLOW }), await start('second')];
  const blob = await first.seed(BYTES, 'seed');
  // A node that was killed is given up after as long, whatever the patience.
  const receiver = await start('receiver', { limits: { refreshMs: 100, patienceMs: 4_000 } });
  let reached = reaching(receiver, 1_000_000);
  let isKilled = false;
  // A busy machine may take longer than it has patience, before as well.
  const cut = (async () => {
    do await assert.rejects(receiver.fetch(blob, [first]), { code: 'content-unavailable' });
    while (!isKilled);
  })();
  await reached;
  isKilled = true;
  await first.kill();
  await cut;

  await second.seed(BYTES, 'seed');
  const again = await start('first', { uploadBytesPerSecond: SLOW });
  const more = await start('more');
  reached = reaching(more, 1_000_000);
  const both = more.fetch(blob, [again, second]);
  await reached;
  await again.kill();
  const report = await both;
  assert.equal(sum(report.from), BYTES);
  assert.ok(await more.has(blob));

  let rest: Fetched | undefined;
  await until('the rest comes', async () => {
    rest = await receiver.fetch(blob, [second]);
    return true;
  });
  assert.ok(rest!.resumed >= 500_000, `${rest!.resumed} bytes were kept`);
  assert.equal(rest!.resumed + sum(rest!.from), BYTES);
  assert.ok(await receiver.has(blob));
});
