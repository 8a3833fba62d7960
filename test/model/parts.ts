import type { Action, Model } from './explore.ts';

/**
 * How one validator hands over what does not fit into one entry (`src/subsystems/nkrypt/epochs.ts`): three operations, of which one fits into each part. Others bring what is
 * certified of them into the order meanwhile. It crashes, gets no answer, begins again; what it signed once can come into the order at any time later, or never.
 */
export interface PartRules {
  /** How often it begins. */
  readonly attempts: number;
  readonly mistake?: PartMistake;
}

export type PartMistake =
  | 'it goes on where the order is, in a list made anew'
  | 'it goes on after a part that is refused';

const OPERATIONS = [1, 2, 4];
const ALL = 7;

interface Part {
  readonly part: number;
  /** 0: nothing. */
  readonly operation: number;
  readonly isLast: boolean;
}

export interface PartState {
  readonly recorded: number;
  /** In the order, by their numbers. */
  readonly parts: readonly Part[];
  readonly signed: readonly Part[];
  readonly begun: number;
  /** In memory: its list, where its first part went, and which one it waits for. */
  readonly attempt: { readonly list: readonly number[]; readonly first: number; readonly at: number } | null;
}

export class PartModel implements Model<PartState> {
  readonly initial: PartState = { recorded: 0, parts: [], signed: [], begun: 0, attempt: null };
  readonly #rules: PartRules;

  constructor(rules: PartRules) {
    this.#rules = rules;
  }

  key(state: PartState): string {
    return JSON.stringify(state);
  }

  *actions(state: PartState): Iterable<Action<PartState>> {
    yield* this.helpful(state);
    if (state.attempt !== null) yield { name: 'it crashes, or gets no answer', to: { ...state, attempt: null } };
    for (const operation of OPERATIONS) {
      if ((state.recorded & operation) === 0)
        yield {
          name: `the order gets the certificate of ${operation}`,
          to: { ...state, recorded: state.recorded | operation },
        };
    }
  }

  *helpful(state: PartState): Iterable<Action<PartState>> {
    const { attempt, parts, begun } = state;
    const { mistake } = this.#rules;
    if (attempt === null && begun < this.#rules.attempts && !this.isWhole(state)) {
      const list = OPERATIONS.filter((one) => (state.recorded & one) === 0);
      const goesOn = mistake === 'it goes on where the order is, in a list made anew';
      const fresh = goesOn ? { list, first: 0, at: parts.length } : { list, first: parts.length, at: 0 };
      yield {
        name: `it begins with ${list.slice(fresh.at)}`,
        to: signing({ ...state, begun: begun + 1, attempt: fresh }),
      };
    }
    for (const one of state.signed) {
      if (one.part === parts.length && !this.isWhole(state))
        yield {
          name: `the order gets part ${one.part} with ${one.operation}`,
          to: { ...state, parts: [...parts, one] },
        };
    }
    if (attempt === null) return;
    const own = partOf(attempt);
    const there = parts[own.part];
    const isRefused = there !== undefined ? JSON.stringify(there) !== JSON.stringify(own) : this.isWhole(state);
    if (there === undefined && !isRefused) return;
    const swallows = mistake !== undefined;
    const next = isRefused && !swallows ? null : { ...attempt, at: attempt.at + 1 };
    yield {
      name: `it hears that part ${own.part} is ${isRefused ? 'refused' : 'there'}`,
      to: signing({ ...state, attempt: own.isLast ? null : next }),
    };
  }

  isWhole({ parts }: PartState): boolean {
    return parts.at(-1)?.isLast === true;
  }

  /** Whether the order counts the handover as whole, and something that was voted for is neither named nor certified. */
  isLacking(state: PartState): boolean {
    const named = state.parts.reduce((sum, { operation }) => sum | operation, state.recorded);
    return this.isWhole(state) && named !== ALL;
  }

  /** Whether it may begin again. */
  hasAttempts({ begun }: PartState): boolean {
    return begun < this.#rules.attempts;
  }
}

function partOf({ list, first, at }: NonNullable<PartState['attempt']>): Part {
  return { part: first + at, operation: list[at] ?? 0, isLast: at >= list.length - 1 };
}

function signing(state: PartState): PartState {
  if (state.attempt === null) return state;
  const own = partOf(state.attempt);
  const isKnown = state.signed.some((one) => JSON.stringify(one) === JSON.stringify(own));
  const signed = isKnown
    ? state.signed
    : [...state.signed, own].sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));
  return { ...state, signed };
}
