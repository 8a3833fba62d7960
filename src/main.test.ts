import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { utf8 } from './base/bytes.ts';
import { isCoded } from './base/errors.ts';
import { canonicalJson } from './base/json.ts';
import { packFolder } from './client/folder.ts';
import { Client, type PublishResult } from './client/index.ts';
import { type RunningNode, startNode, verifyOffline } from './main.ts';
import { decodeBundle } from './wire/bundle.ts';
import type { LockedPackage } from './wire/lock.ts';
import { decodeNodeFile } from './wire/node-file.ts';
import type { OperationKind } from './wire/proof.ts';

/** One real node, founded with small numbers, behind its real API on a loopback port. */
let folder: string;
let node: RunningNode;
let client: Client;
const examples = new URL('../examples/packages/', import.meta.url);

const requirements = (kind: OperationKind) => ({
  kind,
  space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 4 },
  stake: kind === 'publish' ? { amountMin: 1_000 } : null,
  work: kind === 'publish' ? { hexDigits: 1 } : null,
  time: { squarings: 1_024, windowMs: 300_000 },
});

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'hm-main-'));
  const network = {
    space: { bytes: 65_536, iterations: 2 },
    requirements: Object.fromEntries(
      (['publish', 'install', 'execute', 'default'] as const).map((kind) => [kind, requirements(kind)]),
    ),
  };
  const config = {
    home: path.join(folder, 'home'),
    http: { host: '127.0.0.1', port: 0 },
    logLevel: 'silent',
    extensions: [],
    peers: { limits: {} },
    network,
  } as const;
  const log = { info() {}, error: console.error };
  node = await startNode({ config, secrets: {} }, { log, announce: true });
  client = new Client(node);
});
after(async () => {
  await node?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

async function publish(name: string): Promise<PublishResult> {
  const packed = await packFolder(new URL(name, examples).pathname);
  const layer = await client.stageLayer(packed.tree);
  return client.publish(packed.manifestYaml, layer.digest);
}

/** A request with headers that `fetch` does not let us choose. */
function raw(method: string, where: string, headers: Record<string, string>, body = '') {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; type: string; body: string }>();
  const sent = request(node.http + where, { method, headers }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (piece) => (text += piece));
    response.on('end', () =>
      resolve({ status: response.statusCode!, type: String(response.headers['content-type']), body: text }),
    );
  });
  sent.on('error', reject).end(body);
  return promise;
}

test('startNode() tells other commands how to reach it, in a file that only the owner can read', async () => {
  const file = path.join(node.home, 'node.json');
  const found = decodeNodeFile(await readFile(file, 'utf8'));
  assert.deepEqual([found.http, found.token, found.pid], [node.http, node.token, process.pid]);
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  assert.deepEqual(await client.health(), { ok: true, pid: process.pid });
});

