import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { decodeMessage, encodeMessage, keeping } from '../../wire/overlay.ts';
import { Placement } from './placement.ts';
import { Replication, type ResourceBook } from './replication.ts';

const SELF = 'a'.repeat(64);
const id: Digest = `sha256:${'1'.repeat(64)}`;

test('a closed Replication leaves the book alone, whatever was still under way', async () => {
  let isOpen = true;
  const resource = { id, blobs: [], replication: 3, held: false, pinned: false };
  const use = <T>(value: T): T => {
    assert.ok(isOpen, 'the book is closed');
    return value;
  };
  const book: ResourceBook = {
    get: () => use(resource),
    page: () => use([resource]),
    setHeld: () => use(undefined),
  };
  const timers: (() => void)[] = [];
  const brought = Promise.withResolvers<void>();
  const replication = new Replication(
    {
      ask: async () => new Uint8Array(),
      clock: { nowMs: () => 1_000 },
      random: () => 0.5,
      timers: {
        after(_ms, work) {
          timers.push(work);
          return () => undefined;
        },
      },
    },
    {
      self: SELF,
      book,
      alive: () => [],
      isAway: () => false,
      bring: () => brought.promise,
      audit: async () => true,
      release: async () => true,
      periodMs: 1_000,
      concurrency: 1,
      keeps: true,
    },
  );
  replication.changed();
  await replication.settle();
  replication[Symbol.dispose]();
  isOpen = false;
  brought.reject(new HyperMeshError('cancelled', 'The node stops.'));
  replication.changed();
  await replication.arrived(id);
  for (let work = timers.shift(); work !== undefined && timers.length < 50; work = timers.shift()) {
    work();
    await Promise.resolve();
  }
});

const PERIOD_MS = 1_000;

/** One node among others, of which each says that it holds the resource; `honest` ones do. */
function among(others: readonly string[], honest: (node: string) => boolean, pinned = false, of = crowded) {
  let nowMs = 0;
  const timers: (() => void)[] = [];
  const resource = { id: of, blobs: [], replication: 2, held: true, pinned };
  const state = { resource, released: 0, audits: 0, releases: true, standIn: false, shown: true, mayKeep: false };
  const replication = new Replication(
    {
      ask: async (_node, method) => (method === 'resources/keep' ? encodeMessage({ state: 'held' }) : new Uint8Array()),
      clock: { nowMs: () => nowMs },
      random: () => 0.5,
      timers: {
        after(_ms, work) {
          timers.push(work);
          return () => undefined;
        },
      },
    },
    {
      ...{ self: SELF, periodMs: PERIOD_MS, concurrency: 1, keeps: true, alive: () => others, isAway: () => false },
      book: {
        get: () => state.resource,
        page: (after) => (after === '' ? [state.resource] : []),
        setHeld: (_, held) => {
          state.resource = { ...state.resource, held };
        },
      },
      bring: async () => {},
      audit: async (node) => {
        state.audits += 1;
        return honest(node);
      },
      release: async () => {
        if (state.releases) state.released += 1;
        return state.releases;
      },
      coded: {
        standIn: () => state.standIn,
        shown: async () => state.shown,
        mayKeep: () => state.mayKeep,
      },
    },
  );
  const period = async () => {
    nowMs += PERIOD_MS;
    await replication.settle();
  };
  return { replication, state, period, timers };
}

const others = ['b', 'c', 'd', 'e', 'f', '1', '2', '3'].map((digit) => digit.repeat(64));
/** A resource of which this node is no place, and its places, the same for everybody. */
const placesOf = (resource: Digest) => new Placement([SELF, ...others]).top(resource, 2);
const crowded = others.map((node): Digest => `sha256:${node}`).find((resource) => !placesOf(resource).includes(SELF))!;
const places = placesOf(crowded);

