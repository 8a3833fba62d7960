import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { concat, fromHex, hex } from '../base/bytes.ts';
import { ERRORS, type ErrorCode, HyperMeshError, isCoded, toProblem } from '../base/errors.ts';
import {
  CHANNEL_LIMITS,
  decodeProblem,
  decodeRangeAnswer,
  decodeRangeRequest,
  encodeFrame,
  encodeProblem,
  encodeRangeAnswer,
  encodeRangeRequest,
  type Frame,
  FrameDecoder,
  type RangeAnswer,
  type RangeRequest,
} from './channel.ts';

interface Case {
  readonly why: string;
  readonly bytes: string;
}

function vectors<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/channel/${name}.json`, import.meta.url), 'utf8')) as T;
}

const valid = vectors<{
  frames: (Case & { frame: Record<string, unknown> })[];
  problems: (Case & { problem: Record<string, unknown> })[];
  rangeRequests: (Case & { request: RangeRequest })[];
  rangeAnswers: (Case & { answer: RangeAnswer })[];
}>('valid');
const invalid = vectors<{ frames: Case[]; rangeRequests: Case[]; rangeAnswers: Case[] }>('invalid');

const refused = (work: () => unknown, why?: string) => assert.throws(work, (error) => isCoded(error, 'peer-lied'), why);
const framesIn = (...chunks: Uint8Array[]): Frame[] => {
  const decoder = new FrameDecoder();
  return chunks.flatMap((chunk) => [...decoder.push(chunk)]);
};
/** Data comes in parts; two frames in a row are as good as one. */
function joined(frames: readonly Frame[]): Frame[] {
  const out: Frame[] = [];
  for (const frame of frames) {
    const last = out.at(-1);
    if (frame.kind === 'data' && last?.kind === 'data' && last.stream === frame.stream) {
      out[out.length - 1] = { ...frame, bytes: concat(last.bytes, frame.bytes) };
    } else out.push(frame);
  }
  return out;
}
/** As the vectors write a frame. */
const shown = (frame: Frame) =>
  Object.fromEntries(
    Object.entries(frame).map(([name, value]) => [
      name,
      value instanceof Uint8Array ? hex(value) : typeof value === 'bigint' ? value.toString() : value,
    ]),
  );

const bytes = (maxLength: number) => fc.uint8Array({ maxLength });
const stream = fc.integer({ min: 1, max: 2 ** 32 - 1 });
const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const method = fc.stringMatching(/^[a-z][a-z0-9-]{0,20}\/[a-z][a-z0-9-]{0,20}$/);
const withLength = (maxLength: number) =>
  fc.tuple(bytes(maxLength), fc.nat(1_000_000)).map(([part, more]) => ({ bytes: part, length: part.length + more }));
const code = fc.constantFrom(...(Object.keys(ERRORS) as ErrorCode[]));
const problem = fc
  .record({ code, message: fc.string(), hint: fc.string(), details: fc.dictionary(fc.string(), fc.jsonValue()) })
  .map(({ code, message, ...rest }) => new HyperMeshError(code, message, rest));
const frame: fc.Arbitrary<Frame> = fc.oneof(
  bytes(2_000).map((document): Frame => ({ kind: 'hello', document })),
  fc
    .tuple(fc.constantFrom('ping', 'pong'), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }))
    .map(([kind, token]): Frame => ({ kind, token })),
  fc
    .tuple(stream, method, u32, withLength(2_000))
    .map(([stream, method, window, body]): Frame => ({ kind: 'open', stream, method, window, ...body })),
  fc
    .tuple(stream, fc.boolean(), withLength(2_000))
    .map(([stream, whole, body]): Frame => ({ kind: 'answer', stream, whole, ...body })),
  fc
    .tuple(stream, fc.uint8Array({ minLength: 1, maxLength: 2_000 }))
    .map(([stream, bytes]): Frame => ({ kind: 'data', stream, bytes })),
  fc.tuple(stream, fc.maxSafeNat()).map(([stream, length]): Frame => ({ kind: 'end', stream, length })),
  stream.map((stream): Frame => ({ kind: 'cancel', stream })),
  fc.tuple(stream, u32).map(([stream, bytes]): Frame => ({ kind: 'credit', stream, bytes: bytes || 1 })),
);

describe('frames', () => {
  it('are read and written as in the vectors', () => {
    for (const { why, bytes, frame } of valid.frames) {
      const [read, ...more] = framesIn(fromHex(bytes));
      assert.deepEqual(shown(read!), frame, why);
      assert.deepEqual(more, [], why);
      assert.equal(hex(concat(...encodeFrame(read!))), bytes, why);
    }
    for (const { why, bytes, problem } of valid.problems) {
      const [read] = framesIn(fromHex(bytes));
      assert.ok(read?.kind === 'fail', why);
      assert.deepEqual({ ...toProblem(read.problem) }, problem, why);
    }
  });

  it('are refused as in the vectors, from the header where that is enough', () => {
    for (const { why, bytes } of invalid.frames) refused(() => framesIn(fromHex(bytes)), why);
  });

  it('come out as they went in, however they are cut', () => {
    fc.assert(
      fc.property(fc.array(frame, { maxLength: 8 }), fc.array(fc.nat(), { maxLength: 20 }), (frames, cuts) => {
        const all = concat(...frames.flatMap(encodeFrame));
        const at = [...new Set([0, ...cuts.map((cut) => cut % (all.length + 1)), all.length])].sort((a, b) => a - b);
        const chunks = at.slice(1).map((end, index) => all.subarray(at[index], end));
        assert.deepEqual(joined(framesIn(...chunks)).map(shown), joined(frames).map(shown));
      }),
      { numRuns: 500 },
    );
  });

  it('are read from any bytes, or refused; nothing is allocated that did not pass', () => {
    const decode = (chunk: Uint8Array) => {
      try {
        for (const frame of framesIn(chunk)) assert.ok('stream' in frame ? frame.stream > 0 : true);
      } catch (error) {
        assert.ok(isCoded(error, 'peer-lied'), String(error));
      }
    };
    // Every part of the bytes is a case, with its first byte made a kind that exists: 100,000 in all.
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 100, maxLength: 300 }), (all) => {
        for (let at = 0; at < 50; at++) {
          const part = all.slice(at);
          part[0] = (at % 13) as number;
          // Short lengths, so that the payload is there as well.
          if (at % 2 === 0) part.set([0, 0, part[3]! % 60], 1);
          decode(part);
        }
      }),
      { numRuns: 1_000 },
    );
    const mutated = fc.oneof(
      frame,
      problem.map((problem): Frame => ({ kind: 'fail', stream: 1, problem })),
    );
    fc.assert(
      fc.property(mutated, fc.nat(255), (frame, value) => {
        const encoded = concat(...encodeFrame(frame));
        for (let at = 0; at < 50; at++) {
          const changed = encoded.slice();
          changed[at % encoded.length]! ^= value || 1;
          decode(changed);
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

describe('problems', () => {
  it('arrive with code, message, hint and details, and always fit into a frame', () => {
    fc.assert(
      fc.property(problem, (error) => {
        const encoded = encodeProblem(error);
        assert.ok(encoded.length <= CHANNEL_LIMITS.problemBytesMax);
        assert.equal(decodeProblem(encoded).code, error.code);
      }),
    );
    const long = new HyperMeshError('timeout', 'é'.repeat(9_000), { details: { much: 'x'.repeat(99_999) } });
    assert.equal(decodeProblem(encodeProblem(long)).code, 'timeout');
  });

  it('bring no code that is a member of every object', () => {
    const read = decodeProblem(new TextEncoder().encode('{"code":"constructor","message":"x"}'));
    assert.equal(read.code, 'internal');
  });
});

describe('ranges', () => {
  it('are read and written as in the vectors', () => {
    for (const { why, bytes, request } of valid.rangeRequests) {
      assert.deepEqual(decodeRangeRequest(fromHex(bytes)), request, why);
      assert.equal(hex(encodeRangeRequest(request)), bytes, why);
    }
    for (const { why, bytes, answer } of valid.rangeAnswers) {
      assert.deepEqual(decodeRangeAnswer(fromHex(bytes)), answer, why);
      assert.equal(hex(encodeRangeAnswer(answer)), bytes, why);
    }
    for (const { why, bytes } of invalid.rangeRequests) refused(() => decodeRangeRequest(fromHex(bytes)), why);
    for (const { why, bytes } of invalid.rangeAnswers) refused(() => decodeRangeAnswer(fromHex(bytes)), why);
  });

  it('are read from any bytes, or refused', () => {
    fc.assert(
      fc.property(fc.oneof(bytes(60), fc.uint8Array({ minLength: 49, maxLength: 49 })), (chunk) => {
        for (const decode of [decodeRangeRequest, decodeRangeAnswer]) {
          try {
            decode(chunk);
          } catch (error) {
            assert.ok(isCoded(error, 'peer-lied'), String(error));
          }
        }
      }),
      { numRuns: 2_000 },
    );
  });
});
