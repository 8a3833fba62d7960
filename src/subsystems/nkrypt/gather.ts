import { HyperMeshError, isCoded } from '../../base/errors.ts';

/** An answer that does not hold: its giver is as good as absent. */
export class Senseless extends Error {}

const ABSENT = ['peer-unreachable', 'network-unreachable', 'timeout', 'committee-unreachable'] as const;

/** Those that are left are asked as well after so long without enough answers: somebody hangs. */
const PATIENCE_MS = 2_000;

interface GatherOptions<T> {
  readonly needed: number;
  readonly faulty: number;
  /** Asked as well when not enough of the others are left, or some of them say nothing. */
  readonly reserve?: readonly string[];
  readonly patienceMs?: number;
  /** Called when those that are left had to be asked because somebody says nothing. */
  readonly hangs?: () => void;
  /** Only answers with the same text here count together. */
  readonly alike?: (value: T) => string;
}

/**
 * Asks all of them at once and takes the first `needed` answers that are alike; what the others say later is of no interest. `ask` throws for an answer
 * that does not hold. When so many fail that not enough are left, it is said why: a refusal counts when more than `faulty` gave it, because then
 * an honest one did. Errors: such a refusal; `committee-unreachable`.
 */
export async function gather<T>(
  validators: readonly string[],
  { needed, faulty, reserve = [], patienceMs = PATIENCE_MS, hangs, alike = () => '' }: GatherOptions<T>,
  ask: (validator: string, signal: AbortSignal) => Promise<T>,
): Promise<readonly T[]> {
  const groups = new Map<string, T[]>();
  const failures: unknown[] = [];
  let asked = 0;
  let left = 0;
  let waiting = reserve;
  const takeWaiting = () => {
    const more = waiting;
    waiting = [];
    return more;
  };
  const { promise, resolve, reject } = Promise.withResolvers<readonly T[]>();
  const enough = new AbortController();
  const settle = () => {
    const most = [...groups.values()].reduce((best, group) => (group.length > best.length ? group : best), []);
    if (most.length >= needed) resolve(most.slice(0, needed));
    else if (most.length + left < needed) {
      const more = takeWaiting();
      if (more.length > 0) askAll(more);
      else reject(explained(failures, asked - failures.length, faulty, needed));
    }
  };
  const askAll = (more: readonly string[]) => {
    asked += more.length;
    left += more.length;
    for (const validator of more) {
      ask(validator, enough.signal)
        .then(
          (value) => {
            const text = alike(value);
            const group = groups.get(text);
            if (group === undefined) groups.set(text, [value]);
            else group.push(value);
          },
          (error: unknown) => void failures.push(error),
        )
        .finally(() => {
          left -= 1;
          settle();
        });
    }
    settle();
  };
  askAll(validators);
  const patience = setTimeout(() => {
    const more = takeWaiting();
    if (more.length > 0) hangs?.();
    askAll(more);
  }, patienceMs);
  try {
    return await promise;
  } finally {
    clearTimeout(patience);
    enough.abort();
  }
}

function explained(failures: readonly unknown[], answered: number, faulty: number, needed: number): unknown {
  const isSilent = (error: unknown) => error instanceof Senseless || isCoded(error, ...ABSENT);
  const bug = failures.find((error) => !isCoded(error) && !isSilent(error));
  if (bug !== undefined) return bug;
  const refusals = failures.filter((error) => isCoded(error) && !isSilent(error)) as HyperMeshError[];
  const cancelled = refusals.find(({ code }) => code === 'cancelled');
  if (cancelled !== undefined) return cancelled;
  const said = new Map<string, HyperMeshError[]>();
  for (const error of refusals) said.set(error.code, [...(said.get(error.code) ?? []), error]);
  const [most] = [...said.values()].sort((a, b) => b.length - a.length);
  if (most !== undefined && most.length > faulty) return most[0];
  const asked = failures.length + answered;
  const silent = failures.length - refusals.length;
  return new HyperMeshError(
    'committee-unreachable',
    asked === 1
      ? 'The committee of the network does not answer.'
      : `Of ${asked} validators that were asked ${answered} answered as they should, ${silent} were silent or made no sense, ${refusals.length} refused; ${needed} are needed.`,
    {
      hint: 'Nothing was lost: run the same command again when more machines of the committee can be reached.',
      cause: failures.at(-1),
    },
  );
}
