import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { utf8 } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import type { AssetQuery, AssetRecord } from '../../capabilities/assets.ts';
import { type PackageManifest, packageManifest } from '../../wire/manifest.ts';
import type { AssetId, PackageName } from '../../wire/names.ts';
import { openAssets } from './index.ts';

type Store = Awaited<ReturnType<typeof openAssets>>;

async function opened(t: TestContext): Promise<Store> {
  const directory = await mkdtemp(join(tmpdir(), 'hm-assets-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  const clock = { ms: 1_000_000, nowMs: () => clock.ms++ };
  const store = await openAssets({ directory, clock });
  t.after(() => store[Symbol.asyncDispose]());
  return store;
}

async function* once(text: string): AsyncGenerator<Uint8Array> {
  yield utf8(text);
}

type Extra = Partial<PackageManifest> & { owner?: string; content?: string };

const sharedBlobs = new WeakMap<Store, Promise<Digest[]>>();

/** Config, layer and bundle: the same for all packages here, only the manifests differ. */
async function shared(store: Store): Promise<Digest[]> {
  const known = sharedBlobs.get(store);
  if (known) return known;
  const put = async (kind: string) => (await store.put(once(kind))).digest;
  const blobs = Promise.all(['config', 'layer', 'bundle'].map(put));
  sharedBlobs.set(store, blobs);
  return blobs;
}

async function draft(store: Store, ref: string, { owner = 'key-1', content = ref, ...more }: Extra = {}) {
  const [name, version] = ref.split('@') as [PackageName, string];
  const manifest = packageManifest.parse({ name, version, ...more });
  const [config, layer, bundle] = await shared(store);
  const { digest } = await store.put(once(`manifest of ${content}`));
  return {
    digest,
    type: manifest.type,
    name,
    version,
    owner,
    privacy: manifest.privacy,
    manifest,
    blobs: [digest, config!, layer!, bundle!],
    layers: [layer!],
    bundle: bundle!,
    size: 10,
  };
}

const publish = async (store: Store, ref: string, more?: Extra) => store.create(await draft(store, ref, more));

const refuses = (work: Promise<unknown> | (() => Promise<unknown>), code: ErrorCode, says = /./) =>
  assert.rejects(work, (error) => isCoded(error, code) && says.test(error.message));

const refsOf = (records: readonly AssetRecord[]) => records.map(({ name, version }) => `${name}@${version}`);
const find = async (store: Store, query: AssetQuery) =>
  refsOf((await store.query(query)).hits.map(({ record }) => record));

// --- records ---

test('create() takes version after version of many packages, however the text index keeps its own rows', async (t) => {
  const store = await opened(t);
  for (let n = 0; n < 250; n++) {
    const { id } = await publish(store, `ada/p${n % 50}@1.0.${n}`);
    if (n % 10 === 0) await store.setState(id, 'yanked', null);
  }
  assert.equal((await store.totals()).versions, 250);
});

test('create() is idempotent, and refuses the same version with other content or by somebody else', async (t) => {
  const store = await opened(t);
  const record = await publish(store, 'ada/x@1.0.0');
  assert.equal(record.state, 'published');
  assert.equal(record.id, `package/${record.digest.slice(7)}`);
  assert.deepEqual(await publish(store, 'ada/x@1.0.0'), record);
  assert.deepEqual(await store.get(record.id), record);
  await refuses(publish(store, 'ada/x@1.0.0', { content: 'other' }), 'version-exists', /other content/);
  await refuses(publish(store, 'ada/x@1.0.0', { owner: 'key-2' }), 'version-exists', /another publisher/);
  await refuses(publish(store, 'ada/x@1.0.0+build'), 'version-exists');
  assert.deepEqual(await store.totals(), { packages: 1, versions: 1, blobs: 6, bytes: (await store.totals()).bytes });
});

test('create() refuses content that is not in the store, and a draft that does not hold together', async (t) => {
  const store = await opened(t);
  const good = await draft(store, 'ada/x@1.0.0');
  await refuses(store.create({ ...good, bundle: `sha256:${'0'.repeat(64)}` }), 'blob-not-found', /sha256:0000/);
  await refuses(store.create({ ...good, version: '1.0.1' }), 'usage', /manifest/);
  await refuses(store.create({ ...good, blobs: null as never }), 'usage', /blobs/);
  await refuses(store.create(null as never), 'usage');
  assert.equal((await store.totals()).versions, 0);
});

test('versions() are in order of precedence', async (t) => {
  const store = await opened(t);
  for (const version of ['1.9.0', '1.10.0', '2.0.0-rc.1', '1.0.0', '2.0.0-rc.10', '2.0.0-rc.9'])
    await publish(store, `ada/x@${version}`);
  const versions = (await store.versions('ada/x')).map(({ version }) => version);
  assert.deepEqual(versions, ['2.0.0-rc.10', '2.0.0-rc.9', '2.0.0-rc.1', '1.10.0', '1.9.0', '1.0.0']);
  assert.deepEqual(await store.versions('ada/nothing'), []);
});

test('delete() is refused while a version is needed, and names who needs it', async (t) => {
  const store = await opened(t);
  const one = await publish(store, 'ada/lib@1.0.0');
  const two = await publish(store, 'ada/lib@2.0.0');
  const app = await publish(store, 'bob/app@1.0.0', { dependencies: { 'ada/lib': '^1' } });
  await publish(store, 'bob/any@1.0.0', { dependencies: { 'ada/lib': '*' } });
  await publish(store, 'bob/maybe@1.0.0', { optionalDependencies: { 'ada/lib': '^1' } });
  await publish(store, 'bob/host@1.0.0', { peerDependencies: { 'ada/lib': '^1' } });
  assert.deepEqual(await store.dependents(one.id), [
    { kind: 'package', ref: 'bob/app@1.0.0' },
    { kind: 'package', ref: 'bob/host@1.0.0' },
  ]);
  assert.deepEqual(await store.dependents(two.id), []);
  await refuses(store.delete(one.id), 'has-dependents', /bob\/app@1\.0\.0, bob\/host@1\.0\.0/);
  // Another version in the range, and nobody depends on exactly this one any more.
  const patch = await publish(store, 'ada/lib@1.0.1');
  assert.deepEqual(await store.dependents(one.id), []);
  await store.setState(patch.id, 'yanked', 'broken');
  assert.equal((await store.dependents(one.id)).length, 2);
  await store.setState(patch.id, 'published', null);
  await store.delete(one.id);
  assert.equal(await store.get(one.id), null);
  await refuses(store.delete(one.id), 'asset-not-found');
  await store.delete(app.id);
  assert.deepEqual(await find(store, { text: 'app' }), []);
  await publish(store, 'bob/app@1.0.0', { content: 'again' });
});

test('setState() yanks and restores, and annotations are kept with the asset', async (t) => {
  const store = await opened(t);
  const { id } = await publish(store, 'ada/x@1.0.0');
  const yanked = await store.setState(id, 'yanked', 'leaks');
  assert.deepEqual([yanked.state, yanked.stateReason], ['yanked', 'leaks']);
  assert.ok(yanked.updatedAtMs > yanked.createdAtMs);
  await store.annotate(id, 'note', { deep: ['x', 1, null] });
  await store.annotate(id, 'note', 'second');
  assert.deepEqual(await store.annotations(id), { note: 'second' });
  await refuses(store.annotate(id, 'big', 'x'.repeat(70_000)), 'limit-exceeded');
  await refuses(store.annotate(id, 'with space', 1), 'usage');
  await refuses(store.setState('package/none' as AssetId, 'yanked', null), 'asset-not-found');
  await refuses(store.setState(id, 'gone' as never, null), 'usage');
});

test('collect() keeps every blob of a record', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'hm-assets-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  const clock = { ms: 0, nowMs: () => clock.ms };
  await using store = await openAssets({ directory, clock });
  const { id } = await publish(store, 'ada/x@1.0.0');
  await store.put(once('nobody refers to this'));
  clock.ms += 3_600_001;
  assert.deepEqual(await store.collect(), { blobsRemoved: 1, bytesFreed: 21, blobsKept: 4 });
  await store.delete(id);
  assert.equal((await store.collect()).blobsRemoved, 4);
});

test('the exchange keeps a blob past collections until it is dropped, and drops nothing that a record names', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'hm-assets-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  const clock = { ms: 0, nowMs: () => clock.ms };
  await using store = await openAssets({ directory, clock });
  const { exchange } = store;
  const [mine, kept] = [await publish(store, 'ada/x@1.0.0'), await store.put(once('a part of something'))];
  const nothing: Digest = `sha256:${'0'.repeat(64)}`;
  await exchange.keep(kept.digest);
  await assert.rejects(exchange.keep(nothing), (error) => isCoded(error, 'blob-not-found'));
  clock.ms += 10 * 365 * 86_400_000;
  assert.equal((await store.collect()).blobsRemoved, 0);
  await exchange.keep(mine.layers[0]!);
  await exchange.drop([kept.digest, mine.layers[0]!, nothing]);
  assert.equal(await store.stat(kept.digest), null);
  assert.notEqual(await store.stat(mine.layers[0]!), null);
  await store.delete(mine.id);
  assert.equal((await store.collect()).blobsRemoved, 4, 'what was dropped is kept by its record alone');
});

