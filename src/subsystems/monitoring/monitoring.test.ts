import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../../base/errors.ts';
import type { Event, Metric, Monitoring } from '../../capabilities/monitoring.ts';
import { type MonitoringLimits, type MonitoringSubsystem, openMonitoring } from './index.ts';

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'monitoring-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function opened(t: TestContext, limits: Partial<MonitoringLimits> = {}): Promise<MonitoringSubsystem> {
  const monitoring = await openMonitoring({ directory: await folder(t), clock: { nowMs: () => 1_000 }, limits });
  t.after(() => monitoring[Symbol.asyncDispose]());
  return monitoring;
}

async function all(events: AsyncIterable<Event>): Promise<Event[]> {
  return Array.fromAsync(events);
}

function coded(...codes: Parameters<typeof isCoded>[1][]) {
  return (error: unknown) => isCoded(error, ...codes);
}

test('emit() keeps order, source and data, and numbers go on after a restart', async (t) => {
  const directory = await folder(t);
  const clock = { nowMs: () => 5 };
  {
    await using monitoring = await openMonitoring({ directory, clock });
    const catalog = monitoring.for('catalog');
    await Promise.all([1, 2, 3].map((n) => catalog.emit({ type: 'catalog.published', data: { n } })));
  }
  await using monitoring = await openMonitoring({ directory, clock });
  await monitoring.for('host').emit({ type: 'host.started', severity: 'warning', data: null });
  const events = await all(monitoring.for('host').events());
  assert.deepEqual(
    events.map(({ sequence, source, data }) => [sequence, source, data]),
    [
      [1, 'catalog', { n: 1 }],
      [2, 'catalog', { n: 2 }],
      [3, 'catalog', { n: 3 }],
      [4, 'host', null],
    ],
  );
  assert.deepEqual(
    (await all(monitoring.for('host').events({ after: 1, pattern: 'catalog.*' }))).map(({ sequence }) => sequence),
    [2, 3],
  );
});

test('emit() refuses bad events with a code and stores nothing', async (t) => {
  const monitoring = await opened(t);
  const catalog = monitoring.for('catalog');
  const cycle: { self?: unknown } = {};
  cycle.self = cycle;
  await assert.rejects(catalog.emit({ type: 'Not a type', data: null }), coded('usage'));
  await assert.rejects(catalog.emit({ type: 'a.b', data: cycle as never }), coded('usage'));
  await assert.rejects(catalog.emit({ type: 'a.b', data: undefined as never }), coded('usage'));
  await assert.rejects(catalog.emit({ type: 'a.b', data: 'x'.repeat(70_000) }), coded('limit-exceeded'));
  await assert.rejects(catalog.emit({ type: 'a.b', data: null, extra: 1 } as never), coded('usage'));
  assert.deepEqual(await all(catalog.events()), []);
});

test('emit() refuses when too many wait for the disk', async (t) => {
  const monitoring = await opened(t, { waitingMax: 2 });
  const catalog = monitoring.for('catalog');
  const results = await Promise.allSettled([1, 2, 3].map((n) => catalog.emit({ type: 'a.b', data: n })));
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'fulfilled', 'rejected'],
  );
});

test('the oldest events go first, by count, bytes and age; who resumes before them is told', async (t) => {
  const directory = await folder(t);
  let now = 0;
  await using monitoring = await openMonitoring({
    directory,
    clock: { nowMs: () => now },
    limits: { countMax: 3, ageMsMax: 100, bytesMax: 10_000 },
  });
  const catalog = monitoring.for('catalog');
  const kept = async () => (await all(catalog.events())).map(({ sequence }) => sequence);
  for (let n = 1; n <= 5; n++) await catalog.emit({ type: 'a.b', data: n });
  assert.deepEqual(await kept(), [3, 4, 5]);
  await assert.rejects(all(catalog.events({ after: 1 })), coded('events-lost'));
  assert.equal((await all(catalog.events({ after: 2 }))).length, 3);
  await assert.rejects(all(catalog.events({ after: 6 })), coded('events-lost'));
  await assert.rejects(all(catalog.events({ after: -1 })), coded('usage'));

  now = 1_000;
  await catalog.emit({ type: 'a.b', data: 6 });
  assert.deepEqual(await kept(), [6]);
  await catalog.emit({ type: 'a.b', data: 'x'.repeat(9_000) });
  await catalog.emit({ type: 'a.b', data: 'x'.repeat(9_000) });
  assert.deepEqual(await kept(), [8]);
  const { events } = await monitoring.health();
  assert.deepEqual([events.kept, events.oldest, events.last], [1, 8, 8]);
});

