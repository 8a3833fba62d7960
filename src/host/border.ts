import type { Duplex } from 'node:stream';
import { deserialize, serialize } from 'node:v8';
import type { CallOptions, Progress } from '../base/call.ts';
import { fromProblem, HyperMeshError, isCoded, type ProblemDocument, toProblem } from '../base/errors.ts';
import {
  CELL_CALLS_MAX,
  CELL_FRAME_BYTES_MAX,
  CELL_STREAMS_MAX,
  CELL_WINDOW,
  type CellMessage,
  type CellParcel,
  type CellProblem,
  decodeCellMessage,
} from '../wire/cell.ts';
import { isAsyncIterable, plainCopy } from './plain.ts';

/** Works on a call of the other side. A stream answers with an async iterable. */
export type Answer = (target: string, method: string, args: unknown[]) => Promise<unknown>;

interface Asked {
  resolve(value: unknown): void;
  reject(error: HyperMeshError): void;
  readonly onProgress: CallOptions['onProgress'];
  unlink(): void;
}

interface Source {
  readonly iterator: AsyncIterator<unknown>;
  credit: number;
  pumping: boolean;
  readonly onEnd: () => void;
}

interface Sink {
  credit: number;
  put(value: unknown): void;
  end(error: HyperMeshError | null): void;
}

/**
 * Calls, streams with backpressure, cancellation and progress between two processes, over frames of bounded size.
 * Either side may be hostile to the other: what breaks the protocol or a bound ends the border.
 */
export class Border {
  readonly #socket: Duplex;
  readonly #answer: Answer;
  readonly #asked = new Map<number, Asked>();
  readonly #serving = new Map<number, AbortController>();
  readonly #sources = new Map<number, Source>();
  readonly #sinks = new Map<number, Sink>();
  readonly #onEnd: (why: string) => void;
  #serial = 0;
  #ended: string | null = null;
  #chunks: Buffer[] = [];
  #buffered = 0;

  constructor(socket: Duplex, answer: Answer, onEnd: (why: string) => void) {
    this.#socket = socket;
    this.#answer = answer;
    this.#onEnd = onEnd;
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('close', () => this.end('the other side closed the connection'));
    socket.on('error', (error) => this.end(`the connection failed: ${error.message}`));
  }