test('a package travels from a folder to a verified run', async () => {
  const steps = new Set<string>();
  await publish('phrases');
  const packed = await packFolder(new URL('greeter', examples).pathname);
  const layer = await client.stageLayer(packed.tree, { onProgress: ({ step }) => steps.add(step) });
  const published = await client.publish(packed.manifestYaml, layer.digest, {
    onProgress: ({ step }) => steps.add(step),
  });
  assert.equal(published.created, true);
  assert.ok(steps.has('upload') && steps.has('admit'), [...steps].join());
  assert.equal((await publish('greeter')).created, false, 'publishing again changes nothing');

  const page = await client.search({ text: 'greeter' });
  assert.equal(page.hits[0]?.record.id, published.id);
  assert.deepEqual((await client.info('hello/phrases')).dependents, [{ kind: 'package', ref: 'hello/greeter@1.0.0' }]);

  const root = path.join(folder, 'installed');
  const installed = await client.install({ refs: ['hello/greeter'], root });
  assert.deepEqual(installed.installed.map(({ name }) => name).sort(), ['hello/greeter', 'hello/phrases']);
  assert.equal((await client.installed(root)).length, 2);
  const copy = await client.install({
    refs: [],
    root: path.join(folder, 'copy'),
    locked: true,
    lock: { ...installed.lock } as never,
  });
  assert.deepEqual(copy.lock, installed.lock);

  // A lock file that was edited says something else than the catalog, also where everything it names is installed already.
  const altered = (change: (entry: LockedPackage) => Partial<LockedPackage>) => ({
    ...installed.lock,
    packages: installed.lock.packages.map((entry) =>
      entry.name === 'hello/phrases' ? { ...entry, ...change(entry) } : entry,
    ),
  });
  for (const [refs, lock] of [
    [['no/body'], installed.lock],
    [['hello/phrases'], installed.lock],
    [['hello/greeter@^2.0.0'], installed.lock],
    [[], altered(() => ({ version: '9.9.9' }))],
    [[], altered(() => ({ layers: [`sha256:${'0'.repeat(64)}`] }))],
  ] as const) {
    const wanted = { refs: [...refs], root, locked: true, lock: { ...lock } as never };
    await assert.rejects(client.install(wanted), { code: 'lock-outdated' });
    await assert.rejects(client.install({ ...wanted, root: path.join(folder, 'other') }), { code: 'lock-outdated' });
  }

  const run = await client.run({ ref: 'hello/greeter', input: { name: 'Ada', language: 'en' } });
  assert.deepEqual([run.termination, run.exitCode, run.output], ['exit', 0, { greeting: 'Hello, Ada!' }]);

  const bundle = decodeBundle(utf8(canonicalJson(await client.bundle('hello/greeter'))));
  const { networkId } = await client.network();
  assert.equal((await verifyOffline(bundle, networkId)).digest, published.digest);
  assert.equal((await client.verify({ digest: published.bundle })).digest, published.digest);
  const elsewhere = `sha256:${'0'.repeat(64)}` as const;
  await assert.rejects(verifyOffline(bundle, elsewhere), { code: 'network-mismatch' });
});

test('an error crosses the API with its code, message and hint', async () => {
  await assert.rejects(
    client.info('no/body'),
    (error) => isCoded(error, 'package-not-found') && error.hint !== undefined,
  );
  await assert.rejects(client.run({ ref: 'no/body' }), { code: 'package-not-found' });
  await assert.rejects(client.publish('name: 1', `sha256:${'0'.repeat(64)}`), { code: 'manifest-invalid' });
  await assert.rejects(client.install({ refs: ['no/body'], root: 'relative' }), { code: 'usage' });
  await assert.rejects(client.importState(Readable(utf8('not an export'))), { code: 'state-invalid' });
});

async function* Readable(...pieces: Uint8Array[]): AsyncIterable<Uint8Array> {
  yield* pieces;
}

test('a tree that is not one is refused, also when it never ends', async () => {
  async function* zeros() {
    for (let i = 0; i < 4_096; i += 1) yield new Uint8Array(65_536).fill(0x41);
  }
  await assert.rejects(client.stageLayer(Readable(utf8('no tar'))), { code: 'tree-invalid' });
  await assert.rejects(client.stageLayer(zeros()), (error) => isCoded(error, 'tree-invalid', 'node-not-running'));
});

test('an error of the folder that is sent wins over the error of the request', async () => {
  async function* broken() {
    yield new Uint8Array(512);
    throw new TypeError('the folder changed');
  }
  await assert.rejects(client.stageLayer(broken()), /the folder changed/);
});

test('only the owner may change things, and only under the name of this machine', async () => {
  const token = { authorization: `Bearer ${node.token}` };
  const cases: readonly (readonly [method: string, path: string, headers: Record<string, string>, status: number])[] = [
    ['GET', '/v1/health', {}, 200],
    ['GET', '/v1/packages', {}, 200],
    ['GET', '/metrics', {}, 200],
    ['GET', '/v1/health', { host: 'localhost:1' }, 200],
    ['GET', '/v1/health', { host: 'catalog.example' }, 403],
    ['GET', '/v1/health', { ...token, host: 'catalog.example' }, 403],
    ['GET', '/v1/health', { authorization: 'Bearer wrong' }, 403],
    ['POST', '/v1/gc', {}, 403],
    ['POST', '/v1/gc', { authorization: `Bearer ${node.token}x` }, 403],
    ['POST', '/v1/gc', token, 200],
    ['POST', '/v1/shutdown', {}, 403],
    ['GET', '/v1/installations', {}, 403],
    ['GET', '/v1/state', {}, 403],
    ['GET', '/v1/nothing', {}, 400],
    ['GET', '/dashboard.js/../../config.ts', {}, 400],
  ];
  for (const [method, where, headers, status] of cases) {
    const answer = await raw(method, where, headers);
    assert.equal(answer.status, status, `${method} ${where} ${JSON.stringify(headers)}: ${answer.body.slice(0, 200)}`);
    if (status >= 400) assert.match(answer.type, /^application\/problem\+json/);
    assert.doesNotMatch(answer.body, new RegExp(node.token));
  }
});

