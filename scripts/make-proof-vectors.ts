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
import { OPERATION_KINDS, type OperationKind, type Requirements } from '../src/wire/proof.ts';

/**
 * Makes test/vectors/proof/ anew, but for what depends on no key (contexts, work, labels, positions). Signatures and keys differ on
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
  ...of('context', 'work'),
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

type Change = { readonly why: string; readonly path?: string; readonly value?: unknown; readonly atMs?: number };
const changes: readonly Change[] = [
  { why: 'another subject', path: 'challenge.operation.subject', value: other },
  { why: 'another identity', path: 'challenge.operation.identity', value: '77'.repeat(32) },
  { why: 'another network', path: 'challenge.networkId', value: other },
  { why: 'another sequence number', path: 'challenge.operation.sequence', value: 2 },
  { why: 'softer requirements', path: 'challenge.requirements.work.hexDigits', value: 1 },
  { why: 'an unknown member', path: 'challenge.more', value: 1 },
  { why: 'format 1, which had another time proof', path: 'formatVersion', value: 1 },
  { why: 'format 2, whose validators signed with certificates', path: 'formatVersion', value: 2 },
  { why: 'a version of the future', path: 'formatVersion', value: 4 },
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
await rm(folder, { recursive: true, force: true });
