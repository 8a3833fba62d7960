import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { makeSigner, type Signer, signatureCheck } from '../testing/signer.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import {
  type Committee,
  decodeEpochDocument,
  decodeEpochProposal,
  EPOCH_TYPE,
  type EpochDocument,
  type EpochProposal,
  epochDigest,
  noSuccessor,
  proposalOf,
  quorumObjection,
  succeed,
} from './epoch.ts';

const valid = readVectors<{ first: Committee; document: EpochDocument; digest: string }>('epoch', 'valid');
const invalid = readVectors<{ why: string; patch: Json }[]>('epoch', 'invalid');
const networkId = valid.document.networkId;

const refused = (code: ErrorCode, act: () => unknown, why: string) =>
  assert.throws(act, (error) => isCoded(error, code), why);

/** As everybody does who relies on a document. */
function approved(before: Committee, document: EpochDocument): Committee {
  const next = succeed(before, document, networkId);
  const signed = { type: EPOCH_TYPE, statement: proposalOf(document), check: signatureCheck };
  const objection = quorumObjection(before, document.approvals, signed);
  if (objection !== undefined) throw noSuccessor(objection);
  return next;
}

suite('epoch documents', () => {
  test('are read as in the vectors, and make the next committee of the one that approved', () => {
    const { first, document, digest } = valid;
    assert.deepEqual(decodeEpochDocument(JSON.parse(canonicalJson(document))), document);
    assert.deepEqual(decodeEpochProposal(proposalOf(document)), proposalOf(document));
    const next = approved(first, document);
    assert.deepEqual(next, { epoch: 1, validators: document.validators, digest });
  });

  test('are refused as in the vectors', () => {
    for (const { why, patch } of invalid) {
      const value = patched(valid.document as unknown as Json, patch);
      refused('epoch-invalid', () => decodeEpochDocument(value), why);
    }
  });

  test('need a quorum of the committee before, over exactly what they say', () => {
    const signers = Array.from({ length: 5 }, makeSigner);
    const account = 'ab'.repeat(32);
    const seats = (all: readonly Signer[]) =>
      all.map(({ keyId: key, keys }) => ({ key, ...keys, account })).sort((a, b) => (a.key < b.key ? -1 : 1));
    const [a, b, c, d, e] = signers as [Signer, Signer, Signer, Signer, Signer];
    const before: Committee = { epoch: 3, validators: seats([a, b, c, d]), digest: `sha256:${'11'.repeat(32)}` };
    const proposal: EpochProposal = {
      formatVersion: 1,
      networkId,
      epoch: 4,
      validators: seats([a, b, c, e]),
      previous: before.digest,
    };
    const by = (all: readonly Signer[], what: EpochProposal = proposal): EpochDocument => ({
      ...what,
      approvals: all.map((one) => one.attest(EPOCH_TYPE, what)).sort((x, y) => (x.validator < y.validator ? -1 : 1)),
    });
    const after = approved(before, by([a, b, d]));
    assert.deepEqual(after, { epoch: 4, validators: proposal.validators, digest: epochDigest(proposal) });
    assert.equal(epochDigest(by([a, b, d])), epochDigest(by([b, c, d])));
    const no = (document: EpochDocument, why: string) =>
      refused('epoch-invalid', () => approved(before, document), why);
    no(by([a, b]), 'two of four');
    no(by([a, b, e]), 'one who is only in the next committee');
    no({ ...by([a, b, c]), approvals: [...by([a, b]).approvals, by([a]).approvals[0]!] }, 'one twice');
    no({ ...by([a, b, c]), validators: seats([a, b, c, d, e]) }, 'approved for others');
    no(by([a, b, c], { ...proposal, epoch: 5 }), 'an epoch left out');
    no(by([a, b, c], { ...proposal, previous: networkId }), 'after another committee');
    no(by([a, b, c], { ...proposal, networkId: before.digest }), 'in another network');
  });
});
