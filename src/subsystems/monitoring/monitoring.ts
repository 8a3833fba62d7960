import { mkdir } from 'node:fs/promises';
import type { Clock } from '../../base/clock.ts';
import { storageError } from '../../base/errors.ts';
import type { MetricSample, Monitoring } from '../../capabilities/monitoring.ts';
import type { EventLimits } from './events.ts';
import { EventLog } from './events.ts';
import { type MetricLimits, MetricStore, type Observed } from './metrics.ts';

export interface MonitoringLimits extends EventLimits, MetricLimits {}

const DEFAULT_LIMITS: MonitoringLimits = {
  countMax: 100_000,
  bytesMax: 64 * 1_048_576,
  ageMsMax: 30 * 86_400_000,
  waitingMax: 10_000,
  seriesMax: 10_000,
  seriesPerSourceMax: 2_000,
};

/** How the node itself is doing. Plain data. */
interface NodeHealth {
  readonly status: 'healthy' | 'degraded';
  /** Why it is degraded, one sentence each. */
  readonly reasons: readonly string[];
  readonly uptimeMs: number;
  readonly rssBytes: number;
  readonly heapUsedBytes: number;
  /** The delay that 99 of 100 turns of the event loop stay below; of the last minute or two. */
  readonly eventLoopDelayP99Ms: number;
  readonly events: { readonly kept: number; readonly bytes: number; readonly oldest: number; readonly last: number };
  readonly metrics: { readonly series: number; readonly rejected: number };
}

export interface MonitoringSubsystem extends AsyncDisposable {
  /** The capability with `source` (an extension's or a subsystem's id) bound to every event and counted against its series. */
  for(source: string): Monitoring;
  /** Figures of a part of the node that are read when somebody asks. Call it while the node is being opened. */
  observe(observed: Observed): void;
  metrics(pattern: string): Promise<readonly MetricSample[]>;
  /** All metrics in the Prometheus text format 0.0.4. */
  prometheus(): Promise<string>;
  health(): Promise<NodeHealth>;
}

const DEGRADED_DELAY_MS = 500;

/** Opens `events.db` in `directory`, which is made if need be. Errors: `home-too-new`, `storage-*`. */
export async function openMonitoring(options: {
  readonly directory: string;
  readonly clock: Clock;
  readonly limits?: Partial<MonitoringLimits>;
}): Promise<MonitoringSubsystem> {
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  await mkdir(options.directory, { recursive: true }).catch((error: unknown) => {
    throw storageError(error, `making the folder ${options.directory}`);
  });
  const events = new EventLog(options.directory, { clock: options.clock }, limits);
  const metrics = new MetricStore(limits);
  const startedAtMs = options.clock.nowMs();

  return {
    for: (source) => ({
      report: async (metric) => metrics.record(source, metric),
      emit: async (event) => events.emit(source, event),
      metrics: (pattern) => metrics.samples(pattern),
      events: (range) => events.read(range),
    }),
    observe: (observed) => metrics.observe(observed),
    metrics: (pattern) => metrics.samples(pattern),
    prometheus: () => metrics.prometheus(),
    async health() {
      const { series, rejected, delayP99Ms } = metrics.status();
      const memory = process.memoryUsage();
      const reasons =
        delayP99Ms > DEGRADED_DELAY_MS
          ? [`The event loop is late by ${delayP99Ms} ms at the 99th percentile; below ${DEGRADED_DELAY_MS} is normal.`]
          : [];
      return {
        status: reasons.length === 0 ? 'healthy' : 'degraded',
        reasons,
        uptimeMs: Math.max(0, options.clock.nowMs() - startedAtMs),
        rssBytes: memory.rss,
        heapUsedBytes: memory.heapUsed,
        eventLoopDelayP99Ms: delayP99Ms,
        events: events.status(),
        metrics: { series, rejected },
      };
    },
    async [Symbol.asyncDispose]() {
      await events.close();
      await metrics.close();
    },
  };
}