test('a follower sees history and what comes, once each and in order, whatever the interleaving', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 12 }), fc.nat(3), async (bursts, before) => {
      const directory = await mkdtemp(join(tmpdir(), 'monitoring-'));
      try {
        await using monitoring = await openMonitoring({ directory, clock: { nowMs: () => 1 } });
        const catalog = monitoring.for('catalog');
        const burst = (count: number) =>
          Promise.all(Array.from({ length: count }, (_, n) => catalog.emit({ type: 'a.b', data: n })));
        await burst(before);
        const total = bursts.reduce((sum, count) => sum + count, before);
        const stop = new AbortController();
        const seen: number[] = [];
        const reading = (async () => {
          if (total === 0) return;
          for await (const { sequence } of catalog.events({ follow: true, signal: stop.signal })) {
            if (seen.push(sequence) === total) stop.abort();
          }
        })();
        for (const count of bursts) await burst(count);
        await reading;
        assert.deepEqual(
          seen,
          Array.from({ length: total }, (_, n) => n + 1),
        );
      } finally {
        await rm(directory, { recursive: true, force: true });
      }
    }),
    { numRuns: 15 },
  );
});

test('a slow follower that is overtaken is told, and a closed log ends its followers', async (t) => {
  const monitoring = await opened(t, { countMax: 2 });
  const catalog = monitoring.for('catalog');
  await catalog.emit({ type: 'a.b', data: 0 });
  const slow = catalog.events({ follow: true })[Symbol.asyncIterator]();
  assert.equal((await slow.next()).value?.sequence, 1);
  for (let n = 0; n < 4; n++) await catalog.emit({ type: 'a.b', data: n });
  await assert.rejects(slow.next(), coded('events-lost'));

  const waiting = catalog.events({ after: 5, follow: true })[Symbol.asyncIterator]();
  const next = waiting.next();
  await monitoring[Symbol.asyncDispose]();
  assert.equal((await next).done, true);
  await assert.rejects(catalog.emit({ type: 'a.b', data: 1 }), coded('node-not-running'));
});

test('a signal ends a follower that waits', async (t) => {
  const monitoring = await opened(t);
  const stop = new AbortController();
  const next = monitoring.for('catalog').events({ follow: true, signal: stop.signal })[Symbol.asyncIterator]().next();
  stop.abort();
  assert.equal((await next).done, true);
});

async function values(monitoring: Monitoring, pattern: string): Promise<Record<string, number>> {
  const samples = await monitoring.metrics(pattern);
  return Object.fromEntries(samples.map(({ name, tags, value }) => [`${name} ${JSON.stringify(tags)}`, value]));
}

test('counters add up, gauges hold the last value, histograms count; before and after the first read', async (t) => {
  const monitoring = await opened(t);
  const catalog = monitoring.for('catalog');
  for (let round = 1; round <= 2; round++) {
    const ok = { outcome: 'ok' };
    await catalog.report({ name: 'catalog.operations.publish', kind: 'counter', value: 1, tags: ok });
    await catalog.report({ name: 'catalog.packages.total', kind: 'gauge', value: 10 * round });
    await catalog.report({ name: `late.${round}`, kind: 'gauge', value: round });
    await catalog.report({ name: 'catalog.duration.publish', kind: 'histogram', unit: 'ms', value: 3 * round });
    assert.deepEqual(await values(catalog, 'catalog.*'), {
      'catalog.operations.publish {"outcome":"ok"}': round,
      'catalog.packages.total {}': 10 * round,
      'catalog.duration.publish {}': round === 1 ? 3 : 4.5,
    });
  }
  const [duration] = await catalog.metrics('catalog.duration.*');
  assert.deepEqual([duration?.kind, duration?.unit, duration?.count, duration?.sum], ['histogram', 'ms', 2, 9]);
  assert.equal(
    duration?.buckets?.reduce((sum, { count }) => sum + count, 0),
    2,
  );
  assert.deepEqual(Object.values(await values(catalog, 'late.*')), [1, 2]);
  assert.ok((await values(catalog, 'process.memory.rss'))['process.memory.rss {}']! > 1_000_000);
});

