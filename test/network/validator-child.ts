import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { HyperMeshError, isCoded } from '../../src/base/errors.ts';
import type { Json } from '../../src/base/json.ts';
import type { StakeAccount } from '../../src/capabilities/consensus.ts';
import type { SeatAsk, SequencerInfo } from '../../src/capabilities/membership.ts';
import type { DeskMethod } from '../../src/subsystems/nkrypt/desk.ts';
import { openConsensus } from '../../src/subsystems/nkrypt/index.ts';
import { openTrust, signatureCheck } from '../../src/subsystems/trustchain/index.ts';
import type { SequencerPlace } from '../../src/wire/entry.ts';
import { GENESIS_TYPE } from '../../src/wire/genesis.ts';
import { ORDER_METHODS, type OrderMethod } from '../../src/wire/order.ts';
import { type Endorsement, VOTE_TYPE } from '../../src/wire/proof.ts';
import { type Behaviour, Liar, type Submission } from './lies.ts';

export type { Behaviour, Submission } from './lies.ts';

/**
 * A home with its keys, its proofs and its seat, in a process of its own. What it asks other validators goes through its parent, which is the network
 * between them: it sees everything, and cuts, kills and confuses. Argument: the folder of the home.
 */

/** Where a validator loses its power, around a vote. */
export type Death = 'before it signs' | 'after it signed' | 'after it answered';

export interface Calls {
  /** Keys of its validator as documents name it, its publisher, and the terms of a network that it founded. */
  self(): { readonly validator: Json; readonly publisher: string; readonly document: Json };
  approve(unsigned: Json): Json;
  adopt(document: Json): null;
  behave(how: Behaviour): null;
  die(when: Death): null;
  publish(subject: Digest, ref: string): Endorsement;
  /** Signs and proves two operations with one number, and hands the sets with their orders to whoever asks: nothing was voted for. */
  equivocate(subjects: readonly Digest[], refs: readonly string[]): readonly Submission[];
  /** Brings a submission to one validator. */
  submit(submission: Submission, validator: string): Json;
  /** Where the order is made, and what is wrong with it. */
  order(): SequencerInfo;
  move(to: SequencerPlace, recover: boolean): SequencerInfo;
  /** Something that needs the order. */
  unlock(amount: number): StakeAccount;
  /** What another validator asks of this one. */
  desk(method: string, identity: string, body: Json): Json;
}

export type ToChild =
  | { readonly call: keyof Calls; readonly id: number; readonly args: readonly Json[] }
  | { readonly answer: number; readonly value?: Json; readonly problem?: Problem };
export type FromChild =
  | { readonly ask: number; readonly to: string; readonly method: string; readonly body: Json }
  | { readonly answer: number; readonly value?: Json; readonly problem?: Problem };
export interface Problem {
  readonly code: string;
  readonly message: string;
}

const ASK_MS = 60_000;

const [folder] = process.argv.slice(2) as [string];
const liar = new Liar();
const { clock } = liar;
let death: Death | null = null;

