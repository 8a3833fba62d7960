import { HyperMeshError, isCoded, toProblem } from '../../../base/errors.ts';
import { CHANNEL_LIMITS, type Frame, lied, ROOM_IN_ANSWER } from '../../../wire/channel.ts';
import { cancelled } from './endings.ts';
import { newOutgoing, type Outgoing, type Sender } from './sender.ts';
import { following, kept, type Strays } from './streams.ts';
import type { Reply } from './types.ts';

/** An answer is taken within that time. */
const STREAM_SILENCE_MS_MAX = 60_000;
/** Of answers that were not taken yet, those that are being made counted as one of usual size; further requests of that connection wait. */
const UNSENT_BYTES_MAX = 16 << 20;
const ANSWER_BYTES = 1 << 20;

/** What this end offers to the other. */
export interface Responder {
  /** Before the body of a request is read. Throws a coded error, or takes it on: `release` is called exactly once, when nothing of it is left. */
  admit(method: string, bodyBytes: number): Admitted;
  /** The other end broke the protocol, and the connection is closed. */
  breached(error: HyperMeshError): void;
}

interface Admitted {
  run(body: Uint8Array, signal: AbortSignal): Promise<Reply>;
  release(): void;
}

/** A request of the other end. */
interface Served {
  readonly stream: number;
  readonly admitted: Admitted;
  readonly body: Uint8Array;
  at: number;
  /** Bytes of the body that may still come. */
  window: number;
  readonly abort: AbortController;
  readonly outgoing: Outgoing;
  /** Where more of the answer comes from, for a stream, and how much came. */
  source: AsyncIterator<Uint8Array> | undefined;
  isPulling: boolean;
  total: number;
}

export interface ServedLent {
  readonly sender: Sender;
  readonly strays: Strays;
  readonly onDefect: (error: unknown) => void;
  /** Somebody asked something, or has an answer. */
  readonly used: () => void;
}

/** The requests of the other end of a connection, and the answers that leave. */
export class ServedRequests {
  readonly #lent: ServedLent;
  readonly #served = new Map<number, Served>();
  #responder: Responder | undefined;
  #streamsMax = 0;
  #nextStream: number;
  #running = 0;
  #leaving: PromiseWithResolvers<void> | undefined;

  constructor(lent: ServedLent, firstStream: number) {
    this.#lent = lent;
    this.#nextStream = firstStream;
  }

  get isBusy(): boolean {
    return this.#served.size > 0;
  }

  begin(responder: Responder, streamsMax: number): void {
    this.#responder = responder;
    this.#streamsMax = streamsMax;
  }

