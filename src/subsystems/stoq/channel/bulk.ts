import type { TLSSocket } from 'node:tls';
import { HyperMeshError, isCoded, toProblem } from '../../../base/errors.ts';
import {
  decodeProblem,
  decodeRangeAnswer,
  decodeRangeRequest,
  encodeProblem,
  encodeRangeAnswer,
  encodeRangeRequest,
  lied,
  RANGE_ANSWER_BYTES,
  RANGE_REQUEST_BYTES,
  type RangeRequest,
} from '../../../wire/channel.ts';
import { cancelled, gone, told } from './endings.ts';
import { openRange, readPiece } from './range.ts';
import { SLAB_BYTES, type Slabs } from './slabs.ts';
import type { BulkSource, RemoteNode, ServedBlob } from './types.ts';

/** Requests that may wait on a socket while one is served. */
const PIPELINED_MAX = 4;
/** Slabs that wait to be written before the socket rests. A few more come after it was told to. */
const WAITING_MAX = 3;
const READ_BYTES_MAX = 65_536;

/** What `tls.connect` reads into. */
export interface OnRead {
  buffer(): Uint8Array;
  callback(bytes: number): boolean;
}

interface Transfer {
  /** Of the answer, not received yet. */
  left: number;
  readonly write: (bytes: Uint8Array) => Promise<void> | void;
  readonly settle: (error: Error | null) => void;
}

/**
 * The asking end of a bulk socket: one range at a time, received into slabs that go around, so that a transfer allocates nothing.
 * The socket never reads past the end of a range.
 */