const opened = async () => {
  for (const part of ['trust', 'consensus']) mkdirSync(join(folder, part), { recursive: true, mode: 0o700 });
  const home = await openTrust({ directory: join(folder, 'trust'), clock });
  const power = () => process.kill(process.pid, 'SIGKILL');
  const attest: typeof home.attest = async (type, statement) => {
    if (type === VOTE_TYPE && death === 'before it signs') power();
    const word = await home.attest(type, statement);
    if (type === VOTE_TYPE && death === 'after it signed') power();
    return word;
  };
  const trust = new Proxy(home, {
    get(target, name) {
      if (name === 'attest') return attest;
      const value = Reflect.get(target, name) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const row = {
    ...{ space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 16 }, stake: { amountMin: 100 } },
    ...{ work: { hexDigits: 1 }, time: { squarings: 2 ** 10, windowMs: 300_000 } },
  };
  const consensus = await openConsensus(
    { trust, check: signatureCheck },
    {
      ...{ directory: join(folder, 'consensus'), clock, threads: 1, stakeInitial: 1_000 },
      space: { bytes: 65_536, iterations: 2 },
      // The vote rule is looked at, with one publisher who breaks it again and again: nobody brings him before the order, which would end that.
      auditRoundMs: 3_600_000,
      requirements: {
        ...{ publish: { kind: 'publish', ...row }, install: { kind: 'install', ...row } },
        ...{ execute: { kind: 'execute', ...row }, default: { kind: 'default', ...row } },
      },
    },
  );
  return { trust, consensus };
};
const { trust, consensus } = await opened();
liar.take({ trust, consensus });

// --- what it asks others

let asked = 0;
const waiting = new Map<number, { resolve(value: unknown): void; reject(error: unknown): void }>();

const ask: SeatAsk = (to, method, body, { signal, timeoutMs = ASK_MS } = {}) => {
  const id = ++asked;
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  const given = setTimeout(() => reject(new HyperMeshError('timeout', 'No answer came.')), Math.min(timeoutMs, ASK_MS));
  signal?.addEventListener('abort', () => reject(new HyperMeshError('cancelled', 'Nobody waits for the answer.')));
  waiting.set(id, { resolve, reject });
  tell({ ask: id, to, method, body });
  return promise.finally(() => {
    clearTimeout(given);
    waiting.delete(id);
  });
};
consensus.follow(ask);
consensus.meet(ask);

// --- what it answers

async function desk(method: string, identity: string, body: Json): Promise<Json> {
  const isAboutOrder = (ORDER_METHODS as readonly string[]).includes(method);
  const honestly = () =>
    isAboutOrder
      ? consensus.order(method as OrderMethod, identity, body)
      : consensus.desk(method as DeskMethod, identity, body);
  return liar.answer(method, body, identity, honestly);
}

// --- what its parent makes it do

const calls: { readonly [C in keyof Calls]: (...args: Parameters<Calls[C]>) => Promise<ReturnType<Calls[C]>> } = {
  async self() {
    const { keyId: publisher } = await trust.identity('publisher');
    const { document } = await consensus.genesis();
    return { validator: (await trust.validatorKeys()) as unknown as Json, publisher, document };
  },
  approve: async (unsigned) => (await trust.attest(GENESIS_TYPE, unsigned)) as unknown as Json,
  async adopt(document) {
    await consensus.adopt(document);
    return null;
  },
  async behave(how) {
    liar.behaviour = how;
    return null;
  },
  async die(when) {
    death = when;
    return null;
  },
  async publish(subject, ref) {
    const set = await consensus.prove(await consensus.challenge('publish', subject, ref));
    return (await consensus.admit(set)).endorsement;
  },
  equivocate: (subjects, refs) => liar.equivocate(subjects, refs, ask),
  async submit({ proofs, order }, validator) {
    return (await ask(validator, 'committee/vote', { proofs, order, fast: false } as unknown as Json)) as Json;
  },
  order: () => consensus.sequencer(),
  move: (to, recover) => consensus.moveSequencer(to, { recover }),
  unlock: (amount) => consensus.unlockStake(amount),
  desk,
};

function tell(message: FromChild): void {
  process.send?.(message);
}

process.on('message', (message: ToChild) => {
  if ('answer' in message) {
    const waits = waiting.get(message.answer);
    if (message.problem === undefined) waits?.resolve(message.value);
    else waits?.reject(new HyperMeshError(message.problem.code as 'timeout', message.problem.message));
    return;
  }
  const call = calls[message.call] as (...args: readonly Json[]) => Promise<unknown>;
  void call(...message.args).then(
    (value) => {
      tell({ answer: message.id, value: (value ?? null) as Json });
      if (message.call === 'desk' && message.args[0] === 'committee/vote' && death === 'after it answered')
        setImmediate(() => process.kill(process.pid, 'SIGKILL'));
    },
    (error: unknown) => {
      const { message: text } = error as Error;
      tell({ answer: message.id, problem: { code: isCoded(error) ? error.code : 'internal', message: text } });
    },
  );
});
process.on('disconnect', () => process.exit(0));
tell({ answer: 0, value: digestOf(new Uint8Array()) });
