import type { CallOptions } from '../../../base/call.ts';
import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { canonicalJson, type Json } from '../../../base/json.ts';
import type { SqliteStore } from '../../../base/sqlite.ts';
import type { SequencerInfo } from '../../../capabilities/membership.ts';
import {
  encodeEntry,
  type RecoveryPlace,
  SEQUENCER_TYPE,
  type SequencerPlace,
  type SequencerStatement,
} from '../../../wire/entry.ts';
import { quorumOf } from '../../../wire/genesis.ts';
import { type ByQuorum, decodeOrderRequest, type OrderMethod, type OrderRequest } from '../../../wire/order.ts';
import { Allowance } from './allowance.ts';
import { type MoveApproval, MoveApprovals } from './approvals.ts';
import { EmbeddedSequencer } from './embedded.ts';
import type { EtcdAccess } from './etcd-client.ts';
import { heard, PATIENCE_MS } from './heard.ts';
import { type LogLent, OrderedLog, type OrderedState } from './log.ts';
import type { Submitted } from './log-store.ts';
import { RemoteSequencer, serveSequencer } from './remote.ts';
import type { Sequencer } from './sequencer.ts';

export interface OrderLent {
  readonly store: SqliteStore;
  /** In the same database: what is applied is applied in the transaction of the log. */
  readonly state: OrderedState;
  readonly trust: LogLent['trust'];
  /** Asks the validator with that key id. Errors: `peer-unreachable`, `timeout`, and what it refuses with. */
  ask(
    validator: string,
    method: OrderMethod,
    body: Json,
    options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs: number },
  ): Promise<unknown>;
  /** {@link LogLent.caught} */
  readonly caught: LogLent['caught'];
}

export interface OrderOptions {
  readonly networkId: Digest;
  /** Key id of this home's validator. */
  readonly self: string;
  /** How many entries make another snapshot. */
  readonly snapshotEntries?: number | undefined;
  /** How long who hangs is waited for where others can do without him. */
  readonly patienceMs?: number | undefined;
  /** How this machine gets into a cluster of etcd; the order says where it is. */
  readonly etcd?: Omit<EtcdAccess, 'endpoints'> | undefined;
}

export interface MoveOptions extends CallOptions {
  readonly recover?: boolean | undefined;
}

const ASK_MS = 15_000;
/**
 * What one validator may have in the engine of this home: what four certificates cover, so that others wait for no more. An honest one, which brings certificates of what was admitted,
 * parts of a handover one after the other, and what members ask of it, waits only when it has a hundred certificates a second.
 */
const OF_VALIDATOR = { entriesMax: 512, bytesMax: 8 * 2 ** 20, runningMax: 512, heldMs: 10_000 };
/** So many views ahead of its own this validator follows others at once: a liar does not use up all there are. */
const VIEWS_MAX = 1_000_000;

/** The order of this home's network and the state that follows from it: the log, its engine, and what others ask about both. */
export class Order implements AsyncDisposable {
  readonly #lent: OrderLent;
  readonly #options: OrderOptions;
  readonly #log: OrderedLog;
  readonly #state: OrderedState;
  readonly #patienceMs: number;
  /** Orders that are, or were, made in this home: by name. */
  readonly #own = new Map<string, EmbeddedSequencer>();
  readonly #approvals: MoveApprovals;
  #rethinking: Promise<void> | undefined;
  #isThinkingAgain = false;
  readonly #allowance = new Allowance(OF_VALIDATOR);

