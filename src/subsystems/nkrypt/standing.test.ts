import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { seatOf } from '../../testing/order.ts';
import { makeQuickSigner, quickCheck, type Signer } from '../../testing/signer.ts';
import { SPACE_STANDING_TYPE, type StandingWord } from '../../wire/access.ts';
import { attestationHolds, publicKeysOf } from '../../wire/attestation.ts';
import type { Genesis } from '../../wire/genesis.ts';
import { Committee } from './committee.ts';
import { OwnStanding, Standings, standingOf } from './standing.ts';
import { openStore } from './store.ts';
import { VoteBook } from './votes.ts';

const DAY_MS = 86_400_000;
const folder = mkdtempSync(path.join(os.tmpdir(), 'nkrypt-standing-'));
const store = openStore(folder);
after(async () => {
  await store[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const networkId = digestOf(new Uint8Array(1));
const signers = Array.from({ length: 4 }, makeQuickSigner).sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
const validators = signers.map((signer) => seatOf(signer, makeQuickSigner()));
// The cast: nothing else of a genesis document is looked at.
const present = { epoch: 0, validators, digest: networkId };
const genesis = {
  space: { bytes: 65_536 },
  limits: { clockSkewMs: 5_000 },
} as unknown as Genesis;
const trust = {
  attested: async (...[word, type, said, keys]: Parameters<Checks['attested']>) =>
    attestationHolds(word, type, said, publicKeysOf(keys), quickCheck),
};
type Checks = ConstructorParameters<typeof Standings>[0];
const time = { nowMs: 100 * DAY_MS };
const clock = { nowMs: () => time.nowMs };
const member = 'ab'.repeat(32);
const root = 'cd'.repeat(32);

function word(by: Signer, atMs = time.nowMs, of = { member, root }, committee = present): StandingWord {
  const statement = standingOf({ genesis, networkId, committee }, of.member, of.root, atMs);
  return { atMs, attestation: by.attest(SPACE_STANDING_TYPE, statement) };
}
const words = (count: number, ...rest: [atMs?: number, of?: { member: string; root: string }]) =>
  signers.slice(0, count).map((signer) => word(signer, ...rest));
const refused = (work: Promise<unknown>) => assert.rejects(work, (error) => isCoded(error, 'proof-rejected'));

test('a quorum stands for a commitment for a week, and for no other one', async () => {
  const standings = () => new Standings(trust, { clock, genesis, networkId, committee: present });
  await standings().check(member, root, words(3));
  await standings().check(member, root, words(4));
  await standings().check(member, root, words(3, time.nowMs - 6 * DAY_MS));
  await refused(standings().check(member, root, words(2)));
  await refused(standings().check(member, root, []));
  await refused(standings().check(member, root, words(3, time.nowMs - 8 * DAY_MS)));
  await refused(standings().check(member, root, words(3, time.nowMs + 6_000)));
  await refused(standings().check(member, 'ef'.repeat(32), words(3)));
  await refused(standings().check('ef'.repeat(32), root, words(3)));
  await refused(standings().check(member, root, [...words(2), word(makeQuickSigner())]));
  await refused(
    standings().check(
      member,
      root,
      words(3).map((one) => ({ ...one, atMs: one.atMs - 1 })),
    ),
  );
  // Of the committee before this one it counts as well, and of no other.
  const other = { epoch: 1, validators, digest: digestOf(new Uint8Array(2)) };
  const theirs = signers.slice(0, 3).map((one) => word(one, time.nowMs, { member, root }, other));
  await refused(standings().check(member, root, theirs));
  await new Standings(trust, { clock, genesis, networkId, committee: present, before: other }).check(
    member,
    root,
    theirs,
  );
  // What was believed once is not checked again before its time is over.
  const once = standings();
  await once.check(member, root, words(3, time.nowMs - DAY_MS));
  await once.check(member, root, []);
  time.nowMs += 6 * DAY_MS + 1;
  await refused(once.check(member, root, []));
});

test('a validator that was not there takes the word of a quorum, and not for what was lost', async () => {
  let lost = false;
  const committee = new Committee(
    {
      ...{ store, votes: new VoteBook(store), isSpaceLost: () => lost },
      // The cast: introducing only checks signatures.
      trust: trust as never,
      ledger: { ownerOf: () => undefined, account: () => assert.fail() },
    },
    { clock, genesis, networkId, committee: present },
  );
  await refused(committee.introduce(member, root, words(2)));
  assert.equal(committee.registry(member).registered(), undefined);
  await committee.introduce(member, root, words(3));
  assert.equal(committee.registry(member).registered(), root);
  assert.deepEqual(committee.registrations(), [{ identity: member, root }]);
  // Again: nothing to do, whatever the words.
  await committee.introduce(member, root, []);
  committee.registry(member).forget();
  // While its registration is under way: that ends well, and nothing of another one does.
  const roots = ['01'.repeat(32), '02'.repeat(32), root];
  const nonce = committee.registry(member).begin(roots);
  await committee.introduce(member, root, words(3));
  await committee.registry(member).finish({ nonce, roots, layers: [] });
  await refused(committee.registry(member).finish({ nonce, roots: [...roots].reverse(), layers: [] }));
  assert.equal(committee.registry(member).registered(), root);
  committee.registry(member).forget();
  lost = true;
  await refused(committee.introduce(member, root, words(3)));
});

test("a home keeps its committee's word, asks for a new one in time, and lives on the old one while nobody answers", async () => {
  let asked = 0;
  let answer = async () => words(3);
  const ask = () => {
    asked += 1;
    return answer();
  };
  const own = () => new OwnStanding(ask, { directory: folder, clock, committee: present, before: undefined });
  const first = await own().words(root);
  assert.equal(asked, 1);
  assert.deepEqual(await own().words(root), first);
  assert.equal(asked, 1);
  const follows = { epoch: 1, validators, digest: digestOf(new Uint8Array(2)) };
  const later = new OwnStanding(ask, { directory: folder, clock, committee: follows, before: present });
  assert.deepEqual(await later.words(root), first);
  assert.equal(asked, 1);
  await own().words('ef'.repeat(32));
  assert.equal(asked, 2);
  await own().words(root);
  time.nowMs += 2 * DAY_MS;
  const kept = own();
  answer = async () => Promise.reject(new HyperMeshError('committee-unreachable', 'nobody'));
  assert.equal((await kept.words(root)).length, 3);
  time.nowMs += 6 * DAY_MS;
  await assert.rejects(kept.words(root), (error) => isCoded(error, 'committee-unreachable'));
});
