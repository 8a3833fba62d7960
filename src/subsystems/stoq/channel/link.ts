import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import {
  BULK_PROTOCOL,
  decodeRangeRequest,
  encodeRangeRequest,
  RANGE_REQUEST_BYTES,
  type RangeRequest,
} from '../../../wire/channel.ts';
import type { HostPort } from './address.ts';
import { BulkClient, BulkServer, type OnRead } from './bulk.ts';
import { transportOf } from './certificate.ts';
import { cancelled, gone } from './endings.ts';
import type { Mux } from './mux.ts';
import { openRange, pieces } from './range.ts';
import type { Responder } from './served.ts';
import type { Slabs } from './slabs.ts';
import type {
  BulkSource,
  ChannelLimits,
  Connection,
  FetchRangeOptions,
  Method,
  RemoteNode,
  RequestOptions,
} from './types.ts';

/** Carries ranges where no bulk socket can be opened: over sockets that were handed in, or that the other side opened. */
const RANGE_METHOD = 'stoq/range';
/** After a bulk socket could not be opened, the connection carries ranges for so long. */
const BULK_RETRY_MS = 30_000;
const BULK_IDLE_MS = 30_000;
/** The asking end gives a socket up before the serving end does. */
const SERVED_IDLE_MS = 2 * BULK_IDLE_MS;
const EMPTY = new Uint8Array(0);

/** Counted over all connections of a channel. */
export interface Bodies {
  bytes: number;
}

export interface LinkLent {
  readonly methods: ReadonlyMap<string, Method>;
  readonly blobs: BulkSource;
  readonly limits: ChannelLimits;
  readonly slabs: Slabs;
  readonly readSlabs: Slabs;
  readonly bodies: Bodies;
  readonly tls: ConnectionOptions;
  readonly onDefect: (error: unknown) => void;
  readonly onBreach: (remote: RemoteNode, error: HyperMeshError) => void;
}

export interface LinkAbout {
  readonly remote: RemoteNode;
  /** Of the other end: its bulk sockets have to prove the same. */
  readonly transport: string;
  /** When the hello of the other end ends. */
  readonly notAfterMs: number;
  readonly origin: string;
  /** Where bulk sockets can be opened to. */
  readonly dialled: HostPort | undefined;
  /** Whether this end has not said who it is. */
  readonly asGuest: boolean;
}

/** One proved connection: the mux, and the bulk sockets of both ends that belong to it. */
export class Link implements Connection, Responder {
  readonly remote: RemoteNode;
  readonly transport: string;
  readonly origin: string;
  readonly notAfterMs: number;
  readonly asGuest: boolean;
  readonly openedAtMs: number = performance.now();
  readonly mux: Mux;
  readonly #lent: LinkLent;
  #dialled: HostPort | undefined;
  #bodiesBytes = 0;
  #running = 0;
  #bulkIn = 0;
  #bulkOut = 0;
  readonly #range: Method;

  readonly #clients = new Set<BulkClient>();
  readonly #free: { readonly client: BulkClient; readonly sinceMs: number }[] = [];
  #dialling = 0;
  #noBulkUntilMs = 0;
  readonly #waiting: ((client: BulkClient | null) => void)[] = [];
  readonly #servers = new Map<BulkServer, TLSSocket>();

  constructor(mux: Mux, lent: LinkLent, about: LinkAbout) {
    this.mux = mux;
    this.#lent = lent;
    this.remote = about.remote;
    this.transport = about.transport;
    this.notAfterMs = about.notAfterMs;
    this.origin = about.origin;
    this.asGuest = about.asGuest;
    this.#dialled = about.asGuest ? undefined : about.dialled;
    this.#range = {
      access: 'member',
      requestBytesMax: RANGE_REQUEST_BYTES,
      handle: async (body) => {
        const request = decodeRangeRequest(body);
        return { head: EMPTY, body: pieces(await openRange(lent.blobs, request, this.remote), request) };
      },
    };
    void mux.closed.then(() => this.#endBulk());
  }

  get rttMs(): number | null {
    return this.mux.rttMs;
  }
  get bytesIn(): number {
    return this.mux.bytesIn + this.#bulkIn;
  }
  get bytesOut(): number {
    return this.mux.bytesOut + this.#bulkOut;
  }
  get closed(): Promise<void> {
    return this.mux.closed;
  }
  get isBusy(): boolean {
    return this.mux.isBusy || this.#clients.size > this.#free.length || this.#servers.size > 0;
  }

  request(method: string, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    return this.mux.request(method, body, options);
  }

