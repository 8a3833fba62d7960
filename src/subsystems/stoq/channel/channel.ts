import { constants } from 'node:crypto';
import { connect as connectTcp, createServer, type Server, type Socket } from 'node:net';
import {
  type ConnectionOptions,
  connect as connectTls,
  createSecureContext,
  type SecureContext,
  TLSSocket,
} from 'node:tls';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { BULK_PROTOCOL, lied, MUX_PROTOCOL } from '../../../wire/channel.ts';
import { HELLO_LIMITS } from '../../../wire/hello.ts';
import { formatAddress, type HostPort, originOf, parseAddress } from './address.ts';
import { makeTransportKey, type TransportKey, transportOf } from './certificate.ts';
import { cancelled, gone } from './endings.ts';
import { Identity, otherNode, type Proved } from './identity.ts';
import { type Bodies, Link, type LinkAbout, type LinkLent, secured } from './link.ts';
import { Mux } from './mux.ts';
import { READ_BYTES, SLAB_BYTES, Slabs } from './slabs.ts';
import type {
  Channel,
  ChannelLimits,
  ChannelOptions,
  Connection,
  ConnectOptions,
  NodeId,
  RemoteNode,
} from './types.ts';

const LIMITS: ChannelLimits = {
  handshakeTimeoutMs: 10_000,
  handshakesMax: 64,
  handshakesPerAddressMax: 16,
  connectionsMax: 512,
  connectionsPerNodeMax: 4,
  connectionsPerAddressMax: 128,
  guestsMax: 16,
  guestLifeMsMax: 120_000,
  silenceMsMax: 5_000,
  deadAfterMs: 15_000,
  idleMsMax: 300_000,
  streamsMax: 128,
  guestStreamsMax: 4,
  bodiesBytesMax: 16 * 2 ** 20,
  bodiesTotalBytesMax: 64 * 2 ** 20,
  bulkSocketsMax: 4,
  bulkStallMsMax: 30_000,
};

/** The only key exchange: both halves, X25519 and ML-KEM-768, have to be broken to read what was recorded. */
const GROUP = 'X25519MLKEM768';
const CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';
const EMPTY = new Uint8Array(0);

/** Nothing is opened and no port is used before it is asked for. */
export function openChannel(options: ChannelOptions): Channel {
  return new StoqChannel(options);
}

