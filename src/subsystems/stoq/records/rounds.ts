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

/** Compares all collections with one node after the other, for as long as the home takes part in the network. */
export class SyncRounds implements Disposable {
  readonly #around: Surroundings;
  readonly #exchange: RecordExchange;
  readonly #options: RoundsOptions;
  #cancel: () => void = () => {};
  #ended = false;

  constructor(around: Surroundings, exchange: RecordExchange, options: RoundsOptions) {
    this.#around = around;
    this.#exchange = exchange;
    this.#options = options;
    this.#plan(options.periodMs);
  }

  /** A round with this node now. Whether it could be reached; anything but a coded error is thrown. */
  async with(node: NodeId): Promise<boolean> {
    let moved = 0;
    try {
      for (const collection of this.#exchange.names) {
        const { received, offered } = await this.#exchange.sync(node, collection);
        moved += received + offered;
      }
    } catch (error) {
      if (!isCoded(error)) throw error;
      return false;
    } finally {
      this.#plan(moved > 0 ? this.#options.eagerMs : this.#options.periodMs);
    }
    return true;
  }

  [Symbol.dispose](): void {
    this.#ended = true;
    this.#cancel();
  }

  #plan(ms: number): void {
    this.#cancel();
    if (this.#ended) return;
    const { timers, random } = this.#around;
    this.#cancel = timers.after(ms * (0.8 + 0.4 * random()), () => {
      const [node] = sample(this.#options.candidates(), 1, random);
      if (node === undefined) this.#plan(this.#options.periodMs);
      else void this.with(node);
    });
  }
}
