import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isCoded } from '../base/errors.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { Metric } from '../capabilities/monitoring.ts';
import type { State } from '../capabilities/state.ts';
import { CROSSINGS } from './crossings.ts';
import { type LendOptions, lend } from './lend.ts';

const LIMITS = { concurrentCalls: 100, callsPerSecond: 1_000, callTimeoutMs: 60_000 };

/** Every method of a capability, of which only some work. */
function partial<T extends object>(name: keyof typeof CROSSINGS, methods: Partial<T>): T {
  const none = async () => assert.fail('not part of this test');
  return { ...Object.fromEntries(Object.keys(CROSSINGS[name]).map((method) => [method, none])), ...methods } as T;
}

function lendState(methods: Partial<State>, options: Partial<LendOptions> = {}) {
  return lend({ state: partial<State>('state', methods) }, ['state'], {
    extension: 'probe',
    limits: LIMITS,
    ...options,
  });
}

function lendAssets(methods: Partial<Assets>, options: Partial<LendOptions> = {}) {
  return lend({ assets: partial<Assets>('assets', methods) }, ['assets'], {
    extension: 'probe',
    limits: LIMITS,
    ...options,
  });
}

async function* endless(): AsyncGenerator<Uint8Array, void> {
  for (let i = 0; ; i += 1) yield Uint8Array.of(i);
}

