import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { openApi } from './openapi.ts';
import { ROUTES } from './server.ts';

const file = new URL('../../docs/openapi.json', import.meta.url);

test('docs/openapi.json describes the routes that are served', async () => {
  const { version } = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'));
  const current = `${JSON.stringify(openApi(ROUTES, version), null, 2)}\n`;
  if (process.env['UPDATE_DOCS'] === '1') await writeFile(file, current);
  assert.equal(await readFile(file, 'utf8'), current, 'run the tests once with UPDATE_DOCS=1');
});
