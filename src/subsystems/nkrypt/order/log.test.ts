import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { fromBase64, fromUtf8, hex } from '../../../base/bytes.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { openSqlite } from '../../../base/sqlite.ts';
import {
  NETWORK,
  OrderedValidators,
  testCommittee,
  testEntry,
  testSeat,
  testWord,
  testWordHolds,
} from '../../../testing/ordered-validators.ts';
import { until as untilSo } from '../../../testing/until.ts';
import {
  type RecoveryPlace,
  SEQUENCER_TYPE,
  type SequencerPlace,
  type SequencerStatement,
} from '../../../wire/entry.ts';
import { quorumOf } from '../../../wire/genesis.ts';
import {
  decodeHeadCertificate,
  firstHead,
  HEAD_TYPE,
  type HeadVote,
  nextHead,
  PREPARE_TYPE,
  type PrepareStatement,
  type PrepareVote,
  type VoteExchange,
} from '../../../wire/order.ts';
import { EMBEDDED_SCHEMA, EmbeddedSequencer } from './embedded.ts';
import type { OrderedLog } from './log.ts';
import type { Sequencer } from './sequencer.ts';

/** Orders in memory, one for each name: what one engine does, seen by all. */
class Engines {
  readonly #store = openSqlite(':memory:', [{ name: '001', up: EMBEDDED_SCHEMA }]);
  readonly #open = new Map<string, EmbeddedSequencer>();

  readonly engine = (place: SequencerPlace, log: string): Sequencer => {
    const name = `${log}-${JSON.stringify(place)}`;
    const handle = this.#open.get(name) ?? new EmbeddedSequencer(this.#store, name);
    this.#open.set(name, handle);
    return {
      append: (...args) => handle.append(...args),
      read: (after) => handle.read(after),
      watch: (...args) => handle.watch(...args),
      forget: (upTo) => handle.forget(upTo),
      [Symbol.asyncDispose]: async () => undefined,
    };
  };
}

/** Everything that a validator applied, as text. */
function applied(validators: OrderedValidators, who: number): readonly string[] {
  const rows = validators.stores[who]!.raw.prepare(
    'SELECT entry FROM log_entries WHERE outcome IS NOT NULL ORDER BY position',
  ).all() as { entry: Uint8Array }[];
  return rows.map(({ entry }) => fromUtf8(entry));
}

/** Certificates and what they are about: the committee's word, checked by somebody who only has the seats. */
function checkCertified(validators: OrderedValidators, who: number, committee: readonly number[]): number {
  const log = validators.logs[who]!;
  const { certificate } = log.part(0);
  if (certificate === null) return 0;
  let head = firstHead(NETWORK);
  let after = 0;
  for (;;) {
    const part = log.part(after);
    if (part.certificate === null) return after;
    for (const text of part.entries) head = nextHead(head, fromBase64(text));
    const { statement, attestations } = decodeHeadCertificate(part.certificate);
    assert.equal(statement.head, head);
    assert.equal(statement.index, after + part.entries.length);
    assert.ok(new Set(attestations.map(({ validator }) => validator)).size >= quorumOf(committee.length));
    for (const word of attestations) {
      const seat = committee.map(testSeat).find(({ key }) => key === word.validator);
      assert.ok(seat !== undefined && testWordHolds(word, HEAD_TYPE, statement, seat));
    }
    after = statement.index;
  }
}

const until = (what: () => boolean) => untilSo(String(what), what, { everyMs: 5 });

test('alone: an entry is applied once, its outcome is given again, also after a restart', async () => {
  const engines = new Engines();
  await using validators = new OrderedValidators({ committee: [0], ...engines });
  const log = validators.open(0);
  const first = await log.submit(testEntry('a'));
  assert.deepEqual(first, { index: 1, outcome: { at: 1 } });
  const many = await Promise.all(['b', 'a', 'c', 'b'].map((entry) => log.submit(testEntry(entry))));
  assert.deepEqual(many[1], first);
  assert.deepEqual(many[0], many[3]);
  await validators.close(0);
  const again = validators.open(0);
  assert.deepEqual(await again.submit(testEntry('a')), first);
  assert.equal((await again.submit(testEntry('d'))).index, 4);
  assert.equal(checkCertified(validators, 0, [0]), 4);
  assert.deepEqual([again.status().waiting, again.status().trouble], [0, null]);
});