describe('lend()', () => {
  it('gives a frozen object without prototype that holds what was granted and nothing else', () => {
    const { lent } = lendState({});
    assert.equal(Object.getPrototypeOf(lent), null);
    assert.deepEqual(Object.keys(lent), ['state']);
    assert.deepEqual(Object.keys(lent.state), Object.keys(CROSSINGS.state));
    assert.ok(Object.isFrozen(lent) && Object.isFrozen(lent.state) && Object.isFrozen(lent.state.get));
    assert.throws(
      () => (lent as { trust?: unknown }).trust,
      (error) => isCoded(error, 'capability-not-granted') && error.details?.['capability'] === 'trust',
    );
  });

  it('copies plain data in both directions and refuses everything else', async () => {
    const kept: Record<string, unknown> = {};
    const { lent } = lendState({
      get: async (key) => kept[key] as never,
      write: async (changes) => void Object.assign(kept, changes),
    });
    const value = { deep: [1, { x: 'y' }] };
    await lent.state.write({ key: value });
    value.deep[0] = 99;
    const got = (await lent.state.get('key')) as typeof value;
    assert.deepEqual(got, { deep: [1, { x: 'y' }] });
    got.deep.push(3);
    assert.deepEqual(kept['key'], { deep: [1, { x: 'y' }] });

    const cycle: Record<string, unknown> = {};
    cycle['self'] = cycle;
    for (const bad of [
      () => {},
      new Map(),
      new Date(),
      Symbol('s'),
      new (class Odd {})(),
      JSON.parse('{"__proto__":1}'),
    ]) {
      await assert.rejects(lent.state.write({ bad: bad as never }), (error) => isCoded(error, 'extension-invalid'));
    }
    await assert.rejects(lent.state.write({ cycle: cycle as never }), (error) => isCoded(error, 'limit-exceeded'));
  });

  it('takes everything back: calls under way, calls to come, streams at their next step', async () => {
    const stuck = Promise.withResolvers<undefined>();
    const { lent, revoke } = lendAssets({
      get: async () => (await stuck.promise) as never,
      read: endless,
    });
    const call = lent.assets.get('package/x');
    const stream = lent.assets.read(`sha256:${'0'.repeat(64)}`)[Symbol.asyncIterator]();
    assert.deepEqual((await stream.next()).value, Uint8Array.of(0));
    const unread = lent.assets.read(`sha256:${'0'.repeat(64)}`);
    revoke('the test says so');
    const refused = (error: unknown) => isCoded(error, 'capability-not-granted');
    await assert.rejects(call, refused);
    await assert.rejects(lent.assets.totals(), refused);
    await assert.rejects(stream.next(), refused);
    await assert.rejects(unread[Symbol.asyncIterator]().next(), refused);
    assert.throws(() => lent.assets.read(`sha256:${'0'.repeat(64)}`), refused);
  });

  it('stops a stream that waits for its next item when it is taken back', async () => {
    const aborted = Promise.withResolvers<void>();
    const { lent, revoke } = lendAssets({
      async *read(_digest, options) {
        options?.signal?.addEventListener('abort', () => aborted.resolve());
        await new Promise(() => {});
        yield new Uint8Array();
      },
    });
    const next = lent.assets
      .read(`sha256:${'0'.repeat(64)}`)
      [Symbol.asyncIterator]()
      .next();
    await new Promise(setImmediate);
    revoke('the test says so');
    await assert.rejects(next, (error) => isCoded(error, 'capability-not-granted'));
    await aborted.promise;
  });

  it('holds the borrower to its calls per second, calls at a time and time per call', async () => {
    let nowMs = 0;
    const clock = { nowMs: () => nowMs };
    const exceeded = (error: unknown) => isCoded(error, 'quota-exceeded');
    const fast = lendState({ get: async () => 1 }, { clock, limits: { ...LIMITS, callsPerSecond: 2 } });
    await fast.lent.state.get('a');
    await fast.lent.state.get('a');
    await assert.rejects(fast.lent.state.get('a'), exceeded);
    nowMs += 500;
    assert.equal(await fast.lent.state.get('a'), 1);
    await assert.rejects(fast.lent.state.get('a'), exceeded);

    const open = Promise.withResolvers<undefined>();
    const slow = lendState({ get: () => open.promise }, { limits: { ...LIMITS, concurrentCalls: 2 } });
    const pending = [slow.lent.state.get('a'), slow.lent.state.get('b')];
    assert.equal(slow.active, 2);
    await assert.rejects(slow.lent.state.get('c'), exceeded);
    open.resolve(undefined);
    await Promise.all(pending);
    assert.equal(slow.active, 0);

    const never = lendState({ get: () => new Promise(() => {}) }, { limits: { ...LIMITS, callTimeoutMs: 10 } });
    await assert.rejects(never.lent.state.get('a'), (error) => isCoded(error, 'timeout'));
    assert.equal(never.active, 1, 'work that goes on keeps its place');
  });

  it('passes signal, progress and byte streams through', async () => {
    const { lent } = lendAssets({
      async put(content, options) {
        let size = 0;
        for await (const piece of content) {
          size += piece.length;
          options?.onProgress?.({ step: 'put', done: size });
          if (options?.signal?.aborted) throw options.signal.reason;
        }
        return { size } as never;
      },
    });
    async function* three() {
      for (let i = 0; i < 3; i += 1) yield new Uint8Array(10);
    }
    const seen: unknown[] = [];
    const { size } = await lent.assets.put(three(), { onProgress: (progress) => seen.push(progress.done) });
    assert.equal(size, 30);
    assert.deepEqual(seen, [10, 20, 30]);

    const controller = new AbortController();
    const put = lent.assets.put(endless(), { signal: controller.signal, onProgress: () => controller.abort() });
    await assert.rejects(put, (error) => isCoded(error, 'cancelled'));
    const text = (async function* () {
      yield 'text' as unknown as Uint8Array;
    })();
    await assert.rejects(lent.assets.put(text), (error) => isCoded(error, 'extension-invalid'));
    await assert.rejects(lent.assets.put([] as never), (error) => isCoded(error, 'extension-invalid'));
  });

  it('names a defect of the host without its text, and counts', async () => {
    const reported: Metric[] = [];
    const monitoring = { report: async (metric: Metric) => void reported.push(metric) };
    const { lent } = lendState(
      {
        get: async () => {
          throw new TypeError('a path and a secret');
        },
      },
      { monitoring },
    );
    await assert.rejects(
      lent.state.get('a'),
      (error) => isCoded(error, 'internal') && !error.message.includes('secret') && error.cause instanceof TypeError,
    );
    assert.deepEqual(
      reported.map(({ name, tags }) => [name, tags]),
      [['extension.calls', { extension: 'probe', capability: 'state.get', outcome: 'error' }]],
    );
  });
});
