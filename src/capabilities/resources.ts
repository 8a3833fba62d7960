import type { CallOptions } from '../base/call.ts';

export type Priority = 'low' | 'normal' | 'high' | 'critical' | 'emergency';

export interface ResourceRequest {
  /** Operation class, for example `publish`, `install`, `bulk_install`, `search`, `execute`. */
  readonly operation: string;
  readonly cpuCores: number;
  readonly memoryBytes: number;
  readonly storageBytes: number;
  readonly priority: Priority;
  /** The lease ends by itself after this long; 600 s by default, at most a day. */
  readonly durationMs?: number;
}

export interface Lease {
  readonly id: string;
  readonly grantedAtMs: number;
  readonly expiresAtMs: number;
  readonly request: ResourceRequest;
}

/** What all leases of one operation class may hold together. */
export interface OperationLimits {
  /** Share of the node's processors, 0 to 1; never less than one core, so that the smallest machine can run one operation. */
  readonly cpuShare: number;
  readonly memoryBytes: number;
  readonly concurrent: number;
}

export interface ResourceUsage {
  readonly capacity: { readonly cpuCores: number; readonly memoryBytes: number; readonly storageBytes: number };
  readonly leased: { readonly cpuCores: number; readonly memoryBytes: number; readonly storageBytes: number };
  readonly leases: number;
  readonly waiting: number;
}

/** Shares of this machine, lent for a time. `hold` of `base/lease.ts` releases at the end of a block. */
export interface Resources {
  /**
   * Waits in order of priority, then of arrival. Who waits long rises: one level every 10 s, so nobody waits for ever.
   * Errors: `quota-exceeded` when it could never be granted, or when too many wait already; `storage-full`; `usage`; `cancelled`.
   */
  allocate(request: ResourceRequest, options?: CallOptions): Promise<Lease>;
  /** Safe to repeat, also after the lease expired. */
  release(leaseId: string): Promise<void>;
  limits(operation: string): Promise<OperationLimits>;
  usage(): Promise<ResourceUsage>;
}
