import type { Clock } from '../../../base/clock.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { isCoded } from '../../../base/errors.ts';
import { NODE_RECORD_LIMITS, type NodeRecord } from '../../../wire/node-record.ts';
import type { NodeId } from '../channel/index.ts';
import type { Collection, Reception } from '../records/exchange.ts';
import { IdSet } from '../records/id-set.ts';
import { Passed } from '../records/passed.ts';

/** The newest record of a node. */
export interface KnownNode extends Pick<NodeRecord, 'node' | 'addresses' | 'sequence' | 'notAfterMs'> {
  readonly id: Digest;
  readonly bytes: Uint8Array;
}

export interface DirectoryOptions {
  readonly self: NodeId;
  /** Nodes that belong to it whether or not their records are here: through them the network is met. */
  readonly seats: () => readonly NodeId[];
  /** Whether nothing is to do with a node. */
  readonly isBanned: (node: NodeId) => boolean;
  readonly clock: Clock;
  /** Reads a record and checks who signed it, and for which network. Errors: any coded one when it does not hold. */
  readonly judge: (bytes: Uint8Array) => Promise<NodeRecord>;
  /** A node became known, or moved. */
  readonly learned: (known: KnownNode) => void;
  readonly nodesMax: number;
}

/** Records that are not taken again: superseded, or refused. */
const PASSED_MAX = 10_000;
/** How far another node's clock may be ahead of ours. */
const SKEW_MS = 2 * 3_600_000;

/** Everybody's view of who is in the network and where: one signed record for each node, the newest. */
export class Directory implements Collection {
  readonly name = 'nodes';
  readonly ids = new IdSet();
  readonly #options: DirectoryOptions;
  readonly #nodes = new Map<NodeId, KnownNode>();
  readonly #byId = new Map<Digest, KnownNode>();
  readonly #passed = new Passed(PASSED_MAX);
  #others: readonly NodeId[] | null = null;

  constructor(options: DirectoryOptions) {
    this.#options = options;
  }

  get(node: NodeId): KnownNode | undefined {
    return this.#nodes.get(node);
  }

  nodes(): Iterable<KnownNode> {
    return this.#nodes.values();
  }

  /** Everybody but this node and those who are banned. The same array until something changes. */
  others(): readonly NodeId[] {
    if (this.#others === null) {
      const { self, seats, isBanned } = this.#options;
      const all = new Set([...this.#nodes.keys(), ...seats()]);
      all.delete(self);
      this.#others = [...all].filter((node) => !isBanned(node));
    }
    return this.#others;
  }

  /** Seats or bans changed. */
  refresh(): void {
    this.#others = null;
  }

  get size(): number {
    return this.#nodes.size;
  }

  knows(id: Digest): boolean {
    return this.#byId.has(id) || this.#passed.has(id);
  }

  hasRoom(): boolean {
    return true;
  }

  async read(id: Digest): Promise<Uint8Array | null> {
    return this.#byId.get(id)?.bytes ?? null;
  }

  /** The caller hands on what was accepted, and so adds it to `ids`. */
  async receive(id: Digest, bytes: Uint8Array): Promise<Reception> {
    const reception = await this.#receive(id, bytes);
    if (reception !== 'accepted') this.#passed.add(id);
    return reception;
  }

  /** A record that this node made itself or had stored; returns its id. */
  async take(bytes: Uint8Array): Promise<Digest | null> {
    const id = digestOf(bytes);
    if ((await this.receive(id, bytes)) !== 'accepted') return null;
    this.ids.add(id);
    return id;
  }

  /** Forgets records whose time is over, and returns their nodes. */
  sweep(): readonly NodeId[] {
    const nowMs = this.#options.clock.nowMs();
    const over = [...this.#nodes.values()].filter(({ notAfterMs }) => notAfterMs < nowMs);
    for (const known of over) this.forget(known.node);
    return over.map(({ node }) => node);
  }

  forget(node: NodeId): void {
    const known = this.#nodes.get(node);
    if (known === undefined) return;
    this.#nodes.delete(node);
    this.#others = null;
    this.#drop(known);
  }

  async #receive(id: Digest, bytes: Uint8Array): Promise<Reception> {
    if (bytes.length > NODE_RECORD_LIMITS.recordBytesMax) return 'refused';
    let record: NodeRecord;
    try {
      record = await this.#options.judge(bytes);
    } catch (error) {
      if (!isCoded(error)) throw error;
      // Not a lie of whoever hands it on: certificates expire and are revoked between two looks at them.
      return isCoded(error, 'certificate-expired', 'certificate-revoked') ? 'aside' : 'refused';
    }
    const nowMs = this.#options.clock.nowMs();
    if (record.notAfterMs < nowMs || record.sequence > nowMs + SKEW_MS) return 'aside';
    const before = this.#nodes.get(record.node);
    if (before !== undefined && before.sequence >= record.sequence) return 'aside';
    if (before === undefined && this.#nodes.size >= this.#options.nodesMax) return 'aside';
    const { node, addresses, sequence, notAfterMs } = record;
    const known = { node, addresses, sequence, notAfterMs, id, bytes };
    this.#nodes.set(node, known);
    this.#byId.set(id, known);
    if (before === undefined) this.#others = null;
    else this.#drop(before);
    this.#options.learned(known);
    return 'accepted';
  }

  #drop(known: KnownNode): void {
    this.#byId.delete(known.id);
    this.ids.delete(known.id);
    this.#passed.add(known.id);
  }
}