for (const n of [4, 7]) {
  const committee = Array.from({ length: n }, (_, at) => at);

  test(`${n} validators: all apply the same, whoever submits what at the same time`, async () => {
    const engines = new Engines();
    await using validators = new OrderedValidators({ committee, ...engines });
    for (const who of committee) validators.open(who);
    const results = await Promise.all(
      Array.from({ length: 60 }, (_, at) => validators.logs[at % n]!.submit(testEntry(`entry ${at % 40}`))),
    );
    await until(() => committee.every((who) => applied(validators, who).length === 40));
    for (const who of committee) {
      assert.deepEqual(applied(validators, who), applied(validators, 0));
      assert.equal(checkCertified(validators, who, committee), 40);
    }
    for (const [at, { index }] of results.entries())
      assert.equal(applied(validators, 0)[index - 1], JSON.stringify(`entry ${at % 40}`));
  });

  test(`${n} validators: goes on while f are silent, not with one more, and again when they are back`, async () => {
    const engines = new Engines();
    await using validators = new OrderedValidators({ committee, ...engines, submitMs: 1_500 });
    const f = n - quorumOf(n);
    for (const who of committee.slice(f)) validators.open(who);
    const last = validators.logs[n - 1]!;
    await last.submit(testEntry('with f silent'));
    await validators.close(f);
    await assert.rejects(last.submit(testEntry('with f + 1')), (error) => isCoded(error, 'timeout'));
    assert.equal(applied(validators, n - 1).length, 1);
    for (const who of committee.slice(0, f + 1)) validators.open(who);
    assert.equal((await last.submit(testEntry('with f + 1'))).index, 2);
    await until(() => committee.every((who) => applied(validators, who).length === 2));
  });
}

test('facts without end from one liar are no state: who needs a snapshot takes it over from another one', async () => {
  let facts = 0;
  await using validators = new OrderedValidators({
    ...{ committee: [0, 1, 2, 3], ...new Engines(), snapshotEntries: 12, stateBytesMax: 2 ** 16 },
    liar: (of, method) => {
      if (of !== 1 || method !== 'order/facts') return undefined;
      facts += 1;
      return Promise.resolve({ facts: [[`x${`${facts}`.padStart(9, '0')}`, 'x'.repeat(4_096)]], isLast: false });
    },
  });
  for (const who of [0, 1, 2]) validators.open(who);
  for (let at = 0; at < 60; at += 1) await validators.logs[at % 3]!.submit(testEntry(`entry ${at}`));
  assert.ok(validators.logs[0]!.status().floor > 0);
  // Only the liar is there at first.
  for (const who of [0, 2]) await validators.close(who);
  validators.open(3);
  await until(() => facts >= 2 ** 4);
  for (const who of [0, 2]) validators.open(who);
  await until(() => validators.logs[3]!.status().applied === validators.logs[0]!.status().applied);
});

for (const [how, lie] of [
  ['a fact at a time', (count: number) => ({ facts: [[`x${`${count}`.padStart(9, '0')}`, 'x']], isLast: false })],
  ['to say that there is another one by now', () => ({ facts: null, isLast: true })],
] as const) {
  test(`liars that go on and on, ${how}, keep nobody from the snapshot of an honest validator, although it is slower than they may be at first`, async () => {
    let lies = 0;
    await using validators = new OrderedValidators({
      ...{ committee: [0, 1, 2, 3, 4, 5, 6], ...new Engines(), snapshotEntries: 4, loadMs: 20 },
      wires: {
        carry: async (call, body) => {
          if ('base' in (body as object)) await sleep(30);
          return call();
        },
      },
      liar: (of, method) => {
        if (![1, 2].includes(of) || method !== 'order/facts') return undefined;
        lies += 1;
        return Promise.resolve(lie(lies));
      },
    });
    for (const who of [0, 1, 2, 3, 4]) validators.open(who);
    for (let at = 0; at < 20; at += 1) await validators.logs[at % 5]!.submit(testEntry(`entry ${at}`));
    assert.ok(validators.logs[0]!.status().floor > 0);
    // Only the liars are there at first.
    for (const who of [0, 3, 4]) await validators.close(who);
    validators.open(5);
    await until(() => lies >= 2);
    for (const who of [0, 3]) validators.open(who);
    await until(() => validators.logs[5]!.status().applied === validators.logs[0]!.status().applied);
    assert.equal(validators.logs[5]!.status().trouble, null);
  });
}

