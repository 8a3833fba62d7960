import type { Json } from '../base/json.ts';

export interface Metric {
  /** Dotted name, for example `catalog.operations.publish`. */
  readonly name: string;
  readonly kind: 'counter' | 'gauge' | 'histogram';
  readonly value: number;
  readonly unit?: 'bytes' | 'ms' | '1';
  readonly tags?: Readonly<Record<string, string>>;
}

export interface MetricSample {
  readonly name: string;
  readonly kind: Metric['kind'];
  readonly tags: Readonly<Record<string, string>>;
  /** Counter and gauge: the value. Histogram: the mean. */
  readonly value: number;
  readonly count?: number;
  readonly sum?: number;
}

export type Severity = 'info' | 'warning' | 'error' | 'critical';

export interface EventDraft {
  /** Dotted type, for example `catalog.published`. */
  readonly type: string;
  readonly severity?: Severity;
  readonly data: Json;
}

export interface Event {
  /** Strictly increasing; a reader resumes after the last one it saw. */
  readonly sequence: number;
  readonly atMs: number;
  readonly type: string;
  readonly severity: Severity;
  /** Who emitted it: the id of an extension, or of a subsystem. */
  readonly source: string;
  readonly data: Json;
}

export interface Monitoring {
  /** Records one measurement. Never fails, never waits: a bad name is counted in `monitoring.rejected`. */
  report(metric: Metric): Promise<void>;
  /** Durable and ordered. Older events are dropped past the limit in the configuration. */
  emit(event: EventDraft): Promise<void>;
  /** `*` matches any run of characters: `catalog.*`. */
  metrics(pattern: string): Promise<readonly MetricSample[]>;
  /** Events after `after` (0: from the oldest kept), then, with `follow`, those to come. Errors: `events-lost` when `after` is older than what is kept. */
  events(options?: {
    readonly after?: number;
    readonly pattern?: string;
    readonly follow?: boolean;
    readonly signal?: AbortSignal;
  }): AsyncIterable<Event>;
}
