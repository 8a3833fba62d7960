import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { concat } from '../../../base/bytes.ts';
import { HyperMeshError, isCoded, toProblem } from '../../../base/errors.ts';
import {
  CHANNEL_LIMITS,
  encodeFrame,
  FRAME_HEADER_BYTES,
  type Frame,
  FrameDecoder,
  lied,
  ROOM_IN_ANSWER,
  roomInOpen,
  writeHeader,
} from '../../../wire/channel.ts';
import { Pieces } from './pieces.ts';
import type { Slabs } from './slabs.ts';
import type { Reply, RequestOptions } from './types.ts';

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

export interface MuxOptions {
  /** Whether this end opened the connection: its streams have odd numbers. */
  readonly isInitiator: boolean;
  readonly helloBytesMax: number;
  readonly silenceMsMax: number;
  readonly deadAfterMs: number;
  readonly onDefect: (error: unknown) => void;
  readonly slabs: Slabs;
}

/** Frames besides data that may wait for a peer who does not read. */
const CONTROL_BYTES_MAX = 32 * 2 ** 20;
/** Less than that is not worth a frame at the end of a slab. */
const DATA_BYTES_MIN = 1_024;
/** Asked for with a request, so that most answers come at once. */
const ANSWER_WINDOW = 1 << 20;
const STREAM_WINDOW = 1 << 20;
const STREAM_WINDOW_MAX = 8 << 20;
/** By how much the streams of one connection may grow their windows together. */
const GROWTH_MAX = 32 << 20;
const REQUEST_TIMEOUT_MS = 30_000;
/** A stream whose reader waits gets something within that time. */
const STREAM_SILENCE_MS_MAX = 60_000;
/** Of answers that were not taken yet, those that are being made counted as one of usual size; further requests of that connection wait. */
const UNSENT_BYTES_MAX = 16 << 20;
const ANSWER_BYTES = 1 << 20;
/** Requests that wait for a free stream. */
const WAITING_MAX = 4_096;
const CLOSE_GRACE_MS = 1_000;
const EMPTY = new Uint8Array(0);

/** What this end sends on a stream, paid for with credit. */
interface Outgoing {
  readonly stream: number;
  credit: number;
  bytes: Uint8Array;
  at: number;
  /** Where more comes from, for a stream. */
  source: AsyncIterator<Uint8Array> | undefined;
  isPulling: boolean;
  total: number;
  /** When something was sent last, or the first time. */
  movedAtMs: number;
  done(): void;
}

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

type Answered = { readonly head: Uint8Array; readonly body: AsyncIterable<Uint8Array> };

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
}

/**
 * Requests and streams of both ends over one socket (docs/protocol/channel.md). It holds nothing that the other end could make grow: bodies are
 * admitted before they are read, streams are read as far as their windows go, and frames are bounded.
 */
export class Mux {
  readonly closed: Promise<void>;
  readonly #socket: Duplex;
  readonly #options: MuxOptions;
  readonly #decoder: FrameDecoder;
  readonly #hello = Promise.withResolvers<Uint8Array>();
  readonly #ended = Promise.withResolvers<void>();
  /** Frames that came before {@link begin}. */
  #held: Frame[] = [];
  #responder: Responder | undefined;
  #streamsMax = 0;
  #greeted = false;
  #error: HyperMeshError | undefined;
  bytesIn = 0;
  bytesOut = 0;
  rttMs: number | null = null;
  /** When somebody asked something last. */
  usedAtMs = performance.now();
  #heardAtMs = performance.now();
  #pinged: { readonly token: bigint; readonly atMs: number } | undefined;

  readonly #asked = new Map<number, Asked>();
  readonly #served = new Map<number, Served>();
  #running = 0;
  #leaving: PromiseWithResolvers<void> | undefined;
  readonly #waiting: { start(): void; fail(error: Error): void }[] = [];
  #nextOwn: number;
  #nextTheirs: number;
  /** Bytes that may still come for streams that this end has given up. */
  #stray = 0;
  #grown = 0;

  readonly #control: (readonly [Uint8Array, Uint8Array])[] = [];
  #controlBytes = 0;
  readonly #ready = new Set<Outgoing>();
  #scheduled = false;
  /** A slab is on its way into the socket. */
  #writing = false;