  requestStream(method: string, body: Uint8Array, options: RequestOptions): ReturnType<Connection['requestStream']> {
    return this.mux.requestStream(method, body, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.mux.close(null);
    await this.mux.closed;
  }

  /** Somebody knows where the other end listens. */
  knowAddress(address: HostPort): void {
    this.#dialled ??= address;
  }

  // --- what this end answers

  admit(name: string, bodyBytes: number): ReturnType<Responder['admit']> {
    const { methods, limits, bodies } = this.#lent;
    const method = name === RANGE_METHOD ? this.#range : methods.get(name);
    if (method === undefined) throw new HyperMeshError('operation-unsupported', `This node does not know ${name}.`);
    const isGuest = this.remote.kind === 'guest';
    if (isGuest && method.access !== 'guest') {
      throw new HyperMeshError('not-permitted', `Only members of the network may ask for ${name}.`);
    }
    if (bodyBytes > method.requestBytesMax) {
      throw new HyperMeshError(
        'limit-exceeded',
        `${name} takes at most ${method.requestBytesMax} bytes, but ${bodyBytes} were announced.`,
      );
    }
    const fits =
      this.#bodiesBytes + bodyBytes <= limits.bodiesBytesMax && bodies.bytes + bodyBytes <= limits.bodiesTotalBytesMax;
    if (!fits || this.#running >= (isGuest ? limits.guestStreamsMax : limits.streamsMax)) {
      throw new HyperMeshError('quota-exceeded', 'This node is busy with other requests.');
    }
    const hold = (sign: 1 | -1) => {
      this.#running += sign;
      this.#bodiesBytes += sign * bodyBytes;
      bodies.bytes += sign * bodyBytes;
    };
    hold(1);
    return {
      run: (body, signal) => method.handle(body, this.remote, { signal }),
      release: () => hold(-1),
    };
  }

  breached(error: HyperMeshError): void {
    this.#lent.onBreach(this.remote, error);
  }

  /** Takes a bulk socket of the other end. */
  serveBulk(socket: TLSSocket): void {
    if (this.#servers.size >= this.#lent.limits.bulkSocketsMax || !this.mux.isOpen) return void socket.destroy();
    const server = new BulkServer(socket, this.remote, {
      source: this.#lent.blobs,
      slabs: this.#lent.slabs,
      readSlabs: this.#lent.readSlabs,
      count: (bytesIn, bytesOut) => {
        this.#bulkIn += bytesIn;
        this.#bulkOut += bytesOut;
      },
      onDefect: this.#lent.onDefect,
    });
    this.#servers.set(server, socket);
    socket.on('close', () => {
      this.#servers.delete(server);
      this.mux.usedAtMs = performance.now();
    });
  }

  // --- ranges

  async fetchRange(
    blob: Digest,
    { offset, length }: { readonly offset: number; readonly length: number },
    write: (bytes: Uint8Array) => Promise<void> | void,
    { signal, onWait }: FetchRangeOptions = {},
  ): Promise<void> {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0) {
      throw new HyperMeshError('usage', 'A range has a whole offset and length.');
    }
    if (signal?.aborted) throw cancelled('a transfer', signal.reason);
    if (length === 0) return;
    const request = { blob, offset, length };
    const client = await this.#bulkClient(signal, onWait);
    if (client === null) return this.#fetchHere(request, write, signal);
    try {
      await client.fetch(request, write, signal);
    } catch (error) {
      // The other end takes no more bulk sockets, or gave this one up at the same moment: nothing was written, the connection can carry it.
      if (client.wasAnswered || !isCoded(error, 'peer-unreachable') || !this.mux.isOpen) throw error;
      if (!client.wasEverAnswered) this.#noBulkUntilMs = performance.now() + BULK_RETRY_MS;
      return this.#fetchHere(request, write, signal);
    } finally {
      this.#giveBack(client);
    }
  }

  /** Over the connection itself. */
  async #fetchHere(
    request: RangeRequest,
    write: (bytes: Uint8Array) => Promise<void> | void,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { body } = await this.requestStream(RANGE_METHOD, encodeRangeRequest(request), { replyBytesMax: 0, signal });
    let left = request.length;
    for await (const bytes of body) {
      left -= bytes.length;
      if (left < 0) break;
      await write(bytes);
    }
    if (left !== 0) throw new HyperMeshError('peer-lied', 'The other node sent a range of another length.');
  }

