import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { base64, concat, fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { openEnvelope, pae, SIGNATURE_LIMITS, sealEnvelope } from './signature.ts';

const KEY_ID = 'ab'.repeat(32);

function sealed(payload: Uint8Array, payloadType = 'text/plain') {
  return sealEnvelope(payloadType, payload, KEY_ID, {
    falcon: new Uint8Array(1280).fill(1),
    ed25519: new Uint8Array(64),
  });
}

test('pae() is the encoding of the DSSE specification', () => {
  const example = 'DSSEv1 29 http://example.com/HelloWorld 11 hello world';
  assert.equal(fromUtf8(pae('http://example.com/HelloWorld', utf8('hello world'))), example);
});

test('pae() gives different bytes for different types or payloads', () => {
  fc.assert(
    fc.property(fc.string(), fc.uint8Array(), fc.string(), fc.uint8Array(), (typeA, a, typeB, b) => {
      const same = typeA === typeB && base64(a) === base64(b);
      assert.equal(base64(pae(typeA, a)) === base64(pae(typeB, b)), same);
    }),
  );
});

test('openEnvelope() gives back what sealEnvelope() took', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 500 }), (payload) => {
      const opened = openEnvelope(JSON.parse(JSON.stringify(sealed(payload))));
      assert.equal(opened.keyId, KEY_ID);
      assert.deepEqual(opened.payload, payload);
      assert.deepEqual(opened.signed, pae('text/plain', payload));
      assert.deepEqual(opened.falcon, new Uint8Array(1280).fill(1));
    }),
  );
});

test('openEnvelope() refuses anything else with a code', () => {
  fc.assert(
    fc.property(fc.anything(), (value) => {
      assert.throws(
        () => openEnvelope(value),
        (error) => isCoded(error, 'signature-invalid'),
      );
    }),
  );
  const large = new Uint8Array(SIGNATURE_LIMITS.payloadBytesMax + 1);
  assert.throws(
    () => openEnvelope(sealed(large)),
    (error) => isCoded(error, 'signature-invalid'),
  );
  openEnvelope(sealed(large.subarray(1)));
});

test('every base64 text has one form', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 9 }), fc.constantFrom(' ', '\n', '=', '-'), (bytes, extra) => {
      const good = sealed(concat(bytes));
      const refused = (payload: string) =>
        assert.throws(
          () => openEnvelope({ ...good, payload }),
          (error) => isCoded(error, 'signature-invalid'),
        );
      refused(good.payload + extra);
      refused(extra + good.payload);
      if (good.payload.endsWith('=')) refused(good.payload.replace(/=+$/, ''));
    }),
  );
});

test('the invalid vectors are refused, the valid ones are well-formed', () => {
  for (const { name, envelope } of vectors('invalid')) {
    assert.throws(
      () => openEnvelope(envelope),
      (error) => isCoded(error, 'signature-invalid'),
      name,
    );
  }
  for (const { envelope } of vectors('valid')) openEnvelope(envelope);
});

function vectors(kind: 'valid' | 'invalid'): readonly { readonly name: string; readonly envelope: unknown }[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/signature/${kind}.json`, import.meta.url), 'utf8'));
}
