import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { CatalogExtension } from '../../src/catalog/extension.ts';
import { HyperMesh } from '../../src/index.ts';
import { until } from '../../src/testing/until.ts';
import { type Folder, SMALL_NETWORK, temporaryFolder, writePackage } from '../system/support.ts';
import { QUICK_PACE } from './mesh.ts';

const HOUR_MS = 3_600_000;

interface Node {
  readonly name: string;
  readonly hypermesh: HyperMesh;
  readonly catalog: CatalogExtension;
  /** How far its clock is ahead. */
  skewMs: number;
}

let stack: AsyncDisposableStack;
let folder: Folder;
let right: Node;
let early: Node;
let late: Node;

before(async () => {
  stack = new AsyncDisposableStack();
  folder = stack.use(await temporaryFolder());
  right = await open('right');
  early = await open('early');
  late = await open('late');
  await right.hypermesh.node.membership.create({ listen: '127.0.0.1:0' });
});

after(async () => {
  await stack.disposeAsync();
});

async function open(name: string): Promise<Node> {
  const at = { skewMs: 0 };
  const hypermesh = stack.use(
    await HyperMesh.create({
      home: join(folder.path, name),
      network: SMALL_NETWORK,
      threads: 1,
      clock: { nowMs: () => Date.now() + at.skewMs },
      peers: { pace: QUICK_PACE },
    }),
  );
  return Object.assign(at, { name, hypermesh, catalog: await hypermesh.loadExtension('catalog') });
}

describe('nodes whose clocks are an hour early and an hour late', () => {
  it('are told so when they join, and join once they are right', async () => {
    for (const [node, skewMs] of [
      [early, HOUR_MS],
      [late, -HOUR_MS],
    ] as const) {
      const { membership } = node.hypermesh.node;
      const { invite } = await right.hypermesh.node.membership.invite();
      node.skewMs = skewMs;
      await assert.rejects(membership.join(invite), { code: 'clock-skewed' });
      node.skewMs = 0;
      await membership.join(invite, { listen: '127.0.0.1:0' });
    }
  });

  it('find each other', async () => {
    early.skewMs = HOUR_MS;
    late.skewMs = -HOUR_MS;
    for (const { name, hypermesh } of [right, early, late]) {
      const alive = async () => (await hypermesh.node.transport.status()).peers.alive === 2;
      await until(`${name} speaks to both others`, alive);
    }
  });

  for (const at of ['right', 'early', 'late'] as const) {
    it(`share what the one that is ${at} publishes`, async () => {
      const nodes = [right, early, late];
      const own = nodes.find(({ name }) => name === at)!;
      const manifest = { name: `clocks/${at}`, version: '1.0.0', type: 'library' };
      const source = await writePackage(join(folder.path, `package-${at}`), manifest, { 'x.txt': at });
      const staged = await own.hypermesh.stageFolder(source);
      const { digest } = await own.catalog.publishPackage(await own.catalog.signPackage(staged));
      for (const { name, catalog } of nodes) {
        await until(`${name} has it`, async () => (await catalog.resolve(`clocks/${at}`)).digest === digest);
        const { installed } = await catalog.install([`clocks/${at}`], { root: join(folder.path, name, 'here') });
        assert.ok(installed.some((entry) => entry.digest === digest));
      }
      await own.catalog.setState(`clocks/${at}@1.0.0`, 'deprecated', 'time passes');
      for (const { name, catalog } of nodes) {
        const isDeprecated = async () => (await catalog.resolve(`clocks/${at}`)).state === 'deprecated';
        await until(`${name} heard what was said later`, isDeprecated);
      }
    });
  }

  it('hold nothing against each other', async () => {
    for (const { hypermesh } of [right, early, late]) {
      const peers = await hypermesh.node.transport.peers();
      assert.deepEqual(peers.map(({ state, reason }) => [state, reason]).sort(), [
        ['alive', null],
        ['alive', null],
        ['self', null],
      ]);
    }
  });
});