  /** A bulk socket that nobody uses: one that is there, a new one, or the next that is given back. Null when there can be none. */
  async #bulkClient(signal: AbortSignal | undefined, onWait?: FetchRangeOptions['onWait']): Promise<BulkClient | null> {
    for (let free = this.#free.pop(); free !== undefined; free = this.#free.pop()) {
      if (free.client.isOpen) return free.client;
    }
    if (this.#dialled === undefined || performance.now() < this.#noBulkUntilMs) return null;
    if (this.#clients.size + this.#dialling < this.#lent.limits.bulkSocketsMax) return this.#dialBulk(this.#dialled);
    const { promise, resolve } = Promise.withResolvers<BulkClient | null>();
    this.#waiting.push(resolve);
    onWait?.(true);
    const onAbort = () => {
      const at = this.#waiting.indexOf(resolve);
      if (at >= 0) this.#waiting.splice(at, 1);
      resolve(null);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      const client = await promise;
      if (client === null && signal?.aborted) throw cancelled('a transfer', signal.reason);
      // What was waited for may have ended on the way.
      return client === null || client.isOpen ? client : await this.#bulkClient(signal, onWait);
    } finally {
      signal?.removeEventListener('abort', onAbort);
      onWait?.(false);
    }
  }

  async #dialBulk(to: HostPort): Promise<BulkClient | null> {
    const { slabs, tls, limits } = this.#lent;
    const client = new BulkClient(slabs, (bytes) => {
      this.#bulkIn += bytes;
    });
    this.#dialling += 1;
    try {
      // `onread` is missing in the types of TLS, and taken from there all the same.
      const options: ConnectionOptions & { onread: OnRead } = {
        ...{ ...tls, ...to, ALPNProtocols: [BULK_PROTOCOL] },
        onread: client.onread,
      };
      const socket = connectTls(options);
      socket.setNoDelay(true);
      await secured(socket, limits.handshakeTimeoutMs);
      if (socket.alpnProtocol !== BULK_PROTOCOL || transportOf(socket) !== this.transport || !this.mux.isOpen) {
        socket.destroy();
        throw gone('somebody else answers at its address');
      }
      client.attach(socket);
      this.#clients.add(client);
      return client;
    } catch {
      // Ranges do not depend on it: the connection carries them as well.
      this.#noBulkUntilMs = performance.now() + BULK_RETRY_MS;
      for (const resolve of this.#waiting.splice(0)) resolve(null);
      return null;
    } finally {
      this.#dialling -= 1;
    }
  }

  #giveBack(client: BulkClient): void {
    if (!client.isOpen) this.#clients.delete(client);
    const next = this.#waiting.shift();
    if (next !== undefined) {
      if (client.isOpen) next(client);
      else void this.#bulkClient(undefined).then(next);
    } else if (client.isOpen) this.#free.push({ client, sinceMs: performance.now() });
  }

  #endBulk(): void {
    for (const resolve of this.#waiting.splice(0)) resolve(null);
    for (const client of this.#clients) client.end(gone('its bulk sockets end with it'));
    this.#clients.clear();
    this.#free.length = 0;
    for (const socket of this.#servers.values()) socket.destroy();
  }

  // --- from time to time

  tick(nowMs: number): void {
    const { limits } = this.#lent;
    this.mux.tick(nowMs);
    for (const client of this.#clients) client.tick(nowMs, limits.bulkStallMsMax);
    for (const server of this.#servers.keys()) server.tick(nowMs, limits.bulkStallMsMax, SERVED_IDLE_MS);
    while (this.#free[0] !== undefined && nowMs - this.#free[0].sinceMs > BULK_IDLE_MS) {
      const { client } = this.#free.shift()!;
      this.#clients.delete(client);
      client.end(gone('nobody used it'));
    }
  }

  get hasBulk(): boolean {
    return this.#clients.size > 0 || this.#servers.size > 0;
  }
}

/** Resolves when TLS is agreed on. Errors: `peer-unreachable`, `timeout`. */
export function secured(socket: TLSSocket, timeoutMs: number, signal?: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const fail = (error: HyperMeshError) => {
    socket.destroy();
    reject(error);
  };
  const timer = setTimeout(
    () => fail(new HyperMeshError('timeout', 'The other node did not finish the handshake in time.')),
    timeoutMs,
  );
  const onAbort = () => fail(cancelled('a connection', signal?.reason));
  signal?.addEventListener('abort', onAbort, { once: true });
  if (signal?.aborted) onAbort();
  socket.once('secure', () => resolve());
  // Stays, so that no error of the socket is without a listener.
  socket.on('error', (error) => reject(gone('TLS could not be agreed on', error)));
  socket.once('close', () => reject(gone('it was closed during the handshake')));
  return promise.finally(() => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  });
}