test('the exchange releases what is not leased and not installed, whatever records name it', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'hm-assets-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  const clock = { ms: 0, nowMs: () => clock.ms };
  await using store = await openAssets({ directory, clock });
  const [mine, other] = [await publish(store, 'ada/x@1.0.0'), await store.put(once('another layer'))];
  const layer = mine.layers[0]!;
  assert.equal(await store.exchange.release([layer, other.digest]), false, 'it was put a moment ago');
  clock.ms += 3_600_001;
  await store.put(once('another layer'));
  assert.equal(await store.exchange.release([layer, other.digest]), false, 'somebody is about to use one of them');
  assert.notEqual(await store.stat(layer), null);
  clock.ms += 3_600_001;
  assert.equal(await store.exchange.release([layer, other.digest]), true);
  assert.deepEqual([await store.stat(layer), await store.stat(other.digest)], [null, null]);
  assert.deepEqual((await store.get(mine.id))?.layers, [layer], 'its record is as before');
});

// --- search ---

async function library(t: TestContext): Promise<Store> {
  const store = await opened(t);
  await publish(store, 'ada/json@1.0.0', {
    description: 'Reads and writes documents',
    keywords: ['Parser'],
    license: 'MIT',
  });
  await publish(store, 'bob/json-schema@1.0.0', {
    description: 'Checks documents',
    type: 'library',
    language: 'wasm',
    entry: 'a',
  });
  await publish(store, 'bob/yaml@1.0.0', {
    description: 'Like json, but indented',
    keywords: ['parser'],
    license: 'Apache-2.0',
  });
  await publish(store, 'cleo/greeter@1.0.0', {
    description: 'Says hello',
    keywords: ['json'],
    authors: ['Jason Json'],
  });
  await publish(store, 'cleo/connection@1.0.0', { description: 'Crème brûlée ÜBER 東京', owner: 'key-2' });
  return store;
}

