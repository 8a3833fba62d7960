import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { isCoded } from '../../src/base/errors.ts';
import type { Distribution, PeerInfo } from '../../src/capabilities/transport.ts';
import { until } from '../../src/testing/until.ts';
import { writePackage } from '../system/support.ts';
import { type MeshNode, mesh, QUICK_PACE } from './mesh.ts';

/** Content comes slowly enough for a test to step in while it moves. */
const SPEED = 4 * 2 ** 20;
const LARGE = 24 * 2 ** 20;

let stack: AsyncDisposableStack;
let nodes: MeshNode[];
let folder: string;

before(async () => {
  stack = new AsyncDisposableStack();
  nodes = await mesh(stack, 5, () => ({ peers: { pace: QUICK_PACE, downloadBytesPerSecond: SPEED } }));
  folder = nodes[0]!.folder;
});

after(async () => {
  await stack.disposeAsync();
});

/** `diff -r` is the judge: it follows neither our code nor our idea of equality. */
function assertSame(source: string, installed: string): void {
  const { stdout, stderr } = spawnSync('diff', ['-r', source, installed], { encoding: 'utf8' });
  assert.equal(stdout + stderr, '');
}

function package_(name: string, version: string, files: Readonly<Record<string, string | Uint8Array>>) {
  const manifest = { name, version, type: 'library', description: `${name} of a mesh` };
  return writePackage(join(folder, `${name.replace('/', '-')}-${version}`), manifest, files);
}

/** Everywhere that is up, the version has this state; null: it is gone. */
function everywhere(up: readonly MeshNode[], ref: string, state: string | null): Promise<void> {
  return until(`${ref} is ${state ?? 'deleted'} everywhere`, async () => {
    const states = up.map(async ({ client }) => {
      try {
        return (await client.info(ref)).record.state;
      } catch (error) {
        if (isCoded(error, 'package-not-found', 'version-not-found')) return null;
        throw error;
      }
    });
    return (await Promise.all(states)).every((now) => now === state);
  });
}

const held = async ({ client }: MeshNode) => (await client.status()).transport.resources.held;

