import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { base64, fromBase64, utf8 } from '../src/base/bytes.ts';
import { type Digest, digestOf } from '../src/base/digest.ts';
import type { ProofVerdict } from '../src/capabilities/consensus.ts';
import { openConsensus } from '../src/subsystems/nkrypt/index.ts';
import { encodeElement, fromBytes, N } from '../src/subsystems/nkrypt/rsa-group.ts';
import { proveTime } from '../src/subsystems/nkrypt/time.ts';
import { openTrust, signatureCheck } from '../src/subsystems/trustchain/index.ts';
import { encodeOrder, ORDER_TYPE } from '../src/wire/entry.ts';
import {
  contextOf,
  OPERATION_KINDS,
  type OperationKind,
  operationDigest,
  type Requirements,
} from '../src/wire/proof.ts';

/**
 * Makes test/vectors/proof/ (but for what depends on no key: work, labels, positions) and test/vectors/committee/ anew. Signatures and keys differ on
 * every run, so the vectors are stored; run this only when the format changes, and read what it prints.
 */
const target = join(import.meta.dirname, '..', 'test', 'vectors', 'proof');
const folder = await mkdtemp(join(tmpdir(), 'hypermesh-vectors-'));
const WINDOW_MS = 60_000;
const SET = 'a publish, all four proofs';

let nowMs = Date.UTC(2026, 0, 2);
const clock = { nowMs: () => nowMs };

function tiny(kind: OperationKind): Requirements {
  const all = kind === 'publish' || kind === 'default';
  return {
    kind,
    space: { bytesMin: 65_536, deadlineMs: 60_000, openings: 8 },
    stake: all ? { amountMin: 100 } : null,
    work: all ? { hexDigits: 4 } : null,
    time: { squarings: 4_096, windowMs: WINDOW_MS },
  };
}

const verdictsOf = (verdicts: readonly ProofVerdict[]) =>
  Object.fromEntries(verdicts.map(({ kind, verdict }) => [kind, verdict]));

const trustFolder = join(folder, 'trust');
await mkdir(trustFolder, { mode: 0o700 });
await using trust = await openTrust({ directory: trustFolder, clock });
await using nkrypt = await openConsensus(
  { trust, check: signatureCheck },
  {
    requirements: Object.fromEntries(OPERATION_KINDS.map((kind) => [kind, tiny(kind)])) as Record<
      OperationKind,
      Requirements
    >,
    space: { bytes: 65_536, iterations: 4 },
    stakeInitial: 1_000,
    threads: 1,
    directory: join(folder, 'consensus'),
    clock,
  },
);
const { document: genesis } = await nkrypt.genesis();
const anchor = await trust.anchor();

async function set(name: string, kind: OperationKind, subject: Digest, ref: string) {
  nowMs += 1_000;
  const proofs = await nkrypt.prove(await nkrypt.challenge(kind, subject, ref));
  nowMs += 1_000;
  const { endorsement } = await nkrypt.admit(proofs);
  const verdicts = verdictsOf(await nkrypt.verify(proofs, { genesis, atMs: nowMs }));
  return { name, kind: 'set', genesis, anchor, atMs: nowMs, proofs, endorsement, verdicts };
}

function time(squarings: number) {
  const context: Digest = `sha256:${'01'.repeat(32)}`;
  const proof = proveTime(
    context,
    squarings,
    () => false,
    () => undefined,
  );
  return { name: `${squarings} squarings`, kind: 'time', context, squarings, proof };
}

const stored = JSON.parse(await readFile(join(target, 'valid.json'), 'utf8')) as { kind: string }[];
const of = (...kinds: string[]) => stored.filter(({ kind }) => kinds.includes(kind));
const publish = await set(SET, 'publish', `sha256:${'ab'.repeat(32)}`, 'ada/greeter@1.0.0');
const install = await set('an install, space and time', 'install', digestOf(utf8('what is asked for')), '');
const valid = [
  {
    name: 'context of a publish',
    kind: 'context',
    challenge: publish.proofs.challenge,
    operationDigest: operationDigest(publish.proofs.challenge.operation),
    context: contextOf(publish.proofs.challenge),
  },
  ...of('work'),
  ...[1_024, 4_096, 65_536].map(time),
  ...of('labels', 'positions'),
  publish,
  install,
];

