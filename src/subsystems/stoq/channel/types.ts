import type { Socket } from 'node:net';
import type { Clock } from '../../../base/clock.ts';
import type { Digest } from '../../../base/digest.ts';
import type { HyperMeshError } from '../../../base/errors.ts';
import type { Trust } from '../../../capabilities/trust.ts';

/** Key id of the `node` role of a home, 64 hex digits. */
export type NodeId = string;

/** Who is at the other end, proved by the handshake. A `guest` has no identity. */
export interface RemoteNode {
  readonly kind: 'member' | 'guest';
  readonly node: NodeId | null;
  readonly publisher: string | null;
  /** `host:port` of the socket, for people and for limits; never an identity. */
  readonly address: string;
}

/** Bytes at once, or a head and then a stream that is sent as fast as the other side consumes it; a piece of it is done with when the next one is asked for. */
export type Reply = Uint8Array | { readonly head: Uint8Array; readonly body: AsyncIterable<Uint8Array> };

/** Something that the other side may ask for. */
export interface Method {
  readonly access: 'member' | 'guest';
  /** A request with a longer body is refused before it is read. */
  readonly requestBytesMax: number;
  /** `signal` is aborted when the other side gives up or is gone. What is thrown arrives there as code and message. */
  handle(body: Uint8Array, from: RemoteNode, options: { readonly signal: AbortSignal }): Promise<Reply>;
}

/** Who serves ranges of blobs. */
export interface BulkSource {
  /** Null when `from` gets nothing of that blob here; errors arrive at the other side as code and message. */
  open(blob: Digest, from: RemoteNode): Promise<ServedBlob | null>;
}

export interface ServedBlob {
  readonly size: number;
  /** The bytes at `offset`: as many as fit into `into`, or fewer when that is what may leave at once, but never none. */
  read(offset: number, into: Uint8Array): Promise<Uint8Array>;
  /** Called once when nothing more is read; not where nothing ever was. */
  end?(): void;
}

export interface ChannelLimits {
  /** Of one dial, from the first packet until both ends are proved; and of what is dialled here. */
  readonly handshakeTimeoutMs: number;
  /** Sockets that have not proved anything yet, and how many of them may come from one address. */
  readonly handshakesMax: number;
  readonly handshakesPerAddressMax: number;
  /** Connections that are open, in total, with one node, and from one address. */
  readonly connectionsMax: number;
  readonly connectionsPerNodeMax: number;
  readonly connectionsPerAddressMax: number;
  readonly guestsMax: number;
  readonly guestLifeMsMax: number;
  /** A ping after so long without a byte, and the end of the connection. */
  readonly silenceMsMax: number;
  readonly deadAfterMs: number;
  /** A connection on which nobody asked anything for so long is closed. */
  readonly idleMsMax: number;
  /** Requests of one side that are under way on a connection, for members and guests. */
  readonly streamsMax: number;
  readonly guestStreamsMax: number;
  /** Bodies of requests that are being read, for one connection and for all. */
  readonly bodiesBytesMax: number;
  readonly bodiesTotalBytesMax: number;
  /** Bulk sockets between two nodes, for each direction. */
  readonly bulkSocketsMax: number;
  /** A bulk transfer on which no byte moves for so long ends. */
  readonly bulkStallMsMax: number;
}

export interface ChannelOptions {
  readonly networkId: Digest;
  readonly clock: Clock;
  readonly trust: Pick<Trust, 'identity' | 'sign' | 'verify' | 'anchor'>;
  /** By name, such as `records/range`. */
  readonly methods: ReadonlyMap<string, Method>;
  readonly blobs: BulkSource;
  /** Who is spoken to, asked at the handshake and again from time to time: bans, networks with a list. Everybody certified by default. */
  readonly permits?: (remote: RemoteNode) => boolean;
  /** Called with what a method threw that is not a coded error: a defect. */
  readonly onDefect?: (error: unknown) => void;
  /** Called when a connection ended because the other end broke the protocol. */
  readonly onBreach?: (remote: RemoteNode, error: HyperMeshError) => void;
  readonly limits?: Partial<ChannelLimits>;
}

export interface ConnectOptions {
  /** Node id that has to be proved. */
  readonly expect: NodeId;
  /** Say nothing about oneself, as somebody who is not a member yet. Such a connection is never shared. */
  readonly guest?: boolean;
  /** Of the network that a guest expects; that of this channel by default. */
  readonly networkId?: Digest;
  readonly signal?: AbortSignal | undefined;
}

/** The direct channel of a node: one listener, one identity, connections over any socket. */
export interface Channel extends AsyncDisposable {
  /** Port 0 lets the system choose. Errors: `address-taken`, `network-unreachable`. */
  listen(host: string, port: number): Promise<{ readonly host: string; readonly port: number }>;
  /**
   * Connects to `host:port`, or shares the connection with that node that is there.
   * Errors: `peer-unreachable`, `network-unreachable`, `identity-mismatch`, `network-mismatch`, `peer-lied`, `timeout`, `cancelled`, `usage`, what
   * the other side refuses with, and those of {@link Trust.verify}.
   */
  connect(address: string, options: ConnectOptions): Promise<Connection>;
  /** Takes a socket that somebody else opened towards this node: punched, relayed. */
  accept(socket: Socket): void;
  /** As {@link connect}, over a socket that is open. Bulk transfers share it. */
  connectOver(socket: Socket, options: ConnectOptions): Promise<Connection>;
  connections(): readonly Connection[];
}

export interface RequestOptions {
  /** Of the answer, or of the head of a stream. A longer one is refused before it is read. */
  readonly replyBytesMax: number;
  /** Until the answer or the head is complete; 30 seconds by default. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Everything here fails with `peer-unreachable` when the connection ends, and with the code of the other side when it refuses. */
export interface Connection extends AsyncDisposable {
  readonly remote: RemoteNode;
  /** Of the last ping. */
  readonly rttMs: number | null;
  /** So far, bulk sockets included. */
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** Resolves when the connection has ended, whatever the reason. */
  readonly closed: Promise<void>;
  /** Errors besides: `timeout`, `cancelled`, `limit-exceeded` (a longer answer), `quota-exceeded` (too many requests wait). */
  request(method: string, body: Uint8Array, options: RequestOptions): Promise<Uint8Array>;
  /** The body ends with an error unless the other side said that it is complete. Leaving the loop early cancels it. */
  requestStream(
    method: string,
    body: Uint8Array,
    options: RequestOptions,
  ): Promise<{ readonly head: Uint8Array; readonly body: AsyncIterable<Uint8Array> }>;
  /**
   * Fetches a range of a blob over a bulk socket; over this connection where none can be opened. `write` gets the bytes in order, each piece valid until
   * its promise settles, which is also what slows the sender down. Resolves when exactly `length` bytes came and were written.
   * `onWait`: the request waits for a bulk socket that other ranges use, or does not any more; meanwhile the other node owes nothing.
   */
  fetchRange(
    blob: Digest,
    range: { readonly offset: number; readonly length: number },
    write: (bytes: Uint8Array) => Promise<void> | void,
    options?: FetchRangeOptions,
  ): Promise<void>;
}

export interface FetchRangeOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onWait?: (isWaiting: boolean) => void;
}
