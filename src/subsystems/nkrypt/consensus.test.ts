import assert from 'node:assert/strict';
import { globSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { utf8 } from '../../base/bytes.ts';
import type { Progress } from '../../base/call.ts';
import { digestOf } from '../../base/digest.ts';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { ProofVerdict } from '../../capabilities/consensus.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { requirementsOf } from '../../testing/requirements.ts';
import { makeSigner } from '../../testing/signer.ts';
import { until } from '../../testing/until.ts';
import { encodeOrder, ORDER_TYPE } from '../../wire/entry.ts';
import { epochDigest } from '../../wire/epoch.ts';
import { GENESIS_TYPE, type Genesis } from '../../wire/genesis.ts';
import {
  admittedAtMs,
  type Challenge,
  contextOf,
  type Endorsement,
  type Operation,
  type OperationKind,
  type ProofSet,
  type Requirements,
  VOTE_TYPE,
} from '../../wire/proof.ts';
import type { TrustAnchor } from '../../wire/signature.ts';
import { openTrust, signatureCheck } from '../trustchain/index.ts';
import { isApproved } from './attest.ts';
import { foundNetwork } from './found.ts';
import { checkEndorsement, LawBook, type NKrypt, type NKryptOptions, openConsensus } from './index.ts';

const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-'));
const closing = new AsyncDisposableStack();
after(async () => {
  await closing.disposeAsync();
  rmSync(folder, { recursive: true, force: true });
});

/** Small numbers, the same rules. */
function tiny(kind: OperationKind): Requirements {
  const all = kind === 'publish' || kind === 'default';
  return {
    kind,
    space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 16 },
    stake: all ? { amountMin: 100 } : null,
    work: all ? { hexDigits: 4 } : null,
    time: { squarings: 2 ** 12, windowMs: 60_000 },
  };
}
const TERMS = {
  requirements: requirementsOf(tiny),
  space: { bytes: 65_536, iterations: 4 },
  stakeInitial: 1_000,
  threads: 2,
};

const time = { nowMs: Date.now() };
const clock = { nowMs: () => time.nowMs };
const subject = digestOf(utf8('subject'));
const other = digestOf(utf8('other'));

let trust: Trust;
let stranger: Trust;
let anchor: TrustAnchor;
let nkrypt: NKrypt;
let genesis: Json;

function open(name: string, options: Partial<NKryptOptions> = {}, as: Trust = trust): Promise<NKrypt> {
  return openConsensus(
    { trust: as, check: signatureCheck },
    { ...TERMS, directory: path.join(folder, name), clock, ...options },
  );
}

async function newTrust(name: string): Promise<Trust> {
  mkdirSync(path.join(folder, name), { mode: 0o700 });
  return closing.use(await openTrust({ directory: path.join(folder, name), clock }));
}

before(async () => {
  trust = await newTrust('trust');
  stranger = await newTrust('stranger');
  anchor = await trust.anchor();
  nkrypt = closing.use(await open('main'));
  genesis = (await nkrypt.genesis()).document;
});

async function proofs(kind: OperationKind = 'publish', by = nkrypt): Promise<ProofSet> {
  return by.prove(await by.challenge(kind, subject, 'ada/greeter@1.0.0'));
}

const coded = (code: ErrorCode) => (error: unknown) => isCoded(error, code);
const told = (verdicts: readonly ProofVerdict[]) =>
  Object.fromEntries(verdicts.map(({ kind, verdict }) => [kind, verdict]));
const VALID = { space: 'valid', stake: 'valid', work: 'valid', time: 'valid' };

/** The set with one field replaced, as JSON would carry it. */
function alter(set: ProofSet, where: string, to: (old: never) => unknown): ProofSet {
  const copy = JSON.parse(JSON.stringify(set)) as ProofSet;
  const keys = where.split('.');
  let at = copy as unknown as Record<string, unknown>;
  for (const key of keys.slice(0, -1)) at = at[key] as Record<string, unknown>;
  at[keys.at(-1)!] = to(at[keys.at(-1)!] as never);
  return copy;
}