test('query() ranks the name before keywords before the description before authors', async (t) => {
  const store = await library(t);
  const page = await store.query({ text: 'json' });
  assert.deepEqual(refsOf(page.hits.map(({ record }) => record)), [
    'ada/json@1.0.0',
    'bob/json-schema@1.0.0',
    'cleo/greeter@1.0.0',
    'bob/yaml@1.0.0',
  ]);
  assert.deepEqual(
    page.hits.map(({ score }) => score),
    page.hits.map(({ score }) => score).toSorted((a, b) => b - a),
  );
  assert.equal(page.total, 4);
  assert.equal(page.cursor, null);
  assert.deepEqual(await find(store, { text: 'bob/json-schema' }), ['bob/json-schema@1.0.0']);
  assert.deepEqual(await find(store, { text: 'documents json sch' }), ['bob/json-schema@1.0.0']);
  assert.deepEqual(await find(store, { text: 'CREME uber' }), ['cleo/connection@1.0.0']);
  assert.deepEqual(await find(store, { text: '東京' }), ['cleo/connection@1.0.0']);
  assert.deepEqual(await find(store, { text: 'jason json hello' }), ['cleo/greeter@1.0.0']);
});

test('query() forgives one typing error where hits are few', async (t) => {
  const store = await library(t);
  for (const text of ['greter', 'greeeter', 'gretter', 'rgeeter', 'conection', 'connectoin', 'connetcion']) {
    assert.equal(
      (await store.query({ text })).hits[0]?.record.name,
      text.includes('r') ? 'cleo/greeter' : 'cleo/connection',
      text,
    );
  }
  assert.deepEqual(await find(store, { text: 'hello greter' }), ['cleo/greeter@1.0.0']);
  assert.deepEqual(await find(store, { text: 'grxxter' }), []);
});

