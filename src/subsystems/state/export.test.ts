import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import fc from 'fast-check';
import { concat, fromUtf8, hex, utf8 } from '../../base/bytes.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../../base/errors.ts';
import type { StagedSection, StateSection } from '../../capabilities/state.ts';
import { exportState, importState, openState, recoverImport } from './index.ts';

const clock = { nowMs: () => 1_000 };
const META = { createdAtMs: 1, software: '0.1.0', networkId: null };

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'export-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

function coded(...codes: ErrorCode[]) {
  return (error: unknown) => isCoded(error, ...codes);
}

/** A section in memory that can fail in every call, before or after it took effect. */
class TextSection implements StateSection {
  readonly name: string;
  readonly version: number;
  readonly log: string[] = [];
  text: string;
  fails: 'import' | 'commit' | 'after commit' | undefined;

  constructor(name: string, text: string, version = 1) {
    this.name = name;
    this.text = text;
    this.version = version;
  }

  async *export(): AsyncGenerator<Uint8Array> {
    for (const character of this.text) yield utf8(character);
  }

  async import(version: number, pieces: AsyncIterable<Uint8Array>): Promise<StagedSection> {
    this.log.push(`import ${version}`);
    if (this.fails === 'import') throw new HyperMeshError('storage-full', 'No space is left.');
    const staged = fromUtf8(concat(...(await Array.fromAsync(pieces))));
    return {
      commit: async () => {
        this.log.push('commit');
        if (this.fails === 'commit') throw new Error('power cut');
        this.text = staged;
        if (this.fails === 'after commit') throw new Error('power cut');
      },
      abandon: async () => void this.log.push('abandon'),
    };
  }
}

async function exported(sections: readonly StateSection[]): Promise<Uint8Array> {
  return concat(...(await Array.fromAsync(exportState(sections, META))));
}

