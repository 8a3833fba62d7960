import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { inspect } from 'node:util';
import { equal, utf8 } from '../../base/bytes.ts';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { LeafRole } from '../../wire/certificate.ts';
import { treeHeadPayload, verifyConsistency, verifyInclusion } from '../../wire/log.ts';
import type { CertificateChain, Envelope, TrustAnchor } from '../../wire/signature.ts';
import { openTrust, type TrustChain, type TrustOptions, verifyEnvelope } from './index.ts';
import { readUnlockFile, sealKeys, unsealKeys } from './keystore.ts';

const DAY_MS = 86_400_000;
const START = Date.UTC(2026, 0, 1);
const TYPE = 'application/vnd.in-toto+json';
const PAYLOAD = utf8('{"a":1}');

let base: string;
let made = 0;

before(async () => {
  base = await mkdtemp(join(tmpdir(), 'hypermesh-trust-'));
});
after(() => rm(base, { recursive: true }));

function home(): string {
  made += 1;
  return join(base, String(made));
}

function open(directory: string, options: Partial<TrustOptions> = {}): Promise<TrustChain> {
  const limits = { passphraseLog2N: 10, keysIdleMs: 200 };
  return openTrust({ directory, clock: { nowMs: () => START }, limits, ...options });
}

function refused(promise: Promise<unknown>, ...codes: ErrorCode[]): Promise<void> {
  return assert.rejects(promise, (error) => isCoded(error, ...codes));
}

test('sign() and verify() agree, here and offline, and nothing altered passes', async () => {
  await using trust = await open(home());
  const { chain, keyId } = await trust.identity('publisher');
  const anchor = await trust.anchor();
  const envelope = await trust.sign('publisher', TYPE, PAYLOAD);
  for (let round = 0; round < 2; round++) {
    const verified = await trust.verify(envelope, chain, { role: 'publisher' });
    assert.equal(verified.signer, keyId);
    assert.equal(verified.certificate.role, 'publisher');
    assert.deepEqual(verified.payload, PAYLOAD);
  }
  const at = { role: 'publisher', atMs: START } as const;
  assert.equal((await verifyEnvelope(envelope, chain, anchor, at)).signer, keyId);

  const [falcon, ed25519] = envelope.signatures;
  const flip = (text: string, at2: number) =>
    text.slice(0, at2) + (text[at2] === 'A' ? 'B' : 'A') + text.slice(at2 + 1);
  const other = await trust.sign('publisher', TYPE, utf8('{"a":2}'));
  const bad: readonly Envelope[] = [
    { ...envelope, payload: other.payload },
    { ...envelope, payloadType: 'text/plain' },
    { ...envelope, signatures: [falcon!, other.signatures[1]!] },
    { ...envelope, signatures: [other.signatures[0]!, ed25519!] },
    { ...envelope, signatures: [{ ...falcon!, sig: flip(falcon!.sig, 600) }, ed25519!] },
    { ...envelope, signatures: [falcon!, { ...ed25519!, sig: flip(ed25519!.sig, 20) }] },
    { ...envelope, signatures: envelope.signatures.map((signature) => ({ ...signature, keyid: '0'.repeat(64) })) },
    { ...envelope, signatures: [falcon!] },
  ];
  for (const one of bad) await refused(trust.verify(one, chain, { role: 'publisher' }), 'signature-invalid');
  await refused(trust.verify(envelope, chain, { role: 'validator' }), 'certificate-invalid');
  await refused(trust.verify(envelope, chain.slice(0, 2), { role: 'publisher' }), 'certificate-invalid');
  await refused(trust.verify(envelope, chain, { role: 'publisher', atMs: START + 91 * DAY_MS }), 'certificate-expired');
  await refused(trust.verify(envelope, [], { role: 'publisher' }), 'certificate-invalid');
  await refused(trust.sign('publisher', 'No Media Type', PAYLOAD), 'usage');
  await refused(trust.sign('publisher', TYPE, new Uint8Array(1_048_577)), 'limit-exceeded');

  await using stranger = await open(home());
  await refused(
    trust.verify(envelope, chain, { role: 'publisher', anchor: await stranger.anchor() }),
    'certificate-invalid',
  );
});

