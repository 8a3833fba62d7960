import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { equal, fromBase64, hex } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import {
  type Certificate,
  type CertificateFields,
  decodeCertificate,
  decodeRevocationList,
  issueCertificate,
  issueRevocationList,
  type RevocationReason,
} from './certificate.ts';
import { keyIdOf } from './key-id.ts';

/** Signatures of the right length that no key made: the codec does not care. */
const signer = {
  falcon: async () => new Uint8Array(1280).fill(0x3a),
  ed25519: async () => new Uint8Array(64).fill(7),
};

const name = fc.stringMatching(/^[A-Za-z0-9 ._@-]{1,32}$/);
const instantMs = fc.integer({ min: 0, max: 4_102_444_800_000 });

const fields: fc.Arbitrary<CertificateFields> = fc.record({
  role: fc.constantFrom('root', 'intermediate', 'publisher', 'validator', 'node'),
  serial: fc.uint8Array({ minLength: 1, maxLength: 20 }).map((bytes) => {
    bytes[0] = (bytes[0]! & 0x3f) | 0x40;
    return bytes;
  }),
  subject: fc.record({ commonName: name, organization: name }),
  keys: fc.record({
    falcon: fc.noShrink(fc.uint8Array({ minLength: 1793, maxLength: 1793 })),
    ed25519: fc.uint8Array({ minLength: 32, maxLength: 32 }),
  }),
  notBeforeMs: instantMs,
  notAfterMs: instantMs,
});

test('decodeCertificate() gives back what issueCertificate() took', async () => {
  await fc.assert(
    fc.asyncProperty(fields, async (given) => {
      const read = decodeCertificate(await issueCertificate(given, signer));
      const second = (ms: number) => Math.floor(ms / 1000) * 1000;
      assert.equal(read.serial, hex(given.serial));
      assert.equal(read.subject, `O=${given.subject.organization}, CN=${given.subject.commonName}`);
      assert.equal(read.notBeforeMs, second(given.notBeforeMs));
      assert.equal(read.notAfterMs, second(given.notAfterMs));
      assert.deepEqual(read.keys, { ...given.keys });
      assert.equal(read.keyId, keyIdOf(given.keys));
      assert.equal(read.subjectKeyId, read.keyId);
      assert.equal(read.authorityKeyId, read.keyId);
      const authority = given.role === 'root' || given.role === 'intermediate';
      assert.equal(read.basicConstraints?.ca, authority);
      assert.deepEqual(read.keyUsage, { signs: !authority, signsCertificates: authority, signsLists: authority });
      assert.deepEqual(read.roles, authority ? [] : [given.role]);
      assert.deepEqual(read.unknownCritical, []);
      assert.deepEqual(read.signed.ed25519.signature, new Uint8Array(64).fill(7));
    }),
    { numRuns: 40 },
  );
});

test('what Ed25519 signs is the same before and after its signature is put in', async () => {
  const [given] = fc.sample(fields, 1);
  let asked: Uint8Array | undefined;
  const der = await issueCertificate(given!, {
    ...signer,
    async ed25519(bytes) {
      asked = bytes;
      return new Uint8Array(64).fill(9);
    },
  });
  assert.ok(asked !== undefined && equal(asked, decodeCertificate(der).signed.ed25519.bytes));
});

test('decodeRevocationList() gives back what issueRevocationList() took', async () => {
  const reason = fc.constantFrom<RevocationReason>('key-compromise', 'superseded', 'cessation-of-operation');
  const serial = fc.integer({ min: 1, max: 2 ** 30 }).map((value) => `5${value.toString(16).padStart(15, '0')}`);
  const entries = fc.uniqueArray(fc.record({ serial, atMs: instantMs.map((ms) => ms - (ms % 1000)), reason }), {
    maxLength: 8,
    selector: (entry) => entry.serial,
  });
  const [issuer] = fc.sample(fields, 1);
  const authority = decodeCertificate(await issueCertificate(issuer!, signer));
  await fc.assert(
    fc.asyncProperty(entries, fc.integer({ min: 1, max: 2 ** 40 }), async (revoked, number) => {
      const der = await issueRevocationList(
        { issuer: authority, number, thisUpdateMs: 1000, nextUpdateMs: 5000, revoked },
        signer,
      );
      const read = decodeRevocationList(der);
      assert.equal(read.number, number);
      assert.equal(read.thisUpdateMs, 1000);
      assert.equal(read.nextUpdateMs, 5000);
      assert.deepEqual(read.issuerDer, authority.subjectDer);
      assert.equal(read.authorityKeyId, authority.keyId);
      assert.deepEqual(
        [...read.revoked],
        revoked.map(({ serial: text, atMs, reason: why }) => [text, { atMs, reason: why }]),
      );
    }),
    { numRuns: 30 },
  );
});

