import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { base64, fromBase64, utf8 } from '../src/base/bytes.ts';
import type { Json } from '../src/base/json.ts';
import { openConsensus } from '../src/subsystems/nkrypt/index.ts';
import { openTrust, signatureCheck } from '../src/subsystems/trustchain/index.ts';
import type { Attestation } from '../src/wire/attestation.ts';
import { CERTIFICATION_TYPE } from '../src/wire/certification.ts';
import type { Genesis } from '../src/wire/genesis.ts';
import type { OperationKind, Requirements } from '../src/wire/proof.ts';

/**
 * Makes test/vectors/genesis/, test/vectors/attestation/ and test/vectors/certification/ anew. Keys and signatures differ on every run, so the vectors
 * are stored; run this only when a format changes.
 */
const folder = await mkdtemp(join(tmpdir(), 'hypermesh-vectors-'));
const clock = { nowMs: () => Date.UTC(2026, 10, 1) };
await using ada = await openTrust({ directory: join(folder, 'ada'), clock, subject: 'ada' });
await using bob = await openTrust({ directory: join(folder, 'bob'), clock, subject: 'bob' });
const row = (kind: OperationKind): Requirements => ({
  kind,
  space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 8 },
  stake: kind === 'publish' ? { amountMin: 100 } : null,
  work: kind === 'publish' ? { hexDigits: 4 } : null,
  time: { squarings: 4_096, windowMs: 60_000 },
});
const requirements = {
  publish: row('publish'),
  install: row('install'),
  execute: row('execute'),
  default: row('default'),
};
await using nkrypt = await openConsensus(
  { trust: ada, check: signatureCheck },
  {
    directory: join(folder, 'consensus'),
    clock,
    requirements,
    space: { bytes: 65_536, iterations: 4 },
    stakeInitial: 1_000,
  },
);
const { networkId, document } = await nkrypt.genesis();
const genesis = document as unknown as Genesis;
const flipped = (text: string) => {
  const bytes = fromBase64(text);
  bytes[bytes.length >> 1]! ^= 1;
  return base64(bytes);
};

async function write(name: string, lists: Readonly<Record<string, unknown>>): Promise<void> {
  const target = join(import.meta.dirname, '..', 'test', 'vectors', name);
  await mkdir(target, { recursive: true });
  for (const [file, list] of Object.entries(lists))
    await writeFile(join(target, `${file}.json`), `${JSON.stringify(list, null, 1)}\n`);
}

