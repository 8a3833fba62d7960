import type { Digest } from '../../../base/digest.ts';
import type { NodeId, RemoteNode } from '../channel/types.ts';
import { Rate } from './rate.ts';

/** What one node is given of one blob. */
export interface OutgoingFigures {
  readonly blob: Digest;
  readonly node: NodeId;
  readonly bytes: number;
  readonly bytesPerSecond: number;
}

/** One answer that is under way. */
interface Giving {
  gave(bytes: number): void;
  end(): void;
}

interface Entry {
  readonly blob: Digest;
  readonly node: NodeId;
  readonly rate: Rate;
  /** Answers under way. */
  open: number;
  movedAtMs: number;
}

/** A node asks for a blob in many ranges, one after the other: between two of them it is still being given to. */
const PAUSE_MS = 2_000;
/** Of blobs and nodes together; of more, those that were asked for last are known. */
const ENTRIES_MAX = 1_024;

/** Who is given what at the moment: for people to see, nothing depends on it. */
export class Outgoing {
  /** In the order in which they were asked for last. */
  readonly #entries = new Map<string, Entry>();

  begin(blob: Digest, to: RemoteNode): Giving {
    const node = to.node ?? to.address;
    const key = `${blob} ${node}`;
    const before = this.#entries.get(key);
    const isOn = before !== undefined && !isOver(before);
    const entry = isOn ? before : { blob, node, rate: new Rate(), open: 0, movedAtMs: performance.now() };
    entry.open += 1;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    if (this.#entries.size > ENTRIES_MAX) this.#entries.delete(this.#entries.keys().next().value!);
    return {
      gave: (bytes) => {
        entry.movedAtMs = performance.now();
        entry.rate.add(bytes, entry.movedAtMs);
      },
      end: () => {
        entry.open -= 1;
        entry.movedAtMs = performance.now();
      },
    };
  }

  figures(): OutgoingFigures[] {
    for (const [key, entry] of this.#entries) if (isOver(entry)) this.#entries.delete(key);
    return [...this.#entries.values()].map(({ blob, node, rate }) => {
      return { blob, node, bytes: rate.total, bytesPerSecond: rate.perSecond() };
    });
  }
}

function isOver({ open, movedAtMs }: Entry): boolean {
  return open === 0 && performance.now() - movedAtMs > PAUSE_MS;
}