  constructor(socket: Duplex, options: MuxOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#decoder = new FrameDecoder(options.helloBytesMax);
    this.#nextOwn = options.isInitiator ? 1 : 2;
    this.#nextTheirs = options.isInitiator ? 2 : 1;
    this.closed = this.#ended.promise;
    // Nobody may be waiting for it when the connection ends.
    this.#hello.promise.catch(() => undefined);
    socket.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    socket.on('error', (error) => this.end(gone('it was lost', error)));
    // A clean end is never success: what was under way fails.
    socket.on('end', () => this.end(gone('the other node ended it')));
    socket.on('close', () => this.end(gone('it was closed')));
  }

  get isOpen(): boolean {
    return this.#error === undefined;
  }

  /** Whether anything is under way. */
  get isBusy(): boolean {
    return this.#asked.size > 0 || this.#served.size > 0 || this.#waiting.length > 0;
  }

  sendHello(document: Uint8Array): void {
    this.#send({ kind: 'hello', document });
  }

  /** What the other end said of itself; empty for a guest. Errors: what it closed the connection with, `peer-unreachable`, `peer-lied`. */
  hello(): Promise<Uint8Array> {
    return this.#hello.promise;
  }

  /** From here on frames flow. */
  begin(responder: Responder, streamsMax: number): void {
    this.#responder = responder;
    this.#streamsMax = streamsMax;
    const held = this.#held;
    this.#held = [];
    this.#guarded(() => {
      for (const frame of held) this.#handle(frame);
    });
    this.#socket.resume();
    this.#ping(performance.now());
  }

  // --- requests of this end

  async request(method: string, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    return (await this.#ask(method, body, options, false)).head;
  }

  requestStream(method: string, body: Uint8Array, options: RequestOptions): Promise<Answered> {
    return this.#ask(method, body, options, true);
  }

  #ask(
    method: string,
    body: Uint8Array,
    { replyBytesMax, timeoutMs = REQUEST_TIMEOUT_MS, signal }: RequestOptions,
    wantsStream: boolean,
  ): Promise<Answered> {
    const { promise, resolve, reject } = Promise.withResolvers<Answered>();
    if (this.#error !== undefined) return Promise.reject(this.#error);
    if (signal?.aborted) return Promise.reject(cancelled(method, signal.reason));
    if (body.length > CHANNEL_LIMITS.bodyBytesMax) {
      const most = `A request has at most ${CHANNEL_LIMITS.bodyBytesMax} bytes, but this one has ${body.length}.`;
      return Promise.reject(new HyperMeshError('limit-exceeded', most));
    }
    this.usedAtMs = performance.now();
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

  #open(
    method: string,
    body: Uint8Array,
    about: Pick<Asked, 'replyBytesMax' | 'wantsStream' | 'settle' | 'over'>,
  ): Asked {
    const { replyBytesMax, wantsStream } = about;
    const stream = this.#nextOwn;
    this.#nextOwn = following(stream);
    const window = wantsStream ? STREAM_WINDOW : Math.max(1, Math.min(replyBytesMax, ANSWER_WINDOW));
    const inline = body.subarray(0, Math.min(roomInOpen(method), CHANNEL_LIMITS.windowBytes));
    const nowMs = performance.now();
    const asked: Asked = {
      ...{ ...about, stream, window },
      ...{ taken: 0, windowSize: window, grown: 0, creditedAtMs: nowMs, received: 0, heardAtMs: nowMs },
      ...{ answer: undefined, body: undefined, outgoing: undefined },
    };
    this.#asked.set(stream, asked);
    this.#send({ kind: 'open', stream, method, length: body.length, window, bytes: inline });
    if (inline.length < body.length) {
      const outgoing = newOutgoing(stream, CHANNEL_LIMITS.windowBytes - inline.length, () => {
        asked.outgoing = undefined;
      });
      asked.outgoing = outgoing;
      outgoing.bytes = body.subarray(inline.length);
      this.#offer(outgoing);
    }
    return asked;
  }

  /** This end wants nothing more of it. */
  #abandon(asked: Asked, error: Error): void {
    if (this.#asked.get(asked.stream) !== asked) return;
    this.#send({ kind: 'cancel', stream: asked.stream });
    this.#stray += asked.window;
    this.#finish(asked, error);
  }

  #finish(asked: Asked, error: Error | null): void {
    this.#asked.delete(asked.stream);
    if (asked.outgoing !== undefined) this.#ready.delete(asked.outgoing);
    this.#grown -= asked.grown;
    asked.body?.end(error);
    if (error !== null) asked.settle(error);
    asked.over();
    this.usedAtMs = performance.now();
    while (this.#error === undefined && this.#asked.size < this.#streamsMax && this.#waiting.length > 0) {
      this.#waiting.shift()!.start();
    }
  }

  // --- what arrives

  #receive(chunk: Uint8Array): void {
    this.bytesIn += chunk.length;
    this.#heardAtMs = performance.now();
    this.#guarded(() => {
      for (const frame of this.#decoder.push(chunk)) {
        if (this.#error !== undefined) return;
        if (!this.#greeted) this.#greet(frame);
        else if (this.#responder === undefined && frame.kind !== 'close') {
          // At most one chunk: the socket rests until both ends are proved.
          this.#held.push(frame);
          this.#socket.pause();
        } else this.#handle(frame);
      }
    });
  }

  #guarded(work: () => void): void {
    try {
      work();
    } catch (error) {
      const isBreach = isCoded(error, 'peer-lied');
      if (!isBreach) this.#options.onDefect(error);
      this.close(isCoded(error) ? error : lied('something that could not be handled'));
      if (isBreach) this.#responder?.breached(error);
    }
  }

  #greet(frame: Frame): void {
    if (frame.kind === 'close') {
      this.#handle(frame);
      return;
    }
    if (frame.kind !== 'hello') throw lied('something before its hello');
    this.#greeted = true;
    // The document is kept while others come.
    this.#hello.resolve(frame.document.slice());
  }

  #handle(frame: Frame): void {
    switch (frame.kind) {
      case 'hello':
        throw lied('a second hello');
      case 'close':
        this.end(frame.problem === null ? gone('the other node closed it') : told(frame.problem));
        return;
      case 'ping':
        this.#send({ kind: 'pong', token: frame.token });
        return;
      case 'pong':
        if (this.#pinged?.token !== frame.token) throw lied('an answer to no ping');
        this.rttMs = performance.now() - this.#pinged.atMs;
        this.#pinged = undefined;
        return;
      case 'open':
        this.#serve(frame);
        return;
      case 'answer':
        this.#onAnswer(frame);
        return;
      case 'data':
        this.#onData(frame.stream, frame.bytes);
        return;
      case 'end': {
        const asked = this.#mine(frame.stream);
        if (asked === undefined) return;
        if (asked.body === undefined) throw lied('the end of a stream that had not begun');
        if (asked.received !== frame.length) throw lied('a stream that is not as long as it says');
        this.#finish(asked, null);
        return;
      }
      case 'fail': {
        const asked = this.#mine(frame.stream);
        if (asked !== undefined) this.#finish(asked, told(frame.problem));
        return;
      }
      case 'cancel':
        this.#onCancel(frame.stream);
        return;
      case 'credit':
        this.#onCredit(frame.stream, frame.bytes);
    }
  }

  /** Whether this end opens streams of that number. */
  #isOwn(stream: number): boolean {
    return (stream % 2 === 1) === this.#options.isInitiator;
  }

  /** The request that an answer belongs to; undefined when it was given up meanwhile. */
  #mine(stream: number): Asked | undefined {
    if (!this.#isOwn(stream)) throw lied('an answer on a stream of its own');
    return this.#asked.get(stream);
  }

  #onAnswer({ stream, whole, length, bytes }: Frame & { kind: 'answer' }): void {
    const asked = this.#mine(stream);
    if (asked === undefined) {
      this.#onStray(bytes.length);
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

  #onData(stream: number, bytes: Uint8Array): void {
    this.#heardAtMs = performance.now();
    if (!this.#isOwn(stream)) {
      this.#onBody(stream, bytes);
      return;
    }
    const asked = this.#asked.get(stream);
    if (asked === undefined) {
      this.#onStray(bytes.length);
      return;
    }
    if (asked.answer === undefined) throw lied('bytes of an answer before the answer');
    this.#charge(asked, bytes.length);
    this.#take(asked, bytes);
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
      nowMs - asked.creditedAtMs < 2 * (this.rttMs ?? 0) &&
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
    this.#send({ kind: 'credit', stream: asked.stream, bytes });
  }

  #onStray(bytes: number): void {
    this.#stray -= bytes;
    if (this.#stray < 0) throw lied('bytes for streams that are not open');
  }

  // --- requests of the other end

  #serve({ stream, method, length, window, bytes }: Frame & { kind: 'open' }): void {
    if (stream !== this.#nextTheirs) throw lied('a stream out of turn');
    this.#nextTheirs = following(stream);
    this.usedAtMs = performance.now();
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
      this.#stray += Math.min(left, length - bytes.length);
      this.#fail(stream, error);
      return;
    }
    const outgoing = newOutgoing(stream, window, () => this.#leave(served));
    const body = bytes.length === length ? kept(bytes) : new Uint8Array(length);
    const served: Served = { stream, admitted, body, at: 0, window: left, abort: new AbortController(), outgoing };
    this.#served.set(stream, served);
    if (length - bytes.length > left) {
      served.window = length - bytes.length;
      this.#send({ kind: 'credit', stream, bytes: served.window - left });
    }
    if (bytes.length === length) {
      served.at = length;
      void this.#run(served);
    } else {
      body.set(bytes);
      served.at = bytes.length;
    }
  }

  #onBody(stream: number, bytes: Uint8Array): void {
    const served = this.#served.get(stream);
    if (served === undefined) {
      this.#onStray(bytes.length);
      return;
    }
    served.window -= bytes.length;
    if (served.window < 0 || served.at + bytes.length > served.body.length) throw lied('more bytes than the body has');
    served.body.set(bytes, served.at);
    served.at += bytes.length;
    if (served.at === served.body.length) void this.#run(served);
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
        this.#hasRoom();
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
    if (!isWhole) outgoing.source = reply.body[Symbol.asyncIterator]();
    this.#send({ kind: 'answer', stream, whole: isWhole, length: head.length, bytes: inline });
    this.#offer(outgoing);
  }

  #unsentBytes(): number {
    let bytes = this.#controlBytes + this.#running * ANSWER_BYTES;
    for (const { outgoing } of this.#served.values()) bytes += outgoing.bytes.length - outgoing.at;
    return bytes;
  }

  /** Resolves when something has left, or was given up. */
  #sent(): Promise<void> {
    this.#leaving ??= Promise.withResolvers();
    return this.#leaving.promise;
  }

  #fail(stream: number, error: unknown): void {
    if (!isCoded(error)) this.#options.onDefect(error);
    const problem = toProblem(error);
    this.#send({ kind: 'fail', stream, problem: new HyperMeshError(problem.code, problem.message, problem) });
  }

  /** Nothing more is sent on it. */
  #leave(served: Served): void {
    if (!this.#served.delete(served.stream)) return;
    this.#ready.delete(served.outgoing);
    this.usedAtMs = performance.now();
    this.#hasRoom();
  }

  #hasRoom(): void {
    this.#leaving?.resolve();
    this.#leaving = undefined;
  }

  #onCancel(stream: number): void {
    if (this.#isOwn(stream)) throw lied('a cancellation of a stream that is not its own');
    const served = this.#served.get(stream);
    if (served !== undefined) this.#drop(served, cancelled('the request', undefined));
  }

  #drop(served: Served, why: Error): void {
    // A body that was not read to its end never runs.
    if (served.at < served.body.length) served.admitted.release();
    this.#leave(served);
    served.abort.abort(why);
    void served.outgoing.source?.return?.()?.catch(this.#options.onDefect);
  }

  #onCredit(stream: number, bytes: number): void {
    const outgoing = this.#isOwn(stream) ? this.#asked.get(stream)?.outgoing : this.#served.get(stream)?.outgoing;
    if (outgoing === undefined) return;
    outgoing.credit = Math.min(outgoing.credit + bytes, Number.MAX_SAFE_INTEGER);
    this.#offer(outgoing);
  }

  // --- sending

  /** What is not data goes first. */
  #send(frame: Frame): void {
    if (this.#error !== undefined) return;
    const parts = encodeFrame(frame);
    this.#control.push(parts);
    this.#controlBytes += parts[0].length + parts[1].length;
    if (this.#controlBytes > CONTROL_BYTES_MAX) this.end(gone('the other node does not read'));
    else this.#schedule();
  }

  #offer(outgoing: Outgoing): void {
    if (outgoing.at < outgoing.bytes.length) {
      if (outgoing.credit === 0) return;
      this.#ready.add(outgoing);
      this.#schedule();
    } else if (outgoing.source === undefined) outgoing.done();
    else if (outgoing.credit > 0 && !outgoing.isPulling) void this.#pull(outgoing);
  }

  #schedule(): void {
    if (this.#scheduled || this.#writing) return;
    this.#scheduled = true;
    // Frames of one turn leave together.
    process.nextTick(() => {
      this.#scheduled = false;
      this.#pump();
    });
  }

  /**
   * Fills one slab with frames and writes it; the next one when the socket has taken it. So frames gather while the socket is busy, nothing is
   * allocated, and little waits where it cannot be overtaken any more.
   */
  #pump(): void {
    if (this.#error !== undefined || this.#writing) return;
    if (this.#control.length === 0 && this.#ready.size === 0) return;
    const slab = this.#options.slabs.take();
    let at = 0;
    let control = this.#control[0];
    for (; control !== undefined; control = this.#control[0]) {
      const [head, bytes] = control;
      const size = head.length + bytes.length;
      if (at + size > slab.length) break;
      slab.set(head, at);
      slab.set(bytes, at + head.length);
      at += size;
      this.#controlBytes -= size;
      this.#control.shift();
    }
    if (control === undefined) at = this.#fill(slab, at);
    // Only the hello of a network with long revocation lists is longer than a slab.
    const bytes = at > 0 ? slab.subarray(0, at) : concat(...this.#control.shift()!);
    if (at === 0) this.#controlBytes -= bytes.length;
    this.bytesOut += bytes.length;
    this.#writing = true;
    this.#socket.write(bytes, () => {
      this.#options.slabs.give(slab);
      this.#writing = false;
      this.#hasRoom();
      this.#pump();
    });
  }

  /** Streams take turns. */
  #fill(slab: Buffer, from: number): number {
    let at = from;
    for (const outgoing of this.#ready) {
      const room = slab.length - at - FRAME_HEADER_BYTES;
      if (room < DATA_BYTES_MIN) break;
      this.#ready.delete(outgoing);
      const size = Math.min(CHANNEL_LIMITS.payloadBytesMax, outgoing.credit, room, outgoing.bytes.length - outgoing.at);
      writeHeader(slab, 'data', outgoing.stream, size, at);
      slab.set(outgoing.bytes.subarray(outgoing.at, outgoing.at + size), at + FRAME_HEADER_BYTES);
      at += FRAME_HEADER_BYTES + size;
      outgoing.at += size;
      outgoing.credit -= size;
      outgoing.movedAtMs = performance.now();
      // Added again it comes last, and the loop goes on to it.
      this.#offer(outgoing);
    }
    return at;
  }

  /** The next piece of a stream that is sent, when the last one has left. */
  async #pull(outgoing: Outgoing): Promise<void> {
    const { source, stream } = outgoing;
    outgoing.isPulling = true;
    try {
      const { done, value } = await source!.next();
      outgoing.isPulling = false;
      // Given up meanwhile; whoever did that has told the source.
      if (!this.#served.has(stream)) return;
      if (done) {
        this.#send({ kind: 'end', stream, length: outgoing.total });
        return outgoing.done();
      }
      outgoing.bytes = value;
      outgoing.at = 0;
      outgoing.total += value.length;
      this.#offer(outgoing);
    } catch (error) {
      if (!this.#served.has(stream)) return;
      this.#fail(stream, error);
      outgoing.done();
    }
  }

  // --- life and death

  /** Called from time to time. */
  tick(nowMs: number): void {
    if (this.#error !== undefined) return;
    const { silenceMsMax, deadAfterMs } = this.#options;
    const silentMs = nowMs - this.#heardAtMs;
    if (silentMs > silenceMsMax) this.#ping(nowMs);
    // The ping as well is old: a process that slept itself asks first.
    if (silentMs > deadAfterMs && nowMs - this.#pinged!.atMs > deadAfterMs - silenceMsMax) {
      this.end(gone(`the other node has said nothing for ${Math.round(silentMs / 1000)} s`));
      return;
    }
    for (const served of this.#served.values()) {
      const { outgoing, stream } = served;
      if (outgoing.at < outgoing.bytes.length && nowMs - outgoing.movedAtMs > STREAM_SILENCE_MS_MAX) {
        this.#fail(stream, new HyperMeshError('timeout', 'The answer was not taken.'));
        this.#drop(served, cancelled('the request', undefined));
      }
    }
    for (const asked of this.#asked.values()) {
      if (asked.body?.isWanted && nowMs - asked.heardAtMs > STREAM_SILENCE_MS_MAX) {
        this.#abandon(asked, new HyperMeshError('timeout', 'The other node stopped in the middle of a stream.'));
      }
    }
  }

  #ping(nowMs: number): void {
    if (this.#pinged !== undefined) return;
    this.#pinged = { token: randomBytes(8).readBigUInt64BE(), atMs: nowMs };
    this.#send({ kind: 'ping', token: this.#pinged.token });
  }

  /** Says why, or that all is well, and ends the connection. What is under way fails at both ends. */
  close(problem: HyperMeshError | null): void {
    if (this.#error !== undefined) return;
    const frame = concat(...encodeFrame({ kind: 'close', problem }));
    this.#tearDown(problem ?? gone('this node closed it'));
    this.#socket.end(frame);
    const timer = setTimeout(() => this.#socket.destroy(), CLOSE_GRACE_MS);
    this.#socket.once('close', () => clearTimeout(timer));
    // What still comes is not for anybody.
    this.#socket.resume();
  }

  /** Ends the connection at once. */
  end(error: HyperMeshError): void {
    if (this.#error !== undefined) return;
    this.#tearDown(error);
    this.#socket.destroy();
  }

  #tearDown(error: HyperMeshError): void {
    this.#error = error;
    this.#socket.removeAllListeners('data');
    this.#hello.reject(error);
    this.#held = [];
    this.#control.length = 0;
    this.#controlBytes = 0;
    this.#ready.clear();
    for (const asked of [...this.#asked.values()]) this.#finish(asked, error);
    for (const { fail } of this.#waiting.splice(0)) fail(error);
    for (const served of [...this.#served.values()]) this.#drop(served, error);
    this.#ended.resolve();
  }
}

function newOutgoing(stream: number, credit: number, done: () => void): Outgoing {
  return {
    stream,
    credit,
    bytes: EMPTY,
    at: 0,
    source: undefined,
    isPulling: false,
    total: 0,
    movedAtMs: performance.now(),
    done,
  };
}

/** Bytes that outlive what they arrived in: copied, unless they are most of it. */
function kept(bytes: Uint8Array): Uint8Array {
  return bytes.length * 2 >= bytes.buffer.byteLength ? bytes : bytes.slice();
}

/** Numbers of one parity, around and around; 0 is the connection itself. */
function following(stream: number): number {
  const next = (stream + 2) % 2 ** 32;
  return next === 0 ? 2 : next;
}

async function* nothing(): AsyncGenerator<Uint8Array, void, undefined> {}

/** What the other end says of a request. That somebody lied is for this end to find, and is never taken from there. */
export function told(problem: HyperMeshError): HyperMeshError {
  if (!isCoded(problem, 'peer-lied', 'shard-mismatch')) return problem;
  return new HyperMeshError('operation-unsupported', `The other node refused what this one sent: ${problem.message}`);
}

export function gone(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError(
    'peer-unreachable',
    `The connection to the other node is gone: ${why}.`,
    cause === undefined ? {} : { cause },
  );
}

export function cancelled(what: string, cause: unknown): HyperMeshError {
  return new HyperMeshError('cancelled', `The caller gave up ${what}.`, { cause });
}
