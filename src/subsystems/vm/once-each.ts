import { HyperMeshError } from '../../base/errors.ts';

/**
 * Something slow that several runs need, made once for each key at a time. Whoever comes first makes it; the others wait, and are to look again:
 * the first one may have given up.
 */
export class OnceEach {
  readonly #making = new Map<string, Promise<void>>();

  /** Makes it, or waits while another does. Errors: those of one's own `make`; `cancelled`. */
  async make(key: string, make: () => Promise<void>, signal: AbortSignal | undefined): Promise<void> {
    const making = this.#making.get(key);
    if (making !== undefined) return unlessAborted(making, signal);
    const own = make().finally(() => this.#making.delete(key));
    this.#making.set(
      key,
      own.catch(() => {}),
    );
    return own;
  }
}

async function unlessAborted(work: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () =>
    reject(
      new HyperMeshError('cancelled', 'The caller gave up before the program started.', { cause: signal?.reason }),
    );
  signal?.addEventListener('abort', abort, { once: true });
  try {
    if (signal?.aborted === true) abort();
    await Promise.race([work, aborted]);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}
