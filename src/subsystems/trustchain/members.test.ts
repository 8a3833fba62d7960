import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { fromBase64, fromUtf8, utf8 } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import { type ErrorCode, HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import { readVectors } from '../../testing/vectors.ts';
import { CERTIFICATION_TYPE, CERTIFIED_ROLES, type JoinRequest } from '../../wire/certification.ts';
import { sealEnvelope } from '../../wire/signature.ts';
import type { SignedTerms } from '../../wire/terms.ts';
import { openTrust, type TrustChain } from './index.ts';
import type { OpenDoor } from './members.ts';

const NETWORK: Digest = `sha256:${'ab'.repeat(32)}`;
const time = { nowMs: Date.UTC(2026, 0, 1) };
const clock = { nowMs: () => time.nowMs };

let base: string;
let founder: TrustChain;
let bob: TrustChain;
let eve: TrustChain;
const closing = new AsyncDisposableStack();

before(async () => {
  base = await mkdtemp(join(tmpdir(), 'hypermesh-members-'));
  const open = async (name: string) =>
    closing.use(await openTrust({ directory: join(base, name), clock, subject: name, limits: { keysIdleMs: 200 } }));
  [founder, bob, eve] = [await open('ada'), await open('bob'), await open('eve')];
});
after(async () => {
  await closing.disposeAsync();
  await rm(base, { recursive: true });
});

const refused = (promise: Promise<unknown>, ...codes: ErrorCode[]) =>
  assert.rejects(promise, (error) => {
    assert.ok(isCoded(error, ...codes), String(error));
    return true;
  });

async function* replay(pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* pieces;
}

function newInvite(): Promise<string> {
  return founder.invite({ expiresAtMs: time.nowMs + 60_000, tokens: 0 });
}

async function requestOf(home: TrustChain, secret: string | null, asked = founder.keyIds().node): Promise<JoinRequest> {
  return home.certificationRequest({ networkId: NETWORK, asked, secret });
}

/** The statement with some members replaced, under the signatures of `by` for it where there are any. */
async function forged(
  from: JoinRequest,
  by: Partial<Record<(typeof CERTIFIED_ROLES)[number], TrustChain>>,
  change: (statement: Record<string, unknown>) => void,
): Promise<JoinRequest> {
  const statement = JSON.parse(fromUtf8(fromBase64(from.envelopes[0].payload))) as Record<string, unknown>;
  change(statement);
  const payload = utf8(canonicalJson(statement));
  const envelopes = await Promise.all(
    CERTIFIED_ROLES.map(async (role, at) => {
      const signer = by[role];
      if (signer !== undefined) return signer.sign(role, CERTIFICATION_TYPE, payload);
      // Nobody who can sign: the old signatures under the new words.
      const [falcon, ed25519] = from.envelopes[at]!.signatures;
      return sealEnvelope(CERTIFICATION_TYPE, payload, falcon!.keyid, {
        falcon: fromBase64(falcon!.sig),
        ed25519: fromBase64(ed25519!.sig),
      });
    }),
  );
  return { secret: from.secret, envelopes: envelopes as unknown as JoinRequest['envelopes'] };
}

test('certify() gives certificates for exactly the keys that signed, and the same ones when asked again', async () => {
  const secret = await newInvite();
  const request = await requestOf(bob, secret);
  const first = await founder.certify(request, NETWORK);
  assert.deepEqual(
    [first.member.node, first.member.publisher, first.member.validator, first.member.subject],
    [bob.keyIds().node, bob.keyIds().publisher, bob.keyIds().validator, 'bob'],
  );
  const again = await founder.certify(await requestOf(bob, secret), NETWORK);
  assert.deepEqual(again.certificates, first.certificates);
  // Whoever has the words of the request has what the answer says anyway: nothing in it is secret, and none of it is his.
  assert.deepEqual((await founder.certify(request, NETWORK)).certificates, first.certificates);
  // A renewal in the last third of their life brings new ones.
  time.nowMs += 70 * 86_400_000;
  const renewed = await founder.certify(await requestOf(bob, null), NETWORK);
  assert.notDeepEqual(renewed.certificates, first.certificates);
});

test('certify() refuses who does not hold one of the keys, and leaves the invite as it was', async () => {
  const secret = await newInvite();
  const own = await requestOf(eve, secret);
  const theirs = JSON.parse(fromUtf8(fromBase64((await requestOf(bob, secret)).envelopes[0].payload))).keys;
  for (const role of CERTIFIED_ROLES) {
    const others = Object.fromEntries(CERTIFIED_ROLES.filter((one) => one !== role).map((one) => [one, eve]));
    const claim = (statement: Record<string, unknown>) => {
      statement['keys'] = { ...(statement['keys'] as object), [role]: theirs[role] };
    };
    // The key of another home: under no signature of it, under the claimer's own, or under that of another role.
    await refused(founder.certify(await forged(own, others, claim), NETWORK), 'certification-invalid');
    await refused(
      founder.certify(await forged(own, { ...others, [role]: eve }, claim), NETWORK),
      'certification-invalid',
    );
  }
  await refused(
    founder.certify(
      await forged(own, { publisher: eve, validator: eve, node: eve }, (statement) => {
        const keys = statement['keys'] as Record<string, unknown>;
        keys['validator'] = keys['publisher'];
      }),
      NETWORK,
    ),
    'certification-invalid',
  );
  const [publisher, validator, node] = own.envelopes;
  await refused(founder.certify({ secret, envelopes: [validator, publisher, node] }, NETWORK), 'certification-invalid');
  // For another machine, another network, or long ago.
  await refused(founder.certify(await requestOf(eve, secret, bob.keyIds().node), NETWORK), 'certification-invalid');
  await refused(founder.certify(own, `sha256:${'cd'.repeat(32)}`), 'network-mismatch');
  const later = await newInvite();
  const old = await requestOf(eve, later);
  time.nowMs += 30_000;
  await founder.certify(await requestOf(eve, later), NETWORK);
  time.nowMs += 400_000;
  await refused(founder.certify(old, NETWORK), 'clock-skewed');
  // The founder's own keys join nothing.
  await refused(founder.certify(await requestOf(founder, await newInvite()), NETWORK), 'network-state');
});

test('one changed character anywhere in a request is refused, whatever it is', async () => {
  const secret = await newInvite();
  const request = await requestOf(eve, secret);
  const text = JSON.stringify(request);
  await fc.assert(
    fc.asyncProperty(fc.nat(text.length - 1), fc.constantFrom(...'Aa0f/=,"}'), async (at, letter) => {
      if (text[at] === letter) return;
      let value: unknown;
      try {
        value = JSON.parse(text.slice(0, at) + letter + text.slice(at + 1));
      } catch {
        return;
      }
      await refused(
        founder.certify(value, NETWORK),
        ...(['certification-invalid', 'invite-unknown', 'signature-invalid'] as const),
      );
    }),
    { numRuns: 200 },
  );
  await founder.certify(request, NETWORK);
});

test('the register grows by members, not by what they ask', async () => {
  const { node } = eve.keyIds();
  for (let round = 0; round < 5; round++) await founder.certify(await requestOf(eve, null), NETWORK);
  const { revocations } = await founder.anchor();
  await founder.removeMember(node, 'cessation-of-operation');
  await founder.removeMember(node, 'cessation-of-operation');
  const grown = await founder.anchor();
  assert.equal(grown.revocations.length, revocations.length);
  await refused(founder.certify(await requestOf(eve, null), NETWORK), 'not-a-member');
  await founder.removeMember(node, 'key-compromise');
  await refused(founder.certify(await requestOf(eve, await newInvite()), NETWORK), 'certificate-revoked');
});

describe('without an invite', () => {
  const HOUR_MS = 3_600_000;
  const place: OpenDoor = { origin: '192.0.2.7', membersMax: 3, joinsPerHour: 3, joinsPerAddressPerHour: 2 };
  const WORK = { challenge: '00'.repeat(32), work: { nonce: '00'.repeat(8) } };
  let opener: TrustChain;
  let strangers: TrustChain[];
  const comes = async (home: TrustChain, door: Partial<OpenDoor> = {}) =>
    opener.certify({ ...(await requestOf(home, null, opener.keyIds().node)), open: WORK }, NETWORK, () => ({
      ...place,
      ...door,
    }));
  const row = async (home: TrustChain) => (await opener.member(home.keyIds().node))!;

  before(async () => {
    const open = async (name: string) =>
      closing.use(await openTrust({ directory: join(base, name), clock, subject: name, limits: { keysIdleMs: 200 } }));
    opener = await open('opener');
    strangers = await Promise.all(['s0', 's1', 's2', 's3'].map(open));
  });

  test('so many from one address, so many in an hour, so many at all; who asks again only hears the answer again', async () => {
    const [first, second, third, fourth] = strangers as [TrustChain, TrustChain, TrustChain, TrustChain];
    const { member, grant, certificates } = await comes(first);
    assert.deepEqual([member.origin, member.removed, grant], ['192.0.2.7', 0, null]);
    assert.deepEqual((await comes(first)).certificates, certificates);
    await comes(second);
    await refused(comes(third), 'quota-exceeded');
    await comes(third, { origin: '192.0.2.8' });
    for (const door of [{ origin: '192.0.2.9' }, { origin: '192.0.2.9', joinsPerHour: 9 }])
      await refused(comes(fourth, door), 'quota-exceeded');
    time.nowMs += HOUR_MS + 1;
    await refused(comes(fourth), 'quota-exceeded');
    // An invite is not bounded by any of it.
    const secret = await opener.invite({ expiresAtMs: time.nowMs + 60_000, tokens: 0 });
    await opener.certify(await requestOf(fourth, secret, opener.keyIds().node), NETWORK);
    assert.equal((await row(fourth)).origin, null);
  });

  test('who left by itself makes room, and comes back after an hour; who was removed comes back by an invite only', async () => {
    const [first, second] = strangers as [TrustChain, TrustChain];
    await opener.removeMember(first.keyIds().node, 'cessation-of-operation', { left: true });
    await refused(comes(first), 'quota-exceeded');
    time.nowMs += HOUR_MS + 1;
    assert.equal((await comes(first)).member.left_at_ms, null);
    await opener.removeMember(second.keyIds().node, 'cessation-of-operation');
    time.nowMs += HOUR_MS + 1;
    await refused(comes(second), 'not-a-member');
    const secret = await opener.invite({ expiresAtMs: time.nowMs + 60_000, tokens: 0 });
    await opener.certify(await requestOf(second, secret, opener.keyIds().node), NETWORK);
    assert.deepEqual([(await row(second)).removed, (await row(second)).origin], [0, null]);
  });

  test('those whose certificates have all run out make room when there is none', async () => {
    const [first, , third] = strangers as [TrustChain, TrustChain, TrustChain];
    await opener.removeMember(first.keyIds().node, 'cessation-of-operation');
    time.nowMs += 100 * 24 * HOUR_MS;
    await refused(comes(first, { membersMax: 1 }), 'not-a-member');
    const late = closing.use(await openTrust({ directory: join(base, 'late'), clock, subject: 'late' }));
    await comes(late, { membersMax: 1 });
    assert.equal(await opener.member(third.keyIds().node), undefined);
    assert.equal((await row(first)).removed, 1, 'who was removed is remembered');
  });

  test('an export has who came without an invite, who was removed, and the terms', async () => {
    const [, { value }] = readVectors<readonly [unknown, { value: { signed: SignedTerms } }]>('terms', 'valid');
    opener.keepTerms(value.signed);
    const members = await opener.members();
    assert.ok(members.some(({ origin }) => origin !== null) && members.some(({ removed }) => removed === 1));
    const pieces = await Array.fromAsync(opener.section.export());
    const said = Buffer.concat(pieces).toString();
    assert.match(said, /"kind":"terms"/);
    await (await opener.section.import(opener.section.version, replay(pieces))).commit();
    assert.deepEqual([await opener.members(), opener.terms()], [members, value.signed]);
  });

  test('what the door refuses is refused before a signature is checked, and an invite does not go with it', async () => {
    const request = await requestOf(bob, null, opener.keyIds().node);
    const refusing = () => {
      throw new HyperMeshError('network-closed', 'no');
    };
    await refused(opener.certify({ ...request, open: WORK }, NETWORK, refusing), 'network-closed');
    await refused(opener.certify({ ...request, open: WORK }, NETWORK), 'not-a-member');
    await refused(
      opener.certify({ ...request, secret: '00'.repeat(20), open: WORK }, NETWORK),
      'certification-invalid',
    );
  });
});