describe('five nodes', () => {
  it('discover each other', async () => {
    const last = nodes.at(-1)!;
    // Who is busy for a moment does not answer in time.
    await until('it sees that all of them answer', async () => {
      const { peers } = await last.json<{ peers: PeerInfo[] }>(['peers', '--discover']);
      assert.deepEqual(peers.map(({ node }) => node).sort(), nodes.map(({ id }) => id).sort());
      return peers.every(({ node, state }) => state === (node === last.id ? 'self' : 'alive'));
    });
  });

  it('find what one of them published, and install it byte for byte', async () => {
    const [first, , third, , last] = nodes as [MeshNode, MeshNode, MeshNode, MeshNode, MeshNode];
    const files = {
      'code.txt': 'same everywhere\n'.repeat(1_000),
      'deep/er/data.bin': randomBytes(300_000),
      empty: '',
    };
    const source = await package_('mesh/first', '1.0.0', files);
    const published = await first.json<{ digest: string }>(['publish', source]);

    await everywhere(nodes, 'mesh/first@1.0.0', 'published');
    for (const { client } of nodes) {
      const { hits } = await client.search({ text: 'firs' });
      assert.deepEqual(
        hits.map(({ record }) => [record.name, record.digest]),
        [['mesh/first', published.digest]],
      );
    }
    const found = await third.run('search', 'first');
    assert.match(found.stdout, /mesh\/first/);

    const to = join(last.folder, 'here');
    const { installed } = await last.json<{ installed: { path: string }[] }>(['install', 'mesh/first', '--to', to]);
    assertSame(source, installed[0]!.path);
    const { checks } = await last.client.verify({ ref: 'mesh/first@1.0.0' });
    assert.ok(checks.every(({ ok }) => ok));
  });

  it('keep three copies of what is distributed, and show them', async () => {
    const [, second, third] = nodes as [MeshNode, MeshNode, MeshNode];
    const ran = await second.json<Distribution>(['distribute', 'mesh/first']);
    assert.equal(ran.wanted, 3);
    assert.equal(new Set(ran.holders).size, 3);
    // What was given a moment ago is shown for two seconds more.
    let status = '';
    await until('nothing moves any more', async () => {
      status = (await third.run('status')).stdout;
      return /Transfers +none/.test(status);
    });
    assert.match(status, /Peers +online: 4 of 4 nodes answer/);
    assert.match(status, /Copies +content of [01] of 1 package here\n/);
    const { peers } = await third.json<{ peers: PeerInfo[] }>(['peers']);
    assert.deepEqual(peers.map(({ node }) => node).sort(), nodes.map(({ id }) => id).sort());
    assert.deepEqual(peers.map(({ state }) => state).sort(), ['alive', 'alive', 'alive', 'alive', 'self']);
  });

  it('hear what the publisher says about a version later, and nobody else can say it', async () => {
    const [, second, third] = nodes as [MeshNode, MeshNode, MeshNode];
    for (const name of ['mesh/yanked', 'mesh/old', 'mesh/gone']) {
      await second.publish(await package_(name, '1.0.0', { 'x.txt': name }));
      await everywhere(nodes, `${name}@1.0.0`, 'published');
    }
    await second.json(['yank', 'mesh/yanked@1.0.0', '--reason', 'it leaks']);
    await second.json(['deprecate', 'mesh/old@1.0.0', '--reason', 'see mesh/first']);
    await second.json(['delete', 'mesh/gone@1.0.0']);
    await everywhere(nodes, 'mesh/yanked@1.0.0', 'yanked');
    await everywhere(nodes, 'mesh/old@1.0.0', 'deprecated');
    await everywhere(nodes, 'mesh/gone@1.0.0', null);
    assert.equal((await third.client.info('mesh/old@1.0.0')).record.stateReason, 'see mesh/first');
    await assert.rejects(third.client.setState('mesh/old@1.0.0', 'yanked', null), { code: 'not-owner' });
    await assert.rejects(third.client.install({ refs: ['mesh/yanked'], root: join(third.folder, 'x') }), /yanked|mesh/);
  });

  it('go on with a download when one that it comes from is killed, and when the one it goes to is', async () => {
    const [publisher] = nodes as [MeshNode];
    let [source, version] = ['', 0];
    let holders: readonly string[] = [];
    let getter: MeshNode | undefined;
    // A busy machine lets nodes suspect each other, and then more than three take a copy: another version is as good.
    while (getter === undefined && version < 5) {
      version += 1;
      source = await package_('mesh/large', `${version}.0.0`, { 'large.bin': randomBytes(LARGE) });
      const before = new Map(await Promise.all(nodes.map(async (node) => [node, await held(node)] as const)));
      await publisher.publish(source);
      await everywhere(nodes, `mesh/large@${version}.0.0`, 'published');
      ({ holders } = await publisher.client.distribute('mesh/large'));
      assert.ok(holders.length >= 3);
      for (const node of nodes) {
        if (!holders.includes(node.id) && (await held(node)) === before.get(node)) getter ??= node;
      }
    }
    assert.ok(getter !== undefined, 'every node took a copy, five times');
    const victim = nodes.find((node) => holders.includes(node.id) && node !== publisher)!;
    const root = join(getter.folder, 'large');

    const transfersOf = async ({ client }: MeshNode) => (await client.status()).transport.transfers;
    const moving = async () => {
      return (await transfersOf(getter)).find(({ done, total }) => done > 2 ** 20 && done < total);
    };
    const installing = getter.client.install({ refs: ['mesh/large'], root });
    installing.catch(() => undefined);
    await until('it moves', async () => (await moving()) !== undefined, { everyMs: 20 });
    // Both ends know what, with whom and how fast.
    await until('both see it', async () => {
      const [arriving, leaving] = [await moving(), await transfersOf(publisher)];
      assert.deepEqual(
        [arriving?.direction, arriving?.packages],
        ['in', [`mesh/large@${version}.0.0`]],
        'the transfer was over before it was seen',
      );
      const given = leaving.find(({ direction, peers }) => direction === 'out' && peers[0]!.node === getter.id);
      const isFrom = arriving!.peers.some(({ node }) => node === publisher.id);
      return isFrom && given?.packages[0] === `mesh/large@${version}.0.0` && given.bytesPerSecond > 0;
    });
    await victim.end('SIGKILL');
    assert.notEqual(await moving(), undefined, 'the transfer was over before the holder died');

    // Now the one that downloads, in the middle.
    await until('a third is there', async () => ((await moving())?.done ?? 0) > LARGE / 3, { everyMs: 20 });
    await getter.end('SIGKILL');
    await assert.rejects(installing);
    await getter.up();
    const seen: number[] = [];
    const { installed } = await getter.client.install(
      { refs: ['mesh/large'], root },
      // The first report that names nodes is the one after what was here had been looked at.
      { onProgress: ({ note, done }) => void (note?.startsWith('from ') === true && seen.push(done ?? 0)) },
    );
    // None at all: it became a place of the package, and all was here.
    assert.ok((seen[0] ?? LARGE) >= LARGE / 4, `it began again at ${seen[0]} bytes`);
    assertSame(source, installed[0]!.path);
    await victim.up();
  });

  it('make copies elsewhere when a holder stays away', async () => {
    const [publisher] = nodes as [MeshNode];
    const count = 12;
    for (let n = 0; n < count; n++)
      await publisher.publish(await package_(`mesh/many-${n}`, '1.0.0', { 'x.bin': randomBytes(20_000) }));
    const up = new Set(nodes);
    const copies = async () => (await Promise.all([...up].map(held))).reduce((sum, more) => sum + more, 0);
    const { known } = (await publisher.client.status()).transport.resources;
    await until('everything has three copies', async () => (await copies()) >= 3 * known);
    await until('nobody misses one', async () =>
      (await Promise.all(nodes.map(({ client }) => client.status()))).every(
        ({ transport }) => transport.resources.underReplicated === 0,
      ),
    );
    const [victim] = await mostHolding([...up].filter((node) => node !== publisher));
    const lost = await held(victim);
    assert.ok(lost > 0);
    await victim.end('SIGKILL');
    up.delete(victim);
    const before = await copies();
    await until('what it held lies elsewhere', async () => (await copies()) > before);
    await until('everything has three copies again', async () => (await copies()) >= 3 * known);

    // What happened meanwhile reaches it when it is back.
    await publisher.publish(await package_('mesh/meanwhile', '1.0.0', { 'x.txt': 'late' }));
    await victim.up();
    await everywhere([victim], 'mesh/meanwhile@1.0.0', 'published');
  });
});

async function mostHolding(among: readonly MeshNode[]): Promise<[MeshNode]> {
  const counts = await Promise.all(among.map(held));
  return [among[counts.indexOf(Math.max(...counts))]!];
}
