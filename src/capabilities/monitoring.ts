import type { Event, EventDraft } from '../wire/event.ts';

export type { Event, EventDraft, Severity } from '../wire/event.ts';

/** One measurement. Names, tags and limits: docs/protocol/metrics.md. */
export interface Metric {
  /** Dotted name, for example `catalog.operations.publish`. A name keeps the kind and unit of its first measurement. */
  readonly name: string;
  readonly kind: 'counter' | 'gauge' | 'histogram';
  /** Counter: the increment, not negative. Gauge: the value now. Histogram: one observation. */
  readonly value: number;
  readonly unit?: 'bytes' | 'ms' | '1';
  /** At most 8; values of few kinds (an outcome, a type), never an id. */
  readonly tags?: Readonly<Record<string, string>>;
}

export interface MetricSample {
  readonly name: string;
  readonly kind: Metric['kind'];
  readonly unit?: Metric['unit'];
  readonly tags: Readonly<Record<string, string>>;
  /** Counter and gauge: the value. Histogram: the mean. */
  readonly value: number;
  /** Histogram: how many observations, and their sum. */
  readonly count?: number;
  readonly sum?: number;
  /** Histogram: how many observations were at most `le` and above the bucket before; the last `le` is null (no upper bound). */
  readonly buckets?: readonly { readonly le: number | null; readonly count: number }[];
}

export interface Monitoring {
  /** Records one measurement. Never fails, never waits: a bad one is counted in `monitoring.rejected`. */
  report(metric: Metric): Promise<void>;
  /**
   * Durable and ordered when it returns. Older events are dropped past the limit in the configuration.
   * Errors: `usage`, `limit-exceeded` (data over 64 KiB), `quota-exceeded` (too many emits waiting for the disk), `storage-*`.
   */
  emit(event: EventDraft): Promise<void>;
  /** `*` matches any run of characters: `catalog.*`. At most 256 characters. In name order. */
  metrics(pattern: string): Promise<readonly MetricSample[]>;
  /**
   * Events after `after` (0: from the oldest kept), then, with `follow`, those to come, without a gap between the two.
   * A slow reader costs no memory. The stream ends when `signal` aborts.
   * Errors: `events-lost` when `after` is older than what is kept, also later when a slow reader is overtaken.
   */
  events(options?: {
    readonly after?: number;
    readonly pattern?: string;
    readonly follow?: boolean;
    readonly signal?: AbortSignal;
  }): AsyncIterable<Event>;
}
