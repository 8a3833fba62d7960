import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { fromHex, hex, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import {
  emptyRoot,
  leafHash,
  nodeHash,
  rootDigest,
  treeHeadPayload,
  verifyConsistency,
  verifyInclusion,
} from './log.ts';

/** The definitions of RFC 6962 section 2.1, literally: slow, and not what the product uses. */
function treeHash(leaves: readonly Uint8Array[]): Uint8Array {
  if (leaves.length === 0) return emptyRoot();
  if (leaves.length === 1) return leafHash(leaves[0]!);
  const k = split(leaves.length);
  return nodeHash(treeHash(leaves.slice(0, k)), treeHash(leaves.slice(k)));
}

function auditPath(index: number, leaves: readonly Uint8Array[]): Uint8Array[] {
  if (leaves.length === 1) return [];
  const k = split(leaves.length);
  return index < k
    ? [...auditPath(index, leaves.slice(0, k)), treeHash(leaves.slice(k))]
    : [...auditPath(index - k, leaves.slice(k)), treeHash(leaves.slice(0, k))];
}

function split(count: number): number {
  return 2 ** Math.floor(Math.log2(count - 1));
}

/** The eight leaves of the reference tests of certificate transparency. */
const LEAVES = ['', '00', '10', '2021', '3031', '40414243', '5051525354555657', '606162636465666768696a6b6c6d6e6f'].map(
  fromHex,
);

test('the tree of the well-known eight leaves has the well-known root', () => {
  assert.equal(hex(treeHash(LEAVES)), '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328');
  assert.equal(hex(emptyRoot()), 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
});

test('verifyInclusion() accepts the definition’s paths and nothing else', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.nat(), fc.nat(), (size, pick, change) => {
      const leaves = Array.from({ length: size }, (_, at) => utf8(`leaf ${at}`));
      const index = pick % size;
      const head = { size, root: rootDigest(treeHash(leaves)) };
      const path = auditPath(index, leaves).map(hex);
      verifyInclusion(leaves[index]!, { index, path, head });
      const refused = (bad: () => void) => assert.throws(bad, (error) => isCoded(error, 'log-invalid'));
      refused(() => verifyInclusion(utf8('another leaf'), { index, path, head }));
      refused(() => verifyInclusion(leaves[index]!, { index, path: [...path, '0'.repeat(64)], head }));
      refused(() => verifyInclusion(leaves[index]!, { index: index + size, path, head }));
      if (size > 1) {
        refused(() => verifyInclusion(leaves[index]!, { index: (index + 1) % size, path, head }));
        refused(() => verifyInclusion(leaves[index]!, { index, path: path.slice(1), head }));
        const altered = path.with(change % path.length, 'f'.repeat(64));
        refused(() => verifyInclusion(leaves[index]!, { index, path: altered, head }));
      }
    }),
  );
});

test('verifyConsistency() refuses heads that contradict each other', () => {
  const head = (size: number) => ({ size, root: rootDigest(treeHash(LEAVES.slice(0, size))) });
  const refused = (bad: () => void) => assert.throws(bad, (error) => isCoded(error, 'log-invalid'));
  verifyConsistency(head(0), head(8), []);
  verifyConsistency(head(8), head(8), []);
  refused(() => verifyConsistency(head(8), head(7), []));
  refused(() => verifyConsistency(head(8), { ...head(7), size: 8 }, []));
  refused(() => verifyConsistency({ ...head(1), size: 0 }, head(8), []));
  refused(() => verifyConsistency(head(3), head(8), []));
  refused(() => verifyConsistency(head(3), head(8), ['not a hash']));
});

test('treeHeadPayload() is the canonical JSON of the four fields', () => {
  const head = { timestampMs: 5, origin: 'o', size: 0, root: rootDigest(emptyRoot()) } as const;
  const text = `{"origin":"o","root":"${head.root}","size":0,"timestampMs":5}`;
  assert.deepEqual(treeHeadPayload(head), utf8(text));
});

type Vector = { readonly name: string } & (
  | {
      readonly kind: 'inclusion';
      readonly leaf: string;
      readonly index: number;
      readonly size: number;
      readonly root: string;
      readonly path: readonly string[];
    }
  | {
      readonly kind: 'consistency';
      readonly from: { readonly size: number; readonly root: string };
      readonly to: { readonly size: number; readonly root: string };
      readonly path: readonly string[];
    }
);

function check(vector: Vector): void {
  if (vector.kind === 'inclusion') {
    const { index, path, size, root } = vector;
    verifyInclusion(fromHex(vector.leaf), { index, path, head: { size, root: `sha256:${root}` } });
  } else {
    const { from, to, path } = vector;
    verifyConsistency({ ...from, root: `sha256:${from.root}` }, { ...to, root: `sha256:${to.root}` }, path);
  }
}

function vectors(kind: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/log/${kind}.json`, import.meta.url), 'utf8'));
}

test('the vectors hold', () => {
  for (const vector of vectors('valid')) check(vector);
  for (const vector of vectors('invalid'))
    assert.throws(
      () => check(vector),
      (error) => isCoded(error, 'log-invalid'),
      vector.name,
    );
});
