import type { Digest } from '../../../base/digest.ts';
import type { Action, SelfSigned } from '../../../wire/entry.ts';
import { decodeInstruction, keyBytes } from '../../../wire/entry.ts';
import { envelopeHolds } from '../../../wire/signature.ts';
import type { Draft } from './facts.ts';
import { KEYS, type Place, refuse } from './law.ts';

/** A type and not an interface, so that it is plain data for the facts. */
export type AccountFact = {
  /** All tokens of the account; `locked` and `unbonding` are parts of it and answer for what it does. The rest is free. */
  readonly balance: number;
  readonly locked: number;
  readonly unbonding: number;
  /** Of its last instruction that was applied. */
  readonly number: number;
  /** Names and scopes that it owns. */
  readonly names: number;
  /** The highest sequence number that was certified, and in which epoch; `closed` is what it was when that epoch began. */
  readonly sequence: { readonly closed: number; readonly reached: number; readonly epoch: number };
  /** The epoch in which it was caught contradicting itself, or null: until that epoch ends it can do nothing but take its tokens out. */
  readonly suspended: number | null;
};

export type UnbondingFact = {
  readonly amount: number;
  /** Of the unlock. */
  readonly index: number;
  /** Null until clocks that came after the unlock say when that was. */
  readonly endsAtMs: number | null;
};

/** At once, for one account. */
const UNBONDING_MAX = 64;
const NAMES_MAX = 10_000;

const NOBODY: AccountFact = {
  balance: 0,
  locked: 0,
  unbonding: 0,
  number: 0,
  names: 0,
  sequence: { closed: 0, reached: 0, epoch: 0 },
  suspended: null,
};

export function accountOf(draft: Pick<Draft, 'get'>, id: string): AccountFact {
  return draft.get<AccountFact>(KEYS.account(id)) ?? NOBODY;
}

export function changeAccount(draft: Draft, id: string, change: Partial<AccountFact>): void {
  draft.set(KEYS.account(id), { ...accountOf(draft, id), ...change });
}

export function isKnown(draft: Pick<Draft, 'get'>, id: string): boolean {
  return draft.get(KEYS.account(id)) !== undefined;
}

export function isSuspended(draft: Pick<Draft, 'get'>, id: string): boolean {
  const { suspended } = accountOf(draft, id);
  return suspended !== null && suspended === draft.get<{ epoch: number }>(KEYS.epoch)!.epoch;
}

function freeOf({ balance, locked, unbonding }: AccountFact): number {
  return balance - locked - unbonding;
}

/** Whose name or scope it is; undefined while it is nobody's. */
export function ownerOf(draft: Pick<Draft, 'get'>, name: string): string | undefined {
  const owned = draft.get<string>(KEYS.name(name));
  return owned ?? (name.includes('/') ? draft.get<string>(KEYS.name(name.split('/')[0]!)) : undefined);
}

/** Errors: `entry-invalid`, `network-mismatch`, `proof-replayed`, and those of the action. */
export function instruct(place: Place, signed: SelfSigned): void {
  const { draft, terms, check } = place;
  const { networkId, account, number, action } = decodeInstruction(signed);
  if (networkId !== terms.networkId) refuse('network-mismatch', 'The instruction is for another network.');
  if (!envelopeHolds(signed.envelope, keyBytes(signed.keys), check)) {
    refuse('entry-invalid', 'The signatures of the instruction do not hold.');
  }
  if (!isKnown(draft, account)) {
    refuse(
      'not-a-member',
      'The account never had tokens in this network.',
      'They come with an invite, or by a transfer from somebody who has some.',
    );
  }
  const before = accountOf(draft, account);
  if (number <= before.number) {
    refuse('proof-replayed', `Instruction ${number} of this account is an old one: ${before.number} was the last.`);
  }
  act(place, account, action);
  changeAccount(draft, account, { number });
}

function act(place: Place, account: string, action: Action): void {
  const { draft } = place;
  switch (action.kind) {
    case 'claim':
      claim(place, account, action.name);
      return;
    case 'transfer': {
      debit(draft, account, action.amount);
      // Read after the debit, so that a transfer to oneself moves nothing.
      const to = accountOf(draft, action.to);
      changeAccount(draft, action.to, { balance: to.balance + action.amount });
      return;
    }
    case 'lock':
      enough(draft, account, action.amount, 'free');
      changeAccount(draft, account, { locked: accountOf(draft, account).locked + action.amount });
      return;
    case 'unlock':
      unlock(place, account, action.amount);
      return;
    case 'grant': {
      const key = KEYS.grant(account, action.id);
      if (draft.get(key) !== undefined) return;
      if (action.amount === 0 && !isValidator(place, account)) {
        refuse('not-permitted', 'Only who answers for a validator makes accounts without tokens.');
      }
      debit(draft, account, action.amount);
      const to = accountOf(draft, action.to);
      changeAccount(draft, action.to, { balance: to.balance + action.amount, locked: to.locked + action.amount });
      draft.set(key, { to: action.to, amount: action.amount });
      return;
    }
  }
}