  constructor(lent: OrderLent, options: OrderOptions) {
    this.#lent = lent;
    this.#options = options;
    this.#state = lent.state;
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS;
    this.#approvals = new MoveApprovals(lent.store);
    this.#log = new OrderedLog(
      {
        ...{ store: lent.store, state: this.#state, trust: lent.trust },
        caught: lent.caught,
        engine: (place, log) => this.#engine(place, log),
        ask: (seat, method, body) => lent.ask(seat.key, method, body, { timeoutMs: ASK_MS }),
      },
      { ...options, patienceMs: this.#patienceMs },
    );
  }

  start(): void {
    this.#log.start();
    void this.pursue().catch(() => undefined);
  }

  /**
   * Puts an entry into the order and says what became of it. Safe to repeat: one entry counts once.
   * Errors: `sequencer-unreachable`, `timeout` (it may still happen), `order-stopped`, `limit-exceeded`, `cancelled`, `storage-*`.
   */
  submit(entry: Uint8Array, options: CallOptions = {}): Promise<Submitted> {
    return this.#log.submit(entry, options);
  }

  /** Waits for what others know already. {@link OrderedLog.until} */
  until(holds: () => boolean, ms: number): Promise<void> {
    return this.#log.until(holds, ms);
  }

  status(): SequencerInfo {
    const { moves } = this.#log.engine();
    const needed = quorumOf(this.#state.committee().validators.length);
    const words = this.#pending().map(({ statement: { to, after }, attestation: { validator } }) => ({
      validator,
      about: { to, after: after?.index ?? null },
    }));
    // In which view is between the validators.
    const approved = [...Map.groupBy(words, ({ about }) => canonicalJson(about)).values()].map((alike) => ({
      ...{ ...alike[0]!.about, needed },
      by: alike.map(({ validator }) => validator),
    }));
    return { ...this.#log.status(), networkId: this.#options.networkId, moves, approved };
  }

