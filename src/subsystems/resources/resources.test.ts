import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import { hold } from '../../base/lease.ts';
import type { Lease, Priority, ResourceRequest, Resources } from '../../capabilities/resources.ts';
import { openResources, type ResourceLimits, type ResourcesSubsystem } from './index.ts';

const GIB = 2 ** 30;
const CAPACITY = { cpuCores: 4, memoryBytes: 8 * GIB, storageBytes: 100 * GIB };
/** Classes without limits of their own, so that only the machine counts. */
const WIDE = { cpuShare: 1, memoryBytes: 8 * GIB, concurrent: 1_000 };

class ManualClock {
  ms = 1_000;
  nowMs(): number {
    return this.ms;
  }
}

async function opened(
  t: TestContext,
  limits: Partial<ResourceLimits> = {},
): Promise<{ resources: ResourcesSubsystem; clock: ManualClock }> {
  const clock = new ManualClock();
  const resources = await openResources({ clock, directory: tmpdir(), capacity: CAPACITY, limits });
  t.after(() => resources[Symbol.asyncDispose]());
  return { resources, clock };
}

function request(changes: Partial<ResourceRequest> = {}): ResourceRequest {
  return { operation: 'wide', cpuCores: 1, memoryBytes: 0, storageBytes: 0, priority: 'normal', ...changes };
}

function coded(code: ErrorCode) {
  return (error: unknown) => isCoded(error, code);
}

const wide = { operations: new Map([['wide', WIDE]]) };

/** Asks, and notes the order in which requests are granted. */
function asker(resources: Resources, order: string[]) {
  return (name: string, changes: Partial<ResourceRequest>, signal?: AbortSignal): Promise<Lease> => {
    const asked = resources.allocate(request(changes), { signal });
    asked.then(
      () => order.push(name),
      () => {},
    );
    return asked;
  };
}

