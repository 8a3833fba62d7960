import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { concat, utf8 } from '../../base/bytes.ts';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { State } from '../../capabilities/state.ts';
import { openState, type StateLimits, type StateSubsystem } from './index.ts';

const clock = { nowMs: () => 1_000 };

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'state-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function opened(t: TestContext, limits: Partial<StateLimits> = {}): Promise<StateSubsystem> {
  const state = await openState({ directory: await folder(t), clock, limits });
  t.after(() => state[Symbol.asyncDispose]());
  return state;
}

function coded(code: ErrorCode) {
  return (error: unknown) => isCoded(error, code);
}

async function everything(space: State): Promise<Record<string, Json>> {
  return Object.fromEntries((await space.list('', { limit: 1_000 })).map(({ key, value }) => [key, value]));
}

test('a space keeps what was written, apart from other spaces, after a restart', async (t) => {
  const directory = await folder(t);
  {
    await using state = await openState({ directory, clock });
    await state.space('catalog').write({ a: 1, b: { deep: [null, 'x'] }, gone: true });
    await state.space('catalog').write({ gone: undefined });
    await state.space('other').write({ a: 2 });
  }
  await using state = await openState({ directory, clock });
  assert.deepEqual(await everything(state.space('catalog')), { a: 1, b: { deep: [null, 'x'] } });
  assert.equal(await state.space('other').get('a'), 2);
  assert.equal(await state.space('other').get('b'), undefined);
});

test('write() agrees with a map, and the totals with what is there', async (t) => {
  const state = await opened(t);
  const key = fc.constantFrom('a', 'ab', 'b', 'é', '😀', '__proto__', 'constructor');
  const value = fc.option(fc.jsonValue(), { nil: undefined });
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(fc.tuple(key, value), { maxLength: 4 }), { maxLength: 6 }), async (writes) => {
      const id = `run-${run++}`;
      const space = state.space(id);
      const model = new Map<string, Json>();
      for (const changes of writes) {
        await space.write(Object.fromEntries(changes) as Record<string, Json>);
        for (const [k, v] of new Map(changes)) {
          if (v === undefined) model.delete(k);
          else model.set(k, JSON.parse(JSON.stringify(v)) as Json);
        }
      }
      const entries = (await space.list('')).map(({ key: k, value: v }) => [k, v] as const);
      assert.deepEqual(new Map(entries), model);
      assert.deepEqual(await state.usage(id), {
        keys: model.size,
        bytes: entries.reduce((sum, [k, v]) => sum + Buffer.byteLength(k) + Buffer.byteLength(JSON.stringify(v)), 0),
      });
    }),
    { numRuns: 40 },
  );
});

test('write() is all or nothing: a quota, a stale expectation or a bad value leaves every key as it was', async (t) => {
  const state = await opened(t);
  const space = state.space('catalog', { spaceBytesMax: 100, spaceKeysMax: 3 });
  await space.write({ a: 1, b: 2 });
  await assert.rejects(space.write({ a: 9, c: 'x'.repeat(200) }), coded('quota-exceeded'));
  await assert.rejects(space.write({ a: 9, c: 3, d: 4 }), coded('quota-exceeded'));
  await assert.rejects(space.write({ a: 9 }, { expect: { b: 3 } }), coded('state-conflict'));
  await assert.rejects(space.write({ a: 9 }, { expect: { c: null } }), coded('state-conflict'));
  await assert.rejects(space.write({ a: 9, '': 1 }), coded('usage'));
  await assert.rejects(space.write({ a: 9, 'new\nline': 1 }), coded('usage'));
  await assert.rejects(space.write({ a: 9, '\ud800': 1 }), coded('usage'));
  await assert.rejects(space.write({ a: 9, ['k'.repeat(257)]: 1 }), coded('usage'));
  await assert.rejects(space.write({ a: 9, b: 1n as never }), coded('usage'));
  await assert.rejects(space.write({ a: 9, b: 'x'.repeat(1_048_577) }), coded('limit-exceeded'));
  assert.deepEqual(await everything(space), { a: 1, b: 2 });
  await space.write({ a: 9, c: 3 }, { expect: { b: 2, c: undefined } });
  assert.deepEqual(await everything(space), { a: 9, b: 2, c: 3 });
});

test('a space over a lowered quota may still shrink, and all spaces share one total', async (t) => {
  const state = await opened(t, { totalBytesMax: 300 });
  await state.space('catalog').write({ a: 'x'.repeat(200) });
  const small = state.space('catalog', { spaceBytesMax: 50 });
  await small.write({ a: 'x'.repeat(100) });
  await assert.rejects(small.write({ b: 1 }), coded('quota-exceeded'));
  await assert.rejects(state.space('other').write({ a: 'x'.repeat(250) }), coded('quota-exceeded'));
  await state.space('other').write({ a: 'x'.repeat(150) });
});