  onOpen({ stream, method, length, window, bytes }: Frame & { kind: 'open' }): void {
    if (stream !== this.#nextStream) throw lied('a stream out of turn');
    this.#nextStream = following(stream);
    this.#lent.used();
    if (bytes.length > CHANNEL_LIMITS.windowBytes) throw lied('more bytes than it had credit for');
    const left = CHANNEL_LIMITS.windowBytes - bytes.length;
    let admitted: Admitted;
    try {
      if (this.#served.size >= this.#streamsMax) {
        throw new HyperMeshError(
          'quota-exceeded',
          `At most ${this.#streamsMax} requests may be under way on a connection.`,
        );
      }
      admitted = this.#responder!.admit(method, length);
    } catch (error) {
      this.#lent.strays.expect(Math.min(left, length - bytes.length));
      this.#fail(stream, error);
      return;
    }
    const outgoing = newOutgoing(stream, window, () => this.#onSpent(served));
    const body = bytes.length === length ? kept(bytes) : new Uint8Array(length);
    const served: Served = {
      ...{ stream, admitted, body, at: 0, window: left, abort: new AbortController(), outgoing },
      ...{ source: undefined, isPulling: false, total: 0 },
    };
    this.#served.set(stream, served);
    if (length - bytes.length > left) {
      served.window = length - bytes.length;
      this.#lent.sender.send({ kind: 'credit', stream, bytes: served.window - left });
    }
    if (bytes.length === length) {
      served.at = length;
      void this.#run(served);
    } else {
      body.set(bytes);
      served.at = bytes.length;
    }
  }

  /** More of the body of a request. */
  onData(stream: number, bytes: Uint8Array): void {
    const served = this.#served.get(stream);
    if (served === undefined) {
      this.#lent.strays.came(bytes.length);
      return;
    }
    served.window -= bytes.length;
    if (served.window < 0 || served.at + bytes.length > served.body.length) throw lied('more bytes than the body has');
    served.body.set(bytes, served.at);
    served.at += bytes.length;
    if (served.at === served.body.length) void this.#run(served);
  }

  onCancel(stream: number): void {
    const served = this.#served.get(stream);
    if (served !== undefined) this.#drop(served, cancelled('the request', undefined));
  }

  /** Credit for an answer. */
  onCredit(stream: number, bytes: number): void {
    const served = this.#served.get(stream);
    if (served !== undefined) this.#lent.sender.credit(served.outgoing, bytes);
  }

  /** Something has left: answers that waited for room can be made. */
  hasRoom(): void {
    this.#leaving?.resolve();
    this.#leaving = undefined;
  }

  /** Called from time to time. */
  tick(nowMs: number): void {
    for (const served of this.#served.values()) {
      const { outgoing, stream } = served;
      if (outgoing.at < outgoing.bytes.length && nowMs - outgoing.movedAtMs > STREAM_SILENCE_MS_MAX) {
        this.#fail(stream, new HyperMeshError('timeout', 'The answer was not taken.'));
        this.#drop(served, cancelled('the request', undefined));
      }
    }
  }

  /** The connection is gone: whoever makes an answer is told. */
  end(error: HyperMeshError): void {
    for (const served of [...this.#served.values()]) this.#drop(served, error);
  }

  async #run(served: Served): Promise<void> {
    const isThere = () => this.#served.get(served.stream) === served;
    try {
      // Whoever asks without taking the answers waits.
      while (this.#unsentBytes() >= UNSENT_BYTES_MAX && isThere()) await this.#sent();
      if (!isThere()) return;
      this.#running += 1;
      try {
        await this.#answer(served);
      } finally {
        this.#running -= 1;
        this.hasRoom();
      }
    } catch (error) {
      if (!isThere()) return;
      this.#fail(served.stream, error);
      this.#leave(served);
    } finally {
      // A stream goes on; its place is given back when it has ended.
      served.admitted.release();
    }
  }

  async #answer(served: Served): Promise<void> {
    const { stream, outgoing } = served;
    const reply = await served.admitted.run(served.body, served.abort.signal);
    const isWhole = reply instanceof Uint8Array;
    const head = isWhole ? reply : reply.head;
    if (this.#served.get(stream) !== served) {
      if (!isWhole) await reply.body[Symbol.asyncIterator]().return?.();
      return;
    }
    if (head.length > CHANNEL_LIMITS.bodyBytesMax) {
      throw new HyperMeshError('limit-exceeded', `An answer has at most ${CHANNEL_LIMITS.bodyBytesMax} bytes.`);
    }
    const inline = head.subarray(0, Math.min(ROOM_IN_ANSWER, outgoing.credit));
    outgoing.credit -= inline.length;
    outgoing.bytes = head.subarray(inline.length);
    outgoing.movedAtMs = performance.now();
    if (!isWhole) served.source = reply.body[Symbol.asyncIterator]();
    this.#lent.sender.send({ kind: 'answer', stream, whole: isWhole, length: head.length, bytes: inline });
    this.#lent.sender.offer(outgoing);
  }

  #onSpent(served: Served): void {
    if (served.source === undefined) this.#leave(served);
    else if (served.outgoing.credit > 0 && !served.isPulling) void this.#pull(served, served.source);
  }

  /** The next piece of a stream that is sent, when the last one has left. */
  async #pull(served: Served, source: AsyncIterator<Uint8Array>): Promise<void> {
    const { stream, outgoing } = served;
    served.isPulling = true;
    try {
      const { done, value } = await source.next();
      served.isPulling = false;
      // Given up meanwhile; whoever did that has told the source.
      if (!this.#served.has(stream)) return;
      if (done) {
        this.#lent.sender.send({ kind: 'end', stream, length: served.total });
        return this.#leave(served);
      }
      outgoing.bytes = value;
      outgoing.at = 0;
      served.total += value.length;
      this.#lent.sender.offer(outgoing);
    } catch (error) {
      if (!this.#served.has(stream)) return;
      this.#fail(stream, error);
      this.#leave(served);
    }
  }

  #unsentBytes(): number {
    let bytes = this.#lent.sender.controlBytes + this.#running * ANSWER_BYTES;
    for (const { outgoing } of this.#served.values()) bytes += outgoing.bytes.length - outgoing.at;
    return bytes;
  }

  /** Resolves when something has left, or was given up. */
  #sent(): Promise<void> {
    this.#leaving ??= Promise.withResolvers();
    return this.#leaving.promise;
  }

  #fail(stream: number, error: unknown): void {
    if (!isCoded(error)) this.#lent.onDefect(error);
    const problem = toProblem(error);
    const sent = new HyperMeshError(problem.code, problem.message, problem);
    this.#lent.sender.send({ kind: 'fail', stream, problem: sent });
  }

  /** Nothing more is sent on it. */
  #leave(served: Served): void {
    if (!this.#served.delete(served.stream)) return;
    this.#lent.sender.withdraw(served.outgoing);
    this.#lent.used();
    this.hasRoom();
  }

  #drop(served: Served, why: Error): void {
    // A body that was not read to its end never runs.
    if (served.at < served.body.length) served.admitted.release();
    this.#leave(served);
    served.abort.abort(why);
    void served.source?.return?.()?.catch(this.#lent.onDefect);
  }
}
