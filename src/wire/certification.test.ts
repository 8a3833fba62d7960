import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../base/errors.ts';
import {
  decodeCertification,
  decodeJoinRequest,
  decodeNetworkMove,
  encodeNetworkMove,
  type NetworkMove,
} from './certification.ts';

interface Valid {
  readonly name: string;
  readonly kind: 'request' | 'answer';
  readonly value: Record<string, unknown>;
  readonly subject?: string;
  readonly networkId?: string;
}
const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/certification/${kind}.json`, import.meta.url), 'utf8'));
const valid = vectors('valid') as readonly Valid[];
const decode = { request: decodeJoinRequest, answer: decodeCertification };

for (const { name, kind, value, subject, networkId } of valid) {
  test(`decoding accepts ${name}`, () => {
    if (kind === 'request') {
      const opened = decodeJoinRequest(value);
      assert.equal(opened.request.subject, subject);
      assert.equal(opened.signed.length, 3);
    } else assert.equal(decodeCertification(value).networkId, networkId);
  });
}

function changed(value: unknown, where: string, to: unknown): unknown {
  const copy = structuredClone(value) as Record<string, unknown>;
  const path = where.split('.');
  const last = path.pop()!;
  const target = path.reduce((at, key) => at[key] as Record<string, unknown>, copy);
  target[last] = to;
  return copy;
}

for (const { why, of, where, value, says } of vectors('invalid') as {
  why: string;
  of: number;
  where: string;
  value: unknown;
  says: string;
}[]) {
  test(`decoding refuses ${why}`, () => {
    const from = valid[of]!;
    assert.throws(
      () => decode[from.kind](changed(from.value, where, value)),
      (error) => isCoded(error, 'certification-invalid') && new RegExp(says).test(error.message),
    );
  });
}

test('decoding answers whatever JSON with a value or with a refusal', () => {
  const parts = valid.flatMap(({ value }) => Object.keys(value));
  fc.assert(
    fc.property(fc.constantFrom(...valid), fc.constantFrom(...parts), fc.jsonValue(), ({ kind, value }, part, to) => {
      for (const one of [to, changed(value, part, to)]) {
        try {
          decode[kind](one);
        } catch (error) {
          assert.ok(isCoded(error, 'certification-invalid', 'signature-invalid'), String(error));
        }
      }
    }),
    { numRuns: 500 },
  );
});

test('a move survives its file, and a damaged file is refused', () => {
  const { value } = valid.find(({ kind }) => kind === 'answer')!;
  const { certification } = decodeCertification(value);
  const moves: NetworkMove[] = [
    { formatVersion: 1, kind: 'join', certification, forget: false },
    { formatVersion: 1, kind: 'leave', forget: true },
  ];
  for (const move of moves) {
    const text = encodeNetworkMove(move);
    assert.deepEqual(decodeNetworkMove(text), move);
    for (const damaged of ['', text.slice(0, -5), text.replace('"formatVersion":1', '"formatVersion":2'), '[]'])
      assert.throws(
        () => decodeNetworkMove(damaged),
        (error) => isCoded(error, 'storage-failed'),
      );
  }
});