test('list() pages in key order under a prefix and ends a page early when values are large', async (t) => {
  const state = await opened(t);
  const space = state.space('catalog');
  await space.write(Object.fromEntries(Array.from({ length: 25 }, (_, n) => [`p/${String(n).padStart(2, '0')}`, n])));
  await space.write({ p: 1, p0: 1, q: 1 });
  const seen: Json[] = [];
  for (let after: string | undefined; ; ) {
    const page = await space.list('p/', { limit: 10, ...(after === undefined ? {} : { after }) });
    if (page.length === 0) break;
    seen.push(...page.map(({ value }) => value));
    after = page.at(-1)!.key;
  }
  assert.deepEqual(
    seen,
    Array.from({ length: 25 }, (_, n) => n),
  );
  for (let n = 0; n < 6; n++) await space.write({ [`large/${n}`]: 'x'.repeat(1_000_000) });
  assert.equal((await space.list('large/')).length, 5);
  await assert.rejects(space.list('', { limit: 0 }), coded('usage'));
  await assert.rejects(space.list('', { limit: 1_001 }), coded('usage'));
});

test('space() refuses an id that could not be exported', async (t) => {
  const state = await opened(t);
  assert.throws(() => state.space('../etc'), coded('usage'));
});

async function* cut(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

test('the section carries every space, and importing twice is importing once', async (t) => {
  const from = await opened(t);
  const to = await opened(t);
  await from.space('catalog').write({ a: 1, ü: { x: [] }, large: 'é'.repeat(400_000) });
  await from.space('other').write({ a: 'line\nend' });
  await to.space('catalog').write({ old: true });
  const pieces = await Array.fromAsync(from.section.export());
  assert.ok(pieces.every(({ length }) => length >= 1 && length <= 1_048_576));
  for (const size of [7_001, 1_000_000]) {
    const staged = await to.section.import(1, cut(concat(...pieces), size));
    await staged.commit();
    assert.deepEqual(await everything(to.space('catalog')), await everything(from.space('catalog')));
    assert.deepEqual(await to.usage('other'), await from.usage('other'));
  }
});

test('the export is a snapshot: what is written while it is read is not in it', async (t) => {
  const state = await opened(t);
  const space = state.space('catalog');
  for (let n = 0; n < 4; n++) await space.write({ [`k${n}`]: 'x'.repeat(200_000) });
  const pieces: Uint8Array[] = [];
  for await (const piece of state.section.export()) {
    if (pieces.push(piece) === 1) await space.write({ k3: 'changed', k4: 'new' });
  }
  const text = Buffer.concat(pieces).toString();
  assert.equal(text.split('\n').length, 5);
  assert.ok(!text.includes('changed') && !text.includes('new'));
});

test('a bad section, an abandoned one and one that a crash left change nothing', async (t) => {
  const directory = await folder(t);
  {
    await using state = await openState({ directory, clock, limits: { totalBytesMax: 1_000 } });
    await state.space('catalog').write({ a: 1 });
    const bad: [string, ErrorCode][] = [
      ['["catalog","a",1]\n["catalog","a",2]\n', 'state-invalid'],
      ['["catalog","a"]\n', 'state-invalid'],
      ['["catalog","",1]\n', 'state-invalid'],
      ['["Not an id","a",1]\n', 'state-invalid'],
      ['["catalog","a",1]', 'state-invalid'],
      ['not json\n', 'state-invalid'],
      [`["catalog","a","${'x'.repeat(2_000_000)}"]\n`, 'state-invalid'],
      [`["catalog","a","${'x'.repeat(2_000)}"]\n`, 'limit-exceeded'],
    ];
    for (const [text, code] of bad) {
      await assert.rejects(state.section.import(1, cut(utf8(text), 100_000)), coded(code), text.slice(0, 40));
    }
    await assert.rejects(state.section.import(1, cut(Uint8Array.of(0xff, 10), 2)), coded('state-invalid'));
    await (await state.section.import(1, cut(utf8('["catalog","b",1]\n'), 5))).abandon();
    await state.section.import(1, cut(utf8('["catalog","c",1]\n'), 5));
    await state.checkpoint();
  }
  await using state = await openState({ directory, clock });
  assert.deepEqual(await everything(state.space('catalog')), { a: 1 });
  await (await state.section.import(1, cut(utf8(''), 1))).commit();
  assert.deepEqual(await everything(state.space('catalog')), {});
});
