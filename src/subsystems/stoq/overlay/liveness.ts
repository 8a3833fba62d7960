import { isCoded } from '../../../base/errors.ts';
import { aboutNode, decodeMessage, encodeMessage, reached } from '../../../wire/overlay.ts';
import { type Answer, every, type Surroundings, sample } from '../ask.ts';
import type { NodeId } from '../channel/index.ts';

export type Vitality = 'unknown' | 'alive' | 'suspect' | 'away';

export interface LivenessOptions {
  /** Everybody else in the network. */
  readonly nodes: () => readonly NodeId[];
  /** Called when a node becomes alive, or is away. */
  readonly changed: (node: NodeId, vitality: Vitality, before: Vitality) => void;
  /** One node is probed each period. */
  readonly periodMs: number;
  /** How long a node may be suspected before it is away. */
  readonly patienceMs: number;
}

interface Vital {
  state: Vitality;
  seenAtMs: number | null;
  suspectedAtMs: number;
  probing: Promise<boolean> | null;
  doubtedAtMs: number;
}

const PING_TIMEOUT_MS = 3_000;
/** Others that are asked whether they reach a node, and the fewest that are told of a doubt. */
const WITNESSES = 3;
/** A doubt about one node is looked into once in this time. */
const DOUBT_MS = 10_000;

/**
 * Who answers. After SWIM (Das, Gupta, Motivala 2002), with one difference: no node is believed about a third. What another says is only a reason
 * to probe for oneself, so a liar costs others one ping, and can declare nobody dead.
 */
export class Liveness implements Disposable {
  readonly #around: Surroundings;
  readonly #options: LivenessOptions;
  readonly #vitals = new Map<NodeId, Vital>();
  #round: NodeId[] = [];
  readonly #stop: () => void;

  constructor(around: Surroundings, options: LivenessOptions) {
    this.#around = around;
    this.#options = options;
    this.#stop = every(around, options.periodMs, () => this.#probeNext());
  }

  answers(): ReadonlyMap<string, Answer> {
    return new Map<string, Answer>([
      ['overlay/ping', async () => new Uint8Array()],
      [
        'overlay/reach',
        async (body) => {
          const { node } = decodeMessage(aboutNode, body);
          return encodeMessage({ reached: this.#isKnown(node) && (await this.probe(node)) });
        },
      ],
      [
        'overlay/doubt',
        async (body) => {
          this.doubt(decodeMessage(aboutNode, body).node);
          return new Uint8Array();
        },
      ],
    ]);
  }

  vitality(node: NodeId): Vitality {
    return this.#vitals.get(node)?.state ?? 'unknown';
  }

  seenAtMs(node: NodeId): number | null {
    return this.#vitals.get(node)?.seenAtMs ?? null;
  }

  /** A sign of life: it asked something, or answered. */
  heard(node: NodeId): void {
    const vital = this.#vital(node);
    vital.seenAtMs = this.#around.clock.nowMs();
    this.#become(node, vital, 'alive');
  }

  /** A reason to look whether a node is still there, or there again. */
  doubt(node: NodeId): void {
    if (!this.#isKnown(node)) return;
    const vital = this.#vital(node);
    const nowMs = this.#around.clock.nowMs();
    if (nowMs - vital.doubtedAtMs < DOUBT_MS) return;
    vital.doubtedAtMs = nowMs;
    if (vital.state !== 'away') return void this.#look(node);
    // One that comes back is not met by everybody at once.
    const delayMs = this.#around.random() * (this.#options.patienceMs / 2);
    this.#around.timers.after(delayMs, () => void this.#look(node));
  }

  /** Whether the node answers now. */
  probe(node: NodeId): Promise<boolean> {
    const vital = this.#vital(node);
    vital.probing ??= this.#ping(node, vital).finally(() => {
      vital.probing = null;
    });
    return vital.probing;
  }

  forget(node: NodeId): void {
    this.#vitals.delete(node);
  }

  [Symbol.dispose](): void {
    this.#stop();
  }

  /** Each node once in a round, in an order that nobody can foresee. */
  async #probeNext(): Promise<void> {
    if (this.#round.length === 0) {
      const nodes = this.#options.nodes();
      this.#round = sample(nodes, nodes.length, this.#around.random);
    }
    const node = this.#round.pop();
    if (node !== undefined) await this.#look(node);
  }

