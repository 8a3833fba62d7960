import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { type ErrorCode, HyperMeshError, isCoded } from '../base/errors.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { HyperMeshExtension } from '../capabilities/extension.ts';
import type { Event } from '../capabilities/monitoring.ts';
import type { State } from '../capabilities/state.ts';
import { type ExtensionSource, writeExtension } from '../testing/extension-folder.ts';
import { until } from '../testing/until.ts';
import { CROSSINGS } from './crossings.ts';
import { Extensions, type ExtensionsOptions } from './extensions.ts';

const base = await mkdtemp(join(tmpdir(), 'cells-'));
after(() => rm(base, { recursive: true, force: true }));
let serial = 0;

const code =
  (...codes: ErrorCode[]) =>
  (error: unknown) =>
    isCoded(error, ...codes);

/** Every method of a capability, of which only some work. */
function partial<T extends object>(name: keyof typeof CROSSINGS, methods: Partial<T>): T {
  const none = async () => {
    throw new HyperMeshError('internal', 'not part of this test');
  };
  return { ...Object.fromEntries(Object.keys(CROSSINGS[name]).map((method) => [method, none])), ...methods } as T;
}

const NEEDS = ['assets', 'state', 'monitoring'] as const;

async function cell(
  source: Omit<ExtensionSource, 'id'>,
  assets: Partial<Assets> = {},
  state: Partial<State> = {},
  options: ExtensionsOptions = {},
) {
  const events: { type: string; data: unknown }[] = [];
  const monitoring = {
    report: async () => {},
    emit: async (event: { type: string; data: unknown }) => void events.push(event),
  };
  const extensions = new Extensions(
    {
      lendable: () => ({
        capabilities: {
          assets: partial<Assets>('assets', assets),
          state: partial<State>('state', state),
          monitoring: {
            ...monitoring,
            metrics: async () => [],
            events: () => (async function* (): AsyncGenerator<Event> {})(),
          },
        },
        release: async () => {},
      }),
      monitoring,
    },
    { version: '1.0.0', cellMemoryMiB: 64, ...options },
  );
  const folder = await writeExtension(join(base, String(serial++)), { id: 'probe', needs: NEEDS, ...source });
  const extension = await extensions.load({ folder }, { grants: NEEDS, mode: 'cell' });
  const ask = async (method: string, params: unknown = {}) => {
    const response = await extensions.route('probe', { id: 'r', method, params: params as never });
    if (!response.ok) throw new HyperMeshError('internal', response.error.message);
    return response.data as never;
  };
  return { extensions, extension, ask, events, folder, [Symbol.asyncDispose]: () => extensions[Symbol.asyncDispose]() };
}

/** A `handleRequest` that answers with what `body` returns; `method` and `params` are in scope. */
const answering = (body: string) =>
  `async handleRequest({ id: requestId, method, params }) { ${body}; return { requestId, ok: true, data: data ?? null }; }`;

