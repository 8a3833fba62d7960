import type { Attestation } from '../../../wire/attestation.ts';
import { CLOCK_TYPE, type ClockStatement } from '../../../wire/entry.ts';
import type { Committee } from '../../../wire/epoch.ts';
import { quorumOf } from '../../../wire/genesis.ts';
import { accountOf, changeAccount, type UnbondingFact } from './accounts.ts';
import { ofPresent, presentOf } from './committees.ts';
import type { Draft } from './facts.ts';
import { KEYS, type Place, refuse } from './law.ts';

type ClockFact = { readonly atMs: number; readonly index: number };

/**
 * Time as the order has it. Of n validators' clocks the (f+1)-th latest counts: at least one honest validator has seen that time, so that no
 * f of them can end an unbonding early; and of a quorum of clocks at least f+1 are honest, so that none can hold the time back.
 */
export function tellTime(place: Place, statement: ClockStatement, attestation: Attestation): void {
  const { draft, index } = place;
  ofPresent(place, { type: CLOCK_TYPE, statement, attestation });
  const key = KEYS.clock(statement.validator);
  const before = draft.get<ClockFact>(key);
  if (before !== undefined && statement.atMs <= before.atMs) {
    refuse('proof-replayed', 'The validator has told a later time already.');
  }
  draft.set(key, { atMs: statement.atMs, index });
  settle(place);
}

/** Begins unbondings whose unlock all of a quorum's clocks came after, and ends those whose time has come. */
function settle(place: Place): void {
  const { draft, terms } = place;
  const committee = place.committeeOf(presentOf(draft).digest)!;
  const clocks = draft.list<ClockFact>('clock/').map(([, clock]) => clock);
  const passed = agreed(committee, clocks);
  if (passed === undefined) return;
  const nowMs = Math.max(passed, timeOf(draft));
  draft.set(KEYS.time, nowMs);
  for (const [key, row] of draft.list<UnbondingFact>('unbonding/')) {
    const since = agreed(
      committee,
      clocks.filter((clock) => clock.index > row.index),
    );
    const endsAtMs = row.endsAtMs ?? (since === undefined ? null : since + terms.unbondingMs);
    if (endsAtMs === null) continue;
    if (endsAtMs > nowMs) {
      draft.set(key, { ...row, endsAtMs });
      continue;
    }
    const account = key.split('/')[1]!;
    changeAccount(draft, account, { unbonding: accountOf(draft, account).unbonding - row.amount });
    draft.delete(key);
  }
}

/** Undefined while fewer than a quorum have told theirs. */
function agreed({ validators }: Committee, clocks: readonly ClockFact[]): number | undefined {
  if (clocks.length < quorumOf(validators.length)) return undefined;
  const dishonestMax = Math.floor((validators.length - 1) / 3);
  return clocks.map(({ atMs }) => atMs).sort((a, b) => b - a)[dishonestMax];
}

/** 0 while nobody has told it. */
export function timeOf(draft: Pick<Draft, 'get'>): number {
  return draft.get<number>(KEYS.time) ?? 0;
}

/** Whether an unbonding waits for the clock of this validator, by which it is `nowMs`. */
export function isClockAwaited(draft: Pick<Draft, 'get' | 'list'>, validator: string, nowMs: number): boolean {
  const own = draft.get<ClockFact>(KEYS.clock(validator));
  if (own !== undefined && own.atMs >= nowMs) return false;
  return draft
    .list<UnbondingFact>('unbonding/')
    .some(([, { index, endsAtMs }]) =>
      endsAtMs === null
        ? own === undefined || own.index < index
        : endsAtMs <= nowMs && (own === undefined || own.atMs < endsAtMs),
    );
}

/** A new committee has clocks of its own. */
export function forgetClocks(draft: Draft): void {
  for (const [key] of draft.list('clock/')) draft.delete(key);
}
