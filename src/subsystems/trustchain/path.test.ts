import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fromBase64, utf8 } from '../../base/bytes.ts';
import { type ErrorCode, isCoded } from '../../base/errors.ts';
import {
  type Certificate,
  decodeCertificate,
  decodeRevocationList,
  type RevocationList,
} from '../../wire/certificate.ts';
import { openTrust } from './index.ts';
import { type PathQuestion, validatePath } from './path.ts';
import { verifies } from './verify.ts';

/** A genuine chain; each test breaks one thing in it. The signatures over what is broken are taken as good, so that only the rule refuses. */
const NOW = Date.UTC(2026, 5, 1);
let directory: string;
let leaf: Certificate;
let intermediate: Certificate;
let root: Certificate;
let lists: readonly RevocationList[];

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'hypermesh-path-'));
  await using trust = await openTrust({ directory, clock: { nowMs: () => NOW } });
  const { chain } = await trust.identity('publisher');
  [leaf, intermediate, root] = chain.map((der) => decodeCertificate(fromBase64(der))) as [
    Certificate,
    Certificate,
    Certificate,
  ];
  lists = (await trust.anchor()).revocations.map((der) => decodeRevocationList(fromBase64(der)));
});

after(() => rm(directory, { recursive: true }));

function question(changes: Partial<PathQuestion> = {}): PathQuestion {
  return { role: 'publisher', atMs: NOW, root: root.der, revocations: lists, verifies: () => true, ...changes };
}

function refused(
  code: ErrorCode,
  says: RegExp,
  chain: readonly Certificate[],
  changes: Partial<PathQuestion> = {},
): void {
  assert.throws(
    () => validatePath(chain, question(changes)),
    (error) => isCoded(error, code) && says.test(error.message),
  );
}

test('validatePath() accepts the genuine chain with its genuine signatures', () => {
  const path = validatePath([leaf, intermediate, root], question({ verifies }));
  assert.equal(path.leaf, leaf);
  assert.ok(path.unrevoked && path.fromMs <= NOW && path.untilMs > NOW);
});

test('signatures: a chain whose bytes were altered', () => {
  for (const at of [0, 1, 2]) {
    const chain = [leaf, intermediate, root];
    const victim = chain[at]!;
    for (const algorithm of ['falcon', 'ed25519'] as const) {
      const bytes = victim.signed[algorithm].bytes.slice();
      bytes[200]! ^= 1;
      const signed = { ...victim.signed, [algorithm]: { ...victim.signed[algorithm], bytes } };
      refused('certificate-invalid', /not signed by/, chain.with(at, { ...victim, signed }), { verifies });
    }
  }
});

test('length of the chain', () => {
  refused('certificate-invalid', /2 to 5/, []);
  refused('certificate-invalid', /2 to 5/, [root]);
  refused('certificate-invalid', /2 to 5/, [leaf, intermediate, intermediate, intermediate, intermediate, root]);
});

test('another root, or none', () => {
  refused('certificate-invalid', /another root/, [leaf, intermediate, root], { root: utf8('another') });
  refused('certificate-invalid', /another root/, [leaf, intermediate]);
});

test('issuer and subject, and the key identifiers', () => {
  refused('certificate-invalid', /names the issuer/, [leaf, root]);
  refused('certificate-invalid', /names itself/, [
    { ...leaf, subjectDer: intermediate.subjectDer },
    intermediate,
    root,
  ]);
  refused('certificate-invalid', /authority key/, [{ ...leaf, authorityKeyId: root.keyId }, intermediate, root]);
  refused('certificate-invalid', /authority key/, [{ ...leaf, authorityKeyId: null }, intermediate, root]);
  refused('certificate-invalid', /subject key/, [{ ...leaf, subjectKeyId: null }, intermediate, root]);
});

test('validity, of every certificate in the chain', () => {
  const chain = [leaf, intermediate, root];
  for (const [at, certificate] of chain.entries()) {
    refused('certificate-expired', /until/, chain.with(at, { ...certificate, notAfterMs: NOW - 1 }));
    refused('certificate-expired', /from/, chain.with(at, { ...certificate, notBeforeMs: NOW + 1 }));
  }
});

