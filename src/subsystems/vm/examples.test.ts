import assert from 'node:assert/strict';
import { chmodSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import type { Json } from '../../base/json.ts';
import { MemoryTrees, SMALL_POLICY } from '../../testing/runtime-conformance.ts';
import { tinyImage } from '../../testing/tiny-image.ts';
import { assemble } from '../../testing/wat.ts';
import { packageManifest } from '../../wire/manifest.ts';
import { openExecution } from './index.ts';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

function folder(path: string): Record<string, Uint8Array> {
  const at = `${ROOT}${path}/`;
  return Object.fromEntries(
    globSync('**/*', { cwd: at, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => `${entry.parentPath}/${entry.name}`.slice(at.length - 1).replace(/^\//, ''))
      .map((name) => [name, readFileSync(at + name)]),
  );
}

async function run(path: string, input: Json, entry = 'main.wasm', memoryBytes = 2 ** 20) {
  const trees = new MemoryTrees();
  const mounts = [{ layer: trees.add(folder('examples/packages/phrases')), at: '/packages/hello/phrases' }];
  await using execution = await openExecution({ assets: trees });
  return await execution.run({
    kind: 'wasm',
    layer: trees.add(folder(path)),
    entry,
    args: [],
    input,
    policy: { ...SMALL_POLICY, memoryBytes, mounts },
  });
}

describe('example packages and templates', () => {
  for (const path of ['examples/packages/greeter', 'templates/wasm']) {
    it(`${path}/main.wasm is its text, assembled`, async () => {
      const text = readFileSync(`${ROOT}${path}/src/main.wat`, 'utf8');
      assert.deepEqual(new Uint8Array(readFileSync(`${ROOT}${path}/main.wasm`)), await assemble(text));
    });
  }

  for (const path of [
    'examples/packages/greeter',
    'examples/packages/phrases',
    'examples/packages/librarian',
    'examples/packages/series',
    'templates/wasm',
    'templates/library',
    'templates/julia',
    'templates/python',
    'templates/virtual-machine',
    'templates/container',
  ]) {
    it(`${path}/catalog.yaml is a manifest whose files exist`, () => {
      const manifest = packageManifest.parse(parse(readFileSync(`${ROOT}${path}/catalog.yaml`, 'utf8')));
      const image = manifest.image === undefined ? undefined : `${manifest.image}/oci-layout`;
      for (const file of [manifest.entry, image, manifest.readme])
        if (file !== undefined) assert.ok(readFileSync(`${ROOT}${path}/${file}`).length > 0);
    });
  }

  it('hello/greeter greets in the language of the input', async () => {
    const greeted = async (input: Json) => (await run('examples/packages/greeter', input)).output;
    assert.deepEqual(await greeted({ name: 'Ada', language: 'fr' }), { greeting: 'Bonjour, Ada !' });
    assert.deepEqual(await greeted({ other: { name: 'no' }, language: 'ja', name: '"Zoë" \\ 🦊' }), {
      greeting: 'こんにちは、"Zoë" \\ 🦊さん！',
    });
    assert.deepEqual(await greeted({}), { greeting: 'Hello, world!' });
  });

  it('hello/greeter says why it cannot greet', async () => {
    const unknown = await run('examples/packages/greeter', { language: 'xx' });
    assert.deepEqual(
      [unknown.termination, unknown.exitCode, unknown.output, unknown.stderr],
      ['exit', 1, null, 'hello/phrases has no greeting in that language.\n'],
    );
    assert.equal((await run('examples/packages/greeter', { language: '../../x' })).exitCode, 1);
    assert.match((await run('examples/packages/greeter', { name: 'x'.repeat(70_000) })).stderr, /too large/);
  });

  it('templates/python answers, with an input and without', async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'hypermesh-python-'));
    try {
      const assets = new MemoryTrees();
      await using execution = await openExecution({ assets }, { directory: join(directory, 'vm') });
      const status = (await execution.runtimes()).find(({ kind }) => kind === 'python');
      if (status?.available !== true) {
        t.skip(status?.reason ?? 'no Python');
        return;
      }
      const layer = assets.add(folder('templates/python'));
      const policy = { ...SMALL_POLICY, wallMs: 600_000 };
      for (const [input, output] of [
        [{ numbers: [6, 1, 2] }, { mean: 3, sorted: [1, 2, 6] }],
        [null, { mean: null, sorted: [] }],
      ]) {
        const result = await execution.run({
          ...{ kind: 'python', layer, entry: 'main.py', args: [], policy },
          input: input as Json,
        });
        assert.deepEqual(result.output, output, result.stderr);
      }
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  it('hello/librarian reads the folder that it is lent, and writes into the other', async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'hypermesh-librarian-'));
    try {
      const [books, index] = [join(directory, 'books'), join(directory, 'index')];
      for (const path of [books, index]) mkdirSync(path);
      chmodSync(index, 0o777);
      chmodSync(books, 0o755);
      writeFileSync(join(books, 'a.txt'), 'The cat and the dog');
      writeFileSync(join(books, 'b.txt'), 'the größte cat');
      const trees = new MemoryTrees();
      await using execution = await openExecution({ assets: trees }, { directory: join(directory, 'vm') });
      const status = (await execution.runtimes()).find(({ kind }) => kind === 'python');
      if (status?.available !== true) {
        t.skip(status?.reason ?? 'no Python');
        return;
      }
      const { sandbox, resources } = packageManifest.parse(
        parse(readFileSync(`${ROOT}examples/packages/librarian/catalog.yaml`, 'utf8')),
      );
      const layer = trees.add(folder('examples/packages/librarian'));
      const subject = { package: layer, ref: 'hello/librarian@1.0.0' };
      const folders = Object.entries(sandbox.folders ?? {}).map(([name, access]) => ({ name, access }));
      await execution.grant({
        ...{ ...subject, program: layer, connect: [] },
        folders: folders.map((one) => ({ ...one, path: one.name === 'books' ? books : index })),
      });
      const result = await execution.run({
        ...{ kind: 'python', layer, entry: 'main.py', args: [], input: { top: 1 }, subject },
        policy: { ...SMALL_POLICY, memoryBytes: resources.memory ?? 0, folders },
      });
      assert.deepEqual(result.output, { books: 2, words: 8, most: [['the', 3]] }, result.stderr);
      assert.equal(JSON.parse(readFileSync(join(index, 'words.json'), 'utf8'))['größte'], 1);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  it('templates/container answers at once, where its image can run', async (t) => {
    const image = tinyImage();
    const at = `${ROOT}templates/container/image/`;
    if (process.env['UPDATE_TEMPLATE'] === '1') {
      rmSync(at, { recursive: true, force: true });
      for (const [name, bytes] of Object.entries(image)) {
        mkdirSync(dirname(at + name), { recursive: true });
        writeFileSync(at + name, bytes);
      }
    }
    const written = folder('templates/container/image');
    assert.deepEqual(Object.keys(written).sort(), Object.keys(image).sort());
    for (const [name, bytes] of Object.entries(image)) assert.deepEqual(written[name], Buffer.from(bytes), name);

    const directory = await mkdtemp(join(tmpdir(), 'hypermesh-template-'));
    try {
      const trees = new MemoryTrees();
      await using execution = await openExecution({ assets: trees }, { directory });
      const status = (await execution.runtimes()).find(({ kind }) => kind === 'container');
      if (status?.available !== true || process.arch !== 'x64') {
        t.skip(status?.reason ?? 'the image is for x64');
        return;
      }
      const layer = trees.add(folder('templates/container'));
      const request = { kind: 'container', layer, entry: 'image', args: [], input: { name: 'Ada' } } as const;
      const result = await execution.run({ ...request, policy: SMALL_POLICY });
      assert.deepEqual([result.termination, result.output], ['exit', { received: { name: 'Ada' } }]);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  it('templates/wasm answers at once', async () => {
    const result = await run('templates/wasm', { name: 'Ada' });
    assert.deepEqual([result.termination, result.output], ['exit', { received: { name: 'Ada' } }]);
  });

  for (const entry of ['main.wasm', 'component.wasm']) {
    it(`hello/series computes, and reads a file of its own: ${entry}`, async () => {
      const looking = (input: Json) => run('examples/packages/series', input, entry, 2 ** 24);
      const looked = async (input: Json) => (await looking(input)).output;
      assert.deepEqual(await looked({ dataset: 'tides' }), {
        count: 1500,
        mean: 2.15273,
        deviation: 0.879807,
        trend: { slope: 0.000194441, intercept: 2.007 },
        period: 12.41,
      });
      const line = { count: 4, mean: 2.5, deviation: 1.29099, trend: { slope: 1, intercept: 1 }, period: null };
      assert.deepEqual(await looked({ other: ['x', { y: null }], series: [1, 2, 3, 4] }), line);
      const result = await looking({ dataset: '../../main' });
      assert.deepEqual([result.exitCode, result.output], [1, null]);
      assert.match(result.stderr, /^There is no dataset "..\/..\/main" in this package\.\n$/);
    });
  }
});
