import { HyperMeshError } from '../../base/errors.ts';
import type { StakeAccount } from '../../capabilities/consensus.ts';
import { PROOF_LIMITS } from '../../wire/proof.ts';
import type { Store } from './store.ts';

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

  lock(account: string, amount: number): StakeAccount {
    return this.#change(account, amount, (has) => {
      if (has.balance - has.locked < amount) throw insufficient(has, amount, 'free');
      this.#write(account, has.balance, has.locked + amount);
    });
  }

  unlock(account: string, amount: number): StakeAccount {
    return this.#change(account, amount, (has) => {
      if (has.locked < amount) throw insufficient(has, amount, 'locked');
      this.#write(account, has.balance, has.locked - amount);
    });
  }

  transfer(from: string, to: string, amount: number): StakeAccount {
    if (!/^[0-9a-f]{64}$/.test(to)) {
      throw new HyperMeshError('usage', 'Expected the account to be a key id of 64 hex digits.', {
        hint: '`hypermesh keys` shows the key id of a home.',
      });
    }
    return this.#change(from, amount, (has) => {
      if (has.balance - has.locked < amount) throw insufficient(has, amount, 'free');
      this.#write(from, has.balance - amount, has.locked);
      // Read after the debit, so that a transfer to oneself moves nothing.
      const receiver = this.account(to);
      this.#write(to, receiver.balance + amount, receiver.locked);
    });
  }

  #change(account: string, amount: number, change: (has: StakeAccount) => void): StakeAccount {
    if (!Number.isSafeInteger(amount) || amount <= 0 || amount > PROOF_LIMITS.tokensMax) {
      throw new HyperMeshError('usage', `Expected a whole number of tokens from 1 to ${PROOF_LIMITS.tokensMax}.`);
    }
    return this.#store.transact(() => {
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

function insufficient(has: StakeAccount, amount: number, part: 'free' | 'locked'): HyperMeshError {
  const free = has.balance - has.locked;
  return new HyperMeshError(
    'stake-insufficient',
    `${amount} ${part} tokens are needed; the account has ${free} free and ${has.locked} locked.`,
    { hint: part === 'free' ? 'Unlock some, or receive a transfer.' : 'Unlock at most what is locked.' },
  );
}