test('a publish is proved, judged offline, admitted, and its endorsement verified', async () => {
  const steps = new Set<string>();
  const challenge = await nkrypt.challenge('publish', subject, 'ada/greeter@1.0.0');
  const set = await nkrypt.prove(challenge, { onProgress: ({ step }) => steps.add(step) });
  assert.deepEqual(told(await nkrypt.verify(set, { genesis })), VALID);
  const { endorsement, verdicts } = await nkrypt.admit(set);
  assert.deepEqual(told(verdicts), VALID);
  assert.deepEqual(endorsement.operation, challenge.operation);
  await nkrypt.verifyEndorsement(endorsement, { genesis, anchor });
  assert.deepEqual(told(await nkrypt.verify(set, { genesis, atMs: admittedAtMs(endorsement) })), VALID);
  const again = await nkrypt.admit(structuredClone(set));
  assert.deepEqual([again.endorsement, told(again.verdicts)], [endorsement, VALID]);
  assert.equal((await nkrypt.space()).state, 'ready');
  assert.ok(steps.has('space') && steps.has('stake'));
});

test('the first proofs of a home are bound to an anchor that is fresh when its commitment is made, however long that takes', async () => {
  const first = closing.use(await open('first', {}, await newTrust('first-trust')));
  const challenge = await first.challenge('install', subject, '');
  let isMaking = false;
  const onProgress = ({ step }: { readonly step: string }) => {
    if (step !== 'space' || isMaking) return;
    isMaking = true;
    time.nowMs += 2 * 60_000;
  };
  await first.admit(await first.prove(challenge, { onProgress }));
  assert.ok(isMaking, 'it took no time');
});

test('proofs whose commitment was found damaged are bound to an anchor that is fresh when it is made again', async () => {
  const home = closing.use(await open('damaged', {}, await newTrust('damaged-trust')));
  await proofs('install', home);
  const layer = globSync('damaged/space/*/layer-3', { cwd: folder })[0]!;
  writeFileSync(path.join(folder, layer), new Uint8Array(TERMS.space.bytes));
  const challenge = await home.challenge('install', subject, '');
  let isMaking = false;
  const onProgress = ({ step, note }: Progress) => {
    if (step !== 'space' || isMaking || note?.startsWith('making') !== true) return;
    isMaking = true;
    time.nowMs += 2 * 60_000;
  };
  await home.admit(await home.prove(challenge, { onProgress }));
  assert.ok(isMaking, 'it was not made again');
});

test('a name belongs to who published under it first, and a version stands for one content for ever', async () => {
  const challenge = await nkrypt.challenge('publish', subject, 'ada/owned@1.0.0');
  await nkrypt.admit(await nkrypt.prove(challenge));
  await nkrypt.challenge('publish', subject, 'ada/owned@1.0.0+again');
  await nkrypt.challenge('publish', other, 'ada/owned@1.0.1');
  await assert.rejects(nkrypt.challenge('publish', other, 'ada/owned@1.0.0'), coded('version-exists'));
  await assert.rejects(nkrypt.challenge('publish', other, 'ada/owned@1.0.0+build'), coded('version-exists'));
  const somebody = makeSigner();
  const { networkId } = await nkrypt.genesis();
  const asks = (ref: string) => {
    const operation: Operation = { kind: 'publish', subject: other, ref, identity: somebody.keyId, sequence: 1 };
    const payload = encodeOrder({ formatVersion: 1, networkId, operation });
    const order = { keys: somebody.keys, envelope: somebody.seal(ORDER_TYPE, payload) };
    return nkrypt.desk('committee/anchor', somebody.keyId, { operation, order, newest: null });
  };
  await assert.rejects(asks('ada/owned@2.0.0'), coded('not-owner'));
  await assert.rejects(asks('ada/other@1.0.0'), coded('not-owner'));
});

