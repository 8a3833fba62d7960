import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fromBase64, utf8 } from '../../src/base/bytes.ts';
import { digestOf } from '../../src/base/digest.ts';
import { HyperMesh } from '../../src/index.ts';
import { type TestNetwork, testNetwork } from '../../src/testing/network.ts';
import { decodeGenesis } from '../../src/wire/genesis.ts';
import { SMALL_NETWORK, temporaryFolder } from './support.ts';

const KILLS = Number(process.env['HYPERMESH_TEST_KILLS'] ?? 4);

async function open(network: TestNetwork, folder: string, name: string): Promise<HyperMesh> {
  let opened: HyperMesh | undefined;
  const hypermesh = await HyperMesh.create({
    home: join(folder, name),
    network: SMALL_NETWORK,
    subject: name,
    threads: 1,
    networkSide: network.side(name, () => network.identityOf(opened!.node)),
  });
  opened = hypermesh;
  return hypermesh;
}

/** Two homes in a folder; the first has opened its network and gave out one invite. */
async function prepare(folder: string): Promise<string> {
  const network = testNetwork();
  await using ada = await open(network, folder, 'ada');
  await using _bob = await open(network, folder, 'bob');
  await ada.node.membership!.create();
  return (await ada.node.membership!.invite()).invite;
}

/** Lets bob join in a process of its own and kills that after a while; how long the join took, when it got so far. */
async function live(
  folder: string,
  invite: string,
  afterMs: number,
): Promise<{ joinedMs: number | null; errors: string }> {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'join-child.ts'), folder, invite], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
  });
  const closed = new Promise<void>((done) => child.once('close', () => done()));
  const ready = Promise.withResolvers<void>();
  const joined = Promise.withResolvers<void>();
  let joinedMs: number | null = null;
  let readyAt = 0;
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (line === 'ready') {
      readyAt = performance.now();
      ready.resolve();
    } else {
      joinedMs = performance.now() - readyAt;
      joined.resolve();
    }
  });
  await Promise.race([ready.promise, closed]);
  await Promise.race([afterMs === Number.POSITIVE_INFINITY ? joined.promise : sleep(afterMs), closed]);
  child.kill('SIGKILL');
  await closed;
  return { joinedMs, errors };
}

test(`killing a home at ${KILLS} moments of its join leaves it before or after, never between`, {
  timeout: 900_000,
}, async (t) => {
  await using template = await temporaryFolder();
  const invite = await prepare(template.path);
  await using once = await temporaryFolder();
  await cp(template.path, once.path, { recursive: true });
  const { joinedMs, errors } = await live(once.path, invite, Number.POSITIVE_INFINITY);
  assert.ok(joinedMs !== null, errors);
  const found = { alone: 0, member: 0 };
  for (let kill = 0; kill < KILLS; kill++) {
    await using folder = await temporaryFolder();
    await cp(template.path, folder.path, { recursive: true });
    // Spread over the whole join, and once right after it.
    const afterMs = kill === KILLS - 1 ? Number.POSITIVE_INFINITY : (joinedMs * (kill + 0.5)) / (KILLS - 1);
    const life = await live(folder.path, invite, afterMs);
    const network = testNetwork();
    await using ada = await open(network, folder.path, 'ada');
    await using bob = await open(network, folder.path, 'bob');
    const { trust, consensus, membership } = bob.node;
    const { role, networkId } = await membership!.place();
    const context = `kill ${kill}, then ${role}: ${life.errors}`;
    assert.ok(role === 'alone' || role === 'member', context);
    if (life.joinedMs !== null) assert.equal(role, 'member', context);
    assert.equal(networkId === (await ada.node.membership!.place()).networkId, role === 'member', context);
    // Certificates, genesis and root belong together.
    const { genesis } = decodeGenesis((await consensus.genesis()).document);
    assert.equal(digestOf(fromBase64((await trust.anchor()).root)).slice(7), genesis.root, context);
    const envelope = await trust.sign('node', 'application/json', utf8('{}'));
    await trust.verify(envelope, (await trust.identity('node')).chain, { role: 'node' });
    found[role] += 1;

    // Whatever the founder had done already, the same invite brings it to the end.
    await membership!.join(invite);
    assert.equal((await membership!.members()).length, 2, context);
    assert.equal((await consensus.stake()).locked, 1_000, context);
    assert.equal((await ada.node.consensus.stake()).balance, 999_000, context);
  }
  t.diagnostic(`alone ${found.alone} times, member ${found.member} times; the join takes ${Math.round(joinedMs)} ms`);
  assert.ok(found.member > 0);
});
