/** What growing a network needs of the network layer: the part that opens sockets implements it, a test brings its own. */

/** Who is at the other end, proved by the channel. */
export interface RemoteNode {
  readonly kind: 'member' | 'guest';
  readonly node: string | null;
  readonly publisher: string | null;
}

export interface Method {
  readonly access: 'member' | 'guest';
  readonly requestBytesMax: number;
  handle(body: Uint8Array, from: RemoteNode, options: { readonly signal: AbortSignal }): Promise<Uint8Array>;
}

export interface AskOptions {
  readonly replyBytesMax: number;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** A connection of somebody who says nothing about himself, to one who proved to be the expected node. */
export interface GuestConnection extends AsyncDisposable {
  request(method: string, body: Uint8Array, options: AskOptions): Promise<Uint8Array>;
}

export interface NetworkSide {
  /** Calls a method of another node of the network. */
  ask(to: string, method: string, body: Uint8Array, options: AskOptions): Promise<Uint8Array>;
  /** Errors: `peer-unreachable`, `identity-mismatch`, `network-mismatch`. */
  connectAsGuest(
    address: string,
    expect: { readonly node: string; readonly networkId: `sha256:${string}` },
    options?: { readonly signal?: AbortSignal | undefined },
  ): Promise<GuestConnection>;
  /** From now on, also after a restart, this home is in a network with others; `listen` is `HOST:PORT`, kept for the next time. Safe to repeat. */
  openNetwork(listen?: string): Promise<void>;
  /** Back to silence: no listener, no connections. */
  closeNetwork(): Promise<void>;
  /** `HOST:PORT` where others reach this node. */
  addresses(): readonly string[];
}