test('the valid signature vectors verify offline', async () => {
  const text = await readFile(new URL('../../../test/vectors/signature/valid.json', import.meta.url), 'utf8');
  const vectors: readonly {
    readonly envelope: Envelope;
    readonly chain: CertificateChain;
    readonly anchor: TrustAnchor;
    readonly role: LeafRole;
    readonly atMs: number;
    readonly signer: string;
    readonly payloadText: string;
  }[] = JSON.parse(text);
  for (const { envelope, chain, anchor, role, atMs, signer, payloadText } of vectors) {
    const verified = await verifyEnvelope(envelope, chain, anchor, { role, atMs });
    assert.equal(verified.signer, signer);
    assert.deepEqual(verified.payload, utf8(payloadText));
  }
});

test('a home keeps its identity, renews in time, and recovers after a long sleep', async () => {
  const directory = home();
  let nowMs = START;
  const clock = { nowMs: () => nowMs };
  let first: string;
  {
    await using trust = await open(directory, { clock });
    first = (await trust.identity('publisher')).fingerprint;
  }
  nowMs += 59 * DAY_MS;
  {
    await using trust = await open(directory, { clock });
    assert.equal((await trust.identity('publisher')).fingerprint, first);
    nowMs += 2 * DAY_MS;
    const renewed = await trust.identity('publisher');
    assert.notEqual(renewed.fingerprint, first);
    assert.equal(renewed.notAfterMs, nowMs + 90 * DAY_MS);
  }
  // Past the end of every leaf, list and of the intermediate; only the root still lives.
  nowMs += 1_500 * DAY_MS;
  await using trust = await open(directory, { clock });
  const envelope = await trust.sign('publisher', TYPE, PAYLOAD);
  await trust.verify(envelope, (await trust.identity('publisher')).chain, { role: 'publisher' });
  assert.equal((await trust.certificates()).filter(({ status }) => status === 'valid').length, 5);
  const keyIds = new Set(
    (await trust.certificates()).filter(({ role }) => role === 'publisher').map(({ keyId }) => keyId),
  );
  assert.equal(keyIds.size, 1);
});

test('revoke() counts at once; renew() helps unless the key was stolen', async () => {
  await using trust = await open(home());
  const { chain, fingerprint } = await trust.identity('publisher');
  const envelope = await trust.sign('publisher', TYPE, PAYLOAD);
  await trust.verify(envelope, chain, { role: 'publisher' });
  await trust.revoke(fingerprint, 'superseded');
  await trust.revoke(fingerprint, 'superseded');
  await refused(trust.verify(envelope, chain, { role: 'publisher' }), 'certificate-revoked');
  await trust.verify(envelope, chain, { role: 'publisher', atMs: START - 60_000 });
  await refused(trust.sign('publisher', TYPE, PAYLOAD), 'certificate-revoked');
  await trust.renew('publisher');
  const again = await trust.identity('publisher');
  await trust.verify(await trust.sign('publisher', TYPE, PAYLOAD), again.chain, { role: 'publisher' });

  await trust.renew('publisher');
  // What the superseded certificate signed before stays good, until the key itself is known to be stolen.
  const early = { role: 'publisher', atMs: START - 60_000 } as const;
  await trust.verify(envelope, chain, early);
  await trust.revoke(again.fingerprint, 'key-compromise');
  await refused(trust.verify(envelope, chain, early), 'certificate-revoked');
  await assert.rejects(
    trust.sign('publisher', TYPE, PAYLOAD),
    (error) => isCoded(error, 'certificate-revoked') && /new home/.test(error.hint ?? ''),
  );
  await refused(trust.renew('publisher'), 'certificate-revoked');
  await refused(
    trust.verify(envelope, again.chain, { role: 'publisher', atMs: START - 60_000 }),
    'certificate-revoked',
  );
  await refused(trust.revoke('00', 'superseded'), 'certificate-not-found');
  const root = (await trust.certificates()).find(({ role }) => role === 'root')!;
  await refused(trust.revoke(root.fingerprint, 'superseded'), 'usage');
});

test('the log proves what it holds with heads that the validator signed', async () => {
  await using trust = await open(home());
  const empty = await trust.logHead();
  assert.equal(empty.size, 0);
  const answers = await Promise.all(['a', 'b', 'c'].map((text) => trust.logAppend(utf8(text), null)));
  const last = await trust.logAppend(utf8('d'), null);
  for (const [at, answer] of [...answers, last].entries()) {
    verifyInclusion(utf8('abcd'[at]!), answer);
    const { payload } = await trust.verify(answer.head.envelope, answer.head.chain, { role: 'validator' });
    assert.ok(equal(payload, treeHeadPayload(answer.head)));
  }
  verifyConsistency(answers[2]!.head, last.head, await trust.logConsistency(3, 4));
  assert.deepEqual(await trust.logHead(), last.head);
});

