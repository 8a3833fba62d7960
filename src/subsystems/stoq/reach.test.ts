import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ErrorCode, HyperMeshError } from '../../base/errors.ts';
import { firstWorking } from './reach.ts';

/** Addresses, what is wrong with each (null: nothing), and which one worked or what was said in the end. */
const cases: readonly (readonly [
  what: string,
  problems: readonly (ErrorCode | null)[],
  outcome: number | ErrorCode,
])[] = [
  ['the first that works', ['peer-unreachable', null, null], 1],
  ['the next one where another node lives at the first', ['identity-mismatch', null], 1],
  [
    'that another node is there, when nobody else is',
    ['peer-unreachable', 'identity-mismatch', 'timeout'],
    'identity-mismatch',
  ],
  ['what was wrong with the last', ['timeout', 'network-mismatch'], 'network-mismatch'],
  ['nothing more once the caller gave up', ['cancelled', null], 'cancelled'],
  ['that there is none', [], 'peer-unreachable'],
];
for (const [what, problems, outcome] of cases) {
  test(`firstWorking() finds ${what}`, async () => {
    const addresses = problems.map((_, at) => String(at));
    const trying = firstWorking(addresses, async (address) => {
      const problem = problems[Number(address)] ?? null;
      if (problem !== null) throw new HyperMeshError(problem, 'It does not work.');
      return Number(address);
    });
    if (typeof outcome === 'number') assert.equal(await trying, outcome);
    else await assert.rejects(trying, { code: outcome });
  });
}
