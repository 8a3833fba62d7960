import assert from 'node:assert/strict';
import { test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { seatOf } from '../../testing/order.ts';
import { makeQuickSigner, quickCheck, type Signer } from '../../testing/signer.ts';
import { attestationHolds, publicKeysOf } from '../../wire/attestation.ts';
import { decodeEntry, SPACE_LOST_TYPE } from '../../wire/entry.ts';
import { decodeSpaceAudit, encodeSpaceAudit, lostAsk } from '../../wire/space-audit.ts';
import { lossEntry } from './space-loss.ts';

const networkId = digestOf(new Uint8Array(1));
const signers = Array.from({ length: 4 }, makeQuickSigner) as [Signer, Signer, Signer, Signer];
const validators = signers.map((signer) => seatOf(signer, makeQuickSigner()));
const [self] = signers;
const lost = { account: 'ab'.repeat(32), root: 'cd'.repeat(32) };
const committee = { epoch: 3, validators, digest: digestOf(new Uint8Array(3)) };
const statement = { networkId, committee: committee.digest, ...lost };

type Answer = (asked: { readonly account: string; readonly root: string }, by: Signer) => unknown;
const seen: Answer = (asked, by) => ({ attestation: by.attest(SPACE_LOST_TYPE, { ...statement, ...asked }) });
const unseen: Answer = () => ({ attestation: null });
const away: Answer = () => {
  throw new HyperMeshError('peer-unreachable', 'nobody there');
};

/** Of the first validator, with what the three others answer. */
function entry(answers: readonly Answer[], seats = signers.map(({ keyId }) => ({ node: keyId, validator: keyId }))) {
  return lossEntry(
    {
      trust: {
        attest: async (type, said) => self.attest(type, said),
        attested: async (word, type, said, keys) => attestationHolds(word, type, said, publicKeysOf(keys), quickCheck),
      },
      seats: () => seats,
      ask: async (node, method, body) => {
        assert.equal(method, 'space/lost');
        const at = signers.findIndex(({ keyId }) => keyId === node);
        return encodeSpaceAudit(answers[at - 1]!(decodeSpaceAudit(lostAsk, body), signers[at]!));
      },
    },
    { networkId, committee, self: self.keyId },
    lost.account,
    lost.root,
  );
}

test('a quorum that saw a commitment fail makes one entry of it, which says what each of them signed', async () => {
  for (const answers of [
    [seen, seen, seen],
    [seen, away, seen],
    [unseen, seen, seen],
  ]) {
    const made = decodeEntry((await entry(answers))!);
    assert.ok(made.kind === 'space-lost');
    assert.deepEqual(made.statement, statement);
    assert.equal(made.attestations.length, answers.filter((one) => one === seen).length + 1);
    for (const word of made.attestations) {
      const keys = validators.find(({ key }) => key === word.validator)!;
      assert.ok(attestationHolds(word, SPACE_LOST_TYPE, statement, publicKeysOf(keys), quickCheck));
    }
  }
});

test('fewer do not, and nobody can speak for another, or of something else', async () => {
  const forAnother: Answer = (asked, by) => seen(asked, signers[(signers.indexOf(by) + 1) % 4]!);
  const ofSomebodyElse: Answer = (asked, by) => seen({ ...asked, account: '00'.repeat(32) }, by);
  const senseless: Answer = () => ({ attestation: 7 });
  for (const answers of [
    [unseen, unseen, unseen],
    [seen, away, unseen],
    [seen, forAnother, forAnother],
    [seen, ofSomebodyElse, ofSomebodyElse],
    [seen, senseless, unseen],
  ]) {
    assert.equal(await entry(answers), undefined);
  }
  assert.equal(await entry([seen, seen, seen], []), undefined);
});
