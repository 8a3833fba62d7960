import assert from 'node:assert/strict';
import { appendFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import type { CapabilityName } from '../capabilities/extension.ts';
import { openMonitoring } from '../subsystems/monitoring/index.ts';
import { openResources } from '../subsystems/resources/index.ts';
import { openState } from '../subsystems/state/index.ts';
import { writeExtension } from '../testing/extension-folder.ts';
import { Extensions, type ExtensionsOptions, type LoadOptions } from './extensions.ts';
import { Snapshots } from './snapshots.ts';

const base = await mkdtemp(join(tmpdir(), 'extensions-'));
after(() => rm(base, { recursive: true, force: true }));
let serial = 0;
async function fresh(): Promise<string> {
  const directory = join(base, String(serial++));
  await mkdir(directory);
  return directory;
}

const code =
  (...codes: ErrorCode[]) =>
  (error: unknown) =>
    isCoded(error, ...codes);
const NONE: LoadOptions = { grants: [] };

async function host(options: ExtensionsOptions = {}) {
  const directory = await fresh();
  const stack = new AsyncDisposableStack();
  const clock = systemClock;
  const state = stack.use(await openState({ directory, clock }));
  const monitoring = stack.use(await openMonitoring({ directory, clock }));
  const resources = stack.use(await openResources({ directory, clock }));
  const snapshots = new Snapshots(directory);
  const extensions = stack.use(
    new Extensions(
      {
        lendable: ({ id, limits }) => ({
          capabilities: {
            state: state.space(id, { spaceBytesMax: limits.stateBytes }),
            monitoring: monitoring.for(id),
            resources: resources.for(id),
          },
          release: () => resources.releaseAll(id),
        }),
        monitoring: monitoring.for('host'),
      },
      { version: '1.2.3', snapshots, ...options },
    ),
  );
  return {
    extensions,
    resources,
    monitoring,
    snapshots,
    folder: directory,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

const echo = { id: 'r', method: 'echo', params: { a: 1 } };

describe('Extensions', () => {
  it('loads dependencies first, refuses circles, missing and wrong versions, and unloading what is depended upon', async () => {
    await using node = await host();
    const { extensions } = node;
    const directory = await fresh();
    const on = (id: string, range: string, optional = false) => [{ id, range, optional }];
    await writeExtension(directory, { id: 'a', dependencies: on('b', '^1.0.0') });
    await writeExtension(directory, { id: 'b', dependencies: on('absent', '*', true) });
    await writeExtension(directory, { id: 'c' });
    await mkdir(join(directory, 'not-an-extension'));
    await extensions.discover([directory, join(directory, 'nowhere')], () => NONE);
    assert.deepEqual(
      extensions.list().map(({ id }) => id),
      ['b', 'a', 'c'],
    );
    await assert.rejects(extensions.unload('b'), code('extension-dependency'));
    await assert.rejects(extensions.load({ folder: join(directory, 'a') }, NONE), code('extension-already-loaded'));

    const odd = await fresh();
    const wrong = await writeExtension(odd, { id: 'wrong', dependencies: on('b', '^2.0.0') });
    await assert.rejects(extensions.load({ folder: wrong }, NONE), code('extension-dependency'));
    const missing = await writeExtension(odd, { id: 'missing', dependencies: on('nobody', '*') });
    await assert.rejects(extensions.load({ folder: missing }, NONE), code('extension-dependency'));
    const circle = await fresh();
    await writeExtension(circle, { id: 'x', dependencies: on('y', '*') });
    await writeExtension(circle, { id: 'y', dependencies: on('x', '*') });
    await assert.rejects(
      extensions.discover([circle], () => NONE),
      (error) => isCoded(error, 'extension-dependency') && error.message.includes('x -> y -> x'),
    );
  });

  it('refuses before any code runs: another host version, needs that are not granted, too many', async () => {
    await using node = await host({ extensionsMax: 1 });
    const { extensions } = node;
    const directory = await fresh();
    const before = `process.emit('extension-code-ran');`;
    let ran = 0;
    const count = () => {
      ran += 1;
    };
    process.on('extension-code-ran' as never, count);
    const old = await writeExtension(directory, { id: 'old', hypermesh: '^0.9.0', before });
    await assert.rejects(extensions.load({ folder: old }, NONE), code('extension-incompatible'));
    const greedy = await writeExtension(directory, { id: 'greedy', needs: ['state', 'trust'], before });
    await assert.rejects(extensions.load({ folder: greedy }, { grants: ['state'] }), code('capability-not-granted'));
    const absent = extensions.load({ folder: greedy }, { grants: ['state', 'trust'] });
    await assert.rejects(absent, code('capability-not-granted'), 'this node has no trust to lend');
    assert.equal(ran, 0);
    await extensions.load({ folder: await writeExtension(directory, { id: 'first' }) }, NONE);
    const second = await writeExtension(directory, { id: 'second' });
    await assert.rejects(extensions.load({ folder: second }, NONE), code('limit-exceeded'));
    process.off('extension-code-ran' as never, count);
  });

  it('refuses a folder that is not what its manifest says', async () => {
    await using node = await host();
    const load = (folder: string) => node.extensions.load({ folder }, NONE);
    const bad = async (spoil: (folder: string) => Promise<unknown>, ...codes: ErrorCode[]) => {
      const folder = await writeExtension(await fresh(), { id: 'probe' });
      await spoil(folder);
      await assert.rejects(load(folder), code(...codes));
    };
    const edit = (change: (manifest: Record<string, unknown>) => unknown) => async (folder: string) => {
      const file = join(folder, 'extension.json');
      const manifest = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
      change(manifest);
      await writeFile(file, JSON.stringify(manifest));
    };
    await bad((folder) => appendFile(join(folder, 'index.mjs'), '//'), 'extension-invalid');
    await bad((folder) => writeFile(join(folder, 'more.mjs'), ''), 'extension-invalid');
    await bad((folder) => rm(join(folder, 'index.mjs')), 'extension-invalid');
    await bad((folder) => symlink('/etc/hostname', join(folder, 'link')), 'extension-invalid');
    await bad((folder) => writeFile(join(folder, 'extension.json'), '{"formatVersion":1'), 'extension-invalid');
    await bad((folder) => writeFile(join(folder, 'extension.json'), Buffer.alloc(17 * 2 ** 20)), 'extension-invalid');
    await bad((folder) => rm(join(folder, 'extension.json')), 'extension-not-found');
    await bad((folder) => rm(folder, { recursive: true }), 'extension-not-found');
    await bad(
      edit((manifest) => Object.assign(manifest, { formatVersion: 2 })),
      'extension-invalid',
    );
    await bad(
      edit((manifest) => Object.assign(manifest, { unknown: 1 })),
      'extension-invalid',
    );
    await bad(
      edit((manifest) => Object.assign(manifest, { entry: '../index.mjs' })),
      'extension-invalid',
    );
    await bad(
      edit((manifest) => Object.assign(manifest, { needs: ['everything'] })),
      'extension-invalid',
    );
    await bad(
      edit((manifest) => Object.assign(manifest, { needs: ['state'] })),
      'capability-not-granted',
    );
    await bad(
      edit((manifest) => Object.assign(manifest, { provides: ['thing'] })),
      'extension-invalid',
    );
    await bad(
      edit((manifest) => Object.assign(manifest, { version: '9.9.9' })),
      'extension-invalid',
    );
    assert.deepEqual(node.extensions.list(), []);
  });

  it('runs the code that was checked: a new version of a folder is new code, a foreign module is refused', async () => {
    await using node = await host();
    const { extensions } = node;
    const directory = await fresh();
    const answer = (text: string) =>
      `async handleRequest({ id }) { return { requestId: id, ok: true, data: '${text}' }; }`;
    for (const text of ['old', 'new']) {
      const folder = await writeExtension(directory, { id: 'probe', members: answer(text) });
      await extensions.load({ folder }, NONE);
      assert.deepEqual(await extensions.route('probe', echo), { requestId: 'r', ok: true, data: text });
      await extensions.unload('probe');
    }
    for (const foreign of ['zod', new URL('./node.ts', import.meta.url).href, 'data:text/javascript,1']) {
      const before = `import ${JSON.stringify(foreign)};`;
      const folder = await writeExtension(await fresh(), { id: 'probe', before });
      await assert.rejects(extensions.load({ folder }, NONE), code('extension-invalid'), foreign);
    }
  });

  it('ends what fails while starting, and lets it be loaded again', async () => {
    await using node = await host({ operationTimeoutMs: 1_500 });
    const start = async (members: string, grants: CapabilityName[] = []) => {
      const folder = await writeExtension(await fresh(), { id: 'probe', needs: grants, members });
      return node.extensions.load({ folder }, { grants });
    };
    await assert.rejects(start(`async initialize() { throw new Error('a secret'); }`), (error) => {
      return isCoded(error, 'extension-failed') && !error.message.includes('secret');
    });
    const own = start(`async initialize() { throw new HyperMeshError('config-invalid', 'what?'); }`);
    await assert.rejects(own, code('config-invalid'));
    await assert.rejects(start('initialize: () => new Promise(() => {})'), code('timeout'));
    await assert.rejects(start('shutdown: 1'), code('extension-invalid'));
    const stray = `async registerAssets() { return new Map([['thing', { assetType: () => 'thing' }]]); }`;
    await assert.rejects(start(stray), code('extension-invalid'));
    assert.deepEqual(node.extensions.list(), []);
    await start('', ['state']);
    assert.equal(node.extensions.list()[0]!.state, 'running');
  });

  it('moves between states only as allowed', async () => {
    await using node = await host();
    const { extensions } = node;
    const folder = await writeExtension(await fresh(), {
      id: 'probe',
      members: `shutdown: () => new Promise((resolve) => setTimeout(resolve, 50))`,
    });
    await extensions.load({ folder }, NONE);
    await assert.rejects(extensions.resume('probe'), code('extension-state'));
    await extensions.pause('probe');
    await assert.rejects(extensions.pause('probe'), code('extension-state'));
    await extensions.resume('probe');
    const unloading = extensions.unload('probe');
    assert.equal(extensions.list()[0]!.state, 'shutting-down');
    for (const move of ['pause', 'resume', 'unload'] as const) {
      await assert.rejects(extensions[move]('probe'), code('extension-state'));
    }
    await assert.rejects(extensions.route('probe', echo), code('extension-state'));
    await unloading;
    await assert.rejects(extensions.pause('probe'), code('extension-not-found'));
  });

  it('unloads within the deadline whatever the extension does, and takes everything back', async () => {
    await using node = await host({ shutdownTimeoutMs: 50 });
    const folder = await writeExtension(await fresh(), {
      id: 'clinger',
      needs: ['state', 'resources'],
      members: `
        async initialize() {
          globalThis.clinger = lent;
          await lent.resources.allocate({ operation: 'search', cpuCores: 0, memoryBytes: 1024, storageBytes: 0, priority: 'low' });
        },
        handleRequest: () => new Promise(() => {}),
        shutdown: () => new Promise(() => {}),`,
    });
    const { extensions, resources } = node;
    await extensions.load({ folder }, { grants: ['state', 'resources'] });
    assert.equal((await resources.usage()).leases, 1);
    const underWay = extensions.route('clinger', echo);
    const outcome = assert.rejects(underWay, code('extension-state'));
    await extensions.unload('clinger');
    await outcome;
    assert.equal((await resources.usage()).leases, 0);
    const { clinger } = globalThis as unknown as { clinger: { state: { get(key: string): Promise<unknown> } } };
    await assert.rejects(clinger.state.get('a'), code('capability-not-granted'));
  });

  it('routes requests as plain data within a deadline, and accepts only answers', async () => {
    await using node = await host({ operationTimeoutMs: 1_500 });
    const { extensions } = node;
    const folder = await writeExtension(await fresh(), {
      id: 'probe',
      members: `async handleRequest({ id, method, params }) {
        if (method === 'hang') return new Promise(() => {});
        if (method === 'throw') throw new Error('a secret');
        if (method === 'other') return { requestId: 'other', ok: true, data: 1 };
        if (method === 'odd') return { requestId: id, ok: true, data: () => {} };
        return { requestId: id, ok: true, data: params };
      }`,
    });
    await extensions.load({ folder }, NONE);
    assert.deepEqual(await extensions.route('probe', echo), { requestId: 'r', ok: true, data: { a: 1 } });
    const ask = (method: string) => extensions.route('probe', { ...echo, method });
    await assert.rejects(ask('hang'), code('timeout'));
    await assert.rejects(ask('throw'), code('extension-failed'));
    await assert.rejects(ask('other'), code('extension-failed'));
    await assert.rejects(ask('odd'), code('extension-invalid'));
    await assert.rejects(extensions.route('probe', { ...echo, id: '' }), code('usage'));
    await assert.rejects(extensions.route('nobody', echo), code('extension-not-found'));
    const { errors, totalRequests, activeOperations } = await extensions.status('probe');
    assert.deepEqual(
      { errors: errors >= 2, totalRequests: totalRequests > 5, activeOperations },
      {
        errors: true,
        totalRequests: true,
        activeOperations: 0,
      },
    );
  });

  it('hands an imported snapshot to its extension, now or when it is loaded next', async () => {
    await using node = await host();
    const { extensions, snapshots } = node;
    const folder = await writeExtension(await fresh(), {
      id: 'keeper',
      needs: ['state'],
      members: `
        async exportState() {
          return { version: 1, extension: 'keeper', data: (await lent.state.get('kept')) ?? null, checksum: 'x', exportedAtMs: 1 };
        },
        async importState({ data }) { await lent.state.write({ kept: data }); },`,
    });
    const options: LoadOptions = { grants: ['state'] };
    const keeper = await extensions.load({ folder }, options);
    const section = snapshots.section(extensions);
    const travel = async (data: string, between?: () => Promise<unknown>) => {
      await keeper.importState({ version: 1, extension: 'keeper', data, checksum: '', exportedAtMs: 0 });
      const pieces = await Array.fromAsync(section.export());
      await keeper.importState({ version: 1, extension: 'keeper', data: 'other', checksum: '', exportedAtMs: 0 });
      await between?.();
      const staged = await section.import(1, stream(pieces));
      await staged.commit();
    };
    await travel('one');
    assert.equal((await keeper.exportState()).data, 'one');
    await travel('two', () => extensions.unload('keeper'));
    const again = await extensions.load({ folder }, options);
    assert.equal((await again.exportState()).data, 'two');
    assert.equal(await snapshots.waiting('keeper'), null);
    await assert.rejects(section.import(1, stream([Uint8Array.of(0xff)])), code('state-invalid'));
    await assert.rejects(section.import(1, stream([new TextEncoder().encode('{"a":1}\n')])), code('state-invalid'));
  });
});

async function* stream(pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array, void> {
  yield* pieces;
}
