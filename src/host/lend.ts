import { type Clock, systemClock } from '../base/clock.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import {
  CAPABILITY_NAMES,
  type Capabilities,
  type CapabilityName,
  type ExtensionLimits,
} from '../capabilities/extension.ts';
import type { Monitoring } from '../capabilities/monitoring.ts';
import { type Crossing, crossingsOf } from './crossings.ts';
import { isAsyncIterable, plainCopy } from './plain.ts';

export interface LendOptions {
  /** Id of the borrower: calls are counted and errors named after it. */
  readonly extension: string;
  readonly limits: Pick<ExtensionLimits, 'concurrentCalls' | 'callsPerSecond' | 'callTimeoutMs'>;
  /** Counts calls as `extension.calls`. */
  readonly monitoring?: Pick<Monitoring, 'report'>;
  readonly clock?: Clock;
}

/** What one extension holds of the host, and the host's end of the string. */
export interface Loan<Names extends CapabilityName = CapabilityName> {
  /** Frozen, without prototype; its enumerable members are exactly what was granted, touching another throws `capability-not-granted`. */
  readonly lent: Pick<Capabilities, Names>;
  /** Calls that are being worked on. */
  readonly active: number;
  /** Takes everything back: calls under way fail now, streams at their next step, new calls always. Safe to repeat. */
  revoke(why: string): void;
}

/**
 * Lends `names` out of `capabilities`. Each member is a thin wrapper that checks revocation and quota on every call and every step of a stream,
 * passes `signal` on, copies plain data in and out, counts, and attributes errors.
 * Errors of the members, beside their own: `capability-not-granted`, `quota-exceeded`, `timeout`, `extension-invalid`.
 */
export function lend<const Names extends CapabilityName>(
  capabilities: Partial<Capabilities>,
  names: readonly Names[],
  options: LendOptions,
): Loan<Names> {
  const account = new Account(options);
  const lent: object = Object.create(null);
  for (const name of CAPABILITY_NAMES) {
    const capability = names.some((granted) => granted === name) ? capabilities[name] : undefined;
    Object.defineProperty(
      lent,
      name,
      capability === undefined
        ? { enumerable: false, get: () => refuse(options.extension, name) }
        : { enumerable: true, value: wrap(account, name, capability) },
    );
  }
  return {
    lent: Object.freeze(lent) as Pick<Capabilities, Names>,
    get active() {
      return account.active;
    },
    revoke: (why) => account.revoke(why),
  };
}

function refuse(extension: string, name: string): never {
  throw notGranted(extension, name);
}

export function notGranted(extension: string, name: string): HyperMeshError {
  return new HyperMeshError('capability-not-granted', `${extension} uses ${name}, which this node does not grant it.`, {
    hint: `List ${name} in the extension's needs and in the operator's grants.`,
    details: { extension, capability: name },
  });
}

type Method = (...args: unknown[]) => unknown;

function wrap(account: Account, name: CapabilityName, capability: object): object {
  const member: Record<string, Method> = Object.create(null);
  for (const [method, crossing] of crossingsOf(name)) {
    const where = `${name}.${method}`;
    const real = ((capability as Record<string, unknown>)[method] as Method).bind(capability);
    member[method] = Object.freeze(
      crossing.kind === 'stream' || crossing.kind === 'live'
        ? (...args: unknown[]) => account.stream(where, crossing, real, args)
        : (...args: unknown[]) => account.call(where, crossing, real, args),
    );
  }
  return Object.freeze(member);
}

/** One call or stream under way. */
interface Visit {
  /** Rejects when the visit must end before the work does. */
  readonly ended: Promise<never>;
  readonly args: unknown[];
  readonly stop: (error: HyperMeshError) => void;
  readonly leave: () => void;
}

/** What one borrower has used and may still use. */
class Account {
  readonly #options: LendOptions;
  readonly #clock: Clock;
  readonly #visits = new Set<Visit>();
  #revoked: string | null = null;
  #tokens: number;
  #filledAtMs: number;
  /** Work that outlived its caller's patience still occupies its place. */
  #working = 0;

