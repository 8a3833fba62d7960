import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { base64, fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import { decodeSignedNodeRecord, encodeNodeRecord, NODE_RECORD_LIMITS, type NodeRecord } from './node-record.ts';
import type { TrustAnchor } from './signature.ts';
import { encodeSigned } from './signed.ts';

const { atMs, anchor, records } = readVectors<{
  atMs: number;
  anchor: TrustAnchor;
  records: { why: string; record: NodeRecord; document: string }[];
}>('node-record', 'valid');
const invalid = readVectors<{
  records: { why: string; change: Json }[];
  documents: { why: string; document?: Json; payload?: string }[];
}>('node-record', 'invalid');

const base = JSON.parse(records[0]!.document) as Json;
/** The first document with another payload, which its signatures are not about. */
const carrying = (payload: string) =>
  utf8(canonicalJson(patched(base, { envelope: { payload: base64(utf8(payload)) } })));
const refused = (bytes: Uint8Array, why: string) =>
  assert.throws(
    () => decodeSignedNodeRecord(bytes),
    (error) => isCoded(error, 'record-invalid'),
    why,
  );

suite('node records', () => {
  test('are read and written as in the vectors, and were signed by their nodes', async () => {
    for (const { why, record, document } of records) {
      const read = decodeSignedNodeRecord(utf8(document));
      assert.deepEqual(read.record, record, why);
      assert.equal(fromUtf8(encodeSigned(read)), document, why);
      assert.equal(fromUtf8(encodeNodeRecord(record)), fromUtf8(fromBase64(read.envelope.payload)), why);
      const { signer } = await verifyEnvelope(read.envelope, read.chain, anchor, { role: 'node', atMs });
      assert.equal(signer, record.node, why);
      await assert.rejects(
        verifyEnvelope(read.envelope, read.chain, anchor, { role: 'publisher', atMs }),
        (error) => isCoded(error, 'certificate-invalid'),
        'a node is no publisher',
      );
    }
  });

  test('are refused as in the vectors', () => {
    const record = records[0]!.record as unknown as Json;
    decodeSignedNodeRecord(carrying(canonicalJson(record)));
    for (const { why, change } of invalid.records) refused(carrying(canonicalJson(patched(record, change))), why);
    for (const { why, document = {}, payload } of invalid.documents) {
      refused(payload === undefined ? utf8(canonicalJson(patched(base, document))) : carrying(payload), why);
    }
    refused(utf8(JSON.stringify(base, null, 1)), 'another form of the same document');
    refused(carrying(JSON.stringify(record, null, 1)), 'another form of the same record');
    refused(utf8(`${records[0]!.document}${' '.repeat(NODE_RECORD_LIMITS.recordBytesMax)}`), 'too long');
  });
});