const { committee, space, stake } = genesis;
const [validator] = committee.validators as [Genesis['committee']['validators'][0]];
const [approval] = genesis.approvals as [Attestation];
const strangers = await bob.validatorKeys();
const pair = [validator, strangers].sort((a, b) => (a.key < b.key ? -1 : 1));
await write('genesis', {
  valid: [{ name: 'a small network of one validator', document, networkId }],
  invalid: [
    { why: 'format 1, which named certificates', member: 'formatVersion', value: 1 },
    { why: 'a version of the future', member: 'formatVersion', value: 3 },
    { why: 'unknown member', member: 'more', value: 1 },
    { why: 'the time proof of an earlier draft', member: 'time', value: { scheme: 'pietrzak-rsa2048-v1' } },
    { why: 'no validators', member: 'committee', value: { epoch: 0, validators: [] } },
    { why: 'a validator twice', member: 'committee', value: { epoch: 0, validators: [validator, validator] } },
    { why: 'validators in descending order', member: 'committee', value: { epoch: 0, validators: [pair[1], pair[0]] } },
    { why: 'a validator that did not approve', member: 'committee', value: { epoch: 0, validators: pair } },
    {
      why: 'a key id of other keys',
      member: 'committee',
      value: { epoch: 0, validators: [{ ...validator, key: '77'.repeat(32) }] },
    },
    {
      why: 'a key cut short',
      member: 'committee',
      value: { epoch: 0, validators: [{ ...validator, ed25519: base64(fromBase64(validator.ed25519).subarray(1)) }] },
    },
    {
      why: 'a validator without account',
      member: 'committee',
      value: { epoch: 0, validators: [{ key: validator.key, falcon: validator.falcon, ed25519: validator.ed25519 }] },
    },
    { why: 'no approvals', member: 'approvals', value: [] },
    { why: 'an approval twice', member: 'approvals', value: [approval, approval] },
    { why: 'an approval by somebody else', member: 'approvals', value: [{ ...approval, validator: strangers.key }] },
    {
      why: 'an approval by Ed25519 alone',
      member: 'approvals',
      value: [{ validator: approval.validator, ed25519: approval.ed25519 }],
    },
    {
      why: 'a row under another kind',
      member: 'requirements',
      value: { ...requirements, publish: { ...requirements.publish, kind: 'install' } },
    },
    {
      why: 'more space asked for than a commitment has',
      member: 'requirements',
      value: {
        ...requirements,
        publish: { ...requirements.publish, space: { ...requirements.publish.space, bytesMin: 2 ** 20 } },
      },
    },
    {
      why: 'squarings that are no power of two',
      member: 'requirements',
      value: { ...requirements, publish: { ...requirements.publish, time: { squarings: 5_000, windowMs: 60_000 } } },
    },
    { why: 'a commitment of an odd size', member: 'space', value: { ...space, bytes: 65_537 } },
    {
      why: 'an account twice',
      member: 'stake',
      value: { ...stake, accounts: [...stake.accounts, ...stake.accounts] },
    },
    {
      why: 'more locked than owned',
      member: 'stake',
      value: { ...stake, accounts: [{ ...stake.accounts[0], locked: 1_001 }] },
    },
    {
      why: 'a supply that is too large',
      member: 'stake',
      value: { ...stake, accounts: [{ ...stake.accounts[0], balance: 2 ** 51 }] },
    },
    { why: 'clocks an hour apart', member: 'limits', value: { ...genesis.limits, clockSkewMs: 3_600_000 } },
    { why: 'any number of audits', member: 'limits', value: { ...genesis.limits, audits: 1_000 } },
    { why: 'a nonce in upper case', member: 'nonce', value: 'AB'.repeat(32) },
  ],
});

const TYPE = 'application/vnd.hypermesh.example.v1+json';
const statements = [{ says: 'one' }, { says: 'two' }, { says: 'three' }];
const alone = await ada.attest(TYPE, statements[0]);
const together = await Promise.all(statements.map((statement) => ada.attest(TYPE, statement)));
const fast = await ada.attestFast(TYPE, statements[0]);
const word = (name: string, attestation: unknown, statement: Json) => ({
  name,
  payloadType: TYPE,
  statement,
  attestation,
});
const [first, , third] = together as [Attestation, Attestation, Attestation];
await write('attestation', {
  valid: [
    word('a statement alone', alone, statements[0]!),
    ...together.map((attestation, i) => word(`statement ${i + 1} of three in one batch`, attestation, statements[i]!)),
    word('by Ed25519 alone', fast, statements[0]!),
  ].map((vector) => ({ ...vector, keys: validator })),
  invalid: [
    { why: 'another statement', of: 0, form: true, statement: statements[1] },
    { why: 'another type', of: 0, form: true, payloadType: 'application/vnd.hypermesh.other.v1+json' },
    { why: 'the keys of somebody else', of: 0, form: true, keys: strangers },
    { why: 'a bit of Ed25519', of: 1, form: true, attestation: { ...first, ed25519: flipped(first.ed25519) } },
    { why: 'a bit of FALCON', of: 1, form: true, attestation: { ...first, falcon: flipped(first.falcon) } },
    {
      why: 'the FALCON signature of another batch',
      of: 1,
      form: true,
      attestation: { ...first, falcon: alone.falcon },
    },
    { why: 'another place in the batch', of: 1, form: true, attestation: { ...first, index: 1 } },
    { why: 'a path that is too short', of: 1, form: true, attestation: { ...first, path: first.path.slice(1) } },
    {
      why: 'a path that is too long',
      of: 3,
      form: true,
      attestation: { ...third, path: [...third.path, ...first.path] },
    },
    { why: 'the path of another leaf', of: 1, form: true, attestation: { ...first, path: [...first.path].reverse() } },
    { why: 'an index beyond the size', of: 1, form: false, attestation: { ...first, index: 3 } },
    { why: 'a batch that is too large', of: 1, form: false, attestation: { ...first, size: 257 } },
    { why: 'no size', of: 1, form: false, attestation: { ...first, size: undefined } },
    { why: 'an unknown member', of: 1, form: false, attestation: { ...first, more: 1 } },
    {
      why: 'base64 without padding',
      of: 1,
      form: false,
      attestation: { ...first, ed25519: first.ed25519.slice(0, -2) },
    },
    { why: 'nothing', of: 1, form: false, attestation: null },
  ],
});