test('of two publishers who claim a name at the same time one is admitted', async () => {
  const first = await nkrypt.prove(await nkrypt.challenge('publish', subject, 'ada/raced@1.0.0'));
  const second = await nkrypt.prove(await nkrypt.challenge('publish', other, 'ada/raced@1.0.0'));
  await nkrypt.admit(first);
  await assert.rejects(nkrypt.admit(second), coded('version-exists'));
});

test('an install asks for space and time only; a body that was not asked for is refused', async () => {
  const set = await proofs('install');
  assert.deepEqual(told(await nkrypt.verify(set)), { ...VALID, stake: 'not-required', work: 'not-required' });
  const padded = alter(set, 'work', () => ({ nonce: '0'.repeat(16) }));
  assert.equal(told(await nkrypt.verify(padded))['work'], 'invalid');
  await assert.rejects(nkrypt.admit(padded), coded('proof-rejected'));
  await nkrypt.admit(set);
});

test('verify() refuses every altered field of every proof', async () => {
  const set = await proofs();
  const flip = (text: string) => {
    const bytes = Uint8Array.fromBase64(text);
    bytes[bytes.length >> 1]! ^= 1;
    return bytes.toBase64();
  };
  const digit = (text: string) => (text[0] === '0' ? '1' : '0') + text.slice(1);
  const cutShort = (text: string) => Uint8Array.fromBase64(text).subarray(32).toBase64();
  const plus = (count: number) => (value: number) => value + count;
  const cases: readonly [
    proof: 'space' | 'stake' | 'work' | 'time' | 'all',
    where: string,
    to: (old: never) => unknown,
  ][] = [
    ['space', 'space.root', digit],
    ['space', 'space.attempt', plus(1)],
    ['space', 'space.revealed.0', digit],
    ['space', 'space.revealed', () => []],
    ['space', 'space.revealed', (list: unknown[]) => [...list, ...list]],
    ['space', 'space.labels', flip],
    ['space', 'space.labels', cutShort],
    ['space', 'space.path', flip],
    ['space', 'space.path', cutShort],
    ['space', 'space.path', (text: string) => `${text.slice(0, -1)} `],
    ['space', 'space.receipts', () => []],
    ['space', 'space.receipts', (list: unknown[]) => [...list, ...list]],
    ['space', 'space.receipts.0.issuedAtMs', plus(-1)],
    ['space', 'space.receipts.0.arrivedAtMs', plus(1)],
    ['space', 'space.receipts.0.attestation.validator', digit],
    ['space', 'space.receipts.0.attestation.ed25519', flip],
    ['space', 'space.receipts.0.attestation', () => set.stake!.statements[0]!.attestation],
    ['space', 'space.receipts.0.attestation', (word: object) => ({ ...word, path: [], index: 0, size: 1 })],
    ['space', 'space.receipts', () => set.stake!.statements],
    ['space', 'space', () => null],
    ['space', 'space', (body: object) => ({ ...body, more: 1 })],
    ['stake', 'stake.statements.0.balance', plus(1)],
    ['stake', 'stake.statements.0.locked', plus(1)],
    ['stake', 'stake.statements.0.issuedAtMs', plus(1)],
    ['stake', 'stake.statements.0.attestation.validator', digit],
    ['stake', 'stake.statements.0.attestation.ed25519', flip],
    ['stake', 'stake.statements', () => set.space!.receipts],
    ['stake', 'stake.statements', () => []],
    ['stake', 'stake', () => null],
    ['work', 'work.nonce', digit],
    ['work', 'work.nonce', (text: string) => text.slice(1)],
    ['work', 'work.nonce', (text: string) => ` ${text.slice(1)}`],
    ['work', 'work.nonce', () => 7],
    ['work', 'work', () => null],
    ['time', 'time.output', flip],
    ['time', 'time.output', (text: string) => `${text}\n`],
    ['time', 'time.squarings', plus(1)],
    ['time', 'time.counter', plus(1)],
    ['time', 'time.counter', () => 0.5],
    ['time', 'time.counter', () => -1],
    ['time', 'time.quotient', flip],
    ['time', 'time.quotient', () => set.time!.output],
    ['time', 'time', ({ squarings, output }: NonNullable<ProofSet['time']>) => ({ squarings, output, halvings: [] })],
    ['time', 'time', () => null],
    ['all', 'formatVersion', () => 3],
    ['all', 'formatVersion', () => 5],
    ['all', 'challenge.context', () => other],
    ['all', 'challenge.networkId', () => other],
    ['all', 'challenge.committee', () => other],
    ['all', 'challenge.anchor.hexDigits', plus(1)],
    ['all', 'challenge.anchor.shares', () => []],
    ['all', 'challenge.anchor.shares', (list: unknown[]) => [...list, ...list]],
    ['all', 'challenge.anchor.shares.0.nonce', digit],
    ['all', 'challenge.anchor.shares.0.issuedAtMs', plus(1)],
    ['all', 'challenge.anchor.shares.0.hexDigits', plus(1)],
    ['all', 'challenge.anchor.shares.0.attestation.validator', digit],
    ['all', 'challenge.anchor.shares.0.attestation.ed25519', flip],
    ['all', 'challenge.anchor.issuedAtMs', plus(1)],
    ['all', 'challenge.anchor.previous', () => other],
    ['all', 'challenge.operation.subject', () => other],
    ['all', 'challenge.operation.ref', () => 'ada/greeter@1.0.1'],
    ['all', 'challenge.operation.identity', digit],
    ['all', 'challenge.operation.sequence', plus(1)],
    ['all', 'challenge.operation.kind', () => 'default'],
    ['all', 'challenge.requirements.work.hexDigits', () => 1],
    ['all', 'challenge.requirements.stake', () => null],
    ['all', 'challenge', () => null],
  ];
  for (const [proof, where, to] of cases) {
    const altered = alter(set, where, to);
    const verdicts = told(await nkrypt.verify(altered, { genesis }));
    const expected =
      proof === 'all'
        ? Object.fromEntries(Object.keys(VALID).map((kind) => [kind, 'invalid']))
        : { ...VALID, [proof]: 'invalid' };
    assert.deepEqual(verdicts, expected, where);
    await assert.rejects(
      nkrypt.admit(altered),
      (error) =>
        isCoded(
          error,
          'proof-invalid',
          'proof-rejected',
          'equivocation',
          'network-mismatch',
          'entry-invalid',
          'proof-expired',
        ),
      where,
    );
  }
  await nkrypt.admit(set);
});

