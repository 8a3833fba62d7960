import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { base64, fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { patched, readVectors } from '../testing/vectors.ts';
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
const invalid = readVectors<{
  changes: { why: string; change: Json }[];
  documents: { why: string; document?: Json; payload?: string }[];
}>('state-change', 'invalid');

const base = JSON.parse(changes[0]!.document) as Json;
/** The first document with another payload, which its signatures are not about. */
const carrying = (payload: string) =>
  utf8(canonicalJson(patched(base, { envelope: { payload: base64(utf8(payload)) } })));
const refused = (bytes: Uint8Array, why: string) =>
  assert.throws(
    () => decodeSignedStateChange(bytes),
    (error) => isCoded(error, 'record-invalid'),
    why,
  );

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
    const change = changes[0]!.change as unknown as Json;
    decodeSignedStateChange(carrying(canonicalJson(change)));
    for (const { why, change: patch } of invalid.changes) refused(carrying(canonicalJson(patched(change, patch))), why);
    for (const { why, document = {}, payload } of invalid.documents) {
      refused(payload === undefined ? utf8(canonicalJson(patched(base, document))) : carrying(payload), why);
    }
    refused(utf8(`${changes[0]!.document}${' '.repeat(STATE_CHANGE_LIMITS.recordBytesMax)}`), 'too long');
  });

  test('are told from the other kind of record by how they begin', () => {
    for (const { bundle } of readVectors<{ bundle: Parameters<typeof encodeBundle>[0] }[]>('bundle', 'valid')) {
      assert.equal(looksLikeStateChange(encodeBundle(bundle)), false);
    }
    assert.equal(looksLikeStateChange(new Uint8Array()), false);
  });
});