  /** Calls `method` of `target` on the other side. A stream resolves to an async iterable that can be read once. */
  call(target: string, method: string, args: readonly unknown[]): Promise<unknown> {
    if (this.#ended !== null) return Promise.reject(this.#gone());
    if (this.#asked.size >= CELL_CALLS_MAX) return Promise.reject(tooMany('calls'));
    const id = ++this.#serial;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const { signal, onProgress } = optionsAmong(args);
    const cancel = () => this.#send(['cancel', id]);
    this.#asked.set(id, { resolve, reject, onProgress, unlink: () => signal?.removeEventListener('abort', cancel) });
    try {
      this.#send(['call', id, target, method, args.map((arg) => this.#pack(arg, () => {}))]);
      signal?.addEventListener('abort', cancel, { once: true });
      if (signal?.aborted) cancel();
    } catch (error) {
      this.#asked.delete(id);
      reject(error as HyperMeshError);
    }
    return promise;
  }

  /** Safe to repeat. Everything under way fails with `extension-failed`. */
  end(why: string): void {
    if (this.#ended !== null) return;
    this.#ended = why;
    for (const asked of this.#asked.values()) {
      asked.unlink();
      asked.reject(this.#gone());
    }
    for (const sink of [...this.#sinks.values()]) sink.end(this.#gone());
    for (const controller of this.#serving.values()) controller.abort(this.#gone());
    for (const source of this.#sources.values()) source.iterator.return?.()?.catch(() => {});
    this.#asked.clear();
    this.#serving.clear();
    this.#sources.clear();
    this.#socket.destroy();
    this.#onEnd(why);
  }

  #gone(): HyperMeshError {
    return new HyperMeshError('extension-failed', `The border to the extension is closed: ${this.#ended}.`);
  }

  // Frames: four bytes of length, big-endian, then the message in the serialization format of V8.

  #send(message: CellMessage): void {
    if (this.#ended !== null) return;
    let body: Buffer;
    try {
      body = serialize(message);
    } catch (error) {
      throw new HyperMeshError(
        'extension-invalid',
        `Only plain data, bytes, byte streams and call options cross this border: ${(error as Error).message}`,
      );
    }
    if (body.length > CELL_FRAME_BYTES_MAX) {
      throw new HyperMeshError(
        'limit-exceeded',
        `A message of ${body.length} bytes; at most ${CELL_FRAME_BYTES_MAX} cross at once.`,
        {
          hint: 'Pass large content as a stream or by its digest, and long lists in pages.',
        },
      );
    }
    const header = Buffer.alloc(4);
    header.writeUInt32BE(body.length);
    this.#socket.cork();
    this.#socket.write(header);
    this.#socket.write(body);
    this.#socket.uncork();
  }

  #receive(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
    try {
      while (this.#ended === null && this.#buffered >= 4) {
        const first = this.#chunks[0]!.length >= 4 ? this.#chunks[0]! : this.#join();
        const length = first.readUInt32BE(0);
        if (length > CELL_FRAME_BYTES_MAX)
          throw new RangeError(`${length} bytes, at most ${CELL_FRAME_BYTES_MAX} may come`);
        if (this.#buffered < 4 + length) return;
        const all = this.#join();
        this.#chunks = all.length === 4 + length ? [] : [all.subarray(4 + length)];
        this.#buffered -= 4 + length;
        this.#take(decodeCellMessage(deserialize(all.subarray(4, 4 + length))));
      }
    } catch (error) {
      this.end(`a message could not be understood: ${(error as Error).message}`);
    }
  }

  #join(): Buffer {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]!;
  }

  #take(message: CellMessage): void {
    const [kind, id] = message;
    switch (kind) {
      case 'call':
        void this.#serve(message);
        break;
      case 'done':
        this.#settle(id, (asked) => {
          const [, , result] = message;
          if ('stream' in result) {
            asked.resolve(this.#sink(result.stream, () => asked.unlink()));
          } else {
            asked.unlink();
            asked.resolve(plainCopy('data' in result ? result.data : undefined, 'result'));
          }
        });
        break;
      case 'fail':
        this.#settle(id, (asked) => {
          asked.unlink();
          asked.reject(problemError(message[2]));
        });
        break;
      case 'cancel':
        this.#serving.get(id)?.abort();
        break;
      case 'progress':
        this.#progress(id, plainCopy(message[2], 'progress') as Progress);
        break;
      case 'pull':
        this.#grant(id, message[2]);
        break;
      case 'item': {
        const sink = this.#sinks.get(id);
        if (sink === undefined) break;
        sink.credit -= 1;
        if (sink.credit < 0) throw new RangeError('more came than was asked for');
        sink.put(plainCopy(message[2], 'item of a stream'));
        break;
      }
      case 'end':
        this.#sinks.get(id)?.end(message[2] === null ? null : problemError(message[2]));
        break;
      case 'stop': {
        const source = this.#sources.get(id);
        if (source === undefined) break;
        this.#forget(id, source);
        source.iterator.return?.()?.catch(() => {});
        break;
      }
    }
  }

  #settle(id: number, how: (asked: Asked) => void): void {
    const asked = this.#asked.get(id);
    if (asked === undefined) return;
    this.#asked.delete(id);
    try {
      how(asked);
    } catch (error) {
      // One answer that is not plain data concerns one call.
      asked.unlink();
      asked.reject(error as HyperMeshError);
    }
  }

  #progress(id: number, progress: Progress): void {
    try {
      this.#asked.get(id)?.onProgress?.(progress);
    } catch {
      // What the listener does with it is no reason to end the border.
    }
  }

