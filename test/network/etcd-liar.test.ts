import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { fromUtf8, utf8 } from '../../src/base/bytes.ts';
import { digestOf } from '../../src/base/digest.ts';
import type { SequencerInfo } from '../../src/capabilities/membership.ts';
import { EtcdCluster, etcdMissing } from '../../src/testing/etcd-cluster.ts';
import type { SequencerPlace } from '../../src/wire/entry.ts';
import { temporaryFolder } from '../system/support.ts';
import { until } from './mesh.ts';
import { type Home, Homes } from './validators.ts';

/** Whoever has the password of the cluster, as each validator has. */
class Intruder {
  readonly #endpoint: string;
  readonly #prefix: string;

  constructor(endpoint: string, prefix: string) {
    this.#endpoint = endpoint;
    this.#prefix = prefix;
  }

  async #ask<T>(path: string, body: object): Promise<T> {
    const answer = await fetch(`${this.#endpoint}/v3/kv/${path}`, { method: 'POST', body: JSON.stringify(body) });
    assert.ok(answer.ok, `${path}: ${answer.status}`);
    return (await answer.json()) as T;
  }

  #key(name: string): string {
    return base64(`${this.#prefix}/${name}`);
  }

  async get(name: string): Promise<Buffer> {
    const { kvs } = await this.#ask<{ kvs: readonly [{ value: string }] }>('range', { key: this.#key(name) });
    return Buffer.from(kvs[0].value, 'base64');
  }

  put(name: string, value: string | Uint8Array): Promise<unknown> {
    return this.#ask('put', { key: this.#key(name), value: base64(value) });
  }

  drop(name: string): Promise<unknown> {
    return this.#ask('deleterange', { key: this.#key(name) });
  }

  async length(): Promise<number> {
    return Number(await this.get('head'));
  }

  /** As what comes next, whatever it is. Where it is then. */
  async add(entry: Uint8Array): Promise<number> {
    for (;;) {
      const length = await this.length();
      const puts = { [entryAt(length + 1)]: entry, head: String(length + 1) };
      const { succeeded = false } = await this.#ask<{ succeeded?: boolean }>('txn', {
        // Others write at the same time.
        compare: [{ key: this.#key('head'), target: 'VALUE', result: 'EQUAL', value: base64(String(length)) }],
        success: Object.entries(puts).map(([name, value]) => ({
          request_put: { key: this.#key(name), value: base64(value) },
        })),
      });
      if (succeeded) return length + 1;
    }
  }

  async compact(): Promise<void> {
    const { header } = await this.#ask<{ header: { revision: string } }>('range', { key: this.#key('head') });
    await this.#ask('compaction', { revision: header.revision });
  }
}

const base64 = (value: string | Uint8Array) => Buffer.from(value).toString('base64');
const entryAt = (position: number) => `entry/${String(position).padStart(16, '0')}`;

