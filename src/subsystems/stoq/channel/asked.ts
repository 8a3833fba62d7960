import { HyperMeshError } from '../../../base/errors.ts';
import { CHANNEL_LIMITS, type Frame, lied, roomInOpen } from '../../../wire/channel.ts';
import { cancelled, told } from './endings.ts';
import { Pieces } from './pieces.ts';
import { newOutgoing, type Outgoing, type Sender } from './sender.ts';
import { following, kept, type Strays } from './streams.ts';
import type { RequestOptions } from './types.ts';

/** Asked for with a request, so that most answers come at once. */
const ANSWER_WINDOW = 1 << 20;
const STREAM_WINDOW = 1 << 20;
const STREAM_WINDOW_MAX = 8 << 20;
/** By how much the streams of one connection may grow their windows together. */
const GROWTH_MAX = 32 << 20;
const REQUEST_TIMEOUT_MS = 30_000;
/** A stream whose reader waits gets something within that time. */
const STREAM_SILENCE_MS_MAX = 60_000;
/** Requests that wait for a free stream. */
const WAITING_MAX = 4_096;
const EMPTY = new Uint8Array(0);

/** A request of this end. */
interface Asked {
  readonly stream: number;
  readonly replyBytesMax: number;
  readonly wantsStream: boolean;
  outgoing: Outgoing | undefined;
  /** Bytes that the other end may still send. */
  window: number;
  /** Taken by the reader, not given back as credit yet. */
  taken: number;
  /** What is given back at most at a time, and by how much it has grown. */
  windowSize: number;
  grown: number;
  creditedAtMs: number;
  answer: { readonly whole: boolean; readonly buffer: Uint8Array; at: number } | undefined;
  body: Pieces | undefined;
  received: number;
  heardAtMs: number;
  settle(result: Answered | Error): void;
  /** Nothing of it is left. */
  over(): void;
}

export type Answered = { readonly head: Uint8Array; readonly body: AsyncIterable<Uint8Array> };

export interface AskedLent {
  readonly sender: Sender;
  readonly strays: Strays;
  readonly rttMs: () => number | null;
  /** Somebody asked something, or has an answer. */
  readonly used: () => void;
}

/** The requests of this end of a connection, and what comes in answer to them. */
export class AskedRequests {
  readonly #lent: AskedLent;
  readonly #asked = new Map<number, Asked>();
  readonly #waiting: { start(): void; fail(error: Error): void }[] = [];
  #streamsMax = 0;
  #nextStream: number;
  #grown = 0;
  #ended: HyperMeshError | undefined;

  constructor(lent: AskedLent, firstStream: number) {
    this.#lent = lent;
    this.#nextStream = firstStream;
  }

  get isBusy(): boolean {
    return this.#asked.size > 0 || this.#waiting.length > 0;
  }

  begin(streamsMax: number): void {
    this.#streamsMax = streamsMax;
  }

