import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { utf8 } from '../../../base/bytes.ts';
import { isCoded } from '../../../base/errors.ts';
import { EtcdCluster, etcdMissing } from '../../../testing/etcd-cluster.ts';
import { testSequencer, wholeOrder } from '../../../testing/sequencer-conformance.ts';
import { until } from '../../../testing/until.ts';
import { EtcdSequencer } from './etcd.ts';
import { EtcdClient } from './etcd-client.ts';
import { SEQUENCER_LIMITS } from './sequencer.ts';

const skip = etcdMissing();
const isUnreachable = (error: unknown) => isCoded(error, 'sequencer-unreachable');

describe('etcd of three machines', { skip }, () => {
  let cluster: EtcdCluster;
  before(async () => {
    cluster = await EtcdCluster.start(3);
  });
  after(() => cluster[Symbol.asyncDispose]());
  const open = (log: string, hasty: object = {}) =>
    new EtcdSequencer({ endpoints: cluster.endpoints, timeoutMs: 60_000, ...hasty }, log);

  testSequencer('etcd', async (log) => open(log), { skip });

  it('goes on with one machine dead, stalls with two, and has each acknowledged entry once at the end', async () => {
    const hasty = { timeoutMs: 1_500 };
    await using one = open('broken', hasty);
    await using other = open('broken', hasty);
    const acknowledged = new Map<string, number>();
    let stalls = 0;
    let stop = false;
    let count = 0;
    // Two writers, who repeat what was not acknowledged until it is, as validators do.
    const write = async (sequencer: EtcdSequencer, who: string) => {
      while (!stop) {
        count += 1;
        const entry = `${who} ${count}`;
        for (;;) {
          try {
            acknowledged.set(entry, await sequencer.append(utf8(entry)));
            break;
          } catch (error) {
            assert.ok(isUnreachable(error), String(error));
            stalls += 1;
            await sleep(50);
          }
        }
      }
    };
    const writers = Promise.all([write(one, 'one'), write(other, 'other')]);
    const grows = async () => {
      const had = acknowledged.size;
      await until('something was appended', () => acknowledged.size >= had + 5);
    };
    await grows();
    await cluster.kill(0);
    await grows();
    await cluster.kill(1);
    const fails = () => assert.rejects(one.append(utf8('while two are down')), isUnreachable);
    await fails();
    const had = acknowledged.size;
    await fails();
    assert.equal(acknowledged.size, had);
    assert.ok(stalls > 0);
    cluster.start(0);
    await grows();
    cluster.start(1);
    // One of the machines is there and says nothing: perhaps the leader, perhaps the one that was asked.
    for (const at of [0, 1, 2]) {
      cluster.pause(at);
      await grows();
      cluster.resume(at);
      await grows();
    }
    stop = true;
    await writers;
    await using patient = open('broken');
    const all = await wholeOrder(patient);
    assert.equal(new Set(all).size, all.length, 'an entry is in the order twice');
    for (const [entry, position] of acknowledged) assert.equal(all[position - 1], entry);
    assert.deepEqual(await wholeOrder(open('broken')), all);
  });

  // What somebody with the password of the cluster, such as any validator, can do to the keys.

  const ask = async (path: string, body: object) => {
    const answer = await fetch(`${cluster.endpoints[0]}/v3/${path}`, { method: 'POST', body: JSON.stringify(body) });
    assert.ok(answer.ok, `${path}: ${answer.status}`);
    return answer.json();
  };
  const text = (value: string | Uint8Array) => Buffer.from(value).toString('base64');
  const put = (key: string, value: string | Uint8Array) =>
    ask('kv/put', { key: text(`hypermesh/${key}`), value: text(value) });
  const drop = (key: string) => ask('kv/deleterange', { key: text(`hypermesh/${key}`) });
  const entry = (position: number) => `entry/${String(position).padStart(16, '0')}`;
  const isStopped = (why: RegExp) => (error: unknown) => isCoded(error, 'order-stopped') && why.test(error.message);

  for (const [what, why, done] of [
    ['an entry was deleted', /a gap at position 2/, (log) => drop(`${log}/${entry(2)}`)],
    ['the last entry was deleted', /a gap at position 3/, (log) => drop(`${log}/${entry(3)}`)],
    ['an entry was written over', /position 2 was written over/, (log) => put(`${log}/${entry(2)}`, 'other')],
    ['the length is too large', /a gap at position 4/, (log) => put(`${log}/head`, '9')],
  ] as readonly [string, RegExp, (log: string) => Promise<unknown>][]) {
    it(`says it where ${what}`, async () => {
      const log = what.replaceAll(' ', '-');
      await using sequencer = open(log);
      for (const name of ['a', 'b', 'c']) await sequencer.append(utf8(name));
      await done(log);
      await assert.rejects(async () => {
        for (const after of [0, 1, 2, 3]) await sequencer.read(after);
      }, isStopped(why));
    });
  }

  for (const [what, why, done] of [
    ['the length was deleted', /0 entries of the 3/, (log) => drop(`${log}/head`)],
    ['the length was set back', /2 entries of the 3/, (log) => put(`${log}/head`, '2')],
    ['the length is no number', /no number/, (log) => put(`${log}/head`, 'many')],
  ] as readonly [string, RegExp, (log: string) => Promise<unknown>][]) {
    it(`says it to who waits for more where ${what}`, async () => {
      const log = what.replaceAll(' ', '-');
      await using sequencer = open(log);
      for (const name of ['a', 'b', 'c']) await sequencer.append(utf8(name));
      await assert.rejects(async () => {
        for await (const length of sequencer.watch(0, AbortSignal.timeout(60_000))) if (length === 3) void done(log);
      }, isStopped(why));
    });
  }

  it('goes on after what can be no entry, whatever was written there, and shows nothing that the length does not cover', async () => {
    await using sequencer = new EtcdSequencer({ endpoints: cluster.endpoints, timeoutMs: 60_000 }, 'no-entries');
    await sequencer.append(utf8('a'));
    const sizes = [0, SEQUENCER_LIMITS.entryBytesMax + 1, ...Array.from({ length: 13 }, () => 1_500_000)];
    for (const [at, size] of sizes.entries()) await put(`no-entries/${entry(2 + at)}`, new Uint8Array(size));
    assert.deepEqual(await wholeOrder(sequencer), ['a']);
    await put('no-entries/head', `${1 + sizes.length}`);
    assert.equal(await sequencer.append(utf8('z')), sizes.length + 2);
    assert.deepEqual(await wholeOrder(sequencer), ['a', ...sizes.map(() => '\0'), 'z']);
  });

  it('goes on when its history is compacted under who waits for more', async () => {
    await using sequencer = open('compacted');
    await sequencer.append(utf8('a'));
    const ending = new AbortController();
    const seen: number[] = [];
    const watching = (async () => {
      for await (const length of sequencer.watch(0, ending.signal)) seen.push(length);
    })();
    for (let at = 0; at < 20; at += 1) {
      await sequencer.append(utf8(`entry ${at}`));
      const { header } = (await ask('kv/range', { key: text('hypermesh') })) as { header: { revision: string } };
      await ask('kv/compaction', { revision: header.revision });
    }
    for (let tries = 0; seen.at(-1) !== 21; tries += 1) {
      assert.ok(tries < 3_000, `it saw ${seen}`);
      await sleep(20);
    }
    ending.abort();
    await watching;
  });
});

