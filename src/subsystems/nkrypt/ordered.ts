import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { fromProblem, HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { CLOCK_TYPE, type ClockStatement, encodeEntry } from '../../wire/entry.ts';
import type { Ledger, Refusal } from './ledger/ledger.ts';
import { Order, type OrderLent, type OrderOptions } from './order/order.ts';
import { rest } from './order/rest.ts';
import type { LedgerOffice, OfficeAccount } from './own-account.ts';
import type { Store } from './store.ts';

/** How often a validator looks whether an unbonding waits for its clock, and whether a move that was approved has happened. */
const LOOK_MS = 15_000;
/** How long somebody waits for this validator's clock: without it his tokens answer for a little longer, and nothing else is different. */
const CLOCK_MS = 1_000;

export interface OrderedLent {
  readonly trust: Pick<Trust, 'attest' | 'attested'>;
  readonly store: Store;
  readonly ledger: Ledger;
  readonly ask: OrderLent['ask'];
  readonly caught: OrderLent['caught'];
}

/** The order of the network in the home of a validator: its ledger goes on with the log, and it tells its clock where somebody waits for it. */
export class OrderedHome implements LedgerOffice, AsyncDisposable {
  readonly #trust: OrderedLent['trust'];
  readonly #ledger: Ledger;
  /** What others ask, and what becomes of the engine. */
  readonly order: Order;
  readonly #clock: Clock;
  readonly #networkId: Digest;
  readonly #self: string;
  readonly #timer: NodeJS.Timeout;
  #telling: Promise<void> | undefined;

  /** `self`: key id of this home's validator. */
  constructor({ trust, store, ledger, ask, caught }: OrderedLent, options: OrderOptions & { readonly clock: Clock }) {
    this.#trust = trust;
    this.#ledger = ledger;
    this.#clock = options.clock;
    this.#networkId = options.networkId;
    this.#self = options.self;
    this.order = new Order({ store, state: ledger, trust, ask, caught }, options);
    this.order.start();
    this.#timer = setInterval(() => {
      void this.#tellClock().catch(() => undefined);
      void this.order.pursue().catch(() => undefined);
    }, LOOK_MS);
    this.#timer.unref();
  }

  async submit(entry: Uint8Array, options: CallOptions = {}): Promise<void> {
    const { outcome } = await this.order.submit(entry, options);
    // The cast: the ledger says nothing else.
    const refusal = outcome as Refusal | null;
    if (refusal !== null) throw fromProblem(refusal);
    await this.#tellClock();
  }

  async account(account: string): Promise<OfficeAccount> {
    if (this.#ledger.account(account).unbonding.length > 0) await this.#tellClock();
    return this.#ledger.account(account);
  }

  async ownerOf(name: string): Promise<string | null> {
    return this.#ledger.ownerOf(name) ?? null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await this.order[Symbol.asyncDispose]();
    await this.#telling;
  }

  /** Not an error when it cannot be told now, or not at once: the timer tries again. */
  async #tellClock(): Promise<void> {
    if (!this.#isAwaited()) return;
    this.#telling ??= this.#tell()
      .catch((error: unknown) => {
        if (!isCoded(error)) throw error;
      })
      .finally(() => {
        this.#telling = undefined;
      });
    const moment = new AbortController();
    await Promise.race([this.#telling, rest(CLOCK_MS, moment.signal)]);
    moment.abort();
  }

  #isAwaited(): boolean {
    const { validators } = this.#ledger.committee();
    return (
      validators.some(({ key }) => key === this.#self) && this.#ledger.isClockAwaited(this.#self, this.#clock.nowMs())
    );
  }

  async #tell(): Promise<void> {
    const { digest } = this.#ledger.committee();
    const statement: ClockStatement = {
      ...{ networkId: this.#networkId, committee: digest, validator: this.#self },
      atMs: this.#clock.nowMs(),
    };
    const attestation = await this.#trust.attest(CLOCK_TYPE, statement);
    const entry = encodeEntry({
      ...{ formatVersion: 1, networkId: this.#networkId, kind: 'clock' },
      ...{ statement, attestation },
    });
    await this.order.submit(entry);
  }
}

/** Nobody can be asked: alone, there is nobody. */
export function nobodyToAsk(): Promise<Json> {
  return Promise.reject(new HyperMeshError('peer-unreachable', 'The validators of the network cannot be asked now.'));
}
