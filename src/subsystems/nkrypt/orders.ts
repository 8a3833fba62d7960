import { HyperMeshError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { encodeOrder, ORDER_TYPE, type SelfSigned } from '../../wire/entry.ts';
import { needsOrder, type Operation } from '../../wire/proof.ts';
import type { Store } from './store.ts';

/** How long this home remembers what it asked for; nobody votes for it any more long before. */
const KEPT = 10_000;

/**
 * What this home asks the committee for, under sequence numbers of its own. A number is taken, with its operation, in one durable transaction before anything
 * is signed or sent: a crash at any moment, or two at once, never give one number two operations. Numbers are not below the clock, so that also a home that was
 * restored from an old copy takes new ones.
 */
export class OwnOrders {
  readonly #trust: Pick<Trust, 'sign' | 'publicKeys'>;
  readonly #store: Store;
  readonly #clock: { nowMs(): number };
  readonly #networkId: Operation['subject'];
  readonly #identity: string;

  constructor(
    lent: { readonly trust: Pick<Trust, 'sign' | 'publicKeys'>; readonly store: Store },
    options: {
      readonly clock: { nowMs(): number };
      readonly networkId: Operation['subject'];
      readonly identity: string;
    },
  ) {
    this.#trust = lent.trust;
    this.#store = lent.store;
    this.#clock = options.clock;
    this.#networkId = options.networkId;
    this.#identity = options.identity;
  }

  /** Commit point: before it the number is nobody's, after it this operation's. */
  take(about: Pick<Operation, 'kind' | 'subject' | 'ref'>): Operation {
    const identity = this.#identity;
    return this.#store.transact((raw) => {
      const { sequence } = raw
        .prepare(
          `INSERT INTO identities (identity, sequence) VALUES (?1, ?2)
             ON CONFLICT (identity) DO UPDATE SET sequence = max(sequence + 1, ?2) RETURNING sequence`,
        )
        .get(identity, Math.max(1, this.#clock.nowMs())) as { sequence: number };
      const operation: Operation = { ...about, identity, sequence };
      if (!needsOrder(about.kind)) return operation;
      raw.prepare('INSERT INTO orders (sequence, operation) VALUES (?, ?)').run(sequence, canonicalJson(operation));
      raw
        .prepare(
          'DELETE FROM orders WHERE sequence <= (SELECT sequence FROM orders ORDER BY sequence DESC LIMIT 1 OFFSET ?)',
        )
        .run(KEPT);
      return operation;
    });
  }

  /** The order of an operation that was taken; signed the first time, the same envelope afterwards. Null: there is none for its kind. Errors: `equivocation`. */
  async signed(operation: Operation): Promise<SelfSigned | null> {
    if (!needsOrder(operation.kind)) return null;
    const row = this.#store.raw
      .prepare('SELECT operation, signed FROM orders WHERE sequence = ?')
      .get(operation.sequence) as { operation: string; signed: string | null } | undefined;
    if (row?.operation !== canonicalJson(operation)) {
      throw new HyperMeshError(
        'equivocation',
        `This home did not take sequence number ${operation.sequence} for that operation.`,
        { hint: 'Run the command again; each operation takes a number of its own.' },
      );
    }
    if (row.signed !== null) return JSON.parse(row.signed) as SelfSigned;
    const payload = encodeOrder({ formatVersion: 1, networkId: this.#networkId, operation });
    const [keys, envelope] = await Promise.all([
      this.#trust.publicKeys('publisher'),
      this.#trust.sign('publisher', ORDER_TYPE, payload),
    ]);
    const signed: SelfSigned = { keys, envelope };
    this.#store.raw
      .prepare('UPDATE orders SET signed = ? WHERE sequence = ? AND signed IS NULL')
      .run(canonicalJson(signed), operation.sequence);
    return signed;
  }
}