const { space, stake, work, time: clocked } = publish.proofs;
const other: Digest = `sha256:${'cd'.repeat(32)}`;
const flipped = (text: string) => {
  const bytes = fromBase64(text);
  bytes[bytes.length >> 1]! ^= 1;
  return base64(bytes);
};
const cut = (text: string, bytes: number) => base64(fromBase64(text).subarray(bytes));
const numberOf = (text: string) => fromBytes(fromBase64(text));

const anchored = publish.proofs.challenge.anchor;

type Change = { readonly why: string; readonly path?: string; readonly value?: unknown; readonly atMs?: number };
const changes: readonly Change[] = [
  { why: 'another subject', path: 'challenge.operation.subject', value: other },
  { why: 'another identity', path: 'challenge.operation.identity', value: '77'.repeat(32) },
  { why: 'another network', path: 'challenge.networkId', value: other },
  { why: 'another sequence number', path: 'challenge.operation.sequence', value: 2 },
  { why: 'another committee', path: 'challenge.committee', value: other },
  { why: 'no shares', path: 'challenge.anchor.shares', value: [] },
  { why: 'a share twice', path: 'challenge.anchor.shares', value: [...anchored.shares, ...anchored.shares] },
  { why: 'a share of another time', path: 'challenge.anchor.shares.0.issuedAtMs', value: anchored.issuedAtMs - 1 },
  { why: 'a share that asks for other work', path: 'challenge.anchor.shares.0.hexDigits', value: 5 },
  { why: 'a share with another nonce', path: 'challenge.anchor.shares.0.nonce', value: '77'.repeat(32) },
  {
    why: 'a share with one bit of its signature changed',
    path: 'challenge.anchor.shares.0.attestation.ed25519',
    value: flipped(anchored.shares[0]!.attestation.ed25519),
  },
  { why: 'a median that is none', path: 'challenge.anchor.issuedAtMs', value: anchored.issuedAtMs - 1 },
  { why: 'another operation before it', path: 'challenge.anchor.previous', value: other },
  { why: 'softer requirements', path: 'challenge.requirements.work.hexDigits', value: 1 },
  { why: 'an unknown member', path: 'challenge.more', value: 1 },
  { why: 'format 1, which had another time proof', path: 'formatVersion', value: 1 },
  { why: 'format 2, whose validators signed with certificates', path: 'formatVersion', value: 2 },
  { why: 'format 3, whose statements named the number of an epoch', path: 'formatVersion', value: 3 },
  { why: 'a version of the future', path: 'formatVersion', value: 5 },
  { why: 'a nonce in upper case', path: 'work.nonce', value: `A${work!.nonce.slice(1)}` },
  { why: 'a nonce of 15 digits', path: 'work.nonce', value: work!.nonce.slice(1) },
  { why: 'work left out', path: 'work', value: null },
  {
    why: 'a root with one bit changed',
    path: 'space.root',
    value: space!.root.replace(/.$/, (d) => (d === '0' ? '1' : '0')),
  },
  { why: 'a truncated path', path: 'space.path', value: cut(space!.path, 32) },
  { why: 'labels that are not base64 of 32-byte items', path: 'space.labels', value: cut(space!.labels, 1) },
  { why: 'a path with white space', path: 'space.path', value: `${space!.path} ` },
  { why: 'another audit', path: 'space.attempt', value: 2 },
  { why: 'something else revealed', path: 'space.revealed.0', value: '77'.repeat(32) },
  { why: 'nothing revealed', path: 'space.revealed', value: [] },
  { why: 'no receipt', path: 'space.receipts', value: [] },
  {
    why: 'a receipt of another time',
    path: 'space.receipts.0.arrivedAtMs',
    value: space!.receipts[0]!.arrivedAtMs - 1,
  },
  { why: 'a receipt by somebody else', path: 'space.receipts.0.attestation.validator', value: '77'.repeat(32) },
  {
    why: 'a receipt with one bit of its signature changed',
    path: 'space.receipts.0.attestation.ed25519',
    value: flipped(space!.receipts[0]!.attestation.ed25519),
  },
  { why: 'a statement about more tokens', path: 'stake.statements.0.locked', value: 1_000 },
  { why: 'a stake statement as receipt', path: 'space.receipts', value: stake!.statements },
  { why: 'a receipt as stake statement', path: 'stake.statements', value: space!.receipts },
  { why: 'the same statement twice', path: 'stake.statements', value: [...stake!.statements, ...stake!.statements] },
  { why: 'one squaring more', path: 'time.squarings', value: 4_097 },
  { why: 'twice the squarings', path: 'time.squarings', value: 8_192 },
  { why: 'an output of zero', path: 'time.output', value: encodeElement(0n) },
  { why: 'an output of one', path: 'time.output', value: encodeElement(1n) },
  { why: 'an output of N - 1', path: 'time.output', value: encodeElement(N - 1n) },
  { why: 'an output with one bit changed', path: 'time.output', value: flipped(clocked!.output) },
  { why: 'the output under its other name', path: 'time.output', value: encodeElement(N - numberOf(clocked!.output)) },
  {
    why: 'the quotient under its other name',
    path: 'time.quotient',
    value: encodeElement(N - numberOf(clocked!.quotient)),
  },
  { why: 'a quotient of one', path: 'time.quotient', value: encodeElement(1n) },
  { why: 'a quotient with one bit changed', path: 'time.quotient', value: flipped(clocked!.quotient) },
  { why: 'the quotient of another context', path: 'time.quotient', value: install.proofs.time!.quotient },
  { why: 'another challenge', path: 'time.counter', value: clocked!.counter + 1 },
  { why: 'a counter that is too large', path: 'time.counter', value: 65_536 },
  {
    why: 'halvings, as format 1 had them',
    path: 'time',
    value: { squarings: 4_096, output: clocked!.output, halvings: [] },
  },
  { why: 'judged after the window', atMs: publish.proofs.challenge.anchor.issuedAtMs + WINDOW_MS + 1 },
];