function isValidator({ draft, committeeOf }: Place, account: string): boolean {
  const { digest } = draft.get<{ digest: Digest }>(KEYS.epoch)!;
  return committeeOf(digest)!.validators.some((seat) => seat.account === account);
}

function claim({ draft, terms }: Place, account: string, name: string): void {
  const owner = ownerOf(draft, name);
  if (owner === account) return;
  if (owner !== undefined) {
    refuse('not-owner', `${name} belongs to the publisher ${owner}.`, 'Publish under a name of your own.');
  }
  if (!name.includes('/')) {
    const other = draft.list<string>(KEYS.name(`${name}/`)).find(([, holder]) => holder !== account);
    if (other !== undefined) {
      refuse(
        'not-owner',
        `${other[0].slice(5)} belongs to the publisher ${other[1]}.`,
        'Claim a scope that nobody uses.',
      );
    }
  }
  const { locked, names } = accountOf(draft, account);
  if (isSuspended(draft, account)) {
    refuse(
      'not-permitted',
      'The account signed two things that contradict each other; it can claim again in the next epoch.',
    );
  }
  if (locked < terms.claimLockedMin) {
    refuse(
      'stake-insufficient',
      `${terms.claimLockedMin} locked tokens are needed to own a name; the account has ${locked}.`,
      'Lock more with `hypermesh stake lock`.',
    );
  }
  if (names >= NAMES_MAX) refuse('quota-exceeded', `An account owns at most ${NAMES_MAX} names.`);
  draft.set(KEYS.name(name), account);
  changeAccount(draft, account, { names: names + 1 });
}

function unlock({ draft, index }: Place, account: string, amount: number): void {
  enough(draft, account, amount, 'locked');
  if (draft.list(`unbonding/${account}/`).length >= UNBONDING_MAX) {
    refuse(
      'quota-exceeded',
      `${UNBONDING_MAX} unlocks of this account wait for their end.`,
      'Unlock more at once, after one of them has ended.',
    );
  }
  const { locked, unbonding } = accountOf(draft, account);
  changeAccount(draft, account, { locked: locked - amount, unbonding: unbonding + amount });
  draft.set(KEYS.unbonding(account, index), { amount, index, endsAtMs: null } satisfies UnbondingFact);
}

function debit(draft: Draft, account: string, amount: number): void {
  enough(draft, account, amount, 'free');
  changeAccount(draft, account, { balance: accountOf(draft, account).balance - amount });
}

function enough(draft: Draft, account: string, amount: number, part: 'free' | 'locked'): void {
  const has = accountOf(draft, account);
  const free = freeOf(has);
  if ((part === 'free' ? free : has.locked) >= amount) return;
  const unbonding = has.unbonding === 0 ? '' : ` and ${has.unbonding} unbonding`;
  refuse(
    'stake-insufficient',
    `${amount} ${part} tokens are needed; the account has ${free} free and ${has.locked} locked${unbonding}.`,
    part === 'free' ? 'Unlock some, or receive a transfer.' : 'Unlock at most what is locked.',
  );
}

/**
 * Burns a part of what answers for the account: of locked tokens first, then of those whose unlock is the youngest.
 * What was unlocked answers until its unbonding ends, so that nobody takes tokens out before the evidence comes.
 */
export function slash(draft: Draft, account: string, percent: number): void {
  const { balance, locked, unbonding } = accountOf(draft, account);
  // Whole numbers, also above 2^53 / 100.
  const burned = Number((BigInt(locked + unbonding) * BigInt(percent) + 99n) / 100n);
  if (burned === 0) return;
  let open = Math.max(0, burned - locked);
  changeAccount(draft, account, {
    balance: balance - burned,
    locked: Math.max(0, locked - burned),
    unbonding: unbonding - open,
  });
  for (const [key, row] of [...draft.list<UnbondingFact>(`unbonding/${account}/`)].reverse()) {
    if (open === 0) break;
    const taken = Math.min(open, row.amount);
    open -= taken;
    if (taken === row.amount) draft.delete(key);
    else draft.set(key, { ...row, amount: row.amount - taken });
  }
  draft.set(KEYS.burned, (draft.get<number>(KEYS.burned) ?? 0) + burned);
}
