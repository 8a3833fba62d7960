import { utf8 } from '../../base/bytes.ts';
import type { Ban } from '../../capabilities/transport.ts';
import type { Book } from './book.ts';
import type { NodeId } from './channel/index.ts';

/** Nodes that this one does not speak to, and why: in memory what the book keeps, with the evidence. */
export class Bans {
  readonly #book: Book;
  #bans!: ReadonlyMap<NodeId, Ban>;

  constructor(book: Book) {
    this.#book = book;
    this.reload();
  }

  /** The book was changed. */
  reload(): void {
    this.#bans = new Map(this.#book.bans().map((ban) => [ban.node, ban]));
  }

  /** Oldest first. */
  all(): readonly Ban[] {
    return [...this.#bans.values()];
  }

  /** Kept until it is forgiven; null for a node that is not banned. */
  evidence(node: NodeId): Uint8Array | null {
    return this.#book.evidence(node);
  }

  has(node: NodeId): boolean {
    return this.#bans.has(node);
  }

  get(node: NodeId): Ban | null {
    return this.#bans.get(node) ?? null;
  }

  add(node: NodeId, why: string, evidence: Uint8Array | string, atMs: number): void {
    this.#book.ban(node, why, typeof evidence === 'string' ? utf8(evidence) : evidence, atMs);
    this.reload();
  }

  /** Whether it was banned. */
  remove(node: NodeId): boolean {
    const was = this.#book.forgive(node);
    this.reload();
    return was;
  }
}