test('malformed requests are refused with a code', async () => {
  const headers = { authorization: `Bearer ${node.token}`, 'content-type': 'application/json' };
  const deep = `${'['.repeat(100)}${']'.repeat(100)}`;
  const cases: readonly (readonly [where: string, body: string, code: string])[] = [
    ['/v1/gc', '{', 'usage'],
    ['/v1/gc', '{"scrub":"yes"}', 'usage'],
    ['/v1/gc', '{"other":1}', 'usage'],
    ['/v1/gc', '{"__proto__":{"scrub":true}}', 'usage'],
    ['/v1/runs', `{"ref":"a/b","input":${deep}}`, 'usage'],
    ['/v1/verify', '{"bundle":{}}', 'bundle-invalid'],
    ['/v1/runs', `"${'x'.repeat(18 * 2 ** 20)}"`, 'limit-exceeded'],
  ];
  for (const [where, body, code] of cases) {
    const answer = await raw('POST', where, headers, body).catch((error: NodeJS.ErrnoException) => error);
    // A body far over the limit may be cut off before the answer is read.
    if (answer instanceof Error) assert.equal(code, 'limit-exceeded', where);
    else assert.equal(JSON.parse(answer.body).code, code, where);
  }
});

test('events resume where a reader stopped', async () => {
  const all = await Array.fromAsync(client.events({}));
  assert.ok(all.length >= 2);
  const rest = await Array.fromAsync(client.events({ after: all[0]!.sequence }));
  assert.deepEqual(rest, all.slice(1));
  const { body } = await raw('GET', '/v1/events?follow=false', { 'last-event-id': String(all.at(-2)!.sequence) });
  assert.deepEqual(
    [...body.matchAll(/^id: (\d+)$/gm)].map((match) => Number(match[1])),
    [all.at(-1)!.sequence],
  );
  const last = await raw('GET', '/v1/events?follow=false&last=1', {});
  assert.match(last.body, new RegExp(`^id: ${all.at(-1)!.sequence}$`, 'm'));
  for (const follow of [false, true]) {
    const after = all.at(-1)!.sequence + 100;
    await assert.rejects(Array.fromAsync(client.events({ after, follow })), { code: 'events-lost' });
  }

  const stop = new AbortController();
  await assert.rejects(
    async () => {
      for await (const event of client.events({ after: all.at(-2)!.sequence, follow: true }, stop)) {
        assert.equal(event.sequence, all.at(-1)!.sequence);
        stop.abort();
      }
    },
    { code: 'cancelled' },
  );
});

test('the status page is served with a strict policy and only its own files', async () => {
  for (const where of ['/', '/dashboard.js', '/dashboard.css', '/icon.svg']) {
    const response = await fetch(node.http + where);
    assert.equal(response.status, 200, where);
    assert.match(response.headers.get('content-security-policy')!, /default-src 'none'/);
    await response.text();
  }
});

test('a state export is complete and can be imported', async () => {
  const file = path.join(folder, 'export');
  await writeFile(file, client.exportState());
  assert.deepEqual(await client.importState(Readable(await readFile(file))), { imported: true });
  assert.equal((await client.search({ text: 'greeter' })).total, 1);
});

test('no node answers at a closed port', async () => {
  await assert.rejects(new Client({ http: 'http://127.0.0.1:1' }).status(), { code: 'node-not-running' });
});

test('shutdown asks the process to stop', async () => {
  await client.shutdown();
  await node.stopAsked;
});