test('liars that send true parts of the order, each of them late, do not keep a node that was away from those who send them at once', async () => {
  const PARTS = 40;
  let late = 0;
  await using validators = new OrderedValidators({
    ...{ committee: [0, 1, 2, 3, 4, 5, 6], ...new Engines() },
    liar: (of, method, body) => {
      if (![1, 2].includes(of) || method !== 'order/part') return undefined;
      late += 1;
      // Not so late that it would be taken for silent.
      return sleep(900).then(() => validators.logs[of]!.part((body as { after: number }).after));
    },
  });
  for (const who of [0, 1, 2, 3, 4]) validators.open(who);
  // Each move of the engine ends a part.
  for (let at = 0; at < PARTS; at += 1)
    await validators.logs[0]!.submit(testEntry({ move: { kind: 'etcd', endpoints: [`http://a:${at}`] } }));
  await until(() => [1, 2, 3, 4].every((who) => validators.logs[who]!.status().applied === PARTS));
  // Only the liars are there at first.
  for (const who of [0, 3, 4]) await validators.close(who);
  validators.open(5);
  await until(() => late > 0);
  for (const who of [0, 3, 4]) validators.open(who);
  await until(() => validators.logs[5]!.status().applied === PARTS);
  assert.ok(late < PARTS / 2, `${late} of ${PARTS} parts came from the liars`);
});

test('with nobody else to ask a slow validator has all the time that its snapshot takes', async () => {
  let asked = 0;
  await using validators = new OrderedValidators({
    ...{ committee: [0, 1, 2, 3], ...new Engines(), snapshotEntries: 4, loadMs: 1 },
    wires: {
      carry: async (call, body) => {
        if ('base' in (body as object)) {
          asked += 1;
          await sleep(30);
        }
        return call();
      },
    },
  });
  for (const who of [0, 1, 2]) validators.open(who);
  for (let at = 0; at < 20; at += 1) await validators.logs[at % 3]!.submit(testEntry(`entry ${at}`));
  await until(() => [1, 2].every((who) => applied(validators, who).length === applied(validators, 0).length));
  for (const who of [1, 2]) await validators.close(who);
  validators.open(3);
  await until(() => validators.logs[3]!.status().applied === validators.logs[0]!.status().applied);
  // Two facts, each once.
  assert.equal(asked, 2);
});

/** The digest of everything that a validator applied, and how many entries of it are still on its disk. */
function kept(validators: OrderedValidators, who: number): { readonly root: string; readonly entries: number } {
  const { raw } = validators.stores[who]!;
  const { value } = raw.prepare('SELECT value FROM state WHERE id = 1').get() as { value: string };
  const { entries } = raw.prepare('SELECT count(*) AS entries FROM log_entries').get() as { entries: number };
  return { root: (JSON.parse(value) as { root: string }).root, entries };
}

test('entries of long ago are dropped; who comes later begins with a snapshot that the committee of then certified, whatever one liar says, and goes on', async () => {
  const engines = new Engines();
  let lies = 0;
  await using validators = new OrderedValidators({
    ...{ committee: [0, 1, 2, 3], ...engines, snapshotEntries: 12 },
    liar: (of, method) => {
      if (of !== 1 || !['order/facts', 'order/snapshot'].includes(method)) return undefined;
      lies += 1;
      if (method === 'order/facts') return Promise.resolve({ facts: [['root', '7'.repeat(64)]], isLast: true });
      return undefined;
    },
  });
  const committee = [0, 1, 2, 4];
  for (const who of [0, 1, 2]) validators.open(who);
  let entries = 0;
  const some = async (count: number) => {
    for (let at = 0; at < count; at += 1) await validators.logs[at % 3]!.submit(testEntry(`entry ${entries++}`));
  };
  await some(30);
  await validators.logs[0]!.submit(testEntry({ committee }));
  await some(30);
  const { applied: length, floor } = validators.logs[0]!.status();
  assert.equal(length, 61);
  assert.ok(floor >= 31 && kept(validators, 0).entries === length - floor, `floor ${floor}`);
  assert.deepEqual(validators.logs[0]!.part(0), { certificate: null, entries: [], floor });
  // One that never had anything, of the new committee, and one that was away, of the old one.
  for (const who of [4, 3]) validators.open(who);
  const isLevel = (who: number) => validators.logs[who]!.status().applied === validators.logs[0]!.status().applied;
  await until(() => [1, 2, 3, 4].every(isLevel));
  for (const who of [3, 4]) {
    assert.equal(kept(validators, who).root, kept(validators, 0).root);
    assert.ok(validators.logs[who]!.status().floor >= 31);
    await validators.close(who);
    validators.open(who);
  }
  // It votes as every other, and has snapshots of its own.
  await validators.close(2);
  for (let at = 0; at < 30; at += 1) await validators.logs[4]!.submit(testEntry(`late ${at}`));
  await until(() => [1, 3, 4].every(isLevel));
  assert.equal(new Set([0, 1, 3, 4].map((who) => kept(validators, who).root)).size, 1);
  assert.ok(validators.logs[4]!.status().floor > floor);
  assert.equal(validators.logs[4]!.status().trouble, null);
  assert.ok(lies > 0);
});

