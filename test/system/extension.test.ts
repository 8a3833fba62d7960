import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { freshHome, type Home, PROJECT } from './support.ts';

async function grant(home: Home, grants: readonly string[]): Promise<void> {
  const file = join(home.home, 'config.yaml');
  const config = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
  const folder = join(PROJECT, 'examples', 'extensions', 'dataset');
  await writeFile(file, JSON.stringify({ ...config, extensions: [{ folder, grants }] }));
}

test("an operator's configuration loads a third party's extension with exactly what it grants, or the node does not start", async () => {
  await using home = await freshHome();
  await grant(home, ['assets', 'state']);
  const { error } = await home.json<{ error: { code: string; message: string } }>(['up', '--detach'], 4);
  assert.equal(error.code, 'capability-not-granted');
  assert.match(error.message, /monitoring/);

  await grant(home, ['assets', 'monitoring', 'state']);
  await home.json(['up', '--detach']);
  const status = await home.json<{ extensions: readonly { id: string; mode: string; state: string }[] }>(['status']);
  assert.deepEqual(
    status.extensions.map(({ id, mode, state }) => [id, mode, state]),
    [
      ['catalog', 'in-process', 'running'],
      ['dataset', 'cell', 'running'],
    ],
  );
});
