import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { zstdDecompressSync } from 'node:zlib';
import { concat, utf8 } from '../../../base/bytes.ts';
import { compress } from './compress.ts';

const PIECES = ['one piece', ...Array.from({ length: 40 }, (_, at) => `${at}`.repeat(9_000)), 'the last'].map(utf8);

/** In pieces with pauses before those numbers, and one at the end. */
async function* pieces(pauses: readonly number[]): AsyncGenerator<Uint8Array> {
  for (const [at, piece] of PIECES.entries()) {
    if (pauses.includes(at)) await setTimeout(2);
    yield piece;
  }
  if (pauses.includes(PIECES.length)) await setTimeout(2);
}

async function compressed(pauses: readonly number[]): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const bytes of compress(pieces(pauses))) all.push(bytes);
  return concat(...all);
}

const nameOf = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

test('compress() gives the same bytes whenever the pieces come', async () => {
  const bytes = await compressed([]);
  assert.deepEqual(new Uint8Array(zstdDecompressSync(bytes)), concat(...PIECES));
  for (const pauses of [[PIECES.length], [0], [1, 5, PIECES.length - 1], [...PIECES.keys(), PIECES.length]])
    assert.equal(nameOf(await compressed(pauses)), nameOf(bytes), `pauses before ${pauses.join(', ')}`);
});

test('compress() fails with what its source fails with, and ends it when it is given up', async () => {
  async function* broken(): AsyncGenerator<Uint8Array> {
    yield* PIECES;
    throw new Error('the disk is gone');
  }
  await assert.rejects(async () => {
    for await (const _ of compress(broken()));
  }, /the disk is gone/);
  let ended = false;
  async function* endless(): AsyncGenerator<Uint8Array> {
    try {
      for (;;) yield crypto.getRandomValues(new Uint8Array(60_000));
    } finally {
      ended = true;
    }
  }
  for await (const _ of compress(endless())) break;
  while (!ended) await setTimeout(1);
});