/** Has the validators agree where the next view begins, as their operators would; its engine is with validator 1. */
async function recovered(logs: readonly OrderedLog[], committee: readonly number[], view = 1): Promise<RecoveryPlace> {
  await Promise.all(logs.map((log) => log.settle()));
  const places = await Promise.all(logs.map((log) => log.settle()));
  for (const place of places) assert.deepEqual(place, places[0]);
  const after = { view, ...places[0]! };
  for (const log of logs) assert.ok(log.bind(after));
  const statement: SequencerStatement = {
    ...{ networkId: NETWORK, committee: testCommittee(0, committee).digest, moves: 0, after },
    to: { kind: 'embedded', validator: testSeat(1).key },
  };
  const signers = committee.map((who) => testSeat(who).key).sort();
  const attestations = signers
    .slice(0, quorumOf(committee.length))
    .map((key) => testWord(key, SEQUENCER_TYPE, statement));
  for (const log of logs) log.recover({ statement, attestations });
  return after;
}

test('whatever only the lost machine knew to be certified is in the order that goes on without it', async () => {
  const committee = [0, 1, 2, 3];
  for (let seed = 1; seed <= 6; seed += 1) {
    const engines = new Engines();
    let isLost = false;
    let isCut = false;
    const validators = new OrderedValidators({
      committee,
      engine: (place, log) => {
        const engine = engines.engine(place, log);
        const gone = async (): Promise<never> => {
          throw new HyperMeshError('sequencer-unreachable', 'The machine is gone.');
        };
        const isThere = () => !isLost || /-1(-\d+)?$/.test(log);
        return {
          ...engine,
          append: (...args) => (isThere() ? engine.append(...args) : gone()),
          read: (...args) => (isThere() ? engine.read(...args) : gone()),
        };
      },
      wires: {
        // From one moment on nobody but the machine that will be lost hears what the others voted for.
        carry: async (call, _body, from) => {
          if (isCut && from !== 0) throw new HyperMeshError('peer-unreachable', 'The line is cut.');
          return call();
        },
      },
    });
    for (const who of committee) validators.open(who);
    const [first] = validators.logs;
    for (let at = 0; at < seed; at += 1) await first!.submit(testEntry(`entry ${at}`));
    isCut = true;
    await Promise.all(['a', 'b'].map((name) => first!.submit(testEntry(`only known to one ${name}`))));
    const { applied: certified } = first!.status();
    isLost = true;
    await validators.close(0);
    isCut = false;
    const [one, two, three] = validators.logs.slice(1) as [OrderedLog, OrderedLog, OrderedLog];
    const { index } = await recovered([one, two, three], committee);
    assert.ok(index >= certified);
    const move = testEntry({ move: { kind: 'embedded', validator: testSeat(1).key }, after: index });
    // Whoever is first: nothing comes before the entry that makes the engine what it is.
    await Promise.all([two.submit(testEntry('goes on')), three.submit(move)]);
    await until(() => [1, 2, 3].every((who) => applied(validators, who).length === index + 2));
    assert.equal((await one.submit(move)).index, index + 1);
    for (const who of [1, 2, 3]) {
      assert.deepEqual(applied(validators, who).slice(0, certified), applied(validators, 0));
      await validators.close(who);
      validators.open(who);
    }
    await validators.logs[3]!.submit(testEntry('after restarts'));
    await until(() => [1, 2, 3].every((who) => applied(validators, who).length === index + 3));
    await validators[Symbol.asyncDispose]();
  }
});

