import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { concat } from '../../../base/bytes.ts';
import { type HyperMeshError, isCoded } from '../../../base/errors.ts';
import { encodeFrame, type Frame, FrameDecoder, lied } from '../../../wire/channel.ts';
import { type Answered, AskedRequests } from './asked.ts';
import { gone, told } from './endings.ts';
import { Sender } from './sender.ts';
import { type Responder, ServedRequests } from './served.ts';
import type { Slabs } from './slabs.ts';
import { Strays } from './streams.ts';
import type { RequestOptions } from './types.ts';

export interface MuxOptions {
  /** Whether this end opened the connection: its streams have odd numbers. */
  readonly isInitiator: boolean;
  readonly helloBytesMax: number;
  readonly silenceMsMax: number;
  readonly deadAfterMs: number;
  readonly onDefect: (error: unknown) => void;
  readonly slabs: Slabs;
}

const CLOSE_GRACE_MS = 1_000;

/**
 * Requests and streams of both ends over one socket (docs/protocol/channel.md). It holds nothing that the other end could make grow: bodies are
 * admitted before they are read, streams are read as far as their windows go, and frames are bounded. Here is the life of the connection and where
 * each frame goes; {@link AskedRequests} has what this end asks, {@link ServedRequests} what the other end does, {@link Sender} what leaves.
 */
export class Mux {
  readonly closed: Promise<void>;
  readonly #socket: Duplex;
  readonly #options: MuxOptions;
  readonly #decoder: FrameDecoder;
  readonly #sender: Sender;
  readonly #asked: AskedRequests;
  readonly #served: ServedRequests;
  readonly #hello = Promise.withResolvers<Uint8Array>();
  readonly #ended = Promise.withResolvers<void>();
  /** Frames that came before {@link begin}. */
  #held: Frame[] = [];
  #responder: Responder | undefined;
  #greeted = false;
  #error: HyperMeshError | undefined;
  bytesIn = 0;
  rttMs: number | null = null;
  /** When somebody asked something last. */
  usedAtMs = performance.now();
  #heardAtMs = performance.now();
  #pinged: { readonly token: bigint; readonly atMs: number } | undefined;

  constructor(socket: Duplex, options: MuxOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#decoder = new FrameDecoder(options.helloBytesMax);
    const { slabs, onDefect } = options;
    const sender = new Sender({
      socket,
      slabs,
      overrun: () => this.end(gone('the other node does not read')),
      sent: () => this.#served.hasRoom(),
    });
    const used = () => {
      this.usedAtMs = performance.now();
    };
    const shared = { sender, strays: new Strays(), used };
    this.#sender = sender;
    this.#asked = new AskedRequests({ ...shared, rttMs: () => this.rttMs }, options.isInitiator ? 1 : 2);
    this.#served = new ServedRequests({ ...shared, onDefect }, options.isInitiator ? 2 : 1);
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
    return this.#asked.isBusy || this.#served.isBusy;
  }

  get bytesOut(): number {
    return this.#sender.bytesOut;
  }

  sendHello(document: Uint8Array): void {
    this.#sender.send({ kind: 'hello', document });
  }

  /** What the other end said of itself; empty for a guest. Errors: what it closed the connection with, `peer-unreachable`, `peer-lied`. */
  hello(): Promise<Uint8Array> {
    return this.#hello.promise;
  }

  /** From here on frames flow. */
  begin(responder: Responder, streamsMax: number): void {
    this.#responder = responder;
    this.#asked.begin(streamsMax);
    this.#served.begin(responder, streamsMax);
    const held = this.#held;
    this.#held = [];
    this.#guarded(() => {
      for (const frame of held) this.#handle(frame);
    });
    this.#socket.resume();
    this.#ping(performance.now());
  }

  async request(method: string, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    return (await this.#asked.ask(method, body, options, false)).head;
  }

  requestStream(method: string, body: Uint8Array, options: RequestOptions): Promise<Answered> {
    return this.#asked.ask(method, body, options, true);
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
        this.#sender.send({ kind: 'pong', token: frame.token });
        return;
      case 'pong':
        if (this.#pinged?.token !== frame.token) throw lied('an answer to no ping');
        this.rttMs = performance.now() - this.#pinged.atMs;
        this.#pinged = undefined;
        return;
      case 'open':
        this.#served.onOpen(frame);
        return;
      case 'answer':
        this.#mine(frame.stream).onAnswer(frame);
        return;
      case 'data':
        this.#sideOf(frame.stream).onData(frame.stream, frame.bytes);
        return;
      case 'end':
        this.#mine(frame.stream).onEnd(frame.stream, frame.length);
        return;
      case 'fail':
        this.#mine(frame.stream).onFail(frame.stream, frame.problem);
        return;
      case 'cancel':
        if (this.#isOwn(frame.stream)) throw lied('a cancellation of a stream that is not its own');
        this.#served.onCancel(frame.stream);
        return;
      case 'credit':
        this.#sideOf(frame.stream).onCredit(frame.stream, frame.bytes);
    }
  }

  /** Whether this end opens streams of that number. */
  #isOwn(stream: number): boolean {
    return (stream % 2 === 1) === this.#options.isInitiator;
  }

  #sideOf(stream: number): AskedRequests | ServedRequests {
    return this.#isOwn(stream) ? this.#asked : this.#served;
  }

  /** Only what this end asked for is answered. */
  #mine(stream: number): AskedRequests {
    if (!this.#isOwn(stream)) throw lied('an answer on a stream of its own');
    return this.#asked;
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
    this.#served.tick(nowMs);
    this.#asked.tick(nowMs);
  }

  #ping(nowMs: number): void {
    if (this.#pinged !== undefined) return;
    this.#pinged = { token: randomBytes(8).readBigUInt64BE(), atMs: nowMs };
    this.#sender.send({ kind: 'ping', token: this.#pinged.token });
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
    this.#sender.end();
    this.#asked.end(error);
    this.#served.end(error);
    this.#ended.resolve();
  }
}
