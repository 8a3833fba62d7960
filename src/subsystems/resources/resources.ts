import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type {
  Lease,
  OperationLimits,
  Priority,
  ResourceRequest,
  Resources,
  ResourceUsage,
} from '../../capabilities/resources.ts';
import { type Capacity, freeBytes, machineCapacity } from './capacity.ts';

const GIB = 2 ** 30;

/** The specification fixes `bulk_install`, `search` and the default; the others follow what the operation does. */
const OPERATION_LIMITS: ReadonlyMap<string, OperationLimits> = new Map([
  ['bulk_install', { cpuShare: 0.5, memoryBytes: 4 * GIB, concurrent: 20 }],
  ['search', { cpuShare: 0.25, memoryBytes: GIB, concurrent: 100 }],
  ['publish', { cpuShare: 0.75, memoryBytes: 4 * GIB, concurrent: 8 }],
  ['install', { cpuShare: 0.5, memoryBytes: 2 * GIB, concurrent: 20 }],
  ['execute', { cpuShare: 0.75, memoryBytes: 16 * GIB, concurrent: 32 }],
]);
const DEFAULT_OPERATION: OperationLimits = { cpuShare: 0.25, memoryBytes: GIB, concurrent: 50 };

const PRIORITIES: readonly Priority[] = ['low', 'normal', 'high', 'critical', 'emergency'];
/** A waiting request rises one level each time this long has passed, up to the top; there, arrival decides. */
const AGING_MS = 10_000;
const DURATION_MS_DEFAULT = 600_000;
const DURATION_MS_MAX = 86_400_000;
/** How old the figure for free storage may be. */
const STORAGE_AGE_MS_MAX = 5_000;
/** Sums of fractional cores are compared with this slack. */
const CPU_SLACK = 1e-9;

const WORDS = { cpuCores: 'processors', memoryBytes: 'bytes of memory' };
const amount = z.int().nonnegative();
const requestSchema = z.strictObject({
  operation: z.string().regex(/^[a-z][a-z0-9_.-]{0,63}$/, 'expected a word in lower case, for example "install"'),
  cpuCores: z.number().nonnegative().max(4_096),
  memoryBytes: amount,
  storageBytes: amount,
  priority: z.enum(['low', 'normal', 'high', 'critical', 'emergency']),
  durationMs: z.int().min(1).max(DURATION_MS_MAX).default(DURATION_MS_DEFAULT),
});

export interface ResourceLimits {
  /** Requests waiting at once; one more is refused with `quota-exceeded`. */
  readonly waitingMax: number;
  /** Replaces or adds operation classes. */
  readonly operations: ReadonlyMap<string, OperationLimits>;
}

export interface ResourcesSubsystem extends AsyncDisposable {
  /** The capability for one holder (an extension's or a subsystem's id), which can release only its own leases. */
  for(holder: string): Resources;
  /** Ends every lease and every wait (`cancelled`) of a holder that is going away. */
  releaseAll(holder: string): Promise<void>;
  usage(): Promise<ResourceUsage>;
}

interface Granted {
  readonly lease: Lease;
  readonly holder: string;
}

interface Waiting {
  readonly request: Required<ResourceRequest>;
  readonly holder: string;
  readonly arrival: number;
  readonly sinceMs: number;
  readonly granted: (lease: Lease) => void;
  readonly failed: (error: HyperMeshError) => void;
}

interface Sum {
  cpuCores: number;
  memoryBytes: number;
  storageBytes: number;
  leases: number;
}

/**
 * Capacity is read from the machine (storage: from the disk of `directory`) unless it is given.
 * Errors: `storage-*` when the disk cannot be asked.
 */