  constructor(options: LendOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#tokens = options.limits.callsPerSecond;
    this.#filledAtMs = this.#clock.nowMs();
  }

  get active(): number {
    return this.#working;
  }

  revoke(why: string): void {
    if (this.#revoked !== null) return;
    this.#revoked = why;
    for (const visit of [...this.#visits]) visit.stop(this.#takenBack());
  }

  async call(where: string, crossing: Crossing, real: Method, args: unknown[]): Promise<unknown> {
    const visit = this.#enter(where, crossing, args);
    const { callTimeoutMs } = this.#options.limits;
    const timer = crossing.kind === 'call' ? setTimeout(() => visit.stop(this.#late(where)), callTimeoutMs) : undefined;
    try {
      const work = perform(real, visit.args);
      work.then(visit.leave, visit.leave);
      const result = plainCopy(await Promise.race([work, visit.ended]), where);
      // Taken back while the answer was on its way: it must not arrive.
      this.#checkRevoked();
      this.#count(where, 'ok');
      return result;
    } catch (error) {
      this.#count(where, 'error');
      throw this.#attribute(where, error);
    } finally {
      clearTimeout(timer);
      this.#visits.delete(visit);
    }
  }

  stream(where: string, crossing: Crossing, real: Method, args: unknown[]): AsyncIterable<unknown> {
    this.#checkRevoked();
    const steps = () => this.#steps(where, crossing, real, args);
    return Object.freeze({ [Symbol.asyncIterator]: steps });
  }

  async *#steps(where: string, crossing: Crossing, real: Method, args: unknown[]): AsyncGenerator<unknown, void> {
    const visit = this.#enter(where, crossing, args);
    const { callTimeoutMs } = this.#options.limits;
    let source: AsyncIterator<unknown> | undefined;
    let outcome: 'ok' | 'error' = 'ok';
    try {
      source = (real(...visit.args) as AsyncIterable<unknown>)[Symbol.asyncIterator]();
      while (true) {
        const timer =
          crossing.kind === 'stream' ? setTimeout(() => visit.stop(this.#late(where)), callTimeoutMs) : undefined;
        const step = await Promise.race([source.next(), visit.ended]).finally(() => clearTimeout(timer));
        this.#checkRevoked();
        if (step.done === true) return;
        yield plainCopy(step.value, where);
        this.#checkRevoked();
      }
    } catch (error) {
      outcome = 'error';
      throw this.#attribute(where, error);
    } finally {
      this.#visits.delete(visit);
      visit.leave();
      this.#count(where, outcome);
      // Not waited for: a source that is stuck in a step would hold the borrower too.
      source?.return?.()?.catch(() => {});
    }
  }

  #enter(where: string, crossing: Crossing, args: unknown[]): Visit {
    this.#checkRevoked();
    this.#takeToken(where);
    const { concurrentCalls } = this.#options.limits;
    if (this.#working >= concurrentCalls) throw this.#exceeded(where, `${concurrentCalls} calls at a time`);
    const controller = new AbortController();
    const crossed = crossArguments(where, crossing, args, controller);
    const { promise: ended, reject } = Promise.withResolvers<never>();
    ended.catch(() => {});
    const visit: Visit = {
      ended,
      args: crossed.args,
      stop: (error) => {
        reject(error);
        controller.abort(error);
      },
      leave: () => {
        crossed.unlink();
        this.#working -= 1;
      },
    };
    this.#working += 1;
    this.#visits.add(visit);
    return visit;
  }

  /** A bucket that holds one second's worth of calls. */
  #takeToken(where: string): void {
    const { callsPerSecond } = this.#options.limits;
    const nowMs = this.#clock.nowMs();
    const earned = (Math.max(0, nowMs - this.#filledAtMs) / 1_000) * callsPerSecond;
    this.#tokens = Math.min(callsPerSecond, this.#tokens + earned);
    this.#filledAtMs = nowMs;
    if (this.#tokens < 1) throw this.#exceeded(where, `${callsPerSecond} calls per second`);
    this.#tokens -= 1;
  }

  #checkRevoked(): void {
    if (this.#revoked !== null) throw this.#takenBack();
  }

  #takenBack(): HyperMeshError {
    const { extension } = this.#options;
    return new HyperMeshError(
      'capability-not-granted',
      `What was lent to ${extension} was taken back: ${this.#revoked}.`,
      {
        details: { extension },
      },
    );
  }

  #late(where: string): HyperMeshError {
    const { extension, limits } = this.#options;
    return new HyperMeshError('timeout', `${where} for ${extension} took longer than ${limits.callTimeoutMs} ms.`, {
      details: { extension },
    });
  }

  #exceeded(where: string, limit: string): HyperMeshError {
    const { extension } = this.#options;
    this.#count(where, 'refused');
    return new HyperMeshError('quota-exceeded', `${extension} may make ${limit}; ${where} was one too many.`, {
      hint: 'Try again in a moment, make fewer calls at once, or raise the limit of the extension.',
      details: { extension },
    });
  }

  #count(where: string, outcome: 'ok' | 'error' | 'refused'): void {
    const { extension, monitoring } = this.#options;
    // Counting the calls that count would never end.
    if (monitoring === undefined || where.startsWith('monitoring.')) return;
    monitoring
      .report({ name: 'extension.calls', kind: 'counter', value: 1, tags: { extension, capability: where, outcome } })
      .catch(() => {});
  }

  /** A coded error is the borrower's to handle; anything else is the host's defect and is named as such. */
  #attribute(where: string, error: unknown): unknown {
    if (isCoded(error)) return error;
    if ((error as Error | null)?.name === 'AbortError') {
      return new HyperMeshError('cancelled', `${where} was cancelled.`, { cause: error });
    }
    return new HyperMeshError('internal', `${where} failed for ${this.#options.extension}.`, { cause: error });
  }
}

async function perform(real: Method, args: unknown[]): Promise<unknown> {
  return real(...args);
}

function crossArguments(
  where: string,
  crossing: Crossing,
  args: unknown[],
  controller: AbortController,
): { args: unknown[]; unlink(): void } {
  let unlink = (): void => {};
  const crossed = args.map((arg, index) => {
    if (index === crossing.options) return undefined;
    const what = `${where}, argument ${index + 1}`;
    return index === crossing.content ? bytes(what, arg) : plainCopy(arg, what);
  });
  if (crossing.options !== undefined) {
    const given = args[crossing.options] as { signal?: unknown; onProgress?: unknown } | undefined;
    const { signal, onProgress, ...rest } = given ?? {};
    if (signal !== undefined && !(signal instanceof AbortSignal)) {
      throw new HyperMeshError('extension-invalid', `${where}: expected an AbortSignal as signal.`);
    }
    if (onProgress !== undefined && typeof onProgress !== 'function') {
      throw new HyperMeshError('extension-invalid', `${where}: expected a function as onProgress.`);
    }
    if (signal?.aborted) controller.abort(signal.reason);
    const forward = () => controller.abort(signal?.reason);
    signal?.addEventListener('abort', forward, { once: true });
    unlink = () => signal?.removeEventListener('abort', forward);
    crossed[crossing.options] = {
      ...(plainCopy(rest, `${where}, options`) as object),
      signal: controller.signal,
      ...(onProgress === undefined
        ? {}
        : { onProgress: (progress: unknown) => void onProgress(plainCopy(progress, `${where}, progress`)) }),
    };
  }
  return { args: crossed, unlink: () => unlink() };
}

async function* bytes(where: string, content: unknown): AsyncGenerator<Uint8Array, void> {
  if (!isAsyncIterable(content)) {
    throw new HyperMeshError('extension-invalid', `${where}: expected an async iterable of Uint8Array.`);
  }
  for await (const piece of content) {
    if (!(piece instanceof Uint8Array)) {
      throw new HyperMeshError('extension-invalid', `${where}: expected pieces that are Uint8Array.`);
    }
    yield piece;
  }
}
