export interface FirstAnswerOptions {
  /** Who says nothing for so long is not waited for alone. */
  readonly patienceMs: number;
  /** Whether nobody else has to be asked after that. */
  readonly isFinal: (error: unknown) => boolean;
}

/**
 * Asks one after the other: the next one when one failed, or says nothing. The first answer counts, whoever gives it; the others are told to stop.
 * Errors: a final one; that of the first one when all failed.
 */
export async function firstAnswer<T>(
  asks: readonly ((signal: AbortSignal) => Promise<T>)[],
  { patienceMs, isFinal }: FirstAnswerOptions,
): Promise<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const enough = new AbortController();
  const failures = new Map<number, unknown>();
  let asked = 0;
  let patience: NodeJS.Timeout | undefined;
  const askNext = () => {
    clearTimeout(patience);
    const at = asked;
    const ask = asks[at];
    if (ask === undefined || enough.signal.aborted) return;
    asked += 1;
    patience = setTimeout(askNext, patienceMs);
    ask(enough.signal).then(resolve, (error: unknown) => {
      failures.set(at, error);
      if (isFinal(error)) reject(error);
      else if (failures.size === asks.length) reject(failures.get(0));
      else if (at === asked - 1) askNext();
    });
  };
  askNext();
  try {
    return await promise;
  } finally {
    clearTimeout(patience);
    enough.abort();
  }
}
