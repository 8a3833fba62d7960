import { utf8 } from '../../base/bytes.ts';
import type { Book } from './book.ts';
import type { NodeId } from './channel/index.ts';

/** Nodes that this one does not speak to, and why: in memory what the book keeps, with the evidence. */
export class Bans {
  readonly #book: Book;
  #reasons!: ReadonlyMap<NodeId, string>;

  constructor(book: Book) {
    this.#book = book;
    this.reload();
  }

  /** The book was changed. */
  reload(): void {
    this.#reasons = new Map(this.#book.bans().map(({ node, why }) => [node, why]));
  }

  nodes(): Iterable<NodeId> {
    return this.#reasons.keys();
  }

  has(node: NodeId): boolean {
    return this.#reasons.has(node);
  }

  reason(node: NodeId): string | null {
    return this.#reasons.get(node) ?? null;
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