test('verify() refuses proofs whose altered challenge was sealed again: every body is bound to the context', async () => {
  const set = await proofs();
  for (const [where, to] of [
    ['challenge.operation.subject', () => other],
    ['challenge.operation.identity', () => '77'.repeat(32)],
    ['challenge.operation.sequence', (n: number) => n + 40],
    ['challenge.anchor.issuedAtMs', (n: number) => n - 1],
    ['challenge.anchor.hexDigits', (n: number) => n - 1],
    ['challenge.anchor.previous', () => other],
    ['challenge.anchor.shares.0.issuedAtMs', (n: number) => n - 1],
  ] as const) {
    const altered = alter(set, where, to as (old: never) => unknown);
    const sealed = alter(altered, 'challenge.context', () => contextOf(altered.challenge));
    const verdicts = told(await nkrypt.verify(sealed, { genesis }));
    assert.deepEqual(verdicts, { space: 'invalid', stake: 'invalid', work: 'invalid', time: 'invalid' }, where);
    await assert.rejects(
      nkrypt.admit(sealed),
      (error) => isCoded(error, 'proof-rejected', 'equivocation', 'proof-expired', 'entry-invalid'),
      where,
    );
  }
});

test('proofs of one operation do not serve another', async () => {
  const [first, second] = [await proofs(), await proofs()];
  for (const kind of ['space', 'stake', 'time'] as const) {
    const mixed = { ...first, [kind]: second[kind] };
    assert.equal(told(await nkrypt.verify(mixed))[kind], 'invalid', kind);
    await assert.rejects(nkrypt.admit(mixed), coded('proof-rejected'));
  }
  await nkrypt.admit(first);
  await nkrypt.admit(second);
});

