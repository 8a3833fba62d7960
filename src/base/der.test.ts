import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { fromHex, hex, utf8 } from './bytes.ts';
import { DerError, DerValue, der, derNatural, derOid, derTime, TAG } from './der.ts';

const refuses = (read: () => unknown, why: string) => assert.throws(read, DerError, why);

test('DerValue.read() takes exactly one value, with its length in the shortest form', () => {
  assert.equal(hex(DerValue.read(fromHex('0403010203'), TAG.octetString).content), '010203');
  for (const [bytes, why] of [
    ['', 'nothing'],
    ['04', 'no length'],
    ['0402ff', 'cut off'],
    ['0401ffff', 'something after it'],
    ['0481 01 ff', 'a long form of a short length'],
    ['0482 0001 ff', 'a length with a leading zero'],
    ['0480 ff 0000', 'an indefinite length'],
    ['0484 00000001 ff', 'more octets of length than anything here has'],
    ['1f1f 01 ff', 'a tag of several octets'],
    ['0201 01', 'another type'],
  ] as const) {
    refuses(() => DerValue.read(fromHex(bytes.replaceAll(' ', '')), TAG.octetString), why);
  }
});

test('children() stay within their parent', () => {
  const parent = DerValue.read(fromHex('3006 020101 020102'.replaceAll(' ', '')), TAG.sequence);
  assert.deepEqual(
    parent.children().map((child) => child.count()),
    [1, 2],
  );
  refuses(() => DerValue.read(fromHex('3003020201'), TAG.sequence).children(), 'a child longer than its parent');
  refuses(() => DerValue.read(fromHex('300402010102'), TAG.sequence).children(), 'a child that is cut off');
  refuses(() => parent.only(TAG.integer), 'two where one is expected');
});

test('numbers, identifiers, times and lengths are read as they were written', () => {
  const read = (bytes: Uint8Array) => DerValue.read(bytes, bytes[0]!);
  fc.assert(fc.property(fc.nat(2 ** 31 - 1), (value) => assert.equal(read(derNatural(value)).count(), value)));
  const arcs = fc
    .tuple(fc.nat(2), fc.nat(39), fc.array(fc.bigInt(0n, 2n ** 128n), { maxLength: 3 }))
    .map((all) => all.flat());
  fc.assert(fc.property(arcs, (all) => assert.equal(read(derOid(all.join('.'))).oid(), all.join('.'))));
  const second = fc.integer({ min: -2_000_000_000, max: 250_000_000_000 });
  fc.assert(fc.property(second, (s) => assert.equal(read(derTime(s * 1000)).timeMs(), s * 1000)));
  for (const length of [0, 1, 127, 128, 255, 256, 65_535, 65_536]) {
    assert.equal(read(der(TAG.octetString, new Uint8Array(length))).content.length, length);
  }
});

test('a value in any other form than the one of DER is refused', () => {
  const value = (tag: number, content: string) => DerValue.read(der(tag, fromHex(content)), tag);
  for (const content of ['', '80', 'ff01', '0001', '00']) {
    const read = () => value(TAG.integer, content).natural();
    if (content === '00') assert.deepEqual([...read()], [0]);
    else refuses(read, `INTEGER ${content}`);
  }
  refuses(() => value(TAG.integer, '01000000000000').count(), 'a number of more than 48 bits');
  for (const content of ['', '00', '01', 'ffff']) refuses(() => value(TAG.boolean, content).expectTrue(), content);
  value(TAG.boolean, 'ff').expectTrue();

  assert.deepEqual([...value(TAG.bitString, '0780').namedBits()], [0]);
  assert.deepEqual([...value(TAG.bitString, '0106').namedBits()], [5, 6]);
  assert.deepEqual([...value(TAG.bitString, '07ff80').namedBits()], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
  assert.deepEqual([...value(TAG.bitString, '00').namedBits()], []);
  for (const content of ['', '01', '0680', '0000', '0781', '4780', '0880']) {
    refuses(() => value(TAG.bitString, content).namedBits(), `BIT STRING ${content}`);
  }
  refuses(() => value(TAG.bitString, '0180').wholeBits(), 'unused bits');

  for (const content of ['', '80', '5580', '558001', '2a'.repeat(65)]) {
    refuses(() => value(TAG.oid, content).oid(), `OBJECT IDENTIFIER ${content}`);
  }

  const time = (tag: number, text: string) => DerValue.read(der(tag, utf8(text)), tag).timeMs();
  assert.equal(time(TAG.utcTime, '491231235959Z'), Date.UTC(2049, 11, 31, 23, 59, 59));
  assert.equal(time(TAG.utcTime, '500101000000Z'), Date.UTC(1950, 0, 1));
  assert.equal(time(TAG.generalizedTime, '20500101000000Z'), Date.UTC(2050, 0, 1));
  for (const [tag, text] of [
    [TAG.utcTime, '260230000000Z'],
    [TAG.utcTime, '261301000000Z'],
    [TAG.utcTime, '260101240000Z'],
    [TAG.utcTime, '260101000060Z'],
    [TAG.utcTime, '2601010000Z'],
    [TAG.utcTime, '260101000000+0000'],
    [TAG.utcTime, '26010100000\u0660Z'],
    [TAG.generalizedTime, '20260101000000Z'],
    [TAG.generalizedTime, '20500101000000.5Z'],
    [TAG.generalizedTime, '00500101000000Z'],
  ] as const) {
    refuses(() => time(tag, text), text);
  }

  refuses(() => value(TAG.utf8String, 'c3').text(), 'cut off UTF-8');
  refuses(() => value(TAG.printableString, 'c3a9').text(), 'more than ASCII');
  refuses(() => value(0x1e, '0041').text(), 'BMPString');
});
