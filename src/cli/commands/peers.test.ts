import assert from 'node:assert/strict';
import { test } from 'node:test';
import { base64, utf8 } from '../../base/bytes.ts';
import type { Client } from '../../client/index.ts';
import type { Context } from '../command.ts';
import { bans } from './peers.ts';

const node = '1'.repeat(64);
const ban = { node, reason: 'broke the protocol', bannedAtMs: Date.UTC(2030, 0, 2, 3, 4), evidenceBytes: 5 };

function contextOf(evidence: Uint8Array): Context {
  const client = {
    bans: async () => (evidence.length === 0 ? [] : [ban]),
    ban: async () => ({ ...ban, evidenceBytes: evidence.length, evidence: base64(evidence) }),
  };
  return { withNode: (work: (client: Client) => unknown) => work(client as unknown as Client) } as unknown as Context;
}

async function shown(evidence: Uint8Array): Promise<string> {
  return (await bans(contextOf(evidence), node)).text!;
}

test('a ban is shown with the reason, since when, until when, and its evidence', async () => {
  const text = await shown(utf8('it sent\nnonsense'));
  assert.match(
    text,
    /^Why +broke the protocol\nSince +2030-01-02 03:04\nUntil +you forgive it \(`hypermesh peers forgive NODE`\)/m,
  );
  assert.match(text, /\n\nEvidence, 16 B:\n {2}it sent\n {2}nonsense$/);
  const { text: list } = await bans(contextOf(utf8('x')), undefined);
  assert.match(list!, new RegExp(`^${node} +2030-01-02 03:04 +5 B +broke the protocol$`, 'm'));
  assert.equal((await bans(contextOf(new Uint8Array()), undefined)).text, 'No node is banned.');
});

test('evidence that is no text is shown in hexadecimal digits, long evidence by its beginning; nothing of it reaches the terminal', async () => {
  assert.match(await shown(Uint8Array.of(0, 255, 16)), /\n {2}00ff10$/);
  assert.match(await shown(utf8('\u001b[2Jgone')), /\n {2}1b5b324a676f6e65$/);
  const long = await shown(new Uint8Array(4_000).fill(97));
  assert.match(long, /\n {2}a{1024}\n… --json has all of it, in base64\.$/);
});