test('hostile bytes are refused with a code', async () => {
  const [given] = fc.sample(fields, 1);
  const der = await issueCertificate(given!, signer);
  const refusedOrRead = (bytes: Uint8Array) => {
    for (const decode of [decodeCertificate, decodeRevocationList]) {
      try {
        decode(bytes);
      } catch (error) {
        assert.ok(isCoded(error, 'certificate-invalid'), String(error));
      }
    }
  };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), refusedOrRead));
  fc.assert(
    fc.property(fc.nat(der.length - 1), fc.nat(255), fc.nat(der.length), (at, value, length) => {
      const changed = der.slice();
      changed[at] = value;
      refusedOrRead(changed);
      refusedOrRead(changed.subarray(0, length));
    }),
    { numRuns: 300 },
  );
  refusedOrRead(new Uint8Array(20_000).fill(0x30));
});

test('OpenSSL reads the same in every certificate that is read here, altered ones included', async () => {
  const [given] = fc.sample(fields, 1);
  const der = await issueCertificate(given!, signer);
  let agreed = 0;
  const compare = (bytes: Uint8Array) => {
    let ours: Certificate;
    try {
      ours = decodeCertificate(bytes);
    } catch {
      return;
    }
    const theirs = new X509Certificate(bytes);
    assert.equal(theirs.serialNumber.toLowerCase().replace(/^0+/, ''), ours.serial.replace(/^0+/, ''));
    assert.equal(theirs.validFromDate.getTime(), ours.notBeforeMs);
    assert.equal(theirs.validToDate.getTime(), ours.notAfterMs);
    // Its answer counts the key usage in.
    assert.ok(!theirs.ca || ours.basicConstraints?.ca === true);
    assert.equal(theirs.fingerprint256.replaceAll(':', '').toLowerCase(), ours.fingerprint);
    agreed++;
  };
  compare(der);
  assert.equal(agreed, 1);
  // Most changes fall outside of the keys and signatures, where they would mean nothing.
  const at = fc.oneof(fc.nat(249), fc.integer({ min: der.length - 1750, max: der.length - 1300 }));
  fc.assert(
    fc.property(at, fc.nat(7), (index, bit) => {
      const changed = der.slice();
      changed[index]! ^= 1 << bit;
      compare(changed);
    }),
    { numRuns: 1000 },
  );
  assert.ok(agreed > 50, `only ${agreed} altered certificates were read at all`);
});

interface Vector {
  readonly name: string;
  readonly kind: 'certificate' | 'revocation-list';
  readonly der: string;
  readonly expect: Readonly<Record<string, unknown>>;
}

function vectors(kind: 'valid' | 'invalid'): readonly Vector[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/certificate/${kind}.json`, import.meta.url), 'utf8'));
}

test('the vectors hold', () => {
  for (const { name: title, kind, der, expect } of vectors('valid')) {
    if (kind === 'certificate') {
      assert.deepEqual({ ...decodeCertificate(fromBase64(der)), ...expect }, decodeCertificate(fromBase64(der)), title);
    } else {
      const { number, thisUpdateMs, nextUpdateMs, revoked } = decodeRevocationList(fromBase64(der));
      const listed = [...revoked].map(([serial, entry]) => ({ serial, ...entry }));
      assert.deepEqual({ number, thisUpdateMs, nextUpdateMs, revoked: listed }, expect, title);
    }
  }
  for (const { name: title, kind, der } of vectors('invalid')) {
    const decode = kind === 'certificate' ? decodeCertificate : decodeRevocationList;
    assert.throws(
      () => decode(fromBase64(der)),
      (error) => isCoded(error, 'certificate-invalid'),
      title,
    );
  }
});
