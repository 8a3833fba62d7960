import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { concat, fromHex, utf8 } from '../../base/bytes.ts';
import { isCoded } from '../../base/errors.ts';
import { once } from '../../base/streams.ts';
import { noise } from '../../testing/made-content.ts';
import { createStream, openStream, type SealedSource, SealedStream, streamSecret } from './stream.ts';

const MIB = 2 ** 20;

function vectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(`../../../test/vectors/stream/${name}.json`, import.meta.url), 'utf8')) as T[];
}

interface Vector {
  readonly why: string;
  readonly secret: string;
  readonly bytes: string;
  readonly content: { readonly repeat: string; readonly times: number; readonly end?: string };
}

async function all(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  return concat(...(await Array.fromAsync(pieces)));
}

async function* pieces(bytes: Uint8Array, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
}

function sourceOf(bytes: Uint8Array, asked: [number, number][] = []): SealedSource {
  return {
    size: bytes.length,
    async read(offset, length) {
      asked.push([offset, length]);
      return bytes.subarray(offset, offset + length);
    },
  };
}

const refused = (error: unknown) => isCoded(error, 'stream-invalid');

for (const { why, secret, bytes, content } of vectors<Vector>('valid')) {
  test(`valid vector: ${why}`, async () => {
    const plain = utf8(content.repeat.repeat(content.times) + (content.end ?? ''));
    const sealed = fromHex(bytes);
    for (const length of [7, 100_000_000])
      assert.deepEqual(await all(openStream(pieces(sealed, length), fromHex(secret))), plain);
    const stream = await SealedStream.open(sourceOf(sealed), fromHex(secret));
    assert.equal(stream.size, plain.length);
    assert.deepEqual(await all(stream.read(0, plain.length)), plain);
  });
}

for (const { why, secret, bytes } of vectors<Vector>('invalid')) {
  test(`invalid vector is refused: ${why}`, async () => {
    const sealed = fromHex(bytes);
    await assert.rejects(() => all(openStream(once(sealed), fromHex(secret))), refused);
    // Whoever reads from anywhere sees only what it reads: all of it here.
    await assert.rejects(async () => {
      const stream = await SealedStream.open(sourceOf(sealed), fromHex(secret));
      await all(stream.read(0, stream.size));
    }, refused);
  });
}

test('createStream() and both readers agree, whatever the content and its pieces', async () => {
  const secret = streamSecret();
  for (const [length, piece] of [
    [0, 1],
    [1, 1],
    [MIB, MIB],
    [MIB + 1, 1_000_003],
    [3 * MIB - 1, 70_001],
  ] as const) {
    const plain = noise(length, `${length}`);
    const sealed = await all(createStream(pieces(plain, piece), secret));
    assert.ok(sealed.length < plain.length + 200);
    assert.deepEqual(await all(openStream(pieces(sealed, 65_000), secret)), plain);
    const stream = await SealedStream.open(sourceOf(sealed), secret);
    assert.deepEqual(await all(stream.read(0, length + 10)), plain);
  }
});

test('content that repeats itself becomes small, and equal content never equal bytes', async () => {
  const secret = streamSecret();
  const plain = new Uint8Array(2 * MIB).fill(7);
  const [one, two] = [await all(createStream(once(plain), secret)), await all(createStream(once(plain), secret))];
  assert.ok(one.length < 1_000);
  assert.notDeepEqual(one, two);
});

test('SealedStream fetches the frames of a range and no others', async () => {
  const secret = streamSecret();
  const plain = noise(5 * MIB + 123, 'range');
  const asked: [number, number][] = [];
  const stream = await SealedStream.open(sourceOf(await all(createStream(once(plain), secret)), asked), secret);
  asked.length = 0;
  const [offset, length] = [2 * MIB + 500, MIB];
  assert.deepEqual(await all(stream.read(offset, length)), plain.slice(offset, offset + length));
  assert.equal(asked.length, 2);
  assert.deepEqual(await all(stream.read(stream.size - 5, 100)), plain.slice(-5));
  assert.deepEqual(await all(stream.read(stream.size, 1)), new Uint8Array());
});

test('no change of a sealed stream goes unnoticed, and none does anything but that', async () => {
  const secret = streamSecret();
  const sealed = await all(createStream(once(noise(300, 'fuzz')), secret));
  await fc.assert(
    fc.asyncProperty(fc.nat(sealed.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
      const changed = sealed.slice();
      changed[at]! ^= flip;
      await assert.rejects(() => all(openStream(once(changed), secret)), refused);
    }),
    { numRuns: 1_000 },
  );
  const header = sealed.subarray(0, 41);
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), fc.boolean(), async (bytes, withHeader) => {
      const made = withHeader ? concat(header, bytes) : bytes;
      await assert.rejects(() => all(openStream(once(made), secret)), refused);
      await assert.rejects(() => SealedStream.open(sourceOf(made), secret), refused);
    }),
    { numRuns: 8_000 },
  );
});
