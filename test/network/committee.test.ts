import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { utf8 } from '../../src/base/bytes.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { admittedAtMs } from '../../src/wire/proof.ts';
import { type Folder, temporaryFolder } from '../system/support.ts';
import { until } from './mesh.ts';
import type { Behaviour, Death, Submission } from './validator-child.ts';
import { type Home, Homes, Refused } from './validators.ts';

/**
 * Committees of processes, some of them dishonest. `HYPERMESH_COMMITTEE=large` adds one of seven, two of them dishonest, and more deaths.
 */
const isLarge = process.env['HYPERMESH_COMMITTEE'] === 'large';
const COUNT = isLarge ? 8 : 5;
const LIES: readonly Behaviour[] = ['silent', 'votes for everything', 'replays', 'lies about time'];

let folder: Folder;
let homes: Homes;
let versions = 0;

before(async () => {
  folder = await temporaryFolder();
  homes = await Homes.open(folder.path, COUNT);
});

after(async () => {
  await homes?.[Symbol.asyncDispose]();
  await folder?.[Symbol.asyncDispose]();
});

const content = (text: string): Digest => digestOf(utf8(text));
/** A new version of what the home publishes: its name was put into the order with its first one, and is its own from then on. */
const fresh = (home: Home) => `p${homes.all.indexOf(home)}/package@1.0.${++versions}`;
const behave = (all: readonly Home[], how: Behaviour) => Promise.all(all.map((home) => home.call('behave', how)));

/** Nothing contradicts anything, and nobody misbehaved but those whose behaviour that is. */
function assertSafe(dishonest: readonly Home[], publishers: readonly Home[] = []): ReturnType<Homes['audit']> {
  const report = homes.audit();
  assert.deepEqual(report.conflicts, []);
  for (const { says, kind } of report.misdeeds) {
    const suspects =
      kind === 'double-order' ? publishers.map((one) => one.publisher) : dishonest.map((one) => one.validator);
    assert.ok(
      suspects.some((id) => says.includes(id)),
      `${says} was not to be expected of`,
    );
  }
  return report;
}