  #grant(id: number, items: number): void {
    const source = this.#sources.get(id);
    if (source === undefined) return;
    if (source.credit + items > CELL_WINDOW) throw new RangeError('more was asked for than the window holds');
    source.credit += items;
    void this.#pump(id, source);
  }

  // The side that answers

  async #serve([, id, target, method, parcels]: Extract<CellMessage, readonly ['call', ...unknown[]]>): Promise<void> {
    const controller = new AbortController();
    const finish = () => this.#serving.delete(id);
    try {
      if (this.#serving.size >= CELL_CALLS_MAX || this.#serving.has(id)) throw tooMany('calls');
      this.#serving.set(id, controller);
      const args = parcels.map((parcel) => this.#unpack(parcel, id, controller.signal));
      const result = await this.#answer(String(target), String(method), args);
      const parcel = this.#pack(result, finish);
      this.#send(['done', id, parcel]);
      if ('data' in parcel) finish();
    } catch (error) {
      finish();
      this.#send(['fail', id, problemOf(error)]);
    }
  }

  #unpack(parcel: CellParcel, call: number, signal: AbortSignal): unknown {
    if ('stream' in parcel) return this.#sink(parcel.stream, () => {});
    if ('options' in parcel) {
      return {
        ...(plainCopy(parcel.options, 'options') as object),
        ...(parcel.signal ? { signal } : {}),
        ...(parcel.progress
          ? { onProgress: (progress: Progress) => this.#send(['progress', call, { ...progress }]) }
          : {}),
      };
    }
    return plainCopy(parcel.data, 'argument');
  }

  #pack(value: unknown, onEnd: () => void): CellParcel {
    if (isAsyncIterable(value)) {
      if (this.#sources.size >= CELL_STREAMS_MAX) throw tooMany('streams');
      const stream = ++this.#serial;
      this.#sources.set(stream, { iterator: value[Symbol.asyncIterator](), credit: 0, pumping: false, onEnd });
      return { stream };
    }
    if (isOptions(value)) {
      const { signal, onProgress, ...options } = value;
      return { options, signal: signal !== undefined, progress: onProgress !== undefined };
    }
    return { data: value };
  }

  // Streams

  async #pump(id: number, source: Source): Promise<void> {
    if (source.pumping) return;
    source.pumping = true;
    try {
      while (source.credit > 0 && this.#sources.has(id)) {
        const step = await source.iterator.next();
        if (!this.#sources.has(id)) return;
        if (step.done === true) {
          this.#forget(id, source);
          return this.#send(['end', id, null]);
        }
        source.credit -= 1;
        this.#send(['item', id, step.value]);
      }
    } catch (error) {
      this.#forget(id, source);
      source.iterator.return?.()?.catch(() => {});
      this.#send(['end', id, problemOf(error)]);
    } finally {
      source.pumping = false;
    }
  }

  #forget(id: number, source: Source): void {
    this.#sources.delete(id);
    source.onEnd();
  }

  #sink(id: number, onEnd: () => void): AsyncIterable<unknown> {
    if (this.#sinks.size >= CELL_STREAMS_MAX) throw tooMany('streams');
    const items: unknown[] = [];
    let ended: { readonly error: HyperMeshError | null } | null = null;
    let wake = (): void => {};
    const sink: Sink = {
      credit: 0,
      put(value) {
        items.push(value);
        wake();
      },
      end: (error) => {
        this.#sinks.delete(id);
        ended ??= { error };
        onEnd();
        wake();
      },
    };
    this.#sinks.set(id, sink);
    const pull = (items: number) => {
      if (ended !== null) return;
      sink.credit += items;
      this.#send(['pull', id, items]);
    };
    let started = false;
    const read = async function* (stop: () => void): AsyncGenerator<unknown, void> {
      if (started) throw new TypeError('a stream can be read once');
      started = true;
      try {
        pull(CELL_WINDOW);
        while (true) {
          if (items.length > 0) {
            const value = items.shift();
            yield value;
            pull(1);
          } else if (ended !== null) {
            if (ended.error !== null) throw ended.error;
            return;
          } else {
            await new Promise<void>((resolve) => {
              wake = resolve;
            });
          }
        }
      } finally {
        stop();
      }
    };
    const stop = () => {
      if (ended !== null) return;
      sink.end(null);
      this.#send(['stop', id]);
    };
    return { [Symbol.asyncIterator]: () => read(stop) };
  }
}

function isOptions(value: unknown): value is CallOptions & Record<string, unknown> {
  if (value === null || typeof value !== 'object') return false;
  const { signal, onProgress } = value as CallOptions;
  return signal instanceof AbortSignal || typeof onProgress === 'function';
}

function optionsAmong(args: readonly unknown[]): CallOptions {
  return args.find(isOptions) ?? {};
}

function tooMany(what: string): HyperMeshError {
  return new HyperMeshError('quota-exceeded', `Too many ${what} are open between the extension and its host.`);
}

/** Details that are no plain data or very large stay on this side. */
function problemOf(error: unknown): ProblemDocument {
  const { details, ...problem } = toProblem(error);
  try {
    return details === undefined || serialize(details).length > 65_536 ? problem : { ...problem, details };
  } catch {
    return problem;
  }
}

/** The other side's word, so nothing in it is taken for granted. */
function problemError(problem: CellProblem): HyperMeshError {
  const error = fromProblem(plainCopy(problem, 'problem') as ProblemDocument);
  return isCoded(error) ? error : new HyperMeshError('extension-failed', 'The extension failed.');
}
