import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCoded } from '../../base/errors.ts';
import { makeSigner, signatureCheck } from '../../testing/signer.ts';
import { readVectors } from '../../testing/vectors.ts';
import { attestationHolds, publicKeysOf } from '../../wire/attestation.ts';
import { EPOCH_TYPE, type EpochDocument, epochDigest } from '../../wire/epoch.ts';
import { decodeGenesis, GENESIS_TYPE, type Genesis } from '../../wire/genesis.ts';
import { LawBook } from './epoch-law.ts';

const vectors = readVectors<{ readonly kind: string; readonly genesis: Genesis }[]>('proof', 'valid');
const { genesis: known } = vectors.find(({ kind }) => kind === 'set')!;

test('a law is found once, for exactly the documents from which it follows', async () => {
  const [first, second] = [makeSigner(), makeSigner()];
  const seat = ({ keyId: key, keys }: typeof first) => ({ key, ...keys, account: 'ab'.repeat(32) });
  const unsigned = { ...known, committee: { epoch: 0, validators: [seat(first)] }, approvals: undefined };
  const document: Genesis = { ...unsigned, approvals: [first.attest(GENESIS_TYPE, unsigned)] };
  const { networkId } = decodeGenesis(document);
  const proposal = { formatVersion: 1, networkId, epoch: 1, validators: [seat(second)], previous: networkId } as const;
  const next: EpochDocument = { ...proposal, approvals: [first.attest(EPOCH_TYPE, proposal)] };

  const after = epochDigest(next);

  let checks = 0;
  const laws = new LawBook({
    async attested(word, type, statement, keys) {
      checks += 1;
      return attestationHolds(word, type, statement, publicKeysOf(keys), signatureCheck);
    },
  });
  for (let time = 0; time < 3; time++) {
    const law = await laws.of(document, [next], after);
    assert.deepEqual([law.networkId, law.committee.validators], [networkId, [seat(second)]]);
  }
  assert.equal(checks, 1);
  assert.deepEqual((await laws.of(document, [next], networkId)).committee.validators, [seat(first)]);

  const altered = { ...next, validators: [seat(first)] };
  const refused = () => assert.rejects(laws.of(document, [altered], after), (error) => isCoded(error, 'epoch-invalid'));
  await refused();
  await refused();
  assert.equal(checks, 3, 'what does not hold is not remembered');
  assert.deepEqual((await laws.of(document, [next], after)).committee.validators, [seat(second)]);

  const by = (committee: unknown) => ({ challenge: { committee } });
  assert.equal((await laws.ofProofs(by(after), document, [next])).committee.epoch, 1);
  assert.equal((await laws.ofProofs(by(epochDigest({ ...next, epoch: 7 })), document, [next])).committee.epoch, 0);
  assert.equal((await laws.ofProofs(null, document, [next])).committee.epoch, 0);
});
