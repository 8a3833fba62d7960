import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { Auditor, type AuditReport } from '../../src/audit/auditor.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import type { Json } from '../../src/base/json.ts';
import { signatureCheck } from '../../src/subsystems/trustchain/index.ts';
import { decodeGenesis, genesisDocument } from '../../src/wire/genesis.ts';
import type { Calls, FromChild, Problem, ToChild } from './validator-child.ts';

/** What one home answered another, as the network between them saw it. */
interface Exchange {
  readonly from: string;
  readonly to: string;
  readonly method: string;
  readonly request: Json;
  readonly answer: Json | null;
}

/** A refusal by a home in another process. */
export class Refused extends Error {
  override name = 'Refused';
  readonly code: string;

  constructor({ code, message }: Problem) {
    super(message);
    this.code = code;
  }
}

/** A home in a process of its own that can be killed and started again. */
export class Home implements AsyncDisposable {
  readonly folder: string;
  readonly #network: Homes;
  #child: ChildProcess | undefined;
  #ids = 0;
  readonly #waiting = new Map<number, { resolve(value: Json): void; reject(error: Error): void }>();
  /** Set by {@link Homes.open}, once the home has said who it is. */
  validator = '';
  publisher = '';
  keys: Json = null;

  constructor(network: Homes, folder: string) {
    this.#network = network;
    this.folder = folder;
  }

  /** Starts it, or starts it again. */
  async up(): Promise<void> {
    const child = fork(new URL('./validator-child.ts', import.meta.url), [this.folder]);
    child.on('message', (message: FromChild) => void this.#hear(child, message));
    child.once('exit', () => {
      if (this.#child === child) this.#child = undefined;
      for (const [id, { reject }] of this.#waiting) {
        this.#waiting.delete(id);
        reject(new Refused({ code: 'peer-unreachable', message: 'The process ended.' }));
      }
    });
    await Promise.race([
      once(child, 'message'),
      once(child, 'exit').then(() => {
        throw new Error(`the process of ${this.folder} ended at its start`);
      }),
    ]);
    this.#child = child;
  }

  /** As a power cut does. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }

  /** Its sockets stay open and nobody answers, until it goes on. */
  pause(): void {
    this.#child?.kill('SIGSTOP');
  }

  resume(): void {
    this.#child?.kill('SIGCONT');
  }

  /** Waits until it has killed itself. */
  async dead(): Promise<void> {
    if (this.#child !== undefined) await once(this.#child, 'exit');
  }

  call<C extends keyof Calls>(name: C, ...args: Parameters<Calls[C]>): Promise<ReturnType<Calls[C]>> {
    const child = this.#child;
    if (child === undefined)
      return Promise.reject(new Refused({ code: 'peer-unreachable', message: 'The process is not there.' }));
    const id = ++this.#ids;
    const { promise, resolve, reject } = Promise.withResolvers<Json>();
    this.#waiting.set(id, { resolve, reject });
    send(child, { call: name, id, args: args as unknown as readonly Json[] });
    return promise as unknown as Promise<ReturnType<Calls[C]>>;
  }

  async #hear(child: ChildProcess, message: FromChild): Promise<void> {
    if ('answer' in message) {
      const waits = this.#waiting.get(message.answer);
      this.#waiting.delete(message.answer);
      if (message.problem === undefined) waits?.resolve(message.value ?? null);
      else waits?.reject(new Refused(message.problem));
      return;
    }
    const { ask, to, method, body } = message;
    try {
      send(child, { answer: ask, value: await this.#network.carry(this, to, method, body) });
    } catch (error) {
      const { code = 'internal', message: text } = error as Refused;
      send(child, { answer: ask, problem: { code, message: text } });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

function send(child: ChildProcess, message: ToChild): void {
  // It may have been killed.
  if (child.connected) child.send(message, () => undefined);
}

/** Homes, and the network between them: it carries what they ask each other, remembers all of it, and can be cut. */
export class Homes implements AsyncDisposable {
  readonly all: Home[] = [];
  readonly exchanges: Exchange[] = [];
  genesis: Json = null;
  networkId: Digest = digestOf(new Uint8Array());
  #cut: (a: Home, b: Home) => boolean = () => false;

  static async open(folder: string, count: number): Promise<Homes> {
    const homes = new Homes();
    for (let at = 0; at < count; at++) homes.all.push(new Home(homes, join(folder, `${at}`)));
    await Promise.all(homes.all.map((home) => home.up()));
    for (const home of homes.all) {
      const { validator, publisher } = await home.call('self');
      home.keys = validator;
      home.validator = (validator as unknown as { key: string }).key;
      home.publisher = publisher;
    }
    return homes;
  }

  /** A new network of all homes, whose committee these are. */
  async found(committee: readonly Home[]): Promise<void> {
    const { document } = await this.all[0]!.call('self');
    const { approvals: _, ...terms } = document as Readonly<Record<string, Json>>;
    const byKey = [...committee].sort((a, b) => (a.validator < b.validator ? -1 : 1));
    const unsigned: Json = {
      ...terms,
      nonce: Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('hex'),
      committee: { epoch: 0, validators: byKey.map(({ keys }) => keys) },
      stake: {
        ...(terms['stake'] as Readonly<Record<string, Json>>),
        accounts: this.all.map(({ publisher }) => ({ account: publisher, balance: 1_000, locked: 1_000 })),
      },
    };
    const approvals = await Promise.all(byKey.map((home) => home.call('approve', unsigned)));
    const { genesis, networkId } = decodeGenesis({ ...unsigned, approvals });
    this.genesis = genesisDocument(genesis);
    this.networkId = networkId;
    await Promise.all(this.all.map((home) => home.call('adopt', this.genesis)));
  }

  /** Between homes for which it holds nothing passes. */
  cut(between: (a: Home, b: Home) => boolean): void {
    this.#cut = between;
  }

  heal(): void {
    this.#cut = () => false;
  }

  /** The channel proves who asks, so nobody asks in another's name. */
  async carry(from: Home, to: string, method: string, body: Json): Promise<Json> {
    const home = this.all.find(({ validator }) => validator === to);
    if (home === undefined || this.#cut(from, home))
      throw new Refused({ code: 'peer-unreachable', message: 'Nothing passes.' });
    let answer: Json | null = null;
    try {
      answer = await home.call('desk', method, from.publisher, body);
      return answer;
    } finally {
      this.exchanges.push({ from: from.validator, to, method, request: body, answer });
    }
  }

  /** What the auditor says about everything that was on the wire, in the present network. */
  audit(): AuditReport {
    const auditor = new Auditor(signatureCheck, { network: this.networkId });
    auditor.add(this.genesis);
    for (const exchange of this.exchanges) auditor.add(exchange);
    return auditor.report();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.all.map((home) => home[Symbol.asyncDispose]()));
  }
}