test('an answer that comes after a log ended changes nothing under the one that goes on in its place', async () => {
  const committee = [0, 1, 2, 3];
  const held: (() => void)[] = [];
  let isHolding = false;
  const wires = {
    async carry<T>(answer: () => Promise<T>, body: unknown): Promise<T> {
      const said = await answer();
      if (isHolding && typeof (body as { after?: unknown }).after === 'number') {
        await new Promise<void>((resolve) => held.push(resolve));
      }
      return said;
    },
  };
  await using validators = new OrderedValidators({ committee, ...new Engines(), wires });
  for (const who of [0, 1, 2]) validators.open(who);
  await validators.logs[0]!.submit(testEntry('a'));
  await until(() => [0, 1, 2].every((who) => applied(validators, who).length === 1));
  isHolding = true;
  validators.open(3);
  await until(() => held.length > 0);
  const late = held.splice(0);
  await validators.close(3);
  const log = validators.open(3);
  await until(() => held.length > 0);
  for (const release of late) release();
  await sleep(20);
  assert.equal(applied(validators, 3).length, 0);
  isHolding = false;
  for (const release of held) release();
  await validators.logs[0]!.submit(testEntry('b'));
  await until(() => applied(validators, 3).length === 2);
  assert.deepEqual(applied(validators, 3), applied(validators, 0));
  assert.equal(log.status().trouble, null);
});

/** Shows each validator an order of its own: the first entries alike, then what it likes. */
class LyingEngine {
  readonly #orders = new Map<number, Uint8Array[]>();
  readonly #grown = new Set<() => void>();