describe('cell', () => {
  it('reaches no file but its own, no network, no process, no thread, no addon, no environment', async () => {
    await using probe = await cell({
      members: answering(`
        const attempts = {
          readForeign: async () => (await import('node:fs')).readFileSync('/etc/hostname'),
          readParent: async () => (await import('node:fs')).readdirSync('..'),
          write: async () => (await import('node:fs')).writeFileSync('left-behind', 'x'),
          connect: async () => {
            const net = await import('node:net');
            await new Promise((resolve, reject) => net.connect(9, '127.0.0.1').on('connect', resolve).on('error', reject));
          },
          listen: async () => {
            const net = await import('node:net');
            await new Promise((resolve, reject) => process.once('uncaughtException', reject) && net.createServer().on('error', reject).listen(0, '127.0.0.1', resolve));
          },
          fetch: async () => fetch('http://127.0.0.1:9/'),
          send: async () => {
            const socket = (await import('node:dgram')).createSocket('udp4');
            await new Promise((resolve, reject) => socket.on('error', reject).send('x', 9, '127.0.0.1', resolve));
          },
          spawn: async () => (await import('node:child_process')).spawnSync('true').error ?? null,
          worker: async () => new (await import('node:worker_threads')).Worker('1', { eval: true }),
          signal: async () => process.kill(process.ppid, 0),
          addon: async () => process.dlopen({ exports: {} }, 'x.node'),
          foreignModule: async () => import('zod'),
        };
        const data = {};
        for (const [name, attempt] of Object.entries(attempts)) {
          try {
            const result = await attempt();
            data[name] = result instanceof Error ? result.code : 'worked';
          } catch (error) {
            data[name] = error.code ?? error.cause?.code ?? error.message;
          }
        }
        data.environment = Object.keys(process.env).join()`),
    });
    const {
      environment,
      foreignModule,
      fetch: fetched,
      addon,
      signal,
      ...codes
    } = (await probe.ask('try')) as Record<string, string>;
    for (const [attempt, result] of Object.entries(codes)) assert.equal(result, 'ERR_ACCESS_DENIED', attempt);
    assert.equal(addon, 'ERR_DLOPEN_DISABLED');
    assert.equal(signal, 'capability-not-granted');
    assert.notEqual(fetched, 'worked');
    assert.notEqual(foreignModule, 'worked');
    assert.equal(environment, '');
  });

  it('gets a coded refusal for what was not granted', async () => {
    await using probe = await cell({
      members: answering(`let data; try { data = await lent.trust.anchor(); } catch (error) { data = error.code; }`),
    });
    assert.equal(await probe.ask('try'), 'capability-not-granted');
  });

  it('carries bytes both ways, piece by piece, no faster than they are read', async () => {
    let taken = 0;
    await using probe = await cell(
      {
        members: answering(`
          let data = 0;
          if (method === 'read') for await (const piece of lent.assets.read(params.digest)) data += piece.length;
          if (method === 'peek') for await (const piece of lent.assets.read(params.digest)) { data = piece.length; break; }
          if (method === 'put') {
            const steps = [];
            async function* three() { for (let i = 0; i < 3; i += 1) yield new Uint8Array(100_000).fill(i); }
            data = { info: await lent.assets.put(three(), { onProgress: (progress) => steps.push(progress.done) }), steps };
          }`),
      },
      {
        async *read() {
          for (let i = 0; i < 100; i += 1) {
            taken += 1;
            yield new Uint8Array(100_000);
          }
        },
        async put(content, options) {
          let size = 0;
          for await (const piece of content) {
            size += piece.length;
            options?.onProgress?.({ step: 'put', done: size });
          }
          return { size } as never;
        },
      },
    );
    const digest = `sha256:${'0'.repeat(64)}`;
    assert.equal(await probe.ask('read', { digest }), 10_000_000);
    taken = 0;
    assert.equal(await probe.ask('peek', { digest }), 100_000);
    assert.ok(taken < 20, `${taken} pieces were read for one`);
    assert.deepEqual(await probe.ask('put'), { info: { size: 300_000 }, steps: [100_000, 200_000, 300_000] });
  });

  it('carries cancellation into the extension and out of it', async () => {
    const stopped = Promise.withResolvers<void>();
    await using probe = await cell(
      {
        members: `
        async handleRequest({ id: requestId, method }, { signal } = {}) {
          if (method === 'wait') await new Promise((resolve) => signal.addEventListener('abort', resolve));
          if (method === 'collect') {
            const controller = new AbortController();
            setTimeout(() => controller.abort(), 20);
            await lent.assets.collect({ signal: controller.signal });
          }
          return { requestId, ok: true, data: 'stopped' };
        }`,
      },
      {
        collect: (options) =>
          new Promise((resolve) => {
            options!.signal!.addEventListener('abort', () => {
              stopped.resolve();
              resolve({ blobsRemoved: 0, bytesFreed: 0, blobsKept: 0 });
            });
          }),
      },
    );
    const controller = new AbortController();
    const request = { id: 'r', method: 'wait', params: {} };
    const waiting = probe.extensions.route('probe', request, { signal: controller.signal });
    setTimeout(() => controller.abort(), 20);
    assert.equal((await waiting).ok, true);
    await probe.ask('collect');
    await stopped.promise;
  });

  it('passes coded errors of the host, hides those of the extension, refuses what is not data or too large', async () => {
    await using probe = await cell(
      {
        members: answering(`
          let data;
          try {
            if (method === 'coded') await lent.state.get('a');
            if (method === 'function') await lent.state.write({ a: () => {} });
            if (method === 'large') await lent.state.write({ a: 'x'.repeat(20_000_000) });
            if (method === 'method') await lent.state.drop();
            if (method === 'map') data = new Map([[1, 2]]);
          } catch (error) { data = error.code ?? error.name; }
          if (method === 'secret') throw new Error('a secret')`),
      },
      {},
      {
        async get() {
          throw new HyperMeshError('state-conflict', 'changed');
        },
      },
    );
    assert.equal(await probe.ask('coded'), 'state-conflict');
    assert.equal(await probe.ask('function'), 'extension-invalid');
    assert.equal(await probe.ask('large'), 'limit-exceeded');
    assert.equal(await probe.ask('method'), 'TypeError');
    await assert.rejects(
      probe.ask('secret'),
      (error) => isCoded(error, 'extension-failed') && !error.message.includes('secret'),
    );
  });

  it('may crash: its calls fail, the host lives, the extension is listed as failed and can be replaced', async () => {
    await using probe = await cell({
      members:
        answering(`if (method === 'crash') process.exit(3); if (method === 'throw') setImmediate(() => { throw new Error('late'); });
        const data = await new Promise(() => {})`),
    });
    const { extensions, events, folder } = probe;
    await Promise.all([
      assert.rejects(probe.ask('wait'), code('extension-failed')),
      assert.rejects(probe.ask('crash'), code('extension-failed')),
    ]);
    await until('it failed', () => extensions.list()[0]!.state === 'error');
    assert.equal((await extensions.status('probe')).health.kind, 'unhealthy');
    await assert.rejects(probe.ask('wait'), code('extension-failed'));
    assert.ok(events.some(({ type }) => type === 'extension.failed'));
    await extensions.unload('probe');
    const again: HyperMeshExtension = await extensions.load({ folder }, { grants: NEEDS, mode: 'cell' });
    assert.equal((await again.status()).state, 'running');
    await assert.rejects(probe.ask('throw'), code('extension-failed'));
  });

  it('ends the cell that breaks the protocol or sends more than was asked for', async () => {
    await using probe = await cell({
      members: answering(`
        const { writeSync } = await import('node:fs');
        const send = (length, body) => {
          const header = Buffer.alloc(4);
          header.writeUInt32BE(length);
          writeSync(3, Buffer.concat([header, body]));
        };
        if (method === 'large') send(2 ** 31, Buffer.alloc(10));
        if (method === 'garbage') send(4, Buffer.from('oops'));
        const data = await new Promise(() => {})`),
    });
    await assert.rejects(probe.ask('large'), code('extension-failed'));
    await until('it failed', () => probe.extensions.list()[0]!.state === 'error');
    await probe.extensions.unload('probe');
    await probe.extensions.load({ folder: probe.folder }, { grants: NEEDS, mode: 'cell' });
    await assert.rejects(probe.ask('garbage'), code('extension-failed'));
  });

  it('is killed when it loops for ever', async () => {
    await using probe = await cell(
      { members: answering(`if (method === 'loop') for (;;) {}; const data = 1`) },
      {},
      {},
      // The first counts for its start, too.
      { operationTimeoutMs: 60_000, cellAnswerTimeoutMs: 3_000 },
    );
    // Whichever notices first on a busy machine: the caller's clock or the keeper of the cell.
    await assert.rejects(probe.ask('loop'), (error) => isCoded(error, 'timeout', 'extension-failed'));
    await until('it failed', () => probe.extensions.list()[0]!.state === 'error');
  });

  it('dies with a host that was killed', async () => {
    const folder = await writeExtension(join(base, String(serial++)), { id: 'orphan' });
    const script = `
      const { Extensions } = await import(${JSON.stringify(new URL('./extensions.ts', import.meta.url).href)});
      const extensions = new Extensions({ lendable: () => ({ capabilities: {}, release: async () => {} }) }, { version: '1.0.0' });
      const orphan = await extensions.load({ folder: ${JSON.stringify(folder)} }, { grants: [], mode: 'cell' });
      const { readdirSync, readFileSync } = await import('node:fs');
      process.stdout.write(readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8'));
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = (await once(child.stdout, 'data')) as [Buffer];
    const pid = Number(line.toString().trim().split(' ')[0]);
    assert.ok(isAlive(pid));
    child.kill('SIGKILL');
    await until('its process ended', () => !isAlive(pid));
  });
});

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