test('the key store: right and wrong passphrase, no secret in sight', async () => {
  const directory = home();
  const passphrase = 'correct horse battery staple';
  {
    await using trust = await open(directory, { passphrase });
    await trust.sign('publisher', TYPE, PAYLOAD);
    assert.ok(!inspect(trust, { depth: 9, showHidden: true }).includes(passphrase));
  }
  assert.ok(!(await readdir(directory)).includes('unlock.key'));
  await assert.rejects(
    open(directory, { passphrase: 'wrong' }),
    (error) => isCoded(error, 'key-locked') && !inspect(error, { depth: 9 }).includes('wrong"'),
  );
  await refused(open(directory), 'key-locked');
  await using trust = await open(directory, { passphrase });
  await trust.sign('validator', TYPE, PAYLOAD);
});

test('the key file: private, exact, and of this home', async () => {
  const directory = home();
  await (await open(directory))[Symbol.asyncDispose]();
  const file = join(directory, 'unlock.key');
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  assert.equal((await stat(directory)).mode & 0o777, 0o700);
  await refused(open(directory, { passphrase: 'x' }), 'key-locked');
  await chmod(file, 0o644);
  await refused(open(directory), 'key-invalid');
  await chmod(file, 0o600);
  const content = await readFile(file, 'utf8');
  await writeFile(file, content.replace(/[0-9a-f]{64}/, '0'.repeat(64)));
  await refused(open(directory), 'key-invalid');
  await writeFile(file, 'something else');
  await refused(open(directory), 'key-invalid');
  await rm(file);
  await refused(open(directory), 'key-invalid');
  await refused(open(directory, { network: 'bad/name' }), 'config-invalid');
  await writeFile(file, content, { mode: 0o600 });
  await refused(open(directory, { network: 'another' }), 'network-mismatch');
  await (await open(directory))[Symbol.asyncDispose]();
});

test('a home works without its root key, except for what only the root can do', async () => {
  const directory = home();
  await (await open(directory))[Symbol.asyncDispose]();
  const raw = new DatabaseSync(join(directory, 'trust.db'));
  const { sealed } = raw.prepare("DELETE FROM keystore WHERE name = 'root' RETURNING sealed").get() as {
    sealed: string;
  };
  raw.close();
  assert.deepEqual(JSON.parse(sealed).keys, ['root']);
  let nowMs = START;
  await using trust = await open(directory, { clock: { nowMs: () => nowMs } });
  const intermediate = (await trust.certificates()).find(({ role }) => role === 'intermediate')!;
  await refused(trust.revoke(intermediate.fingerprint, 'superseded'), 'key-locked');
  // The list of the root is due for renewal by now, but good for a while.
  nowMs += 300 * DAY_MS;
  const envelope = await trust.sign('publisher', TYPE, PAYLOAD);
  await trust.verify(envelope, (await trust.identity('publisher')).chain, { role: 'publisher' });
  nowMs += 100 * DAY_MS;
  await refused(trust.anchor(), 'key-locked');
});

/** What a home looked like before there were node keys. */
async function withoutNodeKey(directory: string): Promise<void> {
  const unlock = await readUnlockFile(directory);
  const raw = new DatabaseSync(join(directory, 'trust.db'));
  const { sealed } = raw.prepare("SELECT sealed FROM keystore WHERE name = 'node'").get() as { sealed: string };
  const keys = unsealKeys(sealed, unlock!);
  keys.delete('node');
  raw.prepare("UPDATE keystore SET sealed = ? WHERE name = 'node'").run(sealKeys(keys, unlock!));
  raw.exec("DELETE FROM certificate WHERE role = 'node'");
  raw.close();
}

