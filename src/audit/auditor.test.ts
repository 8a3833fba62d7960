import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { base64, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { signatureCheck } from '../subsystems/trustchain/index.ts';
import { makeSigner, type Signer } from '../testing/signer.ts';
import { encodeOrder, ORDER_TYPE } from '../wire/entry.ts';
import { EPOCH_TYPE, type EpochProposal, epochDigest } from '../wire/epoch.ts';
import { decodeGenesis, GENESIS_TYPE } from '../wire/genesis.ts';
import { firstHead, HEAD_TYPE, nextHead } from '../wire/order.ts';
import { type Operation, type ProofSet, proofsDigest, VOTE_TYPE } from '../wire/proof.ts';
import { Auditor, type AuditReport } from './auditor.ts';

const [VALID] = JSON.parse(readFileSync(new URL('../../test/vectors/genesis/valid.json', import.meta.url), 'utf8')) as {
  document: Readonly<Record<string, unknown>>;
}[];
const { proofs: SET } = (
  JSON.parse(readFileSync(new URL('../../test/vectors/proof/valid.json', import.meta.url), 'utf8')) as {
    readonly kind: string;
    readonly proofs: ProofSet;
  }[]
).find(({ kind }) => kind === 'set')!;
const five = Array.from({ length: 5 }, makeSigner).sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
/** The committee of the genesis; the fifth comes in the next epoch. */
const four = five.slice(0, 4);
const [w, x, y, z, late] = five as [Signer, Signer, Signer, Signer, Signer];
const publisher = makeSigner();

const seat = ({ keyId, keys }: Signer) => ({ key: keyId, ...keys, account: publisher.keyId });
const { approvals: _, ...terms } = VALID!.document;
const unsigned = { ...terms, committee: { epoch: 0, validators: four.map(seat) } };
const genesis = { ...unsigned, approvals: four.map((one) => one.attest(GENESIS_TYPE, unsigned)) };
const { networkId } = decodeGenesis(genesis);

const content = (text: string) => digestOf(utf8(text));
const operation = (sequence: number, ref: string, subject: string, identity = publisher.keyId): Operation => ({
  kind: 'publish',
  subject: content(subject),
  ref,
  identity,
  sequence,
});

/** A certificate of whatever, by whomever. */
function certificate(
  what: Operation,
  by: readonly Signer[],
  { committee = networkId, proofs = content('proofs'), fast = false } = {},
) {
  const said = { formatVersion: 3, networkId, committee, operation: what, proofs };
  const votes = by.map((one, at) => {
    const { falcon, path, index, size, ...word } = one.attest(VOTE_TYPE, { ...said, atMs: 1_000 + at });
    return { atMs: 1_000 + at, attestation: fast ? word : { ...word, falcon, path, index, size } };
  });
  return { ...said, votes };
}

function nextEpoch(by: readonly Signer[], validators: readonly Signer[]) {
  const proposal: EpochProposal = {
    ...{ formatVersion: 1, networkId, epoch: 1, validators: validators.map(seat), previous: networkId },
  };
  return { ...proposal, approvals: by.map((one) => one.attest(EPOCH_TYPE, proposal)) };
}

function head(index: number, at: string, by: readonly Signer[], { base = 0, stateRoot = '0'.repeat(64) } = {}) {
  const place = { networkId, committee: networkId, view: 0, index, head: at };
  const statement = { formatVersion: 3, ...place, base, stateRoot };
  return { statement, attestations: by.map((one) => one.attest(HEAD_TYPE, statement)) };
}

function audit(documents: readonly unknown[], network?: Digest): AuditReport {
  const auditor = new Auditor(signatureCheck, network === undefined ? {} : { network });
  for (const document of documents) auditor.add(JSON.parse(JSON.stringify(document)));
  return auditor.report();
}

const kinds = (findings: AuditReport['conflicts']) => findings.map(({ kind }) => kind);
const one = operation(1, 'ada/tool@1.0.0', 'one');

describe('the auditor, about votes and certificates', () => {
  it('counts what it checked where everything is in order, and the same document once', () => {
    const good = certificate(one, [w, x, y]);
    const other = certificate(operation(2, 'ada/tool@1.1.0', 'two'), [x, y, z], { fast: true });
    const { checked, conflicts, misdeeds, worthless, networks } = audit([genesis, [good, other], { deep: [{ good }] }]);
    assert.deepEqual(networks, [networkId]);
    assert.deepEqual([conflicts, misdeeds, worthless], [[], [], 0]);
    const none = { orders: 0, heads: 0, entries: 0 };
    assert.deepEqual(checked, { documents: 3, certificates: 2, votes: 6, committees: 1, ...none });
  });

  it('does not care in which order it hears what, and knows nothing without the genesis', () => {
    assert.equal(audit([certificate(one, [w, x, y]), genesis]).checked.certificates, 1);
    assert.equal(audit([certificate(one, [w, x, y])]).checked.certificates, 0);
    assert.equal(audit([genesis, certificate(one, [w, x, y])], content('another network')).checked.certificates, 0);
  });

  it('finds two operations with one number, with the votes that show it, also when nobody put the certificates together', () => {
    const two = operation(1, 'ada/other@1.0.0', 'two');
    const votes = certificate(two, [x, y, z]).votes.map((vote) => ({ ...certificate(two, []), votes: [vote] }));
    const report = audit([genesis, certificate(one, [w, x, y]), ...votes]);
    assert.deepEqual(kinds(report.conflicts), ['two-operations']);
    assert.deepEqual(kinds(report.misdeeds), ['double-vote', 'double-vote']);
    assert.equal(report.conflicts[0]!.evidence.length, 2);
    // The evidence is enough to come to the same finding.
    assert.deepEqual(
      kinds(audit([genesis, ...report.conflicts[0]!.evidence].flatMap((found) => unfold(found))).conflicts),
      ['two-operations'],
    );
  });

  it('finds one version with two contents, whatever build metadata it is written with, and one name with two owners', () => {
    const again = operation(2, 'ada/tool@1.0.0+rebuilt', 'two');
    assert.deepEqual(kinds(audit([genesis, certificate(one, [w, x, y]), certificate(again, [x, y, z])]).conflicts), [
      'two-contents',
    ]);
    const stolen = operation(1, 'ada/tool@2.0.0', 'two', late.keyId);
    assert.deepEqual(kinds(audit([genesis, certificate(one, [w, x, y]), certificate(stolen, [x, y, z])]).conflicts), [
      'two-owners',
    ]);
  });

  it('takes no certificate from too few, from the same one twice, from outside, with another signature or for other proofs', () => {
    const forged = certificate(one, [w, x, y]);
    const moved = { ...forged, operation: operation(7, 'ada/tool@1.0.0', 'one') };
    for (const votes of [
      certificate(one, [w, x]),
      { ...certificate(one, [w, x]), votes: [...certificate(one, [w, x]).votes, certificate(one, [w]).votes[0]] },
      certificate(one, [w, x, late]),
      moved,
    ])
      assert.equal(audit([genesis, votes]).checked.certificates, 0);
    const split = [certificate(one, [w, x]), certificate(one, [y], { proofs: content('others') })];
    assert.equal(audit([genesis, ...split]).checked.certificates, 0);
    assert.equal(audit([genesis, moved]).worthless, 3);
  });

  it('names the validator that voted twice though nothing came of it', () => {
    const report = audit([genesis, certificate(one, [w, x]), certificate(operation(1, 'ada/tool@1.0.0', 'two'), [x])]);
    assert.deepEqual(report.conflicts, []);
    assert.deepEqual(kinds(report.misdeeds), ['double-vote', 'double-vote']);
    for (const { says } of report.misdeeds) assert.match(says, new RegExp(x.keyId));
  });

  it('finds what a vote on its way is for in the rest of the line', () => {
    const proofs = { ...SET, challenge: { ...SET.challenge, networkId } };
    const { operation: what } = proofs.challenge;
    const answers = certificate(what, [w, x, y], { proofs: proofsDigest(proofs), fast: true }).votes;
    const lines = answers.map((answer) => ({ method: 'committee/any', request: { proofs }, answer }));
    const { checked, worthless } = audit([genesis, ...lines]);
    assert.deepEqual([checked.certificates, checked.votes, worthless], [1, 3, 0]);
    assert.equal(audit([genesis, lines[0], lines[1], answers[2]]).checked.certificates, 0);
  });

  it('names the publisher who signed two operations with one number', () => {
    const signed = (what: Operation) => ({
      keys: publisher.keys,
      envelope: publisher.seal(ORDER_TYPE, encodeOrder({ formatVersion: 1, networkId, operation: what })),
    });
    const two = operation(1, 'ada/tool@1.0.0', 'two');
    const report = audit([genesis, signed(one), signed(two), signed(operation(2, 'ada/tool@2.0.0', 'three'))]);
    assert.deepEqual(kinds(report.misdeeds), ['double-order']);
    assert.equal(report.checked.orders, 3);
    const forged = {
      ...signed(two),
      envelope: { ...signed(two).envelope, signatures: signed(one).envelope.signatures },
    };
    assert.deepEqual(audit([genesis, signed(one), forged]).misdeeds, []);
  });
});

describe('the auditor, about epochs', () => {
  it('counts votes of a later committee by the documents that lead to it', () => {
    const document = nextEpoch([w, x, y], [x, y, z, late]);
    const later = certificate(operation(3, 'ada/tool@3.0.0', 'three'), [y, z, late], {
      committee: epochDigest(document),
    });
    const { checked, conflicts } = audit([later, document, genesis]);
    assert.deepEqual([checked.committees, checked.certificates, conflicts], [2, 1, []]);
    assert.equal(audit([later, genesis]).checked.certificates, 0);
    assert.equal(audit([later, nextEpoch([w, x], [x, y, z, late]), genesis]).checked.committees, 1);
  });

  it('finds what contradicts a certificate of an earlier epoch', () => {
    const document = nextEpoch([w, x, y], [x, y, z, late]);
    const again = certificate(operation(1, 'ada/tool@1.0.0', 'two'), [y, z, late], {
      committee: epochDigest(document),
    });
    const report = audit([genesis, document, certificate(one, [w, x, y]), again]);
    assert.deepEqual(kinds(report.conflicts), ['two-operations', 'two-contents']);
    assert.deepEqual(report.misdeeds, []);
  });

  it('finds two committees of one epoch', () => {
    const documents = [nextEpoch([w, x, y], [x, y, z, late]), nextEpoch([x, y, z], [w, x, y, z])];
    assert.deepEqual(kinds(audit([genesis, ...documents]).conflicts), ['two-committees']);
    const [one, other] = documents.map(epochDigest) as [Digest, Digest];
    assert.notEqual(one, other);
    // Three sit in both: what they say in the one is worth nothing in the other.
    const votes = certificate(operation(3, 'ada/tool@3.0.0', 'three'), [x, y, z], { committee: one });
    assert.equal(audit([genesis, ...documents, votes]).checked.certificates, 1);
    assert.equal(audit([genesis, ...documents, { ...votes, committee: other }]).checked.certificates, 0);
    // Who votes in both contradicts himself.
    const again = certificate(operation(3, 'ada/tool@3.0.1', 'four'), [x], { committee: other });
    assert.deepEqual(kinds(audit([genesis, ...documents, votes, again]).misdeeds), ['double-vote']);
  });
});

describe('the auditor, about the order', () => {
  const [first, second, forged] = ['first', 'second', 'forged'].map((text) => utf8(text)) as [
    Uint8Array,
    Uint8Array,
    Uint8Array,
  ];
  const start = firstHead(networkId);
  const one_ = nextHead(start, first);
  const two_ = nextHead(one_, second);

  it('follows the chain of entries through every certified head', () => {
    const parts = [
      { certificate: head(1, one_, [w, x, y]), entries: [base64(first)] },
      { certificate: head(2, two_, [x, y, z]), entries: [base64(second)] },
      { certificate: head(2, two_, [x, y, z]), entries: [base64(first), base64(second)] },
    ];
    const { checked, conflicts, unlinked } = audit([genesis, ...parts]);
    assert.deepEqual([checked.heads, checked.entries, unlinked, conflicts], [2, 2, 0, []]);
    assert.equal(audit([genesis, head(2, two_, [x, y, z])]).unlinked, 1);
  });

  it('finds two heads of one index, and a head that is on another chain than one below it', () => {
    const apart = [head(1, one_, [w, x, y]), head(1, nextHead(start, forged), [x, y, z])];
    const report = audit([genesis, ...apart]);
    assert.deepEqual(kinds(report.conflicts), ['two-orders']);
    assert.deepEqual(kinds(report.misdeeds), ['double-head', 'double-head']);
    const other = nextHead(nextHead(start, forged), second);
    const parts = [
      { certificate: head(1, one_, [w, x, y]), entries: [base64(first)] },
      { certificate: head(2, other, [x, y, z]), entries: [base64(forged), base64(second)] },
    ];
    assert.deepEqual(kinds(audit([genesis, ...parts]).conflicts), ['two-orders']);
  });

  it('finds two states after one entry, and takes no certificate from too few', () => {
    const states = ['a', 'b'].map((digit) => head(2, two_, [w, x, y], { base: 1, stateRoot: digit.repeat(64) }));
    assert.deepEqual(kinds(audit([genesis, ...states]).conflicts), ['two-states']);
    assert.equal(audit([genesis, head(1, one_, [w, x])]).checked.heads, 0);
  });
});

/** Votes as documents of their own. */
function unfold(found: unknown): readonly unknown[] {
  const { votes } = found as { votes?: readonly unknown[] };
  return votes ?? [found];
}
