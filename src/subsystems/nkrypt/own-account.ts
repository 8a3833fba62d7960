import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import { laterTurn } from '../../base/turn.ts';
import type { StakeAccount } from '../../capabilities/consensus.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { type Action, encodeEntry, encodeInstruction, INSTRUCTION_TYPE, type Instruction } from '../../wire/entry.ts';
import { PROOF_LIMITS } from '../../wire/proof-limits.ts';
import type { Store } from './store.ts';

/** Where entries are handed in and the ordered state is looked up: this home's own order, or the committee's, asked over the network. */
export interface LedgerOffice {
  /** Puts the entry into the order and waits until it was applied. Safe to repeat. Errors: what it is refused with; `committee-unreachable`, `timeout`, … while that is not known. */
  submit(entry: Uint8Array, options?: CallOptions): Promise<void>;
  account(account: string): Promise<OfficeAccount>;
  ownerOf(name: string): Promise<string | null>;
}

/** `number`: of the last instruction of the account that was applied. */
export interface OfficeAccount extends StakeAccount {
  readonly number: number;
}

/** What leaves open whether an entry is in the order. */
const UNKNOWN = [
  'committee-unreachable',
  'peer-unreachable',
  'network-unreachable',
  'timeout',
  'order-stopped',
  'sequencer-unreachable',
  'cancelled',
  'quota-exceeded',
] as const;

/** Whether it is not known what became of an entry that was handed in. */
export function leavesOpen(error: unknown): boolean {
  return !isCoded(error) || UNKNOWN.some((one) => one === error.code) || error.code.startsWith('storage-');
}

/**
 * What this home's publisher says in the order, one thing after the other. What was signed is kept until it is known what became of it, so that a lost answer,
 * or a crash, never makes a transfer happen twice: repeating the command finishes the one that is under way.
 */
export class OwnAccount {
  readonly #trust: Pick<Trust, 'sign' | 'publicKeys'>;
  readonly #store: Store;
  readonly #office: LedgerOffice;
  readonly #networkId: Digest;
  readonly #account: string;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(
    lent: { readonly trust: Pick<Trust, 'sign' | 'publicKeys'>; readonly store: Store; readonly office: LedgerOffice },
    options: { readonly networkId: Digest; readonly account: string },
  ) {
    this.#trust = lent.trust;
    this.#store = lent.store;
    this.#office = lent.office;
    this.#networkId = options.networkId;
    this.#account = options.account;
  }

  async read(): Promise<StakeAccount> {
    const { number: _number, ...account } = await this.#office.account(this.#account);
    return account;
  }

  /** Done when it returns. Errors: those of the action, and those of an office that cannot say what became of it. */
  instruct(action: Action, options: CallOptions = {}): Promise<void> {
    const result = this.#turn.then(() => this.#instruct(action, options));
    this.#turn = result.catch(() => undefined);
    return result;
  }

  /** Owns the name when it returns. Safe to repeat. Errors: `not-owner`, `stake-insufficient`, `not-permitted`, and those of the office. */
  async claim(name: string, options: CallOptions = {}): Promise<void> {
    const owner = await this.#office.ownerOf(name);
    if (owner === this.#account) return;
    if (owner !== null) {
      throw new HyperMeshError('not-owner', `${name} belongs to the publisher ${owner}.`, {
        hint: 'Publish under a name of your own.',
      });
    }
    await this.instruct({ kind: 'claim', name }, options);
  }

  async #instruct(action: Action, options: CallOptions): Promise<void> {
    const asked = canonicalJson(action);
    for (const pending of this.#pending()) {
      const refusal = await this.#finish(pending, options);
      // It is what is asked for now: asking again finished it. When an old number is all that is against it, it may have been applied so long ago that the
      // order does not say so any more: never twice unless that is said again.
      if (pending.action === asked) return raise(isCoded(refusal, 'proof-replayed') ? perhapsDone(refusal) : refusal);
    }
    for (let attempt = 1; ; attempt += 1) {
      const { number } = await this.#office.account(this.#account);
      const pending = await this.#sign(number + 1, action);
      await laterTurn();
      const refusal = await this.#finish(pending, options);
      // Another home with the same keys was faster.
      if (attempt < 3 && isCoded(refusal, 'proof-replayed')) continue;
      return raise(refusal);
    }
  }

  #pending(): readonly Pending[] {
    return this.#store.raw
      .prepare('SELECT number, action, entry FROM instructions ORDER BY number')
      .all() as unknown as readonly Pending[];
  }

  /** Commit point: from here on the instruction is made, and is finished also after a crash, when the next one is. */
  async #sign(number: number, action: Action): Promise<Pending> {
    const instruction: Instruction = {
      ...{ formatVersion: 1, networkId: this.#networkId, account: this.#account },
      ...{ number, action },
    };
    const [keys, envelope] = await Promise.all([
      this.#trust.publicKeys('publisher'),
      this.#trust.sign('publisher', INSTRUCTION_TYPE, encodeInstruction(instruction)),
    ]);
    const entry = encodeEntry({
      ...{ formatVersion: 1, networkId: this.#networkId, kind: 'instruction' },
      signed: { keys, envelope },
    });
    const pending = { number, action: canonicalJson(action), entry };
    this.#store.transact((raw) =>
      raw
        .prepare('INSERT OR REPLACE INTO instructions (number, action, entry) VALUES (?, ?, ?)')
        .run(number, pending.action, entry),
    );
    return pending;
  }

  /** What it was refused with; undefined: it was applied. Throws while that is not known. */
  async #finish({ number, entry }: Pending, options: CallOptions): Promise<HyperMeshError | undefined> {
    let refusal: HyperMeshError | undefined;
    try {
      await this.#office.submit(entry, options);
    } catch (error) {
      if (!isCoded(error) || leavesOpen(error)) throw error;
      refusal = error;
    }
    this.#store.raw.prepare('DELETE FROM instructions WHERE number = ?').run(number);
    return refusal;
  }
}

interface Pending {
  readonly number: number;
  readonly action: string;
  readonly entry: Uint8Array;
}

function perhapsDone(cause: HyperMeshError): HyperMeshError {
  return new HyperMeshError('proof-replayed', 'The same was asked for before, and may have been done since.', {
    hint: 'Run the command again if it was not. See: hypermesh stake show',
    cause,
  });
}

function raise(refusal: HyperMeshError | undefined): void {
  if (refusal !== undefined) throw refusal;
}

/** Errors: `usage`. */
export function tokenAmount(amount: number): number {
  if (Number.isSafeInteger(amount) && amount > 0 && amount <= PROOF_LIMITS.tokensMax) return amount;
  throw new HyperMeshError('usage', `Expected a whole number of tokens from 1 to ${PROOF_LIMITS.tokensMax}.`);
}

/** Errors: `usage`. */
export function accountId(keyId: string): string {
  if (/^[0-9a-f]{64}$/.test(keyId)) return keyId;
  throw new HyperMeshError('usage', 'Expected the account to be a key id of 64 hex digits.', {
    hint: '`hypermesh keys` shows the key id of a home.',
  });
}