test('etcd with TLS and a user: the right ones get in, and nothing of it is in an error', { skip }, async () => {
  await using cluster = await EtcdCluster.start(1, { tls: true });
  const certificate = join(cluster.folder, 'm0', 'fixtures', 'client', 'cert.pem');
  let ca = '';
  await until('it has made its certificate', async () => {
    ca = await readFile(certificate, 'utf8');
    return ca !== '';
  });
  const { endpoints } = cluster;
  const tls = { ca };
  const user = { name: 'root', password: 'correct horse' };
  {
    using admin = new EtcdClient({ endpoints, tls });
    const ask = async (path: string, body: unknown) => {
      for (let tries = 0; ; tries += 1) {
        try {
          return await admin.call(path, body, z.unknown(), undefined);
        } catch (error) {
          if (tries > 2_000) throw error;
          await sleep(50);
        }
      }
    };
    await ask('/v3/auth/user/add', { ...user });
    await ask('/v3/auth/role/add', { name: 'root' });
    await ask('/v3/auth/user/grant', { user: 'root', role: 'root' });
    await ask('/v3/auth/enable', {});
  }
  await using good = new EtcdSequencer({ endpoints, tls, user }, 'tls');
  assert.equal(await good.append(utf8('a')), 1);
  for (const [access, code] of [
    [{ endpoints, user }, 'sequencer-unreachable'],
    [{ endpoints, tls, user: { ...user, password: 'wrong' } }, 'not-permitted'],
    [{ endpoints, tls }, 'not-permitted'],
  ] as const) {
    await using bad = new EtcdSequencer(access, 'tls');
    await assert.rejects(bad.append(utf8('b')), (error) => {
      assert.ok(isCoded(error, code), String(error));
      assert.doesNotMatch(JSON.stringify([error.message, error.hint, error.details]), /horse|wrong/);
      return true;
    });
  }
  assert.deepEqual(await wholeOrder(good), ['a']);
});

