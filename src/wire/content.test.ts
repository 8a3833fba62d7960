import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { fromHex, hex } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import {
  bitBytes,
  decodeHaveAnswer,
  decodeHaveAsk,
  decodeReadAsk,
  decodeShardList,
  encodeHaveAnswer,
  encodeHaveAsk,
  encodeReadAsk,
  encodeShardList,
  HAVE_ASK_BYTES_MAX,
  HAVE_BLOBS_MAX,
  type Holding,
  hasBit,
  haveAnswerBytesMax,
  isListOf,
  READ_ASK_BYTES_MAX,
  READ_BYTES_MAX,
  READ_RANGES_MAX,
  SHARD_LIST_BYTES_MAX,
  SHARDS_MAX,
  setBit,
} from './content.ts';
import { averageFor, loadBlake3, ShardCutter } from './shards.ts';

const blake3 = await loadBlake3();

const DECODERS = {
  'shard-list': { decode: decodeShardList, encode: encodeShardList },
  'have-ask': { decode: decodeHaveAsk, encode: encodeHaveAsk },
  'have-answer': { decode: decodeHaveAnswer, encode: encodeHaveAnswer },
  'read-ask': { decode: decodeReadAsk, encode: encodeReadAsk },
} as const;
type Message = keyof typeof DECODERS;

function vectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/content/${name}.json`, import.meta.url), 'utf8')) as T[];
}

/** As the vectors write it: bytes are hexadecimal. */
function written(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value, (_, member) => (member instanceof Uint8Array ? hex(member) : member)));
}

function reencode(message: Message, bytes: Uint8Array): Uint8Array {
  const { decode, encode } = DECODERS[message] as {
    decode: (bytes: Uint8Array) => unknown;
    encode: (value: unknown) => Uint8Array;
  };
  return encode(decode(bytes));
}

test('valid vectors: what they say, and one encoding', () => {
  for (const { why, message, bytes, value } of vectors<{
    why: string;
    message: Message;
    bytes: string;
    value: unknown;
  }>('valid')) {
    assert.deepEqual(written(DECODERS[message].decode(fromHex(bytes))), value, why);
    assert.equal(hex(reencode(message, fromHex(bytes))), bytes, why);
  }
});

for (const { why, message, bytes } of vectors<{ why: string; message: Message; bytes: string }>('invalid')) {
  test(`invalid vector is refused: ${message}, ${why}`, () => {
    assert.throws(
      () => DECODERS[message].decode(fromHex(bytes)),
      (error) => isCoded(error, 'content-invalid'),
    );
  });
}

test('a list names its blob by its root: one other bit and it is the list of another', () => {
  const bytes = new Uint8Array(createHash('shake256', { outputLength: 500_000 }).update('list').digest());
  const cutter = new ShardCutter(blake3, averageFor(bytes.length));
  cutter.push(bytes);
  const blob = { size: bytes.length, shards: cutter.finish() };
  const list = { size: bytes.length, averageBytes: cutter.average, shards: cutter.shards };
  const encoded = encodeShardList(list);
  assert.ok(isListOf(blake3, decodeShardList(encoded), blob));
  fc.assert(
    fc.property(fc.nat(encoded.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      const changed = encoded.slice();
      changed[at]! ^= flip;
      try {
        assert.equal(isListOf(blake3, decodeShardList(changed), blob), false);
      } catch (error) {
        assert.ok(isCoded(error, 'content-invalid'), String(error));
      }
    }),
  );
});

test('no bytes make a decoder do anything but read them or refuse them as malformed', () => {
  const message = fc.constantFrom(...(Object.keys(DECODERS) as Message[]));
  const seeds = vectors<{ message: Message; bytes: string }>('valid');
  const check = (name: Message, bytes: Uint8Array) => {
    try {
      assert.equal(hex(reencode(name, bytes)), hex(bytes), 'what is read has one encoding');
    } catch (error) {
      if (!isCoded(error, 'content-invalid')) throw error;
    }
  };
  fc.assert(fc.property(message, fc.uint8Array({ maxLength: 200 }), check), { numRuns: 20_000 });
  const edit = fc.record({ at: fc.nat(400), byte: fc.nat(255) });
  fc.assert(
    fc.property(fc.constantFrom(...seeds), fc.array(edit, { maxLength: 4 }), fc.nat(400), (seed, edits, cut) => {
      const bytes = fromHex(seed.bytes);
      for (const { at, byte } of edits) if (at < bytes.length) bytes[at] = byte;
      check(seed.message, cut % 3 === 0 ? bytes.subarray(0, cut) : bytes);
    }),
    { numRuns: 20_000 },
  );
});

test('a question and its answer fit the limits that are stated for them', () => {
  const blobs = Array.from({ length: HAVE_BLOBS_MAX }, (_, i): Digest => `sha256:${i.toString(16).padStart(64, '0')}`);
  assert.equal(encodeHaveAsk(blobs).length, HAVE_ASK_BYTES_MAX);
  assert.deepEqual(decodeHaveAsk(encodeHaveAsk(blobs)), blobs);
  const bits = new Uint8Array(bitBytes(SHARDS_MAX));
  setBit(bits, 0);
  setBit(bits, SHARDS_MAX - 1);
  assert.deepEqual([hasBit(bits, 0), hasBit(bits, 1), hasBit(bits, SHARDS_MAX - 1)], [true, false, true]);
  const holdings: Holding[] = blobs.map(() => ({ kind: 'partial', count: SHARDS_MAX, shards: bits }));
  const answer = encodeHaveAnswer(holdings);
  assert.equal(answer.length, haveAnswerBytesMax(HAVE_BLOBS_MAX));
  assert.deepEqual(decodeHaveAnswer(answer), holdings);
  const ranges = Array.from({ length: READ_RANGES_MAX }, (_, i) => ({
    blob: blobs[0]!,
    offset: i * 16_384,
    length: READ_BYTES_MAX / READ_RANGES_MAX,
  }));
  assert.equal(encodeReadAsk(ranges).length, READ_ASK_BYTES_MAX);
  assert.deepEqual(decodeReadAsk(encodeReadAsk(ranges)), ranges);
  const size = 16 * 2 ** 30;
  const length = averageFor(size) / 4;
  const shards = Array.from({ length: SHARDS_MAX }, (_, i) => ({
    hash: bits.slice(0, 32),
    offset: i * length,
    length,
  }));
  const list = encodeShardList({ size, averageBytes: averageFor(size), shards });
  assert.equal(list.length, SHARD_LIST_BYTES_MAX);
  assert.equal(decodeShardList(list).shards.length, SHARDS_MAX);
});
