import assert from 'node:assert/strict';
import { test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Client } from '../../client/index.ts';
import type { GrantRequest } from '../../wire/http.ts';
import type { Context } from '../command.ts';
import { withGrants } from './grants.ts';

const NEEDED = {
  package: digestOf(Buffer.from('package')),
  program: digestOf(Buffer.from('layer')),
  ref: 'ada/fetcher@1.0.0',
  connect: ['api.example.org:443', 'db.example.org:5432'],
  folders: [{ name: 'out', access: 'write' }],
};

/** Runs what needs all of it, at a terminal where a person types `answers`. */
async function run(allowed: readonly string[], answers: readonly (string | null)[]) {
  const granted: GrantRequest[] = [];
  const questions: string[] = [];
  const left = [...answers];
  const client = { grant: async (given: GrantRequest) => void granted.push(given) } as unknown as Client;
  const context = { json: false, note: () => {} } as unknown as Context;
  const work = async () => {
    if (granted.length > 0) return 'ran';
    throw new HyperMeshError('grant-needed', 'It asks for more.', { details: NEEDED });
  };
  const ask = async (question: string) => {
    questions.push(question.trim());
    return left.shift() ?? null;
  };
  const outcome = await withGrants(context, client, allowed, work, ask).catch((error: HyperMeshError) => error.code);
  return { outcome, questions, granted: granted[0] };
}

test('a person is shown each thing that a package asks for, and decides', async () => {
  const { outcome, questions, granted } = await run([], ['y', 'yes', '/srv/out']);
  assert.equal(outcome, 'ran');
  assert.deepEqual(questions, [
    'connect to api.example.org:443. Allow it? [y/N]',
    'connect to db.example.org:5432. Allow it? [y/N]',
    'write a folder of yours as "out". Which one? (nothing: none)',
  ]);
  assert.deepEqual(granted, { ...NEEDED, folders: [{ name: 'out', access: 'write', path: '/srv/out' }] });
});

test('one no is a no to all, and so is nobody there', async () => {
  for (const answers of [['y', ''], ['y', 'n'], ['y', 'y', ''], [null]])
    assert.deepEqual((await run([], answers)).outcome, 'grant-needed', String(answers));
});

test('what was named on the command line is not asked for', async () => {
  const all = ['api.example.org:443', 'db.example.org:5432', 'out=/srv/out'];
  assert.deepEqual([(await run(all, [])).outcome, (await run(all, [])).questions], ['ran', []]);
  const { outcome, questions } = await run(['db.example.org:5432', 'out=/srv/out'], ['y']);
  assert.deepEqual([outcome, questions.length], ['ran', 1]);
});

test('what is no place and no folder is refused before anything runs', async () => {
  const work = () => assert.fail('it ran');
  const context = { json: false } as unknown as Context;
  await assert.rejects(withGrants(context, {} as Client, ['api.example.org'], work), /HOST:PORT or NAME=FOLDER/);
});
