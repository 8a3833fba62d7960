import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { assertRefuses, type Invalid, readVectors } from '../testing/vectors.ts';
import { encodeBundle } from './bundle.ts';
import type { TrustAnchor } from './signature.ts';
import { encodeSigned } from './signed.ts';
import {
  decodeSignedStateChange,
  encodeStateChange,
  looksLikeStateChange,
  STATE_CHANGE_LIMITS,
  type StateChange,
} from './state-change.ts';

const { atMs, anchor, changes } = readVectors<{
  atMs: number;
  anchor: TrustAnchor;
  changes: { why: string; change: StateChange; document: string }[];
}>('state-change', 'valid');
suite('state changes', () => {
  test('are read and written as in the vectors, and were signed by a publisher', async () => {
    for (const { why, change, document } of changes) {
      assert.ok(looksLikeStateChange(utf8(document)), why);
      const read = decodeSignedStateChange(utf8(document));
      assert.deepEqual(read.change, change, why);
      assert.equal(fromUtf8(encodeSigned(read)), document, why);
      assert.equal(fromUtf8(encodeStateChange(change)), fromUtf8(fromBase64(read.envelope.payload)), why);
      const { signer } = await verifyEnvelope(read.envelope, read.chain, anchor, { role: 'publisher', atMs });
      assert.equal(signer, read.envelope.signatures[0]!.keyid, why);
    }
  });

  test('are refused as in the vectors', () => {
    const { change: says, document } = changes[0]!;
    const invalid = readVectors<Invalid>('state-change', 'invalid');
    assertRefuses(decodeSignedStateChange, { document, says, bytesMax: STATE_CHANGE_LIMITS.recordBytesMax }, invalid);
  });

  test('are told from the other kind of record by how they begin', () => {
    for (const { bundle } of readVectors<{ bundle: Parameters<typeof encodeBundle>[0] }[]>('bundle', 'valid')) {
      assert.equal(looksLikeStateChange(encodeBundle(bundle)), false);
    }
    assert.equal(looksLikeStateChange(new Uint8Array()), false);
  });
});