export async function openResources(options: {
  readonly clock: Clock;
  /** The folder whose disk counts as storage. */
  readonly directory: string;
  readonly capacity?: Partial<Capacity>;
  readonly limits?: Partial<ResourceLimits>;
}): Promise<ResourcesSubsystem> {
  const { clock, directory, capacity = {}, limits = {} } = options;
  try {
    const found = { ...(await machineCapacity(directory)), ...capacity };
    const storage = capacity.storageBytes === undefined ? () => freeBytes(directory) : undefined;
    return new Allocator(clock, found, storage, { waitingMax: 1_000, operations: new Map(), ...limits });
  } catch (error) {
    throw storageError(error, `asking for the free space of ${directory}`);
  }
}

/**
 * One queue for everybody. Requests are tried in order of effective priority, then of arrival, whenever something may have changed:
 * - one that does not fit into what is free on the machine stops the line, so that a large request is not passed for ever by small ones;
 * - one that is held back by the limits of its own operation class lets other classes pass, and nobody of its own class.
 * Since leases expire and waiting raises priority, every request is served in the end.
 */
class Allocator implements ResourcesSubsystem {
  readonly #clock: Clock;
  readonly #limits: ResourceLimits;
  readonly #readStorage: (() => Promise<number>) | undefined;
  readonly #leases = new Map<string, Granted>();
  readonly #leased: Sum = { cpuCores: 0, memoryBytes: 0, storageBytes: 0, leases: 0 };
  readonly #leasedByOperation = new Map<string, Sum>();
  #capacity: Capacity;
  #storageReadAtMs: number;
  #queue: Waiting[] = [];
  #arrivals = 0;
  #expiry: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(
    clock: Clock,
    capacity: Capacity,
    readStorage: (() => Promise<number>) | undefined,
    limits: ResourceLimits,
  ) {
    this.#clock = clock;
    this.#capacity = capacity;
    this.#readStorage = readStorage;
    this.#limits = limits;
    this.#storageReadAtMs = clock.nowMs();
  }

  for(holder: string): Resources {
    return {
      allocate: (request, options) => this.#allocate(holder, request, options),
      release: async (leaseId) => {
        if (this.#leases.get(leaseId)?.holder === holder) this.#end(leaseId);
        this.#serve();
      },
      limits: async (operation) => this.#operation(operation),
      usage: () => this.usage(),
    };
  }

  async usage(): Promise<ResourceUsage> {
    this.#serve();
    const { leases, ...leased } = this.#leased;
    return { capacity: this.#capacity, leased, leases, waiting: this.#queue.length };
  }

  async releaseAll(holder: string): Promise<void> {
    this.#dropWaiting((waiting) => waiting.holder === holder, 'The holder of the request was stopped.');
    for (const [id, granted] of this.#leases) if (granted.holder === holder) this.#end(id);
    this.#serve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#dropWaiting(() => true, 'The node is stopping.');
    clearTimeout(this.#expiry);
  }

  async #allocate(holder: string, wanted: ResourceRequest, options: CallOptions = {}): Promise<Lease> {
    const parsed = requestSchema.safeParse(wanted);
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      throw new HyperMeshError('usage', `A resource request has a wrong ${issue?.path.join('.')}: ${issue?.message}.`);
    }
    const request = parsed.data;
    const { signal } = options;
    // A figure that would refuse the request is read again: space may have been freed a moment ago.
    await this.#refreshStorage(request.storageBytes > this.#capacity.storageBytes);
    if (signal?.aborted === true) throw cancelled();
    if (this.#closed) throw new HyperMeshError('cancelled', 'The node is stopping.');
    this.#refuseImpossible(request);
    if (this.#queue.length >= this.#limits.waitingMax) {
      throw new HyperMeshError('quota-exceeded', `${this.#queue.length} requests wait for resources already.`, {
        hint: 'Try again when some of them are done.',
      });
    }
    return new Promise((resolve, reject) => {
      const giveUp = () => this.#dropWaiting((other) => other === waiting, 'The caller gave up before the end.');
      const waiting: Waiting = {
        request,
        holder,
        arrival: this.#arrivals++,
        sinceMs: this.#clock.nowMs(),
        granted: (lease) => {
          signal?.removeEventListener('abort', giveUp);
          resolve(lease);
        },
        failed: (error) => {
          signal?.removeEventListener('abort', giveUp);
          reject(error);
        },
      };
      signal?.addEventListener('abort', giveUp, { once: true });
      this.#queue.push(waiting);
      this.#serve();
    });
  }

  #operation(operation: string): OperationLimits {
    return this.#limits.operations.get(operation) ?? OPERATION_LIMITS.get(operation) ?? DEFAULT_OPERATION;
  }

  /** Cores that one operation class may hold. */
  #operationCores(limits: OperationLimits): number {
    return Math.min(this.#capacity.cpuCores, Math.max(1, limits.cpuShare * this.#capacity.cpuCores));
  }

  #refuseImpossible(request: Required<ResourceRequest>): void {
    const limits = this.#operation(request.operation);
    const most = {
      cpuCores: this.#operationCores(limits),
      memoryBytes: Math.min(limits.memoryBytes, this.#capacity.memoryBytes),
      storageBytes: this.#capacity.storageBytes,
    };
    for (const kind of ['cpuCores', 'memoryBytes', 'storageBytes'] as const) {
      if (request[kind] <= most[kind] + CPU_SLACK) continue;
      if (kind === 'storageBytes') throw diskFull(request, most.storageBytes);
      throw new HyperMeshError(
        'quota-exceeded',
        `${request.operation} asks for ${request[kind]} ${WORDS[kind]}; this node can give it ${most[kind]} at most.`,
        {
          hint: 'Ask for less, or run it on a larger machine.',
          details: { kind, asked: request[kind], most: most[kind] },
        },
      );
    }
    if (limits.concurrent < 1) {
      throw new HyperMeshError('quota-exceeded', `This node allows no ${request.operation}.`);
    }
  }

  /** Grants whatever can be granted now. Called whenever something may have changed; synchronous, so nothing comes between. */
  #serve(): void {
    const now = this.#clock.nowMs();
    for (const [id, { lease }] of this.#leases) if (lease.expiresAtMs <= now) this.#end(id);
    const order = this.#queue
      .map((waiting) => ({ waiting, level: effectiveLevel(waiting, now) }))
      .sort((a, b) => b.level - a.level || a.waiting.arrival - b.waiting.arrival);
    const heldBack = new Set<string>();
    const served = new Set<Waiting>();
    for (const { waiting } of order) {
      const { operation } = waiting.request;
      if (heldBack.has(operation)) continue;
      if (!this.#fitsOperation(waiting.request)) {
        heldBack.add(operation);
        continue;
      }
      if (waiting.request.storageBytes > this.#capacity.storageBytes) {
        served.add(waiting);
        waiting.failed(diskFull(waiting.request, this.#capacity.storageBytes));
        continue;
      }
      if (!this.#fitsMachine(waiting.request)) break;
      served.add(waiting);
      waiting.granted(this.#grant(waiting, now));
    }
    if (served.size > 0) this.#queue = this.#queue.filter((waiting) => !served.has(waiting));
    this.#wakeAtExpiry(now);
  }

  #fitsMachine(request: ResourceRequest): boolean {
    return (
      this.#leased.cpuCores + request.cpuCores <= this.#capacity.cpuCores + CPU_SLACK &&
      this.#leased.memoryBytes + request.memoryBytes <= this.#capacity.memoryBytes &&
      // What was leased and already written is counted twice: on the safe side. Nobody asking for storage is not held up by a full disk.
      (request.storageBytes === 0 || this.#leased.storageBytes + request.storageBytes <= this.#capacity.storageBytes)
    );
  }

  #fitsOperation(request: ResourceRequest): boolean {
    const limits = this.#operation(request.operation);
    const leased = this.#leasedByOperation.get(request.operation);
    if (leased === undefined) return true;
    return (
      leased.leases < limits.concurrent &&
      leased.cpuCores + request.cpuCores <= this.#operationCores(limits) + CPU_SLACK &&
      leased.memoryBytes + request.memoryBytes <= limits.memoryBytes
    );
  }

  #grant({ request, holder }: Waiting, now: number): Lease {
    const lease: Lease = { id: randomUUID(), grantedAtMs: now, expiresAtMs: now + request.durationMs, request };
    this.#leases.set(lease.id, { lease, holder });
    const ofOperation = this.#leasedByOperation.get(request.operation) ?? emptySum();
    this.#leasedByOperation.set(request.operation, ofOperation);
    for (const sum of [this.#leased, ofOperation]) add(sum, request, 1);
    return lease;
  }

  #end(leaseId: string): void {
    const granted = this.#leases.get(leaseId);
    if (granted === undefined) return;
    this.#leases.delete(leaseId);
    const { request } = granted.lease;
    const ofOperation = this.#leasedByOperation.get(request.operation);
    add(this.#leased, request, -1);
    if (ofOperation === undefined) return;
    add(ofOperation, request, -1);
    // Operation names come from outside: none is remembered longer than its leases.
    if (ofOperation.leases === 0) this.#leasedByOperation.delete(request.operation);
  }

  #dropWaiting(which: (waiting: Waiting) => boolean, why: string): void {
    const dropped = this.#queue.filter(which);
    if (dropped.length === 0) return;
    this.#queue = this.#queue.filter((waiting) => !dropped.includes(waiting));
    for (const waiting of dropped) waiting.failed(new HyperMeshError('cancelled', why));
    // Whoever stood behind a large request may fit now.
    if (!this.#closed) this.#serve();
  }

  async #refreshStorage(atOnce: boolean): Promise<void> {
    const now = this.#clock.nowMs();
    if (this.#readStorage === undefined) return;
    if (!atOnce && now - this.#storageReadAtMs < STORAGE_AGE_MS_MAX) return;
    this.#storageReadAtMs = now;
    try {
      this.#capacity = { ...this.#capacity, storageBytes: await this.#readStorage() };
    } catch (error) {
      throw storageError(error, 'asking for the free space of the home');
    }
  }

  /** Only while somebody waits: an expired lease is noticed by every call anyway. */
  #wakeAtExpiry(now: number): void {
    clearTimeout(this.#expiry);
    this.#expiry = undefined;
    if (this.#queue.length === 0) return;
    let first = Number.POSITIVE_INFINITY;
    for (const { lease } of this.#leases.values()) first = Math.min(first, lease.expiresAtMs);
    if (!Number.isFinite(first)) return;
    this.#expiry = setTimeout(() => this.#serve(), Math.max(1, first - now)).unref();
  }
}

function diskFull({ operation, storageBytes }: ResourceRequest, free: number): HyperMeshError {
  return new HyperMeshError(
    'storage-full',
    `${operation} needs ${storageBytes} bytes of the disk, which has ${free} free.`,
    {
      hint: 'Free some space, or run `hypermesh gc`, and try again; nothing was begun.',
      details: { asked: storageBytes, free },
    },
  );
}

function effectiveLevel({ request, sinceMs }: Waiting, nowMs: number): number {
  const base = PRIORITIES.indexOf(request.priority);
  return Math.min(PRIORITIES.length - 1, base + Math.max(0, Math.floor((nowMs - sinceMs) / AGING_MS)));
}

function emptySum(): Sum {
  return { cpuCores: 0, memoryBytes: 0, storageBytes: 0, leases: 0 };
}

function add(sum: Sum, request: ResourceRequest, sign: 1 | -1): void {
  sum.leases += sign;
  // With nothing leased the sum of fractions is zero, whatever rounding left.
  sum.cpuCores = sum.leases === 0 ? 0 : sum.cpuCores + sign * request.cpuCores;
  sum.memoryBytes += sign * request.memoryBytes;
  sum.storageBytes += sign * request.storageBytes;
}

function cancelled(): HyperMeshError {
  return new HyperMeshError('cancelled', 'The caller gave up before the end.');
}
