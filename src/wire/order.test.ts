import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { signatureCheck } from '../testing/signer.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import { attestationHolds, publicKeysOf } from './attestation.ts';
import type { KeyText } from './entry.ts';
import {
  decodeCertifiedPart,
  decodeFacts,
  decodeHeadCertificate,
  decodeSnapshot,
  decodeVoteExchange,
  firstHead,
  HEAD_TYPE,
  type HeadCertificate,
  nextHead,
} from './order.ts';

const valid = readVectors<{
  chain: { networkId: Digest; first: string; entries: { text: string; head: string }[] };
  validators: KeyText[];
  certificate: HeadCertificate;
  votes: Json;
  part: Json;
  snapshot: Json;
  facts: Json;
}>('order', 'valid');
const invalid = readVectors<{ why: string; of: keyof typeof DECODERS; patch: Json }[]>('order', 'invalid');
const DECODERS = {
  ...{ certificate: decodeHeadCertificate, votes: decodeVoteExchange, part: decodeCertifiedPart },
  ...{ snapshot: decodeSnapshot, facts: decodeFacts },
};

suite('the certified order', () => {
  test('chains entries as in the vectors', () => {
    const { networkId, first, entries } = valid.chain;
    assert.equal(firstHead(networkId), first);
    let head = first;
    for (const entry of entries) {
      head = nextHead(head, utf8(entry.text));
      assert.equal(head, entry.head);
    }
    assert.equal(valid.certificate.statement.head, head);
  });

  test('reads certificates, votes and parts as in the vectors', () => {
    for (const [kind, decode] of Object.entries(DECODERS)) {
      const value = valid[kind as keyof typeof DECODERS];
      assert.equal(canonicalJson(decode(value)), canonicalJson(value), kind);
    }
  });

  test('holds signatures of one statement by its validators', () => {
    const { statement, attestations } = valid.certificate;
    for (const [at, word] of attestations.entries()) {
      const keys = publicKeysOf(valid.validators[at]!);
      assert.ok(attestationHolds(word, HEAD_TYPE, statement, keys, signatureCheck));
      assert.ok(!attestationHolds(word, HEAD_TYPE, { ...statement, index: 4 }, keys, signatureCheck));
    }
  });

  for (const { why, of, patch } of invalid) {
    test(`refuses ${of} with ${why}`, () => {
      const value = patched(valid[of] as unknown as Json, patch);
      assert.throws(
        () => DECODERS[of](value),
        (error) => isCoded(error, 'order-invalid'),
      );
    });
  }
});
