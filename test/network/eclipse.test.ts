import assert from 'node:assert/strict';
import { test } from 'node:test';
import { utf8 } from '../../src/base/bytes.ts';
import type { Answer } from '../../src/subsystems/stoq/ask.ts';
import { SimulatedNetwork } from '../../src/testing/simulated-network.ts';
import { SimulatedNode } from '../../src/testing/simulated-node.ts';
import { decodeCompareRequest, encodeCompareAnswer } from '../../src/wire/reconcile.ts';
import { decodeRecordsRequest, encodeRecordsAnswer } from '../../src/wire/records.ts';

const MINUTE_MS = 60_000;

/** Says that nobody else is there and that nothing was ever published, and passes nothing on. */
function hider(network: SimulatedNetwork): { readonly id: string } {
  const id = 'e'.repeat(64);
  network.add(
    id,
    new Map<string, Answer>([
      ['overlay/ping', async () => new Uint8Array()],
      ['overlay/reach', async () => utf8('{"reached":false}')],
      ['overlay/doubt', async () => new Uint8Array()],
      [
        'records/compare',
        async (body) => encodeCompareAnswer(decodeCompareRequest(body).ranges.map(() => ({ kind: 'listed', ids: [] }))),
      ],
      ['records/get', async (body) => encodeRecordsAnswer(decodeRecordsRequest(body).ids.map(() => null))],
      ['records/news', async () => new Uint8Array()],
    ]),
  );
  return { id };
}

test('a node that hides all others from who joins through it cannot, once one honest node is known', async () => {
  const network = new SimulatedNetwork(7);
  const honest = Array.from({ length: 20 }, (_, at) => new SimulatedNode(network, `honest ${at}`));
  const [founder, ...others] = honest as [SimulatedNode, ...SimulatedNode[]];
  await founder.join();
  for (const node of others) void node.join(founder);
  const record = founder.publish('published before', 3);
  const settled = await network.until(() => others.every(({ records }) => records.has(record)), 10 * MINUTE_MS);
  assert.notEqual(settled, null);

  // Alone with the liar: nothing is learned, and nothing false.
  const liar = hider(network);
  const eclipsed = new SimulatedNode(network, 'eclipsed');
  await eclipsed.join(liar);
  await network.pass(10 * MINUTE_MS);
  assert.deepEqual(
    [...eclipsed.directory.nodes()].map(({ node }) => node),
    [eclipsed.id],
  );
  assert.equal(eclipsed.records.size, 0);

  // A home that was certified knows the committee, too: here the founder.
  const certified = new SimulatedNode(network, 'certified');
  await certified.join(liar, founder);
  const seen = await network.until(
    () => certified.records.has(record) && certified.directory.size > honest.length,
    10 * MINUTE_MS,
  );
  assert.notEqual(seen, null);
  const found = await network.until(() => honest.every(({ directory }) => directory.get(certified.id)), 10 * MINUTE_MS);
  assert.notEqual(found, null, 'the others found it, too');
});
