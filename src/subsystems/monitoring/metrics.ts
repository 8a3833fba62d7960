import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { Counter, Gauge, Histogram as HistogramInstrument, Meter, ObservableResult } from '@opentelemetry/api';
import type { ResourceMetrics } from '@opentelemetry/sdk-metrics';
import type { Metric, MetricSample } from '../../capabilities/monitoring.ts';
import { matcher } from './match.ts';

export interface MetricLimits {
  /** Distinct name x tag sets in total, and of one source. What is over is counted in `monitoring.rejected`. */
  readonly seriesMax: number;
  readonly seriesPerSourceMax: number;
}

/** Measurements kept before the SDK is loaded; then they are replayed. */
const BUFFER_MAX = 1_024;
const TAGS_MAX = 8;
const NAME = /^(?=.{1,128}$)[a-z][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*$/;
/** Measured by the node itself. */
const RESERVED = /^(process|monitoring)\./;
const TAG_KEY = /^[a-z][a-z0-9_.]{0,63}$/;
const TAG_VALUE_LENGTH_MAX = 128;
const DELAY_WINDOW_MS = 60_000;
const DELAY_RESOLUTION_MS = 20;

/** Milliseconds: from a cache hit to a proof. */
const MS_BUCKETS = [1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];
/** Bytes: 1 KiB to 4 GiB. */
const BYTE_BUCKETS = Array.from({ length: 12 }, (_, power) => 1_024 * 4 ** power);
const PLAIN_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000];

/** The help text of the exposition; the full list with tags is docs/protocol/metrics.md. */
const DESCRIPTIONS: ReadonlyMap<string, string> = new Map([
  ['catalog.packages.total', 'Packages known here'],
  ['catalog.versions.total', 'Versions of all packages known here'],
  ['catalog.storage.bytes', 'Bytes in the content store'],
  ['catalog.cache.hits', 'Answers from a cache'],
  ['catalog.cache.misses', 'Questions that no cache could answer'],
  ['catalog.operations.publish', 'Publish operations, by outcome'],
  ['catalog.operations.install', 'Install operations, by outcome'],
  ['catalog.operations.search', 'Searches, by outcome'],
  ['catalog.operations.run', 'Runs, by outcome'],
  ['monitoring.rejected', 'Measurements that were refused, by reason'],
  ['process.memory.rss', 'Resident memory of the node'],
  ['process.memory.heap', 'JavaScript heap in use'],
  ['process.eventloop.delay.p99', 'How late the event loop is, 99th percentile of the last minute or two'],
  ['process.handles', 'Timers, sockets, files and workers that are open'],
  ['process.uptime', 'Since the process started'],
]);

type Rejection = 'name' | 'kind' | 'value' | 'tags' | 'cardinality';

/** What one name stands for, decided by its first measurement. */
interface Series {
  readonly name: string;
  readonly kind: Metric['kind'];
  readonly unit: Metric['unit'];
  record: ((value: number, tags: Readonly<Record<string, string>>) => void) | undefined;
}

interface Sdk {
  readonly meter: Meter;
  collect(): Promise<ResourceMetrics>;
  serialize(metrics: ResourceMetrics): string;
  shutdown(): Promise<void>;
}

/** What is read when somebody asks, instead of being reported when it changes. */
export interface Observed {
  readonly name: string;
  readonly kind: 'counter' | 'gauge';
  readonly unit: 'bytes' | 'ms' | '1';
  read(): readonly { readonly value: number; readonly tags?: Readonly<Record<string, string>> }[];
}

/**
 * The measurements of one node, kept by the OpenTelemetry SDK.
 * The SDK is loaded at the first read, or when the buffer before it is full, so that a start does not pay for it.
 */
export class MetricStore {
  readonly #limits: MetricLimits;
  readonly #delay = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS });
  #delaySince = performance.now();
  /** By the name in the exposition, so that two dotted names cannot become one there. */
  readonly #series = new Map<string, Series>();
  readonly #tagSets = new Set<string>();
  readonly #perSource = new Map<string, number>();
  #rejected = 0;
  #observed: Observed[] = this.#ofProcess();
  #buffer: { readonly series: Series; readonly value: number; readonly tags: Readonly<Record<string, string>> }[] = [];
  #loading: Promise<Sdk> | undefined;
  #meter: Meter | undefined;

  constructor(limits: MetricLimits) {
    this.#limits = limits;
    this.#delay.enable();
  }