test('query() intersects filters; what nothing meets finds nothing', async (t) => {
  const store = await library(t);
  assert.deepEqual(await find(store, { text: 'json', type: 'library' }), ['bob/json-schema@1.0.0']);
  assert.deepEqual(await find(store, { text: 'json', license: 'mit' }), ['ada/json@1.0.0']);
  assert.deepEqual((await find(store, { keyword: 'PARSER' })).sort(), ['ada/json@1.0.0', 'bob/yaml@1.0.0']);
  assert.deepEqual(await find(store, { keyword: 'parser', license: 'Apache-2.0' }), ['bob/yaml@1.0.0']);
  assert.deepEqual(await find(store, { language: 'wasm' }), ['bob/json-schema@1.0.0']);
  assert.deepEqual(await find(store, { owner: 'key-2' }), ['cleo/connection@1.0.0']);
  for (const query of [
    { text: '!!!' },
    { keyword: '' },
    { keyword: '--' },
    { owner: 'nobody' },
    { type: '' },
    { text: 'json', language: 'julia' },
  ]) {
    assert.deepEqual(await store.query(query), { hits: [], total: 0, cursor: null }, JSON.stringify(query));
  }
  assert.deepEqual(await find(store, {}), [
    'cleo/connection@1.0.0',
    'cleo/greeter@1.0.0',
    'bob/yaml@1.0.0',
    'bob/json-schema@1.0.0',
    'ada/json@1.0.0',
  ]);
  assert.deepEqual(await find(store, { text: '   ' }), await find(store, {}));
});

test('query() shows the newest version that is not yanked, once', async (t) => {
  const store = await opened(t);
  await publish(store, 'ada/x@1.9.0', { description: 'old words' });
  const newest = await publish(store, 'ada/x@1.10.0', { description: 'new words' });
  assert.deepEqual(await find(store, { text: 'words' }), ['ada/x@1.10.0']);
  assert.deepEqual(await find(store, { text: 'old' }), []);
  await store.setState(newest.id, 'yanked', null);
  assert.deepEqual(await find(store, { text: 'words' }), ['ada/x@1.9.0']);
  await store.setState((await store.versions('ada/x'))[1]!.id, 'yanked', null);
  assert.deepEqual(await find(store, { text: 'words' }), []);
  assert.deepEqual(await find(store, {}), []);
  assert.deepEqual(await find(store, { text: 'words', includeYanked: true }), ['ada/x@1.10.0']);
  await store.setState(newest.id, 'deprecated', 'use y');
  assert.deepEqual(await find(store, { text: 'words' }), ['ada/x@1.10.0']);
});

test('query() lets others in while it looks, and finds what is there then', async (t) => {
  const store = await opened(t);
  const [kept, gone] = [
    await publish(store, 'ada/kept@1.0.0', { keywords: ['json'] }),
    await publish(store, 'ada/json@1.0.0'),
  ];
  let isDone = false;
  const asked = store.query({ text: 'json' }).finally(() => (isDone = true));
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(!isDone, 'answered in the turn that asked');
  await store.delete(gone.id);
  const { hits } = await asked;
  assert.ok(
    hits.some(({ record }) => record.id === kept.id),
    JSON.stringify(hits),
  );
  assert.deepEqual(await find(store, { text: 'json json json' }), ['ada/kept@1.0.0']);
});

test('cursors neither repeat nor skip while others publish', async (t) => {
  const store = await opened(t);
  const names = Array.from({ length: 13 }, (_, i) => `s${i}/${i % 2 ? 'tool' : 'thing'}-${i}@1.0.0`);
  for (const ref of names) await publish(store, ref, { description: 'a tool that helps', keywords: ['tools'] });
  for (const query of [{ text: 'tool' }, { text: 'toll' }, {}, { keyword: 'tools' }]) {
    const shown: string[] = [];
    let cursor: string | null = null;
    for (let page = 0; page === 0 || cursor !== null; page++) {
      const answer = await store.query({ ...query, limit: 3, ...(cursor === null ? {} : { cursor }) });
      assert.equal(answer.total, page === 0 ? answer.total : Math.max(answer.total, 13));
      shown.push(...refsOf(answer.hits.map(({ record }) => record)));
      cursor = answer.cursor;
      await publish(store, `new${page}/tool-tool-${Object.keys(query).join('')}@1.0.0`, {
        description: 'tool',
        keywords: ['tools'],
      });
    }
    assert.equal(new Set(shown).size, shown.length, `repeats in ${JSON.stringify(query)}`);
    assert.deepEqual(
      names.filter((ref) => !shown.includes(ref)),
      [],
      `skips in ${JSON.stringify(query)}`,
    );
  }
});

test('query() refuses a wrong cursor, limit or filter', async (t) => {
  const store = await library(t);
  const { cursor } = await store.query({ text: 'json', limit: 1 });
  const wrong: AssetQuery[] = [
    { text: 'json', cursor: 'x' },
    { text: 'other', cursor: cursor! },
    { text: 'json', cursor: `${cursor}AAAA` },
    { cursor: '' },
    { limit: 0 },
    { limit: 101 },
    { limit: 1.5 },
    { text: 'x'.repeat(300) },
    { text: 'a '.repeat(13) },
    { text: 7 as never },
    { typo: 'x' } as never,
  ];
  for (const query of wrong) await refuses(store.query(query), 'usage');
});

