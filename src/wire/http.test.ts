import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { z } from 'zod';
import * as http from './http.ts';

const schemas = http as unknown as Readonly<Record<string, z.ZodType>>;
const vectors = async (name: string) =>
  JSON.parse(await readFile(new URL(`../../test/vectors/http/${name}.json`, import.meta.url), 'utf8'));

test('requests that are right are accepted', async () => {
  for (const { name, schema, value } of await vectors('valid')) {
    assert.equal(schemas[schema]!.safeParse(value).success, true, name);
  }
});

test('requests that are wrong are refused', async () => {
  for (const { why, schema, value } of await vectors('invalid')) {
    assert.equal(schemas[schema]!.safeParse(value).success, false, why);
  }
});

test('input for a program is JSON of bounded depth', () => {
  const nested = (levels: number): unknown => (levels === 0 ? 1 : [nested(levels - 1)]);
  assert.equal(http.json.safeParse(nested(http.HTTP_LIMITS.jsonDepthMax)).success, true);
  assert.equal(http.json.safeParse(nested(http.HTTP_LIMITS.jsonDepthMax + 1)).success, false);
});
