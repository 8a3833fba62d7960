import { z } from 'zod';
import { base64, fromBase64 } from '../../../base/bytes.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import type { Json } from '../../../base/json.ts';
import { decodeOrderAnswer, decodeOrderRequest, type OrderMethod, type OrderRequest } from '../../../wire/order.ts';
import { rest } from './rest.ts';
import { checkEntry, fitting, type Sequencer, type SequencerOptions, sequencerUnreachable } from './sequencer.ts';

/** What a {@link RemoteSequencer} asks. */
type SequencerMethod = Extract<OrderMethod, `sequence/${string}`>;

/** Asks the home that has the engine. */
export type SequencerAsk = (
  method: SequencerMethod,
  body: Json,
  options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs: number },
) => Promise<unknown>;

const TIMEOUT_MS = 15_000;
/** How long the other side keeps a question about growth open; the answer may take that and a moment. */
const GROWTH_MS = 20_000;
const PAUSE_MS = 250;
const PAUSE_MS_MAX = 5_000;
/** How the other side says that this validator has as much in its engine as it may have, and until when. */
const fullFor = z.looseObject({ retryInMs: z.number().min(0).max(60_000) });

/** The engine in the home of another validator, over the channel. */
export class RemoteSequencer implements Sequencer {
  readonly #ask: SequencerAsk;
  readonly #log: string;
  readonly #closing = new AbortController();

  constructor(ask: SequencerAsk, log: string) {
    this.#ask = ask;
    this.#log = log;
  }

  async append(entry: Uint8Array, { signal }: SequencerOptions = {}): Promise<number> {
    checkEntry(entry);
    const body = { log: this.#log, entry: base64(entry) };
    const ends = this.#ends(signal);
    for (;;) {
      try {
        return decodeOrderAnswer('append', await this.#answer('sequence/append', body, signal)).position;
      } catch (error) {
        const { data } = fullFor.safeParse(isCoded(error, 'quota-exceeded') ? error.details : undefined);
        if (data === undefined) throw error;
        await rest(data.retryInMs, ends);
        if (ends.aborted) throw error;
      }
    }
  }

  async read(after: number, { signal }: SequencerOptions = {}): Promise<readonly Uint8Array[]> {
    const { entries } = decodeOrderAnswer(
      'read',
      await this.#answer('sequence/read', { log: this.#log, after }, signal),
    );
    return fitting(entries.map(fromBase64));
  }

  async *watch(after: number, signal: AbortSignal): AsyncIterable<number> {
    const ends = AbortSignal.any([signal, this.#closing.signal]);
    let pause = PAUSE_MS;
    for (let said = after; !ends.aborted; ) {
      const asked = performance.now();
      try {
        const { length } = decodeOrderAnswer(
          'length',
          await this.#answer('sequence/length', { log: this.#log, after: said }, ends, GROWTH_MS + TIMEOUT_MS),
        );
        if (length > said) {
          said = length;
          pause = PAUSE_MS;
          yield length;
          continue;
        }
        // A quick "no" is no way to be kept busy.
        if (performance.now() - asked > GROWTH_MS / 2) continue;
      } catch (error) {
        if (!isCoded(error) || error.code === 'order-stopped') throw error;
      }
      await rest(pause, ends);
      pause = Math.min(2 * pause, PAUSE_MS_MAX);
    }
  }

  /** The home that has it sees for itself what is not needed any more. */
  async forget(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
  }

  #ends(signal: AbortSignal | undefined): AbortSignal {
    return signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
  }

  async #answer(
    method: SequencerMethod,
    body: Json,
    signal: AbortSignal | undefined,
    timeoutMs = TIMEOUT_MS,
  ): Promise<unknown> {
    const ends = this.#ends(signal);
    try {
      return await this.#ask(method, body, { signal: ends, timeoutMs });
    } catch (error) {
      if (signal?.aborted === true)
        throw new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: signal.reason });
      const isAbsent = isCoded(error, 'peer-unreachable', 'network-unreachable', 'timeout', 'committee-unreachable');
      if (isAbsent || this.#closing.signal.aborted)
        throw sequencerUnreachable('the home that has it cannot be reached', error);
      throw error;
    }
  }
}

/** The other side: answers from the engine of that name in this home. Errors: `order-invalid`, those of the engine. */
export async function serveSequencer(
  engineOf: (log: string) => Sequencer,
  method: SequencerMethod,
  body: unknown,
  signal: AbortSignal | undefined,
): Promise<Json> {
  switch (method) {
    case 'sequence/append': {
      const { entry, log }: OrderRequest<typeof method> = decodeOrderRequest(method, body);
      return { position: await engineOf(log).append(fromBase64(entry), { signal }) };
    }
    case 'sequence/read': {
      const { after, log }: OrderRequest<typeof method> = decodeOrderRequest(method, body);
      return { entries: (await engineOf(log).read(after)).map(base64) };
    }
    case 'sequence/length': {
      const { after, log }: OrderRequest<typeof method> = decodeOrderRequest(method, body);
      const late = AbortSignal.timeout(GROWTH_MS);
      const ends = signal === undefined ? late : AbortSignal.any([late, signal]);
      for await (const length of engineOf(log).watch(after, ends)) return { length };
      return { length: after };
    }
  }
}