test('one of four validators lies about the order and has the password of the cluster that makes it: nothing that conflicts is certified, the others go on or say what is wrong, and leave it', {
  skip: etcdMissing(),
}, async (t) => {
  await using folder = await temporaryFolder();
  await using cluster = await EtcdCluster.start(3);
  await using homes = await Homes.open(folder.path, 4);
  const [liar, ...honest] = homes.all as [Home, Home, Home, Home];
  await homes.found(homes.all);
  let turns = 0;
  const orders = () => Promise.all(honest.map((home) => home.call('order')));
  const said = (all: readonly SequencerInfo[]) => JSON.stringify(all.map(({ applied, trouble }) => [applied, trouble]));
  /** Again where a busy machine does not do it in time. */
  const surely = (what: string, work: () => Promise<unknown>) =>
    until(what, async () => {
      await work();
      return true;
    });
  const unlock = (home: Home) => surely('something is ordered', () => home.call('unlock', 1));
  /** One of them has something ordered, and all of the honest ones see the same. */
  const goesOn = async (what: string) => {
    turns += 1;
    await unlock(honest[turns % honest.length]!);
    await until(`the honest ones agree although ${what}`, async () => {
      const all = await orders();
      assert.equal(new Set(all.map(({ head }) => head)).size, 1, said(all));
      return true;
    });
  };
  const publish = (home: Home, version: string) =>
    surely('it is published', () =>
      home.call('publish', digestOf(utf8(version)), `name-${homes.all.indexOf(home)}/package@${version}`),
    );
  const move = async (all: readonly Home[], to: SequencerPlace, recover = false) => {
    for (const home of all) await surely('it is approved', () => home.call('move', to, recover));
    await until('the order is made elsewhere', async () => {
      for (const { engine } of await orders()) assert.deepEqual(engine, to);
      return true;
    });
  };
  const inEtcd: SequencerPlace = { kind: 'etcd', endpoints: cluster.endpoints };
  await move(homes.all, inEtcd);
  await liar.call('behave', 'lies about the order');
  const intruder = new Intruder(cluster.endpoints[0]!, `hypermesh/${homes.networkId.slice(7)}-1`);
  await publish(honest[2]!, '1.0.0');
  await goesOn('one lies about the order');

  // What changes nothing.
  const late = honest[2]!;
  for (const [what, done] of [
    ['nonsense is in it', () => intruder.add(randomBytes(1_000))],
    ['nothing is in it', () => intruder.add(new Uint8Array())],
    ['something is in it that is larger than an entry', () => intruder.add(new Uint8Array(1_400_000))],
    ['an entry is in it twice', async () => intruder.add(await intruder.get(entryAt(1)))],
    ['an entry that was certified is written over', () => intruder.put(entryAt(1), 'x')],
    ['an entry that was certified is deleted', () => intruder.drop(entryAt(2))],
    ['its history is gone', () => intruder.compact()],
  ] as const) {
    await done();
    t.diagnostic(what);
    await goesOn(what);
  }
  // Who was away has it from the others. (A liar and one that is away are two of four.)
  await liar.call('behave', 'honest');
  await late.kill();
  await unlock(honest[0]!);
  const last = await intruder.length();
  // What comes before something certified is certified: without one that is not, and that only some have seen, nothing would go on.
  await unlock(honest[0]!);
  await intruder.drop(entryAt(last));
  await late.up();
  await liar.call('behave', 'lies about the order');
  await goesOn('one was away when an entry was deleted');

  // What stops it, until the others leave.
  const home: SequencerPlace = { kind: 'embedded', validator: honest[0]!.validator };
  await intruder.drop('head');
  const waiting = honest[1]!.call('unlock', 1);
  waiting.catch(() => undefined);
  await until('the honest ones say what is wrong', async () => {
    const all = await orders();
    assert.ok(
      all.every(({ trouble }) => /The engine has \d+ entries of the \d+ that it had/.test(trouble ?? '')),
      said(all),
    );
    return true;
  });
  await publish(honest[2]!, '1.0.1');
  await move(honest, home, true);
  await waiting.catch(() => unlock(honest[1]!));
  await goesOn('the cluster was left');

  // Two entries for one place, while the liar is silent.
  await move(honest, inEtcd);
  await goesOn('it is in the cluster again');
  await liar.kill();
  const [one, ...others] = honest as [Home, Home, Home];
  const again = new Intruder(cluster.endpoints[0]!, `hypermesh/${homes.networkId.slice(7)}-3`);
  const order = new DatabaseSync(join(one.folder, 'consensus', 'nkrypt.db'), { readOnly: true });
  const prepared = () =>
    order
      .prepare('SELECT entry FROM log_entries WHERE outcome IS NULL ORDER BY position')
      .all()
      .map(({ entry }) => fromUtf8(entry as Uint8Array));
  let position = 0;
  for (let thing = 'one thing'; position === 0; thing += '!') {
    for (const other of others) other.pause();
    const at = await again.add(utf8(thing));
    await until('one has voted for something', () => prepared().length > 0);
    // What validators bring by themselves, such as the time, may have come first: once more, when that is in the order.
    if (prepared().includes(thing)) position = at;
    else {
      for (const other of others) other.resume();
      await goesOn('something came first');
    }
  }
  order.close();
  const before = await one.call('order');
  for (let at = await again.length(); at >= position; at -= 1) await again.drop(entryAt(at));
  await again.put('head', String(position - 1));
  await again.add(utf8('another'));
  for (const other of others) other.resume();
  await until('it is seen', async () => {
    const all = await orders();
    assert.deepEqual(
      all.map(({ split }) => split),
      [others.map(({ validator }) => validator).sort(), ...others.map(() => [one.validator])],
      said(all),
    );
    assert.match(all[0]!.trouble ?? '', /shown other entries to 2 of 4|has \d+ entries of the \d+/);
    return true;
  });
  for (const { applied, head } of await orders()) assert.deepEqual([applied, head], [before.applied, before.head]);
  // What only two of four were shown can be certified with the fourth alone.
  await liar.up();
  await goesOn('one was shown another entry');

  const { conflicts, misdeeds, checked } = homes.audit();
  assert.deepEqual(conflicts, []);
  t.diagnostic(JSON.stringify(checked));
  assert.ok(misdeeds.length > 0);
  for (const { says } of misdeeds) assert.ok(says.includes(liar.validator), says);
});