  /**
   * Approves, for this validator, that the network moves to another engine. It does as soon as a quorum approved the same. Safe to repeat.
   * `recover`: although the engine that it has is lost, and cannot be the one to say so.
   * Errors: `not-permitted`, `usage`, `config-invalid`, `order-stopped`, and those of {@link submit}.
   */
  async move(to: SequencerPlace, { recover = false, ...options }: MoveOptions = {}): Promise<SequencerInfo> {
    const { self, networkId } = this.#options;
    const { digest, validators } = this.#state.committee();
    const { moves } = this.#state.engine();
    if (!validators.some(({ key }) => key === self)) throw seatless();
    if (canonicalJson(this.#state.engine().place) === canonicalJson(to)) return this.status();
    if (canonicalJson(this.#log.engine().place) === canonicalJson(to)) {
      // A quorum approved it, and its entry is to be brought.
      await this.pursue(options);
      return this.status();
    }
    if (recover) await this.#checkLost(options);
    if (to.kind === 'embedded' && !validators.some(({ key }) => key === to.validator)) {
      throw new HyperMeshError(
        'usage',
        'The home of the engine has to be that of a validator of the present committee.',
      );
    }
    // That this machine could use it: what nobody can reach is better not chosen.
    await using engine = this.#engine(to, `${networkId.slice(7)}-${moves + 1}`);
    if (to.kind === 'etcd') await engine.read(0, { signal: options.signal });
    if (recover) await this.#approveRecovery(to);
    else await this.#approve({ networkId, committee: digest, moves, to });
    await this.pursue(options);
    return this.status();
  }

  /**
   * What was approved and did not happen yet: what this validator approved is told again, because others may have been away, and what a quorum approved is
   * brought into the order. Safe to repeat; with nothing approved it does nothing. Errors: those of {@link submit}.
   */
  async pursue(options: CallOptions = {}): Promise<void> {
    await this.#tell(await this.#renewed(true), options);
    await this.#moveIfApproved(options);
  }

  /**
   * What this validator approved, as long as it can happen; after a loss anew where that is what its operator wanted: when the order has to go on from another place, or others approved
   * another view; and when the next committee is in office, because the last entry before that place opened its epoch.
   */
  async #renewed(isLate: boolean): Promise<MoveApproval | undefined> {
    const own = this.#ownPending();
    if (own === undefined) return this.#renewedInOffice();
    return own.statement.after === undefined ? own : this.#approveRecovery(own.statement.to, isLate);
  }

  async #renewedInOffice(): Promise<MoveApproval | undefined> {
    const { self, networkId } = this.#options;
    const { validators } = this.#state.committee();
    const { applied, head } = this.#log.status();
    const { statement } = this.#approvals.all().find(({ attestation }) => attestation.validator === self) ?? {};
    if (statement?.after?.index !== applied || statement.after.head !== head) return undefined;
    const sit = new Set(validators.map(({ key }) => key));
    const { to, moves } = statement;
    const isGood = sit.has(self) && (to.kind !== 'embedded' || sit.has(to.validator));
    if (!isGood || statement.networkId !== networkId || moves !== this.#state.engine().moves) return undefined;
    return this.#approveRecovery(to);
  }

  /**
   * Approves that the order goes on there after a loss, in a view that others approved for the same place if there is one. Each view that this validator approves is higher than the ones
   * before, and those that can hear each other end with one: places only get further; nobody goes up from a view alone that a quorum has not come up to; and who is in a quorum leaves it
   * for a higher view only with others, or when it is late, because one that has gone higher cannot come back.
   */
  async #approveRecovery(to: SequencerPlace, isLate = false): Promise<MoveApproval | undefined> {
    const { networkId } = this.#options;
    const place = await this.#log.settle();
    const { digest, validators } = this.#state.committee();
    const { moves } = this.#state.engine();
    const needed = quorumOf(validators.length);
    const own = this.#ownPending();
    const present = own?.statement.after;
    const views = this.#pending()
      .filter(({ statement }) => canonicalJson(statement.to) === canonicalJson(to))
      .flatMap(({ statement: { after } }) => (after === undefined ? [] : [after]));
    const isThere =
      own !== undefined &&
      present !== undefined &&
      isSamePlace(present, place) &&
      canonicalJson(own.statement.to) === canonicalJson(to);
    if (isThere) {
      const isEnough = views.filter((one) => canonicalJson(one) === canonicalJson(present)).length >= needed;
      const isReached = views.filter(({ view }) => view >= present.view).length >= needed;
      const isPassed = views.filter(({ view }) => view > present.view).length > validators.length - needed;
      if (!isPassed && (isEnough ? !isLate : !isReached)) return own;
    }
    const least = Math.max(this.#log.nextView(place), (present?.view ?? 0) + 1);
    const joined = views
      .filter((one) => isSamePlace(one, place) && one.view >= least && one.view <= least + VIEWS_MAX)
      .map(({ view }) => view);
    const support = (view: number) => joined.filter((one) => one === view).length;
    const [view] = joined.sort((a, b) => (isThere ? 0 : support(b) - support(a)) || a - b);
    if (isThere && view === undefined) return own;
    const after = { view: view ?? least, ...place };
    // Somebody was quicker: this is looked at again.
    if (!this.#log.bind(after)) return own;
    return this.#approve({ networkId, committee: digest, moves, to, after });
  }

  #ownPending(): MoveApproval | undefined {
    return this.#pending().find(({ attestation }) => attestation.validator === this.#options.self);
  }

  /** Whoever knows enough approvals brings them; the others find the move done. */
  async #heardOf(other: MoveApproval, isNews: boolean): Promise<void> {
    const own = this.#ownPending();
    const isRecovery = own?.statement.after !== undefined && other.statement.after !== undefined;
    if (isNews && isRecovery && canonicalJson(own.statement) !== canonicalJson(other.statement)) await this.#rethink();
    // He may have been away, or behind, when he was told.
    if (own !== undefined && isNews) {
      const { validator } = other.attestation;
      void this.#lent
        .ask(validator, 'order/approve', own as unknown as Json, { timeoutMs: ASK_MS })
        .catch(() => undefined);
    }
    await this.#moveIfApproved({});
  }

  /** One at a time, however much is heard meanwhile. */
  async #rethink(): Promise<void> {
    if (this.#rethinking !== undefined) {
      this.#isThinkingAgain = true;
      return this.#rethinking;
    }
    this.#rethinking = (async () => {
      do {
        this.#isThinkingAgain = false;
        await this.#tell(await this.#renewed(false), {});
      } while (this.#isThinkingAgain);
    })().finally(() => {
      this.#rethinking = undefined;
    });
    return this.#rethinking;
  }

  async #approve(statement: SequencerStatement): Promise<MoveApproval> {
    const attestation = await this.#lent.trust.attest(SEQUENCER_TYPE, statement);
    // Commit point: before anybody hears of it.
    this.#approvals.put({ statement, attestation });
    return { statement, attestation };
  }

  /** Whoever is away, or hangs, is told later. */
  async #tell(own: MoveApproval | undefined, options: CallOptions): Promise<void> {
    if (own === undefined) return;
    const { validators } = this.#state.committee();
    const asked = validators
      .filter(({ key }) => key !== this.#options.self)
      .map(({ key }) =>
        this.#lent.ask(key, 'order/approve', own as unknown as Json, { timeoutMs: ASK_MS, ...options }),
      );
    await heard(asked, { enough: quorumOf(validators.length) - 1, patienceMs: this.#patienceMs });
  }

  /**
   * An engine that is there, and with which nothing is wrong, is moved from as always; unless that was tried, because one that lies can keep back just the entry which moves away
   * from it. A recovery that was not needed does no harm. Errors: `usage`.
   */
  async #checkLost({ signal }: CallOptions): Promise<void> {
    const { trouble, split } = this.#log.status();
    const isTried = this.#ownPending() !== undefined;
    if (trouble !== null || split.length > 0 || isTried) return;
    const { place, name } = this.#log.engine();
    // One that says nothing for so long may be taken for lost, if the operators of a quorum say so.
    const ends = AbortSignal.any([AbortSignal.timeout(this.#patienceMs), ...(signal === undefined ? [] : [signal])]);
    try {
      await using engine = this.#engine(place, `${this.#options.networkId.slice(7)}-${name}`);
      await engine.read(0, { signal: ends });
    } catch (error) {
      if (isCoded(error)) return;
      throw error;
    }
    throw new HyperMeshError('usage', 'The engine of the order answers: nothing has to be recovered.', {
      hint: 'Move from it instead: the same command without --recover. Where that does not happen, although a quorum approved it, this one is taken.',
    });
  }

  /** Answers a member of the network. `publisher`: its key id, as the channel proved it. Errors: `not-permitted`, `order-invalid`, and those of the log. */
  async answer(method: OrderMethod, publisher: string, body: unknown, { signal }: CallOptions = {}): Promise<Json> {
    switch (method) {
      case 'order/votes': {
        const seat = this.#seatOf(publisher);
        return (await this.#log.exchange(body, seat)) as unknown as Json;
      }
      case 'order/part':
        return this.#log.part(decodeOrderRequest(method, body).after) as unknown as Json;
      case 'order/tail':
        this.#seatOf(publisher);
        return this.#log.tail(decodeOrderRequest(method, body).after) as unknown as Json;
      case 'order/snapshot':
        return this.#log.snapshot(decodeOrderRequest(method, body).epoch) as unknown as Json;
      case 'order/facts': {
        const { base, after }: OrderRequest<typeof method> = decodeOrderRequest(method, body);
        return this.#log.facts(base, after) as unknown as Json;
      }
      case 'order/approve': {
        const key = this.#seatOf(publisher);
        const { statement, attestation } = decodeOrderRequest(method, body);
        const { validators } = this.#state.committee();
        const seat = validators.find((one) => one.key === attestation.validator && one.key === key);
        if (seat === undefined || !(await this.#lent.trust.attested(attestation, SEQUENCER_TYPE, statement, seat))) {
          throw new HyperMeshError('not-permitted', 'The approval is not by the validator that brings it.');
        }
        const isNews = !this.#approvals.has({ statement, attestation });
        this.#approvals.put({ statement, attestation });
        void this.#heardOf({ statement, attestation }, isNews).catch(() => undefined);
        return {};
      }
      case 'sequence/append':
      case 'sequence/read':
      case 'sequence/length': {
        const seat = this.#seatOf(publisher);
        return serveSequencer((log) => this.#served(log, seat), method, body, signal);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#log[Symbol.asyncDispose]();
    for (const engine of this.#own.values()) await engine[Symbol.asyncDispose]();
  }

  /** Approvals by the present committee for the present number of moves, one of each validator at most. */
  #pending(): readonly MoveApproval[] {
    const { networkId } = this.#options;
    const { digest, validators } = this.#state.committee();
    const { moves } = this.#state.engine();
    const seats = new Set(validators.map(({ key }) => key));
    return this.#approvals.all().filter(({ statement, attestation }) => {
      const isPresent = statement.committee === digest && statement.moves === moves;
      return isPresent && statement.networkId === networkId && seats.has(attestation.validator);
    });
  }

  /** What a quorum of them approved. */
  #approved(): readonly ByQuorum<SequencerStatement>[] {
    const { validators } = this.#state.committee();
    return Map.groupBy(this.#pending(), ({ statement }) => canonicalJson(statement))
      .values()
      .filter((alike) => alike.length >= quorumOf(validators.length))
      .map((alike) => ({
        statement: alike[0]!.statement,
        attestations: alike.map(({ attestation }) => attestation),
      }))
      .toArray();
  }

  async #moveIfApproved(options: CallOptions): Promise<void> {
    const { networkId } = this.#options;
    const approved = this.#approved();
    for (const one of approved) this.#log.recover(one);
    const moves = approved.filter(({ statement }) => statement.after === undefined);
    // Of several recoveries the last one; also one that others told this home of.
    for (const { statement, attestations } of [this.#log.recovery(), ...moves].filter((one) => one !== undefined)) {
      await this.#log.submit(
        encodeEntry({ formatVersion: 1, networkId, kind: 'sequencer', statement, attestations }),
        options,
      );
    }
  }

  /** Errors: `config-invalid`. */
  #engine(place: SequencerPlace, log: string): Sequencer {
    if (place.kind === 'etcd') {
      const access = { ...this.#options.etcd, endpoints: place.endpoints };
      // Few homes ever need its code, and the sockets' that it needs.
      return late(async () => new (await import('./etcd.ts')).EtcdSequencer(access, log));
    }
    if (place.validator !== this.#options.self) {
      return new RemoteSequencer(
        (method, body, options) => this.#lent.ask(place.validator, method, body, options),
        log,
      );
    }
    const known = this.#own.get(log);
    if (known !== undefined) return borrowed(known);
    const engine = new EmbeddedSequencer(this.#lent.store, log);
    this.#own.set(log, engine);
    return borrowed(engine);
  }

  /** The engine of that name in this home. It is not there before this home has applied the entry that made it so: `sequencer-unreachable`. */
  #present(log: string): Sequencer {
    const { name, place } = this.#log.engine();
    const isPresent = log === `${this.#options.networkId.slice(7)}-${name}`;
    if (place.kind === 'embedded' && place.validator === this.#options.self && isPresent) {
      this.#engine(place, log);
    }
    const engine = this.#own.get(log);
    if (engine !== undefined && log.startsWith(this.#options.networkId.slice(7))) return engine;
    throw new HyperMeshError('sequencer-unreachable', 'This home does not have the engine of that order (yet).');
  }

  /** The same as a validator may use it: what nobody needs any more of an order that went on elsewhere counts for good. */
  #served(log: string, seat: string): Sequencer {
    const engine = this.#present(log);
    const isOpen = (position: number) => {
      const { name, origin } = this.#log.engine();
      const isPresent = log === `${this.#options.networkId.slice(7)}-${name}`;
      return !isPresent || position > this.#log.status().applied - origin;
    };
    return {
      ...borrowed(engine),
      append: (entry, options) =>
        this.#allowance.take(`${seat} ${log}`, entry.length, () => engine.append(entry, options), isOpen),
    };
  }

  /** Errors: `not-permitted`. */
  #seatOf(publisher: string): string {
    const seat = this.#state.committee().validators.find(({ account }) => account === publisher);
    if (seat !== undefined) return seat.key;
    throw seatless();
  }
}

function isSamePlace(one: Omit<RecoveryPlace, 'view'>, other: Omit<RecoveryPlace, 'view'>): boolean {
  return one.index === other.index && one.head === other.head;
}

/** An engine that is opened when it is used first. What is wrong with how it is reached is said by `append` and `read`. */
function late(open: () => Promise<Sequencer>): Sequencer {
  let opened: Promise<Sequencer> | undefined;
  const engine = () => (opened ??= open());
  return {
    append: async (...args) => (await engine()).append(...args),
    forget: async (...args) => (await engine()).forget(...args),
    read: async (...args) => (await engine()).read(...args),
    async *watch(after, signal) {
      const found = await engine().catch(() => undefined);
      if (found !== undefined) yield* found.watch(after, signal);
    },
    [Symbol.asyncDispose]: async () => (await opened?.catch(() => undefined))?.[Symbol.asyncDispose](),
  };
}

/** The same engine; who has it does not close it. */
function borrowed(engine: Sequencer): Sequencer {
  return {
    append: (...args) => engine.append(...args),
    read: (...args) => engine.read(...args),
    watch: (...args) => engine.watch(...args),
    forget: (...args) => engine.forget(...args),
    [Symbol.asyncDispose]: async () => undefined,
  };
}

function seatless(): HyperMeshError {
  return new HyperMeshError('not-permitted', 'Only the validators of the present committee make the order.');
}
