import type { Digest } from '../base/digest.ts';
import type { RequestOptions } from '../subsystems/stoq/index.ts';
import { CERTIFICATION_LIMITS } from '../wire/certification.ts';

/** Certifying takes a busy machine a moment. */
export const CERTIFY_LIMITS = { replyBytesMax: CERTIFICATION_LIMITS.answerBytesMax, timeoutMs: 60_000 } as const;

/** What growing a network needs of the network layer: STOQ is it, a test brings its own. */

export type Request = (method: string, body: Uint8Array, options: RequestOptions) => Promise<Uint8Array>;

export interface NetworkSide {
  /** Calls a method of another node of the network. Errors: `peer-unreachable`, `timeout`, and what the other side refuses with. */
  ask(to: string, method: string, body: Uint8Array, options: RequestOptions): Promise<Uint8Array>;
  /**
   * A conversation of somebody who says nothing about himself, with one node that has to prove to be `expect`, at the first address that works.
   * Errors: those of the last address, and what the other side refuses with.
   */
  asGuest<T>(
    network: Digest,
    expect: string,
    addresses: readonly string[],
    talk: (request: Request) => Promise<T>,
    options?: { readonly signal?: AbortSignal | undefined },
  ): Promise<T>;
  /** Whether this node takes part in a network of several now. */
  readonly isOpen: boolean;
  /**
   * Takes part from now on; where it listens (`HOST:PORT`) is kept for the next time. Safe to repeat. When a port that is asked for is taken nothing
   * changes; one that was kept is tried again later. Errors: `address-taken`, `network-unreachable`, `config-invalid`.
   */
  openNetwork(listen?: string): Promise<void>;
  /** Back to silence: no listener, no connections, nothing remembered. */
  closeNetwork(): Promise<void>;
  /** `HOST:PORT` where others reach this node. */
  addresses(): readonly string[];
  /** The node for which that publisher vouched, as a connection that is open now proved it. */
  nodeOf(publisher: string): string | undefined;
  /** Where that node said last that it is; none while it is not known. */
  addressesOf(node: string): readonly string[];
  /** Where that node may be reached, beside what it said itself. */
  heardOf(node: string, addresses: readonly string[]): void;
  /** The terms of the network may be others: its nodes get to hear of it. */
  termsChanged(): void;
  /** That node is no member any more. */
  expel(node: string): void;
}
