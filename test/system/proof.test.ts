import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { it } from 'node:test';
import type { ProofVerdict, SpaceStatus } from '../../src/capabilities/consensus.ts';
import type { ProofSet } from '../../src/wire/proof.ts';
import { freshHome } from './support.ts';

it('hypermesh proof makes the commitment, makes proofs and judges each of them', async () => {
  await using home = await freshHome();
  await home.json(['up', '--detach']);
  const made = await home.json<SpaceStatus>(['proof', 'init']);
  assert.deepEqual(made, { state: 'ready', bytes: 2 ** 20, fraction: 1, auditedAtMs: null });
  assert.match((await home.run('proof', 'init')).stdout, /ready: 1.0 MiB/);
  assert.equal((await home.json<{ space: SpaceStatus }>(['proof', 'status'])).space.state, 'ready');

  const file = join(home.folder, 'proofs.json');
  await home.json(['proof', 'make', 'publish', `sha256:${'1'.repeat(64)}`, file, '--ref', 'ada/tool@1.0.0']);
  const judged = await home.json<{ verdicts: readonly ProofVerdict[] }>(['proof', 'verify', file]);
  assert.deepEqual(new Set(judged.verdicts.map(({ verdict }) => verdict)), new Set(['valid']));

  const proofs = JSON.parse(await readFile(file, 'utf8')) as ProofSet;
  await writeFile(file, JSON.stringify({ ...proofs, time: { ...proofs.time!, counter: proofs.time!.counter + 1 } }));
  const refused = await home.run('proof', 'verify', file);
  assert.equal(refused.status, 4, refused.stderr);
  assert.match(refused.stderr, /time: /);

  await writeFile(file, '{}');
  const malformed = await home.run('proof', 'verify', file);
  assert.equal(malformed.status, 7, malformed.stderr);
  assert.match(malformed.stderr, /^Error: Expected a proof set, but .* \(proof-invalid\)$/m);
});