  status(): { series: number; rejected: number; delayP99Ms: number } {
    return { series: this.#tagSets.size, rejected: this.#rejected, delayP99Ms: this.#delayP99Ms() };
  }

  /** For the parts of the node, before the first read. */
  observe(observed: Observed): void {
    this.#observed.push(observed);
  }

  record(source: string, metric: Metric): void {
    const accepted = this.#accept(source, metric);
    if (typeof accepted === 'string') {
      this.#rejected += 1;
      const own = this.#define('monitoring.rejected', 'counter', '1');
      if (own !== undefined) this.#write(own, 1, { reason: accepted });
    } else {
      this.#write(accepted.series, metric.value, accepted.tags);
    }
  }

  #write(series: Series, value: number, tags: Readonly<Record<string, string>>): void {
    if (this.#meter !== undefined) {
      series.record ??= recorder(this.#meter, series);
      series.record(value, tags);
    } else {
      this.#buffer.push({ series, value, tags });
      if (this.#buffer.length >= BUFFER_MAX) this.#load().catch(() => this.#buffer.splice(0));
    }
  }

  #accept(source: string, metric: Metric): Rejection | { series: Series; tags: Readonly<Record<string, string>> } {
    if (typeof metric !== 'object' || metric === null) return 'kind';
    const { name, kind, value, unit, tags } = metric;
    if (typeof name !== 'string' || !NAME.test(name) || RESERVED.test(name)) return 'name';
    if (kind !== 'counter' && kind !== 'gauge' && kind !== 'histogram') return 'kind';
    if (unit !== undefined && unit !== 'bytes' && unit !== 'ms' && unit !== '1') return 'kind';
    if (!Number.isFinite(value) || (kind !== 'gauge' && value < 0)) return 'value';
    const sorted = sortedTags(tags);
    if (sorted === undefined) return 'tags';
    const known = this.#series.get(expositionName(name, kind));
    if (known !== undefined && (known.name !== name || known.kind !== kind)) return 'kind';
    const id = JSON.stringify([name, ...sorted]);
    if (!this.#tagSets.has(id)) {
      const ofSource = this.#perSource.get(source) ?? 0;
      if (this.#tagSets.size >= this.#limits.seriesMax || ofSource >= this.#limits.seriesPerSourceMax) {
        return 'cardinality';
      }
      if (known === undefined && this.#define(name, kind, unit) === undefined) return 'kind';
      this.#tagSets.add(id);
      this.#perSource.set(source, ofSource + 1);
    }
    const series = this.#series.get(expositionName(name, kind));
    return series === undefined ? 'kind' : { series, tags: Object.fromEntries(sorted) };
  }

  /** Undefined when the exposition could not tell the name from one that exists with another kind. */
  #define(name: string, kind: Metric['kind'], unit: Metric['unit']): Series | undefined {
    const key = expositionName(name, kind);
    const known = this.#series.get(key);
    if (known !== undefined) return known;
    const stem = key.replace(/_total$/, '');
    for (const other of [stem, `${stem}_total`]) {
      if (this.#series.get(other)?.name === name) return undefined;
    }
    const series: Series = { name, kind, unit, record: undefined };
    this.#series.set(key, series);
    return series;
  }

  #load(): Promise<Sdk> {
    this.#loading ??= this.#start();
    return this.#loading;
  }

  async #start(): Promise<Sdk> {
    const [{ MeterProvider, MetricReader }, { PrometheusSerializer }] = await Promise.all([
      import('@opentelemetry/sdk-metrics'),
      import('@opentelemetry/exporter-prometheus'),
    ]);
    class MemoryReader extends MetricReader {
      protected override async onShutdown(): Promise<void> {}
      protected override async onForceFlush(): Promise<void> {}
    }
    const { seriesMax } = this.#limits;
    const reader = new MemoryReader({ cardinalitySelector: () => seriesMax + 16 });
    const provider = new MeterProvider({ readers: [reader] });
    const serializer = new PrometheusSerializer('', false, undefined, true, true);
    const sdk: Sdk = {
      meter: provider.getMeter('hypermesh'),
      collect: async () => (await reader.collect()).resourceMetrics,
      serialize: (metrics) => serializer.serialize(metrics),
      shutdown: () => provider.shutdown(),
    };
    for (const observed of this.#observed) this.#register(sdk.meter, observed);
    this.#meter = sdk.meter;
    for (const { series, value, tags } of this.#buffer.splice(0)) this.#write(series, value, tags);
    return sdk;
  }

  #register(meter: Meter, { name, kind, unit, read }: Observed): void {
    this.#series.set(expositionName(name, kind), { name, kind, unit, record: undefined });
    const options = { unit, description: describe(name) };
    const instrument =
      kind === 'gauge' ? meter.createObservableGauge(name, options) : meter.createObservableCounter(name, options);
    instrument.addCallback((result: ObservableResult) => {
      for (const { value, tags } of read()) result.observe(value, tags);
    });
  }

  #ofProcess(): Observed[] {
    const gauge = (name: string, unit: Observed['unit'], read: () => number): Observed => ({
      ...{ name, kind: 'gauge', unit },
      read: () => [{ value: read() }],
    });
    return [
      gauge('process.memory.rss', 'bytes', () => process.memoryUsage.rss()),
      gauge('process.memory.heap', 'bytes', () => process.memoryUsage().heapUsed),
      gauge('process.eventloop.delay.p99', 'ms', () => this.#delayP99Ms()),
      gauge('process.handles', '1', () => process.getActiveResourcesInfo().length),
      gauge('process.uptime', 'ms', () => Math.round(process.uptime() * 1_000)),
    ];
  }

  /** Of the last one to two minutes at most: the window starts anew when it was read and is older than a minute. */
  #delayP99Ms(): number {
    // The histogram counts nanoseconds from one sample to the next, so the interval itself is in each of them.
    const p99 = Math.max(0, Math.round(this.#delay.percentile(99) / 1e4) / 100 - DELAY_RESOLUTION_MS);
    if (performance.now() - this.#delaySince > DELAY_WINDOW_MS) {
      this.#delay.reset();
      this.#delaySince = performance.now();
    }
    return p99;
  }

  async samples(pattern: string): Promise<readonly MetricSample[]> {
    const matches = matcher(pattern);
    const { scopeMetrics } = await (await this.#load()).collect();
    const samples: MetricSample[] = [];
    for (const metric of scopeMetrics.flatMap((scope) => scope.metrics)) {
      const { name, unit } = metric.descriptor;
      if (!matches(name)) continue;
      for (const point of metric.dataPoints) {
        const tags = Object.fromEntries(Object.entries(point.attributes).map(([key, value]) => [key, String(value)]));
        samples.push(toSample(name, unit, tags, this.#kindOf(name), point.value));
      }
    }
    return samples.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  }

  #kindOf(name: string): Metric['kind'] {
    for (const kind of ['counter', 'gauge', 'histogram'] as const) {
      if (this.#series.get(expositionName(name, kind))?.kind === kind) return kind;
    }
    return 'gauge';
  }

  async prometheus(): Promise<string> {
    const sdk = await this.#load();
    return sdk.serialize(await sdk.collect());
  }

  async close(): Promise<void> {
    this.#delay.disable();
    await (await this.#loading)?.shutdown();
  }
}

function sortedTags(tags: Metric['tags']): [string, string][] | undefined {
  if (tags === undefined) return [];
  if (tags === null || typeof tags !== 'object') return undefined;
  const entries = Object.entries(tags);
  const good = entries.every(
    ([key, value]) => TAG_KEY.test(key) && typeof value === 'string' && value.length <= TAG_VALUE_LENGTH_MAX,
  );
  if (!good || entries.length > TAGS_MAX) return undefined;
  return entries.sort(([a], [b]) => (a < b ? -1 : 1));
}

/** The name as the Prometheus serializer prints it. */
function expositionName(name: string, kind: Metric['kind']): string {
  const plain = name.replace(/[^a-z0-9]+/g, '_');
  return kind === 'counter' && !plain.endsWith('_total') ? `${plain}_total` : plain;
}

function describe(name: string): string {
  return DESCRIPTIONS.get(name) ?? name;
}

function recorder(meter: Meter, { name, kind, unit }: Series): NonNullable<Series['record']> {
  const options = { description: describe(name), ...(unit === undefined ? {} : { unit }) };
  switch (kind) {
    case 'counter': {
      const counter: Counter = meter.createCounter(name, options);
      return (value, tags) => counter.add(value, tags);
    }
    case 'gauge': {
      const gauge: Gauge = meter.createGauge(name, options);
      return (value, tags) => gauge.record(value, tags);
    }
    case 'histogram': {
      const explicitBucketBoundaries = unit === 'ms' ? MS_BUCKETS : unit === 'bytes' ? BYTE_BUCKETS : PLAIN_BUCKETS;
      const histogram: HistogramInstrument = meter.createHistogram(name, {
        ...options,
        advice: { explicitBucketBoundaries },
      });
      return (value, tags) => histogram.record(value, tags);
    }
  }
}

type PointValue = ResourceMetrics['scopeMetrics'][number]['metrics'][number]['dataPoints'][number]['value'];

function toSample(
  name: string,
  unit: string,
  tags: Readonly<Record<string, string>>,
  kind: Metric['kind'],
  value: PointValue,
): MetricSample {
  const known: Pick<MetricSample, 'unit'> = unit === 'bytes' || unit === 'ms' || unit === '1' ? { unit } : {};
  if (typeof value === 'number') return { name, kind, ...known, tags, value };
  const { count, sum = 0 } = value;
  const mean = count === 0 ? 0 : sum / count;
  if (!('buckets' in value)) return { name, kind, ...known, tags, value: mean, count, sum };
  const { boundaries, counts } = value.buckets;
  const buckets = counts.map((of, index) => ({ le: boundaries[index] ?? null, count: of }));
  return { name, kind, ...known, tags, value: mean, count, sum, buckets };
}
