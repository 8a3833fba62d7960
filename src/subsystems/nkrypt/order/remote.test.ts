import assert from 'node:assert/strict';
import { test } from 'node:test';
import { utf8 } from '../../../base/bytes.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { canonicalJson, type Json } from '../../../base/json.ts';
import { openSqlite } from '../../../base/sqlite.ts';
import { testSequencer, wholeOrder } from '../../../testing/sequencer-conformance.ts';
import { EMBEDDED_SCHEMA, EmbeddedSequencer } from './embedded.ts';
import { RemoteSequencer, type SequencerAsk, serveSequencer } from './remote.ts';

const store = openSqlite(':memory:', [{ name: '001', up: EMBEDDED_SCHEMA }]);
const engines = new Map<string, EmbeddedSequencer>();
const engineOf = (log: string) => {
  const engine = engines.get(log) ?? new EmbeddedSequencer(store, log);
  engines.set(log, engine);
  return engine;
};
/** As over the channel: what is asked and answered is text. */
const ask: SequencerAsk = async (method, body, { signal }) => {
  const answer = await serveSequencer(engineOf, method, JSON.parse(canonicalJson(body)), signal);
  return JSON.parse(canonicalJson(answer)) as Json;
};

testSequencer('in another home', async (log) => new RemoteSequencer(ask, log));

test('an append whose answer got lost is safe to repeat, and absence has its name', async () => {
  const log = `${'a'.repeat(64)}-1`;
  let fails = 0;
  await using sequencer = new RemoteSequencer(async (...question) => {
    const answer = await ask(...question);
    fails += 1;
    if (fails <= 2) throw new HyperMeshError('peer-unreachable', 'The connection broke.');
    return answer;
  }, log);
  for (const _ of [1, 2]) {
    await assert.rejects(sequencer.append(utf8('a')), (error) => isCoded(error, 'sequencer-unreachable'));
  }
  assert.equal(await sequencer.append(utf8('a')), 1);
  assert.deepEqual(await wholeOrder(sequencer), ['a']);
});

test('append() waits where the engine says how long, and no longer than it may', async () => {
  const log = `${'b'.repeat(64)}-0`;
  let refusals = 2;
  await using sequencer = new RemoteSequencer(async (...question) => {
    if (refusals === 0) return ask(...question);
    refusals -= 1;
    throw new HyperMeshError('quota-exceeded', 'Too many.', { details: { retryInMs: 5 } });
  }, log);
  assert.equal(await sequencer.append(utf8('a')), 1);
  await using full = new RemoteSequencer(async () => {
    throw new HyperMeshError('quota-exceeded', 'Too many.', { details: { retryInMs: 60_000 } });
  }, log);
  await assert.rejects(full.append(utf8('b'), { signal: AbortSignal.timeout(20) }), (error) =>
    isCoded(error, 'quota-exceeded'),
  );
});

for (const answer of [null, {}, { position: 0 }, { position: 1, more: true }, { entries: ['*'] }, { entries: [''] }]) {
  test(`the answer ${JSON.stringify(answer)} is refused`, async () => {
    await using sequencer = new RemoteSequencer(async () => answer, `${'a'.repeat(64)}-0`);
    const isRefused = (error: unknown) => isCoded(error, 'order-invalid');
    await assert.rejects(sequencer.append(utf8('a')), isRefused);
    await assert.rejects(sequencer.read(0), isRefused);
  });
}
