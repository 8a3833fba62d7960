import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { gather } from './gather.ts';

const four = { needed: 3, faulty: 1 };
const silent = () => new Promise<never>(() => undefined);

test('gather() asks those that are left when one fails, and when one says nothing', async () => {
  const asked: string[] = [];
  let hung = 0;
  const hangs = () => {
    hung += 1;
  };
  for (const hanging of [silent, () => Promise.reject(new HyperMeshError('peer-unreachable', 'Nobody is there.'))]) {
    asked.length = 0;
    const ask = async (validator: string) => {
      asked.push(validator);
      return validator === 'c' ? hanging() : validator;
    };
    const answers = await gather(
      ['a', 'b', 'c'],
      { ...four, reserve: ['d'], patienceMs: hanging === silent ? 1 : 2 ** 30, hangs },
      ask,
    );
    assert.deepEqual(
      [answers, asked],
      [
        ['a', 'b', 'd'],
        ['a', 'b', 'c', 'd'],
      ],
    );
  }
  assert.equal(hung, 1);
});

test('gather() leaves the others in peace while enough answer, and says who is missing when nobody is left', async () => {
  const asked: string[] = [];
  const ask = async (validator: string) => {
    asked.push(validator);
    if (['x', 'y'].includes(validator)) throw new HyperMeshError('peer-unreachable', 'Nobody is there.');
    return validator;
  };
  const patient = { ...four, patienceMs: 2 ** 30 };
  assert.deepEqual(await gather(['a', 'b', 'c'], { ...patient, reserve: ['d'] }, ask), ['a', 'b', 'c']);
  assert.deepEqual(asked, ['a', 'b', 'c']);
  await assert.rejects(
    gather(['a', 'x', 'y'], { ...patient, reserve: ['d'] }, ask),
    (error) => isCoded(error, 'committee-unreachable') && /Of 4 .* 2 answered/.test(error.message),
  );
});
