import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { isCoded } from '../base/errors.ts';
import {
  type Challenge,
  contextOf,
  decodeEndorsement,
  decodeProofSet,
  type Endorsement,
  operationDigest,
  type ProofSet,
  proofsDigest,
} from './proof.ts';

interface Vector {
  readonly name: string;
  readonly kind: string;
  readonly challenge: Challenge;
  readonly operationDigest: string;
  readonly context: string;
  readonly proofs: ProofSet;
  readonly endorsement: Endorsement;
}

const vectors = JSON.parse(
  readFileSync(new URL('../../test/vectors/proof/valid.json', import.meta.url), 'utf8'),
) as Vector[];
const sets = vectors.filter(({ kind }) => kind === 'set');

test('contexts and operation digests are those of the vectors', () => {
  for (const vector of vectors.filter(({ kind }) => kind === 'context')) {
    assert.equal(operationDigest(vector.challenge.operation), vector.operationDigest);
    assert.equal(contextOf(vector.challenge), vector.context);
  }
});

test('decodeProofSet() and decodeEndorsement() accept the vectors and change nothing', () => {
  for (const { proofs, endorsement } of sets) {
    assert.deepEqual(decodeProofSet(proofs), proofs);
    assert.deepEqual(decodeEndorsement(endorsement), endorsement);
    assert.equal(proofsDigest(proofs), endorsement.proofs);
    assert.equal(contextOf(proofs.challenge), proofs.challenge.context);
  }
});

/** Every place of a JSON value, as a path of keys. */
function places(value: unknown, path: readonly string[] = []): readonly (readonly string[])[] {
  if (typeof value !== 'object' || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([key, member]) => places(member, [...path, key]))];
}

function replaced(value: unknown, [key, ...rest]: readonly string[], by: unknown): unknown {
  if (key === undefined) return by;
  const copy = Array.isArray(value) ? [...value] : { ...(value as object) };
  (copy as Record<string, unknown>)[key] = replaced((value as Record<string, unknown>)[key], rest, by);
  return copy;
}

test('the decoders answer anything, anywhere, with a value or their coded error', () => {
  const { proofs, endorsement } = sets[0]!;
  const anything = fc.oneof(
    fc.jsonValue(),
    fc.string(),
    fc.constantFrom<unknown>(
      Number.NaN,
      -0,
      2 ** 60,
      1e300,
      undefined,
      'A'.repeat(200_000),
      [[[[]]]],
      '__proto__',
      ' ',
    ),
  );
  fc.assert(
    fc.property(fc.constantFrom(...places(proofs)), anything, (path, value) => {
      try {
        decodeProofSet(replaced(proofs, path, value));
      } catch (error) {
        assert.ok(isCoded(error, 'proof-invalid'), String(error));
      }
    }),
    { numRuns: 400 },
  );
  fc.assert(
    fc.property(fc.constantFrom(...places(endorsement)), anything, (path, value) => {
      try {
        decodeEndorsement(replaced(endorsement, path, value));
      } catch (error) {
        assert.ok(isCoded(error, 'endorsement-invalid'), String(error));
      }
    }),
    { numRuns: 200 },
  );
});

test('the decoders refuse a second spelling of the same bytes, unknown members, and lists that are too long', () => {
  const { proofs, endorsement } = sets[0]!;
  const refused = (path: string, value: unknown) =>
    assert.throws(
      () => decodeProofSet(replaced(proofs, path.split('.'), value)),
      (error) => isCoded(error, 'proof-invalid'),
      path,
    );
  const { labels, path } = proofs.space!;
  refused('space.labels', `${labels.slice(0, 8)}\n${labels.slice(8)}`);
  refused('space.path', path.replaceAll('=', ''));
  refused('space.labels', '');
  refused('space.root', proofs.space!.root.toUpperCase().replace(/^./, 'A'));
  refused('work.nonce', '0'.repeat(17));
  refused('time.output', btoa('x'.repeat(255)));
  refused('time.quotient', ` ${proofs.time!.quotient}`);
  refused('time.counter', 2 ** 16);
  refused('space.receipts', Array(101).fill(proofs.space!.receipts[0]));
  refused('challenge.operation.ref', 'x'.repeat(513));
  refused('challenge.anchor.more', 1);
  assert.throws(() => decodeProofSet({ ...proofs, formatVersion: 3 }), /formatVersion: this version reads format 4/);
  refused('space', { ...proofs.space, more: 1 });
  assert.throws(
    () => decodeEndorsement({ ...endorsement, votes: [] }),
    (error) => isCoded(error, 'endorsement-invalid'),
  );
});
