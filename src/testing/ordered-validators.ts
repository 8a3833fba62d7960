import { createHash } from 'node:crypto';
import { base64, fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { openSqlite, type SqliteStore } from '../base/sqlite.ts';
import { EMBEDDED_SCHEMA } from '../subsystems/nkrypt/order/embedded.ts';
import { type Fact, type LogLent, OrderedLog, type OrderedState } from '../subsystems/nkrypt/order/log.ts';
import { LOG_SCHEMA, RECOVERY_SCHEMA, SNAPSHOT_SCHEMA, VIEWS_SCHEMA } from '../subsystems/nkrypt/order/log-store.ts';
import type { Sequencer } from '../subsystems/nkrypt/order/sequencer.ts';
import type { Attestation } from '../wire/attestation.ts';
import type { SequencerPlace, SequencerStatement } from '../wire/entry.ts';
import type { Committee, Seat } from '../wire/epoch.ts';

export const NETWORK = digestOf(utf8('a network of tests'));

/** What the entries of these tests say. Everything else is text that is only counted. */
export type TestEntry =
  | { readonly committee: readonly number[] }
  /** `after`: because the engine that put that position into the order is lost. */
  | { readonly move: SequencerPlace; readonly after?: number }
  | string;

export function testEntry(entry: TestEntry): Uint8Array {
  return utf8(canonicalJson(entry));
}

/** Of the validators with these numbers. */
export function testCommittee(epoch: number, numbers: readonly number[]): Committee {
  return { epoch, validators: numbers.map(testSeat), digest: digestOf(utf8(canonicalJson([epoch, numbers]))) };
}

/** The seat of a validator by its number. Its keys are no keys: who knows the number can sign. */
export function testSeat(number: number): Seat {
  return { key: hex(keyOf(number)), falcon: '', ed25519: '', account: hex(keyOf(1_000 + number)) };
}

function numberOf({ key }: Seat): number {
  for (let number = 0; ; number += 1) if (testSeat(number).key === key) return number;
}

function keyOf(number: number): Uint8Array {
  return new Uint8Array(createHash('sha256').update(`validator ${number}`).digest());
}

function macOf(validator: string, type: string, statement: unknown): string {
  return base64(
    new Uint8Array(
      createHash('sha512')
        .update(`${validator} ${type} ${canonicalJson(statement)}`)
        .digest(),
    ),
  );
}

const NO_FALCON = base64(new Uint8Array(1_280));

/** A stand-in for signatures: cheap, and as deterministic as the tests want it. The true ones are in consensus.test.ts. */
export function testWord(validator: string, type: string, statement: unknown): Attestation {
  return {
    validator,
    ed25519: macOf(validator, type, statement),
    falcon: NO_FALCON,
    path: [],
    index: 0,
    size: 1,
  };
}

export function testWordHolds(word: Attestation, type: string, statement: unknown, seat: Seat): boolean {
  return word.validator === seat.key && word.ed25519 === macOf(seat.key, type, statement);
}

/** A state that knows what it is made of: a hash over everything that was applied, the committee and the engine. */
class TestState implements OrderedState {
  readonly #store: SqliteStore;
  readonly #learned: number[][] = [];
  #coming: Fact[] = [];

  constructor(store: SqliteStore, committee: readonly number[], place: SequencerPlace) {
    this.#store = store;
    const first = {
      root: '0'.repeat(64),
      epoch: 0,
      committee,
      past: [committee],
      moves: 0,
      place,
      origin: 0,
      seen: [],
    };
    this.#write(first, 'INSERT OR IGNORE');
  }

  committee() {
    const { epoch, committee } = this.#read();
    return testCommittee(epoch, committee);
  }

  heirs() {
    return this.#learned.slice(this.#read().past.length).flatMap((committee) => committee.map(testSeat));
  }

  engine() {
    const { moves, place, origin } = this.#read();
    return { moves, place, origin, name: String(moves) };
  }

  committeeOf(digest: Digest) {
    const { past } = this.#read();
    const known = Array.from({ length: Math.max(past.length, this.#learned.length) }, (_, epoch) =>
      testCommittee(epoch, past[epoch] ?? this.#learned[epoch]!),
    );
    return known.find((one) => one.digest === digest);
  }

  keep() {
    this.#write(this.#read(), 'INSERT OR REPLACE', 2);
  }

  /** One fact on each page. */
  kept(after: string) {
    const { root, ...rest } = this.#read(2);
    const all: Fact[] = [
      ['rest', JSON.stringify(rest)],
      ['root', root],
    ];
    const facts = all.filter(([key]) => key > after).slice(0, 1);
    return { facts, isLast: facts[0]?.[0] === 'root' };
  }

  documentsAfter(epoch: number) {
    return this.#read()
      .past.slice(epoch + 1)
      .map((committee) => [...committee]);
  }

  learn(documents: readonly unknown[]) {
    const { past } = this.#read();
    for (const document of documents) this.#learned[Math.max(past.length, this.#learned.length)] = document as number[];
    return Math.max(past.length, this.#learned.length) - 1;
  }

  receive(facts: readonly Fact[] | null) {
    this.#coming = facts === null ? [] : [...this.#coming, ...facts];
  }

  receivedRoot() {
    return new Map(this.#coming).get('root') ?? '';
  }

  replace() {
    const facts = new Map(this.#coming);
    const rest = JSON.parse(facts.get('rest')!) as Omit<State, 'root'>;
    this.#write({ ...rest, root: facts.get('root')! }, 'INSERT OR REPLACE');
    this.keep();
  }

  root(): string {
    return this.#read().root;
  }

  recovers(entry: Uint8Array, { to, after }: SequencerStatement): boolean {
    return fromUtf8(entry) === canonicalJson({ move: to, after: after!.index });
  }

  turns(entry: Uint8Array): boolean {
    return typeof JSON.parse(fromUtf8(entry)) !== 'string';
  }

  apply(entry: Uint8Array, index: number): Json {
    const state = this.#read();
    const text = fromUtf8(entry);
    if (state.seen.includes(text)) return null;
    const said = JSON.parse(fromUtf8(entry)) as TestEntry;
    if (typeof said !== 'string' && 'move' in said && (said.after ?? index - 1) !== index - 1) return null;
    const root = createHash('sha256')
      .update(`${state.root} ${index} ${fromUtf8(entry)}`)
      .digest('hex');
    const change =
      typeof said === 'string'
        ? {}
        : 'move' in said
          ? { moves: state.moves + 1, place: said.move, origin: index }
          : { epoch: state.epoch + 1, committee: said.committee, past: [...state.past, said.committee] };
    this.#write({ ...state, ...change, root, seen: [...state.seen, text] }, 'INSERT OR REPLACE');
    return { at: index };
  }

  #read(id = 1): State {
    const { value } = this.#store.raw.prepare('SELECT value FROM state WHERE id = ?').get(id) as { value: string };
    return JSON.parse(value) as State;
  }

  #write(state: State, how: string, id = 1): void {
    this.#store.raw.prepare(`${how} INTO state (id, value) VALUES (?, ?)`).run(id, JSON.stringify(state));
  }
}

interface State {
  readonly root: string;
  readonly epoch: number;
  readonly committee: readonly number[];
  readonly past: readonly (readonly number[])[];
  readonly moves: number;
  readonly place: SequencerPlace;
  readonly origin: number;
  readonly seen: readonly string[];
}

/** What may go wrong between two validators: each call may be late, lost before or after it was answered, or made twice. */
export interface Wires {
  carry<T>(call: () => Promise<T>, body: Json, from: number): Promise<T>;
}

export const goodWires: Wires = { carry: (call) => call() };

interface ValidatorsOptions {
  readonly committee: readonly number[];
  readonly engine: (place: SequencerPlace, log: string, of: number) => Sequencer;
  readonly wires?: Wires;
  readonly submitMs?: number;
  readonly snapshotEntries?: number;
  readonly stateBytesMax?: number;
  readonly loadMs?: number;
  /** In the place of the validator with that number. */
  readonly liar?: (of: number, method: string, body: Json) => Promise<unknown> | undefined;
}

/** Validators of one network in one process, each with a database of its own that outlives it. */
export class OrderedValidators implements AsyncDisposable {
  readonly logs: (OrderedLog | undefined)[] = [];
  readonly stores: SqliteStore[] = [];
  /** Votes for two heads of one index in one view, as they were found. */
  readonly caught: string[] = [];
  readonly #options: ValidatorsOptions;

  constructor(options: ValidatorsOptions) {
    this.#options = options;
  }

  open(of: number, crashes?: Crash): OrderedLog {
    this.stores[of] ??= openSqlite(':memory:', [
      {
        name: '001',
        up: `${EMBEDDED_SCHEMA}${LOG_SCHEMA}${SNAPSHOT_SCHEMA}${RECOVERY_SCHEMA}${VIEWS_SCHEMA}CREATE TABLE state (id INTEGER PRIMARY KEY, value TEXT) STRICT;`,
      },
    ]);
    const kept = this.stores[of];
    const {
      committee,
      engine,
      submitMs = 20_000,
      snapshotEntries,
      stateBytesMax,
      loadMs,
      wires = goodWires,
      liar,
    } = this.#options;
    const state = new TestState(kept, committee, { kind: 'embedded', validator: testSeat(0).key });
    const { key } = testSeat(of);
    const lent: LogLent = {
      store: crashes === undefined ? kept : crashing(kept, crashes),
      state,
      trust: {
        attest: async (type, statement) => testWord(key, type, statement),
        attested: async (word, type, statement, seat) => testWordHolds(word, type, statement, seat),
      },
      engine: (place, log) => engine(place, log, of),
      ask: async (seat, method, body) => {
        const to = numberOf(seat);
        return wires.carry(
          async () => {
            const lie = liar?.(to, method, body);
            if (lie !== undefined) return lie;
            const peer = this.logs[to];
            if (peer === undefined) throw new HyperMeshError('peer-unreachable', 'Nobody is there.');
            const asked = body as { after: number & string; base: number; epoch: number };
            switch (method) {
              case 'order/votes':
                return peer.exchange(body, key);
              case 'order/part':
                return peer.part(asked.after);
              case 'order/snapshot':
                return peer.snapshot(asked.epoch);
              case 'order/tail':
                return peer.tail(asked.after);
              case 'order/facts':
                return peer.facts(asked.base, asked.after);
            }
          },
          body,
          of,
        );
      },
      caught: (_type, first) => this.caught.push(first.attestation.validator),
    };
    const log = new OrderedLog(lent, {
      networkId: NETWORK,
      self: key,
      ...{ submitMs },
      ...{ snapshotEntries, stateBytesMax, loadMs },
    });
    this.logs[of] = log;
    log.start();
    return log;
  }

  async close(of: number): Promise<void> {
    const log = this.logs[of];
    this.logs[of] = undefined;
    await log?.[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.logs.keys().map((of) => this.close(of)));
    await Promise.all(this.stores.map((store) => store?.[Symbol.asyncDispose]()));
  }
}

/** The transaction with that number fails, and all after it; `late`: it fails after it happened. */
export interface Crash {
  readonly at: number;
  readonly late: boolean;
}

export function crashing(store: SqliteStore, { at, late }: Crash): SqliteStore {
  let count = 0;
  return {
    raw: store.raw,
    transact(write) {
      const crash = () => new HyperMeshError('storage-failed', 'The machine lost its power.');
      count += 1;
      if (count > at || (count === at && !late)) throw crash();
      const result = store.transact(write);
      if (count === at) throw crash();
      return result;
    },
    [Symbol.asyncDispose]: async () => undefined,
  };
}
