import { isCoded } from '../../../base/errors.ts';
import { type Surroundings, sample } from '../ask.ts';
import type { NodeId } from '../channel/index.ts';
import type { RecordExchange } from './exchange.ts';

export interface RoundsOptions {
  /** Nodes to compare with: also those that were never spoken to, so that a few who met only each other find the rest. */
  readonly candidates: () => readonly NodeId[];
  /** Between rounds, and after a round in which something moved: then there is probably more. */
  readonly periodMs: number;
  readonly eagerMs: number;
}

const WANTED_MAX = 64;

/** Compares all collections with one node after the other, for as long as the home takes part in the network. */
export class SyncRounds implements Disposable {
  readonly #around: Surroundings;
  readonly #exchange: RecordExchange;
  readonly #options: RoundsOptions;
  /** Nodes that there is a reason to compare with. */
  readonly #wanted = new Set<NodeId>();
  #cancel: () => void = () => {};
  #isBusy = false;
  #ended = false;

  constructor(around: Surroundings, exchange: RecordExchange, options: RoundsOptions) {
    this.#around = around;
    this.#exchange = exchange;
    this.#options = options;
    this.#plan(options.periodMs);
  }

  /** A round with this node as soon as the one under way is over: two at once would fetch the same records twice. */
  with(node: NodeId): void {
    if (this.#wanted.size < WANTED_MAX) this.#wanted.add(node);
    if (!this.#isBusy) this.#plan(0);
  }

  [Symbol.dispose](): void {
    this.#ended = true;
    this.#cancel();
  }

  #plan(ms: number): void {
    this.#cancel();
    if (this.#ended) return;
    const { timers, random } = this.#around;
    this.#cancel = timers.after(ms * (0.8 + 0.4 * random()), () => void this.#round());
  }

  async #round(): Promise<void> {
    this.#isBusy = true;
    const [node] = this.#wanted.size > 0 ? this.#wanted : sample(this.#options.candidates(), 1, this.#around.random);
    let moved = 0;
    try {
      if (node !== undefined) {
        this.#wanted.delete(node);
        for (const collection of this.#exchange.names) {
          const { received, offered } = await this.#exchange.sync(node, collection);
          moved += received + offered;
        }
      }
    } catch (error) {
      // Whoever cannot be reached is met in another round.
      if (!isCoded(error)) throw error;
    } finally {
      this.#isBusy = false;
      if (this.#wanted.size > 0) this.#plan(0);
      else this.#plan(moved > 0 ? this.#options.eagerMs : this.#options.periodMs);
    }
  }
}