const sizes = isLarge ? [4, 7] : [4];
for (const size of sizes) {
  const faulty = (size - 1) / 3;
  describe(`a committee of ${size}, of which ${faulty} may be dishonest`, () => {
    let committee: readonly Home[];
    let liars: readonly Home[];
    /** Honest members of the committee, and one who only publishes. */
    let honest: readonly Home[];
    let reader: Home;

    before(async () => {
      committee = homes.all.slice(0, size);
      liars = committee.slice(0, faulty);
      honest = committee.slice(faulty);
      reader = homes.all.at(-1)!;
      await homes.found(committee);
    });

    it('admits what members and others publish', async () => {
      for (const home of [...committee, reader]) {
        const { votes } = await home.call('publish', content('honest'), fresh(home));
        assert.equal(votes.length, 2 * faulty + 1);
      }
      const { checked, misdeeds } = assertSafe([]);
      assert.deepEqual([checked.certificates, misdeeds], [size + 1, []]);
    });

    for (const lie of LIES) {
      it(`goes on when ${faulty === 1 ? 'one' : faulty} ${lie}, and nothing that conflicts is ever certified`, async () => {
        await behave(liars, lie);
        const beganMs = Date.now();
        for (const home of [honest[0]!, reader]) {
          const certificate = await home.call('publish', content(lie), fresh(home));
          const atMs = admittedAtMs(certificate);
          // Whoever has a wrong clock does not move the time of admission.
          assert.ok(atMs >= beganMs && atMs <= Date.now(), `${atMs - beganMs} ms after the beginning`);
        }
        await behave(liars, 'honest');
        assertSafe(liars);
      });
    }

    it('admits at most one of two operations that a publisher signed with one number, whoever is brought which', async () => {
      await behave(liars, 'votes for everything');
      const [first, second] = [content('one'), content('two')];
      let admitted = 0;
      for (let split = 0; split < 2 ** honest.length; split += size === 4 ? 1 : 5) {
        const ref = fresh(reader);
        // The same version with two contents, or two versions: in both cases the number is the same.
        const refs = [ref, split % 2 === 0 ? ref : fresh(reader)];
        const submissions = await reader.call('equivocate', [first, second], refs);
        const bring = async (of: Submission, to: readonly Home[]) => {
          const brought = await Promise.allSettled(to.map(({ validator }) => reader.call('submit', of, validator)));
          return brought.filter(({ status }) => status === 'fulfilled').length;
        };
        const chosen = honest.filter((_, at) => (split & (1 << at)) !== 0);
        const others = honest.filter((home) => !chosen.includes(home));
        const votes = await Promise.all([
          bring(submissions[0]!, [...liars, ...chosen]),
          bring(submissions[1]!, [...liars, ...others]),
        ]);
        // Everybody is asked for both: each honest one voted already.
        await Promise.all([bring(submissions[0]!, others), bring(submissions[1]!, chosen)]);
        const certified = votes.filter((count) => count >= 2 * faulty + 1).length;
        assert.ok(certified <= 1);
        admitted += certified;
      }
      assert.ok(admitted > 0);
      await behave(liars, 'honest');
      const { misdeeds } = assertSafe(liars, [reader]);
      assert.ok(misdeeds.some(({ kind }) => kind === 'double-order'));
      assert.ok(misdeeds.some(({ kind }) => kind === 'double-vote'));
      // The publisher was only in his own way.
      await reader.call('publish', content('after'), fresh(reader));
    });

    it('admits nothing in a network that is split, and goes on when it is whole again', async () => {
      const half = new Set(committee.slice(0, size / 2));
      homes.cut((a, b) => half.has(a) !== half.has(b));
      const [ours, theirs] = [committee[0]!, committee.at(-1)!];
      const ref = fresh(ours);
      const split = await Promise.allSettled([
        ours.call('publish', content('ours'), ref),
        theirs.call('publish', content('theirs'), fresh(theirs)),
      ]);
      const larger = size - Math.floor(size / 2) >= 2 * faulty + 1;
      assert.equal(split[0].status, 'rejected');
      if (!larger) assert.equal(split[1].status, 'rejected');
      homes.heal();
      await Promise.all([
        ours.call('publish', content('ours'), ref),
        theirs.call('publish', content('both'), fresh(theirs)),
      ]);
      assertSafe(liars, [reader]);
    });

    it('has no validator that votes twice, whenever it loses its power', async (t) => {
      const victim = honest.at(-1)!;
      const deaths: readonly (Death | number)[] = [
        ...(['before it signs', 'after it signed', 'after it answered'] as const),
        ...Array.from({ length: isLarge ? 20 : 3 }, () => Math.floor(Math.random() * 40)),
      ];
      t.diagnostic(`dies ${deaths.join(', ')}`);
      for (const death of deaths) {
        const ref = fresh(reader);
        const [first, second] = await reader.call('equivocate', [content('one'), content('two')], [ref, ref]);
        if (typeof death === 'string') await victim.call('die', death);
        const vote = reader.call('submit', first!, victim.validator).catch(() => null);
        if (typeof death === 'number') {
          await new Promise((resolve) => setTimeout(resolve, death));
          await victim.kill();
        }
        await victim.dead();
        const before = await vote;
        await victim.up();
        // The other one first: what it said before, or decided without saying it, it must not have forgotten.
        const asks = (what: Submission) =>
          reader.call('submit', what, victim.validator).catch((error: unknown) => error as Refused);
        const other = await asks(second!);
        const again = await asks(first!);
        const decided = before !== null || death === 'before it signs' || death === 'after it signed';
        if (decided) {
          assert.ok(!(again instanceof Refused), `${death}: ${(again as Refused).message}`);
          assert.equal((other as Refused).code, 'equivocation', `${death}: it forgot what it decided`);
        }
        assert.ok(again instanceof Refused !== other instanceof Refused, `${death}: it voted for both, or for none`);
      }
      const { misdeeds } = assertSafe(liars, [reader]);
      assert.ok(!misdeeds.some(({ says }) => says.includes(victim.validator)));
      await until('the victim takes part again', async () => {
        const { votes } = await victim.call('publish', content('back'), fresh(victim));
        return votes.length > 0;
      });
    });
  });
}
