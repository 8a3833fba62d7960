import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../base/errors.ts';
import { decodeNodeFile, encodeNodeFile } from './node-file.ts';

const vectors = async (name: string) =>
  JSON.parse(await readFile(new URL(`../../test/vectors/node-file/${name}.json`, import.meta.url), 'utf8'));

test('decodeNodeFile() reads what encodeNodeFile() writes', async () => {
  for (const { name, text } of (await vectors('valid')) as { name: string; text: string }[]) {
    const file = decodeNodeFile(text);
    assert.deepEqual(decodeNodeFile(encodeNodeFile(file)), file, name);
  }
});

test('decodeNodeFile() refuses everything else', async () => {
  for (const { why, text } of (await vectors('invalid')) as { why: string; text: string }[]) {
    assert.throws(() => decodeNodeFile(text), { code: 'config-invalid' }, why);
  }
  const refused = (text: string) => {
    try {
      decodeNodeFile(text);
    } catch (error) {
      return isCoded(error, 'config-invalid');
    }
    return false;
  };
  fc.assert(fc.property(fc.oneof(fc.string({ maxLength: 5_000 }), fc.json()), refused));
});
