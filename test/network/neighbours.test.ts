import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';

const run = promisify(execFile);
const CHILD = new URL('./neighbours-child.ts', import.meta.url).pathname;
// A network of its own, whose loopback carries multicast.
const SCRIPT = `
  ip link set lo up multicast on  && ip route add 224.0.0.0/4 dev lo
  exec "$0" "$@"`;

test('nodes of one network find each other on the local link, and nobody else, whatever is shouted there', async (t) => {
  const isolated = ['--net', '--map-root-user', 'sh', '-c', SCRIPT, process.execPath, CHILD];
  const tried = await run('unshare', ['--net', '--map-root-user', 'sh', '-c', SCRIPT, 'true']).catch(
    (error: Error) => error,
  );
  if (tried instanceof Error)
    return t.skip(`this machine makes no network namespaces: ${tried.message.split('\n')[1]}`);
  const { stdout } = await run('unshare', isolated);
  const found = JSON.parse(stdout) as Record<string, string[]>;
  // The one that does not listen finds, and is not found.
  assert.deepEqual([...new Set(found['b'])], ['a 127.0.0.1:9001']);
  assert.deepEqual(found['a'], []);
  assert.deepEqual(found['c'], []);
});