test('admit() votes for other proofs of the same operation, and for no other operation under its number', async () => {
  const challenge = await nkrypt.challenge('publish', subject, 'ada/greeter@2.0.0');
  const first = await nkrypt.prove(challenge);
  time.nowMs += 1;
  const second = await nkrypt.prove(challenge);
  assert.notEqual(canonicalJson(first), canonicalJson(second));
  const { endorsement } = await nkrypt.admit(first);
  assert.deepEqual((await nkrypt.admit(second)).endorsement.operation, endorsement.operation);
  assert.deepEqual((await nkrypt.admit(first)).endorsement, endorsement);
  const twisted = alter(first, 'challenge.operation.subject', () => other);
  await assert.rejects(nkrypt.admit(twisted), coded('equivocation'));
});

test('admit() of sets at once gives each submission its certificate', async () => {
  const challenge = await nkrypt.challenge('publish', subject, 'ada/greeter@3.0.0');
  const [first, second] = [await nkrypt.prove(challenge), await nkrypt.prove(challenge)];
  const admitted = await Promise.all([nkrypt.admit(first), nkrypt.admit(second), nkrypt.admit(first)]);
  for (const { endorsement } of admitted) await nkrypt.verifyEndorsement(endorsement, { genesis, anchor });
});

test('late proofs are expired, on arrival and when judged for a late moment', async () => {
  const set = await proofs();
  const { issuedAtMs } = set.challenge.anchor;
  assert.deepEqual(told(await nkrypt.verify(set, { atMs: issuedAtMs + 60_000 })), VALID);
  assert.deepEqual(told(await nkrypt.verify(set, { atMs: issuedAtMs + 60_001 })), { ...VALID, time: 'invalid' });
  const stale = told(await nkrypt.verify(set, { atMs: issuedAtMs + 3_700_000 }));
  assert.equal(stale['stake'], 'invalid');
  assert.equal(told(await nkrypt.verify(set, { atMs: issuedAtMs - 60_000 }))['time'], 'invalid');
  try {
    time.nowMs += 60_001;
    await assert.rejects(nkrypt.admit(set), coded('proof-expired'));
  } finally {
    time.nowMs -= 60_001;
  }
});

test('an anchor that the committee did not issue is refused, with honest proofs around it', async () => {
  await using foreign = await open('foreign');
  const set = await proofs('publish', foreign);
  assert.deepEqual(told(await foreign.verify(set)), VALID);
  assert.ok((await nkrypt.verify(set)).every(({ verdict }) => verdict === 'invalid'));
  await assert.rejects(nkrypt.admit(set), coded('network-mismatch'));
  await assert.rejects(nkrypt.prove(set.challenge), coded('network-mismatch'));
  const { document } = await foreign.genesis();
  assert.deepEqual(told(await nkrypt.verify(set, { genesis: document })), VALID);
});

test('verifyEndorsement() refuses altered, foreign, unsigned and doubled votes', async () => {
  const { endorsement: good } = await nkrypt.admit(await proofs());
  const refused = (bad: unknown, options: { genesis: Json; anchor: TrustAnchor } = { genesis, anchor }) =>
    assert.rejects(nkrypt.verifyEndorsement(bad as Endorsement, options), coded('endorsement-invalid'));
  await refused({ ...good, proofs: other });
  const [vote] = good.votes;
  const word = vote!.attestation;
  const { falcon: _falcon, path: _path, index: _index, size: _size, ...fast } = word;
  for (const attestation of [
    fast,
    { ...word, ed25519: word.ed25519.replace(/^./, (c) => (c === 'A' ? 'B' : 'A')) },
    { ...word, falcon: Buffer.from(word.falcon, 'base64').fill(7, 600, 640).toString('base64') },
    { ...word, path: ['00'.repeat(32)], size: 2 },
    { ...word, index: 1 },
    { ...word, validator: '00'.repeat(32) },
  ]) {
    await refused({ ...good, votes: [{ ...vote, attestation }] });
  }
  await refused({ ...good, formatVersion: 2 });
  await refused({ ...good, votes: [{ ...vote, atMs: vote!.atMs + 1 }] });
  await refused({ ...good, committee: other });
  await refused({ ...good, networkId: other });
  await refused({ ...good, operation: { ...good.operation, subject: other } });
  await refused({ ...good, votes: [] });
  await refused({ ...good, votes: [...good.votes, ...good.votes] });
  await refused({ ...good, more: 1 });
  await refused(null);
  await refused(good, { genesis, anchor: await stranger.anchor() });
  await using foreign = await open('foreign-votes', {}, stranger);
  const { endorsement: theirs } = await foreign.admit(await proofs('publish', foreign));
  await refused(theirs);
  await refused({ ...good, votes: theirs.votes });
  await refused(good, { genesis: (await foreign.genesis()).document, anchor: await stranger.anchor() });
  await nkrypt.verifyEndorsement(good, { genesis, anchor });
});