test('prometheus() prints the exposition under the names of the specification', async (t) => {
  const monitoring = await opened(t);
  const catalog = monitoring.for('catalog');
  const outcome = 'a "quoted"\nline';
  await catalog.report({ name: 'catalog.operations.install', kind: 'counter', value: 2, tags: { outcome } });
  await catalog.report({ name: 'catalog.packages.total', kind: 'gauge', value: 7 });
  const text = await monitoring.prometheus();
  assert.match(text, /^# TYPE catalog_operations_install_total counter$/m);
  assert.ok(text.includes('catalog_operations_install_total{outcome="a \\"quoted\\"\\nline"} 2\n'));
  assert.match(text, /^# TYPE catalog_packages_total gauge\ncatalog_packages_total 7$/m);
  assert.match(text, /^process_memory_rss \d+$/m);
});

test('report() never throws; what it refuses is counted by reason', async (t) => {
  const monitoring = await opened(t, { seriesMax: 12, seriesPerSourceMax: 5 });
  const catalog = monitoring.for('catalog');
  const good: Metric = { name: 'a.b', kind: 'gauge', value: 1 };
  await catalog.report(good);
  const bad: [string, unknown][] = [
    ['name', { ...good, name: 'Bad Name' }],
    ['name', { ...good, name: 'process.memory.rss' }],
    ['name', { ...good, name: 'a'.repeat(200) }],
    ['name', { ...good, name: undefined }],
    ['kind', { ...good, kind: 'counter' }],
    ['kind', { ...good, name: 'a_b' }],
    ['kind', { ...good, name: 'other', kind: 'summary' }],
    ['kind', { ...good, name: 'other', unit: 'furlong' }],
    ['value', { ...good, value: Number.NaN }],
    ['value', { ...good, value: '1' }],
    ['value', { ...good, name: 'other', kind: 'counter', value: -1 }],
    ['tags', { ...good, tags: { 'Bad Key': 'x' } }],
    ['tags', { ...good, tags: { key: 'x'.repeat(1_000) } }],
    ['tags', { ...good, tags: { key: 1 } }],
    ['tags', { ...good, tags: Object.fromEntries(Array.from({ length: 9 }, (_, n) => [`k${n}`, 'v'])) }],
  ];
  const expected: Record<string, number> = { cardinality: 6 + 5 };
  for (const [reason, metric] of bad) {
    await catalog.report(metric as Metric);
    expected[reason] = (expected[reason] ?? 0) + 1;
  }
  for (let n = 0; n < 10; n++) await catalog.report({ ...good, tags: { n: String(n) } });
  for (let n = 0; n < 10; n++) await monitoring.for('other').report({ ...good, name: 'c.d', tags: { n: String(n) } });
  const rejected = await catalog.metrics('monitoring.rejected');
  assert.deepEqual(Object.fromEntries(rejected.map(({ tags: { reason }, value }) => [reason, value])), expected);
  assert.equal((await monitoring.health()).metrics.series, 10);
});

test('a flood of measurements before the first read loses none', async (t) => {
  const monitoring = await opened(t);
  const catalog = monitoring.for('catalog');
  for (let n = 0; n < 3_000; n++) await catalog.report({ name: 'a.b', kind: 'counter', value: 1 });
  assert.deepEqual(await values(catalog, 'a.b'), { 'a.b {}': 3_000 });
});