  show(who: number, entries: readonly string[]): void {
    const order = this.#orders.get(who) ?? [];
    order.push(...entries.map((entry) => testEntry(entry)));
    this.#orders.set(who, order);
    for (const wake of [...this.#grown]) wake();
  }

  readonly engine = (_place: SequencerPlace, _log: string, who: number): Sequencer => {
    const grown = this.#grown;
    const order = () => this.#orders.get(who) ?? [];
    return {
      append: async () => 1,
      read: async (after) => order().slice(after),
      forget: async () => undefined,
      async *watch(after, signal) {
        for (let said = after; !signal.aborted; ) {
          if (order().length > said) {
            said = order().length;
            yield said;
            continue;
          }
          await new Promise<void>((resolve) => {
            grown.add(resolve);
            signal.addEventListener('abort', () => resolve());
          });
        }
      },
      [Symbol.asyncDispose]: async () => undefined,
    };
  };
}

test('an engine that shows two halves different entries stops the order, everybody can see why, and a quorum goes on without it', async () => {
  const engine = new LyingEngine();
  const engines = new Engines();
  const committee = [0, 1, 2, 3];
  await using validators = new OrderedValidators({
    ...{ committee, submitMs: 500 },
    engine: (place, log, who) => (/-1(-\d+)?$/.test(log) ? engines.engine(place, log) : engine.engine(place, log, who)),
  });
  for (const who of committee) {
    engine.show(who, ['a', 'b']);
    validators.open(who);
  }
  await until(() => committee.every((who) => applied(validators, who).length === 2));
  for (const who of committee) engine.show(who, who < 2 ? ['c', 'd'] : ['d', 'c']);
  await until(() => committee.every((who) => validators.logs[who]!.status().trouble !== null));
  for (const who of committee) {
    assert.equal(applied(validators, who).length, 2);
    const { split, trouble } = validators.logs[who]!.status();
    assert.deepEqual(
      split,
      [0, 1, 2, 3]
        .filter((at) => at < 2 !== who < 2)
        .map((at) => testSeat(at).key)
        .sort(),
    );
    assert.match(trouble!, /shown other entries to 2 of 4/);
  }
  await assert.rejects(validators.logs[0]!.submit(testEntry('e')), (error) =>
    isCoded(error, 'timeout', 'order-stopped'),
  );
  // The validator in whose home it was says nothing any more.
  await validators.close(0);
  const others = [1, 2, 3].map((who) => validators.logs[who]!);
  await recovered(others, committee);
  const move = testEntry({ move: { kind: 'embedded', validator: testSeat(1).key }, after: 2 });
  await Promise.all([others[0]!.submit(move), others[1]!.submit(testEntry('e'))]);
  await until(() => [1, 2, 3].every((who) => applied(validators, who).length === 4));
  for (const who of [1, 2, 3]) {
    assert.deepEqual(applied(validators, who), applied(validators, 1));
    assert.deepEqual(validators.logs[who]!.status().split, []);
    assert.equal(validators.logs[who]!.status().trouble, null);
  }
});

for (const helped of [[], [2], [1], [2, 3]]) {
  const how = helped.length === 0 ? 'nobody' : `validator ${helped.join(' and ')}`;
  test(`a liar shows one entry to one validator and another one to two, lets ${how} believe that a quorum prepared it, and falls silent: the three go on without it`, async () => {
    const engine = new LyingEngine();
    const engines = new Engines();
    const committee = [0, 1, 2, 3];
    await using validators = new OrderedValidators({
      committee,
      engine: (place, log, who) =>
        /-1(-\d+)?$/.test(log) ? engines.engine(place, log) : engine.engine(place, log, who),
    });
    const honest = [1, 2, 3];
    for (const who of honest) {
      engine.show(who, ['a']);
      validators.open(who);
    }
    const heads = ['x', 'y'].map((name) =>
      ['a', name].reduce((head, one) => nextHead(head, testEntry(one)), firstHead(NETWORK)),
    );
    await until(() => honest.every((who) => applied(validators, who).length === 1));
    for (const who of honest) engine.show(who, [who === 1 ? 'x' : 'y']);
    const logs = honest.map((who) => validators.logs[who]!);
    await until(() => logs.every((log) => log.status().waiting === 1));
    for (const who of helped) {
      // What two honest ones prepared is a quorum with the liar; what one did is none.
      const { digest } = testCommittee(0, committee);
      const statement = { networkId: NETWORK, committee: digest, view: 0, index: 2, head: heads[who === 1 ? 0 : 1]! };
      const shown: PrepareStatement = { formatVersion: 1, ...statement };
      const prepares = [{ statement: shown, attestation: testWord(testSeat(0).key, PREPARE_TYPE, shown) }];
      await validators.logs[who]!.exchange({ ...NOTHING, prepares }, testSeat(0).key);
    }
    const isLocked = (who: number) => validators.logs[who]!.tail(1).prepared !== null;
    await until(() => helped.every((who) => who === 1 || isLocked(who)));
    const { index, head } = await recovered(logs, committee);
    const isY = helped.some((who) => who !== 1);
    assert.deepEqual([index, head], isY ? [2, heads[1]] : [1, nextHead(firstHead(NETWORK), testEntry('a'))]);
    const move = testEntry({ move: { kind: 'embedded', validator: testSeat(1).key }, after: index });
    await Promise.all([logs[0]!.submit(move), logs[1]!.submit(testEntry('x')), logs[2]!.submit(testEntry('y'))]);
    await until(() => honest.every((who) => new Set(applied(validators, who)).size === 4));
    for (const who of honest) {
      assert.deepEqual(applied(validators, who), applied(validators, 1));
      checkCertified(validators, who, committee);
    }
    assert.deepEqual(validators.caught, []);
  });
}

test('an engine that lies to one validator does not stop the others, and that one follows their certificates and votes again', async () => {
  const engine = new LyingEngine();
  const committee = [0, 1, 2, 3];
  await using validators = new OrderedValidators({ committee, ...engine });
  for (const who of committee) {
    engine.show(who, who === 3 ? ['x', 'y', 'z'] : ['a', 'b', 'c']);
    validators.open(who);
  }
  await until(() => committee.every((who) => applied(validators, who).length === 3));
  assert.deepEqual(applied(validators, 3), applied(validators, 0));
  // Now it is needed.
  await validators.close(0);
  for (const who of committee) engine.show(who, ['d']);
  await until(() => [1, 2, 3].every((who) => applied(validators, who).length === 4));
  assert.deepEqual(applied(validators, 3), applied(validators, 1));
  assert.equal(checkCertified(validators, 3, committee), 4);
});

const NOTHING: VoteExchange = { applied: 0, prepares: [], commits: [], recovery: null };

/** Everything that may be said wrongly, under keys that are right. */
function lies(who: number, about: VoteExchange): VoteExchange[] {
  const { key } = testSeat(who);
  const prepares = about.prepares.flatMap(({ statement }): PrepareVote[] =>
    [
      { ...statement, head: hex(new Uint8Array(32).fill(who)) },
      { ...statement, view: statement.view + 1 },
      { ...statement, index: statement.index + 1 },
      { ...statement, view: Number.MAX_SAFE_INTEGER, index: Number.MAX_SAFE_INTEGER },
    ].map((lie) => ({ statement: lie, attestation: testWord(key, PREPARE_TYPE, lie) })),
  );
  const commits = about.commits.flatMap(({ statement }): HeadVote[] =>
    [
      { ...statement, head: hex(new Uint8Array(32).fill(who)) },
      { ...statement, stateRoot: 'f'.repeat(64) },
      { ...statement, index: statement.index + 1 },
      { ...statement, committee: NETWORK },
      { ...statement, index: Number.MAX_SAFE_INTEGER },
    ].map((lie) => ({ statement: lie, attestation: testWord(key, HEAD_TYPE, lie) })),
  );
  const forged = about.commits.map(({ statement, attestation }) => ({
    statement: { ...statement, head: 'a'.repeat(64) },
    attestation,
  }));
  return [
    ...prepares.map((vote) => ({ ...NOTHING, prepares: [vote] })),
    ...commits.map((vote) => ({ ...NOTHING, commits: [vote] })),
    { ...about, applied: Number.MAX_SAFE_INTEGER, commits: [...about.commits, ...forged].slice(0, 100) },
  ];
}

test('a validator that says everything wrong, and two things at once, harms nobody and is caught', async () => {
  const engines = new Engines();
  const committee = [0, 1, 2, 3];
  let count = 0;
  await using validators = new OrderedValidators({
    committee,
    ...engines,
    liar: (who, method, body) => {
      if (who !== 0) return undefined;
      const told = method === 'order/votes' ? (body as unknown as VoteExchange) : NOTHING;
      const answers: unknown[] = [
        ...lies(0, told),
        { certificate: null, entries: [] },
        null,
        { ...NOTHING, applied: -1, commits: 'many' },
        validators.logs[1]?.part(1),
        { ...validators.logs[1]?.part(0), entries: ['AAAA'] },
      ];
      count += 1;
      for (const log of validators.logs) {
        for (const lie of lies(0, told)) void log?.exchange(lie, testSeat(0).key).catch(() => undefined);
      }
      return Promise.resolve(answers[count % answers.length]);
    },
  });
  for (const who of [1, 2, 3]) validators.open(who);
  for (let at = 0; at < 20; at += 1) await validators.logs[1 + (at % 3)]!.submit(testEntry(`entry ${at}`));
  await until(() => [1, 2, 3].every((who) => applied(validators, who).length === 20));
  for (const who of [1, 2, 3]) {
    assert.deepEqual(applied(validators, who), applied(validators, 1));
    assert.equal(checkCertified(validators, who, committee), 20);
  }
  assert.deepEqual(new Set(validators.caught), new Set([testSeat(0).key]));
});

for (const value of [
  null,
  7,
  {},
  { applied: 0 },
  { ...NOTHING, prepares: [{}] },
  { ...NOTHING, commits: Array(101).fill(null) },
]) {
  test(`votes that are ${JSON.stringify(value).slice(0, 40)} are refused`, async () => {
    await using validators = new OrderedValidators({ committee: [0, 1], ...new Engines() });
    await assert.rejects(validators.open(0).exchange(value, testSeat(1).key), (error) =>
      isCoded(error, 'order-invalid'),
    );
  });
}

test('the committee and the engine change by entries: nothing is lost or doubled on the way, and who is new catches up', async () => {
  const engines = new Engines();
  await using validators = new OrderedValidators({ committee: [0, 1, 2, 3], ...engines });
  for (const who of [0, 1, 2, 3, 4, 5, 6]) validators.open(who);
  const submits: Promise<unknown>[] = [];
  const some = (name: string) => {
    for (let at = 0; at < 12; at += 1) submits.push(validators.logs[at % 4]!.submit(testEntry(`${name} ${at}`)));
  };
  some('first');
  submits.push(validators.logs[0]!.submit(testEntry({ committee: [0, 1, 2, 3, 4, 5, 6] })));
  some('second');
  submits.push(validators.logs[1]!.submit(testEntry({ move: { kind: 'etcd', endpoints: ['http://a:1'] } })));
  some('third');
  submits.push(validators.logs[2]!.submit(testEntry({ move: { kind: 'embedded', validator: testSeat(5).key } })));
  some('fourth');
  await Promise.all(submits);
  await until(() => [0, 1, 2, 3, 4, 5, 6].every((who) => new Set(applied(validators, who)).size === 51));
  for (const who of [1, 2, 3, 4, 5, 6]) assert.deepEqual(applied(validators, who), applied(validators, 0));
  // The new ones are needed now: 5 of 7.
  for (const who of [0, 1]) await validators.close(who);
  await validators.logs[4]!.submit(testEntry('with the new ones'));
  // Somebody who has seen nothing follows it all from the genesis.
  validators.open(7);
  await until(() => new Set(applied(validators, 7)).size === 52);
  assert.deepEqual(applied(validators, 7), applied(validators, 4));
  assert.deepEqual(validators.logs[7]!.status().engine, { kind: 'embedded', validator: testSeat(5).key });
});

test('whatever is lost, late or doubled, whoever crashes when, and whatever an engine shows: one order, and all of it in the end', async () => {
  const crash = fc.record({
    who: fc.nat(3),
    at: fc.integer({ min: 1, max: 12 }),
    late: fc.boolean(),
    afterMs: fc.nat(60),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(crash, { maxLength: 6 }), fc.integer(), async (crashes, seed) => {
      let random = seed >>> 0;
      const chance = (share: number) => {
        random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0;
        return random / 2 ** 32 < share;
      };
      const engines = new Engines();
      const committee = [0, 1, 2, 3];
      const seen = new Map<string, Set<string>>();
      let isBad = true;
      await using validators = new OrderedValidators({
        committee,
        ...engines,
        wires: {
          carry: async (call, body) => {
            const { prepares = [], commits = [] } = body as unknown as Partial<VoteExchange>;
            for (const { statement, attestation } of [...prepares, ...commits]) {
              const { formatVersion, view, index, head } = statement;
              const at = `${attestation.validator} ${formatVersion} ${view} ${index}`;
              seen.set(at, (seen.get(at) ?? new Set()).add(head));
            }
            const lost = () => new HyperMeshError('peer-unreachable', 'It got lost.');
            if (!isBad) return call();
            if (chance(0.2)) await sleep(chance(0.5) ? 1 : 15);
            if (chance(0.15)) throw lost();
            if (chance(0.1)) void call().catch(() => undefined);
            const answer = await call();
            if (chance(0.15)) throw lost();
            return answer;
          },
        },
      });
      for (const who of committee) validators.open(who);
      const entries = Array.from({ length: 16 }, (_, at) => `entry ${at}`);
      const submitted = entries.map(async (entry, at) => {
        for (;;) {
          await sleep(at * 8);
          const result = await validators.logs[at % 4]?.submit(testEntry(entry)).catch((error: unknown) => {
            assert.ok(isCoded(error), String(error));
          });
          if (result !== undefined) return;
        }
      });
      for (const { who, at, late, afterMs } of crashes) {
        await validators.close(who);
        validators.open(who, { at, late });
        await sleep(afterMs);
        await validators.close(who);
        validators.open(who);
      }
      await Promise.all(submitted);
      isBad = false;
      await until(() => committee.every((who) => applied(validators, who).length === entries.length));
      for (const who of committee) {
        assert.deepEqual([...applied(validators, who)].sort(), entries.map((entry) => JSON.stringify(entry)).sort());
        assert.deepEqual(applied(validators, who), applied(validators, 0));
        assert.equal(checkCertified(validators, who, committee), entries.length);
      }
      for (const [at, heads] of seen) assert.equal(heads.size, 1, `${at} was voted for twice`);
      assert.deepEqual(validators.caught, []);
    }),
    { numRuns: Number(process.env['HYPERMESH_FUZZ'] ?? 1) * 8 },
  );
});

test('whatever a lying engine shows to whom: never two certified heads of one index', async () => {
  const shown = fc.array(
    fc.record({ who: fc.nat(3), entries: fc.array(fc.constantFrom('a', 'b', 'c', 'd'), { maxLength: 3 }) }),
    {
      minLength: 4,
      maxLength: 16,
    },
  );
  await fc.assert(
    fc.asyncProperty(shown, fc.array(fc.nat(3), { maxLength: 3 }), async (shows, restarts) => {
      const engine = new LyingEngine();
      const committee = [0, 1, 2, 3];
      await using validators = new OrderedValidators({ committee, ...engine });
      for (const who of committee) validators.open(who);
      for (const [at, { who, entries }] of shows.entries()) {
        // Mostly the same for all, so that something is certified at all.
        for (const to of at % 3 === 0 ? [who] : committee) engine.show(to, entries);
        await sleep(2);
        const restarted = restarts[at];
        if (restarted === undefined) continue;
        await validators.close(restarted);
        validators.open(restarted);
      }
      await sleep(60);
      const orders = committee.map((who) => applied(validators, who)).sort((a, b) => a.length - b.length);
      for (const order of orders) assert.deepEqual(order, orders.at(-1)!.slice(0, order.length));
      for (const who of committee) checkCertified(validators, who, committee);
      assert.deepEqual(validators.caught, []);
    }),
    { numRuns: Number(process.env['HYPERMESH_FUZZ'] ?? 1) * 15 },
  );
});