test('a home from before there were node keys gets one, and takes its own older export', async () => {
  const directory = home();
  let publisher: string;
  {
    await using trust = await open(directory);
    publisher = (await trust.identity('publisher')).fingerprint;
  }
  await withoutNodeKey(directory);
  let node: string;
  {
    await using trust = await open(directory);
    node = (await trust.identity('node')).fingerprint;
    await trust.verify(await trust.sign('node', TYPE, PAYLOAD), (await trust.identity('node')).chain, { role: 'node' });
    assert.equal((await trust.identity('publisher')).fingerprint, publisher);
    const text = Buffer.concat(await exported(trust.section)).toString();
    const older = text
      .replace(/\{[^\n]*"role":"node"[^\n]*\n/, '')
      .replace(/"lines":(\d+)/, (_, lines: string) => `"lines":${Number(lines) - 1}`);
    await refused(trust.section.import(2, stream([utf8(older)])), 'state-invalid');
    await (await trust.section.import(1, stream([utf8(older)]))).commit();
  }
  await using trust = await open(directory);
  assert.equal((await trust.identity('node')).fingerprint, node);
});

test('killed at any moment of its first start, a home is whole after the next', async () => {
  const source = `
    const { openTrust } = await import(${JSON.stringify(new URL('./index.ts', import.meta.url).href)});
    process.stdout.write('.');
    await openTrust({ directory: process.argv[1], clock: { nowMs: () => ${START} } });
    process.stdout.write('!');
    setInterval(() => {}, 1000);`;
  for (const delayMs of [0, 150, 300]) {
    const directory = home();
    const child = spawn(process.execPath, ['--input-type=module', '-e', source, directory], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    await once(child.stdout, 'data');
    await new Promise((resolve) => setTimeout(resolve, delayMs));
    child.kill('SIGKILL');
    await once(child, 'exit');
    await using trust = await open(directory);
    assert.equal((await trust.certificates()).length, 5);
    await trust.verify(await trust.sign('publisher', TYPE, PAYLOAD), (await trust.identity('publisher')).chain, {
      role: 'publisher',
    });
  }
});

async function exported(section: StateSection): Promise<Uint8Array[]> {
  const pieces: Uint8Array[] = [];
  for await (const piece of section.export()) pieces.push(piece);
  return pieces;
}

async function* stream(pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  // In odd pieces, as a network would deliver them.
  for (const piece of pieces) for (let at = 0; at < piece.length; at += 9_999) yield piece.subarray(at, at + 9_999);
}

test('an export with a passphrase carries the identity to a new home', async () => {
  const passphrase = 'carried over';
  await using trust = await open(home(), { passphrase });
  await trust.logAppend(utf8('a'), null);
  await trust.logAppend(utf8('b'), null);
  const before2 = await trust.identity('publisher');
  const pieces = await exported(trust.section);

  await using fresh = await open(home(), { passphrase });
  const abandoned = await fresh.section.import(2, stream(pieces));
  await abandoned.abandon();
  assert.notEqual((await fresh.identity('publisher')).keyId, before2.keyId);
  await (await fresh.section.import(2, stream(pieces))).commit();
  assert.equal((await fresh.identity('publisher')).fingerprint, before2.fingerprint);
  const envelope = await fresh.sign('publisher', TYPE, PAYLOAD);
  await trust.verify(envelope, before2.chain, { role: 'publisher' });
  const next = await fresh.logAppend(utf8('c'), null);
  assert.equal(next.index, 2);
  verifyConsistency(await trust.logHead(), next.head, await fresh.logConsistency(2, 3));

  await using other = await open(home(), { passphrase: 'another' });
  await assert.rejects(
    other.section.import(2, stream(pieces)),
    (error) => isCoded(error, 'key-locked') && /passphrase of the keys in the export/.test(error.message),
  );
  await refused(other.section.import(trust.section.version + 1, stream(pieces)), 'state-too-new');
});

test('an export without a passphrase holds no keys and fits its own home only; damage is refused', async () => {
  const directory = home();
  await using trust = await open(directory);
  const { fingerprint } = await trust.identity('publisher');
  await trust.logAppend(utf8('a'), null);
  const pieces = await exported(trust.section);
  const text = Buffer.concat(pieces).toString();
  assert.ok(!text.includes('"keystore"'));
  await trust.logAppend(utf8('b'), null);
  await trust.revoke(fingerprint, 'superseded');
  await (await trust.section.import(2, stream(pieces))).commit();
  // Restoring an older state of the same home neither forgets a revocation nor shortens the log.
  assert.equal((await trust.logHead()).size, 2);
  await refused(trust.sign('publisher', TYPE, PAYLOAD), 'certificate-revoked');

  await using other = await open(home());
  await refused(other.section.import(2, stream(pieces)), 'state-invalid');
  const lines = text.split('\n');
  const damaged = [
    text.slice(0, -40),
    text.replace(/"content":"YQ=="/, '"content":"Yg=="'),
    lines.toSpliced(2, 1).join('\n'),
    text.replace('"role":"publisher"', '"role":"validator"'),
    `${text}{"kind":"network","name":"x"}\n`,
    'not json\n',
    '',
  ];
  for (const bad of damaged) await refused(trust.section.import(2, stream([utf8(bad)])), 'state-invalid');
  assert.deepEqual(
    (await readdir(directory)).filter((name) => name.startsWith('trust-import-')),
    [],
  );
});
