import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { assertRefuses, type Invalid, readVectors } from '../testing/vectors.ts';
import { decodeSignedNodeRecord, encodeNodeRecord, NODE_RECORD_LIMITS, type NodeRecord } from './node-record.ts';
import type { TrustAnchor } from './signature.ts';
import { encodeSigned } from './signed.ts';

const { atMs, anchor, records } = readVectors<{
  atMs: number;
  anchor: TrustAnchor;
  records: { why: string; record: NodeRecord; document: string }[];
}>('node-record', 'valid');
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
    const { record: says, document } = records[0]!;
    const invalid = readVectors<Invalid & { records: Invalid['changes'] }>('node-record', 'invalid');
    assertRefuses(
      decodeSignedNodeRecord,
      { document, says, bytesMax: NODE_RECORD_LIMITS.recordBytesMax },
      { ...invalid, changes: invalid.records },
    );
  });
});