const invalid = [];
for (const change of changes) {
  const proofs = structuredClone(publish.proofs);
  if (change.path !== undefined) {
    const keys = change.path.split('.');
    const parent = keys.slice(0, -1).reduce((node, key) => (node as never)[key], proofs as object);
    Object.assign(parent, { [keys.at(-1)!]: change.value });
  }
  const { why, ...rest } = change;
  const verdicts = verdictsOf(await nkrypt.verify(proofs, { genesis, atMs: change.atMs ?? publish.atMs }));
  process.stdout.write(`${why}: ${JSON.stringify(verdicts)}\n`);
  if (!Object.values(verdicts).includes('invalid')) throw new Error(`${why} is accepted`);
  invalid.push({ why, set: SET, ...rest, verdicts });
}

for (const [name, list] of Object.entries({ valid, invalid })) {
  await writeFile(join(target, `${name}.json`), `${JSON.stringify(list, null, 2)}\n`);
}
const { networkId } = await nkrypt.genesis();
const { challenge } = publish.proofs;
const { operation } = challenge;
const envelope = await trust.sign('publisher', ORDER_TYPE, encodeOrder({ formatVersion: 1, networkId, operation }));
const order = { keys: await trust.publicKeys('publisher'), envelope };
const h = (digit: string) => digit.repeat(64);
const layers = [1, 2, 3].map(() => ({ labels: '', path: '' }));
const opened = {
  challenge,
  attempt: 1,
  revealed: space!.revealed,
  root: h('2'),
  labels: `${'A'.repeat(43)}=`,
  path: '',
};
const asked = {
  valid: [
    { method: 'committee/anchor', body: { operation, order, newest: null } },
    {
      method: 'committee/anchor',
      body: { operation: install.proofs.challenge.operation, order: null, newest: install.endorsement },
    },
    { method: 'committee/reveal', body: { challenge, attempt: 1 } },
    { method: 'committee/opening', body: opened },
    { method: 'committee/statement', body: { challenge } },
    { method: 'committee/vote', body: { proofs: {}, order, fast: false } },
    { method: 'committee/confirm', body: { certificate: {} } },
    { method: 'committee/account', body: {} },
    { method: 'committee/name', body: { name: 'ada/greeter' } },
    { method: 'committee/entry', body: { entry: 'e30=' } },
    { method: 'committee/register', body: { roots: [h('5'), h('6'), h('7')] } },
    { method: 'committee/registration', body: { nonce: h('8'), roots: [h('5'), h('6'), h('7')], layers } },
    { method: 'committee/standing', body: {} },
    {
      method: 'committee/introduce',
      body: { root: h('7'), words: install.endorsement.votes },
    },
    { method: 'committee/log', body: { certificate: {} } },
    { method: 'committee/log-head', body: {} },
    { method: 'committee/log-consistency', body: { from: 0, to: 3 } },
    { method: 'network/news', body: {} },
    { method: 'network/epochs', body: { proposals: [] } },
    { method: 'network/documents', body: { epochs: [] } },
    { method: 'network/keys', body: {} },
    { method: 'network/members', body: {} },
    { method: 'network/leave', body: {} },
  ],
  invalid: [
    {
      why: 'an unknown kind',
      method: 'committee/anchor',
      body: { operation: { ...operation, kind: 'delete' }, order, newest: null },
      says: 'kind',
    },
    {
      why: 'a subject that is no digest',
      method: 'committee/anchor',
      body: { operation: { ...operation, subject: 'x' }, order, newest: null },
      says: 'subject',
    },
    {
      why: 'a reference that is too long',
      method: 'committee/anchor',
      body: { operation: { ...operation, ref: 'x'.repeat(513) }, order, newest: null },
      says: 'ref',
    },
    {
      why: 'an order without keys',
      method: 'committee/anchor',
      body: { operation, order: { envelope }, newest: null },
      says: 'order',
    },
    { why: 'no challenge', method: 'committee/reveal', body: { attempt: 1 }, says: 'challenge' },
    { why: 'a fourth audit', method: 'committee/reveal', body: { challenge, attempt: 4 }, says: 'attempt' },
    {
      why: 'labels that are not canonical base64',
      method: 'committee/opening',
      body: { ...opened, labels: 'AB==' },
      says: 'labels',
    },
    { why: 'nothing revealed', method: 'committee/opening', body: { ...opened, revealed: [] }, says: 'revealed' },
    { why: 'no order', method: 'committee/vote', body: { proofs: {}, fast: false }, says: 'order' },
    { why: 'a name in upper case', method: 'committee/name', body: { name: 'Ada' }, says: 'name' },
    { why: 'an entry that is no base64', method: 'committee/entry', body: { entry: '!' }, says: 'entry' },
    { why: 'two roots', method: 'committee/register', body: { roots: [h('5'), h('6')] }, says: 'roots' },
    {
      why: 'four layers',
      method: 'committee/registration',
      body: { nonce: h('8'), roots: [h('5'), h('6'), h('7')], layers: [...layers, layers[0]] },
      says: 'layers',
    },
    {
      why: 'a leaf, which is not taken on trust',
      method: 'committee/log',
      body: { certificate: {}, leaf: 'e30=' },
      says: 'leaf',
    },
    { why: 'a negative size', method: 'committee/log-consistency', body: { from: -1, to: 3 }, says: 'from' },
    { why: 'no list of proposals', method: 'network/epochs', body: {}, says: 'proposals' },
    { why: 'an unknown member', method: 'network/news', body: { since: 1 }, says: 'since' },
    { why: 'a list instead of an object', method: 'network/members', body: [], says: 'object' },
    { why: 'nothing', method: 'network/leave', body: null, says: 'object' },
  ],
};
for (const [name, list] of Object.entries(asked)) {
  await writeFile(join(target, '..', 'committee', `${name}.json`), `${JSON.stringify(list, null, 1)}\n`);
}
await rm(folder, { recursive: true, force: true });