/** Lets every promise that can settle do so. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

test('capacity is read from the machine', async () => {
  await using resources = await openResources({ clock: new ManualClock(), directory: tmpdir() });
  const { capacity, leased, leases, waiting } = await resources.usage();
  assert.ok(capacity.cpuCores >= 1 && capacity.memoryBytes > 1e8 && capacity.storageBytes > 0);
  assert.deepEqual([leased, leases, waiting], [{ cpuCores: 0, memoryBytes: 0, storageBytes: 0 }, 0, 0]);
});

test('who waits is served by priority, then by arrival', async (t) => {
  const { resources } = await opened(t, wide);
  const catalog = resources.for('catalog');
  const order: string[] = [];
  const ask = asker(catalog, order);
  const all = await ask('first', { cpuCores: 4 });
  const asked: [string, Priority][] = [
    ['low', 'low'],
    ['normal 1', 'normal'],
    ['emergency', 'emergency'],
    ['normal 2', 'normal'],
    ['high', 'high'],
  ];
  for (const [name, priority] of asked) {
    void ask(name, { cpuCores: 4, priority }).then(({ id }) => catalog.release(id));
  }
  await settled();
  assert.equal((await resources.usage()).waiting, 5);
  await catalog.release(all.id);
  await settled();
  assert.deepEqual(order, ['first', 'emergency', 'high', 'normal 1', 'normal 2', 'low']);
});

test('waiting raises priority, so that a stream of urgent requests starves nobody', async (t) => {
  const { resources, clock } = await opened(t, wide);
  const catalog = resources.for('catalog');
  const order: string[] = [];
  const ask = asker(catalog, order);
  let held = await ask('first', { cpuCores: 4 });
  void ask('patient', { cpuCores: 4, priority: 'low' });
  for (let round = 0; round < 10 && !order.includes('patient'); round++) {
    const urgent = ask(`urgent ${round}`, { cpuCores: 4, priority: 'emergency' });
    await settled();
    clock.ms += 10_000;
    await catalog.release(held.id);
    await settled();
    if (!order.includes('patient')) held = await urgent;
    else urgent.catch(() => {});
  }
  assert.deepEqual(order, ['first', 'urgent 0', 'urgent 1', 'urgent 2', 'patient']);
});

test('a large request is not passed by small ones; a full class lets other classes pass', async (t) => {
  const { resources } = await opened(t, {
    operations: new Map([
      ['wide', WIDE],
      ['one', { ...WIDE, concurrent: 1 }],
    ]),
  });
  const catalog = resources.for('catalog');
  const order: string[] = [];
  const ask = asker(catalog, order);
  const small = await ask('small', {});
  const only = await ask('only', { operation: 'one' });
  void ask('second of its class', { operation: 'one', cpuCores: 0 });
  void ask('large', { cpuCores: 4 });
  void ask('small again', {});
  await settled();
  assert.deepEqual(order, ['small', 'only']);
  await catalog.release(only.id);
  await settled();
  assert.deepEqual(order, ['small', 'only', 'second of its class']);
  await catalog.release(small.id);
  await settled();
  assert.deepEqual(order.slice(3), ['large']);
});

test('the limits of the specification hold for each class together', async (t) => {
  const { resources } = await opened(t);
  const catalog = resources.for('catalog');
  assert.deepEqual(await catalog.limits('bulk_install'), { cpuShare: 0.5, memoryBytes: 4 * GIB, concurrent: 20 });
  assert.deepEqual(await catalog.limits('search'), { cpuShare: 0.25, memoryBytes: GIB, concurrent: 100 });
  assert.deepEqual(await catalog.limits('anything'), { cpuShare: 0.25, memoryBytes: GIB, concurrent: 50 });
  assert.deepEqual(await catalog.limits('constructor'), { cpuShare: 0.25, memoryBytes: GIB, concurrent: 50 });

  for (let n = 0; n < 20; n++) await catalog.allocate(request({ operation: 'bulk_install', cpuCores: 0.1 }));
  const oneMore = catalog.allocate(request({ operation: 'bulk_install', cpuCores: 0.1 }));
  oneMore.catch(() => {});
  await settled();
  assert.deepEqual([(await catalog.usage()).leases, (await catalog.usage()).waiting], [20, 1]);
  await catalog.allocate(request({ operation: 'search', memoryBytes: GIB }));
});

test('what could never be granted, and what makes no sense, is refused at once', async (t) => {
  const { resources } = await opened(t, { waitingMax: 1 });
  const catalog = resources.for('catalog');
  await assert.rejects(catalog.allocate(request({ operation: 'execute', cpuCores: 5 })), coded('quota-exceeded'));
  await assert.rejects(catalog.allocate(request({ operation: 'search', cpuCores: 2 })), coded('quota-exceeded'));
  await assert.rejects(catalog.allocate(request({ memoryBytes: 2 * GIB })), coded('quota-exceeded'));
  await assert.rejects(catalog.allocate(request({ storageBytes: 101 * GIB })), coded('storage-full'));
  await assert.rejects(catalog.allocate(request({ cpuCores: -1 })), coded('usage'));
  await assert.rejects(catalog.allocate(request({ memoryBytes: Number.NaN })), coded('usage'));
  await assert.rejects(catalog.allocate(request({ priority: 'royal' as Priority })), coded('usage'));
  await assert.rejects(catalog.allocate(request({ durationMs: 1e9 })), coded('usage'));
  await assert.rejects(catalog.allocate(null as never), coded('usage'));

  await catalog.allocate(request({ operation: 'search', cpuCores: 1 }));
  const waiting = catalog.allocate(request({ operation: 'search', cpuCores: 1 }));
  waiting.catch(() => {});
  await settled();
  await assert.rejects(catalog.allocate(request({ cpuCores: 1 })), coded('quota-exceeded'));
});

test('a lease ends by itself, and a release is safe to repeat', async (t) => {
  const { resources, clock } = await opened(t, wide);
  const catalog = resources.for('catalog');
  const lease = await catalog.allocate(request({ cpuCores: 4, durationMs: 500 }));
  assert.deepEqual([lease.grantedAtMs, lease.expiresAtMs], [1_000, 1_500]);
  const next = catalog.allocate(request({ cpuCores: 3 }));
  await settled();
  clock.ms = 1_499;
  assert.equal((await resources.usage()).waiting, 1);
  clock.ms = 1_500;
  assert.equal((await resources.usage()).leased.cpuCores, 3);
  await catalog.release(lease.id);
  await catalog.release((await next).id);
  await catalog.release((await next).id);
  assert.deepEqual((await resources.usage()).leased, { cpuCores: 0, memoryBytes: 0, storageBytes: 0 });
});

test('a lease that expires by the clock wakes who waits, without a call', async () => {
  await using resources = await openResources({
    clock: { nowMs: () => Date.now() },
    directory: tmpdir(),
    capacity: CAPACITY,
    limits: wide,
  });
  const catalog = resources.for('catalog');
  await catalog.allocate(request({ cpuCores: 4, durationMs: 20 }));
  const keepAlive = setInterval(() => {}, 1_000);
  await catalog.allocate(request({ cpuCores: 4 }));
  clearInterval(keepAlive);
});

test('giving up frees the place in the queue, and who stood behind moves up', async (t) => {
  const { resources } = await opened(t, wide);
  const catalog = resources.for('catalog');
  await catalog.allocate(request({ cpuCores: 2 }));
  const stop = new AbortController();
  const large = catalog.allocate(request({ cpuCores: 4 }), { signal: stop.signal });
  const behind = catalog.allocate(request({ cpuCores: 2 }));
  await settled();
  stop.abort();
  await assert.rejects(large, coded('cancelled'));
  await behind;
  await assert.rejects(catalog.allocate(request(), { signal: AbortSignal.abort() }), coded('cancelled'));
});

test('a holder cannot end the leases of another, and all of its own end with it', async (t) => {
  const { resources } = await opened(t, wide);
  const lease = await resources.for('catalog').allocate(request({ cpuCores: 4 }));
  await resources.for('other').release(lease.id);
  assert.equal((await resources.usage()).leases, 1);
  const waiting = resources.for('catalog').allocate(request());
  const other = resources.for('other').allocate(request());
  waiting.catch(() => {});
  await settled();
  await resources.releaseAll('catalog');
  await assert.rejects(waiting, coded('cancelled'));
  await other;
  assert.equal((await resources.usage()).leases, 1);
});

test('hold() releases at the end of the block, also when it throws', async (t) => {
  const { resources } = await opened(t, wide);
  const catalog = resources.for('catalog');
  await assert.rejects(async () => {
    await using held = await hold(catalog, request({ cpuCores: 4 }));
    assert.equal((await resources.usage()).leases, 1);
    assert.equal(held.lease.request.cpuCores, 4);
    throw new Error('on purpose');
  }, /on purpose/);
  assert.equal((await resources.usage()).leases, 0);
});

/** One step of a random history. */
type Step =
  | { readonly kind: 'ask'; readonly request: ResourceRequest }
  | { readonly kind: 'release'; readonly which: number }
  | { readonly kind: 'cancel'; readonly which: number }
  | { readonly kind: 'wait'; readonly ms: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant('ask' as const),
        request: fc.record({
          operation: fc.constantFrom('wide', 'search', 'bulk_install', 'publish'),
          cpuCores: fc.constantFrom(0, 0.25, 0.5, 1),
          memoryBytes: fc.constantFrom(0, 1, GIB),
          storageBytes: fc.constantFrom(0, 40 * GIB),
          priority: fc.constantFrom<Priority>('low', 'normal', 'high', 'critical', 'emergency'),
          durationMs: fc.constantFrom(1_000, 30_000),
        }),
      }),
    },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('release' as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('cancel' as const), which: fc.nat() }) },
    {
      weight: 2,
      arbitrary: fc.record({ kind: fc.constant('wait' as const), ms: fc.constantFrom(100, 5_000, 40_000) }),
    },
  ),
  { maxLength: 40 },
);