test('a committee of four needs three distinct votes, each with its own time; the median counts', async () => {
  const trusts = [trust, stranger, await newTrust('third'), await newTrust('fourth')];
  const { endorsement: good } = await nkrypt.admit(await proofs());
  const { votes: _votes, ...admitted } = good;
  const keys = await Promise.all(trusts.map((one) => one.validatorKeys()));
  const order = [...keys.keys()].sort((a, b) => (keys[a]!.key < keys[b]!.key ? -1 : 1));
  const { approvals: _approvals, ...document } = genesis as unknown as Genesis;
  const unsigned = { ...document, committee: { epoch: 0, validators: order.map((i) => keys[i]!) } };
  const approvals = await Promise.all(order.map((i) => trusts[i]!.attest(GENESIS_TYPE, unsigned)));
  const four = { ...unsigned, approvals };
  assert.equal(await isApproved(four, trust), true);
  assert.equal(await isApproved({ ...four, createdAtMs: 5 }, trust), false);
  const networkId = digestOf(utf8(canonicalJson(four)));
  const statement = { ...admitted, networkId, committee: networkId };
  const signed = await Promise.all(
    order.map(async (i, at) => {
      const atMs = 1_000 * at;
      return { atMs, attestation: await trusts[i]!.attest(VOTE_TYPE, { ...statement, atMs }) };
    }),
  );
  const laws = new LawBook(trust);
  const check = (votes: typeof signed) =>
    checkEndorsement(laws, { ...statement, votes }, { genesis: four as unknown as Json, anchor });
  await check(signed);
  for (const left of [0, 1, 2, 3]) await check(signed.filter((_, i) => i !== left));
  const [a, b, c, d] = signed as [(typeof signed)[0], (typeof signed)[0], (typeof signed)[0], (typeof signed)[0]];
  for (const bad of [
    [a, b],
    [a, b, b],
    [b, a, c],
    [a, b, { ...c, atMs: 7 }],
    [a, b, { ...c, attestation: d.attestation }],
  ]) {
    await assert.rejects(check(bad), coded('endorsement-invalid'));
  }
  assert.deepEqual([admittedAtMs({ votes: signed }), admittedAtMs({ votes: [a, b, d] })], [1_000, 1_000]);
});

test('sequence numbers are taken for good, also across a restart and by two at once', async () => {
  const home = 'sequence';
  const first = await open(home);
  const challenges = await Promise.all([1, 2, 3].map(() => first.challenge('install', subject, '')));
  const { networkId } = await first.genesis();
  const endorsed = await proofs('publish', first);
  const { endorsement } = await first.admit(endorsed);
  await first[Symbol.asyncDispose]();
  await using second = await open(home, { requirements: {}, stakeInitial: 5 });
  assert.equal((await second.genesis()).networkId, networkId);
  assert.equal((await second.stake()).balance, 1_000);
  const next = await second.challenge('install', subject, '');
  assert.deepEqual(
    new Set([...challenges, endorsed.challenge, next].map(({ operation }) => operation.sequence)).size,
    5,
  );
  assert.deepEqual((await second.admit(endorsed)).endorsement, endorsement);
  // Validators forgot the anchor of before the restart: proving begins with a new one. Chained operations name the one before.
  await second.admit(await second.prove(challenges[1]!));
  const chained = await second.challenge('install', subject, '');
  assert.notEqual(chained.anchor.previous, challenges[0]!.anchor.previous);
  assert.deepEqual((await readdir(path.join(folder, home, 'space'))).length, 1);
});