test('whatever answers in the place of etcd: an error with its reason, in bounded time and memory', async () => {
  const answers = ['', 'null', '{"header":{}}', '{"header":{"revision":"1"},"kvs":[{"key":7}]}', 'x'.repeat(2 ** 20)];
  let at = 0;
  const server = createServer((_, answer) => {
    at += 1;
    answer.end(answers[at % answers.length]);
  }).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  try {
    const { port } = server.address() as AddressInfo;
    await using sequencer = new EtcdSequencer({ endpoints: [`http://127.0.0.1:${port}`] }, 'nonsense');
    for (const _ of answers) await assert.rejects(sequencer.append(utf8('a')), isUnreachable);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test('entries so large that many do not come in time are read one by one', async () => {
  const head = [{ key: 'aA==', value: Buffer.from('1').toString('base64'), mod_revision: '1', version: '1' }];
  const key = Buffer.from('hypermesh/large/entry/0000000000000001').toString('base64');
  const entry = [{ key, value: Buffer.from('a').toString('base64'), mod_revision: '1', version: '1' }];
  const body = { header: {}, responses: [entry, head, []].map((kvs) => ({ response_range: { kvs } })) };
  const server = createServer((asked, answer) => {
    let text = '';
    asked.on('data', (piece) => {
      text += String(piece);
    });
    asked.on('end', () => {
      if (/"limit":1[,}]/.test(text)) answer.end(JSON.stringify(body));
    });
  }).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  try {
    const { port } = server.address() as AddressInfo;
    await using sequencer = new EtcdSequencer({ endpoints: [`http://127.0.0.1:${port}`], timeoutMs: 300 }, 'large');
    await assert.rejects(sequencer.read(0), isUnreachable);
    for (let tries = 0; ; tries += 1) {
      const read = await sequencer.read(0).catch((error: unknown) => {
        assert.ok(isUnreachable(error) && tries < 200, String(error));
      });
      if (read !== undefined) break;
    }
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

for (const [why, access] of [
  ['a password in an endpoint', { endpoints: ['https://ada:secret@192.0.2.1:2379'] }],
  ['another scheme', { endpoints: ['ftp://192.0.2.1'] }],
  ['a password without encryption', { endpoints: ['http://192.0.2.1:2379'], user: { name: 'a', password: 'secret' } }],
] as const) {
  test(`access to etcd is refused with ${why}`, () => {
    assert.throws(
      () => new EtcdClient(access),
      (error) => isCoded(error, 'config-invalid') && !/secret/.test(error.message),
    );
  });
}
