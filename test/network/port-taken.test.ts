import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { until } from '../../src/testing/until.ts';
import { join, type MeshNode, mesh, meshNode } from './mesh.ts';

test('a node whose port is taken says so, takes part all the same, and listens when the port is free', async () => {
  await using stack = new AsyncDisposableStack();
  const [founder] = (await mesh(stack, 1)) as [MeshNode];
  const node = stack.use(await meshNode());
  await node.up();
  const squatter = createServer().listen(0, '127.0.0.1');
  await once(squatter, 'listening');
  const { port } = squatter.address() as { port: number };

  // Asked for by a person, it is refused; the home is a member all the same.
  await assert.rejects(join(node, founder, `127.0.0.1:${port}`), { code: 'address-taken' });
  squatter.close();
  const { invite } = await founder.client.invite({});
  await node.client.joinNetwork({ invite, listen: `127.0.0.1:${port}` });
  await node.end('SIGTERM');

  // Taken while the node was away, it starts without.
  const second = createServer().listen(port, '127.0.0.1');
  await once(second, 'listening');
  const { problem } = await node.up();
  assert.match(problem ?? '', new RegExp(`Another program listens at 127.0.0.1:${port}`));
  await until('it is in the network', async () => (await node.client.status()).transport.state === 'online');
  const { transport } = await node.client.status();
  assert.deepEqual(transport.addresses, []);
  assert.match(transport.problem ?? '', new RegExp(`Another program listens at 127.0.0.1:${port}`));
  assert.match((await node.run('status')).stdout, /Listening +no: Another program .* It is tried again\./);

  second.close();
  await until('it listens', async () => (await node.client.status()).transport.addresses.length === 1);
  assert.equal((await node.client.status()).transport.problem, null);
});