test('publishing needs locked tokens, when proving and when admitting', async () => {
  await using poor = await open('poor');
  const set = await proofs('publish', poor);
  await poor.unlockStake(1);
  await assert.rejects(poor.admit(set), coded('stake-insufficient'));
  await assert.rejects(proofs('publish', poor), coded('stake-insufficient'));
  await poor.lockStake(1);
  await poor.admit(set);
});

test('prove() stops when the caller gives up, and refuses what is not its own', async () => {
  const hard = { ...tiny('publish'), work: { hexDigits: 16 }, time: { squarings: 2 ** 28, windowMs: 60_000 } };
  await using slow = await open('slow', { requirements: { ...TERMS.requirements, publish: hard } });
  const challenge = await slow.challenge('publish', subject, 'x');
  const controller = new AbortController();
  const proving = slow.prove(challenge, {
    signal: controller.signal,
    onProgress: ({ step }) => {
      if (step === 'time') controller.abort();
    },
  });
  await assert.rejects(proving, coded('cancelled'));
  await assert.rejects(slow.prove(challenge, { signal: AbortSignal.abort() }), coded('cancelled'));
  const others: Challenge = { ...challenge, operation: { ...challenge.operation, identity: '77'.repeat(32) } };
  await assert.rejects(slow.prove(others), coded('proof-invalid'));
  const running = assert.rejects(slow.prove(challenge), coded('cancelled'));
  await slow[Symbol.asyncDispose]();
  await running;
});

test('a founder who says nothing gets the table of the documentation', async () => {
  const { requirements, space, stake } = await foundNetwork(trust, clock, {});
  assert.deepEqual(requirements.publish, {
    kind: 'publish',
    space: { bytesMin: 104_857_600, deadlineMs: 2_000, openings: 64 },
    stake: { amountMin: 1_000 },
    work: { hexDigits: 6 },
    time: { squarings: 1_048_576, windowMs: 300_000 },
  });
  assert.deepEqual([requirements.install.stake, requirements.execute.work], [null, null]);
  assert.deepEqual(requirements.install.time, { squarings: 65_536, windowMs: 60_000 });
  assert.deepEqual([space.bytes, space.iterations], [104_857_600, 10]);
  const { keyId } = await trust.identity('publisher');
  assert.deepEqual(stake.accounts, [{ account: keyId, balance: 1_000_000, locked: 1_000 }]);
});

test('bad arguments are refused with a code', async () => {
  await assert.rejects(nkrypt.requirements('bake' as OperationKind), coded('usage'));
  await assert.rejects(nkrypt.challenge('publish', 'sha256:1' as never, ''), coded('usage'));
  await assert.rejects(nkrypt.challenge('publish', subject, 'x'.repeat(600)), coded('usage'));
  await assert.rejects(nkrypt.admit(null as never), coded('proof-invalid'));
  await assert.rejects(nkrypt.verify(await proofs('install'), { genesis: { a: 1 } }), coded('network-mismatch'));
  await assert.rejects(open('bad-terms', { space: { bytes: 1000 } }), coded('config-invalid'));
});

