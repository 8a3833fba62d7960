/** Pieces of work that wait share a turn of the event loop until they took so long together. */
const TURN_MS = 2;

const waiting: (() => void)[] = [];
let isServing = false;
let sinceMs = 0;

/**
 * Resolves in a later turn of the event loop. What takes long is done piece by piece with this between them, so that what came in meanwhile is answered, also
 * where many work at the same time: a turn ends with the piece that makes it longer than {@link TURN_MS}. To await a promise that is settled lets nobody in.
 */
export function laterTurn(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  waiting.push(resolve);
  if (!isServing) {
    isServing = true;
    // The first of these ends the turn that a message began.
    setImmediate(() => setImmediate(begin));
  }
  return promise;
}

function begin(): void {
  sinceMs = performance.now();
  next();
}

function next(): void {
  waiting.shift()?.();
  // When that one has done its piece: ticks come after all that is settled.
  queueMicrotask(() => process.nextTick(after));
}

function after(): void {
  if (waiting.length === 0) isServing = false;
  else if (performance.now() - sinceMs < TURN_MS) next();
  else setImmediate(begin);
}