test('an unknown critical extension anywhere', () => {
  const chain = [leaf, intermediate, root];
  for (const [at, certificate] of chain.entries()) {
    refused('certificate-invalid', /1\.2\.3/, chain.with(at, { ...certificate, unknownCritical: ['1.2.3'] }));
  }
});

test('basic constraints: a leaf that acts as an authority', () => {
  for (const basicConstraints of [null, { ca: false, pathLengthMax: null }]) {
    refused('certificate-invalid', /not an authority/, [leaf, { ...intermediate, basicConstraints }, root]);
  }
  const authority = { ...leaf, basicConstraints: { ca: true, pathLengthMax: null } };
  refused('certificate-invalid', /is an authority/, [authority, intermediate, root]);
});

test('path length: an intermediate below one that allows none', () => {
  const second: Certificate = {
    ...intermediate,
    subjectDer: utf8('second'),
    issuerDer: intermediate.subjectDer,
    authorityKeyId: intermediate.keyId,
  };
  refused('certificate-invalid', /allows 0 authorities/, [
    { ...leaf, issuerDer: second.subjectDer },
    second,
    intermediate,
    root,
  ]);
});

test('key usage of authorities and of leaves', () => {
  const none = { signs: false, signsCertificates: false, signsLists: false };
  const lacking = (certificate: Certificate, keyUsage: Certificate['keyUsage']) => ({ ...certificate, keyUsage });
  for (const keyUsage of [null, none]) {
    refused('certificate-invalid', /not sign certificates/, [leaf, lacking(intermediate, keyUsage), root]);
    refused('certificate-invalid', /not sign documents/, [lacking(leaf, keyUsage), intermediate, root]);
  }
  const noLists = { signs: false, signsCertificates: true, signsLists: false };
  refused('certificate-invalid', /not sign revocation/, [leaf, lacking(intermediate, noLists), root]);
});

test('role', () => {
  refused('certificate-invalid', /act as a validator/, [leaf, intermediate, root], { role: 'validator' });
  refused('certificate-invalid', /act as a publisher/, [{ ...leaf, roles: [] }, intermediate, root]);
});

test('revocation lists: missing, of somebody else, forged, out of date, superseded by a newer one', () => {
  const chain = [leaf, intermediate, root];
  refused('certificate-invalid', /no revocation list/, chain, { revocations: [] });
  refused('certificate-invalid', /no revocation list/, chain, { revocations: lists.slice(1) });
  const forged = lists.map((list) => ({ ...list, authorityKeyId: '00' }));
  refused('certificate-invalid', /no revocation list/, chain, { revocations: forged });
  const falcon = { bytes: utf8('x'), signature: utf8('y') };
  const damaged = lists.map((list) => ({ ...list, signed: { ...list.signed, falcon } }));
  refused('certificate-invalid', /forged or damaged/, chain, { revocations: damaged, verifies });
  const old = lists.map((list) => ({ ...list, nextUpdateMs: NOW - 1 }));
  refused('certificate-invalid', /due for renewal/, chain, { revocations: old });
  const newer = lists.map((list) => ({
    ...list,
    number: 9,
    revoked: new Map([[leaf.serial, { atMs: NOW, reason: 'superseded' as const }]]),
  }));
  refused('certificate-revoked', /superseded/, chain, { revocations: [...newer, ...lists] });
});

test('revocation: what was signed before stays good, except after a compromise', () => {
  const chain = [leaf, intermediate, root];
  for (const victim of [leaf, intermediate]) {
    const revoked = (reason: 'superseded' | 'key-compromise', atMs: number) => ({
      revocations: lists.map((list) => ({ ...list, revoked: new Map([[victim.serial, { atMs, reason }]]) })),
    });
    refused('certificate-revoked', /superseded/, chain, revoked('superseded', NOW));
    refused('certificate-revoked', /compromise/, chain, revoked('key-compromise', NOW + 1));
    const path = validatePath(chain, question(revoked('superseded', NOW + 1)));
    assert.equal(path.unrevoked, false);
  }
});
