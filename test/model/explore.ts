/**
 * Explicit-state exploration: every state that a model can reach, each once, nearest first. A model is plain data: where it starts, what can
 * happen in a state, and what states are the same.
 */
export interface Model<S> {
  readonly initial: S;
  /** What can happen next. An action without effect may be left out. */
  actions(state: S): Iterable<Action<S>>;
  /** Equal keys are the same state: here models forget what does not matter, such as which of several like validators it is. */
  key(state: S): string;
}

export interface Action<S> {
  readonly name: string;
  readonly to: S;
}

export interface Explored<S> {
  readonly states: ReadonlyMap<string, S>;
  /** The shortest way from the start to a state, for people. */
  trace(state: S): string;
}

export interface ExploreOptions<S> {
  /** Ends with the first state for which it holds. */
  readonly until?: (state: S) => boolean;
  readonly statesMax?: number;
}

/** Errors: when there are more than `statesMax` states, because half an exploration says nothing. */
export function explore<S>(model: Model<S>, { until, statesMax = 3_000_000 }: ExploreOptions<S> = {}): Explored<S> {
  const start = model.key(model.initial);
  const states = new Map<string, S>([[start, model.initial]]);
  const cameBy = new Map<string, { readonly from: string; readonly name: string }>();
  // A map is walked in the order of insertion, also what is added on the way: that is the queue.
  for (const [from, state] of states) {
    for (const { name, to } of model.actions(state)) {
      const key = model.key(to);
      if (states.has(key)) continue;
      if (states.size >= statesMax) throw new Error(`The model has more than ${statesMax} states.`);
      states.set(key, to);
      cameBy.set(key, { from, name });
      if (until?.(to) === true) return explored();
    }
  }
  return explored();

  function explored(): Explored<S> {
    return { states, trace };
  }

  function trace(state: S): string {
    const steps: string[] = [];
    for (let at = cameBy.get(model.key(state)); at !== undefined; at = cameBy.get(at.from)) steps.unshift(at.name);
    return steps.join('; ');
  }
}

/**
 * Whether a goal can be reached from a state by some actions of the model. Remembers what it found, so asking for every state costs about as much as
 * exploring. The actions must not lead in circles.
 */
export function canReach<S>(
  model: Pick<Model<S>, 'actions' | 'key'>,
  goal: (state: S) => boolean,
): (state: S) => boolean {
  const known = new Map<string, boolean>();
  return function reaches(state) {
    const key = model.key(state);
    const found = known.get(key);
    if (found !== undefined) return found;
    let isReached = goal(state);
    if (!isReached) {
      for (const { to } of model.actions(state)) {
        if (model.key(to) !== key && reaches(to)) {
          isReached = true;
          break;
        }
      }
    }
    known.set(key, isReached);
    return isReached;
  };
}

/** How the nearest state for which it holds is reached; undefined when there is none. */
export function first<S>(explored: Explored<S>, holds: (state: S) => boolean): string | undefined {
  for (const state of explored.states.values()) if (holds(state)) return explored.trace(state) || 'at the start';
  return undefined;
}

/** The same, of a model that is explored no further than there. */
export function firstOf<S>(model: Model<S>, holds: (state: S) => boolean): string | undefined {
  return first(explore(model, { until: holds }), holds);
}
