import { HyperMeshError } from '../../base/errors.ts';
import type { StakeAccount } from '../../capabilities/consensus.ts';
import { PROOF_LIMITS } from '../../wire/proof.ts';
import type { Store } from './store.ts';

/** A mark that its sender chose at random for one change. */
export interface Once {
  readonly id: string;
  readonly nowMs: number;
}

/** Nobody repeats a request after a day. */
const ASKED_KEPT_MS = 86_400_000;

/**
 * Who owns how many tokens. `balance` is everything an account has, `locked` the part that answers for what it does and cannot move.
 * Every change is one transaction, so the supply never changes; the table refuses negative amounts and more locked than owned.
 */
export class Ledger {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  account(account: string): StakeAccount {
    const row = this.#store.raw.prepare('SELECT balance, locked FROM accounts WHERE account = ?').get(account) as
      | { balance: number; locked: number }
      | undefined;
    return { account, balance: row?.balance ?? 0, locked: row?.locked ?? 0 };
  }

  /** All tokens there are. */
  supply(): number {
    const { sum } = this.#store.raw.prepare('SELECT coalesce(sum(balance), 0) AS sum FROM accounts').get() as {
      sum: number;
    };
    return sum;
  }

  /** `once`: with the same mark a second time, nothing changes any more. */
  lock(account: string, amount: number, once?: Once): StakeAccount {
    return this.#change(account, amount, once, (has) => {
      if (has.balance - has.locked < amount) throw insufficient(has, amount, 'free');
      this.#write(account, has.balance, has.locked + amount);
    });
  }

  unlock(account: string, amount: number, once?: Once): StakeAccount {
    return this.#change(account, amount, once, (has) => {
      if (has.locked < amount) throw insufficient(has, amount, 'locked');
      this.#write(account, has.balance, has.locked - amount);
    });
  }

  transfer(from: string, to: string, amount: number, once?: Once): StakeAccount {
    accountId(to);
    return this.#change(from, amount, once, (has) => {
      if (has.balance - has.locked < amount) throw insufficient(has, amount, 'free');
      this.#write(from, has.balance - amount, has.locked);
      // Read after the debit, so that a transfer to oneself moves nothing.
      const receiver = this.account(to);
      this.#write(to, receiver.balance + amount, receiver.locked);
    });
  }

  /**
   * Moves free tokens of `from` to `to` and locks them there: once for each `id`, whatever the amount was. Less than asked for is nothing.
   * Returns what `to` has been given under that id.
   */
  grant(id: string, from: string, to: string, amount: number): number {
    return this.#store.transact((raw) => {
      const known = raw.prepare('SELECT amount FROM grants WHERE id = ?').get(id) as { amount: number } | undefined;
      if (known !== undefined) return known.amount;
      const has = this.account(from);
      if (amount === 0 || from === to || has.balance - has.locked < amount) return 0;
      this.#write(from, has.balance - amount, has.locked);
      const receiver = this.account(to);
      this.#write(to, receiver.balance + amount, receiver.locked + amount);
      raw.prepare('INSERT INTO grants (id, account, amount) VALUES (?, ?, ?)').run(id, to, amount);
      return amount;
    });
  }

  #change(account: string, amount: number, once: Once | undefined, change: (has: StakeAccount) => void): StakeAccount {
    tokenAmount(amount);
    return this.#store.transact((raw) => {
      if (once !== undefined) {
        raw.prepare('DELETE FROM asked WHERE asked_at_ms < ?').run(once.nowMs - ASKED_KEPT_MS);
        const { changes } = raw
          .prepare('INSERT OR IGNORE INTO asked (account, id, asked_at_ms) VALUES (?, ?, ?)')
          .run(account, once.id, once.nowMs);
        if (changes === 0) return this.account(account);
      }
      change(this.account(account));
      return this.account(account);
    });
  }

  #write(account: string, balance: number, locked: number): void {
    this.#store.raw
      .prepare(
        'INSERT INTO accounts (account, balance, locked) VALUES (?, ?, ?) ON CONFLICT (account) DO UPDATE SET balance = excluded.balance, locked = excluded.locked',
      )
      .run(account, balance, locked);
  }
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

function insufficient(has: StakeAccount, amount: number, part: 'free' | 'locked'): HyperMeshError {
  const free = has.balance - has.locked;
  return new HyperMeshError(
    'stake-insufficient',
    `${amount} ${part} tokens are needed; the account has ${free} free and ${has.locked} locked.`,
    { hint: part === 'free' ? 'Unlock some, or receive a transfer.' : 'Unlock at most what is locked.' },
  );
}
