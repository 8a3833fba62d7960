import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { hex } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import {
  decodeInvite,
  decodeOpenInvite,
  encodeInvite,
  encodeOpenInvite,
  INVITE_LIMITS,
  type Invite,
  isOpenInvite,
  type OpenInvite,
} from './invite.ts';

const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/invite/${kind}.json`, import.meta.url), 'utf8'));

for (const { name, text, invite } of vectors('valid') as { name: string; text: string; invite: Invite }[]) {
  test(`decodeInvite() accepts: ${name}`, () => {
    assert.deepEqual(decodeInvite(text), invite);
    assert.equal(encodeInvite(invite), text.replace(/\s/g, '').toLowerCase());
  });
}

for (const { name, text, invite } of vectors('open') as { name: string; text: string; invite: OpenInvite }[]) {
  test(`decodeOpenInvite() accepts: ${name}, and no part or change of it`, () => {
    assert.deepEqual(decodeOpenInvite(` ${text.toUpperCase()}\r\n`), invite);
    assert.equal(encodeOpenInvite(invite), text);
    assert.deepEqual([isOpenInvite(text), isOpenInvite(vectors('valid')[0].text)], [true, false]);
    const wrong = [
      text.slice(0, -1),
      text.slice(0, 4),
      `${text}a`,
      text.replace('hmo1', 'hmi1'),
      `${text.slice(0, 20)}b${text.slice(21)}`,
    ];
    for (const one of [...wrong, 'hmo2aaaa', vectors('valid')[0].text, 'a'.repeat(9_000)])
      assert.throws(
        () => decodeOpenInvite(one),
        (error) => isCoded(error, 'invite-invalid'),
      );
    for (const one of [{ addresses: [] }, { peer: 'x' }, { networkId: 'sha256:1' as const }])
      assert.throws(
        () => encodeOpenInvite({ ...invite, ...one }),
        (error) => isCoded(error, 'usage'),
      );
  });
}

for (const { why, text, says } of vectors('invalid') as { why: string; text: string; says: string }[]) {
  test(`decodeInvite() refuses: ${why}`, () => {
    assert.throws(
      () => decodeInvite(text),
      (error) => {
        assert.ok(isCoded(error, 'invite-invalid'), String(error));
        assert.match(error.message, new RegExp(says));
        assert.ok(error.hint);
        return true;
      },
    );
  });
}

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length }).map(hex);
const host = fc.oneof(
  fc.ipV4(),
  fc
    .ipV6()
    .filter((six) => !six.includes('.'))
    .map((six) => `[${six}]`),
  fc.stringMatching(/^[a-z][a-z0-9]{0,20}(\.[a-z]{1,10}){0,3}$/),
);
const address = fc.tuple(host, fc.integer({ min: 1, max: 65_535 })).map(([where, port]) => `${where}:${port}`);
const invites: fc.Arbitrary<Invite> = fc.record(
  {
    networkId: bytes(32).map((digits) => `sha256:${digits}` as const),
    inviter: bytes(32),
    secret: bytes(INVITE_LIMITS.secretBytes),
    expiresAtMs: fc.integer({ min: 0, max: 2 ** 40 - 1 }).map((seconds) => seconds * 1_000),
    addresses: fc.array(address, { minLength: 1, maxLength: INVITE_LIMITS.addressesMax }),
  },
  { noNullPrototype: true },
);

test('an invite survives the way through text, also one that a mail program folded', () => {
  fc.assert(
    fc.property(invites, fc.integer({ min: 1, max: 80 }), (invite, width) => {
      const text = encodeInvite(invite);
      assert.match(text, /^hmi1[a-z2-7]+$/);
      assert.deepEqual(decodeInvite(text), invite);
      const folded = text.toUpperCase().replace(new RegExp(`(.{${width}})`, 'g'), '$1\r\n ');
      assert.deepEqual(decodeInvite(folded), invite);
    }),
  );
});

test('one wrong letter, two swapped ones, or a part left out is always noticed', () => {
  fc.assert(
    fc.property(invites, fc.nat(), fc.integer({ min: 1, max: 31 }), (invite, where, shift) => {
      const letters = 'abcdefghijklmnopqrstuvwxyz234567';
      const text = encodeInvite(invite);
      const at = 4 + (where % (text.length - 4));
      const other = letters[(letters.indexOf(text[at]!) + shift) % 32]!;
      const refused = (wrong: string) =>
        assert.throws(
          () => decodeInvite(wrong),
          (error) => isCoded(error, 'invite-invalid'),
          wrong,
        );
      refused(text.slice(0, at) + other + text.slice(at + 1));
      refused(text.slice(0, at) + text.slice(at + 1));
      if (text[at] !== text[at + 1] && at + 1 < text.length)
        refused(text.slice(0, at) + text[at + 1]! + text[at]! + text.slice(at + 2));
    }),
  );
});

test('decodeInvite() answers whatever text with an invite or with a refusal', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^hmi1[a-z2-7]{0,300}$/)), (text) => {
      try {
        decodeInvite(text);
      } catch (error) {
        assert.ok(isCoded(error, 'invite-invalid'), String(error));
      }
    }),
    { numRuns: 2_000 },
  );
});

test('encodeInvite() refuses what it could not read back', () => {
  const invite: Invite = vectors('valid')[0].invite;
  for (const wrong of [
    { addresses: [] },
    { addresses: Array(9).fill('a:1') },
    { addresses: ['host'] },
    { addresses: ['2001:db8::1:9292'] },
    { addresses: ['[2001:db8::zz]:1'] },
    { addresses: ['host:65536'] },
    { addresses: ['host:0'] },
    { addresses: [`${'a'.repeat(300)}:1`] },
    { secret: '00' },
    { expiresAtMs: 1 },
    { expiresAtMs: -1_000 },
    { inviter: 'x' },
  ])
    assert.throws(
      () => encodeInvite({ ...invite, ...wrong }),
      (error) => isCoded(error, 'usage'),
    );
});