test('any history: never over capacity or a class limit, no lease lost, everybody served in the end', async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (history) => {
      const clock = new ManualClock();
      await using resources = await openResources({ clock, directory: tmpdir(), capacity: CAPACITY, limits: wide });
      const catalog = resources.for('catalog');
      // The reference: every lease that was granted, and neither released nor expired.
      const live = new Map<string, Lease>();
      const pending = new Map<number, AbortController>();
      let asked = 0;
      let served = 0;
      let cancelled = 0;

      const check = async () => {
        await settled();
        const { leased, leases, waiting } = await resources.usage();
        await settled();
        for (const [id, { expiresAtMs }] of live) if (expiresAtMs <= clock.ms) live.delete(id);
        const sum = (kind: 'cpuCores' | 'memoryBytes' | 'storageBytes', of: Iterable<Lease>) =>
          [...of].reduce((total, lease) => total + lease.request[kind], 0);
        for (const kind of ['cpuCores', 'memoryBytes', 'storageBytes'] as const) {
          assert.equal(leased[kind], sum(kind, live.values()));
          assert.ok(leased[kind] <= CAPACITY[kind]);
        }
        assert.equal(leases, live.size);
        assert.equal(waiting, pending.size);
        for (const operation of ['search', 'bulk_install', 'publish']) {
          const limits = await catalog.limits(operation);
          const own = [...live.values()].filter((lease) => lease.request.operation === operation);
          assert.ok(own.length <= limits.concurrent);
          assert.ok(sum('memoryBytes', own) <= limits.memoryBytes);
          assert.ok(sum('cpuCores', own) <= Math.max(1, limits.cpuShare * CAPACITY.cpuCores));
        }
        // Somebody waits only behind a lease: an idle machine serves.
        if (live.size === 0) assert.equal(waiting, 0);
      };

      for (const step of history) {
        if (step.kind === 'ask') {
          const number = asked++;
          const stop = new AbortController();
          pending.set(number, stop);
          catalog.allocate(step.request, { signal: stop.signal }).then(
            (lease) => {
              pending.delete(number);
              live.set(lease.id, lease);
              served++;
            },
            () => {
              pending.delete(number);
              cancelled++;
            },
          );
        } else if (step.kind === 'release') {
          const id = [...live.keys()][step.which % Math.max(1, live.size)];
          if (id !== undefined) {
            live.delete(id);
            await catalog.release(id);
          }
        } else if (step.kind === 'cancel') {
          [...pending.values()][step.which % Math.max(1, pending.size)]?.abort();
        } else {
          clock.ms += step.ms;
        }
        await check();
      }
      for (let rounds = 0; pending.size > 0; rounds++) {
        assert.ok(rounds <= asked, 'a waiter was not served although every lease ended');
        clock.ms += 30_000;
        await check();
      }
      assert.equal(served + cancelled, asked);
    }),
    { numRuns: 150 },
  );
});