suite('a copy that is too much', () => {
  test('is given up when it was for two periods, and every place has shown its own', async () => {
    const { state, period } = among(others, () => true);
    await period();
    assert.deepEqual([state.released, state.resource.held], [0, true]);
    await period();
    assert.deepEqual([state.released, state.resource.held], [1, false]);
    assert.equal(state.audits, 2);
  });

  test('stays when a place does not show its own, is pinned, or is needed here', async () => {
    const liar = among(others, (node) => node !== places[1]);
    const pinned = among(others, () => true, true);
    const needed = among(others, () => true);
    needed.state.releases = false;
    const few = among(places.slice(0, 1), () => true);
    for (const { period, state } of [liar, pinned, needed, few]) {
      for (let i = 0; i < 3; i++) await period();
      assert.deepEqual([state.released, state.resource.held], [0, true]);
    }
    assert.equal(pinned.state.audits, 0);
  });
});

suite('a copy in the place of which fragments stand', () => {
  const own = others.map((node): Digest => `sha256:${node}`).find((resource) => placesOf(resource).includes(SELF))!;

  test('is given up by a place of it when every fragment was shown, and is not missed', async () => {
    const { state, period, replication } = among(others, () => true, false, own);
    state.standIn = true;
    assert.equal(await replication.underReplicated(), 0);
    await period();
    state.shown = false;
    await period();
    assert.deepEqual([state.released, state.resource.held], [0, true]);
    state.shown = true;
    await period();
    assert.deepEqual([state.released, state.resource.held, state.audits], [1, false, 0]);
    for (let i = 0; i < 3; i++) await period();
    assert.equal(state.resource.held, false, 'nobody fetches it again');
  });

  test('stays where it is a copy like others, is pinned, or is needed', async () => {
    const uncoded = among(others, () => true, false, own);
    const pinned = among(others, () => true, true, own);
    const needed = among(others, () => true, false, own);
    pinned.state.standIn = true;
    Object.assign(needed.state, { standIn: true, releases: false });
    for (const { period, state } of [uncoded, pinned, needed]) {
      for (let i = 0; i < 3; i++) await period();
      assert.deepEqual([state.released, state.resource.held], [0, true]);
    }
    assert.equal(await uncoded.replication.underReplicated(), 1);
  });

  test('a fragment is kept by who is asked to and may, and by no place', async () => {
    const { state, period, replication } = among(others, () => true, false, own);
    state.resource = { ...state.resource, replication: 0, held: false };
    for (let i = 0; i < 3; i++) await period();
    assert.equal(state.resource.held, false);
    const keep = async () => {
      const body = await replication.answers().get('resources/keep')!(encodeMessage({ id: own }), others[0]!);
      return decodeMessage(keeping, body).state;
    };
    assert.equal(await keep(), 'refused');
    state.mayKeep = true;
    assert.equal(await keep(), 'coming');
    while (!state.resource.held) await setImmediate();
    assert.equal(await keep(), 'held');
  });
});

test('distribute() counts a copy once it was shown, and asks the next node for one where it was not', async () => {
  const { replication } = among(others, (node) => node !== places[0]);
  const { holders } = await replication.distribute(crowded);
  const expected = new Placement([SELF, ...others]).top(crowded, 3).filter((node) => node !== places[0]);
  assert.deepEqual(holders.filter((node) => node !== SELF).length + 1, 2);
  assert.ok(!holders.includes(places[0]!) && holders.every((node) => node === SELF || expected.includes(node)));
});

test('who does not show what it announced does not count, whatever it announces again', async () => {
  const { replication, period } = among([], () => false);
  const announce = replication.answers().get('resources/announce')!;
  const heard = encodeMessage({ ids: [crowded] });
  await announce(heard, others[0]!);
  assert.equal(await replication.underReplicated(), 0, 'there is nobody else');
  assert.deepEqual(await replication.find(crowded), [others[0]]);
  await period();
  assert.deepEqual(await replication.find(crowded), []);
  await announce(heard, others[0]!);
  assert.deepEqual(await replication.find(crowded), []);
});

test('content of this node that cannot be read when nodes come or go is no reason to end', async () => {
  const { replication, state, timers } = among([], () => {
    throw new HyperMeshError('storage-failed', 'The disk is broken.');
  });
  await replication.answers().get('resources/announce')!(encodeMessage({ ids: [crowded] }), others[0]!);
  const before = timers.length;
  replication.changed();
  timers[before]!();
  // A rejection that nobody handles fails this test, as it ends a node.
  while (state.audits === 0) await setImmediate();
  await setImmediate();
});