test('query() takes any text as words', async (t) => {
  const store = await library(t);
  const hostile = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 40 }),
    fc
      .array(
        fc.constantFrom(
          '"',
          '*',
          'AND',
          'OR',
          'NOT',
          'NEAR(',
          ')',
          '{name}',
          ':',
          'name:',
          '^',
          '-',
          'json',
          '\0',
          "'",
          ';',
          '\u0301',
          'İ',
        ),
        { maxLength: 9 },
      )
      .map((parts) => parts.join(' ')),
  );
  await fc.assert(
    fc.asyncProperty(hostile, async (text) => {
      try {
        await store.query({ text });
      } catch (error) {
        assert.ok(isCoded(error, 'usage'), String(error));
      }
    }),
    { numRuns: 150 },
  );
});

// --- export and import ---

test('section: an import replaces everything, and equals what was exported', async (t) => {
  const [from, to] = [await library(t), await opened(t)];
  const [first] = (await from.query({ text: 'json' })).hits;
  await from.setState(first!.record.id, 'deprecated', 'old');
  await from.annotate(first!.record.id, 'note', { n: 1 });
  const gone = await publish(to, 'zed/gone@1.0.0');
  const pieces = await Array.fromAsync(from.section.export());
  for (const round of [1, 2]) {
    const staged = await to.section.import(1, replay(pieces));
    if (round === 1) assert.deepEqual(refsOf(await to.versions('zed/gone')), ['zed/gone@1.0.0']);
    await staged.commit();
  }
  assert.equal(await to.get(gone.id), null);
  assert.deepEqual(await Array.fromAsync(to.section.export()), pieces);
  assert.deepEqual(await to.annotations(first!.record.id), { note: { n: 1 } });
  assert.deepEqual(await to.query({ text: 'json' }), await from.query({ text: 'json' }));
  await publish(to, 'zed/after@1.0.0');
});

test('section: damage is refused and leaves everything as it was', async (t) => {
  const [from, to] = [await opened(t), await opened(t)];
  await publish(from, 'ada/x@1.0.0');
  await publish(to, 'bob/y@1.0.0');
  const pieces = await Array.fromAsync(from.section.export());
  const damaged: [string, Uint8Array[]][] = [
    ['nothing', []],
    ...pieces.map((_, i): [string, Uint8Array[]] => [`without piece ${i}`, pieces.toSpliced(i, 1)]),
    ...pieces.map((piece, i): [string, Uint8Array[]] => [
      `piece ${i} flipped`,
      pieces.with(
        i,
        piece.map((byte, at) => (at === piece.length - 2 ? byte ^ 1 : byte)),
      ),
    ]),
    ['something after the end', [...pieces, pieces[0]!]],
    ['an unknown kind', [Uint8Array.of(9), ...pieces]],
    ['an empty piece', [new Uint8Array(), ...pieces]],
  ];
  for (const [what, broken] of damaged)
    await assert.rejects(to.section.import(1, replay(broken)), (error) => isCoded(error, 'state-invalid'), what);
  await refuses(to.section.import(2, replay(pieces)), 'state-invalid');
  await (await to.section.import(1, replay(pieces))).abandon();
  assert.deepEqual(await find(to, {}), ['bob/y@1.0.0']);
});

test('section: an export is one moment, and an import ends it', async (t) => {
  const store = await library(t);
  const pieces = await Array.fromAsync(store.section.export());
  const running = store.section.export()[Symbol.asyncIterator]();
  await running.next();
  await publish(store, 'zed/later@1.0.0');
  const rest: Uint8Array[] = [];
  for (let one = await running.next(); !one.done; one = await running.next()) rest.push(one.value);
  assert.deepEqual(rest, pieces.slice(1));
  const second = store.section.export()[Symbol.asyncIterator]();
  await second.next();
  await (await store.section.import(1, replay(pieces))).commit();
  await assert.rejects(
    async () => {
      for (let one = await second.next(); !one.done; one = await second.next());
    },
    (error) => isCoded(error, 'state-conflict'),
  );
});

test('openAssets() clears what an import left, and refuses a newer index', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'hm-assets-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  const clock = { nowMs: () => 5 };
  await (await openAssets({ directory, clock }))[Symbol.asyncDispose]();
  await writeFile(join(directory, 'index.db.0011.import'), 'half');
  await writeFile(join(directory, 'index.db.0011.import-wal'), 'half');
  await (await openAssets({ directory, clock }))[Symbol.asyncDispose]();
  assert.deepEqual(
    (await readdir(directory)).filter((name) => name.includes('import')),
    [],
  );
});

async function* replay(pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* pieces;
}