  async #look(node: NodeId): Promise<void> {
    if (await this.probe(node)) return;
    const vital = this.#vital(node);
    if (vital.state === 'away') return;
    const nowMs = this.#around.clock.nowMs();
    if (vital.state !== 'suspect') {
      vital.suspectedAtMs = nowMs;
      this.#become(node, vital, 'suspect');
      this.#spreadDoubt(node);
    }
    const { patienceMs } = this.#options;
    if (nowMs - vital.suspectedAtMs < patienceMs) {
      this.#around.timers.after(patienceMs / 2, () => void this.#look(node));
    } else if (!(await this.#reachedByOthers(node))) {
      this.#become(node, vital, 'away');
    } else {
      // Only the way from here to there is broken; it keeps its place, and is tried again.
      vital.suspectedAtMs = nowMs;
    }
  }

  async #ping(node: NodeId, vital: Vital): Promise<boolean> {
    try {
      await this.#around.ask(node, 'overlay/ping', new Uint8Array(), { replyBytesMax: 0, timeoutMs: PING_TIMEOUT_MS });
    } catch (error) {
      if (!isCoded(error)) throw error;
      return false;
    }
    vital.seenAtMs = this.#around.clock.nowMs();
    this.#become(node, vital, 'alive');
    return true;
  }

  /** Each who looks tells some: with the logarithm of all nodes, few of them are never told (Demers et al. 1987); those find out in their rounds. */
  #spreadDoubt(node: NodeId): void {
    const count = Math.max(WITNESSES, Math.ceil(Math.log(this.#options.nodes().length)));
    const options = { replyBytesMax: 0, timeoutMs: PING_TIMEOUT_MS };
    for (const other of this.#witnesses(node, count)) {
      this.#around.ask(other, 'overlay/doubt', encodeMessage({ node }), options).catch(() => undefined);
    }
  }

  async #reachedByOthers(node: NodeId): Promise<boolean> {
    const answers = this.#witnesses(node, WITNESSES).map(async (other) => {
      const options = { replyBytesMax: 64, timeoutMs: 2 * PING_TIMEOUT_MS };
      try {
        const answer = await this.#around.ask(other, 'overlay/reach', encodeMessage({ node }), options);
        return decodeMessage(reached, answer).reached;
      } catch (error) {
        if (!isCoded(error)) throw error;
        return false;
      }
    });
    return (await Promise.all(answers)).includes(true);
  }

  /**
   * Some others that are not known to be gone, found by chance: looking at all of a large network for each doubt would be too much. In one most
   * nodes were never spoken to; a doubt that passed them by would die out.
   */
  #witnesses(node: NodeId, count: number): NodeId[] {
    const nodes = this.#options.nodes();
    const found = new Set<NodeId>();
    for (let tries = 0; tries < 8 * count && found.size < count && nodes.length > 0; tries++) {
      const other = nodes[Math.floor(this.#around.random() * nodes.length)]!;
      const vitality = this.vitality(other);
      if (other !== node && (vitality === 'alive' || vitality === 'unknown')) found.add(other);
    }
    return [...found];
  }

  #become(node: NodeId, vital: Vital, state: Vitality): void {
    if (vital.state === state) return;
    const before = vital.state;
    vital.state = state;
    this.#options.changed(node, state, before);
    // Others would find out in their rounds, each of which takes as many periods as there are nodes.
    if (before === 'away') this.#spreadDoubt(node);
  }

  #isKnown(node: NodeId): boolean {
    return this.#vitals.has(node) || this.#options.nodes().includes(node);
  }

  #vital(node: NodeId): Vital {
    let vital = this.#vitals.get(node);
    if (vital === undefined) {
      vital = { state: 'unknown', seenAtMs: null, suspectedAtMs: 0, probing: null, doubtedAtMs: -DOUBT_MS };
      this.#vitals.set(node, vital);
    }
    return vital;
  }
}