class StoqChannel implements Channel {
  readonly #options: ChannelOptions;
  readonly #limits: ChannelLimits;
  readonly #key: TransportKey = makeTransportKey();
  readonly #identity: Identity;
  readonly #tls: ConnectionOptions;
  readonly #lent: LinkLent;
  readonly #slabs = new Slabs(SLAB_BYTES);
  readonly #readSlabs = new Slabs(READ_BYTES);
  readonly #servers = new Set<Server>();
  readonly #links = new Set<Link>();
  /** Sockets that have not proved anything yet -> where they come from. */
  readonly #strangers = new Map<Socket, string>();
  readonly #dials = new Map<string, Promise<Link>>();
  /** Handshakes of both kinds: none outlives the channel, since they ask the keys of the home. */
  readonly #greetings = new Set<Promise<unknown>>();
  readonly #end = new AbortController();
  #context: SecureContext | undefined;
  #sweeper: NodeJS.Timeout | undefined;
  #closing = false;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#identity = new Identity(options, this.#key.id);
    const bodies: Bodies = { bytes: 0 };
    this.#tls = {
      minVersion: 'TLSv1.3',
      maxVersion: 'TLSv1.3',
      ciphers: CIPHERS,
      ecdhCurve: GROUP,
      // Certificates carry a key and nothing else: who holds it is proved by the hello.
      rejectUnauthorized: false,
      // A session that is taken up again would prove the key of another day.
      secureOptions: constants.SSL_OP_NO_TICKET,
      key: this.#key.key,
      cert: this.#key.cert,
    };
    const { methods, blobs, onDefect = () => undefined, onBreach = () => undefined } = options;
    this.#lent = {
      methods,
      blobs,
      limits: this.#limits,
      slabs: this.#slabs,
      readSlabs: this.#readSlabs,
      bodies,
      tls: this.#tls,
      onDefect,
      onBreach,
    };
  }

  async listen(host: string, port: number): Promise<HostPort> {
    const server = createServer({ noDelay: true }, (socket) => this.accept(socket));
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once('error', (error: NodeJS.ErrnoException) => reject(listenError(error, { host, port })));
    server.listen({ host, port, exclusive: true, backlog: 256 }, resolve);
    await promise;
    // A failed accept (no descriptors left) is an event of one socket, not the end of the listener.
    server.on('error', () => undefined);
    this.#servers.add(server);
    const bound = server.address() as { readonly address: string; readonly port: number };
    return { host: bound.address, port: bound.port };
  }

  async connect(address: string, options: ConnectOptions): Promise<Connection> {
    const to = parseAddress(address);
    await this.#mayConnect(options);
    const { expect, guest = false, signal } = options;
    if (guest) return this.#greeting(this.#dial(to, options));
    const open = this.#linkTo(expect);
    if (open !== undefined) {
      open.knowAddress(to);
      return open;
    }
    const key = `${expect} ${address}`;
    let dial = this.#dials.get(key);
    if (dial === undefined) {
      // Whoever gives up does not take the connection from the others.
      dial = this.#greeting(this.#dial(to, { expect })).finally(() => this.#dials.delete(key));
      this.#dials.set(key, dial);
    }
    return unlessAborted(dial, signal);
  }

  async connectOver(socket: Socket, options: ConnectOptions): Promise<Connection> {
    await this.#mayConnect(options);
    return this.#greeting(this.#greet(socket, this.#untilEnd(options), undefined));
  }

  #untilEnd(options: ConnectOptions): ConnectOptions {
    const { signal } = options;
    return {
      ...options,
      signal: signal === undefined ? this.#end.signal : AbortSignal.any([signal, this.#end.signal]),
    };
  }

  async #greeting<T>(work: Promise<T>): Promise<T> {
    this.#greetings.add(work);
    try {
      return await work;
    } finally {
      this.#greetings.delete(work);
    }
  }

  async #mayConnect({ expect, guest, signal }: ConnectOptions): Promise<void> {
    if (signal?.aborted) throw cancelled('a connection', signal.reason);
    if (this.#closing) throw gone('this node is closing');
    // A guest has no identity, and need not have certificates that hold.
    if (guest === true) return;
    if (expect === (await this.#identity.node()))
      throw new HyperMeshError('usage', 'A node does not connect to itself.');
  }

  accept(socket: Socket): void {
    const origin = originOf(socket.remoteAddress);
    if (this.#closing || !this.#hasRoomFor(origin)) return void socket.destroy();
    this.#strangers.set(socket, origin);
    const timer = setTimeout(() => socket.destroy(), this.#limits.handshakeTimeoutMs);
    socket.once('close', () => {
      clearTimeout(timer);
      this.#strangers.delete(socket);
    });
    socket.on('error', () => socket.destroy());
    this.#greeting(this.#welcome(socket, origin))
      .catch((error) => {
        if (!isCoded(error)) this.#lent.onDefect(error);
        socket.destroy();
      })
      .finally(() => {
        clearTimeout(timer);
        this.#strangers.delete(socket);
      });
  }

  connections(): readonly Connection[] {
    return [...this.#links];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    clearInterval(this.#sweeper);
    const closed = [...this.#servers].map((server) => new Promise((resolve) => server.close(resolve)));
    this.#end.abort();
    for (const socket of this.#strangers.keys()) socket.destroy();
    await Promise.allSettled(this.#greetings);
    await Promise.all([...this.#links].map((link) => link[Symbol.asyncDispose]()));
    await Promise.all(closed);
  }

  // --- towards others

  async #dial(to: HostPort, given: ConnectOptions): Promise<Link> {
    const options = this.#untilEnd(given);
    const { signal } = options;
    const socket = connectTcp({ ...to, noDelay: true });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = setTimeout(
      () => reject(new HyperMeshError('peer-unreachable', `Nobody answers at ${formatAddress(to)}.`)),
      this.#limits.handshakeTimeoutMs,
    );
    const onAbort = () => reject(cancelled('a connection', signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    const onError = (error: NodeJS.ErrnoException) => reject(dialError(error, to));
    socket.once('connect', resolve).once('error', onError);
    try {
      await promise;
    } catch (error) {
      socket.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      socket.off('error', onError);
      socket.on('error', () => socket.destroy());
    }
    return this.#greet(socket, options, to);
  }

  async #greet(
    raw: Socket,
    { expect, guest = false, networkId, signal }: ConnectOptions,
    dialled: HostPort | undefined,
  ): Promise<Link> {
    const origin = originOf(raw.remoteAddress);
    const address = dialled === undefined ? addressOf(raw) : formatAddress(dialled);
    const socket = connectTls({ ...this.#tls, socket: raw, ALPNProtocols: [MUX_PROTOCOL] });
    const { handshakeTimeoutMs } = this.#limits;
    await secured(socket, handshakeTimeoutMs, signal);
    const transport = transportOf(socket);
    const exchange = socket.getEphemeralKeyInfo() as { readonly name?: string } | null;
    if (socket.alpnProtocol !== MUX_PROTOCOL || transport === null || exchange?.name !== GROUP) {
      socket.destroy();
      throw lied('a TLS session of another kind');
    }
    const mux = this.#mux(socket, true, guest);
    const giveUp = (error: HyperMeshError) => mux.close(error);
    const timer = setTimeout(
      () => giveUp(new HyperMeshError('timeout', 'The other node did not say who it is in time.')),
      handshakeTimeoutMs,
    );
    const onAbort = () => giveUp(cancelled('a connection', signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      mux.sendHello(guest ? EMPTY : await this.#identity.document(false));
      const proved = await this.#identity.prove(await mux.hello(), transport, {
        ...(guest ? { pinned: expect } : {}),
        ...(networkId === undefined ? {} : { networkId }),
      });
      if (proved.node !== expect) throw otherNode(expect, proved.node);
      const about = { transport, notAfterMs: proved.notAfterMs, origin, dialled, asGuest: guest };
      return this.#join(mux, memberOf(proved, address), about);
    } catch (error) {
      mux.close(isCoded(error) ? error : gone('this node failed'));
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    }
  }

  // --- from others

  #hasRoomFor(origin: string): boolean {
    const { handshakesMax, handshakesPerAddressMax } = this.#limits;
    if (this.#strangers.size >= handshakesMax) return false;
    let near = 0;
    for (const other of this.#strangers.values()) if (other === origin) near += 1;
    return near < handshakesPerAddressMax;
  }

  async #welcome(raw: Socket, origin: string): Promise<void> {
    this.#context ??= createSecureContext(this.#tls);
    const socket = new TLSSocket(raw, {
      isServer: true,
      secureContext: this.#context,
      requestCert: true,
      rejectUnauthorized: false,
      ALPNProtocols: [MUX_PROTOCOL, BULK_PROTOCOL],
    });
    await secured(socket, this.#limits.handshakeTimeoutMs);
    const transport = transportOf(socket);
    if (transport === null || socket.isSessionReused()) return void socket.destroy();
    if (socket.alpnProtocol === BULK_PROTOCOL) {
      // It needs no hello of its own: the same key has proved itself on a connection that is open.
      const link = this.#openLinks().find((one) => one.transport === transport && one.remote.kind === 'member');
      return link === undefined ? void socket.destroy() : link.serveBulk(socket);
    }
    if (socket.alpnProtocol !== MUX_PROTOCOL) return void socket.destroy();
    const mux = this.#mux(socket, false, false);
    try {
      const document = await mux.hello();
      const isGuest = document.length === 0;
      const proved = isGuest ? undefined : await this.#identity.prove(document, transport);
      const remote: RemoteNode =
        proved === undefined
          ? { kind: 'guest', node: null, publisher: null, address: addressOf(raw) }
          : memberOf(proved, addressOf(raw));
      this.#checkRoom(remote, origin);
      mux.sendHello(await this.#identity.document(isGuest));
      const notAfterMs = proved?.notAfterMs ?? Number.POSITIVE_INFINITY;
      this.#join(mux, remote, { transport, notAfterMs, origin, dialled: undefined, asGuest: false });
    } catch (error) {
      mux.close(isCoded(error) ? error : new HyperMeshError('internal', 'The other node failed.'));
      throw error;
    }
  }

  #checkRoom(remote: RemoteNode, origin: string): void {
    const { connectionsMax, connectionsPerAddressMax, guestsMax } = this.#limits;
    const open = this.#openLinks();
    const near = open.filter((link) => link.origin === origin).length;
    const guests = open.filter((link) => link.remote.kind === 'guest').length;
    if (
      open.length >= connectionsMax ||
      near >= connectionsPerAddressMax ||
      (remote.kind === 'guest' && guests >= guestsMax)
    ) {
      throw new HyperMeshError('quota-exceeded', 'This node has as many connections as it takes.');
    }
  }

  // --- both

  #mux(socket: TLSSocket, isInitiator: boolean, isGuest: boolean): Mux {
    const { silenceMsMax, deadAfterMs } = this.#limits;
    const helloBytesMax = isGuest ? HELLO_LIMITS.guestBytesMax : HELLO_LIMITS.bytesMax;
    const { onDefect, slabs } = this.#lent;
    return new Mux(socket, { isInitiator, helloBytesMax, silenceMsMax, deadAfterMs, onDefect, slabs });
  }

  /** From here on the other end is who it says. Errors: `not-permitted`, `peer-unreachable`. */
  #join(mux: Mux, remote: RemoteNode, about: Omit<LinkAbout, 'remote'>): Link {
    if (this.#closing || !mux.isOpen) throw gone('it ended during the handshake');
    if (!this.#permits(remote)) throw new HyperMeshError('not-permitted', 'This node does not speak to that node.');
    const { connectionsPerNodeMax, streamsMax, guestStreamsMax } = this.#limits;
    const link = new Link(mux, this.#lent, { ...about, remote });
    if (remote.node !== null) {
      const others = this.#openLinks().filter((other) => other.remote.node === remote.node);
      for (const [at, other] of others.entries()) {
        // Another key is an earlier process of the same node, which is gone even if nobody has noticed.
        const isPast = other.transport !== link.transport;
        if (isPast || at < others.length + 1 - connectionsPerNodeMax)
          other.mux.close(gone('a newer connection replaced it'));
      }
    }
    this.#links.add(link);
    void link.closed.then(() => this.#links.delete(link));
    mux.begin(link, remote.kind === 'guest' ? guestStreamsMax : streamsMax);
    this.#sweep();
    return link;
  }

  #permits(remote: RemoteNode): boolean {
    return this.#options.permits?.(remote) ?? true;
  }

  #openLinks(): Link[] {
    return [...this.#links].filter((link) => link.mux.isOpen);
  }

  #linkTo(node: NodeId): Link | undefined {
    return this.#openLinks().find((link) => link.remote.node === node && !link.asGuest);
  }

  /** Looks after connections while there are any. */
  #sweep(): void {
    if (this.#sweeper !== undefined) return;
    const everyMs = Math.min(1_000, this.#limits.silenceMsMax / 4);
    this.#sweeper = setInterval(() => {
      // After what arrived while this process was busy has been read: silence is the other's, not ours.
      setImmediate(() => this.#tick(performance.now()));
    }, everyMs);
    this.#sweeper.unref();
  }

  #tick(nowMs: number): void {
    const { idleMsMax, guestLifeMsMax } = this.#limits;
    for (const link of this.#openLinks()) {
      const { mux, remote } = link;
      link.tick(nowMs);
      if (!this.#permits(remote))
        mux.close(new HyperMeshError('not-permitted', 'This node does not speak to that node any more.'));
      else if (this.#options.clock.nowMs() > link.notAfterMs) mux.close(gone('what proved the other node has expired'));
      else if (remote.kind === 'guest' && nowMs - link.openedAtMs > guestLifeMsMax)
        mux.close(gone('a guest stayed too long'));
      else if (!link.isBusy && nowMs - mux.usedAtMs > idleMsMax) mux.close(gone('nobody used it'));
    }
    if (!this.#openLinks().some((link) => link.hasBulk))
      for (const slabs of [this.#slabs, this.#readSlabs]) slabs.drop();
    if (this.#links.size === 0) {
      clearInterval(this.#sweeper);
      this.#sweeper = undefined;
    }
  }
}

function memberOf({ node, publisher }: Proved, address: string): RemoteNode {
  return { kind: 'member', node, publisher, address };
}

function addressOf(socket: Socket): string {
  const { remoteAddress, remotePort } = socket;
  return remoteAddress === undefined ? 'unknown' : formatAddress({ host: remoteAddress, port: remotePort ?? 0 });
}

function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(cancelled('a connection', signal.reason));
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  return Promise.race([promise, aborted]).finally(() => signal.removeEventListener('abort', onAbort));
}

function listenError(error: NodeJS.ErrnoException, at: HostPort): HyperMeshError {
  const where = formatAddress(at);
  if (error.code === 'EADDRINUSE') {
    return new HyperMeshError('address-taken', `Another program listens at ${where}.`, {
      hint: 'Choose another port, or 0 for any that is free.',
      cause: error,
    });
  }
  if (error.code === 'EACCES' || error.code === 'EPERM') {
    return new HyperMeshError('address-taken', `This process may not listen at ${where}.`, {
      hint: 'Choose a port from 1024.',
      cause: error,
    });
  }
  return new HyperMeshError(
    'network-unreachable',
    `This machine cannot listen at ${where}: ${error.code ?? error.message}.`,
    {
      hint: 'Choose an address that this machine has, or 127.0.0.1.',
      cause: error,
    },
  );
}

function dialError(error: NodeJS.ErrnoException, to: HostPort): HyperMeshError {
  const isHere = ['ENETUNREACH', 'ENETDOWN', 'EADDRNOTAVAIL'].includes(error.code ?? '');
  return new HyperMeshError(
    isHere ? 'network-unreachable' : 'peer-unreachable',
    `${isHere ? 'This machine has no way to' : 'Nobody answers at'} ${formatAddress(to)}: ${error.code ?? error.message}.`,
    { cause: error },
  );
}
