import { fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf, sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Resource } from '../capabilities/transport.ts';
import type { Answer } from '../subsystems/stoq/ask.ts';
import type { NodeId } from '../subsystems/stoq/channel/index.ts';
import { Directory } from '../subsystems/stoq/overlay/directory.ts';
import { Liveness } from '../subsystems/stoq/overlay/liveness.ts';
import { type Collection, RecordExchange } from '../subsystems/stoq/records/exchange.ts';
import { IdSet } from '../subsystems/stoq/records/id-set.ts';
import { SyncRounds } from '../subsystems/stoq/records/rounds.ts';
import { type KeptResource, Replication, type ResourceBook } from '../subsystems/stoq/replication.ts';
import type { NodeRecord } from '../wire/node-record.ts';
import type { SimulatedNetwork } from './simulated-network.ts';

/** Node records are signed in the real network; here they are read as they are, each once for all nodes. */
const readRecords = new Map<Digest, NodeRecord>();

/** One node of a {@link SimulatedNetwork}: directory, liveness, records and replication as the product has them, content as a list of names. */
export class SimulatedNode {
  readonly id: NodeId;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly exchange: RecordExchange;
  readonly replication: Replication;
  /** Records that are in force here. */
  readonly records = new Map<Digest, Uint8Array>();
  readonly resources = new Map<Digest, KeptResource>();
  readonly #network: SimulatedNetwork;
  readonly #rounds: SyncRounds;
  #seats: readonly NodeId[] = [];

  constructor(network: SimulatedNetwork, name: string) {
    this.#network = network;
    this.id = hex(sha256(utf8(name)));
    const around = network.around(this.id);
    const others = () => this.directory.others();
    const presumed = () => others().filter((node) => this.liveness.vitality(node) !== 'away');
    this.directory = new Directory({
      clock: around.clock,
      self: this.id,
      seats: () => this.#seats,
      isBanned: () => false,
      nodesMax: 100_000,
      judge: async (bytes) => readRecord(bytes),
      learned: () => this.replication?.changed(),
    });
    this.liveness = new Liveness(around, {
      nodes: others,
      periodMs: 5_000,
      patienceMs: 30_000,
      changed: (node, vitality, before) => {
        if (vitality === 'alive') this.#rounds.with(node);
        if (vitality === 'away' || before === 'away') this.replication.changed();
      },
    });
    this.exchange = new RecordExchange(around, {
      collections: [this.directory, this.#recordCollection()],
      reachable: presumed,
      accuse: (node, why) => {
        throw new Error(`an honest node was accused: ${node.slice(0, 8)} ${why}`);
      },
      fanout: 4,
    });
    this.replication = new Replication(around, {
      self: this.id,
      book: this.#book(),
      alive: presumed,
      isAway: (node) => this.liveness.vitality(node) === 'away',
      bring: async ({ id }) => {
        for (const node of await this.replication.find(id)) {
          const answer = await around.ask(node, 'test/content', utf8(id), { replyBytesMax: 16 }).catch(() => null);
          if (answer !== null && fromUtf8(answer) === 'here') return;
        }
        throw new HyperMeshError('content-unavailable', 'Nobody has it.');
      },
      audit: async (node, { id }) => {
        const answer = await around.ask(node, 'test/content', utf8(id), { replyBytesMax: 16 }).catch(() => null);
        return answer !== null && fromUtf8(answer) === 'here';
      },
      release: async () => true,
      periodMs: 120_000,
      concurrency: 4,
      keeps: true,
    });
    network.add(
      this.id,
      new Map<string, Answer>([
        ...this.liveness.answers(),
        ...this.exchange.answers(),
        ...this.replication.answers(),
        ['test/content', async (body) => utf8(this.holds(fromUtf8(body) as Digest) ? 'here' : 'not')],
      ]),
    );
    this.#rounds = new SyncRounds(around, this.exchange, { candidates: presumed, periodMs: 60_000, eagerMs: 2_000 });
  }

  /** Meets the network through nodes that are, or seem to be, in it. */
  async join(...through: readonly { readonly id: NodeId }[]): Promise<void> {
    const nowMs = this.#network.nowMs;
    const record: NodeRecord = {
      formatVersion: 1,
      network: digestOf(new Uint8Array()),
      node: this.id,
      addresses: [],
      sequence: nowMs,
      notAfterMs: nowMs + 86_400_000,
    };
    const bytes = utf8(JSON.stringify(record));
    const id = digestOf(bytes);
    await this.directory.receive(id, bytes);
    this.exchange.accepted('nodes', id);
    this.#seats = through.map((node) => node.id);
    this.directory.refresh();
    for (const seat of this.#seats) this.#rounds.with(seat);
  }

  /** Publishes a resource that this node holds. */
  publish(name: string, replication: number): Digest {
    const bytes = utf8(JSON.stringify({ name, replication }));
    const id = digestOf(bytes);
    this.records.set(id, bytes);
    this.resources.set(id, { id, blobs: [], replication, held: true, pinned: true });
    this.exchange.accepted('records', id);
    void this.replication.arrived(id);
    return id;
  }

  holds(id: Digest): boolean {
    return this.resources.get(id)?.held === true;
  }

  #recordCollection(): Collection {
    return {
      name: 'records',
      ids: new IdSet(),
      hasRoom: () => true,
      knows: (id) => this.records.has(id),
      read: async (id) => this.records.get(id) ?? null,
      receive: async (id, bytes) => {
        this.records.set(id, bytes);
        const { replication } = JSON.parse(fromUtf8(bytes)) as Pick<Resource, 'replication'>;
        this.resources.set(id, { id, blobs: [], replication, held: false, pinned: false });
        void this.replication.arrived(id);
        return 'accepted';
      },
    };
  }

  #book(): ResourceBook {
    return {
      get: (id) => this.resources.get(id) ?? null,
      page: (after, limit) =>
        [...this.resources.values()]
          .filter(({ id }) => id > after)
          .sort((a, b) => (a.id < b.id ? -1 : 1))
          .slice(0, limit),
      setHeld: (id, held) => {
        this.resources.set(id, { ...this.resources.get(id)!, held });
      },
    };
  }
}

function readRecord(bytes: Uint8Array): NodeRecord {
  const id = digestOf(bytes);
  let record = readRecords.get(id);
  if (record === undefined) {
    record = JSON.parse(fromUtf8(bytes)) as NodeRecord;
    readRecords.set(id, record);
  }
  return record;
}
