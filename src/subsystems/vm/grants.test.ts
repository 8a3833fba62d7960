import assert from 'node:assert/strict';
import { once } from 'node:events';
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { type Digest, digestOf } from '../../base/digest.ts';
import type { HyperMeshError } from '../../base/errors.ts';
import type { SandboxPolicy } from '../../capabilities/vm.ts';
import { MemoryTrees, SMALL_POLICY } from '../../testing/runtime-conformance.ts';
import { until } from '../../testing/until.ts';
import { type ExecutionSubsystem, openExecution } from './execution.ts';
import { Grants } from './grants.ts';
import { openRelays } from './process/relay.ts';

const PACKAGE = digestOf(Buffer.from('a package'));
const REF = 'ada/fetcher@1.0.0';

/** A server of this machine that answers what it was told, twice. */
async function listen(): Promise<{ server: Server; place: string }> {
  const server = createServer((socket) => {
    socket.on('data', (bytes) => socket.end(`${bytes}${bytes}`));
    socket.on('error', () => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { server, place: `127.0.0.1:${(server.address() as AddressInfo).port}` };
}

const probe = await (async () => {
  const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-grants-'));
  const execution = await openExecution({ assets: new MemoryTrees() }, { directory });
  const python = (await execution.runtimes()).find(({ kind }) => kind === 'python');
  await execution[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
  return python?.available === true ? false : (python?.reason ?? 'no Python');
})();

describe('what the owner grants', { skip: probe }, () => {
  const stack = new AsyncDisposableStack();
  const assets = new MemoryTrees();
  let folder: string;
  let data: string;
  let execution: ExecutionSubsystem;
  let granted: { server: Server; place: string };
  let other: { server: Server; place: string };

  before(async () => {
    folder = await realpath(await mkdtemp(path.join(tmpdir(), 'hypermesh-grants-')));
    stack.defer(() => rm(folder, { recursive: true, force: true }));
    await chmod(folder, 0o700);
    data = path.join(folder, 'data');
    await mkdir(data);
    await chmod(data, 0o777);
    await writeFile(path.join(data, 'in.txt'), 'from the owner');
    await writeFile(path.join(folder, 'secret.txt'), 'not lent');
    execution = stack.use(
      await openExecution({ assets }, { directory: path.join(folder, 'home/vm'), home: await homeIn(folder) }),
    );
    granted = await listen();
    other = await listen();
    stack.defer(() => void granted.server.close());
    stack.defer(() => void other.server.close());
  });
  after(() => stack.disposeAsync());

  async function homeIn(above: string): Promise<string> {
    const home = path.join(above, 'home');
    await mkdir(path.join(home, 'vm'), { recursive: true });
    return home;
  }

  const layerOf = (program: string) => assets.add({ 'main.py': Buffer.from(program) });
  const run = (layer: Digest, policy: Partial<SandboxPolicy>, more: { input?: never; subject?: Digest } = {}) =>
    execution.run({
      ...{ kind: 'python', layer, entry: 'main.py', args: [], input: more.input ?? null },
      policy: { ...SMALL_POLICY, memoryBytes: 64 * 2 ** 20, ...policy },
      subject: { package: more.subject ?? PACKAGE, ref: REF },
    });
  const grant = (
    layer: Digest,
    more: { connect?: string[]; folders?: { name: string; access: 'read' | 'write'; path: string }[] },
  ) =>
    execution.grant({
      package: PACKAGE,
      program: layer,
      ref: REF,
      connect: more.connect ?? [],
      folders: more.folders ?? [],
    });

  it('is asked for before anything runs, with what to type', async () => {
    const layer = layerOf('print(1)');
    const policy = { connect: ['api.example.org:443'], folders: [{ name: 'out', access: 'write' }] } as const;
    const error = await run(layer, policy).then(
      () => assert.fail('it ran'),
      (thrown: HyperMeshError) => thrown,
    );
    assert.equal(error.code, 'grant-needed');
    assert.match(error.message, /connect to api\.example\.org:443, and write a folder of yours, which it calls "out"/);
    assert.match(error.hint ?? '', /hypermesh run ada\/fetcher@1\.0\.0 --allow api\.example\.org:443 --allow out=/);
    assert.deepEqual(error.details, {
      package: PACKAGE,
      program: layer,
      ref: REF,
      ...{ connect: [...policy.connect], folders: [...policy.folders] },
    });
  });

  it('opens a place, and no other', async () => {
    const layer = layerOf(`
import json, os, socket
def talk(name):
    s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(name); s.sendall(b'hey')
    return s.recv(100).decode()
def fails(work):
    try: work()
    except OSError as error: return True
print(json.dumps({'said': talk('/connect/${granted.place}'), 'places': os.listdir('/connect'), 'closed': [
  fails(lambda: talk('/connect/${other.place}')),
  fails(lambda: socket.create_connection(('127.0.0.1', ${granted.place.split(':')[1]}), 2)),
  fails(lambda: socket.create_connection(('127.0.0.1', ${other.place.split(':')[1]}), 2)),
  fails(lambda: socket.getaddrinfo('example.org', 443)),
  fails(lambda: os.listdir('/mnt')), fails(lambda: open('/connect/x', 'w')), fails(lambda: os.remove('/connect/${granted.place}'))]}))`);
    const policy = { connect: [granted.place] };
    await grant(layer, policy);
    const result = await run(layer, policy);
    assert.deepEqual(
      result.output,
      { said: 'heyhey', places: [granted.place], closed: Array(7).fill(true) },
      result.stderr,
    );
    assert.match(result.enforcedBy['network'] ?? '', /granted places/);
    // What it did not ask for, it does not get.
    const nothing = layerOf('import os; print(os.path.exists("/connect"), os.path.exists("/folders"))');
    assert.equal((await run(nothing, {})).text, 'False False\n');
    assert.deepEqual(await readdir(path.join(folder, 'home/vm/connect')), [], 'nothing is left of it');
  });

  it('counts for one version of one package only', async () => {
    const layer = layerOf('print("granted")');
    const policy = { connect: [granted.place] };
    await grant(layer, policy);
    await assert.rejects(run(layerOf('print("another program")'), policy), { code: 'grant-needed' });
    await assert.rejects(run(layer, policy, { subject: digestOf(Buffer.from('another version')) }), {
      code: 'grant-needed',
    });
    await assert.rejects(run(layer, { connect: [granted.place, other.place] }), (error: HyperMeshError) => {
      assert.deepEqual(error.details?.['connect'], [other.place]);
      return error.code === 'grant-needed';
    });
    assert.equal((await run(layer, policy)).text, 'granted\n');
    // A dependency that changed is code that nobody was asked about.
    const mounts = [{ layer: layerOf('x = 1'), at: '/packages/ada/words' }];
    const error = await run(layer, { ...policy, mounts }).then(
      () => assert.fail('it ran'),
      (thrown: HyperMeshError) => thrown,
    );
    assert.equal(error.code, 'grant-needed');
    await execution.grant({
      ...{ package: PACKAGE, program: error.details?.['program'] as Digest, ref: REF },
      ...{ connect: [granted.place], folders: [] },
    });
    assert.equal((await run(layer, { ...policy, mounts })).text, 'granted\n');
    const changed = [{ layer: layerOf('x = 2'), at: '/packages/ada/words' }];
    await assert.rejects(run(layer, { ...policy, mounts: changed }), { code: 'grant-needed' });
  });

  it('shows a folder to read, and to write, and nothing beside it', async () => {
    const layer = layerOf(`
import json, os
def fails(work):
    try: work()
    except OSError: return True
held = [
  fails(lambda: open('/folders/in/x', 'w')), fails(lambda: os.remove('/folders/in/in.txt')), fails(lambda: os.chmod('/folders/in/in.txt', 0o777)),
  fails(lambda: open('/folders/in/../secret.txt')), fails(lambda: open('/folders/in/link')), fails(lambda: open('${folder}/secret.txt')),
  fails(lambda: os.mkdir('/folders/more'))]
open('/folders/out/made.txt', 'w').write('by the program')
os.symlink('/etc/passwd', '/folders/out/leads')
print(json.dumps([open('/folders/in/in.txt').read(), sorted(os.listdir('/folders')), held]))`);
    const out = path.join(folder, 'out');
    await mkdir(out);
    await chmod(out, 0o777);
    await symlink(path.join(folder, 'secret.txt'), path.join(data, 'link'));
    const policy = {
      folders: [
        { name: 'in', access: 'read' },
        { name: 'out', access: 'write' },
      ],
    } as const;
    await grant(layer, {
      folders: [
        { name: 'in', access: 'read', path: data },
        { name: 'out', access: 'write', path: out },
      ],
    });
    const result = await run(layer, policy);
    assert.deepEqual(result.output, ['from the owner', ['in', 'out'], Array(7).fill(true)], result.stderr);
    assert.equal(await readFile(path.join(out, 'made.txt'), 'utf8'), 'by the program');
    assert.match(result.enforcedBy['files'] ?? '', /granted/);
    // Granted to read, it is not written.
    await assert.rejects(run(layer, { folders: [{ name: 'in', access: 'write' }] }), { code: 'grant-needed' });
    if (process.getuid?.() === 0) {
      for (let wait = 0; (await readdir(path.join(folder, 'home/vm/lent'))).length > 0 && wait < 100; wait++)
        await setTimeout(20);
      assert.deepEqual(await readdir(path.join(folder, 'home/vm/lent')), [], 'nothing stays mounted');
      await chmod(out, 0o755);
      await assert.rejects(run(layer, policy), { code: 'policy-refused', message: /they cannot write/ });
    }
  });

  it('does not lend what must not be lent, or is not there any more', async () => {
    const layer = layerOf('print(1)');
    const give = (where: string, access: 'read' | 'write' = 'read') =>
      grant(layer, { folders: [{ name: 'data', access, path: where }] });
    for (const where of [
      '/',
      '/proc',
      '/dev',
      '/run',
      '/sys/fs',
      folder,
      path.join(folder, 'home'),
      path.join(folder, 'home/vm'),
    ])
      await assert.rejects(give(where), { code: 'policy-refused' }, where);
    await assert.rejects(give(path.join(folder, 'nosuch')), { code: 'file-not-found' });
    await assert.rejects(give(path.join(folder, 'secret.txt')), { code: 'file-not-found' });

    const policy = { folders: [{ name: 'data', access: 'read' }] } as const;
    const swapped = path.join(folder, 'swapped');
    await mkdir(swapped);
    await chmod(swapped, 0o755);
    await give(swapped);
    assert.equal((await run(layer, policy)).exitCode, 0);
    await rename(swapped, `${swapped}.before`);
    await symlink(path.join(folder, 'home'), swapped);
    await assert.rejects(run(layer, policy), { code: 'policy-refused' });
    await rm(swapped);
    await symlink(data, swapped);
    await assert.rejects(run(layer, policy), { code: 'policy-refused', message: /not the folder any more/ });
    await rm(swapped);
    await assert.rejects(run(layer, policy), { code: 'file-not-found' });

    // Whoever may write a folder could put a link in the place of one inside.
    const outer = path.join(folder, 'outer');
    await mkdir(path.join(outer, 'inner'), { recursive: true });
    await give(path.join(outer, 'inner'));
    const writer = layerOf('print(2)');
    await grant(writer, { folders: [{ name: 'all', access: 'write', path: outer }] });
    await assert.rejects(run(layer, policy), { code: 'policy-refused', message: /may write/ });
    await execution.revoke(PACKAGE);
  });

  it('is kept, listed, and taken back', async () => {
    const layer = layerOf('print(1)');
    const connect = [granted.place, other.place];
    await grant(layer, { connect, folders: [{ name: 'data', access: 'read', path: data }] });
    const file = path.join(folder, 'home/vm/grants.json');
    assert.equal((await stat(file)).mode & 0o777, 0o600);
    const keeper = new Grants({ file, home: path.join(folder, 'home') });
    const [kept] = await keeper.list();
    assert.deepEqual([kept?.ref, kept?.connect, kept?.folders[0]?.path], [REF, connect.toSorted(), data]);

    assert.equal(await execution.revoke(PACKAGE, other.place), true);
    assert.equal(await execution.revoke(PACKAGE, other.place), false);
    assert.equal((await run(layer, { connect: [granted.place] })).exitCode, 0);
    await assert.rejects(run(layer, { connect }), { code: 'grant-needed' });
    assert.equal(await execution.revoke(PACKAGE), true);
    assert.deepEqual(await execution.grants(), []);
    await assert.rejects(run(layer, { connect: [granted.place] }), { code: 'grant-needed' });

    await writeFile(file, '{}');
    await assert.rejects(run(layer, { connect: [granted.place] }), { code: 'config-invalid' });
    await rm(file);
  });

  it('is refused to what nothing could hold to it', async () => {
    const layer = assets.add({ 'main.wasm': Buffer.from('') });
    const policy = { ...SMALL_POLICY, connect: [granted.place] };
    await assert.rejects(execution.run({ kind: 'wasm', layer, entry: 'main.wasm', args: [], input: null, policy }), {
      code: 'policy-refused',
    });
    await assert.rejects(run(layer, { connect: ['no-port'] }), { code: 'usage' });
  });
});

describe('a relay', () => {
  async function ask(place: string, resolve?: Parameters<typeof openRelays>[1]['resolve']): Promise<string> {
    const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-relay-'));
    try {
      await using relays = await openRelays([place], { directory, ...(resolve === undefined ? {} : { resolve }) });
      const socket = connect(relays.sockets[0]!.source);
      socket.end('hey');
      return await text(socket).catch(() => 'closed');
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }

  /** Closed at once, with what was sent still under way or not. */
  const NOTHING = /^(closed)?$/;

  it('follows an address as it was granted, and a name only out into the world', async () => {
    const { server, place } = await listen();
    const port = place.split(':')[1]!;
    assert.equal(await ask(place), 'heyhey');
    assert.equal(await ask(`localhost:${port}`), 'heyhey');
    for (const [address, family] of [
      ['127.0.0.1', 4],
      ['10.1.2.3', 4],
      ['169.254.169.254', 4],
      ['192.168.0.1', 4],
      ['0.0.0.0', 4],
      ['::1', 6],
      ['::', 6],
      ['::ffff:127.0.0.1', 6],
      ['fd00::1', 6],
      ['fe80::1', 6],
      ['64:ff9b::7f00:1', 6],
    ] as const)
      assert.match(await ask(`api.example.org:${port}`, async () => [{ address, family }]), NOTHING, address);
    const unknown = async () => {
      throw new Error('no such name');
    };
    assert.match(await ask(`api.example.org:${port}`, unknown), NOTHING);
    server.close();
  });

  it('bounds connections, and ends them with the program', async (t) => {
    const server = createServer((socket) => socket.on('error', () => {}));
    server.listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const place = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    const directory = await mkdtemp(path.join(tmpdir(), 'hypermesh-relay-'));
    const relays = await openRelays([place], { directory });
    const sockets = Array.from({ length: 200 }, () => connect(relays.sockets[0]!.source).on('error', () => {}));
    t.after(() => sockets.forEach((socket) => void socket.destroy()));
    let ended = 0;
    // However it ends: it may be cut off while it sends.
    for (const socket of sockets) socket.resume().on('close', () => (ended += 1));
    const connections = () => new Promise<number>((resolve) => server.getConnections((_, count) => resolve(count)));
    await until('the rest was turned away', async () => ended >= 72 && (await connections()) > 0);
    assert.ok((await connections()) <= 128, String(await connections()));
    await relays[Symbol.asyncDispose]();
    await until('all have ended', () => ended === 200);
    assert.deepEqual(await readdir(directory), []);
    await rm(directory, { recursive: true });
  });
});