export class BulkClient {
  readonly onread: OnRead = { buffer: () => this.#buffer(), callback: (bytes) => this.#received(bytes) };
  readonly #slabs: Slabs;
  readonly #count: (bytes: number) => void;
  #socket: TLSSocket | undefined;
  #state: 'idle' | 'header' | 'problem' | 'bytes' = 'idle';
  /** The header, or a problem. */
  #small = new Uint8Array(RANGE_ANSWER_BYTES);
  #smallAt = 0;
  #slab: Buffer | undefined;
  #slabAt = 0;
  #transfer: Transfer | undefined;
  readonly #waiting: Uint8Array[] = [];
  #writing = false;
  #error: HyperMeshError | undefined;
  #movedAtMs = performance.now();
  /** Since the last tick. To ask for the time costs too much to do it for each record. */
  #moved = false;
  #answered = false;
  #everAnswered = false;

  constructor(slabs: Slabs, count: (bytes: number) => void) {
    this.#slabs = slabs;
    this.#count = count;
  }

  get isOpen(): boolean {
    return this.#error === undefined;
  }

  /** Whether the other end has said anything about the last request, and about any. */
  get wasAnswered(): boolean {
    return this.#answered;
  }
  get wasEverAnswered(): boolean {
    return this.#everAnswered;
  }

  /** The socket that was made with {@link onread}, connected and checked. */
  attach(socket: TLSSocket): void {
    this.#socket = socket;
    socket.on('close', () => this.end(gone('a bulk socket was closed')));
    socket.on('end', () => this.end(gone('the other node ended a bulk socket')));
  }

  fetch(request: RangeRequest, write: Transfer['write'], signal?: AbortSignal): Promise<void> {
    if (this.#error !== undefined) return Promise.reject(this.#error);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    // There is no way to say so in the middle of raw bytes but to end the socket.
    const onAbort = () => this.end(cancelled('a transfer', signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    const settle: Transfer['settle'] = (error) => {
      signal?.removeEventListener('abort', onAbort);
      this.#transfer = undefined;
      if (error === null) resolve();
      else reject(error);
    };
    this.#transfer = { left: request.length, write, settle };
    this.#state = 'header';
    this.#answered = false;
    this.#movedAtMs = performance.now();
    this.#socket!.write(encodeRangeRequest(request));
    if (signal?.aborted) onAbort();
    return promise;
  }

  /** Called from time to time. A transfer whose receiver is slow is not stalled by the other end. */
  tick(nowMs: number, stallMsMax: number): void {
    if (this.#transfer === undefined || this.#writing || this.#moved) this.#movedAtMs = nowMs;
    else if (nowMs - this.#movedAtMs > stallMsMax) {
      this.end(new HyperMeshError('timeout', 'The other node stopped in the middle of a transfer.'));
    }
    this.#moved = false;
  }

  end(error: HyperMeshError): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.#socket?.destroy();
    for (const bytes of this.#waiting.splice(0)) this.#slabs.give(Buffer.from(bytes.buffer));
    this.#rest();
    // A slab that is being written comes back when that is done.
    if (!this.#writing) this.#transfer?.settle(error);
  }

  #buffer(): Uint8Array {
    if (this.#state !== 'bytes') return this.#small.subarray(this.#smallAt);
    this.#slab ??= this.#slabs.take();
    const end = Math.min(this.#slabAt + READ_BYTES_MAX, SLAB_BYTES, this.#slabAt + this.#transfer!.left);
    return this.#slab.subarray(this.#slabAt, end);
  }

  /** False lets the socket rest. */
  #received(bytes: number): boolean {
    if (this.#error !== undefined) return false;
    this.#count(bytes);
    this.#moved = true;
    try {
      switch (this.#state) {
        case 'idle':
          throw lied('bytes that nobody asked for');
        case 'header':
          this.#answered = true;
          this.#everAnswered = true;
          this.#smallAt += bytes;
          if (this.#smallAt === this.#small.length) this.#onHeader();
          return true;
        case 'problem':
          this.#smallAt += bytes;
          if (this.#smallAt === this.#small.length) this.#finish(told(decodeProblem(this.#small)));
          return true;
        case 'bytes':
          return this.#onBytes(bytes);
      }
    } catch (error) {
      this.end(isCoded(error) ? error : lied('something that could not be handled'));
      return false;
    }
  }

  #onHeader(): void {
    const { kind, length } = decodeRangeAnswer(this.#small);
    if (kind === 'problem') {
      this.#state = 'problem';
      this.#small = new Uint8Array(length);
      this.#smallAt = 0;
      return;
    }
    if (length !== this.#transfer!.left) throw lied('a range of another length');
    this.#state = 'bytes';
  }

  #onBytes(bytes: number): boolean {
    const transfer = this.#transfer!;
    transfer.left -= bytes;
    this.#slabAt += bytes;
    if (this.#slabAt < SLAB_BYTES && transfer.left > 0) return true;
    this.#waiting.push(this.#slab!.subarray(0, this.#slabAt));
    this.#slab = undefined;
    this.#slabAt = 0;
    if (transfer.left === 0) this.#rest();
    if (!this.#writing) void this.#write(transfer);
    return this.#waiting.length < WAITING_MAX;
  }

  async #write(transfer: Transfer): Promise<void> {
    this.#writing = true;
    let failure: Error | null = null;
    for (let bytes = this.#waiting.shift(); bytes !== undefined; bytes = this.#waiting.shift()) {
      try {
        if (this.#error === undefined) await transfer.write(bytes);
      } catch (error) {
        failure = error as Error;
        this.end(gone('the receiver of a transfer failed', error));
      }
      this.#slabs.give(Buffer.from(bytes.buffer));
      if (this.#waiting.length < WAITING_MAX) this.#socket!.resume();
    }
    this.#writing = false;
    if (failure !== null || this.#error !== undefined) transfer.settle(failure ?? this.#error!);
    else if (transfer.left === 0) transfer.settle(null);
  }

  #finish(problem: HyperMeshError): void {
    const transfer = this.#transfer!;
    this.#rest();
    transfer.settle(problem);
  }

  /** The next thing on the socket is the answer to the next request. */
  #rest(): void {
    this.#state = 'idle';
    this.#small = new Uint8Array(RANGE_ANSWER_BYTES);
    this.#smallAt = 0;
  }
}

/** The serving end of a bulk socket: requests in order, each answered in full before the next. */
export class BulkServer {
  readonly #socket: TLSSocket;
  readonly #remote: RemoteNode;
  readonly #source: BulkSource;
  readonly #slabs: Slabs;
  readonly #readSlabs: Slabs;
  readonly #count: (bytesIn: number, bytesOut: number) => void;
  readonly #onDefect: (error: unknown) => void;
  #pending = new Uint8Array(0);
  #busy = false;
  #movedAtMs = performance.now();
  #usedAtMs = performance.now();

  constructor(
    socket: TLSSocket,
    remote: RemoteNode,
    lent: {
      readonly source: BulkSource;
      readonly slabs: Slabs;
      readonly readSlabs: Slabs;
      count(bytesIn: number, bytesOut: number): void;
      onDefect(error: unknown): void;
    },
  ) {
    this.#socket = socket;
    this.#remote = remote;
    this.#source = lent.source;
    this.#slabs = lent.slabs;
    this.#readSlabs = lent.readSlabs;
    this.#count = lent.count;
    this.#onDefect = lent.onDefect;
    socket.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    socket.on('end', () => socket.destroy());
  }

  tick(nowMs: number, stallMsMax: number, idleMsMax: number): void {
    const since = this.#busy ? nowMs - this.#movedAtMs > stallMsMax : nowMs - this.#usedAtMs > idleMsMax;
    if (since) this.#socket.destroy();
  }

  #receive(chunk: Uint8Array): void {
    this.#count(chunk.length, 0);
    if (this.#pending.length + chunk.length > PIPELINED_MAX * RANGE_REQUEST_BYTES) return void this.#socket.destroy();
    this.#pending = Buffer.concat([this.#pending, chunk]);
    if (!this.#busy) void this.#serve();
  }

  async #serve(): Promise<void> {
    this.#busy = true;
    try {
      while (this.#pending.length >= RANGE_REQUEST_BYTES && !this.#socket.destroyed) {
        const request = decodeRangeRequest(this.#pending.subarray(0, RANGE_REQUEST_BYTES));
        this.#pending = this.#pending.subarray(RANGE_REQUEST_BYTES);
        await this.#answer(request);
      }
    } catch (error) {
      // What was promised cannot be delivered: the end of the socket says so.
      if (!isCoded(error) && !this.#socket.destroyed) this.#onDefect(error);
      this.#socket.destroy();
    }
    this.#busy = false;
    this.#usedAtMs = performance.now();
  }

  async #answer(request: RangeRequest): Promise<void> {
    this.#movedAtMs = performance.now();
    let served: ServedBlob;
    try {
      served = await openRange(this.#source, request, this.#remote);
    } catch (error) {
      if (!isCoded(error)) this.#onDefect(error);
      const problem = encodeProblem(toProblem(error));
      this.#socket.write(encodeRangeAnswer({ kind: 'problem', length: problem.length }));
      return this.#write(problem);
    }
    this.#socket.write(encodeRangeAnswer({ kind: 'bytes', length: request.length }));
    const slabs = this.#readSlabs.isScarce ? this.#slabs : this.#readSlabs;
    // Two pieces are under way: one in the socket, one that is read.
    const [slab, other] = [slabs.take(), slabs.take()];
    try {
      await this.#send(served, request, slab, other);
    } catch (error) {
      slabs.lose();
      slabs.lose();
      throw error;
    } finally {
      served.end?.();
    }
    slabs.give(slab);
    slabs.give(other);
  }

  async #send(served: ServedBlob, { offset, length }: RangeRequest, into: Buffer, next: Buffer): Promise<void> {
    let [slab, other] = [into, next];
    let before: Promise<void> | undefined;
    for (let at = 0; at < length; ) {
      const piece = await readPiece(served, offset + at, slab.subarray(0, length - at));
      await before;
      before = this.#write(piece);
      // Whoever waits for it learns of a failure.
      before.catch(() => undefined);
      at += piece.length;
      [slab, other] = [other, slab];
    }
    await before;
  }

  #write(piece: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#socket.write(piece, (error) => {
        this.#movedAtMs = performance.now();
        if (error) return reject(error);
        this.#count(0, piece.length);
        resolve();
      });
    });
  }
}
