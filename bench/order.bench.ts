import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { base64, utf8 } from '../src/base/bytes.ts';
import { openSqlite } from '../src/base/sqlite.ts';
import { EMBEDDED_SCHEMA, EmbeddedSequencer } from '../src/subsystems/nkrypt/order/embedded.ts';
import { EtcdSequencer } from '../src/subsystems/nkrypt/order/etcd.ts';
import type { Sequencer } from '../src/subsystems/nkrypt/order/sequencer.ts';
import { EtcdCluster, etcdMissing } from '../src/testing/etcd-cluster.ts';
import { type Bench, type Comparison, inTurn, timed } from './harness.ts';

const ROUNDS = 7;
/** Entries that are on their way at the same time, each of the size of a signed instruction. */
const TOGETHER = 240;
const BYTES = 5_000;

let made = 0;
function entry(): Uint8Array {
  made += 1;
  return utf8(`${made} `.padEnd(BYTES, 'x'));
}

const entries = (count: number) => Array.from({ length: count }, entry);

async function append(sequencer: Sequencer, count: number): Promise<number> {
  const all = entries(count);
  return (await timed(() => Promise.all(all.map((one) => sequencer.append(one))))) / count;
}

async function ofSqlite(folder: string): Promise<readonly Comparison[]> {
  await using store = openSqlite(join(folder, 'ours.db'), [{ name: '001', up: EMBEDDED_SCHEMA }]);
  await using bare = openSqlite(join(folder, 'bare.db'), [
    { name: '001', up: 'CREATE TABLE rows (id INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT' },
  ]);
  await using sequencer = new EmbeddedSequencer(store, 'bench');
  const insert = async (count: number) => {
    const all = entries(count);
    const write = () =>
      bare.transact((raw) => {
        const row = raw.prepare('INSERT INTO rows (entry) VALUES (?)');
        for (const one of all) row.run(one);
      });
    return (await timed(write)) / count;
  };
  return [
    {
      name: 'an entry of many at once, SQLite',
      ...{ unit: 'ms', reference: 'bare INSERT, one durable transaction for all' },
      ...(await inTurn(
        ROUNDS,
        () => append(sequencer, TOGETHER),
        () => insert(TOGETHER),
      )),
    },
    {
      name: 'an entry alone, SQLite',
      ...{ unit: 'ms', reference: 'bare INSERT, durable' },
      ...(await inTurn(
        ROUNDS,
        () => append(sequencer, 1),
        () => insert(1),
      )),
    },
  ];
}

async function ofEtcd(): Promise<readonly Comparison[]> {
  await using cluster = await EtcdCluster.start(3);
  await using sequencer = new EtcdSequencer({ endpoints: cluster.endpoints }, 'bench');
  const put = async (count: number) => {
    const all = entries(count);
    const one = async (value: Uint8Array) => {
      const body = JSON.stringify({ key: base64(value.subarray(0, 8)), value: base64(value) });
      const answer = await fetch(`${cluster.endpoints[0]!}/v3/kv/put`, { method: 'POST', body });
      await answer.arrayBuffer();
    };
    return (await timed(() => Promise.all(all.map(one)))) / count;
  };
  return [
    {
      name: 'an entry of many at once, etcd of three',
      ...{ unit: 'ms', reference: 'bare puts at once over the same gateway' },
      ...(await inTurn(
        ROUNDS,
        () => append(sequencer, TOGETHER),
        () => put(TOGETHER),
      )),
    },
    {
      name: 'an entry alone, etcd of three',
      ...{ unit: 'ms', reference: 'bare put over the same gateway' },
      ...(await inTurn(
        ROUNDS,
        () => append(sequencer, 1),
        () => put(1),
      )),
    },
  ];
}

export const bench: Bench = {
  name: 'order',
  about: 'putting entries in order, until each is durable, against what the engine beneath does with the same bytes',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      return [...(await ofSqlite(folder)), ...(etcdMissing() === false ? await ofEtcd() : [])];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
