import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { it } from 'node:test';
import type { AuditReport } from '../../src/audit/auditor.ts';
import { utf8 } from '../../src/base/bytes.ts';
import { digestOf } from '../../src/base/digest.ts';
import { makeSigner } from '../../src/testing/signer.ts';
import { decodeGenesis, GENESIS_TYPE } from '../../src/wire/genesis.ts';
import { VOTE_TYPE } from '../../src/wire/proof.ts';
import { freshHome, PROJECT, writePackage } from './support.ts';

it('hypermesh network audit judges what a node holds, and files of bundles and of lines', async () => {
  await using home = await freshHome();
  const folder = await writePackage(
    join(home.folder, 'tool'),
    { name: 'ada/tool', version: '1.0.0', type: 'library' },
    { 'x.txt': 'x' },
  );
  await home.json(['up', '--detach']);
  const bundle = join(home.folder, 'bundle.json');
  await home.json(['publish', folder, '--bundle', bundle]);
  const held = await home.json<AuditReport>(['network', 'audit']);
  assert.deepEqual([held.checked.certificates, held.checked.votes, held.conflicts, held.worthless], [1, 1, [], 0]);

  // Half a line is what a killed process leaves.
  const lines = join(home.folder, 'lines.jsonl');
  const text = await readFile(bundle, 'utf8');
  await writeFile(lines, `${text}\n{"answer":${text}}\n${text.slice(0, 100)}`);
  const read = await home.json<AuditReport & { unreadable: number }>(['network', 'audit', lines, bundle]);
  assert.deepEqual([read.checked.documents, read.checked.certificates, read.unreadable], [3, 1, 1]);
  assert.match((await home.run('network', 'audit', lines)).stdout, /Conflicts\s+none/);
  assert.equal((await home.run('network', 'audit', join(home.folder, 'absent.json'))).status, 5);
});

it('hypermesh network audit shows a conflict with the signed statements, and fails', async () => {
  await using home = await freshHome();
  const vectors = join(PROJECT, 'test', 'vectors', 'genesis', 'valid.json');
  const [{ document }] = JSON.parse(await readFile(vectors, 'utf8')) as [{ document: Record<string, unknown> }];
  const validator = makeSigner();
  const { keyId, keys } = validator;
  const { approvals: _, ...terms } = document;
  const unsigned = { ...terms, committee: { epoch: 0, validators: [{ key: keyId, ...keys, account: keyId }] } };
  const genesis = { ...unsigned, approvals: [validator.attest(GENESIS_TYPE, unsigned)] };
  const { networkId } = decodeGenesis(genesis);
  const certificates = ['one', 'two'].map((content) => {
    const operation = { kind: 'publish', ref: 'ada/tool@1.0.0', identity: keyId, sequence: 1 };
    const subject = digestOf(utf8(content));
    const said = {
      formatVersion: 3,
      networkId,
      committee: networkId,
      operation: { ...operation, subject },
      proofs: subject,
    };
    return { ...said, votes: [{ atMs: 1, attestation: validator.attest(VOTE_TYPE, { ...said, atMs: 1 }) }] };
  });
  const file = join(home.folder, 'conflict.json');
  await writeFile(file, JSON.stringify([genesis, certificates], null, 2));
  const { error } = await home.json<{ error: { code: string; details: AuditReport } }>(['network', 'audit', file], 7);
  assert.equal(error.code, 'audit-conflict');
  assert.deepEqual(
    error.details.conflicts.map(({ kind, evidence }) => [kind, evidence.length]),
    [
      ['two-operations', 2],
      ['two-contents', 2],
    ],
  );
  assert.match((await home.run('network', 'audit', file)).stderr, /ada\/tool@1.0.0 was admitted twice/);
});
