import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { HyperMesh } from '../../src/index.ts';
import { until } from '../../src/testing/until.ts';
import { PROJECT, SMALL_NETWORK, temporaryFolder } from '../system/support.ts';
import { type MeshNode, mesh, QUICK_PACE } from './mesh.ts';

/** The specification's lifecycle example across processes, less proxy: the author's program here, the others as nodes of their own. */
test('the lifecycle of a package across a network: sign, publish, distribute, find, install, execute, observe, carry on elsewhere', {
  timeout: 900_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await temporaryFolder());
  const [founder, user, third] = (await mesh(stack, 3)) as [MeshNode, MeshNode, MeshNode];
  const examples = join(PROJECT, 'examples', 'packages');

  // The author: publishes, saves what is its own, and goes.
  let digest: string;
  let author: string;
  const backup: Uint8Array[] = [];
  {
    await using hypermesh = await HyperMesh.create({
      home: join(folder.path, 'author'),
      network: SMALL_NETWORK,
      passphrase: 'only in this test',
      peers: { pace: QUICK_PACE },
    });
    const { invite } = await founder.client.invite({});
    author = (await hypermesh.node.membership.join(invite, { listen: '127.0.0.1:0' })).node;
    const catalog = await hypermesh.loadExtension('catalog');

    await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(join(examples, 'phrases'))));
    const signed = await catalog.signPackage(await hypermesh.stageFolder(join(examples, 'greeter')));
    const published = await catalog.publishPackage(signed);
    digest = published.digest;

    for (const ref of ['hello/greeter', 'hello/phrases']) {
      const { holders, wanted } = await catalog.distributePackage(ref);
      assert.equal(wanted, 3);
      assert.equal(new Set(holders).size, 3);
    }
    const metrics = await hypermesh.getMetrics('catalog.*');
    for (const operation of ['publish', 'distribute']) {
      const counted = metrics.find(({ name }) => name === `catalog.operations.${operation}`);
      assert.deepEqual([counted?.value, counted?.tags], [2, { outcome: 'ok' }]);
    }
    for await (const piece of hypermesh.exportState()) backup.push(piece);
  }

  // Somebody else, on another machine: everything is verified, nothing was asked of the author.
  await until('the user finds it', async () => {
    const { hits } = await user.client.search({ text: 'greet' });
    return hits[0]?.record.digest === digest;
  });
  const { installed } = await user.json<{ installed: { name: string; digest: string }[] }>([
    'install',
    'hello/greeter',
    '--to',
    join(user.folder, 'here'),
  ]);
  assert.deepEqual(installed.map(({ name }) => name).sort(), ['hello/greeter', 'hello/phrases']);
  assert.equal(installed.find(({ name }) => name === 'hello/greeter')?.digest, digest);
  const input = JSON.stringify({ name: 'Ada', language: 'fr' });
  const { output } = await user.json<{ output: unknown }>(['run', 'hello/greeter', '--input', input]);
  assert.match(JSON.stringify(output), /Ada/);
  const { checks } = await user.client.verify({ ref: 'hello/greeter' });
  assert.ok(checks.every(({ ok }) => ok));
  const metrics = await user.client.metrics('catalog.*');
  assert.equal(metrics.find(({ name }) => name === 'catalog.packages.total')?.value, 2);

  // A third one runs it without having installed it.
  const ran = await third.client.run({ ref: 'hello/greeter', input: { name: 'Bob', language: 'en' } });
  assert.match(JSON.stringify(ran.output), /Bob/);

  // The author goes on at another machine, as the same publisher and member.
  await using moved = await HyperMesh.create({
    home: join(folder.path, 'moved'),
    network: SMALL_NETWORK,
    passphrase: 'only in this test',
    peers: { pace: QUICK_PACE },
  });
  await moved.importState(stream(backup));
  const catalog = await moved.loadExtension('catalog');
  assert.equal((await catalog.resolve('hello/greeter')).digest, digest);
  assert.equal((await moved.node.membership.place()).node, author);
  await until('it is in the network again', async () => (await moved.node.transport.status()).peers.alive === 3);
  await catalog.setState('hello/greeter', 'deprecated', 'see the next one');
  await until('the user hears of it', async () => {
    return (await user.client.info('hello/greeter')).record.state === 'deprecated';
  });
});

async function* stream(pieces: readonly Uint8Array[]): AsyncIterable<Uint8Array> {
  yield* pieces;
}