async function* cut(bytes: Uint8Array, size = 1_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

function three(prefix: string): TextSection[] {
  return ['assets', 'state', 'trust'].map((name) => new TextSection(name, `${prefix} ${name}`));
}

function texts(sections: readonly TextSection[]): string[] {
  return sections.map(({ text }) => text);
}

test('importState() replaces every section and reports what it did', async (t) => {
  const directory = join(await folder(t), 'import');
  const from = three('new');
  const to = three('old');
  const report = await importState(cut(await exported(from), 7), to, { directory, clock });
  assert.deepEqual(texts(to), texts(from));
  assert.deepEqual(report.header, META);
  assert.deepEqual(
    report.sections.map(({ name, version, bytes }) => [name, version, bytes]),
    [
      ['assets', 1, 10],
      ['state', 1, 9],
      ['trust', 1, 9],
    ],
  );
  assert.deepEqual([report.bytes, report.importedAtMs], [28, 1_000]);
  assert.deepEqual(await readdir(directory), []);
});

test('importState() with the state of extensions: export, change, import, restart', async (t) => {
  const directory = await folder(t);
  let stream: Uint8Array;
  {
    await using state = await openState({ directory, clock });
    await state.space('catalog').write({ a: 1, b: [2] });
    stream = await exported([state.section]);
    await state.space('catalog').write({ a: 9, c: 3 });
    await importState(cut(stream), [state.section], { directory: join(directory, 'import'), clock });
  }
  await using state = await openState({ directory, clock });
  assert.deepEqual(await state.space('catalog').list(''), [
    { key: 'a', value: 1 },
    { key: 'b', value: [2] },
  ]);
});

test('a damaged stream is refused before any section is touched', async (t) => {
  const directory = await folder(t);
  const stream = await exported(three('new'));
  await fc.assert(
    fc.asyncProperty(
      fc.nat(stream.length - 1),
      fc.nat(7),
      fc.constantFrom('flip', 'cut', 'insert'),
      async (at, bit, damage) => {
        const bytes = stream.slice();
        bytes[at]! ^= 1 << bit;
        const damaged =
          damage === 'flip'
            ? bytes
            : damage === 'cut'
              ? stream.subarray(0, at)
              : concat(stream.subarray(0, at), Uint8Array.of(bit), stream.subarray(at));
        const to = three('old');
        await assert.rejects(
          importState(cut(damaged), to, { directory, clock }),
          coded('state-invalid', 'state-too-new'),
        );
        assert.deepEqual(
          to.flatMap(({ log }) => log),
          [],
        );
        assert.deepEqual(await readdir(directory), []);
      },
    ),
    { numRuns: 150 },
  );
});

test('a newer section, an unknown one, too many bytes, and a reader that gives up touch nothing', async (t) => {
  const directory = await folder(t);
  const refused = async (from: StateSection[], code: ErrorCode, options = {}) => {
    const to = three('old');
    await assert.rejects(importState(cut(await exported(from)), to, { directory, clock, ...options }), coded(code));
    assert.deepEqual(texts(to), texts(three('old')));
    assert.deepEqual(await readdir(directory), []);
  };
  await refused([new TextSection('assets', 'new'), new TextSection('trust', 'new', 2)], 'state-too-new');
  await refused([new TextSection('assets', 'new'), new TextSection('other', 'new')], 'state-too-new');
  await refused(three('new'), 'limit-exceeded', { sizeMax: 100 });
  await refused(three('new'), 'cancelled', { signal: AbortSignal.abort() });
});

test('an older section version reaches the section, and sections not in the stream stay', async (t) => {
  const directory = await folder(t);
  const to = [new TextSection('assets', 'old', 3), new TextSection('state', 'old')];
  await importState(cut(await exported([new TextSection('assets', 'new', 2)])), to, { directory, clock });
  assert.deepEqual(to[0]?.log, ['import 2', 'commit']);
  assert.deepEqual(texts(to), ['new', 'old']);
});

test('a section that cannot stage stops the import: the others drop their copies', async (t) => {
  const directory = await folder(t);
  const to = three('old');
  to[2]!.fails = 'import';
  await assert.rejects(importState(cut(await exported(three('new'))), to, { directory, clock }), coded('storage-full'));
  assert.deepEqual(texts(to), texts(three('old')));
  assert.deepEqual(to[0]?.log, ['import 1', 'abandon']);
  assert.deepEqual(await readdir(directory), []);
});

for (const at of [0, 1, 2]) {
  for (const fails of ['commit', 'after commit'] as const) {
    test(`a stop at section ${at}, ${fails}, is finished at the next start`, async (t) => {
      const directory = await folder(t);
      const stream = await exported(three('new'));
      const to = three('old');
      to[at]!.fails = fails;
      await assert.rejects(importState(cut(stream), to, { directory, clock }), coded('storage-failed'));
      // Until it is finished, no other import can come between.
      await assert.rejects(importState(cut(stream), to, { directory, clock }), coded('state-conflict'));
      // The next start may be stopped as well.
      await assert.rejects(recoverImport(to, { directory, clock }), coded('storage-failed'));
      to[at]!.fails = undefined;
      const report = await recoverImport(to, { directory, clock });
      assert.equal(report?.sections.length, 3);
      assert.deepEqual(texts(to), texts(three('new')));
      assert.equal(await recoverImport(to, { directory, clock }), null);
      assert.deepEqual(await readdir(directory), []);
    });
  }
}

test('recoverImport() drops an import that never reached its commit point', async (t) => {
  const directory = await folder(t);
  const stream = await exported(three('new'));
  await writeFile(join(directory, 'incoming.hmstate'), stream.subarray(0, 50));
  const to = three('old');
  await assert.rejects(importState(cut(stream), to, { directory, clock }), coded('state-conflict'));
  assert.equal((await readFile(join(directory, 'incoming.hmstate'))).length, 50);
  assert.equal(await recoverImport(to, { directory, clock }), null);
  await importState(cut(stream), to, { directory, clock });
  assert.deepEqual(texts(to), texts(three('new')));
});

test('a section may stop reading early, and a large piece is cut', async (t) => {
  const directory = await folder(t);
  const large: StateSection = {
    name: 'large',
    version: 1,
    async *export() {
      yield new Uint8Array(2_500_000);
    },
    async import(_version, pieces) {
      for await (const piece of pieces) {
        assert.equal(piece.length, 1_048_576);
        break;
      }
      return { commit: async () => {}, abandon: async () => {} };
    },
  };
  const last = new TextSection('last', 'new');
  const stream = await exported([large, last]);
  last.text = 'old';
  await importState(cut(stream, 65_536), [large, last], { directory, clock });
  assert.equal(last.text, 'new');
});

/** Imports one of two exports after the other into two databases, until it is killed. */
const IMPORTER = `
  const [directory, stateUrl, folders, streams] = JSON.parse(process.argv[1]);
  const { importState, recoverImport, openState } = await import(stateUrl);
  const clock = { nowMs: () => 1 };
  const stores = await Promise.all(folders.map((folder) => openState({ directory: folder, clock })));
  const sections = stores.map(({ section }, index) => ({ ...section, name: 'part-' + index }));
  await recoverImport(sections, { directory, clock });
  process.send('ready');
  for (let turn = 0; ; turn++) {
    const bytes = Uint8Array.fromHex(streams[turn % streams.length]);
    await importState((async function* () { yield bytes; })(), sections, { directory, clock });
  }
`;

test('killed at any moment, the next start finds both sections before or both after', async (t) => {
  const home = await folder(t);
  const directory = join(home, 'import');
  const folders = [join(home, 'a'), join(home, 'b')];
  const openAll = async () => {
    const stores = await Promise.all(folders.map((path) => openState({ directory: path, clock })));
    return { stores, sections: stores.map(({ section }, index) => ({ ...section, name: `part-${index}` })) };
  };
  const streams: string[] = [];
  for (const content of ['one', 'two']) {
    const { stores, sections } = await openAll();
    for (const { space } of stores) await space('catalog').write({ content, [content]: 'x'.repeat(1_000) });
    streams.push(hex(await exported(sections)));
    for (const store of stores) await store[Symbol.asyncDispose]();
  }
  const stateUrl = new URL('./index.ts', import.meta.url).href;
  for (let kill = 0; kill < 6; kill++) {
    const argument = JSON.stringify([directory, stateUrl, folders, streams]);
    const child = spawn(process.execPath, ['--input-type=module', '-e', IMPORTER, argument], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    await once(child, 'message');
    await setTimeout(Math.random() * 60);
    child.kill('SIGKILL');
    await once(child, 'exit');

    const { stores, sections } = await openAll();
    await recoverImport(sections, { directory, clock });
    const found = await Promise.all(stores.map(({ space }) => space('catalog').list('')));
    assert.ok(found[0]!.length > 0);
    assert.deepEqual(found[0], found[1], `kill ${kill}`);
    assert.deepEqual(await readdir(directory), []);
    for (const store of stores) await store[Symbol.asyncDispose]();
  }
});
