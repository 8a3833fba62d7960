import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { Distribution } from '../../src/capabilities/transport.ts';
import { until } from '../../src/testing/until.ts';
import { PROOFLESS_NETWORK, writePackage } from '../system/support.ts';
import { type MeshNode, mesh, QUICK_PACE } from './mesh.ts';

const SIZE = 4 * 2 ** 20;
/** A busy machine lets nodes suspect each other, and then more than three take a copy: they wait longer for each other than elsewhere. */
const PACE = { ...QUICK_PACE, patienceMs: 10_000, fragmentPatienceMs: 3_000 };

let stack: AsyncDisposableStack;
let nodes: MeshNode[];
let source: string;
let coded: Distribution;

before(async () => {
  stack = new AsyncDisposableStack();
  // The only validator may be among those that are lost.
  nodes = await mesh(stack, 6, () => ({ network: PROOFLESS_NETWORK, peers: { pace: PACE } }));
});

after(async () => {
  await stack.disposeAsync();
});

const codedOf = async ({ client }: MeshNode) => (await client.status()).transport.coded;

/** Nodes that have every layer of the package. */
async function wholeHolders(): Promise<MeshNode[]> {
  const all = await Promise.all(
    nodes.map(async (node) => ((await node.client.status()).transport.resources.held > 0 ? node : null)),
  );
  return all.filter((node) => node !== null);
}

describe('coded content', () => {
  it('is not there before somebody codes', async () => {
    const [, publisher] = nodes as [MeshNode, MeshNode];
    const manifest = { name: 'mesh/archive', version: '1.0.0', type: 'library', description: 'seldom used' };
    source = await writePackage(join(nodes[0]!.folder, 'archive'), manifest, { 'data.bin': randomBytes(SIZE) });
    await publisher.publish(source);
    await until('three places and the publisher have it', async () => (await wholeHolders()).length >= 3);
    assert.deepEqual(await codedOf(publisher), { packages: 0, fragments: 0, missing: 0 });
    assert.doesNotMatch((await publisher.run('status')).stdout, /Coded/);
    await assert.rejects(publisher.client.distribute('mesh/archive', { code: { k: 4, m: 4 } }), {
      code: 'network-unreachable',
    });
    await assert.rejects(publisher.client.distribute('mesh/archive', { code: { k: 1, m: 2 } }), { code: 'usage' });
  });

  it('lies in fragments on different nodes, in fewer bytes than copies', async () => {
    const [, publisher] = nodes as [MeshNode, MeshNode];
    const { size } = (await publisher.client.info('mesh/archive')).record;
    /** Without whole copies, of which a busy machine may make one more at any time. */
    const besideCopies = async () => {
      const all = await Promise.all(nodes.map(({ client }) => client.status()));
      return all.reduce((sum, { totals, transport }) => sum + totals.bytes - transport.resources.held * size, 0);
    };
    await publisher.client.distribute('mesh/archive');
    const before = await besideCopies();
    coded = await publisher.json<Distribution>(['distribute', 'mesh/archive', '--code', '2+3']);
    assert.equal(coded.wanted, 5);
    assert.equal(coded.holders.length, 5, JSON.stringify(coded));
    assert.equal(new Set(coded.holders).size, 5);
    await until('everybody knows, and each holder keeps one', async () => {
      const all = await Promise.all(nodes.map(codedOf));
      return (
        all.every(({ packages, missing }) => packages === 1 && missing === 0) &&
        all.every(({ fragments }, at) => fragments === (coded.holders.includes(nodes[at]!.id) ? 1 : 0))
      );
    });
    // What arrives is counted before the copy of which it is a part.
    await until('two and a half of what it has are kept, not three', async () => {
      const kept = (await besideCopies()) - before;
      return kept >= 2.5 * size && kept < 2.6 * size;
    });
    assert.match((await publisher.run('status')).stdout, /Coded +1 package, 0 fragments here, none missing/);
  });

  it('has a fragment made again that is missed for long', async () => {
    const [founder, publisher] = nodes as [MeshNode, MeshNode];
    const whole = await wholeHolders();
    const victims = nodes.filter((node) => !whole.includes(node));
    const victim = victims.find((node) => coded.holders.includes(node.id) && node !== founder);
    assert.ok(victim !== undefined, `${whole.length} nodes have all of it`);
    await victim.end('SIGKILL');
    const others = nodes.filter((node) => node !== victim);
    const kept = async () =>
      (await Promise.all(others.map(codedOf))).reduce((sum, { fragments }) => sum + fragments, 0);
    await until('it is missed', async () => (await codedOf(publisher)).missing === 1);
    await until('all five are kept by others', async () => (await kept()) === 5);
    await until('none is missed', async () => (await codedOf(publisher)).missing === 0);
    await victim.up();
  });

  it('survives the loss of every whole copy and of as many fragments as it may', async () => {
    const whole = await wholeHolders();
    assert.ok(whole.length <= 4, `${whole.length} nodes have all of it`);
    const rest = nodes.filter((node) => !whole.includes(node));
    const [user] = rest as [MeshNode];
    // One of them came back a moment ago.
    await until('those that stay know of everybody', async () => {
      const all = await Promise.all(rest.map(({ client }) => client.status()));
      return all.every(({ transport: { peers, coded: of } }) => peers.alive === nodes.length - 1 && of.packages === 1);
    });
    for (const node of whole) await node.end('SIGKILL');
    const root = join(user.folder, 'restored');
    const { installed } = await user.client.install({ refs: ['mesh/archive'], root });
    const { stdout, stderr } = spawnSync('diff', ['-r', source, installed[0]!.path], { encoding: 'utf8' });
    assert.equal(stdout + stderr, '');
  });
});
