import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import {
  decodeHello,
  decodeHelloDocument,
  decodeVoucher,
  encodeHello,
  encodeHelloDocument,
  encodeVoucher,
  HELLO_LIMITS,
  type Hello,
  type Voucher,
} from './hello.ts';

interface Payload {
  readonly why: string;
  readonly payload: string;
}
interface Document {
  readonly why: string;
  readonly document: string;
}

const valid = readVectors<{
  hello: (Payload & { hello: Hello })[];
  voucher: (Payload & { voucher: Voucher })[];
  document: Document[];
}>('hello', 'valid');
const invalid = readVectors<{
  hello: Payload[];
  voucher: Payload[];
  document: { readonly why: string; readonly document?: string; readonly with?: Json }[];
}>('hello', 'invalid');

const refused = (work: () => unknown, why?: string) => assert.throws(work, (error) => isCoded(error, 'peer-lied'), why);

describe('hello and voucher', () => {
  it('are read and written as in the vectors', () => {
    for (const { why, hello, payload } of valid.hello) {
      assert.deepEqual(decodeHello(utf8(payload)), hello, why);
      assert.equal(fromUtf8(encodeHello(hello)), payload, why);
    }
    for (const { why, voucher, payload } of valid.voucher) {
      assert.deepEqual(decodeVoucher(utf8(payload)), voucher, why);
      assert.equal(fromUtf8(encodeVoucher(voucher)), payload, why);
    }
    for (const { why, document } of valid.document) {
      assert.equal(fromUtf8(encodeHelloDocument(decodeHelloDocument(utf8(document)))), document, why);
    }
  });

  it('are refused as in the vectors', () => {
    for (const { why, payload } of invalid.hello) refused(() => decodeHello(utf8(payload)), why);
    for (const { why, payload } of invalid.voucher) refused(() => decodeVoucher(utf8(payload)), why);
    for (const { why, document, with: patch = {} } of invalid.document) {
      const text = document ?? canonicalJson(patched(JSON.parse(valid.document[0]!.document) as Json, patch));
      refused(() => decodeHelloDocument(utf8(text)), why);
    }
    const { hello, voucher } = JSON.parse(valid.document[0]!.document) as { hello: Json; voucher: Json };
    refused(() => decodeHelloDocument(utf8(JSON.stringify({ voucher, hello }))), 'members in another order');
    refused(() => decodeHelloDocument(new Uint8Array(HELLO_LIMITS.bytesMax + 1)));
    refused(() => decodeHello(Uint8Array.of(0xff)));
  });

  it('never become something else when bytes change', () => {
    const [{ document }] = valid.document as [Document];
    const [{ hello }] = valid.hello as [Payload & { hello: Hello }];
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        for (const [bytes, decode, encode] of [
          [utf8(document), decodeHelloDocument, encodeHelloDocument],
          [encodeHello(hello), decodeHello, encodeHello],
        ] as const) {
          const changed = bytes.slice();
          changed[at % bytes.length]! ^= flip;
          try {
            assert.deepEqual(encode(decode(changed) as never), changed);
          } catch (error) {
            assert.ok(isCoded(error, 'peer-lied'), String(error));
          }
        }
      }),
      { numRuns: 300 },
    );
  });
});
