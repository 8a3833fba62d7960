import assert from 'node:assert/strict';
import { test } from 'node:test';
import { base64, utf8 } from '../../base/bytes.ts';
import { digestOf } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import { openSqlite } from '../../base/sqlite.ts';
import { makeSigner, signatureCheck } from '../../testing/signer.ts';
import { encodeOrder, type KeyText, keyBytes, ORDER_TYPE, type SelfSigned } from '../../wire/entry.ts';
import type { Genesis } from '../../wire/genesis.ts';
import type { Operation } from '../../wire/proof.ts';
import { type Envelope, envelopeHolds } from '../../wire/signature.ts';
import { Committee } from './committee.ts';
import { VoteBook } from './votes.ts';

test('checkOrder() takes the order of the publisher for this operation of this network, each time, and nothing else', async () => {
  await using store = openSqlite(':memory:', []);
  const [ada, bob] = [makeSigner(), makeSigner()];
  const [networkId, elsewhere] = [digestOf('a network'), digestOf('another network')];
  let checks = 0;
  const unused = () => Promise.reject(new Error('not asked here'));
  const trust = {
    ...{ attest: unused, attestFast: unused, attested: unused },
    signedBy: async (envelope: Envelope, keys: KeyText) => {
      checks += 1;
      return envelopeHolds(envelope, keyBytes(keys), signatureCheck);
    },
  };
  const lent = {
    trust,
    store,
    votes: new VoteBook(store),
    ledger: { account: unused as never, ownerOf: unused as never },
  };
  const committee = new Committee(lent, {
    clock: { nowMs: () => 1_000 },
    genesis: {} as Genesis,
    networkId,
    committee: { epoch: 0, validators: [], digest: networkId },
  });
  const operation: Operation = {
    ...{ kind: 'publish', identity: ada.keyId, sequence: 7 },
    ...{ subject: digestOf('content'), ref: 'ada/tool@1.0.0' },
  };
  const payload = (of: Operation = operation, network = networkId) =>
    encodeOrder({ formatVersion: 1, networkId: network, operation: of });
  const order = (by: typeof ada, bytes: Uint8Array, type = ORDER_TYPE): SelfSigned => ({
    keys: by.keys,
    envelope: by.seal(type, bytes),
  });
  const good = order(ada, payload());
  const altered = base64(payload({ ...operation, sequence: 8 }));
  const refused: readonly (readonly [string, SelfSigned | null, RegExp])[] = [
    ['none', null, /there is none/],
    ['of another network', order(ada, payload(operation, elsewhere)), /another network/],
    ['for another number', order(ada, payload({ ...operation, sequence: 8 })), /another operation/],
    ['of another type', order(ada, payload(), 'application/vnd.hypermesh.instruction.v1+json'), /something else/],
    ['by somebody else', order(bob, payload()), /identity is not that of the keys/],
    ['by somebody else who says that he is not', { ...order(bob, payload()), keys: ada.keys }, /identity is not/],
    ['with the keys of somebody else', { ...good, keys: bob.keys }, /do not hold/],
    ['in another spelling', order(ada, utf8(` ${new TextDecoder().decode(payload())}`)), /canonical/],
    ['with another payload', { ...good, envelope: { ...good.envelope, payload: altered } }, /another operation/],
    [
      'with the signatures of another one',
      { ...good, envelope: { ...good.envelope, signatures: order(ada, utf8('{}')).envelope.signatures } },
      /do not hold/,
    ],
  ];
  for (const round of ['first', 'after a good one']) {
    for (const [what, bad, why] of refused) {
      await assert.rejects(
        committee.checkOrder(operation, bad),
        (error) => isCoded(error, 'entry-invalid') && why.test(error.message),
        `${what}, ${round}`,
      );
    }
    checks = 0;
    await committee.checkOrder(operation, good);
    await committee.checkOrder(operation, structuredClone(good));
    assert.equal(checks, round === 'first' ? 1 : 0, 'a signature that held is not checked again');
  }
});
