import assert from 'node:assert/strict';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { utf8 } from '../../src/base/bytes.ts';
import { systemClock } from '../../src/base/clock.ts';
import { isCoded } from '../../src/base/errors.ts';
import type { AssetCreation, CapabilityName } from '../../src/capabilities/extension.ts';
import { Extensions, type LoadOptions } from '../../src/host/extensions.ts';
import { ownAssets } from '../../src/host/own-assets.ts';
import { openAssets } from '../../src/subsystems/assets/index.ts';
import { openMonitoring } from '../../src/subsystems/monitoring/index.ts';
import { openState } from '../../src/subsystems/state/index.ts';
import { testExtension } from '../../src/testing/extension-conformance.ts';

const FOLDER = fileURLToPath(new URL('dataset', import.meta.url));
const NEEDS: readonly CapabilityName[] = ['assets', 'monitoring', 'state'];
const base = await mkdtemp(join(tmpdir(), 'dataset-'));
after(() => rm(base, { recursive: true, force: true }));
let serial = 0;

/** The part of a node that the extension touches, with real subsystems. */
async function subject(mode: LoadOptions['mode'] & string, limits: LoadOptions['limits'] = {}) {
  const directory = join(base, String(serial++));
  const clock = systemClock;
  const stack = new AsyncDisposableStack();
  const state = stack.use(await openState({ directory: join(directory, 'state'), clock }));
  const monitoring = stack.use(await openMonitoring({ directory: join(directory, 'monitoring'), clock }));
  const assets = stack.use(await openAssets({ directory: join(directory, 'assets'), clock }));
  const extensions = stack.use(
    new Extensions(
      {
        lendable: ({ id, provides, limits }) => ({
          capabilities: {
            assets: ownAssets(assets, { extension: id, provides, assetsMax: limits.assets }),
            monitoring: monitoring.for(id),
            state: state.space(id, { spaceBytesMax: limits.stateBytes }),
          },
          release: async () => {},
        }),
      },
      { version: '0.1.0' },
    ),
  );
  return {
    extensions,
    assets,
    monitoring,
    id: 'dataset',
    needs: NEEDS,
    load: (grants: readonly CapabilityName[]) => extensions.load({ folder: FOLDER }, { grants, mode, limits }),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

for (const mode of ['in-process', 'cell'] as const) {
  testExtension(`dataset, ${mode}`, () => subject(mode));

  describe(`dataset, ${mode}`, () => {
    const put = async ({ assets }: Awaited<ReturnType<typeof subject>>, text: string) => {
      const content = (async function* () {
        yield utf8(text);
      })();
      return (await assets.put(content)).digest;
    };
    const creation = (layer: string, name = 'ada/numbers'): AssetCreation => ({
      name,
      version: '1.0.0',
      description: 'Some numbers',
      metadata: { source: 'a test' },
      layer,
      tags: ['numbers'],
      privacy: 'private',
    });

    it('keeps tables as assets and knows what is in them', async () => {
      await using node = await subject(mode);
      await node.load(NEEDS);
      const handler = node.extensions.handlerFor('dataset')!;
      const id = await handler.createAsset(creation(await put(node, 'n,word\n1,one\n2,"two, or ""2"""\n')));
      assert.match(id, /^dataset\/[0-9a-f]{64}$/);
      const described = { format: 'csv', columns: ['n', 'word'], rows: 2, notes: { source: 'a test' } };
      assert.deepEqual(await handler.getMetadata(id), described);
      assert.deepEqual(await handler.queryAssets({ text: 'numbers' }), [id]);
      const head = await handler.handleOperation(id, { kind: 'custom', payload: { head: 5 } });
      const rows = [
        ['1', 'one'],
        ['2', 'two, or "2"'],
      ];
      assert.deepEqual(head.data, { columns: ['n', 'word'], rows });
      const answer = await node.extensions.route('dataset', { id: 'r', method: 'describe', params: { id } });
      assert.deepEqual(answer, { requestId: 'r', ok: true, data: described });
      const json = await put(node, '[{"a":1},{"a":2,"b":null}]');
      const other = await handler.createAsset(creation(json, 'ada/other'));
      assert.equal(((await handler.getMetadata(other)) as { format: string }).format, 'json');
      const events = await Array.fromAsync(node.monitoring.for('test').events({ pattern: 'dataset.*' }));
      assert.deepEqual(
        events.map(({ source, type }) => [source, type]),
        [
          ['dataset', 'dataset.created'],
          ['dataset', 'dataset.created'],
        ],
      );
      await handler.deleteAsset(id);
      assert.deepEqual(await handler.queryAssets({ text: 'numbers' }), [other]);
      await assert.rejects(handler.getMetadata(id), (error) => isCoded(error, 'asset-not-found'));
    });

    it('refuses what is not a table, and more assets than it may hold', async () => {
      await using node = await subject(mode, { assets: 1 });
      await node.load(NEEDS);
      const handler = node.extensions.handlerFor('dataset')!;
      for (const text of ['a,b\n1\n', '[1,2]', '[{]', 'a,"b\n']) {
        const refused = handler.createAsset(creation(await put(node, text)));
        await assert.rejects(refused, (error) => isCoded(error, 'usage'), text);
      }
      const absent = handler.createAsset(creation(`sha256:${'0'.repeat(64)}`));
      await assert.rejects(absent, (error) => isCoded(error, 'blob-not-found'));
      const layer = await put(node, 'a\n1\n');
      await handler.createAsset(creation(layer));
      const second = handler.createAsset(creation(layer, 'ada/second'));
      await assert.rejects(second, (error) => isCoded(error, 'quota-exceeded'));
    });

    it('is refused when it asks for trust that nobody granted', async () => {
      await using node = await subject(mode);
      const folder = join(base, `greedy-${mode}`);
      await cp(FOLDER, folder, { recursive: true });
      const file = join(folder, 'extension.json');
      await writeFile(file, (await readFile(file, 'utf8')).replace('"needs": [', '"needs": ["trust", '));
      const loading = node.extensions.load({ folder }, { grants: NEEDS, mode });
      await assert.rejects(
        loading,
        (error) => isCoded(error, 'capability-not-granted') && error.details?.['capability'] === 'trust',
      );
    });
  });
}