test('the state section carries ledger, memory and network to another folder', async () => {
  const { endorsement: good } = await nkrypt.admit(await proofs());
  const pieces: Uint8Array[] = [];
  for await (const piece of nkrypt.section.export()) pieces.push(piece);
  assert.ok(pieces.every(({ length }) => length > 0 && length <= 2 ** 20));
  await using copy = await open('copy');
  const before = (await copy.genesis()).networkId;
  async function* replay(list: readonly Uint8Array[]) {
    yield* list;
  }
  const dropped = await copy.section.import(copy.section.version, replay(pieces));
  await dropped.abandon();
  assert.equal((await copy.genesis()).networkId, before);
  await assert.rejects(copy.section.import(copy.section.version - 1, replay(pieces)), coded('state-too-old'));
  for (const bad of [
    [utf8('{')],
    pieces.slice(1),
    pieces.map((piece) => utf8(new TextDecoder().decode(piece).replace('"facts"', '"floors"'))),
    pieces.map((piece) => utf8(new TextDecoder().decode(piece).replaceAll('"balance\\":1000', '"balance\\":2000'))),
    [utf8('{"table":"sqlite_master","rows":[]}')],
  ]) {
    await assert.rejects(copy.section.import(copy.section.version, replay(bad)), coded('state-invalid'));
  }
  for (let time = 0; time < 2; time++) {
    const staged = await copy.section.import(copy.section.version, replay(pieces));
    await staged.commit();
  }
  assert.equal((await copy.genesis()).networkId, (await nkrypt.genesis()).networkId);
  assert.deepEqual(await copy.stake(), await nkrypt.stake());
  await copy.verifyEndorsement(good, { genesis, anchor });
  const next = await copy.challenge('publish', subject, 'ada/greeter@9.0.0');
  assert.ok(next.operation.sequence > good.operation.sequence);
  await copy.admit(await copy.prove(next));
  // Going back to the older export does not give the number out again.
  await (await copy.section.import(copy.section.version, replay(pieces))).commit();
  const later = await copy.challenge('publish', subject, 'x');
  assert.ok(later.operation.sequence > next.operation.sequence);
});

test('another epoch: what was admitted before and after holds by the committee of its time, offline, and nothing by another', async () => {
  await using home = await open('epochs');
  const decided = await proofs('publish', home);
  const { endorsement: before } = await home.admit(decided);
  const old = await home.genesis();
  assert.deepEqual(old.epochs, []);
  const seat = await trust.validatorKeys();
  await assert.rejects(home.proposeCommittee([{ ...seat, account: 'ab'.repeat(32) }]), coded('epoch-invalid'));
  const started = await home.prove(await home.challenge('publish', subject, 'ada/greeter@4.0.0'));
  await home.proposeCommittee([seat]);
  await until('the next epoch', async () => (await home.committee()).epoch === 1);
  // Whoever kept proofs over the change makes others.
  await assert.rejects(home.admit(started), coded('proof-expired'));
  // Also what was voted for in the epoch before is not voted for again in this one.
  const again = { proofs: decided, order: null, fast: true };
  await assert.rejects(home.desk('committee/vote', seat.account, again), coded('epoch-over'));
  const set = await home.prove(await home.challenge('publish', subject, 'ada/greeter@4.0.0'));
  const { endorsement: after } = await home.admit(set);
  const { document, epochs, networkId } = await home.genesis();
  assert.deepEqual([before.committee, after.committee], [networkId, epochDigest(epochs[0]!)]);
  const check = (one: unknown, documents: typeof epochs) =>
    home.verifyEndorsement(one as typeof after, { genesis: document, anchor, epochs: documents });
  await check(before, []);
  await check(before, epochs);
  await check(after, epochs);
  await assert.rejects(check(after, []), coded('endorsement-invalid'));
  await assert.rejects(check({ ...after, committee: networkId }, epochs), coded('endorsement-invalid'));
  const forged = epochs.map((one) => ({
    ...one,
    approvals: one.approvals.map((word) => ({ ...word, ed25519: `${'A'.repeat(86)}==` })),
  }));
  await assert.rejects(check(after, forged), coded('endorsement-invalid'));
  const verdicts = await home.verify(set, { genesis: document, epochs, atMs: admittedAtMs(after) });
  assert.ok(
    verdicts.every(({ verdict }) => verdict !== 'invalid'),
    JSON.stringify(verdicts),
  );
  assert.equal((await home.stake()).balance, 1_000);
});
