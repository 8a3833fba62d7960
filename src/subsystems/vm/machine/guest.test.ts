import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { fromHex, hex } from '../../../base/bytes.ts';
import { encodeStart, type GuestWord, readGuest } from './guest.ts';

interface Vectors {
  readonly start: readonly {
    readonly name: string;
    readonly nowMs: number;
    readonly randomness: string;
    readonly environment: Readonly<Record<string, string>>;
    readonly program: string;
    readonly args: readonly string[];
    readonly bytes: string;
  }[];
  readonly valid: readonly { readonly name: string; readonly text: string; readonly words: readonly GuestWord[] }[];
  readonly invalid: readonly { readonly name: string; readonly text: string }[];
}

const vectors = JSON.parse(
  readFileSync(new URL('../../../../test/vectors/guest/contract.json', import.meta.url), 'utf8'),
) as Vectors;

for (const { name, bytes, randomness, ...start } of vectors.start) {
  test(`a guest is told what to start: ${name}`, () => {
    assert.equal(hex(encodeStart({ ...start, randomness: fromHex(randomness) })), bytes);
  });
}

/** In pieces of every size that matters. */
async function read(text: string, size: number): Promise<GuestWord[]> {
  const bytes = Buffer.from(text);
  const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) =>
    bytes.subarray(index * size, (index + 1) * size),
  );
  return Array.fromAsync(readGuest(Readable.from(pieces)));
}

for (const { name, text, words } of vectors.valid) {
  test(`what a guest says is understood: ${name}`, async () => {
    for (const size of [1, 3, 1_000]) assert.deepEqual(await read(text, size), words);
  });
}

for (const { name, text } of vectors.invalid) {
  test(`what a guest may not say is refused: ${name}`, async () => {
    for (const size of [1, 3, 1_000]) await assert.rejects(read(text, size), /on the control port/);
  });
}