  ask(
    method: string,
    body: Uint8Array,
    { replyBytesMax, timeoutMs = REQUEST_TIMEOUT_MS, signal }: RequestOptions,
    wantsStream: boolean,
  ): Promise<Answered> {
    const { promise, resolve, reject } = Promise.withResolvers<Answered>();
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    if (signal?.aborted) return Promise.reject(cancelled(method, signal.reason));
    if (body.length > CHANNEL_LIMITS.bodyBytesMax) {
      const most = `A request has at most ${CHANNEL_LIMITS.bodyBytesMax} bytes, but this one has ${body.length}.`;
      return Promise.reject(new HyperMeshError('limit-exceeded', most));
    }
    this.#lent.used();
    let asked: Asked | undefined;
    let settled = false;
    const settle: Asked['settle'] = (result) => {
      if (settled) return;
      settled = true;
      clearTimeout(timer);
      if (result instanceof Error) {
        over();
        reject(result);
      } else resolve(result);
    };
    const over = () => signal?.removeEventListener('abort', onAbort);
    const start = () => {
      if (!settled) asked = this.#open(method, body, { replyBytesMax, wantsStream, settle, over });
    };
    const giveUp = (error: Error) => {
      if (asked === undefined) settle(error);
      else this.#abandon(asked, error);
    };
    const onAbort = () => giveUp(cancelled(method, signal?.reason));
    const timer = setTimeout(
      () => giveUp(new HyperMeshError('timeout', `The other node did not answer ${method} within ${timeoutMs} ms.`)),
      timeoutMs,
    );
    signal?.addEventListener('abort', onAbort, { once: true });
    if (this.#asked.size < this.#streamsMax) start();
    else if (this.#waiting.length < WAITING_MAX) this.#waiting.push({ start, fail: settle });
    else settle(new HyperMeshError('quota-exceeded', 'Too many requests to that node wait already.'));
    return promise;
  }

  onAnswer({ stream, whole, length, bytes }: Frame & { kind: 'answer' }): void {
    const asked = this.#asked.get(stream);
    // Given up meanwhile.
    if (asked === undefined) {
      this.#lent.strays.came(bytes.length);
      return;
    }
    if (asked.answer !== undefined) throw lied('a second answer');
    this.#charge(asked, bytes.length);
    if (whole === asked.wantsStream) {
      this.#abandon(asked, lied(`${whole ? 'one answer' : 'a stream'} where the other was expected`));
      return;
    }
    if (length > asked.replyBytesMax) {
      this.#abandon(
        asked,
        new HyperMeshError(
          'limit-exceeded',
          `Expected an answer of at most ${asked.replyBytesMax} bytes, but it has ${length}.`,
        ),
      );
      return;
    }
    const isAll = bytes.length === length;
    asked.answer = { whole, buffer: isAll ? kept(bytes) : new Uint8Array(length), at: isAll ? length : 0 };
    this.#take(asked, isAll ? EMPTY : bytes);
    // What is stored anyway may come at once.
    const missing = length - bytes.length;
    if (missing > asked.window && this.#asked.has(stream)) this.#credit(asked, missing - asked.window);
  }

  onData(stream: number, bytes: Uint8Array): void {
    const asked = this.#asked.get(stream);
    if (asked === undefined) {
      this.#lent.strays.came(bytes.length);
      return;
    }
    if (asked.answer === undefined) throw lied('bytes of an answer before the answer');
    this.#charge(asked, bytes.length);
    this.#take(asked, bytes);
  }

  onEnd(stream: number, length: number): void {
    const asked = this.#asked.get(stream);
    if (asked === undefined) return;
    if (asked.body === undefined) throw lied('the end of a stream that had not begun');
    if (asked.received !== length) throw lied('a stream that is not as long as it says');
    this.#finish(asked, null);
  }

  onFail(stream: number, problem: HyperMeshError): void {
    const asked = this.#asked.get(stream);
    if (asked !== undefined) this.#finish(asked, told(problem));
  }

  /** Credit for the body of a request. */
  onCredit(stream: number, bytes: number): void {
    const outgoing = this.#asked.get(stream)?.outgoing;
    if (outgoing !== undefined) this.#lent.sender.credit(outgoing, bytes);
  }

  /** Called from time to time. */
  tick(nowMs: number): void {
    for (const asked of this.#asked.values()) {
      if (asked.body?.isWanted && nowMs - asked.heardAtMs > STREAM_SILENCE_MS_MAX) {
        this.#abandon(asked, new HyperMeshError('timeout', 'The other node stopped in the middle of a stream.'));
      }
    }
  }

  /** The connection is gone: everything under way fails. */
  end(error: HyperMeshError): void {
    this.#ended = error;
    for (const asked of [...this.#asked.values()]) this.#finish(asked, error);
    for (const { fail } of this.#waiting.splice(0)) fail(error);
  }

  #open(
    method: string,
    body: Uint8Array,
    about: Pick<Asked, 'replyBytesMax' | 'wantsStream' | 'settle' | 'over'>,
  ): Asked {
    const { replyBytesMax, wantsStream } = about;
    const { sender } = this.#lent;
    const stream = this.#nextStream;
    this.#nextStream = following(stream);
    const window = wantsStream ? STREAM_WINDOW : Math.max(1, Math.min(replyBytesMax, ANSWER_WINDOW));
    const inline = body.subarray(0, Math.min(roomInOpen(method), CHANNEL_LIMITS.windowBytes));
    const nowMs = performance.now();
    const asked: Asked = {
      ...{ ...about, stream, window },
      ...{ taken: 0, windowSize: window, grown: 0, creditedAtMs: nowMs, received: 0, heardAtMs: nowMs },
      ...{ answer: undefined, body: undefined, outgoing: undefined },
    };
    this.#asked.set(stream, asked);
    sender.send({ kind: 'open', stream, method, length: body.length, window, bytes: inline });
    if (inline.length < body.length) {
      const outgoing = newOutgoing(stream, CHANNEL_LIMITS.windowBytes - inline.length, () => {
        asked.outgoing = undefined;
      });
      asked.outgoing = outgoing;
      outgoing.bytes = body.subarray(inline.length);
      sender.offer(outgoing);
    }
    return asked;
  }

  /** This end wants nothing more of it. */
  #abandon(asked: Asked, error: Error): void {
    if (this.#asked.get(asked.stream) !== asked) return;
    this.#lent.sender.send({ kind: 'cancel', stream: asked.stream });
    this.#lent.strays.expect(asked.window);
    this.#finish(asked, error);
  }

  #finish(asked: Asked, error: Error | null): void {
    this.#asked.delete(asked.stream);
    if (asked.outgoing !== undefined) this.#lent.sender.withdraw(asked.outgoing);
    this.#grown -= asked.grown;
    asked.body?.end(error);
    if (error !== null) asked.settle(error);
    asked.over();
    this.#lent.used();
    while (this.#ended === undefined && this.#asked.size < this.#streamsMax && this.#waiting.length > 0) {
      this.#waiting.shift()!.start();
    }
  }

  /** Fills the answer or the head, then hands on what follows. */
  #take(asked: Asked, bytes: Uint8Array): void {
    const answer = asked.answer!;
    asked.heardAtMs = performance.now();
    const part = bytes.subarray(0, answer.buffer.length - answer.at);
    answer.buffer.set(part, answer.at);
    answer.at += part.length;
    if (answer.at < answer.buffer.length) return;
    if (answer.whole) {
      if (part.length < bytes.length) throw lied('more bytes than the answer has');
      asked.settle({ head: answer.buffer, body: nothing() });
      this.#finish(asked, null);
      return;
    }
    if (asked.body === undefined) {
      asked.body = new Pieces(
        (taken) => this.#onTaken(asked, taken),
        () => this.#abandon(asked, cancelled('the stream', undefined)),
      );
      asked.settle({ head: answer.buffer, body: asked.body });
      this.#onTaken(asked, Math.min(answer.buffer.length, STREAM_WINDOW));
    }
    if (part.length === bytes.length) return;
    const rest = part.length === 0 ? bytes : bytes.subarray(part.length);
    asked.received += rest.length;
    asked.body.push(rest);
  }

  #charge(asked: Asked, bytes: number): void {
    asked.window -= bytes;
    if (asked.window < 0) throw lied('more bytes than it had credit for');
  }

  /** Gives credit back in halves of the window; a reader that is faster than the way to and fro gets a larger one. */
  #onTaken(asked: Asked, bytes: number): void {
    if (this.#asked.get(asked.stream) !== asked) return;
    asked.taken += bytes;
    if (asked.taken < asked.windowSize / 2) return;
    const nowMs = performance.now();
    let credit = asked.taken;
    asked.taken = 0;
    if (
      nowMs - asked.creditedAtMs < 2 * (this.#lent.rttMs() ?? 0) &&
      asked.windowSize < STREAM_WINDOW_MAX &&
      this.#grown + asked.windowSize <= GROWTH_MAX
    ) {
      credit += asked.windowSize;
      asked.grown += asked.windowSize;
      this.#grown += asked.windowSize;
      asked.windowSize *= 2;
    }
    asked.creditedAtMs = nowMs;
    this.#credit(asked, credit);
  }

  #credit(asked: Asked, bytes: number): void {
    asked.window += bytes;
    this.#lent.sender.send({ kind: 'credit', stream: asked.stream, bytes });
  }
}

async function* nothing(): AsyncGenerator<Uint8Array, void, undefined> {}
