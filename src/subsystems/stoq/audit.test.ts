import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { ContentExchange } from '../../capabilities/content.ts';
import { cut, noise } from '../../testing/made-content.ts';
import { encodeMessage } from '../../wire/overlay.ts';
import type { Ask } from './ask.ts';
import { Audit } from './audit.ts';

const NODE = 'b'.repeat(64);

/** Content as a node has it: some of the blobs, perhaps with other bytes. */
function content(blobs: readonly Uint8Array[], alter: (bytes: Uint8Array) => void = () => {}) {
  const held = new Map(blobs.map((bytes) => [digestOf(bytes), bytes]));
  const readHeld: ContentExchange['readHeld'] = async (digest, offset, into) => {
    const bytes = held.get(digest);
    if (bytes === undefined) throw new HyperMeshError('blob-not-found', 'It is not here.');
    into.set(bytes.subarray(offset, offset + into.length));
    alter(into);
  };
  return { readHeld };
}

const large = noise(300_000, 'large');
const small = noise(100, 'small');
const resource = { blobs: [large, small, new Uint8Array()].map((bytes) => cut(bytes).blob) };

function auditor(ask: Ask, its = content([large, small]), missed: (blob: Digest) => void = () => {}): Audit {
  return new Audit({ ask, random: Math.random }, { content: its, isShared: () => true, missed });
}

/** A node that says it holds everything. */
function holder(its: Pick<ContentExchange, 'readHeld'>, isShared = true) {
  const missed: Digest[] = [];
  const nobody: Ask = () => Promise.reject(new Error('it asks nobody'));
  const audit = new Audit(
    { ask: nobody, random: Math.random },
    { content: its, isShared: () => isShared, missed: (blob) => missed.push(blob) },
  );
  const ask: Ask = (_, method, body) => audit.answers().get(method)!(body, 'a'.repeat(64));
  return { ask, missed };
}

test('an audit tells who holds a resource from who does not', async () => {
  const whole = holder(content([large, small]));
  for (let i = 0; i < 20; i++) assert.ok(await auditor(whole.ask).holds(NODE, resource));
  assert.deepEqual(whole.missed, []);

  const none = holder(content([]));
  assert.equal(await auditor(none.ask).holds(NODE, resource), false);
  assert.equal(none.missed.length, 1);

  const damaged = holder(content([large, small], (bytes) => bytes.fill(0)));
  assert.equal(await auditor(damaged.ask).holds(NODE, resource), false);

  // Who refuses chooses the code.
  for (const code of ['peer-unreachable', 'certificate-revoked', 'internal', 'blob-not-found'] as const) {
    const refusing: Ask = () => Promise.reject(new HyperMeshError(code, 'No.'));
    assert.equal(await auditor(refusing).holds(NODE, resource), false);
  }
  const vague: Ask = async () => encodeMessage({ proof: 'yes' });
  assert.equal(await auditor(vague).holds(NODE, resource), false);

  // A blob that was never announced is nobody's business, whether it is here or not.
  const secret = holder(content([large, small]), false);
  assert.equal(await auditor(secret.ask).holds(NODE, resource), false);

  assert.ok(await auditor(none.ask).holds(NODE, { blobs: [] }), 'there is nothing to hold');
});

test('an answer to one audit is none to the next', async () => {
  const whole = holder(content([large, small]));
  let first: Uint8Array | undefined;
  const replaying: Ask = async (...asked) => {
    first ??= await whole.ask(...asked);
    return first;
  };
  const audit = auditor(replaying);
  assert.equal(await audit.holds(NODE, resource), true);
  assert.equal(await audit.holds(NODE, resource), false);
});

test('who finds that it misses the content itself says so, and nothing about the other one', async () => {
  const whole = holder(content([large, small]));
  const missed: Digest[] = [];
  const audit = auditor(whole.ask, content([]), (blob) => missed.push(blob));
  await assert.rejects(audit.holds(NODE, resource), { code: 'blob-not-found' });
  assert.equal(missed.length, 1);
});
