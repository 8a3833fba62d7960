import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fromBase64, utf8 } from '../../base/bytes.ts';
import { digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { testCommittee } from '../../testing/committee.ts';
import { decodeEntry } from '../../wire/entry.ts';

const folder = mkdtempSync(join(tmpdir(), 'hypermesh-ordered-'));
after(() => rmSync(folder, { recursive: true }));

/** The order gives up an entry after so long. */
const GIVEN_UP_MS = 30_000;

test('nobody waits for clocks that cannot be told: not who has just unlocked tokens, and no operation of his', async () => {
  await using committee = await testCommittee(folder, { n: 4, clock: { nowMs: () => Date.now() } });
  let untold = 0;
  committee.wire = async (_to, method, body, _from, pass) => {
    if (method !== 'sequence/append') return pass();
    const { kind } = decodeEntry(fromBase64((body as { entry: string }).entry));
    if (kind !== 'clock') return pass();
    untold += 1;
    throw new HyperMeshError('peer-unreachable', 'The engine is away just now.');
  };
  const { nkrypt } = committee.homes.at(-1)!;
  await nkrypt.lockStake(50);
  const beganMs = performance.now();
  const { unbonding } = await nkrypt.unlockStake(10);
  assert.deepEqual(unbonding, [{ amount: 10, endsAtMs: null }]);
  const challenge = await nkrypt.challenge('publish', digestOf(utf8('a')), 'tools/a@1.0.0');
  await nkrypt.admit(await nkrypt.prove(challenge));
  const tookMs = performance.now() - beganMs;
  assert.ok(untold > 0 && tookMs < 2 * GIVEN_UP_MS, `${untold} were not told; it took ${Math.round(tookMs)} ms`);
});