const asked = ada.keyIds().node;
const secret = await ada.invite({ expiresAtMs: clock.nowMs() + 86_400_000, tokens: 0 });
const request = await bob.certificationRequest({ networkId, asked, secret });
const renewal = await bob.certificationRequest({ networkId, asked, secret: null });
const { certificates, network, anchor, authorities } = await ada.certify(request, networkId);
const answer = {
  ...{ formatVersion: 1, genesis: document, network, anchor, certificates, authorities },
  committee: [{ node: asked, validator: validator.key, addresses: ['192.0.2.7:9292'] }],
  atMs: clock.nowMs(),
};
const other = await bob.sign('node', CERTIFICATION_TYPE, utf8('{}'));
await write('certification', {
  valid: [
    { name: 'a request with an invite', kind: 'request', value: request, subject: 'bob' },
    { name: 'a renewal', kind: 'request', value: renewal, subject: 'bob' },
    { name: 'an answer', kind: 'answer', value: answer, networkId },
  ],
  invalid: [
    { why: 'two envelopes', of: 0, where: 'envelopes', value: request.envelopes.slice(0, 2), says: 'malformed' },
    { why: 'a secret of another length', of: 0, where: 'secret', value: 'ab', says: 'secret' },
    {
      why: 'another secret than the signed one',
      of: 0,
      where: 'secret',
      value: '0'.repeat(40),
      says: 'another invite',
    },
    { why: 'a secret with a renewal', of: 1, where: 'secret', value: secret, says: 'another invite' },
    { why: 'an unknown member', of: 0, where: 'extra', value: 1, says: 'malformed' },
    { why: 'one key signed something else', of: 0, where: 'envelopes.2', value: other, says: 'did not sign the same' },
    {
      why: 'an envelope about something else',
      of: 0,
      where: 'envelopes.1.payloadType',
      value: 'application/json',
      says: 'something else',
    },
    {
      why: 'a signature cut short',
      of: 0,
      where: 'envelopes.0.signatures.0.sig',
      value: 'AAAA',
      says: 'malformed',
    },
    { why: 'all sign what is no request', of: 0, where: 'envelopes', value: [other, other, other], says: 'malformed' },
    { why: 'a later format', of: 2, where: 'formatVersion', value: 2, says: 'formatVersion' },
    { why: 'no committee', of: 2, where: 'committee', value: [], says: 'committee' },
    { why: 'a seat without its validator', of: 2, where: 'committee.0.validator', value: null, says: 'committee' },
    { why: 'no authority', of: 2, where: 'authorities', value: [], says: 'authorities' },
    {
      why: 'the root of another network',
      of: 2,
      where: 'anchor.root',
      value: (await bob.anchor()).root,
      says: 'root certificate',
    },
    {
      why: 'a genesis document without committee',
      of: 2,
      where: 'genesis',
      value: { formatVersion: 2 },
      says: 'genesis',
    },
    { why: 'no node certificate', of: 2, where: 'certificates.node', value: null, says: 'certificates.node' },
  ],
});
await nkrypt[Symbol.asyncDispose]();
await rm(folder, { recursive: true, force: true });
